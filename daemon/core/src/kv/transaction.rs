//! Transactions, with etcd's semantics: comparisons decide which of two lists of steps is taken, and that list is executed as one
//! request.
//!
//! - All comparisons, those of nested transactions too, look at the state before the first step.
//! - Steps are executed in order; what one reads, those before it have written.
//! - All writes of a transaction share one revision. So no key is written twice: where steps that may be taken together put a key
//!   twice, or put one that they delete, the transaction is refused.
//! - What is read as of a revision is read before the first step.
//! - What is read costs every member time and memory. So the transactions of one member in one block look at [`MAX_VISITED`] bytes of
//!   the store, one of them at a quarter of that, where a key counts for 4 KiB at least and the beginning of a range for 64 KiB; and
//!   they are answered [`MAX_READ`] bytes. Beyond that a listing is cut and says so, what can't be read at all is
//!   [`StepOutcome::NotRead`], and a transaction with a comparison that would have to read on is refused.
//! - Its ranges delete [`MAX_DELETED`] keys at most, as all that one member's requests do in one block. Keys that go with a lease, revoked or
//!   expired, don't count in that. They are bounded by the lease: no key is put on one that has [`MAX_DELETED`] of them, or
//!   [`MAX_DELETED_BYTES`]; and a block lets no more leases expire after [`MAX_ENDED`](super::MAX_ENDED) of them and their keys.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Listing, Range, Refusal, Span,
    operation::{check_key, check_value},
};

/// How many comparisons a transaction has at most, and how many steps: in the longer one of its two lists, those of nested transactions
/// included.
pub const MAX_STEPS: usize = 128;
/// How many bytes of keys and values a transaction carries at most: it must fit in a batch.
pub const MAX_TRANSACTION: usize = 3 << 19;
/// How many bytes of the store the transactions of one member in one block look at, at most: some 16,384 keys.
pub const MAX_VISITED: usize = 64 << 20;
/// How many keys the ranges that one member's requests delete in one block have, at most. As many may hang on one lease, but
/// those that go with one are not counted among them.
pub const MAX_DELETED: usize = if cfg!(test) { 32_768 } else { 65_536 };
/// How many bytes these keys have, at most.
pub const MAX_DELETED_BYTES: usize = 16 << 20;
/// How many bytes they are answered, at most.
pub const MAX_READ: usize = 2 << 20;

/// A transaction: a tree of [`Part`]s, the first one its root.
///
/// It is flat, so that nobody can make a member's stack overflow: a nested part is named by its place in the list, comes after the
/// part that names it, and is named once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction<B = Bytes> {
    /// At least one, at most [`MAX_STEPS`] and one.
    pub parts: Vec<Part<B>>,
}

/// Comparisons and what follows from them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part<B = Bytes> {
    /// What must hold, all of it.
    pub compare: Vec<Compare<B>>,
    /// What is done if it holds.
    pub then: Vec<Step<B>>,
    /// What is done if it does not.
    pub otherwise: Vec<Step<B>>,
}

/// What must hold of a key, or of each key of a range.
///
/// A key that does not exist has version, revisions and lease 0, and no value: no comparison of its value holds. A range without keys is
/// compared as one that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare<B = Bytes> {
    /// Which keys.
    pub keys: Span<B>,
    /// What of them.
    pub property: Property<B>,
    /// How it must stand to the one given.
    pub relation: Relation,
}

/// Something of a key, and what it is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Property<B = Bytes> {
    /// How often it was put since it was created.
    Version(u64),
    /// The revision at which it was created.
    CreateRevision(u64),
    /// The revision of its last change.
    ModRevision(u64),
    /// Its value, byte by byte.
    Value(B),
    /// The lease that it hangs on; 0 is none.
    Lease(u64),
}

/// How the key's property must stand to the one given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    /// The same.
    Equal,
    /// Another.
    NotEqual,
    /// Less.
    Less,
    /// Greater.
    Greater,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step<B = Bytes> {
    /// Stores a value.
    Put {
        /// The key.
        key: B,
        /// The value.
        value: B,
        /// The lease that the key hangs on from now on; 0 is none.
        lease: u64,
    },
    /// Reads keys: now, or as of a revision.
    Get(Range<B>),
    /// Deletes keys.
    Delete {
        /// Which.
        keys: Span<B>,
    },
    /// Executes another part: its place in the list.
    Nested(u8),
}

/// What came of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Whether all comparisons held.
    pub succeeded: bool,
    /// What came of each step of the list that was taken.
    pub steps: Vec<StepOutcome>,
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepOutcome {
    /// The value is stored.
    Put,
    /// What was found. A listing may be cut where the budget for answers ends.
    Found(Listing),
    /// Nothing was read: too much had been read already, or more would have had to be.
    NotRead,
    /// How many keys were deleted.
    Deleted(u64),
    /// What came of the part.
    Nested(Taken),
}

impl Relation {
    /// Whether it holds between what is there and what is asked for.
    pub fn holds<T: Ord + ?Sized>(self, there: &T, asked: &T) -> bool {
        match self {
            Self::Equal => there == asked,
            Self::NotEqual => there != asked,
            Self::Less => there < asked,
            Self::Greater => there > asked,
        }
    }
}

