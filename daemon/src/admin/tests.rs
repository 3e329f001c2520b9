#![allow(clippy::unwrap_used)]

mod flow;

use std::sync::atomic::{AtomicUsize, Ordering};

use bftd_client::{
    At, Client, Consistency, Entry, Error, Expect, Failure, frame,
    protocol::{CONNECTION, Call, Reply, VERSION},
};
use bftd_core::kv::{Operation, Outcome, Query};
use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::*;

/// Puts are answered later the earlier they come; gets of `never` are not answered at all.
#[derive(Default)]
struct Fake {
    handled: AtomicUsize,
    dropped: AtomicUsize,
}

struct CountDrop<'a>(&'a AtomicUsize);

impl Drop for CountDrop<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
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
            Request::Query { query: Query::Get { .. }, .. } => {
                let _dropped = CountDrop(&self.dropped);
                std::future::pending().await
            }
            _ => Response::Failed(Failure::Busy),
        }
    }
}

struct Running {
    directory: tempfile::TempDir,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    fake: Arc<Fake>,
}

impl Running {
    fn start() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut server = AdminServer::bind(&directory.path().join("s")).unwrap();
        server.limits = limits;
        let (stop, stopped) = watch::channel(false);
        let fake = Arc::new(Fake::default());
        let task = tokio::spawn(server.serve(Arc::clone(&fake), stopped));
        Self { directory, stop, task, fake }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }
}

