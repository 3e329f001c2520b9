//! A leader that is as slow as it can be without losing its term.
//!
//! A block needs three messages of its leader until all know that it is committed: the block and two certificates. Each is
//! held back for nearly a third of the time-out.
//!
//! Defence: none needed for safety; the time-out bounds how slow it can be (Aardvark, NSDI'09, §4.3).

use bftd_core::{ids::MemberId, message::Message};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct Slow {
    delay_us: u64,
}

impl Slow {
    pub fn new(liar: &Liar, mut chance: Chance) -> Self {
        Self { delay_us: liar.timing.timeout_us * (25 + chance.below(10)) / 100 }
    }
}

impl Adversary for Slow {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let parcel = Parcel::now(to, message.clone());
        match message {
            Message::Append(_) | Message::Certificate(_) | Message::Heartbeat(_) | Message::NewTerm(_) => {
                vec![parcel.after(self.delay_us)]
            }
            _ => vec![parcel],
        }
    }
}
