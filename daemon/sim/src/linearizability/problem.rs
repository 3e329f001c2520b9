//! What a search needs of a part: guarded writes, without what nobody can see.
//!
//! A part's operations are rewritten until nothing changes any more. Each rule keeps every execution: an order explains the operations
//! exactly if it explains what is left of them.
//!
//! 1. *An operation is a [`Change`]*: what must hold before it for its answer to fit, and what it writes. What is found where the same
//!    transaction has written before follows from the transaction alone. With no answer nothing is needed, and either branch may be taken.
//! 2. *A comparison that can't hold is none.* A key has a value only after an operation that may write it there. An operation
//!    happens once, and compares before it writes: where no other one may write that value to that key, `Equals` fails, and `Differs` is `Exists`.
//!    A branch that can't be taken writes nothing, so this may go on.
//! 3. *Values that nobody tells apart are one.* Where no answer names a value of a key, and no comparison that is left asks for it, all
//!    such values of this key can be swapped in an execution, and no answer changes. (No step copies a value from key to key.)
//! 4. *A comparison that decides nothing is none*: without an answer, and with equal writes either way.
//! 5. *What changes nothing and was not answered is left out.*
//! 6. *Changes of unknown outcome that are equal are [`Alike`].* They are counted, and taken in the order of their calls: in an order that
//!    takes them otherwise they can be swapped, as each can stand wherever one that was called later does.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::store::{Action, Answer, Compare, Step, Test, Transaction};

/// The operations of one part, with numbers for keys and values.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// How many keys there are.
    pub keys: usize,
    /// Those with an answer, in the order of their calls.
    pub answered: Vec<Answered>,
    /// Those of unknown outcome.
    pub unknown: Vec<Alike>,
}

/// An operation, as it was asked and answered.
#[derive(Clone, Debug)]
pub(super) struct Sought {
    /// What it is called by outside.
    pub number: usize,
    pub action: Action<u32>,
    pub called: u64,
    /// When it returned, and its answer; none where its outcome is unknown.
    pub answered: Option<(u64, Answer<u32>)>,
}

/// An operation with an answer.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub number: usize,
    pub change: Change,
    pub called: u64,
    pub returned: u64,
}

/// Operations of unknown outcome that change the same.
#[derive(Clone, Debug)]
pub(super) struct Alike {
    pub change: Change,
    /// When each was called, and what it is called by outside; in the order of their calls.
    pub members: Vec<(u64, usize)>,
}

/// What an operation does to the store, where its answer fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    compare: Vec<Compare<u32>>,
    /// What is done if all of it holds; none where the answer says that it did not.
    then: Option<Branch>,
    /// What is done if not.
    otherwise: Option<Branch>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Branch {
    /// What must hold for the answer to fit.
    needs: Vec<Compare<u32>>,
    /// What each key holds afterwards, in the order of the keys.
    writes: Vec<Write>,
}

/// What a key holds; none where it is deleted.
pub(super) type Write = (u32, Option<u32>);

/// The number of all values that nobody tells apart.
const ANY: u32 = u32::MAX;

impl Problem {
    /// Of operations in the order of their calls.
    pub fn of(keys: usize, sought: &[Sought]) -> Self {
        let change_of =
            |sought: &Sought| Change::of(&sought.action, sought.answered.as_ref().map(|(_, answer)| answer));
        let mut changes: Vec<_> = sought.iter().map(change_of).collect();
        while drop_vain_comparisons(&mut changes) | join_values(&mut changes) {}
        let mut problem = Self { keys, answered: Vec::new(), unknown: Vec::new() };
        for (Sought { number, called, answered, .. }, change) in sought.iter().zip(changes) {
            match answered {
                Some((returned, _)) => problem.answered.push(Answered {
                    number: *number,
                    change,
                    called: *called,
                    returned: *returned,
                }),
                None if change.only_looks() => {}
                None => problem.add_unknown(change, (*called, *number)),
            }
        }
        problem
    }

    fn add_unknown(&mut self, change: Change, member: (u64, usize)) {
        match self.unknown.iter_mut().find(|alike| alike.change == change) {
            Some(alike) => alike.members.push(member),
            None => self.unknown.push(Alike { change, members: vec![member] }),
        }
    }
}

/// Rules 2 and 4. Whether there was any.
fn drop_vain_comparisons(changes: &mut [Change]) -> bool {
    let mut writers: HashMap<Write, usize> = HashMap::new();
    for change in changes.iter() {
        for write in change.may_write() {
            *writers.entry(write).or_default() += 1;
        }
    }
    let mut has_changed = false;
    for change in changes {
        let own = change.may_write();
        let may_be = |key: u32, value: u32| {
            let write = (key, Some(value));
            writers.get(&write).copied().unwrap_or(0) > usize::from(own.contains(&write))
        };
        has_changed |= change.drop_vain_comparisons(may_be);
    }
    has_changed
}

