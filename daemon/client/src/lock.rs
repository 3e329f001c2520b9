//! A lock that is held with a lease, and gives a fencing token.
//!
//! Whoever wants the lock puts a key of its own below the lock's name, on a lease of its own. The one whose key was created first
//! holds it; the others wait for the deletion of the one before theirs. So it goes round in the order of asking, and one deletion wakes
//! one.
//!
//! A holder that is paused can't know that its lease has ended meanwhile. So ownership is not enough for a write that must not
//! come late: [`Lock::fence`] gives a comparison that holds only while the lock does, for the transaction that writes; and [`Lock::token`]
//! a number that rises from holder to holder, for stores elsewhere.

use std::time::Duration;

use bftd_core::kv::{
    Compare, Filter, Kinds, Operation, Order, Outcome, Part, Property, Range, Refusal, Relation, SortBy,
    Span, Step, Transaction, Want,
};
use bytes::Bytes;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    client::{Client, Error, another_question},
    protocol::{Consistency, Failure},
    session::Session,
    watch::{News, Watch, WatchError},
};

/// How long after a lease could not be kept that is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Why a lock is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A call failed.
    #[error(transparent)]
    Failed(#[from] Error),
    /// The holder before could not be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The lease ended while the lock was waited for.
    #[error(
        "the lease ended while the lock was waited for: the cluster could not be reached for {seconds} s"
    )]
    Ended {
        /// The lease's time to live.
        seconds: u64,
    },
    /// It was not to be had in time.
    #[error("others held it all the time")]
    GaveUp,
    /// The key that stood for this one in the queue is gone.
    #[error("somebody deleted the key that stood for this one in the queue")]
    Deleted,
}

/// A lock that is held; see the module. Where it is dropped without [`Lock::release`], it is free when its lease ends.
#[derive(Debug)]
pub struct Lock {
    key: Bytes,
    token: u64,
    keeper: Keeper,
}

/// Keeps a lease until it is dropped.
#[derive(Debug)]
struct Keeper {
    session: Session,
    lease: u64,
    task: JoinHandle<()>,
    is_lost: watch::Receiver<bool>,
}

impl Lock {
    /// Waits until the lock is this one's, or `give_up` ends. `client` watches, `session` makes the changes; both are of one cluster. The lock stays for `ttl`, at least
    /// a second, after its holder was heard last.
    ///
    /// Who gives up, or fails, leaves the queue. Where the future is dropped instead, the place in it is free when its lease ends.
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn acquire(
        client: &Client,
        session: &Session,
        name: &[u8],
        ttl: Duration,
        give_up: impl Future<Output = ()>,
    ) -> Result<Self, LockError> {
        let keeper = Keeper::grant(session, ttl).await?;
        let queue = [name, b"/"].concat();
        let key = Bytes::from([&queue[..], format!("{:016x}", keeper.lease).as_bytes()].concat());
        let mut lock = Self { key, token: 0, keeper };
        let mut is_lost = lock.keeper.is_lost.clone();
        let waited = tokio::select! {
            biased;
            _ = is_lost.wait_for(|is_lost| *is_lost) => Err(LockError::Ended { seconds: ttl.as_secs() }),
            waited = lock.stand_in_line(client, &queue) => waited,
            () = give_up => Err(LockError::GaveUp),
        };
        match waited {
            Ok(()) => Ok(lock),
            Err(error) => {
                // Nobody shall wait for one that has gone.
                let _ = lock.release().await;
                Err(error)
            }
        }
    }

    /// Creates the key, and waits until it is the oldest one.
    async fn stand_in_line(&mut self, client: &Client, queue: &[u8]) -> Result<(), LockError> {
        let create = Step::Put { key: self.key.clone(), value: Bytes::new(), lease: self.keeper.lease };
        let part = Part { compare: vec![], then: vec![create], otherwise: vec![] };
        let created = self.keeper.session.transact(Transaction { parts: vec![part] }).await?;
        self.token = created.1.revision();
        self.wait(client, queue).await
    }

