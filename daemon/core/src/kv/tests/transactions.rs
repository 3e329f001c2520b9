//! Transactions: what they decide, what they write, and what they refuse.

use super::*;

/// Keys and values of the generated transactions.
const KEYS: [&str; 5] = ["a", "b", "ba", "bb", "c"];

fn part(compare: Vec<Compare>, then: Vec<Step>, otherwise: Vec<Step>) -> Part {
    Part { compare, then, otherwise }
}

fn always(then: Vec<Step>) -> Transaction {
    Transaction { parts: vec![part(vec![], then, vec![])] }
}

fn stores(key: &str, value: &str) -> Step {
    Step::Put { key: bytes(key), value: bytes(value), lease: 0 }
}

fn reads(keys: Span) -> Step {
    Step::Get(Range::of(keys))
}

fn one(key: &str) -> Span {
    Span::Key(bytes(key))
}

fn prefix(text: &str) -> Span {
    Span::Prefix(bytes(text))
}

fn range(from: &str, end: &str) -> Span {
    Span::Range { from: bytes(from), end: bytes(end) }
}

fn that(keys: Span, property: Property, relation: Relation) -> Compare {
    Compare { keys, property, relation }
}

fn is_value(keys: Span, value: &str) -> Compare {
    that(keys, Property::Value(bytes(value)), Relation::Equal)
}

impl Store {
    fn transact(&mut self, transaction: Transaction) -> (u64, Taken) {
        match self.one(Operation::Transaction(transaction)) {
            Outcome::Transaction { revision, taken } => (revision, taken),
            other => panic!("{other:?}"),
        }
    }

    fn refused(&mut self, transaction: Transaction) -> Refusal {
        match self.one(Operation::Transaction(transaction)) {
            Outcome::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    }

    fn holds(&mut self, compare: Compare) -> bool {
        self.transact(Transaction { parts: vec![part(vec![compare], vec![], vec![])] }).1.succeeded
    }
}

fn found(step: &StepOutcome) -> Vec<(String, String, u64)> {
    let StepOutcome::Found(listing) = step else { panic!("{step:?}") };
    assert!(!listing.more);
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    listing.entries.iter().map(|(key, entry)| (text(key), text(&entry.value), entry.mod_revision)).collect()
}

#[test]
fn all_writes_share_a_revision_and_reads_see_those_before_them() {
    let mut store = Store::new();
    store.one(put("b", "old"));
    let steps = vec![
        reads(prefix("")),
        stores("a", "1"),
        stores("b", "2"),
        reads(prefix("")),
        Step::Delete { keys: prefix("c") },
    ];
    let (revision, taken) = store.transact(always(steps));
    assert_eq!(revision, 3);
    assert!(taken.succeeded);
    assert_eq!(found(&taken.steps[0]), [("b".into(), "old".into(), 2)]);
    assert_eq!(found(&taken.steps[3]), [("a".into(), "1".into(), 3), ("b".into(), "2".into(), 3)]);
    assert_eq!(taken.steps[4], StepOutcome::Deleted(0));
    let entry = store.get("b").unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision, entry.version), (2, 3, 2));

    let (revision, taken) = store.transact(always(vec![
        Step::Delete { keys: range("a", "b") },
        Step::Delete { keys: one("b") },
        reads(prefix("")),
    ]));
    assert_eq!(revision, 4);
    assert_eq!(taken.steps[..2], [StepOutcome::Deleted(1), StepOutcome::Deleted(1)]);
    assert_eq!(found(&taken.steps[2]), []);
    assert_eq!(store.state(), store.recomputed());
}

#[test]
fn what_changes_nothing_does_not_raise_the_revision() {
    let mut store = Store::new();
    store.one(put("a", "1"));
    let nothing = vec![reads(one("a")), Step::Delete { keys: one("b") }];
    let before = store.state();
    assert_eq!(store.transact(always(nothing)).0, 2);
    let compare = vec![is_value(one("a"), "2")];
    let failed = Transaction { parts: vec![part(compare, vec![stores("a", "3")], vec![])] };
    let (revision, taken) = store.transact(failed);
    assert_eq!((revision, taken), (2, Taken { succeeded: false, steps: vec![] }));
    assert_eq!(store.state(), before);
}

