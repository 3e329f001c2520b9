//! One round of votes instead of two, when all members vote.
//!
//! A block whose parent is committed may be marked *sole*. All members' votes for it, durable before they leave, make it
//! final at once; a quorum's are a Prepare certificate as for any block, and the second round follows. Who gathers waits
//! a moment for the votes beyond the quorum, as long as the quorum's took, if they have come in time lately.
//!
//! What makes that safe (the proof is in ARCHITECTURE.md): a member's vote for a sole block is remembered, and reported in
//! its term votes and read answers until it knows what is committed in its place. There is never more than one to
//! report, for the next sole block needs this one's index committed, or is another one's in its place. A term starts on
//! a sole block that all correct ones of a quorum may have voted for, if it ranks above the highest position.

use std::sync::Arc;

use super::Replica;
use crate::{
    ballot::BallotKind,
    block::{Batch, Block},
    certificate::Certificate,
    durable::{Accepted, Record},
    ids::Index,
    limits::MAX_SOLE,
};

/// After a block that not all had voted for in time, so many in a row must have all votes before all are waited for again.
const TRUST_AFTER: u32 = 8;

/// Whether it is of use to wait for all votes, and the certificate with which the second round begins otherwise.
#[derive(Clone, Debug, Default)]
pub(super) struct Unanimity {
    /// How many blocks more must have all votes first.
    distrust: u32,
    waiting: Option<(Arc<Certificate>, u64)>,
}

impl Unanimity {
    /// What is committed needs no second round.
    pub fn forget_through(&mut self, committed: Index) {
        self.waiting.take_if(|(certificate, _)| certificate.block().index <= committed);
    }

    /// Until when all votes are waited for.
    pub fn waits_until(&self) -> Option<u64> {
        self.waiting.as_ref().map(|(_, until_us)| *until_us)
    }
}

impl Replica {
    /// As a leader: whether the next block is to be sole.
    pub(super) fn may_be_sole(&self, open: &Accepted, batches: &[Arc<Batch>]) -> bool {
        self.row().prepares
            && self.setup.one_round
            && open.tip == self.tree.root()
            && batches.iter().map(|batch| batch.size()).sum::<usize>() <= MAX_SOLE
    }

    /// The sole block that this member voted for last, unless it knows what is committed at its index.
    pub(super) fn open_sole(&self) -> Option<Arc<Block>> {
        let sole = self.safety.sole().filter(|block| block.index > self.tree.committed())?;
        self.tree.descend(&sole.digest).next().cloned()
    }

    /// Takes a sole block into the tree that a term starts on. Says whether it is here now: its parent may be missing yet.
    pub(super) fn take_sole(&mut self, block: &Arc<Block>) -> bool {
        let is_new = !self.tree.contains(&block.digest());
        if is_new && self.tree.contains(&block.header().parent) {
            self.tree.insert(Arc::clone(block), self.now_us());
            self.persist(Record::Block(Arc::clone(block)));
        }
        self.tree.contains(&block.digest())
    }

    /// Takes the block that the term starts on, if it was not here and can be now.
    pub(super) fn take_start(&mut self) {
        if let Some(sole) = self.term.new_term.as_ref().and_then(|new_term| new_term.sole.clone())
            && sole.header().index > self.tree.committed()
        {
            self.take_sole(&sole);
        }
    }

    /// Whether a certificate of a sole block waits for the votes that are missing.
    pub(super) fn waits_for_all(&mut self, certificate: &Arc<Certificate>) -> bool {
        let now_us = self.now_us();
        let since_us = self.tree.since_us(&certificate.block().digest);
        let unanimity = &mut self.term.unanimity;
        if !matches!(certificate.ballot.kind, BallotKind::Sole { .. }) {
            return false;
        }
        if certificate.is_commit() {
            unanimity.distrust = unanimity.distrust.saturating_sub(1);
            return false;
        }
        let took_us = since_us.map_or(0, |since| now_us.saturating_sub(since));
        let waits = unanimity.distrust == 0 && took_us <= self.setup.timing.heartbeat_us;
        if waits {
            unanimity.waiting = Some((Arc::clone(certificate), now_us.saturating_add(took_us)));
        }
        waits
    }

    /// Begins the second round where a vote has not come in time.
    pub(super) fn wait_no_longer(&mut self) {
        let unanimity = &mut self.term.unanimity;
        if unanimity.waiting.as_ref().is_some_and(|(_, until_us)| *until_us <= self.now.monotonic_us)
            && let Some((certificate, _)) = unanimity.waiting.take()
        {
            unanimity.distrust = TRUST_AFTER;
            self.use_certificate(certificate, false);
        }
    }
}
