//! Sends what no decoder should have to bear: frames larger than any message, garbage, cut-off messages, messages with
//! something behind them, lengths that promise gigabytes, blocks and batches above the limits.
//!
//! Defence: a frame's size is checked before it is read, decoding is bounded by what is there, and limits are checked before
//! signatures (CometBFT ASA-2024-011, quinn RUSTSEC-2026-0037).

use std::sync::Arc;

use bftd_core::{
    block::{Batch, Block, Header},
    ids::{BatchNumber, Incarnation, MemberId, Now},
    limits::{FETCH_BLOCKS, MAX_BATCH_REQUESTS, MAX_BLOCK_BATCHES, MAX_MESSAGE},
    message::{Append, Blocks, Message},
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// How many of the large ones leave in all: they are many megabytes.
const LARGE: u64 = 3;

/// See the module's header.
pub(crate) struct Oversized {
    liar: Liar,
    chance: Chance,
    large_left: u64,
    newest: Option<Append>,
}

impl Oversized {
    pub fn new(liar: Liar, chance: Chance) -> Self {
        Self { liar, chance, large_left: LARGE, newest: None }
    }

    fn garbage(&mut self) -> Vec<u8> {
        let length = self.chance.below(300);
        (0..length).map(|_| self.chance.below(256) as u8).collect()
    }

    fn batch(&self, number: u64, requests: usize, size: usize) -> Arc<Batch> {
        let requests = vec![vec![0; size].into(); requests];
        let Liar { me, members, signer, .. } = &self.liar;
        let incarnation = Incarnation(u64::MAX);
        Arc::new(Batch::sign(members.cluster(), *me, incarnation, BatchNumber(number), requests, &**signer))
    }

    fn large(&mut self) -> Option<Vec<u8>> {
        if self.large_left == 0 {
            return None;
        }
        self.large_left -= 1;
        let newest = self.newest.clone();
        let block = |batches: Vec<Arc<Batch>>| {
            let append = newest.as_ref()?;
            let batches_digest = Block::batches_digest(&batches);
            let header = Header { batches: batches_digest, ..append.block.header().clone() };
            Some(self.liar.append(Arc::new(Block::new(header, batches)), append.certificates.clone()))
        };
        match self.chance.below(5) {
            0 => Some(vec![0; MAX_MESSAGE + 1]),
            1 => Some(Message::Batch(self.batch(1, MAX_BATCH_REQUESTS + 1, 1)).encode()),
            2 => Some(Message::Batch(self.batch(1, 1, bftd_core::limits::MAX_BATCH)).encode()),
            3 => {
                let batches = (0..=MAX_BLOCK_BATCHES as u64).map(|number| self.batch(number + 1, 0, 0));
                Some(Message::Append(block(batches.collect())?).encode())
            }
            _ => {
                let block = Arc::clone(&newest?.block);
                let blocks = Blocks { blocks: vec![block; FETCH_BLOCKS + 1], certificate: None };
                Some(Message::Blocks(blocks).encode())
            }
        }
    }
}

impl Adversary for Oversized {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let mut bytes = message.encode();
        match self.chance.below(3) {
            0 => bytes.push(0),
            1 => bytes.truncate(self.chance.below(bytes.len() as u64) as usize),
            // A length, perhaps, that promises more than there is.
            _ => {
                let at = self.chance.below(bytes.len() as u64) as usize;
                bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x7f]);
            }
        }
        vec![Parcel::bytes(to, bytes), Parcel::now(to, message.clone())]
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        if let Message::Append(append) = message {
            self.newest = Some(append.clone());
        }
        Vec::new()
    }

    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        let bytes = match self.chance.below(12) {
            0 => self.large(),
            1..4 => Some(self.garbage()),
            _ => None,
        };
        let to = self.chance.other(&self.liar);
        bytes.map(|bytes| Parcel::bytes(to, bytes)).into_iter().collect()
    }
}
