//! Our checker and two others. Stateright's, of another kind, tries every interleaving of the clients, and remembers nothing. The plain one
//! here tries every order as ours does, but has none of its rules: it takes longer histories, with many unknown outcomes. They say
//! the same of some thousands of small histories each.

use std::collections::{BTreeMap, HashSet};

use bftd_sim::linearizability::{
    Action, Answer, Compare, History, Operation, Outcome, Step, Test, Ticket, Transaction, Verdict, check,
};
use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

/// A store as stateright takes one.
#[derive(Clone, Default)]
struct Model(BTreeMap<Bytes, Bytes>);

impl SequentialSpec for Model {
    type Op = Action;
    type Ret = Answer;

    fn invoke(&mut self, action: &Action) -> Answer {
        action.apply(&mut self.0)
    }
}

/// Its verdict. Who has no answer never does anything again there, so every operation of unknown outcome is a thread of its own.
fn others_verdict(history: &History) -> bool {
    let mut events = Vec::new();
    for (number, operation) in history.operations().iter().enumerate() {
        let thread = match &operation.outcome {
            Outcome::Unknown => 1_000 + u32::try_from(number).expect("few operations"),
            Outcome::Answered { .. } => operation.client,
            Outcome::Refused => continue,
        };
        events.push((operation.called, thread, None));
        if let Outcome::Answered { returned, answer } = &operation.outcome {
            events.push((*returned, thread, Some(answer)));
        }
    }
    events.sort_by_key(|(at, ..)| *at);
    let mut tester = LinearizabilityTester::new(Model::default());
    for (at, thread, answer) in events {
        let told = match answer {
            Some(answer) => tester.on_return(thread, answer.clone()),
            None => {
                let mut called = history.operations().iter().filter(|operation| operation.called == at);
                tester.on_invoke(thread, called.next().expect("somebody called then").action.clone())
            }
        };
        told.expect("each thread does one thing at a time");
    }
    tester.is_consistent()
}

fn our_verdict(history: &History) -> bool {
    match check(history).verdict {
        Verdict::Linearizable => true,
        Verdict::NotLinearizable(_) => false,
        Verdict::Unknown => panic!("a small history is given up: {history:?}"),
    }
}

fn any_key(random: &mut ChaCha8Rng) -> Bytes {
    Bytes::from_static([&b"a"[..], b"b", b"c"][random.random_range(0..3)])
}

fn any_value(random: &mut ChaCha8Rng) -> Bytes {
    Bytes::from_static([&b"1"[..], b"2"][random.random_range(0..2)])
}

fn any_step(random: &mut ChaCha8Rng) -> Step {
    let key = any_key(random);
    match random.random_range(0..5) {
        0 | 1 => Step::Put { key, value: any_value(random) },
        2 | 3 => Step::Get { key },
        _ => Step::Delete { key },
    }
}

fn any_action(random: &mut ChaCha8Rng) -> Action {
    if random.random_bool(0.7) {
        return Action::Step(any_step(random));
    }
    let key = any_key(random);
    let test = match random.random_range(0..4) {
        0 => Test::Exists,
        1 => Test::IsAbsent,
        2 => Test::Equals(any_value(random)),
        _ => Test::Differs(any_value(random)),
    };
    let mut steps = || (0..random.random_range(0..3)).map(|_| any_step(random)).collect();
    Action::Transaction(Transaction {
        then: steps(),
        otherwise: steps(),
        compare: vec![Compare { key, test }],
    })
}

/// A history that is linearizable because it was made so: each operation takes effect at one moment while it is under way. Some clients
/// go away with no answer, before that or after it.
fn linearizable(random: &mut ChaCha8Rng) -> History {
    struct Busy {
        client: u32,
        ticket: Ticket,
        action: Action,
        answer: Option<Answer>,
    }
    let mut history = History::default();
    let mut store = BTreeMap::new();
    let mut busy: Vec<Busy> = Vec::new();
    let (mut left, mut clients) = (random.random_range(3..=9), 0);
    let most_busy = random.random_range(1..=4);
    while left > 0 || !busy.is_empty() {
        if left > 0 && busy.len() < most_busy && (busy.is_empty() || random.random_bool(0.4)) {
            left -= 1;
            clients += 1;
            let action = any_action(random);
            let ticket = history.call(clients, action.clone());
            busy.push(Busy { client: clients, ticket, action, answer: None });
            continue;
        }
        let at = random.random_range(0..busy.len());
        if random.random_bool(0.06) {
            busy.remove(at);
        } else if let Some(answer) = busy[at].answer.clone() {
            history.answer(busy.remove(at).ticket, answer);
        } else {
            busy[at].answer = Some(busy[at].action.apply(&mut store));
        }
    }
    assert!(busy.iter().all(|it| it.client > 0));
    history
}

