//! The store that a history is compared with: one operation at a time, and nothing else.
//!
//! It is written apart from the state machine of bftd-core, which it must not agree with by construction. `B` is how keys and
//! values are held: bytes, or numbers in a search.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<B = Bytes> {
    /// One thing.
    Step(Step<B>),
    /// One of two lists of things, whichever comparisons say.
    Transaction(Transaction<B>),
}

/// Comparisons, which look at the store before the first step, and what follows from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction<B = Bytes> {
    /// What must hold, all of it.
    pub compare: Vec<Compare<B>>,
    /// What is done if it holds.
    pub then: Vec<Step<B>>,
    /// What is done if it does not.
    pub otherwise: Vec<Step<B>>,
}

/// What must hold of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare<B = Bytes> {
    /// The key.
    pub key: B,
    /// What.
    pub test: Test<B>,
}

/// A comparison. A key that does not exist has no value: neither [`Test::Equals`] nor [`Test::Differs`] holds of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test<B = Bytes> {
    /// It exists.
    Exists,
    /// It does not exist.
    IsAbsent,
    /// Its value is this one.
    Equals(B),
    /// Its value is another one.
    Differs(B),
}

/// One thing, alone or in a transaction: there it reads what those before it have written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<B = Bytes> {
    /// Stores a value.
    Put {
        /// The key.
        key: B,
        /// The value.
        value: B,
    },
    /// Looks a key up.
    Get {
        /// The key.
        key: B,
    },
    /// Deletes a key.
    Delete {
        /// The key.
        key: B,
    },
}

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<B = Bytes> {
    /// The value is stored.
    Put,
    /// The value that was found.
    Found(Option<B>),
    /// How many keys were deleted.
    Deleted(u64),
    /// What a transaction did.
    Taken {
        /// Whether its comparisons held.
        succeeded: bool,
        /// What came of each step.
        steps: Vec<Answer<B>>,
    },
}

/// Keys and their values.
pub trait Store<B> {
    /// A key's value.
    fn get(&self, key: &B) -> Option<B>;
    /// Sets it, or deletes the key.
    fn set(&mut self, key: &B, value: Option<B>);
}

impl Store<Bytes> for BTreeMap<Bytes, Bytes> {
    fn get(&self, key: &Bytes) -> Option<Bytes> {
        self.get(key).cloned()
    }

    fn set(&mut self, key: &Bytes, value: Option<Bytes>) {
        match value {
            Some(value) => self.insert(key.clone(), value),
            None => self.remove(key),
        };
    }
}

impl<B: Clone + Eq> Action<B> {
    /// Executes it.
    pub fn apply(&self, store: &mut impl Store<B>) -> Answer<B> {
        match self {
            Self::Step(step) => step.apply(store),
            Self::Transaction(transaction) => transaction.apply(store),
        }
    }
}

impl<B: Eq> Test<B> {
    /// Whether it holds of a key with this value, or of one that does not exist.
    pub(super) fn holds(&self, value: Option<&B>) -> bool {
        match (value, self) {
            (value, Self::Exists) => value.is_some(),
            (value, Self::IsAbsent) => value.is_none(),
            (Some(value), Self::Equals(asked)) => value == asked,
            (Some(value), Self::Differs(asked)) => value != asked,
            (None, Self::Equals(_) | Self::Differs(_)) => false,
        }
    }
}

impl<B: Clone + Eq> Transaction<B> {
    fn apply(&self, store: &mut impl Store<B>) -> Answer<B> {
        let holds = |compare: &Compare<B>| compare.test.holds(store.get(&compare.key).as_ref());
        let succeeded = self.compare.iter().all(holds);
        let steps = if succeeded { &self.then } else { &self.otherwise };
        Answer::Taken { succeeded, steps: steps.iter().map(|step| step.apply(store)).collect() }
    }
}

impl<B: Clone> Step<B> {
    fn apply(&self, store: &mut impl Store<B>) -> Answer<B> {
        match self {
            Self::Put { key, value } => {
                store.set(key, Some(value.clone()));
                Answer::Put
            }
            Self::Get { key } => Answer::Found(store.get(key)),
            Self::Delete { key } => {
                let existed = store.get(key).is_some();
                store.set(key, None);
                Answer::Deleted(u64::from(existed))
            }
        }
    }
}

impl<B> Action<B> {
    /// The keys that it touches, some of them possibly twice.
    pub fn keys(&self) -> Vec<&B> {
        match self {
            Self::Step(step) => vec![step.key()],
            Self::Transaction(transaction) => {
                let steps = transaction.then.iter().chain(&transaction.otherwise);
                transaction.compare.iter().map(|compare| &compare.key).chain(steps.map(Step::key)).collect()
            }
        }
    }

