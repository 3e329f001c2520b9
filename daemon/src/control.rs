//! What operators ask of other members' daemons: today only to misbehave.
//!
//! A question goes to the member concerned, which decides by its own configuration, and answers. It is not consensus: a
//! lost question is told as such, and asked again by hand.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bftd_client::protocol::{Failure, FaultChange};
use bftd_core::ids::MemberId;
use tokio::{sync::oneshot, time::timeout};

use crate::{
    faults::Faults,
    peers::Frame,
    transport::{Lane, Transport},
};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// What came of a question: the names of the member's faults now.
pub type Changed = Result<Vec<String>, Failure>;

/// Whom an answer is expected of, and who waits for it.
type Pending = BTreeMap<u64, (MemberId, oneshot::Sender<Changed>)>;

/// Questions under way, and answers to those of others.
pub struct Control {
    me: MemberId,
    faults: Arc<Faults>,
    transport: OnceLock<Arc<Transport>>,
    next: AtomicU64,
    /// As many as clients' calls are under way.
    pending: Mutex<Pending>,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("me", &self.me).field("faults", &self.faults).finish_non_exhaustive()
    }
}

impl Control {
    /// Can answer, and asks once it is connected.
    pub fn new(me: MemberId, faults: Arc<Faults>) -> Self {
        let (transport, next) = (OnceLock::new(), AtomicU64::new(1));
        Self { me, faults, transport, next, pending: Mutex::default() }
    }

    /// What it speaks through. The first call counts.
    pub fn connect(&self, transport: Arc<Transport>) {
        let _ = self.transport.set(transport);
    }

    /// Changes the faults of a member, this one or another. Answers with what they are now.
    ///
    /// # Errors
    /// What the member says, or that it says nothing.
    pub async fn change(&self, member: MemberId, change: &FaultChange) -> Changed {
        if member == self.me {
            return self.change_here(change);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.pending().insert(number, (member, answer));
        self.send(member, Frame::of_ask(number, change));
        let answer = timeout(PATIENCE, answered).await;
        self.pending().remove(&number);
        answer.ok().and_then(Result::ok).unwrap_or(Err(Failure::MemberSilent(member.0)))
    }

    /// A member asks.
    pub fn on_ask(&self, from: MemberId, number: u64, change: &FaultChange) {
        // What it does is told where it is done; a question that changes nothing must not fill the log.
        tracing::debug!(peer = from.0, ?change, "asked to change the injected faults");
        self.send(from, Frame::of_answer(number, &self.change_here(change)));
    }

    /// A member answers.
    pub fn on_answer(&self, from: MemberId, number: u64, result: Changed) {
        let mut pending = self.pending();
        if pending.get(&number).is_some_and(|(member, _)| *member == from)
            && let Some((_, waits)) = pending.remove(&number)
        {
            // Whoever asked may have gone away.
            let _ = waits.send(result);
        }
    }

    fn change_here(&self, change: &FaultChange) -> Changed {
        self.faults.change(change)?;
        Ok(self.faults.names())
    }

    fn send(&self, to: MemberId, frame: bytes::Bytes) {
        if let Some(transport) = self.transport.get() {
            transport.send(to, Lane::Votes, frame);
        }
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
