//! Executes blocks, exactly once each, in the order of their indices.
//!
//! Semantics are etcd's: one revision for the whole store, 1 while it is empty; a request that changes something
//! raises it by one, whatever number of keys it changes; a delete that finds nothing, a failed expectation and a
//! refused request don't. A key's version starts at 1 whenever it is created.
//!
//! What a transaction of the store must hold together:
//!
//! - [`StateMachine::execute`] changes the keys and the record of what has been executed. The transaction that holds
//!   one holds the other, or a block would be executed twice after a crash.
//! - The same is true of the sessions (see [`super::SessionRequest`]), which are state.
//! - [`StateMachine::trim`] ends what is compacted, a row at a time. It changes no digest: members do it when they have time.
//! - [`StateMachine::save_recent`] writes the recent states. It belongs into every transaction that is made durable.
//! - [`StateMachine::save`] also writes what can be made anew, the buckets of digests. It belongs before a stop. Where
//!   it is missing, the next start makes the buckets from the keys.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Bound, ControlFlow},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    CompactUntil, Expect, MAX_READ, MAX_VISITED, Operation, Outcome, ReadTables, Refusal, Span, Table,
    WriteTables,
    buckets::{Bucket, Buckets},
    digest::{Tree, bucket_digest, empty_state, key_hash, state_digest},
    history::{History, first_row_after, last_revision_until, read_standing, trim},
    lease::Leases,
    range::Budget,
    session::{Sessions, Told},
    writing::{Deletions, Writing},
};
use crate::{
    block::{Block, BlockRef, Request},
    crypto::Digest,
    ids::{Index, MemberId, Term},
    limits::{DEFAULT_QUOTA, REMEMBERED_STATES},
    protocol::Protocol,
};

/// In [`Table::Meta`]: the [`Head`].
const HEAD: &[u8] = b"head";
/// In [`Table::Meta`]: the index at which the last [`StateMachine::save`] was.
const SAVED: &[u8] = b"saved";
/// In [`Table::Meta`]: the protocol that was set last.
const PROTOCOL: &[u8] = b"protocol";
/// In [`Table::Meta`]: followed by a slot of two bytes, a recent index and the state after it.
const RECENT: &[u8] = b"recent";

/// How far execution has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The last executed block.
    pub executed: BlockRef,
    /// The store's revision after it.
    pub revision: u64,
    /// The oldest revision that can be read; 0 before the first compaction.
    pub compacted: u64,
    /// How many bytes of keys and values the store holds, with the history that is not compacted.
    pub used: u64,
    /// How many it may hold.
    pub quota: u64,
    /// The digest of the state after it.
    pub state: Digest,
}

impl Head {
    /// Refuses a revision that can't be read; 0 stands for the newest.
    ///
    /// # Errors
    /// [`Refusal::Compacted`], [`Refusal::FutureRevision`].
    pub fn check_readable(&self, revision: u64) -> Result<(), Refusal> {
        if revision > self.revision {
            return Err(Refusal::FutureRevision { revision: self.revision });
        }
        if revision != 0 && revision < self.compacted {
            return Err(Refusal::Compacted { compacted: self.compacted });
        }
        Ok(())
    }
}

/// What came of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOutcome {
    /// How far execution has come with it.
    pub head: Head,
    /// What came of each request of each batch, in the block's order.
    pub outcomes: Vec<Vec<Outcome>>,
    /// Which of them an earlier block had executed, in a session: the places of batch and request, and the index and term of
    /// that block.
    pub repeated: BTreeMap<(usize, usize), (Index, Term)>,
}

/// Why the state can't be read or blocks can't be executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error<E> {
    /// The store failed.
    #[error(transparent)]
    Tables(#[from] E),
    /// A block doesn't follow the last executed one. Nothing was changed.
    #[error("block {found:?} can't be executed after block {executed:?}: it is not its child")]
    NotNext {
        /// The block before.
        executed: BlockRef,
        /// The block in its place.
        found: BlockRef,
    },
    /// The store holds what was never written to it.
    #[error(
        "the state is damaged: {0} is not what was written; restore this member from a snapshot or its log"
    )]
    Damaged(&'static str),
}

