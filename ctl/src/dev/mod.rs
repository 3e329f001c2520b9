//! `dev`: a cluster of real daemons on this machine, without root.
//!
//! - `layout`: what is where, and how it comes about.
//! - `compose`: the same as containers.
//! - `process`: daemons as processes: started, recognised, signalled.

mod compose;
mod layout;
mod process;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bftd_client::{Client, Health, Status, genesis::Protocol};
use clap::{Args, Subcommand};
use etcetera::BaseStrategy;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use crate::{
    args::Output,
    contexts,
    failure::{Code, Ended, Failure},
    render,
    session::Session,
};
use compose::Compose;
use layout::{Layout, Node};
pub(crate) use process::find_bftd;
use process::{Daemon, Signal};

/// How long `up` waits for a healthy cluster, and `restart` for a daemon that answers; and for each node how much longer, as all
/// of them share this machine.
const UP: Duration = Duration::from_secs(20);
const UP_A_NODE: Duration = Duration::from_secs(1);
/// How long a daemon may take to stop before it is killed.
const DOWN: Duration = Duration::from_secs(5);
/// How long a restarted node may take to hear of all others that run.
const HEARD: Duration = Duration::from_secs(3);
/// How often we look whether something has happened.
const LOOK: Duration = Duration::from_millis(25);

/// Run a cluster of real daemons on this machine, without root.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  bftctl dev up && bftctl put greeting hello && bftctl dev kill 1 && bftctl get greeting --node 2"
)]
pub(crate) struct Dev {
    #[command(subcommand)]
    command: DevCommand,
    /// Where the cluster lives [default: $BFTCTL_DEV_DIR, else bftd/dev in your data directory]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum DevCommand {
    /// Start the cluster, made anew or taken up again, and wait until it is healthy
    #[command(after_help = "Examples:\n  bftctl dev up\n  bftctl dev up --nodes 7 --dir /tmp/seven")]
    Up {
        /// How many nodes; for a cluster that exists, as many as it has [default: 4]
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
        nodes: Option<u8>,
        /// The protocol: bft-raft, pbft, ccro or raft [default: bft-raft]
        #[arg(long)]
        protocol: Option<Protocol>,
    },
    /// Stop all nodes; their data stays
    #[command(after_help = "Example:\n  bftctl dev down")]
    Down,
    /// List the nodes
    #[command(after_help = "Example:\n  bftctl dev ls")]
    Ls,
    /// Kill nodes at once, as a crash would (SIGKILL)
    #[command(after_help = "Example:\n  bftctl dev kill 2")]
    Kill(Numbers),
    /// Start nodes that are stopped, or stop and start them
    #[command(after_help = "Example:\n  bftctl dev restart 2")]
    Restart(Numbers),
    /// Freeze nodes (SIGSTOP)
    #[command(after_help = "Example:\n  bftctl dev pause 2; sleep 5; bftctl dev resume 2")]
    Pause(Numbers),
    /// Let frozen nodes go on (SIGCONT)
    #[command(after_help = "Example:\n  bftctl dev resume 2")]
    Resume(Numbers),
    Compose(Compose),
    /// Stop all nodes, and delete the cluster with its data
    #[command(after_help = "Example:\n  bftctl dev wipe --yes")]
    Wipe,
}

#[derive(Args, Debug)]
struct Numbers {
    /// The nodes' numbers
    #[arg(required = true, value_name = "N")]
    nodes: Vec<u8>,
}

impl Dev {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        if let DevCommand::Compose(compose) = self.command {
            return compose.run(session, self.dir);
        }
        let root = match self.dir {
            Some(dir) => dir,
            None => default_directory()?,
        };
        match self.command {
            DevCommand::Up { nodes, protocol } => up(session, &root, nodes, protocol).await?,
            DevCommand::Down => {
                let layout = Layout::load(&root)?;
                let running: Vec<_> =
                    layout.nodes.iter().filter(|node| process::find(node).is_some()).collect();
                stop(session, &running).await?;
                finish(session, &layout.nodes.iter().collect::<Vec<_>>())?;
            }
            DevCommand::Ls => {
                let layout = Layout::load(&root)?;
                let nodes: Vec<_> = layout.nodes.iter().collect();
                print(session, &nodes)?;
            }
            DevCommand::Kill(numbers) => {
                let layout = Layout::load(&root)?;
                let nodes = layout.numbered(&numbers.nodes)?;
                for node in &nodes {
                    let daemon = running(node)?;
                    daemon.signal(Signal::KILL)?;
                    wait_gone(&[(node, daemon)], DOWN).await?;
                    session.say(&format!("killed {} (pid {})", node.name(), daemon.pid()));
                }
                finish(session, &nodes)?;
            }
            DevCommand::Restart(numbers) => {
                let layout = Layout::load(&root)?;
                let nodes = layout.numbered(&numbers.nodes)?;
                let running: Vec<_> =
                    nodes.iter().copied().filter(|node| process::find(node).is_some()).collect();
                stop(session, &running).await?;
                restart(session, &layout, &nodes).await?;
                finish(session, &nodes)?;
            }
            DevCommand::Pause(numbers) => {
                signal(session, &root, &numbers.nodes, Signal::STOP, "paused").await?;
            }
            DevCommand::Resume(numbers) => {
                signal(session, &root, &numbers.nodes, Signal::CONT, "running").await?;
            }
            DevCommand::Wipe => wipe(session, &root).await?,
            DevCommand::Compose(_) => {}
        }
        Ok(Code::Ok)
    }
}

