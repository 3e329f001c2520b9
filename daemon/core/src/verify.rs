//! What is believed of a peer: the only way from a decoded [`Message`] to a [`Verified`] one.
//!
//! A replica takes verified messages only, so no path (live messages, fetched blocks, read answers) can skip these
//! checks:
//!
//! - it belongs to this cluster and this epoch;
//! - every signer is a member, and every signature is that member's over exactly these fields;
//! - a certificate holds the signatures of a quorum of distinct members on its one ballot;
//! - a term vote comes with the certificate of the position that it claims, of a lower term; a NewTerm with a
//!   quorum of term votes for its term and the certificate of the highest position among them;
//! - an Append is signed by the leader of its term, and its batches by their origins;
//! - a header covers the batches it stands with, and sizes are within [`crate::limits`].
//!
//! Where the protocol signs nothing, a signature is [`Signature::NONE`], and who told is believed; a quorum is counted all the same.
//!
//! What depends on a replica's state (is the term current, is the batch next) is the replica's business.
//!
//! Certificates repeat: a leader sends its newest with every heartbeat. Those found valid are remembered by digest
//! (at most 2 × [`KNOWN`]), so that a signature seen once is not checked again.

use std::{
    collections::BTreeSet,
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    ballot::{Ballot, BallotKind, Suspect, TermVote},
    block::{Batch, Block, BlockRef, Proposal},
    certificate::{Certificate, SuspectCertificate},
    crypto::{CheckSignature, Digest, Domain, Signature, Signer},
    ids::{Epoch, MemberId, Term},
    limits,
    membership::Membership,
    message::{Append, Certificates, EnterTerm, Message, NewTerm},
};

/// Something that is known to hold: it passed a [`Verifier`], or this replica made it itself.
pub struct Verified<T>(Arc<T>);

impl<T> Verified<T> {
    /// For what this replica made itself.
    pub(crate) fn own(object: T) -> Self {
        Self(Arc::new(object))
    }
}

impl<T> Clone for Verified<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Verified<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: PartialEq> PartialEq for Verified<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T: Eq> Eq for Verified<T> {}

/// What is wrong with a message. Whoever sent it is faulty, or lives in another epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Misbehavior {
    /// It belongs to another cluster.
    #[error("of another cluster")]
    OtherCluster,
    /// It belongs to another epoch.
    #[error("of another epoch")]
    OtherEpoch,
    /// It is signed in the name of somebody who is not a member.
    #[error("signed by {0}, who is not a member")]
    NotAMember(MemberId),
    /// A signature is not what it claims to be.
    #[error("bad signature in the name of member {0}")]
    BadSignature(MemberId),
    /// The signers are not a quorum of distinct members.
    #[error("not signed by a quorum of distinct members")]
    NoQuorum,
    /// A certificate of the wrong kind, term or block for where it stands.
    #[error("a certificate that does not fit its message")]
    MisplacedCertificate,
    /// A position that is missing its certificate, or not the highest.
    #[error("a position that is not the highest one certified")]
    UnjustifiedPosition,
    /// A header that does not cover its batches.
    #[error("a header that does not cover its batches")]
    Inconsistent,
    /// Something is larger than the limits allow.
    #[error("larger than the limits allow")]
    TooLarge,
    /// A ballot that the cluster's protocol does not hold.
    #[error("a ballot that this protocol does not hold")]
    NoSuchBallot,
    /// Evidence of two statements that a correct member may make.
    #[error("evidence that proves nothing")]
    NoProof,
}

/// How many valid certificates are remembered, twice over.
pub const KNOWN: usize = 512;

/// Checks the messages of one epoch.
pub struct Verifier {
    members: Arc<Membership>,
    check: Arc<dyn CheckSignature>,
    own: Option<(MemberId, Arc<dyn Signer>)>,
    known: Mutex<Known>,
}

