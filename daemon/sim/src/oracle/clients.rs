//! What clients are told (DESIGN.md §2.2 step 5, §2.6).
//!
//! - `lost-write`: an acknowledged write is in the final chain, at the acknowledged revision.
//! - `stale-read`: a read sees every write of its key that was acknowledged, and every value that was read, before it began.
//! - `false-read`: a read answers with the value that the chain has for its key at that revision.
//!
//! The oracle runs a store of its own: revision 1 while empty, raised by every change (etcd's rule). Plain puts, deletes, and the
//! transactions that the model of [`linearizability`](crate::linearizability) has are modelled; the world submits nothing else.

use std::collections::BTreeMap;

use bftd_core::{block::Block, kv::Operation};
use bytes::Bytes;

use super::cast::require;
use crate::{
    event::Violation,
    linearizability::{Action, kv::to_action, store::Store},
};

/// Requests, reads and the store that they should see.
pub struct Clients {
    revision: u64,
    executed: u64,
    history: BTreeMap<Bytes, Versions>,
    /// By request: the revisions after its executions.
    done: BTreeMap<Bytes, Vec<u64>>,
    writes: BTreeMap<u64, Bytes>,
    acknowledged: Vec<(u64, u64)>,
    /// By key: the highest revision that somebody was told of.
    seen: BTreeMap<Bytes, u64>,
    /// By read: what it must see at least.
    reads: BTreeMap<u64, u64>,
}

/// A key's values, by the revisions that changed it. None is deleted.
type Versions = BTreeMap<u64, Option<Bytes>>;

/// What a request changes, on top of what there was.
struct Changes<'a> {
    history: &'a BTreeMap<Bytes, Versions>,
    changed: BTreeMap<Bytes, Option<Bytes>>,
}

impl Store<Bytes> for Changes<'_> {
    fn get(&self, key: &Bytes) -> Option<Bytes> {
        let before = || self.history.get(key).and_then(|versions| versions.last_key_value()?.1.clone());
        self.changed.get(key).cloned().unwrap_or_else(before)
    }

    fn set(&mut self, key: &Bytes, value: Option<Bytes>) {
        // To delete what is not there changes nothing.
        if value.is_some() || self.get(key).is_some() {
            self.changed.insert(key.clone(), value);
        }
    }
}

/// Whether a block has a request that sets the protocol.
pub fn sets_protocol(block: &Block) -> bool {
    let mut requests = block.batches().iter().flat_map(|batch| &batch.requests);
    requests
        .any(|request| matches!(postcard::from_bytes(request), Ok(Operation::<Bytes>::SetProtocol { .. })))
}

impl Default for Clients {
    fn default() -> Self {
        Self::new()
    }
}

impl Clients {
    /// An empty store.
    pub fn new() -> Self {
        Self {
            revision: 1,
            executed: 0,
            history: BTreeMap::new(),
            done: BTreeMap::new(),
            writes: BTreeMap::new(),
            acknowledged: Vec::new(),
            seen: BTreeMap::new(),
            reads: BTreeMap::new(),
        }
    }

    /// A final block's turn, each once and in order.
    ///
    /// # Errors
    /// `lost-write` where a request is none that the oracle can model.
    pub fn execute(&mut self, block: &Block) -> Result<(), Violation> {
        let index = block.header().index.0;
        if index <= self.executed {
            return Ok(());
        }
        self.executed = index;
        for request in block.batches().iter().flat_map(|batch| &batch.requests) {
            match postcard::from_bytes(request) {
                // It changes no key.
                Ok(Operation::SetProtocol { .. }) => {}
                Ok(operation) => {
                    let Some(action) = to_action(&operation) else {
                        return require(false, "lost-write", || {
                            format!("the oracle has no model of {operation:?}")
                        });
                    };
                    self.apply(&action);
                }
                // What a liar submits may be refused: it changes nothing.
                Err(_) => {}
            }
            self.done.entry(request.clone()).or_default().push(self.revision);
        }
        Ok(())
    }

    /// All changes of a request share a revision.
    fn apply(&mut self, action: &Action) {
        let mut changes = Changes { history: &self.history, changed: BTreeMap::new() };
        action.apply(&mut changes);
        let changed = changes.changed;
        if !changed.is_empty() {
            self.revision += 1;
        }
        for (key, value) in changed {
            self.history.entry(key).or_default().insert(self.revision, value);
        }
    }

    /// The last index executed.
    pub fn executed(&self) -> u64 {
        self.executed
    }

    /// A client submits a request.
    pub fn submit(&mut self, write: u64, request: &Bytes) {
        self.writes.insert(write, request.clone());
    }

    /// A client is told that its write is done.
    ///
    /// # Errors
    /// `lost-write`.
    pub fn acknowledge(&mut self, write: u64, revision: u64) -> Result<(), Violation> {
        self.acknowledged.push((write, revision));
        let Some(request) = self.writes.get(&write).cloned() else {
            return require(false, "lost-write", || {
                format!("write {write} is acknowledged, and was never submitted")
            });
        };
        self.check_done(write, revision)?;
        let action = postcard::from_bytes(&request).ok().and_then(|operation| to_action(&operation));
        for key in action.iter().flat_map(Action::keys) {
            // It may have found nothing to change there.
            if self.history.get(key).is_some_and(|versions| versions.contains_key(&revision)) {
                let seen = self.seen.entry(key.clone()).or_default();
                *seen = revision.max(*seen);
            }
        }
        Ok(())
    }

    fn check_done(&self, write: u64, revision: u64) -> Result<(), Violation> {
        let revisions = self.writes.get(&write).and_then(|request| self.done.get(request));
        require(revisions.is_some_and(|revisions| revisions.contains(&revision)), "lost-write", || {
            format!(
                "write {write} was acknowledged at revision {revision}, the chain has it at {revisions:?}"
            )
        })
    }

    /// A client begins to read.
    pub fn begin_read(&mut self, read: u64, key: &Bytes) {
        self.reads.insert(read, self.seen.get(key).copied().unwrap_or(0));
    }

    /// A client is answered, with the revision of the key's last change.
    ///
    /// # Errors
    /// `stale-read`, `false-read`.
    pub fn answer_read(
        &mut self,
        read: u64,
        key: &Bytes,
        revision: u64,
        value: Option<&Bytes>,
    ) -> Result<(), Violation> {
        let least = self.reads.remove(&read).unwrap_or(0);
        let versions = self.history.get(key);
        // A key that does not exist has no revision: it must have been so at or after the least one.
        let is_fresh = match value {
            Some(_) => revision >= least,
            None => {
                least == 0 || versions.is_some_and(|all| all.range(least..).any(|(_, value)| value.is_none()))
            }
        };
        require(is_fresh, "stale-read", || {
            format!("read {read} of {key:?} saw revision {revision}, {least} was known to a client before")
        })?;
        let Some(value) = value else { return Ok(()) };
        let written = versions.and_then(|versions| versions.get(&revision)).and_then(Option::as_ref);
        require(written == Some(value), "false-read", || {
            format!("read {read} of {key:?} saw {value:?} at {revision}, written was {written:?}")
        })?;
        let seen = self.seen.entry(key.clone()).or_default();
        *seen = revision.max(*seen);
        Ok(())
    }

    /// The run is over: every acknowledged write is in the chain that all correct members have executed.
    ///
    /// # Errors
    /// `lost-write`.
    pub fn end(&self) -> Result<(), Violation> {
        self.acknowledged.iter().try_for_each(|(write, revision)| self.check_done(*write, *revision))
    }
}
