//! Our checker and another one, of another kind: stateright's tries every interleaving of the clients, and remembers nothing. They say
//! the same of some thousands of small histories.

use std::collections::BTreeMap;

use bftd_sim::linearizability::{
    Action, Answer, Compare, History, Outcome, Step, Test, Ticket, Transaction, Verdict, check,
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
    // Told again, event by event.
    let mut events = Vec::new();
    for (at, operation) in history.operations().iter().enumerate() {
        events.push((operation.called, at, None));
        if let Outcome::Answered { returned, answer } = &operation.outcome {
            let answer = if at == wrong { changed(answer, random) } else { answer.clone() };
            events.push((*returned, at, Some(answer)));
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
    Some(retold)
}

fn changed(answer: &Answer, random: &mut ChaCha8Rng) -> Answer {
    match answer {
        Answer::Put => Answer::Put,
        Answer::Found(None) => Answer::Found(Some(any_value(random))),
        Answer::Found(Some(_)) if random.random_bool(0.3) => Answer::Found(None),
        Answer::Found(Some(value)) => {
            Answer::Found(Some(Bytes::from_static(if value == "1" { b"2" } else { b"1" })))
        }
        Answer::Deleted(keys) => Answer::Deleted(1 - keys),
        Answer::Taken { succeeded, steps } => match steps.iter().position(|step| *step != Answer::Put) {
            Some(at) if random.random_bool(0.7) => {
                let mut steps = steps.clone();
                steps[at] = changed(&steps[at], random);
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
