//! What is bounded in answers, and where a prefix ends.

use super::*;

#[test]
fn many_keys_are_sorted_where_few_are_asked_for_and_no_more_are_held() {
    const KEYS: usize = MAX_SORTED + 5_000;
    let mut store = Store::new();
    // The lowest values come early, in the middle and late.
    let value = |n: usize| n * 7_919 % 70_657;
    for chunk in (0..KEYS).collect::<Vec<_>>().chunks(10_000) {
        store.run(
            &chunk.iter().map(|n| put(&format!("{n:05}"), &format!("{:05}", value(*n)))).collect::<Vec<_>>(),
        );
    }
    let mut expected: Vec<_> = (0..KEYS).map(|n| (value(n), format!("{n:05}"))).collect();
    expected.sort_unstable();
    let by_value = |limit| {
        let order = Order { by: SortBy::Value, descending: false };
        Range { limit, order, count: true, ..Range::of(Span::Prefix(Bytes::new())) }
    };
    for limit in [1, 10, 1_000] {
        let listing = store.range(by_value(limit));
        let keys: Vec<_> = listing.entries.iter().map(|(key, _)| key.clone()).collect();
        let lowest: Vec<_> = expected.iter().take(keys.len()).map(|(_, key)| bytes(key)).collect();
        assert_eq!((keys.len() as u64, keys), (limit, lowest));
        assert_eq!((listing.more, listing.count), (true, Some(KEYS as u64)));
    }
    for limit in [0, MAX_SORTED as u64] {
        assert_eq!(store.query(&Query::Range(by_value(limit))), Answer::Refused(Refusal::SortsTooMuch));
    }
    // In the order of keys nothing is held.
    assert_eq!(store.range(Range::of(Span::Prefix(Bytes::new()))).entries.len(), KEYS);
}

#[test]
fn the_pages_of_a_prefix_that_ends_with_the_highest_byte_are_all_of_it_and_nothing_else() {
    let mut store = Store::new();
    let keys: [&[u8]; 9] = [
        b"a",
        b"a\xfe",
        b"a\xff",
        b"a\xff\0",
        b"a\xff\xff",
        b"a\xff\xff\xff",
        b"b",
        b"\xff\xff",
        b"\xff\xff\x01",
    ];
    store.run(&keys.map(|key| Operation::put(Bytes::from(key), Bytes::new())));
    for prefix in [&b"a\xff"[..], b"a\xff\xff", b"\xff", b"\xff\xff", b"", b"a", b"b"] {
        let expected: Vec<_> = {
            let mut of_it: Vec<_> = keys.into_iter().filter(|key| key.starts_with(prefix)).collect();
            of_it.sort_unstable();
            of_it.into_iter().map(Bytes::from).collect()
        };
        let mut found: Vec<Bytes> = Vec::new();
        loop {
            let span = match found.last() {
                Some(after) => Span::prefix_after(prefix, after),
                None => Span::Prefix(Bytes::copy_from_slice(prefix)),
            };
            let listing = store.range(Range { limit: 2, ..Range::of(span) });
            found.extend(listing.entries.into_iter().map(|(key, _)| key));
            if !listing.more {
                break;
            }
        }
        assert_eq!(found, expected, "{prefix:?}");
    }
}

#[test]
fn the_changes_of_a_key_are_bounded_in_bytes() {
    let mut store = Store::new();
    let value = "x".repeat(MAX_VALUE);
    for _ in 0..20 {
        store.one(put("a", &value));
    }
    let (mut revisions, mut pages, mut before) = (Vec::new(), 0, 0);
    loop {
        let history = Query::History { key: bytes("a"), before, limit: 0 };
        let Answer::Changes(found) = store.query(&history) else { panic!() };
        assert!(found.changes.len() <= MAX_ANSWER / MAX_VALUE + 1);
        revisions.extend(found.changes.iter().map(|(revision, _)| *revision));
        pages += 1;
        if !found.more {
            break;
        }
        before = *revisions.last().unwrap();
    }
    assert_eq!((pages, revisions), (3, (2..=21).rev().collect()));
}
