//! Has a wall clock that is fast, slow, stopped or at the end of time, and dates its blocks by it.
//!
//! Defence: a block from far ahead waits, a leader whose new blocks lag is suspected, and time never decreases along the
//! chain (DESIGN §2.1).

use bftd_core::ids::Now;

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct LyingClock {
    chance: Chance,
    lie: Lie,
    max_ahead_ms: u64,
}

enum Lie {
    Ahead(u64),
    Behind(u64),
    At(u64),
}

impl LyingClock {
    pub fn new(liar: &Liar, mut chance: Chance) -> Self {
        let max_ahead_ms = liar.timing.max_ahead_ms;
        let lie = draw(&mut chance, max_ahead_ms);
        Self { chance, lie, max_ahead_ms }
    }
}

fn draw(chance: &mut Chance, max_ahead_ms: u64) -> Lie {
    match chance.below(6) {
        // As far as it may be, or a little further.
        0 => Lie::Ahead(max_ahead_ms - 1),
        1 => Lie::Ahead(max_ahead_ms + chance.below(100)),
        2 => Lie::Ahead(u64::MAX),
        3 => Lie::Behind(chance.below(20_000)),
        4 => Lie::At(0),
        _ => Lie::At(u64::MAX),
    }
}

impl Adversary for LyingClock {
    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        if self.chance.one_in(20) {
            self.lie = draw(&mut self.chance, self.max_ahead_ms);
        }
        Vec::new()
    }

    fn unix_ms(&self, honest: u64) -> u64 {
        match self.lie {
            Lie::Ahead(ms) => honest.saturating_add(ms),
            Lie::Behind(ms) => honest.saturating_sub(ms),
            Lie::At(ms) => ms,
        }
    }
}
