//! The log's reading side, for serving peers and for replaying committed blocks. It sees what the database holds:
//! [`super::LogWriter`] brings that up to date within a quarter of a second, and when it is closed. Only
//! [`LogReader::committed_after`] also sees the rest, or a member that catches up under load would never arrive.
//!
//! Every read is a transaction of its own and short, because pages that a transaction can see are not reused.

use std::{collections::VecDeque, sync::Arc};

use bftd_core::{
    block::Block,
    certificate::Certificate,
    crypto::{ClusterId, Digest},
    durable::Committed,
    evidence::Evidence,
    ids::Index,
    limits::{FETCH_BLOCKS, FETCH_BYTES},
};
use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase};
use serde::de::DeserializeOwned;

use super::{
    codec,
    error::StoreError,
    home::{BLOCKS, BlockKey, CERTIFICATES, META, meta as keys},
    recent::Recent,
};

/// Some of the committed blocks, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The blocks, rising; at least one.
    pub blocks: Vec<Arc<Block>>,
    /// The Commit certificate of the last of them; none if there is none for any of them.
    pub certificate: Option<Arc<Certificate>>,
}

/// What [`LogReader::check`] has looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The committed blocks.
    pub blocks: u64,
    /// The certificates.
    pub certificates: u64,
}

/// A handle to read a log with. Clones share the file.
#[derive(Clone, Debug)]
pub struct LogReader {
    database: Arc<Database>,
    recent: Arc<Recent>,
}

impl LogReader {
    pub(super) fn new(database: Arc<Database>, recent: Arc<Recent>) -> Self {
        Self { database, recent }
    }

    /// The newest committed block's certificate and marks; none before the first.
    ///
    /// # Errors
    /// The file can't be read, or is damaged.
    pub fn committed(&self) -> Result<Option<Committed>, StoreError> {
        meta(&self.database.begin_read()?.open_table(META)?, keys::COMMITTED)
    }

    /// The committed blocks after an index: at most `max_blocks` with at most `max_bytes` as encoded, yet at least one.
    /// They end with the last one in these bounds that has a certificate of its own, if any has. None if nothing
    /// is durably committed after that index.
    ///
    /// # Errors
    /// The file can't be read, or is damaged.
    pub fn committed_after(
        &self,
        after: Index,
        max_blocks: usize,
        max_bytes: usize,
    ) -> Result<Option<Run>, StoreError> {
        let mut snapshot = Snapshot::of(&self.database)?;
        if snapshot.committed <= after {
            if let Some(run) = self.recent.run(after, max_blocks, max_bytes) {
                return Ok(Some(run));
            }
            // The database may have taken it up between the two looks.
            snapshot = Snapshot::of(&self.database)?;
        }
        let Some(mut blocks) = snapshot.encoded(after.next(), snapshot.committed, max_blocks, max_bytes)?
        else {
            return Ok(None);
        };
        let last = after.0 + blocks.len() as u64;
        let mut certificates = snapshot.transaction.open_table(CERTIFICATES)?.range(after.0 + 1..=last)?;
        let certificate = match certificates.next_back() {
            None => None,
            Some(entry) => {
                let (index, value) = entry?;
                let count = usize::try_from(index.value() - after.0).expect("at most the number of blocks");
                blocks.truncate(count);
                Some(decode_certificate(Index(index.value()), value.value())?)
            }
        };
        let blocks = snapshot.chain(&blocks, None)?;
        if let (Some(certificate), Some(last)) = (&certificate, blocks.last())
            && certificate.block() != last.reference()
        {
            return Err(wrong_certificate(last.header().index));
        }
        Ok(Some(Run { blocks, certificate: certificate.map(Arc::new) }))
    }

    /// The committed block at an index; none if nothing is committed there yet.
    ///
    /// # Errors
    /// The file can't be read, or is damaged.
    pub fn block_at(&self, index: Index) -> Result<Option<Arc<Block>>, StoreError> {
        let snapshot = Snapshot::of(&self.database)?;
        match snapshot.encoded(index, snapshot.committed, 1, 0)? {
            None => Ok(None),
            Some(blocks) => Ok(snapshot.chain(&blocks, None)?.pop()),
        }
    }

    /// The committed blocks from an index to another, both included, rising; fewer if fewer are committed. They are
    /// read in pieces of [`FETCH_BLOCKS`] blocks and [`FETCH_BYTES`] bytes, and each is checked to be the child of the
    /// one before. Asked again at its end, the iterator looks whether more has been committed.
    pub fn blocks(&self, from: Index, to: Index) -> Blocks {
        Blocks { reader: self.clone(), next: from, last: to, parent: None, read: VecDeque::new() }
    }

    /// Reads the whole log and checks that every committed index has one whole block, that they are a chain
    /// from the genesis block of `cluster`, and that each certificate names the block at its index.
    ///
    /// # Errors
    /// The first damage found, or the file can't be read.
    pub fn check(&self, cluster: ClusterId) -> Result<Checked, StoreError> {
        let mut checked = Checked::default();
        let mut blocks = self.blocks(Index(1), Index(u64::MAX));
        blocks.parent = Some(cluster.0);
        for block in blocks {
            let block = block?;
            let index = block.header().index;
            if !block.is_consistent() {
                return Err(StoreError::damaged(format!(
                    "block {index} has other batches than its header says"
                )));
            }
            checked.blocks += 1;
            let table = self.database.begin_read()?.open_table(CERTIFICATES)?;
            if let Some(value) = table.get(index.0)? {
                if decode_certificate(index, value.value())?.block() != block.reference() {
                    return Err(StoreError::damaged(format!(
                        "the certificate at {index} names another block"
                    )));
                }
                checked.certificates += 1;
            }
        }
        Ok(checked)
    }
}

