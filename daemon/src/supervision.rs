//! What systemd is told: that the daemon is ready, how its cluster is, that it lives, and that it stops.
//!
//! - READY=1 when the admin socket answers, be it that the daemon belongs to no cluster yet: it is asked as any client would ask it.
//! - STATUS= is the first line of `bftctl status`, sent when it changes, once a second at most.
//! - WATCHDOG=1 is sent only when the driver's [`Pulse`] has beaten since the last one, so a driver that is wedged
//!   stops feeding, whatever else still answers. A daemon without a cluster has no driver: there the admin socket's
//!   answer counts.
//!
//! Without `NOTIFY_SOCKET` nobody wants to know, and nothing of this runs.

use std::{
    future::pending,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bftd_client::{Client, Error, Failure, Health};
use sd_notify::NotifyState;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

/// How often the admin socket is asked.
const ASK: Duration = Duration::from_secs(1);
/// How often until it has answered for the first time: who starts the daemon waits for that.
const ASK_FIRST: Duration = Duration::from_millis(20);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// How many times within the watchdog's limit we look for a beat.
const LOOKS: u32 = 4;

/// Beats once a turn of the driver's loop.
#[derive(Debug, Default)]
pub struct Pulse(AtomicU64);

impl Pulse {
    /// A turn is done.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether somebody wants to be told.
pub fn is_supervised() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Tells systemd of the daemon behind an admin socket until `stop` is set.
pub async fn supervise(socket: PathBuf, pulse: Arc<Pulse>, stop: watch::Receiver<bool>) {
    let watchdog = sd_notify::watchdog_enabled().map(|limit| limit / LOOKS);
    let told = |states: &[NotifyState<'_>]| {
        if let Err(error) = sd_notify::notify(states) {
            tracing::warn!(%error, "can't tell systemd how the daemon is");
        }
    };
    run(socket, &pulse, watchdog, stop, told).await;
}

async fn run(
    socket: PathBuf,
    pulse: &Pulse,
    watchdog: Option<Duration>,
    mut stop: watch::Receiver<bool>,
    tell: impl Fn(&[NotifyState<'_>]),
) {
    let without_cluster = Pulse::default();
    let asking = async {
        let mut asked = Asked { socket, client: None };
        let mut every = interval(ASK_FIRST);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_ready, mut told) = (false, String::new());
        loop {
            every.tick().await;
            let (line, health) = match asked.ask().await {
                Ok(answer) => answer,
                // Until it is there nothing is wrong: it may read a long log.
                Err(_) if !is_ready => continue,
                Err(why) => (format!("the admin socket does not answer: {why}"), Health::NoQuorum),
            };
            if health == Health::Uninitialised {
                without_cluster.beat();
            }
            if !is_ready {
                is_ready = true;
                tell(&[NotifyState::Ready, NotifyState::Status(&line)]);
                every = interval(watchdog.map_or(ASK, |look| ASK.min(look)));
                every.set_missed_tick_behavior(MissedTickBehavior::Delay);
                every.reset();
            } else if line != told {
                tell(&[NotifyState::Status(&line)]);
            }
            told = line;
        }
    };
    let feeding = async {
        let Some(look) = watchdog else { return pending().await };
        let mut every = interval(look);
        let mut seen = 0;
        loop {
            every.tick().await;
            let beats = pulse.count() + without_cluster.count();
            if beats != seen {
                seen = beats;
                tell(&[NotifyState::Watchdog]);
            }
        }
    };
    tokio::select! {
        () = asking => {}
        () = feeding => {}
        _ = stop.wait_for(|stop| *stop) => {
            tell(&[NotifyState::Stopping, NotifyState::Status("stopping: clients get their answers, the log is closed")]);
        }
    }
}

/// A client of the own daemon; its connection is kept while it works.
struct Asked {
    socket: PathBuf,
    client: Option<Client>,
}

impl Asked {
    /// How the daemon says that its cluster is, in a line.
    async fn ask(&mut self) -> Result<(String, Health), String> {
        let answer = timeout(ANSWER, async {
            if self.client.as_ref().is_none_or(Client::is_broken) {
                self.client = Some(Client::connect(&self.socket).await?);
            }
            match &self.client {
                Some(client) => client.status().await,
                None => Err(Error::NoAnswer("not connected".to_owned())),
            }
        });
        match answer.await {
            Ok(Ok(status)) if status.cluster.state == Health::Uninitialised => Ok(uninitialised()),
            Ok(Ok(status)) => {
                let (name, state) = (&status.cluster.name, status.cluster.state);
                Ok((one_line(&format!("{name} {} {}", state.word(), status.summary())), state))
            }
            Ok(Err(Error::Failed(Failure::Uninitialised))) => Ok(uninitialised()),
            Ok(Err(error)) => Err(one_line(&error.to_string())),
            Err(_) => Err(format!("nothing within {ANSWER:?}")),
        }
    }
}

fn uninitialised() -> (String, Health) {
    let state = Health::Uninitialised;
    (format!("{}: form a cluster with `bftctl init`, or join one with `bftctl join`", state.word()), state)
}

/// A line break in a name would begin another statement to systemd.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use bftd_client::{ClusterStatus, DiskUse, Request, Response, Status, genesis::Protocol};
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::admin::{AdminServer, PeerCredentials, Service};

    /// Answers `status`, as a member or as a daemon without a cluster.
    struct Answering {
        state: Health,
        name: &'static str,
    }

    impl Service for Answering {
        async fn handle(&self, _: PeerCredentials, _: Request) -> Response {
            let cluster = ClusterStatus {
                name: self.name.to_owned(),
                id: String::new(),
                protocol: Protocol::BftRaft,
                next_protocol: Protocol::BftRaft,
                state: self.state,
                n: 4,
                f: 1,
                tolerates: 1,
                epoch: 0,
                term: 7,
                leader: 2,
                committed: 12,
                executed: 12,
                state_digest: String::new(),
                revision: 0,
                compacted: 0,
                used: 0,
                quota: 0,
            };
            let (members, hints, disk) = (Vec::new(), Vec::new(), DiskUse::default());
            Response::Status(Box::new(Status { cluster, me: 1, members, hints, disk }))
        }
    }

    /// What is told, of a daemon whose driver beats, or not, while `during` goes on.
    async fn told(state: Health, name: &'static str, beats: bool, during: Duration) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let server = AdminServer::bind(&socket).unwrap();
        let (stop, stopped) = watch::channel(false);
        let told = Mutex::new(Vec::new());
        let tell = |states: &[NotifyState<'_>]| {
            told.lock().unwrap().extend(states.iter().map(ToString::to_string));
        };
        let pulse = Pulse::default();
        let supervised = run(socket, &pulse, Some(Duration::from_millis(20)), stopped.clone(), tell);
        let life = async {
            sleep(Duration::from_millis(100)).await;
            assert_eq!(*told.lock().unwrap(), Vec::<String>::new(), "nobody answers yet");
            let serving = tokio::spawn(server.serve(Arc::new(Answering { state, name }), stopped));
            let end = Instant::now() + during;
            while Instant::now() < end {
                if beats {
                    pulse.beat();
                }
                sleep(Duration::from_millis(5)).await;
            }
            stop.send_replace(true);
            serving.await.unwrap();
        };
        tokio::join!(supervised, life);
        told.into_inner().unwrap()
    }

    fn feeds(told: &[String]) -> usize {
        told.iter().filter(|state| *state == "WATCHDOG=1").count()
    }

    #[tokio::test]
    async fn ready_with_the_state_once_the_socket_answers_and_stopping_at_the_end() {
        let told = told(Health::Healthy, "a\nREADY=0", true, Duration::from_millis(300)).await;
        let lines: Vec<_> = told.iter().filter(|state| *state != "WATCHDOG=1").collect();
        assert_eq!(lines[0], "READY=1");
        assert_eq!(
            lines[1],
            "STATUS=a READY=0 HEALTHY 0/4 members, tolerates 1 fault · term 7 · leader 2 · block 12"
        );
        assert_eq!(lines[2], "STOPPING=1");
        assert!(feeds(&told) > 3, "{told:?}");
    }

    #[tokio::test]
    async fn a_wedged_driver_stops_feeding_though_the_socket_answers() {
        let told = told(Health::Healthy, "a", false, Duration::from_millis(300)).await;
        assert_eq!((told[0].as_str(), feeds(&told)), ("READY=1", 0), "{told:?}");
    }

    #[tokio::test]
    async fn a_daemon_without_a_cluster_is_ready_and_alive() {
        let told = told(Health::Uninitialised, "", false, Duration::from_millis(300)).await;
        assert_eq!(told[0], "READY=1");
        assert!(told[1].starts_with("STATUS=UNINITIALISED: form a cluster with `bftctl init`"), "{told:?}");
        assert!(feeds(&told) > 3, "{told:?}");
    }
}
