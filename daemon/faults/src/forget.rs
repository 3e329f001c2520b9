//! Leaves a term as if it had seen nothing in it, and starts its own terms as low as valid TermVotes allow.
//!
//! To the deceived it sends TermVotes that report the epoch's root, whatever it holds and whatever it told others. As the
//! leader of a new term it shows them a NewTerm that is made of the lowest TermVotes that it got, so that the term starts at
//! another block there than elsewhere, and blocks that go on from there. It waits a little for more TermVotes to choose from, and
//! shows the deceived no Prepare certificates, so that positions differ. Votes for those are gathered, and what they
//! certify is shown to all.
//!
//! Every message passes a verifier: the lies are in what is reported and in what is chosen.
//!
//! Defence: whatever quorum of TermVotes is chosen, one of them is of a correct member that signed the Commit votes
//! before (ARCHITECTURE.md, *Why it is safe*, b).

use std::{collections::BTreeMap, sync::Arc};

use bftd_core::{
    ballot::TermVote,
    block::{BlockRef, Executed},
    ids::{Index, MemberId, Term},
    kv,
    message::{Append, EnterTerm, Message, NewTerm},
};

use crate::{Adversary, Liar, Parcel, chance::Chance, forged_chain::ForgedChain};

/// The TermVotes of how many terms are remembered, and how many starts. Runs are short.
const REMEMBERED: usize = 256;

/// How often a NewTerm is withheld from the deceived while TermVotes are missing.
const WITHHELD: u32 = 6;

/// See the module's header.
pub(crate) struct Forget {
    liar: Liar,
    /// Who gets the low TermVotes and NewTerms.
    deceived: Vec<MemberId>,
    /// What other members reported, by the term that they entered.
    reported: BTreeMap<Term, BTreeMap<MemberId, Arc<EnterTerm>>>,
    /// Where the liar's terms start for the deceived, where that is another block than for the others.
    starts: BTreeMap<Term, (BlockRef, BlockRef)>,
    chain: ForgedChain,
    /// The newest own term whose NewTerm was withheld, and how often.
    withheld: (Term, u32),
}

impl Forget {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let deceived = chance.some(&liar);
        Self {
            liar,
            deceived,
            reported: BTreeMap::new(),
            starts: BTreeMap::new(),
            chain: ForgedChain::default(),
            withheld: (Term(0), 0),
        }
    }

    /// The same TermVote, but with no position.
    fn forget(&self, enter: &EnterTerm) -> EnterTerm {
        let Liar { me, members, signer, .. } = &self.liar;
        let vote =
            TermVote::sign(members.cluster(), enter.vote.epoch, enter.vote.term, None, None, *me, &**signer);
        EnterTerm { vote, position: None, suspects: enter.suspects.clone(), sole: None }
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
        let template = EnterTerm { vote: own?.clone(), position: None, suspects: None, sole: None };
        let own = Arc::new(self.forget(&template));
        let mut chosen = vec![&own];
        chosen.extend(votes.into_iter().take(self.liar.members.quorum() - 1));
        let position = chosen.iter().max_by_key(|enter| enter.vote.rank())?.position.clone();
        chosen.sort_by_key(|enter| enter.vote.signer);
        let mut lower = NewTerm {
            epoch: honest.epoch,
            term: honest.term,
            votes: chosen.iter().map(|enter| enter.vote.clone()).collect(),
            position,
            sole: None,
        };
        let starts = (honest.start(&self.liar.members), lower.start(&self.liar.members));
        if let Some(start) = lower.sole_start(&self.liar.members) {
            let mut soles = chosen.iter().filter_map(|enter| enter.sole.as_ref());
            lower.sole = soles.find(|block| block.reference() == start).cloned();
        }
        if starts.0 != starts.1 && self.starts.len() < REMEMBERED {
            self.starts.insert(honest.term, starts);
        }
        Some(lower)
    }

    /// An empty block on the lower start, in the place of an honest one.
    fn forge(&mut self, append: &Append) -> Option<Append> {
        let (honest, low) = *self.starts.get(&append.block.header().term)?;
        let parent = append.block.header().parent;
        let has_parent = parent == honest.digest || self.chain.get(&parent).is_some();
        let block = self.chain.in_place_of(&append.block, |header| {
            if parent == honest.digest {
                (header.parent, header.index) = (low.digest, low.index.next());
            }
            if header.executed.index > low.index {
                header.executed = Executed { index: Index(0), state: kv::empty_state() };
            }
            has_parent.then(Vec::new)
        })?;
        Some(self.liar.append(block, append.certificates.clone()))
    }
}

impl Adversary for Forget {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let is_deceived = self.deceived.contains(&to);
        let shown = match message {
            Message::EnterTerm(enter) if is_deceived && enter.vote.signer == self.liar.me => {
                Message::EnterTerm(Arc::new(self.forget(enter)))
            }
            Message::NewTerm(new_term)
                if is_deceived && self.liar.members.leader(new_term.term) == self.liar.me =>
            {
                if self.withholds(new_term.term) {
                    return Vec::new();
                }
                let shown = self.lower(new_term).map_or_else(|| Arc::clone(new_term), Arc::new);
                Message::NewTerm(shown)
            }
            Message::Append(append) if is_deceived => {
                let mut shown = self.forge(append).unwrap_or_else(|| append.clone());
                shown.certificates.prepared = None;
                Message::Append(shown)
            }
            Message::Heartbeat(heartbeat) if is_deceived => {
                let mut shown = heartbeat.clone();
                shown.certificates.prepared = None;
                Message::Heartbeat(shown)
            }
            Message::Certificate(certificate) if is_deceived && !certificate.is_commit() => {
                return Vec::new();
            }
            // A liar does not accuse itself.
            Message::Evidence(_) => return Vec::new(),
            other => other.clone(),
        };
        vec![Parcel::now(to, shown)]
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        match message {
            Message::EnterTerm(enter) if self.reported.len() < REMEMBERED => {
                if enter.vote.signer != self.liar.me {
                    let reported = self.reported.entry(enter.vote.term).or_default();
                    reported.insert(enter.vote.signer, Arc::clone(enter));
                }
                Vec::new()
            }
            Message::Vote(vote) | Message::LateVote(vote) => {
                let certificate = self.chain.gather(&self.liar, vote);
                certificate
                    .map_or_else(Vec::new, |it| self.liar.to_others(&Message::Certificate(Arc::new(it))))
            }
            _ => Vec::new(),
        }
    }
}
