//! Watching keys: every change, in order, none lost and none twice, over broken connections and restarts of the daemon.
//!
//! A [`Watcher`] asks its daemon again and again for the changes from a position on, and so needs nobody to remember it: what it
//! has not been given yet is in the store's history. When the connection breaks it waits, connects again and goes on from where
//! it was. A watcher that is slow, or away, is bounded by one thing alone: the history is kept until it is compacted.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use bftd_client::{Client, Span, watch::{News, Watch}};
//!
//! let client = Client::connect("/run/bftd/admin.sock".as_ref()).await?;
//! let mut watcher = client.watch(Watch::new(Span::Prefix("config/".into())))?;
//! loop {
//!     if let News::Changes(changes) = watcher.next().await? {
//!         for event in changes.events {
//!             println!("{}: {:?} {:?}", changes.revision, event.key, event.entry.map(|entry| entry.value));
//!         }
//!     }
//! }
//! # }
//! ```

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use bftd_core::kv::{Answer, Event, Events, Kinds, Position, Query, Refusal, Span, Watched};
use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use crate::{
    client::{Client, Error, unexpected},
    link::Link,
    protocol::{Consistency, Failure, Request, Response},
};

/// How long a watcher goes without its daemon unless told otherwise.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(60);
/// For how long a daemon waits for changes before it says that there are none, at most.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How much longer than that its answer may take.
const GRACE: Duration = Duration::from_secs(10);
/// How long to wait before the first attempt to go on, and before the later ones at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// About how many bytes of one revision's changes are put together; what is larger comes in parts.
const JOINED: usize = 32 << 20;

/// What to watch, and how.
#[derive(Clone, Debug)]
pub struct Watch {
    keys: Span,
    from: u64,
    with_previous: bool,
    kinds: Kinds,
    progress: Option<Duration>,
    interruptions: bool,
    patience: Duration,
}

impl Watch {
    /// All changes of these keys from now on: those after all that was acknowledged to anybody before the first
    /// [`Watcher::next`].
    pub fn new(keys: Span) -> Self {
        Self {
            keys,
            from: 0,
            with_previous: false,
            kinds: Kinds::All,
            progress: None,
            interruptions: false,
            patience: DEFAULT_PATIENCE,
        }
    }

    /// From this revision on, which may be past or to come; 0 is from now on.
    #[must_use]
    pub fn from_revision(self, revision: u64) -> Self {
        Self { from: revision, ..self }
    }

    /// With what keys were before: see [`Event::previous`].
    #[must_use]
    pub fn with_previous(self) -> Self {
        Self { with_previous: true, ..self }
    }

    /// Only puts, or only deletions.
    #[must_use]
    pub fn kinds(self, kinds: Kinds) -> Self {
        Self { kinds, ..self }
    }

    /// With [`News::Progress`] when nothing changed for so long, 10 s at most.
    #[must_use]
    pub fn with_progress(self, every: Duration) -> Self {
        Self { progress: Some(every.min(LONGEST_WAIT)), ..self }
    }

    /// With [`News::Interrupted`] and [`News::Resumed`].
    #[must_use]
    pub fn with_interruptions(self) -> Self {
        Self { interruptions: true, ..self }
    }

    /// How long to go without an answer of a daemon before giving up: [`DEFAULT_PATIENCE`] unless told.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }
}

/// The changes of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The revision, which all of them share.
    pub revision: u64,
    /// The changes in their order.
    pub events: Vec<Event>,
    /// Whether this is but a part of them, and the next one comes with the next [`Watcher::next`]. Only where they have more than some
    /// 32 MiB. The last part may be empty.
    pub more: bool,
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Keys have changed.
    Changes(Changes),
    /// All changes up to this revision were told: see [`Watch::with_progress`].
    Progress(u64),
    /// No daemon answers, for this reason; the watcher tries to go on. See [`Watch::with_interruptions`].
    Interrupted(String),
    /// A daemon answers again.
    Resumed,
}

