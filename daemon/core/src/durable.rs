//! What a replica must remember over a crash: the records that it persists, and what they add up to.
//!
//! A store applies records in the order in which the replica emitted them; after a crash it holds the effect of a
//! prefix of them that reaches at least as far as what was acknowledged as durable. [`Durable`] is that effect.
//! A store on disk and the simulator's disk both implement it, and [`Durable::apply`] says what it is.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    block::{Block, BlockRef, Marks},
    certificate::Certificate,
    crypto::Digest,
    evidence::Evidence,
    ids::{Incarnation, Index, MemberId, Term},
    message::EnterTerm,
    verify::{Misbehavior, Verifier},
};

/// Something to remember.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// This run's incarnation as an origin, before its first batch leaves.
    Incarnation(Incarnation),
    /// A block above the committed index.
    Block(Arc<Block>),
    /// The chain accepted in the current term, before a vote for it leaves.
    Accepted(Accepted),
    /// The highest certificate: the lock, before a Commit vote leaves.
    Position(Arc<Certificate>),
    /// The term entered, with the one term vote signed for it, before that leaves.
    Term(Arc<EnterTerm>),
    /// A proof that a member lied.
    Evidence(Box<Evidence>),
    /// A new committed block. It and its ancestors are final; other blocks at or below its index are forgotten.
    Committed(Committed),
}

/// How far the accepted chain of a term reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The term.
    pub term: Term,
    /// Where the term's chain starts.
    pub start: BlockRef,
    /// The chain's newest block; `start` while there is none.
    pub tip: BlockRef,
    /// Votes for this term's blocks are cast only above this index. It rises to the old tip when a Commit
    /// certificate shows that another block stands in the place of one accepted before.
    pub floor: Index,
    /// The sole block that was voted for last, in whatever term.
    pub sole: Option<BlockRef>,
}

/// A committed block with what can't be derived from it cheaply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The Commit certificate. It names the block.
    pub certificate: Arc<Certificate>,
    /// How far every origin has come on the chain that ends here.
    pub marks: Marks,
}

/// Something on disk that no honest run of this member has written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    /// No peer could send it either.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// What it is.
        what: &'static str,
        /// What is wrong with it.
        why: Misbehavior,
    },
    /// Another member's vote.
    #[error("the term vote is that of member {0}")]
    OtherMember(MemberId),
    /// A Prepare certificate, or one of another block.
    #[error("the newest committed block {0:?} is not what its Commit certificate names")]
    Uncommitted(BlockRef),
    /// A sole block that was voted for, and is neither here nor below what is committed.
    #[error("the block {0:?} was voted for, and is missing")]
    Missing(BlockRef),
    /// A block under another one's name.
    #[error("the block {0:?} stands in another one's place")]
    Misplaced(BlockRef),
}

/// The sum of all records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// The last incarnation; 0 before the first start.
    pub incarnation: Incarnation,
    /// The term entered last, with its vote; none while in term 0.
    pub term: Option<Arc<EnterTerm>>,
    /// The accepted chain, if the current term has opened here. Of a lower term: the current one has not.
    pub accepted: Option<Accepted>,
    /// The highest certificate.
    pub position: Option<Arc<Certificate>>,
    /// The highest committed block.
    pub committed: Option<Committed>,
    /// That block itself.
    pub committed_block: Option<Arc<Block>>,
    /// The blocks above it, by index and digest.
    pub blocks: BTreeMap<(Index, Digest), Arc<Block>>,
    /// The proofs of misbehaviour, by their digests.
    pub evidence: BTreeMap<Digest, Evidence>,
}

impl Durable {
    /// Checks what a replica starts from as if it had come from a peer: a disk may have been changed by somebody, or be
    /// another member's. Proofs of misbehaviour are not among it: nothing rests on them, and each has a check of its own.
    ///
    /// # Errors
    /// The first thing that is not valid.
    pub fn check(&self, me: MemberId, verifier: &Verifier) -> Result<(), Unsound> {
        let of = |what| move |why| Unsound::Invalid { what, why };
        let check = |is_so, unsound| if is_so { Ok(()) } else { Err(unsound) };
        if let Some(entered) = &self.term {
            check(entered.vote.signer == me, Unsound::OtherMember(entered.vote.signer))?;
            verifier.check_enter_term(entered).map_err(of("the term vote"))?;
        }
        if let Some(position) = &self.position {
            verifier.check_certificate(position).map_err(of("the highest certificate"))?;
        }
        if let Some(committed) = &self.committed {
            let certificate = &committed.certificate;
            verifier.check_certificate(certificate).map_err(of("the newest Commit certificate"))?;
            let block = self.committed_block.as_ref().map(|block| block.reference());
            let is_certified = certificate.is_commit() && block == Some(certificate.block());
            check(is_certified, Unsound::Uncommitted(certificate.block()))?;
        }
        for block in self.committed_block.iter().chain(self.blocks.values()) {
            verifier.check_block(block).map_err(of("a block"))?;
        }
        let committed = self.committed.as_ref().map_or(Index(0), |it| it.certificate.block().index);
        if let Some(sole) = self.accepted.and_then(|accepted| accepted.sole) {
            let is_held = sole.index <= committed || self.blocks.contains_key(&(sole.index, sole.digest));
            check(is_held, Unsound::Missing(sole))?;
        }
        for (place, block) in &self.blocks {
            let is_there = *place == (block.header().index, block.digest());
            check(is_there, Unsound::Misplaced(block.reference()))?;
        }
        Ok(())
    }

    /// Adds a record, and hands over the blocks that it makes final, rising.
    pub fn apply(&mut self, record: &Record) -> Vec<Arc<Block>> {
        match record {
            Record::Incarnation(incarnation) => self.incarnation = *incarnation,
            Record::Block(block) => {
                self.blocks.insert((block.header().index, block.digest()), Arc::clone(block));
            }
            Record::Accepted(accepted) => self.accepted = Some(*accepted),
            Record::Position(certificate) => self.position = Some(Arc::clone(certificate)),
            Record::Term(entered) => self.term = Some(Arc::clone(entered)),
            Record::Evidence(evidence) => {
                self.evidence.insert(evidence.digest(), Evidence::clone(evidence));
            }
            Record::Committed(committed) => return self.commit(committed),
        }
        Vec::new()
    }

    fn commit(&mut self, committed: &Committed) -> Vec<Arc<Block>> {
        let block = committed.certificate.block();
        let mut chain = Vec::new();
        let mut next = (block.index, block.digest);
        while let Some(block) = self.blocks.remove(&next) {
            next = (Index(block.header().index.0.saturating_sub(1)), block.header().parent);
            chain.push(block);
        }
        chain.reverse();
        self.blocks.retain(|(index, _), _| *index > block.index);
        self.committed_block = chain.last().cloned();
        self.committed = Some(committed.clone());
        chain
    }
}
