//! Sessions with daemons that break off, are busy, or stop, in front of the real state machine.
#![allow(clippy::unwrap_used)]

mod keeping;

use std::{
    convert::Infallible,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use bftd_core::{
    block::{Batch, Block, BlockRef, Executed, Header},
    crypto::{ClusterId, Digest, Signature},
    ids::{BatchNumber, Epoch, Incarnation, Index, MemberId, Term},
    kv::{self, Expect, MemoryTables, Range, SESSION_MS, SessionRequest, Span, StateMachine},
};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

use super::*;
use crate::{
    frame,
    protocol::{Call, Reply},
};

/// What a daemon does with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whim {
    Answer,
    /// Breaks the connection, before or after it has made the change.
    BreakOff {
        executed: bool,
    },
    /// Says that it has done nothing, which is true.
    Busy,
    NoQuorum,
    /// Says nothing certain.
    Stopping {
        executed: bool,
    },
    /// Never answers.
    Silent,
    /// Answers after so many milliseconds.
    Late(u64),
    /// Somebody else's change comes under the same number first.
    Forged,
}

/// A cluster of one state and some daemons.
struct Cluster {
    state: Mutex<(StateMachine, MemoryTables)>,
    time_ms: Mutex<u64>,
    whims: Mutex<Box<dyn FnMut(usize) -> Whim + Send>>,
    /// How many changes were asked for.
    asked: AtomicU32,
    /// How old the last block is, as daemons say.
    age_ms: AtomicU64,
}

impl Cluster {
    fn new(whims: impl FnMut(usize) -> Whim + Send + 'static) -> Arc<Self> {
        let root = BlockRef { term: Term(0), index: Index(0), digest: Digest::ZERO };
        let mut tables = MemoryTables::default();
        let machine = StateMachine::open(&mut tables, root).unwrap();
        Arc::new(Self {
            state: Mutex::new((machine, tables)),
            time_ms: Mutex::new(SESSION_MS),
            whims: Mutex::new(Box::new(whims)),
            asked: AtomicU32::default(),
            age_ms: AtomicU64::default(),
        })
    }

