//! Watching for lies: what members have signed is compared with what they signed before.
//!
//! - Votes of the current term, from wherever they come: alone, or as the signatures of a certificate. Two at one place for
//!   two blocks are a proof.
//! - Each member's highest Commit vote and newest TermVote, over all terms: a TermVote that reports less is a proof.
//! - The leaders' newest proposals, of whatever term. Where a certificate names another block than the proposal that came
//!   here, the leader has shown different blocks to different members: the proposal is passed to all, and whoever has got
//!   the other one has the proof. Who suspects a leader shows its first proposal that is not committed, in case that no
//!   block of the index was ever certified.
//!
//! A proof is kept ([`MAX_EVIDENCE`] a member and kind, one an offence), persisted, passed on once to all, and shown again from time to
//! time, one after the other, to members that were away. Nothing is decided by it but one thing: the current term's leader,
//! proved to have signed two headers, is suspected for good (`term.rs`).

use std::collections::BTreeMap;

use super::{
    Replica,
    io::{Report, To},
};
use crate::{
    ballot::{BallotKind, TermVote, Vote},
    block::Proposal,
    certificate::Certificate,
    crypto::Digest,
    durable::Record,
    evidence::{Evidence, Offence, OffenceKind},
    ids::{Index, MemberId, Term},
    limits::{EVIDENCE_RESENDS, MAX_EVIDENCE, WATCHED_PROPOSALS, WINDOW},
    message::Message,
};

/// What was seen, and what it proves.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    /// Of the current term, one a member and place, the first. Within the window, and as far below what is committed.
    votes: BTreeMap<(Index, BallotKind, MemberId), Vote>,
    /// The highest Commit vote of each member.
    commits: BTreeMap<MemberId, Vote>,
    /// The newest TermVote of each member.
    term_votes: BTreeMap<MemberId, TermVote>,
    /// The first that came for each place. The newest [`WATCHED_PROPOSALS`].
    proposals: BTreeMap<(Term, Index), Watched>,
    /// At most [`MAX_EVIDENCE`] a member and kind.
    found: BTreeMap<Offence, Evidence>,
    /// The last one shown again, and when.
    shown: Option<Offence>,
    shown_us: u64,
}

#[derive(Clone, Debug)]
struct Watched {
    proposal: Proposal,
    digest: Digest,
    /// Whether it was passed to all.
    is_shown: bool,
}

impl Watch {
    pub fn len(&self) -> usize {
        self.votes.len() + self.commits.len() + self.term_votes.len() + self.proposals.len()
    }

    /// A new term: votes of the one before are compared no longer.
    pub fn enter_term(&mut self) {
        self.votes.clear();
    }

    pub fn forget_through(&mut self, committed: Index) {
        let lowest = Index(committed.0.saturating_sub(WINDOW));
        self.votes.retain(|(index, ..), _| *index > lowest);
    }

    /// Whether a proof says something new, and there is room for it.
    fn is_news(&self, offence: Offence) -> bool {
        let is_alike = |known: &&Offence| (known.accused, known.kind) == (offence.accused, offence.kind);
        !self.found.contains_key(&offence) && self.found.keys().filter(is_alike).count() < MAX_EVIDENCE
    }

    /// The lowest proposal of a term above an index.
    fn lowest_proposal(&self, term: Term, above: Index) -> Option<&Proposal> {
        let of_term = (term, above.next())..=(term, Index(u64::MAX));
        self.proposals.range(of_term).next().map(|(_, watched)| &watched.proposal)
    }

    /// A proof that the leader of a term has signed two headers for one index.
    fn proof_against_leader(&self, term: Term) -> Option<&Evidence> {
        let is_one = |offence: &Offence| offence.kind == OffenceKind::DoubleProposal && offence.term == term;
        self.found.iter().find(|(offence, _)| is_one(offence)).map(|(_, proof)| proof)
    }

    /// The one to show after the last one shown.
    fn next_shown(&mut self) -> Option<&Evidence> {
        let after = self.shown;
        let later = |offence: &&Offence| after.is_none_or(|after| **offence > after);
        self.shown = self.found.keys().find(later).or(self.found.keys().next()).copied();
        self.shown.and_then(|offence| self.found.get(&offence))
    }
}

impl Replica {
    /// Everything that is proved against anybody, in the order of the accused.
    pub fn evidence(&self) -> impl Iterator<Item = &Evidence> {
        self.watch.found.values()
    }

    /// What was durable at the start.
    pub(super) fn recall_evidence(&mut self, evidence: impl IntoIterator<Item = Evidence>) {
        for proof in evidence {
            let offence = proof.offence(self.members());
            self.routing.trust.condemn(offence.accused);
            self.watch.found.insert(offence, proof);
        }
        self.recall_proof();
    }

    /// The leader of the current term may have been proved to lie before the term was entered.
    pub(super) fn recall_proof(&mut self) {
        let term = self.safety.term();
        if let Some(proof) = self.watch.proof_against_leader(term).cloned() {
            self.prove_leader(term, &proof);
        }
    }

