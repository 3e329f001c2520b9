//! As the leader, gathers votes and keeps the certificates to itself: of one kind or both, from some members or all.
//!
//! Defence: who has accepted a block and sees it committed by nobody suspects, and whoever has a Commit certificate answers a
//! Suspect with it.

use bftd_core::{
    ids::MemberId,
    message::{Certificates, Message},
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct WithholdCertificates {
    prepared: bool,
    committed: bool,
    from: Vec<MemberId>,
}

impl WithholdCertificates {
    pub fn new(liar: &Liar, mut chance: Chance) -> Self {
        let from = if chance.one_in(2) { liar.others().collect() } else { chance.some(liar) };
        let (prepared, committed) = match chance.below(3) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        Self { prepared, committed, from }
    }

    fn strip(&self, certificates: &mut Certificates) {
        if self.prepared {
            certificates.prepared = None;
        }
        if self.committed {
            certificates.committed = None;
        }
    }
}

impl Adversary for WithholdCertificates {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let mut message = message.clone();
        if self.from.contains(&to) {
            match &mut message {
                Message::Append(append) => self.strip(&mut append.certificates),
                Message::Heartbeat(heartbeat) => self.strip(&mut heartbeat.certificates),
                Message::Certificate(it) if it.is_commit() && self.committed => return Vec::new(),
                Message::Certificate(it) if !it.is_commit() && self.prepared => return Vec::new(),
                _ => {}
            }
        }
        vec![Parcel::now(to, message)]
    }
}
