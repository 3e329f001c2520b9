//! The judge of a run: what a cluster must never do, and what it must have done at the end.
//!
//! It sees every message, every sync and every answer to a client, and believes nobody: its quorums, leaders,
//! ranks and signature checks are its own ([`cast`]), and no predicate of the production code is asked. One file for
//! each concern; its header names the checks and the section of DESIGN.md that they hold the core to.
//!
//! Everything is checked once, when it is first seen: certificates and batches are found again by comparison.

pub mod accusations;
pub mod agreement;
pub mod blocks;
pub mod cast;
pub mod certificates;
pub mod clients;
pub mod conduct;
pub mod durability;
pub mod liveness;
pub mod signatures;
pub mod terms;

use std::{collections::BTreeSet, sync::Arc};

use bftd_core::{
    ballot::{Ballot, BallotKind},
    block::Block,
    certificate::Certificate,
    crypto::{CheckSignature, Digest},
    durable::{Durable, Record},
    ids::{MemberId, Term},
    membership::Membership,
    message::{Append, Message},
};

use self::{
    agreement::Agreement, blocks::Blocks, cast::Cast, cast::require, certificates::Certificates,
    clients::Clients, conduct::Conduct, durability::Durability, liveness::Liveness, signatures::Signatures,
    terms::Terms,
};
use crate::event::{Event, Observer, Violation};

/// Watches one run. See the module's header.
pub struct Oracle {
    cast: Cast,
    blocks: Blocks,
    certificates: Certificates,
    agreement: Agreement,
    signatures: Signatures,
    durability: Durability,
    terms: Terms,
    clients: Clients,
    conduct: Conduct,
    liveness: Liveness,
}

impl Oracle {
    /// An oracle for a run of these members, of whom `correct` follow the protocol; `check` is the run's scheme.
    pub fn new(members: &Membership, check: Arc<dyn CheckSignature>, correct: BTreeSet<MemberId>) -> Self {
        let cast = Cast::new(members, check, correct);
        Self {
            agreement: Agreement::new(&cast),
            cast,
            blocks: Blocks::default(),
            certificates: Certificates::default(),
            signatures: Signatures::default(),
            durability: Durability::default(),
            terms: Terms::default(),
            clients: Clients::new(),
            conduct: Conduct::default(),
            liveness: Liveness::default(),
        }
    }

    fn started(&mut self, node: MemberId, restart: bool, durable: &Durable) -> Result<(), Violation> {
        let term = durable.term.as_ref().map_or(Term(0), |entered| entered.vote.term);
        // An empty disk proves that nothing was sent: everything a member sends waits for its first record.
        let has_run = restart && *durable != Durable::default();
        self.signatures.start(node, (has_run && self.cast.leads(term, node)).then_some(term));
        let committed = durable.committed.as_ref();
        self.agreement.start(
            node,
            committed.map_or(self.cast.root.index.0, |committed| committed.certificate.ballot.block.index.0),
        );
        self.conduct.start(node);
        for block in durable.blocks.values().chain(&durable.committed_block) {
            self.blocks.insert(block);
        }
        let certificates =
            committed.map(|committed| &committed.certificate).into_iter().chain(&durable.position);
        for certificate in certificates {
            self.certificates.check(&self.cast, node, certificate)?;
            self.saw(certificate)?;
        }
        Ok(())
    }

