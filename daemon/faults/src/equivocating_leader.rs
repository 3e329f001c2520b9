//! As the leader, shows different members different blocks.
//!
//! One part of the members gets the honest replica's blocks, the other part forged ones: without their batches, or with
//! another time, on a chain of their own that goes on from block to block. Each story is validly signed. The
//! votes for forged blocks are gathered too, the liar's own is added, and where that makes a certificate it is shown to
//! some or to all.

use std::{collections::BTreeMap, sync::Arc};

use bftd_core::{
    ballot::Vote,
    block::{Block, Proposal},
    crypto::Digest,
    ids::MemberId,
    message::{Append, Message},
};

use crate::{Adversary, Liar, tally::Tally};

/// How many forged blocks are remembered: runs are short.
const REMEMBERED: usize = 256;

/// See the module's header.
pub struct EquivocatingLeader {
    liar: Liar,
    /// Who gets the forged story.
    deceived: Vec<MemberId>,
    /// Who is shown certificates of forged blocks.
    shown: Vec<MemberId>,
    /// Honest digest → forged block.
    forged: BTreeMap<Digest, Arc<Block>>,
    tally: Tally,
}

impl EquivocatingLeader {
    /// `deceived` get another story; `shown` are told when a part of it is certified.
    pub fn new(liar: Liar, deceived: Vec<MemberId>, shown: Vec<MemberId>) -> Self {
        Self { liar, deceived, shown, forged: BTreeMap::new(), tally: Tally::default() }
    }

    /// The block that the deceived get in the place of an honest one.
    fn forge(&mut self, append: &Append) -> Append {
        let honest = append.block.digest();
        let block = match self.forged.get(&honest) {
            Some(block) => Arc::clone(block),
            None => {
                let mut header = append.block.header().clone();
                if let Some(parent) = self.forged.get(&header.parent) {
                    header.parent = parent.digest();
                }
                if append.block.batches().is_empty() {
                    header.time_ms += 1;
                }
                header.batches = Block::batches_digest(&[]);
                let block = Arc::new(Block::new(header, Vec::new()));
                if self.forged.len() < REMEMBERED {
                    self.forged.insert(honest, Arc::clone(&block));
                }
                block
            }
        };
        let signature = self.liar.signer.sign(&Proposal::signed_bytes(block.header()));
        Append { block, signature, certificates: append.certificates.clone() }
    }

    fn is_forged(&self, digest: Digest) -> bool {
        self.forged.values().any(|block| block.digest() == digest)
    }

    /// Adds a vote for a forged block, and the liar's own; a certificate goes to those who are shown it.
    fn gather(&mut self, vote: &Vote) -> Vec<(MemberId, Message)> {
        if !self.is_forged(vote.ballot.block.digest) {
            return Vec::new();
        }
        match self.tally.add(&self.liar, vote) {
            Some(certificate) => {
                let message = Message::Certificate(Arc::new(certificate));
                self.shown.iter().map(|member| (*member, message.clone())).collect()
            }
            None => Vec::new(),
        }
    }
}

impl Adversary for EquivocatingLeader {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Message> {
        match message {
            Message::Append(append) if self.deceived.contains(&to) => {
                vec![Message::Append(self.forge(append))]
            }
            // A liar does not accuse itself.
            Message::Equivocation(_) => Vec::new(),
            other => vec![other.clone()],
        }
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<(MemberId, Message)> {
        match message {
            Message::Vote(vote) => self.gather(vote),
            _ => Vec::new(),
        }
    }
}
