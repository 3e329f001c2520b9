//! What waits to be sent to one peer on one lane.
//!
//! Bounded in frames and bytes. Policy: when it is full, the newest frame is dropped and counted; replicas send again
//! what got no answer. While the peer is not connected, frames older than [`KEEP_DISCONNECTED`] make room first, and are
//! dropped when the connection stands: by then the replica has sent them again, or they no longer matter.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::Lane;

/// The most frames that wait on [`Lane::Votes`] per peer.
const VOTES_FRAMES: usize = 16_384;
/// The most bytes that wait on [`Lane::Votes`] per peer.
const VOTES_BYTES: usize = 8 << 20;
/// The most frames that wait on [`Lane::Bulk`] per peer.
const BULK_FRAMES: usize = 4_096;
/// The most bytes that wait on [`Lane::Bulk`] per peer: a full window of the largest blocks. Frames that go to several
/// peers share their memory.
const BULK_BYTES: usize = 32 << 20;
/// How long a frame is kept for a peer that is not connected: a few times `limits::Timing::resend_us`.
pub(super) const KEEP_DISCONNECTED: Duration = Duration::from_secs(1);
/// The most bytes that leave the queue for one write, unless a single frame is larger.
const BATCH_BYTES: usize = 256 << 10;

/// A lane's waiting frames.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Wakes the writer.
    filled: Notify,
    max_frames: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct Waiting {
    /// Each with the time when it came.
    frames: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    connected: bool,
    dropped: u64,
}

impl Queue {
    pub(super) fn new(lane: Lane) -> Self {
        let (max_frames, max_bytes) = match lane {
            Lane::Votes => (VOTES_FRAMES, VOTES_BYTES),
            Lane::Bulk => (BULK_FRAMES, BULK_BYTES),
        };
        Self { waiting: Mutex::default(), filled: Notify::new(), max_frames, max_bytes }
    }

    /// Adds a frame by the policy above. An empty queue takes any frame.
    pub(super) fn push(&self, frame: Bytes) {
        let now = Instant::now();
        let mut waiting = self.lock();
        if !waiting.connected {
            waiting.drop_stale(now);
        }
        let full = waiting.frames.len() >= self.max_frames || waiting.bytes + frame.len() > self.max_bytes;
        if full && !waiting.frames.is_empty() {
            waiting.dropped += 1;
            return;
        }
        waiting.bytes += frame.len();
        waiting.frames.push_back((now, frame));
        drop(waiting);
        self.filled.notify_one();
    }

    /// Counts a frame that could not even be queued.
    pub(super) fn count_dropped(&self) {
        self.lock().dropped += 1;
    }

    /// How many frames were dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// A connection stands, or is gone.
    pub(super) fn set_connected(&self, connected: bool) {
        let mut waiting = self.lock();
        waiting.connected = connected;
        if connected {
            waiting.drop_stale(Instant::now());
        }
    }

    /// Waits for frames, and moves some of the oldest to `batch`. Only the writer calls this.
    pub(super) async fn take(&self, batch: &mut Vec<Bytes>) {
        loop {
            self.lock().take(batch);
            if !batch.is_empty() {
                return;
            }
            self.filled.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No code panics while it holds the lock; if one did, the queue would still be whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn take(&mut self, batch: &mut Vec<Bytes>) {
        let mut bytes = 0;
        while let Some((_, frame)) = self.frames.front() {
            bytes += frame.len();
            if bytes > BATCH_BYTES && !batch.is_empty() {
                break;
            }
            self.bytes -= frame.len();
            batch.extend(self.frames.pop_front().map(|(_, frame)| frame));
        }
    }

    fn drop_stale(&mut self, now: Instant) {
        while let Some((_, frame)) =
            self.frames.pop_front_if(|(came, _)| now.saturating_duration_since(*came) > KEEP_DISCONNECTED)
        {
            self.bytes -= frame.len();
            self.dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn frame(size: usize) -> Bytes {
        Bytes::from(vec![0; size])
    }

    /// Frames, bytes, dropped.
    fn counts(queue: &Queue) -> (usize, usize, u64) {
        let waiting = queue.lock();
        (waiting.frames.len(), waiting.bytes, waiting.dropped)
    }

    fn backdate(queue: &Queue, age: Duration) {
        for (came, _) in &mut queue.lock().frames {
            *came = came.checked_sub(age).unwrap();
        }
    }

    #[test]
    fn a_full_queue_drops_the_newest() {
        let queue = Queue::new(Lane::Votes);
        queue.set_connected(true);
        for n in 0..VOTES_FRAMES + 10 {
            queue.push(Bytes::from(vec![(n % 251) as u8]));
        }
        assert_eq!(counts(&queue), (VOTES_FRAMES, VOTES_FRAMES, 10));
        assert_eq!(queue.lock().frames.front().unwrap().1[0], 0, "the oldest stays");

        let queue = Queue::new(Lane::Bulk);
        for _ in 0..20 {
            queue.push(frame(4 << 20));
        }
        assert_eq!(counts(&queue), (8, BULK_BYTES, 12));
    }

    #[test]
    fn an_empty_queue_takes_any_frame() {
        let queue = Queue::new(Lane::Votes);
        queue.push(frame(VOTES_BYTES + 1));
        queue.push(frame(1));
        assert_eq!(counts(&queue), (1, VOTES_BYTES + 1, 1));
    }

    #[test]
    fn stale_frames_go_only_while_disconnected() {
        let queue = Queue::new(Lane::Votes);
        queue.push(frame(1));
        backdate(&queue, KEEP_DISCONNECTED * 2);
        queue.push(frame(2));
        assert_eq!(counts(&queue), (1, 2, 1));
        queue.set_connected(true);
        assert_eq!(queue.lock().frames.len(), 1, "a fresh one stays");
        backdate(&queue, KEEP_DISCONNECTED * 2);
        queue.push(frame(3));
        assert_eq!(queue.lock().frames.len(), 2, "a slow connection loses nothing by age");
        backdate(&queue, KEEP_DISCONNECTED * 2);
        queue.set_connected(false);
        queue.set_connected(true);
        assert_eq!(counts(&queue), (0, 0, 3));
    }

    #[tokio::test]
    async fn a_batch_is_bounded_and_in_order() {
        let queue = Queue::new(Lane::Bulk);
        for size in [BATCH_BYTES * 2, 100, BATCH_BYTES - 100, 1] {
            queue.push(frame(size));
        }
        let mut sizes = Vec::new();
        for _ in 0..3 {
            let mut batch = Vec::new();
            queue.take(&mut batch).await;
            sizes.push(batch.iter().map(Bytes::len).collect::<Vec<_>>());
        }
        assert_eq!(sizes, [vec![BATCH_BYTES * 2], vec![100, BATCH_BYTES - 100], vec![1]]);
        assert_eq!(queue.lock().bytes, 0);
    }
}