    fn sent(
        &mut self,
        at_us: u64,
        (from, to): (MemberId, MemberId),
        message: &Message,
        durable: &Durable,
    ) -> Result<(), Violation> {
        self.blocks.learn(message);
        if !self.cast.is_correct(from) {
            return self.sent_by_liar(from, message);
        }
        self.certificates.check_sent(&self.cast, from, message)?;
        let mut certificates = Vec::new();
        certificates::in_message(message, |certificate| certificates.push(certificate));
        for certificate in certificates {
            self.saw(certificate)?;
            if !self.cast.prepares() && certificate.ballot.kind == BallotKind::Prepare {
                let is_own = match message {
                    Message::ReadAnswer(_) => true,
                    Message::EnterTerm(enter) => enter.vote.signer == from,
                    _ => false,
                };
                self.durability.tell(&self.cast, from, certificate.ballot.block, is_own, durable)?;
            }
            if certificate.signatures.iter().any(|(signer, _)| *signer == from) {
                self.durability.vote(&self.cast, from, certificate.ballot, durable, true)?;
            }
        }
        self.liveness.sent(&self.cast, at_us, from, message)?;
        self.conduct.sent(at_us, &self.cast, (from, to), message, durable)?;
        match message {
            Message::Vote(vote) | Message::LateVote(vote) if vote.signer == from => {
                self.voted(from, vote.ballot)?;
                self.check_sole(from, vote.ballot)?;
                let seen = (&self.blocks, &self.agreement);
                self.signatures.vote(&self.cast, seen, from, vote.ballot, true)?;
                self.durability.vote(&self.cast, from, vote.ballot, durable, false)
            }
            Message::Append(append) => self.appended(from, append, durable),
            Message::EnterTerm(enter) if enter.vote.signer == from => {
                self.durability.term_vote(&self.cast, &enter.vote, durable)?;
                self.signatures.term_vote(&self.cast, from, &enter.vote)
            }
            Message::NewTerm(new_term) => {
                if self.cast.leads(new_term.term, from) {
                    self.durability.leads(from, new_term.term, durable)?;
                }
                for vote in &new_term.votes {
                    if vote.signer == from {
                        self.durability.term_vote(&self.cast, vote, durable)?;
                    }
                    if self.cast.is_correct(vote.signer) {
                        self.signatures.term_vote(&self.cast, vote.signer, vote)?;
                    }
                }
                self.terms.new_term(&self.cast, from, new_term)
            }
            Message::Batch(batch) if batch.origin == from => {
                self.durability.batch(from, batch.incarnation.0, durable)
            }
            _ => Ok(()),
        }
    }

    fn appended(&mut self, from: MemberId, append: &Append, durable: &Durable) -> Result<(), Violation> {
        for batch in append.block.batches().iter().filter(|batch| batch.origin == from) {
            self.durability.batch(from, batch.incarnation.0, durable)?;
        }
        self.durability.leads(from, append.block.header().term, durable)?;
        self.signatures.propose(from, &append.block)?;
        self.terms.propose(&self.cast, from, &append.block)
    }

    /// What a liar sends proves something only where its signatures are true.
    fn sent_by_liar(&mut self, from: MemberId, message: &Message) -> Result<(), Violation> {
        if let Message::Vote(vote) | Message::LateVote(vote) = message
            && vote.signer == from
            && certificates::vote_is_true(&self.cast, vote)
        {
            self.voted(from, vote.ballot)?;
        }
        let mut certificates = Vec::new();
        certificates::in_message(message, |certificate| certificates.push(certificate));
        certificates.into_iter().try_for_each(|certificate| self.saw(certificate))
    }

    /// Enough votes make a block final, whether or not anybody shows them together.
    fn voted(&mut self, signer: MemberId, ballot: Ballot) -> Result<(), Violation> {
        if self.terms.vote(&self.cast, signer, ballot) {
            self.agreement.certify(ballot.block, &self.blocks)
        } else {
            Ok(())
        }
    }

    /// A correct member votes for a block as a sole one only where its parent is final.
    fn check_sole(&self, node: MemberId, ballot: Ballot) -> Result<(), Violation> {
        let Some(block) = self.blocks.get(&ballot.block.digest) else { return Ok(()) };
        let header = block.header();
        let is_sole = matches!(ballot.kind, BallotKind::Sole { .. });
        let parent = self.agreement.at(header.index.0.saturating_sub(1));
        let is_right = match ballot.kind {
            BallotKind::Commit => true,
            BallotKind::Prepare | BallotKind::Sole { .. } => header.sole == is_sole,
        };
        require(is_right && (!is_sole || parent == Some(header.parent)), "sole-vote", || {
            format!("{node} signed {ballot:?} for {header:?}, on {parent:?}")
        })
    }

