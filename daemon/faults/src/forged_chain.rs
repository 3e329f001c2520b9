//! A second chain beside the honest one, block by block, and what it takes to have it certified.
//!
//! What an honest block is to the others, its forgery is to the deceived: it stands on the forgery of the parent where
//! there is one, is signed as validly, and votes for it are gathered; the liar's own is added.

use std::{collections::BTreeMap, sync::Arc};

use bftd_core::{
    ballot::Vote,
    block::{Batch, Block, Header},
    certificate::Certificate,
    crypto::Digest,
};

use crate::{Liar, tally::Tally};

/// How many forged blocks are remembered: the oldest are of no use any more.
const REMEMBERED: usize = 256;

/// See the module's header.
#[derive(Default)]
pub(crate) struct ForgedChain {
    /// Honest digest → forged block.
    forged: BTreeMap<Digest, Arc<Block>>,
    tally: Tally,
}

impl ForgedChain {
    /// The forgery of an honest block, if there is one.
    pub fn get(&self, honest: &Digest) -> Option<&Arc<Block>> {
        self.forged.get(honest)
    }

    /// The forgery of an honest block: made by `forge`, which changes a header that stands on the parent's forgery, and says
    /// what batches go with it; none where it has no forgery to offer.
    pub fn in_place_of(
        &mut self,
        honest: &Block,
        forge: impl FnOnce(&mut Header) -> Option<Vec<Arc<Batch>>>,
    ) -> Option<Arc<Block>> {
        if let Some(block) = self.forged.get(&honest.digest()) {
            return Some(Arc::clone(block));
        }
        let mut header = honest.header().clone();
        if let Some(parent) = self.forged.get(&header.parent) {
            header.parent = parent.digest();
            header.index = parent.header().index.next();
        }
        let batches = forge(&mut header)?;
        header.batches = Block::batches_digest(&batches);
        let block = Arc::new(Block::new(header, batches));
        if self.forged.len() >= REMEMBERED {
            self.forged.clear();
        }
        self.forged.insert(honest.digest(), Arc::clone(&block));
        Some(block)
    }

    /// Adds a vote, and the liar's own; a certificate if it is for a forged block and they are a quorum now.
    pub fn gather(&mut self, liar: &Liar, vote: &Vote) -> Option<Certificate> {
        let is_forged = self.forged.values().any(|block| block.digest() == vote.ballot.block.digest);
        if is_forged { self.tally.add(liar, vote) } else { None }
    }
}
