//! Speaks in others' names: what it says itself, with another member as its signer, and what others have really said, as if it
//! were its own.
//!
//! Defence: whoever is named must have signed, and what is signed counts for its signer, whoever brings it (sawtooth-pbft
//! #115).

use std::sync::Arc;

use bftd_core::{
    ids::{BatchNumber, MemberId},
    message::Message,
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct Impersonate {
    liar: Liar,
    chance: Chance,
}

impl Impersonate {
    pub fn new(liar: Liar, chance: Chance) -> Self {
        Self { liar, chance }
    }

    /// The message in another's name, with the liar's signature; none where it names nobody.
    fn renamed(&self, message: &Message, name: MemberId) -> Option<Message> {
        let mut message = message.clone();
        match &mut message {
            Message::Vote(vote) | Message::LateVote(vote) => vote.signer = name,
            Message::Suspect(suspect) => suspect.signer = name,
            Message::EnterTerm(enter) => Arc::make_mut(enter).vote.signer = name,
            Message::Batch(batch) => {
                let batch = Arc::make_mut(batch);
                batch.origin = name;
                batch.number = BatchNumber(1 + batch.number.0 % 3);
                batch.signature = self.liar.signer.sign(&batch.signed_bytes(self.liar.members.cluster()));
            }
            // A block of another's term, as if that leader had proposed it.
            Message::Append(append) => {
                let mut header = append.block.header().clone();
                header.term = header.term.next();
                let block = bftd_core::block::Block::new(header, append.block.batches().to_vec());
                *append = self.liar.append(Arc::new(block), append.certificates.clone());
            }
            _ => return None,
        }
        Some(message)
    }
}

impl Adversary for Impersonate {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let name = self.chance.other(&self.liar);
        let false_one = self.renamed(message, name).map(|it| Parcel::now(to, it));
        false_one.into_iter().chain([Parcel::now(to, message.clone())]).collect()
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        if !self.chance.one_in(3) {
            return Vec::new();
        }
        let to = self.chance.other(&self.liar);
        let name = self.chance.other(&self.liar);
        let renamed = self.renamed(message, name).map(|it| Parcel::now(to, it));
        [Parcel::now(to, message.clone())].into_iter().chain(renamed).collect()
    }
}