#[test]
fn comparisons_of_nested_parts_look_at_the_state_before() {
    let mut store = Store::new();
    let absent = that(one("a"), Property::Version(0), Relation::Equal);
    let nested = part(vec![absent.clone()], vec![stores("b", "absent")], vec![stores("b", "there")]);
    let root = part(vec![], vec![stores("a", "1"), Step::Nested(1)], vec![]);
    let (revision, taken) = store.transact(Transaction { parts: vec![root, nested] });
    assert_eq!(revision, 2);
    let inner = Taken { succeeded: true, steps: vec![StepOutcome::Put] };
    assert_eq!(taken.steps, [StepOutcome::Put, StepOutcome::Nested(inner)]);
    assert_eq!(store.get("b").unwrap().value, "absent");

    // A part that is not reached decides nothing, and reads nothing.
    let root = part(vec![absent], vec![Step::Nested(1)], vec![stores("c", "1")]);
    let nested = part(vec![], vec![stores("d", "1")], vec![]);
    let (_, taken) = store.transact(Transaction { parts: vec![root, nested] });
    assert_eq!(taken, Taken { succeeded: false, steps: vec![StepOutcome::Put] });
    assert_eq!(store.get("d"), None);
}

#[test]
fn comparisons_are_as_in_etcd() {
    let mut store = Store::new();
    store.one(put("a", "m"));
    store.one(put("a", "m"));
    store.one(put("b", "n"));
    for (property, order) in [
        (Property::Version(2), [true, false, false]),
        (Property::Version(3), [false, true, false]),
        (Property::Version(1), [false, false, true]),
        (Property::CreateRevision(2), [true, false, false]),
        (Property::CreateRevision(3), [false, true, false]),
        (Property::ModRevision(3), [true, false, false]),
        (Property::ModRevision(2), [false, false, true]),
        (Property::Value(bytes("m")), [true, false, false]),
        (Property::Value(bytes("mm")), [false, true, false]),
        (Property::Value(bytes("l")), [false, false, true]),
    ] {
        let relations = [Relation::Equal, Relation::Less, Relation::Greater];
        for (relation, expected) in relations.into_iter().zip(order) {
            let holds = store.holds(that(one("a"), property.clone(), relation));
            assert_eq!(holds, expected, "{property:?} {relation:?}");
        }
        assert_eq!(store.holds(that(one("a"), property, Relation::NotEqual)), !order[0]);
    }
    // What does not exist has no value, and numbers of 0.
    for keys in [one("x"), prefix("x"), range("x", "y"), Span::From(bytes("x"))] {
        assert!(store.holds(that(keys.clone(), Property::Version(0), Relation::Equal)));
        assert!(!store.holds(that(keys.clone(), Property::ModRevision(0), Relation::Greater)));
        for relation in [Relation::Equal, Relation::NotEqual, Relation::Less, Relation::Greater] {
            assert!(!store.holds(that(keys.clone(), Property::Value(Bytes::new()), relation)));
        }
    }
    // Of a range it must hold of each.
    assert!(store.holds(that(prefix(""), Property::Value(bytes("l")), Relation::Greater)));
    assert!(!store.holds(that(prefix(""), Property::Value(bytes("m")), Relation::Greater)));
    assert!(store.holds(that(range("b", "c"), Property::Version(1), Relation::Equal)));
    assert!(!store.holds(that(range("a", "c"), Property::Version(1), Relation::Equal)));
    assert!(store.holds(that(Span::From(bytes("aa")), Property::Version(1), Relation::Equal)));
}

