//! Leases: keys that go when nobody keeps them.
//!
//! - A lease has a time to live. Granting it and keeping it set its deadline: that long from then on, by the **lease clock**.
//!   A key hangs on at most one lease, the one that its last put names.
//! - The lease clock goes with the times of blocks, within one term. From a term's last block to the next one's first no time
//!   passes: a new leader's clock shortens no lease, and while there is no leader none expires. A leader that lies can
//!   make time pass that did not: as much as followers let a block's time be ahead of theirs ([`Timing::max_ahead_ms`](crate::limits::Timing)),
//!   and at the beginning of its term what passed since the last block before it.
//! - A lease whose deadline has come ends with the next block, before its requests, in the order of deadlines: its keys are deleted in one
//!   revision. It can't be kept any more. So that there is a block, members propose a [`Operation::Tick`](super::Operation::Tick) when a deadline has come.
//! - So many keys hang on one lease at most as one request may delete in a range. A block ends no more leases once there are
//!   [`MAX_ENDED`] of them and their keys; the next one goes on. No lease whose deadline has come can be used meanwhile.
//! - While there is no lease, the clock stands at zero.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Bound, ControlFlow},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Error, MAX_ANSWER, MAX_DELETED, MAX_DELETED_BYTES, Outcome, ReadTables, Refusal, StateMachine, Table,
    WriteTables, entry::Numbers,
};
use crate::{
    block::Header,
    crypto::{Digest, Domain},
    ids::{Epoch, Term},
    limits::MAX_LEASES,
};

/// After how many leases and keys a block ends no more leases.
pub const MAX_ENDED: u64 = if cfg!(test) { 8 } else { 16_384 };
/// In [`Table::Meta`]: the [`Clock`].
const CLOCK: &[u8] = b"lease clock";
/// Mark digests of leases among those of entries and sessions: the place among the items, the item, and what ids are made of.
const LEASE_HASH: u8 = 7;
const LEASE: u8 = 8;
const LEASE_ID: u8 = 9;

/// A lease, in [`Table::Leases`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    ttl_ms: u64,
    /// By the lease clock.
    deadline_ms: u64,
}

/// The lease clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Clock {
    pub(super) now_ms: u64,
    /// The time, the epoch and the term of the last block.
    time_ms: u64,
    epoch: Epoch,
    term: Term,
}

/// What hangs on a lease.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    keys: usize,
    bytes: usize,
}

/// All leases, which are few enough to be held in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    by_id: BTreeMap<u64, Lease>,
    /// Of those that have keys.
    loads: BTreeMap<u64, Load>,
    /// Deadlines and ids.
    by_deadline: BTreeSet<(u64, u64)>,
    pub(super) clock: Clock,
    /// How many ids were chosen in this block.
    chosen: u64,
}

/// What is known of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// Its id.
    pub id: u64,
    /// Its time to live, in milliseconds: how long it has left when it was just kept.
    pub ttl_ms: u64,
    /// How long it had left when the last block was executed; 0 where it is about to end.
    pub remaining_ms: u64,
    /// The keys that hang on it, if that was asked for.
    pub keys: Vec<Bytes>,
    /// Whether it has more keys than fit in an answer.
    pub more: bool,
}

impl Lease {
    fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }

    fn digest(self, id: u64) -> Digest {
        let fields = [id, self.ttl_ms, self.deadline_ms].map(u64::to_le_bytes);
        Domain::Entry.digest(&[&[LEASE], fields.as_flattened()])
    }
}

/// The place of a lease among the digests of the state.
fn lease_hash(id: u64) -> Digest {
    Domain::Entry.digest(&[&[LEASE_HASH], &id.to_le_bytes()])
}

/// The row of a key in [`Table::Attached`].
pub(super) fn attached(lease: u64, key: &[u8]) -> Vec<u8> {
    [&lease.to_be_bytes(), key].concat()
}

