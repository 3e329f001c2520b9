//! As the leader of a new term, starts it at the epoch's root, whatever positions the term votes report.

use std::sync::Arc;

use bftd_core::{
    ids::MemberId,
    message::{Message, NewTerm},
};

use crate::{Adversary, Liar};

/// See the module's header.
pub struct LowNewTerm {
    liar: Liar,
}

impl LowNewTerm {
    /// A liar of this kind.
    pub fn new(liar: Liar) -> Self {
        Self { liar }
    }
}

impl Adversary for LowNewTerm {
    fn outgoing(&mut self, _to: MemberId, message: &Message) -> Vec<Message> {
        match message {
            Message::NewTerm(new_term) if self.liar.members.leader(new_term.term) == self.liar.me => {
                let low = NewTerm { position: None, ..NewTerm::clone(new_term) };
                vec![Message::NewTerm(Arc::new(low))]
            }
            other => vec![other.clone()],
        }
    }

    fn incoming(&mut self, _from: MemberId, _message: &Message) -> Vec<(MemberId, Message)> {
        Vec::new()
    }
}
