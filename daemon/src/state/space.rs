//! The file's free space, given back to the file system.
//!
//! - redb writes on pages that were freed, and gives back only those at the end of the file. One page in use there keeps all
//!   before it: after most keys are deleted the file stays as large as it was.
//! - So opening has redb move the pages in use to the front ([`Database::compact`]) where that is worth it: the file has
//!   [`MIN_FREE`] of free space, that is more than half of it, and at least so much more than the last time left. Nobody may
//!   read meanwhile, and redb does not stop halfway: it goes over all that is in use again and again, until nothing moves. So it is
//!   not done while the daemon serves, and has no bound of time (1.5 s and 13 s were measured for some 400 MiB in use). It takes
//!   some 450 bytes of memory for each page in use, of a million pages at most.
//! - It is done in durable commits, each of which leaves the same contents. After a crash the next opening checks and reads the
//!   whole file, as redb does not note which pages are free, and goes on from there if it is still worth it.
//! - Where there is no room on the disk for it, the file is left as it is, and the daemon goes on: it will do with what it has.
//!   Any other error is the disk's, and is treated as everywhere.

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use redb::{CompactionError, Database, ReadableDatabase, StorageError};

use super::{ABOUT, CACHE, StateError, begin};
use crate::store::size_on_disk;

/// With less free space, nothing is moved.
pub(super) const MIN_FREE: u64 = if cfg!(test) { 256 << 10 } else { 64 << 20 };
/// In [`ABOUT`]: how much free space the last compaction left, in bytes, big-endian. It can't move everything.
const LEFT: &str = "left by compaction";

/// Where the state is.
pub(super) trait File {
    /// Opens the database, or creates it.
    fn open(&self) -> Result<Database, StateError>;
    /// How many bytes of the disk it takes.
    fn size(&self) -> io::Result<u64>;
    /// For people.
    fn name(&self) -> String;
}

impl File for PathBuf {
    fn open(&self) -> Result<Database, StateError> {
        match Database::builder().set_cache_size(CACHE).create(self) {
            Ok(database) => Ok(database),
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => Err(StateError::InUse(self.clone())),
            Err(error) => Err(StateError::storage(error)),
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(size_on_disk(&fs::metadata(self)?))
    }

    fn name(&self) -> String {
        self.display().to_string()
    }
}

/// What a file takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Space {
    size: u64,
    free: u64,
}

impl Space {
    /// Looks at every page in use.
    fn of(database: &Database, file: &impl File) -> Result<Self, StateError> {
        let transaction = database.begin_write().map_err(StateError::storage)?;
        let stats = transaction.stats().map_err(StateError::storage)?;
        transaction.abort().map_err(StateError::storage)?;
        let size = size(file)?;
        Ok(Self { size, free: size.saturating_sub(stats.allocated_pages() * stats.page_size() as u64) })
    }

    /// Whether moving pages is worth it, where the last time `left` so much free.
    fn is_worth_it(self, left: u64) -> bool {
        self.free > self.size / 2 && self.free.saturating_sub(left) >= MIN_FREE
    }
}

/// Gives free space back where it is worth it. `live` is how much there is of keys and values, from which a full file is told
/// without looking at it.
pub(super) fn give_back(database: Database, file: &impl File, live: u64) -> Result<Database, StateError> {
    let size = size(file)?;
    if size < MIN_FREE || live > size / 2 {
        return Ok(database);
    }
    let before = Space::of(&database, file)?;
    if !before.is_worth_it(left(&database)?) {
        return Ok(database);
    }
    tracing::info!(
        file = file.name(),
        size = %shown(before.size),
        free = %shown(before.free),
        "giving back free space, before the daemon serves"
    );
    match compact(database, file) {
        Ok((database, after, took)) => {
            tracing::info!(
                file = file.name(),
                from = %shown(before.size),
                to = %shown(after.size),
                seconds = format!("{:.1}", took.as_secs_f64()),
                "gave back free space"
            );
            Ok(database)
        }
        Err(error) if is_no_room(&error) => {
            tracing::warn!(
                file = file.name(),
                %error,
                "free space can't be given back while the disk is full, and the daemon goes on without: make room on the disk, and \
                 restart it"
            );
            file.open()
        }
        Err(error) => Err(error),
    }
}

/// Moves the pages in use to the front of the file, and notes what is left. Says how long it took.
fn compact(mut database: Database, file: &impl File) -> Result<(Database, Space, Duration), StateError> {
    let begun = Instant::now();
    database.compact().map_err(|error| match error {
        CompactionError::Storage(error) => StateError::storage(error),
        // Nobody else has the database yet.
        other => StateError::storage(StorageError::Io(io::Error::other(other))),
    })?;
    let after = Space::of(&database, file)?;
    // The first commit that notes again which pages are free, too.
    let transaction = begin(&database)?;
    let mut about = transaction.open_table(ABOUT).map_err(StateError::storage)?;
    about.insert(LEFT, after.free.to_be_bytes().as_slice()).map_err(StateError::storage)?;
    drop(about);
    transaction.commit().map_err(StateError::storage)?;
    Ok((database, after, begun.elapsed()))
}

/// What the last compaction left.
fn left(database: &Database) -> Result<u64, StateError> {
    let transaction = database.begin_read().map_err(StateError::storage)?;
    let about = transaction.open_table(ABOUT).map_err(StateError::storage)?;
    let left = about.get(LEFT).map_err(StateError::storage)?;
    Ok(left.and_then(|left| left.value().try_into().ok()).map_or(0, u64::from_be_bytes))
}

fn size(file: &impl File) -> Result<u64, StateError> {
    file.size().map_err(|error| StateError::storage(StorageError::Io(error)))
}

/// Whether the disk, or what this user may have of it, is full.
fn is_no_room(error: &StateError) -> bool {
    let StateError::Storage(error) = error else { return false };
    let redb::Error::Io(error) = &**error else { return false };
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn shown(bytes: u64) -> impl std::fmt::Display {
    ByteSize(bytes).display().iec()
}
