//! The state machine's tables in a redb transaction.
//!
//! A change of a random key costs a page of the file wherever few of many keys have changed. So where there are many,
//! a checkpoint writes its changes to a table of their own, one after another: a **run**. The newest run that has a
//! key hides older ones and the table of keys. Runs are merged into that table piece by piece, with the same checkpoint:
//! what all runs have of the next keys, beginning where the oldest run does. So keys that lie together come together,
//! one page for many, and the oldest run ends when the merging has gone once around.
//!
//! Bounds: [`MAX_RUNS`], because a reader looks into each; and [`MAX_ROWS`] in all of them, because of the disk.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

use bftd_core::kv::{ReadTables, Table, WriteTables};
use redb::{
    AccessGuard, ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata, StorageError,
    TableDefinition, TableError, WriteTransaction,
};

use super::{StateError, rows::Place};

/// A run's number, big-endian, and a key → its entry, which is empty if the key was removed.
const RUNS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("runs");

/// What each table is called in the file.
const fn name(table: Table) -> &'static str {
    match table {
        Table::Keys => "keys",
        Table::Buckets => "buckets",
        Table::Meta => "meta",
        Table::History => "history",
        Table::Deleted => "deleted",
        Table::Held => "held",
        Table::Leases => "leases",
        Table::Attached => "attached",
        Table::Sessions => "sessions",
    }
}

/// With fewer keys no run is begun: a checkpoint has several changes for a page.
const MIN_KEYS: u64 = if cfg!(test) { 50 } else { 1 << 17 };
/// With fewer changes no run is begun: they go to the newest one, or to the table of keys.
const MIN_CHANGES: usize = if cfg!(test) { 5 } else { 1 << 12 };
/// How many runs there are after a checkpoint, at most.
const MAX_RUNS: usize = 16;
/// How many rows they have together after a checkpoint, at most, and at most a quarter of the keys.
const MAX_ROWS: u64 = 1 << 18;
/// So many rows of each run are merged at once, at most: they are in memory then.
const PART_ROWS: usize = if cfg!(test) { 3 } else { 1 << 10 };
/// So many bytes of them, or one row.
const PART_BYTES: usize = 1 << 18;

/// The tables of one transaction.
#[derive(Debug)]
pub(super) struct Tables<T> {
    /// Each at its number; that of keys without what the runs have.
    tables: Vec<T>,
    runs: T,
    /// The numbers of the runs, the newest first.
    numbers: Vec<u32>,
}

type Bytes = &'static [u8];

/// A key → what is to be written, as in a run.
type Part = BTreeMap<Vec<u8>, Vec<u8>>;

/// The tables of a read transaction, which lives as long as they do.
pub(super) type ReadOnlyTables = Tables<ReadOnlyTable<Bytes, Bytes>>;

impl<T: ReadableTable<Bytes, Bytes>> Tables<T> {
    fn open(
        open: impl Fn(TableDefinition<'static, Bytes, Bytes>) -> Result<T, TableError>,
    ) -> Result<Self, StateError> {
        let runs = open(RUNS).map_err(StateError::storage)?;
        let tables = Table::ALL.into_iter().map(|table| open(TableDefinition::new(name(table))));
        let tables = tables.collect::<Result<_, _>>().map_err(StateError::storage)?;
        let mut numbers = Vec::new();
        let mut from = Some(0);
        while let Some(number) = from
            && let Some(found) = first_run(&runs, number).map_err(StateError::storage)?
        {
            numbers.push(found);
            from = found.checked_add(1);
        }
        numbers.reverse();
        Ok(Self { tables, runs, numbers })
    }

    /// The table that holds it; that of keys without what the runs have.
    fn table(&self, table: Table) -> &T {
        self.tables.get(table as usize).expect("each table is opened")
    }

    fn table_mut(&mut self, table: Table) -> &mut T {
        self.tables.get_mut(table as usize).expect("each table is opened")
    }

    /// Where the first row of the history and its last one are.
    pub(super) fn ends_of_history(&self) -> Result<Option<(Place, Place)>, StorageError> {
        let rows = self.table(Table::History);
        match (rows.first()?, rows.last()?) {
            (Some((_, first)), Some((_, last))) => {
                Ok(Some((Place::decode(first.value())?, Place::decode(last.value())?)))
            }
            _ => Ok(None),
        }
    }

    /// What a run has from a key on.
    fn run(&self, number: u32, from: Bound<&[u8]>) -> Result<redb::Range<'_, Bytes, Bytes>, StorageError> {
        let from = match from {
            Bound::Included(key) => Bound::Included(row(number, key)),
            Bound::Excluded(key) => Bound::Excluded(row(number, key)),
            Bound::Unbounded => Bound::Included(row(number, &[])),
        };
        let end = number.checked_add(1).map(|next| row(next, &[]));
        let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.runs.range::<&[u8]>((from.as_ref().map(Vec::as_slice), end))
    }
}

