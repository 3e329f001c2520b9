#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use bftd_core::kv::Entry;
use bytes::BytesMut;
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};

use super::*;
use crate::{
    frame,
    protocol::{At, CONNECTION, Call, Reply},
};

/// A daemon whose every word is the test's.
struct Daemon {
    _directory: tempfile::TempDir,
    path: PathBuf,
    listener: UnixListener,
}

struct Session {
    stream: UnixStream,
    buffer: BytesMut,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        Self { _directory: directory, path, listener }
    }

    async fn accept(&self) -> Session {
        let (mut stream, _) = timeout(LONG, self.listener.accept()).await.unwrap().unwrap();
        stream.write_all(&frame::greeting("test")).await.unwrap();
        let mut buffer = BytesMut::new();
        frame::read_greeting(&mut stream, &mut buffer).await.unwrap();
        Session { stream, buffer }
    }

    async fn connect(&self) -> (Client, Session) {
        let (client, session) = tokio::join!(Client::connect(&self.path), self.accept());
        (client.unwrap(), session)
    }
}

const LONG: Duration = Duration::from_secs(20);

impl Session {
    /// The next question for changes: its number, the place that it begins at, and how long it waits.
    async fn asked(&mut self) -> (u64, Position, u64) {
        let call = frame::read(&mut self.stream, &mut self.buffer);
        let Call { id, request } = timeout(LONG, call).await.unwrap().unwrap().unwrap();
        let Request::Watch { watched, wait_ms } = request else { panic!("{request:?}") };
        (id, watched.from, wait_ms)
    }

    async fn reply(&mut self, id: u64, response: Response) {
        let mut frames = Vec::new();
        frame::write(&mut frames, &Reply { id, response }).unwrap();
        self.stream.write_all(&frames).await.unwrap();
    }

    /// Expects a question from a place on, and answers with changes at these revisions.
    async fn tell(&mut self, from: Position, revisions: &[u64], next: Position, more: bool) {
        let (id, asked, _) = self.asked().await;
        assert_eq!(asked, from);
        let events = revisions.iter().map(|revision| event(*revision, 1)).collect();
        self.reply(id, answered(Answer::Events(Events { events, next, more }))).await;
    }
}

fn answered(answer: Answer) -> Response {
    Response::Answered { answer, at: At { revision: 40, index: 1, age_ms: 0, time_ms: 0 } }
}

fn event(revision: u64, bytes: usize) -> Event {
    let value = vec![b'x'; bytes].into();
    let entry = Entry { value, create_revision: revision, mod_revision: revision, version: 1, lease: 0 };
    Event { revision, key: "k".into(), entry: Some(entry), previous: None }
}

fn at(revision: u64, within: u64) -> Position {
    Position { revision, within }
}

fn from(revision: u64) -> Position {
    at(revision, 0)
}

fn watch() -> Watch {
    Watch::new(Span::Key("k".into())).from_revision(5)
}

async fn news(watcher: &mut Watcher) -> News {
    timeout(LONG, watcher.next()).await.unwrap().unwrap()
}

/// The revision, the number of changes, and whether there are more.
async fn changes(watcher: &mut Watcher) -> (u64, usize, bool) {
    match news(watcher).await {
        News::Changes(Changes { revision, events, more }) => (revision, events.len(), more),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn changes_come_by_revision_and_the_next_question_goes_on() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let mut watcher = client.watch(watch()).unwrap();
    let telling = async {
        session.tell(from(5), &[5, 5, 7], from(9), false).await;
        session.tell(from(9), &[], from(12), false).await;
        session.tell(from(12), &[12], from(13), false).await;
        session
    };
    let hearing = async {
        assert_eq!(watcher.revision(), Some(5));
        assert_eq!(changes(&mut watcher).await, (5, 2, false));
        assert_eq!(watcher.revision(), Some(7), "it was not told yet");
        assert_eq!(changes(&mut watcher).await, (7, 1, false));
        assert_eq!(watcher.revision(), Some(9));
        assert_eq!(changes(&mut watcher).await, (12, 1, false));
    };
    let _ = tokio::join!(telling, hearing);
}

#[tokio::test]
async fn a_start_from_now_reads_the_revision_linearizably() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let mut watcher = client.watch(watch().from_revision(0)).unwrap();
    let telling = async {
        let call: Call = frame::read(&mut session.stream, &mut session.buffer).await.unwrap().unwrap();
        let Request::Query { consistency: Consistency::Linearizable, .. } = call.request else {
            panic!("{call:?}")
        };
        session.reply(call.id, answered(Answer::Entry(None))).await;
        session.tell(from(41), &[41], from(42), false).await;
    };
    let (_, told) = tokio::join!(telling, changes(&mut watcher));
    assert_eq!(told, (41, 1, false));

    // Where that can't be said, whoever asks is told at once.
    let mut watcher = client.watch(watch().from_revision(0)).unwrap();
    let refusing = async {
        let call: Call = frame::read(&mut session.stream, &mut session.buffer).await.unwrap().unwrap();
        session.reply(call.id, Response::Failed(Failure::NoQuorum { reachable: 1, n: 4, needed: 3 })).await;
    };
    let (_, told) = tokio::join!(refusing, watcher.next());
    assert!(matches!(told, Err(WatchError::Failed(Error::Failed(Failure::NoQuorum { .. })))), "{told:?}");
}

