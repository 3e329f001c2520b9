//! The state that one writer changes and many readers see.
//!
//! It is the tables of the last checkpoint, which redb keeps as they were; above them the changes that are being written
//! by a running checkpoint; and above these the changes since. A reader holds the lock only while it copies the changes
//! that concern it, so no scan holds up execution.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering},
};

use bftd_core::{
    block::Block,
    kv::{self, Answer, BlockOutcome, Entry, Head, Query, Span, StateMachine, Table},
};
use bytes::Bytes;
use redb::{Database, ReadableDatabase, StorageError};

use super::{
    StateError, begin,
    changes::{Changes, Layered},
    rows::{Files, Located, RowFiles},
    tables::{ReadOnlyTables, Tables},
};

/// What the writer and the readers share.
pub(super) struct Shared {
    // Before the database: dropped first.
    current: RwLock<Current>,
    rows: RowFiles,
    database: Database,
    poisoned: AtomicBool,
}

/// The state now.
struct Current {
    /// The tables of the last checkpoint.
    base: Arc<ReadOnlyTables>,
    /// What the running checkpoint writes; empty while there is none.
    frozen: Arc<Changes>,
    /// In which file rows have been added since, at the earliest.
    rows_since: u64,
    /// What has changed since. The writer has it, too, while it executes.
    changes: Arc<Changes>,
    head: Head,
}

