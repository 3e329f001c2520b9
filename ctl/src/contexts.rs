//! Contexts: named sets of sockets, one of which is selected.
//!
//! They are in `contexts.toml` in `$XDG_CONFIG_HOME/bftd`, or wherever `$BFTCTL_CONTEXTS` says. `bftctl dev up` writes
//! the context `dev`; the file is also made to be edited by people.

use std::{collections::BTreeMap, env, fs, io, path::PathBuf};

use clap::{Args, Subcommand};
use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    render,
    session::Session,
};

/// The context that `bftctl dev` keeps.
pub(crate) const DEV: &str = "dev";

/// List contexts, or select one.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  bftctl context use dev")]
pub(crate) struct Context {
    #[command(subcommand)]
    command: ContextCommand,
}

#[derive(Debug, Subcommand)]
enum ContextCommand {
    /// List the contexts and their sockets
    #[command(after_help = "Example:\n  bftctl context ls")]
    Ls,
    /// Select the context that commands use from now on
    #[command(after_help = "Example:\n  bftctl context use dev")]
    Use {
        /// The context
        name: String,
    },
}

/// The file's contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Nodes>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nodes {
    nodes: Vec<Node>,
}

/// A node of a context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Node {
    /// Its member id.
    pub(crate) id: u8,
    /// Its admin socket.
    pub(crate) socket: PathBuf,
}

impl Context {
    pub(crate) fn run(self, session: &Session) -> Result<Code, Ended> {
        match self.command {
            ContextCommand::Ls => list(session)?,
            ContextCommand::Use { name } => {
                let mut contexts = load()?;
                if !contexts.contexts.contains_key(&name) {
                    return Err(contexts.unknown(&name).into());
                }
                session.say(&format!("selected `{name}`"));
                contexts.current = Some(name);
                save(&contexts)?;
            }
        }
        Ok(Code::Ok)
    }
}

fn list(session: &Session) -> Result<(), Ended> {
    let contexts = load()?;
    let is_current = |name: &str| contexts.current.as_deref() == Some(name);
    match session.options.output() {
        Output::Json => {
            #[derive(Serialize)]
            struct Row<'a> {
                name: &'a str,
                selected: bool,
                nodes: &'a [Node],
            }
            #[derive(Serialize)]
            struct Body<'a> {
                contexts: Vec<Row<'a>>,
            }
            let row = |(name, nodes): (&'_ String, &'_ Nodes)| (name.clone(), nodes.clone());
            let rows: Vec<_> = contexts.contexts.iter().map(row).collect();
            let contexts = rows
                .iter()
                .map(|(name, nodes)| Row { name, selected: is_current(name), nodes: &nodes.nodes })
                .collect();
            render::json(&Body { contexts })
        }
        Output::Value => contexts.contexts.keys().try_for_each(|name| render::line(name)),
        Output::Table => {
            if contexts.contexts.is_empty() {
                session.say("no contexts; bftctl dev up makes one");
                return Ok(());
            }
            let rows = contexts.contexts.iter().flat_map(|(name, nodes)| {
                nodes.nodes.iter().enumerate().map(move |(at, node)| {
                    let name = if at == 0 { name.clone() } else { String::new() };
                    let mark = if at == 0 && is_current(&name) { "*" } else { "" };
                    vec![mark.to_owned(), name, node.id.to_string(), node.socket.display().to_string()]
                })
            });
            render::line(&render::table(&["", "CONTEXT", "NODE", "SOCKET"], &[2], rows.collect()))
        }
    }
}

impl Contexts {
    /// The nodes of the selected context, if one is selected.
    pub(crate) fn selected(&self) -> Result<Option<Vec<Node>>, Failure> {
        let Some(current) = &self.current else { return Ok(None) };
        let context = self.contexts.get(current).ok_or_else(|| self.unknown(current))?;
        Ok(Some(context.nodes.clone()))
    }

    /// Whether a context is selected.
    pub(crate) fn has_selection(&self) -> bool {
        self.current.is_some()
    }

    /// The socket of a node of the selected context, or else of `dev`.
    pub(crate) fn node(&self, id: u8) -> Result<PathBuf, Failure> {
        let name = self.current.as_deref().unwrap_or(DEV);
        let nodes = self.contexts.get(name).ok_or_else(|| self.unknown(name))?;
        nodes.nodes.iter().find(|node| node.id == id).map(|node| node.socket.clone()).ok_or_else(|| {
            let ids: Vec<_> = nodes.nodes.iter().map(|node| node.id.to_string()).collect();
            Failure::usage(format!("the context `{name}` has no node {id}"))
                .cause(format!("it has {}", ids.join(", ")))
                .next("bftctl context ls")
        })
    }

    /// Makes or replaces a context, and selects it.
    pub(crate) fn select_new(&mut self, name: &str, nodes: Vec<Node>) {
        self.contexts.insert(name.to_owned(), Nodes { nodes });
        self.current = Some(name.to_owned());
    }

    /// Forgets a context.
    pub(crate) fn forget(&mut self, name: &str) {
        self.contexts.remove(name);
        if self.current.as_deref() == Some(name) {
            self.current = None;
        }
    }

    fn unknown(&self, name: &str) -> Failure {
        let known: Vec<_> = self.contexts.keys().map(String::as_str).collect();
        let known = if known.is_empty() {
            "there is none".to_owned()
        } else {
            format!("known: {}", known.join(", "))
        };
        Failure::usage(format!("no context `{name}`"))
            .cause(known)
            .next("bftctl context ls, or bftctl dev up")
    }
}

fn path() -> Result<PathBuf, Failure> {
    if let Some(path) = env::var_os("BFTCTL_CONTEXTS").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let base = etcetera::choose_base_strategy().map_err(|error| {
        Failure::other("can't find your home directory").cause(error).next("set $BFTCTL_CONTEXTS")
    })?;
    Ok(base.config_dir().join("bftd").join("contexts.toml"))
}

/// Reads the file; where there is none, there are no contexts.
pub(crate) fn load() -> Result<Contexts, Failure> {
    let path = path()?;
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contexts::default()),
        Err(error) => return Err(Failure::other(format!("can't read {}", path.display())).cause(error)),
    };
    toml::from_str(&text).map_err(|error| {
        Failure::other(format!("{} is not what it should be", path.display()))
            .cause(error.to_string().trim_end())
            .next("mend or delete that file")
    })
}

/// Writes the file, whole or not at all.
pub(crate) fn save(contexts: &Contexts) -> Result<(), Failure> {
    let path = path()?;
    let failed = |error: io::Error| Failure::other(format!("can't write {}", path.display())).cause(error);
    let text = toml::to_string(contexts).expect("contexts are plain tables");
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let new = path.with_extension("toml.new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn contexts_survive_their_file_and_name_nodes() {
        let mut contexts = Contexts::default();
        assert_eq!(contexts.selected().unwrap(), None);
        assert_eq!(contexts.node(1).unwrap_err().code, Code::Usage);
        let nodes = vec![Node { id: 1, socket: "/a".into() }, Node { id: 2, socket: "/b".into() }];
        contexts.select_new(DEV, nodes.clone());
        let text = toml::to_string(&contexts).unwrap();
        let mut contexts: Contexts = toml::from_str(&text).unwrap();
        assert_eq!(contexts.selected().unwrap(), Some(nodes));
        assert_eq!(contexts.node(2).unwrap(), PathBuf::from("/b"));
        assert!(contexts.node(3).unwrap_err().cause.unwrap().contains("1, 2"));
        contexts.forget(DEV);
        assert_eq!(contexts, Contexts::default());
    }
}
