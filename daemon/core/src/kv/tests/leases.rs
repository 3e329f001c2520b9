//! Leases: who ends when, with which keys, and by which clock.

use std::collections::BTreeSet;

use super::*;

/// A store whose blocks have times and terms.
struct Timed {
    store: Store,
    time_ms: u64,
    epoch: u64,
    term: u64,
}

impl Timed {
    fn new() -> Self {
        Self { store: Store::new(), time_ms: 1_000_000, epoch: 0, term: 1 }
    }

    /// Lets time pass, and executes a block.
    fn after(&mut self, ms: u64, operations: &[Operation]) -> Vec<Outcome> {
        self.time_ms += ms;
        let requests = operations.iter().map(Operation::encode).collect();
        let parent = self.store.machine.head().executed;
        let block = block_at(parent, &[(1, requests)], (Term(self.term), self.time_ms));
        let header = Header { epoch: Epoch(self.epoch), ..block.header().clone() };
        let block = Arc::new(Block::new(header, block.batches().to_vec()));
        self.store.machine.execute(&mut self.store.tables, &[block]).unwrap().remove(0).outcomes.remove(0)
    }

    fn one(&mut self, operation: Operation) -> Outcome {
        self.after(0, &[operation]).remove(0)
    }

    fn grant(&mut self, id: u64, ttl_ms: u64) {
        let granted =
            Outcome::LeaseGranted { revision: self.store.machine.head().revision, lease: id, ttl_ms };
        assert_eq!(self.one(grant(id, ttl_ms)), granted);
    }

    /// Ids, what they have left, and the keys of those that are asked for one by one.
    fn leases(&self) -> Vec<(u64, u64, Vec<Bytes>)> {
        let ask = |lease| match self.store.query(&Query::Leases { lease }) {
            Answer::Leases(leases) => leases,
            other => panic!("{other:?}"),
        };
        let all = ask(None);
        let with_keys = |it: &LeaseStatus| {
            let [one] = &ask(Some(it.id))[..] else { panic!() };
            assert_eq!((one.ttl_ms, one.remaining_ms), (it.ttl_ms, it.remaining_ms));
            (it.id, it.remaining_ms, one.keys.clone())
        };
        all.iter().map(with_keys).collect()
    }

    fn check(&self) {
        assert_eq!(self.store.state(), self.store.recomputed());
    }
}

fn grant(lease: u64, ttl_ms: u64) -> Operation {
    Operation::GrantLease { lease, ttl_ms }
}

fn keep(lease: u64) -> Operation {
    Operation::KeepLease { lease }
}

fn revoke(lease: u64) -> Operation {
    Operation::RevokeLease { lease }
}

fn put_on(key: &str, value: &str, lease: u64) -> Operation {
    Operation::Put { key: bytes(key), value: bytes(value), expect: Expect::Anything, lease }
}

fn no_such(lease: u64) -> Outcome {
    Outcome::Refused(Refusal::NoSuchLease { lease })
}

#[test]
fn the_keys_of_a_lease_go_with_it_in_one_revision() {
    let mut timed = Timed::new();
    timed.grant(7, 5_000);
    timed.after(0, &[put_on("a", "1", 7), put_on("b", "2", 7), put("c", "3")]);
    assert_eq!(timed.store.get("a").unwrap().lease, 7);
    assert_eq!(timed.leases(), [(7, 5_000, vec![bytes("a"), bytes("b")])]);
    timed.after(4_999, &[]);
    assert_eq!((timed.store.count(""), timed.leases()[0].1), (3, 1));
    timed.after(1, &[]);
    assert_eq!((timed.store.count(""), timed.store.machine.head().revision), (1, 5));
    assert!(timed.leases().is_empty());
    assert_eq!(timed.store.get("a"), None);
    timed.check();
    let watched = Watched {
        keys: Span::From(bytes("a")),
        from: Position::start_of(5),
        with_previous: true,
        kinds: Kinds::All,
    };
    let Answer::Events(events) = timed.store.query(&Query::Events(watched)) else { panic!() };
    assert_eq!(
        events.events.iter().map(|it| (&it.key[..], it.revision)).collect::<Vec<_>>(),
        [(&b"a"[..], 5), (b"b", 5)]
    );
}

