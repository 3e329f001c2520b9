//! The threads of durable writes.
//!
//! When somebody waits for records, the first thread takes all there are, writes them as one group to the write-ahead
//! files, and reports up to which record the log is durable; while it syncs, the next group gathers. The report is made on
//! this thread, directly after the sync.
//!
//! The second thread brings the database up to date with many groups at a time. It waits for as many, but not long; when
//! nothing is written, neither thread wakes. If it falls behind by [`MAX_BEHIND_BYTES`] or [`MAX_BEHIND_RECORDS`], the
//! first thread waits for it, and what it would have taken goes on waiting: [`LogWriter::is_full`] tells.
//!
//! A failed write of either is reported once, as the last report. Nothing is tried again.

use std::{
    io, mem,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bftd_core::durable::Record;

use super::{
    error::StoreError,
    home::Home,
    log::{Front, LogStore},
    wal::Stamp,
};

/// How many records may wait. At or above this bound, or that of [`MAX_WAITING_BYTES`], [`LogWriter::is_full`]: then
/// the driver takes no inputs until the next report. Records are never dropped or refused, so what waits may exceed
/// the bounds by what one step of the replica emits.
pub const MAX_WAITING_RECORDS: usize = 4096;
/// How many bytes of batches the waiting blocks may have.
pub const MAX_WAITING_BYTES: usize = 32 << 20;
/// How many records the database may lack, those that it is taking up included. At or above this bound, or that of
/// [`MAX_BEHIND_BYTES`], no group is written; one may exceed the bounds by its own size.
pub(super) const MAX_BEHIND_RECORDS: usize = 16_384;
/// How many bytes of batches the blocks may have that the database lacks.
pub(super) const MAX_BEHIND_BYTES: usize = 32 << 20;

/// How many records make a transaction of the database worth its while, if there are not [`ENOUGH_BYTES`] before.
const ENOUGH_RECORDS: usize = 2048;
/// How many bytes of batches do.
const ENOUGH_BYTES: usize = 4 << 20;
/// How long the first record waits for them.
const GATHERING: Duration = Duration::from_millis(250);

/// What the thread calls: with the number of the last durable record, counted from 1 in the order of
/// [`LogWriter::append`], or once, and for the last time, with the error that ended its work.
pub type OnDurable = Box<dyn FnMut(Result<u64, StoreError>) + Send>;

/// The handle to the threads. Dropping it is like [`LogWriter::close`].
#[derive(Debug)]
pub struct LogWriter {
    shared: Arc<Shared>,
    front: Option<JoinHandle<Result<(), StoreError>>>,
    home: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Signals the first thread: records that somebody waits for, that no more will come, or a failure of the other.
    news: Condvar,
    behind: Mutex<Behind>,
    /// Signals the second thread: records, or an end.
    written: Condvar,
    /// Signals the first thread: the database has taken up records, or failed.
    taken_up: Condvar,
}

/// What the database lacks.
#[derive(Debug, Default)]
struct Behind {
    /// Those that nobody takes up yet.
    records: Vec<Record>,
    bytes: usize,
    /// Those that are being taken up.
    under_way: (usize, usize),
    /// The stamp of the last of `records`.
    stamp: Option<Stamp>,
    /// The last group that the database holds durably.
    applied: u64,
    end: End,
    /// Why the second thread has ended.
    failure: Option<StoreError>,
}

/// Whether more will come for the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    No,
    /// The rest is to be taken up.
    Complete,
    /// A write has failed: nothing more is done.
    Failed,
}

impl Behind {
    fn is_too_much(&self) -> bool {
        self.records.len() + self.under_way.0 >= MAX_BEHIND_RECORDS
            || self.bytes + self.under_way.1 >= MAX_BEHIND_BYTES
    }

    fn is_enough(&self) -> bool {
        self.end == End::Complete || self.records.len() >= ENOUGH_RECORDS || self.bytes >= ENOUGH_BYTES
    }
}

