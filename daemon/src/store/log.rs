//! The log's writing side: groups of records become durable transactions.
//!
//! Tables: `meta` (the newest value of each record that replaces another), `blocks` by (index, digest),
//! `certificates`, the Commit certificates by index, and `evidence` by digest. A committed block is never moved: when an index is committed, the
//! other blocks at or below it are removed, and so each committed index has exactly one block.
//!
//! Commits have two phases (the data is synced before the pointer to it): with one phase redb tells a torn commit from
//! a whole one by a checksum that a client who knows the file could forge.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use bftd_core::{
    certificate::Certificate,
    crypto::Digest,
    durable::{Accepted, Committed, Durable, Record},
    ids::{Incarnation, Index},
    message::EnterTerm,
};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, Table, TableDefinition,
    TableError, WriteTransaction, backends::FileBackend,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    codec,
    dir::{Cluster, DataDir, FORMAT},
    error::StoreError,
    prefill::Prefilled,
    reader::{self, LogReader},
};

/// How many bytes of the file redb may cache, on top of what the operating system caches. More gains nothing: the writer
/// appends, and readers mostly want what was written last.
const CACHE: usize = 4 << 20;

pub(super) type BlockKey = (u64, &'static [u8; 32]);
pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
pub(super) const BLOCKS: TableDefinition<BlockKey, &[u8]> = TableDefinition::new("blocks");
pub(super) const CERTIFICATES: TableDefinition<u64, &[u8]> = TableDefinition::new("certificates");
pub(super) const EVIDENCE: TableDefinition<&'static [u8; 32], &[u8]> = TableDefinition::new("evidence");

/// The keys of [`META`].
pub(super) mod meta {
    pub const FORMAT: &str = "format";
    pub const CLUSTER: &str = "cluster";
    pub const INCARNATION: &str = "incarnation";
    pub const TERM: &str = "term";
    pub const ACCEPTED: &str = "accepted";
    pub const POSITION: &str = "position";
    pub const COMMITTED: &str = "committed";
}

/// The log of one replica. There is one writer; [`LogStore::reader`] gives out any number of readers.
#[derive(Debug)]
pub struct LogStore {
    database: Arc<Database>,
    /// The newest committed block, or the genesis block.
    committed: (Index, Digest),
    /// The blocks above it, each with its parent. As many as the replica keeps.
    tree: BTreeMap<(Index, Digest), Digest>,
    /// Where values are encoded.
    buffer: Vec<u8>,
    poisoned: bool,
}

impl LogStore {
    /// Opens the log in a data directory, or starts it, and makes the directory the cluster's.
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
            // A power cut in the midst leaves a file that can't be opened, so it gets its name when it is complete.
            let unfinished = path.with_extension("redb.new");
            match fs::remove_file(&unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", &unfinished)(error));
                }
                _ => {}
            }
            let file = options().create_new(true).mode(0o600).open(&unfinished);
            Self::create(FileBackend::new(file.map_err(StoreError::io("create", &unfinished))?)?, cluster)?;
            fs::rename(&unfinished, &path).map_err(StoreError::io("create", &path))?;
            directory.sync()?;
        }
        let file = options().open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::LogLost { path: path.clone() },
            _ => StoreError::io("open", &path)(error),
        })?;
        let store = Self::with_backend(FileBackend::new(file)?, &path, cluster)?;
        if known.is_none() {
            directory.record_cluster(cluster)?;
        }
        Ok(store)
    }

    /// Makes an empty file an empty log, durably.
    pub(super) fn create(backend: impl StorageBackend, cluster: &Cluster) -> Result<(), StoreError> {
        let database = Database::builder()
            .set_cache_size(CACHE)
            .create_with_backend(Prefilled::new(backend).map_err(redb::StorageError::from)?)?;
        let transaction = begin(&database)?;
        {
            let mut table = transaction.open_table(META)?;
            let mut buffer = Vec::new();
            put(&mut table, meta::FORMAT, Some(&FORMAT), &mut buffer)?;
            put(&mut table, meta::CLUSTER, Some(cluster), &mut buffer)?;
            transaction.open_table(BLOCKS)?;
            transaction.open_table(CERTIFICATES)?;
            transaction.open_table(EVIDENCE)?;
        }
        Ok(transaction.commit()?)
    }

    /// Opens the log in a file of any kind. `path` is for error messages.
    pub(super) fn with_backend(
        backend: impl StorageBackend,
        path: &Path,
        cluster: &Cluster,
    ) -> Result<Self, StoreError> {
        let database = Database::builder()
            .set_cache_size(CACHE)
            .set_repair_callback(|repair| {
                tracing::info!(progress = repair.progress(), "checking the log after a crash")
            })
            .create_with_backend(Prefilled::new(backend).map_err(redb::StorageError::from)?)?;
        let mut store = Self {
            database: Arc::new(database),
            committed: (Index(0), cluster.id.0),
            tree: BTreeMap::new(),
            buffer: Vec::new(),
            poisoned: false,
        };
        let found = store.stored_cluster(path)?;
        if found.id != cluster.id {
            return Err(other_cluster(path, &found, cluster));
        }
        let durable = store.load()?;
        if let Some(committed) = &durable.committed {
            let block = committed.certificate.block();
            store.committed = (block.index, block.digest);
        }
        store.tree = durable.blocks.iter().map(|(key, block)| (*key, block.header().parent)).collect();
        Ok(store)
    }

    /// What the records written so far add up to.
    ///
    /// # Errors
    /// The file can't be read, or is damaged.
    pub fn load(&self) -> Result<Durable, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(META)?;
        let committed: Option<Committed> = reader::meta(&table, meta::COMMITTED)?;
        let mut durable = Durable {
            incarnation: reader::meta(&table, meta::INCARNATION)?.unwrap_or_default(),
            term: reader::meta(&table, meta::TERM)?,
            accepted: reader::meta(&table, meta::ACCEPTED)?,
            position: reader::meta(&table, meta::POSITION)?,
            ..Durable::default()
        };
        let blocks = transaction.open_table(BLOCKS)?;
        let mut above = Index(1);
        if let Some(committed) = committed {
            let block = committed.certificate.block();
            let found = reader::block(&blocks, block.index, block.digest)?;
            let missing = || StoreError::damaged(format!("the committed block {} is not there", block.index));
            durable.committed_block = Some(found.ok_or_else(missing)?);
            durable.committed = Some(committed);
            above = block.index.next();
        }
        for entry in blocks.range((above.0, &Digest::ZERO.0)..)? {
            let (key, value) = entry?;
            let (index, digest) = key.value();
            let key = (Index(index), Digest(*digest));
            durable.blocks.insert(key, reader::decode_block(key.0, key.1, value.value())?);
        }
        for entry in transaction.open_table(EVIDENCE)?.iter()? {
            let (key, value) = entry?;
            let digest = Digest(*key.value());
            durable.evidence.insert(digest, reader::decode_evidence(digest, value.value())?);
        }
        Ok(durable)
    }

    /// Makes a group of records durable as a whole.
    ///
    /// A block at or below the committed index is passed over: it has no part in the log any more.
    ///
    /// # Errors
    /// The write or a sync failed, or a record contradicts the log. Which of the group's records are durable is
    /// unknown then, and every later call fails.
    pub fn append(&mut self, records: &[Record]) -> Result<(), StoreError> {
        if self.poisoned {
            return Err(StoreError::Poisoned);
        }
        if records.is_empty() {
            return Ok(());
        }
        let result = self.write(records);
        self.poisoned = result.is_err();
        result
    }

    /// A handle to read the log with, from any thread. It sees what is durable. While one lives, the file stays open.
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.database))
    }

    fn write(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let transaction = begin(&self.database)?;
        {
            let mut blocks = transaction.open_table(BLOCKS)?;
            let mut certificates = transaction.open_table(CERTIFICATES)?;
            let mut newest = Newest::default();
            for record in records {
                match record {
                    Record::Block(block) => {
                        let key = (block.header().index, block.digest());
                        if key.0 > self.committed.0 {
                            blocks.insert((key.0.0, &key.1.0), codec::encode(&**block, &mut self.buffer))?;
                            self.tree.insert(key, block.header().parent);
                        }
                    }
                    Record::Committed(committed) => {
                        self.commit(committed, &mut blocks)?;
                        let certificate = &*committed.certificate;
                        certificates.insert(
                            certificate.block().index.0,
                            codec::encode(certificate, &mut self.buffer),
                        )?;
                        newest.committed = Some(committed);
                    }
                    Record::Incarnation(incarnation) => newest.incarnation = Some(incarnation),
                    Record::Accepted(accepted) => newest.accepted = Some(accepted),
                    Record::Position(certificate) => newest.position = Some(certificate),
                    Record::Term(entered) => newest.term = Some(entered),
                    Record::Evidence(evidence) => {
                        let mut table = transaction.open_table(EVIDENCE)?;
                        table.insert(&evidence.digest().0, codec::encode(&**evidence, &mut self.buffer))?;
                    }
                }
            }
            newest.write(&mut transaction.open_table(META)?, &mut self.buffer)?;
        }
        Ok(transaction.commit()?)
    }

    /// Makes a block and its ancestors final, and forgets all others at or below its index.
    fn commit(
        &mut self,
        committed: &Committed,
        blocks: &mut Table<BlockKey, &[u8]>,
    ) -> Result<(), StoreError> {
        let block = committed.certificate.block();
        let mut next = (block.index, block.digest);
        loop {
            let Some(parent) = self.tree.remove(&next) else {
                return Err(StoreError::Disconnected { index: block.index, missing: next.0 });
            };
            next = (Index(next.0.0.saturating_sub(1)), parent);
            if next == self.committed {
                break;
            }
        }
        let above = self.tree.split_off(&(block.index.next(), Digest::ZERO));
        for (index, digest) in std::mem::replace(&mut self.tree, above).into_keys() {
            blocks.remove((index.0, &digest.0))?;
        }
        self.committed = (block.index, block.digest);
        Ok(())
    }

    fn stored_cluster(&self, path: &Path) -> Result<Cluster, StoreError> {
        let table = match self.database.begin_read()?.open_table(META) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => {
                return Err(StoreError::LogLost { path: path.to_owned() });
            }
            Err(error) => return Err(error.into()),
        };
        let found = required(&table, meta::FORMAT)?;
        if found > FORMAT {
            return Err(StoreError::NewerFormat { path: path.to_owned(), found, known: FORMAT });
        }
        required(&table, meta::CLUSTER)
    }
}

