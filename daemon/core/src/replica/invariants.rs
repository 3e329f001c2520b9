//! What holds after every step. Tests and the simulator check it after each input.

use super::Replica;
use crate::{
    evidence::OffenceKind,
    ids::{Index, Term},
    limits::{
        MAX_EVIDENCE, MAX_FETCHED, OWN_BATCHES, POOLED_BATCHES, REMEMBERED_STATES, WAITING_READS,
        WATCHED_PROPOSALS, WINDOW,
    },
};

impl Replica {
    /// Checks every invariant.
    ///
    /// # Errors
    /// The first one that does not hold. That is a bug of this crate, or more than f members are faulty and the
    /// replica has halted.
    pub fn check_invariants(&self) -> Result<(), String> {
        if self.halted {
            return Ok(());
        }
        let require = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
        let root = self.tree.root();
        require(self.tree.is_sound(), "every block hangs on the committed one, one above its parent")?;
        require(self.states.executed.index <= root.index, "executed is at most committed")?;
        require(self.states.digests.len() <= REMEMBERED_STATES, "remembered states are bounded")?;
        if let Some(committed) = &self.committed {
            require(committed.block() == root, "the newest Commit certificate is the tree's root's")?;
            require(
                self.safety.rank() >= Some(committed.rank()),
                "the position is at least what is committed",
            )?;
        }
        if let Some(position) = self.safety.position() {
            let block = position.block();
            let held = block.index <= root.index || self.tree.contains(&block.digest);
            require(held, "the blocks of the position are here")?;
            require(block.term <= self.safety.term(), "the position is of no later term")?;
        }
        if let Some(sole) = self.safety.sole() {
            let held = sole.index <= root.index || self.tree.contains(&sole.digest);
            require(held, "the sole block that was voted for is here until its index is committed")?;
        }
        if let Some(entered) = self.safety.entered() {
            let earlier = entered.vote.position.is_none_or(|block| block.term < entered.vote.term);
            require(earlier, "a term vote reports a position of an earlier term")?;
        }
        if let Some(open) = self.safety.open() {
            require(open.floor >= open.start.index, "the floor is at least the start")?;
            let here = self.tree.contains(&open.tip.digest);
            require(
                here || open.tip.index > root.index,
                "a tip that is not here is above what is committed",
            )?;
            let base = root.index.0.max(open.start.index.0);
            let fetched = base.saturating_add(u64::try_from(MAX_FETCHED).unwrap_or(u64::MAX));
            require(
                open.tip.index.0 <= base + 2 * WINDOW
                    || open.tip.index <= self.prepared_in(open.term)
                    || !here,
                "the accepted chain is within the window, or prepared",
            )?;
            require(
                open.tip.index.0 <= fetched || !here,
                "what is prepared and not known to be committed is bounded",
            )?;
        }
        require(self.conduct.is_bounded(), "what is held against a leader is bounded")?;
        self.check_bounds(root.index)
    }

    /// Up to where a quorum's word stands behind the chain of a term. A member that does not hear what is committed follows it beyond
    /// its own window.
    fn prepared_in(&self, term: Term) -> Index {
        let position = self.safety.position().filter(|_| self.row().prepares).map(|it| it.block());
        position.filter(|block| block.term == term).map_or(Index(0), |block| block.index)
    }

    fn check_bounds(&self, committed: Index) -> Result<(), String> {
        let n = self.members().n();
        let span = usize::try_from(2 * WINDOW).unwrap_or(usize::MAX);
        let bounds = [
            ("waiting appends", self.term.waiting.len(), span),
            ("sent appends", self.term.appends.len(), span),
            ("routes and awaited votes", self.routing.len(), 2 * 3 * span),
            ("answers to late votes", self.routing.answers(), 2 * n),
            ("trust", self.routing.trust.len(), n),
            ("kept votes", self.term.votes.len(), 3 * span * n),
            ("own batches", self.origin.iter().count(), OWN_BATCHES),
            ("pooled batches", self.pool.len(), POOLED_BATCHES * n),
            ("fetched blocks", self.fetcher.len(), (2 * n + 1) * (MAX_FETCHED + crate::limits::FETCH_BLOCKS)),
            ("waiting reads", self.reads.len(), WAITING_READS),
            ("watched statements", self.watch.len(), (3 * span + 2) * n + WATCHED_PROPOSALS),
            ("evidence", self.evidence().count(), OffenceKind::COUNT * MAX_EVIDENCE * n),
        ];
        for (what, count, bound) in bounds {
            if count > bound {
                return Err(format!("{what}: {count} are more than {bound} (committed: {committed})"));
            }
        }
        Ok(())
    }
}
