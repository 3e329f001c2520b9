//! The replicated state on disk: the state machine of [`bftd_core::kv`] over redb.
//!
//! - Executing changes memory, and adds rows of the history to files of their own (`rows`), which it does not sync. What has
//!   changed is written to the database, in order, by a **checkpoint**: one
//!   durable transaction, in two phases, because peers choose the contents. A random change costs a page of the
//!   file, so many are gathered for one checkpoint, and where there are many keys for several (`tables`); it is
//!   written beside execution, by a thread of its own.
//!   Checkpoints come after [`MAX_KEYS`] changed keys, [`MAX_BYTES`], [`MAX_ROWS`], [`MAX_BLOCKS`] or [`MAX_AGE`], at
//!   [`StateStore::sync`] and at [`StateStore::close`]. Execution that is a whole checkpoint ahead waits for it.
//! - The buckets of the digest are written by [`StateStore::close`] alone. Without it, opening makes them from the keys.
//! - So the file always holds the state after some block, whole; after a crash the blocks since are executed again
//!   from the log.
//! - An error of the disk is returned once, and **poisons** the store: every later call, of readers too, fails. It
//!   is never tried again, because after a failed sync nobody knows what is on the disk.
//! - Reads run beside execution ([`StateReader`]). They see whole calls of [`StateStore::execute`] only, and every one
//!   that has returned.

mod changes;
mod reader;
mod rows;
mod space;
mod tables;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bftd_core::{
    block::{Block, BlockRef},
    crypto::{ClusterId, Digest},
    ids::Index,
    kv::{self, BlockOutcome, Head, StateMachine},
    protocol::Protocol,
};
use redb::{Database, ReadableTable, StorageError, TableDefinition, WriteTransaction};

use self::{
    reader::Shared,
    rows::{Directory, Folder, Located, RowFiles},
    space::File,
    tables::Tables,
};
pub use self::{
    reader::{Answers, StateReader},
    rows::DIRECTORY as HISTORY,
};

/// The file in the data directory.
pub const FILE_NAME: &str = "state.redb";
/// How many changed keys are kept in memory until a checkpoint; one call of [`StateStore::execute`] may exceed it.
pub const MAX_KEYS: usize = 32_768;
/// How many bytes of changes, likewise.
pub const MAX_BYTES: usize = 16 << 20;
/// After how many bytes of rows of the history a checkpoint is made: they wait to be synced.
pub const MAX_ROWS: u64 = if cfg!(test) { 24 << 20 } else { 64 << 20 };
/// After how many blocks a checkpoint is made: that many are executed again after a crash, at most.
pub const MAX_BLOCKS: usize = 16_384;
/// How long after the last checkpoint another is made, if blocks have been executed.
pub const MAX_AGE: Duration = Duration::from_secs(5);
/// How many rows of the history are trimmed after some blocks are executed, if so many are compacted; and twice as many as they
/// have made, so that there are ever fewer.
const TRIMMED_WITH_BLOCKS: usize = 4;
/// How many are trimmed at once while there is nothing to execute.
const TRIMMED_WHEN_IDLE: usize = 256;
/// What redb keeps in memory, in bytes; at most half of it are pages not written yet.
const CACHE: usize = 16 << 20;

/// What the file is, beside the state: a name → its value.
const ABOUT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("about");
/// In [`ABOUT`]: the id of the cluster.
const CLUSTER: &str = "cluster";
/// In [`ABOUT`]: how the tables are written. The first files don't say it.
const FORMAT: &str = "format";
/// The format that is read and written here.
const THIS_FORMAT: u8 = 3;

