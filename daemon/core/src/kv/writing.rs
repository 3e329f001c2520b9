//! A key's change: its entry, its digest, its event in the history, and the lease that it hangs on.

use std::ops::{Bound, ControlFlow};

use super::{
    Error, MAX_DELETED, MAX_DELETED_BYTES, ReadTables, Refusal, Span, Table, WriteTables,
    buckets::Place,
    digest::size_of,
    entry::{Numbers, Stored},
    history::{Change, Event, History, deleted_at, tombstone_digest},
    lease::{Leases, attached},
    range::Budget,
};

/// What the requests of one member may still delete in ranges in a block.
///
/// So is a row of the history, and what removed rows cost those who look for others. What goes with a lease that is revoked or
/// expires is no part of it: the lease's own limit bounds that, [`MAX_DELETED`] keys or [`MAX_DELETED_BYTES`] when one more is put on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deletions {
    keys: usize,
    bytes: usize,
}

impl Default for Deletions {
    fn default() -> Self {
        Self { keys: MAX_DELETED, bytes: MAX_DELETED_BYTES }
    }
}

impl Deletions {
    /// The keys of a span. Refused where they are more than may be deleted, or nothing more may be looked for.
    pub(super) fn find<T: ReadTables>(
        &self,
        tables: &T,
        span: &Span<&[u8]>,
        reads: &mut Budget,
    ) -> Result<Result<Vec<Vec<u8>>, Refusal>, T::Error> {
        if !reads.visit(Budget::SCAN) {
            return Ok(Err(Refusal::ReadsTooMuch));
        }
        let (mut keys, mut bytes) = (Vec::new(), 0);
        let mut is_too_much = false;
        tables.scan(Table::Keys, Bound::Included(span.first()), |key, _| {
            if !span.reaches(key) {
                return ControlFlow::Break(());
            }
            bytes += key.len();
            is_too_much = keys.len() == self.keys || bytes > self.bytes;
            if is_too_much {
                return ControlFlow::Break(());
            }
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        })?;
        Ok(if is_too_much { Err(Refusal::DeletesTooMuch) } else { Ok(keys) })
    }

    /// Takes a key that is deleted.
    pub(super) fn take(&mut self, key: &[u8]) {
        self.keys = self.keys.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(key.len());
    }
}

/// What a change of a key writes to.
pub(super) struct Writing<'a, T> {
    pub(super) tables: &'a mut T,
    pub(super) history: &'a mut History,
    pub(super) leases: &'a mut Leases,
    /// The entry being written.
    pub(super) buffer: &'a mut Vec<u8>,
    pub(super) compacted: u64,
}

impl<T: WriteTables> Writing<'_, T> {
    /// Stores a value at a place.
    pub(super) fn put(
        &mut self,
        place: Place<'_>,
        (key, value, lease): (&[u8], &[u8], u64),
        revision: u64,
    ) -> Result<(), Error<T::Error>> {
        let old = place.numbers();
        let previous = match old {
            Some(old) => {
                self.hold(key, old)?;
                old.mod_revision
            }
            None => self.revive(key)?,
        };
        self.hang(key, old, lease)?;
        let (create_revision, version) =
            old.map_or((revision, 1), |old| (old.create_revision, old.version + 1));
        let stored = Stored { create_revision, mod_revision: revision, version, lease, value };
        stored.encode(self.buffer);
        self.tables.put(Table::Keys, key, self.buffer)?;
        let (digest, replaced) = (stored.digest(key), place.digest());
        let live = &mut self.history.standing.live;
        *live = *live + size_of(key, value.len()) - old.map_or(0, |old| size_of(key, old.size as usize));
        let event = Event { revision, previous, key, change: Change::Put(stored) };
        self.history.push(self.tables, &event, digest, replaced)?;
        place.set(stored.numbers(), digest);
        Ok(())
    }

    /// Deletes the key at a place, if it is there.
    pub(super) fn delete(
        &mut self,
        place: Place<'_>,
        key: &[u8],
        revision: u64,
    ) -> Result<bool, Error<T::Error>> {
        let Some(old) = place.numbers() else { return Ok(false) };
        self.hold(key, old)?;
        self.hang(key, Some(old), 0)?;
        let event = Event { revision, previous: old.mod_revision, key, change: Change::Delete };
        self.history.push(self.tables, &event, tombstone_digest(key, revision), place.digest())?;
        self.history.standing.live -= size_of(key, old.size as usize);
        place.remove();
        if !self.tables.remove(Table::Keys, key)? {
            return Err(Error::Damaged("the list of keys"));
        }
        self.tables.put(Table::Deleted, key, &revision.to_be_bytes())?;
        self.history.standing.tombstones += 1;
        Ok(true)
    }

    /// Keeps the entry that is about to be replaced, where the history has no row for it any more.
    fn hold(&mut self, key: &[u8], old: Numbers) -> Result<(), Error<T::Error>> {
        if old.mod_revision > self.history.standing.trimmed {
            return Ok(());
        }
        let entry = self.tables.read(Table::Keys, key, <[u8]>::to_vec)?;
        let entry = entry.ok_or(Error::Damaged("the list of keys"))?;
        Ok(self.tables.put(Table::Held, key, &entry)?)
    }

    /// Takes a key off the lease that it hangs on, and hangs it on another one; 0 is none.
    fn hang(&mut self, key: &[u8], old: Option<Numbers>, lease: u64) -> Result<(), Error<T::Error>> {
        if old.is_some_and(|old| old.is_leased) {
            let before =
                self.tables.read(Table::Keys, key, |bytes| Stored::decode(bytes).map(|it| it.lease))?;
            let before = before.flatten().ok_or(Error::Damaged("an entry"))?;
            if before == lease {
                return Ok(());
            }
            if !self.tables.remove(Table::Attached, &attached(before, key))? {
                return Err(Error::Damaged("the keys of a lease"));
            }
            self.leases.unload(before, key);
        }
        if lease != 0 {
            self.leases.load(lease, key);
            self.tables.put(Table::Attached, &attached(lease, key), &[])?;
        }
        Ok(())
    }

    /// Takes the tombstone off a key that comes back. Answers with its revision, if that can still be read.
    fn revive(&mut self, key: &[u8]) -> Result<u64, Error<T::Error>> {
        if self.history.standing.tombstones == 0 {
            return Ok(0);
        }
        let Some(deleted) = deleted_at(self.tables, key)? else { return Ok(0) };
        self.tables.remove(Table::Deleted, key)?;
        self.history.standing.tombstones -= 1;
        Ok(if deleted > self.compacted { deleted } else { 0 })
    }
}