/// How the file is opened.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

/// A transaction that is durable when its commit returns.
fn begin(database: &Database) -> Result<WriteTransaction, StoreError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

/// The newest of the records that replace the one before.
#[derive(Default)]
struct Newest<'a> {
    incarnation: Option<&'a Incarnation>,
    term: Option<&'a EnterTerm>,
    accepted: Option<&'a Accepted>,
    position: Option<&'a Certificate>,
    committed: Option<&'a Committed>,
}

impl Newest<'_> {
    fn write(&self, table: &mut Table<&str, &[u8]>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        put(table, meta::INCARNATION, self.incarnation, buffer)?;
        put(table, meta::TERM, self.term, buffer)?;
        put(table, meta::ACCEPTED, self.accepted, buffer)?;
        put(table, meta::POSITION, self.position, buffer)?;
        put(table, meta::COMMITTED, self.committed, buffer)
    }
}

fn put<T: Serialize>(
    table: &mut Table<&str, &[u8]>,
    key: &str,
    value: Option<&T>,
    buffer: &mut Vec<u8>,
) -> Result<(), StoreError> {
    if let Some(value) = value {
        table.insert(key, codec::encode(value, buffer))?;
    }
    Ok(())
}

fn required<T: DeserializeOwned>(
    table: &redb::ReadOnlyTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<T, StoreError> {
    reader::meta(table, key)?.ok_or_else(|| StoreError::damaged(format!("the entry `{key}` is not there")))
}

fn other_cluster(path: &Path, found: &Cluster, wanted: &Cluster) -> StoreError {
    StoreError::OtherCluster {
        path: path.to_owned(),
        found: Box::new(found.clone()),
        wanted: Box::new(wanted.clone()),
    }
}
