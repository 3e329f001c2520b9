//! As the communication node, gathers the votes, uses the certificates, and shows them to nobody.
//!
//! Defence: a voter whose certificate does not come in time sends its vote to everybody, and the leader names another (DESIGN §2.4).

use bftd_core::{ids::MemberId, message::Message};

use crate::{Adversary, Liar, Parcel};

/// See the module's header.
pub(crate) struct SilentCollector {
    liar: Liar,
}

impl SilentCollector {
    pub fn new(liar: Liar) -> Self {
        Self { liar }
    }
}

impl Adversary for SilentCollector {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        if self.liar.collects(message) { Vec::new() } else { vec![Parcel::now(to, message.clone())] }
    }
}
