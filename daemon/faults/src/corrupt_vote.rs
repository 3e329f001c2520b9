//! Votes for blocks that nobody proposed: the true block's digest falsified, validly signed.
//!
//! Defence: a vote counts for its own ballot, so the true block's quorum comes from the others.

use bftd_core::{ids::MemberId, message::Message};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct CorruptVote {
    liar: Liar,
    chance: Chance,
}

impl CorruptVote {
    pub fn new(liar: Liar, chance: Chance) -> Self {
        Self { liar, chance }
    }
}

impl Adversary for CorruptVote {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let (Message::Vote(vote) | Message::LateVote(vote)) = message else {
            return vec![Parcel::now(to, message.clone())];
        };
        let mut ballot = vote.ballot;
        let at = self.chance.below(32) as usize;
        ballot.block.digest.0[at] ^= 1 << self.chance.below(8);
        let vote = self.liar.vote(ballot);
        let is_late = matches!(message, Message::LateVote(_));
        vec![Parcel::now(to, if is_late { Message::LateVote(vote) } else { Message::Vote(vote) })]
    }
}
