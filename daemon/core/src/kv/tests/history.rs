//! History: ranges as of revisions, changes in order, compaction.

use super::*;

/// Everything that the store was, in the plainest way.
#[derive(Clone, Default)]
struct Chronicle {
    model: Model,
    /// By revision: the entries then.
    states: BTreeMap<u64, BTreeMap<Bytes, Entry>>,
    /// In order: the changes.
    events: Vec<Event>,
    /// By revision: when.
    times: BTreeMap<u64, u64>,
    compacted: u64,
}

impl Chronicle {
    fn new() -> Self {
        let model = Model { revision: 1, ..Model::default() };
        Self { states: [(1, BTreeMap::new())].into(), model, ..Self::default() }
    }

    fn apply(&mut self, operation: &Operation, time_ms: u64) {
        if let Operation::Compact { until } = operation {
            let until = match until {
                CompactUntil::Revision(revision) => *revision,
                CompactUntil::Age(age) => {
                    let until = time_ms.saturating_sub(*age);
                    let known = self.times.iter().rev().find(|(_, time)| **time <= until);
                    known.map_or(0, |(revision, _)| *revision)
                }
            };
            if until <= self.model.revision {
                self.compacted = self.compacted.max(until);
            }
            return;
        }
        let before = self.model.clone();
        self.model.apply(operation);
        let revision = self.model.revision;
        if revision == before.revision {
            return;
        }
        self.times.insert(revision, time_ms);
        self.states.insert(revision, self.model.entries.clone());
        let mut keys: Vec<_> = before.entries.keys().chain(self.model.entries.keys()).cloned().collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let (entry, previous) = (self.model.entries.get(&key), before.entries.get(&key));
            if entry != previous {
                let (entry, previous) = (entry.cloned(), previous.cloned());
                self.events.push(Event { revision, key, entry, previous });
            }
        }
    }

    fn changes(&self, key: &str) -> Vec<(u64, Option<Entry>)> {
        let of_key = self.events.iter().filter(|event| event.key == bytes(key));
        let mut changes: Vec<_> = of_key
            .filter(|event| event.revision > self.compacted)
            .map(|it| (it.revision, it.entry.clone()))
            .collect();
        if let Some(entry) = self.states.get(&self.compacted).and_then(|state| state.get(&bytes(key))) {
            changes.insert(0, (entry.mod_revision, Some(entry.clone())));
        }
        changes.reverse();
        changes
    }
}

fn range_at(keys: Span, revision: u64) -> Range {
    Range { revision, ..Range::of(keys) }
}

fn everything() -> Span {
    Span::Prefix(Bytes::new())
}

fn compact(until: CompactUntil) -> Operation {
    Operation::Compact { until }
}

fn watched(keys: Span, revision: u64) -> Watched {
    Watched { keys, from: Position::start_of(revision), with_previous: true, kinds: Kinds::All }
}

