//! As the leader, shows different members different blocks.
//!
//! One part of the members gets the honest replica's blocks, the other part forged ones: without their batches, or with
//! another time, on a chain of their own that goes on from block to block. Each story is validly signed. The
//! votes for forged blocks are gathered too, the liar's own is added, and where that makes a certificate it is shown to
//! some or to all.
//!
//! Defence: two quorums share a correct member, who votes for one block of an index; who sees both proposals proves it
//! (Castro & Liskov, OSDI'99, §4.2).

use std::sync::Arc;

use bftd_core::{
    ids::MemberId,
    message::{Append, Message},
};

use crate::{Adversary, Liar, Parcel, chance::Chance, forged_chain::ForgedChain};

/// See the module's header.
pub(crate) struct Equivocate {
    liar: Liar,
    /// Who gets the forged story.
    deceived: Vec<MemberId>,
    /// Who is shown certificates of forged blocks.
    shown: Vec<MemberId>,
    /// Whether it lets the deceived see the true story, too, and how much later. Microseconds.
    true_after_us: Option<u64>,
    chain: ForgedChain,
}

impl Equivocate {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let (deceived, shown) = (chance.some(&liar), chance.some(&liar));
        let true_after_us = chance.one_in(4).then_some(3_000);
        Self { liar, deceived, shown, true_after_us, chain: ForgedChain::default() }
    }

    /// The first half of the others is deceived, sees the forged certificates, and the true story a little later: enough for
    /// an ally to vote for both.
    pub fn dividing(liar: Liar) -> Self {
        let deceived: Vec<_> = liar.others().take(liar.members.n() / 2).collect();
        Self {
            shown: deceived.clone(),
            deceived,
            true_after_us: Some(30_000),
            liar,
            chain: ForgedChain::default(),
        }
    }

    /// The block that the deceived get in the place of an honest one.
    fn forge(&mut self, append: &Append) -> Append {
        let is_empty = append.block.batches().is_empty();
        let forged = self.chain.in_place_of(&append.block, |header| {
            header.time_ms += u64::from(is_empty);
            Some(Vec::new())
        });
        let block = forged.unwrap_or_else(|| Arc::clone(&append.block));
        self.liar.append(block, append.certificates.clone())
    }
}

impl Adversary for Equivocate {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        match message {
            Message::Append(append) if self.deceived.contains(&to) => {
                let forged = Parcel::now(to, Message::Append(self.forge(append)));
                let honest = self.true_after_us.map(|us| Parcel::now(to, message.clone()).after(us));
                [Some(forged), honest].into_iter().flatten().collect()
            }
            // A liar does not accuse itself.
            Message::Evidence(_) => Vec::new(),
            other => vec![Parcel::now(to, other.clone())],
        }
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        let Message::Vote(vote) = message else { return Vec::new() };
        let Some(certificate) = self.chain.gather(&self.liar, vote) else { return Vec::new() };
        let message = Message::Certificate(Arc::new(certificate));
        self.shown.iter().map(|to| Parcel::now(*to, message.clone())).collect()
    }
}