/// The state machine over some tables, which hold the state itself.
///
/// After an error other than [`Error::NotNext`] neither the machine nor the open transaction are of any use.
#[derive(Clone, Debug)]
pub struct StateMachine {
    pub(super) head: Head,
    pub(super) history: History,
    /// The compacted revision at which nothing was left to trim.
    trimmed_for: u64,
    /// What the transactions of the member whose batch is being executed may still read in this block.
    pub(super) reads: Budget,
    /// What its requests may still delete in ranges.
    pub(super) deletions: Deletions,
    /// What requests have set; none while the genesis says it. Not covered by the digest: it decides who is sent votes, which is
    /// of no consequence for safety.
    protocol: Option<Protocol>,
    pub(super) sessions: Sessions,
    pub(super) buckets: Buckets,
    pub(super) leases: Leases,
    /// The last states, rising by index; at most [`REMEMBERED_STATES`].
    recent: VecDeque<(Index, Digest)>,
    /// How many of them, the newest, are not in the tables.
    unsaved: usize,
    /// The entry being written.
    buffer: Vec<u8>,
}

/// How far execution has come, by the tables; none before the first block.
///
/// # Errors
/// The store's, or a damaged record.
pub fn head<T: ReadTables>(tables: &T) -> Result<Option<Head>, Error<T::Error>> {
    match tables.read(Table::Meta, HEAD, |bytes| postcard::from_bytes(bytes).ok())? {
        None => Ok(None),
        Some(head) => head.map(Some).ok_or(Error::Damaged("the record of the last executed block")),
    }
}

impl StateMachine {
    /// The state in the tables. Where they are empty, it is the one after `root`: the genesis, or the block after
    /// which a cluster starts.
    ///
    /// Reads the table of buckets, or, where it is behind, makes it from the keys.
    ///
    /// # Errors
    /// The store's; damaged contents, among them buckets that don't give the recorded digest.
    pub fn open<T: WriteTables>(tables: &mut T, root: BlockRef) -> Result<Self, Error<T::Error>> {
        let empty = Head {
            executed: root,
            revision: 1,
            compacted: 0,
            used: 0,
            quota: DEFAULT_QUOTA,
            state: empty_state(),
        };
        let head = head(tables)?.unwrap_or(empty);
        let history = History::new(read_standing(tables)?);
        let saved = tables
            .read(Table::Meta, SAVED, |bytes| bytes.try_into().map(u64::from_le_bytes).ok())?
            .map(|saved| saved.ok_or(Error::Damaged("the record of the last save")))
            .transpose()?;
        let mut buckets = if saved.map_or(head == empty, |saved| saved == head.executed.index.0) {
            Buckets::new(read_buckets(tables)?)
        } else {
            Buckets::rebuild(tables)?
        };
        let leases = Leases::open(tables)?;
        let numbers = [head.revision, head.compacted, leases.now_ms(), head.quota];
        if state_digest(numbers, &history.standing, buckets.root()) != head.state {
            return Err(Error::Damaged("the digest of the state"));
        }
        let protocol = tables
            .read(Table::Meta, PROTOCOL, |bytes| postcard::from_bytes(bytes).ok())?
            .map(|protocol| protocol.ok_or(Error::Damaged("the record of the protocol")))
            .transpose()?;
        let sessions = Sessions::open(tables)?;
        let (recent, buffer) = (VecDeque::new(), Vec::new());
        let (reads, deletions) = allowance();
        let trimmed_for = 0;
        let mut machine = Self {
            head,
            history,
            trimmed_for,
            reads,
            deletions,
            protocol,
            sessions,
            buckets,
            leases,
            recent,
            unsaved: 0,
            buffer,
        };
        machine.load_recent(tables)?;
        Ok(machine)
    }

    /// How far execution has come.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The protocol that a request has set last, if any has.
    pub fn protocol(&self) -> Option<Protocol> {
        self.protocol
    }