#[test]
fn no_key_is_written_twice() {
    let nest = |root: Vec<Step>, then: Vec<Step>, otherwise: Vec<Step>| Transaction {
        parts: vec![part(vec![], root, vec![]), part(vec![], then, otherwise)],
    };
    let refused = [
        always(vec![stores("a", "1"), stores("a", "1")]),
        always(vec![stores("a", "1"), Step::Delete { keys: one("a") }]),
        always(vec![Step::Delete { keys: prefix("") }, stores("a", "1")]),
        always(vec![Step::Delete { keys: range("a", "b") }, stores("a", "1")]),
        always(vec![stores("b", "1"), Step::Delete { keys: Span::From(bytes("a")) }]),
        nest(vec![stores("a", "1"), Step::Nested(1)], vec![], vec![stores("a", "2")]),
        nest(vec![Step::Nested(1), Step::Delete { keys: one("a") }], vec![stores("a", "2")], vec![]),
        nest(vec![stores("a", "1"), Step::Nested(1)], vec![Step::Delete { keys: one("a") }], vec![]),
        nest(vec![Step::Nested(1), stores("a", "1")], vec![], vec![Step::Delete { keys: prefix("") }]),
        Transaction { parts: vec![part(vec![], vec![], vec![stores("a", "1"), stores("a", "2")])] },
    ];
    for transaction in refused {
        let mut store = Store::new();
        store.one(put("z", "1"));
        assert_eq!(store.refused(transaction.clone()), Refusal::WrittenTwice, "{transaction:?}");
        assert_eq!((store.machine.head().revision, store.count("")), (2, 1));
    }
    let taken = [
        Transaction { parts: vec![part(vec![], vec![stores("a", "1")], vec![stores("a", "2")])] },
        always(vec![Step::Delete { keys: prefix("a") }, Step::Delete { keys: prefix("") }]),
        always(vec![Step::Delete { keys: range("a", "b") }, stores("b", "1")]),
        nest(vec![stores("b", "1"), Step::Nested(1)], vec![stores("a", "1")], vec![stores("a", "2")]),
    ];
    for transaction in taken {
        Store::new().transact(transaction);
    }
}

/// A transaction is refused for what it would do, not for what it would do otherwise.
#[test]
fn what_is_not_taken_refuses_nothing() {
    let mut store = Store::new();
    let impossible = |key: &str| {
        vec![
            Step::Put { key: bytes(key), value: bytes(""), lease: 9 },
            Step::Get(Range { revision: 99, ..Range::of(one("a")) }),
        ]
    };
    let absent = || vec![that(one("a"), Property::Version(0), Relation::Equal)];
    // A part that is not reached; the other list of one that is; and the root's.
    let others = part(vec![], impossible("b"), vec![]);
    let nested = part(absent(), vec![], impossible("d"));
    let otherwise = impossible("e").into_iter().chain([Step::Nested(1)]).collect();
    let root = part(absent(), vec![stores("c", "1"), Step::Nested(2)], otherwise);
    let (revision, taken) = store.transact(Transaction { parts: vec![root, others, nested] });
    let inner = Taken { succeeded: true, steps: vec![] };
    assert_eq!(revision, 2);
    assert_eq!(taken.steps, [StepOutcome::Put, StepOutcome::Nested(inner)]);
}

#[test]
fn what_is_no_tree_is_refused() {
    let named = |lists: &[&[u8]]| Transaction {
        parts: lists
            .iter()
            .map(|places| part(vec![], places.iter().map(|place| Step::Nested(*place)).collect(), vec![]))
            .collect(),
    };
    let no_trees: [&[&[u8]]; 8] = [
        &[],
        // Itself, one before it, one that is not there, one named twice, one never named.
        &[&[0]],
        &[&[1], &[0]],
        &[&[1], &[1]],
        &[&[1]],
        &[&[1, 1], &[]],
        &[&[1, 2], &[2], &[]],
        &[&[], &[]],
    ];
    for lists in no_trees {
        assert_eq!(Store::new().refused(named(lists)), Refusal::Malformed, "{lists:?}");
    }
    Store::new().transact(named(&[&[2, 1], &[3], &[], &[]]));
    // The deepest that there can be.
    let deepest: Vec<Vec<u8>> =
        (0..=MAX_STEPS as u8).map(|at| if at < MAX_STEPS as u8 { vec![at + 1] } else { vec![] }).collect();
    let deepest: Vec<&[u8]> = deepest.iter().map(Vec::as_slice).collect();
    Store::new().transact(named(&deepest));
}

