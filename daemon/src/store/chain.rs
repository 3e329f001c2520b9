//! Which blocks stand above the committed one: what decides whether a record fits the log.

use std::collections::BTreeMap;

use bftd_core::{
    block::Block,
    crypto::Digest,
    durable::{Committed, Durable, Record},
    ids::Index,
};

use super::error::StoreError;

/// The committed block and the tree above it. As large as what the replica keeps.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// The newest committed block, or the genesis block.
    committed: (Index, Digest),
    /// The blocks above it, each with its parent.
    tree: BTreeMap<(Index, Digest), Digest>,
}

impl Chain {
    /// What a log that holds `durable` begins with, if its chain starts at `genesis`.
    pub(super) fn of(durable: &Durable, genesis: Digest) -> Self {
        let committed = durable.committed.as_ref().map(|committed| committed.certificate.block());
        Self {
            committed: committed.map_or((Index(0), genesis), |block| (block.index, block.digest)),
            tree: durable.blocks.iter().map(|(key, block)| (*key, block.header().parent)).collect(),
        }
    }

    /// Takes in a group of records.
    ///
    /// # Errors
    /// A commit does not join the chain.
    pub(super) fn take(&mut self, records: &[Record]) -> Result<(), StoreError> {
        for record in records {
            match record {
                Record::Block(block) => {
                    self.insert(block);
                }
                Record::Committed(committed) => {
                    let _forgotten = self.commit(committed)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes in a block, unless it stands at or below the committed index.
    pub(super) fn insert(&mut self, block: &Block) -> bool {
        let index = block.header().index;
        let stands = index > self.committed.0;
        if stands {
            self.tree.insert((index, block.digest()), block.header().parent);
        }
        stands
    }

    /// Makes a block and its ancestors final, and hands over all others at or below its index: they are forgotten.
    pub(super) fn commit(
        &mut self,
        committed: &Committed,
    ) -> Result<impl Iterator<Item = (Index, Digest)> + use<>, StoreError> {
        let block = committed.certificate.block();
        let mut next = (block.index, block.digest);
        loop {
            let Some(parent) = self.tree.remove(&next) else {
                return Err(StoreError::Disconnected { index: block.index, missing: next.0 });
            };
            next = (Index(next.0.0.saturating_sub(1)), parent);
            if next == self.committed {
                break;
            }
        }
        let above = self.tree.split_off(&(block.index.next(), Digest::ZERO));
        self.committed = (block.index, block.digest);
        Ok(std::mem::replace(&mut self.tree, above).into_keys())
    }
}
