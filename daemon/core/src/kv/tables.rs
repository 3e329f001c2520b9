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
    /// A key of the store → its entry. These, the history, the leases and the sessions are the state; the other tables follow from it.
    Keys,
    /// A bucket's number → the digests of its entries.
    Buckets,
    /// What has been executed.
    Meta,
    /// Where a row of the history ends → the row.
    History,
    /// A key that is no more → the revision at which it was deleted.
    Deleted,
    /// A key → its entry as of the last trimmed row of the history, where it is not the current one.
    Held,
    /// The id of a lease → the lease.
    Leases,
    /// The id of a lease and a key that hangs on it → nothing.
    Attached,
    /// A session's id and opening → what is known of it; and the floor below which sessions have ended. State, as the keys are.
    Sessions,
}

impl Table {
    /// Every table, each at its own number: that of the variant.
    pub const ALL: [Self; 9] = [
        Self::Keys,
        Self::Buckets,
        Self::Meta,
        Self::History,
        Self::Deleted,
        Self::Held,
        Self::Leases,
        Self::Attached,
        Self::Sessions,
    ];
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
pub struct MemoryTables(BTreeMap<Table, BTreeMap<Bytes, Bytes>>);

impl ReadTables for MemoryTables {
    type Error = Infallible;

    fn read<R>(&self, table: Table, key: &[u8], f: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Infallible> {
        Ok(self.0.get(&table).and_then(|table| table.get(key)).map(|value| f(value)))
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        mut f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Infallible> {
        let Some(table) = self.0.get(&table) else { return Ok(()) };
        for (key, value) in table.range::<[u8], _>((from, Bound::Unbounded)) {
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
        let table = self.0.entry(table).or_default();
        match table.get_mut(key) {
            Some(old) => *old = value,
            None => {
                table.insert(Bytes::copy_from_slice(key), value);
            }
        }
        Ok(())
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<bool, Infallible> {
        let Some(of_table) = self.0.get_mut(&table) else { return Ok(false) };
        let is_removed = of_table.remove(key).is_some();
        if of_table.is_empty() {
            self.0.remove(&table);
        }
        Ok(is_removed)
    }
}