/// Digests of valid certificates, in two generations: when the younger is full the older is forgotten.
#[derive(Default)]
struct Known {
    younger: BTreeSet<Digest>,
    older: BTreeSet<Digest>,
}

impl Known {
    fn contains(&self, digest: &Digest) -> bool {
        self.younger.contains(digest) || self.older.contains(digest)
    }

    fn insert(&mut self, digest: Digest) {
        if self.younger.len() >= KNOWN {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(digest);
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("members", &self.members).finish_non_exhaustive()
    }
}

impl Verifier {
    /// A verifier for the members of one epoch.
    pub fn new(members: Arc<Membership>, check: Arc<dyn CheckSignature>) -> Self {
        Self { members, check, own: None, known: Mutex::default() }
    }

    /// The same, for the holder of a member's key: whether a signature is its own it tells by signing again, as signatures
    /// are deterministic. That takes a quarter of the time, and every third signature of a certificate is one's own.
    #[must_use]
    pub fn with_own(self, me: MemberId, signer: Arc<dyn Signer>) -> Self {
        Self { own: Some((me, signer)), ..self }
    }

    /// Checks everything about a message that does not depend on a replica's state.
    ///
    /// # Errors
    /// The first thing found to be wrong.
    pub fn verify(&self, message: Message) -> Result<Verified<Message>, Misbehavior> {
        self.check_message(&message)?;
        Ok(Verified(Arc::new(message)))
    }

    fn check_message(&self, message: &Message) -> Result<(), Misbehavior> {
        match message {
            Message::Batch(batch) => self.check_batch(batch),
            Message::Append(append) => self.check_append(append),
            Message::Vote(vote) | Message::LateVote(vote) => {
                self.check_ballot(&vote.ballot)?;
                if vote.ballot.kind.mark() == BallotKind::Prepare && !self.members.protocol().row().prepares {
                    return Err(Misbehavior::NoSuchBallot);
                }
                let bytes = vote.ballot.signed_bytes(self.members.cluster());
                self.check_signature(vote.signer, &bytes, &vote.signature)
            }
            Message::Certificate(certificate) => self.check_certificate(certificate),
            Message::Heartbeat(heartbeat) => {
                self.check_epoch(heartbeat.epoch)?;
                self.check_certificates(&heartbeat.certificates)
            }
            Message::Suspect(suspect) => {
                self.check_epoch(suspect.epoch)?;
                let bytes = Suspect::signed_bytes(self.members.cluster(), suspect.epoch, suspect.term);
                self.check_signature(suspect.signer, &bytes, &suspect.signature)
            }
            Message::Evidence(evidence) => evidence.check(&self.members, &*self.check),
            Message::Proposal(proposal) => self.check_proposal(proposal),
            Message::EnterTerm(enter) => self.check_enter_term(enter),
            Message::NewTerm(new_term) => self.check_new_term(new_term),
            Message::FetchAncestors(_) | Message::FetchCommitted(_) => Ok(()),
            Message::Blocks(blocks) => {
                if blocks.blocks.len() > limits::FETCH_BLOCKS {
                    return Err(Misbehavior::TooLarge);
                }
                for block in &blocks.blocks {
                    self.check_block(block)?;
                }
                match &blocks.certificate {
                    None => Ok(()),
                    Some(certificate) if certificate.is_commit() => self.check_certificate(certificate),
                    Some(_) => Err(Misbehavior::MisplacedCertificate),
                }
            }
            Message::ReadQuery(query) => self.check_epoch(query.epoch),
            Message::ReadAnswer(answer) => {
                self.check_epoch(answer.epoch)?;
                answer.position.iter().try_for_each(|certificate| self.check_certificate(certificate))
            }
        }
    }

    fn check_append(&self, append: &Append) -> Result<(), Misbehavior> {
        self.check_block(&append.block)?;
        self.check_proposal(&append.proposal())?;
        for batch in append.block.batches() {
            self.check_batch(batch)?;
        }
        self.check_certificates(&append.certificates)
    }

