//! A cluster's directory: `genesis.toml`, and for each node `nodeN/` with `bftd.toml`, `data/`, `admin.sock`,
//! `bftd.log` and `pid`.
//!
//! The genesis is written last: a directory without one is no cluster yet, and is made anew.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    io,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use bftd_client::genesis::{self, Genesis, Member, MemberId, Protocol};

use super::process;
use crate::failure::Failure;

/// The longest path that a Unix socket can have, in bytes.
const LONGEST_SOCKET: usize = 107;
const GENESIS: &str = "genesis.toml";

/// A cluster that exists on disk.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
    pub(super) nodes: Vec<Node>,
    protocol: Protocol,
}

/// Where everything of a node is.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u8,
    pub(super) home: PathBuf,
    pub(super) config: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) log: PathBuf,
    pub(super) pid: PathBuf,
    pub(super) address: SocketAddr,
}

impl Node {
    fn new(root: &Path, id: u8, address: SocketAddr, socket: PathBuf) -> Self {
        let home = home(root, id);
        Self {
            id,
            config: home.join("bftd.toml"),
            socket,
            log: home.join("bftd.log"),
            pid: home.join("pid"),
            address,
            home,
        }
    }

    pub(super) fn name(&self) -> String {
        format!("node{}", self.id)
    }
}

impl Layout {
    /// Whether there is a cluster in `root`.
    pub(super) fn exists(root: &Path) -> bool {
        root.join(GENESIS).exists()
    }

    /// The cluster in `root`.
    pub(super) fn load(root: &Path) -> Result<Self, Failure> {
        if !Self::exists(root) {
            return Err(
                Failure::other(format!("there is no cluster in {}", root.display())).next("bftctl dev up")
            );
        }
        let root = root.canonicalize().map_err(|error| cant("open", root, error))?;
        let genesis =
            genesis::read(&root.join(GENESIS)).map_err(|error| Failure::other(error.to_string()))?;
        let node = |member: &Member| {
            let id = member.id.0;
            let home = home(&root, id);
            let socket = read_socket(&home.join("bftd.toml"))?;
            Ok(Node::new(&root, id, member.address, home.join(socket)))
        };
        let nodes = genesis.members.iter().map(node).collect::<Result<_, Failure>>()?;
        Ok(Self { nodes, protocol: genesis.protocol, root })
    }

    /// A new cluster: keys, ports, configurations, genesis.
    pub(super) fn create(root: &Path, n: u8, protocol: Protocol, bftd: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(root).map_err(|error| cant("make", root, error))?;
        let root = root.canonicalize().map_err(|error| cant("open", root, error))?;
        let mut members = Vec::new();
        let mut nodes = Vec::new();
        for (id, address) in (1..=n).zip(free_addresses(n)?) {
            let home = home(&root, id);
            fs::create_dir_all(&home).map_err(|error| cant("make", &home, error))?;
            let node = Node::new(&root, id, address, home.join(choose_socket(&root, id)?));
            let key = process::identity(bftd, &home.join("data"))?;
            fs::write(&node.config, config(&node)).map_err(|error| cant("write", &node.config, error))?;
            members.push(Member { id: MemberId(id), name: node.name(), key, address });
            nodes.push(node);
        }
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let created_ms = u64::try_from(created).unwrap_or(u64::MAX);
        let genesis = Genesis { name: "dev".to_owned(), protocol, created_ms, members };
        genesis::write(&root.join(GENESIS), &genesis).map_err(|error| Failure::other(error.to_string()))?;
        Ok(Self { root, nodes, protocol })
    }

    /// Refuses what a cluster that exists is not.
    pub(super) fn require(&self, nodes: Option<u8>, protocol: Option<Protocol>) -> Result<(), Failure> {
        let found = self.nodes.len();
        let root = self.root.display();
        let next = "leave the flag out to take it up again, name another --dir, or bftctl dev wipe";
        if let Some(nodes) = nodes.filter(|nodes| usize::from(*nodes) != found) {
            return Err(
                Failure::usage(format!("the cluster in {root} has {found} nodes, not {nodes}")).next(next)
            );
        }
        if let Some(protocol) = protocol.filter(|protocol| *protocol != self.protocol) {
            let message = format!("the cluster in {root} runs {}, not {protocol}", self.protocol);
            return Err(Failure::usage(message).next(next));
        }
        Ok(())
    }

    /// The nodes of these numbers.
    pub(super) fn numbered(&self, numbers: &[u8]) -> Result<Vec<&Node>, Failure> {
        let find = |number: &u8| {
            self.nodes.iter().find(|node| node.id == *number).ok_or_else(|| {
                Failure::usage(format!("there is no node {number}"))
                    .cause(format!("nodes are numbered from 1 to {}", self.nodes.len()))
                    .next("bftctl dev ls")
            })
        };
        numbers.iter().map(find).collect()
    }

