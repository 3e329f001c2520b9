//! What both systems are to a measurement: a cluster of processes, and connections to its nodes.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bftd_client::Bytes;
use rustix::process::{Pid, Signal, kill_process};

use crate::failure::Failure;

/// How long a cluster may take to be ready.
pub(crate) const READY: Duration = Duration::from_secs(30);
/// How long an operation may take, with both systems.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// How often we look whether something has happened.
pub(crate) const LOOK: Duration = Duration::from_millis(25);

/// Where programs and data are.
#[derive(Debug)]
pub(crate) struct Places {
    /// Where etcd is installed, and clusters live while they are measured.
    pub(crate) root: PathBuf,
    /// Where `bftd` and `bftctl` are.
    pub(crate) programs: PathBuf,
    /// Locked while we use `root`.
    _lock: File,
}

impl Places {
    /// Makes sure that the programs are there, and that `root` is on a disk and nobody else's.
    ///
    /// # Errors
    /// One of these is not so.
    pub(crate) fn open(root: &Path, programs: &Path) -> Result<Self, Failure> {
        let cant = |error| Failure::new(format!("can't use {}", root.display())).cause(error);
        fs::create_dir_all(root).map_err(cant)?;
        let root = root.canonicalize().map_err(cant)?;
        check_disk(&root)?;
        for name in ["bftd", "bftctl"] {
            if !programs.join(name).is_file() {
                return Err(Failure::new(format!("there is no {name} in {}", programs.display()))
                    .next("cargo build --release, from the root of the workspace"));
            }
        }
        let lock = File::create(root.join("lock")).map_err(cant)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root, programs: programs.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new(format!("another comparison uses {}", root.display()))
                    .next("wait for it: two at a time measure each other"))
            }
            Err(TryLockError::Error(error)) => Err(cant(error)),
        }
    }
}

/// Refuses a directory whose files are in memory: nothing that is synced there is durable, or takes time.
fn check_disk(directory: &Path) -> Result<(), Failure> {
    /// The kernel's number for tmpfs (`statfs(2)`).
    const TMPFS: u64 = 0x0102_1994;
    let found = rustix::fs::statfs(directory).map_err(|error| {
        Failure::new(format!("can't tell what disk {} is on", directory.display())).cause(error)
    })?;
    if u64::try_from(found.f_type).ok() == Some(TMPFS) {
        return Err(Failure::new(format!("{} is in memory, not on a disk", directory.display()))
            .next("name a directory on a disk with --dir"));
    }
    Ok(())
}

/// A cluster that runs. Its processes and data are gone when it is dropped.
pub(crate) trait Cluster: Sized {
    /// A connection of its own to one node.
    type Connection: Connection;

    /// What it is called.
    const NAME: &'static str;
    /// Whether a member can be made to lie.
    const CAN_LIE: bool;

    /// Starts a cluster without data, and waits until all of it is ready.
    async fn start(places: &Places) -> Result<Self, Failure>;

    /// What runs, in a few words.
    fn version(&self) -> &str;

    /// The ids of the nodes' processes.
    fn pids(&self) -> &[u32];

    /// Where the nodes' data is.
    fn directory(&self) -> &Path;

    /// The number, from 0, of the node that leads.
    async fn leader(&self) -> Result<usize, Failure>;

    /// Connects to a node.
    async fn connect(&self, node: usize) -> Result<Self::Connection, Failure>;

    /// Waits until a node that was away has all that the others have.
    async fn wait_caught_up(&self, node: usize) -> Result<(), Failure>;

    /// Makes a node lie from now on.
    async fn make_lie(&self, node: usize) -> Result<(), Failure>;

    /// The nodes, the leader first: where few clients are, it matters who serves them.
    async fn leader_first(&self) -> Result<Vec<usize>, Failure> {
        let (leader, n) = (self.leader().await?, self.pids().len());
        Ok((0..n).map(|offset| (leader + offset) % n).collect())
    }

    /// Sends a node's process a signal.
    fn signal(&self, node: usize, signal: Signal) -> Result<(), Failure> {
        let pid = self.pids().get(node).and_then(|pid| Pid::from_raw(i32::try_from(*pid).ok()?));
        let pid = pid.ok_or_else(|| Failure::new(format!("there is no node {node}")))?;
        kill_process(pid, signal)
            .map_err(|error| Failure::new(format!("can't signal a node of {}", Self::NAME)).cause(error))
    }
}

/// A connection to a node, which many calls may share.
pub(crate) trait Connection: 'static {
    /// Stores a value, durably.
    ///
    /// # Errors
    /// Why it may not have happened.
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), String>;

    /// Looks a key up, linearizable. Answers with the length of its value.
    ///
    /// # Errors
    /// Why there is no answer.
    async fn get(&self, key: Bytes) -> Result<Option<usize>, String>;
}

/// An empty directory where a cluster can live.
pub(crate) fn fresh_directory(path: &Path) -> Result<(), Failure> {
    let cant = |error| Failure::new(format!("can't make {} anew", path.display())).cause(error);
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cant(error)),
        _ => fs::create_dir_all(path).map_err(cant),
    }
}