#[derive(Debug, Default)]
struct Waiting {
    records: Vec<Record>,
    bytes: usize,
    /// Somebody waits for them.
    urgent: bool,
    /// No more records will come, or be taken.
    closed: bool,
    /// The database has failed.
    broken: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn behind(&self) -> MutexGuard<'_, Behind> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a group. None: the end has come, or the database has failed.
    fn next_group(&self, group: &mut Vec<Record>) -> bool {
        let mut waiting = self.lock();
        while !waiting.urgent && !waiting.closed && !waiting.broken {
            waiting = self.news.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if waiting.broken || waiting.records.is_empty() {
            return false;
        }
        mem::swap(group, &mut waiting.records);
        waiting.bytes = 0;
        waiting.urgent = false;
        true
    }
}

impl LogWriter {
    /// Starts the threads.
    ///
    /// # Errors
    /// The operating system refuses another thread, or the database the records that it lacks.
    pub fn start(store: LogStore, report: OnDurable) -> io::Result<Self> {
        let (front, home) = store.split().map_err(io::Error::other)?;
        let shared = Arc::new(Shared::default());
        shared.behind().applied = front.wal.sequence();
        let mut writer = Self { shared: Arc::clone(&shared), front: None, home: None };
        let of_home = Arc::clone(&shared);
        let spawned =
            thread::Builder::new().name("log-database".into()).spawn(move || keep_home(home, &of_home));
        writer.home = Some(spawned?);
        let spawned =
            thread::Builder::new().name("log-writer".into()).spawn(move || write_all(front, &shared, report));
        writer.front = Some(spawned?);
        Ok(writer)
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

    /// Writes what is waiting, reports it, brings the database up to date, and ends the threads.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`] if a write has failed, now or before.
    pub fn close(mut self) -> Result<(), StoreError> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        self.shared.lock().closed = true;
        self.shared.news.notify_one();
        let front = match self.front.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(StoreError::Poisoned),
            None => Ok(()),
        };
        let mut behind = self.shared.behind();
        if behind.end == End::No {
            behind.end = End::Complete;
        }
        drop(behind);
        self.shared.written.notify_one();
        let home = self.home.take().map_or(Ok(()), JoinHandle::join);
        let failed = self.shared.behind().end == End::Failed;
        if failed || home.is_err() { Err(StoreError::Poisoned) } else { front }
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

/// The first thread.
fn write_all(mut front: Front, shared: &Shared, mut report: OnDurable) -> Result<(), StoreError> {
    let mut durable = 0;
    let mut group = Vec::new();
    let result = loop {
        if !shared.next_group(&mut group) {
            break Ok(());
        }
        if let Err(error) = write_group(&mut front, shared, &group) {
            break Err(error);
        }
        durable += group.len() as u64;
        report(Ok(durable));
        // After the report: the database can wait.
        hand_on(&front, shared, &mut group);
    };
    // The end is the database's, too: with a failure at once, else when it has taken up the rest.
    let mut behind = shared.behind();
    behind.end = if result.is_ok() && behind.end == End::No { End::Complete } else { End::Failed };
    drop(behind);
    shared.written.notify_one();
    let mut behind = shared.behind();
    while behind.end == End::Complete && !(behind.records.is_empty() && behind.under_way == (0, 0)) {
        behind = shared.taken_up.wait(behind).unwrap_or_else(PoisonError::into_inner);
    }
    let failure = behind.failure.take();
    drop(behind);
    let Some(error) = result.err().or(failure) else { return Ok(()) };
    let mut waiting = shared.lock();
    waiting.closed = true;
    waiting.records = Vec::new();
    waiting.bytes = 0;
    drop(waiting);
    report(Err(error));
    Err(StoreError::Poisoned)
}

/// Makes a group durable, once the database is not too far behind.
fn write_group(front: &mut Front, shared: &Shared, group: &[Record]) -> Result<(), StoreError> {
    let mut behind = shared.behind();
    while behind.is_too_much() && behind.end == End::No {
        behind = shared.taken_up.wait(behind).unwrap_or_else(PoisonError::into_inner);
    }
    if let Some(failure) = behind.failure.take() {
        return Err(failure);
    }
    front.wal.release(behind.applied);
    drop(behind);
    front.append(group)
}

/// Leaves a group that is durable to the second thread.
fn hand_on(front: &Front, shared: &Shared, group: &mut Vec<Record>) {
    let mut behind = shared.behind();
    if behind.end == End::Failed {
        group.clear();
        return;
    }
    // The second thread wakes for the first record, to wait for more, and for the one that makes enough.
    let (first, before) = (behind.records.is_empty(), behind.is_enough());
    behind.bytes += group.iter().map(size).sum::<usize>();
    behind.records.append(group);
    behind.stamp = Some(front.wal.stamp(front.wal.sequence()));
    let wake = first || (behind.is_enough() && !before);
    drop(behind);
    if wake {
        shared.written.notify_one();
    }
}

/// The second thread.
fn keep_home(mut home: Home, shared: &Shared) {
    let mut records = Vec::new();
    loop {
        let stamp = {
            let mut behind = shared.behind();
            while behind.end == End::No && behind.records.is_empty() {
                behind = shared.written.wait(behind).unwrap_or_else(PoisonError::into_inner);
            }
            let until = Instant::now() + GATHERING;
            while behind.end != End::Failed && !behind.is_enough() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                behind = shared.written.wait_timeout(behind, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            if behind.end == End::Failed {
                return;
            }
            let Some(stamp) = behind.stamp.take() else { return };
            mem::swap(&mut records, &mut behind.records);
            behind.under_way = (records.len(), mem::take(&mut behind.bytes));
            stamp
        };
        // Whatever ends this thread, the first one must hear of it.
        let written = panic::catch_unwind(AssertUnwindSafe(|| home.write(&records, stamp)));
        let result = written.unwrap_or(Err(StoreError::Poisoned));
        // What was taken up is in nobody's way any more; nor shall its place be kept.
        records = Vec::new();
        let mut behind = shared.behind();
        behind.under_way = (0, 0);
        let broken = result.is_err();
        match result {
            Ok(()) => behind.applied = stamp.applied,
            Err(error) => {
                behind.end = End::Failed;
                behind.records = Vec::new();
                behind.failure = Some(error);
            }
        }
        drop(behind);
        shared.taken_up.notify_one();
        if broken {
            shared.lock().broken = true;
            shared.news.notify_one();
            return;
        }
    }
}
