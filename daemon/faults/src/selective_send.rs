//! Speaks to some members only: to exactly so many that a quorum can do without the rest, and after a while to others.
//!
//! Defence: who hears nothing suspects, and is answered with the newest Commit certificate; what it lacks it fetches from
//! anybody.

use bftd_core::{
    ids::{MemberId, Now},
    message::Message,
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct SelectiveSend {
    liar: Liar,
    chance: Chance,
    left_out: Vec<MemberId>,
    /// One in so many ticks it chooses anew; 0: never.
    restless: u64,
}

impl SelectiveSend {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let restless = if chance.one_in(2) { 0 } else { 1 + chance.below(50) };
        let mut this = Self { liar, chance, left_out: Vec::new(), restless };
        this.choose();
        this
    }

    fn choose(&mut self) {
        let mut others: Vec<_> = self.liar.others().collect();
        let spared = self.liar.members.n() - self.liar.members.quorum();
        let count = if self.chance.one_in(4) { spared + 1 } else { spared };
        self.left_out.clear();
        for _ in 0..count.min(others.len()) {
            let at = self.chance.below(others.len() as u64) as usize;
            self.left_out.push(others.swap_remove(at));
        }
    }
}

impl Adversary for SelectiveSend {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        if self.left_out.contains(&to) { Vec::new() } else { vec![Parcel::now(to, message.clone())] }
    }

    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        if self.restless > 0 && self.chance.one_in(self.restless) {
            self.choose();
        }
        Vec::new()
    }
}
