//! What keys were: every change since the compacted revision.
//!
//! - [`Table::History`] holds **rows** of **events** in the order of execution. An event is one key's change at a revision, and
//!   names the revision of the key's change before it. So the way back through one key's changes needs no index.
//! - A row ends with its block, with a revision when it is full, and where the history is read or compacted. Its key is the revision of its last event.
//! - Rows are **chained**: each holds the digest of all before it. The chain covers every event with the digest of the entry that
//!   it replaced; its ends are part of the state's digest. So members agree on history, and whoever is given a part of it
//!   can check it.
//! - [`Table::Deleted`] holds the revisions at which keys were deleted that are no more. It follows from the history.
//! - **Compaction** is decided by a request, and ends what can be read at once. Afterwards rows are **trimmed** one by one, each
//!   member at its own pace: [`Table::Held`] takes the entries as of the last trimmed row, where they are not the current ones.
//!   So whatever is to be read as of a later revision can still be read.

mod check;
mod rows;
mod trim;
mod walk;

use serde::{Deserialize, Serialize};

pub(super) use self::{
    check::recomputed,
    rows::{Change, Event, Row},
    trim::{first_row_after, last_revision_until, trim},
    walk::{AsOf, each_row, entry_as_of, entry_exactly, events_back},
};
use super::{Error, ReadTables, Table, WriteTables, entry::Stored};
use crate::crypto::{Digest, Domain};

/// From how many bytes of keys and values on a row ends.
const FULL_ROW: u64 = 64 << 10;
/// What an event counts for beside its key and value, in bytes.
pub(super) const PER_EVENT: usize = 48;
/// In [`Table::Meta`]: the [`Standing`].
const STANDING: &[u8] = b"history";
/// Marks the digest of a tombstone among those of entries.
const TOMBSTONE: u8 = 2;

/// A place in the chain of rows: the end of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The digest of all rows up to it.
    pub(super) digest: Digest,
    /// The bytes of keys and values in them.
    pub(super) bytes: u64,
}

impl Mark {
    /// Before the first row.
    pub(super) const START: Self = Self { digest: Digest::ZERO, bytes: 0 };
}

/// How the history stands, in [`Table::Meta`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    /// The end of the newest row.
    pub(super) end: Mark,
    /// The end of the newest row that is wholly compacted.
    pub(super) base: Mark,
    /// The bytes of the keys that there are and of their values.
    pub(super) live: u64,
    /// The revision of the last event that was trimmed. Of this member alone: it is part of no digest.
    pub(super) trimmed: u64,
    /// How many rows [`Table::Deleted`] has. Of this member alone.
    pub(super) tombstones: u64,
}

impl Default for Standing {
    fn default() -> Self {
        Self { end: Mark::START, base: Mark::START, live: 0, trimmed: 0, tombstones: 0 }
    }
}

/// The history of the open block and where it goes on.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    pub(super) standing: Standing,
    /// The row that is being filled: its events, encoded.
    row: Vec<u8>,
    /// Of each of its events the digest, the one of the entry that it replaced, and the revision of the change before it.
    digests: Vec<u8>,
    /// The bytes of its keys and values.
    bytes: u64,
    /// The revision of its last event.
    last: u64,
    /// The time of the block.
    pub(super) time_ms: u64,
    /// How many rows were made since that was asked last.
    pub(super) rows: usize,
}

impl History {
    pub(super) fn new(standing: Standing) -> Self {
        Self { standing, ..Self::default() }
    }

    /// Adds an event, with its digest and the one of the entry that it replaces.
    pub(super) fn push<T: WriteTables>(
        &mut self,
        tables: &mut T,
        event: &Event<'_>,
        digest: Digest,
        replaced: Digest,
    ) -> Result<(), T::Error> {
        // By what the chain covers: what is stored of it may differ in length.
        if self.bytes >= FULL_ROW && event.revision > self.last {
            self.end_row(tables)?;
        }
        if self.row.is_empty() {
            let start = Row { before: self.standing.end, time_ms: self.time_ms };
            start.encode(&mut self.row);
        }
        event.encode(&mut self.row);
        self.digests.extend_from_slice(&digest.0);
        self.digests.extend_from_slice(&replaced.0);
        self.digests.extend_from_slice(&event.previous.to_le_bytes());
        self.bytes += event.size();
        self.last = event.revision;
        Ok(())
    }

    /// Ends the row that is being filled, if there is one.
    pub(super) fn end_row<T: WriteTables>(&mut self, tables: &mut T) -> Result<(), T::Error> {
        if self.row.is_empty() {
            return Ok(());
        }
        let standing = &mut self.standing;
        tables.put(Table::History, &self.last.to_be_bytes(), &self.row)?;
        standing.end = Mark {
            digest: chained(standing.end.digest, self.time_ms, &self.digests),
            bytes: standing.end.bytes + self.bytes,
        };
        self.rows += 1;
        self.row.clear();
        self.digests.clear();
        self.bytes = 0;
        Ok(())
    }
}

/// How the history stands, by the tables.
pub(super) fn read_standing<T: ReadTables>(tables: &T) -> Result<Standing, Error<T::Error>> {
    match tables.read(Table::Meta, STANDING, |bytes| postcard::from_bytes(bytes).ok())? {
        None => Ok(Standing::default()),
        Some(standing) => standing.ok_or(Error::Damaged("the record of the history")),
    }
}

impl Standing {
    pub(super) fn write<T: WriteTables>(&self, tables: &mut T) -> Result<(), T::Error> {
        let standing = postcard::to_stdvec(self).expect("encoding into a growing buffer succeeds");
        tables.put(Table::Meta, STANDING, &standing)
    }
}

impl History {
    /// How many bytes of keys and values the store holds: what is there, and the history that is not compacted.
    pub(super) fn used(&self) -> u64 {
        let Standing { end, base, live, .. } = self.standing;
        live + (end.bytes + self.bytes - base.bytes)
    }
}

/// The digest of a chain with one more row.
pub(super) fn chained(before: Digest, time_ms: u64, digests: &[u8]) -> Digest {
    Domain::History.digest(&[&before.0, &time_ms.to_le_bytes(), digests])
}

/// The digest of a key's deletion.
pub(super) fn tombstone_digest(key: &[u8], revision: u64) -> Digest {
    Domain::Entry.digest(&[&[TOMBSTONE], &revision.to_le_bytes(), key])
}

/// The revision of a row's last event, by the row's key.
pub(super) fn last_of_row(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

/// The revision in [`Table::Deleted`].
pub(super) fn revision_of_tombstone(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// When a key that does not exist was deleted, if that is known.
pub(super) fn deleted_at<T: ReadTables>(tables: &T, key: &[u8]) -> Result<Option<u64>, Error<T::Error>> {
    let found = tables.read(Table::Deleted, key, revision_of_tombstone)?;
    found.map(|revision| revision.ok_or(Error::Damaged("a tombstone"))).transpose()
}

impl Change<'_> {
    pub(super) fn entry(&self) -> Option<&Stored<'_>> {
        match self {
            Self::Put(stored) => Some(stored),
            Self::Delete => None,
        }
    }
}
