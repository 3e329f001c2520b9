//! The way back through one key's changes.

use std::ops::{Bound, ControlFlow};

use super::{Change, Event, Row, deleted_at};
use crate::kv::{
    Changes, Entry, Error, MAX_ANSWER, ReadTables, Table,
    entry::Stored,
    range::{Budget, PER_ENTRY},
};

/// A change of one key, as far as the way back needs it.
#[derive(Clone, Copy, Debug)]
struct Step {
    revision: u64,
    previous: u64,
    is_put: bool,
    /// Whether the key was there before it.
    was_there: bool,
}

impl Step {
    fn of(event: &Event<'_>) -> Self {
        let Event { revision, previous, .. } = *event;
        let (is_put, was_there) = match &event.change {
            Change::Put(stored) => (true, stored.version > 1),
            Change::Delete => (false, true),
        };
        Self { revision, previous, is_put, was_there }
    }
}

/// What a key was as of a revision.
pub(in crate::kv) enum AsOf {
    /// This.
    Entry(Entry),
    /// It was not there.
    Nothing,
    /// To find out would cost more than may be spent.
    Spent,
}

/// The entry of a key as of a revision that is not compacted. Whatever way back that takes is paid for, row by row, before it is
/// gone.
pub(in crate::kv) fn entry_as_of<T: ReadTables>(
    tables: &T,
    key: &[u8],
    revision: u64,
    budget: &mut Budget,
) -> Result<AsOf, Error<T::Error>> {
    if !budget.visit(key.len()) {
        return Ok(AsOf::Spent);
    }
    let current = tables.read(Table::Keys, key, |bytes| {
        let stored = Stored::decode(bytes)?;
        let is_asked = stored.mod_revision <= revision;
        Some((stored.mod_revision, is_asked.then(|| stored.to_entry(true))))
    })?;
    let mut at = match current {
        Some(None) => return Err(Error::Damaged("an entry")),
        Some(Some((_, Some(entry)))) => return Ok(AsOf::Entry(entry)),
        Some(Some((changed, None))) => changed,
        None => match deleted_at(tables, key)? {
            Some(deleted) if deleted > revision => deleted,
            _ => return Ok(AsOf::Nothing),
        },
    };
    // `at` is a revision after the one asked for at which the key changed.
    loop {
        let Some(steps) = steps_in_row(tables, key, at, budget)? else { return Ok(AsOf::Spent) };
        if steps.is_empty() {
            return Err(Error::Damaged("the history of a key"));
        }
        for step in steps.iter().rev() {
            at = step.previous;
            if at > revision {
                continue;
            }
            if !step.was_there {
                return Ok(AsOf::Nothing);
            }
            // Where it is held differs from member to member, what it costs does not.
            if !budget.visit(Budget::SCAN) {
                return Ok(AsOf::Spent);
            }
            let entry = entry_exactly(tables, key, at)?.ok_or(Error::Damaged("the history of a key"))?;
            return Ok(AsOf::Entry(entry));
        }
    }
}

