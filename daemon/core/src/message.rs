//! What replicas say to each other. Everything here is unverified until [`crate::verify`] has seen it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    ballot::{Suspect, TermVote, Vote},
    block::{Batch, Block, BlockRef, Proposal},
    certificate::{Certificate, SuspectCertificate},
    crypto::{Digest, Signature},
    evidence::Evidence,
    ids::{Epoch, Incarnation, Index, MemberId, Term},
    membership::Membership,
};

/// A message between two replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// An origin's requests: to the leader, or to everybody when the leader has let them wait.
    Batch(Arc<Batch>),
    /// A leader's next block.
    Append(Append),
    /// A vote on a block, to whom the leader wants to have it.
    Vote(Vote),
    /// A certificate with no block to travel with. From a reader: "expect this block to commit".
    Certificate(Arc<Certificate>),
    /// "The leader of this term is here", with its newest certificates.
    Heartbeat(Heartbeat),
    /// A wish to leave a term.
    Suspect(Suspect),
    /// A proof that a member lied.
    Evidence(Box<Evidence>),
    /// A header that a leader signed, and that a certificate contradicts: who holds the other one has a proof.
    Proposal(Box<Proposal>),
    /// A promise to have left the terms before.
    EnterTerm(Arc<EnterTerm>),
    /// The leader's justification of where its term starts.
    NewTerm(Arc<NewTerm>),
    /// "Send me the block with this digest and its ancestors above an index."
    FetchAncestors(FetchAncestors),
    /// "Send me the committed blocks after this index."
    FetchCommitted(FetchCommitted),
    /// Blocks that the certificate covers, in answer to either fetch.
    Blocks(Blocks),
    /// "What is your position?"
    ReadQuery(ReadQuery),
    /// The answer to it.
    ReadAnswer(ReadAnswer),
    /// A vote again, to everybody, as no certificate has come: whoever has one answers with it.
    LateVote(Vote),
}

/// Whom a leader wants to have the votes for a block. It is not signed, and has no bearing on safety: whoever holds a quorum's
/// votes holds a certificate, and whoever uses one checks it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Route {
    /// The leader, which sends the certificates on.
    #[default]
    Leader,
    /// Every member: each gathers for itself.
    Everyone,
    /// This member, which gathers and broadcasts the certificates.
    Member(MemberId),
}

/// The newest certificates that a leader knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    /// The highest Prepare certificate.
    pub prepared: Option<Arc<Certificate>>,
    /// The highest Commit certificate.
    pub committed: Option<Arc<Certificate>>,
}

impl Certificates {
    /// Those there are.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        self.prepared.iter().chain(&self.committed)
    }
}

/// A block, the leader's signature over its header, and news.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// The block.
    pub block: Arc<Block>,
    /// The proposal's signature: of the leader of the block's term.
    pub signature: Signature,
    /// The newest certificates.
    pub certificates: Certificates,
    /// Who is to gather the votes for this block.
    pub votes_to: Route,
}

impl Append {
    /// The proposal that it carries.
    pub fn proposal(&self) -> Proposal {
        Proposal { header: self.block.header().clone(), signature: self.signature }
    }
}

/// See [`Message::Heartbeat`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The epoch.
    pub epoch: Epoch,
    /// The sender's term.
    pub term: Term,
    /// How many it has sent in this term, with this one: a receiver sees when one is missing.
    pub number: u64,
    /// The newest certificates.
    pub certificates: Certificates,
}

/// A term vote, with what its receiver needs to believe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnterTerm {
    /// The promise.
    pub vote: TermVote,
    /// The certificate of the vote's position.
    pub position: Option<Arc<Certificate>>,
    /// Why the term before was left; none where the signer was moved by a NewTerm or a certificate of the term.
    pub suspects: Option<Arc<SuspectCertificate>>,
    /// The sole block that the vote names.
    pub sole: Option<Arc<Block>>,
}

