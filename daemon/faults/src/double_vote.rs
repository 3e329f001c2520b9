//! Votes for every block that it is shown, at once and with both ballots: whatever it voted for before, whatever the
//! block says, and without a Prepare certificate for the Commit vote. It is what an equivocating leader needs as an ally.
//!
//! Defence: a certificate takes more correct members' votes than two conflicting blocks can both get.

use bftd_core::{
    ballot::BallotKind,
    ids::MemberId,
    message::{Message, Route},
};

use crate::{Adversary, Liar, Parcel};

/// See the module's header.
pub(crate) struct DoubleVote {
    liar: Liar,
}

impl DoubleVote {
    pub fn new(liar: Liar) -> Self {
        Self { liar }
    }
}

impl Adversary for DoubleVote {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        match message {
            // A proof against the ally is of no use to it, nor is another's term.
            Message::Evidence(_) | Message::Suspect(_) => Vec::new(),
            other => vec![Parcel::now(to, other.clone())],
        }
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        let Message::Append(append) = message else { return Vec::new() };
        let block = append.block.reference();
        let leader = self.liar.members.leader(block.term);
        let receivers: Vec<_> = match append.votes_to {
            Route::Leader => vec![leader],
            Route::Everyone => self.liar.others().collect(),
            Route::Member(node) => vec![leader, node],
        };
        let members = u8::try_from(self.liar.members.n()).unwrap_or(u8::MAX);
        [BallotKind::Prepare, BallotKind::Commit, BallotKind::Sole { members }]
            .map(|kind| self.liar.vote(self.liar.ballot(kind, block)))
            .iter()
            .flat_map(|vote| receivers.iter().map(|to| Parcel::now(*to, Message::Vote(vote.clone()))))
            .collect()
    }
}
