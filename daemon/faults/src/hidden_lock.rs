//! As the leader, lets one member alone see a Prepare certificate, and denies it to the others in its own TermVote. When
//! another term has begun it shows the certificate after all, to one member at a time.
//!
//! Defence: a NewTerm is believed whatever the own lock is, as one that is not among q TermVotes was never committed
//! (DESIGN §2.3; what can go wrong: flow-go #105, malachite #850).

use std::sync::Arc;

use bftd_core::{
    ballot::TermVote,
    certificate::Certificate,
    ids::{MemberId, Now},
    message::{Certificates, EnterTerm, Message},
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct HiddenLock {
    liar: Liar,
    chance: Chance,
    /// Who is shown Prepare certificates.
    locked: MemberId,
    hidden: Option<Arc<Certificate>>,
}

impl HiddenLock {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let locked = chance.other(&liar);
        Self { liar, chance, locked, hidden: None }
    }

    fn hide(&mut self, to: MemberId, certificates: &mut Certificates) {
        if let Some(prepared) = &certificates.prepared {
            self.hidden = Some(Arc::clone(prepared));
        }
        if to != self.locked {
            certificates.prepared = None;
        }
        certificates.committed = None;
    }

    fn deny(&self, enter: &EnterTerm) -> EnterTerm {
        let Liar { me, members, signer, .. } = &self.liar;
        let vote =
            TermVote::sign(members.cluster(), enter.vote.epoch, enter.vote.term, None, None, *me, &**signer);
        EnterTerm { vote, position: None, suspects: enter.suspects.clone(), sole: None }
    }
}

impl Adversary for HiddenLock {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let mut message = message.clone();
        match &mut message {
            Message::Append(append) => self.hide(to, &mut append.certificates),
            Message::Heartbeat(heartbeat) => self.hide(to, &mut heartbeat.certificates),
            Message::Certificate(it) if !it.is_commit() => {
                self.hidden = Some(Arc::clone(it));
                if to != self.locked {
                    return Vec::new();
                }
            }
            Message::Certificate(_) => return Vec::new(),
            Message::EnterTerm(enter) if enter.vote.signer == self.liar.me => {
                *enter = Arc::new(self.deny(enter));
            }
            Message::ReadAnswer(answer) => answer.position = None,
            _ => {}
        }
        vec![Parcel::now(to, message)]
    }

    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        if !self.chance.one_in(8) {
            return Vec::new();
        }
        let Some(hidden) = self.hidden.clone() else { return Vec::new() };
        let to = self.chance.other(&self.liar);
        vec![Parcel::now(to, Message::Certificate(hidden))]
    }
}
