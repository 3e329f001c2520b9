//! How a transaction is executed.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use super::{
    Compare, Error, Listing, MAX_ANSWER, MAX_READ_KEYS, Outcome, Property, ReadTables, Refusal, Span,
    StateMachine, Step, StepOutcome, Table, Taken, Transaction, WriteTables, entry::Stored, query::PER_ENTRY,
};

/// What the transactions of a block may still read in ranges.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    keys: usize,
    bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { keys: MAX_READ_KEYS, bytes: MAX_ANSWER }
    }
}

impl Budget {
    /// Takes one key; whether there was one left.
    fn take_key(&mut self) -> bool {
        let left = self.keys.checked_sub(1);
        self.keys = left.unwrap_or_default();
        left.is_some()
    }

    fn take_bytes(&mut self, bytes: usize) -> bool {
        let left = self.bytes.checked_sub(bytes);
        self.bytes = left.unwrap_or_default();
        left.is_some()
    }
}

/// A transaction under way.
struct Course<'a, 'b> {
    transaction: &'a Transaction<&'b [u8]>,
    /// Of each part, whether its comparisons held; of those that are not reached nothing is said.
    holds: Vec<bool>,
    /// What its writes get.
    revision: u64,
    has_written: bool,
}

impl StateMachine {
    /// Executes a transaction that [`Transaction::check`] has found in order.
    pub(super) fn transact<T: WriteTables>(
        &mut self,
        tables: &mut T,
        transaction: &Transaction<&[u8]>,
    ) -> Result<Outcome, Error<T::Error>> {
        let Some(holds) = self.decide(tables, transaction)? else {
            return Ok(Outcome::Refused(Refusal::ReadsTooMuch));
        };
        let mut course = Course { transaction, holds, revision: self.head.revision + 1, has_written: false };
        let taken = self.take(tables, &mut course, 0)?;
        if course.has_written {
            self.head.revision = course.revision;
        }
        Ok(Outcome::Transaction { revision: self.head.revision, taken })
    }

    /// Of each part that is reached, whether its comparisons hold; nothing where that would read too much.
    fn decide<T: ReadTables>(
        &mut self,
        tables: &T,
        transaction: &Transaction<&[u8]>,
    ) -> Result<Option<Vec<bool>>, Error<T::Error>> {
        let mut is_reached = vec![false; transaction.parts.len()];
        let mut holds = is_reached.clone();
        // Parts come after those that name them.
        for (place, part) in transaction.parts.iter().enumerate() {
            if place > 0 && !is_reached.get(place).is_some_and(|it| *it) {
                continue;
            }
            let mut all = true;
            for compare in &part.compare {
                match self.compare(tables, compare)? {
                    Some(one) => all &= one,
                    None => return Ok(None),
                }
            }
            if let Some(held) = holds.get_mut(place) {
                *held = all;
            }
            for step in if all { &part.then } else { &part.otherwise } {
                if let Step::Nested(nested) = step
                    && let Some(reached) = is_reached.get_mut(usize::from(*nested))
                {
                    *reached = true;
                }
            }
        }
        Ok(Some(holds))
    }

    /// Executes a part. They are at most [`super::MAX_STEPS`] deep.
    fn take<T: WriteTables>(
        &mut self,
        tables: &mut T,
        course: &mut Course<'_, '_>,
        place: usize,
    ) -> Result<Taken, Error<T::Error>> {
        let transaction = course.transaction;
        let (Some(part), Some(succeeded)) = (transaction.parts.get(place), course.holds.get(place).copied())
        else {
            return Ok(Taken { succeeded: false, steps: Vec::new() });
        };
        let list = if succeeded { &part.then } else { &part.otherwise };
        let mut steps = Vec::with_capacity(list.len());
        for step in list {
            steps.push(match step {
                Step::Put { key, value } => {
                    self.store(tables, (key, value), course.revision)?;
                    course.has_written = true;
                    StepOutcome::Put
                }
                Step::Delete { keys } => {
                    let deleted = match keys {
                        Span::Key(key) => u64::from(self.delete(tables, key)?),
                        keys => self.delete_all(tables, keys)?,
                    };
                    course.has_written |= deleted > 0;
                    StepOutcome::Deleted(deleted)
                }
                Step::Get { keys, limit, keys_only } => {
                    StepOutcome::Found(self.find(tables, keys, *limit, *keys_only)?)
                }
                Step::Nested(place) => StepOutcome::Nested(self.take(tables, course, usize::from(*place))?),
            });
        }
        Ok(Taken { succeeded, steps })
    }

