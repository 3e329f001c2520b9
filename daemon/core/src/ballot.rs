//! What members sign about blocks and terms: votes, suspicions and term votes.

use serde::{Deserialize, Serialize};

use crate::{
    block::BlockRef,
    crypto::{ClusterId, Domain, Signature, Signer},
    ids::{Epoch, Index, MemberId, Term},
};

/// Which of the two marks a vote moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BallotKind {
    /// "I have accepted this block durably."
    Prepare,
    /// "I hold a Prepare certificate for it durably."
    Commit,
    /// A Prepare vote for a [sole](crate::block::Header::sole) block: when all members have cast it, the block is final.
    Sole {
        /// How many members there are.
        members: u8,
    },
}

impl BallotKind {
    /// Which of the two marks it is about: [`BallotKind::Prepare`] or [`BallotKind::Commit`].
    #[must_use]
    pub fn mark(self) -> Self {
        match self {
            Self::Prepare | Self::Sole { .. } => Self::Prepare,
            Self::Commit => Self::Commit,
        }
    }
}

/// What a vote is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ballot {
    /// Prepare or Commit.
    pub kind: BallotKind,
    /// The epoch.
    pub epoch: Epoch,
    /// The block, with the term that it was proposed and is voted for in.
    pub block: BlockRef,
}

impl Ballot {
    /// What a voter signs.
    pub fn signed_bytes(&self, cluster: ClusterId) -> Vec<u8> {
        Domain::Vote.signed_bytes(cluster, self)
    }

    /// The place of the block in the order of positions.
    pub fn rank(&self) -> Rank {
        Rank { epoch: self.epoch, term: self.block.term, index: self.block.index }
    }
}

/// The order of positions: epoch first, then term, then index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The epoch.
    pub epoch: Epoch,
    /// The term within the epoch.
    pub term: Term,
    /// The index within the term.
    pub index: Index,
}

/// A signed ballot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// What it is about.
    pub ballot: Ballot,
    /// Who votes.
    pub signer: MemberId,
    /// The signer's signature over the ballot.
    pub signature: Signature,
}

impl Vote {
    /// Signs a ballot.
    pub fn sign(cluster: ClusterId, ballot: Ballot, me: MemberId, signer: &dyn Signer) -> Self {
        Self { ballot, signer: me, signature: signer.sign(&ballot.signed_bytes(cluster)) }
    }
}

/// "No progress here": a wish to leave a term. It promises nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspect {
    /// The epoch.
    pub epoch: Epoch,
    /// The term to leave.
    pub term: Term,
    /// Who wishes to.
    pub signer: MemberId,
    /// The signer's signature over epoch and term.
    pub signature: Signature,
}

impl Suspect {
    /// What a member signs to suspect a term.
    pub fn signed_bytes(cluster: ClusterId, epoch: Epoch, term: Term) -> Vec<u8> {
        Domain::Suspect.signed_bytes(cluster, &(epoch, term))
    }

    /// Signs a suspicion.
    pub fn sign(cluster: ClusterId, epoch: Epoch, term: Term, me: MemberId, signer: &dyn Signer) -> Self {
        Self { epoch, term, signer: me, signature: signer.sign(&Self::signed_bytes(cluster, epoch, term)) }
    }
}

/// "I have left all terms before this one", with the highest block that the signer knows to be certified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermVote {
    /// The epoch.
    pub epoch: Epoch,
    /// The term that the signer has entered.
    pub term: Term,
    /// The signer's highest certified block, of a lower term; none where it still is the epoch's root.
    pub position: Option<BlockRef>,
    /// The sole block that the signer voted for last, unless it knows that one of its index is committed.
    pub sole: Option<BlockRef>,
    /// Who promises.
    pub signer: MemberId,
    /// The signer's signature over the first four fields.
    pub signature: Signature,
}

impl TermVote {
    /// What a member signs to enter a term.
    pub fn signed_bytes(
        cluster: ClusterId,
        epoch: Epoch,
        term: Term,
        position: Option<BlockRef>,
        sole: Option<BlockRef>,
    ) -> Vec<u8> {
        Domain::TermVote.signed_bytes(cluster, &(epoch, term, position, sole))
    }

    /// Signs a promise.
    pub fn sign(
        cluster: ClusterId,
        epoch: Epoch,
        term: Term,
        position: Option<BlockRef>,
        sole: Option<BlockRef>,
        me: MemberId,
        signer: &dyn Signer,
    ) -> Self {
        let signature = signer.sign(&Self::signed_bytes(cluster, epoch, term, position, sole));
        Self { epoch, term, position, sole, signer: me, signature }
    }

    /// The position's place in the order of positions; the epoch's root ranks lowest.
    pub fn rank(&self) -> Option<Rank> {
        self.position.map(|block| Rank { epoch: self.epoch, term: block.term, index: block.index })
    }
}