fn default_directory() -> Result<PathBuf, Failure> {
    if let Some(directory) = std::env::var_os("BFTCTL_DEV_DIR").filter(|directory| !directory.is_empty()) {
        return Ok(directory.into());
    }
    let base = etcetera::choose_base_strategy().map_err(|error| {
        Failure::other("can't find your home directory").cause(error).next("name a directory with --dir")
    })?;
    Ok(base.data_dir().join("bftd").join("dev"))
}

async fn up(
    session: &mut Session,
    root: &Path,
    nodes: Option<u8>,
    protocol: Option<Protocol>,
) -> Result<(), Ended> {
    let bftd = find_bftd()?;
    let layout = if Layout::exists(root) {
        let layout = Layout::load(root)?;
        layout.require(nodes, protocol)?;
        layout
    } else {
        let protocol = protocol.unwrap_or_default();
        Layout::create(root, nodes.unwrap_or(4), protocol, &bftd)?
    };
    let began = Instant::now();
    let mut started = Vec::new();
    for node in &layout.nodes {
        match process::find(node) {
            // It may have been paused.
            Some(daemon) => daemon.signal(Signal::CONT)?,
            None => started.push(process::start(&bftd, node)?),
        }
    }
    let all: Vec<_> = layout.nodes.iter().collect();
    wait_up(session, &all, &mut started, |status| status.cluster.state == Health::Healthy).await?;
    let mut contexts = contexts::load()?;
    let sockets = layout.nodes.iter().map(|node| contexts::Node { id: node.id, socket: node.socket.clone() });
    contexts.select_new(contexts::DEV, sockets.collect());
    contexts::save(&contexts)?;
    session.say(&format!(
        "{} nodes are up and healthy after {:.1} s; context `{}` is selected",
        all.len(),
        began.elapsed().as_secs_f64(),
        contexts::DEV
    ));
    print(session, &all)
}

async fn restart(session: &mut Session, layout: &Layout, nodes: &[&Node]) -> Result<(), Ended> {
    let bftd = find_bftd()?;
    let mut started = Vec::new();
    for node in nodes {
        started.push(process::start(&bftd, node)?);
    }
    wait_up(session, nodes, &mut started, |_| true).await?;
    // What is asked next of it may need the others. Some may be unreachable for a reason of their own.
    let runs = |node: &&Node| process::find(node).is_some_and(|daemon| daemon.state() == "running");
    let running = layout.nodes.iter().filter(runs).count();
    let hears = |status: &Status| status.members.iter().filter(|member| member.reachable).count() >= running;
    if let Ok(result) = timeout(HEARD, wait_up(session, nodes, &mut started, hears)).await {
        result?;
    }
    for node in nodes {
        session.say(&format!("started {}", node.name()));
    }
    Ok(())
}

/// Waits until each node says that the cluster is in a state that `is_enough`.
async fn wait_up(
    session: &Session,
    nodes: &[&Node],
    started: &mut [process::Started],
    is_enough: impl Fn(&Status) -> bool,
) -> Result<(), Failure> {
    let waits = || UP + UP_A_NODE * u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    let limit = session.options.timeout.unwrap_or_else(waits);
    let deadline = Instant::now() + limit;
    for node in nodes {
        let mut client: Option<Client> = None;
        loop {
            for started in &mut *started {
                started.check_alive()?;
            }
            let said = ask(node, &mut client).await;
            let missing = match said {
                Ok(said) if is_enough(&said) => break,
                Ok(said) => format!("it says that the cluster is {}", said.cluster.state.word()),
                Err(why) => why,
            };
            if Instant::now() >= deadline {
                let message = format!("{} is not up after {limit:?}: {missing}", node.name());
                return Err(Failure::other(message).cause(process::log_tail(node)).next(format!(
                    "see {}; bftctl status --node {}",
                    node.log.display(),
                    node.id
                )));
            }
            sleep(LOOK).await;
        }
    }
    Ok(())
}

/// What a node says of the cluster; the connection is kept while it works.
async fn ask(node: &Node, client: &mut Option<Client>) -> Result<Status, String> {
    let asked = async {
        if client.as_ref().is_none_or(Client::is_broken) {
            *client = Some(Client::connect(&node.socket).await?);
        }
        match client {
            Some(client) => client.status().await,
            None => Err(bftd_client::Error::NoAnswer("not connected".to_owned())),
        }
    };
    match timeout(Duration::from_secs(1), asked).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer within a second".to_owned()),
    }
}

