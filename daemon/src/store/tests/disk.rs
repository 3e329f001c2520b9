//! A disk behind a page cache: writes are volatile until a sync, and any part of what is not synced may be lost.
//!
//! A [`Disk`] notes every operation. [`Disk::after_cut`] is what a power cut at some point leaves of them. The database
//! does not see a cut coming, so one recorded run serves for the cuts at all of its points.

use std::{
    io,
    sync::{Arc, Mutex},
};

use redb::StorageBackend;

use super::script::{Random, cluster};
use crate::store::LogStore;

/// What the device writes as a whole or not at all.
const SECTOR: usize = 512;

/// A change to the file.
#[derive(Clone, Debug)]
pub enum Operation {
    Write { offset: usize, data: Vec<u8> },
    SetLen(usize),
    Sync,
}

/// Which operation shall fail, counted from 0, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Never,
    Once(usize),
    From(usize),
}

/// What becomes of writes that no sync has confirmed.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// They are lost.
    All,
    /// They had all arrived.
    Nothing,
    /// They arrived in order, up to a point in the midst of one.
    Tail,
    /// Each arrived or not.
    Some,
    /// Each sector of each arrived or not.
    Sectors,
}

#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// What the disk held at the start.
    initial: Vec<u8>,
    /// What the program sees: the page cache.
    cached: Vec<u8>,
    operations: Vec<Operation>,
    failure: Failure,
    /// A disk that lies confirms syncs and does nothing.
    lies: bool,
    /// Operations asked for, failed ones among them.
    asked: usize,
    failed: usize,
}

impl Disk {
    pub fn new(initial: Vec<u8>) -> Self {
        let cached = initial.clone();
        let (failure, lies) = (Failure::Never, false);
        Self(Arc::new(Mutex::new(State {
            initial,
            cached,
            operations: Vec::new(),
            failure,
            lies,
            asked: 0,
            failed: 0,
        })))
    }

    /// A disk with an empty log.
    pub fn with_log() -> Self {
        let disk = Self::new(Vec::new());
        LogStore::create(disk.clone(), &cluster()).unwrap();
        let image = disk.0.lock().unwrap().cached.clone();
        Self::new(image)
    }

    /// The disk as a new process finds it when the one before was killed before operation number `cut`: what was
    /// not synced still is not.
    pub fn after_kill(&self, cut: usize) -> Self {
        let state = self.0.lock().unwrap();
        let disk = Self::new(state.initial.clone());
        for operation in &state.operations[..cut] {
            disk.ask(operation.clone()).unwrap();
        }
        disk
    }

    pub fn failing(self, failure: Failure) -> Self {
        self.0.lock().unwrap().failure = failure;
        self
    }

    pub fn lying(self) -> Self {
        self.0.lock().unwrap().lies = true;
        self
    }

    /// The number of operations so far.
    pub fn operations(&self) -> usize {
        self.0.lock().unwrap().operations.len()
    }

    /// The number of operations asked for so far, with those that failed.
    pub fn asked(&self) -> usize {
        self.0.lock().unwrap().asked
    }

    /// How many of them failed.
    pub fn failed(&self) -> usize {
        self.0.lock().unwrap().failed
    }

    pub fn is_sync(&self, at: usize) -> bool {
        matches!(self.0.lock().unwrap().operations.get(at), Some(Operation::Sync))
    }

    /// What the disk holds after the power was cut during operation number `cut`.
    pub fn after_cut(&self, cut: usize, loss: Loss, random: &mut Random) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        let before = &state.operations[..cut];
        let synced = if state.lies { 0 } else { synced(before) };
        let mut image = state.initial.clone();
        for operation in &before[..synced] {
            perform(&mut image, operation);
        }
        let uncertain: Vec<_> = state.operations[synced..].iter().take(cut + 1 - synced).collect();
        let kept = random.below(uncertain.len() + 1);
        for (at, operation) in uncertain.into_iter().enumerate() {
            match loss {
                Loss::All => {}
                Loss::Nothing => perform(&mut image, operation),
                Loss::Tail if at < kept => perform(&mut image, operation),
                Loss::Tail if at == kept => perform_sectors(&mut image, operation, |sector| sector == 0),
                Loss::Tail => {}
                Loss::Some => {
                    if random.below(2) == 0 {
                        perform(&mut image, operation);
                    }
                }
                Loss::Sectors => perform_sectors(&mut image, operation, |_| random.below(2) == 0),
            }
        }
        image
    }

    fn ask(&self, operation: Operation) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let number = state.asked;
        state.asked += 1;
        let fails = match state.failure {
            Failure::Never => false,
            Failure::Once(at) => number == at,
            Failure::From(at) => number >= at,
        };
        if fails {
            state.failed += 1;
            if matches!(operation, Operation::Sync) {
                // As Linux does: the pages count as clean from now on, and what they held never reaches the disk.
                let synced = synced(&state.operations);
                state.operations.truncate(synced);
            }
            return Err(io::Error::from_raw_os_error(5));
        }
        perform(&mut state.cached, &operation);
        state.operations.push(operation);
        Ok(())
    }
}

/// How many operations the last sync covers, itself counted.
fn synced(operations: &[Operation]) -> usize {
    operations.iter().rposition(|operation| matches!(operation, Operation::Sync)).map_or(0, |at| at + 1)
}

fn perform(image: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::SetLen(length) => image.resize(*length, 0),
        _ => perform_sectors(image, operation, |_| true),
    }
}

/// Writes those sectors that `arrives` names. What lies beyond the end of the file is lost with its length.
fn perform_sectors(image: &mut Vec<u8>, operation: &Operation, mut arrives: impl FnMut(usize) -> bool) {
    match operation {
        Operation::Write { offset, data } => {
            for (sector, chunk) in data.chunks(SECTOR).enumerate() {
                let start = offset + sector * SECTOR;
                let end = (start + chunk.len()).min(image.len());
                if start < end && arrives(sector) {
                    image[start..end].copy_from_slice(&chunk[..end - start]);
                }
            }
        }
        Operation::SetLen(length) => {
            if arrives(0) {
                image.resize(*length, 0);
            }
        }
        Operation::Sync => {}
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let found = state.cached.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.ask(Operation::SetLen(usize::try_from(length).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.ask(Operation::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.ask(Operation::Write { offset: usize::try_from(offset).unwrap(), data: data.to_vec() })
    }
}