#[tokio::test]
async fn a_thousand_calls_in_flight_are_answered_in_any_order() {
    let running = Running::start();
    let client = Client::connect(&running.path()).await.unwrap();
    let mut puts = JoinSet::new();
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

/// A count that should reach `expected`, and some time later: it may not go on.
async fn settled(count: &AtomicUsize, expected: usize) -> usize {
    for _ in 0..3000 {
        if count.load(Ordering::SeqCst) >= expected {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    count.load(Ordering::SeqCst)
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

/// The reason that the daemon gives before it closes a connection.
fn reason(answer: &[u8]) -> String {
    let mut answer = answer[frame::greeting(env!("CARGO_PKG_VERSION")).len()..].into();
    let reply: Reply = frame::take(&mut answer).unwrap().unwrap();
    assert_eq!(reply.id, CONNECTION);
    let Response::Failed(Failure::Protocol(reason)) = reply.response else { panic!("{reply:?}") };
    reason
}

#[tokio::test]
async fn malformed_and_oversized_frames_close_only_their_connection_and_say_why() {
    let running = Running::start();
    let client = Client::connect(&running.path()).await.unwrap();
    for (frame, why) in
        [(&[3, 0, 0, 0, 255, 255, 255][..], "makes no sense"), (&[255, 255, 255, 255], "larger than")]
    {
        let mut bytes = frame::greeting("test");
        bytes.extend_from_slice(frame);
        let reason = reason(&raw(&running, &bytes).await);
        assert!(reason.contains(why), "{reason}");
    }
    client.put("k".into(), "v".into(), Expect::Anything).await.unwrap();
}

#[tokio::test]
async fn a_half_sent_frame_does_not_hold_a_connection_for_ever() {
    let limits = Limits {
        greeting: Duration::from_millis(100),
        frame: Duration::from_millis(300),
        ..Limits::default()
    };
    let running = Running::with_limits(limits);
    let mut bytes = frame::greeting("test");
    bytes.extend_from_slice(&[100, 0, 0, 0, 1]);
    let before = tokio::time::Instant::now();
    let reason = reason(&raw(&running, &bytes).await);
    assert!(reason.contains("the rest of a frame"), "{reason}");
    assert!(before.elapsed() >= limits.frame);
    let before = tokio::time::Instant::now();
    raw(&running, &[]).await;
    assert!(before.elapsed() >= limits.greeting);
}

#[tokio::test]
async fn a_stale_file_is_replaced_and_a_live_daemon_is_not() {
    let running = Running::start();
    assert!(matches!(AdminServer::bind(&running.path()), Err(AdminError::InUse { .. })));
    let stale = running.directory.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    AdminServer::bind(&stale).unwrap();
    let text = running.directory.path().join("text");
    fs::write(&text, "not a socket").unwrap();
    assert!(matches!(AdminServer::bind(&text), Err(AdminError::Io { .. })));
    assert_eq!(fs::read_to_string(&text).unwrap(), "not a socket");
    assert_eq!(fs::metadata(running.path()).unwrap().permissions().mode() & 0o777, MODE);
    let long = running.directory.path().join("x".repeat(120));
    assert!(matches!(AdminServer::bind(&long), Err(AdminError::PathTooLong { .. })));
}

#[tokio::test]
async fn more_connections_than_places_wait() {
    let running = Running::with_limits(Limits { connections: 2, ..Limits::default() });
    let first = Client::connect(&running.path()).await.unwrap();
    let _second = Client::connect(&running.path()).await.unwrap();
    let path = running.path();
    let mut third = tokio::spawn(async move { Client::connect(&path).await });
    assert!(timeout(Duration::from_millis(200), &mut third).await.is_err(), "no place yet");
    drop(first);
    third.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_with_too_many_calls_is_not_read_until_some_are_answered() {
    let running = Running::start();
    let mut bytes = frame::greeting("test");
    for id in 1..=IN_FLIGHT as u64 + 500 {
        let request =
            Request::Query { query: Query::Get { key: "k".into() }, consistency: Consistency::Local };
        frame::write(&mut bytes, &Call { id, request }).unwrap();
    }
    let mut stream = UnixStream::connect(running.path()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    assert_eq!(settled(&running.fake.handled, IN_FLIGHT).await, IN_FLIGHT);
}

#[tokio::test]
async fn the_calls_of_a_client_that_is_gone_are_dropped() {
    let running = Running::start();
    let client = Client::connect(&running.path()).await.unwrap();
    let hasty = client.with_deadline(Duration::from_millis(50));
    drop(client);
    assert!(matches!(hasty.get("k".into(), Consistency::Local).await, Err(Error::NoAnswer(_))));
    assert_eq!(running.fake.dropped.load(Ordering::SeqCst), 0);
    drop(hasty);
    assert_eq!(settled(&running.fake.dropped, 1).await, 1);
}

#[tokio::test]
async fn what_is_out_of_bounds_is_refused_before_it_is_sent() {
    let running = Running::start();
    let client = Client::connect(&running.path()).await.unwrap();
    for (key, bytes) in [("", 0), ("k", bftd_client::MAX_VALUE + 1), (&*"k".repeat(4097), 0)] {
        let put = client.put(key.to_owned().into(), vec![0; bytes].into(), Expect::Anything).await;
        assert!(matches!(put, Err(Error::Failed(Failure::Refused(_)))), "{put:?}");
    }
    assert_eq!(running.fake.handled.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_daemon_that_stops_answers_what_it_has_read_and_says_that_it_read_no_more() {
    let running = Running::start();
    let client = Client::connect(&running.path()).await.unwrap();
    let slow = tokio::spawn({
        let client = client.clone();
        async move { client.put("k".into(), "v".into(), Expect::Anything).await }
    });
    while running.fake.handled.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    running.stop.send_replace(true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let unread = client.delete("k".into()).await;
    assert!(matches!(unread, Err(Error::Failed(Failure::Closing))), "{unread:?}");
    assert!(slow.await.unwrap().is_ok(), "it was under way, and is answered");
    assert_eq!(running.fake.handled.load(Ordering::SeqCst), 1);
    running.task.await.unwrap();
}

/// A change that no daemon can have got is not of unknown outcome.
#[tokio::test]
async fn a_change_that_was_never_sent_did_not_happen() {
    let running = Running::start();
    let client = Client::connect(&running.path()).await.unwrap();
    running.stop.send_replace(true);
    running.task.await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(client.is_broken());
    assert!(matches!(client.delete("k".into()).await, Err(Error::NoAnswer(_))));
}

#[tokio::test]
async fn only_members_of_a_group_that_exists_are_in_it() {
    let own = PeerCredentials { uid: 54_321, gid: 0, pid: None, connection: 1 };
    assert!(own.is_in("root"), "it is the user's own group");
    let other = PeerCredentials { gid: 54_321, ..own };
    assert!(!other.is_in("root"));
    assert!(!own.is_in("no-such-group"));
    // Whoever the host lists as a member of any group is in it.
    let text = fs::read_to_string("/etc/group").unwrap();
    for (group, user) in text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(2)?.split(',').next().filter(|user| !user.is_empty())?))
    }) {
        if let Ok(Some(user)) = User::from_name(user) {
            let member = PeerCredentials { uid: user.uid.as_raw(), gid: 54_321, ..own };
            assert!(member.is_in(group), "{} is in {group}", user.name);
        }
    }
    assert!(!other.is_admin().await);
    assert!(PeerCredentials { uid: 0, ..other }.is_admin().await);
}
