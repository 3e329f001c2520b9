use std::{collections::BTreeMap, sync::Arc};

use bftd_core::{
    block::{Batch, Block, Executed, Header},
    crypto::{Digest, Signer},
    ids::{BatchNumber, Incarnation, Index, MemberId, Term},
    kv::{Operation, Outcome},
    membership::Membership,
    protocol::Protocol,
};
use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    Action, Answer, Compare, Counterexample, History, Limits, Step, Test, Transaction, Verdict, Workload,
    check, check_within,
    kv::{to_action, to_answer, to_operation},
    partition,
};
use crate::{node::State, scheme::Scheme};

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> Action {
    Action::Step(Step::Put { key: b(key), value: b(value) })
}

fn get(key: &str) -> Action {
    Action::Step(Step::Get { key: b(key) })
}

fn delete(key: &str) -> Action {
    Action::Step(Step::Delete { key: b(key) })
}

fn found(value: &str) -> Answer {
    Answer::Found(Some(b(value)))
}

/// If `from` has this value, it goes to `to`.
fn move_value(from: &str, to: &str, value: &str) -> Action {
    Action::Transaction(Transaction {
        compare: vec![Compare { key: b(from), test: Test::Equals(b(value)) }],
        then: vec![Step::Delete { key: b(from) }, Step::Put { key: b(to), value: b(value) }],
        otherwise: vec![Step::Get { key: b(from) }],
    })
}

fn moved() -> Answer {
    Answer::Taken { succeeded: true, steps: vec![Answer::Deleted(1), Answer::Put] }
}

/// One operation after the other.
fn one_by_one(done: Vec<(Action, Answer)>) -> History {
    let mut history = History::default();
    for (action, answer) in done {
        let ticket = history.call(1, action);
        history.answer(ticket, answer);
    }
    history
}

fn verdict(history: &History) -> Verdict {
    check(history).verdict
}

fn why(history: &History) -> Counterexample {
    match verdict(history) {
        Verdict::NotLinearizable(why) => *why,
        other => panic!("{other:?}: {history:?}"),
    }
}

#[test]
fn one_after_the_other_each_sees_what_was_before() {
    let good = vec![
        (get("a"), Answer::Found(None)),
        (delete("a"), Answer::Deleted(0)),
        (put("a", "1"), Answer::Put),
        (get("a"), found("1")),
        (move_value("a", "b", "1"), moved()),
        (get("a"), Answer::Found(None)),
        (get("b"), found("1")),
        (delete("b"), Answer::Deleted(1)),
    ];
    assert_eq!(verdict(&one_by_one(good.clone())), Verdict::Linearizable);
    // Each answer is one of a kind: another one is wrong.
    let other = |answer: &Answer| match answer {
        Answer::Found(None) => Some(found("1")),
        Answer::Found(Some(_)) => Some(Answer::Found(None)),
        Answer::Deleted(keys) => Some(Answer::Deleted(1 - keys)),
        Answer::Taken { .. } => {
            Some(Answer::Taken { succeeded: false, steps: vec![Answer::Found(Some(b("1")))] })
        }
        Answer::Put => None,
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        if let Some(answer) = other(&bad[at].1) {
            bad[at].1 = answer;
            assert_eq!(why(&one_by_one(bad.clone())).culprit.action, bad[at].0, "{bad:?}");
        }
    }
    // What was never written, an answer of another kind, a transaction cut short.
    for (at, answer) in
        [(3, found("7")), (3, Answer::Put), (4, Answer::Taken { succeeded: true, steps: vec![] })]
    {
        let mut bad = good.clone();
        bad[at].1 = answer;
        why(&one_by_one(bad));
    }
}

#[test]
fn what_overlaps_may_come_in_either_order_and_what_does_not_may_not() {
    let mut history = History::default();
    let first = history.call(1, put("a", "1"));
    history.answer(first, Answer::Put);
    let slow = history.call(1, put("a", "2"));
    let old = history.call(2, get("a"));
    history.answer(old, found("1"));
    let new = history.call(3, get("a"));
    history.answer(new, found("2"));
    assert_eq!(verdict(&history), Verdict::Linearizable);
    let mut back = history.clone();
    let old = back.call(2, get("a"));
    back.answer(old, found("1"));
    back.answer(slow, Answer::Put);
    // A value that was seen is not unseen, although the put has not returned.
    assert_eq!(why(&back).culprit.client, 2);
    // Nor is it once the put has.
    history.answer(slow, Answer::Put);
    let old = history.call(2, get("a"));
    history.answer(old, found("1"));
    why(&history);
}

