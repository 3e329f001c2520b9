//! The log's database, and the writing side of it: what the write-ahead files hold becomes durable transactions, many groups
//! at a time.
//!
//! Tables: `meta` (the newest value of each record that replaces another), `blocks` by (index, digest),
//! `certificates`, the Commit certificates by index, and `evidence` by digest. A committed block is never moved: when an index is committed, the
//! other blocks at or below it are removed, and so each committed index has exactly one block.
//!
//! Commits have two phases (the data is synced before the pointer to it): with one phase redb tells a torn commit from
//! a whole one by a checksum that a client who knows the file could forge.

use std::{path::Path, sync::Arc};

use bftd_core::{
    certificate::Certificate,
    crypto::Digest,
    durable::{Accepted, Committed, Durable, Record},
    ids::{Incarnation, Index},
    message::EnterTerm,
};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, Table, TableDefinition,
    TableError, WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    chain::Chain,
    codec,
    dir::{Cluster, FORMAT},
    error::StoreError,
    prefill::Prefilled,
    reader::{self, LogReader},
    recent::Recent,
    wal::Stamp,
};

/// How many bytes of the file redb may cache, on top of what the operating system caches. More gains nothing: the writer
/// appends, and readers mostly want what was written last.
const CACHE: usize = 4 << 20;

pub(super) type BlockKey = (u64, &'static [u8; 32]);
pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
pub(super) const BLOCKS: TableDefinition<BlockKey, &[u8]> = TableDefinition::new("blocks");
pub(super) const CERTIFICATES: TableDefinition<u64, &[u8]> = TableDefinition::new("certificates");
const EVIDENCE: TableDefinition<&'static [u8; 32], &[u8]> = TableDefinition::new("evidence");

/// The keys of [`META`].
pub(super) mod meta {
    pub const FORMAT: &str = "format";
    pub const CLUSTER: &str = "cluster";
    pub const WAL: &str = "wal";
    pub const INCARNATION: &str = "incarnation";
    pub const TERM: &str = "term";
    pub const ACCEPTED: &str = "accepted";
    pub const POSITION: &str = "position";
    pub const COMMITTED: &str = "committed";
}

/// The log's database. It lags behind the write-ahead files, and says by how much.
#[derive(Debug)]
pub(super) struct Home {
    database: Arc<Database>,
    chain: Chain,
    recent: Arc<Recent>,
    /// Where values are encoded.
    buffer: Vec<u8>,
}

impl Home {
    /// Makes an empty file an empty log, durably.
    pub(super) fn create(
        backend: impl StorageBackend,
        cluster: &Cluster,
        stamp: Stamp,
    ) -> Result<(), StoreError> {
        let database = Database::builder()
            .set_cache_size(CACHE)
            .create_with_backend(Prefilled::new(backend).map_err(redb::StorageError::from)?)?;
        let transaction = begin(&database)?;
        {
            let mut table = transaction.open_table(META)?;
            let mut buffer = Vec::new();
            put(&mut table, meta::FORMAT, Some(&FORMAT), &mut buffer)?;
            put(&mut table, meta::CLUSTER, Some(cluster), &mut buffer)?;
            put(&mut table, meta::WAL, Some(&stamp), &mut buffer)?;
            transaction.open_table(BLOCKS)?;
            transaction.open_table(CERTIFICATES)?;
            transaction.open_table(EVIDENCE)?;
        }
        Ok(transaction.commit()?)
    }

    /// Opens the database in a file of any kind. `path` is for error messages.
    pub(super) fn open(
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
        let chain = Chain::of(&Durable::default(), cluster.id.0);
        let recent = Arc::new(Recent::default());
        let mut home = Self { database: Arc::new(database), chain, recent, buffer: Vec::new() };
        let found = home.stored_cluster(path)?;
        if found.id != cluster.id {
            return Err(other_cluster(path, &found, cluster));
        }
        home.chain = Chain::of(&home.load()?, cluster.id.0);
        Ok(home)
    }

    /// How far it has come.
    pub(super) fn stamp(&self) -> Result<Stamp, StoreError> {
        required(&self.database.begin_read()?.open_table(META)?, meta::WAL)
    }

    /// The blocks that stand above the committed one.
    pub(super) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// What the records written so far add up to.
    ///
    /// # Errors
    /// The file can't be read, or is damaged.
    pub(super) fn load(&self) -> Result<Durable, StoreError> {
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

    /// A handle to read with, from any thread. While one lives, the file stays open.
    pub(super) fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.database), Arc::clone(&self.recent))
    }

    /// Where what is committed stays until the database holds it.
    pub(super) fn recent(&self) -> Arc<Recent> {
        Arc::clone(&self.recent)
    }

    /// Makes records durable as a whole, together with how far the database has come by them.
    ///
    /// A block at or below the committed index is passed over: it has no part in the log any more.
    ///
    /// # Errors
    /// The write or a sync failed, or a record contradicts the log. Nothing may be written any more.
    pub(super) fn write(&mut self, records: &[Record], stamp: Stamp) -> Result<(), StoreError> {
        let transaction = begin(&self.database)?;
        {
            let mut blocks = transaction.open_table(BLOCKS)?;
            let mut certificates = transaction.open_table(CERTIFICATES)?;
            let mut newest = Newest::default();
            for record in records {
                match record {
                    Record::Block(block) => {
                        if self.chain.insert(block) {
                            let key = (block.header().index.0, &block.digest().0);
                            blocks.insert(key, codec::encode(&**block, &mut self.buffer))?;
                        }
                    }
                    Record::Committed(committed) => {
                        for (index, digest) in self.chain.commit(committed)?.forgotten {
                            blocks.remove((index.0, &digest.0))?;
                        }
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
            let mut table = transaction.open_table(META)?;
            newest.write(&mut table, &mut self.buffer)?;
            put(&mut table, meta::WAL, Some(&stamp), &mut self.buffer)?;
        }
        transaction.commit()?;
        self.recent.forget_through(self.chain.committed());
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

pub(super) fn other_cluster(path: &Path, found: &Cluster, wanted: &Cluster) -> StoreError {
    StoreError::OtherCluster {
        path: path.to_owned(),
        found: Box::new(found.clone()),
        wanted: Box::new(wanted.clone()),
    }
}
