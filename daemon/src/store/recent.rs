//! The committed blocks that the database does not hold yet. A member that catches up under load lacks just these.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bftd_core::{block::Block, certificate::Certificate, ids::Index};

use super::{chain::Commit, reader::Run};

/// As large as what the database lacks, which [`super::LogWriter`] bounds.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Committed>);

#[derive(Debug, Default)]
struct Committed {
    /// One for each index.
    blocks: BTreeMap<Index, Arc<Block>>,
    certificates: BTreeMap<Index, Arc<Certificate>>,
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, Committed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what has become durable.
    pub(super) fn add(&self, commits: Vec<Commit>) {
        if commits.is_empty() {
            return;
        }
        let mut committed = self.lock();
        for Commit { blocks, certificate, .. } in commits {
            committed.certificates.insert(certificate.block().index, certificate);
            committed.blocks.extend(blocks.into_iter().map(|block| (block.header().index, block)));
        }
    }

    /// Forgets what the database holds.
    pub(super) fn forget_through(&self, index: Index) {
        let mut committed = self.lock();
        let above = committed.blocks.split_off(&index.next());
        let forgotten = std::mem::replace(&mut committed.blocks, above);
        committed.certificates = committed.certificates.split_off(&index.next());
        drop(committed);
        // Here it is in nobody's way.
        drop(forgotten);
    }

    /// The blocks after an index, if the first of them is here: see [`super::LogReader::committed_after`].
    pub(super) fn run(&self, after: Index, max_blocks: usize, max_bytes: usize) -> Option<Run> {
        let committed = self.lock();
        let mut blocks: Vec<Arc<Block>> = Vec::new();
        let mut bytes = 0;
        for (index, block) in committed.blocks.range(after.next()..) {
            bytes += block.size();
            let is_enough = !blocks.is_empty() && (blocks.len() >= max_blocks || bytes > max_bytes);
            if index.0 != after.next().0 + blocks.len() as u64 || is_enough {
                break;
            }
            blocks.push(Arc::clone(block));
        }
        let last = blocks.last()?.header().index;
        let certificate = committed.certificates.range(after.next()..=last).next_back();
        if let Some((index, _)) = certificate {
            blocks.retain(|block| block.header().index <= *index);
        }
        Some(Run { blocks, certificate: certificate.map(|(_, certificate)| Arc::clone(certificate)) })
    }
}