/// Why a watcher can't go on.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// What it asks for is forgotten: changes were missed. It may begin anew from a revision after the compacted one, once it has
    /// read how the keys are.
    #[error("the changes from revision {from} on are not known any more: all before revision {} are compacted", .compacted.saturating_add(1))]
    Compacted {
        /// From where on it asked.
        from: u64,
        /// The compacted revision: no change up to this one can be told.
        compacted: u64,
    },
    /// No daemon answered for as long as it was to be waited for; nothing was missed. [`Watcher::next`] tries again.
    #[error("no daemon has answered for {seconds} s: {last}")]
    Lost {
        /// For how long.
        seconds: u64,
        /// Why not, lastly.
        last: Error,
    },
    /// The daemon refuses, or could not be asked where to begin.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// A question under way. It outlives a [`Watcher::next`] that is dropped.
type Asked = Pin<Box<dyn Future<Output = Result<Response, Error>> + Send>>;

/// Tells what changes. Each one has at most one question under way on the connection that it shares with the client.
pub struct Watcher {
    link: Arc<Link>,
    client: Client,
    watch: Watch,
    /// From where on to ask; none before the revision is known.
    next: Option<Position>,
    /// Changes that are here and not told yet.
    events: VecDeque<Event>,
    /// The revision of which a part was told, with more to come.
    told_in_part: Option<u64>,
    /// All before [`Watcher::next`] was told, and asking has led to nothing new.
    is_idle: bool,
    asked: Option<Asked>,
    /// Since when no daemon has answered, and how long to wait before the next attempt.
    away: Option<Away>,
}

struct Away {
    since: Instant,
    /// When to ask again.
    until: Instant,
    backoff: Duration,
    /// Whether it was told.
    is_told: bool,
    last: Error,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("watch", &self.watch)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Watches keys. Any number of watchers share the client's connection, up to the 1,024 that a daemon takes of one.
    ///
    /// # Errors
    /// [`Refusal::KeyLength`].
    pub fn watch(&self, watch: Watch) -> Result<Watcher, Error> {
        watch.keys.check().map_err(Failure::Refused)?;
        let next = (watch.from > 0).then(|| Position::start_of(watch.from));
        Ok(Watcher {
            link: self.link(),
            client: self.clone(),
            watch,
            next,
            events: VecDeque::new(),
            told_in_part: None,
            is_idle: false,
            asked: None,
            away: None,
        })
    }
}

impl Watcher {
    /// The revision to go on from in another watcher, so that nothing is lost: the first one of which not all was told. None before
    /// it is known, where it begins with "now".
    pub fn revision(&self) -> Option<u64> {
        let waiting = self.events.front().map(|event| event.revision);
        self.told_in_part.or(waiting).or(self.next.map(|next| next.revision))
    }

