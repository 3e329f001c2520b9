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
    /// Whether it lets the deceived see the true story, too.
    truth: Truth,
    /// The true story, until it is time. At most [`WITHHELD`].
    withheld: Vec<(MemberId, Message)>,
    chain: ForgedChain,
}

/// When the deceived see the true story.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Truth {
    Never,
    /// A little later, in microseconds.
    After(u64),
    /// When the forged one is final. Until then, and after, nothing is known of proofs and suspicions.
    Last,
}

/// How many messages are withheld: those of a window, to a few members.
const WITHHELD: usize = 64;
/// How much later than the certificate that makes the forged story final the true one comes. Microseconds.
const LAST_US: u64 = 5_000;

impl Equivocate {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let (mut deceived, shown) = (chance.some(&liar), chance.some(&liar));
        let count = liar.others().filter(|id| deceived.contains(id)).count();
        if count == 0 || count == liar.others().count() {
            // One story for all would be no lie.
            deceived = first_half(&liar);
        }
        let truth = if chance.one_in(4) { Truth::After(3_000) } else { Truth::Never };
        Self { liar, deceived, shown, truth, withheld: Vec::new(), chain: ForgedChain::default() }
    }

    /// The first half of the others is deceived, sees the forged certificates, and the true story last: enough for an ally
    /// to vote for both.
    pub fn dividing(liar: Liar) -> Self {
        let deceived = first_half(&liar);
        let (shown, chain) = (deceived.clone(), ForgedChain::default());
        Self { liar, deceived, shown, truth: Truth::Last, withheld: Vec::new(), chain }
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
                match self.truth {
                    Truth::Never => vec![forged],
                    Truth::After(us) => vec![forged, Parcel::now(to, message.clone()).after(us)],
                    Truth::Last => {
                        if self.withheld.len() < WITHHELD {
                            self.withheld.push((to, message.clone()));
                        }
                        vec![forged]
                    }
                }
            }
            // A liar does not accuse itself.
            Message::Evidence(_) => Vec::new(),
            other => vec![Parcel::now(to, other.clone())],
        }
    }

    fn hears(&mut self, _from: MemberId, message: &Message) -> bool {
        let accuses = matches!(message, Message::Evidence(_) | Message::Proposal(_) | Message::Suspect(_));
        self.truth != Truth::Last || !accuses
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        let (Message::Vote(vote) | Message::LateVote(vote)) = message else { return Vec::new() };
        let Some(certificate) = self.chain.gather(&self.liar, vote) else { return Vec::new() };
        let is_final = certificate.is_commit();
        let message = Message::Certificate(Arc::new(certificate));
        let mut parcels: Vec<_> = self.shown.iter().map(|to| Parcel::now(*to, message.clone())).collect();
        if is_final {
            let truth = self.withheld.drain(..);
            parcels.extend(truth.map(|(to, message)| Parcel::now(to, message).after(LAST_US)));
        }
        parcels
    }
}

fn first_half(liar: &Liar) -> Vec<MemberId> {
    liar.others().take(liar.members.n() / 2).collect()
}
