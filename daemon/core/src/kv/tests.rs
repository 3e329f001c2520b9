mod digests;
mod history;
mod leases;
mod quota;
mod ranges;
mod restarts;
mod sessions;
mod transactions;
mod watching;

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    sync::Arc,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    block::{Batch, Block, BlockRef, Executed, Header, Request},
    crypto::{ClusterId, Digest, Signature},
    ids::{BatchNumber, Epoch, Incarnation, Index, MemberId, Term},
    limits::{DEFAULT_QUOTA, MAX_KEY, MAX_VALUE, MIN_QUOTA, REMEMBERED_STATES},
    protocol::Protocol,
};

const ROOT: BlockRef = BlockRef { term: Term(0), index: Index(0), digest: Digest([7; 32]) };

/// A state machine with its tables.
struct Store {
    tables: MemoryTables,
    machine: StateMachine,
}

impl Store {
    fn new() -> Self {
        let mut tables = MemoryTables::default();
        let machine = StateMachine::open(&mut tables, ROOT).unwrap();
        Self { tables, machine }
    }

    fn reopen(&mut self) {
        self.machine = StateMachine::open(&mut self.tables, ROOT).unwrap();
    }

    fn requests(&mut self, requests: Vec<Request>) -> Vec<Outcome> {
        let block = child(self.machine.head().executed, &[requests]);
        let mut results = self.machine.execute(&mut self.tables, &[block]).unwrap();
        results.remove(0).outcomes.remove(0)
    }

    fn run(&mut self, operations: &[Operation]) -> Vec<Outcome> {
        self.requests(operations.iter().map(Operation::encode).collect())
    }

    fn one(&mut self, operation: Operation) -> Outcome {
        self.run(&[operation]).remove(0)
    }

    fn get(&self, key: &str) -> Option<Entry> {
        match self.query(&Query::Get { key: bytes(key) }) {
            Answer::Entry(entry) => entry,
            other => panic!("{other:?}"),
        }
    }

    fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: u64,
        keys_only: bool,
    ) -> (Vec<String>, bool) {
        let keys = match start_after {
            Some(after) => Span::prefix_after(prefix.as_bytes(), after.as_bytes()),
            None => Span::Prefix(bytes(prefix)),
        };
        let want = if keys_only { Want::Keys } else { Want::Entries };
        let listing = self.range(Range { limit, want, ..Range::of(keys) });
        let keys = listing.entries.iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap());
        (keys.collect(), listing.more)
    }

    fn count(&self, prefix: &str) -> u64 {
        self.range(Range::count_of(Span::Prefix(bytes(prefix)))).count.unwrap()
    }

    fn query(&self, asked: &Query) -> Answer {
        query(&self.tables, &self.machine.head(), asked).unwrap()
    }

    fn range(&self, asked: Range) -> Listing {
        match self.query(&Query::Range(asked)) {
            Answer::Listing(listing) => listing,
            other => panic!("{other:?}"),
        }
    }

    fn state(&self) -> Digest {
        self.machine.head().state
    }

    fn recomputed(&self) -> Digest {
        recompute(&self.tables, &self.machine.head()).unwrap()
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put_if(key: &str, value: &str, expect: Expect) -> Operation {
    Operation::Put { key: bytes(key), value: bytes(value), expect, lease: 0 }
}

fn put(key: &str, value: &str) -> Operation {
    put_if(key, value, Expect::Anything)
}

fn delete(key: &str) -> Operation {
    Operation::Delete { key: bytes(key) }
}

fn delete_prefix(prefix: &str) -> Operation {
    Operation::DeletePrefix { prefix: bytes(prefix) }
}

/// A block of unsigned batches after another block: signatures are no business of the state machine.
fn child(parent: BlockRef, batches: &[Vec<Request>]) -> Arc<Block> {
    let batches: Vec<_> = batches.iter().map(|requests| (1, requests.clone())).collect();
    block_of(parent, &batches)
}

/// The same of batches with their origins. A block's time is its index in seconds.
fn block_of(parent: BlockRef, batches: &[(u8, Vec<Request>)]) -> Arc<Block> {
    block_at(parent, batches, (Term(1), parent.index.next().0 * 1000))
}

/// The same of a term, at a time in milliseconds.
fn block_at(parent: BlockRef, batches: &[(u8, Vec<Request>)], (term, time_ms): (Term, u64)) -> Arc<Block> {
    let batches: Vec<_> = batches
        .iter()
        .map(|(origin, requests)| {
            Arc::new(Batch {
                origin: MemberId(*origin),
                incarnation: Incarnation(1),
                number: BatchNumber(1),
                requests: requests.clone(),
                signature: Signature([0; 64]),
            })
        })
        .collect();
    let header = Header {
        cluster: ClusterId(Digest::ZERO),
        epoch: Epoch(0),
        term,
        index: parent.index.next(),
        parent: parent.digest,
        time_ms,
        batches: Block::batches_digest(&batches),
        executed: Executed { index: Index(0), state: Digest::ZERO },
        sole: false,
    };
    Arc::new(Block::new(header, batches))
}

#[test]
fn revisions_and_versions_are_as_in_etcd() {
    let mut store = Store::new();
    assert_eq!(
        store.machine.head(),
        Head {
            executed: ROOT,
            revision: 1,
            compacted: 0,
            used: 0,
            quota: DEFAULT_QUOTA,
            state: empty_state()
        }
    );
    assert_eq!(store.one(put("a", "1")), Outcome::Put { revision: 2 });
    assert_eq!(store.one(put("a", "2")), Outcome::Put { revision: 3 });
    let entry = |value: &str, create_revision, mod_revision, version| {
        Some(Entry { value: bytes(value), create_revision, mod_revision, version, lease: 0 })
    };
    assert_eq!(store.get("a"), entry("2", 2, 3, 2));
    assert_eq!(store.one(delete("b")), Outcome::Deleted { revision: 3, keys: 0 });
    assert_eq!(store.one(delete("a")), Outcome::Deleted { revision: 4, keys: 1 });
    assert_eq!(store.get("a"), None);
    assert_eq!(store.one(put("a", "3")), Outcome::Put { revision: 5 });
    assert_eq!(store.get("a"), entry("3", 5, 5, 1));
    store.run(&[put("b", ""), put("ab", "x"), put("c", "y")]);
    assert_eq!(store.one(delete_prefix("a")), Outcome::Deleted { revision: 9, keys: 2 });
    assert_eq!(store.one(delete_prefix("a")), Outcome::Deleted { revision: 9, keys: 0 });
    assert_eq!(store.list("", None, 10, true), (vec!["b".into(), "c".into()], false));
    assert_eq!(store.one(delete_prefix("")), Outcome::Deleted { revision: 10, keys: 2 });
    assert_eq!(store.state(), store.recomputed());
}

#[test]
fn expectations_are_checked() {
    let mut store = Store::new();
    let outcomes = store.run(&[
        put_if("a", "1", Expect::Revision(0)),
        put_if("a", "1", Expect::Absent),
        put_if("a", "2", Expect::Absent),
        put_if("a", "2", Expect::Revision(1)),
        put_if("a", "2", Expect::Revision(2)),
    ]);
    let expected = [
        Outcome::Mismatch { revision: 1, found: 0 },
        Outcome::Put { revision: 2 },
        Outcome::Mismatch { revision: 2, found: 2 },
        Outcome::Mismatch { revision: 2, found: 2 },
        Outcome::Put { revision: 3 },
    ];
    assert_eq!(outcomes, expected);
}

#[test]
fn what_nobody_can_execute_is_refused_and_changes_nothing() {
    let mut store = Store::new();
    let before = store.state();
    let long = |length| Bytes::from(vec![b'x'; length]);
    let put = |key, value| Operation::Put { key, value, expect: Expect::Anything, lease: 0 }.encode();
    let mut trailing = delete("a").encode().to_vec();
    trailing.push(0);
    let outcomes = store.requests(vec![
        put(Bytes::new(), Bytes::new()),
        put(long(MAX_KEY + 1), Bytes::new()),
        put(bytes("a"), long(MAX_VALUE + 1)),
        Operation::Delete { key: Bytes::new() }.encode(),
        Operation::DeletePrefix { prefix: long(MAX_KEY + 1) }.encode(),
        Bytes::new(),
        bytes("\u{7f}garbage"),
        trailing.into(),
    ]);
    let key = |bytes| Outcome::Refused(Refusal::KeyLength { bytes });
    let malformed = Outcome::Refused(Refusal::Malformed);
    let expected = [
        key(0),
        key(MAX_KEY as u64 + 1),
        Outcome::Refused(Refusal::ValueTooLong { bytes: MAX_VALUE as u64 + 1 }),
        key(0),
        key(MAX_KEY as u64 + 1),
        malformed.clone(),
        malformed.clone(),
        malformed,
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(store.state(), before);
    assert_eq!(store.machine.head().executed.index, Index(1), "the block counts as executed all the same");
    assert_eq!(store.requests(vec![put(long(MAX_KEY), long(MAX_VALUE))]), [Outcome::Put { revision: 2 }]);
    assert_eq!(store.state(), store.recomputed());
}

#[test]
fn outcomes_are_aligned_with_batches() {
    let mut store = Store::new();
    let first = child(
        ROOT,
        &[vec![put("a", "1").encode()], vec![], vec![delete("a").encode(), delete("a").encode()]],
    );
    let second = child(first.reference(), &[]);
    let results = store.machine.execute(&mut store.tables, &[first, second.clone()]).unwrap();
    let deleted = |keys| Outcome::Deleted { revision: 3, keys };
    assert_eq!(
        results[0].outcomes,
        [vec![Outcome::Put { revision: 2 }], vec![], vec![deleted(1), deleted(0)]]
    );
    assert!(results[1].outcomes.is_empty());
    assert_eq!(results[1].head, store.machine.head());
    assert_eq!(results[1].head.executed, second.reference());
    assert_eq!(results[0].head.state, results[1].head.state, "an empty block changes no contents");
}

#[test]
fn a_block_is_executed_once_and_in_order() {
    let mut store = Store::new();
    let first = child(ROOT, &[vec![put("a", "1").encode()]]);
    let second = child(first.reference(), &[vec![put("a", "2").encode()]]);
    let third = child(second.reference(), &[]);
    let other = child(BlockRef { digest: Digest([9; 32]), ..first.reference() }, &[]);
    store.machine.execute(&mut store.tables, std::slice::from_ref(&first)).unwrap();
    let before = (store.tables.clone(), store.machine.head());
    for wrong in [vec![first.clone()], vec![third.clone()], vec![other], vec![second.clone(), second.clone()]]
    {
        let error = store.machine.execute(&mut store.tables, &wrong).unwrap_err();
        assert!(matches!(error, Error::NotNext { .. }), "{error}");
        assert_eq!((&store.tables, store.machine.head()), (&before.0, before.1));
    }
    store.machine.execute(&mut store.tables, &[second, third]).unwrap();
    assert_eq!(store.get("a").unwrap().version, 2);
}

#[test]
fn recent_states_are_remembered_over_a_restart() {
    let mut store = Store::new();
    assert_eq!(store.machine.recent_digests(), [(Index(0), empty_state())]);
    let mut states = vec![(Index(0), empty_state())];
    for index in 1..=600_u64 {
        store.one(put("a", &index.to_string()));
        states.push((Index(index), store.state()));
        let last = &states[states.len().saturating_sub(REMEMBERED_STATES)..];
        if index == 100 || index == 101 || index == 500 || index == 600 {
            store.machine.save(&mut store.tables).unwrap();
            store.reopen();
        }
        assert_eq!(store.machine.recent_digests(), last, "{index}");
    }
}

#[test]
fn a_start_without_a_save_makes_the_buckets_anew() {
    let mut store = Store::new();
    store.run(&[put("a", "1"), put("b", "2")]);
    let mut saved = store.tables.clone();
    store.reopen();
    store.one(delete("a"));
    assert_eq!(store.state(), store.recomputed());
    store.reopen();
    store.machine.save(&mut store.tables).unwrap();
    store.run(&[delete("b"), put("c", "3")]);
    let last = store.machine.head();
    store.reopen();
    assert_eq!(store.machine.head(), last);
    assert_eq!(store.machine.recent_digests().last(), Some(&(last.executed.index, last.state)));
    store.one(put("d", "4"));
    assert_eq!(store.state(), store.recomputed());
    assert!(StateMachine::open(&mut saved, ROOT).is_ok());
}

#[test]
fn damage_is_noticed() {
    let mut store = Store::new();
    store.run(&[put("a", "1"), put("b", "2")]);
    store.machine.save(&mut store.tables).unwrap();
    let number = bucket_of(&key_hash(b"a")).to_be_bytes();
    let bucket = store.tables.read(Table::Buckets, &number, |value| value.to_vec()).unwrap().unwrap();
    let damage = |table, key: &[u8], value: &[u8]| {
        let mut tables = store.tables.clone();
        tables.put(table, key, value).unwrap();
        tables
    };
    let mut flipped = bucket.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for mut tables in [
        damage(Table::Buckets, &number, &flipped),
        damage(Table::Buckets, &number, &bucket[1..]),
        damage(Table::Buckets, b"xyz", &bucket),
        damage(Table::Meta, b"head", b"?"),
        damage(Table::Meta, b"saved", b"?"),
    ] {
        assert!(matches!(StateMachine::open(&mut tables, ROOT), Err(Error::Damaged(_))));
    }
    let tables = damage(Table::Keys, b"a", b"?");
    let head = store.machine.head();
    assert!(matches!(query(&tables, &head, &Query::Get { key: bytes("a") }), Err(Error::Damaged(_))));
    assert!(matches!(recompute(&tables, &head), Err(Error::Damaged(_))));
    let mut row = store.tables.read(Table::History, &3_u64.to_be_bytes(), <[u8]>::to_vec).unwrap().unwrap();
    *row.last_mut().unwrap() ^= 1;
    let tables = damage(Table::History, &3_u64.to_be_bytes(), &row);
    assert_ne!(recompute(&tables, &head), Ok(head.state));
}

#[test]
fn listings_are_in_order_and_say_whether_there_is_more() {
    let mut store = Store::new();
    store.run(&["b", "a", "ab", "abc", "ac", "\u{ff}"].map(|key| put(key, "value")));
    let keys = |keys: &[&str], more| (keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>(), more);
    assert_eq!(store.list("", None, 100, false), keys(&["a", "ab", "abc", "ac", "b", "\u{ff}"], false));
    assert_eq!(store.list("a", None, 2, false), keys(&["a", "ab"], true));
    assert_eq!(store.list("a", Some("ab"), 2, false), keys(&["abc", "ac"], false));
    assert_eq!(
        store.list("ab", Some("a"), 2, true),
        keys(&["ab", "abc"], false),
        "start_after before the prefix"
    );
    assert_eq!(store.list("ab", Some("b"), 2, true), keys(&[], false));
    assert_eq!(store.list("a", None, 0, true), keys(&["a", "ab", "abc", "ac"], false), "0 is no limit");
    assert_eq!(store.list("x", None, 0, true), keys(&[], false));
    assert_eq!(store.list("\u{ff}", Some("\u{ff}"), 0, true), keys(&[], false));
    assert_eq!(store.list("", Some("b"), 0, true), keys(&["\u{ff}"], false));
    assert_eq!((store.count(""), store.count("a"), store.count("x")), (6, 4, 0));
    let listing = store.range(Range { want: Want::Keys, limit: 1, ..Range::of(Span::Prefix(bytes("b"))) });
    assert_eq!(listing.entries[0].1, Entry { value: Bytes::new(), ..store.get("b").unwrap() });
}

#[test]
fn an_answer_is_bounded_in_bytes() {
    let mut store = Store::new();
    let value = "x".repeat(MAX_VALUE);
    let operations: Vec<_> = (10..30).map(|key| put(&key.to_string(), &value)).collect();
    store.run(&operations);
    let (mut pages, mut seen, mut after) = (0, Vec::new(), None);
    loop {
        let (keys, more) = store.list("", after.as_deref(), 100, false);
        assert!(keys.len() * MAX_VALUE <= MAX_ANSWER);
        seen.extend(keys);
        pages += 1;
        if !more {
            break;
        }
        after = seen.last().cloned();
    }
    assert_eq!((pages, seen.len()), (3, 20));
    assert_eq!(store.list("", None, 100, true).0.len(), 20);
}

#[test]
fn deleting_a_prefix_goes_beyond_one_chunk_of_memory() {
    let mut store = Store::new();
    let operations: Vec<_> = (0..20_000).map(|key| put(&format!("k{key}"), "v")).collect();
    store.run(&operations);
    store.one(put("l", "stays"));
    assert_eq!(store.state(), store.recomputed());
    assert_eq!(store.one(delete_prefix("k")), Outcome::Deleted { revision: 20_003, keys: 20_000 });
    assert_eq!(store.state(), store.recomputed());
    store.machine.save(&mut store.tables).unwrap();
    store.one(delete("l"));
    store.machine.save(&mut store.tables).unwrap();
    let mut buckets = 0;
    let all = Bound::Unbounded;
    store
        .tables
        .scan(Table::Buckets, all, |_, _| {
            buckets += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(buckets, 0, "empty buckets are removed");
    let nothing = Store::new();
    assert_eq!(recompute(&MemoryTables::default(), &nothing.machine.head()).unwrap(), empty_state());
}

/// More keys than buckets are held for: what was written and forgotten is read again.
#[test]
fn buckets_are_read_again_when_there_is_no_room_for_all() {
    const KEYS: usize = 160_000;
    let mut store = Store::new();
    let keys: Vec<_> = (0..KEYS).map(|key| format!("k{key}")).collect();
    for keys in keys.chunks(20_000) {
        let puts: Vec<_> = keys.iter().map(|key| put(key, "1")).collect();
        store.run(&puts);
    }
    assert_eq!(store.state(), store.recomputed());
    let mut written = 0;
    let count = |_: &[u8], _: &[u8]| {
        written += 1;
        ControlFlow::Continue(())
    };
    store.tables.scan(Table::Buckets, Bound::Unbounded, count).unwrap();
    assert!(written > 0, "there was room for all");
    let puts: Vec<_> = keys.iter().step_by(1000).map(|key| put_if(key, "2", Expect::Absent)).collect();
    assert!(store.run(&puts).iter().all(|outcome| matches!(outcome, Outcome::Mismatch { .. })));
    let puts: Vec<_> = keys.iter().step_by(1000).map(|key| put(key, "2")).collect();
    store.run(&puts);
    assert!(keys.iter().step_by(1000).all(|key| store.get(key).unwrap().version == 2));
    assert_eq!(store.state(), store.recomputed());
}

#[test]
fn a_bucket_that_is_not_what_was_written_is_not_built_on() {
    let mut store = Store::new();
    store.one(put("a", "1"));
    store.machine.save(&mut store.tables).unwrap();
    store.reopen();
    let number = bucket_of(&key_hash(b"a")).to_be_bytes();
    let block = child(store.machine.head().executed, &[vec![put("a", "2").encode()]]);
    let bucket = store.tables.read(Table::Buckets, &number, <[u8]>::to_vec).unwrap().unwrap();
    let mut flipped = bucket.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [&flipped[..], &bucket[1..], &[]] {
        let (mut machine, mut tables) = (store.machine.clone(), store.tables.clone());
        tables.put(Table::Buckets, &number, damaged).unwrap();
        let error = machine.execute(&mut tables, std::slice::from_ref(&block)).unwrap_err();
        assert_eq!(error, Error::Damaged("a bucket of digests"));
    }
    let (mut machine, mut tables) = (store.machine.clone(), store.tables.clone());
    tables.remove(Table::Keys, b"a").unwrap();
    let block = child(store.machine.head().executed, &[vec![delete("a").encode()]]);
    assert_eq!(machine.execute(&mut tables, &[block]).unwrap_err(), Error::Damaged("the list of keys"));
}

#[test]
fn entry_digests_cover_every_field_separately() {
    let digest = entry_digest(b"key", [1, 2, 3, 5], b"value");
    let others = [
        entry_digest(b"kez", [1, 2, 3, 5], b"value"),
        entry_digest(b"keyv", [1, 2, 3, 5], b"alue"),
        entry_digest(b"ke", [1, 2, 3, 5], b"yvalue"),
        entry_digest(b"key", [2, 2, 3, 5], b"value"),
        entry_digest(b"key", [1, 1, 3, 5], b"value"),
        entry_digest(b"key", [1, 3, 2, 5], b"value"),
        entry_digest(b"key", [1, 2, 4, 5], b"value"),
        entry_digest(b"key", [1, 2, 3, 6], b"value"),
        entry_digest(b"key", [1, 2, 3, 5], b"valuf"),
        entry_digest(b"key", [1, 2, 3, 5], b"value\0"),
    ];
    assert!(others.iter().all(|other| *other != digest));
}

/// Few keys, so that operations meet.
fn a_key() -> impl Strategy<Value = String> {
    "[ab]{1,3}"
}

fn an_operation() -> impl Strategy<Value = Operation> {
    let expect = prop_oneof![
        4 => Just(Expect::Anything),
        1 => Just(Expect::Absent),
        1 => (1..20_u64).prop_map(Expect::Revision)
    ];
    prop_oneof![
        6 => (a_key(), "[a-z]{0,4}", expect).prop_map(|(key, value, expect)| put_if(&key, &value, expect)),
        3 => a_key().prop_map(|key| delete(&key)),
        1 => "[ab]{0,2}".prop_map(|prefix| delete_prefix(&prefix)),
    ]
}

/// What the state machine must do, in the plainest way.
#[derive(Clone, Default)]
struct Model {
    revision: u64,
    entries: BTreeMap<Bytes, Entry>,
}

impl Model {
    fn apply(&mut self, operation: &Operation) {
        let next = self.revision + 1;
        match operation.clone() {
            Operation::SetProtocol { .. }
            | Operation::Compact { .. }
            | Operation::SetQuota { .. }
            | Operation::Tick
            | Operation::InSession(_) => {}
            Operation::GrantLease { .. } | Operation::KeepLease { .. } | Operation::RevokeLease { .. } => {
                unreachable!("leases and sessions have a model of their own")
            }
            Operation::Transaction(transaction) => {
                self.transact(&transaction);
            }
            Operation::Put { key, value, expect, lease } => {
                let old = self.entries.get(&key);
                let holds = match expect {
                    Expect::Anything => true,
                    Expect::Absent => old.is_none(),
                    Expect::Revision(revision) => old.is_some_and(|old| old.mod_revision == revision),
                };
                if holds {
                    let (create_revision, version) =
                        old.map_or((next, 1), |old| (old.create_revision, old.version + 1));
                    let entry = Entry { value, create_revision, mod_revision: next, version, lease };
                    self.entries.insert(key, entry);
                    self.revision = next;
                }
            }
            Operation::Delete { key } => {
                if self.entries.remove(&key).is_some() {
                    self.revision = next;
                }
            }
            Operation::DeletePrefix { prefix } => {
                let before = self.entries.len();
                self.entries.retain(|key, _| !key.starts_with(&prefix));
                if self.entries.len() < before {
                    self.revision = next;
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// However operations are cut into blocks, saves and restarts: the same contents, and the digest that the contents
    /// alone give.
    #[test]
    fn execution_follows_the_model_and_the_digest_the_contents(
        blocks in prop::collection::vec((prop::collection::vec(an_operation(), 0..8), any::<bool>(), any::<bool>()), 0..12),
    ) {
        let mut store = Store::new();
        let mut model = Model { revision: 1, ..Model::default() };
        let all: Vec<_> = blocks.iter().flat_map(|(operations, ..)| operations.clone()).collect();
        for (operations, save, restart) in blocks {
            store.run(&operations);
            operations.iter().for_each(|operation| model.apply(operation));
            if save {
                store.machine.save(&mut store.tables).unwrap();
            }
            if restart {
                store.reopen();
            }
            prop_assert_eq!(store.state(), store.recomputed());
            prop_assert_eq!(store.machine.head().revision, model.revision);
        }
        let listing =
            Listing { entries: model.entries.clone().into_iter().collect(), more: false, count: None };
        prop_assert_eq!(store.range(Range::of(Span::Prefix(Bytes::new()))), listing);
        let mut again = Store::new();
        all.iter().for_each(|operation| drop(again.one(operation.clone())));
        prop_assert_eq!(again.range(Range::of(Span::Prefix(Bytes::new()))), store.range(Range::of(Span::Prefix(Bytes::new()))));
        prop_assert_eq!(again.machine.head().revision, model.revision);
    }

    /// The digest is one of contents: the order in which entries came about leaves no trace beside their numbers,
    /// and every difference in them shows.
    #[test]
    fn equal_contents_give_equal_digests_and_different_ones_different(
        entries in prop::collection::btree_map(a_key(), ("[a-z]{0,4}", 1..9_u64, 1..9_u64, 1..9_u64), 1..20),
        which in any::<prop::sample::Index>(),
        field in 0..6,
    ) {
        let write = |entries: Vec<(String, (String, u64, u64, u64))>| {
            let mut tables = MemoryTables::default();
            for (key, (value, create_revision, mod_revision, version)) in entries {
                let mut buffer = Vec::new();
                let value = value.as_bytes();
                entry::Stored { create_revision, mod_revision, version, lease: 0, value }.encode(&mut buffer);
                tables.put(Table::Keys, key.as_bytes(), &buffer).unwrap();
            }
            let head = Head { revision: 20, ..Store::new().machine.head() };
            recompute(&tables, &head).unwrap()
        };
        let forward: Vec<_> = entries.into_iter().collect();
        let backward: Vec<_> = forward.iter().rev().cloned().collect();
        let digest = write(forward.clone());
        prop_assert_eq!(write(backward), digest);
        let mut changed = forward;
        let at = which.index(changed.len());
        match field {
            0 => changed[at].0.push('c'),
            1 => changed[at].1.0.push('x'),
            2 => changed[at].1.1 += 1,
            3 => changed[at].1.2 += 1,
            4 => changed[at].1.3 += 1,
            _ => { changed.remove(at); }
        }
        prop_assert_ne!(write(changed), digest);
    }

    /// Random bytes are refused or executed, never a panic, and leave a digest that holds.
    #[test]
    fn any_request_can_be_executed(requests in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..24), 0..8)) {
        let mut store = Store::new();
        store.requests(requests.into_iter().map(Bytes::from).collect());
        prop_assert_eq!(store.state(), store.recomputed());
    }
}

#[test]
fn the_revision_is_part_of_the_digest() {
    let tables = MemoryTables::default();
    let head = Store::new().machine.head();
    let others = [Head { revision: 2, ..head }, Head { compacted: 1, ..head }];
    for other in others {
        assert_ne!(recompute(&tables, &head).unwrap(), recompute(&tables, &other).unwrap());
    }
}

#[test]
fn a_protocol_is_set_kept_and_changes_no_key() {
    let mut store = Store::new();
    assert_eq!(store.machine.protocol(), None);
    let before = store.machine.head();
    let set = |protocol| Operation::SetProtocol { protocol };
    let outcomes = store.run(&[set(Protocol::Ccro), set(Protocol::Raft)]);
    let set_now = Outcome::ProtocolSet { revision: before.revision, protocol: Protocol::Ccro };
    assert_eq!(outcomes, [set_now, Outcome::Refused(Refusal::Protocol)]);
    let after = store.machine.head();
    assert_eq!((after.state, after.revision), (before.state, before.revision));
    store.reopen();
    assert_eq!(store.machine.protocol(), Some(Protocol::Ccro), "it stands in the transaction of its block");
}

#[test]
fn a_store_that_is_full_takes_no_more_until_there_is_room_again() {
    let mut store = Store::new();
    let set = |bytes| Operation::SetQuota { bytes };
    assert_eq!(store.one(set(MIN_QUOTA - 1)), Outcome::Refused(Refusal::Quota { bytes: MIN_QUOTA - 1 }));
    assert_eq!(store.one(set(MIN_QUOTA)), Outcome::QuotaSet { revision: 1, used: 0, quota: MIN_QUOTA });
    let value = "x".repeat(10_000);
    let mut stored = 0;
    let refusal = loop {
        match store.one(put(&format!("k{stored}"), &value)) {
            Outcome::Put { .. } => stored += 1,
            Outcome::Refused(refusal) => break refusal,
            other => panic!("{other:?}"),
        }
    };
    let used = store.machine.head().used;
    assert_eq!(refusal, Refusal::NoSpace { used, quota: MIN_QUOTA });
    assert!(stored > 40 && used <= MIN_QUOTA && used > MIN_QUOTA - 30_000, "{stored} of {used} bytes");
    let puts = |key: &str, value: &str| {
        let step = Step::Put { key: bytes(key), value: bytes(value), lease: 0 };
        Operation::Transaction(Transaction {
            parts: vec![Part { compare: vec![], then: vec![step], otherwise: vec![] }],
        })
    };
    assert_eq!(store.one(puts("k0", &value)), Outcome::Refused(Refusal::NoSpace { used, quota: MIN_QUOTA }));
    // Deleting works, and makes room once it can't be read any more.
    assert_eq!(store.one(delete_prefix("k1")), Outcome::Deleted { revision: 2 + stored, keys: 11 });
    assert!(store.machine.head().used < used);
    assert_eq!(
        store.one(Operation::Compact { until: CompactUntil::Age(0) }),
        Outcome::Compacted { revision: 2 + stored, compacted: 2 + stored }
    );
    assert!(store.machine.head().used < used / 2);
    assert!(matches!(store.one(puts("k0", &value)), Outcome::Transaction { .. }));
    assert!(matches!(store.one(put("new", &value)), Outcome::Put { .. }));
    assert_eq!(store.state(), store.recomputed());
    store.reopen();
    assert_eq!(store.state(), store.recomputed());
    // What nobody reads as of any revision counts for nothing.
    store.run(&[delete_prefix(""), Operation::Compact { until: CompactUntil::Age(0) }]);
    assert_eq!(store.machine.head().used, 0);
}
