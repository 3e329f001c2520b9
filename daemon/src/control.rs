//! What operators ask of other members' daemons: today only to misbehave.
//!
//! A question goes to the member concerned, which decides by its own configuration, and answers. It is not consensus: a
//! lost question is told as such, and asked again by hand.
//!
//! The member may lie, and an operator reads what it says: only the few answers that a correct daemon gives are taken, with
//! short and printable words.

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
    peers::{Frame, are_fault_names, is_printable},
    transport::{Lane, Transport},
};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest explanation that is taken from a member, in bytes. Ours, with the list of all faults, is shorter.
const MAX_EXPLANATION: usize = 1024;

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
        let _asking = Asking { control: self, number };
        self.send(member, Frame::of_ask(number, change));
        let answer = timeout(PATIENCE, answered).await;
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
            let _ = waits.send(credible(from, result));
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

/// A question under way, forgotten when nobody waits for its answer any more.
struct Asking<'a> {
    control: &'a Control,
    number: u64,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.control.pending().remove(&self.number);
    }
}

/// An answer as it may be shown, whoever `from` is.
fn credible(from: MemberId, result: Changed) -> Changed {
    match result {
        Ok(names) if are_fault_names(&names) => Ok(names),
        Err(Failure::FaultsDisabled { node }) if node == from.0 => Err(Failure::FaultsDisabled { node }),
        Err(Failure::UnknownFault(text)) if text.len() <= MAX_EXPLANATION && is_printable(&text) => {
            Err(Failure::UnknownFault(text))
        }
        _ => Err(Failure::MemberUnclear(from.0)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::faults::tests::faults;

    fn control() -> Control {
        Control::new(MemberId(2), Arc::new(faults(true)))
    }

    /// What an operator is told when member 3 gives an answer.
    async fn told(answer: Changed) -> Changed {
        let control = control();
        let (told, ()) = tokio::join!(control.change(MemberId(3), &FaultChange::Clear), async {
            control.on_answer(MemberId(3), 1, answer);
        });
        assert!(control.pending().is_empty());
        told
    }

    #[tokio::test]
    async fn only_what_a_correct_member_may_say_is_taken_from_one_that_may_lie() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let explain = |text: &str| Failure::UnknownFault(text.to_owned());
        let all_kinds = faults(true).change(&FaultChange::Start { fault: "?".repeat(64), for_ms: None });
        let credible = [
            Ok(names(&[])),
            Ok(names(&["malicious", "delay=200ms"])),
            Ok(vec!["x".repeat(64); 8]),
            Err(Failure::FaultsDisabled { node: 3 }),
            Err(all_kinds.unwrap_err()),
        ];
        for answer in credible {
            assert_eq!(told(answer.clone()).await, answer);
        }
        let incredible = [
            Ok(vec!["slow".to_owned(); 9]),
            Ok(vec!["x".repeat(65)]),
            Ok(names(&["\x1b[2J"])),
            Ok(names(&["\u{202e}wols"])),
            Ok(names(&[""])),
            Err(Failure::FaultsDisabled { node: 1 }),
            Err(explain("\x1b]0;owned\x07")),
            Err(explain(&"x".repeat(MAX_EXPLANATION + 1))),
            Err(Failure::Denied("give me your key".to_owned())),
            Err(Failure::BeyondF { faulty: 2, f: 1 }),
            Err(Failure::Internal("rm -rf /".to_owned())),
            Err(Failure::NoQuorum { reachable: 1, n: 4, needed: 3 }),
            Err(Failure::MemberDown(3)),
        ];
        for answer in incredible {
            assert_eq!(told(answer.clone()).await, Err(Failure::MemberUnclear(3)), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn nobody_answers_for_somebody_else() {
        let control = control();
        let (told, ()) = tokio::join!(control.change(MemberId(3), &FaultChange::Clear), async {
            control.on_answer(MemberId(1), 1, Ok(vec!["slow".to_owned()]));
            control.on_answer(MemberId(3), 2, Ok(vec!["slow".to_owned()]));
            control.on_answer(MemberId(3), 1, Ok(Vec::new()));
        });
        assert_eq!(told, Ok(Vec::new()));
    }

    #[tokio::test]
    async fn a_question_that_nobody_waits_for_is_forgotten() {
        let control = control();
        let question = control.change(MemberId(3), &FaultChange::Clear);
        assert!(timeout(Duration::from_millis(10), question).await.is_err());
        assert!(control.pending().is_empty());
    }
}
