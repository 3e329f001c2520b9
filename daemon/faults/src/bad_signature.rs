//! Signs wrongly first, and rightly afterwards: every message goes out with a spoiled signature, then as it should be.
//!
//! Defence: a signature is checked by itself, before anything is remembered, so a bad one spoils neither a certificate
//! (monad #2214, CVE-2020-15091) nor the good one after it.

use std::sync::Arc;

use bftd_core::{
    block::Batch,
    crypto::Signature,
    evidence::Evidence,
    ids::MemberId,
    message::{EnterTerm, Message},
};

use crate::{Adversary, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct BadSignature {
    chance: Chance,
}

impl BadSignature {
    pub fn new(chance: Chance) -> Self {
        Self { chance }
    }
}

/// The message with a spoiled signature; none where it has none.
fn spoiled(message: &Message, spoil: impl Fn(&mut Signature)) -> Option<Message> {
    let mut message = message.clone();
    match &mut message {
        Message::Vote(vote) | Message::LateVote(vote) => spoil(&mut vote.signature),
        Message::Suspect(suspect) => spoil(&mut suspect.signature),
        Message::Append(append) => spoil(&mut append.signature),
        Message::Batch(batch) => spoil(&mut Arc::<Batch>::make_mut(batch).signature),
        Message::EnterTerm(enter) => spoil(&mut Arc::<EnterTerm>::make_mut(enter).vote.signature),
        Message::NewTerm(new_term) => {
            spoil(&mut Arc::make_mut(new_term).votes.last_mut()?.signature);
        }
        Message::Certificate(certificate) => {
            spoil(&mut Arc::make_mut(certificate).signatures.last_mut()?.1);
        }
        Message::Heartbeat(heartbeat) => {
            let certificate = heartbeat.certificates.committed.as_mut()?;
            spoil(&mut Arc::make_mut(certificate).signatures.last_mut()?.1);
        }
        Message::ReadAnswer(answer) => {
            spoil(&mut Arc::make_mut(answer.position.as_mut()?).signatures.last_mut()?.1);
        }
        Message::Blocks(blocks) => {
            spoil(&mut Arc::make_mut(blocks.certificate.as_mut()?).signatures.last_mut()?.1);
        }
        Message::Evidence(proof) => spoil(match &mut **proof {
            Evidence::DoubleVote { second, .. } => &mut second.signature,
            Evidence::DoubleProposal { second, .. } => &mut second.signature,
            Evidence::ForgottenLock { term_vote, .. } => &mut term_vote.signature,
        }),
        _ => return None,
    }
    Some(message)
}

impl Adversary for BadSignature {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let (at, bit) = (self.chance.below(64) as usize, self.chance.below(8));
        let bad = spoiled(message, |signature| signature.0[at] ^= 1 << bit);
        let bad = bad.map(|bad| Parcel::now(to, bad));
        bad.into_iter().chain([Parcel::now(to, message.clone()).after(self.chance.below(200))]).collect()
    }
}
