//! Every block that was ever sent or persisted, by digest: enough of it to walk along parents.

use std::collections::BTreeMap;
use std::sync::Arc;

use bftd_core::{
    block::{Block, BlockRef},
    crypto::Digest,
    message::Message,
};

/// Blocks by digest. Bounded by what a run makes.
#[derive(Default)]
pub struct Blocks(BTreeMap<Digest, Arc<Block>>);

impl Blocks {
    /// Remembers the blocks of a message. A liar may put other batches beneath a true header: such a thing is no block.
    pub fn learn(&mut self, message: &Message) {
        let mut learn = |block: &Arc<Block>| {
            if block.header().batches == Block::batches_digest(block.batches()) {
                self.insert(block);
            }
        };
        match message {
            Message::Append(append) => learn(&append.block),
            Message::Blocks(blocks) => blocks.blocks.iter().for_each(learn),
            _ => {}
        }
    }

    /// Remembers a block as a correct member has executed it, in the place of what a liar may have shown.
    pub fn executed(&mut self, block: &Arc<Block>) {
        self.0.insert(block.digest(), Arc::clone(block));
    }

    /// Remembers a block.
    pub fn insert(&mut self, block: &Arc<Block>) {
        self.0.entry(block.digest()).or_insert_with(|| Arc::clone(block));
    }

    /// The block with a digest, if it was seen.
    pub fn get(&self, digest: &Digest) -> Option<&Arc<Block>> {
        self.0.get(digest)
    }

    /// The ancestor of a block at an index: none where the walk ends at a block that was not seen. The block
    /// itself counts as its ancestor.
    pub fn ancestor(&self, block: BlockRef, index: u64) -> Option<Digest> {
        let (mut at, mut digest) = (block.index.0, block.digest);
        while at > index {
            digest = self.0.get(&digest)?.header().parent;
            at -= 1;
        }
        (at == index).then_some(digest)
    }
}
