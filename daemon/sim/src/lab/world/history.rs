//! Whether correct members agree: what each executes is compared with what the first of them executed at that index. So a member that
//! lags behind differs from nobody, and two that have parted do, wherever the others are.

use bftd_core::{block::BlockRef, crypto::Digest, ids::Index};

/// What correct members have executed. An entry a block of the run.
#[derive(Default)]
pub(super) struct History {
    /// The block and the state after it that came first, from index 1 on.
    executed: Vec<(Digest, Digest)>,
    parted_at: Option<Index>,
}

impl History {
    /// A correct member has executed a block, and its state has this digest now. Each executes all blocks in order.
    pub fn note(&mut self, block: BlockRef, state: Digest) {
        let at = usize::try_from(block.index.0).unwrap_or(usize::MAX) - 1;
        match self.executed.get(at) {
            None => self.executed.push((block.digest, state)),
            Some(first) if *first == (block.digest, state) => {}
            Some(_) => {
                let parted_at = self.parted_at.map_or(block.index, |parted_at| parted_at.min(block.index));
                self.parted_at = Some(parted_at);
            }
        }
    }

    /// The lowest index at which two correct members have executed different blocks, or got different states of the same.
    pub fn parted_at(&self) -> Option<Index> {
        self.parted_at
    }
}

#[cfg(test)]
mod tests {
    use bftd_core::ids::Term;

    use super::*;

    #[test]
    fn lag_is_no_difference_and_another_block_or_state_is() {
        let block = |index, name| BlockRef { term: Term(1), index: Index(index), digest: Digest([name; 32]) };
        let state = |name| Digest([name; 32]);
        let mut history = History::default();
        // One member is three blocks ahead, another comes after, and a third lags for ever.
        for index in [1, 2, 3, 1, 2, 1] {
            history.note(block(index, index as u8), state(index as u8));
        }
        assert_eq!(history.parted_at(), None);
        history.note(block(3, 3), state(9));
        assert_eq!(history.parted_at(), Some(Index(3)), "another state");
        history.note(block(2, 9), state(2));
        history.note(block(3, 9), state(9));
        assert_eq!(history.parted_at(), Some(Index(2)), "another block, further down");
    }
}