#[test]
fn sizes_are_bounded() {
    let many = |count: usize| (0..count).map(|n| stores(&format!("k{n}"), "")).collect::<Vec<_>>();
    let mut store = Store::new();
    store.transact(always(many(MAX_STEPS)));
    let too_many = Refusal::TooManySteps { steps: MAX_STEPS as u64 + 1 };
    assert_eq!(store.refused(always(many(MAX_STEPS + 1))), too_many);
    let nested = part(vec![], many(29), vec![]);
    let both = Transaction {
        parts: vec![part(vec![], many(99).into_iter().chain([Step::Nested(1)]).collect(), vec![]), nested],
    };
    assert_eq!(store.refused(both), too_many);
    // Only one of two lists is taken, as in etcd.
    store.transact(Transaction { parts: vec![part(vec![], many(100), many(100))] });
    let compare = vec![is_value(one("a"), ""); MAX_STEPS + 1];
    assert_eq!(store.refused(Transaction { parts: vec![part(compare, vec![], vec![])] }), too_many);
    let long = "x".repeat(MAX_KEY + 1);
    let bytes_of = Refusal::KeyLength { bytes: MAX_KEY as u64 + 1 };
    assert_eq!(store.refused(always(vec![stores(&long, "")])), bytes_of);
    assert_eq!(store.refused(always(vec![stores("", "")])), Refusal::KeyLength { bytes: 0 });
    // What bounds a span may be one byte longer than a key: the first one after the longest.
    let longer = "x".repeat(MAX_KEY + 2);
    let spans = [prefix(&longer), range("a", &longer), range(&longer, "a"), Span::From(bytes(&longer))];
    for (keys, bytes) in [(one(&long), MAX_KEY + 1)].into_iter().chain(spans.map(|keys| (keys, MAX_KEY + 2)))
    {
        let refused = Refusal::KeyLength { bytes: bytes as u64 };
        assert_eq!(store.refused(always(vec![reads(keys.clone())])), refused);
        assert_eq!(store.refused(always(vec![Step::Delete { keys: keys.clone() }])), refused);
        let compare = vec![that(keys, Property::Version(1), Relation::Less)];
        assert_eq!(store.refused(Transaction { parts: vec![part(compare, vec![], vec![])] }), refused);
    }
    let half = "x".repeat(MAX_TRANSACTION / 2 - 1);
    store.transact(always(vec![stores("a", &half), stores("b", &half)]));
    let too_large = Refusal::TransactionTooLarge { bytes: MAX_TRANSACTION as u64 + 1 };
    assert_eq!(
        store.refused(always(vec![stores("a", &half), stores("b", &half), reads(one("c"))])),
        too_large
    );
    let largest = Operation::Transaction(always(vec![stores("a", &half), stores("b", &half)])).encode();
    assert!(largest.len() + (MAX_STEPS * 2 * 16) < crate::limits::MAX_BATCH);
    let value = "x".repeat(MAX_VALUE + 1);
    let too_long = Refusal::ValueTooLong { bytes: MAX_VALUE as u64 + 1 };
    assert_eq!(store.refused(always(vec![stores("a", &value)])), too_long);
    let compare = vec![is_value(one("a"), &value)];
    assert_eq!(store.refused(Transaction { parts: vec![part(compare, vec![], vec![])] }), too_long);
}

