//! As the communication node, shows the certificates to the leader alone, to all but the leader, or to some.
//!
//! Defence: who is left out falls back, which all see; more than f that fall back cost the node its trust (DESIGN §2.4).

use bftd_core::{ids::MemberId, message::Message};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct SelectiveCollector {
    liar: Liar,
    served: Served,
}

enum Served {
    Leader,
    AllButLeader,
    These(Vec<MemberId>),
}

impl SelectiveCollector {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let served = match chance.below(4) {
            0 | 1 => Served::Leader,
            2 => Served::AllButLeader,
            _ => Served::These(chance.some(&liar)),
        };
        Self { liar, served }
    }
}

impl Adversary for SelectiveCollector {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let leads = match message {
            Message::Certificate(it) => self.liar.members.leader(it.block().term) == to,
            _ => false,
        };
        let is_served = match &self.served {
            Served::Leader => leads,
            Served::AllButLeader => !leads,
            Served::These(these) => these.contains(&to),
        };
        let is_kept = self.liar.collects(message) && !is_served;
        if is_kept { Vec::new() } else { vec![Parcel::now(to, message.clone())] }
    }
}
