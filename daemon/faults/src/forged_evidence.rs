//! Accuses others with what they really signed, and with what they did not: statements that agree with each other, are of two
//! kinds or two terms, or carry the liar's own signature under another name. And it accuses itself, truly and
//! without end, to fill what others keep.
//!
//! Defence: a proof is checked by whoever gets it, with nothing but the members' keys, and few are kept of each kind and
//! member (FACTS.md, false, lost or spammed evidence).

use std::collections::VecDeque;

use bftd_core::{
    ballot::{BallotKind, TermVote, Vote},
    block::Proposal,
    crypto::Digest,
    evidence::Evidence,
    ids::{Index, MemberId, Now},
    message::Message,
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// How many statements of each sort are remembered, the newest.
const REMEMBERED: usize = 64;

/// See the module's header.
pub(crate) struct ForgedEvidence {
    liar: Liar,
    chance: Chance,
    votes: VecDeque<Vote>,
    proposals: VecDeque<Proposal>,
    term_votes: VecDeque<TermVote>,
    /// How often it has accused itself.
    confessed: u64,
}

impl ForgedEvidence {
    pub fn new(liar: Liar, chance: Chance) -> Self {
        let (votes, proposals, term_votes) = Default::default();
        Self { liar, chance, votes, proposals, term_votes, confessed: 0 }
    }

    fn learn(&mut self, message: &Message) {
        match message {
            Message::Vote(vote) | Message::LateVote(vote) => remember(&mut self.votes, vote.clone()),
            Message::Certificate(certificate) => {
                for (signer, signature) in &certificate.signatures {
                    let vote = Vote { ballot: certificate.ballot, signer: *signer, signature: *signature };
                    remember(&mut self.votes, vote);
                }
            }
            Message::Append(append) => {
                remember(&mut self.proposals, append.proposal());
                for certificate in append.certificates.iter() {
                    self.learn(&Message::Certificate(certificate.clone()));
                }
            }
            Message::EnterTerm(enter) => remember(&mut self.term_votes, enter.vote.clone()),
            _ => {}
        }
    }

    fn one<T: Clone>(&mut self, of: impl Fn(&Self) -> &VecDeque<T>) -> Option<T> {
        let at = self.chance.below(of(self).len() as u64);
        of(self).get(usize::try_from(at).ok()?).cloned()
    }

    fn forge(&mut self) -> Option<Evidence> {
        let first = self.one(|it| &it.votes)?;
        Some(match self.chance.below(7) {
            // The same thing twice.
            0 => Evidence::DoubleVote { second: first.clone(), first },
            // Whatever else was signed.
            1 => Evidence::DoubleVote { first, second: self.one(|it| &it.votes)? },
            // A true vote, moved to where it contradicts another one.
            2 => {
                let mut second = self.one(|it| &it.votes)?;
                let digest = second.ballot.block.digest;
                second.ballot = first.ballot;
                second.signer = first.signer;
                second.ballot.block.digest = digest;
                Evidence::DoubleVote { first, second }
            }
            // The liar's own signature under another name.
            3 => {
                let mut ballot = first.ballot;
                ballot.block.digest.0[0] ^= 1;
                let second = Vote { signer: first.signer, ..self.liar.vote(ballot) };
                Evidence::DoubleVote { first, second }
            }
            // A TermVote that has nothing to hide, or is another's.
            4 => Evidence::ForgottenLock { commit: first, term_vote: self.one(|it| &it.term_votes)? },
            // A header that the leader never signed.
            5 => {
                let first = self.one(|it| &it.proposals)?;
                let mut header = first.header.clone();
                header.time_ms += 1;
                let signature = self.liar.signer.sign(&Proposal::signed_bytes(&header));
                Evidence::DoubleProposal { first, second: Proposal { header, signature } }
            }
            // A confession.
            _ => {
                self.confessed += 1;
                let mut ballot = self.liar.ballot(BallotKind::Prepare, first.ballot.block);
                ballot.block.index = Index(ballot.block.index.0.saturating_add(self.confessed));
                let votes = [1, 2].map(|byte| {
                    ballot.block.digest = Digest([byte; 32]);
                    self.liar.vote(ballot)
                });
                let [first, second] = votes;
                Evidence::DoubleVote { first, second }
            }
        })
    }
}

impl Adversary for ForgedEvidence {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        self.learn(message);
        vec![Parcel::now(to, message.clone())]
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        self.learn(message);
        Vec::new()
    }

    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        let Some(evidence) = self.forge() else { return Vec::new() };
        self.liar.to_others(&Message::Evidence(Box::new(evidence)))
    }
}

fn remember<T>(statements: &mut VecDeque<T>, statement: T) {
    if statements.len() >= REMEMBERED {
        statements.pop_front();
    }
    statements.push_back(statement);
}
