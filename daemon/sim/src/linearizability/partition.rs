//! Parts of a history that don't touch each other's keys (Horn & Kroening's P-compositionality), and what a search needs of one.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    history::{History, Operation, Outcome},
    problem::{Problem, Sought},
};

/// The operations on keys that belong together.
#[derive(Clone, Debug, Default)]
pub(super) struct Partition<'a> {
    pub keys: Vec<&'a Bytes>,
    /// In the order of their calls. Nothing that was refused, and no question without an answer: these say nothing.
    pub operations: Vec<&'a Operation>,
}

/// The parts of a history. Keys that one operation touches belong together.
pub(super) fn partitions(history: &History) -> Vec<Partition<'_>> {
    let says_something = |operation: &&Operation| match operation.outcome {
        Outcome::Refused => false,
        Outcome::Unknown => operation.action.writes(),
        Outcome::Answered { .. } => true,
    };
    let operations: Vec<_> = history.operations().iter().filter(says_something).collect();
    let mut numbers = BTreeMap::new();
    let mut groups = Groups::default();
    for operation in &operations {
        let mut first = None;
        for key in operation.action.keys() {
            let number = *numbers.entry(key).or_insert_with(|| groups.add());
            groups.join(*first.get_or_insert(number), number);
        }
    }
    let mut parts: BTreeMap<usize, Partition<'_>> = BTreeMap::new();
    for (key, number) in &numbers {
        parts.entry(groups.root(*number)).or_default().keys.push(key);
    }
    for operation in operations {
        // A transaction without any key says nothing but that it was executed.
        if let Some(number) = operation.action.keys().first().and_then(|key| numbers.get(key)) {
            parts.entry(groups.root(*number)).or_default().operations.push(operation);
        }
    }
    parts.into_values().collect()
}

impl Partition<'_> {
    /// What is to be searched.
    pub fn problem(&self) -> Problem {
        self.problem_until(u64::MAX)
    }

    /// The same for what was known right after an event: what returns later has no known outcome yet.
    pub fn problem_until(&self, last: u64) -> Problem {
        let mut keys = Numbers::default();
        let mut values = Numbers::default();
        for key in &self.keys {
            keys.of(key);
        }
        let mut sought = Vec::new();
        let called = self.operations.iter().enumerate().filter(|(_, operation)| operation.called <= last);
        for (number, operation) in called {
            let action =
                operation.action.map(&mut |key: &Bytes| keys.of(key), &mut |value: &Bytes| values.of(value));
            let answered = match &operation.outcome {
                Outcome::Answered { returned, answer } if *returned <= last => {
                    Some((*returned, answer.map(&mut |value: &Bytes| values.of(value))))
                }
                _ => None,
            };
            sought.push(Sought { number, action, called: operation.called, answered });
        }
        Problem::of(self.keys.len(), &sought)
    }

    /// When operations of this part return, in order.
    pub fn returns(&self) -> Vec<u64> {
        let mut returns: Vec<_> = self
            .operations
            .iter()
            .filter_map(|operation| match operation.outcome {
                Outcome::Answered { returned, .. } => Some(returned),
                _ => None,
            })
            .collect();
        returns.sort_unstable();
        returns
    }
}

/// A number for each different thing, from 0.
#[derive(Default)]
struct Numbers(BTreeMap<Bytes, u32>);

impl Numbers {
    fn of(&mut self, bytes: &Bytes) -> u32 {
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        *self.0.entry(bytes.clone()).or_insert(next)
    }
}

/// Union-find, with paths halved.
#[derive(Default)]
struct Groups(Vec<usize>);

impl Groups {
    fn add(&mut self) -> usize {
        self.0.push(self.0.len());
        self.0.len() - 1
    }

    fn root(&mut self, mut at: usize) -> usize {
        while self.0[at] != at {
            self.0[at] = self.0[self.0[at]];
            at = self.0[at];
        }
        at
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.0[other] = one;
    }
}
