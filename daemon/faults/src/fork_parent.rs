//! As the leader, shows different members blocks on different parents.
//!
//! At some block the story for the deceived leaves the others': it stands on a brother of the parent that nobody has seen,
//! which is shown afterwards, or on the grandparent, in the parent's place. From there on it is a chain of its own.
//!
//! Defence: a follower accepts a block on its own tip only, so a vote for a block is a vote for its whole prefix.

use std::{collections::BTreeMap, sync::Arc};

use bftd_core::{
    block::{Block, Header},
    crypto::Digest,
    ids::MemberId,
    message::{Append, Message},
};

use crate::{Adversary, Liar, Parcel, chance::Chance, forged_chain::ForgedChain};

/// How many headers are remembered: a parent is a recent one.
const REMEMBERED: usize = 256;

/// See the module's header.
pub(crate) struct ForkParent {
    liar: Liar,
    chance: Chance,
    deceived: Vec<MemberId>,
    headers: BTreeMap<Digest, Header>,
    chain: ForgedChain,
    /// Brothers that are to be shown.
    brothers: BTreeMap<Digest, Arc<Block>>,
}

impl ForkParent {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let deceived = chance.some(&liar);
        Self {
            liar,
            chance,
            deceived,
            headers: BTreeMap::new(),
            chain: ForgedChain::default(),
            brothers: BTreeMap::new(),
        }
    }

    fn remember(&mut self, header: &Header) {
        if self.headers.len() >= REMEMBERED {
            self.headers.clear();
            self.brothers.clear();
        }
        self.headers.insert(header.digest(), header.clone());
    }

    /// The story that goes to the deceived: one block, or two.
    fn forge(&mut self, append: &Append) -> Option<Vec<Append>> {
        let honest = append.block.header();
        let is_on_fork = self.chain.get(&honest.parent).is_some();
        let parent = self.headers.get(&honest.parent).filter(|parent| parent.term == honest.term).cloned();
        if !is_on_fork && (parent.is_none() || self.chance.one_in(2)) {
            return None;
        }
        let (on_grandparent, mut brother) = (self.chance.one_in(2), None);
        let block = self.chain.in_place_of(&append.block, |header| {
            if let (false, Some(parent)) = (is_on_fork, parent) {
                if on_grandparent {
                    (header.parent, header.index) = (parent.parent, parent.index);
                } else {
                    let time_ms = parent.time_ms + 1;
                    let batches = Block::batches_digest(&[]);
                    let block = Arc::new(Block::new(Header { time_ms, batches, ..parent }, Vec::new()));
                    header.parent = block.digest();
                    header.time_ms = header.time_ms.max(time_ms);
                    brother = Some(block);
                }
            }
            Some(Vec::new())
        })?;
        if let Some(brother) = brother {
            self.brothers.insert(block.digest(), brother);
        }
        let brother = self.brothers.get(&block.digest()).cloned();
        let told = [Some(block), brother].into_iter().flatten();
        Some(told.map(|block| self.liar.append(block, append.certificates.clone())).collect())
    }
}

impl Adversary for ForkParent {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let honest = vec![Parcel::now(to, message.clone())];
        match message {
            Message::Append(append) => {
                self.remember(append.block.header());
                let is_deceived = self.deceived.contains(&to);
                match if is_deceived { self.forge(append) } else { None } {
                    Some(told) => told.into_iter().map(|it| Parcel::now(to, Message::Append(it))).collect(),
                    None => honest,
                }
            }
            // A liar does not accuse itself.
            Message::Evidence(_) => Vec::new(),
            _ => honest,
        }
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        let (Message::Vote(vote) | Message::LateVote(vote)) = message else { return Vec::new() };
        let certificate = self.chain.gather(&self.liar, vote);
        certificate.map_or_else(Vec::new, |it| self.liar.to_others(&Message::Certificate(Arc::new(it))))
    }
}
