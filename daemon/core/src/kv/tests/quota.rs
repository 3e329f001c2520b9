//! The quota, to the byte; and what a full store still does.

use super::*;

fn set(bytes: u64) -> Operation {
    Operation::SetQuota { bytes }
}

fn in_transaction(step: Step) -> Operation {
    Operation::Transaction(Transaction {
        parts: vec![Part { compare: vec![], then: vec![step], otherwise: vec![] }],
    })
}

fn is_full(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(Refusal::NoSpace { .. }))
}

#[test]
fn what_fits_exactly_is_taken_and_a_byte_more_is_not() {
    let value = |length: u64| "x".repeat(usize::try_from(length).unwrap());
    let step = |key: &str, value: &str| Step::Put { key: bytes(key), value: bytes(value), lease: 0 };
    // What is put counts twice, with its key.
    let fits = MIN_QUOTA / 2 - 1;
    for in_one in [false, true] {
        let puts = |value: &str| if in_one { in_transaction(step("k", value)) } else { put("k", value) };
        let mut store = Store::new();
        store.one(set(MIN_QUOTA));
        assert!(is_full(&store.one(puts(&value(fits + 1)))));
        assert_eq!(store.machine.head().used, 0);
        assert!(!is_full(&store.one(puts(&value(fits)))));
        // The same where there is something already.
        let mut store = Store::new();
        store.one(put("a", "something"));
        let used = store.machine.head().used;
        store.one(set(MIN_QUOTA + used));
        assert!(is_full(&store.one(puts(&value(fits + 1)))));
        assert!(!is_full(&store.one(puts(&value(fits)))));
    }
}

/// A quota may be lowered below what there is: that must not keep anybody from making room.
#[test]
fn a_store_that_is_beyond_its_quota_takes_everything_that_makes_room() {
    let mut store = Store::new();
    let lease = |lease| Operation::GrantLease { lease, ttl_ms: 20_000 };
    store.run(&[lease(1), lease(2)]);
    let on = |key: &str, lease| Operation::Put {
        key: bytes(key),
        value: bytes("1"),
        expect: Expect::Anything,
        lease,
    };
    store.run(&[on("revoked", 1), on("expired", 2), put("a", "1"), put("b", "1"), put("prefix/c", "1")]);
    store.one(put("large", &"x".repeat(MAX_VALUE)));
    let used = store.machine.head().used;
    assert_eq!(store.one(set(MIN_QUOTA)), Outcome::QuotaSet { revision: 7, used, quota: MIN_QUOTA });
    assert!(used > MIN_QUOTA && is_full(&store.one(put("a", ""))));
    assert!(is_full(&store.one(in_transaction(Step::Put { key: bytes("a"), value: bytes(""), lease: 0 }))));

    let keep = |lease| Operation::KeepLease { lease };
    let deletes = |keys| in_transaction(Step::Delete { keys });
    let outcomes = store.run(&[
        delete("a"),
        deletes(Span::Key(bytes("b"))),
        delete_prefix("prefix/"),
        keep(1),
        keep(2),
        lease(3),
        Operation::RevokeLease { lease: 1 },
        Operation::Compact { until: CompactUntil::Revision(7) },
    ]);
    assert!(matches!(outcomes[0], Outcome::Deleted { keys: 1, .. }), "{:?}", outcomes[0]);
    assert!(matches!(outcomes[1], Outcome::Transaction { revision: 9, .. }), "{:?}", outcomes[1]);
    assert!(matches!(outcomes[2], Outcome::Deleted { keys: 1, .. }), "{:?}", outcomes[2]);
    assert!(
        matches!(outcomes[3], Outcome::LeaseKept { .. }) && matches!(outcomes[4], Outcome::LeaseKept { .. })
    );
    assert!(matches!(outcomes[5], Outcome::LeaseGranted { lease: 3, .. }), "{:?}", outcomes[5]);
    assert!(matches!(outcomes[6], Outcome::LeaseRevoked { keys: 1, .. }), "{:?}", outcomes[6]);
    assert_eq!(outcomes[7], Outcome::Compacted { revision: 11, compacted: 7 });
    for _ in 0..20 {
        store.one(Operation::Tick);
    }
    assert_eq!((store.count(""), store.get("expired")), (1, None), "time passes as ever");
    store.run(&[delete("large"), Operation::Compact { until: CompactUntil::Age(0) }]);
    assert_eq!(store.machine.head().used, 0);
    assert!(matches!(store.one(put("a", "")), Outcome::Put { .. }), "it takes again by itself");
    assert_eq!(store.state(), store.recomputed());
}
