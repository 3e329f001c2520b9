//! Says that it was left out as soon as it is asked: each vote goes to everybody as a late one when the block comes, before anybody
//! could have served it.
//!
//! Defence: up to f that fall back may be liars, so they cost a communication node little of its trust, and never as much as one
//! failure does (DESIGN §2.4).

use bftd_core::{
    ballot::BallotKind,
    ids::MemberId,
    message::{Append, Message},
};

use crate::{Adversary, Liar, Parcel};

/// See the module's header.
pub(crate) struct CryLate {
    liar: Liar,
}

impl CryLate {
    pub fn new(liar: Liar) -> Self {
        Self { liar }
    }

    /// The vote that its honest replica is about to cast.
    fn kind_of(&self, append: &Append) -> BallotKind {
        match u8::try_from(self.liar.members.n()) {
            Ok(members) if append.block.header().sole => BallotKind::Sole { members },
            _ => BallotKind::Prepare,
        }
    }
}

impl Adversary for CryLate {
    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        let Message::Append(append) = message else { return Vec::new() };
        let ballot = self.liar.ballot(self.kind_of(append), append.block.reference());
        self.liar.to_others(&Message::LateVote(self.liar.vote(ballot)))
    }
}
