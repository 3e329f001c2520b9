//! What a correct member promises is on its disk before it leaves (DESIGN.md §2.2, §2.3, §3).
//!
//! - `prepare-not-durable`: a Prepare vote without the block, all its ancestors, or the accepted tip.
//! - `commit-not-durable`: a Commit vote without the block, or without a position at or above it.
//! - `term-vote-not-durable`: a TermVote that is not the one on disk, or a position whose blocks are not.
//! - `term-not-durable`: a NewTerm or a proposal of a term that the leader's disk has not entered. After a crash it would
//!   not know that it led the term, and would propose in it again.
//! - `acceptance-not-durable`: where a position is a block that was accepted, and nobody's signatures show it: one that is not on the
//!   teller's disk, in a TermVote or an answer to a reader of its own; elsewhere, one that nobody has told before either.
//! - `incarnation-not-durable`: a batch of an incarnation that is not on disk.
//! - `own-vote-not-durable`: the same as the first two for the sender's own signature in a certificate: a leader's vote
//!   to itself travels in nothing else.
//! - `disk-went-back`: terms, positions, committed indices or accepted tips that fall, or a term's start that changes
//!   (§2.3: a NewTerm that comes when the term is open is ignored).

use std::collections::{BTreeMap, BTreeSet};

use bftd_core::{
    ballot::{Ballot, BallotKind, TermVote},
    block::BlockRef,
    crypto::Digest,
    durable::{Accepted, Durable, Record},
    ids::{Index, MemberId, Term},
};

use super::cast::{Cast, Place, require};
use crate::event::Violation;

/// What was seen to be durable already.
#[derive(Default)]
pub struct Durability {
    /// Promises that are durable, and disks only grow.
    kept: BTreeSet<(MemberId, bool, u64, Digest)>,
    disks: BTreeMap<MemberId, Disk>,
    /// Blocks that somebody has told to have accepted.
    told: BTreeSet<Digest>,
}

#[derive(Default)]
struct Disk {
    term: u64,
    accepted: Option<Accepted>,
    position: Place,
    committed: u64,
}

impl Durability {
    /// A correct member's ballot leaves: in a vote, or in a certificate.
    ///
    /// # Errors
    /// `prepare-not-durable`, `commit-not-durable`, `own-vote-not-durable`.
    pub fn vote(
        &mut self,
        cast: &Cast,
        node: MemberId,
        ballot: Ballot,
        durable: &Durable,
        in_certificate: bool,
    ) -> Result<(), Violation> {
        let block = ballot.block;
        let is_commit = matches!(ballot.kind, BallotKind::Commit);
        if !self.kept.insert((node, is_commit, block.term.0, block.digest)) {
            return Ok(());
        }
        let (promise, check) = match ballot.kind {
            BallotKind::Prepare | BallotKind::Sole { .. } => {
                let is_sole = matches!(ballot.kind, BallotKind::Sole { .. });
                let is_remembered = !is_sole || remembers(durable, block);
                (accepts(durable, block) && is_remembered, "prepare-not-durable")
            }
            BallotKind::Commit => (locks(cast, durable, block), "commit-not-durable"),
        };
        let is_kept =
            is_final(durable, block) || (promise && (is_left(durable, block) || holds(cast, durable, block)));
        let check = if in_certificate { "own-vote-not-durable" } else { check };
        require(is_kept, check, || {
            format!(
                "{node} sent {ballot:?}, its disk holds accepted {:?}, position {:?}, committed {}, {} blocks above",
                durable.accepted,
                durable.position.as_ref().map(|certificate| certificate.ballot),
                committed(durable),
                durable.blocks.len()
            )
        })
    }

    /// A correct member's own TermVote leaves.
    ///
    /// # Errors
    /// `term-vote-not-durable`.
    pub fn term_vote(&self, cast: &Cast, vote: &TermVote, durable: &Durable) -> Result<(), Violation> {
        let entered = durable.term.as_ref().map(|entered| &entered.vote);
        let is_kept = entered.is_some_and(|entered| entered == vote || entered.term > vote.term);
        require(is_kept, "term-vote-not-durable", || {
            format!("{vote:?} was sent, the disk holds {entered:?}")
        })?;
        let is_held =
            vote.position.is_none_or(|block| is_final(durable, block) || holds(cast, durable, block));
        require(is_held, "term-vote-not-durable", || {
            format!("{vote:?} was sent, the position's blocks are not on disk")
        })
    }

    /// A leader's NewTerm or proposal leaves.
    ///
    /// # Errors
    /// `term-not-durable`.
    pub fn leads(&self, node: MemberId, term: Term, durable: &Durable) -> Result<(), Violation> {
        let entered = durable.term.as_ref().map_or(Term(0), |entered| entered.vote.term);
        require(entered >= term, "term-not-durable", || {
            format!("{node} leads term {term}, and its disk has entered only {entered}")
        })
    }

