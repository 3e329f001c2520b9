//! Certificates that correct members send or persist are valid (DESIGN.md §2, §2.1, §2.3).
//!
//! - `certificate`: q distinct members' true signatures on one ballot of the epoch.
//! - `suspect-certificate`: the same for Suspects.
//! - `position`: a TermVote's position is what its certificate names, and of a lower term.
//! - `forwarded`: votes, batches and proposals that a correct member sends carry true signatures.
//!
//! Signatures are deterministic, so every certificate is checked once and then found by comparison.

use std::collections::BTreeMap;

use bftd_core::{
    ballot::{BallotKind, Suspect, TermVote, Vote},
    block::{Batch, Block, BlockRef, Proposal},
    certificate::{Certificate, SuspectCertificate},
    crypto::{Digest, Signature},
    ids::MemberId,
    message::{EnterTerm, Message},
};

use super::{
    accusations,
    cast::{Cast, require},
};
use crate::event::Violation;

/// What was found to be valid.
#[derive(Default)]
pub struct Certificates {
    /// By ballot; whether [`Certificates::is_news`] is still to say so.
    valid: BTreeMap<(BallotKind, u64, Digest), Vec<(Certificate, bool)>>,
    suspects: Vec<SuspectCertificate>,
    votes: BTreeMap<(MemberId, u64), Vec<TermVote>>,
    proposals: BTreeMap<Digest, Signature>,
    batches: BTreeMap<Digest, Signature>,
    suspect_votes: BTreeMap<(MemberId, u64), Signature>,
}

/// The certificates of ballots in a message.
pub fn in_message<'a>(message: &'a Message, mut found: impl FnMut(&'a Certificate)) {
    match message {
        Message::Append(append) => append.certificates.iter().for_each(|it| found(it)),
        Message::Heartbeat(heartbeat) => heartbeat.certificates.iter().for_each(|it| found(it)),
        Message::Certificate(certificate) => found(certificate),
        Message::EnterTerm(enter) => enter.position.iter().for_each(|it| found(it)),
        Message::NewTerm(new_term) => new_term.position.iter().for_each(|it| found(it)),
        Message::Blocks(blocks) => blocks.certificate.iter().for_each(|it| found(it)),
        Message::ReadAnswer(answer) => answer.position.iter().for_each(|it| found(it)),
        _ => {}
    }
}

impl Certificates {
    /// Whether a certificate is valid.
    pub fn judge(&mut self, cast: &Cast, certificate: &Certificate) -> bool {
        let ballot = certificate.ballot;
        let known = self.valid.entry(key(certificate)).or_default();
        if known.iter().any(|(known, _)| known == certificate) {
            return true;
        }
        if ballot.kind == BallotKind::Prepare && !cast.prepares() {
            // A block that was accepted: nobody votes on that.
            return ballot.epoch == cast.epoch && certificate.signatures.is_empty();
        }
        let bytes = ballot.signed_bytes(cast.cluster);
        let is_valid = ballot.epoch == cast.epoch
            && cast.counts_all(ballot.kind)
            && cast.is_quorum(certificate.signatures.iter().map(|(signer, _)| *signer))
            && certificate
                .signatures
                .iter()
                .all(|(signer, signature)| cast.signed(*signer, &bytes, signature));
        if is_valid {
            known.push((certificate.clone(), true));
        }
        is_valid
    }

    /// Whether this is the first call with a valid certificate.
    pub fn is_news(&mut self, certificate: &Certificate) -> bool {
        let mut known = self.valid.entry(key(certificate)).or_default().iter_mut();
        known.find(|(known, _)| known == certificate).is_some_and(|(_, is_news)| std::mem::take(is_news))
    }

    /// Checks a ballot's certificate that a correct member sends or persists.
    ///
    /// # Errors
    /// `certificate`.
    pub fn check(&mut self, cast: &Cast, by: MemberId, certificate: &Certificate) -> Result<(), Violation> {
        require(self.judge(cast, certificate), "certificate", || {
            format!("{by} sent or persisted an invalid certificate: {certificate:?}")
        })
    }

    /// Checks all that a correct member sends, but its own promises.
    ///
    /// # Errors
    /// Any check of this file.
    pub fn check_sent(&mut self, cast: &Cast, by: MemberId, message: &Message) -> Result<(), Violation> {
        let mut broken = Ok(());
        in_message(message, |certificate| {
            if broken.is_ok() {
                broken = self.check(cast, by, certificate);
            }
        });
        broken?;
        match message {
            Message::EnterTerm(enter) => self.check_enter(cast, by, enter),
            Message::NewTerm(new_term) => {
                new_term.votes.iter().try_for_each(|vote| self.check_term_vote(cast, by, vote))
            }
            Message::Vote(vote) | Message::LateVote(vote) => {
                require(vote_is_true(cast, vote), "forwarded", || {
                    format!("{by} sent a vote with a false signature: {vote:?}")
                })
            }
            Message::Suspect(suspect) => self.check_suspect(cast, by, suspect),
            Message::Evidence(evidence) => accusations::check(cast, by, evidence),
            Message::Proposal(proposal) => {
                require(accusations::is_proposed(cast, proposal), "forwarded", || {
                    format!("{by} sent a proposal with a false signature: {proposal:?}")
                })
            }
            Message::Append(append) => {
                self.check_proposal(cast, by, &append.block, append.signature)?;
                self.check_block(cast, by, &append.block)
            }
            Message::Batch(batch) => self.check_batch(cast, by, batch),
            _ => Ok(()),
        }
    }

