#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use bftd_client::{Client, Consistency, Error, Expect, Failure, frame, protocol::VERSION};
use bftd_core::kv::{Operation, Outcome, Query};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::*;

/// Puts are answered later the earlier they come; gets of `never` are not answered at all.
#[derive(Default)]
struct Fake {
    handled: AtomicUsize,
}

impl Service for Fake {
    async fn handle(&self, peer: PeerCredentials, request: Request) -> Response {
        assert_eq!(peer.pid, Some(i32::try_from(std::process::id()).unwrap()));
        let order = self.handled.fetch_add(1, Ordering::SeqCst);
        match request {
            Request::Execute(Operation::Put { value, .. }) => {
                tokio::time::sleep(Duration::from_millis(200_u64.saturating_sub(order as u64))).await;
                Response::Executed {
                    outcome: Outcome::Put { revision: value.len() as u64 },
                    index: order as u64,
                    term: 1,
                }
            }
            Request::Execute(_) => std::future::pending().await,
            Request::Query { query: Query::Get { .. }, .. } => std::future::pending().await,
            _ => Response::Failed(Failure::Busy),
        }
    }
}

struct Running {
    directory: tempfile::TempDir,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let server = AdminServer::bind(&directory.path().join("s")).unwrap();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(server.serve(Arc::new(Fake::default()), stopped));
        Self { directory, stop, task }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }
}

#[tokio::test]
async fn a_thousand_calls_in_flight_are_answered_in_any_order() {
    let running = Running::start();
    let client = Client::connect(&running.path()).await.unwrap();
    let mut puts = tokio::task::JoinSet::new();
    for size in 0..1000_usize {
        let client = client.clone();
        puts.spawn(async move {
            let changed = client.put("k".into(), vec![0; size].into(), Expect::Anything).await.unwrap();
            assert_eq!(
                changed.outcome,
                Outcome::Put { revision: size as u64 },
                "the answer to this very call"
            );
        });
    }
    while let Some(put) = puts.join_next().await {
        put.unwrap();
    }
}

#[tokio::test]
async fn a_failure_is_told_as_such() {
    let running = Running::start();
    let client = Client::connect(&running.path()).await.unwrap();
    assert!(matches!(client.status().await, Err(Error::Failed(Failure::Busy))));
}

#[tokio::test]
async fn a_change_without_an_answer_has_an_unknown_outcome_and_a_question_has_not() {
    let running = Running::start();
    let client = Client::connect(&running.path()).await.unwrap();
    let hasty = client.with_deadline(Duration::from_millis(50));
    assert!(matches!(hasty.delete("k".into()).await, Err(Error::OutcomeUnknown(_))));
    assert!(matches!(hasty.get("k".into(), Consistency::Local).await, Err(Error::NoAnswer(_))));

    let (delete, get, ()) =
        tokio::join!(client.delete("k".into()), client.get("k".into(), Consistency::Local), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            running.stop.send_replace(true);
        });
    assert!(matches!(delete, Err(Error::OutcomeUnknown(_))), "{delete:?}");
    assert!(matches!(get, Err(Error::NoAnswer(_))), "{get:?}");
    running.task.await.unwrap();
    assert!(!running.directory.path().join("s").exists(), "the file is removed");
    assert!(matches!(
        Client::connect(&running.directory.path().join("s")).await,
        Err(Error::Unreachable { .. })
    ));
}

async fn raw(running: &Running, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(running.path()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // Closed with unread input, a Unix socket is reset: that is an answer too.
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

#[tokio::test]
async fn other_versions_and_other_programs_are_turned_away_with_our_greeting() {
    let running = Running::start();
    let mut other = frame::greeting("9.9.9");
    let version = other.iter().position(|byte| u32::from(*byte) == VERSION).unwrap();
    other[version] = 99;
    let greeting = raw(&running, &other).await;
    assert_eq!(greeting, frame::greeting(env!("CARGO_PKG_VERSION")));
    assert_eq!(raw(&running, b"GET / HTTP/1.1\r\n\r\n").await, greeting);
}

#[tokio::test]
async fn malformed_and_oversized_frames_close_only_their_connection() {
    let running = Running::start();
    let client = Client::connect(&running.path()).await.unwrap();
    for frame in [&[3, 0, 0, 0, 255, 255, 255][..], &[255, 255, 255, 255]] {
        let mut bytes = frame::greeting("test");
        bytes.extend_from_slice(frame);
        raw(&running, &bytes).await;
    }
    client.put("k".into(), "v".into(), Expect::Anything).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_half_sent_frame_does_not_hold_a_connection_for_ever() {
    let running = Running::start();
    let mut bytes = frame::greeting("test");
    bytes.extend_from_slice(&[100, 0, 0, 0, 1]);
    let before = tokio::time::Instant::now();
    raw(&running, &bytes).await;
    assert!(before.elapsed() >= FRAME_DEADLINE);
    let before = tokio::time::Instant::now();
    raw(&running, &[]).await;
    assert!(before.elapsed() >= GREETING_DEADLINE);
}

#[tokio::test]
async fn a_stale_file_is_replaced_and_a_live_daemon_is_not() {
    let running = Running::start();
    assert!(matches!(AdminServer::bind(&running.path()), Err(AdminError::InUse { .. })));
    let stale = running.directory.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    AdminServer::bind(&stale).unwrap();
    let long = running.directory.path().join("x".repeat(120));
    assert!(matches!(AdminServer::bind(&long), Err(AdminError::PathTooLong { .. })));
}
