//! Leaves one origin out: as the leader it never proposes that member's batches, and else never passes them on.
//!
//! Defence: a late batch goes to every member, who all expect it of the leader from then on (DESIGN §2.3).

use bftd_core::{ids::MemberId, message::Message};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct Censor {
    victim: MemberId,
}

impl Censor {
    pub fn new(liar: &Liar, mut chance: Chance) -> Self {
        Self { victim: chance.other(liar) }
    }

    fn is_censored(&self, message: &Message) -> bool {
        matches!(message, Message::Batch(batch) if batch.origin == self.victim)
    }
}

impl Adversary for Censor {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        if self.is_censored(message) { Vec::new() } else { vec![Parcel::now(to, message.clone())] }
    }

    fn hears(&mut self, _from: MemberId, message: &Message) -> bool {
        !self.is_censored(message)
    }
}
