//! One chain, one state (DESIGN.md §2.1, §2.2, §2.5).
//!
//! - `agreement`: valid Commit certificates never name two chains, and nothing else is executed.
//! - `uncertified`: what is executed stands on the chain of a Commit certificate that was sent or persisted before.
//! - `order`: in one run of a member, indices are executed one by one, each once.
//! - `batches`: an origin's batches are consecutive within an incarnation, and incarnations rise.
//! - `time`: block time never decreases.
//! - `state`: equal state digests for an index, among members and in what headers say was executed.

use std::{collections::BTreeMap, sync::Arc};

use bftd_core::{
    block::{Block, BlockRef},
    crypto::Digest,
    ids::MemberId,
};

use super::{
    blocks::Blocks,
    cast::{Cast, require},
};
use crate::event::Violation;

/// The final chain.
pub struct Agreement {
    root: BlockRef,
    /// The final blocks' digests; the root's is the first.
    chain: Vec<Digest>,
    /// Certified blocks whose ancestors were not all seen.
    unresolved: Vec<BlockRef>,
    states: BTreeMap<u64, Digest>,
    marks: BTreeMap<MemberId, (u64, u64)>,
    time_ms: u64,
    executed: u64,
    /// By member: the last index executed in this run, and whether any was.
    progress: BTreeMap<MemberId, (u64, bool)>,
}

impl Agreement {
    /// Nothing but the root is final.
    pub fn new(cast: &Cast) -> Self {
        Self {
            root: cast.root,
            chain: vec![cast.root.digest],
            unresolved: Vec::new(),
            states: BTreeMap::new(),
            marks: BTreeMap::new(),
            time_ms: 0,
            executed: 0,
            progress: BTreeMap::new(),
        }
    }

    /// The final block at an index, if the oracle knows that there is one.
    pub fn at(&self, index: u64) -> Option<Digest> {
        let at = index.checked_sub(self.root.index.0)?;
        self.chain.get(usize::try_from(at).ok()?).copied()
    }

    /// The highest final index.
    pub fn height(&self) -> u64 {
        self.root.index.0 + (self.chain.len() - 1) as u64
    }

    /// A valid Commit certificate was seen.
    ///
    /// # Errors
    /// `agreement`, or what is wrong with the blocks that it makes final.
    pub fn certify(&mut self, block: BlockRef, blocks: &Blocks) -> Result<(), Violation> {
        if self.at(block.index.0) == Some(block.digest) {
            return Ok(());
        }
        let low = block.index.0.min(self.height());
        match blocks.ancestor(block, low) {
            None => {
                if !self.unresolved.contains(&block) {
                    self.unresolved.push(block);
                }
                Ok(())
            }
            Some(ancestor) => {
                require(self.at(low) == Some(ancestor), "agreement", || {
                    format!(
                        "{block:?} is certified, and is not on one chain with {:?} at {low}",
                        self.at(low)
                    )
                })?;
                self.extend(block, blocks)
            }
        }
    }

    fn extend(&mut self, block: BlockRef, blocks: &Blocks) -> Result<(), Violation> {
        let mut new = Vec::new();
        let (mut at, mut digest) = (block.index.0, block.digest);
        while at > self.height() {
            let Some(seen) = blocks.get(&digest) else { break };
            new.push(Arc::clone(seen));
            digest = seen.header().parent;
            at -= 1;
        }
        new.iter().rev().try_for_each(|block| self.append(block))
    }

    fn append(&mut self, block: &Block) -> Result<(), Violation> {
        let header = block.header();
        let index = header.index.0;
        self.chain.push(block.digest());
        require(index == self.height(), "agreement", || {
            format!("{block:?} is final at another index than its own")
        })?;
        require(header.time_ms >= self.time_ms, "time", || {
            format!("block {index} is of {} ms, after one of {} ms", header.time_ms, self.time_ms)
        })?;
        self.time_ms = header.time_ms;
        let said = header.executed;
        require(said.index.0 < index && said.index.0 >= self.executed, "state", || {
            format!(
                "block {index} says that {} was executed, after one that said {}",
                said.index, self.executed
            )
        })?;
        self.executed = said.index.0;
        self.agree_on_state(said.index.0, said.state, "a final header")?;
        for batch in block.batches() {
            let (incarnation, number) = (batch.incarnation.0, batch.number.0);
            let mark = self.marks.entry(batch.origin).or_default();
            let follows = if incarnation == mark.0 { number == mark.1 + 1 } else { number == 1 };
            require(incarnation > 0 && incarnation >= mark.0 && follows, "batches", || {
                format!(
                    "block {index} has batch ({incarnation}, {number}) of {} after {mark:?}",
                    batch.origin
                )
            })?;
            *mark = (incarnation, number);
        }
        Ok(())
    }

    fn agree_on_state(&mut self, index: u64, state: Digest, by: &str) -> Result<(), Violation> {
        let first = *self.states.entry(index).or_insert(state);
        require(first == state, "state", || {
            format!("the state after {index} is {state:?} by {by}, was {first:?}")
        })
    }

    /// A member starts a run; it has executed what is committed on its disk, or less.
    pub fn start(&mut self, node: MemberId, committed: u64) {
        self.progress.insert(node, (committed, false));
    }

    /// A correct member has executed a block.
    ///
    /// # Errors
    /// `uncertified`, `agreement`, `order`, `state`.
    pub fn execute(
        &mut self,
        node: MemberId,
        block: &Arc<Block>,
        state: Digest,
        blocks: &Blocks,
    ) -> Result<(), Violation> {
        let index = block.header().index.0;
        for unresolved in std::mem::take(&mut self.unresolved) {
            self.certify(unresolved, blocks)?;
        }
        let certified = self.at(index);
        require(certified.is_some(), "uncertified", || {
            format!(
                "{node} executed {:?}, and nobody has shown a Commit certificate of it",
                block.reference()
            )
        })?;
        require(certified == Some(block.digest()), "agreement", || {
            format!("{node} executed {:?}, but {certified:?} is final there", block.reference())
        })?;
        let (last, has_begun) = self.progress.get(&node).copied().unwrap_or_default();
        let is_next = if has_begun { index == last + 1 } else { index <= last + 1 };
        require(is_next, "order", || format!("{node} executed {index} after {last}"))?;
        self.progress.insert(node, (index, true));
        self.agree_on_state(index, state, &node.to_string())
    }

    /// How far a member has executed.
    pub fn executed_by(&self, node: MemberId) -> u64 {
        self.progress.get(&node).map_or(self.root.index.0, |(index, _)| *index)
    }
}