    /// A correct member tells that a block was accepted: by itself, where it `is_own`, or else perhaps by who told it.
    ///
    /// # Errors
    /// `acceptance-not-durable`.
    pub fn tell(
        &mut self,
        cast: &Cast,
        node: MemberId,
        block: BlockRef,
        is_own: bool,
        durable: &Durable,
    ) -> Result<(), Violation> {
        let is_told = !self.told.insert(block.digest) && !is_own;
        require(
            is_told || locks(cast, durable, block) || is_final(durable, block),
            "acceptance-not-durable",
            || {
                let position = durable.position.as_ref().map(|it| it.ballot.block);
                format!("{node} tells that {block:?} was accepted, its disk holds {position:?}")
            },
        )
    }

    /// A batch of the sender leaves.
    ///
    /// # Errors
    /// `incarnation-not-durable`.
    pub fn batch(&self, node: MemberId, incarnation: u64, durable: &Durable) -> Result<(), Violation> {
        require(durable.incarnation.0 >= incarnation, "incarnation-not-durable", || {
            format!(
                "{node} sent a batch of incarnation {incarnation}, the disk holds {}",
                durable.incarnation
            )
        })
    }

    /// Records of a correct member have become durable.
    ///
    /// # Errors
    /// `disk-went-back`.
    pub fn synced(&mut self, cast: &Cast, node: MemberId, records: &[Record]) -> Result<(), Violation> {
        let disk = self.disks.entry(node).or_default();
        for record in records {
            let is_ahead = match record {
                Record::Term(entered) => {
                    let rises = entered.vote.term.0 > disk.term;
                    disk.term = entered.vote.term.0;
                    rises
                }
                Record::Accepted(accepted) => {
                    let rises = disk.accepted.is_none_or(|before| follows(&before, accepted));
                    disk.accepted = Some(*accepted);
                    rises
                }
                Record::Position(certificate) => {
                    let place = cast.place(certificate.ballot.block);
                    let rises = place > disk.position;
                    disk.position = place;
                    rises
                }
                Record::Committed(committed) => {
                    let index = committed.certificate.ballot.block.index.0;
                    let rises = index > disk.committed;
                    disk.committed = index;
                    rises
                }
                Record::Incarnation(_) | Record::Block(_) | Record::Evidence(_) => true,
            };
            require(is_ahead, "disk-went-back", || {
                format!("{node} persisted {record:?}, which is not ahead")
            })?;
        }
        Ok(())
    }
}

/// Within a term: the same start, and a higher tip or a higher floor.
fn follows(before: &Accepted, after: &Accepted) -> bool {
    after.term > before.term
        || (after.term == before.term
            && after.start == before.start
            && after.floor >= before.floor
            && (after.tip.index > before.tip.index || after.floor >= before.tip.index))
}

fn committed(durable: &Durable) -> u64 {
    durable.committed.as_ref().map_or(0, |committed| committed.certificate.ballot.block.index.0)
}

/// Whether a block is at or below what is committed on disk.
fn is_final(durable: &Durable, block: BlockRef) -> bool {
    durable.committed.is_some() && block.index.0 <= committed(durable)
}

/// Whether the disk remembers that this block of its term was accepted.
fn accepts(durable: &Durable, block: BlockRef) -> bool {
    durable.accepted.is_some_and(|accepted| {
        accepted.term > block.term
            || (accepted.term == block.term && accepted.tip.index.max(accepted.floor) >= block.index)
    })
}

/// Whether the disk remembers a sole block as the last one that was voted for, or a later one.
fn remembers(durable: &Durable, block: BlockRef) -> bool {
    let last = durable.accepted.and_then(|accepted| accepted.sole);
    last.is_some_and(|last| last == block || (last.term, last.index) > (block.term, block.index))
}

/// Whether the disk has left the block behind since: in a later term, or for a certified chain of the same one, above which
/// it will vote. What the vote promised still holds, and the block is of no more use.
fn is_left(durable: &Durable, block: BlockRef) -> bool {
    durable.accepted.is_some_and(|accepted| {
        accepted.term > block.term || (accepted.term == block.term && accepted.floor >= block.index)
    })
}

/// Whether the disk's position is at or above a block.
fn locks(cast: &Cast, durable: &Durable, block: BlockRef) -> bool {
    durable.position.as_ref().is_some_and(|position| cast.place(position.ballot.block) >= cast.place(block))
}

/// Whether the disk holds a block and all its ancestors down to what is committed there.
fn holds(cast: &Cast, durable: &Durable, block: BlockRef) -> bool {
    let base = match &durable.committed {
        Some(committed) => committed.certificate.ballot.block,
        None => cast.root,
    };
    let (mut index, mut digest) = (block.index.0, block.digest);
    while index > base.index.0 {
        let Some(held) = durable.blocks.get(&(Index(index), digest)) else { return false };
        digest = held.header().parent;
        index -= 1;
    }
    true
}
