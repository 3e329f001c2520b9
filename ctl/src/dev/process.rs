//! Daemons as processes. A pid in a file is believed only while that process runs bftd with the node's own
//! configuration: another process may have got the number since.

use std::{
    env,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use bftd_client::genesis::PublicKey;
pub(super) use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use super::layout::Node;
use crate::failure::Failure;

/// How much of a log's end is shown, in bytes.
const TAIL: u64 = 2000;
/// What the configurations of `dev` say themselves, and the environment must not change for all nodes at once.
const OWN_KEYS: [&str; 4] =
    ["BFTD_NODE__GENESIS", "BFTD_NODE__DATA_DIR", "BFTD_NODE__LISTEN", "BFTD_ADMIN__SOCKET"];

/// A running daemon of ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Daemon {
    pid: Pid,
}

/// A daemon that we have just started.
#[derive(Debug)]
pub(super) struct Started {
    child: Child,
    name: String,
    log: PathBuf,
    tail: u64,
}

/// The daemon of a node, if it runs.
pub(super) fn find(node: &Node) -> Option<Daemon> {
    let pid: i32 = fs::read_to_string(&node.pid).ok()?.trim().parse().ok()?;
    // A process that has ended and was not waited for has an empty command line.
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let config = node.config.as_os_str().as_bytes();
    let is_ours = words.split(|byte| *byte == 0).any(|word| word == config);
    Pid::from_raw(pid).filter(|_| is_ours).map(|pid| Daemon { pid })
}

impl Daemon {
    pub(super) fn pid(self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal. That the process has ended meanwhile is no error.
    pub(super) fn signal(self, signal: Signal) -> Result<(), Failure> {
        match kill_process(self.pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Failure::other(format!("can't signal process {}", self.pid())).cause(error)),
        }
    }

    pub(super) fn state(self) -> &'static str {
        if self.state_letter() == Some('T') { "paused" } else { "running" }
    }

    /// Whether it has ended, all of it: only then are its sockets and locks free. Its command line is empty before
    /// that, and its first thread may end before the others.
    pub(super) fn is_gone(self) -> bool {
        match self.state_letter() {
            None | Some('X') => true,
            Some('Z') => fs::read_dir(format!("/proc/{}/task", self.pid())).map_or(0, Iterator::count) <= 1,
            Some(_) => false,
        }
    }

    /// The state of its first thread; none where there is no such process.
    fn state_letter(self) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        // The second field is the program's name in parentheses, the third the state.
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
    }
}

/// Starts a node's daemon, detached from this terminal.
pub(super) fn start(bftd: &Path, node: &Node) -> Result<Started, Failure> {
    let cant = |error: std::io::Error| Failure::other(format!("can't start {}", node.name())).cause(error);
    let log = File::options().create(true).append(true).open(&node.log).map_err(cant)?;
    let tail = log.metadata().map_err(cant)?.len();
    let mut command = Command::new(bftd);
    command.arg("--config").arg(&node.config).current_dir(&node.home).process_group(0);
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(cant)?).stderr(log);
    OWN_KEYS.iter().for_each(|key| {
        command.env_remove(key);
    });
    let child = command.spawn().map_err(cant)?;
    fs::write(&node.pid, format!("{}\n", child.id())).map_err(cant)?;
    Ok(Started { child, name: node.name(), log: node.log.clone(), tail })
}

impl Started {
    /// Whether it has not ended yet.
    pub(super) fn check_alive(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(Failure::other(format!("{} ended at once ({status})", self.name))
                .cause(tail_of(&self.log, self.tail))
                .next(format!("see {}", self.log.display()))),
            _ => Ok(()),
        }
    }
}

/// The end of a node's log.
pub(super) fn log_tail(node: &Node) -> String {
    tail_of(&node.log, 0)
}

/// The end of a file, from `start` on at most.
fn tail_of(path: &Path, start: u64) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL).max(start)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&tail).trim_end().to_owned())
    };
    match read() {
        Ok(tail) if tail.is_empty() => "its log is empty".to_owned(),
        Ok(tail) => format!("its log ends with\n{tail}"),
        Err(error) => format!("its log can't be read: {error}"),
    }
}

/// The daemon's program: `$BFTD`, else beside this one, else in `$PATH`.
pub(crate) fn find_bftd() -> Result<PathBuf, Failure> {
    let named = env::var_os("BFTD").filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = &named {
        let missing = || Failure::other(format!("$BFTD is {}, where nothing is", path.display()));
        return path.is_file().then(|| path.clone()).ok_or_else(missing);
    }
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("bftd")));
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).map(|directory| directory.join("bftd"));
    beside.into_iter().chain(in_path).find(|path| path.is_file()).ok_or_else(|| {
        Failure::other("can't find the daemon `bftd`")
            .cause("it is neither beside bftctl nor in $PATH")
            .next("cargo build --release -p bftd, or set $BFTD to its path")
    })
}

/// The public key of a data directory; its private key is made at first use.
pub(super) fn identity(bftd: &Path, data_dir: &Path) -> Result<PublicKey, Failure> {
    let failed = |cause: String| {
        Failure::other(format!("`{} identity` failed for {}", bftd.display(), data_dir.display()))
            .cause(cause)
    };
    let output = Command::new(bftd)
        .args(["identity", "--data-dir"])
        .arg(data_dir)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()));
    }
    let key = String::from_utf8_lossy(&output.stdout);
    key.trim().parse().map_err(|error| failed(format!("it printed `{}`: {error}", key.trim())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_end_of_a_log_is_shown_and_only_of_this_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        assert!(tail_of(&path, 0).contains("can't be read"));
        fs::write(&path, "old run\n").unwrap();
        assert_eq!(tail_of(&path, 8), "its log is empty");
        fs::write(&path, format!("old run\n{}new\n", "x".repeat(5000))).unwrap();
        let tail = tail_of(&path, 8);
        assert!(tail.ends_with("xnew") && tail.len() < 2100);
    }
}