/// The first run from a number on.
fn first_run(runs: &impl ReadableTable<Bytes, Bytes>, number: u32) -> Result<Option<u32>, StorageError> {
    let found = runs.range::<&[u8]>(row(number, &[]).as_slice()..)?.next().transpose()?;
    Ok(found.and_then(|(key, _)| key.value().first_chunk().copied()).map(u32::from_be_bytes))
}

/// The key in the key of a run's row.
fn key_of(row: &[u8]) -> &[u8] {
    row.get(4..).unwrap_or_default()
}

/// The key of a run's row.
fn row(number: u32, key: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes(), key].concat()
}

impl<'t> Tables<redb::Table<'t, Bytes, Bytes>> {
    /// The tables of a write transaction; drop them before it commits.
    pub(super) fn open_for_writing(transaction: &'t WriteTransaction) -> Result<Self, StateError> {
        Self::open(|definition| transaction.open_table(definition))
    }

    /// Prepares for so many changes of keys, in order: begins a run if it's worth one.
    pub(super) fn begin_run(&mut self, changes: usize) -> Result<(), StorageError> {
        if self.table(Table::Keys).len()? >= MIN_KEYS && changes >= MIN_CHANGES {
            let newest = self.numbers.first();
            self.numbers.insert(0, newest.map_or(0, |number| number.saturating_add(1)));
        }
        Ok(())
    }

    /// Merges runs into the table of keys until the bounds hold.
    pub(super) fn merge(&mut self) -> Result<(), StorageError> {
        let keys = self.table(Table::Keys).len()?;
        let rows = if keys < MIN_KEYS { 0 } else { MAX_ROWS.min(keys / 4) };
        while !self.numbers.is_empty() && (self.runs.len()? > rows || self.numbers.len() > MAX_RUNS) {
            self.merge_part()?;
        }
        Ok(())
    }

    /// Merges the next keys, from where the oldest run begins.
    fn merge_part(&mut self) -> Result<(), StorageError> {
        let Some(oldest) = self.numbers.last() else { return Ok(()) };
        let first = self.run(*oldest, Bound::Unbounded)?.next().transpose()?;
        let Some(first) = first.map(|(key, _)| key_of(key.value()).to_vec()) else {
            self.numbers.pop();
            return Ok(());
        };
        let (merged, last) = self.gather(&first)?;
        for (key, value) in &merged {
            if value.is_empty() {
                self.table_mut(Table::Keys).remove(key.as_slice())?;
            } else {
                self.table_mut(Table::Keys).insert(key.as_slice(), value.as_slice())?;
            }
        }
        for number in &self.numbers {
            let from = row(*number, &first);
            let to = row(*number, &last);
            self.runs.retain_in::<&[u8], _>(from.as_slice()..=to.as_slice(), |_, _| false)?;
        }
        Ok(())
    }

    /// What all runs have from a key on up to another one, which is returned.
    fn gather(&self, first: &[u8]) -> Result<(Part, Vec<u8>), StorageError> {
        let mut merged = Part::new();
        let mut last: Option<Vec<u8>> = None;
        for number in &self.numbers {
            let (mut rows, mut bytes) = (0, 0);
            for found in self.run(*number, Bound::Included(first))? {
                let (key, value) = found?;
                let key = key_of(key.value());
                if last.as_deref().is_some_and(|last| key > last) {
                    break;
                }
                (rows, bytes) = (rows + 1, bytes + value.value().len());
                merged.entry(key.to_vec()).or_insert_with(|| value.value().to_vec());
                if rows >= PART_ROWS || bytes >= PART_BYTES {
                    last = Some(key.to_vec());
                    break;
                }
            }
        }
        let last = last.or_else(|| merged.last_key_value().map(|(key, _)| key.clone())).unwrap_or_default();
        merged.retain(|key, _| *key <= last);
        Ok((merged, last))
    }

