//! Proofs of misbehaviour (DESIGN.md §2.9): pairs of signed statements of one member that no correct member makes, whatever
//! crashes and restarts it goes through. Whoever has the members' keys can check them, offline and years later.
//!
//! - **Double vote**: votes of one kind for two blocks at one index of a term. A correct member's votes in a term are on one
//!   growing chain, and are durable before they leave.
//! - **Double proposal**: two headers of one leader for one index of a term. A leader that restarts proposes no more.
//! - **Forgotten lock**: a TermVote that reports less than a block that its signer had cast a Commit vote for in an earlier
//!   term. A correct member's position is durable before its Commit vote leaves, and only rises.
//!
//! Two members may come upon different pairs for one [`Offence`]; the first is kept, the others tell nothing new.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ballot::{Ballot, BallotKind, TermVote, Vote},
    block::Proposal,
    crypto::{CheckSignature, Digest, Domain, Signature},
    ids::{Epoch, Index, MemberId, Term},
    membership::Membership,
    verify::Misbehavior,
};

/// A proof that a member lied. Unverified until [`Evidence::check`] has seen it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Evidence {
    /// One member's votes of one kind for two blocks at one index of a term.
    DoubleVote {
        /// One.
        first: Vote,
        /// And another.
        second: Vote,
    },
    /// A leader's headers for one index of a term.
    DoubleProposal {
        /// One.
        first: Proposal,
        /// And another.
        second: Proposal,
    },
    /// A TermVote below a Commit vote that its signer gave in a lower term.
    ForgottenLock {
        /// What the member promised to report.
        commit: Vote,
        /// What it reported.
        term_vote: TermVote,
    },
}

/// What a piece of evidence proves, whichever pair proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offence {
    /// Who lied.
    pub accused: MemberId,
    /// How.
    pub kind: OffenceKind,
    /// Where: the epoch.
    pub epoch: Epoch,
    /// The term: for a forgotten lock the one of the TermVote.
    pub term: Term,
    /// The index: for a forgotten lock the one of the Commit vote.
    pub index: Index,
}

/// The kinds of misbehaviour that can be proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OffenceKind {
    /// Two Prepare votes or two Commit votes.
    DoubleVote(BallotKind),
    /// Two headers.
    DoubleProposal,
    /// A TermVote below a Commit vote.
    ForgottenLock,
}

impl OffenceKind {
    /// How many there are.
    pub const COUNT: usize = 4;
}

impl fmt::Display for OffenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DoubleVote(BallotKind::Prepare | BallotKind::Sole { .. }) => "double Prepare vote",
            Self::DoubleVote(BallotKind::Commit) => "double Commit vote",
            Self::DoubleProposal => "double proposal",
            Self::ForgottenLock => "forgotten lock",
        })
    }
}

impl Evidence {
    /// Two votes, if they prove something. The signatures are taken for checked.
    pub fn of_votes(first: &Vote, second: &Vote) -> Option<Self> {
        let place = |vote: &Vote| {
            let Ballot { kind, epoch, block } = vote.ballot;
            (vote.signer, kind.mark(), epoch, block.term, block.index)
        };
        let differ = first.ballot.block.digest != second.ballot.block.digest;
        (place(first) == place(second) && differ)
            .then(|| Self::DoubleVote { first: first.clone(), second: second.clone() })
    }

    /// Two proposals, if they prove something. The signatures are taken for checked.
    pub fn of_proposals(first: &Proposal, second: &Proposal) -> Option<Self> {
        let place =
            |proposal: &Proposal| (proposal.header.epoch, proposal.header.term, proposal.header.index);
        (place(first) == place(second) && first.header != second.header)
            .then(|| Self::DoubleProposal { first: first.clone(), second: second.clone() })
    }

    /// A Commit vote and a TermVote, if they prove something. The signatures are taken for checked.
    pub fn of_term_vote(commit: &Vote, term_vote: &TermVote) -> Option<Self> {
        let ballot = commit.ballot;
        let is_proof = commit.signer == term_vote.signer
            && ballot.kind == BallotKind::Commit
            && ballot.epoch == term_vote.epoch
            && ballot.block.term < term_vote.term
            && term_vote.rank() < Some(ballot.rank());
        is_proof.then(|| Self::ForgottenLock { commit: commit.clone(), term_vote: term_vote.clone() })
    }

    /// What it proves.
    pub fn offence(&self, members: &Membership) -> Offence {
        match self {
            Self::DoubleVote { first: Vote { ballot, signer, .. }, .. } => Offence {
                accused: *signer,
                kind: OffenceKind::DoubleVote(ballot.kind.mark()),
                epoch: ballot.epoch,
                term: ballot.block.term,
                index: ballot.block.index,
            },
            Self::DoubleProposal { first: Proposal { header, .. }, .. } => Offence {
                accused: members.leader(header.term),
                kind: OffenceKind::DoubleProposal,
                epoch: header.epoch,
                term: header.term,
                index: header.index,
            },
            Self::ForgottenLock { commit, term_vote } => Offence {
                accused: term_vote.signer,
                kind: OffenceKind::ForgottenLock,
                epoch: term_vote.epoch,
                term: term_vote.term,
                index: commit.ballot.block.index,
            },
        }
    }

    /// A name for this very pair.
    pub fn digest(&self) -> Digest {
        let encoded = postcard::to_stdvec(self).expect("encoding into a growing buffer succeeds");
        let mut hasher = Domain::Evidence.hasher();
        hasher.update(&encoded);
        hasher.finish()
    }

    /// Checks that it proves what it says, with nothing but the members' keys.
    ///
    /// # Errors
    /// `NoProof` where the two statements are compatible, or the cluster's protocol signs nothing; else what is wrong with a signature, an epoch or a cluster.
    pub fn check(&self, members: &Membership, keys: &dyn CheckSignature) -> Result<(), Misbehavior> {
        let proves = match self {
            Self::DoubleVote { first, second } => Self::of_votes(first, second),
            Self::DoubleProposal { first, second } => Self::of_proposals(first, second),
            Self::ForgottenLock { commit, term_vote } => Self::of_term_vote(commit, term_vote),
        };
        if proves.is_none() || !members.protocol().row().signs {
            return Err(Misbehavior::NoProof);
        }
        let offence = self.offence(members);
        if offence.epoch != members.epoch() {
            return Err(Misbehavior::OtherEpoch);
        }
        let accused = offence.accused;
        let member = members.get(accused).ok_or(Misbehavior::NotAMember(accused))?;
        let cluster = members.cluster();
        let check = |bytes: &[u8], signature: &Signature| {
            let is_signed = keys.check(&member.key, bytes, signature);
            if is_signed { Ok(()) } else { Err(Misbehavior::BadSignature(accused)) }
        };
        let check_vote = |vote: &Vote| check(&vote.ballot.signed_bytes(cluster), &vote.signature);
        match self {
            Self::DoubleVote { first, second } => {
                check_vote(first)?;
                check_vote(second)
            }
            Self::DoubleProposal { first, second } => [first, second].into_iter().try_for_each(|proposal| {
                if proposal.header.cluster != cluster {
                    return Err(Misbehavior::OtherCluster);
                }
                check(&Proposal::signed_bytes(&proposal.header), &proposal.signature)
            }),
            Self::ForgottenLock {
                commit,
                term_vote: TermVote { epoch, term, position, sole, signature, .. },
            } => {
                check_vote(commit)?;
                check(&TermVote::signed_bytes(cluster, *epoch, *term, *position, *sole), signature)
            }
        }
    }
}

#[cfg(test)]
mod tests;
