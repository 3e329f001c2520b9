//! Sessions: changes that are made once, however often connections break, daemons crash, or the term changes.
//!
//! Each change has a number, and is sent again under that number, through the same daemon or another one, until it is answered or its
//! deadline has passed. The cluster remembers the answers to the numbers that are open ([`SessionRequest`](crate::SessionRequest) has the rules), so a copy of a
//! change that was made before gets the first one's answer.
//!
//! - Up to [`SESSION_WINDOW`](crate::SESSION_WINDOW) changes of a session are under way, counted from the lowest number without an answer; more wait.
//! - A change that is given up, because its deadline has passed or its future was dropped, may have been made or not. It is not made any more once
//!   a later change of the session was made.
//! - Where the cluster has ended the session, which was not used for an hour or was one of too many, a new one is opened. A change
//!   that was sent once only, and is refused for that, is sent in the new one. One that was sent before has an unknown outcome.

mod links;
mod numbers;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bftd_core::kv::{Answer, Operation, Outcome, Query, Refusal};
use tokio::time::Instant;

use crate::{
    client::{Changed, DEFAULT_DEADLINE, Error, unexpected},
    protocol::{At, Consistency, Failure, Request, Response, Trace},
};
use links::{Backoff, Links};
use numbers::Numbers;

/// How a [`Session`] behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// How long a call may take, everything that is tried again included.
    pub deadline: Duration,
    /// How long a daemon may be silent before another one is asked, where there are others.
    pub patience: Duration,
    /// Whether to go on trying where nothing was sent yet: while no daemon answers, there is no quorum, or the daemon is busy. Else the
    /// error is returned at once, and says that nothing was done. What may have been sent is sent again in any case.
    pub insist: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { deadline: DEFAULT_DEADLINE, patience: Duration::from_secs(2), insist: true }
    }
}

/// A session with a cluster. Clones share it.
///
/// ```no_run
/// # async fn example() -> Result<(), bftd_client::Error> {
/// use bftd_client::{Expect, Session, SessionOptions};
///
/// let sockets = ["/run/bftd/admin.sock"];
/// let session = Session::open(sockets, SessionOptions::default()).await?;
/// // Made once, even if the daemon crashes on the way and is started again.
/// let put = session.put("greeting".into(), "hello".into(), Expect::Anything).await?;
/// println!("made by block {} of term {}", put.index, put.term);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Session {
    links: Arc<Links>,
    numbers: Arc<Numbers>,
    options: SessionOptions,
}

/// What an attempt has led to.
enum Attempt {
    Answered(Response),
    /// The cluster does not know the session, or not as this client's own.
    Ended(Refusal),
    /// It may lead to something if it is tried again.
    Failed {
        error: Error,
        /// Whether the change may have been made, or may be made yet.
        is_sent: bool,
        /// Whether another daemon may do better.
        leaves: bool,
    },
    Refused(Error),
}

impl Session {
    /// Opens a session. `sockets` are the admin sockets of daemons of one cluster, all of this host; the first is asked first, and another one
    /// when it fails.
    ///
    /// # Errors
    /// No daemon answers in time, or none that is of use; without [`SessionOptions::insist`], the first does not.
    pub async fn open(
        sockets: impl IntoIterator<Item = impl Into<PathBuf>>,
        options: SessionOptions,
    ) -> Result<Self, Error> {
        let sockets = sockets.into_iter().map(Into::into).collect();
        let links = Arc::new(Links::new(sockets, options.patience));
        let session = Self { links, numbers: Arc::default(), options };
        session.numbers.open(&session, session.until()).await?;
        Ok(session)
    }

