//! Watchers that wait for changes.
//!
//! - A watch is a long poll: a client asks for changes from a [`Position`] on, and is answered when there are some, or after a
//!   while with none and the position to go on from. What it has not asked for yet is in the history and nowhere else. So a
//!   slow client costs nothing, and nothing is lost or told twice, over restarts either.
//! - One thread, the **hub**, reads what was executed, each change once, and answers those who wait for it. The executor only
//!   wakes it, and only while somebody waits.
//! - A watcher that is behind the hub reads the history itself ([`Watches::next`]). It is *registered first* and reads then: a
//!   change is either in what it reads, or comes to the hub when the watcher is registered.
//! - The hub keeps no more than [`MAX_FOUND`] of changes for a watcher. One with more, or that wants previous values, is told from
//!   where on to read.
//! - It is local state that is watched: no quorum is asked, and a daemon that is cut off shows nothing new.

mod interests;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, Thread},
};

use bftd_client::protocol::Failure;
use bftd_core::kv::{Answer, Event, Events, Kinds, Position, Query, Span, Watched};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use self::interests::{Id, Interests};
use crate::state::{StateError, StateReader};

/// How many watchers may wait at once; more are refused.
pub const MAX_WAITING: usize = 65_536;
/// About how many bytes of changes the hub keeps for one watcher.
pub const MAX_FOUND: usize = 16 << 10;
/// What a change takes beside its key and value, in bytes.
const PER_EVENT: usize = 128;

/// Where changes are read.
pub trait History: Send + Sync + 'static {
    /// The store's revision.
    ///
    /// # Errors
    /// The store's.
    fn head(&self) -> Result<u64, StateError>;

    /// The changes of all keys from a place on, and the store's revision then.
    ///
    /// # Errors
    /// The store's.
    fn from(&self, from: Position) -> Result<(u64, Answer), StateError>;
}

impl History for StateReader {
    fn head(&self) -> Result<u64, StateError> {
        Ok(Self::head(self)?.revision)
    }

    fn from(&self, from: Position) -> Result<(u64, Answer), StateError> {
        let keys = Span::Prefix(bytes::Bytes::new());
        let all = Watched { keys, from, with_previous: false, kinds: Kinds::All };
        let found = self.query_many(&[Query::Events(all)])?;
        let answer = found.answers.into_iter().next().ok_or(StateError::Poisoned)?;
        Ok((found.head.revision, answer))
    }
}

/// The watchers of a daemon. Clones share them.
#[derive(Clone)]
pub struct Watches(Arc<Hub>);

struct Hub {
    history: Box<dyn History>,
    /// How many wait. Written while `inner` is locked.
    waiting: AtomicUsize,
    is_closed: AtomicBool,
    thread: OnceLock<Thread>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// All changes before this place were looked at, or concern nobody who waits.
    at: Position,
    next: Id,
    /// Bounded by [`MAX_WAITING`].
    waiters: HashMap<Id, Waiter>,
    interests: Interests,
}

struct Waiter {
    watched: Watched,
    answer: oneshot::Sender<Found>,
}

/// What the hub tells a watcher.
#[derive(Debug)]
enum Found {
    Events(Events),
    /// There is something for it from this place on.
    From(Position),
}

impl std::fmt::Debug for Watches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watches").field("waiting", &self.0.waiting).finish_non_exhaustive()
    }
}

impl Watches {
    /// Starts the hub.
    ///
    /// # Errors
    /// The operating system refuses another thread.
    pub fn start(history: impl History) -> io::Result<Self> {
        let watches = Self::new(history);
        let hub = Arc::clone(&watches.0);
        let thread = thread::Builder::new().name("watches".into()).spawn(move || hub.run())?;
        let _ = watches.0.thread.set(thread.thread().clone());
        Ok(watches)
    }

    fn new(history: impl History) -> Self {
        let inner = Inner {
            at: Position::start_of(0),
            next: 0,
            waiters: HashMap::new(),
            interests: Interests::default(),
        };
        Self(Arc::new(Hub {
            history: Box::new(history),
            waiting: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            thread: OnceLock::new(),
            inner: Mutex::new(inner),
        }))
    }

