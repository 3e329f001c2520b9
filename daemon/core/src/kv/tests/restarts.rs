//! Members are started when somebody starts them, save and trim when they have time: it must be seen in nothing that they do.

use super::*;

/// Two members that execute the same.
struct Twins {
    /// Started anew before every block.
    restarted: Store,
    steady: Store,
    time_ms: u64,
    term: u64,
}

impl Twins {
    fn new() -> Self {
        Self { restarted: Store::new(), steady: Store::new(), time_ms: 1_000_000, term: 1 }
    }

    /// Executes a block on both, and compares all that there is to be seen of it.
    fn run(&mut self, operations: &[Operation]) -> Vec<Outcome> {
        let requests = operations.iter().map(Operation::encode).collect();
        let parent = self.steady.machine.head().executed;
        let block = block_at(parent, &[(1, requests)], (Term(self.term), self.time_ms));
        self.restarted.reopen();
        let execute = |store: &mut Store| {
            store.machine.execute(&mut store.tables, std::slice::from_ref(&block)).unwrap().remove(0)
        };
        let (outcome, other) = (execute(&mut self.restarted), execute(&mut self.steady));
        assert_eq!(outcome, other);
        let ends = [&self.restarted, &self.steady].map(|store| store.machine.next_lease_end_ms());
        assert_eq!(ends[0], ends[1]);
        outcome.outcomes.into_iter().flatten().collect()
    }
}

fn sent(session: u128, opened_ms: u64, sequence: u64, operation: &Operation) -> Operation {
    Operation::InSession(SessionRequest {
        session: SessionId(session),
        opened_ms,
        sequence,
        answered: sequence.saturating_sub(2),
        operation: operation.encode(),
    })
}

fn anything() -> impl Strategy<Value = Operation> {
    let lease = || 1..4_u64;
    let change = prop_oneof![
        3 => an_operation(),
        3 => (a_key(), 0..4_u64).prop_map(|(key, lease)| Operation::Put {
            key: bytes(&key),
            value: Bytes::new(),
            expect: Expect::Anything,
            lease,
        }),
        2 => (0..4_u64, 1_000..5_000_u64).prop_map(|(lease, ttl_ms)| Operation::GrantLease { lease, ttl_ms }),
        1 => lease().prop_map(|lease| Operation::KeepLease { lease }),
        1 => lease().prop_map(|lease| Operation::RevokeLease { lease }),
        1 => transactions::any_transaction().prop_map(Operation::Transaction),
        1 => (0..20_u64).prop_map(|revision| Operation::Compact { until: CompactUntil::Revision(revision) }),
    ];
    let opened_ms = prop::sample::select(vec![900_000, 1_000_000, 4_700_000_u64]);
    let session = prop::option::weighted(0.3, (0..6_u128, opened_ms, 0..9_u64));
    (change, session).prop_map(|(change, session)| match session {
        Some((session, opened_ms, sequence)) => sent(session, opened_ms, sequence, &change),
        None => change,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn who_was_started_anew_and_who_was_not_do_the_same(
        blocks in prop::collection::vec(
            (
                prop::collection::vec(anything(), 0..6),
                prop_oneof![6 => 0..3_000_u64, 1 => Just(SESSION_MS + 1)],
                prop::bool::weighted(0.2),
                any::<bool>(),
            ),
            1..16,
        ),
    ) {
        let mut twins = Twins::new();
        for (operations, ms, is_new_term, saves) in blocks {
            twins.time_ms += ms;
            twins.term += u64::from(is_new_term);
            twins.run(&operations);
            if saves {
                twins.restarted.machine.save(&mut twins.restarted.tables).unwrap();
            }
        }
    }
}

/// When they take too much is found by sizes that are summed up as rows change; after a start, by the rows.
#[test]
fn sessions_that_take_too_much_end_at_the_same_moment_everywhere() {
    let mut twins = Twins::new();
    let mut ended = false;
    for sequence in 0..SESSION_WINDOW {
        for session in 0..MAX_SESSIONS as u128 {
            let request = SessionRequest {
                session: SessionId(session),
                opened_ms: 1_000_000,
                sequence,
                answered: 0,
                operation: put("a", "").encode(),
            };
            twins.time_ms += 1;
            let outcome = twins.run(&[Operation::InSession(request)]).remove(0);
            ended |= outcome == Outcome::Refused(Refusal::SessionEnded);
        }
    }
    assert!(ended, "there was room for all");
}

/// What hangs on a lease is counted as keys come and go; after a start, by the rows.
#[test]
fn what_a_lease_carries_is_known_to_everybody_to_the_byte() {
    let mut twins = Twins::new();
    twins.run(&[Operation::GrantLease { lease: 1, ttl_ms: 1_000_000 }]);
    let key = |n: usize| format!("{n:0width$}", width = MAX_KEY);
    let on = |key: &str, lease| Operation::Put {
        key: bytes(key),
        value: Bytes::new(),
        expect: Expect::Anything,
        lease,
    };
    let room = MAX_DELETED_BYTES / MAX_KEY;
    for chunk in (0..room).collect::<Vec<_>>().chunks(1024) {
        twins.run(&chunk.iter().map(|n| on(&key(*n), 1)).collect::<Vec<_>>());
    }
    let full = Outcome::Refused(Refusal::LeaseFull { lease: 1 });
    let is_put = |outcome: &Outcome| matches!(outcome, Outcome::Put { .. });
    assert_eq!(twins.run(&[on("more", 1)])[0], full);
    // However a key comes off it, what it took is free again, and no more than that.
    for frees in [delete(&key(0)), on(&key(1), 0), delete_prefix(&key(2))] {
        let outcomes = twins.run(&[frees, on("more", 1), on(&key(room), 1), on("full", 1), delete("more")]);
        assert!(is_put(&outcomes[1]) && is_put(&outcomes[2]), "{outcomes:?}");
        assert_eq!(outcomes[3], full);
        assert_eq!(twins.run(&[on("more", 1)])[0], full, "full to the byte");
        let outcomes = twins.run(&[delete(&key(room)), on("more", 1), delete("more")]);
        assert!(is_put(&outcomes[1]), "{outcomes:?}");
        twins.run(&[on(&key(0), 1), on(&key(1), 1), on(&key(2), 1)]);
    }
    assert_eq!(twins.run(&[Operation::RevokeLease { lease: 1 }]).len(), 1);
    assert_eq!(twins.steady.count(""), 0);
}

/// Keys of ranges are bounded by their bytes as well as by their number.
#[test]
fn no_more_bytes_of_keys_are_deleted_in_a_block_than_may_be() {
    let mut store = Store::new();
    let key = |n: usize| format!("{n:0width$}", width = MAX_KEY);
    let room = MAX_DELETED_BYTES / MAX_KEY;
    for chunk in (0..=room).collect::<Vec<_>>().chunks(1024) {
        store.run(&chunk.iter().map(|n| put(&key(*n), "")).collect::<Vec<_>>());
    }
    assert_eq!(store.one(delete_prefix("")), Outcome::Refused(Refusal::DeletesTooMuch));
    store.one(delete(&key(0)));
    let revision = store.machine.head().revision + 1;
    assert_eq!(store.one(delete_prefix("")), Outcome::Deleted { revision, keys: room as u64 });
}