    fn check_certificates(&self, certificates: &Certificates) -> Result<(), Misbehavior> {
        if certificates.committed.as_ref().is_some_and(|certificate| !certificate.is_commit()) {
            return Err(Misbehavior::MisplacedCertificate);
        }
        certificates.iter().try_for_each(|certificate| self.check_certificate(certificate))
    }

    /// A block by itself: its place, its consistency, its size. Who proposed it, and whether its batches are
    /// signed, matters only until a certificate covers it.
    pub(crate) fn check_block(&self, block: &Block) -> Result<(), Misbehavior> {
        self.check_cluster(block.header().cluster == self.members.cluster())?;
        self.check_epoch(block.header().epoch)?;
        if block.batches().len() > limits::MAX_BLOCK_BATCHES || block.size() > limits::MAX_BLOCK {
            return Err(Misbehavior::TooLarge);
        }
        if block.header().sole && block.size() > limits::MAX_SOLE {
            return Err(Misbehavior::TooLarge);
        }
        if block.is_consistent() { Ok(()) } else { Err(Misbehavior::Inconsistent) }
    }

    fn check_proposal(&self, proposal: &Proposal) -> Result<(), Misbehavior> {
        self.check_cluster(proposal.header.cluster == self.members.cluster())?;
        self.check_epoch(proposal.header.epoch)?;
        let leader = self.members.leader(proposal.header.term);
        self.check_signature(leader, &Proposal::signed_bytes(&proposal.header), &proposal.signature)
    }

    fn check_batch(&self, batch: &Batch) -> Result<(), Misbehavior> {
        if batch.requests.len() > limits::MAX_BATCH_REQUESTS || batch.size() > limits::MAX_BATCH {
            return Err(Misbehavior::TooLarge);
        }
        self.check_signature(batch.origin, &batch.signed_bytes(self.members.cluster()), &batch.signature)
    }

    pub(crate) fn check_enter_term(&self, enter: &EnterTerm) -> Result<(), Misbehavior> {
        self.check_term_vote(&enter.vote, enter.vote.term)?;
        match (&enter.vote.position, &enter.position) {
            (None, None) => {}
            (Some(block), Some(certificate)) if certificate.block() == *block => {
                self.check_certificate(certificate)?;
            }
            _ => return Err(Misbehavior::UnjustifiedPosition),
        }
        self.check_sole(enter.vote.sole, enter.sole.as_deref())?;
        match &enter.suspects {
            None => Ok(()),
            Some(suspects) if suspects.term.next() == enter.vote.term => {
                self.check_suspect_certificate(suspects)
            }
            Some(_) => Err(Misbehavior::MisplacedCertificate),
        }
    }

    fn check_term_vote(&self, vote: &TermVote, term: Term) -> Result<(), Misbehavior> {
        self.check_epoch(vote.epoch)?;
        if vote.term != term || [vote.position, vote.sole].iter().flatten().any(|block| block.term >= term) {
            return Err(Misbehavior::UnjustifiedPosition);
        }
        let bytes =
            TermVote::signed_bytes(self.members.cluster(), vote.epoch, vote.term, vote.position, vote.sole);
        self.check_signature(vote.signer, &bytes, &vote.signature)
    }

    fn check_new_term(&self, new_term: &NewTerm) -> Result<(), Misbehavior> {
        self.check_epoch(new_term.epoch)?;
        if !self.members.is_quorum(new_term.votes.iter().map(|vote| vote.signer)) {
            return Err(Misbehavior::NoQuorum);
        }
        let highest = new_term.votes.iter().filter_map(TermVote::rank).max();
        if highest != new_term.position.as_ref().map(|certificate| certificate.rank()) {
            return Err(Misbehavior::UnjustifiedPosition);
        }
        self.check_sole(new_term.sole_start(&self.members), new_term.sole.as_deref())?;
        for vote in &new_term.votes {
            self.check_term_vote(vote, new_term.term)?;
        }
        new_term.position.iter().try_for_each(|certificate| self.check_certificate(certificate))
    }

