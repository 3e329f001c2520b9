//! The log of one replica: a database, and in front of it the write-ahead files.

use std::{
    fs::{self, File, OpenOptions},
    io, mem,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use bftd_core::durable::{Durable, Record};
use redb::{StorageBackend, backends::FileBackend};

use super::{
    chain::Chain,
    dir::{Cluster, DataDir},
    error::StoreError,
    home::{Home, other_cluster},
    reader::LogReader,
    recent::Recent,
    wal::{Stamp, TURN, Wal, WalFile},
};

/// The log of one replica. There is one writer; [`LogStore::reader`] gives out any number of readers.
#[derive(Debug)]
pub struct LogStore {
    front: Front,
    home: Home,
    /// What the database has not taken up yet.
    pending: Vec<Record>,
    poisoned: bool,
}

/// The side that makes groups durable.
#[derive(Debug)]
pub(super) struct Front {
    pub wal: Wal,
    /// The chain by all groups written, so that a group that contradicts it is not written.
    chain: Chain,
    /// What of it the database does not hold yet.
    recent: Arc<Recent>,
}

impl Front {
    /// Makes a group durable.
    pub(super) fn append(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let commits = self.chain.take(records)?;
        self.wal.append(records)?;
        self.recent.add(commits);
        Ok(())
    }
}

impl LogStore {
    /// Opens the log in a data directory, or starts it, and makes the directory the cluster's. The database is complete
    /// then.
    ///
    /// # Errors
    /// The directory belongs to another cluster or to a newer program, its log has vanished or is damaged, or the
    /// operating system refuses.
    pub fn open(directory: &DataDir, cluster: &Cluster) -> Result<Self, StoreError> {
        let path = directory.log_path();
        let known = directory.cluster()?;
        if let Some(found) = known.as_ref().filter(|found| found.id != cluster.id) {
            return Err(other_cluster(directory.path(), found, cluster));
        }
        if known.is_none() && !path.exists() {
            if directory.was_used() {
                return Err(StoreError::LogLost { path });
            }
            Self::start(directory, cluster)?;
        }
        let file = open(&path)?;
        let [first, second] = directory.wal_paths();
        let wal = [open(&first)?, open(&second)?];
        let store = Self::with_backends(file, wal, &path, cluster, TURN)?;
        if known.is_none() {
            directory.record_cluster(cluster)?;
        } else {
            // A start that was cut off may have left names that are not durable.
            directory.sync()?;
        }
        Ok(store)
    }

    /// Makes the files of an empty log. A power cut in the midst leaves files that can't be opened, so the database gets
    /// its name when all is complete; what is left without it is made anew.
    fn start(directory: &DataDir, cluster: &Cluster) -> Result<(), StoreError> {
        let path = directory.log_path();
        let unfinished = path.with_extension("redb.new");
        let [first, second] = directory.wal_paths();
        let wal = [create(&first)?, create(&second)?];
        Self::create(create(&unfinished)?, wal, cluster, TURN)?;
        // With the name of the database, the other files must be there.
        directory.sync()?;
        fs::rename(&unfinished, &path).map_err(StoreError::io("create", &path))?;
        directory.sync()
    }

    /// Makes empty files an empty log, durably. `turn` is how large a write-ahead file is.
    pub(super) fn create<B: StorageBackend>(
        home: B,
        wal: [B; 2],
        cluster: &Cluster,
        turn: u64,
    ) -> Result<(), StoreError> {
        let stamp = Stamp::random();
        for file in wal {
            Wal::create(&file, stamp, turn).map_err(|source| StoreError::Wal { action: "create", source })?;
        }
        Home::create(home, cluster, stamp)
    }

    /// Opens the log in files of any kind. `path` is for error messages, and `turn` is how large a write-ahead file
    /// gets.
    pub(super) fn with_backends<B: StorageBackend>(
        home: B,
        wal: [B; 2],
        path: &Path,
        cluster: &Cluster,
        turn: u64,
    ) -> Result<Self, StoreError> {
        let mut home = Home::open(home, path, cluster)?;
        let stamp = home.stamp()?;
        let [first, second] = wal;
        let files: [WalFile; 2] = [Box::new(first), Box::new(second)];
        let (applied, records) = Wal::read(&files, stamp)?;
        let wal = Wal::start(files, applied, stamp, turn)?;
        // The records have been checked when they were written; if they do not fit, a file is not the database's.
        home.write(&records, wal.stamp(applied))?;
        let front = Front { wal, chain: home.chain().clone(), recent: home.recent() };
        Ok(Self { front, home, pending: Vec::new(), poisoned: false })
    }

    /// What the records add up to that were written before the log was opened, or before the last [`LogStore::apply`].
    ///
    /// # Errors
    /// A file can't be read, or is damaged.
    pub fn load(&self) -> Result<Durable, StoreError> {
        self.home.load()
    }

    /// Makes a group of records durable as a whole.
    ///
    /// A block at or below the committed index is passed over: it has no part in the log any more.
    ///
    /// # Errors
    /// The write or the sync failed, or a record contradicts the log. In the first case it is unknown whether the group
    /// is durable, in the second nothing of it is; every later call fails.
    pub fn append(&mut self, records: &[Record]) -> Result<(), StoreError> {
        self.once(|store| {
            if records.is_empty() {
                return Ok(());
            }
            store.front.append(records)?;
            store.pending.extend_from_slice(records);
            Ok(())
        })
    }

    /// Brings the database up to date, durably.
    ///
    /// # Errors
    /// The write or a sync failed. Every later call fails.
    pub fn apply(&mut self) -> Result<(), StoreError> {
        self.once(|store| {
            let applied = store.front.wal.sequence();
            store.home.write(&mem::take(&mut store.pending), store.front.wal.stamp(applied))?;
            store.front.wal.release(applied);
            Ok(())
        })
    }

    /// A handle to read the log with, from any thread. While one lives, the database stays open.
    pub fn reader(&self) -> LogReader {
        self.home.reader()
    }

    /// Takes it apart, for two threads.
    pub(super) fn split(mut self) -> Result<(Front, Home), StoreError> {
        if !self.pending.is_empty() || self.poisoned {
            self.apply()?;
        }
        Ok((self.front, self.home))
    }

    /// Does something unless something has failed before.
    fn once(&mut self, act: impl FnOnce(&mut Self) -> Result<(), StoreError>) -> Result<(), StoreError> {
        if self.poisoned {
            return Err(StoreError::Poisoned);
        }
        let result = act(self);
        self.poisoned = result.is_err();
        result
    }
}

/// Opens a file of a log that was used before.
fn open(path: &Path) -> Result<FileBackend, StoreError> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::LogLost { path: path.to_owned() },
        _ => StoreError::io("open", path)(error),
    })?;
    backend(file)
}

/// Creates a file, in the place of one that was left by a start that was cut off.
fn create(path: &Path) -> Result<FileBackend, StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::io("remove", path)(error));
        }
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    backend(options.open(path).map_err(StoreError::io("create", path))?)
}

fn backend(file: File) -> Result<FileBackend, StoreError> {
    Ok(FileBackend::new(file)?)
}
