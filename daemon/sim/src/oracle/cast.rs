//! Who plays: members, arithmetic and signatures, by the oracle's own rules (DESIGN.md §2, §2.1).
//!
//! Nothing here asks the production code what a quorum, a leader or a rank is.

use std::{collections::BTreeSet, sync::Arc};

use bftd_core::{
    ballot::BallotKind,
    block::BlockRef,
    crypto::{CheckSignature, ClusterId, PublicKey, Signature},
    ids::{Epoch, MemberId, Term},
    membership::Membership,
    protocol::Protocol,
};

use crate::event::Violation;

/// A place in the order of positions: epoch, then term, then index.
pub type Place = (u64, u64, u64);

/// The members, and which of them are correct.
#[derive(Clone)]
pub struct Cast {
    /// The cluster.
    pub cluster: ClusterId,
    /// The one epoch of a run.
    pub epoch: Epoch,
    /// Where the chain starts.
    pub root: BlockRef,
    keys: Vec<(MemberId, PublicKey)>,
    correct: BTreeSet<MemberId>,
    check: Arc<dyn CheckSignature>,
    tolerance: Tolerance,
}

/// What the members' protocol withstands, and with it how it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tolerance {
    /// Lies: everything is signed, and there are two rounds of votes.
    Lies,
    /// Crashes: nothing is signed, a block that was accepted is a position, and votes on it are Commit votes.
    Crashes,
}

impl Cast {
    /// The members of a run. Only their list is taken from `members`.
    pub fn new(members: &Membership, check: Arc<dyn CheckSignature>, correct: BTreeSet<MemberId>) -> Self {
        let mut keys: Vec<_> = members.members().iter().map(|member| (member.id, member.key)).collect();
        keys.sort_unstable_by_key(|(id, _)| *id);
        Self {
            cluster: members.cluster(),
            epoch: members.epoch(),
            root: members.root(),
            keys,
            correct,
            check,
            tolerance: match members.protocol() {
                Protocol::BftRaft | Protocol::Pbft | Protocol::Ccro => Tolerance::Lies,
                Protocol::Raft => Tolerance::Crashes,
            },
        }
    }

    /// How many members may lie: f = ⌊(n−1)/3⌋. Or how many may crash: f = ⌊(n−1)/2⌋.
    pub fn f(&self) -> usize {
        match self.tolerance {
            Tolerance::Lies => (self.keys.len() - 1) / 3,
            Tolerance::Crashes => (self.keys.len() - 1) / 2,
        }
    }

    /// A quorum: q = ⌊(n+f)/2⌋ + 1. Or a majority.
    pub fn q(&self) -> usize {
        match self.tolerance {
            Tolerance::Lies => (self.keys.len() + self.f()) / 2 + 1,
            Tolerance::Crashes => self.keys.len() / 2 + 1,
        }
    }

    /// Whether there is a round of Prepare votes.
    pub fn prepares(&self) -> bool {
        self.tolerance == Tolerance::Lies
    }

    /// How many members there are.
    pub fn n(&self) -> usize {
        self.keys.len()
    }

    /// A vote for a sole block names the number of members; other votes don't.
    pub fn counts_all(&self, kind: BallotKind) -> bool {
        match kind {
            BallotKind::Sole { members } => self.prepares() && usize::from(members) == self.n(),
            BallotKind::Prepare | BallotKind::Commit => true,
        }
    }

    /// Whether so many distinct members' votes of a kind make a block final: q Commit votes, or all votes for a sole block.
    pub fn is_final(&self, kind: BallotKind, votes: usize) -> bool {
        match kind {
            BallotKind::Prepare => false,
            BallotKind::Commit => votes >= self.q(),
            BallotKind::Sole { .. } => votes == self.n(),
        }
    }

    /// The leader of a term: members take turns in the order of their ids.
    pub fn leads(&self, term: Term, id: MemberId) -> bool {
        let turn = term.0 % self.keys.len() as u64;
        self.keys.iter().zip(0..).any(|((member, _), at)| *member == id && at == turn)
    }

    /// All members' ids.
    pub fn keys(&self) -> impl Iterator<Item = MemberId> + '_ {
        self.keys.iter().map(|(id, _)| *id)
    }

    /// Whether a member follows the protocol.
    pub fn is_correct(&self, id: MemberId) -> bool {
        self.correct.contains(&id)
    }

    /// Those who follow the protocol.
    pub fn correct(&self) -> &BTreeSet<MemberId> {
        &self.correct
    }

    /// Whether nobody lies.
    pub fn all_correct(&self) -> bool {
        self.correct.len() == self.keys.len()
    }

    /// Whether a member signed some bytes.
    pub fn signed(&self, id: MemberId, bytes: &[u8], signature: &Signature) -> bool {
        if self.tolerance == Tolerance::Crashes {
            return signature.0 == [0; 64] && self.keys().any(|member| member == id);
        }
        self.keys.iter().any(|(member, key)| *member == id && self.check.check(key, bytes, signature))
    }

    /// A block's place.
    pub fn place(&self, block: BlockRef) -> Place {
        (self.epoch.0, block.term.0, block.index.0)
    }

    /// Whether signers are a quorum of distinct members.
    pub fn is_quorum(&self, signers: impl Iterator<Item = MemberId>) -> bool {
        let mut distinct = BTreeSet::new();
        for signer in signers {
            if !self.keys.iter().any(|(id, _)| *id == signer) || !distinct.insert(signer) {
                return false;
            }
        }
        distinct.len() >= self.q()
    }
}

/// An error unless something holds.
pub fn require(holds: bool, check: &'static str, detail: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { check, detail: detail() }) }
}