    /// The bytes of the keys that there are and of their values: what is used without the history.
    pub fn live(&self) -> u64 {
        self.history.standing.live
    }

    /// When the next lease ends, in milliseconds since the Unix epoch by the clocks of leaders, if a block is executed then. A term
    /// that ends before makes it later.
    pub fn next_lease_end_ms(&self) -> Option<u64> {
        self.leases.next_end_ms()
    }

    /// The states after the last indices, rising, the last executed one included: at most
    /// [`REMEMBERED_STATES`].
    pub fn recent_digests(&self) -> Vec<(Index, Digest)> {
        self.recent.iter().copied().collect()
    }

    /// Executes blocks.
    ///
    /// # Errors
    /// A block that isn't the child of the one before, wherever it stands: then nothing is changed. Else the store's
    /// errors.
    pub fn execute<T: WriteTables>(
        &mut self,
        tables: &mut T,
        blocks: &[Arc<Block>],
    ) -> Result<Vec<BlockOutcome>, Error<T::Error>> {
        let mut executed = self.head.executed;
        for block in blocks {
            let found = block.reference();
            if found.index != executed.index.next() || block.header().parent != executed.digest {
                return Err(Error::NotNext { executed, found });
            }
            executed = found;
        }
        let outcomes =
            blocks.iter().map(|block| self.execute_one(tables, block)).collect::<Result<_, _>>()?;
        self.history.standing.write(tables)?;
        self.leases.write_clock(tables)?;
        let head = postcard::to_stdvec(&self.head).expect("encoding into a growing buffer succeeds");
        tables.put(Table::Meta, HEAD, &head)?;
        Ok(outcomes)
    }

    /// Trims a row of the history that is compacted, and says whether there was one. To be called now and then.
    ///
    /// # Errors
    /// The store's.
    pub fn trim<T: WriteTables>(&mut self, tables: &mut T) -> Result<bool, Error<T::Error>> {
        if self.is_trimmed() {
            return Ok(false);
        }
        let is_trimmed = trim(tables, &mut self.history.standing, self.head.compacted)?;
        if is_trimmed {
            self.history.standing.write(tables)?;
        } else {
            self.trimmed_for = self.head.compacted;
        }
        Ok(is_trimmed)
    }

    /// How many rows of the history were made since this was asked last.
    pub fn take_rows(&mut self) -> usize {
        std::mem::take(&mut self.history.rows)
    }

    /// Whether there is surely nothing to trim.
    pub fn is_trimmed(&self) -> bool {
        self.trimmed_for >= self.head.compacted
    }

    /// Writes what [`StateMachine::execute`] keeps in memory and nothing else holds: the recent states.
    ///
    /// # Errors
    /// The store's.
    pub fn save_recent<T: WriteTables>(&mut self, tables: &mut T) -> Result<(), Error<T::Error>> {
        let saved = self.recent.len() - self.unsaved;
        for (index, state) in self.recent.iter().skip(saved) {
            let slot = u16::try_from(index.0 % REMEMBERED_STATES as u64).unwrap_or_default();
            let mut key = RECENT.to_vec();
            key.extend_from_slice(&slot.to_be_bytes());
            let mut value = index.0.to_le_bytes().to_vec();
            value.extend_from_slice(&state.0);
            tables.put(Table::Meta, &key, &value)?;
        }
        self.unsaved = 0;
        Ok(())
    }

    /// Writes all that [`StateMachine::execute`] keeps in memory, so that the next start reads the buckets of digests
    /// instead of making them anew. They may be many: this writes a part of some 6 MB, and says whether it was the last
    /// one.
    ///
    /// # Errors
    /// The store's.
    pub fn save_part<T: WriteTables>(&mut self, tables: &mut T) -> Result<bool, Error<T::Error>> {
        self.save_recent(tables)?;
        let is_last = self.buckets.write_part(tables)?;
        if is_last {
            tables.put(Table::Meta, SAVED, &self.head.executed.index.0.to_le_bytes())?;
        }
        Ok(is_last)
    }