#[test]
fn a_key_hangs_on_the_lease_that_its_last_put_names() {
    let mut timed = Timed::new();
    timed.grant(1, 5_000);
    timed.grant(2, 9_000);
    timed.after(
        0,
        &[put_on("moved", "", 1), put_on("freed", "", 1), put_on("gone", "", 1), put_on("stays", "", 1)],
    );
    timed.after(0, &[put_on("moved", "", 2), put("freed", ""), delete("gone"), put_on("stays", "again", 1)]);
    assert_eq!(timed.leases(), [(1, 5_000, vec![bytes("stays")]), (2, 9_000, vec![bytes("moved")])]);
    // Deleted and put again it hangs on nothing.
    timed.one(put("gone", ""));
    timed.after(5_000, &[]);
    assert_eq!(timed.store.list("", None, 0, true).0, ["freed", "gone", "moved"]);
    assert_eq!(timed.one(revoke(2)), Outcome::LeaseRevoked { revision: 12, keys: 1 });
    assert_eq!(timed.store.list("", None, 0, true).0, ["freed", "gone"]);
    timed.check();
}

#[test]
fn what_is_kept_lives_on_and_what_has_ended_is_gone_for_good() {
    let mut timed = Timed::new();
    timed.grant(1, 3_000);
    timed.one(put_on("a", "1", 1));
    for _ in 0..5 {
        assert_eq!(timed.after(2_999, &[keep(1)]), [Outcome::LeaseKept { revision: 2, ttl_ms: 3_000 }]);
    }
    assert_eq!(timed.store.count(""), 1);
    // One that comes with the block in which its time is up comes too late.
    let late = timed.after(3_000, &[keep(1), put_on("a", "2", 1), grant(1, 1_000)]);
    let granted = Outcome::LeaseGranted { revision: 3, lease: 1, ttl_ms: 1_000 };
    assert_eq!(late, [no_such(1), no_such(1), granted]);
    assert_eq!(timed.store.count(""), 0);
    assert_eq!(timed.one(revoke(1)), Outcome::LeaseRevoked { revision: 3, keys: 0 });
    assert_eq!(timed.one(revoke(1)), no_such(1));
    timed.check();
}

#[test]
fn no_time_passes_from_one_term_to_the_next() {
    let mut timed = Timed::new();
    timed.grant(1, 5_000);
    timed.one(put_on("a", "1", 1));
    timed.after(4_000, &[]);
    timed.term = 2;
    timed.after(60_000, &[]);
    assert_eq!((timed.store.count(""), timed.leases()[0].1), (1, 1_000), "there was no leader for a minute");
    timed.after(999, &[]);
    assert_eq!(timed.store.count(""), 1);
    // A restart forgets nothing of it.
    timed.store.reopen();
    assert_eq!(timed.store.machine.next_lease_end_ms(), Some(timed.time_ms + 1));
    timed.after(1, &[]);
    assert_eq!(timed.store.count(""), 0);
    timed.check();
}

/// Every epoch begins with term 0, so its first term may have the number of the one before.
#[test]
fn no_time_passes_from_one_epoch_to_the_next() {
    let mut timed = Timed::new();
    timed.grant(1, 5_000);
    timed.one(put_on("a", "1", 1));
    timed.after(4_000, &[]);
    timed.epoch = 1;
    timed.after(60_000, &[]);
    assert_eq!((timed.store.count(""), timed.leases()[0].1), (1, 1_000));
    timed.after(1_000, &[]);
    assert_eq!(timed.store.count(""), 0);
}

#[test]
fn leases_that_are_no_more_can_not_be_used_while_their_keys_are_still_deleted() {
    let mut timed = Timed::new();
    for lease in 1..=4 {
        timed.grant(lease, 1_000);
        let puts: Vec<_> = (0..5).map(|n| put_on(&format!("{lease}-{n}"), "", lease)).collect();
        timed.after(0, &puts);
    }
    assert_eq!(MAX_ENDED, 8);
    let outcomes = timed.after(1_000, &[put_on("a", "", 4), keep(4), grant(4, 1_000)]);
    // Nor is the id free before its keys are gone: they would hang on the new lease.
    assert_eq!(outcomes, [no_such(4), no_such(4), Outcome::Refused(Refusal::LeaseExists { lease: 4 })]);
    assert_eq!(timed.store.count(""), 10, "two of them have ended");
    timed.check();
    timed.after(0, &[]);
    assert_eq!(timed.store.count(""), 0);
}