impl Store {
    fn refusal(&self, asked: &Query) -> Refusal {
        match self.query(asked) {
            Answer::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    }

    fn changes(&self, key: &str, before: u64, limit: u64) -> (Vec<(u64, Option<Entry>)>, bool) {
        match self.query(&Query::History { key: bytes(key), before, limit }) {
            Answer::Changes(changes) => (changes.changes, changes.more),
            other => panic!("{other:?}"),
        }
    }

    fn events(&self, asked: Watched) -> Events {
        match self.query(&Query::Events(asked)) {
            Answer::Events(events) => events,
            other => panic!("{other:?}"),
        }
    }

    /// Changes of these keys in order, whatever number of answers that takes.
    fn all_events(&self, mut asked: Watched) -> Vec<Event> {
        let mut all = Vec::new();
        loop {
            let Events { mut events, next, more } = self.events(asked.clone());
            all.append(&mut events);
            if !more {
                return all;
            }
            assert!(next > asked.from);
            asked.from = next;
        }
    }

    fn trim_all(&mut self) {
        while self.machine.trim(&mut self.tables).unwrap() {}
    }

    fn rows(&self, table: Table) -> usize {
        let mut rows = 0;
        let count = |_: &[u8], _: &[u8]| {
            rows += 1;
            ControlFlow::Continue(())
        };
        self.tables.scan(table, Bound::Unbounded, count).unwrap();
        rows
    }
}

fn any_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        8 => an_operation(),
        1 => (0..30_u64).prop_map(|revision| compact(CompactUntil::Revision(revision))),
        1 => (0..20_000_u64).prop_map(|age| compact(CompactUntil::Age(age))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// Whatever is written, compacted, trimmed and opened again: what can be read is what was.
    #[test]
    fn what_can_be_read_is_what_was(
        blocks in prop::collection::vec(
            (prop::collection::vec(any_operation(), 0..8), 0..4_usize, any::<bool>()), 1..14
        ),
        prefix in "[ab]{0,2}",
    ) {
        let (mut store, mut chronicle) = (Store::new(), Chronicle::new());
        for (operations, trims, restart) in blocks {
            store.run(&operations);
            let time_ms = store.machine.head().executed.index.0 * 1000;
            operations.iter().for_each(|operation| chronicle.apply(operation, time_ms));
            for _ in 0..trims {
                store.machine.trim(&mut store.tables).unwrap();
            }
            if restart {
                store.reopen();
            }
            prop_assert_eq!(store.recomputed(), store.state());
        }
        let head = store.machine.head();
        prop_assert_eq!((head.revision, head.compacted), (chronicle.model.revision, chronicle.compacted));
        for trimmed in [false, true] {
            if trimmed {
                store.trim_all();
                prop_assert_eq!(store.recomputed(), store.state());
            }
            let span = Span::Prefix(bytes(&prefix));
            for revision in 1..=head.revision {
                let asked = range_at(span.clone(), revision);
                if revision < head.compacted {
                    let refused = Refusal::Compacted { compacted: head.compacted };
                    prop_assert_eq!(store.refusal(&Query::Range(asked)), refused);
                    continue;
                }
                let state = chronicle.states[&revision].clone();
                let entries: Vec<_> = state.into_iter().filter(|(key, _)| span.contains(key)).collect();
                prop_assert_eq!(&store.range(asked).entries, &entries, "at {}", revision);
                for key in ["a", "b", "ab", "ba"] {
                    let one = store.range(range_at(Span::Key(bytes(key)), revision)).entries;
                    let expected: Vec<_> = chronicle.states[&revision].get_key_value(&bytes(key)).into_iter().collect();
                    prop_assert_eq!(one.iter().map(|(key, entry)| (key, entry)).collect::<Vec<_>>(), expected);
                }
            }
            for key in ["a", "b", "ab", "ba"] {
                prop_assert_eq!(store.changes(key, 0, 0), (chronicle.changes(key), false));
            }
            for from in head.compacted.max(1)..=head.revision + 1 {
                let events = store.all_events(watched(span.clone(), from));
                let expected: Vec<_> = chronicle.events.iter()
                    .filter(|event| event.revision >= from && span.contains(&event.key)).cloned()
                    // What was before the compacted revision is forgotten.
                    .map(|event| if event.revision > head.compacted { event } else { Event { previous: None, ..event } })
                    .collect();
                prop_assert_eq!(events, expected, "from {}", from);
            }
        }
    }
}

#[test]
fn what_is_compacted_or_yet_to_come_is_refused_by_name() {
    let mut store = Store::new();
    store.run(&[put("a", "1"), put("a", "2"), put("a", "3")]);
    let at = |revision| Query::Range(range_at(everything(), revision));
    assert_eq!(store.refusal(&at(5)), Refusal::FutureRevision { revision: 4 });
    assert_eq!(
        store.one(compact(CompactUntil::Revision(5))),
        Outcome::Refused(Refusal::FutureRevision { revision: 4 })
    );
    let before = store.state();
    assert_eq!(
        store.one(compact(CompactUntil::Revision(3))),
        Outcome::Compacted { revision: 4, compacted: 3 }
    );
    assert_ne!(store.state(), before, "what can be read is part of the state");
    let compacted = Refusal::Compacted { compacted: 3 };
    assert_eq!(store.one(compact(CompactUntil::Revision(3))), Outcome::Refused(compacted));
    assert_eq!(store.refusal(&at(2)), compacted);
    assert_eq!(store.range(range_at(everything(), 3)).entries[0].1.value, "2");
    assert_eq!(store.refusal(&Query::Events(watched(everything(), 2))), compacted);
    let events = store.events(watched(everything(), 3)).events;
    assert_eq!(events.iter().map(|it| it.revision).collect::<Vec<_>>(), [3, 4]);
    assert_eq!((&events[0].previous, &events[1].previous.as_ref().unwrap().value[..]), (&None, &b"2"[..]));
    assert!(store.events(watched(everything(), 9)).events.is_empty(), "who is ahead waits");
    // One too young to be forgotten changes nothing, and is no error.
    assert_eq!(
        store.one(compact(CompactUntil::Age(60_000))),
        Outcome::Compacted { revision: 4, compacted: 3 }
    );
    assert_eq!(store.one(compact(CompactUntil::Age(0))), Outcome::Compacted { revision: 4, compacted: 4 });
}

#[test]
fn trimming_frees_what_nobody_can_read() {
    let mut store = Store::new();
    for round in 0..50 {
        store.one(put("hot", &round.to_string()));
        store.one(put(&format!("gone{round}"), "x"));
        store.one(delete(&format!("gone{round}")));
    }
    store.one(put("cold", "1"));
    assert_eq!((store.rows(Table::History), store.rows(Table::Deleted)), (151, 50));
    let now = store.machine.head().revision;
    store.one(compact(CompactUntil::Revision(now)));
    let before = store.state();
    store.trim_all();
    assert_eq!(store.state(), before);
    let rows = |store: &Store| [Table::History, Table::Deleted, Table::Held].map(|table| store.rows(table));
    assert_eq!(rows(&store), [1, 0, 0], "the changes of the compacted revision itself can be read");
    // What is replaced from now on is held until it is compacted, too.
    store.one(put("cold", "2"));
    store.one(delete("hot"));
    assert_eq!(rows(&store), [3, 1, 1]);
    assert_eq!(store.range(range_at(everything(), now)).entries.len(), 2);
    store.one(compact(CompactUntil::Age(0)));
    store.trim_all();
    assert_eq!(rows(&store), [1, 1, 1], "the deletion, and what it deleted");
    store.one(put("a", ""));
    store.one(compact(CompactUntil::Age(0)));
    store.trim_all();
    assert_eq!(rows(&store), [1, 0, 0]);
    assert_eq!(store.recomputed(), store.state());
}

#[test]
fn trimming_goes_on_with_every_compaction() {
    let mut store = Store::new();
    for round in 0..10 {
        store.one(put("a", &round.to_string()));
    }
    for (until, left) in [(4, 8), (4, 8), (9, 3), (11, 1)] {
        store.one(compact(CompactUntil::Revision(until)));
        store.trim_all();
        assert!(store.machine.is_trimmed());
        assert_eq!(store.rows(Table::History), left, "up to {until}");
    }
}

#[test]
fn a_change_in_the_middle_of_a_row_can_be_the_last_one_forgotten() {
    let mut store = Store::new();
    let puts: Vec<_> = (0..10).map(|n| put("a", &n.to_string())).collect();
    store.run(&puts);
    store.one(compact(CompactUntil::Revision(6)));
    store.trim_all();
    assert_eq!(store.rows(Table::History), 1);
    store.run(&[put("a", "later"), put("b", "1")]);
    assert_eq!(store.recomputed(), store.state());
    assert_eq!(store.range(range_at(everything(), 6)).entries[0].1.value, "4");
    assert_eq!(store.changes("a", 0, 0).0.len(), 7, "five, one since, and the one as of revision 6");
    store.reopen();
    assert_eq!(store.recomputed(), store.state());
}

#[test]
fn ranges_are_filtered_sorted_and_limited_as_in_etcd() {
    let mut store = Store::new();
    for (key, value) in [("c", "1"), ("a", "3"), ("b", "2"), ("a", "0"), ("a", "5"), ("d", "2")] {
        store.one(put(key, value));
    }
    let keys = |asked: Range| {
        let listing = store.range(asked);
        let keys: String = listing.entries.iter().map(|(key, _)| std::str::from_utf8(key).unwrap()).collect();
        (keys, listing.more, listing.count)
    };
    let all = || Range::of(everything());
    let sorted = |by, descending| Range { order: Order { by, descending }, ..all() };
    for (by, rising, falling) in [
        (SortBy::Key, "abcd", "dcba"),
        (SortBy::Version, "bcda", "adcb"),
        (SortBy::CreateRevision, "cabd", "dbac"),
        (SortBy::ModRevision, "cbad", "dabc"),
        (SortBy::Value, "cbda", "adbc"),
    ] {
        assert_eq!(keys(sorted(by, false)).0, rising, "{by:?}");
        assert_eq!(keys(sorted(by, true)).0, falling, "{by:?}");
        let two = Range { limit: 2, count: true, want: Want::Keys, ..sorted(by, true) };
        assert_eq!(keys(two), (falling[..2].to_owned(), true, Some(4)));
    }
    let filtered = |filter| keys(Range { filter, count: true, ..all() });
    let filter = Filter::default();
    assert_eq!(filtered(Filter { min_mod_revision: 4, ..filter }), ("abd".into(), false, Some(4)));
    assert_eq!(filtered(Filter { max_mod_revision: 4, ..filter }).0, "bc");
    assert_eq!(filtered(Filter { min_create_revision: 4, ..filter }).0, "bd");
    assert_eq!(filtered(Filter { max_create_revision: 3, ..filter }).0, "ac");
    let before = Range { revision: 4, order: Order { by: SortBy::Value, descending: true }, ..all() };
    assert_eq!(keys(before).0, "abc");
    assert_eq!(keys(Range { limit: 2, count: true, ..all() }), ("ab".into(), true, Some(4)));
    assert_eq!(keys(Range { limit: 4, ..all() }), ("abcd".into(), false, None));
    assert_eq!(keys(Range::count_of(everything())), (String::new(), false, Some(4)));
    let counted = Range { revision: 3, ..Range::count_of(everything()) };
    assert_eq!(keys(counted).2, Some(2));
}

#[test]
fn more_than_a_page_of_keys_is_read_as_of_a_revision() {
    let mut store = Store::new();
    let name = |n: u32| format!("k{n:04}");
    store.run(&(0..1000).map(|n| put(&name(n), "old")).collect::<Vec<_>>());
    let then = store.machine.head().revision;
    // Deleted ones lie thick in one place, new ones in another.
    store.run(&(300..900).map(|n| delete(&name(n))).collect::<Vec<_>>());
    store.run(&(1000..2000).map(|n| put(&name(n), "new")).collect::<Vec<_>>());
    let listing = store.range(range_at(everything(), then));
    let found: Vec<_> =
        listing.entries.iter().map(|(key, entry)| (key.clone(), entry.value.clone())).collect();
    let expected: Vec<_> = (0..1000).map(|n| (bytes(&name(n)), bytes("old"))).collect();
    assert_eq!(found, expected);
    let some = Range { limit: 400, ..range_at(everything(), then) };
    assert_eq!(store.range(some).entries.len(), 400);
}

#[test]
fn the_changes_of_a_key_come_in_pages() {
    let mut store = Store::new();
    for n in 0..10 {
        store.run(&[put("a", &n.to_string()), put("b", "x")]);
    }
    store.one(delete("a"));
    let (all, more) = store.changes("a", 0, 0);
    assert_eq!((all.len(), more, &all[0]), (11, false, &(22, None)));
    let (first, more) = store.changes("a", 0, 4);
    assert_eq!((&first[..], more), (&all[..4], true));
    let (second, more) = store.changes("a", first[3].0, 4);
    assert_eq!((&second[..], more), (&all[4..8], true));
    let (third, more) = store.changes("a", second[3].0, 4);
    assert_eq!((&third[..], more), (&all[8..], false));
    assert_eq!(store.changes("never", 0, 0), (vec![], false));
}

#[test]
fn the_changes_of_one_revision_come_together_unless_they_are_too_many() {
    let mut store = Store::new();
    let value = "x".repeat(MAX_VALUE);
    for n in 0..12 {
        store.one(put(&n.to_string(), &value));
    }
    let first = store.events(Watched { with_previous: false, ..watched(everything(), 1) });
    assert_eq!((first.events.len(), first.more, first.next), (7, true, Position::start_of(9)));
    store.one(delete_prefix(""));
    let asked = watched(everything(), 14);
    let part = store.events(asked.clone());
    assert!(part.more && part.next.revision == 14 && part.next.within == 7, "{:?}", part.next);
    let all = store.all_events(asked);
    assert_eq!(all.len(), 12);
    assert!(all.iter().all(|event| event.entry.is_none() && event.previous.is_some()));
    let puts = Watched { kinds: Kinds::Puts, with_previous: false, ..watched(everything(), 13) };
    let deletions = Watched { kinds: Kinds::Deletions, ..puts.clone() };
    assert_eq!(store.events(puts).events.iter().map(|it| it.revision).collect::<Vec<_>>(), [13]);
    assert!(store.events(deletions).events.iter().all(|it| it.revision == 14 && it.previous.is_none()));
}

#[test]
fn a_transaction_reads_what_was_and_refuses_what_can_not_be_read() {
    let mut store = Store::new();
    store.run(&[put("a", "1"), put("a", "2")]);
    let at = |revision| Step::Get(range_at(Span::Key(bytes("a")), revision));
    let stores = Step::Put { key: bytes("a"), value: bytes("3"), lease: 0 };
    let transaction = |steps: Vec<Step>| {
        Operation::Transaction(Transaction {
            parts: vec![Part { compare: vec![], then: steps, otherwise: vec![] }],
        })
    };
    let outcomes = store.run(&[put("b", "x"), transaction(vec![stores.clone(), at(0), at(4), at(2), at(1)])]);
    let Outcome::Transaction { taken, .. } = &outcomes[1] else { panic!("{outcomes:?}") };
    let values: Vec<_> = taken.steps[1..]
        .iter()
        .map(|step| match step {
            StepOutcome::Found(listing) => listing.entries.first().map(|(_, entry)| entry.value.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(values, [Some(bytes("3")), Some(bytes("2")), Some(bytes("1")), None]);
    assert_eq!(store.state(), store.recomputed());
    store.one(compact(CompactUntil::Revision(3)));
    let refused = |refusal| Outcome::Refused(refusal);
    assert_eq!(
        store.one(transaction(vec![stores.clone(), at(2)])),
        refused(Refusal::Compacted { compacted: 3 })
    );
    // The revision that it makes itself is yet to come.
    assert_eq!(store.one(transaction(vec![stores, at(6)])), refused(Refusal::FutureRevision { revision: 5 }));
    assert_eq!(store.machine.head().revision, 5);
}

/// A read as of a revision between two writes of a transaction must not tear its revision apart.
#[test]
fn the_changes_of_a_transaction_stay_together_whatever_it_reads() {
    let mut store = Store::new();
    store.run(&[put("a", "1"), put("b", "1")]);
    let stores = |key: &str| Step::Put { key: bytes(key), value: bytes("2"), lease: 0 };
    let steps = vec![stores("a"), Step::Get(range_at(everything(), 2)), stores("b")];
    let part = Part { compare: vec![], then: steps, otherwise: vec![] };
    store.one(Operation::Transaction(Transaction { parts: vec![part] }));
    let events = store.all_events(watched(everything(), 4));
    assert_eq!(
        events.iter().map(|it| (&it.key[..], it.revision)).collect::<Vec<_>>(),
        [(&b"a"[..], 4), (b"b", 4)]
    );
    for key in ["a", "b"] {
        assert_eq!(store.range(range_at(Span::Key(bytes(key)), 3)).entries[0].1.value, "1");
    }
    assert_eq!(store.state(), store.recomputed());
}

#[test]
fn a_way_back_that_is_too_long_is_not_gone_in_a_transaction() {
    let mut store = Store::new();
    let value = "x".repeat(100_000);
    for _ in 0..MAX_VISITED / 4 / 100_000 + 10 {
        store.one(put("a", &value));
    }
    let read = |revision| {
        let steps = vec![Step::Get(Range { want: Want::Keys, ..range_at(Span::Key(bytes("a")), revision) })];
        let part = Part { compare: vec![], then: steps, otherwise: vec![] };
        Operation::Transaction(Transaction { parts: vec![part] })
    };
    let taken = |outcome: Outcome| match outcome {
        Outcome::Transaction { taken, .. } => taken.steps[0].clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(taken(store.one(read(2))), StepOutcome::NotRead);
    let last = store.machine.head().revision;
    assert!(
        matches!(taken(store.one(read(last - 5))), StepOutcome::Found(listing) if listing.entries.len() == 1)
    );
    // A client's own question may take its time.
    assert_eq!(store.range(range_at(Span::Key(bytes("a")), 2)).entries.len(), 1);
}

fn reads_the_past() -> impl Strategy<Value = Operation> {
    use super::transactions::any_transaction;
    (any_transaction(), 0..25_u64).prop_map(|(mut transaction, revision)| {
        for step in
            transaction.parts.iter_mut().flat_map(|part| part.then.iter_mut().chain(&mut part.otherwise))
        {
            if let Step::Get(asked) = step {
                asked.revision = revision;
            }
        }
        Operation::Transaction(transaction)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// Members trim when they have time, and are started when somebody starts them: it must not be seen in anything.
    #[test]
    fn who_has_trimmed_and_who_has_not_do_the_same(
        blocks in prop::collection::vec(
            prop::collection::vec(prop_oneof![2 => any_operation(), 1 => reads_the_past()], 0..8), 1..14
        ),
    ) {
        let (mut eager, mut idle) = (Store::new(), Store::new());
        for operations in blocks {
            prop_assert_eq!(eager.run(&operations), idle.run(&operations));
            eager.trim_all();
            eager.reopen();
            prop_assert_eq!(eager.state(), idle.state());
            prop_assert_eq!(eager.recomputed(), idle.recomputed());
        }
        let from = idle.machine.head().compacted.max(1);
        prop_assert_eq!(eager.all_events(watched(everything(), from)), idle.all_events(watched(everything(), from)));
        for key in ["a", "b", "ab", "ba", "c", "bb"] {
            for before in [0, 5, 9] {
                prop_assert_eq!(eager.changes(key, before, 0), idle.changes(key, before, 0));
            }
        }
    }
}

/// Tombstones that are compacted cost nobody anything, whether they are still there or not.
#[test]
fn tombstones_that_are_not_trimmed_yet_take_nothing_of_what_may_be_read() {
    let (mut eager, mut idle) = (Store::new(), Store::new());
    let keys: Vec<_> = (0..6_000).map(|n| put(&format!("{n}"), "")).collect();
    let version =
        Compare { keys: Span::Key(bytes("x")), property: Property::Version(0), relation: Relation::Equal };
    let reads = Step::Get(range_at(everything(), 6_002));
    let stores = Step::Put { key: bytes("x"), value: bytes(""), lease: 0 };
    let of = |compare, step| {
        let part = Part { compare, then: vec![step], otherwise: vec![] };
        Operation::Transaction(Transaction { parts: vec![part] })
    };
    for store in [&mut eager, &mut idle] {
        store.run(&keys);
        store.one(delete_prefix(""));
        store.one(compact(CompactUntil::Revision(6_002)));
        store.one(put("y", ""));
    }
    eager.trim_all();
    assert!(eager.rows(Table::Deleted) < idle.rows(Table::Deleted) || idle.rows(Table::Deleted) == 6_000);
    let operations =
        [of(vec![], reads.clone()), of(vec![], reads.clone()), of(vec![], reads), of(vec![version], stores)];
    assert_eq!(eager.run(&operations), idle.run(&operations));
    assert_eq!(eager.state(), idle.state());
    assert!(idle.get("x").is_some());
}

/// A row may be large, and each one that is looked at is read by every member.
#[test]
fn to_look_for_an_age_is_paid_for() {
    let mut store = Store::new();
    for round in 0..100 {
        store.one(put("k", &round.to_string()));
    }
    // Nothing is so old, so the whole way is gone each time: seven steps.
    let aged = vec![compact(CompactUntil::Age(u64::MAX)); 300];
    let outcomes = store.run(&aged);
    let done = Outcome::Compacted { revision: 101, compacted: 0 };
    let found = outcomes.iter().take_while(|outcome| **outcome == done).count();
    assert!((100..200).contains(&found), "{found}");
    assert!(outcomes[found..].iter().all(|outcome| *outcome == Outcome::Refused(Refusal::ReadsTooMuch)));
    assert_eq!(store.one(aged[0].clone()), done);
}