    /// All parts of [`StateMachine::save_part`] at once.
    ///
    /// # Errors
    /// The store's.
    pub fn save<T: WriteTables>(&mut self, tables: &mut T) -> Result<(), Error<T::Error>> {
        while !self.save_part(tables)? {}
        Ok(())
    }

    fn execute_one<T: WriteTables>(
        &mut self,
        tables: &mut T,
        block: &Block,
    ) -> Result<BlockOutcome, Error<T::Error>> {
        self.history.time_ms = block.header().time_ms;
        self.sessions.begin_block(block.header());
        self.pass_time(tables, block.header())?;
        let mut repeated = BTreeMap::new();
        let mut allowances: BTreeMap<MemberId, (Budget, Deletions)> = BTreeMap::new();
        let mut outcomes = Vec::with_capacity(block.batches().len());
        for batch in block.batches() {
            // Nobody's requests are at the expense of other members'.
            (self.reads, self.deletions) = allowances.get(&batch.origin).copied().unwrap_or_else(allowance);
            let mut of_batch = Vec::with_capacity(batch.requests.len());
            for request in &batch.requests {
                let (outcome, first) = self.apply(tables, request)?;
                if let Some(first) = first {
                    repeated.insert((outcomes.len(), of_batch.len()), first);
                }
                of_batch.push(outcome);
            }
            outcomes.push(of_batch);
            allowances.insert(batch.origin, (self.reads, self.deletions));
        }
        self.history.end_row(tables)?;
        self.sessions.end_block(tables, &mut self.buckets)?;
        self.head.executed = block.reference();
        self.head.used = self.history.used();
        let numbers = [self.head.revision, self.head.compacted, self.leases.now_ms(), self.head.quota];
        self.head.state = state_digest(numbers, &self.history.standing, self.buckets.root());
        self.remember(self.head.executed.index, self.head.state);
        Ok(BlockOutcome { head: self.head, outcomes, repeated })
    }

    /// Executes a request. Says which block has executed it, where that was an earlier one or this one before.
    fn apply<T: WriteTables>(&mut self, tables: &mut T, request: &Request) -> Result<Told, Error<T::Error>> {
        match Operation::decode_in(request) {
            Ok(Operation::InSession(request)) => self.in_session(tables, &request),
            Ok(operation) => match operation.check() {
                Ok(()) => Ok((self.change(tables, &operation)?, None)),
                Err(refusal) => Ok((Outcome::Refused(refusal), None)),
            },
            Err(refusal) => Ok((Outcome::Refused(refusal), None)),
        }
    }

    /// Executes an operation that [`Operation::check`] has found in order.
    pub(super) fn change<T: WriteTables>(
        &mut self,
        tables: &mut T,
        operation: &Operation<&[u8]>,
    ) -> Result<Outcome, Error<T::Error>> {
        match *operation {
            Operation::Put { key, value, expect, lease } => self.put(tables, (key, value, lease), expect),
            Operation::Delete { key } => {
                let keys = u64::from(self.delete(tables, key, self.head.revision + 1)?);
                Ok(self.deleted(keys))
            }
            Operation::DeletePrefix { prefix } => {
                let mut reads = self.reads;
                let span = Span::Prefix(prefix);
                let deleted = self.delete_all(tables, (&span, self.head.revision + 1), &mut reads)?;
                self.reads = reads;
                Ok(deleted.map_or_else(Outcome::Refused, |keys| self.deleted(keys)))
            }
            Operation::Compact { until } => self.compact(tables, until),
            Operation::GrantLease { lease, ttl_ms } => self.grant_lease(tables, (lease, ttl_ms)),
            Operation::KeepLease { lease } => self.keep_lease(tables, lease),
            Operation::RevokeLease { lease } => self.revoke_lease(tables, lease),
            Operation::SetQuota { bytes } => {
                self.head.quota = bytes;
                Ok(Outcome::QuotaSet {
                    revision: self.head.revision,
                    used: self.history.used(),
                    quota: bytes,
                })
            }
            Operation::Tick => Ok(Outcome::Ticked { revision: self.head.revision }),
            Operation::Transaction(ref transaction) => self.transact(tables, transaction),
            // What is in a session is in no other one.
            Operation::InSession(_) => Ok(Outcome::Refused(Refusal::Malformed)),
            Operation::SetProtocol { protocol } => {
                let value = postcard::to_stdvec(&protocol).expect("encoding into a growing buffer succeeds");
                tables.put(Table::Meta, PROTOCOL, &value)?;
                self.protocol = Some(protocol);
                Ok(Outcome::ProtocolSet { revision: self.head.revision, protocol })
            }
        }
    }

