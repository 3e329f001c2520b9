#![allow(clippy::unwrap_used)]

use std::time::Instant;

use bftd_core::kv::Expect;
use bytes::Bytes;
use tokio::{net::UnixListener, task::JoinSet, time::sleep};

use super::*;
use crate::protocol::{Greeting, MAGIC, VERSION};

/// A daemon whose every word is the test's.
struct Daemon {
    directory: tempfile::TempDir,
    listener: UnixListener,
}

struct Session {
    stream: UnixStream,
    buffer: BytesMut,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        Self { directory, listener }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    async fn accept(&self, greeting: &[u8]) -> Session {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        stream.write_all(greeting).await.unwrap();
        let mut buffer = BytesMut::new();
        let found = frame::read_greeting(&mut stream, &mut buffer).await.unwrap();
        assert_eq!((found.magic, found.version), (MAGIC, VERSION));
        Session { stream, buffer }
    }

    async fn connect(&self) -> (Client, Session) {
        let path = self.path();
        let greeting = frame::greeting("test");
        let (client, session) = tokio::join!(Client::connect(&path), self.accept(&greeting));
        (client.unwrap(), session)
    }

    /// What a client says of a daemon that begins with these bytes.
    async fn refusal(&self, greeting: &[u8]) -> Error {
        let path = self.path();
        let (client, _session) = tokio::join!(Client::connect(&path), self.accept(greeting));
        client.unwrap_err()
    }
}

impl Session {
    async fn call(&mut self) -> Call {
        frame::read(&mut self.stream, &mut self.buffer).await.unwrap().unwrap()
    }

    /// Waits for so many calls, and some time for one too many.
    async fn expect_calls(&mut self, count: usize) {
        for at in 0..count {
            let call = timeout(Duration::from_secs(30), self.call()).await;
            assert!(call.is_ok(), "only {at} calls of {count} came");
        }
        let more = timeout(Duration::from_millis(300), self.call()).await;
        assert!(more.is_err(), "more than {count} calls came");
    }

    async fn reply(&mut self, id: u64, response: Response) {
        let mut frames = Vec::new();
        frame::write(&mut frames, &Reply { id, response }).unwrap();
        self.stream.write_all(&frames).await.unwrap();
    }
}

fn executed(revision: u64) -> Response {
    Response::Executed { outcome: Outcome::Put { revision }, index: 1, term: 1 }
}

fn puts(client: &Client, count: usize, bytes: usize) -> JoinSet<Result<Changed, Error>> {
    let value = Bytes::from(vec![0; bytes]);
    (0..count)
        .map(|_| {
            let (client, value) = (client.clone(), value.clone());
            async move { client.put("k".into(), value, Expect::Anything).await }
        })
        .collect()
}

#[tokio::test]
async fn a_daemon_of_another_version_is_named_with_both_versions() {
    let daemon = Daemon::start();
    let mut greeting = Vec::new();
    frame::write(&mut greeting, &Greeting { magic: MAGIC, version: 99, software: "7.8.9".into() }).unwrap();
    let error = daemon.refusal(&greeting).await;
    assert!(
        matches!(&error, Error::NotUnderstood { source: FrameError::Version { theirs: 99, .. }, .. }),
        "{error}"
    );
    let text = error.to_string();
    let ours = format!("version {VERSION}");
    assert!(["7.8.9", "version 99", &ours].iter().all(|part| text.contains(part)), "{text}");
}