#[tokio::test]
async fn a_revision_in_parts_is_put_together_unless_it_is_too_large() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let mut watcher = client.watch(watch()).unwrap();
    let telling = async {
        session.tell(from(5), &[5, 6], at(6, 1), true).await;
        session.tell(at(6, 1), &[6], at(6, 2), true).await;
        session.tell(at(6, 2), &[6, 7], from(8), false).await;
        // Too much: three parts of 12 MiB are told as they come, and then its end.
        for part in 0..4 {
            let (id, asked, _) = session.asked().await;
            assert_eq!(asked, at(8, part));
            let events = if part < 3 { vec![event(8, 12 << 20)] } else { vec![] };
            let next = if part < 3 { at(8, part + 1) } else { from(9) };
            session.reply(id, answered(Answer::Events(Events { events, next, more: part < 3 }))).await;
        }
        session.tell(from(9), &[9], from(10), false).await;
    };
    let hearing = async {
        assert_eq!(changes(&mut watcher).await, (5, 1, false));
        assert_eq!(watcher.revision(), Some(6));
        assert_eq!(changes(&mut watcher).await, (6, 3, false));
        assert_eq!(changes(&mut watcher).await, (7, 1, false));
        assert_eq!(changes(&mut watcher).await, (8, 3, true));
        assert_eq!(watcher.revision(), Some(8), "not all of it was told");
        assert_eq!(changes(&mut watcher).await, (8, 0, false));
        assert_eq!(changes(&mut watcher).await, (9, 1, false));
    };
    tokio::join!(telling, hearing);
}

#[tokio::test]
async fn a_dropped_wait_loses_nothing_and_asks_nothing_twice() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let mut watcher = client.watch(watch()).unwrap();
    for _ in 0..5 {
        assert!(timeout(Duration::from_millis(20), watcher.next()).await.is_err());
    }
    session.tell(from(5), &[5], from(6), false).await;
    let (_, told) = tokio::join!(sleep(Duration::from_millis(50)), changes(&mut watcher));
    assert_eq!(told, (5, 1, false));
    assert!(timeout(Duration::from_millis(50), watcher.next()).await.is_err());
    assert_eq!(session.asked().await.1, from(6), "one question at a time");
}

#[tokio::test]
async fn it_goes_on_where_it_was_after_the_daemon_has_gone_in_whatever_way() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let mut watcher = client.watch(watch().with_interruptions()).unwrap();
    let other = client.watch(watch().from_revision(100)).unwrap();
    let telling = async {
        session.tell(from(5), &[5], from(6), false).await;
        // Killed while a question waits.
        assert_eq!(session.asked().await.1, from(6));
        drop(session);
        let mut session = daemon.accept().await;
        session.tell(from(6), &[8], from(9), false).await;
        // Stopped: it says so.
        let (id, asked, _) = session.asked().await;
        assert_eq!(asked, from(9));
        session.reply(id, Response::Failed(Failure::Closing)).await;
        session.reply(CONNECTION, Response::Failed(Failure::Closing)).await;
        drop(session);
        daemon.accept().await.tell(from(9), &[9], from(10), false).await;
    };
    let hearing = async {
        assert_eq!(changes(&mut watcher).await, (5, 1, false));
        for (revision, why) in [(8, "connection"), (9, "stopping")] {
            let told = news(&mut watcher).await;
            assert!(matches!(&told, News::Interrupted(text) if text.contains(why)), "{told:?}");
            assert_eq!(news(&mut watcher).await, News::Resumed);
            assert_eq!(changes(&mut watcher).await, (revision, 1, false));
        }
    };
    tokio::join!(telling, hearing);
    drop(other);
}