    /// The key that stands for this holder.
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// The fencing token: the revision at which the key was created. Every later holder has a higher one.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// What holds as long as the lock is held, and never again: for the transactions of its holder.
    pub fn fence(&self) -> Compare {
        fence(self.key.clone(), self.token)
    }

    /// Waits until the lock is not surely held any more: its lease has ended, or could not be kept for so long that it may have.
    pub async fn lost(&self) {
        let mut is_lost = self.keeper.is_lost.clone();
        // The task ends only with the lease.
        let _ = is_lost.wait_for(|is_lost| *is_lost).await;
    }

    /// Gives the lock back.
    ///
    /// # Errors
    /// The call failed: then it is free when its lease ends. That the lease has ended before is no error.
    pub async fn release(self) -> Result<(), Error> {
        let Keeper { session, lease, task, .. } = &self.keeper;
        task.abort();
        match session.execute(Operation::RevokeLease { lease: *lease }).await {
            Ok(_) | Err(Error::Failed(Failure::Refused(Refusal::NoSuchLease { .. }))) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits for the deletion of every key that was created before this one's.
    async fn wait(&self, client: &Client, queue: &[u8]) -> Result<(), LockError> {
        loop {
            // The own one is the highest of these, then comes the one before it.
            let before = Range {
                filter: Filter { max_create_revision: self.token, ..Filter::default() },
                order: Order { by: SortBy::CreateRevision, descending: true },
                limit: 2,
                want: Want::Keys,
                ..Range::of(Span::Prefix(Bytes::copy_from_slice(queue)))
            };
            let (listing, at) = self.keeper.session.range(before, Consistency::Linearizable).await?;
            let mut keys = listing.entries.into_iter().map(|(key, _)| key);
            if keys.next().as_ref() != Some(&self.key) {
                return Err(LockError::Deleted);
            }
            let Some(key) = keys.next() else { return Ok(()) };
            let watch = Watch::new(Span::Key(key)).kinds(Kinds::Deletions).from_revision(at.revision + 1);
            let mut watcher = client.watch(watch)?;
            while !matches!(watcher.next().await?, News::Changes(_)) {}
        }
    }
}

/// What holds while the key that was created at a revision is there: see [`Lock::fence`].
pub fn fence(key: Bytes, token: u64) -> Compare {
    Compare { keys: Span::Key(key), property: Property::CreateRevision(token), relation: Relation::Equal }
}

impl Keeper {
    async fn grant(session: &Session, ttl: Duration) -> Result<Self, Error> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let asked = Instant::now();
        let granted = session.execute(Operation::GrantLease { lease: 0, ttl_ms }).await?;
        let Outcome::LeaseGranted { lease, .. } = granted.outcome else { return Err(another_question()) };
        let (lost, is_lost) = watch::channel(false);
        let task = tokio::spawn(keep(session.clone(), (lease, ttl), asked, lost));
        Ok(Self { session: session.clone(), lease, task, is_lost })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps a lease until it ends, and says so. It surely lives for its time from when it was *asked* to be kept last.
async fn keep(session: Session, (lease, ttl): (u64, Duration), asked: Instant, lost: watch::Sender<bool>) {
    let mut sure_until = asked + ttl;
    let mut next = asked + ttl / 3;
    loop {
        sleep_until(next.min(sure_until)).await;
        let now = Instant::now();
        if now >= sure_until {
            break;
        }
        let session = session.with_deadline(sure_until - now);
        // Whatever else goes on in the session: nobody is told late.
        match timeout_at(sure_until, session.execute(Operation::KeepLease { lease })).await {
            Ok(Ok(_)) => {
                sure_until = now + ttl;
                next = now + ttl / 3;
            }
            Err(_) | Ok(Err(Error::Failed(Failure::Refused(_)))) => break,
            Ok(Err(_)) => next = Instant::now() + AGAIN.min(ttl / 3),
        }
    }
    lost.send_replace(true);
}