    /// A daemon at a socket, which ends with the test.
    fn serve(self: &Arc<Self>, directory: &tempfile::TempDir, daemon: usize) -> PathBuf {
        let path = directory.path().join(format!("s{daemon}"));
        let listener = UnixListener::bind(&path).unwrap();
        let cluster = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&cluster).converse(stream, daemon));
            }
        });
        path
    }

    async fn converse(self: Arc<Self>, mut stream: UnixStream, daemon: usize) {
        let mut buffer = BytesMut::new();
        stream.write_all(&frame::greeting("test")).await.unwrap();
        frame::read_greeting(&mut stream, &mut buffer).await.unwrap();
        while let Ok(Some(Call { id, request })) = frame::read::<Call>(&mut stream, &mut buffer).await {
            let response = match request {
                Request::Execute(operation) => {
                    self.asked.fetch_add(1, Ordering::Relaxed);
                    let whim = (self.whims.lock().unwrap())(daemon);
                    match whim {
                        Whim::Answer => self.execute(&operation),
                        Whim::BreakOff { executed } => {
                            if executed {
                                self.execute(&operation);
                            }
                            return;
                        }
                        Whim::Busy => Response::Failed(Failure::Busy),
                        Whim::NoQuorum => {
                            Response::Failed(Failure::NoQuorum { reachable: 1, n: 4, needed: 3 })
                        }
                        Whim::Stopping { executed } => {
                            if executed {
                                self.execute(&operation);
                            }
                            Response::Failed(Failure::Stopping)
                        }
                        Whim::Silent => continue,
                        Whim::Late(ms) => {
                            let done = self.execute(&operation);
                            tokio::time::sleep(Duration::from_millis(ms)).await;
                            done
                        }
                        Whim::Forged => {
                            self.execute(&forged(&operation));
                            self.execute(&operation)
                        }
                    }
                }
                Request::Query { query, .. } => {
                    let state = self.state.lock().unwrap();
                    let head = state.0.head();
                    let answer = kv::query(&state.1, &head, &query).unwrap();
                    let (revision, index) = (head.revision, head.executed.index.0);
                    let time_ms = *self.time_ms.lock().unwrap();
                    let age_ms = self.age_ms.load(Ordering::Relaxed);
                    Response::Answered { answer, at: At { revision, index, age_ms, time_ms } }
                }
                _ => Response::Failed(Failure::Denied("no such request in this test".to_owned())),
            };
            let mut frames = Vec::new();
            frame::write(&mut frames, &Reply { id, response }).unwrap();
            if stream.write_all(&frames).await.is_err() {
                return;
            }
        }
    }

    fn execute(&self, operation: &Operation) -> Response {
        let mut state = self.state.lock().unwrap();
        let (machine, tables) = &mut *state;
        let parent = machine.head().executed;
        let batch = Batch {
            origin: MemberId(1),
            incarnation: Incarnation(1),
            number: BatchNumber(1),
            requests: vec![operation.encode()],
            signature: Signature([0; 64]),
        };
        let batches = vec![Arc::new(batch)];
        let mut time_ms = self.time_ms.lock().unwrap();
        *time_ms += 1;
        let header = Header {
            cluster: ClusterId(Digest::ZERO),
            epoch: Epoch(0),
            term: Term(1),
            index: parent.index.next(),
            parent: parent.digest,
            time_ms: *time_ms,
            batches: Block::batches_digest(&batches),
            executed: Executed { index: Index(0), state: Digest::ZERO },
            sole: false,
        };
        let block = Arc::new(Block::new(header, batches));
        let done: Result<_, kv::Error<Infallible>> = machine.execute(tables, std::slice::from_ref(&block));
        let mut done = done.unwrap().remove(0);
        let here = (block.header().index, block.header().term);
        let (index, term) = done.repeated.get(&(0, 0)).copied().unwrap_or(here);
        Response::Executed { outcome: done.outcomes.remove(0).remove(0), index: index.0, term: term.0 }
    }

    fn version(&self, key: &str) -> u64 {
        let state = self.state.lock().unwrap();
        kv::get(&state.1, key.as_bytes()).unwrap().map_or(0, |entry| entry.version)
    }
}

/// Another change under the number of this one.
fn forged(operation: &Operation) -> Operation {
    let Operation::InSession(request) = operation else { panic!("{operation:?}") };
    let forged = Operation::put(Bytes::from("forged"), Bytes::new()).encode();
    Operation::InSession(SessionRequest { operation: forged, ..request.clone() })
}

fn options(deadline_ms: u64) -> SessionOptions {
    SessionOptions {
        deadline: Duration::from_millis(deadline_ms),
        patience: Duration::from_millis(200),
        insist: true,
    }
}

async fn put(session: &Session, key: String) -> Result<Changed, Error> {
    session.put(key.into(), Bytes::new(), Expect::Anything).await
}

