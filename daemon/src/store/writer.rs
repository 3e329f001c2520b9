//! The thread of durable writes.
//!
//! When somebody waits for records it takes all there are, writes them as one group, and reports up to which record the log is durable;
//! while it syncs, the next group gathers. The report is made on this thread, directly after the sync.
//!
//! A failed write is reported once, as the last report. Nothing is tried again.

use std::{
    io, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use bftd_core::durable::Record;

use super::{error::StoreError, log::LogStore};

/// How many records may wait. At or above this bound, or that of [`MAX_WAITING_BYTES`], [`LogWriter::is_full`]: then
/// the driver takes no inputs until the next report. Records are never dropped or refused, so what waits may exceed
/// the bounds by what one step of the replica emits.
pub const MAX_WAITING_RECORDS: usize = 4096;
/// How many bytes of batches the waiting blocks may have.
pub const MAX_WAITING_BYTES: usize = 32 << 20;

/// What the thread calls: with the number of the last durable record, counted from 1 in the order of
/// [`LogWriter::append`], or once, and for the last time, with the error that ended its work.
pub type OnDurable = Box<dyn FnMut(Result<u64, StoreError>) + Send>;

/// The handle to the thread. Dropping it is like [`LogWriter::close`].
#[derive(Debug)]
pub struct LogWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), StoreError>>>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Signals records that somebody waits for, or that no more will come.
    news: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    records: Vec<Record>,
    bytes: usize,
    /// Somebody waits for them.
    urgent: bool,
    /// No more records will come, or be taken.
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system refuses another thread.
    pub fn start(store: LogStore, report: OnDurable) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || write_all(store, &of_thread, report))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Hands over records, which are written in this order, not before [`LogWriter::flush`]. Never blocks; after a failure
    /// they are dropped.
    pub fn append(&self, records: impl IntoIterator<Item = Record>) {
        let mut waiting = self.shared.lock();
        if waiting.closed {
            return;
        }
        let before = waiting.records.len();
        waiting.records.extend(records);
        waiting.bytes += waiting.records.iter().skip(before).map(size).sum::<usize>();
    }

    /// Has everything written that was handed over. What nobody waits for may be left to gather for a while: each group
    /// costs a sync, and one that is under way delays the next.
    pub fn flush(&self) {
        let mut waiting = self.shared.lock();
        let wake = !waiting.urgent && !waiting.records.is_empty();
        waiting.urgent |= wake;
        drop(waiting);
        if wake {
            self.shared.news.notify_one();
        }
    }

    /// Whether as much is waiting as may: see [`MAX_WAITING_RECORDS`].
    pub fn is_full(&self) -> bool {
        let waiting = self.shared.lock();
        waiting.records.len() >= MAX_WAITING_RECORDS || waiting.bytes >= MAX_WAITING_BYTES
    }

    /// Writes what is waiting, reports it, and ends the thread.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`] if a write has failed, now or before.
    pub fn close(mut self) -> Result<(), StoreError> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        self.shared.lock().closed = true;
        self.shared.news.notify_one();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(StoreError::Poisoned),
            None => Ok(()),
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        // A failure has been reported already.
        let _ = self.finish();
    }
}

/// What a record weighs against [`MAX_WAITING_BYTES`].
fn size(record: &Record) -> usize {
    match record {
        Record::Block(block) => block.size(),
        _ => 0,
    }
}

fn write_all(mut store: LogStore, shared: &Shared, mut report: OnDurable) -> Result<(), StoreError> {
    let mut durable = 0;
    let mut group = Vec::new();
    loop {
        {
            let mut waiting = shared.lock();
            while !waiting.urgent && !waiting.closed {
                waiting = shared.news.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            if waiting.records.is_empty() {
                return Ok(());
            }
            mem::swap(&mut group, &mut waiting.records);
            waiting.bytes = 0;
            waiting.urgent = false;
        }
        if let Err(error) = store.append(&group) {
            let mut waiting = shared.lock();
            waiting.closed = true;
            waiting.records = Vec::new();
            drop(waiting);
            report(Err(error));
            return Err(StoreError::Poisoned);
        }
        durable += group.len() as u64;
        group.clear();
        report(Ok(durable));
    }
}
