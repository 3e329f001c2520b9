//! The executing thread: takes committed blocks in order, changes the state, and answers the clients of this member's
//! own batches.
//!
//! It is fed through a channel whose length the driver watches ([`Executor::behind`]), so it never holds more than a
//! few hundred blocks.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bftd_core::{
    block::Block,
    ids::{BatchNumber, Incarnation, Index, MemberId},
    kv::{BlockOutcome, Outcome},
};
use tokio::sync::{mpsc as async_mpsc, oneshot, watch};

use crate::{
    driver::{Done, Executed, Internal},
    state::{StateError, StateStore},
    watch::Watches,
};

/// The clients of one batch, in the order of its requests.
pub type Waiting = Vec<oneshot::Sender<Done>>;

/// A batch's run and number.
pub type Numbered = (Incarnation, BatchNumber);

type Clients = Arc<Mutex<BTreeMap<Numbered, Waiting>>>;

/// How many blocks are executed at once: what all their requests are answered is in memory then.
const AT_ONCE: usize = 8;
/// How often an idle thread looks whether the state should be made durable.
const IDLE: Duration = Duration::from_secs(1);

/// The handle to the thread.
#[derive(Debug)]
pub struct Executor {
    blocks: mpsc::Sender<Arc<Block>>,
    behind: Arc<AtomicUsize>,
    clients: Clients,
    executed_ms: Arc<AtomicU64>,
    lease_end_ms: watch::Receiver<Option<u64>>,
    durable: Arc<AtomicU64>,
    thread: JoinHandle<Result<(), StateError>>,
}

impl Executor {
    /// Starts the thread. It reports every executed block, or once its failure, and tells the watchers' hub.
    ///
    /// # Errors
    /// The operating system refuses another thread.
    pub fn start(
        me: MemberId,
        store: StateStore,
        watches: Watches,
        report: async_mpsc::UnboundedSender<Internal>,
    ) -> std::io::Result<Self> {
        let (sender, blocks) = mpsc::channel();
        let (behind, clients) = (Arc::new(AtomicUsize::new(0)), Clients::default());
        let executed_ms = Arc::new(AtomicU64::new(0));
        let (lease_end, lease_end_ms) = watch::channel(store.next_lease_end_ms());
        let durable = Arc::new(AtomicU64::new(store.head().executed.index.0));
        let worker = Worker {
            me,
            store,
            watches,
            blocks,
            report,
            behind: Arc::clone(&behind),
            clients: Arc::clone(&clients),
            executed_ms: Arc::clone(&executed_ms),
            lease_end,
            durable: Arc::clone(&durable),
        };
        let thread = thread::Builder::new().name("executor".into()).spawn(move || worker.run())?;
        Ok(Self { blocks: sender, behind, clients, executed_ms, lease_end_ms, durable, thread })
    }

    /// Hands over the next committed block.
    pub fn execute(&self, block: Arc<Block>) {
        self.behind.fetch_add(1, Ordering::Relaxed);
        // The thread has ended only after it reported why.
        let _ = self.blocks.send(block);
    }

    /// How many blocks are waiting.
    pub fn behind(&self) -> usize {
        self.behind.load(Ordering::Relaxed)
    }

    /// The log says durably that this block is committed: checkpoints of the state may hold it.
    pub fn note_durable(&self, committed: Index) {
        self.durable.store(committed.0, Ordering::Relaxed);
    }

    /// The time of the last executed block, in milliseconds since the Unix epoch; 0 before the first of this run.
    pub fn executed_ms(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.executed_ms)
    }

    /// When the next lease ends, by the times of blocks: see [`StateStore::next_lease_end_ms`].
    pub fn lease_end_ms(&self) -> watch::Receiver<Option<u64>> {
        self.lease_end_ms.clone()
    }

    /// These clients wait for a batch of this member.
    pub fn expect(&self, batch: Numbered, waiting: Waiting) {
        self.clients().insert(batch, waiting);
    }

    /// Whether any client waits.
    pub fn has_clients(&self) -> bool {
        !self.clients().is_empty()
    }

    /// A batch goes under another number now.
    pub fn renumber(&self, before: Numbered, now: Numbered) {
        let mut clients = self.clients();
        if let Some(waiting) = clients.remove(&before) {
            clients.insert(now, waiting);
        }
    }

    /// Executes what is waiting, makes the state durable, and ends the thread.
    ///
    /// # Errors
    /// The store's.
    pub fn close(self) -> Result<(), StateError> {
        drop(self.blocks);
        self.thread.join().unwrap_or(Err(StateError::Poisoned))
    }

    fn clients(&self) -> MutexGuard<'_, BTreeMap<Numbered, Waiting>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Worker {
    me: MemberId,
    store: StateStore,
    watches: Watches,
    blocks: mpsc::Receiver<Arc<Block>>,
    report: async_mpsc::UnboundedSender<Internal>,
    behind: Arc<AtomicUsize>,
    clients: Clients,
    executed_ms: Arc<AtomicU64>,
    lease_end: watch::Sender<Option<u64>>,
    durable: Arc<AtomicU64>,
}

impl Worker {
    fn run(mut self) -> Result<(), StateError> {
        let mut waiting = Vec::new();
        loop {
            let next = self.blocks.recv_timeout(IDLE);
            self.store.hold_checkpoints_at(Index(self.durable.load(Ordering::Relaxed)));
            match next {
                Ok(block) => waiting.push(block),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if let Err(error) = self.store.tick() {
                        return self.fail(error);
                    }
                    continue;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return self.store.close(),
            }
            waiting.extend(self.blocks.try_iter().take(AT_ONCE - 1));
            match self.store.execute(&waiting) {
                Ok(outcomes) => {
                    let end = self.store.next_lease_end_ms();
                    self.lease_end.send_if_modified(|known| std::mem::replace(known, end) != end);
                    self.watches.note();
                    for (block, outcome) in waiting.drain(..).zip(outcomes) {
                        self.behind.fetch_sub(1, Ordering::Relaxed);
                        self.answer(&block, outcome);
                    }
                }
                Err(error) => return self.fail(error),
            }
        }
    }

    /// Tells the driver that a block is executed, and this member's clients what came of their requests.
    fn answer(&self, block: &Block, outcome: BlockOutcome) {
        self.executed_ms.store(block.header().time_ms, Ordering::Relaxed);
        // The driver has gone only when the daemon stops.
        let _ = self.report.send(Internal::Executed(Ok((block.reference(), outcome.head.state))));
        let BlockOutcome { outcomes, repeated, .. } = outcome;
        for (place, (batch, outcomes)) in block.batches().iter().zip(outcomes).enumerate() {
            for outcome in &outcomes {
                if let Outcome::ProtocolSet { protocol, .. } = outcome {
                    let _ = self.report.send(Internal::Protocol(*protocol));
                }
            }
            if batch.origin != self.me {
                continue;
            }
            let clients = {
                let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
                clients.remove(&(batch.incarnation, batch.number))
            };
            for (at, (client, outcome)) in clients.into_iter().flatten().zip(outcomes).enumerate() {
                let here = (block.header().index, block.header().term);
                let (index, term) = repeated.get(&(place, at)).copied().unwrap_or(here);
                // A client that has gone away doesn't want to know.
                let _ = client.send(Ok(Executed { outcome, index, term }));
            }
        }
    }

    fn fail(&self, error: StateError) -> Result<(), StateError> {
        let _ = self.report.send(Internal::Executed(Err(error)));
        Err(StateError::Poisoned)
    }
}
