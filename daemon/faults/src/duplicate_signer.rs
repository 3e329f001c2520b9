//! Makes quorums of itself: certificates, Suspect certificates and NewTerms in which its own true signature stands several
//! times.
//!
//! Defence: a quorum is distinct members, counted in one place (monad-bft #1323, malachite #974, besu #1736).

use std::sync::Arc;

use bftd_core::{
    ballot::{BallotKind, Suspect, TermVote},
    block::BlockRef,
    certificate::{Certificate, SuspectCertificate},
    ids::{MemberId, Now, Term},
    message::{EnterTerm, Message, NewTerm},
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct DuplicateSigner {
    liar: Liar,
    chance: Chance,
    newest: Option<BlockRef>,
}

impl DuplicateSigner {
    pub fn new(liar: Liar, chance: Chance) -> Self {
        Self { liar, chance, newest: None }
    }

    fn certificate(&self, kind: BallotKind, block: BlockRef) -> Certificate {
        let vote = self.liar.vote(self.liar.ballot(kind, block));
        let signatures = vec![(vote.signer, vote.signature); self.liar.members.quorum()];
        Certificate { ballot: vote.ballot, signatures }
    }

    fn term_vote(&self, term: Term) -> TermVote {
        let Liar { me, members, signer, .. } = &self.liar;
        TermVote::sign(members.cluster(), members.epoch(), term, None, None, *me, &**signer)
    }

    /// A term that only the liar has left, and only the liar enters.
    fn enter(&self, term: Term) -> EnterTerm {
        let Liar { me, members, signer, .. } = &self.liar;
        let (cluster, epoch) = (members.cluster(), members.epoch());
        let suspect = Suspect::sign(cluster, epoch, term, *me, &**signer);
        let signatures = vec![(suspect.signer, suspect.signature); members.quorum()];
        let suspects = SuspectCertificate { epoch, term, signatures };
        EnterTerm {
            vote: self.term_vote(term.next()),
            position: None,
            suspects: Some(Arc::new(suspects)),
            sole: None,
        }
    }

    fn new_term(&self, term: Term) -> NewTerm {
        let n = self.liar.members.n() as u64;
        let own = (1..=n).map(|more| Term(term.0 + more)).find(|term| self.liar.leads(*term));
        let term = own.unwrap_or(term);
        let votes = vec![self.term_vote(term); self.liar.members.quorum()];
        NewTerm { epoch: self.liar.members.epoch(), term, votes, position: None, sole: None }
    }
}

impl Adversary for DuplicateSigner {
    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        if let Message::Append(append) = message {
            let mut block = append.block.reference();
            self.newest = Some(block);
            if self.chance.one_in(2) {
                block.digest.0[0] ^= 1;
            }
            let lies = [BallotKind::Prepare, BallotKind::Commit]
                .map(|kind| Message::Certificate(Arc::new(self.certificate(kind, block))));
            let to = self.chance.other(&self.liar);
            return lies.map(|lie| Parcel::now(to, lie)).into();
        }
        Vec::new()
    }

    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        let Some(block) = self.newest else { return Vec::new() };
        let lie = match self.chance.below(6) {
            0 => Message::EnterTerm(Arc::new(self.enter(block.term))),
            1 => Message::NewTerm(Arc::new(self.new_term(block.term))),
            _ => return Vec::new(),
        };
        let to: MemberId = self.chance.other(&self.liar);
        vec![Parcel::now(to, lie)]
    }
}
