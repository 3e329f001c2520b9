//! As the leader of a new term, starts it at the epoch's root, whatever positions the term votes report.
//!
//! Defence: a NewTerm carries the signed TermVotes that it rests on, and everybody takes the highest among them.

use std::sync::Arc;

use bftd_core::{
    ids::MemberId,
    message::{Message, NewTerm},
};

use crate::{Adversary, Liar, Parcel};

/// See the module's header.
pub(crate) struct LowNewTerm {
    liar: Liar,
}

impl LowNewTerm {
    pub fn new(liar: Liar) -> Self {
        Self { liar }
    }
}

impl Adversary for LowNewTerm {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        match message {
            Message::NewTerm(new_term) if self.liar.leads(new_term.term) => {
                let low = NewTerm { position: None, ..NewTerm::clone(new_term) };
                vec![Parcel::now(to, Message::NewTerm(Arc::new(low)))]
            }
            other => vec![Parcel::now(to, other.clone())],
        }
    }
}
