//! A correct member never contradicts itself, over its whole life (DESIGN.md §2.2, §2.3, §2.5).
//!
//! - `conflicting-votes`: per kind, term and index it votes for one block.
//! - `conflicting-proposals`: per term and index it proposes one block.
//! - `conflicting-term-votes`: per term it signs one TermVote.
//! - `vote-after-term-vote`: after the TermVote of t it signs no ballot and no proposal of a lower term.
//! - `position-too-low`: a TermVote reports a position no lower than any Commit vote of a lower term.
//! - `two-chains`: Prepare votes (Commit votes, where there are no others) of a term lie on one growing chain, except above a Commit certificate that put
//!   another block in the place of a voted one.
//! - `proposal-after-restart`: in a term that it led before a restart, it proposes nothing new.

use std::collections::BTreeMap;

use bftd_core::{
    ballot::{Ballot, BallotKind, TermVote},
    block::{Block, BlockRef},
    crypto::Digest,
    ids::{Index, MemberId, Term},
};

use super::{
    agreement::Agreement,
    blocks::Blocks,
    cast::{Cast, Place, require},
};
use crate::event::Violation;

/// All that one correct member ever signed.
#[derive(Default)]
struct Signed {
    /// By term, then index.
    prepares: BTreeMap<u64, BTreeMap<u64, Digest>>,
    commits: BTreeMap<(u64, u64), Digest>,
    proposals: BTreeMap<(u64, u64), (Digest, u64)>,
    term_votes: BTreeMap<u64, TermVote>,
    run: u64,
    /// The run in which a term was first led.
    led_in: BTreeMap<u64, u64>,
}

/// All that correct members ever signed.
#[derive(Default)]
pub struct Signatures(BTreeMap<MemberId, Signed>);

impl Signatures {
    /// A member starts; `led` is the term that it is in and leads, if it may have sent anything in it before.
    pub fn start(&mut self, node: MemberId, led: Option<Term>) {
        let signed = self.0.entry(node).or_default();
        if let Some(term) = led {
            signed.led_in.entry(term.0).or_insert(signed.run);
        }
        signed.run += 1;
    }

    /// A correct member signed a ballot: `sent` where it leaves now, not where a certificate shows it.
    ///
    /// # Errors
    /// `conflicting-votes`, `vote-after-term-vote`, `position-too-low`, `two-chains`.
    pub fn vote(
        &mut self,
        cast: &Cast,
        (blocks, chain): (&Blocks, &Agreement),
        node: MemberId,
        ballot: Ballot,
        sent: bool,
    ) -> Result<(), Violation> {
        let block = ballot.block;
        let (term, index) = (block.term.0, block.index.0);
        let signed = self.0.entry(node).or_default();
        if sent {
            signed.check_not_left(node, term, || format!("{ballot:?}"))?;
        }
        let first = match ballot.kind {
            BallotKind::Prepare | BallotKind::Sole { .. } => {
                signed.prepares.get(&term).and_then(|votes| votes.get(&index))
            }
            BallotKind::Commit => signed.commits.get(&(term, index)),
        };
        if let Some(first) = first {
            return require(*first == block.digest, "conflicting-votes", || {
                format!("{node} signed {ballot:?} after {:?} of {first:?}", ballot.kind)
            });
        }
        match ballot.kind {
            BallotKind::Prepare | BallotKind::Sole { .. } => {
                let votes = signed.prepares.entry(term).or_default();
                check_growing(node, votes, block, blocks, chain)?;
                votes.insert(index, block.digest);
            }
            BallotKind::Commit => {
                if !cast.prepares() {
                    let votes = signed.prepares.entry(term).or_default();
                    check_growing(node, votes, block, blocks, chain)?;
                    votes.insert(index, block.digest);
                }
                signed.commits.insert((term, index), block.digest);
                let later = signed.term_votes.range(term + 1..);
                later
                    .map(|(_, vote)| vote)
                    .try_for_each(|vote| check_position(cast, node, vote, cast.place(block)))?;
            }
        }
        Ok(())
    }

