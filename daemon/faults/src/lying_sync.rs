//! Answers those who catch up with lies: a chain of its own without a certificate, the true one altered, in another order, with
//! another block's certificate, a block at a time, or nothing at all when it has been believed so far.
//!
//! Defence: a block is believed by its digest or by the Commit certificate at the end of its run, and who does not bring
//! that is passed over for the next member (ASA-2024-009, CVE-2025-24371, fabric #5076, snarkOS #3243).

use std::sync::Arc;

use bftd_core::{
    block::{Block, Executed, Header},
    crypto::Digest,
    ids::{Index, MemberId, Term},
    kv,
    limits::FETCH_BLOCKS,
    message::{Blocks, FetchCommitted, Message},
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct LyingSync {
    liar: Liar,
    chance: Chance,
    /// A true committed block that others may be asked after.
    known: Vec<Arc<Block>>,
}

impl LyingSync {
    pub fn new(liar: Liar, chance: Chance) -> Self {
        Self { liar, chance, known: Vec::new() }
    }

    /// Blocks on a true one that nobody ever proposed.
    fn invented(&mut self, after: Index, parent: Digest) -> Blocks {
        let members = &self.liar.members;
        let count = 1 + self.chance.below(FETCH_BLOCKS as u64);
        let mut blocks = Vec::new();
        let (mut index, mut parent) = (after, parent);
        for _ in 0..count {
            index = index.next();
            let header = Header {
                cluster: members.cluster(),
                epoch: members.epoch(),
                term: Term(0),
                index,
                parent,
                time_ms: 0,
                batches: Block::batches_digest(&[]),
                executed: Executed { index: Index(0), state: kv::empty_state() },
                sole: false,
            };
            let block = Arc::new(Block::new(header, Vec::new()));
            parent = block.digest();
            blocks.push(block);
        }
        Blocks { blocks, certificate: None }
    }

    fn altered(&mut self, blocks: &Blocks) -> Option<Blocks> {
        let mut blocks = blocks.clone();
        let at = self.chance.below(blocks.blocks.len() as u64) as usize;
        match self.chance.below(6) {
            0 => {
                let block = blocks.blocks.get_mut(at)?;
                let mut header = block.header().clone();
                header.time_ms += 1;
                *block = Arc::new(Block::new(header, block.batches().to_vec()));
            }
            1 => blocks.blocks.reverse(),
            2 => blocks.certificate = None,
            3 => blocks.blocks.truncate(at),
            4 => {
                blocks.blocks.remove(at);
            }
            _ => return None,
        }
        Some(blocks)
    }
}

impl Adversary for LyingSync {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        match message {
            Message::Blocks(blocks) => {
                self.known.extend(blocks.blocks.first().cloned());
                self.known.truncate(FETCH_BLOCKS);
                let lie = match (self.chance.below(3), blocks.blocks.first()) {
                    (0, Some(first)) => {
                        let after = Index(first.header().index.0.saturating_sub(1));
                        Some(self.invented(after, first.header().parent))
                    }
                    (1, _) => self.altered(blocks),
                    _ => None,
                };
                lie.map(|lie| Parcel::now(to, Message::Blocks(lie))).into_iter().collect()
            }
            other => vec![Parcel::now(to, other.clone())],
        }
    }

    /// It answers also what its replica can't know of: where it was asked for more than there is.
    fn incoming(&mut self, from: MemberId, message: &Message) -> Vec<Parcel> {
        match message {
            Message::FetchCommitted(FetchCommitted { after }) if self.chance.one_in(3) => {
                let parent = self.known.iter().find(|block| block.header().index == *after);
                let parent = parent.map_or(Digest::ZERO, |block| block.digest());
                vec![Parcel::now(from, Message::Blocks(self.invented(*after, parent)))]
            }
            Message::Blocks(blocks) if self.chance.one_in(3) => {
                let to = self.chance.other(&self.liar);
                vec![Parcel::now(to, Message::Blocks(blocks.clone()))]
            }
            _ => Vec::new(),
        }
    }
}