#[test]
fn an_unknown_outcome_may_be_any_time_after_the_call_or_never_but_not_twice() {
    let mut history = History::default();
    let first = history.call(1, put("a", "1"));
    history.answer(first, Answer::Put);
    let _unknown = history.call(1, put("a", "2"));
    let read = |history: &mut History, answer| {
        let ticket = history.call(2, get("a"));
        history.answer(ticket, answer);
    };
    read(&mut history, found("1"));
    assert_eq!(verdict(&history), Verdict::Linearizable, "never");
    read(&mut history, found("2"));
    assert_eq!(verdict(&history), Verdict::Linearizable, "late");
    let again = history.call(1, put("a", "3"));
    history.answer(again, Answer::Put);
    read(&mut history, found("3"));
    assert_eq!(verdict(&history), Verdict::Linearizable);
    read(&mut history, found("2"));
    why(&history);
    // Not before its call.
    let mut early = History::default();
    read(&mut early, found("2"));
    let _unknown = early.call(1, put("a", "2"));
    why(&early);
}

/// Found by the comparison with another checker: such a put was taken at once, as if it had only looked.
#[test]
fn a_put_of_what_is_there_may_be_needed_later() {
    let mut history = one_by_one(vec![(put("a", "1"), Answer::Put)]);
    let deleting = history.call(1, delete("a"));
    let again = history.call(2, put("a", "1"));
    history.answer(deleting, Answer::Deleted(1));
    history.answer(again, Answer::Put);
    let ticket = history.call(3, get("a"));
    history.answer(ticket, found("1"));
    assert_eq!(verdict(&history), Verdict::Linearizable);
}

#[test]
fn what_was_refused_is_not_seen() {
    let mut history = History::default();
    let refused = history.call(1, put("a", "1"));
    history.refuse(refused);
    let ticket = history.call(2, get("a"));
    let mut bad = history.clone();
    history.answer(ticket, Answer::Found(None));
    assert_eq!(verdict(&history), Verdict::Linearizable);
    bad.answer(ticket, found("1"));
    why(&bad);
}

#[test]
fn a_transaction_is_seen_whole_or_not_at_all() {
    let mut history = one_by_one(vec![(put("a", "1"), Answer::Put)]);
    let moving = history.call(1, move_value("a", "b", "1"));
    let ticket = history.call(2, get("b"));
    history.answer(ticket, found("1"));
    let ticket = history.call(2, get("a"));
    let mut bad = history.clone();
    history.answer(ticket, Answer::Found(None));
    history.answer(moving, moved());
    assert_eq!(verdict(&history), Verdict::Linearizable);
    bad.answer(ticket, found("1"));
    assert_eq!(why(&bad).keys, ["a", "b"], "both keys are one part");
}

#[test]
fn keys_are_checked_apart_and_those_of_transactions_together() {
    let history = one_by_one(vec![
        (put("a", "1"), Answer::Put),
        (put("b", "1"), Answer::Put),
        (put("c", "1"), Answer::Put),
        (put("d", "1"), Answer::Put),
        (move_value("a", "b", "1"), moved()),
        (move_value("b", "c", "1"), moved()),
    ]);
    let parts: Vec<_> = partition::partitions(&history)
        .iter()
        .map(|part| (part.keys.iter().map(|key| text_of(key)).collect::<String>(), part.operations.len()))
        .collect();
    assert_eq!(parts, [("abc".to_owned(), 5), ("d".to_owned(), 1)]);
}

