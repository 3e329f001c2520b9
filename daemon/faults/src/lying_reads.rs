//! Answers questions for its position with lies: the epoch's root, one that nobody has certified, or an old one.
//!
//! Defence: a reader takes the highest position among a quorum's answers, and only those that come with a valid
//! certificate.

use std::sync::Arc;

use bftd_core::{
    certificate::Certificate,
    ids::MemberId,
    message::{Message, ReadAnswer},
};

use crate::{Adversary, Liar, Parcel, chance::Chance, lying_height};

/// See the module's header.
pub(crate) struct LyingReads {
    liar: Liar,
    lie: Lie,
    oldest: Option<Arc<Certificate>>,
}

enum Lie {
    Nothing,
    FarAhead,
    Old,
}

impl LyingReads {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let lie = match chance.below(3) {
            0 => Lie::Nothing,
            1 => Lie::FarAhead,
            _ => Lie::Old,
        };
        Self { liar, lie, oldest: None }
    }
}

impl Adversary for LyingReads {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let Message::ReadAnswer(answer) = message else { return vec![Parcel::now(to, message.clone())] };
        if self.oldest.is_none() {
            self.oldest.clone_from(&answer.position);
        }
        let (position, sole) = match self.lie {
            Lie::Nothing => (None, None),
            Lie::FarAhead => {
                let far_ahead = lying_height::far_ahead(&self.liar);
                let sole = Some(far_ahead.block());
                (Some(Arc::new(far_ahead)), sole)
            }
            Lie::Old => (self.oldest.clone(), None),
        };
        vec![Parcel::now(to, Message::ReadAnswer(ReadAnswer { position, sole, ..answer.clone() }))]
    }
}
