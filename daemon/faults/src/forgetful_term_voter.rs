//! Leaves a term as if it had seen nothing in it, and starts its own terms as low as valid TermVotes allow.
//!
//! To the deceived it sends TermVotes that report the epoch's root, whatever it holds and whatever it told others. As the
//! leader of a new term it shows them a NewTerm that is made of the lowest TermVotes that it got, so that the term starts at
//! another block there than elsewhere, and blocks that go on from there. It waits a little for more TermVotes to choose from, and
//! shows the deceived no Prepare certificates, so that positions differ. Votes for those are gathered, and what they
//! certify is shown to all.
//!
//! Every message passes a verifier: the lies are in what is reported and in what is chosen.

use std::{collections::BTreeMap, sync::Arc};

use bftd_core::{
    ballot::TermVote,
    block::{Block, BlockRef, Executed, Proposal},
    certificate::Certificate,
    crypto::Digest,
    ids::{Index, MemberId, Term},
    kv,
    message::{Append, EnterTerm, Message, NewTerm},
};

use crate::{Adversary, Liar, tally::Tally};

/// How many forged blocks are remembered, and TermVotes of how many terms. Runs are short.
const REMEMBERED: usize = 256;

/// How often a NewTerm is withheld from the deceived while TermVotes are missing.
const WITHHELD: u32 = 6;

/// See the module's header.
pub struct ForgetfulTermVoter {
    liar: Liar,
    /// Who gets the low TermVotes and NewTerms.
    deceived: Vec<MemberId>,
    /// What other members reported, by the term that they entered.
    reported: BTreeMap<Term, BTreeMap<MemberId, Arc<EnterTerm>>>,
    /// Where the liar's terms start for the deceived, where that is another block than for the others.
    starts: BTreeMap<Term, (BlockRef, BlockRef)>,
    /// Honest digest → forged block.
    forged: BTreeMap<Digest, Arc<Block>>,
    tally: Tally,
    /// The newest own term whose NewTerm was withheld, and how often.
    withheld: (Term, u32),
}

impl ForgetfulTermVoter {
    /// A liar of this kind, and who is lied to.
    pub fn new(liar: Liar, deceived: Vec<MemberId>) -> Self {
        Self {
            liar,
            deceived,
            reported: BTreeMap::new(),
            starts: BTreeMap::new(),
            forged: BTreeMap::new(),
            tally: Tally::default(),
            withheld: (Term(0), 0),
        }
    }

    /// The same TermVote, but with no position.
    fn forget(&self, enter: &EnterTerm) -> EnterTerm {
        let Liar { me, members, signer } = &self.liar;
        let vote = TermVote::sign(members.cluster(), enter.vote.epoch, enter.vote.term, None, *me, &**signer);
        EnterTerm { vote, position: None, suspects: enter.suspects.clone() }
    }

    /// Whether to let the deceived wait for a term to start, for more TermVotes to choose from.
    fn withholds(&mut self, term: Term) -> bool {
        let others = self.reported.get(&term).map_or(0, BTreeMap::len);
        if self.withheld.0 != term {
            self.withheld = (term, 0);
        }
        self.withheld.1 += 1;
        others + 1 < self.liar.members.n() && self.withheld.1 <= WITHHELD
    }

    /// The lowest start that a quorum's TermVotes justify.
    fn lower(&mut self, honest: &NewTerm) -> Option<NewTerm> {
        let reported = self.reported.get(&honest.term)?;
        let mut votes: Vec<_> = reported.values().collect();
        votes.sort_by_key(|enter| enter.vote.rank());
        let own = honest.votes.iter().find(|vote| vote.signer == self.liar.me);
        let template = EnterTerm { vote: own?.clone(), position: None, suspects: None };
        let own = Arc::new(self.forget(&template));
        let mut chosen = vec![&own];
        chosen.extend(votes.into_iter().take(self.liar.members.quorum() - 1));
        let position = chosen.iter().max_by_key(|enter| enter.vote.rank())?.position.clone();
        chosen.sort_by_key(|enter| enter.vote.signer);
        let root = self.liar.members.root();
        let block = |position: &Option<Arc<Certificate>>| position.as_ref().map_or(root, |at| at.block());
        let starts = (block(&honest.position), block(&position));
        if starts.0 != starts.1 && self.starts.len() < REMEMBERED {
            self.starts.insert(honest.term, starts);
        }
        Some(NewTerm {
            epoch: honest.epoch,
            term: honest.term,
            votes: chosen.iter().map(|enter| enter.vote.clone()).collect(),
            position,
        })
    }