/// A quorum's term votes, and the certificate of the highest position among them: where the term starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTerm {
    /// The epoch.
    pub epoch: Epoch,
    /// The term.
    pub term: Term,
    /// A quorum of votes for it, in the order of their signers.
    pub votes: Vec<TermVote>,
    /// The certificate of the highest position; none where all votes report the epoch's root.
    pub position: Option<Arc<Certificate>>,
    /// The block where the term starts, if that is a sole one: see [`NewTerm::start`].
    pub sole: Option<Arc<Block>>,
}

impl NewTerm {
    /// Where the term starts: on a [sole block](Self::sole_start) or on the highest position.
    pub fn start(&self, members: &Membership) -> BlockRef {
        let position = self.position.as_ref().map(|certificate| certificate.block());
        self.sole_start(members).or(position).unwrap_or(members.root())
    }

    /// The sole block above the highest position that all correct ones of the members may have voted for: it may be final, and
    /// nobody here know.
    pub fn sole_start(&self, members: &Membership) -> Option<BlockRef> {
        let place = |block: BlockRef| (block.term, block.index);
        let position = self.position.as_ref().map(|certificate| place(certificate.block()));
        let named: Vec<_> = self.votes.iter().map(|vote| vote.sole).collect();
        members.named_by_correct(&named).filter(|sole| Some(place(*sole)) > position)
    }
}

/// See [`Message::FetchAncestors`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchAncestors {
    /// The newest block wanted.
    pub digest: Digest,
    /// The asker's committed index: nothing at or below it is wanted.
    pub above: Index,
}

/// See [`Message::FetchCommitted`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchCommitted {
    /// The asker's committed index.
    pub after: Index,
}

/// Blocks in answer to a fetch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// For [`FetchAncestors`]: the wanted block first, then its parent, and so on. For [`FetchCommitted`]: rising.
    pub blocks: Vec<Arc<Block>>,
    /// For [`FetchCommitted`]: the Commit certificate of the last block, or of none of them if it follows in a later
    /// answer.
    pub certificate: Option<Arc<Certificate>>,
}

/// See [`Message::ReadQuery`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadQuery {
    /// The epoch that the asker is in.
    pub epoch: Epoch,
    /// The asker's name for the round.
    pub round: ReadRound,
}

/// A name for a round of reads that its asker uses once, in whatever run: an answer to an earlier run may still be on its
/// way, and says nothing of what was committed since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReadRound {
    /// The asker's incarnation, durable before a query leaves.
    pub incarnation: Incarnation,
    /// Counted within a run.
    pub number: u64,
}

/// A member's position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadAnswer {
    /// The epoch of the round.
    pub epoch: Epoch,
    /// The round.
    pub round: ReadRound,
    /// The certificate of the highest position; none for the epoch's root.
    pub position: Option<Arc<Certificate>>,
    /// The sole block that the member voted for last, unless it knows that one of its index is committed.
    pub sole: Option<BlockRef>,
}

impl Message {
    /// A name for logs and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Batch(_) => "Batch",
            Self::Append(_) => "Append",
            Self::Vote(_) => "Vote",
            Self::Certificate(_) => "Certificate",
            Self::Heartbeat(_) => "Heartbeat",
            Self::Suspect(_) => "Suspect",
            Self::Evidence(_) => "Evidence",
            Self::Proposal(_) => "Proposal",
            Self::EnterTerm(_) => "EnterTerm",
            Self::NewTerm(_) => "NewTerm",
            Self::FetchAncestors(_) => "FetchAncestors",
            Self::FetchCommitted(_) => "FetchCommitted",
            Self::Blocks(_) => "Blocks",
            Self::ReadQuery(_) => "ReadQuery",
            Self::ReadAnswer(_) => "ReadAnswer",
            Self::LateVote(_) => "LateVote",
        }
    }

    /// Whether it carries payloads, and so must not delay the small ones that decide.
    pub fn is_bulk(&self) -> bool {
        matches!(self, Self::Batch(_) | Self::Append(_) | Self::Blocks(_))
    }

    /// The encoded message.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("encoding into a growing buffer succeeds")
    }

    /// Decodes a message; bytes left over are an error.
    ///
    /// # Errors
    /// The bytes are not exactly one message.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Ok(message),
            _ => Err(Malformed),
        }
    }
}

/// Bytes that are not exactly one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message")]
pub struct Malformed;
