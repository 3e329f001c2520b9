//! Claims to be far ahead: heartbeats, answers and fetches speak of an index that nobody has reached.
//!
//! Defence: a height is believed by its certificate only, and nobody waits for a member that claims one (a peer that
//! advertises and never answers: FACTS.md).

use std::sync::Arc;

use bftd_core::{
    ballot::BallotKind,
    block::BlockRef,
    certificate::Certificate,
    crypto::{Digest, Signature},
    ids::{Index, MemberId, Now, Term},
    message::{Certificates, FetchAncestors, FetchCommitted, Heartbeat, Message},
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// A certificate that nobody signed, for a block far ahead.
pub(crate) fn far_ahead(liar: &Liar) -> Certificate {
    let block = BlockRef { term: Term(1 << 40), index: Index(1 << 40), digest: Digest([7; 32]) };
    let signatures = liar.members.ids().map(|id| (id, Signature([7; 64]))).collect();
    Certificate { ballot: liar.ballot(BallotKind::Commit, block), signatures }
}

/// See the module's header.
pub(crate) struct LyingHeight {
    liar: Liar,
    chance: Chance,
}

impl LyingHeight {
    pub fn new(liar: Liar, chance: Chance) -> Self {
        Self { liar, chance }
    }

    fn heartbeat(&self, term: Term) -> Message {
        let committed = Some(Arc::new(far_ahead(&self.liar)));
        let certificates = Certificates { prepared: None, committed };
        Message::Heartbeat(Heartbeat { epoch: self.liar.members.epoch(), term, number: 0, certificates })
    }
}

impl Adversary for LyingHeight {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let mut parcels = vec![Parcel::now(to, message.clone())];
        match message {
            Message::Heartbeat(heartbeat) => {
                parcels.insert(0, Parcel::now(to, self.heartbeat(heartbeat.term)))
            }
            Message::Certificate(_) => {
                parcels.push(Parcel::now(to, Message::Certificate(Arc::new(far_ahead(&self.liar)))));
            }
            _ => {}
        }
        parcels
    }

    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        let to = self.chance.other(&self.liar);
        let far = Index(u64::MAX - self.chance.below(2));
        let message = match self.chance.below(8) {
            0 => self.heartbeat(Term(u64::MAX)),
            1 => Message::FetchCommitted(FetchCommitted { after: far }),
            2 => Message::FetchAncestors(FetchAncestors { digest: Digest([7; 32]), above: far }),
            3 => Message::FetchAncestors(FetchAncestors { digest: Digest::ZERO, above: Index(0) }),
            _ => return Vec::new(),
        };
        vec![Parcel::now(to, message)]
    }
}