    /// Checks a term vote with its certificates.
    ///
    /// # Errors
    /// `certificate`, `suspect-certificate`, `position` or `forwarded`.
    pub fn check_enter(&mut self, cast: &Cast, by: MemberId, enter: &EnterTerm) -> Result<(), Violation> {
        let EnterTerm { vote, position, suspects, sole } = enter;
        self.check_term_vote(cast, by, vote)?;
        if let Some(certificate) = position {
            self.check(cast, by, certificate)?;
        }
        let certified: Option<BlockRef> = position.as_ref().map(|certificate| certificate.ballot.block);
        let is_lower = vote.position.is_none_or(|block| block.term < vote.term);
        require(vote.position == certified && is_lower, "position", || {
            format!("{by} sent or persisted a term vote whose position is not its certificate's: {enter:?}")
        })?;
        require(vote.sole == sole.as_ref().map(|block| block.reference()), "position", || {
            format!("{by} sent or persisted a term vote without the block that it names: {enter:?}")
        })?;
        let Some(suspects) = suspects else { return Ok(()) };
        if self.suspects.contains(suspects) {
            return Ok(());
        }
        let bytes = Suspect::signed_bytes(cast.cluster, suspects.epoch, suspects.term);
        let is_valid = suspects.epoch == cast.epoch
            && suspects.term.0 + 1 == vote.term.0
            && cast.is_quorum(suspects.signatures.iter().map(|(signer, _)| *signer))
            && suspects.signatures.iter().all(|(signer, signature)| cast.signed(*signer, &bytes, signature));
        require(is_valid, "suspect-certificate", || {
            format!("{by} sent or persisted invalid Suspects: {suspects:?}")
        })?;
        self.suspects.push(suspects.as_ref().clone());
        Ok(())
    }

    fn check_term_vote(&mut self, cast: &Cast, by: MemberId, vote: &TermVote) -> Result<(), Violation> {
        let known = self.votes.entry((vote.signer, vote.term.0)).or_default();
        if known.contains(vote) {
            return Ok(());
        }
        let bytes = TermVote::signed_bytes(cast.cluster, vote.epoch, vote.term, vote.position, vote.sole);
        let is_true = vote.epoch == cast.epoch && cast.signed(vote.signer, &bytes, &vote.signature);
        require(is_true, "forwarded", || format!("{by} sent a term vote with a false signature: {vote:?}"))?;
        known.push(vote.clone());
        Ok(())
    }

    fn check_suspect(&mut self, cast: &Cast, by: MemberId, suspect: &Suspect) -> Result<(), Violation> {
        let key = (suspect.signer, suspect.term.0);
        if self.suspect_votes.get(&key) == Some(&suspect.signature) {
            return Ok(());
        }
        let bytes = Suspect::signed_bytes(cast.cluster, suspect.epoch, suspect.term);
        require(cast.signed(suspect.signer, &bytes, &suspect.signature), "forwarded", || {
            format!("{by} sent a Suspect with a false signature: {suspect:?}")
        })?;
        self.suspect_votes.insert(key, suspect.signature);
        Ok(())
    }

    fn check_proposal(
        &mut self,
        cast: &Cast,
        by: MemberId,
        block: &Block,
        signature: Signature,
    ) -> Result<(), Violation> {
        if self.proposals.get(&block.digest()) == Some(&signature) {
            return Ok(());
        }
        let bytes = Proposal::signed_bytes(block.header());
        let is_true = cast.leads(block.header().term, by)
            && block.header().epoch == cast.epoch
            && cast.signed(by, &bytes, &signature);
        require(is_true, "forwarded", || format!("{by} sent a proposal that is not its own: {block:?}"))?;
        self.proposals.insert(block.digest(), signature);
        Ok(())
    }

    /// Checks that a block's batches are what its header says, and are signed by their origins.
    ///
    /// # Errors
    /// `forwarded`.
    pub fn check_block(&mut self, cast: &Cast, by: MemberId, block: &Block) -> Result<(), Violation> {
        require(block.header().batches == Block::batches_digest(block.batches()), "forwarded", || {
            format!("{by} sent or executed a block whose header does not cover its batches: {block:?}")
        })?;
        block.batches().iter().try_for_each(|batch| self.check_batch(cast, by, batch))
    }

    fn check_batch(&mut self, cast: &Cast, by: MemberId, batch: &Batch) -> Result<(), Violation> {
        let digest = batch.digest();
        if self.batches.get(&digest) == Some(&batch.signature) {
            return Ok(());
        }
        require(
            cast.signed(batch.origin, &batch.signed_bytes(cast.cluster), &batch.signature),
            "forwarded",
            || format!("{by} sent or executed a batch with a false signature: {batch:?}"),
        )?;
        self.batches.insert(digest, batch.signature);
        Ok(())
    }
}

fn key(certificate: &Certificate) -> (BallotKind, u64, Digest) {
    let ballot = certificate.ballot;
    (ballot.kind, ballot.block.term.0, ballot.block.digest)
}

/// Whether a vote of this epoch carries its signer's signature.
pub fn vote_is_true(cast: &Cast, vote: &Vote) -> bool {
    vote.ballot.epoch == cast.epoch
        && cast.counts_all(vote.ballot.kind)
        && (cast.prepares() || vote.ballot.kind == BallotKind::Commit)
        && cast.signed(vote.signer, &vote.ballot.signed_bytes(cast.cluster), &vote.signature)
}