    /// A certificate is out, whoever shows it: if it is valid, all its signers have signed its ballot.
    fn saw(&mut self, certificate: &Certificate) -> Result<(), Violation> {
        if !self.certificates.judge(&self.cast, certificate) || !self.certificates.is_news(certificate) {
            return Ok(());
        }
        if self.cast.is_final(certificate.ballot.kind, certificate.signatures.len()) {
            self.agreement.certify(certificate.ballot.block, &self.blocks)?;
        }
        for (signer, _) in &certificate.signatures {
            self.terms.vote(&self.cast, *signer, certificate.ballot);
            if self.cast.is_correct(*signer) {
                let seen = (&self.blocks, &self.agreement);
                self.signatures.vote(&self.cast, seen, *signer, certificate.ballot, false)?;
            }
        }
        Ok(())
    }

    fn synced(&mut self, node: MemberId, records: &[Record]) -> Result<(), Violation> {
        for record in records {
            if let Record::Block(block) = record {
                self.blocks.insert(block);
            }
        }
        if !self.cast.is_correct(node) {
            return Ok(());
        }
        for record in records {
            let certificate = match record {
                Record::Position(certificate) => certificate,
                Record::Committed(committed) => &committed.certificate,
                Record::Term(entered) => {
                    self.certificates.check_enter(&self.cast, node, entered)?;
                    continue;
                }
                Record::Evidence(evidence) => {
                    accusations::check(&self.cast, node, evidence)?;
                    continue;
                }
                _ => continue,
            };
            self.certificates.check(&self.cast, node, certificate)?;
            self.saw(certificate)?;
        }
        self.durability.synced(&self.cast, node, records)
    }

    fn executed(
        &mut self,
        at_us: u64,
        node: MemberId,
        block: &Arc<Block>,
        state: Digest,
    ) -> Result<(), Violation> {
        if clients::sets_protocol(block) {
            self.liveness.switched(at_us);
        }
        self.blocks.executed(block);
        self.liveness.executed(block);
        self.agreement.execute(node, block, state, &self.blocks)?;
        while let Some(next) =
            self.agreement.at(self.clients.executed() + 1).and_then(|it| self.blocks.get(&it))
        {
            if next.header().index > block.header().index {
                break;
            }
            self.certificates.check_block(&self.cast, node, next)?;
            self.clients.execute(next)?;
        }
        Ok(())
    }
}

impl Observer for Oracle {
    fn observe(&mut self, at_us: u64, event: &Event<'_>) -> Result<(), Violation> {
        let is_correct = |node: &MemberId| self.cast.is_correct(*node);
        match event {
            Event::Started { node, restart, durable, .. } if is_correct(node) => {
                self.started(*node, *restart, durable)
            }
            Event::Sent { from, to, message, durable } => self.sent(at_us, (*from, *to), message, durable),
            Event::Delivered { from, to, message } if is_correct(to) => {
                let mut is_valid = true;
                if let Message::ReadAnswer(answer) = message
                    && let Some(certificate) = &answer.position
                {
                    is_valid = self.certificates.judge(&self.cast, certificate);
                }
                self.conduct.delivered(at_us, (&self.cast, &self.agreement), (*from, *to), message, is_valid)
            }
            Event::Synced { node, records, durable } => {
                self.synced(*node, records)?;
                if self.cast.is_correct(*node) {
                    self.conduct.synced(&self.cast, *node, records, durable);
                }
                Ok(())
            }
            Event::Executed { node, block, state } if is_correct(node) => {
                self.executed(at_us, *node, block, *state)
            }
            Event::Submitted { write, request, .. } => {
                self.clients.submit(*write, request);
                Ok(())
            }
            Event::Acknowledged { node, write, revision } if is_correct(node) => {
                self.clients.acknowledge(*write, *revision)
            }
            Event::ReadBegun { read, key, .. } => {
                self.clients.begin_read(*read, key);
                Ok(())
            }
            Event::ReadAnswered { node, read, key, revision, value } if is_correct(node) => {
                self.clients.answer_read(*read, key, *revision, *value)
            }
            Event::Halted { node, reason } => {
                require(!is_correct(node), "halted", || format!("{node} stopped: {reason}"))
            }
            Event::InvariantBroken { node, what } => {
                require(!is_correct(node), "invariant", || format!("{node}: {what}"))
            }
            Event::Calm { term } => {
                self.liveness.calm(at_us, *term);
                Ok(())
            }
            Event::End { nodes, pending_writes, pending_reads } => {
                self.clients.end()?;
                self.liveness.end(&self.cast, at_us, nodes, (*pending_writes, *pending_reads))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
