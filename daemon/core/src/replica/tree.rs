//! The blocks above the committed one: a small tree keyed by digest, not a line.
//!
//! Every node hangs, over its parents, on the root, which is the newest committed block. Branches come from terms
//! that were left and from leaders that lie; committing a block removes all but its own descendants.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::{
    block::{Block, BlockRef, Executed, Marks},
    crypto::Digest,
    ids::Index,
    limits::REMEMBERED_BLOCKS,
};

/// What a child must know of its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ancestry {
    /// The block.
    pub block: BlockRef,
    /// Its time.
    pub time_ms: u64,
    /// What it says was executed; none for the epoch's root.
    pub executed: Option<Executed>,
    /// How far each origin has come with it.
    pub marks: Marks,
}

#[derive(Clone, Debug)]
struct Node {
    block: Arc<Block>,
    ancestry: Ancestry,
    since_us: u64,
}

#[derive(Clone, Debug)]
pub(super) struct BlockTree {
    root: Ancestry,
    /// The last committed blocks of this run, rising, the root among them; at most [`REMEMBERED_BLOCKS`].
    committed: VecDeque<BlockRef>,
    nodes: BTreeMap<Digest, Node>,
}

impl BlockTree {
    pub fn new(root: Ancestry) -> Self {
        Self { committed: [root.block].into(), root, nodes: BTreeMap::new() }
    }

    /// The newest committed block.
    pub fn root(&self) -> BlockRef {
        self.root.block
    }

    /// The committed block at an index, while it is remembered.
    pub fn committed_at(&self, index: Index) -> Option<BlockRef> {
        let at = self.committed.binary_search_by_key(&index, |block| block.index).ok()?;
        self.committed.get(at).copied()
    }

    /// How far each origin has come on the committed chain.
    pub fn committed_marks(&self) -> &Marks {
        &self.root.marks
    }

    /// Whether the block and all its ancestors down to the root are here.
    pub fn contains(&self, digest: &Digest) -> bool {
        *digest == self.root.block.digest || self.nodes.contains_key(digest)
    }

    /// What a child of this block must know of it.
    pub fn ancestry(&self, digest: &Digest) -> Option<&Ancestry> {
        if *digest == self.root.block.digest {
            return Some(&self.root);
        }
        self.nodes.get(digest).map(|node| &node.ancestry)
    }

    /// When the block came, if it is above the root.
    pub fn since_us(&self, digest: &Digest) -> Option<u64> {
        self.nodes.get(digest).map(|node| node.since_us)
    }

    /// Adds a block whose parent is here. Its batches have been found in order, or are certified.
    pub fn insert(&mut self, block: Arc<Block>, now_us: u64) {
        let Some(parent) = self.ancestry(&block.header().parent) else {
            debug_assert!(false, "inserted a block before its parent");
            return;
        };
        let mut marks = parent.marks.clone();
        for batch in block.batches() {
            marks.record(batch);
        }
        let header = block.header();
        let ancestry = Ancestry {
            block: block.reference(),
            time_ms: header.time_ms,
            executed: Some(header.executed),
            marks,
        };
        self.nodes.insert(block.digest(), Node { block, ancestry, since_us: now_us });
    }

    /// The chain from just above the root up to a block, rising; empty for the root and for unknown blocks.
    pub fn path(&self, digest: &Digest) -> Vec<Arc<Block>> {
        let mut path: Vec<_> = self.descend(digest).cloned().collect();
        path.reverse();
        path
    }

    /// A block, its parent, and so on, down to just above the root.
    pub fn descend(&self, digest: &Digest) -> impl Iterator<Item = &Arc<Block>> {
        let mut next = self.nodes.get(digest);
        std::iter::from_fn(move || {
            let node = next?;
            next = self.nodes.get(&node.block.header().parent);
            Some(&node.block)
        })
    }

    /// Whether `block` stands on the chain that ends at `tip`, both included. The root is on every chain.
    pub fn is_on_chain(&self, block: BlockRef, tip: &Digest) -> bool {
        if block == self.root.block {
            return self.contains(tip);
        }
        self.descend(tip).any(|ancestor| ancestor.digest() == block.digest)
    }

    /// Makes a block the root, and hands over the chain up to it, rising.
    pub fn commit(&mut self, digest: &Digest) -> Vec<Arc<Block>> {
        let path = self.path(digest);
        if let Some(node) = self.nodes.get(digest) {
            self.root = node.ancestry.clone();
            self.committed.extend(path.iter().map(|block| block.reference()));
            let too_many = self.committed.len().saturating_sub(REMEMBERED_BLOCKS);
            self.committed.drain(..too_many);
            self.retain_descendants();
        }
        path
    }

    fn retain_descendants(&mut self) {
        let mut kept = BTreeMap::new();
        let mut rest: Vec<_> = std::mem::take(&mut self.nodes)
            .into_iter()
            .filter(|(_, node)| node.ancestry.block.index > self.root.block.index)
            .collect();
        rest.sort_unstable_by_key(|(_, node)| node.ancestry.block.index);
        for (digest, node) in rest {
            let parent = node.block.header().parent;
            if parent == self.root.block.digest || kept.contains_key(&parent) {
                kept.insert(digest, node);
            }
        }
        self.nodes = kept;
    }

    /// Forgets the blocks that stand on none of the chains that end at `tips`.
    pub fn retain_chains(&mut self, tips: &[Digest]) {
        let kept: std::collections::BTreeSet<_> =
            tips.iter().flat_map(|tip| self.descend(tip)).map(|block| block.digest()).collect();
        self.nodes.retain(|digest, _| kept.contains(digest));
    }

    /// How many blocks are above the root.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether every block hangs on the root, one above its parent. For the invariants.
    pub fn is_sound(&self) -> bool {
        self.nodes.values().all(|node| {
            let parent = self.ancestry(&node.block.header().parent);
            parent.is_some_and(|parent| parent.block.index.next() == node.ancestry.block.index)
        }) && self.nodes.values().all(|node| node.ancestry.block.index > self.root.block.index)
    }

    /// The root's index.
    pub fn committed(&self) -> Index {
        self.root.block.index
    }
}