#[tokio::test]
async fn watchers_of_one_client_go_on_on_one_connection() {
    let daemon = Daemon::start();
    let (client, session) = daemon.connect().await;
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut watcher = client.watch(watch()).unwrap();
        watchers.spawn(async move { changes(&mut watcher).await });
    }
    drop(session);
    let mut session = daemon.accept().await;
    for _ in 0..50 {
        session.tell(from(5), &[5], from(6), false).await;
    }
    while let Some(told) = watchers.join_next().await {
        assert_eq!(told.unwrap(), (5, 1, false));
    }
    assert!(timeout(Duration::from_millis(50), daemon.listener.accept()).await.is_err());
}

#[tokio::test]
async fn compaction_is_named_and_refusals_are_not_tried_again() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let mut watcher = client.watch(watch()).unwrap();
    let refusal = answered(Answer::Refused(Refusal::Compacted { compacted: 30 }));
    for (response, text) in [
        (
            refusal,
            "the changes from revision 5 on are not known any more: all before revision 31 are compacted",
        ),
        (Response::Failed(Failure::TooManyWatches { limit: 7 }), "7 watches wait already, and no more may"),
    ] {
        let refusing = async {
            let (id, ..) = session.asked().await;
            session.reply(id, response).await;
        };
        let (_, told) = tokio::join!(refusing, watcher.next());
        assert_eq!(told.unwrap_err().to_string(), text);
    }
    let long = Watch::new(Span::Key(vec![0; 5000].into()));
    assert!(matches!(client.watch(long), Err(Error::Failed(Failure::Refused(Refusal::KeyLength { .. })))));
}

#[tokio::test]
async fn a_daemon_that_is_busy_is_asked_again() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let mut watcher = client.watch(watch()).unwrap();
    let telling = async {
        for _ in 0..2 {
            let (id, asked, _) = session.asked().await;
            assert_eq!(asked, from(5));
            session.reply(id, Response::Failed(Failure::Busy)).await;
        }
        session.tell(from(5), &[5], from(6), false).await;
    };
    let (_, told) = tokio::join!(telling, changes(&mut watcher));
    assert_eq!(told, (5, 1, false));
}

#[tokio::test]
async fn it_gives_up_after_its_patience_and_can_be_asked_again() {
    let daemon = Daemon::start();
    let (client, session) = daemon.connect().await;
    let mut watcher = client.watch(watch().patience(Duration::from_millis(300))).unwrap();
    let Daemon { _directory: directory, path, listener } = daemon;
    drop((session, listener));
    let began = Instant::now();
    let told = timeout(LONG, watcher.next()).await.unwrap();
    assert!(matches!(&told, Err(WatchError::Lost { last: Error::Unreachable { .. }, .. })), "{told:?}");
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(5));
    assert_eq!(watcher.revision(), Some(5));

    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let daemon = Daemon { _directory: directory, path, listener };
    let telling = async { daemon.accept().await.tell(from(5), &[5], from(6), false).await };
    let (_, told) = tokio::join!(telling, changes(&mut watcher));
    assert_eq!(told, (5, 1, false));
}

#[tokio::test]
async fn progress_is_told_where_it_was_asked_for() {
    let daemon = Daemon::start();
    let (client, mut session) = daemon.connect().await;
    let mut watcher = client.watch(watch().with_progress(Duration::from_millis(70))).unwrap();
    let telling = async {
        let (id, _, wait_ms) = session.asked().await;
        assert_eq!(wait_ms, 70);
        session
            .reply(id, answered(Answer::Events(Events { events: vec![], next: from(9), more: true })))
            .await;
        session.tell(from(9), &[], from(12), false).await;
        session.tell(from(12), &[12], from(13), false).await;
    };
    let hearing = async {
        assert_eq!(news(&mut watcher).await, News::Progress(11));
        assert_eq!(changes(&mut watcher).await, (12, 1, false));
    };
    tokio::join!(telling, hearing);
}
