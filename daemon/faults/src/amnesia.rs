//! Forgets over a restart what it has promised: its votes, its lock, its term, or all that is younger than an old copy of its
//! disk. The blocks that it knows to be final it keeps, or loses with that copy.
//!
//! Defence: it is one of the f, whose votes no two quorums share alone. (That an honest operator's restored backup is not
//! noticed yet is said in ARCHITECTURE.md.)

use bftd_core::durable::Durable;

use crate::{Adversary, chance::Chance};

/// See the module's header.
pub(crate) struct Amnesia {
    chance: Chance,
    copy: Option<Durable>,
}

impl Amnesia {
    pub fn new(chance: Chance) -> Self {
        Self { chance, copy: None }
    }
}

impl Adversary for Amnesia {
    fn restart(&mut self, durable: &mut Durable) {
        match self.chance.below(5) {
            0 => self.copy = Some(durable.clone()),
            1 => *durable = self.copy.clone().unwrap_or_default(),
            2 => durable.position = None,
            3 => durable.accepted = None,
            _ => {
                durable.term = None;
                durable.accepted = None;
                durable.position = None;
                durable.blocks.clear();
            }
        }
    }
}