#[tokio::test]
async fn every_change_is_made_once_whatever_daemons_do() {
    let mut chance = 7_u64;
    let cluster = Cluster::new(move |_| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match (chance >> 33) % 64 {
            0 => Whim::BreakOff { executed: false },
            1..=3 => Whim::BreakOff { executed: true },
            4 | 5 => Whim::Busy,
            6 => Whim::NoQuorum,
            7 => Whim::Stopping { executed: true },
            8 => Whim::Stopping { executed: false },
            9 => Whim::Silent,
            _ => Whim::Answer,
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let sockets = [0, 1, 2].map(|daemon| cluster.serve(&directory, daemon));
    let session = Session::open(sockets, options(30_000)).await.unwrap();
    // More than the window has room for.
    let mut puts = JoinSet::new();
    for number in 0..600 {
        let session = session.clone();
        puts.spawn(async move { (number, put(&session, format!("k{number}")).await) });
    }
    let mut blocks = std::collections::BTreeSet::new();
    while let Some(done) = puts.join_next().await {
        let (number, changed) = done.unwrap();
        let changed = changed.unwrap();
        assert_eq!(cluster.version(&format!("k{number}")), 1, "{number}");
        blocks.insert(changed.index);
    }
    assert_eq!(blocks.len(), 600, "each was told the block that executed it");
    assert!(cluster.asked.load(Ordering::Relaxed) > 600, "nothing had to be sent again");
    let (listing, at) = session.range(Range::of(Span::Prefix("k".into())), Consistency::Local).await.unwrap();
    assert_eq!((listing.entries.len(), at.revision), (600, 601));
}

#[tokio::test]
async fn a_session_that_has_ended_is_opened_anew() {
    let whim = Arc::new(Mutex::new(Whim::Answer));
    let next = Arc::clone(&whim);
    let cluster = Cluster::new(move |_| std::mem::replace(&mut *next.lock().unwrap(), Whim::Answer));
    let directory = tempfile::tempdir().unwrap();
    let session = Session::open([cluster.serve(&directory, 0)], options(5_000)).await.unwrap();
    put(&session, "a".to_owned()).await.unwrap();
    *cluster.time_ms.lock().unwrap() += SESSION_MS;
    put(&session, "b".to_owned()).await.unwrap();
    assert_eq!((cluster.version("a"), cluster.version("b")), (1, 1));
    // What was sent before the session ended may have been made then: it was.
    *whim.lock().unwrap() = Whim::Silent;
    let lost = session.clone();
    let lost =
        tokio::spawn(
            async move { put(&lost.with_deadline(Duration::from_millis(300)), "c".to_owned()).await },
        );
    assert!(matches!(lost.await.unwrap(), Err(Error::OutcomeUnknown(_))));
    *whim.lock().unwrap() = Whim::BreakOff { executed: true };
    let breaking = Arc::clone(&cluster);
    let late = {
        let session = session.clone();
        tokio::spawn(async move { put(&session, "d".to_owned()).await })
    };
    // Before its second copy comes, the session has ended.
    while breaking.version("d") == 0 {
        tokio::task::yield_now().await;
    }
    *cluster.time_ms.lock().unwrap() += 2 * SESSION_MS;
    let error = late.await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::OutcomeUnknown(why) if why.contains("the session has ended")), "{error}");
    put(&session, "e".to_owned()).await.unwrap();
    assert_eq!(["c", "d", "e"].map(|key| cluster.version(key)), [0, 1, 1]);
}

#[tokio::test]
async fn a_silent_daemon_is_left_for_another_one() {
    let cluster = Cluster::new(|daemon| if daemon == 0 { Whim::Silent } else { Whim::Answer });
    let directory = tempfile::tempdir().unwrap();
    let sockets = [0, 1].map(|daemon| cluster.serve(&directory, daemon));
    let session = Session::open(sockets, options(5_000)).await.unwrap();
    put(&session, "a".to_owned()).await.unwrap();
    assert_eq!((cluster.version("a"), cluster.asked.load(Ordering::Relaxed)), (1, 2));
}