    /// Where a change of a key is written.
    fn change(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StorageError> {
        match (self.numbers.first(), value) {
            (Some(newest), value) => {
                self.runs.insert(row(*newest, key).as_slice(), value.unwrap_or_default()).map(drop)
            }
            (None, Some(value)) => self.table_mut(Table::Keys).insert(key, value).map(drop),
            (None, None) => self.table_mut(Table::Keys).remove(key).map(drop),
        }
    }
}

#[cfg(test)]
impl<T: ReadableTable<Bytes, Bytes>> Tables<T> {
    /// How many rows are in the table of keys, how many in runs, and how many runs there are.
    pub(super) fn sizes(&self) -> (u64, u64, usize) {
        (self.table(Table::Keys).len().unwrap(), self.runs.len().unwrap(), self.numbers.len())
    }
}

impl ReadOnlyTables {
    /// The tables as they were when the transaction began.
    pub(super) fn open_for_reading(transaction: &ReadTransaction) -> Result<Self, StateError> {
        Self::open(|definition| transaction.open_table(definition))
    }
}

impl<T: ReadableTable<Bytes, Bytes>> ReadTables for Tables<T> {
    type Error = StorageError;

    fn read<R>(
        &self,
        table: Table,
        key: &[u8],
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, StorageError> {
        if table == Table::Keys {
            for number in &self.numbers {
                if let Some(value) = self.runs.get(row(*number, key).as_slice())? {
                    return Ok(Some(value.value()).filter(|value| !value.is_empty()).map(f));
                }
            }
        }
        Ok(self.table(table).get(key)?.map(|value| f(value.value())))
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        mut f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        // The newest first, the table itself last.
        let mut sources = Vec::new();
        if table == Table::Keys {
            for number in &self.numbers {
                sources.push(Source::new(self.run(*number, from)?, 4)?);
            }
        }
        let rows = self.table(table).range::<&[u8]>((from, Bound::Unbounded))?;
        sources.push(Source::new(rows, 0)?);
        // Of equal keys the first source's is taken.
        while let Some(source) =
            sources.iter().filter(|source| source.next.is_some()).min_by(|a, b| a.key().cmp(&b.key()))
            && let (Some(key), Some((_, value))) = (source.key(), &source.next)
        {
            let is_removed = sources.len() > 1 && value.value().is_empty();
            if !is_removed && f(key, value.value()).is_break() {
                break;
            }
            let key = key.to_vec();
            for source in &mut sources {
                if source.key() == Some(key.as_slice()) {
                    source.advance()?;
                }
            }
        }
        Ok(())
    }
}

/// Where a scan finds rows.
struct Source<'a> {
    rows: redb::Range<'a, Bytes, Bytes>,
    next: Option<(AccessGuard<'a, Bytes>, AccessGuard<'a, Bytes>)>,
    /// How many bytes are before the key.
    prefix: usize,
}

impl<'a> Source<'a> {
    fn new(rows: redb::Range<'a, Bytes, Bytes>, prefix: usize) -> Result<Self, StorageError> {
        let mut source = Self { rows, next: None, prefix };
        source.advance()?;
        Ok(source)
    }

    fn key(&self) -> Option<&[u8]> {
        self.next.as_ref().and_then(|(key, _)| key.value().get(self.prefix..))
    }

    fn advance(&mut self) -> Result<(), StorageError> {
        self.next = self.rows.next().transpose()?;
        Ok(())
    }
}

impl WriteTables for Tables<redb::Table<'_, Bytes, Bytes>> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        match table {
            Table::Keys => self.change(key, Some(value)),
            table => self.table_mut(table).insert(key, value).map(drop),
        }
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<bool, StorageError> {
        if table == Table::Keys {
            let is_there = self.read(table, key, |_| ())?.is_some();
            if is_there {
                self.change(key, None)?;
            }
            return Ok(is_there);
        }
        Ok(self.table_mut(table).remove(key)?.is_some())
    }
}
