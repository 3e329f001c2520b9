//! Votes for every block that it is shown, at once and with both ballots: whatever it voted for before, whatever the
//! block says, and without a Prepare certificate for the Commit vote. It is what an equivocating leader needs as an ally.

use bftd_core::{
    ballot::{Ballot, BallotKind, Vote},
    ids::MemberId,
    message::Message,
};

use crate::{Adversary, Liar};

/// See the module's header.
pub struct DoubleVoter {
    liar: Liar,
}

impl DoubleVoter {
    /// A liar of this kind.
    pub fn new(liar: Liar) -> Self {
        Self { liar }
    }
}

impl Adversary for DoubleVoter {
    fn outgoing(&mut self, _to: MemberId, message: &Message) -> Vec<Message> {
        match message {
            // A proof against the ally is of no use to it.
            Message::Equivocation(_) => Vec::new(),
            other => vec![other.clone()],
        }
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<(MemberId, Message)> {
        let Message::Append(append) = message else { return Vec::new() };
        let block = append.block.reference();
        let Liar { me, members, signer } = &self.liar;
        let leader = members.leader(block.term);
        [BallotKind::Prepare, BallotKind::Commit]
            .into_iter()
            .map(|kind| Ballot { kind, epoch: members.epoch(), block })
            .map(|ballot| (leader, Message::Vote(Vote::sign(members.cluster(), ballot, *me, &**signer))))
            .collect()
    }
}
