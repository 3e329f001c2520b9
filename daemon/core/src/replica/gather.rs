//! How long a leader's next block waits to be filled.
//!
//! Clients come back with their next requests a moment after the last ones were answered. A leader that proposes in the
//! instant in which a block commits leaves those out, and from then on two halves of the clients take turns, in blocks
//! that cost the same signatures and syncs as whole ones. So for a part of the time that the last block took it waits
//! until as many requests are there as that block had, and as were there already when it committed. A lone client never
//! waits: its next request is all that is expected.

/// The next block waits for half the time that the last one took, at most.
const SHARE: u64 = 2;

/// What is waited for after a commit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gather {
    expected: usize,
    until_us: u64,
}

impl Gather {
    /// A block of so many requests is committed, after so long, and others are waiting.
    pub fn begin(&mut self, committed: usize, took_us: u64, waiting: usize, now_us: u64) {
        *self = Self { expected: committed + waiting, until_us: now_us.saturating_add(took_us / SHARE) };
    }

    /// Until when more is waited for, if `waiting` requests are not enough yet.
    pub fn waits_until(&self, waiting: usize, now_us: u64) -> Option<u64> {
        (waiting < self.expected && now_us < self.until_us).then_some(self.until_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_answered_is_waited_for_and_not_for_long() {
        let mut gather = Gather::default();
        assert_eq!(gather.waits_until(1, 0), None, "nothing was committed yet");
        gather.begin(3, 1_000, 2, 10_000);
        assert_eq!(gather.waits_until(4, 10_000), Some(10_500));
        assert_eq!(gather.waits_until(5, 10_000), None, "all are there");
        assert_eq!(gather.waits_until(4, 10_500), None, "the time is over");
    }

    #[test]
    fn a_lone_client_never_waits() {
        let mut gather = Gather::default();
        gather.begin(1, 1_000, 0, 10_000);
        assert_eq!(gather.waits_until(1, 10_001), None);
    }
}
