//! How a transaction is executed.

use std::{collections::BTreeMap, ops::ControlFlow};

use super::{
    Compare, Error, Outcome, Property, Range, ReadTables, Refusal, Span, StateMachine, Step, StepOutcome,
    Taken, Transaction, WriteTables,
    entry::Stored,
    machine::check_space,
    range::{Budget, each, range},
};

/// What steps have read, by their parts and their numbers there.
type Read = BTreeMap<(usize, usize), StepOutcome>;

/// A transaction under way.
struct Course<'a, 'b> {
    transaction: &'a Transaction<&'b [u8]>,
    /// Of each part that is reached, whether its comparisons held.
    holds: Vec<Option<bool>>,
    /// What was read as of revisions, by part and step.
    read: Read,
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
        // No transaction is at the expense of all others.
        let before = self.reads;
        let allowed = before.of_a_transaction();
        self.reads = allowed;
        let outcome = self.transact_within(tables, transaction);
        let after = std::mem::replace(&mut self.reads, before);
        self.reads.take_spent(&allowed, &after);
        outcome
    }

    fn transact_within<T: WriteTables>(
        &mut self,
        tables: &mut T,
        transaction: &Transaction<&[u8]>,
    ) -> Result<Outcome, Error<T::Error>> {
        let Some(holds) = self.decide(tables, transaction)? else {
            return Ok(Outcome::Refused(Refusal::ReadsTooMuch));
        };
        if let Err(refusal) = self.check_steps(transaction, &holds) {
            return Ok(Outcome::Refused(refusal));
        }
        if let Err(refusal) = self.count_deletions(tables, transaction, &holds)? {
            return Ok(Outcome::Refused(refusal));
        }
        let read = self.read_as_of(tables, transaction, &holds)?;
        let revision = self.head.revision + 1;
        let mut course = Course { transaction, holds, read, revision, has_written: false };
        let taken = self.take(tables, &mut course, 0)?;
        if course.has_written {
            self.head.revision = course.revision;
        }
        Ok(Outcome::Transaction { revision: self.head.revision, taken })
    }

    /// Refuses to delete more keys of ranges than may be, before anything is written.
    fn count_deletions<T: ReadTables>(
        &mut self,
        tables: &T,
        transaction: &Transaction<&[u8]>,
        holds: &[Option<bool>],
    ) -> Result<Result<(), Refusal>, Error<T::Error>> {
        let mut left = self.deletions;
        for (_, step) in taken_steps(transaction, holds) {
            let Step::Delete { keys } = step else { continue };
            if matches!(keys, Span::Key(_)) {
                continue;
            }
            match left.find(tables, keys, &mut self.reads)? {
                Ok(found) => found.iter().for_each(|key| left.take(key)),
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
        Ok(Ok(()))
    }

    /// Reads what is asked for as of revisions: all of it before the first write, which would begin another row of the history.
    fn read_as_of<T: WriteTables>(
        &mut self,
        tables: &mut T,
        transaction: &Transaction<&[u8]>,
        holds: &[Option<bool>],
    ) -> Result<Read, Error<T::Error>> {
        let mut read = Read::new();
        for (place, step) in taken_steps(transaction, holds) {
            if let Step::Get(asked) = step
                && asked.revision != 0
            {
                // What this block has changed so far is to be found in rows, too.
                self.history.end_row(tables)?;
                read.insert(place, self.find(tables, asked)?);
            }
        }
        Ok(read)
    }

    /// Refuses what can't be done, before anything is written: reading as of a revision that can't be read, hanging keys on a
    /// lease that there is not, storing more than there is room for.
    fn check_steps(&self, transaction: &Transaction<&[u8]>, holds: &[Option<bool>]) -> Result<(), Refusal> {
        let mut puts = 0;
        for (_, step) in taken_steps(transaction, holds) {
            match step {
                Step::Get(asked) => self.head.check_readable(asked.revision)?,
                Step::Put { key, value, lease } => {
                    puts += key.len() + value.len();
                    self.leases.check(*lease)?;
                }
                Step::Delete { .. } | Step::Nested(_) => {}
            }
        }
        if puts > 0 { check_space(&self.history, self.head.quota, puts) } else { Ok(()) }
    }

    /// Of each part that is reached, whether its comparisons hold; nothing where that would read too much.
    fn decide<T: ReadTables>(
        &mut self,
        tables: &T,
        transaction: &Transaction<&[u8]>,
    ) -> Result<Option<Vec<Option<bool>>>, Error<T::Error>> {
        let mut is_reached = vec![false; transaction.parts.len()];
        let mut holds = vec![None; transaction.parts.len()];
        // Parts come after those that name them.
        for (place, part) in transaction.parts.iter().enumerate() {
            if place > 0 && !is_reached.get(place).is_some_and(|it| *it) {
                continue;
            }
            let mut all = true;
            for compare in &part.compare {
                match self.compare(tables, compare)? {
                    Some(true) => {}
                    Some(false) => {
                        all = false;
                        break;
                    }
                    None => return Ok(None),
                }
            }
            if let Some(held) = holds.get_mut(place) {
                *held = Some(all);
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
        let (Some(part), Some(succeeded)) =
            (transaction.parts.get(place), course.holds.get(place).copied().flatten())
        else {
            return Ok(Taken { succeeded: false, steps: Vec::new() });
        };
        let list = if succeeded { &part.then } else { &part.otherwise };
        let mut steps = Vec::with_capacity(list.len());
        for (number, step) in list.iter().enumerate() {
            steps.push(match step {
                Step::Put { key, value, lease } => {
                    self.store(tables, (key, value, *lease), course.revision)?;
                    course.has_written = true;
                    StepOutcome::Put
                }
                Step::Delete { keys } => {
                    let deleted = match keys {
                        Span::Key(key) => u64::from(self.delete(tables, key, course.revision)?),
                        // They were counted, and paid for, before the first step.
                        keys => self
                            .delete_all(tables, (keys, course.revision), &mut Budget::of_a_query())?
                            .map_err(|_| Error::Damaged("the count of what is deleted"))?,
                    };
                    course.has_written |= deleted > 0;
                    StepOutcome::Deleted(deleted)
                }
                Step::Get(asked) => match course.read.remove(&(place, number)) {
                    Some(read) => read,
                    None => self.find(tables, asked)?,
                },
                Step::Nested(place) => StepOutcome::Nested(self.take(tables, course, usize::from(*place))?),
            });
        }
        Ok(Taken { succeeded, steps })
    }

    /// Reads keys, as far as may be.
    fn find<T: ReadTables>(
        &mut self,
        tables: &T,
        asked: &Range<&[u8]>,
    ) -> Result<StepOutcome, Error<T::Error>> {
        let found = range(tables, &self.head, asked, &mut self.reads)?;
        Ok(found.map_or(StepOutcome::NotRead, StepOutcome::Found))
    }

    /// Whether a comparison holds; nothing where it would read too much.
    fn compare<T: ReadTables>(
        &mut self,
        tables: &T,
        compare: &Compare<&[u8]>,
    ) -> Result<Option<bool>, Error<T::Error>> {
        let (mut found, mut holds) = (false, true);
        let head = self.head;
        let ended = each(tables, &head, (&compare.keys, 0), &mut self.reads, |_, stored, _| {
            found = true;
            holds = compare.holds(Some(stored));
            if holds { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        // One that fails has failed, whatever the rest would say.
        if ended.is_err() && holds {
            return Ok(None);
        }
        Ok(Some(if found { holds } else { compare.holds(None) }))
    }
}

/// The steps of the lists that are taken, with their parts and their numbers there.
fn taken_steps<'a, 'b>(
    transaction: &'a Transaction<&'b [u8]>,
    holds: &'a [Option<bool>],
) -> impl Iterator<Item = ((usize, usize), &'a Step<&'b [u8]>)> {
    let parts = transaction.parts.iter().zip(holds).enumerate();
    parts.flat_map(|(part, (lists, holds))| {
        let list = holds.map(|holds| if holds { &lists.then } else { &lists.otherwise });
        let steps = list.into_iter().flatten().enumerate();
        steps.map(move |(number, step)| ((part, number), step))
    })
}

impl Compare<&[u8]> {
    /// Whether it holds of a key, or of one that does not exist.
    fn holds(&self, stored: Option<&Stored<'_>>) -> bool {
        let number = |there: Option<u64>, asked: u64| self.relation.holds(&there.unwrap_or(0), &asked);
        match self.property {
            Property::Version(asked) => number(stored.map(|it| it.version), asked),
            Property::CreateRevision(asked) => number(stored.map(|it| it.create_revision), asked),
            Property::ModRevision(asked) => number(stored.map(|it| it.mod_revision), asked),
            Property::Lease(asked) => number(stored.map(|it| it.lease), asked),
            Property::Value(asked) => stored.is_some_and(|it| self.relation.holds(it.value, asked)),
        }
    }
}
