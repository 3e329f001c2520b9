//! Changes that are in memory only, above tables that don't have them yet.

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

use bftd_core::kv::{ReadTables, Span, Table, WriteTables};
use bytes::Bytes;

/// What keys have been set to, or that they were removed.
type Changed = BTreeMap<Key, Option<Bytes>>;

/// A key whose first bytes are at hand: comparing two seldom has to look at the others, which are elsewhere in memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// The first 16 bytes, filled up with zeros, as a big-endian number. Where two differ, the keys do, in the same order.
    first: u128,
    bytes: Bytes,
}

impl From<Bytes> for Key {
    fn from(bytes: Bytes) -> Self {
        let first = bytes.first_chunk().copied().unwrap_or_else(|| {
            let mut filled = [0; 16];
            filled.iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
            filled
        });
        Self { first: u128::from_be_bytes(first), bytes }
    }
}

/// The order of keys is that of their bytes.
impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.bytes
    }
}

/// Changes to tables, in order. Bounded by whoever gathers them, by [`Changes::len`] and [`Changes::bytes`].
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    tables: [Changed; Table::ALL.len()],
    bytes: usize,
}

impl Changes {
    /// How many keys of the store have changed.
    pub(super) fn len(&self) -> usize {
        self.table(Table::Keys).len()
    }

    /// How many bytes of keys and values there are.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds later changes.
    pub(super) fn append(&mut self, later: Self) {
        self.bytes += later.bytes;
        for (table, later) in self.tables.iter_mut().zip(later.tables) {
            if table.is_empty() {
                *table = later;
                continue;
            }
            for (key, change) in later {
                self.bytes -= insert(table, key, change);
            }
        }
    }

    /// Writes all changes, in order.
    pub(super) fn write_to<T: WriteTables>(&self, tables: &mut T) -> Result<(), T::Error> {
        for table in Table::ALL {
            for (key, value) in self.table(table) {
                match value {
                    Some(value) => tables.put(table, &key.bytes, value)?,
                    None => drop(tables.remove(table, &key.bytes)?),
                }
            }
        }
        Ok(())
    }

    /// Copies what is changed of some keys in a table to `to`.
    pub(super) fn copy(&self, table: Table, keys: &Span<&[u8]>, to: &mut Self) {
        let (from, to) = (self.table(table), to.table_mut(table));
        if let Span::Key(key) = keys {
            to.extend(from.get_key_value(*key).map(|(key, change)| (key.clone(), change.clone())));
            return;
        }
        let range = from.range::<[u8], _>((Bound::Included(keys.first()), Bound::Unbounded));
        let range = range.take_while(|(key, _)| keys.reaches(&key.bytes));
        to.extend(range.map(|(key, change)| (key.clone(), change.clone())));
    }

    fn table(&self, table: Table) -> &Changed {
        self.tables.get(table as usize).expect("each table has a place")
    }

    fn table_mut(&mut self, table: Table) -> &mut Changed {
        self.tables.get_mut(table as usize).expect("each table has a place")
    }

    fn set(&mut self, table: Table, key: &[u8], change: Option<&[u8]>) {
        self.bytes += key.len() + change.map_or(0, <[u8]>::len);
        let (key, change) = (Bytes::copy_from_slice(key).into(), change.map(Bytes::copy_from_slice));
        self.bytes -= insert(self.table_mut(table), key, change);
    }
}

/// Sets a change, and returns how many bytes of an earlier one it replaces.
fn insert(table: &mut Changed, key: Key, change: Option<Bytes>) -> usize {
    let length = key.bytes.len();
    table.insert(key, change).map_or(0, |replaced| length + replaced.map_or(0, |value| value.len()))
}

/// Tables as they are with changes applied.
#[derive(Debug)]
pub(super) struct Layered<B, C> {
    pub(super) base: B,
    pub(super) changes: C,
}

impl<B: ReadTables, C: Borrow<Changes>> ReadTables for Layered<B, C> {
    type Error = B::Error;

    fn read<R>(&self, table: Table, key: &[u8], f: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, B::Error> {
        match self.changes.borrow().table(table).get(key) {
            Some(change) => Ok(change.as_deref().map(f)),
            None => self.base.read(table, key, f),
        }
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        mut f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), B::Error> {
        let changes = self.changes.borrow().table(table).range::<[u8], _>((from, Bound::Unbounded));
        let mut changes = changes.peekable();
        let mut flow = ControlFlow::Continue(());
        self.base.scan(table, from, |key, value| {
            while let Some((changed, change)) = changes.next_if(|(changed, _)| changed.bytes < key) {
                if let Some(value) = change {
                    flow = f(&changed.bytes, value);
                    flow?;
                }
            }
            flow = match changes.next_if(|(changed, _)| changed.bytes == key) {
                None => f(key, value),
                Some((_, Some(value))) => f(key, value),
                Some((_, None)) => ControlFlow::Continue(()),
            };
            flow
        })?;
        if flow.is_continue() {
            for (key, change) in changes {
                if let Some(value) = change
                    && f(&key.bytes, value).is_break()
                {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl<B: ReadTables> WriteTables for Layered<B, Changes> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), B::Error> {
        self.changes.set(table, key, Some(value));
        Ok(())
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<bool, B::Error> {
        let found = self.read(table, key, |_| ())?.is_some();
        if found {
            self.changes.set(table, key, None);
        }
        Ok(found)
    }
}