    /// Something was executed. Costs nothing while nobody waits.
    pub fn note(&self) {
        if self.0.waiting.load(Ordering::SeqCst) > 0 {
            self.0.wake();
        }
    }

    /// Ends the hub: nobody is answered any more.
    pub fn close(&self) {
        self.0.is_closed.store(true, Ordering::SeqCst);
        self.0.wake();
    }

    /// Waits until there are changes, `until` at most. `read` reads the history.
    ///
    /// # Errors
    /// [`Failure::TooManyWatches`], those of `read`, or the store's.
    pub async fn next<F>(
        &self,
        mut watched: Watched,
        until: Instant,
        read: impl Fn(Watched) -> F,
    ) -> Result<Answer, Failure>
    where
        F: Future<Output = Result<Answer, Failure>>,
    {
        loop {
            let registered = self.register(&watched)?;
            if registered.is_behind {
                match read(watched.clone()).await? {
                    Answer::Events(found) if found.events.is_empty() => {
                        watched.from = found.next;
                        if !found.more {
                            // Nothing is missing: what came meanwhile, the hub knows.
                        } else if Instant::now() < until {
                            continue;
                        } else {
                            return Ok(Answer::Events(found));
                        }
                    }
                    answer => return Ok(answer),
                }
            }
            match registered.wait(watched.from, until).await? {
                Found::Events(events) => return Ok(Answer::Events(events)),
                Found::From(position) => watched.from = watched.from.max(position),
            }
        }
    }

    fn register(&self, watched: &Watched) -> Result<Registered<'_>, Failure> {
        let hub = &*self.0;
        let head = || hub.history.head().map_err(internal);
        let (answer, found) = oneshot::channel();
        let (id, at) = {
            let mut inner = hub.lock();
            if inner.waiters.len() >= MAX_WAITING {
                return Err(Failure::TooManyWatches { limit: MAX_WAITING as u64 });
            }
            if inner.waiters.is_empty() {
                // What came before concerns nobody: whoever is registered now reads it himself.
                inner.at = inner.at.max(Position::start_of(head()? + 1));
            }
            let id = inner.next;
            inner.next += 1;
            inner.interests.add(id, &watched.keys);
            inner.waiters.insert(id, Waiter { watched: watched.clone(), answer });
            hub.waiting.store(inner.waiters.len(), Ordering::SeqCst);
            (id, inner.at)
        };
        let registered = Registered { hub, id, found, is_behind: watched.from < at };
        // What was executed before the executor could see that somebody waits.
        if head()? >= at.revision {
            hub.wake();
        }
        Ok(registered)
    }
}

fn internal(error: StateError) -> Failure {
    Failure::Internal(error.to_string())
}

/// A watcher's place among those that wait, given up when this is dropped.
struct Registered<'a> {
    hub: &'a Hub,
    id: Id,
    found: oneshot::Receiver<Found>,
    /// The hub has passed the watcher's position already: it must read the history first.
    is_behind: bool,
}