/// Committed blocks, as [`LogReader::blocks`] reads them. Ends after an error.
#[derive(Debug)]
pub struct Blocks {
    reader: LogReader,
    next: Index,
    last: Index,
    parent: Option<Digest>,
    /// At most one piece: [`FETCH_BLOCKS`] blocks.
    read: VecDeque<Arc<Block>>,
}

impl Blocks {
    fn read_on(&mut self) -> Result<(), StoreError> {
        let snapshot = Snapshot::of(&self.reader.database)?;
        let last = self.last.min(snapshot.committed);
        if let Some(encoded) = snapshot.encoded(self.next, last, FETCH_BLOCKS, FETCH_BYTES)? {
            self.read = snapshot.chain(&encoded, self.parent)?.into();
        }
        if let Some(block) = self.read.back() {
            self.next = block.header().index.next();
            self.parent = Some(block.digest());
        }
        Ok(())
    }
}

impl Iterator for Blocks {
    type Item = Result<Arc<Block>, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read.is_empty()
            && let Err(error) = self.read_on()
        {
            self.last = Index(0);
            return Some(Err(error));
        }
        self.read.pop_front().map(Ok)
    }
}

/// One state of the file.
struct Snapshot {
    transaction: ReadTransaction,
    blocks: ReadOnlyTable<BlockKey, &'static [u8]>,
    committed: Index,
}

/// A block's key and encoding, still in the page that holds it.
type Encoded = (Index, Digest, redb::AccessGuard<'static, &'static [u8]>);

impl Snapshot {
    fn of(database: &Database) -> Result<Self, StoreError> {
        let transaction = database.begin_read()?;
        let committed: Option<Committed> = meta(&transaction.open_table(META)?, keys::COMMITTED)?;
        let committed = committed.map_or(Index(0), |committed| committed.certificate.block().index);
        let blocks = transaction.open_table(BLOCKS)?;
        Ok(Self { transaction, blocks, committed })
    }

    /// The blocks from one index to another, as many as fit the bounds but at least one; none if the range is empty.
    fn encoded(
        &self,
        from: Index,
        to: Index,
        max_blocks: usize,
        max_bytes: usize,
    ) -> Result<Option<Vec<Encoded>>, StoreError> {
        if from > to {
            return Ok(None);
        }
        let mut found: Vec<Encoded> = Vec::new();
        let mut expected = from;
        let mut bytes = 0;
        for entry in self.blocks.range((from.0, &[0; 32])..=(to.0, &[0xff; 32]))? {
            let (key, value) = entry?;
            let (index, digest) = key.value();
            if index != expected.0 {
                let what = if index > expected.0 { "no block" } else { "more than one block" };
                return Err(StoreError::damaged(format!(
                    "{what} stands at committed index {}",
                    index.min(expected.0)
                )));
            }
            bytes += value.value().len();
            if !found.is_empty() && (found.len() >= max_blocks || bytes > max_bytes) {
                return Ok(Some(found));
            }
            found.push((Index(index), Digest(*digest), value));
            expected = expected.next();
        }
        if expected <= to {
            return Err(StoreError::damaged(format!("no block stands at committed index {expected}")));
        }
        Ok(Some(found))
    }

    /// Decodes blocks, each of which must be the child of the one before.
    fn chain(&self, encoded: &[Encoded], parent: Option<Digest>) -> Result<Vec<Arc<Block>>, StoreError> {
        let mut parent = parent;
        let mut blocks = Vec::with_capacity(encoded.len());
        for (index, digest, value) in encoded {
            let block = decode_block(*index, *digest, value.value())?;
            if parent.is_some_and(|parent| parent != block.header().parent) {
                return Err(StoreError::damaged(format!(
                    "block {index} is not a child of the block before it"
                )));
            }
            parent = Some(*digest);
            blocks.push(block);
        }
        Ok(blocks)
    }
}

/// One entry of the table of single values.
pub(super) fn meta<T: DeserializeOwned>(
    table: &ReadOnlyTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<T>, StoreError> {
    let Some(value) = table.get(key)? else { return Ok(None) };
    let decoded = codec::decode(value.value());
    decoded.map(Some).ok_or_else(|| StoreError::damaged(format!("the entry `{key}` has been altered")))
}

/// A block by its identity.
pub(super) fn block(
    blocks: &ReadOnlyTable<BlockKey, &'static [u8]>,
    index: Index,
    digest: Digest,
) -> Result<Option<Arc<Block>>, StoreError> {
    let Some(value) = blocks.get((index.0, &digest.0))? else { return Ok(None) };
    decode_block(index, digest, value.value()).map(Some)
}

/// Decodes a block that is stored under an index and a digest.
pub(super) fn decode_block(index: Index, digest: Digest, bytes: &[u8]) -> Result<Arc<Block>, StoreError> {
    codec::decode::<Block>(bytes)
        .filter(|block| block.header().index == index && block.digest() == digest)
        .map(Arc::new)
        .ok_or_else(|| StoreError::damaged(format!("block {index} has been altered")))
}

/// Decodes a proof of misbehaviour that is stored under its digest.
pub(super) fn decode_evidence(digest: Digest, bytes: &[u8]) -> Result<Evidence, StoreError> {
    codec::decode::<Evidence>(bytes)
        .filter(|evidence| evidence.digest() == digest)
        .ok_or_else(|| StoreError::damaged(format!("the evidence {digest} has been altered")))
}

fn decode_certificate(index: Index, bytes: &[u8]) -> Result<Certificate, StoreError> {
    codec::decode(bytes)
        .ok_or_else(|| StoreError::damaged(format!("the certificate at {index} has been altered")))
}

fn wrong_certificate(index: Index) -> StoreError {
    StoreError::damaged(format!("the certificate at {index} names another block"))
}
