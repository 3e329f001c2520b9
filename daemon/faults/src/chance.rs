//! A liar's only source of chance: a generator with a seed, so that the same seed is the same lie.

use bftd_core::ids::MemberId;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Liar;

/// See the module's header.
pub(crate) struct Chance(ChaCha8Rng);

impl Chance {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// True this often.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// True with a probability in percent.
    pub fn percent(&mut self, percent: u8) -> bool {
        self.below(100) < u64::from(percent)
    }

    /// A number below another one that is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0.random_range(0..end.max(1))
    }

    /// One of the other members.
    pub fn other(&mut self, liar: &Liar) -> MemberId {
        let others: Vec<_> = liar.others().collect();
        let at = self.below(others.len() as u64);
        others.get(at as usize).copied().unwrap_or(liar.me)
    }

    /// Some of the members: about half.
    pub fn some(&mut self, liar: &Liar) -> Vec<MemberId> {
        liar.members.ids().filter(|_| self.percent(55)).collect()
    }
}
