//! Compaction: which rows it ends, and how they go.

use std::{collections::BTreeMap, ops::ControlFlow};

use super::{Mark, Row, Standing, deleted_at, last_of_row, walk::each_row};
use crate::kv::{Error, ReadTables, Table, WriteTables, entry::Stored, range::Budget};

/// The end of the last row before the first one that has a change after a revision; none where there is no such row.
pub(in crate::kv) fn first_row_after<T: ReadTables>(
    tables: &T,
    revision: u64,
) -> Result<Option<Mark>, Error<T::Error>> {
    Ok(row_from(tables, revision + 1)?.map(|(row, _)| row.before))
}

/// The last revision of those in (`low`, `high`] that were made until a time; `low` where there is none. Nothing where to find it
/// would cost more than may be spent.
pub(in crate::kv) fn last_revision_until<T: ReadTables>(
    tables: &T,
    (low, high): (u64, u64),
    time_ms: u64,
    budget: &mut Budget,
) -> Result<Option<u64>, Error<T::Error>> {
    // Times never decrease along the rows: the first revision that is later is looked for.
    let (mut low, mut late) = (low, high + 1);
    while low + 1 < late {
        let middle = low + (late - low) / 2;
        if !budget.visit(Budget::SCAN) {
            return Ok(None);
        }
        match row_from(tables, middle)? {
            Some((row, last)) if row.time_ms <= time_ms => low = last.min(high),
            _ => late = middle,
        }
    }
    Ok(Some(low))
}

/// The first row that ends at a revision or later, and the revision of its last event.
fn row_from<T: ReadTables>(tables: &T, revision: u64) -> Result<Option<(Row, u64)>, Error<T::Error>> {
    let mut found = None;
    each_row(tables, revision, |key, bytes| {
        found = Some((Row::decode(bytes, |_| ControlFlow::Break(()))?, last_of_row(key)?));
        Some(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// Trims the oldest row, if all of it is before the compacted revision; says whether there was one.
pub(in crate::kv) fn trim<T: WriteTables>(
    tables: &mut T,
    standing: &mut Standing,
    compacted: u64,
) -> Result<bool, Error<T::Error>> {
    let mut oldest = None;
    // Those before it were trimmed: whoever looks for them finds what the store has of removed rows.
    each_row(tables, standing.trimmed + 1, |key, bytes| {
        let last = last_of_row(key)?;
        oldest = (last < compacted).then(|| (last, bytes.to_vec()));
        Some(ControlFlow::Break(()))
    })?;
    let Some((last, bytes)) = oldest else { return Ok(false) };
    // Of the changes of one key the last one counts.
    let mut changed = BTreeMap::new();
    let row = Row::decode(&bytes, |event| {
        changed.insert(event.key, event);
        ControlFlow::Continue(())
    });
    row.ok_or(Error::Damaged("a row of the history"))?;
    let mut buffer = Vec::new();
    for (key, event) in changed {
        let Some(stored) = event.change.entry() else {
            tables.remove(Table::Held, key)?;
            if deleted_at(tables, key)? == Some(event.revision) {
                tables.remove(Table::Deleted, key)?;
                let left = standing.tombstones.checked_sub(1);
                standing.tombstones = left.ok_or(Error::Damaged("the number of tombstones"))?;
            }
            continue;
        };
        let current =
            tables.read(Table::Keys, key, |bytes| Stored::decode(bytes).map(|it| it.mod_revision))?;
        let current = current.map(|current| current.ok_or(Error::Damaged("an entry"))).transpose()?;
        if current == Some(event.revision) {
            tables.remove(Table::Held, key)?;
        } else {
            stored.encode(&mut buffer);
            tables.put(Table::Held, key, &buffer)?;
        }
    }
    tables.remove(Table::History, &last.to_be_bytes())?;
    standing.trimmed = last;
    Ok(true)
}