    /// An empty block on the lower start, in the place of an honest one.
    fn forge(&mut self, append: &Append) -> Option<Append> {
        let mut header = append.block.header().clone();
        let (honest, low) = *self.starts.get(&header.term)?;
        let honest_digest = append.block.digest();
        if !self.forged.contains_key(&honest_digest) {
            header.parent = if header.parent == honest.digest {
                low.digest
            } else {
                self.forged.get(&header.parent)?.digest()
            };
            header.index = Index((header.index.0 + low.index.0).checked_sub(honest.index.0)?);
            if header.executed.index > low.index {
                header.executed = Executed { index: Index(0), state: kv::empty_state() };
            }
            header.batches = Block::batches_digest(&[]);
            if self.forged.len() >= REMEMBERED {
                return None;
            }
            self.forged.insert(honest_digest, Arc::new(Block::new(header, Vec::new())));
        }
        let block = Arc::clone(self.forged.get(&honest_digest)?);
        let signature = self.liar.signer.sign(&Proposal::signed_bytes(block.header()));
        Some(Append { block, signature, certificates: append.certificates.clone() })
    }
}

impl Adversary for ForgetfulTermVoter {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Message> {
        let is_deceived = self.deceived.contains(&to);
        match message {
            Message::EnterTerm(enter) if is_deceived && enter.vote.signer == self.liar.me => {
                vec![Message::EnterTerm(Arc::new(self.forget(enter)))]
            }
            Message::NewTerm(new_term)
                if is_deceived && self.liar.members.leader(new_term.term) == self.liar.me =>
            {
                if self.withholds(new_term.term) {
                    return Vec::new();
                }
                let shown = self.lower(new_term).map_or_else(|| Arc::clone(new_term), Arc::new);
                vec![Message::NewTerm(shown)]
            }
            Message::Append(append) if is_deceived => {
                let mut shown = self.forge(append).unwrap_or_else(|| append.clone());
                shown.certificates.prepared = None;
                vec![Message::Append(shown)]
            }
            Message::Heartbeat(heartbeat) if is_deceived => {
                let mut shown = heartbeat.clone();
                shown.certificates.prepared = None;
                vec![Message::Heartbeat(shown)]
            }
            Message::Certificate(certificate) if is_deceived && !certificate.is_commit() => Vec::new(),
            // A liar does not accuse itself.
            Message::Equivocation(_) => Vec::new(),
            other => vec![other.clone()],
        }
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<(MemberId, Message)> {
        match message {
            Message::EnterTerm(enter) if self.reported.len() < REMEMBERED => {
                if enter.vote.signer != self.liar.me {
                    let reported = self.reported.entry(enter.vote.term).or_default();
                    reported.insert(enter.vote.signer, Arc::clone(enter));
                }
                Vec::new()
            }
            Message::Vote(vote)
                if self.forged.values().any(|block| block.digest() == vote.ballot.block.digest) =>
            {
                let Some(certificate) = self.tally.add(&self.liar, vote) else { return Vec::new() };
                let message = Message::Certificate(Arc::new(certificate));
                let others = self.liar.members.ids().filter(|id| *id != self.liar.me);
                others.map(|member| (member, message.clone())).collect()
            }
            _ => Vec::new(),
        }
    }
}
