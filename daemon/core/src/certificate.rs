//! Certificates: one statement, signed by a quorum.
//!
//! A certificate in memory is either checked ([`crate::verify`]) or was gathered here from checked votes; the wire
//! form of both is the same, so it can be passed on to whoever doubts.

use serde::{Deserialize, Serialize};

use crate::{
    ballot::{Ballot, BallotKind, Rank, Suspect, Vote},
    block::BlockRef,
    crypto::Signature,
    ids::{Epoch, MemberId, Term},
    membership::Membership,
};

/// A quorum's votes on one ballot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// What they voted for.
    pub ballot: Ballot,
    /// The voters and their signatures, in the order of their ids.
    pub signatures: Vec<(MemberId, Signature)>,
}

impl Certificate {
    /// The certificate that `votes` make for `ballot`, if they are a quorum. Votes on other ballots are passed
    /// over.
    pub fn gather<'a>(
        members: &Membership,
        ballot: Ballot,
        votes: impl IntoIterator<Item = &'a Vote>,
    ) -> Option<Self> {
        let mut signatures: Vec<_> = votes
            .into_iter()
            .filter(|vote| vote.ballot == ballot)
            .map(|vote| (vote.signer, vote.signature))
            .collect();
        signatures.sort_unstable_by_key(|(signer, _)| *signer);
        members.is_quorum(signatures.iter().map(|(signer, _)| *signer)).then_some(Self { ballot, signatures })
    }

    /// What stands in the place of a Prepare certificate where a protocol has none: a block was accepted. Nobody signs that.
    pub fn of_acceptance(epoch: Epoch, block: BlockRef) -> Self {
        Self { ballot: Ballot { kind: BallotKind::Prepare, epoch, block }, signatures: Vec::new() }
    }

    /// The certified block.
    pub fn block(&self) -> BlockRef {
        self.ballot.block
    }

    /// The place of the block in the order of positions.
    pub fn rank(&self) -> Rank {
        self.ballot.rank()
    }

    /// Whether it makes its block final: a quorum's Commit votes do, and all members' votes for a sole block.
    pub fn is_commit(&self) -> bool {
        match self.ballot.kind {
            BallotKind::Prepare => false,
            BallotKind::Commit => true,
            BallotKind::Sole { members } => self.signatures.len() == usize::from(members),
        }
    }
}

/// A quorum's wish to leave a term: whoever sees it moves to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspectCertificate {
    /// The epoch.
    pub epoch: Epoch,
    /// The term to leave.
    pub term: Term,
    /// Who wishes to, and their signatures, in the order of their ids.
    pub signatures: Vec<(MemberId, Signature)>,
}

impl SuspectCertificate {
    /// The certificate that `suspects` make for a term, if they are a quorum.
    pub fn gather<'a>(
        members: &Membership,
        term: Term,
        suspects: impl IntoIterator<Item = &'a Suspect>,
    ) -> Option<Self> {
        let epoch = members.epoch();
        let mut signatures: Vec<_> = suspects
            .into_iter()
            .filter(|suspect| suspect.epoch == epoch && suspect.term == term)
            .map(|suspect| (suspect.signer, suspect.signature))
            .collect();
        signatures.sort_unstable_by_key(|(signer, _)| *signer);
        members.is_quorum(signatures.iter().map(|(signer, _)| *signer)).then_some(Self {
            epoch,
            term,
            signatures,
        })
    }
}
