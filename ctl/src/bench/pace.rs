//! An open loop: operations begin on schedule, whether or not earlier ones have been answered.
//!
//! The runtime's timers are a millisecond coarse, which would be counted as latency. So a thread of its own keeps the
//! time, and releases permits on a grid of at least [`GRID`]; the moment that an operation should begin is the moment of
//! its place on the grid.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

/// The least time between two releases: finer would wake the processor more often than it is worth.
const GRID: Duration = Duration::from_micros(250);

/// What is due within this time of the end may have had no time to begin.
const END: Duration = Duration::from_millis(20);

/// A schedule that is being kept.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u32,
    began: Instant,
    step: Duration,
    /// One permit an operation that is due. Bounded by rate × duration.
    due: Arc<Semaphore>,
    is_over: Arc<AtomicBool>,
    taken: Cell<u64>,
}

impl Pace {
    /// Starts to release `rate` operations a second.
    pub(super) fn start(rate: u32, began: Instant, duration: Duration) -> Self {
        let step = GRID.max(Duration::from_secs(1) / rate);
        let (due, is_over) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicBool::new(false)));
        let (permits, over) = (Arc::clone(&due), Arc::clone(&is_over));
        thread::spawn(move || {
            let mut released = 0;
            for tick in 1.. {
                let at = step * tick;
                if at > duration || over.load(Ordering::Relaxed) {
                    break;
                }
                thread::sleep((began + at).saturating_duration_since(Instant::now()));
                let total = due_by(rate, at);
                permits.add_permits(usize::try_from(total - released).unwrap_or(usize::MAX));
                released = total;
            }
        });
        Self { rate, began, step, due, is_over, taken: Cell::new(0) }
    }

    /// Waits for the next operation, and says when it should have begun; none when the time is over.
    pub(super) async fn next(&self) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        let number = self.taken.replace(self.taken.get() + 1);
        Some(self.began + begins(self.rate, self.step, number))
    }

    /// Releases no more, and sends all who wait home.
    pub(super) fn stop(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.due.close();
    }

    /// How many operations should have begun by now and have not. What is due at the very end doesn't count.
    pub(super) fn not_begun(&self, elapsed: Duration) -> u64 {
        due_by(self.rate, elapsed.saturating_sub(END)).saturating_sub(self.taken.get())
    }
}

/// How many operations are due after a time.
fn due_by(rate: u32, elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros() * u128::from(rate) / 1_000_000).unwrap_or(u64::MAX)
}

/// When the operation of this number, from 0, should begin: the first place on the grid at which it is due.
fn begins(rate: u32, step: Duration, number: u64) -> Duration {
    let exact = u128::from(number + 1) * 1_000_000_000 / u128::from(rate);
    let ticks = exact.div_ceil(step.as_nanos().max(1));
    Duration::from_nanos(u64::try_from(ticks * step.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_begin_on_the_grid_and_not_before_they_are_due() {
        for rate in [1, 300, 4000, 10_000, 333_333] {
            let step = GRID.max(Duration::from_secs(1) / rate);
            for number in [0, 1, 2, 99, 12_345] {
                let at = begins(rate, step, number);
                assert_eq!(at.as_nanos() % step.as_nanos(), 0);
                let exact = Duration::from_secs_f64((number + 1) as f64 / f64::from(rate));
                assert!(
                    at + Duration::from_micros(1) >= exact && at < exact + 2 * step,
                    "{rate} {number} {at:?}"
                );
            }
        }
        assert_eq!(due_by(4000, Duration::from_secs(3)), 12_000);
    }

    #[tokio::test]
    async fn the_schedule_is_kept() {
        let pace = Pace::start(2000, Instant::now(), Duration::from_millis(200));
        let mut last = None;
        for _ in 0..200 {
            last = pace.next().await;
        }
        let elapsed = pace.began.elapsed();
        assert!(elapsed >= Duration::from_millis(99), "{elapsed:?}");
        assert_eq!(last.map(|at| at - pace.began), Some(Duration::from_millis(100)));
        pace.stop();
        assert_eq!(pace.next().await, None);
    }
}