    /// Deletes what belongs to the cluster, and nothing else.
    pub(super) fn delete(&self) -> Result<(), Failure> {
        let genesis = self.root.join(GENESIS);
        fs::remove_file(&genesis).map_err(|error| cant("delete", &genesis, error))?;
        for node in &self.nodes {
            fs::remove_dir_all(&node.home).map_err(|error| cant("delete", &node.home, error))?;
            if !node.socket.starts_with(&node.home) {
                // A daemon that was stopped in order has removed it itself; the directory goes with the last one.
                let _ = fs::remove_file(&node.socket);
                let _ = node.socket.parent().map(fs::remove_dir);
            }
        }
        // It may hold files that are not ours.
        let _ = fs::remove_dir(&self.root);
        Ok(())
    }
}

fn home(root: &Path, id: u8) -> PathBuf {
    root.join(format!("node{id}"))
}

fn config(node: &Node) -> String {
    let socket = node.socket.strip_prefix(&node.home).unwrap_or(&node.socket);
    let socket = toml::Value::from(socket.to_string_lossy().as_ref());
    format!(
        "# {} of a cluster for development, made by `bftctl dev up`.\n\
         [node]\n\
         genesis = \"../{GENESIS}\"\n\
         data_dir = \"data\"\n\
         listen = \"{}\"\n\
         \n\
         [admin]\n\
         socket = {socket}\n\
         \n\
         # For drills: with this any member of the cluster may make this daemon misbehave. Not where data matters.\n\
         [faults]\n\
         enabled = true\n",
        node.name(),
        node.address
    )
}

/// The socket that a node's configuration names.
fn read_socket(path: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(path).map_err(|error| cant("read", path, error))?;
    let broken = || Failure::other(format!("{} is not what it should be", path.display()));
    let table: toml::Table = toml::from_str(&text).map_err(|error| broken().cause(error))?;
    let socket = table.get("admin").and_then(|admin| admin.get("socket")).and_then(toml::Value::as_str);
    socket.map(str::to_owned).ok_or_else(|| broken().cause("it has no `socket` in [admin]"))
}

/// In the node's directory, or where that is too long a path, in a short one of the user's own.
fn choose_socket(root: &Path, id: u8) -> Result<PathBuf, Failure> {
    let name = PathBuf::from("admin.sock");
    if home(root, id).join(&name).as_os_str().len() <= LONGEST_SOCKET {
        return Ok(name);
    }
    let mut hasher = DefaultHasher::new();
    root.hash(&mut hasher);
    let hash = hasher.finish();
    let uid = rustix::process::getuid().as_raw();
    let short = match std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| directory.len() < 50) {
        Some(directory) if Path::new(&directory).is_dir() => {
            Path::new(&directory).join(format!("bftd-dev-{hash:016x}"))
        }
        _ => PathBuf::from(format!("/tmp/bftd-dev-{uid}-{hash:016x}")),
    };
    match fs::DirBuilder::new().mode(0o700).create(&short) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = fs::symlink_metadata(&short).map_err(|error| cant("open", &short, error))?;
            if !metadata.is_dir() || metadata.uid() != uid {
                let message = format!("{} belongs to somebody else", short.display());
                return Err(Failure::other(message).next("name a shorter directory with --dir"));
            }
        }
        Err(error) => return Err(cant("make", &short, error)),
    }
    Ok(short.join(format!("node{id}.sock")))
}

/// UDP addresses that were free a moment ago, all different.
fn free_addresses(n: u8) -> Result<Vec<SocketAddr>, Failure> {
    let bind = || UdpSocket::bind(("127.0.0.1", 0));
    let sockets: Result<Vec<_>, _> = (0..n).map(|_| bind()).collect();
    sockets
        .and_then(|sockets| sockets.iter().map(UdpSocket::local_addr).collect())
        .map_err(|error| Failure::other("can't find free UDP ports on 127.0.0.1").cause(error))
}

fn cant(verb: &str, path: &Path, error: io::Error) -> Failure {
    Failure::other(format!("can't {verb} {}", path.display())).cause(error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_path_too_long_for_a_socket_gets_a_short_one_that_the_configuration_keeps() {
        let directory = tempfile::tempdir().unwrap();
        let short = choose_socket(directory.path(), 1).unwrap();
        assert_eq!(short, Path::new("admin.sock"));

        let long = directory.path().join("x".repeat(100));
        let socket = choose_socket(&long, 1).unwrap();
        assert!(socket.is_absolute() && socket.as_os_str().len() <= LONGEST_SOCKET, "{socket:?}");
        let node = Node::new(&long, 1, "127.0.0.1:1".parse().unwrap(), socket.clone());
        fs::create_dir_all(&node.home).unwrap();
        fs::write(&node.config, config(&node)).unwrap();
        assert_eq!(Path::new(&read_socket(&node.config).unwrap()), socket);
        fs::remove_dir(socket.parent().unwrap()).unwrap();
    }

    #[test]
    fn addresses_are_different() {
        let addresses: std::collections::BTreeSet<_> = free_addresses(20).unwrap().into_iter().collect();
        assert_eq!(addresses.len(), 20);
    }
}
