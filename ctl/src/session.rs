//! Which daemon to talk to, and the connections to it.

use std::{
    collections::HashMap,
    env,
    io::{self, BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use bftd_client::{Client, SessionOptions};
use tokio::time::timeout;

use crate::{
    args::Options,
    contexts::{self, Contexts},
    failure::{Code, Failure, to_stderr},
};

/// Where a packaged daemon's socket is.
const DEFAULT_SOCKET: &str = "/run/bftd/admin.sock";
/// Names a socket in the environment.
const SOCKET_VARIABLE: &str = "BFTCTL_SOCKET";

/// What commands have in common: the options, and connections that outlive a command in the shell.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) options: Options,
    pub(crate) is_shell: bool,
    /// At most one a socket that was named.
    clients: HashMap<PathBuf, Client>,
    /// Likewise, by the sockets that they may use.
    sessions: HashMap<Vec<PathBuf>, bftd_client::Session>,
}

impl Session {
    pub(crate) fn new(options: Options) -> Self {
        Self { options, is_shell: false, clients: HashMap::new(), sessions: HashMap::new() }
    }

    /// A connection to the daemon that the options name.
    pub(crate) async fn client(&mut self) -> Result<Client, Failure> {
        let socket = self.socket()?;
        if let Some(client) = self.clients.get(&socket).filter(|client| !client.is_broken()) {
            return Ok(client.with_deadline(self.options.timeout()));
        }
        let client = self.connect(&socket).await?;
        self.clients.insert(socket, client.clone());
        Ok(client)
    }

    /// A session for changes with the daemon that the options name; or with the first one of the selected context, whose others are
    /// asked when it fails with a change under way.
    pub(crate) async fn changes(&mut self) -> Result<bftd_client::Session, Failure> {
        let mut sockets = self.all_sockets()?;
        if sockets.is_empty() {
            sockets.push(self.socket()?);
        }
        let deadline = self.options.timeout();
        if let Some(session) = self.sessions.get(&sockets) {
            return Ok(session.with_deadline(deadline));
        }
        let began = Instant::now();
        // Where nothing was sent yet people hear at once what is wrong.
        let options = SessionOptions { deadline, insist: false, ..SessionOptions::default() };
        let session = bftd_client::Session::open(sockets.iter().cloned(), options).await?;
        self.debug(|| format!("a session with {} opened in {:?}", sockets[0].display(), began.elapsed()));
        self.sessions.insert(sockets, session.clone());
        Ok(session)
    }

    /// A new connection to a socket.
    pub(crate) async fn connect(&self, socket: &Path) -> Result<Client, Failure> {
        let began = Instant::now();
        let limit = self.options.timeout();
        let client = timeout(limit, Client::connect(socket)).await.map_err(|_| {
            Failure::new(Code::Unreachable, format!("no daemon answers on {}", socket.display()))
                .cause(format!("no greeting within {limit:?}"))
                .next("see whether the daemon runs, or is stopped by a signal")
        })??;
        self.debug(|| format!("connected to {} in {:?}", socket.display(), began.elapsed()));
        Ok(client.with_deadline(limit))
    }

    /// The socket that the options name.
    pub(crate) fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = &self.options.socket {
            if self.options.node.is_some() {
                return Err(Failure::usage("--socket and --node name two daemons").next("give one of them"));
            }
            return Ok(socket.clone());
        }
        if let Some(node) = self.options.node {
            return contexts::load()?.node(node);
        }
        if let Some(socket) = env::var_os(SOCKET_VARIABLE).filter(|socket| !socket.is_empty()) {
            return Ok(socket.into());
        }
        let selected = contexts::load()?.selected()?.and_then(|nodes| nodes.into_iter().next());
        Ok(selected.map_or_else(|| DEFAULT_SOCKET.into(), |node| node.socket))
    }

    /// The sockets of all nodes of the selected context, unless the options or the environment name one daemon.
    pub(crate) fn all_sockets(&self) -> Result<Vec<PathBuf>, Failure> {
        let one = self.socket()?;
        let names_one = self.options.socket.is_some() || self.options.node.is_some();
        if names_one || env::var_os(SOCKET_VARIABLE).is_some_and(|socket| !socket.is_empty()) {
            return Ok(vec![one]);
        }
        let contexts: Contexts = contexts::load()?;
        let all = contexts.selected()?.unwrap_or_default().into_iter().map(|node| node.socket).collect();
        Ok(if contexts.has_selection() { all } else { vec![one] })
    }

    /// Whether a person wants something to be lost. `--yes` has said so.
    pub(crate) fn confirms(&self, question: &str) -> Result<bool, Failure> {
        if self.options.yes {
            return Ok(true);
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::usage("this deletes data, and there is nobody to ask").next("add --yes"));
        }
        let mut answer = String::new();
        let asked = write!(io::stderr(), "{question} [y/N] ")
            .and_then(|()| io::stdin().lock().read_line(&mut answer));
        asked.map_err(|error| Failure::other("can't ask").cause(error).next("add --yes"))?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    /// Words for people.
    pub(crate) fn say(&self, text: &str) {
        if !self.options.quiet {
            to_stderr(&format!("{text}\n"));
        }
    }

    /// Words for people who asked for many.
    pub(crate) fn debug(&self, text: impl FnOnce() -> String) {
        if self.options.verbose {
            to_stderr(&format!("{}\n", text()));
        }
    }
}