    /// A correct member signed a TermVote: `sent` where it leaves now.
    ///
    /// # Errors
    /// `conflicting-term-votes`, `position-too-low`.
    pub fn term_vote(&mut self, cast: &Cast, node: MemberId, vote: &TermVote) -> Result<(), Violation> {
        let signed = self.0.entry(node).or_default();
        if let Some(first) = signed.term_votes.get(&vote.term.0) {
            return require(first == vote, "conflicting-term-votes", || {
                format!("{node} signed {vote:?} after {first:?}")
            });
        }
        signed.term_votes.insert(vote.term.0, vote.clone());
        match signed.commits.range(..(vote.term.0, 0)).next_back() {
            Some(((_, index), digest)) => {
                let term =
                    signed.commits.range(..(vote.term.0, 0)).next_back().map_or(0, |((term, _), _)| *term);
                let highest = BlockRef { term: Term(term), index: Index(*index), digest: *digest };
                check_position(cast, node, vote, cast.place(highest))
            }
            None => Ok(()),
        }
    }

    /// A correct member sends a proposal of its own.
    ///
    /// # Errors
    /// `conflicting-proposals`, `proposal-after-restart`, `vote-after-term-vote`.
    pub fn propose(&mut self, node: MemberId, block: &Block) -> Result<(), Violation> {
        let (term, index) = (block.header().term.0, block.header().index.0);
        let signed = self.0.entry(node).or_default();
        if let Some((first, _)) = signed.proposals.get(&(term, index)) {
            return require(*first == block.digest(), "conflicting-proposals", || {
                format!("{node} proposed {:?} after {first:?}", block.reference())
            });
        }
        signed.check_not_left(node, term, || format!("a proposal of {:?}", block.reference()))?;
        let run = signed.run;
        let led_in = *signed.led_in.entry(term).or_insert(run);
        require(led_in == run, "proposal-after-restart", || {
            format!("{node} led term {term} before it restarted, and proposed {:?}", block.reference())
        })?;
        signed.proposals.insert((term, index), (block.digest(), run));
        Ok(())
    }
}

impl Signed {
    fn check_not_left(&self, node: MemberId, term: u64, what: impl Fn() -> String) -> Result<(), Violation> {
        match self.term_votes.last_key_value() {
            Some((newest, _)) => require(term >= *newest, "vote-after-term-vote", || {
                format!("{node} signed {} after its TermVote for {newest}", what())
            }),
            None => Ok(()),
        }
    }
}

fn check_position(cast: &Cast, node: MemberId, vote: &TermVote, committed: Place) -> Result<(), Violation> {
    let is_high = vote.position.is_some_and(|block| cast.place(block) >= committed);
    require(is_high, "position-too-low", || {
        format!("{node} signed Commit at {committed:?}, and then {vote:?}")
    })
}

/// The votes next to a new one lie on one chain with it.
fn check_growing(
    node: MemberId,
    votes: &BTreeMap<u64, Digest>,
    block: BlockRef,
    blocks: &Blocks,
    chain: &Agreement,
) -> Result<(), Violation> {
    let at = |(index, digest): (&u64, &Digest)| BlockRef { index: Index(*index), digest: *digest, ..block };
    let below = votes.range(..block.index.0).next_back().map(|vote| (at(vote), block));
    let above = votes.range(block.index.0..).next().map(|vote| (block, at(vote)));
    for (lower, higher) in below.into_iter().chain(above) {
        let Some(ancestor) = blocks.ancestor(higher, lower.index.0) else { continue };
        require(ancestor == lower.digest || is_replaced(lower, blocks, chain), "two-chains", || {
            format!("{node} signed Prepare for {lower:?} and for {higher:?}, which is not above it")
        })?;
    }
    Ok(())
}

/// Whether a Commit certificate shows another block in the place of this one or of an ancestor.
fn is_replaced(block: BlockRef, blocks: &Blocks, chain: &Agreement) -> bool {
    let low = block.index.0.min(chain.height());
    blocks.ancestor(block, low).is_some_and(|ancestor| chain.at(low) != Some(ancestor))
}