/// Why the state can't be opened, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process has the file open.
    #[error("{} is in use by another process: only one bftd can run on a data directory", .0.display())]
    InUse(PathBuf),
    /// The data directory is not this cluster's.
    #[error(
        "data directory {} belongs to cluster {found}, not {expected}: use the genesis of that cluster, or another \
         data directory",
        .directory.display()
    )]
    OtherCluster {
        /// The directory.
        directory: PathBuf,
        /// Whose it is.
        found: ClusterId,
        /// Whose it should be.
        expected: ClusterId,
    },
    /// Another version of the program wrote the state.
    #[error(
        "the state in {} is of format {found}, this bftd reads and writes format {THIS_FORMAT}: take the version of bftd that wrote \
         it",
        .directory.display()
    )]
    OtherFormat {
        /// The directory.
        directory: PathBuf,
        /// The file's format.
        found: u8,
    },
    /// The disk or redb failed.
    #[error("the state store failed: {0}")]
    Storage(#[from] Box<redb::Error>),
    /// The state machine could not execute or read.
    #[error(transparent)]
    Execution(#[from] kv::Error<StorageError>),
    /// The contents don't give the digest that was certified for them.
    #[error("the state after index {index} is damaged: its contents give the digest {found}, not {expected}")]
    Damaged {
        /// The last executed index.
        index: Index,
        /// The digest recorded.
        expected: Digest,
        /// The digest of the contents.
        found: Digest,
    },
    /// An earlier call failed.
    #[error("the state store has failed before, and does nothing more; restart the daemon")]
    Poisoned,
}

impl StateError {
    fn storage(error: impl Into<redb::Error>) -> Self {
        Self::Storage(Box::new(error.into()))
    }
}

/// The state, open for execution. There is one per data directory.
#[derive(Debug)]
pub struct StateStore {
    machine: StateMachine,
    shared: Arc<Shared>,
    /// How many blocks have been executed since the last checkpoint.
    blocks: usize,
    /// Blocks have been executed.
    is_changed: bool,
    checkpoint: Instant,
    /// No checkpoint holds a later block: see [`StateStore::hold_checkpoints_at`].
    limit: Index,
    /// The thread that writes the last checkpoint; at most one.
    writing: Option<JoinHandle<Result<(), StateError>>>,
}

impl StateStore {
    /// Opens the state in a data directory, or creates it: the empty state after `root`.
    ///
    /// After a crash this reads all keys, some two seconds for a million; after [`StateStore::close`] a quarter of it. Where most of
    /// the file is free, that is given back to the file system first, which may take longer (`space`).
    ///
    /// # Errors
    /// The file is in use, another cluster's, damaged, or unreadable.
    pub fn open(directory: &Path, cluster: ClusterId, root: BlockRef) -> Result<Self, StateError> {
        let folder = || Ok(Box::new(Directory::open(directory)?) as Box<dyn Folder>);
        Self::open_file(&directory.join(FILE_NAME), folder, directory, cluster, root)
    }

    fn open_file(
        file: &impl File,
        folder: impl FnOnce() -> io::Result<Box<dyn Folder>>,
        directory: &Path,
        cluster: ClusterId,
        root: BlockRef,
    ) -> Result<Self, StateError> {
        let database = file.open()?;
        let transaction = begin(&database)?;
        claim(&transaction, directory, cluster)?;
        let tables = Tables::open_for_writing(&transaction)?;
        let places = tables.ends_of_history().map_err(StateError::storage)?;
        let folder = folder().map_err(StorageError::from).map_err(StateError::storage)?;
        let rows = RowFiles::open(folder, places).map_err(StateError::storage)?;
        let mut tables = Located::new(tables, &rows);
        let machine = StateMachine::open(&mut tables, root)?;
        drop(tables);
        transaction.commit().map_err(StateError::storage)?;
        let database = space::give_back(database, file, machine.live())?;
        let shared = Arc::new(Shared::open(database, rows, machine.head())?);
        Ok(Self {
            machine,
            shared,
            blocks: 0,
            is_changed: false,
            checkpoint: Instant::now(),
            limit: Index(u64::MAX),
            writing: None,
        })
    }

    /// How far execution has come.
    pub fn head(&self) -> Head {
        self.machine.head()
    }

    /// The protocol that a request has set last: see [`StateMachine::protocol`].
    pub fn protocol(&self) -> Option<Protocol> {
        self.machine.protocol()
    }

    /// When the next lease ends: see [`StateMachine::next_lease_end_ms`].
    pub fn next_lease_end_ms(&self) -> Option<u64> {
        self.machine.next_lease_end_ms()
    }

    /// The states after the last indices, rising: see [`StateMachine::recent_digests`].
    pub fn recent_digests(&self) -> Vec<(Index, Digest)> {
        self.machine.recent_digests()
    }

    /// For reading from other threads.
    pub fn reader(&self) -> StateReader {
        StateReader::new(Arc::clone(&self.shared))
    }

    /// Executes blocks. Readers see either none or all of them.
    ///
    /// # Errors
    /// A block that is not the child of the one before: nothing is changed. Any other error poisons the store.
    pub fn execute(&mut self, blocks: &[Arc<Block>]) -> Result<Vec<BlockOutcome>, StateError> {
        self.guard(|store| {
            let outcomes = store.shared.execute(&mut store.machine, blocks)?;
            let made = store.machine.take_rows();
            store.trim(TRIMMED_WITH_BLOCKS + 2 * made)?;
            store.blocks += blocks.len();
            store.is_changed |= !blocks.is_empty();
            store.start_checkpoint_if_due()?;
            Ok(outcomes)
        })
    }

    /// From now on, starts no checkpoint by itself while execution is past `index`: so the file is never ahead of a log
    /// that is durable up to there. Before the first call, every checkpoint is allowed.
    pub fn hold_checkpoints_at(&mut self, index: Index) {
        self.limit = index;
    }

    /// Starts a checkpoint if the last one is long ago and blocks have been executed since. To be called now and then
    /// while there is nothing to execute; doesn't wait.
    ///
    /// # Errors
    /// The disk's: they poison the store.
    pub fn tick(&mut self) -> Result<(), StateError> {
        self.guard(|store| {
            store.trim(TRIMMED_WHEN_IDLE)?;
            store.start_checkpoint_if_due()
        })
    }

    /// Makes durable what has been executed. Costs nothing where it already is.
    ///
    /// # Errors
    /// The disk's: they poison the store.
    pub fn sync(&mut self) -> Result<(), StateError> {
        self.guard(|store| {
            if store.blocks > 0 || store.shared.changed().1 > 0 {
                store.start_checkpoint()?;
            }
            store.finish_checkpoint()
        })
    }

    /// Makes everything durable, and closes the file with the last reader. Without it the blocks since the last
    /// checkpoint are executed again after the next start, and all keys are read.
    ///
    /// # Errors
    /// The disk's.
    pub fn close(mut self) -> Result<(), StateError> {
        self.guard(|store| {
            if !store.is_changed {
                return Ok(());
            }
            loop {
                store.finish_checkpoint()?;
                let is_last = store.shared.freeze_part(&mut store.machine)?;
                store.shared.write_frozen()?;
                if is_last {
                    return Ok(());
                }
            }
        })
    }

    /// Refuses to go on after an error.
    fn guard<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T, StateError>) -> Result<T, StateError> {
        let failed = self.shared.check();
        if failed.is_err() || self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.finish_checkpoint()?;
        }
        failed?;
        let result = f(self);
        match &result {
            Ok(_) | Err(StateError::Execution(kv::Error::NotNext { .. })) => {}
            Err(_) => self.shared.poison(),
        }
        result
    }

    /// Trims so many rows of the history, if so many are compacted.
    fn trim(&mut self, rows: usize) -> Result<(), StateError> {
        if self.machine.is_trimmed() {
            return Ok(());
        }
        self.shared.trim(&mut self.machine, rows)?;
        self.is_changed = true;
        Ok(())
    }

    fn start_checkpoint_if_due(&mut self) -> Result<(), StateError> {
        let (keys, bytes) = self.shared.changed();
        let is_much = keys >= MAX_KEYS || bytes >= MAX_BYTES || self.shared.added() >= MAX_ROWS;
        let full = is_much || self.blocks >= MAX_BLOCKS;
        let has_changes = self.blocks > 0 || keys + bytes > 0;
        let old = has_changes && self.checkpoint.elapsed() >= MAX_AGE;
        let held = self.head().executed.index > self.limit;
        if (full || old) && !held { self.start_checkpoint() } else { Ok(()) }
    }

    fn start_checkpoint(&mut self) -> Result<(), StateError> {
        self.finish_checkpoint()?;
        self.shared.freeze(&mut self.machine)?;
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("checkpoint".into());
        let writing = thread.spawn(move || shared.write_frozen());
        self.writing = Some(writing.map_err(|error| StateError::storage(StorageError::Io(error)))?);
        self.blocks = 0;
        self.checkpoint = Instant::now();
        Ok(())
    }

    /// Waits for the running checkpoint, and says what came of it.
    fn finish_checkpoint(&mut self) -> Result<(), StateError> {
        match self.writing.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for StateStore {
    /// Lets the running checkpoint end, so that the file isn't in use when this returns and readers are gone.
    fn drop(&mut self) {
        if let Some(writing) = self.writing.take() {
            // Its error poisons the store, and what it didn't write is executed again after the next start.
            let _ = writing.join();
        }
    }
}

/// A durable transaction.
fn begin(database: &Database) -> Result<WriteTransaction, StateError> {
    let mut transaction = database.begin_write().map_err(StateError::storage)?;
    // Saves redb's free list too, so that opening after a crash needs no pass over the whole file. Implies a commit in
    // two phases.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

/// Checks whose file this is, or makes a new one this cluster's.
fn claim(transaction: &WriteTransaction, directory: &Path, expected: ClusterId) -> Result<(), StateError> {
    let mut about = transaction.open_table(ABOUT).map_err(StateError::storage)?;
    let found = about
        .get(CLUSTER)
        .map_err(StateError::storage)?
        .map(|id| id.value().try_into().map(|id| ClusterId(Digest(id))));
    match found {
        None => {
            about.insert(CLUSTER, expected.0.0.as_slice()).map_err(StateError::storage)?;
            about.insert(FORMAT, [THIS_FORMAT].as_slice()).map_err(StateError::storage)?;
            Ok(())
        }
        Some(Ok(found)) if found == expected => {
            let format = about.get(FORMAT).map_err(StateError::storage)?;
            match format.map_or(1, |format| format.value().first().copied().unwrap_or_default()) {
                THIS_FORMAT => Ok(()),
                found => Err(StateError::OtherFormat { directory: directory.to_owned(), found }),
            }
        }
        Some(Ok(found)) => Err(StateError::OtherCluster { directory: directory.to_owned(), found, expected }),
        Some(Err(_)) => Err(kv::Error::Damaged("the record of the cluster's id").into()),
    }
}