    /// Waits for news. May be dropped at any time: nothing is lost.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub async fn next(&mut self) -> Result<News, WatchError> {
        loop {
            if let Some(changes) = self.take_changes() {
                return Ok(News::Changes(changes));
            }
            if std::mem::take(&mut self.is_idle)
                && self.watch.progress.is_some()
                && let Some(next) = self.next
            {
                return Ok(News::Progress(next.revision.saturating_sub(1)));
            }
            let was_away = self.away.as_ref().is_some_and(|away| away.is_told);
            match self.ask().await {
                Ok(()) if was_away => return Ok(News::Resumed),
                Ok(()) => {}
                Err(error) => {
                    if let Some(told) = self.note(error)? {
                        return Ok(told);
                    }
                }
            }
        }
    }

    /// The next revision of which all is here, or too much.
    fn take_changes(&mut self) -> Option<Changes> {
        let next = self.next?;
        // More of this one is to come.
        let cut = (next.within > 0).then_some(next.revision);
        let Some(revision) = self.events.front().map(|event| event.revision) else {
            let revision = self.told_in_part.take_if(|revision| Some(*revision) != cut)?;
            return Some(Changes { revision, events: Vec::new(), more: false });
        };
        if let Some(before) = self.told_in_part.take_if(|before| *before != revision) {
            return Some(Changes { revision: before, events: Vec::new(), more: false });
        }
        let more = cut == Some(revision);
        if more && self.events.iter().map(size).sum::<usize>() < JOINED {
            return None;
        }
        let of_it = self.events.iter().take_while(|event| event.revision == revision).count();
        self.told_in_part = more.then_some(revision);
        Some(Changes { revision, events: self.events.drain(..of_it).collect(), more })
    }

    /// Asks once, and takes the answer.
    async fn ask(&mut self) -> Result<(), Error> {
        if let Some(Away { until, .. }) = self.away {
            sleep_until(until).await;
        }
        if self.asked.is_none() {
            self.client = self.link.client(&self.client).await?;
            self.asked = Some(self.question());
        }
        let Some(asked) = &mut self.asked else { return Ok(()) };
        let answer = asked.await;
        self.asked = None;
        let found = match answer? {
            Response::Answered { answer: Answer::Events(found), .. } => found,
            Response::Answered { answer: Answer::Entry(_), at } if self.next.is_none() => {
                self.next = Some(Position::start_of(at.revision + 1));
                self.away = None;
                return Ok(());
            }
            Response::Answered { answer: Answer::Refused(refusal), .. } => {
                return Err(Failure::Refused(refusal).into());
            }
            other => return Err(unexpected(other)),
        };
        self.away = None;
        let Events { events, next, more } = found;
        self.is_idle = events.is_empty() && !more;
        self.events.extend(events);
        self.next = Some(next);
        Ok(())
    }

    fn question(&self) -> Asked {
        let Some(from) = self.next else {
            // Whichever key is read, the answer says the revision.
            let key = Bytes::from_static(b"0");
            let request =
                Request::Query { query: Query::Get { key }, consistency: Consistency::Linearizable };
            let client = self.client.clone();
            return Box::pin(async move { client.call(request).await });
        };
        let Watch { keys, with_previous, kinds, progress, .. } = &self.watch;
        let watched = Watched { keys: keys.clone(), from, with_previous: *with_previous, kinds: *kinds };
        let wait = progress.unwrap_or(LONGEST_WAIT);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let client = self.client.with_deadline(wait + GRACE);
        Box::pin(async move { client.call(Request::Watch { watched, wait_ms }).await })
    }

    /// Decides what an error means, and what is told of it.
    fn note(&mut self, error: Error) -> Result<Option<News>, WatchError> {
        if let (Error::Failed(Failure::Refused(Refusal::Compacted { compacted })), Some(from)) =
            (&error, self.next)
        {
            return Err(WatchError::Compacted { from: from.revision, compacted: *compacted });
        }
        // Where to begin is a question like others: whoever asks is told at once that it can't be answered.
        let has_begun = self.next.is_some();
        if !passes(&error) || !has_begun {
            return Err(error.into());
        }
        let now = Instant::now();
        let patience = self.watch.patience;
        let away = match self.away.take() {
            None => {
                Away { since: now, until: now + BACKOFF.0, backoff: BACKOFF.0, is_told: false, last: error }
            }
            Some(Away { since, .. }) if now.duration_since(since) >= patience => {
                // The next attempt has as much time again.
                let seconds = now.duration_since(since).as_secs();
                return Err(WatchError::Lost { seconds, last: error });
            }
            Some(Away { since, backoff, is_told, .. }) => {
                let backoff = (backoff * 2).min(BACKOFF.1);
                Away { since, until: now + backoff, backoff, is_told, last: error }
            }
        };
        let tells = self.watch.interruptions && !away.is_told;
        let told = tells.then(|| News::Interrupted(away.last.to_string()));
        self.away = Some(Away { is_told: away.is_told || tells, ..away });
        Ok(told)
    }
}

/// About what an event takes, in bytes.
fn size(event: &Event) -> usize {
    let entries = [&event.entry, &event.previous].into_iter().flatten();
    size_of::<Event>() + event.key.len() + entries.map(|entry| entry.value.len()).sum::<usize>()
}

/// Whether it may be otherwise in a moment.
fn passes(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::NoAnswer(_) => true,
        Error::Failed(failure) => matches!(failure, Failure::Closing | Failure::Stopping | Failure::Busy),
        Error::NotUnderstood { .. } | Error::OutcomeUnknown(_) | Error::TooLarge(_) => false,
    }
}