fn text_of(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// If a key has the one value, it gets the other.
fn compare_and_set(key: &str, from: &str, to: &str) -> Action {
    Action::Transaction(Transaction {
        compare: vec![Compare { key: b(key), test: Test::Equals(b(from)) }],
        then: vec![Step::Put { key: b(key), value: b(to) }],
        otherwise: vec![],
    })
}

/// A walk that may take each of many ways once, and a place where none of them leads: all simple paths are tried.
fn hard() -> History {
    let mut history = one_by_one(vec![(put("a", "0"), Answer::Put)]);
    for from in 0..12 {
        for to in (0..12).filter(|to| *to != from) {
            let _unknown = history.call(1, compare_and_set("a", &from.to_string(), &to.to_string()));
        }
    }
    let ticket = history.call(99, get("a"));
    history.answer(ticket, found("nobody's"));
    history
}

#[test]
fn a_search_that_takes_too_much_is_given_up_and_says_so() {
    let few_bytes = Limits { bytes: 100_000, ..Limits::default() };
    let judged = check_within(&hard(), few_bytes);
    assert_eq!(judged.verdict, Verdict::Unknown);
    // Each has a count of 4 bytes for each of 132 kinds.
    assert!((100..200).contains(&judged.configurations), "{judged:?}");
    let few_steps = Limits { steps: 5_000, ..Limits::default() };
    let judged = check_within(&hard(), few_steps);
    assert_eq!(judged.verdict, Verdict::Unknown);
    assert!((5_000..6_000).contains(&judged.steps), "{judged:?}");
    // A part that fails is found all the same.
    let mut worse = hard();
    let ticket = worse.call(100, get("z"));
    worse.answer(ticket, found("7"));
    assert!(matches!(check_within(&worse, few_steps).verdict, Verdict::NotLinearizable(_)));
}

/// How many operations of unknown outcome are left of each kind.
fn kinds(history: &History) -> Vec<usize> {
    let [part] = &partition::partitions(history)[..] else { panic!("one part") };
    let mut kinds: Vec<_> = part.problem().unknown.iter().map(|alike| alike.members.len()).collect();
    kinds.sort_unstable();
    kinds
}

#[test]
fn changes_that_nobody_tells_apart_are_one_kind() {
    let mut history = History::default();
    for value in ["1", "2", "3"] {
        let _unknown = history.call(1, put("a", value));
        // Nobody else writes what it compares with: it only looks.
        let _unknown = history.call(1, move_value("b", "a", &format!("{value}0")));
    }
    assert_eq!(kinds(&history), [3]);
    // It can only fail, and then it writes what it was to compare with.
    let mut upsert = compare_and_set("a", "7", "8");
    if let Action::Transaction(transaction) = &mut upsert {
        transaction.otherwise = vec![Step::Put { key: b("a"), value: b("7") }];
    }
    let _unknown = history.call(1, upsert);
    assert_eq!(kinds(&history), [4]);
    // One is told of, and one is compared with where that may hold; a value of another key is another.
    let ticket = history.call(1, get("a"));
    history.answer(ticket, found("1"));
    assert_eq!(kinds(&history), [1, 3]);
    let _unknown = history.call(1, compare_and_set("a", "2", "9"));
    assert_eq!(kinds(&history), [1, 1, 1, 2]);
    let ticket = history.call(1, move_value("a", "b", "3"));
    history.answer(ticket, Answer::Taken { succeeded: false, steps: vec![found("1")] });
    let _unknown = history.call(1, put("b", "8"));
    assert_eq!(kinds(&history), [1, 1, 1, 1, 1, 1]);
}

/// Clients of the simulated runs, none of whom gets an answer for long: the plain search takes forever.
#[test]
fn hundreds_of_unknown_outcomes_are_decided() {
    for seed in 0..40 {
        let mut work = Workload::new(seed, "");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut history = History::default();
        let mut store = BTreeMap::new();
        for number in 0..600 {
            let action = work.draw();
            let ticket = history.call(number, action.clone());
            // Sometimes it happens and nobody is told, and sometimes not at all.
            if number % 100 > 80 {
                let answer = action.apply(&mut store);
                work.learn(&action, &answer);
                history.answer(ticket, answer);
            } else if random.random_bool(0.5) {
                action.apply(&mut store);
            }
        }
        assert!(history.unknown() > 250, "{seed}");
        let judged = check(&history);
        assert_eq!(judged.verdict, Verdict::Linearizable, "{seed}");
        // Far from the limit.
        assert!(judged.steps < 100_000_000, "{seed}: {judged:?}");
    }
}

#[test]
fn a_counterexample_ends_with_the_first_answer_that_no_order_explains() {
    let mut history = one_by_one(vec![
        (put("a", "1"), Answer::Put),
        (put("b", "1"), Answer::Put),
        (put("a", "2"), Answer::Put),
    ]);
    let _unknown = history.call(4, put("a", "3"));
    let stale = history.call(3, get("a"));
    let other = history.call(5, get("a"));
    history.answer(stale, found("1"));
    history.answer(other, found("2"));
    let later = history.call(3, put("a", "4"));
    history.answer(later, Answer::Put);
    let told = why(&history).to_string();
    assert_eq!(
        told,
        "no order explains the 5 operations on a up to this answer:\n  \
           [8, 10] client 3: get a: 1\n\
         the longest order that fits:\n  \
           [1, 2] client 1: put a = 1: ok\n  \
           [5, 6] client 1: put a = 2: ok\n\
         then the store is a = 2, and nothing that must come next fits:\n  \
           [8, 10] client 3: get a: 1; it would be: 2"
    );
}

/// Any action on a few keys and values.
fn any_action(random: &mut ChaCha8Rng) -> Action {
    let key = |random: &mut ChaCha8Rng| b(["a", "b", "c"][random.random_range(0..3)]);
    let value = |random: &mut ChaCha8Rng| b(["1", "2"][random.random_range(0..2)]);
    let step = |random: &mut ChaCha8Rng| match random.random_range(0..3) {
        0 => Step::Put { key: key(random), value: value(random) },
        1 => Step::Get { key: key(random) },
        _ => Step::Delete { key: key(random) },
    };
    if random.random_bool(0.4) {
        return Action::Step(step(random));
    }
    let compare = (0..random.random_range(0..3)).map(|_| {
        let test = match random.random_range(0..4) {
            0 => Test::Exists,
            1 => Test::IsAbsent,
            2 => Test::Equals(value(random)),
            _ => Test::Differs(value(random)),
        };
        Compare { key: key(random), test }
    });
    let compare = compare.collect();
    let mut steps = || (0..random.random_range(0..4)).map(|_| step(random)).collect();
    Action::Transaction(Transaction { compare, then: steps(), otherwise: steps() })
}

/// What the state machine answers to these, one after the other.
fn machine_answers(members: &Membership, signer: &dyn Signer, operations: &[Operation]) -> Vec<Outcome> {
    let requests = operations.iter().map(Operation::encode).collect();
    let batch = Batch::sign(members.cluster(), MemberId(1), Incarnation(1), BatchNumber(1), requests, signer);
    let batches = vec![Arc::new(batch)];
    let header = Header {
        cluster: members.cluster(),
        epoch: members.epoch(),
        term: Term(0),
        index: members.root().index.next(),
        parent: members.root().digest,
        time_ms: 1,
        batches: Block::batches_digest(&batches),
        executed: Executed { index: Index(0), state: Digest::ZERO },
        sole: false,
    };
    let mut state = State::new(members);
    let (_, outcomes) = state.execute(&Arc::new(Block::new(header, batches)));
    outcomes.into_iter().flatten().collect()
}

#[test]
fn the_model_and_the_state_machine_answer_alike() {
    let scheme = Scheme::new(4, false);
    let members = scheme.membership("sim", Protocol::default());
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let (mut compared, mut taken) = (0, [0, 0]);
    for _ in 0..200 {
        let asked = (0..30).map(|_| any_action(&mut random));
        // A question is no operation, and one that writes a key twice is refused.
        let asked = asked.filter_map(|action| to_operation(&action).map(|operation| (action, operation)));
        let (actions, operations): (Vec<_>, Vec<_>) =
            asked.filter(|(_, operation)| operation.check().is_ok()).unzip();
        let answers = machine_answers(&members, &*scheme.signers[&MemberId(1)], &operations);
        let mut model = BTreeMap::new();
        for ((action, operation), outcome) in actions.iter().zip(&operations).zip(&answers) {
            assert_eq!(to_action(operation).as_ref(), Some(action), "there and back");
            let expected = action.apply(&mut model);
            assert_eq!(to_answer(outcome).as_ref(), Some(&expected), "{action}");
            compared += 1;
            if let Answer::Taken { succeeded, .. } = expected {
                taken[usize::from(succeeded)] += 1;
            }
        }
    }
    assert!(compared > 2_000 && taken.iter().all(|times| *times > 300), "{compared} {taken:?}");
}