/// Asks daemons to stop, and kills those that don't.
async fn stop(session: &Session, nodes: &[&Node]) -> Result<(), Failure> {
    let mut stopping = Vec::new();
    for node in nodes {
        let daemon = running(node)?;
        daemon.signal(Signal::TERM)?;
        // One that is paused hears of it only so.
        daemon.signal(Signal::CONT)?;
        stopping.push((*node, daemon));
    }
    if wait_gone(&stopping, DOWN).await.is_err() {
        for (node, daemon) in &stopping {
            if !daemon.is_gone() {
                session.say(&format!("{} does not stop; killing it", node.name()));
                daemon.signal(Signal::KILL)?;
            }
        }
        wait_gone(&stopping, DOWN).await?;
    }
    for (node, daemon) in &stopping {
        session.say(&format!("stopped {} (pid {})", node.name(), daemon.pid()));
    }
    Ok(())
}

async fn wait_gone(daemons: &[(&Node, Daemon)], limit: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    for (node, daemon) in daemons {
        while !daemon.is_gone() {
            if Instant::now() >= deadline {
                return Err(Failure::other(format!("{} (pid {}) does not end", node.name(), daemon.pid())));
            }
            sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Signals daemons, and waits until they are in the state that the signal leads to.
async fn signal(
    session: &Session,
    root: &Path,
    numbers: &[u8],
    signal: Signal,
    state: &str,
) -> Result<(), Ended> {
    let layout = Layout::load(root)?;
    let nodes = layout.numbered(numbers)?;
    for node in &nodes {
        let daemon = running(node)?;
        daemon.signal(signal)?;
        let deadline = Instant::now() + DOWN;
        while daemon.state() != state {
            if Instant::now() >= deadline {
                let message = format!("{} (pid {}) is not {state} after {DOWN:?}", node.name(), daemon.pid());
                return Err(Failure::other(message).into());
            }
            sleep(LOOK).await;
        }
        session.say(&format!("{} is {state} (pid {})", node.name(), daemon.pid()));
    }
    finish(session, &nodes)
}

fn running(node: &Node) -> Result<Daemon, Failure> {
    process::find(node).ok_or_else(|| {
        Failure::other(format!("{} is not running", node.name()))
            .next(format!("bftctl dev restart {}", node.id))
    })
}

async fn wipe(session: &Session, root: &Path) -> Result<(), Ended> {
    let layout = Layout::load(root)?;
    if !session.confirms(&format!("Delete the cluster in {} with all of its data?", root.display()))? {
        return Err(Failure::other("nothing was deleted").into());
    }
    let mut killed = Vec::new();
    for node in &layout.nodes {
        if let Some(daemon) = process::find(node) {
            daemon.signal(Signal::KILL)?;
            killed.push((node, daemon));
        }
    }
    wait_gone(&killed, DOWN).await?;
    layout.delete()?;
    let mut contexts = contexts::load()?;
    contexts.forget(contexts::DEV);
    contexts::save(&contexts)?;
    session.say(&format!("deleted the cluster in {}", layout.root.display()));
    Ok(())
}

/// After a command whose words say everything to people: data for scripts.
fn finish(session: &Session, nodes: &[&Node]) -> Result<(), Ended> {
    if session.options.output() == Output::Json { print(session, nodes) } else { Ok(()) }
}

fn print(session: &Session, nodes: &[&Node]) -> Result<(), Ended> {
    #[derive(Serialize)]
    struct Row {
        id: u8,
        name: String,
        state: &'static str,
        pid: Option<i32>,
        address: String,
        socket: String,
        log: String,
    }
    #[derive(Serialize)]
    struct Body {
        nodes: Vec<Row>,
    }
    let row = |node: &&Node| {
        let daemon = process::find(node);
        Row {
            id: node.id,
            name: node.name(),
            state: daemon.map_or("stopped", Daemon::state),
            pid: daemon.map(|daemon| daemon.pid()),
            address: node.address.to_string(),
            socket: node.socket.display().to_string(),
            log: node.log.display().to_string(),
        }
    };
    let nodes: Vec<Row> = nodes.iter().map(row).collect();
    match session.options.output() {
        Output::Json => render::json(&Body { nodes }),
        Output::Value => nodes.iter().try_for_each(|node| render::line(&node.socket)),
        Output::Table => {
            let rows = nodes.into_iter().map(|node| {
                let pid = node.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
                vec![node.name, node.state.to_owned(), pid, node.address, node.socket]
            });
            render::line(&render::table(&["NODE", "STATE", "PID", "ADDRESS", "SOCKET"], &[2], rows.collect()))
        }
    }
}
