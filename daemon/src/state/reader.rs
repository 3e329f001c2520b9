//! Reads beside the writer: on a snapshot of whole blocks, shared by all readers.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use bftd_core::kv::{self, Answer, Entry, Head, Query};
use redb::{Database, ReadableDatabase};

use super::{
    StateError,
    tables::{ReadOnlyTables, Tables},
};

/// What the writer and the readers share.
#[derive(Debug)]
pub(super) struct Shared {
    database: Database,
    /// What [`Shared::snapshot`] says before the first block.
    empty: Head,
    /// The newest committed state, made by the first reader after a commit. Empty while nobody reads, so that redb can
    /// use freed pages again.
    snapshot: Mutex<Option<Arc<Snapshot>>>,
    poisoned: AtomicBool,
}

/// A committed state.
struct Snapshot {
    tables: ReadOnlyTables,
    head: Head,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("head", &self.head).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(database: Database, empty: Head) -> Self {
        Self { database, empty, snapshot: Mutex::new(None), poisoned: AtomicBool::new(false) }
    }

    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    /// Fails if the store has failed.
    pub(super) fn check(&self) -> Result<(), StateError> {
        if self.poisoned.load(Ordering::Acquire) { Err(StateError::Poisoned) } else { Ok(()) }
    }

    pub(super) fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// Makes readers see what has been committed.
    pub(super) fn forget_snapshot(&self) {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn snapshot(&self) -> Result<Arc<Snapshot>, StateError> {
        self.check()?;
        let mut snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = &*snapshot {
            return Ok(Arc::clone(snapshot));
        }
        let transaction = self.database.begin_read().map_err(StateError::storage)?;
        let tables = Tables::open_for_reading(&transaction)?;
        let head = kv::head(&tables)?.unwrap_or(self.empty);
        Ok(Arc::clone(snapshot.insert(Arc::new(Snapshot { tables, head }))))
    }
}

/// Answers to queries, all from one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The state that they are from.
    pub head: Head,
    /// One answer a query.
    pub answers: Vec<Answer>,
}

/// Reads the state while blocks are executed. Cheap to clone, and usable from any thread.
///
/// Errors of reading don't poison the store, but say that the disk is failing: the daemon should stop.
#[derive(Clone, Debug)]
pub struct StateReader(Arc<Shared>);

impl StateReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// How far execution has come.
    ///
    /// # Errors
    /// The store's.
    pub fn head(&self) -> Result<Head, StateError> {
        Ok(self.0.snapshot()?.head)
    }

    /// One key's entry.
    ///
    /// # Errors
    /// The store's.
    pub fn get(&self, key: &[u8]) -> Result<Option<Entry>, StateError> {
        Ok(kv::get(&self.0.snapshot()?.tables, key)?)
    }

    /// Answers queries from one state.
    ///
    /// # Errors
    /// The store's.
    pub fn query_many<'q>(
        &self,
        queries: impl IntoIterator<Item = &'q Query>,
    ) -> Result<Answers, StateError> {
        let snapshot = self.0.snapshot()?;
        let answers = queries.into_iter().map(|query| kv::query(&snapshot.tables, query));
        let answers = answers.collect::<Result<_, _>>()?;
        Ok(Answers { head: snapshot.head, answers })
    }

    /// Computes the digest of the newest state from its contents alone, and compares. Reads everything, and takes
    /// some 100 bytes of memory a key; until it ends, redb can't use freed pages again.
    ///
    /// # Errors
    /// [`StateError::Damaged`] where they differ, or the store's.
    pub fn verify(&self) -> Result<Head, StateError> {
        let snapshot = self.0.snapshot()?;
        let head = snapshot.head;
        let found = kv::recompute(&snapshot.tables, head.revision)?;
        if found != head.state {
            return Err(StateError::Damaged { index: head.executed.index, expected: head.state, found });
        }
        Ok(head)
    }
}
