//! As an origin, signs batches that can never be committed, many for every place, and one that can, which it sends to
//! everybody but the leader.
//!
//! Defence: a leader has room for what comes next on the chain, whatever else an origin has sent it, and nobody expects more of
//! it than that: else one lying origin could topple every leader (DESIGN §2.3).

use std::sync::Arc;

use bftd_core::{
    block::Batch,
    ids::{BatchNumber, Incarnation, Now, Term},
    kv::Operation,
    message::Message,
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// How many useless batches a leader gets before a good one.
const JUNK: u64 = 20;

/// See the module's header.
pub(crate) struct JunkBatches {
    liar: Liar,
    chance: Chance,
    incarnation: u64,
    near: Term,
    /// One in so many ticks it comes up with a new batch that is good.
    patience: u64,
}

impl JunkBatches {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let patience = 2 + chance.below(60);
        Self { liar, chance, incarnation: 100, near: Term(0), patience }
    }

    fn batch(&mut self, incarnation: u64, number: u64) -> Message {
        let value = self.chance.below(1000).to_string().into();
        let put = Operation::put("key0".into(), value);
        let Liar { me, members, signer, .. } = &self.liar;
        let (incarnation, number) = (Incarnation(incarnation), BatchNumber(number));
        let requests = vec![put.encode()];
        let batch = Batch::sign(members.cluster(), *me, incarnation, number, requests, &**signer);
        Message::Batch(Arc::new(batch))
    }
}

impl Adversary for JunkBatches {
    fn incoming(&mut self, _from: bftd_core::ids::MemberId, message: &Message) -> Vec<Parcel> {
        if let Message::Append(append) = message {
            self.near = self.near.max(append.block.header().term);
        }
        Vec::new()
    }

    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        if !self.chance.one_in(4) {
            return Vec::new();
        }
        // A run's batches from the second on: they wait for a first that never comes.
        if self.chance.one_in(self.patience) {
            self.incarnation += 2;
        }
        let junk = self.incarnation - 1;
        let leaders = [self.near, self.near.next()].map(|term| self.liar.members.leader(term));
        let mut parcels = Vec::new();
        for number in 0..JUNK {
            let batch = self.batch(junk, 2 + number);
            parcels.extend(leaders.map(|leader| Parcel::now(leader, batch.clone())));
        }
        let good = self.batch(self.incarnation, 1);
        parcels.extend(self.liar.to_others(&good).into_iter().map(|parcel| parcel.after(3_000)));
        parcels
    }
}
