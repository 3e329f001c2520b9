//! Between the operations of a history and those of the state machine.

use bftd_core::kv::{
    Compare as KvCompare, Expect, Operation, Outcome, Part, Property, Range, Relation, Span, Step as KvStep,
    StepOutcome, Transaction as KvTransaction,
};

use super::store::{Action, Answer, Compare, Step, Test, Transaction};

/// What is asked of the state machine. A question is none of its operations.
pub fn to_operation(action: &Action) -> Option<Operation> {
    Some(match action {
        Action::Step(Step::Get { .. }) => return None,
        Action::Step(Step::Put { key, value }) => Operation::put(key.clone(), value.clone()),
        Action::Step(Step::Delete { key }) => Operation::Delete { key: key.clone() },
        Action::Transaction(Transaction { compare, then, otherwise }) => {
            let steps = |steps: &[Step]| steps.iter().map(to_step).collect();
            let compare = compare.iter().map(to_compare).collect();
            let part = Part { compare, then: steps(then), otherwise: steps(otherwise) };
            Operation::Transaction(KvTransaction { parts: vec![part] })
        }
    })
}

fn to_compare(Compare { key, test }: &Compare) -> KvCompare {
    let (property, relation) = match test {
        Test::Exists => (Property::Version(0), Relation::Greater),
        Test::IsAbsent => (Property::Version(0), Relation::Equal),
        Test::Equals(value) => (Property::Value(value.clone()), Relation::Equal),
        Test::Differs(value) => (Property::Value(value.clone()), Relation::NotEqual),
    };
    KvCompare { keys: Span::Key(key.clone()), property, relation }
}

fn to_step(step: &Step) -> KvStep {
    match step {
        Step::Put { key, value } => KvStep::Put { key: key.clone(), value: value.clone(), lease: 0 },
        Step::Get { key } => KvStep::Get(Range::of(Span::Key(key.clone()))),
        Step::Delete { key } => KvStep::Delete { keys: Span::Key(key.clone()) },
    }
}

/// The action in an operation of the state machine; none where the model has no such thing.
pub fn to_action(operation: &Operation) -> Option<Action> {
    Some(match operation {
        Operation::Put { key, value, expect: Expect::Anything, lease: 0 } => {
            Action::Step(Step::Put { key: key.clone(), value: value.clone() })
        }
        Operation::Delete { key } => Action::Step(Step::Delete { key: key.clone() }),
        Operation::Transaction(KvTransaction { parts }) => match parts.as_slice() {
            [Part { compare, then, otherwise }] => Action::Transaction(Transaction {
                compare: compare.iter().map(from_compare).collect::<Option<_>>()?,
                then: then.iter().map(from_step).collect::<Option<_>>()?,
                otherwise: otherwise.iter().map(from_step).collect::<Option<_>>()?,
            }),
            _ => return None,
        },
        _ => return None,
    })
}

fn from_compare(compare: &KvCompare) -> Option<Compare> {
    let Span::Key(key) = &compare.keys else { return None };
    let test = match (&compare.property, compare.relation) {
        (Property::Version(0), Relation::Greater) => Test::Exists,
        (Property::Version(0), Relation::Equal) => Test::IsAbsent,
        (Property::Value(value), Relation::Equal) => Test::Equals(value.clone()),
        (Property::Value(value), Relation::NotEqual) => Test::Differs(value.clone()),
        _ => return None,
    };
    Some(Compare { key: key.clone(), test })
}

fn from_step(step: &KvStep) -> Option<Step> {
    Some(match step {
        KvStep::Put { key, value, lease: 0 } => Step::Put { key: key.clone(), value: value.clone() },
        KvStep::Get(Range { keys: Span::Key(key), revision: 0, .. }) => Step::Get { key: key.clone() },
        KvStep::Delete { keys: Span::Key(key), .. } => Step::Delete { key: key.clone() },
        _ => return None,
    })
}

/// What a client is told when the state machine has executed its action; none where nothing of the kind can come of it.
pub fn to_answer(outcome: &Outcome) -> Option<Answer> {
    Some(match outcome {
        Outcome::Put { .. } => Answer::Put,
        Outcome::Deleted { keys, .. } => Answer::Deleted(*keys),
        Outcome::Transaction { taken, .. } => Answer::Taken {
            succeeded: taken.succeeded,
            steps: taken.steps.iter().map(step_answer).collect::<Option<_>>()?,
        },
        _ => return None,
    })
}

fn step_answer(outcome: &StepOutcome) -> Option<Answer> {
    Some(match outcome {
        StepOutcome::Put => Answer::Put,
        StepOutcome::Deleted(keys, ..) => Answer::Deleted(*keys),
        StepOutcome::Found(listing) => match listing.entries.as_slice() {
            [] => Answer::Found(None),
            [(_, entry)] => Answer::Found(Some(entry.value.clone())),
            _ => return None,
        },
        StepOutcome::NotRead | StepOutcome::Nested(_) => return None,
    })
}