impl<B: AsRef<[u8]>> Transaction<B> {
    /// Checks sizes, the tree, and that no key is written twice.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn check(&self) -> Result<(), Refusal> {
        let lists = || self.parts.iter().flat_map(|part| [&part.then, &part.otherwise]);
        let steps: usize = self.parts.iter().map(|part| part.then.len().max(part.otherwise.len())).sum();
        let compares: usize = self.parts.iter().map(|part| part.compare.len()).sum();
        if steps > MAX_STEPS || compares > MAX_STEPS {
            return Err(Refusal::TooManySteps { steps: steps.max(compares) as u64 });
        }
        self.check_tree()?;
        let bytes = self.size();
        if bytes > MAX_TRANSACTION {
            return Err(Refusal::TransactionTooLarge { bytes: bytes as u64 });
        }
        for compare in self.parts.iter().flat_map(|part| &part.compare) {
            compare.keys.check()?;
            if let Property::Value(value) = &compare.property {
                check_value(value.as_ref())?;
            }
        }
        for step in lists().flatten() {
            match step {
                Step::Put { key, value, .. } => {
                    check_key(key.as_ref())?;
                    check_value(value.as_ref())?;
                }
                Step::Get(Range { keys, .. }) | Step::Delete { keys } => keys.check()?,
                Step::Nested(_) => {}
            }
        }
        self.check_writes()
    }

    /// How many bytes of keys and values it carries.
    pub fn size(&self) -> usize {
        let compares = self.parts.iter().flat_map(|part| &part.compare).map(|compare| {
            let value = if let Property::Value(value) = &compare.property { value.as_ref().len() } else { 0 };
            compare.keys.size() + value
        });
        let steps = self.parts.iter().flat_map(|part| part.then.iter().chain(&part.otherwise));
        let steps = steps.map(|step| match step {
            Step::Put { key, value, .. } => key.as_ref().len() + value.as_ref().len(),
            Step::Get(Range { keys, .. }) | Step::Delete { keys } => keys.size(),
            Step::Nested(_) => 0,
        });
        compares.chain(steps).fold(0, usize::saturating_add)
    }

    /// Each part but the first is named once, by one before it.
    fn check_tree(&self) -> Result<(), Refusal> {
        let mut named = vec![false; self.parts.len()];
        for (at, part) in self.parts.iter().enumerate() {
            for step in part.then.iter().chain(&part.otherwise) {
                let Step::Nested(place) = step else { continue };
                let place = usize::from(*place);
                match named.get_mut(place) {
                    Some(named) if place > at && !*named => *named = true,
                    _ => return Err(Refusal::Malformed),
                }
            }
        }
        match named.split_first() {
            Some((false, nested)) if nested.iter().all(|named| *named) => Ok(()),
            _ => Err(Refusal::Malformed),
        }
    }

    /// No two steps that may be taken together write the same key. Those of one part's two lists never are.
    fn check_writes(&self) -> Result<(), Refusal> {
        // What each part may write, whichever list is taken; those that are nested come later in the list, and are known first.
        let mut known: Vec<Writes<'_, B>> = Vec::with_capacity(self.parts.len());
        for part in self.parts.iter().rev() {
            let mut writes = Writes::default();
            for list in [&part.then, &part.otherwise] {
                let mut together = Writes::default();
                for step in list {
                    match step {
                        Step::Put { key, .. } => {
                            together.add(Writes { puts: vec![key.as_ref()], deletes: vec![] })?
                        }
                        Step::Delete { keys } => {
                            together.add(Writes { puts: vec![], deletes: vec![keys] })?
                        }
                        Step::Nested(place) => {
                            // Of the later parts the last one was looked at first.
                            let from_end = self.parts.len().checked_sub(usize::from(*place) + 1);
                            let nested =
                                from_end.and_then(|at| known.get_mut(at)).ok_or(Refusal::Malformed)?;
                            together.add(std::mem::take(nested))?;
                        }
                        Step::Get(_) => {}
                    }
                }
                writes.puts.append(&mut together.puts);
                writes.deletes.append(&mut together.deletes);
            }
            known.push(writes);
        }
        Ok(())
    }
}

/// What steps may write.
#[derive(Debug)]
struct Writes<'a, B> {
    puts: Vec<&'a [u8]>,
    deletes: Vec<&'a Span<B>>,
}

impl<B> Default for Writes<'_, B> {
    fn default() -> Self {
        Self { puts: Vec::new(), deletes: Vec::new() }
    }
}

impl<B: AsRef<[u8]>> Writes<'_, B> {
    /// Adds what may be written with these.
    fn add(&mut self, mut other: Self) -> Result<(), Refusal> {
        let twice = other
            .puts
            .iter()
            .any(|key| self.puts.contains(key) || self.deletes.iter().any(|keys| keys.contains(key)));
        let deleted = self.puts.iter().any(|key| other.deletes.iter().any(|keys| keys.contains(key)));
        if twice || deleted {
            return Err(Refusal::WrittenTwice);
        }
        self.puts.append(&mut other.puts);
        self.deletes.append(&mut other.deletes);
        Ok(())
    }
}
