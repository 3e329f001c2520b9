//! Is up for a moment and gone for a moment, again and again, in the middle of whatever it was doing.
//!
//! Defence: as against a silent member; what it did say before counts, as it has promised it.

use bftd_core::{
    ids::{MemberId, Now},
    message::Message,
};

use crate::{Adversary, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct CrashLoop {
    chance: Chance,
    /// How many messages it still sends, and how many ticks it is gone for afterwards.
    left: u64,
    gone: u64,
    longest: u64,
}

impl CrashLoop {
    pub fn new(mut chance: Chance) -> Self {
        let longest = 2 + chance.below(20);
        Self { left: 10, gone: 0, longest, chance }
    }
}

impl Adversary for CrashLoop {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        if self.left == 0 {
            return Vec::new();
        }
        self.left -= 1;
        vec![Parcel::now(to, message.clone())]
    }

    fn hears(&mut self, _from: MemberId, _message: &Message) -> bool {
        self.left > 0
    }

    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        if self.left == 0 {
            self.gone = self.gone.saturating_sub(1);
            if self.gone == 0 {
                self.left = 1 + self.chance.below(60);
                self.gone = 1 + self.chance.below(self.longest);
            }
        }
        Vec::new()
    }
}