    /// The suspected leader's first proposal that is not committed, for those who have got another one.
    pub(super) fn show_proposal(&mut self) {
        let (term, above) = (self.safety.term(), self.tree.committed());
        if let Some(proposal) = self.watch.lowest_proposal(term, above) {
            let proposal = Box::new(proposal.clone());
            self.send(To::Others, Message::Proposal(proposal));
        }
    }

    /// A member's valid vote, on its own or out of a certificate.
    pub(super) fn watch_vote(&mut self, vote: &Vote) {
        let block = vote.ballot.block;
        let is_higher = |before: &Vote| before.ballot.rank() < vote.ballot.rank();
        // One of a term far ahead would hide all others of its signer.
        if vote.ballot.kind == BallotKind::Commit
            && block.term <= self.safety.term()
            && self.watch.commits.get(&vote.signer).is_none_or(is_higher)
        {
            self.watch.commits.insert(vote.signer, vote.clone());
            let term_vote = self.watch.term_votes.get(&vote.signer);
            self.accuse(term_vote.and_then(|term_vote| Evidence::of_term_vote(vote, term_vote)));
        }
        let base = self.window_base().0;
        let watched = base.saturating_sub(WINDOW) + 1..=base.saturating_add(2 * WINDOW);
        if block.term == self.safety.term() && watched.contains(&block.index.0) {
            let place = (block.index, vote.ballot.kind.mark(), vote.signer);
            let first = self.watch.votes.entry(place).or_insert_with(|| vote.clone());
            let proof = Evidence::of_votes(first, vote);
            self.accuse(proof);
        }
    }

    /// A leader's proposal, with its true signature. Answers whether it is the first for its place, or the same.
    pub(super) fn watch_proposal(&mut self, proposal: &Proposal) -> bool {
        let place = (proposal.header.term, proposal.header.index);
        if let Some(first) = self.watch.proposals.get(&place) {
            let proof = Evidence::of_proposals(&first.proposal, proposal);
            let is_same = proof.is_none();
            self.accuse(proof);
            return is_same;
        }
        // One far ahead would displace all others.
        let highest = self.window_base().0.saturating_add(2 * WINDOW);
        if proposal.header.term <= self.safety.term() && proposal.header.index.0 <= highest {
            let digest = proposal.header.digest();
            let watched = Watched { proposal: proposal.clone(), digest, is_shown: false };
            self.watch.proposals.insert(place, watched);
            if self.watch.proposals.len() > WATCHED_PROPOSALS {
                self.watch.proposals.pop_first();
            }
        }
        true
    }

    /// The votes that a valid certificate is made of, and the proposal that it contradicts.
    pub(super) fn watch_certificate(&mut self, certificate: &Certificate) {
        let ballot = certificate.ballot;
        let place = (ballot.block.term, ballot.block.index);
        if let Some(watched) = self.watch.proposals.get_mut(&place)
            && !watched.is_shown
            && watched.digest != ballot.block.digest
        {
            watched.is_shown = true;
            let contradicted = Box::new(watched.proposal.clone());
            self.send(To::Others, Message::Proposal(contradicted));
        }
        for (signer, signature) in &certificate.signatures {
            self.watch_vote(&Vote { ballot, signer: *signer, signature: *signature });
        }
    }

    /// A member's valid TermVote.
    pub(super) fn watch_term_vote(&mut self, vote: &TermVote) {
        let is_newer = self.watch.term_votes.get(&vote.signer).is_none_or(|before| before.term < vote.term);
        if is_newer && vote.term <= self.safety.term().next() {
            self.watch.term_votes.insert(vote.signer, vote.clone());
        }
        let commit = self.watch.commits.get(&vote.signer);
        self.accuse(commit.and_then(|commit| Evidence::of_term_vote(commit, vote)));
    }

    /// A proof that this member has come upon.
    pub(super) fn accuse(&mut self, proof: Option<Evidence>) {
        // What nobody signs proves nothing.
        if let Some(proof) = proof.filter(|_| self.row().signs) {
            self.on_evidence(&proof);
        }
    }

    /// A proof, valid, from whomever.
    pub(super) fn on_evidence(&mut self, evidence: &Evidence) {
        let offence = evidence.offence(self.members());
        let is_news = self.watch.is_news(offence);
        let is_reason =
            offence.kind == OffenceKind::DoubleProposal && self.prove_leader(offence.term, evidence);
        if is_news {
            self.routing.trust.condemn(offence.accused);
            self.watch.found.insert(offence, evidence.clone());
            self.persist(Record::Evidence(Box::new(evidence.clone())));
            self.report(Report::Evidence(offence));
        }
        if is_news || is_reason {
            // Durable first: who has said it stands by it after a crash.
            let after = self.persisted;
            self.send_after(To::Others, Message::Evidence(Box::new(evidence.clone())), after);
        }
        if is_reason {
            self.tick_term();
        }
    }

    /// Shows a proof again, the next in turn.
    pub(super) fn tick_evidence(&mut self) {
        let (now_us, every_us) =
            (self.now_us(), self.setup.timing.resend_us.saturating_mul(EVIDENCE_RESENDS));
        if self.watch.shown_us.saturating_add(every_us) > now_us {
            return;
        }
        self.watch.shown_us = now_us;
        if let Some(evidence) = self.watch.next_shown().cloned() {
            self.send(To::Others, Message::Evidence(Box::new(evidence)));
        }
    }
}
