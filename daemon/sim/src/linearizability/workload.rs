//! What clients ask for when they make a history: on few keys, so that they get in each other's way, and with values of their own, so
//! that it can be told whose was seen.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::store::{Action, Answer, Compare, Step, Test, Transaction};

/// Keys of which transactions touch both, and one that each transaction touches alone.
const PAIRS: [[&str; 2]; 2] = [["a", "b"], ["c", "d"]];
const ALONE: &str = "e";

/// The work of one history. See the module's header.
#[derive(Clone, Debug)]
pub struct Workload {
    random: ChaCha8Rng,
    prefix: String,
    weights: [u32; 5],
    /// By key: what somebody saw there last. What comparisons are made with.
    last_seen: BTreeMap<Bytes, Option<Bytes>>,
    next_value: u32,
}

impl Workload {
    /// Work on keys that begin with a prefix. How often there is what kind of it is drawn here.
    pub fn new(seed: u64, prefix: &str) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut weight = |least| if random.random_bool(0.2) { least } else { random.random_range(5..=30) };
        let weights = [weight(5), weight(5), weight(0), weight(0), weight(0)];
        Self { random, prefix: prefix.to_owned(), weights, last_seen: BTreeMap::new(), next_value: 0 }
    }

    /// All keys that it may touch.
    pub fn keys(&self) -> Vec<Bytes> {
        PAIRS.iter().flatten().chain([&ALONE]).map(|name| self.key(name)).collect()
    }

    fn key(&self, name: &str) -> Bytes {
        format!("{}{name}", self.prefix).into()
    }

    /// What is asked for next.
    pub fn draw(&mut self) -> Action {
        self.next_value += 1;
        let value = Bytes::from(self.next_value.to_string());
        let pair = PAIRS[self.random.random_range(0..PAIRS.len())];
        let [from, to] = if self.random.random_bool(0.5) { [pair[1], pair[0]] } else { pair };
        let name = if self.random.random_bool(0.2) { ALONE } else { from };
        let key = self.key(name);
        let (from, to) = (self.key(from), self.key(to));
        let mut drawn = self.random.random_range(0..self.weights.iter().sum());
        let kind = self.weights.iter().position(|weight| {
            let is_it = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            is_it
        });
        match kind {
            Some(0) => Action::Step(Step::Put { key, value }),
            Some(1) => Action::Step(Step::Get { key }),
            Some(2) => Action::Step(Step::Delete { key }),
            Some(3) => self.compare_and_set(key, value),
            _ => self.move_value(from, to, value),
        }
    }

    fn compare_and_set(&mut self, key: Bytes, value: Bytes) -> Action {
        let test = match self.last_seen.get(&key).cloned().flatten() {
            Some(value) => match self.random.random_range(0..10) {
                0 => Test::Exists,
                1 => Test::Differs(value),
                _ => Test::Equals(value),
            },
            None => Test::IsAbsent,
        };
        Action::Transaction(Transaction {
            compare: vec![Compare { key: key.clone(), test }],
            then: vec![Step::Put { key: key.clone(), value }],
            otherwise: vec![Step::Get { key }],
        })
    }

    /// The value of one key goes to the other, whatever is there. Where it is not what was expected, both are looked at, or
    /// one is put and the other deleted.
    fn move_value(&mut self, from: Bytes, to: Bytes, value: Bytes) -> Action {
        let moved = self.last_seen.get(&from).cloned().flatten().unwrap_or_else(|| value.clone());
        let compare = vec![Compare { key: from.clone(), test: Test::Equals(moved.clone()) }];
        let then = vec![
            Step::Delete { key: from.clone() },
            Step::Put { key: to.clone(), value: moved },
            Step::Get { key: from.clone() },
        ];
        let otherwise = if self.random.random_bool(0.5) {
            vec![Step::Get { key: from }, Step::Get { key: to }]
        } else {
            vec![Step::Put { key: from, value }, Step::Delete { key: to }]
        };
        Action::Transaction(Transaction { compare, then, otherwise })
    }

    /// Remembers what can be compared with.
    pub fn learn(&mut self, action: &Action, answer: &Answer) {
        let taken: Vec<(&Step, &Answer)> = match (action, answer) {
            (Action::Step(step), answer) => vec![(step, answer)],
            (
                Action::Transaction(Transaction { then, otherwise, .. }),
                Answer::Taken { succeeded, steps },
            ) => if *succeeded { then } else { otherwise }.iter().zip(steps).collect(),
            _ => return,
        };
        for told in taken {
            let (key, value) = match told {
                (Step::Put { key, value }, _) => (key, Some(value.clone())),
                (Step::Get { key }, Answer::Found(value)) => (key, value.clone()),
                (Step::Get { key } | Step::Delete { key }, _) => (key, None),
            };
            self.last_seen.insert(key.clone(), value);
        }
    }
}
