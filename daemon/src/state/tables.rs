//! The state machine's tables in a redb transaction.

use std::ops::{Bound, ControlFlow};

use bftd_core::kv::{ReadTables, Table, WriteTables};
use redb::{
    ReadOnlyTable, ReadTransaction, ReadableTable, StorageError, TableDefinition, TableError,
    WriteTransaction,
};

use super::StateError;

const KEYS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("keys");
const BUCKETS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("buckets");
const META: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("meta");

/// The three tables, of one transaction.
#[derive(Debug)]
pub(super) struct Tables<T> {
    keys: T,
    buckets: T,
    meta: T,
}

/// The tables of a read transaction, which lives as long as they do.
pub(super) type ReadOnlyTables = Tables<ReadOnlyTable<&'static [u8], &'static [u8]>>;

impl<T> Tables<T> {
    fn open(
        open: impl Fn(TableDefinition<'static, &'static [u8], &'static [u8]>) -> Result<T, TableError>,
    ) -> Result<Self, StateError> {
        let open = |definition| open(definition).map_err(StateError::storage);
        Ok(Self { keys: open(KEYS)?, buckets: open(BUCKETS)?, meta: open(META)? })
    }

    fn table(&self, table: Table) -> &T {
        match table {
            Table::Keys => &self.keys,
            Table::Buckets => &self.buckets,
            Table::Meta => &self.meta,
        }
    }

    fn table_mut(&mut self, table: Table) -> &mut T {
        match table {
            Table::Keys => &mut self.keys,
            Table::Buckets => &mut self.buckets,
            Table::Meta => &mut self.meta,
        }
    }
}

impl<'t> Tables<redb::Table<'t, &'static [u8], &'static [u8]>> {
    /// The tables of a write transaction; drop them before it commits.
    pub(super) fn open_for_writing(transaction: &'t WriteTransaction) -> Result<Self, StateError> {
        Self::open(|definition| transaction.open_table(definition))
    }
}

impl ReadOnlyTables {
    /// The tables as they were when the transaction began.
    pub(super) fn open_for_reading(transaction: &ReadTransaction) -> Result<Self, StateError> {
        Self::open(|definition| transaction.open_table(definition))
    }
}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> ReadTables for Tables<T> {
    type Error = StorageError;

    fn read<R>(
        &self,
        table: Table,
        key: &[u8],
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, StorageError> {
        Ok(self.table(table).get(key)?.map(|value| f(value.value())))
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        mut f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        for item in self.table(table).range::<&[u8]>((from, Bound::Unbounded))? {
            let (key, value) = item?;
            if f(key.value(), value.value()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl WriteTables for Tables<redb::Table<'_, &'static [u8], &'static [u8]>> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.table_mut(table).insert(key, value).map(drop)
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<bool, StorageError> {
        Ok(self.table_mut(table).remove(key)?.is_some())
    }
}
