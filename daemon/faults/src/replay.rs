//! Sends again what was sent long ago: its own messages and, under its own name, everybody else's.
//!
//! Defence: a message says what it is about (term, index, run, round), so an old one has had its effect already; what is
//! signed counts for its signer only.

use bftd_core::{
    ids::{MemberId, Now},
    message::Message,
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// How many messages are kept: a sample of all.
const KEPT: u64 = 64;

/// See the module's header.
pub(crate) struct Replay {
    liar: Liar,
    chance: Chance,
    kept: Vec<Message>,
    seen: u64,
    /// How many old messages leave at a tick.
    burst: u64,
}

impl Replay {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let burst = 1 + chance.below(4);
        Self { liar, chance, kept: Vec::new(), seen: 0, burst }
    }

    /// Keeps a sample in which every message is as likely as every other.
    fn keep(&mut self, message: &Message) {
        self.seen += 1;
        if self.seen <= KEPT {
            self.kept.push(message.clone());
        } else if let Some(kept) = self.kept.get_mut(self.chance.below(self.seen) as usize) {
            *kept = message.clone();
        }
    }
}

impl Adversary for Replay {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        self.keep(message);
        vec![Parcel::now(to, message.clone())]
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        self.keep(message);
        // What comes along with others is replayed on its own, too.
        let certificates = match message {
            Message::Append(append) => append.certificates.clone(),
            Message::Heartbeat(heartbeat) => heartbeat.certificates.clone(),
            _ => return Vec::new(),
        };
        if let Some(certificate) = certificates.prepared {
            self.keep(&Message::Certificate(certificate));
        }
        Vec::new()
    }

    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        let mut parcels = Vec::new();
        for _ in 0..self.burst {
            let at = self.chance.below(self.kept.len() as u64) as usize;
            let Some(old) = self.kept.get(at).cloned() else { continue };
            if self.chance.one_in(4) {
                parcels.extend(self.liar.to_others(&old));
            } else {
                parcels.push(Parcel::now(self.chance.other(&self.liar), old));
            }
        }
        parcels
    }
}