/// Rule 3. Whether there were any.
fn join_values(changes: &mut [Change]) -> bool {
    let asked_for = |Compare { key, test }: &Compare<u32>| match test {
        Test::Equals(value) | Test::Differs(value) => Some((*key, *value)),
        Test::Exists | Test::IsAbsent => None,
    };
    let compares = changes.iter().flat_map(|change| {
        change.compare.iter().chain(change.branches().flat_map(|branch| branch.needs.iter()))
    });
    let told_apart: HashSet<_> = compares.filter_map(asked_for).collect();
    let mut has_changed = false;
    for change in changes {
        for branch in [&mut change.then, &mut change.otherwise].into_iter().flatten() {
            for (key, value) in &mut branch.writes {
                if let Some(value) = value
                    && *value != ANY
                    && !told_apart.contains(&(*key, *value))
                {
                    *value = ANY;
                    has_changed = true;
                }
            }
        }
    }
    has_changed
}

impl Change {
    /// Rule 1.
    fn of(action: &Action<u32>, answer: Option<&Answer<u32>>) -> Self {
        let (compare, then, otherwise) = match (action, answer) {
            (Action::Step(step), answer) => {
                let answers = answer.map(std::slice::from_ref);
                (&[][..], Branch::of(std::slice::from_ref(step), answers), None)
            }
            (Action::Transaction(Transaction { compare, then, otherwise }), None) => {
                (&compare[..], Branch::of(then, None), Branch::of(otherwise, None))
            }
            (
                Action::Transaction(Transaction { compare, then, otherwise }),
                Some(Answer::Taken { succeeded, steps }),
            ) => match succeeded {
                true => (&compare[..], Branch::of(then, Some(steps)), None),
                false => (&compare[..], None, Branch::of(otherwise, Some(steps))),
            },
            (Action::Transaction(_), Some(_)) => (&[][..], None, None),
        };
        let otherwise = otherwise.filter(|_| !compare.is_empty());
        Self { compare: compare.to_vec(), then, otherwise }
    }

    /// What it writes in a state; none where its answer does not fit.
    pub fn writes_in(&self, state: &[Option<u32>]) -> Option<&[Write]> {
        let holds = |Compare { key, test }: &Compare<u32>| {
            test.holds(state.get(*key as usize).and_then(Option::as_ref))
        };
        let branch = if self.compare.iter().all(holds) { &self.then } else { &self.otherwise };
        branch.as_ref().filter(|branch| branch.needs.iter().all(holds)).map(|branch| &branch.writes[..])
    }

    /// Whether it changes nothing wherever it fits. (A put of the value that is there does, in another place.)
    pub fn only_looks(&self) -> bool {
        self.branches().all(|branch| branch.writes.is_empty())
    }

    fn branches(&self) -> impl Iterator<Item = &Branch> {
        [&self.then, &self.otherwise].into_iter().flatten()
    }

    fn may_write(&self) -> HashSet<Write> {
        self.branches().flat_map(|branch| branch.writes.iter().copied()).collect()
    }

    /// Whether there was any. `may_be` says whether another operation may write a value to a key.
    fn drop_vain_comparisons(&mut self, may_be: impl Fn(u32, u32) -> bool) -> bool {
        let mut has_changed = false;
        for Compare { key, test } in &mut self.compare {
            if matches!(test, Test::Differs(value) if !may_be(*key, *value)) {
                *test = Test::Exists;
                has_changed = true;
            }
        }
        let fails = |Compare { key, test }: &Compare<u32>| matches!(test, Test::Equals(value) if !may_be(*key, *value));
        let decides = |(then, otherwise): (&Branch, &Branch)| then != otherwise;
        let never_holds = self.compare.iter().any(fails);
        let is_vain = self.then.as_ref().zip(self.otherwise.as_ref()).is_some_and(|both| !decides(both));
        if never_holds || is_vain && !self.compare.is_empty() {
            self.compare.clear();
            self.then = self.otherwise.take();
            has_changed = true;
        }
        has_changed
    }
}

impl Branch {
    /// None where the steps can't be answered so wherever they are taken.
    fn of(steps: &[Step<u32>], answers: Option<&[Answer<u32>]>) -> Option<Self> {
        if answers.is_some_and(|answers| answers.len() != steps.len()) {
            return None;
        }
        let mut needs = Vec::new();
        let mut writes = BTreeMap::new();
        for (at, step) in steps.iter().enumerate() {
            let answer = answers.and_then(|answers| answers.get(at));
            let (test, write) = match (step, answer) {
                (Step::Put { value, .. }, None | Some(Answer::Put)) => (None, Some(Some(*value))),
                (Step::Get { .. }, None) => (None, None),
                (Step::Get { .. }, Some(Answer::Found(Some(value)))) => (Some(Test::Equals(*value)), None),
                (Step::Get { .. }, Some(Answer::Found(None))) => (Some(Test::IsAbsent), None),
                (Step::Delete { .. }, None) => (None, Some(None)),
                (Step::Delete { .. }, Some(Answer::Deleted(1))) => (Some(Test::Exists), Some(None)),
                (Step::Delete { .. }, Some(Answer::Deleted(0))) => (Some(Test::IsAbsent), None),
                _ => return None,
            };
            let key = *step.key();
            match (test, writes.get(&key)) {
                (Some(test), Some(written)) if !test.holds(Option::as_ref(written)) => return None,
                (Some(test), None) => needs.push(Compare { key, test }),
                _ => {}
            }
            if let Some(write) = write {
                writes.insert(key, write);
            }
        }
        Some(Self { needs, writes: writes.into_iter().collect() })
    }
}