    fn put<T: WriteTables>(
        &mut self,
        tables: &mut T,
        (key, value, lease): (&[u8], &[u8], u64),
        expect: Expect,
    ) -> Result<Outcome, Error<T::Error>> {
        let key_hash = key_hash(key);
        let Head { revision, quota, .. } = self.head;
        let (buckets, mut writing) = self.writing(tables);
        let place = buckets.place(writing.tables, &key_hash)?;
        let old = place.numbers();
        let found = old.map_or(0, |old| old.mod_revision);
        let holds = match expect {
            Expect::Anything => true,
            Expect::Absent => old.is_none(),
            Expect::Revision(revision) => old.is_some() && found == revision,
        };
        if !holds {
            return Ok(Outcome::Mismatch { revision, found });
        }
        let may = writing
            .leases
            .check(lease)
            .and_then(|()| check_space(writing.history, quota, key.len() + value.len()));
        if let Err(refusal) = may {
            return Ok(Outcome::Refused(refusal));
        }
        let revision = revision + 1;
        writing.put(place, (key, value, lease), revision)?;
        self.head.revision = revision;
        Ok(Outcome::Put { revision })
    }

    /// What a change of a key needs: where its place is, and what it writes to.
    fn writing<'a, T>(&'a mut self, tables: &'a mut T) -> (&'a mut Buckets, Writing<'a, T>) {
        let Self { history, leases, buffer, .. } = self;
        let writing = Writing { tables, history, leases, buffer, compacted: self.head.compacted };
        (&mut self.buckets, writing)
    }

    /// Stores a value, as part of the request that makes this revision.
    pub(super) fn store<T: WriteTables>(
        &mut self,
        tables: &mut T,
        entry: (&[u8], &[u8], u64),
        revision: u64,
    ) -> Result<(), Error<T::Error>> {
        let key_hash = key_hash(entry.0);
        let (buckets, mut writing) = self.writing(tables);
        let place = buckets.place(writing.tables, &key_hash)?;
        writing.put(place, entry, revision)
    }

    /// Deletes a key, as part of the request that makes this revision, and says whether it was there.
    pub(super) fn delete<T: WriteTables>(
        &mut self,
        tables: &mut T,
        key: &[u8],
        revision: u64,
    ) -> Result<bool, Error<T::Error>> {
        let key_hash = key_hash(key);
        let (buckets, mut writing) = self.writing(tables);
        let place = buckets.place(writing.tables, &key_hash)?;
        writing.delete(place, key, revision)
    }

    /// Deletes keys, as part of the request that makes this revision, and says how many there were. Refused where they are more than may be
    /// deleted, or nothing more may be looked for.
    pub(super) fn delete_all<T: WriteTables>(
        &mut self,
        tables: &mut T,
        (span, revision): (&Span<&[u8]>, u64),
        reads: &mut Budget,
    ) -> Result<Result<u64, Refusal>, Error<T::Error>> {
        let keys = match self.deletions.find(tables, span, reads)? {
            Ok(keys) => keys,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for key in &keys {
            self.deletions.take(key);
            if !self.delete(tables, key, revision)? {
                return Err(Error::Damaged("the list of keys"));
            }
        }
        Ok(Ok(keys.len() as u64))
    }

    /// The outcome of deleting so many keys, which raises the revision.
    fn deleted(&mut self, keys: u64) -> Outcome {
        self.head.revision += u64::from(keys > 0);
        Outcome::Deleted { revision: self.head.revision, keys }
    }

    fn compact<T: WriteTables>(
        &mut self,
        tables: &mut T,
        until: CompactUntil,
    ) -> Result<Outcome, Error<T::Error>> {
        let Head { revision, compacted, .. } = self.head;
        self.history.end_row(tables)?;
        let until = match until {
            CompactUntil::Revision(until) if until > revision => {
                return Ok(Outcome::Refused(Refusal::FutureRevision { revision }));
            }
            CompactUntil::Revision(until) if until <= compacted => {
                return Ok(Outcome::Refused(Refusal::Compacted { compacted }));
            }
            CompactUntil::Revision(until) => until,
            CompactUntil::Age(age_ms) => {
                let time_ms = self.history.time_ms.saturating_sub(age_ms);
                match last_revision_until(tables, (compacted, revision), time_ms, &mut self.reads)? {
                    Some(until) => until,
                    None => return Ok(Outcome::Refused(Refusal::ReadsTooMuch)),
                }
            }
        };
        if until > compacted {
            let standing = &mut self.history.standing;
            standing.base = first_row_after(tables, until)?.unwrap_or(standing.end);
            self.head.compacted = until;
        }
        Ok(Outcome::Compacted { revision, compacted: self.head.compacted })
    }

    fn remember(&mut self, index: Index, state: Digest) {
        if self.recent.len() == REMEMBERED_STATES {
            self.recent.pop_front();
        }
        self.recent.push_back((index, state));
        self.unsaved = (self.unsaved + 1).min(self.recent.len());
    }

    /// Reads the recent states. Those after the last save are not there, but for the very last.
    fn load_recent<T: ReadTables>(&mut self, tables: &T) -> Result<(), Error<T::Error>> {
        let head = self.head;
        let mut recent = Vec::new();
        tables.scan(Table::Meta, Bound::Included(RECENT), |key, value| {
            if !key.starts_with(RECENT) {
                return ControlFlow::Break(());
            }
            if let Some((index, state)) = decode_recent(value) {
                recent.push((index, state));
            }
            ControlFlow::Continue(())
        })?;
        recent.retain(|(index, _)| {
            *index < head.executed.index && head.executed.index.0 - index.0 < REMEMBERED_STATES as u64
        });
        recent.sort_unstable();
        self.unsaved = 0;
        self.recent = recent.into();
        self.remember(head.executed.index, head.state);
        Ok(())
    }
}