#[tokio::test]
async fn whatever_is_not_a_daemon_is_told_from_one_that_is_away() {
    let daemon = Daemon::start();
    let mut other = Vec::new();
    frame::write(&mut other, &Greeting { magic: *b"otherone", version: VERSION, software: String::new() })
        .unwrap();
    for greeting in [&b"HTTP/1.1 400 Bad Request\r\n"[..], &other] {
        let error = daemon.refusal(greeting).await;
        assert!(matches!(error, Error::NotUnderstood { source: FrameError::NotBftd, .. }), "{error}");
    }
    // One that is stopping takes connections until it is gone.
    let path = daemon.path();
    let (client, ()) = tokio::join!(Client::connect(&path), async {
        drop(daemon.accept(&[]).await);
    });
    let Err(Error::Unreachable { source, .. }) = client else { panic!("{client:?}") };
    assert_eq!(source.kind(), io::ErrorKind::UnexpectedEof);
    let client = Client::connect(&daemon.directory.path().join("none")).await;
    let Err(Error::Unreachable { source, .. }) = client else { panic!("{client:?}") };
    assert_eq!(source.kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn a_silent_daemon_is_not_waited_for_for_ever() {
    let daemon = Daemon::start();
    let client = Client::connect_within(&daemon.path(), Duration::from_millis(100)).await;
    let Err(Error::Unreachable { source, .. }) = client else { panic!("{client:?}") };
    assert_eq!(source.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn answers_in_reverse_order_find_their_calls() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let mut calls = JoinSet::new();
    for size in 0..1000_usize {
        let client = client.clone();
        calls.spawn(async move {
            let changed = client.put("k".into(), vec![1; size].into(), Expect::Anything).await.unwrap();
            assert_eq!(changed.outcome, Outcome::Put { revision: size as u64 });
        });
    }
    let mut asked = Vec::new();
    for _ in 0..1000 {
        asked.push(session.call().await);
    }
    for Call { id, request } in asked.into_iter().rev() {
        let Request::Execute(Operation::Put { value, .. }) = request else { panic!("{request:?}") };
        session.reply(id, executed(value.len() as u64)).await;
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    assert!(client.connection.shared.state().waiting.is_empty());
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_changes_unknown_and_questions_unanswered() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let (put, get, ()) = tokio::join!(
        client.put("k".into(), "v".into(), Expect::Anything),
        client.get("k".into(), Consistency::Local),
        async move {
            session.call().await;
            session.call().await;
        }
    );
    assert!(matches!(put, Err(Error::OutcomeUnknown(_))), "{put:?}");
    assert!(matches!(get, Err(Error::NoAnswer(_))), "{get:?}");
    // What comes later is not sent at all.
    let put = client.put("k".into(), "v".into(), Expect::Anything).await;
    assert!(matches!(put, Err(Error::NoAnswer(_))), "{put:?}");
}

#[tokio::test]
async fn a_daemon_that_talks_nonsense_is_left_and_a_reason_is_passed_on() {
    let reason =
        Reply { id: CONNECTION, response: Response::Failed(Failure::Protocol("bad manners".into())) };
    let mut told = Vec::new();
    frame::write(&mut told, &reason).unwrap();
    for (words, why) in [
        (&[3, 0, 0, 0, 255, 255, 255][..], "makes no sense"),
        (&[255, 255, 255, 255], "larger than"),
        (&told, "bad manners"),
    ] {
        let daemon = Daemon::start();
        let (client, mut session) = daemon.connect().await;
        let (status, ()) = tokio::join!(client.status(), async {
            session.call().await;
            session.stream.write_all(words).await.unwrap();
        });
        let Err(Error::NoAnswer(text)) = status else { panic!("{status:?}") };
        assert!(text.contains(why), "{text}");
        assert!(client.is_broken());
    }
}

#[tokio::test]
async fn an_answer_after_the_deadline_is_nobodys_and_harms_nobody() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let hasty = client.with_deadline(Duration::from_millis(50));
    let put = hasty.put("k".into(), "v".into(), Expect::Anything).await;
    assert!(matches!(put, Err(Error::OutcomeUnknown(_))), "{put:?}");
    assert!(client.connection.shared.state().waiting.is_empty());
    let late = session.call().await.id;
    let (put, ()) = tokio::join!(client.put("k".into(), "v".into(), Expect::Anything), async {
        let next = session.call().await.id;
        session.reply(late, executed(1)).await;
        session.reply(next, executed(2)).await;
    });
    assert_eq!(put.unwrap().outcome, Outcome::Put { revision: 2 });
}

#[tokio::test]
async fn more_calls_than_places_wait_for_one() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let _puts = puts(&client, IN_FLIGHT + 10, 1);
    let first = session.call().await.id;
    session.expect_calls(IN_FLIGHT - 1).await;
    // One goes, one comes.
    session.reply(first, executed(1)).await;
    session.expect_calls(1).await;
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_does_not_fill_our_memory() {
    const VALUE: usize = 1 << 20;
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let _puts = puts(&client, 100, VALUE);
    session.expect_calls(BYTES_IN_FLIGHT as usize / (VALUE + 1)).await;
}

/// A call that its caller drops gives its place up.
#[tokio::test]
async fn dropped_calls_leave_nothing_behind() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let mut waiting = puts(&client, 100, 1000);
    for _ in 0..100 {
        session.call().await;
    }
    waiting.shutdown().await;
    let shared = &client.connection.shared;
    assert!(shared.state().waiting.is_empty());
    assert_eq!(shared.places.available_permits(), IN_FLIGHT);
    assert_eq!(shared.room.available_permits(), BYTES_IN_FLIGHT as usize);
}

#[tokio::test]
async fn the_connection_closes_with_the_last_clone() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let clone = client.with_deadline(Duration::from_secs(1));
    drop(client);
    sleep(Duration::from_millis(50)).await;
    assert!(!clone.is_broken());
    drop(clone);
    let before = Instant::now();
    let end = frame::read::<Call>(&mut session.stream, &mut session.buffer).await.unwrap();
    assert!(end.is_none() && before.elapsed() < Duration::from_secs(5));
}
