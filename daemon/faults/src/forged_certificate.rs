//! Shows certificates that were never made: one vote too few, votes of the other ballot or of another block, made-up
//! signatures, outsiders. As the leader of a term it justifies it with TermVotes that are as false.
//!
//! Defence: a certificate is checked wherever it comes along, down to the last signature (FACTS.md, mutated certificates).

use std::{collections::BTreeMap, sync::Arc};

use bftd_core::{
    ballot::{BallotKind, Vote},
    certificate::Certificate,
    crypto::{Digest, Signature},
    ids::{MemberId, Now},
    message::{Certificates, Heartbeat, Message},
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// How many blocks' votes are remembered.
const REMEMBERED: usize = 64;

/// See the module's header.
pub(crate) struct ForgedCertificate {
    liar: Liar,
    chance: Chance,
    /// True votes, by block.
    votes: BTreeMap<Digest, Vec<Vote>>,
    newest: Option<Vote>,
}

impl ForgedCertificate {
    pub fn new(liar: Liar, chance: Chance) -> Self {
        Self { liar, chance, votes: BTreeMap::new(), newest: None }
    }

    fn learn(&mut self, vote: &Vote) {
        if self.votes.len() >= REMEMBERED {
            self.votes.clear();
        }
        self.votes.entry(vote.ballot.block.digest).or_default().push(vote.clone());
        self.newest = Some(vote.clone());
    }

    fn forge(&mut self) -> Option<Certificate> {
        let newest = self.newest.as_ref()?;
        let mut block = newest.ballot.block;
        let kind = if self.chance.one_in(3) { BallotKind::Prepare } else { BallotKind::Commit };
        let true_votes = self.votes.get(&block.digest).cloned().unwrap_or_default();
        let mut signatures: BTreeMap<MemberId, Signature> =
            true_votes.iter().map(|vote| (vote.signer, vote.signature)).collect();
        match self.chance.below(5) {
            // Votes of whatever ballot, filled up with the liar's own signature under other names.
            0 => {
                let own = self.liar.vote(self.liar.ballot(kind, block)).signature;
                self.liar.members.ids().for_each(|id| {
                    signatures.entry(id).or_insert(own);
                });
            }
            // One too few.
            1 => {
                signatures = true_votes
                    .iter()
                    .filter(|vote| vote.ballot.kind == kind)
                    .map(|vote| (vote.signer, vote.signature))
                    .take(self.liar.members.quorum() - 1)
                    .collect();
            }
            // Outsiders.
            2 => {
                let outsiders = (0..4).map(|number| MemberId(200 + number));
                signatures.extend(outsiders.map(|id| (id, newest.signature)));
            }
            // For another block, of a later term, further on.
            3 => {
                block.term = block.term.next();
                block.index = block.index.next();
                block.digest.0[0] ^= 1;
            }
            // None at all.
            _ => signatures.clear(),
        }
        let ballot = self.liar.ballot(kind, block);
        Some(Certificate { ballot, signatures: signatures.into_iter().collect() })
    }

    fn wrapped(&mut self, certificate: Certificate) -> Message {
        let is_commit = certificate.is_commit();
        let certificate = Some(Arc::new(certificate));
        let certificates = if is_commit {
            Certificates { prepared: None, committed: certificate }
        } else {
            Certificates { prepared: certificate, committed: None }
        };
        let term = self.newest.as_ref().map_or_else(Default::default, |vote| vote.ballot.block.term);
        Message::Heartbeat(Heartbeat { epoch: self.liar.members.epoch(), term, number: 0, certificates })
    }
}

impl Adversary for ForgedCertificate {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let mut parcels = vec![Parcel::now(to, message.clone())];
        let mut lie = message.clone();
        match &mut lie {
            Message::Vote(vote) | Message::LateVote(vote) => {
                self.learn(vote);
                return parcels;
            }
            Message::Append(append) => append.certificates.prepared = self.forge().map(Arc::new),
            Message::EnterTerm(enter) => Arc::make_mut(enter).position = self.forge().map(Arc::new),
            Message::NewTerm(new_term) => Arc::make_mut(new_term).position = self.forge().map(Arc::new),
            Message::ReadAnswer(answer) => answer.position = self.forge().map(Arc::new),
            Message::Blocks(blocks) => blocks.certificate = self.forge().map(Arc::new),
            _ => return parcels,
        }
        parcels.insert(0, Parcel::now(to, lie));
        parcels
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        if let Message::Vote(vote) | Message::LateVote(vote) = message {
            self.learn(vote);
        }
        Vec::new()
    }

    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        let to = self.chance.other(&self.liar);
        let Some(certificate) = self.forge() else { return Vec::new() };
        let message = if self.chance.one_in(2) {
            Message::Certificate(Arc::new(certificate))
        } else {
            self.wrapped(certificate)
        };
        vec![Parcel::now(to, message)]
    }
}
