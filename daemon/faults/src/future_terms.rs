//! Floods the others with true signatures about terms and indices far ahead: Suspects, votes, TermVotes, proposals,
//! heartbeats.
//!
//! Defence: what is kept for a peer is bounded, and terms advance only by a quorum's signatures (monad #1969, diem #1325,
//! pactus #465).

use std::sync::Arc;

use bftd_core::{
    ballot::{BallotKind, Suspect, TermVote},
    block::{Block, BlockRef, Executed, Header},
    crypto::Digest,
    ids::{Index, Now, Term},
    kv,
    message::{Certificates, EnterTerm, Heartbeat, Message},
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// How many lies leave at a tick.
const BURST: u64 = 4;

/// See the module's header.
pub(crate) struct FutureTerms {
    liar: Liar,
    chance: Chance,
    /// Where the members are, more or less.
    near: Term,
}

impl FutureTerms {
    pub fn new(liar: Liar, chance: Chance) -> Self {
        Self { liar, chance, near: Term(0) }
    }

    fn lie(&mut self) -> Message {
        let Liar { me, members, signer, .. } = &self.liar;
        let (cluster, epoch, signer) = (members.cluster(), members.epoch(), &**signer);
        let term = match self.chance.below(4) {
            0 => Term(u64::MAX),
            1 => Term(1 << 40),
            _ => Term(self.near.0.saturating_add(1 + self.chance.below(12))),
        };
        let index = Index(self.chance.below(40));
        let mut digest = Digest::ZERO;
        digest.0[0] = self.chance.below(256) as u8;
        let block = BlockRef { term, index, digest };
        match self.chance.below(6) {
            0 => Message::Suspect(Suspect::sign(cluster, epoch, term, *me, signer)),
            1 => Message::Vote(self.liar.vote(self.liar.ballot(BallotKind::Prepare, block))),
            2 => Message::Vote(self.liar.vote(self.liar.ballot(BallotKind::Commit, block))),
            3 => {
                let vote = TermVote::sign(cluster, epoch, term, None, None, *me, signer);
                Message::EnterTerm(Arc::new(EnterTerm { vote, position: None, suspects: None, sole: None }))
            }
            4 => Message::Heartbeat(Heartbeat {
                epoch,
                term,
                number: 1,
                certificates: Certificates::default(),
            }),
            _ => {
                let n = members.n() as u64;
                let own = (0..n).map(|more| Term(term.0.saturating_add(more)));
                let term = own.clone().find(|term| members.leader(*term) == *me).unwrap_or(term);
                let executed = Executed { index: Index(0), state: kv::empty_state() };
                let batches = Block::batches_digest(&[]);
                let header = Header {
                    cluster,
                    epoch,
                    term,
                    index,
                    parent: digest,
                    time_ms: 0,
                    batches,
                    executed,
                    sole: false,
                };
                let block = Arc::new(Block::new(header, Vec::new()));
                Message::Append(self.liar.append(block, Certificates::default()))
            }
        }
    }
}

impl Adversary for FutureTerms {
    fn incoming(&mut self, _from: bftd_core::ids::MemberId, message: &Message) -> Vec<Parcel> {
        if let Message::Append(append) = message {
            self.near = self.near.max(append.block.header().term);
        }
        Vec::new()
    }

    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        (0..BURST).map(|_| Parcel::now(self.chance.other(&self.liar), self.lie())).collect()
    }
}