    pub(crate) fn check_certificate(&self, certificate: &Certificate) -> Result<(), Misbehavior> {
        self.check_ballot(&certificate.ballot)?;
        if certificate.ballot.kind == BallotKind::Prepare && !self.members.protocol().row().prepares {
            // The acceptance of a block, which nobody votes on.
            let is_bare = certificate.signatures.is_empty();
            return if is_bare { Ok(()) } else { Err(Misbehavior::NoSuchBallot) };
        }
        self.check_signatures(&certificate.signatures, || {
            certificate.ballot.signed_bytes(self.members.cluster())
        })
    }

    fn check_ballot(&self, ballot: &Ballot) -> Result<(), Misbehavior> {
        self.check_epoch(ballot.epoch)?;
        match ballot.kind {
            BallotKind::Sole { .. } if !self.members.protocol().row().prepares => {
                Err(Misbehavior::NoSuchBallot)
            }
            BallotKind::Sole { members } if usize::from(members) != self.members.n() => {
                Err(Misbehavior::NoQuorum)
            }
            _ => Ok(()),
        }
    }

    /// A sole block, where one is named.
    fn check_sole(&self, named: Option<BlockRef>, block: Option<&Block>) -> Result<(), Misbehavior> {
        match (named, block) {
            (None, None) => Ok(()),
            (Some(named), Some(block)) if block.reference() == named && block.header().sole => {
                self.check_block(block)
            }
            _ => Err(Misbehavior::UnjustifiedPosition),
        }
    }

    fn check_suspect_certificate(&self, certificate: &SuspectCertificate) -> Result<(), Misbehavior> {
        self.check_epoch(certificate.epoch)?;
        self.check_signatures(&certificate.signatures, || {
            Suspect::signed_bytes(self.members.cluster(), certificate.epoch, certificate.term)
        })
    }

    /// A quorum of distinct members' signatures over one text.
    fn check_signatures(
        &self,
        signatures: &[(MemberId, Signature)],
        signed_bytes: impl FnOnce() -> Vec<u8>,
    ) -> Result<(), Misbehavior> {
        if !self.members.is_quorum(signatures.iter().map(|(signer, _)| *signer)) {
            return Err(Misbehavior::NoQuorum);
        }
        let bytes = signed_bytes();
        let digest = {
            let mut hasher = Domain::Remembered.hasher();
            hasher.update_sized(&bytes);
            for (signer, signature) in signatures {
                hasher.update(&[signer.0]).update(&signature.0);
            }
            hasher.finish()
        };
        if self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(&digest) {
            return Ok(());
        }
        for (signer, signature) in signatures {
            self.check_signature(*signer, &bytes, signature)?;
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        Ok(())
    }

    fn check_signature(
        &self,
        signer: MemberId,
        bytes: &[u8],
        signature: &Signature,
    ) -> Result<(), Misbehavior> {
        let member = self.members.get(signer).ok_or(Misbehavior::NotAMember(signer))?;
        if !self.members.protocol().row().signs {
            let is_none = *signature == Signature::NONE;
            return if is_none { Ok(()) } else { Err(Misbehavior::BadSignature(signer)) };
        }
        if let Some((me, own)) = &self.own
            && signer == *me
            && own.sign(bytes) == *signature
        {
            return Ok(());
        }
        if self.check.check(&member.key, bytes, signature) {
            Ok(())
        } else {
            Err(Misbehavior::BadSignature(signer))
        }
    }

    fn check_epoch(&self, epoch: Epoch) -> Result<(), Misbehavior> {
        if epoch == self.members.epoch() { Ok(()) } else { Err(Misbehavior::OtherEpoch) }
    }

    fn check_cluster(&self, same: bool) -> Result<(), Misbehavior> {
        if same { Ok(()) } else { Err(Misbehavior::OtherCluster) }
    }
}
