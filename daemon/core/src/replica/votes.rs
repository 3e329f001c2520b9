//! The vote keeper: turns votes into certificates, so that nothing else counts.
//!
//! One vote a member, index and kind is kept, the first; a member that votes twice gains nothing. Indices are
//! bounded by the window, members by the membership, so memory is bounded whatever is sent.

use std::collections::BTreeMap;

use crate::{
    ballot::{BallotKind, Vote},
    certificate::Certificate,
    ids::{Index, MemberId},
    membership::Membership,
};

/// The votes of one term.
#[derive(Clone, Debug, Default)]
pub(super) struct VoteKeeper {
    tallies: BTreeMap<(Index, BallotKind), Tally>,
}

#[derive(Clone, Debug, Default)]
struct Tally {
    votes: BTreeMap<MemberId, Vote>,
    /// Whether there was a certificate, and whether one that makes the block final.
    certified: bool,
    is_final: bool,
}

impl VoteKeeper {
    /// Adds a vote of the current term. Answers with a certificate when this vote completes one: for a sole block a quorum's
    /// first, and then that of all members.
    pub fn add(&mut self, vote: Vote, members: &Membership) -> Option<Certificate> {
        let ballot = vote.ballot;
        let tally = self.tallies.entry((ballot.block.index, ballot.kind)).or_default();
        tally.votes.entry(vote.signer).or_insert(vote);
        if tally.is_final || tally.certified && tally.votes.len() < members.n() {
            return None;
        }
        let certificate = Certificate::gather(members, ballot, tally.votes.values())?;
        let is_news = !tally.certified || certificate.is_commit();
        tally.certified = true;
        tally.is_final = certificate.is_commit();
        is_news.then_some(certificate)
    }

    /// Whether a member has voted on an index.
    pub fn has_voted(&self, index: Index, kind: BallotKind, member: MemberId) -> bool {
        self.tallies.get(&(index, kind)).is_some_and(|tally| tally.votes.contains_key(&member))
    }

    /// Forgets votes on committed indices.
    pub fn forget_through(&mut self, committed: Index) {
        self.tallies.retain(|(index, _), _| *index > committed);
    }

    /// How many votes are kept.
    pub fn len(&self) -> usize {
        self.tallies.values().map(|tally| tally.votes.len()).sum()
    }
}