    /// Whether a comparison holds; nothing where it would read too much.
    fn compare<T: ReadTables>(
        &mut self,
        tables: &T,
        compare: &Compare<&[u8]>,
    ) -> Result<Option<bool>, Error<T::Error>> {
        let Compare { keys, property, relation } = compare;
        let holds_of = |stored: Option<Stored<'_>>| {
            let numbers = stored.map(|stored| stored.numbers());
            match property {
                Property::Version(asked) => relation.holds(&numbers.map_or(0, |it| it.version), asked),
                Property::CreateRevision(asked) => {
                    relation.holds(&numbers.map_or(0, |it| it.create_revision), asked)
                }
                Property::ModRevision(asked) => {
                    relation.holds(&numbers.map_or(0, |it| it.mod_revision), asked)
                }
                Property::Value(asked) => stored.is_some_and(|stored| relation.holds(stored.value, *asked)),
            }
        };
        if let Span::Key(key) = keys {
            let found =
                tables.read(Table::Keys, key, |bytes| Stored::decode(bytes).map(|it| holds_of(Some(it))))?;
            let holds = found.map(|holds| holds.ok_or(Error::Damaged("an entry"))).transpose()?;
            return Ok(Some(holds.unwrap_or_else(|| holds_of(None))));
        }
        let (mut found, mut holds, mut is_too_much, mut is_damaged) = (false, true, false, false);
        let reads = &mut self.reads;
        tables.scan(Table::Keys, Bound::Included(keys.first()), |key, bytes| {
            if !keys.reaches(key) {
                return ControlFlow::Break(());
            }
            if !reads.take_key() {
                is_too_much = true;
                return ControlFlow::Break(());
            }
            found = true;
            match Stored::decode(bytes) {
                Some(stored) => holds = holds_of(Some(stored)),
                None => is_damaged = true,
            }
            if holds && !is_damaged { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if is_damaged {
            return Err(Error::Damaged("an entry"));
        }
        // One that fails has failed, whatever the rest would say.
        if is_too_much && holds {
            return Ok(None);
        }
        Ok(Some(if found { holds } else { holds_of(None) }))
    }

    /// Reads keys, as far as the block's transactions may.
    fn find<T: ReadTables>(
        &mut self,
        tables: &T,
        keys: &Span<&[u8]>,
        limit: u64,
        keys_only: bool,
    ) -> Result<Listing, Error<T::Error>> {
        let mut listing = Listing::default();
        let mut is_damaged = false;
        let reads = &mut self.reads;
        tables.scan(Table::Keys, Bound::Included(keys.first()), |key, bytes| {
            if !keys.reaches(key) {
                return ControlFlow::Break(());
            }
            let Some(stored) = Stored::decode(bytes) else {
                is_damaged = true;
                return ControlFlow::Break(());
            };
            let size = PER_ENTRY + key.len() + if keys_only { 0 } else { stored.value.len() };
            let is_full =
                listing.entries.len() as u64 >= limit || !reads.take_key() || !reads.take_bytes(size);
            if is_full {
                listing.more = true;
                return ControlFlow::Break(());
            }
            listing.entries.push((Bytes::copy_from_slice(key), stored.to_entry(!keys_only)));
            // Nothing is to be found beyond it.
            if matches!(keys, Span::Key(_)) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if is_damaged { Err(Error::Damaged("an entry")) } else { Ok(listing) }
    }
}
