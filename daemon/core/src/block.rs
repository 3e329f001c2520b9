//! Batches and blocks: what members agree on.
//!
//! An **origin** takes requests from its own clients, and signs them once as a [`Batch`]. A leader gathers batches
//! into a [`Block`], which names its parent by digest: a vote for a block is a vote for its whole prefix.
//!
//! Rules for batches along a chain, checked by every follower ([`Marks`]): an origin's incarnations only rise, and
//! within one incarnation its numbers are consecutive, starting at 1. That rule alone gives first-in-first-out
//! order per origin and the suppression of duplicates.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    crypto::{ClusterId, Digest, Domain, Signature, Signer},
    ids::{BatchNumber, Epoch, Incarnation, Index, MemberId, Term},
};

/// An encoded operation on the state machine. Consensus never looks inside.
pub type Request = Bytes;

/// A block's place and identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRef {
    /// The term that it was proposed in.
    pub term: Term,
    /// Its height.
    pub index: Index,
    /// The digest of its header.
    pub digest: Digest,
}

impl fmt::Display for BlockRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of term {} ({})", self.index, self.term, self.digest)
    }
}

/// Requests that one member took from its own clients, signed once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The member whose clients these are.
    pub origin: MemberId,
    /// The origin's run.
    pub incarnation: Incarnation,
    /// The batch's place in that run, starting at 1.
    pub number: BatchNumber,
    /// What the clients asked for, in order.
    pub requests: Vec<Request>,
    /// The origin's signature over [`Batch::digest`].
    pub signature: Signature,
}

impl Batch {
    /// Numbers and signs requests.
    pub fn sign(
        cluster: ClusterId,
        origin: MemberId,
        incarnation: Incarnation,
        number: BatchNumber,
        requests: Vec<Request>,
        signer: &dyn Signer,
    ) -> Self {
        let mut batch = Self { origin, incarnation, number, requests, signature: Signature([0; 64]) };
        batch.signature = signer.sign(&batch.signed_bytes(cluster));
        batch
    }

    /// What the origin signs.
    pub fn signed_bytes(&self, cluster: ClusterId) -> Vec<u8> {
        Domain::Batch.signed_bytes(cluster, &self.digest())
    }

    /// The digest of the batch's contents.
    pub fn digest(&self) -> Digest {
        let mut hasher = Domain::Batch.hasher();
        hasher.update(&[self.origin.0]);
        hasher.update(&self.incarnation.0.to_le_bytes());
        hasher.update(&self.number.0.to_le_bytes());
        for request in &self.requests {
            hasher.update_sized(request);
        }
        hasher.finish()
    }

    /// The size of its requests in bytes, with what each costs beside its contents.
    pub fn size(&self) -> usize {
        const PER_REQUEST: usize = 8;
        const PER_BATCH: usize = 128;
        self.requests.iter().map(|request| request.len() + PER_REQUEST).sum::<usize>() + PER_BATCH
    }

    /// Its place in its origin's order.
    pub fn mark(&self) -> Mark {
        Mark { incarnation: self.incarnation, number: self.number }
    }
}

/// What the leader's state was after an earlier index. Voters compare, so the digest is certified with the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// The last executed index.
    pub index: Index,
    /// The digest of the state after it.
    pub state: Digest,
}

/// What a block's digest covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The cluster.
    pub cluster: ClusterId,
    /// The epoch whose members decide it.
    pub epoch: Epoch,
    /// The term whose leader proposed it.
    pub term: Term,
    /// The parent's index plus one.
    pub index: Index,
    /// The parent's digest.
    pub parent: Digest,
    /// The leader's clock in milliseconds since the Unix epoch; never decreasing along the chain.
    pub time_ms: u64,
    /// The digest of the list of batches: see [`Block::batches_digest`].
    pub batches: Digest,
    /// What the leader's state was after an earlier index.
    pub executed: Executed,
    /// Whether its parent is committed, so that it is the lowest block in flight: all members' votes for it make it final.
    /// A voter sees to it that this is so.
    pub sole: bool,
}

impl Header {
    /// The block's digest.
    pub fn digest(&self) -> Digest {
        let encoded = postcard::to_stdvec(self).expect("encoding into a growing buffer succeeds");
        let mut hasher = Domain::Header.hasher();
        hasher.update(&encoded);
        hasher.finish()
    }
}

/// A header and its batches. Immutable, so that its digest is computed once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "EncodedBlock")]
pub struct Block {
    header: Header,
    batches: Vec<Arc<Batch>>,
    #[serde(skip)]
    digest: Digest,
}

/// A block as it is encoded: without its digest, which the decoder computes.
#[derive(Deserialize)]
struct EncodedBlock {
    header: Header,
    batches: Vec<Arc<Batch>>,
}

