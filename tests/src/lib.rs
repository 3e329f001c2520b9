//! A cluster of real daemons for one test: its own directory, ports and processes, all gone when it is dropped.

pub mod load;

use std::{
    fs::{self, File},
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bftd_client::{Client, Error, Health, Status, genesis};
use bftd_core::{
    ids::MemberId,
    membership::{Genesis, Member},
    protocol::Protocol,
};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take that should take less.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Real daemons, numbered from 1.
#[derive(Debug)]
pub struct Cluster {
    directory: tempfile::TempDir,
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    home: PathBuf,
    process: Option<Child>,
}

impl Cluster {
    /// Starts `n` daemons, and waits until all say that the cluster is healthy.
    pub async fn start(n: u8) -> Self {
        Self::start_with(n, Protocol::default()).await
    }

    /// The same with another protocol.
    pub async fn start_with(n: u8, protocol: Protocol) -> Self {
        let mut cluster = Self::prepare(n, protocol);
        for id in 1..=n {
            cluster.spawn(id);
        }
        cluster.wait_healthy().await;
        cluster
    }

    /// Everything but the processes.
    pub fn prepare(n: u8, protocol: Protocol) -> Self {
        let directory =
            tempfile::Builder::new().prefix("bftd-test").tempdir().expect("a temporary directory");
        let mut members = Vec::new();
        let mut nodes = Vec::new();
        for (id, address) in (1..=n).zip(free_addresses(n)) {
            let home = directory.path().join(format!("node{id}"));
            fs::create_dir(&home).expect("a directory for a node");
            let config = "[node]\ngenesis = \"../genesis.toml\"\ndata_dir = \"data\"\n[admin]\nsocket = \"s\"\n\
                          [faults]\nenabled = true\n";
            fs::write(home.join("bftd.toml"), config).expect("a configuration");
            let output = Command::new(binary("bftd"))
                .args(["identity", "--data-dir"])
                .arg(home.join("data"))
                .output()
                .expect("bftd runs");
            let key = String::from_utf8_lossy(&output.stdout);
            let key = key.trim().parse().expect("`bftd identity` prints a key");
            members.push(Member { id: MemberId(id), name: format!("node{id}"), key, address });
            nodes.push(Node { home, process: None });
        }
        let genesis = Genesis { name: "test".to_owned(), protocol, created_ms: 1, members };
        genesis::write(&directory.path().join("genesis.toml"), &genesis).expect("a genesis");
        Self { directory, nodes }
    }

    /// Where everything is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A node's own directory.
    pub fn home(&self, id: u8) -> &Path {
        &self.node(id).home
    }

    fn node(&self, id: u8) -> &Node {
        self.nodes.get(usize::from(id) - 1).expect("a node of this cluster")
    }

    fn node_mut(&mut self, id: u8) -> &mut Node {
        self.nodes.get_mut(usize::from(id) - 1).expect("a node of this cluster")
    }

    /// The ids of all nodes.
    pub fn ids(&self) -> impl Iterator<Item = u8> + use<> {
        1..=u8::try_from(self.nodes.len()).expect("few nodes")
    }

    /// Starts a node's process.
    pub fn spawn(&mut self, id: u8) {
        let node = self.node_mut(id);
        let log = File::options().create(true).append(true).open(node.home.join("log")).expect("a log file");
        let process = Command::new(binary("bftd"))
            .arg("--config")
            .arg(node.home.join("bftd.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("bftd runs");
        node.process = Some(process);
    }

    /// Ends a node's process without warning.
    pub fn kill(&mut self, id: u8) {
        if let Some(mut process) = self.node_mut(id).process.take() {
            process.kill().expect("our own process can be killed");
            process.wait().expect("a killed process ends");
        }
    }

    /// Asks a node's process to stop, and answers with its exit code.
    pub fn stop(&mut self, id: u8) -> Option<i32> {
        self.signal(id, Signal::TERM);
        self.wait_exit(id)
    }

    /// Waits until a node's process has ended, and answers with its exit code.
    pub fn wait_exit(&mut self, id: u8) -> Option<i32> {
        let mut process = self.node_mut(id).process.take()?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = process.try_wait().expect("a process has a state") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        process.kill().expect("our own process can be killed");
        panic!("node {id} did not end; its log:\n{}", self.log(id));
    }

    /// A node's process.
    pub fn pid(&self, id: u8) -> u32 {
        self.node(id).process.as_ref().expect("the node runs").id()
    }

    /// Sends a signal, SIGSTOP for example.
    pub fn signal(&self, id: u8, signal: Signal) {
        let process = self.node(id).process.as_ref().expect("the node runs");
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).expect("a process has an id");
        kill_process(pid, signal).expect("our own process can be signalled");
    }

    /// What a node has logged.
    pub fn log(&self, id: u8) -> String {
        fs::read_to_string(self.node(id).home.join("log")).unwrap_or_default()
    }

    /// A connection to a node.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn client(&self, id: u8) -> Result<Client, Error> {
        Client::connect(&self.node(id).home.join("s")).await
    }

    /// What a node says of the cluster.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn status(&self, id: u8) -> Result<Status, Error> {
        self.client(id).await?.status().await
    }

    /// Waits until every node calls the cluster healthy.
    pub async fn wait_healthy(&self) {
        for id in self.ids() {
            self.wait_status(id, "healthy", |status| status.cluster.state == Health::Healthy).await;
        }
    }

    /// Waits until a node's status is as wished, and answers with it.
    pub async fn wait_status(&self, id: u8, wish: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(id).await;
            match status {
                Ok(status) if is_so(&status) => return status,
                _ if Instant::now() > deadline => {
                    panic!("node {id} is not {wish}: {status:?}; its log:\n{}", self.log(id))
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Waits until all nodes have executed the same and have the same state, and answers with its digest.
    pub async fn wait_equal(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut seen = Vec::new();
            for id in self.ids() {
                let status = self.status(id).await.expect("the node answers");
                seen.push((status.cluster.executed, status.cluster.state_digest));
            }
            let first = seen.first().cloned().expect("a cluster has nodes");
            if seen.iter().all(|one| *one == first) {
                return first.1;
            }
            assert!(Instant::now() < deadline, "the nodes differ: {seen:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The node that leads, by a node's word.
    pub async fn leader(&self, asked: u8) -> u8 {
        self.status(asked).await.expect("the node answers").cluster.leader
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process {
                // It may have ended by itself.
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }
}

/// Loopback addresses that nobody listens on now.
fn free_addresses(n: u8) -> Vec<SocketAddr> {
    let sockets: Vec<_> =
        (0..n).map(|_| UdpSocket::bind("127.0.0.1:0").expect("a free port on loopback")).collect();
    sockets.iter().map(|socket| socket.local_addr().expect("a bound socket has an address")).collect()
}

/// A binary of this workspace, built in the same profile as the test that asks.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test is a program");
    let profile = test.parent().and_then(Path::parent).expect("tests are in target/PROFILE/deps");
    let path = profile.join(name);
    assert!(
        path.exists(),
        "{} is missing: build the workspace first (cargo build --release)",
        path.display()
    );
    path
}