/// Refuses so many bytes more than a quota has room for. They are held twice: as what is there, and in the history.
pub(super) fn check_space(history: &History, quota: u64, bytes: usize) -> Result<(), Refusal> {
    let used = history.used();
    if used.saturating_add(2 * bytes as u64) <= quota {
        Ok(())
    } else {
        Err(Refusal::NoSpace { used, quota })
    }
}

/// What the requests that one member brings into a block may read and delete.
fn allowance() -> (Budget, Deletions) {
    (Budget::new(MAX_VISITED, MAX_READ), Deletions::default())
}

/// An index and the state after it.
fn decode_recent(value: &[u8]) -> Option<(Index, Digest)> {
    let (index, state) = value.split_first_chunk()?;
    Some((Index(u64::from_le_bytes(*index)), Digest(state.try_into().ok()?)))
}

/// The tree above the table of buckets.
fn read_buckets<T: ReadTables>(tables: &T) -> Result<Tree, Error<T::Error>> {
    let mut changes = Vec::new();
    let mut damaged = false;
    tables.scan(Table::Buckets, Bound::Unbounded, |key, packed| match key.try_into() {
        Ok(number) if Bucket::unpack(packed).is_some() => {
            changes.push((u16::from_be_bytes(number), bucket_digest(packed)));
            ControlFlow::Continue(())
        }
        _ => {
            damaged = true;
            ControlFlow::Break(())
        }
    })?;
    if damaged {
        return Err(Error::Damaged("a bucket of digests"));
    }
    let mut tree = Tree::default();
    tree.update(&changes);
    Ok(tree)
}
