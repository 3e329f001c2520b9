//! What `bftctl doctor` is told: whether this host and its peers are as a daemon needs them, and what to do where they are not.
//!
//! Nothing here changes anything but one file that is written to measure the disk, and removed. A daemon looks after itself; with
//! none running, `bftd doctor` looks at the same things as whoever calls it.

mod host;
mod peers;

use std::{
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
};

use bftd_client::protocol::{Finding, Verdict};
use bftd_core::membership::Membership;
use serde::Serialize;
use tokio::{sync::Mutex, task::spawn_blocking};

pub use self::host::raise_file_limit;
use crate::{
    config::NodeConfig,
    forming::stored_genesis,
    identity::{Identity, KEY_FILE},
    peers::Peers,
    transport::Transport,
};

/// One examination at a time: each measures the disk.
static EXAMINING: Mutex<()> = Mutex::const_new(());

/// Where a member lives.
pub struct Surroundings {
    /// Its data directory.
    pub directory: PathBuf,
    /// Its connections.
    pub transport: Arc<Transport>,
}

/// Looks at a member, its host and its peers.
pub async fn examine_member(around: &Surroundings, members: &Membership, peers: &Peers) -> Vec<Finding> {
    let mut findings = examine_host(&around.directory).await;
    findings.push(match around.transport.local_address() {
        Ok(address) => ok("port", format!("listens on {address} (UDP)")),
        Err(error) => fail("port", format!("the UDP socket is broken: {error}"), "systemctl restart bftd"),
    });
    findings.extend(peers::examine(members, peers, &around.transport));
    findings
}

/// Looks at a daemon without a cluster.
pub async fn examine_unformed(directory: &Path, listen: Option<SocketAddr>) -> Vec<Finding> {
    let mut findings = examine_host(directory).await;
    findings.push(match listen {
        Some(address) => ok("port", format!("listens on {address} (UDP)")),
        None => unknown("port", "none is used before bftctl init or bftctl join", ""),
    });
    findings.push(unknown("clock", "nothing to compare it with: this daemon has no peers yet", ""));
    findings
}

/// Looks at a host where no daemon runs.
pub fn examine_stopped(config: &NodeConfig) -> Vec<Finding> {
    let directory = &config.data_dir;
    let mut findings = host::examine(directory);
    findings.push(match listen_of(config) {
        None => unknown("port", "this host's address in the cluster is not known", ""),
        Some(address) => match UdpSocket::bind(address) {
            Ok(_) => ok("port", format!("{address} (UDP) is free")),
            Err(error) => fail(
                "port",
                format!("{address} (UDP) can't be used: {error}"),
                "see who has it: ss -ulpn; or choose another `listen` in [node] of bftd.toml",
            ),
        },
    });
    findings.push(unknown("clock", "nothing to compare it with: no daemon runs here", ""));
    findings.push(unknown("peers", "no daemon runs here", ""));
    findings
}

/// Findings as `bftd doctor` prints them.
pub fn to_text(findings: Vec<Finding>) -> String {
    #[derive(Serialize)]
    struct Findings {
        findings: Vec<Finding>,
    }
    toml::to_string(&Findings { findings }).expect("findings are plain tables")
}

async fn examine_host(directory: &Path) -> Vec<Finding> {
    let _one = EXAMINING.lock().await;
    let directory = directory.to_owned();
    let look = move || host::examine(&directory);
    spawn_blocking(look)
        .await
        .unwrap_or_else(|_| vec![unknown("host", "looking at it failed", "journalctl -u bftd")])
}

/// Where a daemon would listen, as far as can be seen.
fn listen_of(config: &NodeConfig) -> Option<SocketAddr> {
    if config.listen.is_some() {
        return config.listen;
    }
    let genesis = match &config.genesis {
        Some(path) => bftd_client::genesis::read(path).ok()?,
        None => stored_genesis(&config.data_dir).ok()??,
    };
    // A key is never made here.
    config.data_dir.join(KEY_FILE).exists().then_some(())?;
    let key = Identity::load_or_create(&config.data_dir).ok()?.public_key();
    genesis.members.iter().find(|member| member.key == key).map(|member| member.address)
}

fn finding(subject: &str, verdict: Verdict, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { subject: subject.to_owned(), verdict, text: text.into(), remedy: remedy.into() }
}

fn ok(subject: &str, text: impl Into<String>) -> Finding {
    finding(subject, Verdict::Ok, text, "")
}

fn warn(subject: &str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(subject, Verdict::Warn, text, remedy)
}

fn fail(subject: &str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(subject, Verdict::Fail, text, remedy)
}

fn unknown(subject: &str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(subject, Verdict::Unknown, text, remedy)
}
