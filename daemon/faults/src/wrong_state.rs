//! As the leader, certifies a state that nobody has: its blocks say that another digest was reached.
//!
//! Defence: who has executed the index compares before it votes, and who has not waits (DESIGN §2.1).

use std::sync::Arc;

use bftd_core::{ids::MemberId, message::Message};

use crate::{Adversary, Liar, Parcel, chance::Chance, forged_chain::ForgedChain};

/// See the module's header.
pub(crate) struct WrongState {
    liar: Liar,
    /// Who is told of the wrong state; the others get the true one.
    deceived: Vec<MemberId>,
    chain: ForgedChain,
}

impl WrongState {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let deceived = if chance.one_in(2) { liar.others().collect() } else { chance.some(&liar) };
        Self { liar, deceived, chain: ForgedChain::default() }
    }
}

impl Adversary for WrongState {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let honest = || vec![Parcel::now(to, message.clone())];
        let Message::Append(append) = message else { return honest() };
        if !self.deceived.contains(&to) {
            return honest();
        }
        let forged = self.chain.in_place_of(&append.block, |header| {
            header.executed.state.0[0] ^= 1;
            Some(append.block.batches().to_vec())
        });
        let block = forged.unwrap_or_else(|| Arc::clone(&append.block));
        vec![Parcel::now(to, Message::Append(self.liar.append(block, append.certificates.clone())))]
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        let (Message::Vote(vote) | Message::LateVote(vote)) = message else { return Vec::new() };
        let certificate = self.chain.gather(&self.liar, vote);
        certificate.map_or_else(Vec::new, |it| self.liar.to_others(&Message::Certificate(Arc::new(it))))
    }
}
