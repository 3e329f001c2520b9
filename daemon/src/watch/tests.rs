#![allow(clippy::unwrap_used)]

use std::{sync::atomic::AtomicU64, time::Duration};

use bftd_core::kv::{Entry, Refusal};
use bytes::Bytes;
use tokio::{task::JoinSet, time::timeout};

use super::*;

/// A history that the test writes: (revision, key, whether it is a put).
#[derive(Clone, Default)]
struct Fake(Arc<FakeShared>);

#[derive(Default)]
struct FakeShared {
    events: Mutex<Vec<Event>>,
    head: AtomicU64,
    compacted: AtomicU64,
    /// How often the hub has read.
    reads: AtomicUsize,
    /// Where an answer ends, if it is cut in the middle of a revision.
    cut: Mutex<Option<Position>>,
    fails: AtomicBool,
}

impl Fake {
    /// A request that changes these keys; nobody is told. An empty value deletes.
    fn execute(&self, changes: &[(&str, &str)]) -> u64 {
        let mut events = self.0.events.lock().unwrap();
        let revision = self.0.head.load(Ordering::SeqCst) + 1;
        for (key, value) in changes {
            let value = Bytes::copy_from_slice(value.as_bytes());
            let entry = (!value.is_empty()).then_some(Entry {
                value,
                create_revision: revision,
                mod_revision: revision,
                version: 1,
                lease: 0,
            });
            let key = Bytes::copy_from_slice(key.as_bytes());
            events.push(Event { revision, key, entry, previous: None });
        }
        self.0.head.store(revision, Ordering::SeqCst);
        revision
    }

    /// What a watcher that reads itself finds.
    fn read(&self, watched: &Watched) -> Answer {
        let compacted = self.0.compacted.load(Ordering::SeqCst);
        if watched.from.revision <= compacted {
            return Answer::Refused(Refusal::Compacted { compacted });
        }
        let events = self.0.events.lock().unwrap();
        let mut at = Position::start_of(0);
        let mut found = Vec::new();
        for event in events.iter() {
            if event.revision > at.revision {
                at = Position::start_of(event.revision);
            }
            if at >= watched.from && watched.keys.contains(&event.key) && is_wanted(watched.kinds, event) {
                found.push(event.clone());
            }
            at.within += 1;
        }
        let next = Position::start_of(self.0.head.load(Ordering::SeqCst) + 1).max(watched.from);
        Answer::Events(Events { events: found, next, more: false })
    }
}

impl History for Fake {
    fn head(&self) -> Result<u64, StateError> {
        Ok(self.0.head.load(Ordering::SeqCst))
    }

    fn from(&self, from: Position) -> Result<(u64, Answer), StateError> {
        if self.0.fails.load(Ordering::SeqCst) {
            return Err(StateError::Poisoned);
        }
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        let head = self.0.head.load(Ordering::SeqCst);
        let all = Watched { from, ..watched(Span::Prefix(Bytes::new()), 0) };
        let Answer::Events(mut found) = self.read(&all) else { return Ok((head, self.read(&all))) };
        if let Some(cut) = self.0.cut.lock().unwrap().take() {
            let before = found.events.iter().filter(|event| event.revision < cut.revision).count();
            found.events.truncate(before + cut.within as usize);
            (found.next, found.more) = (cut, true);
        }
        Ok((head, Answer::Events(found)))
    }
}

fn watched(keys: Span, from: u64) -> Watched {
    Watched { keys, from: Position::start_of(from), with_previous: false, kinds: Kinds::All }
}

fn key(key: &'static str) -> Span {
    Span::Key(key.into())
}

/// Waits as a client's poll does. Says what was found, and how often the history was read for it.
async fn poll(
    fake: &Fake,
    watches: &Watches,
    watched: Watched,
    wait_ms: u64,
) -> (Result<Answer, Failure>, usize) {
    let reads = AtomicUsize::new(0);
    let read = |watched: Watched| {
        reads.fetch_add(1, Ordering::SeqCst);
        let answer = fake.read(&watched);
        async move { Ok(answer) }
    };
    let until = Instant::now() + Duration::from_millis(wait_ms);
    let found = timeout(Duration::from_secs(20), watches.next(watched, until, read)).await.unwrap();
    (found, reads.into_inner())
}

