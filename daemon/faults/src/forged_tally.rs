//! As the communication node, shows false certificates in the place of the true ones: with a signature that is nobody's, with
//! too few signers, with one signer twice, for another block, or for the second round when only the first was held.
//!
//! Defence: a certificate is checked like everything else, so a false one is none; then as with a silent one (DESIGN §2.4).

use std::sync::Arc;

use bftd_core::{ballot::BallotKind, certificate::Certificate, ids::MemberId, message::Message};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct ForgedTally {
    liar: Liar,
    chance: Chance,
}

impl ForgedTally {
    pub fn new(liar: Liar, chance: Chance) -> Self {
        Self { liar, chance }
    }

    fn forged(&mut self, truth: &Certificate) -> Certificate {
        let mut lie = truth.clone();
        match self.chance.below(5) {
            0 => {
                if let Some((_, signature)) = lie.signatures.last_mut() {
                    signature.0[0] ^= 1;
                }
            }
            1 => lie.signatures.truncate(self.liar.members.quorum() - 1),
            2 => {
                lie.signatures.truncate(self.liar.members.quorum() - 1);
                lie.signatures.extend(lie.signatures.last().copied());
            }
            3 => lie.ballot.block.digest.0[0] ^= 1,
            _ => lie.ballot.kind = BallotKind::Commit,
        }
        lie
    }
}

impl Adversary for ForgedTally {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        match message {
            Message::Certificate(truth) if self.liar.collects(message) => {
                let lie = self.forged(truth);
                // Where nothing is left to falsify it is the truth, which it keeps.
                if lie == **truth {
                    Vec::new()
                } else {
                    vec![Parcel::now(to, Message::Certificate(Arc::new(lie)))]
                }
            }
            other => vec![Parcel::now(to, other.clone())],
        }
    }
}