impl Registered<'_> {
    /// Waits for the hub's word. If none comes, nothing was found, from a position on up to a later one.
    async fn wait(mut self, from: Position, until: Instant) -> Result<Found, Failure> {
        if let Ok(found) = timeout_at(until, &mut self.found).await {
            return found.map_err(|_| Failure::Internal("the history can't be read".to_owned()));
        }
        let at = {
            let mut inner = self.hub.lock();
            self.hub.remove(&mut inner, self.id);
            inner.at
        };
        // It may have come at the last moment.
        Ok(self.found.try_recv().unwrap_or_else(|_| {
            let next = from.max(Position::start_of(at.revision));
            Found::Events(Events { events: Vec::new(), next, more: false })
        }))
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.hub.remove(&mut self.hub.lock(), self.id);
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn remove(&self, inner: &mut Inner, id: Id) -> Option<Waiter> {
        let waiter = inner.waiters.remove(&id)?;
        inner.interests.remove(id, &waiter.watched.keys);
        self.waiting.store(inner.waiters.len(), Ordering::SeqCst);
        Some(waiter)
    }

    fn run(&self) {
        while !self.is_closed.load(Ordering::SeqCst) {
            if let Err(error) = self.look() {
                tracing::error!(%error, "the watchers can't be told what changes");
                let mut inner = self.lock();
                let ids: Vec<_> = inner.waiters.keys().copied().collect();
                ids.into_iter().for_each(|id| drop(self.remove(&mut inner, id)));
            }
            // Whoever wakes it meanwhile has not done so in vain: then this returns at once.
            thread::park();
        }
    }

    /// Looks through all that is new, and answers whom it concerns.
    fn look(&self) -> Result<(), StateError> {
        loop {
            let from = {
                let inner = self.lock();
                if inner.waiters.is_empty() {
                    return Ok(());
                }
                inner.at
            };
            let (head, answer) = self.history.from(from)?;
            let mut inner = self.lock();
            match answer {
                Answer::Events(found) => {
                    self.tell(&mut inner, from, &found);
                    inner.at = inner.at.max(found.next);
                    if !found.more {
                        return Ok(());
                    }
                }
                // It was compacted before it was looked at.
                _ => {
                    inner.at = inner.at.max(Position::start_of(head + 1));
                    let ids: Vec<_> = inner.waiters.keys().copied().collect();
                    for id in ids {
                        self.answer(&mut inner, id, Found::From(from));
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Tells changes, which begin at a place, to whom they concern.
    fn tell(&self, inner: &mut Inner, from: Position, found: &Events) {
        let mut matched: HashMap<Id, Matched> = HashMap::new();
        let mut at = from;
        for event in &found.events {
            if event.revision > at.revision {
                at = Position::start_of(event.revision);
            }
            for id in inner.interests.of(&event.key) {
                let Some(Waiter { watched, .. }) = inner.waiters.get(&id) else { continue };
                if at >= watched.from && is_wanted(watched.kinds, event) {
                    matched.entry(id).or_default().take(watched, at, event);
                }
            }
            at.within += 1;
        }
        // The last revision is not whole where it is too large for an answer. It may be whole to some, who read it themselves.
        let cut = (found.next.within > 0).then_some(found.next.revision);
        let next = Position::start_of(found.next.revision);
        for (id, Matched { first, last, events, .. }) in matched {
            let found = match events {
                Some(events) if cut != Some(last) => Found::Events(Events { events, next, more: found.more }),
                _ => Found::From(first),
            };
            self.answer(inner, id, found);
        }
    }

    fn answer(&self, inner: &mut Inner, id: Id, found: Found) {
        if let Some(waiter) = self.remove(inner, id) {
            // It may have gone meanwhile.
            let _ = waiter.answer.send(found);
        }
    }
}

fn is_wanted(kinds: Kinds, event: &Event) -> bool {
    match kinds {
        Kinds::All => true,
        Kinds::Puts => event.entry.is_some(),
        Kinds::Deletions => event.entry.is_none(),
    }
}

/// What was found for a watcher.
struct Matched {
    /// The place of the first change.
    first: Position,
    /// The revision of the last one.
    last: u64,
    /// None where the watcher must read them.
    events: Option<Vec<Event>>,
    bytes: usize,
}

impl Default for Matched {
    fn default() -> Self {
        Self { first: Position::start_of(u64::MAX), last: 0, events: Some(Vec::new()), bytes: 0 }
    }
}

impl Matched {
    fn take(&mut self, watched: &Watched, at: Position, event: &Event) {
        self.first = self.first.min(at);
        self.last = event.revision;
        self.bytes += PER_EVENT + event.key.len() + event.entry.as_ref().map_or(0, |entry| entry.value.len());
        if self.bytes > MAX_FOUND || watched.with_previous {
            self.events = None;
        } else if let Some(events) = &mut self.events {
            events.push(event.clone());
        }
    }
}