/// The revisions of an answer, and where it goes on.
fn revisions(answer: Result<Answer, Failure>) -> (Vec<u64>, Position) {
    let Ok(Answer::Events(found)) = answer else { panic!("{answer:?}") };
    (found.events.iter().map(|event| event.revision).collect(), found.next)
}

const LONG: u64 = 10_000;

async fn until_waiting(watches: &Watches, count: usize) {
    while watches.0.waiting.load(Ordering::SeqCst) != count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn whoever_is_behind_reads_and_whoever_is_not_is_woken_by_his_own_keys_alone() {
    let fake = Fake::default();
    let watches = Watches::start(fake.clone()).unwrap();
    fake.execute(&[("a", "1")]);
    let (found, reads) = poll(&fake, &watches, watched(key("a"), 1), LONG).await;
    assert_eq!((revisions(found), reads), ((vec![1], Position::start_of(2)), 1));

    let waiting = poll(&fake, &watches, watched(key("a"), 2), LONG);
    let changing = async {
        until_waiting(&watches, 1).await;
        for _ in 0..100 {
            fake.execute(&[("b", "1")]);
            watches.note();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fake.execute(&[("a", "2")]);
        watches.note();
    };
    let ((found, reads), ()) = tokio::join!(waiting, changing);
    assert_eq!((revisions(found), reads), ((vec![102], Position::start_of(103)), 0));
    assert_eq!(watches.0.waiting.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_is_executed_between_registration_and_reading_and_after_it_is_told_once() {
    let fake = Fake::default();
    let watches = Watches::start(fake.clone()).unwrap();
    fake.execute(&[("b", "1")]);
    // Before it reads: the history has it.
    let read = |watched: Watched| {
        fake.execute(&[("a", "1")]);
        watches.note();
        let answer = fake.read(&watched);
        async move { Ok(answer) }
    };
    let until = || Instant::now() + Duration::from_secs(10);
    let found = watches.next(watched(key("a"), 1), until(), read).await;
    assert_eq!(revisions(found), (vec![2], Position::start_of(3)));

    // After it has read, and before it waits: the hub has it, and may be done with it already.
    for waits_ms in [0, 50] {
        let from = fake.execute(&[("b", "2")]);
        let read = |watched: Watched| {
            let answer = fake.read(&watched);
            let (fake, watches) = (fake.clone(), watches.clone());
            async move {
                fake.execute(&[("a", "2")]);
                watches.note();
                tokio::time::sleep(Duration::from_millis(waits_ms)).await;
                Ok(answer)
            }
        };
        let found = watches.next(watched(key("a"), from), until(), read).await;
        assert_eq!(revisions(found), (vec![from + 1], Position::start_of(from + 2)), "the hub tells");
    }
}

#[tokio::test]
async fn who_is_far_behind_reads_on_from_where_each_part_has_ended() {
    let fake = Fake::default();
    let watches = Watches::start(fake.clone()).unwrap();
    for key in ["b", "b", "b", "a"] {
        fake.execute(&[(key, "1")]);
    }
    let asked = Mutex::new(Vec::new());
    // One revision at a time is looked through.
    let read = |watched: Watched| {
        let revision = watched.from.revision;
        asked.lock().unwrap().push(revision);
        let part = Events { events: Vec::new(), next: Position::start_of(revision + 1), more: true };
        let answer = if revision < 4 { Answer::Events(part) } else { fake.read(&watched) };
        async move { Ok(answer) }
    };
    let until = Instant::now() + Duration::from_secs(2);
    let found = watches.next(watched(key("a"), 1), until, read).await;
    assert_eq!(revisions(found), (vec![4], Position::start_of(5)));
    assert_eq!(asked.into_inner().unwrap(), [1, 2, 3, 4]);
}

#[tokio::test]
async fn what_the_executor_told_nobody_because_nobody_waited_is_not_lost() {
    let fake = Fake::default();
    let watches = Watches::start(fake.clone()).unwrap();
    // Somebody waits, so that the hub stays where it is while nobody is told.
    let idle = watches.register(&watched(key("x"), 100)).unwrap();
    assert!(!idle.is_behind);
    watches.note();
    while fake.0.reads.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Until it sleeps.
    tokio::time::sleep(Duration::from_millis(100)).await;
    fake.execute(&[("a", "1")]);
    let (found, reads) = poll(&fake, &watches, watched(key("a"), 1), LONG).await;
    assert_eq!((revisions(found), reads), ((vec![1], Position::start_of(2)), 0));
}

#[tokio::test]
async fn without_changes_a_poll_ends_with_how_far_was_looked() {
    let fake = Fake::default();
    let watches = Watches::start(fake.clone()).unwrap();
    fake.execute(&[("b", "1")]);
    let (found, _) = poll(&fake, &watches, watched(key("a"), 1), 30).await;
    assert_eq!(revisions(found), (vec![], Position::start_of(2)));
    let waiting = poll(&fake, &watches, watched(key("a"), 2), 200);
    let changing = async {
        until_waiting(&watches, 1).await;
        fake.execute(&[("b", "2")]);
        watches.note();
    };
    let ((found, _), ()) = tokio::join!(waiting, changing);
    assert_eq!(revisions(found), (vec![], Position::start_of(3)));
    let (found, _) = poll(&fake, &watches, watched(key("a"), 50), 30).await;
    assert_eq!(revisions(found), (vec![], Position::start_of(50)), "a place ahead waits");
}

#[tokio::test]
async fn positions_and_kinds_are_kept_to_and_what_is_large_or_has_a_past_is_read() {
    let fake = Fake::default();
    let watches = Watches::start(fake.clone()).unwrap();
    let large = "x".repeat(MAX_FOUND);
    let of = |kinds, from, with_previous| Watched { kinds, from, with_previous, ..watched(key("a"), 0) };
    let polls = [
        of(Kinds::All, Position { revision: 1, within: 1 }, false),
        of(Kinds::Puts, Position::start_of(1), false),
        of(Kinds::Deletions, Position::start_of(1), false),
        of(Kinds::Puts, Position::start_of(1), true),
        watched(key("large"), 1),
    ];
    let mut waiting = JoinSet::new();
    for (at, watched) in polls.into_iter().enumerate() {
        let (fake, watches) = (fake.clone(), watches.clone());
        waiting.spawn(async move { (at, poll(&fake, &watches, watched, LONG).await) });
    }
    until_waiting(&watches, 5).await;
    fake.execute(&[("a", "1"), ("large", &large)]);
    fake.execute(&[("a", "")]);
    watches.note();
    let mut found = Vec::new();
    while let Some(done) = waiting.join_next().await {
        let (at, (answer, reads)) = done.unwrap();
        found.push((at, revisions(answer).0, reads));
    }
    found.sort();
    let expected = [(0, vec![2], 0), (1, vec![1], 0), (2, vec![2], 0), (3, vec![1], 1), (4, vec![1], 1)];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_revision_that_the_hub_reads_in_pieces_comes_whole() {
    let fake = Fake::default();
    let watches = Watches::start(fake.clone()).unwrap();
    let mut waiting = JoinSet::new();
    for name in ["a", "z"] {
        let (fake, watches) = (fake.clone(), watches.clone());
        waiting.spawn(async move {
            let keys = Span::Prefix(name.into());
            revisions(poll(&fake, &watches, watched(keys, 1), LONG).await.0)
        });
    }
    until_waiting(&watches, 2).await;
    *fake.0.cut.lock().unwrap() = Some(Position { revision: 1, within: 1 });
    fake.execute(&[("a1", "1"), ("a2", "1"), ("z1", "1"), ("z2", "1")]);
    watches.note();
    while let Some(found) = waiting.join_next().await {
        assert_eq!(found.unwrap(), (vec![1, 1], Position::start_of(2)));
    }
}

#[tokio::test]
async fn what_was_compacted_before_the_hub_saw_it_is_said() {
    let fake = Fake::default();
    let watches = Watches::start(fake.clone()).unwrap();
    let (found, _) = poll(&fake, &watches, watched(key("a"), 0), LONG).await;
    assert_eq!(found.unwrap(), Answer::Refused(Refusal::Compacted { compacted: 0 }));
    let waiting = poll(&fake, &watches, watched(key("a"), 1), LONG);
    let changing = async {
        until_waiting(&watches, 1).await;
        fake.execute(&[("b", "1")]);
        fake.0.compacted.store(1, Ordering::SeqCst);
        watches.note();
    };
    let ((found, _), ()) = tokio::join!(waiting, changing);
    assert_eq!(found.unwrap(), Answer::Refused(Refusal::Compacted { compacted: 1 }));
}

#[tokio::test]
async fn a_store_that_fails_is_said_and_places_are_given_up() {
    let fake = Fake::default();
    let watches = Watches::start(fake.clone()).unwrap();
    let waiting = poll(&fake, &watches, watched(key("a"), 1), LONG);
    let failing = async {
        until_waiting(&watches, 1).await;
        fake.0.fails.store(true, Ordering::SeqCst);
        fake.execute(&[("a", "1")]);
        watches.note();
    };
    let ((found, _), ()) = tokio::join!(waiting, failing);
    assert!(matches!(found, Err(Failure::Internal(_))), "{found:?}");

    fake.0.fails.store(false, Ordering::SeqCst);
    let mut places: Vec<_> =
        (0..MAX_WAITING).map(|_| watches.register(&watched(key("x"), 9)).unwrap()).collect();
    let refused = Failure::TooManyWatches { limit: MAX_WAITING as u64 };
    assert_eq!(watches.register(&watched(key("x"), 9)).err(), Some(refused));
    places.pop();
    watches.register(&watched(key("x"), 9)).unwrap();
    drop(places);
    assert_eq!(watches.0.waiting.load(Ordering::SeqCst), 0);
    watches.close();
}

/// Watchers come and go while much is executed: each is told all of its own keys, in order, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_watchers_miss_nothing_under_load() {
    const CHANGES: u64 = 20_000;
    let fake = Fake::default();
    let watches = Watches::start(fake.clone()).unwrap();
    let mut watchers = JoinSet::new();
    for at in 0..40_u64 {
        let (fake, watches) = (fake.clone(), watches.clone());
        watchers.spawn(async move {
            let name = format!("k{}", at % 10);
            let keys =
                if at < 20 { Span::Key(name.clone().into()) } else { Span::Prefix(name.clone().into()) };
            let mut watched = watched(keys, 1);
            let mut told = Vec::new();
            while watched.from.revision <= CHANGES {
                // Some of them give up and ask again all the time.
                let (found, _) = poll(&fake, &watches, watched.clone(), at % 3).await;
                let Ok(Answer::Events(found)) = found else { panic!("{found:?}") };
                told.extend(found.events.iter().map(|event| event.revision));
                watched.from = found.next;
            }
            let expected: Vec<_> = (1..=CHANGES).filter(|revision| revision % 10 == at % 10).collect();
            assert!(told == expected, "watcher {at}: {} of {} changes", told.len(), expected.len());
        });
    }
    let executor = thread::spawn(move || {
        for revision in 1..=CHANGES {
            fake.execute(&[(&format!("k{}", revision % 10), "1")]);
            watches.note();
            if revision % 50 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
    while let Some(watcher) = watchers.join_next().await {
        watcher.unwrap();
    }
    executor.join().unwrap();
}