    /// Whether it may change a key.
    pub fn writes(&self) -> bool {
        match self {
            Self::Step(step) => step.writes(),
            Self::Transaction(transaction) => {
                transaction.then.iter().chain(&transaction.otherwise).any(Step::writes)
            }
        }
    }

    /// The same with keys and values held in another way.
    pub(super) fn map<C>(
        &self,
        key_of: &mut impl FnMut(&B) -> C,
        value_of: &mut impl FnMut(&B) -> C,
    ) -> Action<C> {
        match self {
            Self::Step(step) => Action::Step(step.map(key_of, value_of)),
            Self::Transaction(Transaction { compare, then, otherwise }) => {
                let compare = compare.iter().map(|Compare { key, test }| Compare {
                    key: key_of(key),
                    test: match test {
                        Test::Exists => Test::Exists,
                        Test::IsAbsent => Test::IsAbsent,
                        Test::Equals(value) => Test::Equals(value_of(value)),
                        Test::Differs(value) => Test::Differs(value_of(value)),
                    },
                });
                let compare = compare.collect();
                let mut steps =
                    |steps: &[Step<B>]| steps.iter().map(|step| step.map(key_of, value_of)).collect();
                Action::Transaction(Transaction { compare, then: steps(then), otherwise: steps(otherwise) })
            }
        }
    }
}

impl<B> Step<B> {
    fn map<C>(&self, key_of: &mut impl FnMut(&B) -> C, value_of: &mut impl FnMut(&B) -> C) -> Step<C> {
        match self {
            Self::Put { key, value } => Step::Put { key: key_of(key), value: value_of(value) },
            Self::Get { key } => Step::Get { key: key_of(key) },
            Self::Delete { key } => Step::Delete { key: key_of(key) },
        }
    }

    fn writes(&self) -> bool {
        !matches!(self, Self::Get { .. })
    }

    /// The key that it is about.
    pub(super) fn key(&self) -> &B {
        match self {
            Self::Put { key, .. } | Self::Get { key } | Self::Delete { key } => key,
        }
    }
}

impl<B> Answer<B> {
    /// The same with values held in another way.
    pub(super) fn map<C>(&self, value_of: &mut impl FnMut(&B) -> C) -> Answer<C> {
        match self {
            Self::Put => Answer::Put,
            Self::Found(value) => Answer::Found(value.as_ref().map(value_of)),
            Self::Deleted(keys) => Answer::Deleted(*keys),
            Self::Taken { succeeded, steps } => {
                let mut mapped = Vec::with_capacity(steps.len());
                for step in steps {
                    mapped.push(match step {
                        Self::Found(value) => Answer::Found(value.as_ref().map(&mut *value_of)),
                        Self::Put => Answer::Put,
                        Self::Deleted(keys) => Answer::Deleted(*keys),
                        // No step is a transaction: nothing is answered so, and it fits nothing.
                        Self::Taken { succeeded, .. } => {
                            Answer::Taken { succeeded: *succeeded, steps: Vec::new() }
                        }
                    });
                }
                Answer::Taken { succeeded: *succeeded, steps: mapped }
            }
        }
    }
}

/// Bytes as people read them.
pub(super) fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).escape_debug().to_string()
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T], separator: &str) -> fmt::Result {
    for (at, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if at == 0 { "" } else { separator })?;
    }
    Ok(())
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step) => step.fmt(f),
            Self::Transaction(Transaction { compare, then, otherwise }) => {
                f.write_str("txn if ")?;
                list(f, compare, " and ")?;
                f.write_str(" then [")?;
                list(f, then, ", ")?;
                f.write_str("] else [")?;
                list(f, otherwise, ", ")?;
                f.write_str("]")
            }
        }
    }
}

impl fmt::Display for Compare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = text(&self.key);
        match &self.test {
            Test::Exists => write!(f, "{key} exists"),
            Test::IsAbsent => write!(f, "{key} is absent"),
            Test::Equals(value) => write!(f, "{key} == {}", text(value)),
            Test::Differs(value) => write!(f, "{key} != {}", text(value)),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { key, value } => write!(f, "put {} = {}", text(key), text(value)),
            Self::Get { key } => write!(f, "get {}", text(key)),
            Self::Delete { key } => write!(f, "del {}", text(key)),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put => f.write_str("ok"),
            Self::Found(Some(value)) => f.write_str(&text(value)),
            Self::Found(None) => f.write_str("absent"),
            Self::Deleted(keys) => write!(f, "{keys} deleted"),
            Self::Taken { succeeded, steps } => {
                write!(f, "{} [", if *succeeded { "then" } else { "else" })?;
                list(f, steps, ", ")?;
                f.write_str("]")
            }
        }
    }
}
