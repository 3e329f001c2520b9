//! As the leader, tells one member that votes come to itself, and all others that they go to that member: it gathers them, and has no
//! reason to broadcast what it gathers, so that everybody falls back and it looks like one that serves nobody.
//!
//! Defence: a member's trust is in whom it has named itself. Voters fall back as with a silent node, and a leader with which that
//! goes on is slower than was usual (DESIGN §2.4).

use bftd_core::{
    ids::MemberId,
    message::{Message, Route},
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct SplitRoutes {
    liar: Liar,
    victim: MemberId,
}

impl SplitRoutes {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        Self { victim: chance.other(&liar), liar }
    }
}

impl Adversary for SplitRoutes {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let mut message = message.clone();
        if let Message::Append(append) = &mut message
            && self.liar.leads(append.block.header().term)
        {
            append.votes_to = if to == self.victim { Route::Leader } else { Route::Member(self.victim) };
        }
        vec![Parcel::now(to, message)]
    }
}
