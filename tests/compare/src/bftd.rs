//! Four daemons of `bftctl dev`, in a directory and with contexts of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use bftd_client::{Bytes, Client, Consistency, Expect, Health, Status};
use serde::Deserialize;
use tokio::time::sleep;

use crate::{
    cluster::{Cluster, Connection, DEADLINE, LOOK, Places, READY, fresh_directory},
    failure::Failure,
};

/// How many nodes there are: with four one may do anything.
const NODES: usize = 4;

/// A cluster of bftd.
#[derive(Debug)]
pub(crate) struct Bftd {
    programs: PathBuf,
    root: PathBuf,
    /// Where the nodes are, in `root`.
    directory: PathBuf,
    nodes: Vec<Node>,
    pids: Vec<u32>,
}

/// A node, as `bftctl dev` tells of it.
#[derive(Debug, Deserialize)]
struct Node {
    id: u8,
    pid: Option<u32>,
    socket: PathBuf,
}

impl Cluster for Bftd {
    type Connection = Client;

    const NAME: &'static str = "bftd";
    const CAN_LIE: bool = true;

    async fn start(places: &Places) -> Result<Self, Failure> {
        let mut cluster = Self::prepare(places);
        fresh_directory(&cluster.root)?;
        let output = cluster.bftctl(&["-o", "json", "dev", "up", "--nodes", &NODES.to_string()])?;
        #[derive(Deserialize)]
        struct Up {
            nodes: Vec<Node>,
        }
        let up: Up = serde_json::from_slice(&output)
            .map_err(|error| Failure::new("`bftctl dev up` does not print what it should").cause(error))?;
        cluster.pids = up.nodes.iter().filter_map(|node| node.pid).collect();
        cluster.nodes = up.nodes;
        Ok(cluster)
    }

    fn version(&self) -> &str {
        concat!("bftd ", env!("CARGO_PKG_VERSION"), ", 4 nodes")
    }

    fn pids(&self) -> &[u32] {
        &self.pids
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    async fn leader(&self) -> Result<usize, Failure> {
        let leader = self.status(0).await?.cluster.leader;
        let found = self.nodes.iter().position(|node| node.id == leader);
        found.ok_or_else(|| Failure::new(format!("bftd is led by {leader}, which is no node")))
    }

    async fn connect(&self, node: usize) -> Result<Client, Failure> {
        let client = Client::connect(&self.node(node)?.socket).await;
        let client = client.map_err(|error| Failure::new("can't connect to bftd").cause(error))?;
        Ok(client.with_deadline(DEADLINE))
    }

    async fn wait_caught_up(&self, node: usize) -> Result<(), Failure> {
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline {
            let leader = self.status(self.leader().await?).await?;
            let found = self.status(node).await?;
            if found.cluster.state == Health::Healthy && found.cluster.executed >= leader.cluster.executed {
                return Ok(());
            }
            sleep(LOOK).await;
        }
        Err(Failure::new(format!("a bftd node has not caught up within {READY:?}")))
    }

    async fn make_lie(&self, node: usize) -> Result<(), Failure> {
        let id = self.node(node)?.id.to_string();
        self.bftctl(&["inject", "fault", "--node", &id, "malicious"]).map(|_| ())
    }
}

impl Bftd {
    /// Ends what a comparison that was killed has left behind: `bftctl dev` detaches its daemons.
    pub(crate) fn end_leftovers(places: &Places) {
        drop(Self::prepare(places));
    }

    /// Everything but the processes.
    fn prepare(places: &Places) -> Self {
        let root = places.root.join("bftd");
        let directory = root.join("nodes");
        Self { programs: places.programs.clone(), root, directory, nodes: Vec::new(), pids: Vec::new() }
    }

    fn node(&self, node: usize) -> Result<&Node, Failure> {
        self.nodes.get(node).ok_or_else(|| Failure::new(format!("there is no node {node}")))
    }

    async fn status(&self, node: usize) -> Result<Status, Failure> {
        let status = self.connect(node).await?.status().await;
        status.map_err(|error| Failure::new("a bftd node does not say how it is").cause(error))
    }

    /// Runs `bftctl`, on this cluster alone.
    fn bftctl(&self, words: &[&str]) -> Result<Vec<u8>, Failure> {
        let program = self.programs.join("bftctl");
        let failed = |cause: String| {
            Failure::new(format!("`{} {}` failed", program.display(), words.join(" ")))
                .cause(cause)
                .next("cargo build --release, from the root of the workspace")
        };
        let output = Command::new(&program)
            .args(words)
            .env("BFTD", self.programs.join("bftd"))
            .env("BFTCTL_DEV_DIR", &self.directory)
            .env("BFTCTL_CONTEXTS", self.root.join("contexts.toml"))
            .env_remove("BFTCTL_SOCKET")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(failed(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()))
    }

    /// Ends all daemons and deletes their data, where there are any.
    fn wipe(&self) {
        if self.directory.exists()
            && let Err(failure) = self.bftctl(&["dev", "wipe", "--yes"])
        {
            eprintln!("the cluster in {} may still run: {failure}", self.directory.display());
        }
    }
}

impl Drop for Bftd {
    fn drop(&mut self) {
        self.wipe();
        // What is left is deleted before the next start.
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Connection for Client {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), String> {
        Self::put(self, key, value, Expect::Anything).await.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn get(&self, key: Bytes) -> Result<Option<usize>, String> {
        let (entry, _) =
            Self::get(self, key, Consistency::Linearizable).await.map_err(|error| error.to_string())?;
        Ok(entry.map(|entry| entry.value.len()))
    }
}
