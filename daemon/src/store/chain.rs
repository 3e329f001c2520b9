//! Which blocks stand above the committed one: what decides whether a record fits the log.

use std::{collections::BTreeMap, sync::Arc};

use bftd_core::{
    block::Block,
    certificate::Certificate,
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
    /// The blocks above it.
    tree: BTreeMap<(Index, Digest), Arc<Block>>,
}

/// What a commit does to the chain.
#[derive(Debug)]
pub(super) struct Commit {
    /// The blocks that become final, rising; at least one.
    pub blocks: Vec<Arc<Block>>,
    /// Of the last of them.
    pub certificate: Arc<Certificate>,
    /// The other blocks at or below its index: they are forgotten.
    pub forgotten: Vec<(Index, Digest)>,
}

impl Chain {
    /// What a log that holds `durable` begins with, if its chain starts at `genesis`.
    pub(super) fn of(durable: &Durable, genesis: Digest) -> Self {
        let committed = durable.committed.as_ref().map(|committed| committed.certificate.block());
        Self {
            committed: committed.map_or((Index(0), genesis), |block| (block.index, block.digest)),
            tree: durable.blocks.clone(),
        }
    }

    /// The index of the newest committed block; 0 if there is none.
    pub(super) fn committed(&self) -> Index {
        self.committed.0
    }

    /// Takes in a group of records.
    ///
    /// # Errors
    /// A commit does not join the chain.
    pub(super) fn take(&mut self, records: &[Record]) -> Result<Vec<Commit>, StoreError> {
        let mut commits = Vec::new();
        for record in records {
            match record {
                Record::Block(block) => {
                    self.insert(block);
                }
                Record::Committed(committed) => commits.push(self.commit(committed)?),
                _ => {}
            }
        }
        Ok(commits)
    }

    /// Takes in a block, unless it stands at or below the committed index.
    pub(super) fn insert(&mut self, block: &Arc<Block>) -> bool {
        let index = block.header().index;
        let stands = index > self.committed.0;
        if stands {
            self.tree.insert((index, block.digest()), Arc::clone(block));
        }
        stands
    }

    /// Makes a block and its ancestors final.
    pub(super) fn commit(&mut self, committed: &Committed) -> Result<Commit, StoreError> {
        let block = committed.certificate.block();
        let mut next = (block.index, block.digest);
        let mut blocks = Vec::new();
        loop {
            let Some(found) = self.tree.remove(&next) else {
                return Err(StoreError::Disconnected { index: block.index, missing: next.0 });
            };
            next = (Index(next.0.0.saturating_sub(1)), found.header().parent);
            blocks.push(found);
            if next == self.committed {
                break;
            }
        }
        blocks.reverse();
        let above = self.tree.split_off(&(block.index.next(), Digest::ZERO));
        self.committed = (block.index, block.digest);
        let forgotten = std::mem::replace(&mut self.tree, above).into_keys().collect();
        Ok(Commit { blocks, certificate: Arc::clone(&committed.certificate), forgotten })
    }
}