/// The tables that a request changes: those of the last checkpoint, what is being written, what has changed since, and what it changes.
type Open<'a> =
    Located<'a, Layered<Layered<Layered<&'a ReadOnlyTables, &'a Changes>, &'a Changes>, Changes>, RowFiles>;

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("poisoned", &self.poisoned).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn open(database: Database, rows: RowFiles, head: Head) -> Result<Self, StateError> {
        let base = read_only(&database)?;
        let rows_since = rows.begin_checkpoint();
        let changes = Arc::default();
        let current = Current { base, frozen: Arc::default(), rows_since, changes, head };
        Ok(Self { current: RwLock::new(current), rows, database, poisoned: AtomicBool::new(false) })
    }

    #[cfg(test)]
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

    /// How many keys, and bytes, have changed since the last checkpoint.
    pub(super) fn changed(&self) -> (usize, usize) {
        self.read(|current| (current.changes.len(), current.changes.bytes()))
    }

    /// How many bytes of rows were added since a checkpoint was begun.
    pub(super) fn added(&self) -> u64 {
        self.rows.added()
    }

    /// Executes blocks in memory. For the writer only.
    pub(super) fn execute(
        &self,
        machine: &mut StateMachine,
        blocks: &[Arc<Block>],
    ) -> Result<Vec<BlockOutcome>, StateError> {
        let (outcomes, changes) = self.change(|tables| machine.execute(tables, blocks))?;
        self.write(|current| {
            Arc::make_mut(&mut current.changes).append(changes);
            current.head = machine.head();
        });
        Ok(outcomes)
    }

    /// Trims rows of the history that nobody can read any more, at most so many. For the writer only.
    pub(super) fn trim(&self, machine: &mut StateMachine, rows: usize) -> Result<(), StateError> {
        let ((), changes) = self.change(|tables| {
            for _ in 0..rows {
                if !machine.trim(tables)? {
                    break;
                }
            }
            Ok::<_, kv::Error<StorageError>>(())
        })?;
        self.write(|current| Arc::make_mut(&mut current.changes).append(changes));
        Ok(())
    }

    /// Sets all changes apart for a checkpoint. For the writer only, while no other checkpoint runs.
    pub(super) fn freeze(&self, machine: &mut StateMachine) -> Result<(), StateError> {
        let ((), changes) = self.change(|tables| machine.save_recent(tables))?;
        self.set_apart(changes);
        Ok(())
    }

    /// The same with a part of what saves the next start work; says whether that was the last one.
    pub(super) fn freeze_part(&self, machine: &mut StateMachine) -> Result<bool, StateError> {
        let (is_last, changes) = self.change(|tables| machine.save_part(tables))?;
        self.set_apart(changes);
        Ok(is_last)
    }

    fn set_apart(&self, last: Changes) {
        self.write(|current| {
            debug_assert_eq!(current.frozen.len(), 0);
            Arc::make_mut(&mut current.changes).append(last);
            current.frozen = std::mem::take(&mut current.changes);
            current.rows_since = self.rows.begin_checkpoint();
        });
    }

    /// Writes what was set apart to the file. An error poisons the store.
    pub(super) fn write_frozen(&self) -> Result<(), StateError> {
        let result = self.try_write_frozen();
        if result.is_err() {
            self.poison();
        }
        result
    }

    fn try_write_frozen(&self) -> Result<(), StateError> {
        let frozen = self.read(|current| Arc::clone(&current.frozen));
        self.rows.sync().map_err(StateError::storage)?;
        let transaction = begin(&self.database)?;
        let mut tables = Tables::open_for_writing(&transaction)?;
        tables.begin_run(frozen.len()).map_err(StateError::storage)?;
        frozen.write_to(&mut tables).map_err(StateError::storage)?;
        tables.merge().map_err(StateError::storage)?;
        drop(tables);
        transaction.commit().map_err(StateError::storage)?;
        let base = read_only(&self.database)?;
        let places = base.ends_of_history().map_err(StateError::storage)?;
        let released = self.write(|current| {
            current.base = base;
            current.frozen = Arc::default();
            self.rows.release_before(places.map_or(current.rows_since, |(first, _)| first.file))
        });
        self.rows.remove(&released);
        Ok(())
    }

    /// What `f` changes in the tables, and what it returns. For the writer only. Nobody waits for it: it writes rows.
    fn change<T, E>(&self, f: impl FnOnce(&mut Open<'_>) -> Result<T, E>) -> Result<(T, Changes), E> {
        let (base, frozen, changes) = self.read(|current| {
            (Arc::clone(&current.base), Arc::clone(&current.frozen), Arc::clone(&current.changes))
        });
        let below = Layered { base: &*base, changes: &*frozen };
        let below = Layered { base: below, changes: &*changes };
        let tables = Layered { base: below, changes: Changes::default() };
        let mut tables = Located::new(tables, &self.rows);
        let result = f(&mut tables)?;
        Ok((result, tables.tables.changes))
    }

    fn read<T>(&self, f: impl FnOnce(&Current) -> T) -> T {
        f(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, f: impl FnOnce(&mut Current) -> T) -> T {
        f(&mut self.current.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The state now, with those of the newest changes that `copy` takes.
    fn view(&self, copy: impl Fn(&Head, &Changes, &mut Changes)) -> Result<View, StateError> {
        self.check()?;
        Ok(self.read(|current| {
            let mut changes = Changes::default();
            copy(&current.head, &current.changes, &mut changes);
            let (base, frozen) = (Arc::clone(&current.base), Arc::clone(&current.frozen));
            View { base, frozen, changes, rows: self.rows.files(), head: current.head }
        }))
    }
}

/// The tables as they are in the file.
fn read_only(database: &Database) -> Result<Arc<ReadOnlyTables>, StateError> {
    let transaction = database.begin_read().map_err(StateError::storage)?;
    Ok(Arc::new(Tables::open_for_reading(&transaction)?))
}

/// A state, as far as some queries need it.
struct View {
    base: Arc<ReadOnlyTables>,
    frozen: Arc<Changes>,
    changes: Changes,
    rows: Arc<Files>,
    head: Head,
}

impl View {
    fn tables(&self) -> Located<'_, Layered<Layered<&ReadOnlyTables, &Changes>, &Changes>, Files> {
        let base = Layered { base: &*self.base, changes: &*self.frozen };
        Located::new(Layered { base, changes: &self.changes }, &self.rows)
    }
}

/// All rows of a table.
const ALL: Span<&[u8]> = Span::Prefix(&[]);

/// Copies the changes that concern a query: of the keys that it names; and where it reads the history, which may lead it anywhere,
/// all of that. Executing waits meanwhile.
fn copy_for(query: &Query, head: &Head, changes: &Changes, copy: &mut Changes) {
    if let Query::Events(watched) = query
        && !watched.with_previous
    {
        let from = watched.from.revision.to_be_bytes();
        return changes.copy(Table::History, &Span::From(&from), copy);
    }
    if let Query::Leases { lease } = query {
        changes.copy(Table::Meta, &ALL, copy);
        changes.copy(Table::Leases, &ALL, copy);
        let id = lease.map(u64::to_be_bytes);
        // Of all leases no keys are asked.
        return id.iter().for_each(|id| changes.copy(Table::Attached, &Span::Prefix(id), copy));
    }
    let keys = match query {
        // What the watched keys were before.
        Query::Events(watched) => watched.keys.borrowed(),
        _ => query.keys().unwrap_or(ALL),
    };
    changes.copy(Table::Keys, &keys, copy);
    if query.reads_history(head.revision) {
        changes.copy(Table::Deleted, &keys, copy);
        changes.copy(Table::Held, &keys, copy);
        changes.copy(Table::History, &ALL, copy);
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
    /// [`StateError::Poisoned`].
    pub fn head(&self) -> Result<Head, StateError> {
        self.0.check()?;
        Ok(self.0.read(|current| current.head))
    }

    /// One key's entry.
    ///
    /// # Errors
    /// The store's.
    pub fn get(&self, key: &Bytes) -> Result<Option<Entry>, StateError> {
        let view = self.0.view(|_, changes, copy| changes.copy(Table::Keys, &Span::Key(key), copy))?;
        Ok(kv::get(&view.tables(), key)?)
    }

    /// Answers queries from one state.
    ///
    /// # Errors
    /// The store's.
    pub fn query_many(&self, queries: &[Query]) -> Result<Answers, StateError> {
        let view = self.0.view(|head, changes, copy| {
            queries.iter().for_each(|query| copy_for(query, head, changes, copy));
        })?;
        let tables = view.tables();
        let answers = queries.iter().map(|query| kv::query(&tables, &view.head, query));
        let answers = answers.collect::<Result<_, _>>()?;
        Ok(Answers { head: view.head, answers })
    }

    /// Computes the digest of the newest state from its contents alone, and compares. Reads everything, and takes
    /// some 100 bytes of memory a key; until it ends, redb can't use freed pages again, and files of the history that are
    /// removed keep their space.
    ///
    /// # Errors
    /// [`StateError::Damaged`] where they differ, or the store's.
    pub fn verify(&self) -> Result<Head, StateError> {
        let view = self.0.view(|_, changes, copy| {
            Table::ALL.into_iter().for_each(|table| changes.copy(table, &ALL, copy));
        })?;
        let head = view.head;
        let found = kv::recompute(&view.tables(), &head)?;
        if found != head.state {
            return Err(StateError::Damaged { index: head.executed.index, expected: head.state, found });
        }
        Ok(head)
    }
}