impl From<EncodedBlock> for Block {
    fn from(encoded: EncodedBlock) -> Self {
        Self::new(encoded.header, encoded.batches)
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::ZERO
    }
}

impl Block {
    /// A block; whether its header covers these batches is for [`Block::is_consistent`] to say.
    pub fn new(header: Header, batches: Vec<Arc<Batch>>) -> Self {
        let digest = header.digest();
        Self { header, batches, digest }
    }

    /// What [`Header::batches`] must be for a list of batches. It covers the signatures too: else whoever serves a fetched
    /// block could spoil them, and nobody could prove afterwards who asked for what.
    pub fn batches_digest(batches: &[Arc<Batch>]) -> Digest {
        let mut hasher = Domain::Batches.hasher();
        for batch in batches {
            hasher.update(&batch.digest().0).update(&batch.signature.0);
        }
        hasher.finish()
    }

    /// Whether the header covers the batches.
    pub fn is_consistent(&self) -> bool {
        self.header.batches == Self::batches_digest(&self.batches)
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The batches, in the order of execution.
    pub fn batches(&self) -> &[Arc<Batch>] {
        &self.batches
    }

    /// The header's digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The block's place and identity.
    pub fn reference(&self) -> BlockRef {
        BlockRef { term: self.header.term, index: self.header.index, digest: self.digest }
    }

    /// The size of its batches in bytes.
    pub fn size(&self) -> usize {
        self.batches.iter().map(|batch| batch.size()).sum()
    }
}

/// How far one origin has come on a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// The run of its newest batch; 0 before its first.
    pub incarnation: Incarnation,
    /// The number of its newest batch.
    pub number: BatchNumber,
}

impl Mark {
    /// Whether a batch at `next` may stand right after one at `self`.
    pub fn precedes(self, next: Self) -> bool {
        if next.incarnation == self.incarnation {
            next.incarnation > Incarnation(0) && next.number == self.number.next()
        } else {
            next.incarnation > self.incarnation && next.number == BatchNumber(1)
        }
    }
}

/// How far each origin has come on a chain: all the state that the rules for batches need.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks(Vec<(MemberId, Mark)>);

impl Marks {
    /// How far `origin` has come.
    pub fn get(&self, origin: MemberId) -> Mark {
        match self.0.binary_search_by_key(&origin, |(id, _)| *id) {
            Ok(at) => self.0.get(at).map_or(Mark::default(), |(_, mark)| *mark),
            Err(_) => Mark::default(),
        }
    }

    /// Whether a batch may come next.
    pub fn accepts(&self, batch: &Batch) -> bool {
        self.get(batch.origin).precedes(batch.mark())
    }

    /// Records a batch.
    pub fn record(&mut self, batch: &Batch) {
        match self.0.binary_search_by_key(&batch.origin, |(id, _)| *id) {
            Ok(at) => {
                if let Some((_, mark)) = self.0.get_mut(at) {
                    *mark = batch.mark();
                }
            }
            Err(at) => self.0.insert(at, (batch.origin, batch.mark())),
        }
    }

    /// Records all batches of a block, or says which one is out of order.
    ///
    /// # Errors
    /// The first batch that must not come next.
    pub fn record_block(&mut self, block: &Block) -> Result<(), MemberId> {
        for batch in block.batches() {
            if !self.accepts(batch) {
                return Err(batch.origin);
            }
            self.record(batch);
        }
        Ok(())
    }
}

/// The leader's signature over a header. It is not a vote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// What is proposed.
    pub header: Header,
    /// The signature of the leader of the header's term.
    pub signature: Signature,
}

impl Proposal {
    /// What a leader signs to propose a header.
    pub fn signed_bytes(header: &Header) -> Vec<u8> {
        Domain::Proposal.signed_bytes(header.cluster, &header.digest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(incarnation: u64, number: u64) -> Mark {
        Mark { incarnation: Incarnation(incarnation), number: BatchNumber(number) }
    }

    #[test]
    fn marks_are_consecutive_within_an_incarnation_and_incarnations_rise() {
        assert!(Mark::default().precedes(mark(1, 1)));
        assert!(Mark::default().precedes(mark(7, 1)));
        assert!(!Mark::default().precedes(mark(0, 1)), "incarnations start at 1");
        assert!(!Mark::default().precedes(mark(1, 2)), "numbers start at 1");
        assert!(mark(1, 1).precedes(mark(1, 2)));
        assert!(mark(1, 1).precedes(mark(3, 1)));
        assert!(!mark(1, 1).precedes(mark(1, 1)), "a duplicate");
        assert!(!mark(1, 1).precedes(mark(1, 3)), "a gap");
        assert!(!mark(2, 5).precedes(mark(1, 6)), "an older run");
        assert!(!mark(2, 5).precedes(mark(3, 6)), "a run starts at 1");
    }
}
