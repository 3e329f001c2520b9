//! How correct leaders start and run their terms (DESIGN.md §2.2, §2.3).
//!
//! - `new-term`: a NewTerm carries q distinct members' TermVotes of its term, and the certificate of the highest position
//!   that they claim; and the sole block above it that all correct ones of them may have voted for, if there is one.
//! - `first-block`: a term's first block is empty, and stands where the NewTerm says (in term 0: on the root).
//! - `pipelined-start`: nothing else is proposed before q Commit votes for the first block were cast.

use std::collections::{BTreeMap, BTreeSet};

use bftd_core::{
    ballot::{Ballot, BallotKind},
    block::{Block, BlockRef},
    crypto::Digest,
    ids::{Epoch, Index, MemberId, Term},
    message::NewTerm,
};

use super::cast::{Cast, require};
use crate::event::Violation;

/// What is known of terms.
#[derive(Default)]
pub struct Terms {
    /// Where the terms of correct leaders start.
    starts: BTreeMap<u64, BlockRef>,
    /// The first block that a correct leader proposed in its term.
    firsts: BTreeMap<u64, (u64, Digest)>,
    /// Who cast a vote that may make a block final, by all that the ballot says: a liar may vote for a true digest at a false
    /// place.
    votes: BTreeMap<(BallotKind, u64, u64, Digest), BTreeSet<MemberId>>,
    /// NewTerms that were checked, by term. Correct leaders make one.
    checked: BTreeMap<u64, NewTerm>,
}

impl Terms {
    /// A member voted for a block. Says whether it is final by the votes of this kind.
    pub fn vote(&mut self, cast: &Cast, signer: MemberId, ballot: Ballot) -> bool {
        let Ballot { kind, block, .. } = ballot;
        let signers = self.votes.entry((kind, block.term.0, block.index.0, block.digest)).or_default();
        signers.insert(signer);
        cast.is_final(kind, signers.len())
    }

    /// A correct leader sends a NewTerm of its own. Its signatures are checked elsewhere.
    ///
    /// # Errors
    /// `new-term`.
    pub fn new_term(&mut self, cast: &Cast, leader: MemberId, new_term: &NewTerm) -> Result<(), Violation> {
        if self.checked.get(&new_term.term.0) == Some(new_term) {
            return Ok(());
        }
        let wrong = |why: &str| format!("{leader} sent a NewTerm: {why}: {new_term:?}");
        let same = |epoch: Epoch, term| epoch == cast.epoch && term == new_term.term;
        let is_quorum = cast.is_quorum(new_term.votes.iter().map(|vote| vote.signer))
            && same(new_term.epoch, new_term.term)
            && new_term.votes.iter().all(|vote| same(vote.epoch, vote.term));
        require(is_quorum, "new-term", || wrong("no quorum of TermVotes for it"))?;
        let claimed = new_term.votes.iter().filter_map(|vote| vote.position);
        let highest = claimed.map(|block| cast.place(block)).max();
        let block = new_term.position.as_ref().map(|certificate| certificate.ballot.block);
        require(block.map(|block| cast.place(block)) == highest, "new-term", || {
            wrong("its position is not the highest claimed")
        })?;
        self.checked.insert(new_term.term.0, new_term.clone());
        if cast.leads(new_term.term, leader) {
            let start = justified(cast, new_term, block).or(block).unwrap_or(cast.root);
            let carried = new_term.sole.as_ref().map(|sole| sole.reference());
            require(
                carried == Some(start).filter(|_| Some(start) != block && start != cast.root),
                "new-term",
                || wrong("it carries another block than the one where the term starts"),
            )?;
            let first = *self.starts.entry(new_term.term.0).or_insert(start);
            require(first == start, "new-term", || wrong("another one of the term starts elsewhere"))?;
        }
        Ok(())
    }

    /// A correct leader sends a proposal.
    ///
    /// # Errors
    /// `first-block`, `pipelined-start`.
    pub fn propose(&mut self, cast: &Cast, leader: MemberId, block: &Block) -> Result<(), Violation> {
        let header = block.header();
        let (term, index) = (header.term.0, header.index.0);
        let (first_index, digest) = *self.firsts.entry(term).or_insert((index, block.digest()));
        if index > first_index {
            let of_first = self
                .votes
                .iter()
                .filter(|((_, at, index, first), _)| (*at, *index, *first) == (term, first_index, digest));
            let may_be_final = of_first.clone().any(|((kind, ..), voters)| {
                let others = voters.iter().filter(|voter| **voter != leader).count();
                cast.is_final(*kind, others + 1)
            });
            return require(may_be_final, "pipelined-start", || {
                let voters: Vec<_> = of_first.collect();
                format!(
                    "{leader} proposed {:?}, and {first_index} can't be committed by {voters:?}",
                    block.reference()
                )
            });
        }
        require(block.batches().is_empty(), "first-block", || {
            format!("{leader} proposed batches in {:?}, the first of its term", block.reference())
        })?;
        let start = if term == 0 { Some(cast.root) } else { self.starts.get(&term).copied() };
        require(
            start.is_some_and(|start| start.digest == header.parent && start.index.0 + 1 == index),
            "first-block",
            || format!("{leader} proposed {header:?} as the first of a term that starts at {start:?}"),
        )
    }
}

/// The sole block above the highest position that so many of a NewTerm's members report that all correct ones of them may have
/// voted for it.
fn justified(cast: &Cast, new_term: &NewTerm, position: Option<BlockRef>) -> Option<BlockRef> {
    let mut reports: BTreeMap<(u64, u64, Digest), usize> = BTreeMap::new();
    for sole in new_term.votes.iter().filter_map(|vote| vote.sole) {
        *reports.entry((sole.term.0, sole.index.0, sole.digest)).or_default() += 1;
    }
    let enough = new_term.votes.len() - cast.f();
    let above = position.map(|block| (block.term.0, block.index.0));
    let found = reports
        .into_iter()
        .find(|((term, index, _), count)| *count >= enough && Some((*term, *index)) > above);
    found.map(|((term, index, digest), _)| BlockRef { term: Term(term), index: Index(index), digest })
}