#[test]
fn a_members_transactions_read_a_bounded_part_of_the_store_in_a_block() {
    /// Of one transaction.
    const VISITS: usize = MAX_VISITED / 4 / 4096;
    /// To look for the first key of a range.
    const SCAN: usize = 16;
    let mut store = Store::new();
    for chunk in 0..=VISITS / 1024 {
        store.run(&(0..1024).map(|n| put(&format!("{chunk:04}-{n:04}"), "x")).collect::<Vec<_>>());
    }
    assert!(store.count("") > VISITS as u64);
    let all = that(prefix(""), Property::Version(1), Relation::Equal);
    let asks = Transaction { parts: vec![part(vec![all], vec![stores("z", "1")], vec![])] };
    assert_eq!(store.refused(asks.clone()), Refusal::ReadsTooMuch);
    // One that fails at the first key has read enough.
    assert!(!store.holds(that(prefix(""), Property::Version(1), Relation::Greater)));
    // Keys alone cost as much as values, single ones as much as those of ranges.
    let limit = VISITS - SCAN - 2;
    let few = Step::Get(Range { limit: limit as u64, want: Want::Keys, ..Range::of(prefix("")) });
    let few = Operation::Transaction(always(vec![few])).encode();
    let single = always(vec![reads(one("0000-0000"))]);
    let single_encoded = Operation::Transaction(single.clone()).encode();
    let mut operations = vec![few; 4];
    // One is left of each quarter.
    operations.extend(vec![single_encoded.clone(); 5]);
    operations.push(Operation::Transaction(asks).encode());
    let of = |origin, requests: &[Request]| (origin, requests.to_vec());
    let head = store.machine.head().executed;
    let block = block_of(head, &[of(1, &operations), of(2, &operations[4..5]), of(1, &operations[4..5])]);
    let outcomes = store.machine.execute(&mut store.tables, &[block]).unwrap().remove(0).outcomes;
    let read = |outcome: &Outcome| match outcome {
        Outcome::Transaction { taken, .. } => match &taken.steps[..] {
            [StepOutcome::Found(listing)] => Some((listing.entries.len(), listing.more)),
            [StepOutcome::NotRead] => None,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    for few in &outcomes[0][..4] {
        assert_eq!(read(few), Some((limit, true)));
    }
    for single in &outcomes[0][4..8] {
        assert_eq!(read(single), Some((1, false)));
    }
    assert_eq!(read(&outcomes[0][8]), None, "nothing is left, and it says so");
    assert_eq!(outcomes[0][9], Outcome::Refused(Refusal::ReadsTooMuch));
    assert_eq!(read(&outcomes[1][0]), Some((1, false)), "another member's are not at its expense");
    assert_eq!(read(&outcomes[2][0]), None, "nor is it given more for another batch");
    // In the next block it may read again.
    assert_eq!(read(&store.one(Operation::Transaction(single))), Some((1, false)));

    let mut store = Store::new();
    for n in 0..4 {
        store.one(put(&format!("{n:02}"), &"x".repeat(MAX_VALUE)));
    }
    store.one(put("small", "1"));
    let all = Operation::Transaction(always(vec![reads(prefix(""))]));
    let small = Operation::Transaction(always(vec![reads(one("small"))]));
    let outcomes = store.run(&[all.clone(), all, small]);
    assert_eq!(read(&outcomes[0]), Some((1, true)), "of a megabyte each one fits with its key");
    assert_eq!(read(&outcomes[1]), Some((0, true)));
    assert_eq!(read(&outcomes[2]), Some((1, false)), "what did not fit took nothing");
}

impl Model {
    fn of(&self, keys: &Span) -> Vec<(Bytes, Entry)> {
        let is_in = |key: &Bytes| match keys {
            Span::Key(only) => key == only,
            Span::Prefix(prefix) => key.starts_with(prefix),
            Span::Range { from, end } => from <= key && key < end,
            Span::From(from) => from <= key,
        };
        self.entries
            .iter()
            .filter(|(key, _)| is_in(key))
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect()
    }

    fn holds(&self, compare: &Compare) -> bool {
        let found = self.of(&compare.keys);
        let one = |entry: Option<&Entry>| {
            let number = |there: Option<u64>, asked: u64| compare.relation.holds(&there.unwrap_or(0), &asked);
            match &compare.property {
                Property::Version(asked) => number(entry.map(|it| it.version), *asked),
                Property::CreateRevision(asked) => number(entry.map(|it| it.create_revision), *asked),
                Property::ModRevision(asked) => number(entry.map(|it| it.mod_revision), *asked),
                Property::Lease(asked) => number(entry.map(|it| it.lease), *asked),
                Property::Value(asked) => entry.is_some_and(|it| compare.relation.holds(&it.value, asked)),
            }
        };
        if found.is_empty() { one(None) } else { found.iter().all(|(_, entry)| one(Some(entry))) }
    }

    fn take(&mut self, before: &Self, transaction: &Transaction, place: usize, wrote: &mut bool) -> Taken {
        let part = &transaction.parts[place];
        let succeeded = part.compare.iter().all(|compare| before.holds(compare));
        let list = if succeeded { &part.then } else { &part.otherwise };
        let revision = before.revision + 1;
        let mut steps = Vec::new();
        for step in list {
            steps.push(match step {
                Step::Put { key, value, lease } => {
                    let old = self.entries.get(key);
                    let (create_revision, version) =
                        old.map_or((revision, 1), |old| (old.create_revision, old.version + 1));
                    let (value, lease) = (value.clone(), *lease);
                    let entry = Entry { value, create_revision, mod_revision: revision, version, lease };
                    self.entries.insert(key.clone(), entry);
                    *wrote = true;
                    StepOutcome::Put
                }
                Step::Get(asked) => {
                    let mut entries = self.of(&asked.keys);
                    let more = asked.limit > 0 && entries.len() as u64 > asked.limit;
                    if more {
                        entries.truncate(asked.limit as usize);
                    }
                    if asked.want == Want::Keys {
                        entries.iter_mut().for_each(|(_, entry)| entry.value = Bytes::new());
                    }
                    StepOutcome::Found(Listing { entries, more, count: None })
                }
                Step::Delete { keys } => {
                    let found = self.of(keys);
                    for (key, _) in &found {
                        self.entries.remove(key);
                    }
                    *wrote |= !found.is_empty();
                    StepOutcome::Deleted(found.len() as u64)
                }
                Step::Nested(place) => {
                    StepOutcome::Nested(self.take(before, transaction, usize::from(*place), wrote))
                }
            });
        }
        Taken { succeeded, steps }
    }

    pub(super) fn transact(&mut self, transaction: &Transaction) -> Outcome {
        let (before, mut wrote) = (self.clone(), false);
        let taken = self.take(&before, transaction, 0, &mut wrote);
        self.revision += u64::from(wrote);
        Outcome::Transaction { revision: self.revision, taken }
    }
}

fn any_key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(&KEYS[..]).prop_map(bytes)
}

fn any_span() -> impl Strategy<Value = Span> {
    prop_oneof![
        4 => any_key().prop_map(Span::Key),
        1 => prop_oneof![Just(bytes("")), any_key()].prop_map(Span::Prefix),
        1 => (any_key(), any_key()).prop_map(|(from, end)| Span::Range { from, end }),
        1 => any_key().prop_map(Span::From),
    ]
}

fn any_compare() -> impl Strategy<Value = Compare> {
    let property = prop_oneof![
        (0..4_u64).prop_map(Property::Version),
        (0..12_u64).prop_map(Property::CreateRevision),
        (0..12_u64).prop_map(Property::ModRevision),
        any_key().prop_map(Property::Value),
    ];
    let relation =
        prop::sample::select(vec![Relation::Equal, Relation::NotEqual, Relation::Less, Relation::Greater]);
    (any_span(), property, relation).prop_map(|(keys, property, relation)| that(keys, property, relation))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any_key(), any_key()).prop_map(|(key, value)| Step::Put { key, value, lease: 0 }),
        2 => (any_span(), 0..4_u64, any::<bool>())
            .prop_map(|(keys, limit, keys_only)| {
                let want = if keys_only { Want::Keys } else { Want::Entries };
                Step::Get(Range { limit, want, ..Range::of(keys) })
            }),
        1 => any_span().prop_map(|keys| Step::Delete { keys }),
    ]
}

