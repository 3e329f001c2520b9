//! Ordered tables: all that the state machine asks of its store.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    ops::{Bound, ControlFlow},
};

use bytes::Bytes;

/// Which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// A key of the store → its entry. This is the state; the other tables follow from it.
    Keys,
    /// A bucket's number → the digests of its entries.
    Buckets,
    /// What has been executed.
    Meta,
}

/// Reading tables.
pub trait ReadTables {
    /// Why a table can't be read or written. The store is of no use after one.
    type Error: std::error::Error;

    /// What `f` makes of the value at `key`; none where there is no such key.
    ///
    /// # Errors
    /// The store's own.
    fn read<R>(&self, table: Table, key: &[u8], f: impl FnOnce(&[u8]) -> R)
    -> Result<Option<R>, Self::Error>;

    /// Shows `f` keys and values, rising from `from`, until it breaks or there are no more.
    ///
    /// # Errors
    /// The store's own.
    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Self::Error>;
}

impl<T: ReadTables> ReadTables for &T {
    type Error = T::Error;

    fn read<R>(&self, table: Table, key: &[u8], f: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, T::Error> {
        (**self).read(table, key, f)
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), T::Error> {
        (**self).scan(table, from, f)
    }
}

/// Changing tables.
pub trait WriteTables: ReadTables {
    /// Sets the value at a key.
    ///
    /// # Errors
    /// The store's own.
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), Self::Error>;

    /// Removes a key, and says whether it was there.
    ///
    /// # Errors
    /// The store's own.
    fn remove(&mut self, table: Table, key: &[u8]) -> Result<bool, Self::Error>;
}

/// Tables in memory; a clone shares the values. An empty one costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTables {
    keys: BTreeMap<Bytes, Bytes>,
    buckets: BTreeMap<Bytes, Bytes>,
    meta: BTreeMap<Bytes, Bytes>,
}

impl MemoryTables {
    fn table(&self, table: Table) -> &BTreeMap<Bytes, Bytes> {
        match table {
            Table::Keys => &self.keys,
            Table::Buckets => &self.buckets,
            Table::Meta => &self.meta,
        }
    }

    fn table_mut(&mut self, table: Table) -> &mut BTreeMap<Bytes, Bytes> {
        match table {
            Table::Keys => &mut self.keys,
            Table::Buckets => &mut self.buckets,
            Table::Meta => &mut self.meta,
        }
    }
}

impl ReadTables for MemoryTables {
    type Error = Infallible;

    fn read<R>(&self, table: Table, key: &[u8], f: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Infallible> {
        Ok(self.table(table).get(key).map(|value| f(value)))
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        mut f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Infallible> {
        for (key, value) in self.table(table).range::<[u8], _>((from, Bound::Unbounded)) {
            if f(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl WriteTables for MemoryTables {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), Infallible> {
        let value = Bytes::copy_from_slice(value);
        let table = self.table_mut(table);
        match table.get_mut(key) {
            Some(old) => *old = value,
            None => {
                table.insert(Bytes::copy_from_slice(key), value);
            }
        }
        Ok(())
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<bool, Infallible> {
        Ok(self.table_mut(table).remove(key).is_some())
    }
}
