//! A bad connection: delays all that it sends, or drops a part of it.
//!
//! Defence: everything that must arrive is sent again until it has had its effect.

use bftd_core::{ids::MemberId, message::Message};

use crate::{Adversary, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct Lossy {
    delay_us: u64,
    drop_percent: u8,
    chance: Chance,
}

impl Lossy {
    pub fn new(delay_us: u64, drop_percent: u8, chance: Chance) -> Self {
        Self { delay_us, drop_percent, chance }
    }
}

impl Adversary for Lossy {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        if self.chance.percent(self.drop_percent) {
            return Vec::new();
        }
        vec![Parcel::now(to, message.clone()).after(self.delay_us)]
    }
}
