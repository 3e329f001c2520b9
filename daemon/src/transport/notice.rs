//! Log lines that others can cause: at most one in [`INTERVAL`] of each kind, with the number of those left out.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The least time between two lines of a kind.
const INTERVAL: Duration = Duration::from_secs(10);

/// One kind of log line.
#[derive(Default)]
pub(crate) struct Notice(Mutex<State>);

#[derive(Default)]
struct State {
    last: Option<Instant>,
    left_out: u64,
}

impl Notice {
    /// Calls `log` with the number of calls left out before, or leaves this one out.
    pub(crate) fn give(&self, log: impl FnOnce(u64)) {
        self.give_at(Instant::now(), log);
    }

    fn give_at(&self, now: Instant, log: impl FnOnce(u64)) {
        // No code panics while it holds the lock; if one did, the state would still be whole.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            state.left_out += 1;
            return;
        }
        state.last = Some(now);
        let left_out = std::mem::take(&mut state.left_out);
        drop(state);
        log(left_out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_an_interval() {
        let notice = Notice::default();
        let start = Instant::now();
        let mut given = Vec::new();
        for second in 0..25 {
            notice.give_at(start + Duration::from_secs(second), |left_out| given.push((second, left_out)));
        }
        assert_eq!(given, [(0, 0), (10, 9), (20, 9)]);
    }
}