#[tokio::test]
async fn what_was_given_up_is_unknown_only_if_it_was_sent() {
    let whim = Arc::new(Mutex::new(Whim::Busy));
    let always = Arc::clone(&whim);
    let cluster = Cluster::new(move |_| *always.lock().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let session = Session::open([cluster.serve(&directory, 0)], options(300)).await.unwrap();
    let error = put(&session, "a".to_owned()).await.unwrap_err();
    assert!(matches!(error, Error::Failed(Failure::Busy)), "{error}");
    *whim.lock().unwrap() = Whim::BreakOff { executed: false };
    let error = put(&session, "a".to_owned()).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert_eq!(cluster.version("a"), 0);
    // Who does not insist is told at once that nothing was done.
    *whim.lock().unwrap() = Whim::Busy;
    let asked = cluster.asked.load(Ordering::Relaxed);
    let hasty = Session { options: SessionOptions { insist: false, ..options(30_000) }, ..session };
    assert!(matches!(put(&hasty, "a".to_owned()).await, Err(Error::Failed(Failure::Busy))));
    assert_eq!(cluster.asked.load(Ordering::Relaxed), asked + 1);
    let nowhere = Session::open([directory.path().join("none")], hasty.options.clone()).await;
    assert!(matches!(nowhere, Err(Error::Unreachable { .. })));
}

#[tokio::test]
async fn what_a_stopping_daemon_was_sent_may_have_been_done() {
    let mut whims = [Whim::Stopping { executed: true }].into_iter();
    let cluster = Cluster::new(move |_| whims.next().unwrap_or(Whim::Busy));
    let directory = tempfile::tempdir().unwrap();
    let session = Session::open([cluster.serve(&directory, 0)], options(300)).await.unwrap();
    let error = put(&session, "a".to_owned()).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert_eq!(cluster.version("a"), 1);
}

#[tokio::test]
async fn who_finds_his_number_taken_knows_that_nothing_was_done_and_begins_anew() {
    let mut whims = [Whim::BreakOff { executed: false }, Whim::Forged].into_iter();
    let cluster = Cluster::new(move |_| whims.next().unwrap_or(Whim::Answer));
    let directory = tempfile::tempdir().unwrap();
    let session = Session::open([cluster.serve(&directory, 0)], options(5_000)).await.unwrap();
    put(&session, "a".to_owned()).await.unwrap();
    assert_eq!((cluster.version("a"), cluster.version("forged")), (1, 1));
}

#[tokio::test]
async fn a_daemon_whose_clock_is_far_ahead_is_believed_once() {
    let cluster = Cluster::new(|_| Whim::Answer);
    cluster.age_ms.store(10 * SESSION_MS, Ordering::Relaxed);
    let directory = tempfile::tempdir().unwrap();
    let session = Session::open([cluster.serve(&directory, 0)], options(5_000)).await.unwrap();
    put(&session, "a".to_owned()).await.unwrap();
    assert_eq!((cluster.version("a"), cluster.asked.load(Ordering::Relaxed)), (1, 2));
}

#[tokio::test]
async fn what_is_given_up_is_not_in_the_way_of_others() {
    let silent = Arc::new(AtomicBool::new(true));
    let is_silent = Arc::clone(&silent);
    let cluster =
        Cluster::new(move |_| if is_silent.load(Ordering::Relaxed) { Whim::Silent } else { Whim::Answer });
    let directory = tempfile::tempdir().unwrap();
    let session = Session::open([cluster.serve(&directory, 0)], options(10_000)).await.unwrap();
    // The window is full of changes that get no answer, and are given up.
    let short = session.with_deadline(Duration::from_millis(200));
    let mut puts = JoinSet::new();
    for number in 0..kv::SESSION_WINDOW {
        let short = short.clone();
        puts.spawn(async move { put(&short, format!("k{number}")).await });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    silent.store(false, Ordering::Relaxed);
    put(&session, "after".to_owned()).await.unwrap();
    assert!(puts.join_all().await.iter().all(|put| matches!(put, Err(Error::OutcomeUnknown(_)))));
    assert_eq!(cluster.version("after"), 1);
}

#[tokio::test]
async fn what_can_be_in_no_session_is_refused_before_it_is_sent() {
    let cluster = Cluster::new(|_| Whim::Answer);
    let directory = tempfile::tempdir().unwrap();
    let session = Session::open([cluster.serve(&directory, 0)], options(1_000)).await.unwrap();
    let protocol = Operation::SetProtocol { protocol: bftd_core::protocol::Protocol::Ccro };
    let refused = session.execute(protocol).await;
    assert!(matches!(refused, Err(Error::Failed(Failure::Refused(Refusal::NotInSession)))));
    let refused = put(&session, String::new()).await;
    assert!(matches!(refused, Err(Error::Failed(Failure::Refused(Refusal::KeyLength { .. })))));
    assert_eq!(cluster.asked.load(Ordering::Relaxed), 0);
}
