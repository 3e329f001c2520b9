//! As an origin, has the cluster go over to another protocol again and again, in batches of its own that are in order.
//!
//! Defence: a leader hands its term over for that only when it has led it for some time-outs (DESIGN §2.4).

use std::sync::Arc;

use bftd_core::{
    block::Batch,
    ids::{BatchNumber, Incarnation, Now},
    kv::Operation,
    message::Message,
    protocol::Protocol,
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// Each batch is the first of an incarnation of its own, so far above the last that the honest replica, which goes above what it sees,
/// stays below the next.
const STEP: u64 = 1000;

/// See the module's header.
pub(crate) struct FlipProtocol {
    liar: Liar,
    chance: Chance,
    flips: u64,
    /// One in so many ticks.
    patience: u64,
}

impl FlipProtocol {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let patience = 2 + chance.below(10);
        Self { liar, chance, flips: 0, patience }
    }

    fn batch(&self, protocol: Protocol) -> Message {
        let requests = vec![Operation::SetProtocol { protocol }.encode()];
        let Liar { me, members, signer, .. } = &self.liar;
        let incarnation = Incarnation(STEP * self.flips);
        let batch = Batch::sign(members.cluster(), *me, incarnation, BatchNumber(1), requests, &**signer);
        Message::Batch(Arc::new(batch))
    }
}

impl Adversary for FlipProtocol {
    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        if !self.chance.one_in(self.patience) {
            return Vec::new();
        }
        self.flips += 1;
        let rows: Vec<_> = Protocol::switchable().collect();
        let at = usize::try_from(self.flips).unwrap_or(usize::MAX) % rows.len().max(1);
        rows.get(at).map_or_else(Vec::new, |protocol| self.liar.to_others(&self.batch(*protocol)))
    }
}
