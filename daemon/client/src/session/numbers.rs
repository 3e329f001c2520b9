//! The numbers of a session's changes.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bftd_core::kv::{Operation, Query, SESSION_WINDOW, SessionId, SessionRequest};
use bytes::Bytes;
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::{Instant, timeout_at},
};

use super::{Session, links::random};
use crate::{
    client::Error,
    protocol::{At, Consistency},
};

/// So far behind its daemon's clock the clock of a correct leader surely is not, in milliseconds.
const BEHIND_MS: u64 = 10_000;

/// The session that is open, and its numbers.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    state: Mutex<Open>,
    /// There is room in the window, or another session is open.
    room: Notify,
    /// Held by whoever opens a session.
    opening: AsyncMutex<()>,
}

/// A session as the cluster knows it.
#[derive(Debug, Default)]
struct Open {
    /// None before the first one, and when it has ended.
    id: Option<SessionId>,
    opened_ms: u64,
    /// How many sessions have ended.
    ended: u64,
    next: u64,
    /// The numbers without an answer. Bounded by the window.
    open: BTreeSet<u64>,
}

impl Open {
    /// The lowest number without an answer.
    fn answered(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next)
    }
}

impl Numbers {
    fn state(&self) -> MutexGuard<'_, Open> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session unless there is one.
    pub(super) async fn open(&self, session: &Session, until: Instant) -> Result<(), Error> {
        let late = || Error::NoAnswer("no session could be opened in time".to_owned());
        let _opening = timeout_at(until, self.opening.lock()).await.map_err(|_| late())?;
        if self.state().id.is_some() {
            return Ok(());
        }
        // Whatever is asked, the answer says what time it is in the cluster.
        let question = Query::Get { key: Bytes::from_static(b"\0") };
        let (_, at) = session.query_until(question, Consistency::Local, until).await?;
        let mut state = self.state();
        let ended = state.ended;
        let (id, opened_ms) = (SessionId(u128::from_le_bytes(random())), opened_ms(&at, ended));
        *state = Open { id: Some(id), opened_ms, ended, ..Open::default() };
        drop(state);
        self.room.notify_waiters();
        Ok(())
    }

    /// A number for a change, when there is room in the window.
    pub(super) async fn take(self: &Arc<Self>, session: &Session, until: Instant) -> Result<Number, Error> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            let is_full = {
                let mut state = self.state();
                let is_full = state.id.is_some() && state.next - state.answered() >= SESSION_WINDOW;
                if let (Some(id), false) = (state.id, is_full) {
                    let sequence = state.next;
                    state.next += 1;
                    state.open.insert(sequence);
                    let opened_ms = state.opened_ms;
                    return Ok(Number { numbers: Arc::clone(self), id, opened_ms, sequence });
                }
                is_full
            };
            if is_full {
                let late = || format!("{SESSION_WINDOW} changes of the session are under way");
                timeout_at(until, room).await.map_err(|_| Error::NoAnswer(late()))?;
            } else {
                self.open(session, until).await?;
            }
        }
    }
}

/// When a session is opened, for the cluster. Not after the block that its first request will be in; and late, as sessions may have ended
/// whose last use was later than it says.
///
/// On an idle cluster the last block is old, so an hour after it the daemon's clock says more. It may be wrong, though: who was refused takes
/// the block's time alone, which the refusal has made new.
fn opened_ms(at: &At, ended: u64) -> u64 {
    if ended > 0 && at.time_ms > 0 {
        return at.time_ms;
    }
    at.time_ms + at.age_ms.saturating_sub(BEHIND_MS)
}

/// A change's number in a session. It needs no answer any more when this is dropped.
#[derive(Debug)]
pub(super) struct Number {
    numbers: Arc<Numbers>,
    id: SessionId,
    opened_ms: u64,
    sequence: u64,
}

impl Number {
    /// The change, as it is sent.
    pub(super) fn request(&self, operation: Bytes) -> Operation {
        let state = self.numbers.state();
        let &Self { id: session, opened_ms, sequence, .. } = self;
        let answered = if state.id == Some(session) { state.answered() } else { 0 };
        Operation::InSession(SessionRequest { session, opened_ms, sequence, answered, operation })
    }

    /// The cluster does not know the session any more.
    pub(super) fn ended(&self) {
        let mut state = self.numbers.state();
        if state.id == Some(self.id) {
            *state = Open { ended: state.ended + 1, ..Open::default() };
            drop(state);
            self.numbers.room.notify_waiters();
        }
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        let mut state = self.numbers.state();
        if state.id == Some(self.id) {
            let answered = state.answered();
            state.open.remove(&self.sequence);
            if state.answered() > answered {
                drop(state);
                self.numbers.room.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::{
        super::{SessionOptions, links::Links},
        *,
    };

    fn sent(number: &Number) -> (SessionId, u64, u64) {
        let Operation::InSession(request) = number.request(Bytes::new()) else { panic!() };
        (request.session, request.sequence, request.answered)
    }

    /// Calls outlive their sessions.
    #[tokio::test]
    async fn what_comes_late_from_a_session_that_has_ended_is_nothing_to_the_next_one() {
        let numbers: Arc<Numbers> = Arc::default();
        let session = Session {
            links: Arc::new(Links::new(Vec::new(), Duration::ZERO)),
            numbers: Arc::clone(&numbers),
            options: SessionOptions::default(),
        };
        let begin = |id| numbers.state().id = Some(SessionId(id));
        let take = async || numbers.take(&session, Instant::now()).await.unwrap();
        begin(1);
        let (done, old, older) = (take().await, take().await, take().await);
        drop(done);
        assert_eq!((sent(&old), sent(&older)), ((SessionId(1), 1, 1), (SessionId(1), 2, 1)));
        old.ended();
        begin(2);
        let (first, second) = (take().await, take().await);
        older.ended();
        assert_eq!(numbers.state().id, Some(SessionId(2)), "it has not ended");
        // Its number is one of the new session, too, and open there.
        drop(old);
        drop(first);
        assert_eq!(sent(&second), (SessionId(2), 1, 1));
        let third = take().await;
        assert_eq!(sent(&third), (SessionId(2), 2, 1));
        // What is sent again in the old one says nothing of answers in the new one.
        assert_eq!(sent(&older), (SessionId(1), 2, 0));
    }

    #[test]
    fn the_age_of_the_last_block_counts_as_far_as_clocks_may_be_trusted() {
        let at = |time_ms, age_ms| At { revision: 1, index: 1, age_ms, time_ms };
        assert_eq!(opened_ms(&at(1_000_000, 0), 0), 1_000_000);
        assert_eq!(opened_ms(&at(1_000_000, BEHIND_MS), 0), 1_000_000, "no block may be before it");
        assert_eq!(opened_ms(&at(1_000_000, BEHIND_MS + 5), 0), 1_000_005);
        assert_eq!(opened_ms(&at(1_000_000, 5_000_000), 1), 1_000_000, "who was refused believes no clock");
        assert_eq!(opened_ms(&at(0, 5_000_000), 1), 5_000_000 - BEHIND_MS, "there is nothing else to go by");
    }
}