/// The entry that a key got at a revision; none where it was deleted there.
pub(in crate::kv) fn entry_exactly<T: ReadTables>(
    tables: &T,
    key: &[u8],
    revision: u64,
) -> Result<Option<Entry>, Error<T::Error>> {
    let of_revision = |bytes: &[u8]| {
        let stored = Stored::decode(bytes)?;
        Some((stored.mod_revision == revision).then(|| stored.to_entry(true)))
    };
    // The current one, one of a row, or one that was held when its row was trimmed.
    for table in [Table::Keys, Table::Held] {
        match tables.read(table, key, of_revision)? {
            Some(None) => return Err(Error::Damaged("an entry")),
            Some(Some(Some(entry))) => return Ok(Some(entry)),
            Some(Some(None)) | None => {}
        }
    }
    let mut found = None;
    each_row(tables, revision, |_, bytes| {
        Row::decode(bytes, |event| {
            if event.revision == revision && event.key == key {
                found = event.change.entry().map(|stored| stored.to_entry(true));
            }
            if event.revision > revision { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Some(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// The changes of one key, the newest first: at most `limit`, from `before` on backwards if that is not 0, and down to the one
/// that gave what it was as of the compacted revision. And whether there are more.
pub(in crate::kv) fn events_back<T: ReadTables>(
    tables: &T,
    key: &[u8],
    (compacted, before, limit): (u64, u64, usize),
) -> Result<Changes, Error<T::Error>> {
    let current = tables.read(Table::Keys, key, |bytes| Stored::decode(bytes).map(|it| it.mod_revision))?;
    let mut at = match current {
        Some(changed) => changed.ok_or(Error::Damaged("an entry"))?,
        None => deleted_at(tables, key)?.unwrap_or(0),
    };
    let mut events = Vec::new();
    let mut bytes = 0;
    // Whether what comes next was an entry.
    let mut owed = current.is_some();
    while at > 0 {
        let steps = steps_in_row(tables, key, at, &mut Budget::of_a_query())?.unwrap_or_default();
        let known = match steps.is_empty() {
            // Its row is trimmed: it is what the key was as of the compacted revision.
            true if at <= compacted => {
                vec![Step { revision: at, previous: 0, is_put: true, was_there: true }]
            }
            true => return Err(Error::Damaged("the history of a key")),
            false => steps,
        };
        for step in known.iter().rev() {
            at = step.previous;
            let is_last = step.revision <= compacted;
            let is_entry = step.is_put && owed;
            owed = step.was_there;
            if before > 0 && step.revision >= before {
                if is_last {
                    return Ok(Changes { changes: events, more: false });
                }
                continue;
            }
            // A key that was deleted by then is as if it never was.
            if is_last && !is_entry {
                return Ok(Changes { changes: events, more: false });
            }
            let entry = if step.is_put {
                let entry = entry_exactly(tables, key, step.revision)?;
                Some(entry.ok_or(Error::Damaged("the history of a key"))?)
            } else {
                None
            };
            if events.len() == limit || bytes > MAX_ANSWER {
                return Ok(Changes { changes: events, more: true });
            }
            bytes += PER_ENTRY + entry.as_ref().map_or(0, |entry| entry.value.len());
            events.push((step.revision, entry));
            if is_last {
                return Ok(Changes { changes: events, more: false });
            }
        }
    }
    Ok(Changes { changes: events, more: false })
}

/// One key's changes in the row that has its change at a revision, up to that one, rising; none where the row is trimmed. Nothing where
/// that would cost more than may be spent.
fn steps_in_row<T: ReadTables>(
    tables: &T,
    key: &[u8],
    revision: u64,
    budget: &mut Budget,
) -> Result<Option<Vec<Step>>, Error<T::Error>> {
    let mut steps = Vec::new();
    let mut is_spent = false;
    each_row(tables, revision, |_, bytes| {
        is_spent = !budget.visit(bytes.len());
        if is_spent {
            return Some(ControlFlow::Break(()));
        }
        Row::decode(bytes, |event| {
            if event.revision > revision {
                return ControlFlow::Break(());
            }
            if event.key == key {
                steps.push(Step::of(&event));
            }
            ControlFlow::Continue(())
        })?;
        Some(ControlFlow::Break(()))
    })?;
    if steps.last().is_none_or(|step| step.revision != revision) {
        steps.clear();
    }
    Ok((!is_spent).then_some(steps))
}

/// Shows `f` rows, from the first one that may have a revision on, until it breaks. It answers nothing where a row is damaged.
pub(in crate::kv) fn each_row<T: ReadTables>(
    tables: &T,
    revision: u64,
    mut f: impl FnMut(&[u8], &[u8]) -> Option<ControlFlow<()>>,
) -> Result<(), Error<T::Error>> {
    let mut is_damaged = false;
    tables.scan(Table::History, Bound::Included(&revision.to_be_bytes()), |key, bytes| {
        f(key, bytes).unwrap_or_else(|| {
            is_damaged = true;
            ControlFlow::Break(())
        })
    })?;
    if is_damaged { Err(Error::Damaged("a row of the history")) } else { Ok(()) }
}
