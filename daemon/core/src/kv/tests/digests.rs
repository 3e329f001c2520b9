//! What the digest of the state covers: two states that differ in anything that decides what comes next have different ones.
//!
//! [`recompute`] makes the same digest from the tables. So what both leave out, no comparison of the two shows.

use super::*;
use crate::kv::{
    digest::state_digest,
    history::{Mark, Standing, chained, tombstone_digest},
};

fn all_differ(digests: &[Digest]) {
    for (at, digest) in digests.iter().enumerate() {
        assert_eq!(digests.iter().position(|other| other == digest), Some(at), "{at}");
    }
}

#[test]
fn the_digest_of_a_state_covers_every_number_and_both_ends_of_the_chain() {
    let mark = |byte, bytes| Mark { digest: Digest([byte; 32]), bytes };
    let standing = Standing { end: mark(5, 6), base: mark(7, 8), live: 9, trimmed: 10, tombstones: 11 };
    let root = Digest([12; 32]);
    let with = |change: fn(&mut Standing)| {
        let mut standing = standing;
        change(&mut standing);
        state_digest([1, 2, 3, 4], &standing, root)
    };
    all_differ(&[
        state_digest([1, 2, 3, 4], &standing, root),
        state_digest([0, 2, 3, 4], &standing, root),
        state_digest([1, 0, 3, 4], &standing, root),
        state_digest([1, 2, 0, 4], &standing, root),
        state_digest([1, 2, 3, 0], &standing, root),
        with(|it| it.end.digest = Digest::ZERO),
        with(|it| it.end.bytes = 0),
        with(|it| it.base.digest = Digest::ZERO),
        with(|it| it.base.bytes = 0),
        with(|it| it.live = 0),
        state_digest([1, 2, 3, 4], &standing, Digest::ZERO),
    ]);
    // How far a member has come with trimming is its own business.
    assert_eq!(with(|it| (it.trimmed, it.tombstones) = (0, 0)), state_digest([1, 2, 3, 4], &standing, root));
}

#[test]
fn the_chain_of_the_history_covers_what_was_before_when_it_was_and_what_has_changed() {
    let before = Digest([1; 32]);
    all_differ(&[
        chained(before, 2, b"three"),
        chained(Digest::ZERO, 2, b"three"),
        chained(before, 0, b"three"),
        chained(before, 2, b"thre"),
        tombstone_digest(b"key", 2),
        tombstone_digest(b"key", 3),
        tombstone_digest(b"ke", 2),
        entry_digest(b"key", [2, 2, 2, 2], b""),
    ]);
}

/// The state after these blocks, each at a time in milliseconds.
fn state_after(blocks: &[(u64, Operation)]) -> Digest {
    let mut store = Store::new();
    for (time_ms, operation) in blocks {
        let parent = store.machine.head().executed;
        let block = block_at(parent, &[(1, vec![operation.encode()])], (Term(1), *time_ms));
        store.machine.execute(&mut store.tables, &[block]).unwrap();
    }
    assert_eq!(store.state(), store.recomputed());
    store.state()
}

#[test]
fn when_a_lease_ends_and_how_long_it_lives_are_parts_of_the_state() {
    let grant = |lease, ttl_ms| Operation::GrantLease { lease, ttl_ms };
    let keep = Operation::KeepLease { lease: 1 };
    all_differ(&[
        // Until 5,000 by the lease clock, which is at 1,000 in the end.
        state_after(&[(1_000, grant(1, 5_000)), (2_000, Operation::Tick)]),
        // Until 6,000.
        state_after(&[(1_000, grant(1, 5_000)), (2_000, keep.clone())]),
        // Until 5,000, but shorter.
        state_after(&[(1_000, grant(1, 4_000)), (2_000, keep)]),
        // As the first, but named otherwise.
        state_after(&[(1_000, grant(2, 5_000)), (2_000, Operation::Tick)]),
        // As the first, a moment later.
        state_after(&[(1_000, grant(1, 5_000)), (2_001, Operation::Tick)]),
        state_after(&[(1_000, Operation::Tick), (2_000, Operation::Tick)]),
    ]);
}

#[test]
fn what_is_known_of_a_session_is_part_of_the_state() {
    let sent = |session: u128, opened_ms, sequence, answered, key: &str| {
        Operation::InSession(SessionRequest {
            session: SessionId(session),
            opened_ms,
            sequence,
            answered,
            operation: delete(key).encode(),
        })
    };
    // None of them changes a key.
    let first = sent(1, 500, 0, 0, "none");
    all_differ(&[
        state_after(&[(1_000, first.clone()), (2_000, Operation::Tick)]),
        // It was used later.
        state_after(&[(1_000, first.clone()), (2_000, first.clone())]),
        // Something else was asked.
        state_after(&[(1_000, sent(1, 500, 0, 0, "other")), (2_000, Operation::Tick)]),
        // More was asked.
        state_after(&[(1_000, first.clone()), (2_000, sent(1, 500, 1, 0, "none"))]),
        // And the first answer is known to have come.
        state_after(&[(1_000, first), (2_000, sent(1, 500, 1, 1, "none"))]),
        state_after(&[(1_000, sent(2, 500, 0, 0, "none")), (2_000, Operation::Tick)]),
        state_after(&[(1_000, sent(1, 501, 0, 0, "none")), (2_000, Operation::Tick)]),
        state_after(&[(1_000, Operation::Tick), (2_000, Operation::Tick)]),
    ]);
}