/// Shows `f` the place and the digest of each lease in the tables.
pub(super) fn each_digest<T: ReadTables>(
    tables: &T,
    mut f: impl FnMut(Digest, Digest),
) -> Result<(), Error<T::Error>> {
    each(tables, |id, lease| f(lease_hash(id), lease.digest(id)))
}

/// What the lease clock says, by the tables: 0 where there is no lease.
pub(super) fn clock_ms<T: ReadTables>(tables: &T) -> Result<u64, Error<T::Error>> {
    let mut has_leases = false;
    tables.scan(Table::Leases, Bound::Unbounded, |_, _| {
        has_leases = true;
        ControlFlow::Break(())
    })?;
    if has_leases { read_clock(tables).map(|clock| clock.now_ms) } else { Ok(0) }
}

fn read_clock<T: ReadTables>(tables: &T) -> Result<Clock, Error<T::Error>> {
    let clock = tables.read(Table::Meta, CLOCK, |bytes| postcard::from_bytes(bytes).ok())?;
    clock.flatten().ok_or(Error::Damaged("the lease clock"))
}

fn each<T: ReadTables>(tables: &T, mut f: impl FnMut(u64, Lease)) -> Result<(), Error<T::Error>> {
    let mut is_damaged = false;
    tables.scan(Table::Leases, Bound::Unbounded, |id, bytes| {
        match (id.try_into().map(u64::from_be_bytes), Lease::decode(bytes)) {
            (Ok(id), Some(lease)) => f(id, lease),
            _ => is_damaged = true,
        }
        if is_damaged { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if is_damaged { Err(Error::Damaged("a lease")) } else { Ok(()) }
}

/// One lease with its keys, or all leases without.
pub(super) fn leases<T: ReadTables>(
    tables: &T,
    id: Option<u64>,
) -> Result<Vec<LeaseStatus>, Error<T::Error>> {
    let now_ms = clock_ms(tables)?;
    let status = |id, lease: Lease| LeaseStatus {
        id,
        ttl_ms: lease.ttl_ms,
        remaining_ms: lease.deadline_ms.saturating_sub(now_ms),
        keys: Vec::new(),
        more: false,
    };
    let Some(id) = id else {
        let mut found = Vec::new();
        each(tables, |id, lease| found.push(status(id, lease)))?;
        return Ok(found);
    };
    let lease = tables.read(Table::Leases, &id.to_be_bytes(), Lease::decode)?;
    let Some(lease) = lease.map(|lease| lease.ok_or(Error::Damaged("a lease"))).transpose()? else {
        return Ok(Vec::new());
    };
    let mut status = status(id, lease);
    let mut bytes = 0;
    tables.scan(Table::Attached, Bound::Included(&id.to_be_bytes()), |row, _| {
        let Some(key) = row.strip_prefix(&id.to_be_bytes()) else { return ControlFlow::Break(()) };
        bytes += key.len() + 8;
        if bytes > MAX_ANSWER {
            status.more = true;
            return ControlFlow::Break(());
        }
        status.keys.push(Bytes::copy_from_slice(key));
        ControlFlow::Continue(())
    })?;
    Ok(vec![status])
}

impl Leases {
    pub(super) fn open<T: ReadTables>(tables: &T) -> Result<Self, Error<T::Error>> {
        let mut leases = Self::default();
        each(tables, |id, lease| leases.insert(id, lease))?;
        if !leases.by_id.is_empty() {
            leases.clock = read_clock(tables)?;
        }
        let mut is_damaged = false;
        tables.scan(Table::Attached, Bound::Unbounded, |row, _| {
            match row.split_first_chunk() {
                Some((id, key)) => leases.load(u64::from_be_bytes(*id), key),
                None => is_damaged = true,
            }
            if is_damaged { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if is_damaged { Err(Error::Damaged("the keys of a lease")) } else { Ok(leases) }
    }

    /// Lets the time pass until a block's.
    fn advance(&mut self, header: &Header) {
        let Header { time_ms, epoch, term, .. } = *header;
        let clock = &mut self.clock;
        let passed = time_ms.saturating_sub(clock.time_ms);
        let now_ms = match () {
            () if self.by_id.is_empty() => 0,
            () if (clock.epoch, clock.term) == (epoch, term) => clock.now_ms.saturating_add(passed),
            () => clock.now_ms,
        };
        *clock = Clock { now_ms, time_ms, epoch, term };
        self.chosen = 0;
    }

    /// What the lease clock says, as far as anything goes by it.
    pub(super) fn now_ms(&self) -> u64 {
        if self.by_id.is_empty() { 0 } else { self.clock.now_ms }
    }

    /// Writes the clock, if anything goes by it.
    pub(super) fn write_clock<T: WriteTables>(&self, tables: &mut T) -> Result<(), T::Error> {
        if self.by_id.is_empty() {
            return Ok(());
        }
        let clock = postcard::to_stdvec(&self.clock).expect("encoding into a growing buffer succeeds");
        tables.put(Table::Meta, CLOCK, &clock)
    }

    /// When the next lease ends, by the times of blocks, if no term ends before; in milliseconds since the Unix epoch.
    pub(super) fn next_end_ms(&self) -> Option<u64> {
        let (deadline_ms, _) = self.by_deadline.first()?;
        Some(self.clock.time_ms.saturating_add(deadline_ms.saturating_sub(self.clock.now_ms)))
    }

    fn is_alive(&self, id: u64) -> bool {
        self.by_id.get(&id).is_some_and(|lease| lease.deadline_ms > self.clock.now_ms)
    }

    /// Refuses a lease that a key can't hang on; 0 stands for none.
    pub(super) fn check(&self, id: u64) -> Result<(), Refusal> {
        if id == 0 {
            return Ok(());
        }
        if !self.is_alive(id) {
            return Err(Refusal::NoSuchLease { lease: id });
        }
        // One transaction may go a little beyond it.
        let Load { keys, bytes } = self.loads.get(&id).copied().unwrap_or_default();
        if keys >= MAX_DELETED || bytes >= MAX_DELETED_BYTES {
            return Err(Refusal::LeaseFull { lease: id });
        }
        Ok(())
    }

    /// One more key hangs on it.
    pub(super) fn load(&mut self, id: u64, key: &[u8]) {
        let load = self.loads.entry(id).or_default();
        load.keys += 1;
        load.bytes += key.len();
    }

    /// One key hangs on it no more.
    pub(super) fn unload(&mut self, id: u64, key: &[u8]) {
        if let Some(load) = self.loads.get_mut(&id) {
            load.keys -= 1;
            load.bytes -= key.len();
            if load.keys == 0 {
                self.loads.remove(&id);
            }
        }
    }

    fn insert(&mut self, id: u64, lease: Lease) {
        if let Some(old) = self.by_id.insert(id, lease) {
            self.by_deadline.remove(&(old.deadline_ms, id));
        }
        self.by_deadline.insert((lease.deadline_ms, id));
    }

    fn remove(&mut self, id: u64) {
        if let Some(old) = self.by_id.remove(&id) {
            self.by_deadline.remove(&(old.deadline_ms, id));
        }
    }

    /// An id that no lease has, below 2⁶³ as in etcd.
    fn choose(&mut self, height: u64) -> u64 {
        loop {
            self.chosen += 1;
            let fields = [height, self.chosen].map(u64::to_le_bytes);
            let digest = Domain::Entry.digest(&[&[LEASE_ID], fields.as_flattened()]);
            let [a, b, c, d, e, f, g, h, ..] = digest.0;
            let id = u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> 1;
            if id != 0 && !self.by_id.contains_key(&id) {
                return id;
            }
        }
    }
}

impl StateMachine {
    /// Lets time pass until a block's, and ends the leases whose deadlines have come.
    pub(super) fn pass_time<T: WriteTables>(
        &mut self,
        tables: &mut T,
        header: &Header,
    ) -> Result<(), Error<T::Error>> {
        self.leases.advance(header);
        let mut ended = 0;
        while let Some((deadline_ms, id)) = self.leases.by_deadline.first().copied() {
            if deadline_ms > self.leases.clock.now_ms || ended >= MAX_ENDED {
                break;
            }
            ended += 1 + self.end_lease(tables, id)?;
        }
        Ok(())
    }

    pub(super) fn grant_lease<T: WriteTables>(
        &mut self,
        tables: &mut T,
        (id, ttl_ms): (u64, u64),
    ) -> Result<Outcome, Error<T::Error>> {
        if self.leases.by_id.len() >= MAX_LEASES {
            return Ok(Outcome::Refused(Refusal::TooManyLeases));
        }
        if self.leases.by_id.contains_key(&id) {
            return Ok(Outcome::Refused(Refusal::LeaseExists { lease: id }));
        }
        let id = if id == 0 { self.leases.choose(self.head.executed.index.0) } else { id };
        self.set_lease(tables, id, ttl_ms)?;
        Ok(Outcome::LeaseGranted { revision: self.head.revision, lease: id, ttl_ms })
    }

    pub(super) fn keep_lease<T: WriteTables>(
        &mut self,
        tables: &mut T,
        id: u64,
    ) -> Result<Outcome, Error<T::Error>> {
        let Some(Lease { ttl_ms, .. }) = self.leases.by_id.get(&id).copied() else {
            return Ok(Outcome::Refused(Refusal::NoSuchLease { lease: id }));
        };
        if !self.leases.is_alive(id) {
            return Ok(Outcome::Refused(Refusal::NoSuchLease { lease: id }));
        }
        self.set_lease(tables, id, ttl_ms)?;
        Ok(Outcome::LeaseKept { revision: self.head.revision, ttl_ms })
    }

    pub(super) fn revoke_lease<T: WriteTables>(
        &mut self,
        tables: &mut T,
        id: u64,
    ) -> Result<Outcome, Error<T::Error>> {
        if !self.leases.by_id.contains_key(&id) {
            return Ok(Outcome::Refused(Refusal::NoSuchLease { lease: id }));
        }
        let keys = self.end_lease(tables, id)?;
        Ok(Outcome::LeaseRevoked { revision: self.head.revision, keys })
    }

    fn set_lease<T: WriteTables>(
        &mut self,
        tables: &mut T,
        id: u64,
        ttl_ms: u64,
    ) -> Result<(), Error<T::Error>> {
        let lease = Lease { ttl_ms, deadline_ms: self.leases.clock.now_ms.saturating_add(ttl_ms) };
        let row = postcard::to_stdvec(&lease).expect("encoding into a growing buffer succeeds");
        tables.put(Table::Leases, &id.to_be_bytes(), &row)?;
        let hash = lease_hash(id);
        self.buckets.place(tables, &hash)?.set(Numbers::NONE, lease.digest(id));
        self.leases.insert(id, lease);
        Ok(())
    }

    /// Ends a lease, and deletes the keys that hang on it, in one revision. Says how many there were.
    fn end_lease<T: WriteTables>(&mut self, tables: &mut T, id: u64) -> Result<u64, Error<T::Error>> {
        let revision = self.head.revision + 1;
        let hanging = self.leases.loads.get(&id).map_or(0, |load| load.keys);
        let mut keys = Vec::with_capacity(hanging);
        if hanging > 0 {
            tables.scan(Table::Attached, Bound::Included(&id.to_be_bytes()), |row, _| {
                keys.extend(row.strip_prefix(&id.to_be_bytes()).map(<[u8]>::to_vec));
                if keys.len() == hanging { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        for key in &keys {
            if !self.delete(tables, key, revision)? {
                return Err(Error::Damaged("the keys of a lease"));
            }
        }
        let ended = keys.len() as u64;
        self.head.revision += u64::from(ended > 0);
        tables.remove(Table::Leases, &id.to_be_bytes())?;
        let hash = lease_hash(id);
        self.buckets.place(tables, &hash)?.remove();
        self.leases.remove(id);
        Ok(ended)
    }
}