#[test]
fn ids_and_times_to_live_are_bounded() {
    let mut timed = Timed::new();
    let refused = |refusal| Outcome::Refused(refusal);
    assert_eq!(timed.one(grant(1, 999)), refused(Refusal::TimeToLive { ms: 999 }));
    assert_eq!(timed.one(grant(1, u64::MAX)), refused(Refusal::TimeToLive { ms: u64::MAX }));
    timed.grant(1, 1_000);
    assert_eq!(timed.one(grant(1, 2_000)), refused(Refusal::LeaseExists { lease: 1 }));
    assert_eq!(timed.one(put_on("a", "", 2)), no_such(2));
    let chosen: BTreeSet<_> = timed
        .after(0, &[grant(0, 1_000), grant(0, 1_000)])
        .into_iter()
        .map(|outcome| match outcome {
            Outcome::LeaseGranted { lease, .. } => lease,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(chosen.len(), 2);
    assert!(chosen.iter().all(|id| *id > 1 && *id < 1 << 63));
    for lease in 4..=crate::limits::MAX_LEASES as u64 {
        timed.grant(lease, 1_000);
    }
    assert_eq!(timed.one(grant(0, 1_000)), refused(Refusal::TooManyLeases));
    timed.check();
    timed.after(1_000, &[]);
    assert_eq!(timed.leases().len(), crate::limits::MAX_LEASES - 8, "they end block by block");
    for _ in 0..=crate::limits::MAX_LEASES as u64 / MAX_ENDED {
        timed.after(0, &[]);
    }
    assert!(timed.leases().is_empty());
    timed.check();
    assert_eq!(timed.one(grant(1 << 63, 1_000)), refused(Refusal::LeaseId { lease: 1 << 63 }));
}

#[test]
fn so_many_keys_hang_on_a_lease_as_can_be_deleted_at_once() {
    let mut timed = Timed::new();
    timed.grant(1, 1_000);
    for chunk in 0..MAX_DELETED / 1024 {
        let puts: Vec<_> = (0..1024).map(|n| put_on(&format!("{chunk}-{n}"), "", 1)).collect();
        timed.after(0, &puts);
    }
    let full = Outcome::Refused(Refusal::LeaseFull { lease: 1 });
    assert_eq!(timed.after(0, &[put_on("more", "", 1), delete("0-0"), put_on("more", "", 1)])[0], full);
    timed.store.reopen();
    assert_eq!(timed.one(put_on("still more", "", 1)), full);
    let revision = timed.store.machine.head().revision;
    assert_eq!(timed.after(999, &[keep(1)]), [Outcome::LeaseKept { revision, ttl_ms: 1_000 }]);
    timed.after(1_000, &[]);
    assert_eq!((timed.store.count(""), timed.store.machine.head().revision), (0, revision + 1));
    timed.check();
}

#[test]
fn a_transaction_hangs_keys_on_leases_and_compares_them() {
    let mut timed = Timed::new();
    timed.grant(5, 1_000);
    let on = |lease| Step::Put { key: bytes("a"), value: bytes("1"), lease };
    let transaction = |compare: Vec<Compare>, steps: Vec<Step>| {
        Operation::Transaction(Transaction { parts: vec![Part { compare, then: steps, otherwise: vec![] }] })
    };
    let hangs_on = |lease| Compare {
        keys: Span::Key(bytes("a")),
        property: Property::Lease(lease),
        relation: Relation::Equal,
    };
    let succeeded = |outcome: Outcome| match outcome {
        Outcome::Transaction { taken, .. } => taken.succeeded,
        other => panic!("{other:?}"),
    };
    assert!(succeeded(timed.one(transaction(vec![hangs_on(0)], vec![on(5)]))));
    assert!(succeeded(timed.one(transaction(vec![hangs_on(5)], vec![]))));
    assert!(!succeeded(timed.one(transaction(vec![hangs_on(6)], vec![]))));
    let before = timed.store.machine.head().revision;
    let both = transaction(vec![], vec![Step::Put { key: bytes("b"), value: bytes(""), lease: 0 }, on(6)]);
    assert_eq!(timed.one(both), no_such(6));
    assert_eq!(timed.store.machine.head().revision, before, "nothing of it is done");
    timed.after(1_000, &[]);
    assert_eq!(timed.store.get("a"), None);
}

/// Leases in the plainest way.
#[derive(Default)]
struct Plain {
    clock_ms: u64,
    /// By id: time to live and deadline.
    leases: BTreeMap<u64, (u64, u64)>,
    /// By key: value and lease.
    keys: BTreeMap<Bytes, (Bytes, u64)>,
}

impl Plain {
    /// Lets time pass. Says how many leases and keys end.
    fn pass(&mut self, ms: u64) -> u64 {
        if self.leases.is_empty() {
            self.clock_ms = 0;
            return 0;
        }
        let before = self.leases.len() + self.keys.len();
        self.clock_ms += ms;
        let now = self.clock_ms;
        self.leases.retain(|_, (_, deadline)| *deadline > now);
        self.keys.retain(|_, (_, lease)| *lease == 0 || self.leases.contains_key(lease));
        (before - self.leases.len() - self.keys.len()) as u64
    }

    fn apply(&mut self, operation: &Operation) {
        match operation.clone() {
            Operation::GrantLease { lease, ttl_ms } => {
                self.leases.entry(lease).or_insert((ttl_ms, self.clock_ms + ttl_ms));
            }
            Operation::KeepLease { lease } => {
                if let Some((ttl, deadline)) = self.leases.get_mut(&lease) {
                    *deadline = self.clock_ms + *ttl;
                }
            }
            Operation::RevokeLease { lease } => {
                self.leases.remove(&lease);
                self.keys.retain(|_, (_, on)| *on != lease);
            }
            Operation::Put { key, value, lease, .. } if lease == 0 || self.leases.contains_key(&lease) => {
                self.keys.insert(key, (value, lease));
            }
            Operation::Delete { key } => drop(self.keys.remove(&key)),
            _ => {}
        }
    }
}

fn a_change() -> impl Strategy<Value = Operation> {
    let lease = || 1..4_u64;
    prop_oneof![
        2 => (lease(), 1_000..5_000_u64).prop_map(|(lease, ttl_ms)| grant(lease, ttl_ms)),
        2 => lease().prop_map(keep),
        1 => lease().prop_map(revoke),
        5 => (a_key(), "[a-z]{0,2}", 0..4_u64).prop_map(|(key, value, lease)| put_on(&key, &value, lease)),
        1 => a_key().prop_map(|key| delete(&key)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn leases_end_as_in_the_plain_model(
        blocks in prop::collection::vec(
            (prop::collection::vec(a_change(), 0..6), 0..3_000_u64, prop::bool::weighted(0.2), prop::bool::weighted(0.2)),
            1..16,
        ),
    ) {
        let (mut timed, mut plain) = (Timed::new(), Plain::default());
        for (operations, ms, is_new_term, restart) in blocks {
            timed.term += u64::from(is_new_term);
            let ended = plain.pass(if is_new_term { 0 } else { ms });
            if ended <= MAX_ENDED {
                timed.after(ms, &operations);
            } else {
                // More than one block ends: until then no id is free, of which the plain model knows nothing.
                timed.after(ms, &[]);
                (0..4).for_each(|_| drop(timed.after(0, &[])));
                timed.after(0, &operations);
            }
            operations.iter().for_each(|operation| plain.apply(operation));
            if restart {
                timed.store.reopen();
            }
            prop_assert_eq!(timed.store.state(), timed.store.recomputed());
            // A block ends a bounded number of keys: the next ones, in the same moment, end the rest.
            for _ in 0..4 {
                timed.after(0, &[]);
            }
            let left: Vec<_> = plain.leases.iter().map(|(id, (_, deadline))| {
                let keys = plain.keys.iter().filter(|(_, (_, on))| on == id).map(|(key, _)| key.clone()).collect();
                (*id, deadline - plain.clock_ms, keys)
            }).collect();
            prop_assert_eq!(timed.leases(), left);
            let entries: Vec<_> = timed.store.range(Range::of(Span::Prefix(Bytes::new()))).entries.into_iter()
                .map(|(key, entry)| (key, (entry.value, entry.lease))).collect();
            prop_assert_eq!(entries, plain.keys.clone().into_iter().collect::<Vec<_>>());
        }
    }
}
