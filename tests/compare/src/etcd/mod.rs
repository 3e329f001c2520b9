//! Three etcd nodes with default settings, plain HTTP on loopback.

mod grpc;
mod install;
mod wire;

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use tokio::time::sleep;

use crate::{
    cluster::{Cluster, LOOK, Places, READY, fresh_directory},
    failure::Failure,
};
use wire::Client;

/// How many nodes there are: with three one may crash, as with four of bftd one may do anything.
const NODES: usize = 3;

/// A cluster of etcd.
#[derive(Debug)]
pub(crate) struct Etcd {
    directory: PathBuf,
    version: String,
    nodes: Vec<Node>,
    pids: Vec<u32>,
}

#[derive(Debug)]
struct Node {
    process: Child,
    log: PathBuf,
    address: SocketAddr,
}

impl Cluster for Etcd {
    type Connection = Client;

    const NAME: &'static str = "etcd";
    const CAN_LIE: bool = false;

    async fn start(places: &Places) -> Result<Self, Failure> {
        let program = install::etcd(&places.root)?;
        let directory = places.root.join("etcd");
        fresh_directory(&directory)?;
        let mut cluster =
            Self { directory, version: version(&program)?, nodes: Vec::new(), pids: Vec::new() };
        let addresses = free_addresses(2 * NODES)?;
        let (clients, peers) = addresses.split_at(NODES);
        for (at, client) in clients.iter().enumerate() {
            let node = spawn(&program, &cluster.directory, at, *client, peers)?;
            cluster.pids.push(node.process.id());
            cluster.nodes.push(node);
        }
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn pids(&self) -> &[u32] {
        &self.pids
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    async fn leader(&self) -> Result<usize, Failure> {
        self.find_leader().await.map_err(|why| Failure::new("etcd has no leader").cause(why))
    }

    async fn connect(&self, node: usize) -> Result<Client, Failure> {
        let address = self.nodes.get(node).map(|node| node.address);
        let address = address.ok_or_else(|| Failure::new(format!("there is no node {node}")))?;
        Client::connect(address).await.map_err(|why| Failure::new("can't connect to etcd").cause(why))
    }

    async fn wait_caught_up(&self, node: usize) -> Result<(), Failure> {
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline {
            if let (Ok(leader), Ok(found)) =
                (self.revision(self.leader().await?).await, self.revision(node).await)
                && found >= leader
            {
                return Ok(());
            }
            sleep(LOOK).await;
        }
        Err(Failure::new(format!("an etcd node has not caught up within {READY:?}")))
    }

    async fn make_lie(&self, _node: usize) -> Result<(), Failure> {
        Err(Failure::new("etcd can't be made to lie"))
    }
}

impl Etcd {
    /// Waits until all nodes name the same leader.
    async fn wait_ready(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + READY;
        loop {
            let why = match self.find_leader().await {
                Ok(_) => return Ok(()),
                Err(why) => why,
            };
            for node in &mut self.nodes {
                if let Ok(Some(status)) = node.process.try_wait() {
                    return Err(Failure::new(format!("an etcd node ended at once ({status})"))
                        .next(format!("see {}", node.log.display())));
                }
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(format!("etcd is not ready after {READY:?}"))
                    .cause(why)
                    .next(format!("see the logs in {}", self.directory.display())));
            }
            sleep(LOOK).await;
        }
    }

    async fn find_leader(&self) -> Result<usize, String> {
        let mut members = Vec::new();
        let mut leaders = Vec::new();
        for node in &self.nodes {
            let status = Client::connect(node.address).await?.status().await?;
            members.push(status.header.map(|header| header.member_id).unwrap_or_default());
            leaders.push(status.leader);
        }
        match leaders.first() {
            Some(leader) if *leader != 0 && leaders.iter().all(|other| other == leader) => members
                .iter()
                .position(|member| member == leader)
                .ok_or_else(|| "nobody is the leader".to_owned()),
            _ => Err("the nodes do not agree who leads".to_owned()),
        }
    }

    async fn revision(&self, node: usize) -> Result<i64, String> {
        let client = self.connect(node).await.map_err(|failure| failure.to_string())?;
        Ok(client.status().await?.header.map(|header| header.revision).unwrap_or_default())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // It may have ended by itself.
            let _ = node.process.kill();
            let _ = node.process.wait();
        }
        // What is left is deleted before the next start.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn spawn(
    program: &Path,
    directory: &Path,
    at: usize,
    client: SocketAddr,
    peers: &[SocketAddr],
) -> Result<Node, Failure> {
    let log = directory.join(format!("node{at}.log"));
    let cant = |error: std::io::Error| {
        Failure::new("can't start an etcd node")
            .cause(error)
            .next("setpriv is in the package util-linux, which a Debian always has")
    };
    let output = File::create(&log).map_err(cant)?;
    let peer = peers.get(at).map(|peer| format!("http://{peer}")).unwrap_or_default();
    let initial: Vec<_> =
        peers.iter().enumerate().map(|(at, peer)| format!("node{at}=http://{peer}")).collect();
    // Should we be killed, the kernel ends it: nothing else would.
    let process = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program)
        .arg("--data-dir")
        .arg(directory.join(format!("node{at}")))
        .args(["--name", &format!("node{at}")])
        .args(["--listen-client-urls", &format!("http://{client}")])
        .args(["--advertise-client-urls", &format!("http://{client}")])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &initial.join(",")])
        .args(["--initial-cluster-token", "bftd-compare"])
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(cant)?)
        .stderr(output)
        .spawn()
        .map_err(cant)?;
    Ok(Node { process, log, address: client })
}

fn version(program: &Path) -> Result<String, Failure> {
    let output = Command::new(program).arg("--version").output();
    let output =
        output.map_err(|error| Failure::new(format!("can't run {}", program.display())).cause(error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().next().and_then(|line| line.strip_prefix("etcd Version: ")).unwrap_or("?");
    Ok(format!("etcd {version}, {NODES} nodes"))
}

/// TCP addresses that were free a moment ago, all different.
fn free_addresses(count: usize) -> Result<Vec<SocketAddr>, Failure> {
    let sockets: Result<Vec<_>, _> = (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect();
    sockets
        .and_then(|sockets| sockets.iter().map(TcpListener::local_addr).collect())
        .map_err(|error| Failure::new("can't find free TCP ports on 127.0.0.1").cause(error))
}
