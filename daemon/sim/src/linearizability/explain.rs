//! Why a history is not linearizable, for people to read.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;

use super::{
    Limits,
    history::{Operation, Outcome},
    partition::Partition,
    search::{Found, search},
    store::text,
};

/// How many operations of the order are shown.
const SHOWN: usize = 12;

/// The shortest beginning of a history that no order explains, and how far one gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// The keys that it is about.
    pub keys: Vec<Bytes>,
    /// The operation after whose return no order is left.
    pub culprit: Operation,
    /// How many operations on these keys had been called by then.
    pub called: usize,
    /// The longest order that explains a beginning.
    pub order: Vec<Operation>,
    /// The store after it.
    pub store: BTreeMap<Bytes, Bytes>,
    /// What would have to come next, each with the answer that it would get. Those without an answer would not help.
    pub stuck: Vec<(Operation, String)>,
}

impl Counterexample {
    /// Of a part for which there is no order.
    pub(super) fn of(partition: &Partition<'_>, limits: Limits) -> Self {
        let returns = partition.returns();
        // What is known only grows, so from some return on there is no order. A search that is given up shows nothing.
        let order_until = |last: u64| match search(&partition.problem_until(last), limits).found {
            Found::NoOrder(order) => Some(order),
            Found::Order | Found::GivenUp => None,
        };
        let first_bad = returns.partition_point(|last| order_until(*last).is_none());
        let last = returns.get(first_bad).or(returns.last()).copied().unwrap_or(0);
        let order = order_until(last).unwrap_or_default();
        Self::of_prefix(partition, last, &order)
    }

    fn of_prefix(partition: &Partition<'_>, last: u64, order: &[usize]) -> Self {
        let called = || partition.operations.iter().filter(|operation| operation.called <= last);
        let mut store = BTreeMap::new();
        for operation in order.iter().filter_map(|at| partition.operations.get(*at)) {
            operation.action.apply(&mut store);
        }
        // As it was then: what returned later had no answer.
        let seen_then = |operation: &Operation| {
            let is_later = matches!(operation.outcome, Outcome::Answered { returned, .. } if returned > last);
            let outcome = if is_later { Outcome::Unknown } else { operation.outcome.clone() };
            Operation { outcome, ..operation.clone() }
        };
        let returned = |operation: &Operation| match operation.outcome {
            Outcome::Answered { returned, .. } if returned <= last => Some(returned),
            _ => None,
        };
        let left =
            || called().enumerate().filter(|(at, _)| !order.contains(at)).map(|(_, operation)| *operation);
        let deadline = left().filter_map(returned).min().unwrap_or(last);
        let next = left().filter(|operation| operation.called < deadline && returned(operation).is_some());
        let stuck = next.map(|operation| {
            let answer = operation.action.apply(&mut store.clone());
            (operation.clone(), answer.to_string())
        });
        let culprit = called().find(|operation| returned(operation) == Some(last));
        Self {
            keys: partition.keys.iter().map(|key| (*key).clone()).collect(),
            culprit: culprit
                .map(|it| (*it).clone())
                .expect("a part without an order has answered operations"),
            called: called().count(),
            order: order
                .iter()
                .filter_map(|at| partition.operations.get(*at))
                .map(|operation| seen_then(operation))
                .collect(),
            stuck: stuck.collect(),
            store,
        }
    }
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.keys.iter().map(text).collect();
        writeln!(
            f,
            "no order explains the {} operations on {} up to this answer:",
            self.called,
            keys.join(", ")
        )?;
        writeln!(f, "  {}", self.culprit)?;
        let hidden = self.order.len().saturating_sub(SHOWN);
        match hidden {
            0 => writeln!(f, "the longest order that fits:")?,
            _ => writeln!(f, "the longest order that fits, without its first {hidden}:")?,
        }
        for operation in self.order.iter().skip(hidden) {
            writeln!(f, "  {operation}")?;
        }
        let held = self.store.iter().map(|(key, value)| format!("{} = {}", text(key), text(value)));
        let held: Vec<_> = held.collect();
        let held = if held.is_empty() { "empty".to_owned() } else { held.join(", ") };
        write!(f, "then the store is {held}, and nothing that must come next fits:")?;
        for (operation, answer) in &self.stuck {
            write!(f, "\n  {operation}; it would be: {answer}")?;
        }
        Ok(())
    }
}