/// Parts of which each is named by the one before it, in one of its lists.
pub(super) fn any_transaction() -> impl Strategy<Value = Transaction> {
    let lists = || prop::collection::vec(any_step(), 0..3);
    let part = (prop::collection::vec(any_compare(), 0..3), lists(), lists(), any::<bool>());
    prop::collection::vec(part, 1..4).prop_map(|parts| {
        let last = parts.len() - 1;
        let parts = parts.into_iter().enumerate().map(|(at, (compare, mut then, mut otherwise, is_then))| {
            if at < last {
                let list = if is_then { &mut then } else { &mut otherwise };
                list.insert(list.len() / 2, Step::Nested(at as u8 + 1));
            }
            Part { compare, then, otherwise }
        });
        Transaction { parts: parts.collect() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn transactions_do_what_the_plain_model_does(
        transactions in prop::collection::vec(any_transaction(), 1..12)
    ) {
        let (mut store, mut model) = (Store::new(), Model { revision: 1, ..Model::default() });
        for transaction in transactions {
            let outcome = store.one(Operation::Transaction(transaction.clone()));
            if transaction.check().is_err() {
                prop_assert_eq!(outcome, Outcome::Refused(Refusal::WrittenTwice));
            } else {
                prop_assert_eq!(outcome, model.transact(&transaction));
            }
            prop_assert_eq!(store.machine.head().revision, model.revision);
            prop_assert_eq!(store.state(), store.recomputed());
        }
        for key in KEYS {
            prop_assert_eq!(store.get(key), model.entries.get(&bytes(key)).cloned());
        }
    }
}

#[test]
fn what_ranges_delete_in_a_block_is_bounded() {
    let mut store = Store::new();
    for chunk in 0..=MAX_DELETED / 1024 {
        store.run(&(0..1024).map(|n| put(&format!("{chunk:03}-{n:04}"), "x")).collect::<Vec<_>>());
    }
    let deletes = |keys| always(vec![stores("new", ""), Step::Delete { keys }]);
    assert_eq!(store.one(delete_prefix("")), Outcome::Refused(Refusal::DeletesTooMuch));
    assert_eq!(store.refused(deletes(prefix("0"))), Refusal::DeletesTooMuch);
    assert_eq!(store.get("new"), None, "nothing of it is done");
    // Two ranges that may each be deleted, and not both.
    let two = vec![
        stores("new", ""),
        Step::Delete { keys: range("000", "020") },
        Step::Delete { keys: range("020", "040") },
    ];
    assert_eq!(store.refused(always(two)), Refusal::DeletesTooMuch);
    // What a transaction reads takes nothing from what it deletes.
    let all = Step::Get(Range { want: Want::Keys, ..Range::of(prefix("")) });
    let (_, taken) = store.transact(always(vec![all, Step::Delete { keys: prefix("000-000") }]));
    assert_eq!(taken.steps, [StepOutcome::NotRead, StepOutcome::Deleted(10)]);
    // And many ranges are refused or all deleted.
    let many: Vec<_> =
        (0..MAX_STEPS).map(|n| Step::Delete { keys: prefix(&format!("001-0{n:03}")) }).collect();
    let absent = that(one("none"), Property::Version(0), Relation::Equal);
    let (_, taken) = store.transact(Transaction { parts: vec![part(vec![absent], many, vec![])] });
    assert!(taken.steps.iter().all(|step| *step == StepOutcome::Deleted(1)));
    let there = store.count("");
    // What one request has deleted, the next one in the block can't.
    let many = Operation::Transaction(always(vec![Step::Delete { keys: range("000", "020") }]));
    let outcomes = store.run(&[many.clone(), delete_prefix("02"), delete_prefix("03"), delete("032-0000")]);
    assert!(
        matches!(&outcomes[0], Outcome::Transaction { taken, .. } if taken.steps == [StepOutcome::Deleted(20 * 1024 - 138)])
    );
    assert!(matches!(outcomes[1], Outcome::Deleted { keys: 10_240, .. }));
    assert_eq!(outcomes[2], Outcome::Refused(Refusal::DeletesTooMuch));
    assert!(matches!(outcomes[3], Outcome::Deleted { keys: 1, .. }), "one key can always be deleted");
    assert_eq!(store.count(""), there - (30 * 1024 - 138) - 1);
    assert!(matches!(store.one(delete_prefix("03")), Outcome::Deleted { .. }));
    assert_eq!(store.state(), store.recomputed());
}
