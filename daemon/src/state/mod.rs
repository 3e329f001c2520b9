//! The replicated state on disk: the state machine of [`bftd_core::kv`] over redb.
//!
//! - Blocks are executed in one write transaction each call. Most transactions are **not durable**: after a crash the
//!   file holds the state of the last durable one, and the blocks since are executed again from the log. Every
//!   [`DURABLE_BLOCKS`] blocks or [`DURABLE_EVERY`], at [`StateStore::sync`] and at [`StateStore::close`] a
//!   transaction is durable, in two phases, because peers choose the contents.
//! - Without `close`, redb makes the last transaction durable when the store is dropped. That is safe, and costs the
//!   next start a pass over all keys ([`StateMachine::save`]).
//! - An error of the disk is returned once, and **poisons** the store: every later call, of readers too, fails. It
//!   is never tried again, because after a failed sync nobody knows what is on the disk.
//! - Reads run beside writes, on a [snapshot](StateReader) that is made at most once per transaction and shared. They
//!   see whole blocks only, and every block that [`StateStore::execute`] has returned for.

mod reader;
mod tables;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bftd_core::{
    block::{Block, BlockRef},
    crypto::{ClusterId, Digest},
    ids::Index,
    kv::{self, BlockOutcome, Head, StateMachine},
};
use redb::{Database, Durability, ReadableTable, StorageError, TableDefinition, WriteTransaction};

pub use self::reader::{Answers, StateReader};
use self::{reader::Shared, tables::Tables};

/// The file in the data directory.
pub const FILE_NAME: &str = "state.redb";
/// After how many blocks a transaction is durable.
pub const DURABLE_BLOCKS: usize = 4096;
/// After how much time a transaction is durable.
pub const DURABLE_EVERY: Duration = Duration::from_secs(5);
/// What redb keeps in memory, in bytes; at most half of it are pages not written yet.
const CACHE: usize = 16 << 20;

/// What the file is, beside the state: a name → its value.
const ABOUT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("about");
/// In [`ABOUT`]: the id of the cluster.
const CLUSTER: &str = "cluster";

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
    /// How many blocks are executed and not durable.
    not_durable: usize,
    last_durable: Instant,
}

impl StateStore {
    /// Opens the state in a data directory, or creates it: the empty state after `root`.
    ///
    /// After a crash this takes no longer than after [`StateStore::close`].
    ///
    /// # Errors
    /// The file is in use, another cluster's, damaged, or unreadable.
    pub fn open(directory: &Path, cluster: ClusterId, root: BlockRef) -> Result<Self, StateError> {
        let path = directory.join(FILE_NAME);
        let database = match Database::builder().set_cache_size(CACHE).create(&path) {
            Ok(database) => database,
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => return Err(StateError::InUse(path)),
            Err(error) => return Err(StateError::storage(error)),
        };
        Self::open_database(database, directory, cluster, root)
    }

    fn open_database(
        database: Database,
        directory: &Path,
        cluster: ClusterId,
        root: BlockRef,
    ) -> Result<Self, StateError> {
        let transaction = begin(&database, true)?;
        claim(&transaction, directory, cluster)?;
        let mut tables = Tables::open_for_writing(&transaction)?;
        let machine = StateMachine::open(&mut tables, root)?;
        drop(tables);
        transaction.commit().map_err(StateError::storage)?;
        let shared = Arc::new(Shared::new(database, machine.head()));
        Ok(Self { machine, shared, not_durable: 0, last_durable: Instant::now() })
    }

    /// How far execution has come.
    pub fn head(&self) -> Head {
        self.machine.head()
    }

    /// The states after the last indices, rising: see [`StateMachine::recent_digests`].
    pub fn recent_digests(&self) -> Vec<(Index, Digest)> {
        self.machine.recent_digests()
    }

    /// For reading from other threads.
    pub fn reader(&self) -> StateReader {
        StateReader::new(Arc::clone(&self.shared))
    }

    /// Executes blocks, in one transaction.
    ///
    /// # Errors
    /// A block that is not the child of the one before: nothing is changed. Any other error poisons the store.
    pub fn execute(&mut self, blocks: &[Arc<Block>]) -> Result<Vec<BlockOutcome>, StateError> {
        let due =
            self.not_durable + blocks.len() >= DURABLE_BLOCKS || self.last_durable.elapsed() >= DURABLE_EVERY;
        self.transact(blocks, due)
    }

    /// Makes durable what has been executed. Costs nothing where it already is.
    ///
    /// # Errors
    /// The disk's: they poison the store.
    pub fn sync(&mut self) -> Result<(), StateError> {
        if self.not_durable > 0 {
            self.transact(&[], true)?;
        }
        self.shared.check()
    }

    /// Makes everything durable, and closes the file with the last reader.
    ///
    /// # Errors
    /// The disk's.
    pub fn close(mut self) -> Result<(), StateError> {
        self.sync()
    }

    fn transact(&mut self, blocks: &[Arc<Block>], durable: bool) -> Result<Vec<BlockOutcome>, StateError> {
        self.shared.check()?;
        let result = self.try_transact(blocks, durable);
        match &result {
            Ok(_) if durable => {
                self.not_durable = 0;
                self.last_durable = Instant::now();
            }
            Ok(_) => self.not_durable += blocks.len(),
            Err(StateError::Execution(kv::Error::NotNext { .. })) => {}
            Err(_) => self.shared.poison(),
        }
        self.shared.forget_snapshot();
        result
    }

    fn try_transact(
        &mut self,
        blocks: &[Arc<Block>],
        durable: bool,
    ) -> Result<Vec<BlockOutcome>, StateError> {
        let transaction = begin(self.shared.database(), durable)?;
        let mut tables = Tables::open_for_writing(&transaction)?;
        let outcomes = self.machine.execute(&mut tables, blocks)?;
        if durable {
            self.machine.save(&mut tables)?;
        }
        drop(tables);
        transaction.commit().map_err(StateError::storage)?;
        Ok(outcomes)
    }
}

fn begin(database: &Database, durable: bool) -> Result<WriteTransaction, StateError> {
    let mut transaction = database.begin_write().map_err(StateError::storage)?;
    let durability = if durable { Durability::Immediate } else { Durability::None };
    transaction.set_durability(durability).map_err(StateError::storage)?;
    if durable {
        // Saves redb's free list too, so that opening after a crash needs no pass over the whole file. Implies a
        // commit in two phases.
        transaction.set_quick_repair(true);
    }
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
            Ok(())
        }
        Some(Ok(found)) if found == expected => Ok(()),
        Some(Ok(found)) => Err(StateError::OtherCluster { directory: directory.to_owned(), found, expected }),
        Some(Err(_)) => Err(kv::Error::Damaged("the record of the cluster's id").into()),
    }
}