/// The same with another answer somewhere, where one of its kind has another.
fn with_a_wrong_answer(history: &History, random: &mut ChaCha8Rng) -> Option<History> {
    let answered =
        |outcome: &Outcome| matches!(outcome, Outcome::Answered { answer, .. } if *answer != Answer::Put);
    let places: Vec<_> =
        (0..history.operations().len()).filter(|at| answered(&history.operations()[*at].outcome)).collect();
    if places.is_empty() {
        return None;
    }
    let wrong = places[random.random_range(0..places.len())];
    let pool = values(history);
    Some(retold(
        history,
        |at, answer| if at == wrong { changed(answer, &pool, random) } else { answer.clone() },
        |_| true,
    ))
}

/// The history told again, event by event, with other answers, and only those operations that are kept.
fn retold(
    history: &History,
    mut answer_of: impl FnMut(usize, &Answer) -> Answer,
    is_kept: impl Fn(usize) -> bool,
) -> History {
    let mut events = Vec::new();
    for (at, operation) in history.operations().iter().enumerate().filter(|(at, _)| is_kept(*at)) {
        events.push((operation.called, at, None));
        if let Outcome::Answered { returned, answer } = &operation.outcome {
            events.push((*returned, at, Some(answer_of(at, answer))));
        }
    }
    events.sort_by_key(|(when, ..)| *when);
    let mut retold = History::default();
    let mut tickets = BTreeMap::new();
    for (_, at, answer) in events {
        match answer {
            None => {
                let operation = &history.operations()[at];
                tickets.insert(at, retold.call(operation.client, operation.action.clone()));
            }
            Some(answer) => retold.answer(tickets[&at], answer),
        }
    }
    retold
}

/// All values that somebody puts, and one that nobody does.
fn values(history: &History) -> Vec<Bytes> {
    let steps = history.operations().iter().flat_map(|operation| match &operation.action {
        Action::Step(step) => vec![step],
        Action::Transaction(Transaction { then, otherwise, .. }) => then.iter().chain(otherwise).collect(),
    });
    let put = steps.filter_map(|step| match step {
        Step::Put { value, .. } => Some(value.clone()),
        _ => None,
    });
    put.chain([Bytes::from_static(b"nobody's")]).collect()
}

fn changed(answer: &Answer, pool: &[Bytes], random: &mut ChaCha8Rng) -> Answer {
    match answer {
        Answer::Put => Answer::Put,
        Answer::Found(Some(_)) if random.random_bool(0.3) => Answer::Found(None),
        Answer::Found(value) => {
            let others: Vec<_> = pool.iter().filter(|other| Some(*other) != value.as_ref()).collect();
            Answer::Found(Some(others[random.random_range(0..others.len())].clone()))
        }
        Answer::Deleted(keys) => Answer::Deleted(1 - keys),
        Answer::Taken { succeeded, steps } => match steps.iter().position(|step| *step != Answer::Put) {
            Some(at) if random.random_bool(0.7) => {
                let mut steps = steps.clone();
                steps[at] = changed(&steps[at], pool, random);
                Answer::Taken { succeeded: *succeeded, steps }
            }
            _ => Answer::Taken { succeeded: !succeeded, steps: steps.clone() },
        },
    }
}

#[test]
fn another_checker_says_the_same() {
    let mut random = ChaCha8Rng::seed_from_u64(2017);
    let (mut unknown, mut good, mut bad) = (0, 0, 0);
    for number in 0..5_000 {
        let history = linearizable(&mut random);
        unknown += usize::from(history.unknown() > 0);
        assert!(our_verdict(&history), "history {number} was made so: {history:#?}");
        assert!(others_verdict(&history), "history {number} was made so: {history:#?}");
        if let Some(wrong) = with_a_wrong_answer(&history, &mut random) {
            let ours = our_verdict(&wrong);
            assert_eq!(ours, others_verdict(&wrong), "history {number}: {wrong:#?}");
            *if ours { &mut good } else { &mut bad } += 1;
        }
    }
    // A wrong answer may be a right one in another order.
    assert!(unknown > 1_000 && good > 300 && bad > 2_000, "{unknown} {good} {bad}");
}