    /// The same session with another deadline for calls.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { options: SessionOptions { deadline, ..self.options.clone() }, ..self.clone() }
    }

    /// Makes a change once. One that is out of bounds is refused before anything is sent.
    ///
    /// The answer is the first copy's. Where that was lost, and a transaction had read more than 16 KiB, or others of the session more than
    /// 64 KiB, listings come back as [`StepOutcome::NotRead`](crate::StepOutcome::NotRead), or [`Taken::steps`](crate::Taken::steps) is empty: the
    /// transaction was executed as [`Taken::succeeded`](crate::Taken::succeeded) says, at that revision.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] where the deadline has passed and the change may have been made. Any other one: it was not made.
    pub async fn execute(&self, operation: Operation) -> Result<Changed, Error> {
        match self.change(operation, Request::Execute).await? {
            Response::Executed { outcome, index, term } => Changed { outcome, index, term }.or_refused(),
            other => Err(unexpected(other)),
        }
    }

    /// [`Session::execute`], with what the last copy took; none where the daemon follows as many changes as it may already.
    ///
    /// # Errors
    /// See [`Session::execute`].
    pub async fn execute_traced(&self, operation: Operation) -> Result<(Changed, Option<Trace>), Error> {
        match self.change(operation, Request::Traced).await? {
            Response::Traced { outcome, index, term, trace } => {
                let changed = Changed { outcome, index, term }.or_refused()?;
                Ok((changed, trace.map(|trace| *trace)))
            }
            other => Err(unexpected(other)),
        }
    }

    /// Asks the state, whatever it is; again where no answer comes.
    ///
    /// # Errors
    /// No answer came until the deadline, or the state has refused the question.
    pub async fn query(&self, query: Query, consistency: Consistency) -> Result<(Answer, At), Error> {
        self.query_until(query, consistency, self.until()).await
    }

    async fn query_until(
        &self,
        query: Query,
        consistency: Consistency,
        until: Instant,
    ) -> Result<(Answer, At), Error> {
        let mut backoff = Backoff::default();
        loop {
            let (number, client) = self.links.get(until, self.options.insist).await?;
            let client = client.with_deadline(self.links.limit(until));
            match judge(client.call(Request::Query { query: query.clone(), consistency }).await) {
                Attempt::Answered(Response::Answered { answer: Answer::Refused(refusal), .. }) => {
                    return Err(Failure::Refused(refusal).into());
                }
                Attempt::Answered(Response::Answered { answer, at }) => return Ok((answer, at)),
                Attempt::Answered(other) => return Err(unexpected(other)),
                Attempt::Ended(refusal) => return Err(Failure::Refused(refusal).into()),
                Attempt::Refused(error) => return Err(error),
                Attempt::Failed { error, leaves, .. } => {
                    if leaves {
                        self.links.leave(number);
                    }
                    if !self.options.insist || !backoff.wait(until).await {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn until(&self) -> Instant {
        Instant::now() + self.options.deadline
    }

    /// Sends a change until it is answered.
    async fn change(
        &self,
        operation: Operation,
        request: impl Fn(Operation) -> Request,
    ) -> Result<Response, Error> {
        match &operation {
            Operation::InSession(_) => Err(Refusal::Malformed),
            Operation::SetProtocol { .. } => Err(Refusal::NotInSession),
            operation => operation.check(),
        }
        .map_err(Failure::Refused)?;
        let operation = operation.encode();
        let until = self.until();
        let mut number = self.numbers.take(self, until).await?;
        let mut backoff = Backoff::default();
        // Whether an earlier copy may have been executed, or may be executed yet.
        let mut is_sent = false;
        let unknown = |error: Error| Error::OutcomeUnknown(format!("it was sent, and then: {error}"));
        loop {
            let link = self.links.get(until, is_sent || self.options.insist).await;
            let (link, client) = link.map_err(|error| if is_sent { unknown(error) } else { error })?;
            let client = client.with_deadline(self.links.limit(until));
            match judge(client.call(request(number.request(operation.clone()))).await) {
                Attempt::Answered(response) => return Ok(response),
                Attempt::Refused(error) => return Err(if is_sent { unknown(error) } else { error }),
                Attempt::Ended(refusal) => {
                    number.ended();
                    // Where the number is another change's no earlier copy was executed, either.
                    is_sent &= refusal != Refusal::NumberTaken;
                    if is_sent || !backoff.wait(until).await {
                        let error = Failure::Refused(refusal).into();
                        return Err(if is_sent { unknown(error) } else { error });
                    }
                    // Every copy was refused: nothing was done.
                    number = self.numbers.take(self, until).await?;
                }
                Attempt::Failed { error, is_sent: this_one, leaves } => {
                    is_sent |= this_one;
                    if leaves {
                        self.links.leave(link);
                    }
                    if !is_sent && !self.options.insist {
                        return Err(error);
                    }
                    if !backoff.wait(until).await {
                        return Err(match error {
                            Error::OutcomeUnknown(_) => error,
                            error if is_sent => unknown(error),
                            error => error,
                        });
                    }
                }
            }
        }
    }
}

/// What came of an attempt.
fn judge(answer: Result<Response, Error>) -> Attempt {
    let failed = |error, is_sent, leaves| Attempt::Failed { error, is_sent, leaves };
    match answer {
        Ok(
            Response::Executed { outcome: Outcome::Refused(refusal), .. }
            | Response::Traced { outcome: Outcome::Refused(refusal), .. },
        ) if is_of_session(refusal) => match refusal {
            // Nobody's own request is below what he has said that he knows: somebody else uses the session.
            Refusal::SessionEnded
            | Refusal::SessionAhead { .. }
            | Refusal::NumberTaken
            | Refusal::AnsweredBefore { .. } => Attempt::Ended(refusal),
            // Numbers that were given up count until this one is executed.
            Refusal::SessionWindow { .. } => failed(Failure::Refused(refusal).into(), false, false),
            _ => Attempt::Refused(Error::OutcomeUnknown(refusal.to_string())),
        },
        Ok(Response::Failed(failure)) => match failure {
            Failure::Busy => failed(failure.into(), false, false),
            Failure::NoQuorum { .. } | Failure::Closing => failed(failure.into(), false, true),
            Failure::Stopping => failed(Error::OutcomeUnknown(failure.to_string()), true, true),
            _ => Attempt::Refused(failure.into()),
        },
        Ok(response) => Attempt::Answered(response),
        Err(error @ Error::OutcomeUnknown(_)) => failed(error, true, true),
        Err(error @ Error::NoAnswer(_)) => failed(error, false, true),
        Err(error) => Attempt::Refused(error),
    }
}

/// Whether it is the session that is refused, and not what is to be done in it.
fn is_of_session(refusal: Refusal) -> bool {
    matches!(
        refusal,
        Refusal::SessionEnded
            | Refusal::SessionAhead { .. }
            | Refusal::SessionWindow { .. }
            | Refusal::AnsweredBefore { .. }
            | Refusal::NumberTaken
    )
}