/// Tries every order: what was executed (a bit each) and the store are all that it remembers.
fn plain_verdict(history: &History) -> bool {
    let is_sought = |operation: &&Operation| match operation.outcome {
        Outcome::Refused => false,
        Outcome::Unknown => operation.action.writes(),
        Outcome::Answered { .. } => true,
    };
    let operations: Vec<_> = history.operations().iter().filter(is_sought).collect();
    let returned = |operation: &Operation| match operation.outcome {
        Outcome::Answered { returned, .. } => Some(returned),
        _ => None,
    };
    let mut seen = HashSet::from([(0_u64, BTreeMap::new())]);
    let mut open: Vec<_> = seen.iter().cloned().collect();
    while let Some((executed, store)) = open.pop() {
        let is_left = |at: &usize| executed & 1 << at == 0;
        let left: Vec<_> = (0..operations.len()).filter(is_left).collect();
        let Some(deadline) = left.iter().filter_map(|at| returned(operations[*at])).min() else {
            return true;
        };
        for at in left.into_iter().filter(|at| operations[*at].called < deadline) {
            let mut store = store.clone();
            let got = operations[at].action.apply(&mut store);
            let fits = match &operations[at].outcome {
                Outcome::Answered { answer, .. } => got == *answer,
                _ => true,
            };
            let next = (executed | 1 << at, store);
            if fits && seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    false
}

/// What a contended history is drawn from: few keys, values that others have written and values of one's own, and clients that
/// mostly go away.
struct Contended {
    keys: usize,
    /// How likely an operation has no answer.
    gone: f64,
    /// How likely a value is a new one.
    own: f64,
    values: u8,
}

impl Contended {
    fn draw(random: &mut ChaCha8Rng) -> Self {
        Self {
            keys: random.random_range(1..=2),
            gone: random.random_range(0.2..0.8),
            own: random.random_range(0.0..1.0),
            values: 0,
        }
    }

    fn key(&self, random: &mut ChaCha8Rng) -> Bytes {
        Bytes::from_static([&b"a"[..], b"b"][random.random_range(0..self.keys)])
    }

    fn value(&mut self, random: &mut ChaCha8Rng) -> Bytes {
        if self.values == 0 || random.random_bool(self.own) {
            self.values += 1;
            return Bytes::from(self.values.to_string());
        }
        Bytes::from(random.random_range(1..=self.values).to_string())
    }

    fn step(&mut self, random: &mut ChaCha8Rng) -> Step {
        let key = self.key(random);
        match random.random_range(0..4) {
            0 | 1 => Step::Put { key, value: self.value(random) },
            2 => Step::Get { key },
            _ => Step::Delete { key },
        }
    }

    fn action(&mut self, random: &mut ChaCha8Rng) -> Action {
        if random.random_bool(0.5) {
            return Action::Step(self.step(random));
        }
        let key = self.key(random);
        let value = self.value(random);
        let test = match random.random_range(0..8) {
            0 => Test::Exists,
            1 => Test::IsAbsent,
            2 => Test::Differs(value.clone()),
            _ => Test::Equals(value.clone()),
        };
        // As the workload's: what is compared with may be what is put otherwise.
        let otherwise = match random.random_range(0..3) {
            0 => vec![Step::Put { key: key.clone(), value }],
            1 => vec![],
            _ => vec![self.step(random)],
        };
        let then = (0..random.random_range(0..3)).map(|_| self.step(random)).collect();
        Action::Transaction(Transaction { compare: vec![Compare { key, test }], then, otherwise })
    }

    /// Linearizable, as each operation is executed at once when it is called, or nobody is told. What nobody is told of may
    /// happen later, or never.
    fn history(&mut self, random: &mut ChaCha8Rng) -> History {
        let mut history = History::default();
        let mut store = BTreeMap::new();
        let mut pending = Vec::new();
        let mut returning: Vec<(Ticket, Answer)> = Vec::new();
        for client in 0..random.random_range(4..=14) {
            let action = self.action(random);
            let ticket = history.call(client, action.clone());
            if random.random_bool(self.gone) {
                pending.push(action);
            } else {
                returning.push((ticket, action.apply(&mut store)));
            }
            while !pending.is_empty() && random.random_bool(0.4) {
                pending.swap_remove(random.random_range(0..pending.len())).apply(&mut store);
            }
            while returning.len() > 2 || !returning.is_empty() && random.random_bool(0.6) {
                let (ticket, answer) = returning.swap_remove(random.random_range(0..returning.len()));
                history.answer(ticket, answer);
            }
        }
        for (ticket, answer) in returning {
            history.answer(ticket, answer);
        }
        history
    }
}

/// The same without one of its operations of unknown outcome, which may have been needed.
fn with_one_fewer(history: &History, random: &mut ChaCha8Rng) -> Option<History> {
    let is_unknown = |at: &usize| history.operations()[*at].outcome == Outcome::Unknown;
    let unknown: Vec<_> = (0..history.operations().len()).filter(is_unknown).collect();
    let without = *unknown.get(random.random_range(0..unknown.len().max(1)))?;
    Some(retold(history, |_, answer| answer.clone(), |at| at != without))
}

#[test]
fn many_unknown_outcomes_are_judged_as_the_plain_search_does() {
    let mut random = ChaCha8Rng::seed_from_u64(1997);
    let (mut good, mut bad, mut decided_by_unknown) = (0, 0, 0);
    for number in 0..30_000 {
        let history = Contended::draw(&mut random).history(&mut random);
        assert!(our_verdict(&history), "history {number} was made so: {history:#?}");
        let others = [with_a_wrong_answer(&history, &mut random), with_one_fewer(&history, &mut random)];
        for other in others.into_iter().flatten() {
            let plain = plain_verdict(&other);
            assert_eq!(our_verdict(&other), plain, "history {number}: {other:#?}");
            *if plain { &mut good } else { &mut bad } += 1;
            decided_by_unknown += usize::from(!plain && other.unknown() >= 4);
        }
        if number % 10 == 0 {
            assert!(plain_verdict(&history), "history {number} was made so: {history:#?}");
        }
    }
    assert!(good > 10_000 && bad > 10_000 && decided_by_unknown > 3_000, "{good} {bad} {decided_by_unknown}");
}
