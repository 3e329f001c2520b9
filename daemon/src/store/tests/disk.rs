//! A disk behind a page cache: writes are volatile until a sync, and any part of what is not synced may be lost.
//!
//! A [`Disk`] has the log's three files and notes every operation on them in one order. [`Disk::after_cut`] is what a power
//! cut at some point leaves of them. The log does not see a cut coming, so one recorded run serves for the cuts at all of
//! its points.

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex},
};

use redb::StorageBackend;

use super::script::{Random, cluster};
use crate::store::{LogStore, StoreError};

/// The database, and the write-ahead files.
pub const FILES: usize = 3;
/// How large a write-ahead file gets before the other one's turn: small, so that places are used again and again.
pub const TURN: u64 = 64 << 10;

/// What the files hold.
pub type Image = [Vec<u8>; FILES];

/// What the device writes as a whole or not at all.
const SECTOR: usize = 512;

/// A change to a file.
#[derive(Clone, Debug)]
enum Operation {
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
pub struct Disk(Arc<Mutex<State>>, Arc<Condvar>);

/// One file of a disk.
#[derive(Clone, Debug)]
pub struct DiskFile {
    disk: Disk,
    file: usize,
}

/// Opens the log on a disk.
pub fn open(disk: &Disk) -> Result<LogStore, StoreError> {
    let [home, first, second] = disk.files();
    LogStore::with_backends(home, [first, second], Path::new("log"), &cluster(), TURN)
}

#[derive(Debug)]
struct State {
    /// What the disk held at the start.
    initial: Image,
    /// What the program sees: the page cache.
    cached: Image,
    /// Each with the file's number.
    operations: Vec<(usize, Operation)>,
    failure: Failure,
    /// A disk that lies confirms syncs and does nothing.
    lies: bool,
    /// Operations asked for, failed ones among them.
    asked: [usize; FILES],
    failed: usize,
    /// A file that is held lets everybody wait who changes it.
    held: [bool; FILES],
}

impl Disk {
    pub fn new(initial: Image) -> Self {
        let cached = initial.clone();
        let (failure, lies) = (Failure::Never, false);
        let state = Mutex::new(State {
            initial,
            cached,
            operations: Vec::new(),
            failure,
            lies,
            asked: [0; FILES],
            failed: 0,
            held: [false; FILES],
        });
        Self(Arc::new(state), Arc::default())
    }

    /// A disk with an empty log.
    pub fn with_log() -> Self {
        let disk = Self::new(Image::default());
        let [home, first, second] = disk.files();
        LogStore::create(home, [first, second], &cluster(), TURN).unwrap();
        let synced = disk.after_cut(disk.operations(), Loss::All, &mut Random(0));
        assert!(synced == disk.image(), "a log that was made is durable");
        Self::new(synced)
    }

    /// The disk as a new process finds it when the one before was killed before operation number `cut`: what was
    /// not synced still is not.
    pub fn after_kill(&self, cut: usize) -> Self {
        let state = self.0.lock().unwrap();
        let disk = Self::new(state.initial.clone());
        for (file, operation) in &state.operations[..cut] {
            disk.ask(*file, operation.clone()).unwrap();
        }
        disk
    }

    pub fn files(&self) -> [DiskFile; FILES] {
        [0, 1, 2].map(|file| DiskFile { disk: self.clone(), file })
    }

    /// What the program sees.
    pub fn image(&self) -> Image {
        self.0.lock().unwrap().cached.clone()
    }

    pub fn failing(self, failure: Failure) -> Self {
        self.0.lock().unwrap().failure = failure;
        self
    }

    pub fn lying(self) -> Self {
        self.0.lock().unwrap().lies = true;
        self
    }

    /// From now on, or no longer, whoever changes the database waits.
    pub fn hold_database(&self, held: bool) {
        self.0.lock().unwrap().held[0] = held;
        self.1.notify_all();
    }

    /// The number of operations so far.
    pub fn operations(&self) -> usize {
        self.0.lock().unwrap().operations.len()
    }

    /// The number of operations asked for so far, with those that failed.
    pub fn asked(&self) -> usize {
        self.0.lock().unwrap().asked.iter().sum()
    }

    /// The same of the write-ahead files alone.
    pub fn asked_of_wal(&self) -> usize {
        self.0.lock().unwrap().asked[1..].iter().sum()
    }

    /// How many of them failed.
    pub fn failed(&self) -> usize {
        self.0.lock().unwrap().failed
    }

    pub fn is_sync(&self, at: usize) -> bool {
        matches!(self.0.lock().unwrap().operations.get(at), Some((_, Operation::Sync)))
    }

    /// What the disk holds after the power was cut during operation number `cut`.
    pub fn after_cut(&self, cut: usize, loss: Loss, random: &mut Random) -> Image {
        let state = self.0.lock().unwrap();
        let synced: [usize; FILES] = std::array::from_fn(|file| match state.lies {
            true => 0,
            false => synced(&state.operations[..cut], file),
        });
        let mut image = state.initial.clone();
        let until = state.operations.iter().take(cut + 1).enumerate();
        let certain = |at: usize, file: usize| at < synced[file];
        let uncertain = until.clone().filter(|(at, (file, _))| !certain(*at, *file)).count();
        let kept = random.below(uncertain + 1);
        let mut number = 0;
        for (at, (file, operation)) in until {
            let image = &mut image[*file];
            if certain(at, *file) {
                perform(image, operation);
                continue;
            }
            match loss {
                Loss::All => {}
                Loss::Nothing => perform(image, operation),
                Loss::Tail if number < kept => perform(image, operation),
                Loss::Tail if number == kept => perform_sectors(image, operation, |sector| sector == 0),
                Loss::Tail => {}
                Loss::Some => {
                    if random.below(2) == 0 {
                        perform(image, operation);
                    }
                }
                Loss::Sectors => perform_sectors(image, operation, |_| random.below(2) == 0),
            }
            number += 1;
        }
        image
    }

    fn ask(&self, file: usize, operation: Operation) -> io::Result<()> {
        let mut state = self.1.wait_while(self.0.lock().unwrap(), |state| state.held[file]).unwrap();
        let number: usize = state.asked.iter().sum();
        state.asked[file] += 1;
        let fails = match state.failure {
            Failure::Never => false,
            Failure::Once(at) => number == at,
            Failure::From(at) => number >= at,
        };
        if fails {
            state.failed += 1;
            if matches!(operation, Operation::Sync) {
                // As Linux does: the pages count as clean from now on, and what they held never reaches the disk.
                let synced = synced(&state.operations, file);
                let mut at = 0;
                state.operations.retain(|(of, _)| {
                    at += 1;
                    at <= synced || *of != file
                });
            }
            return Err(io::Error::from_raw_os_error(5));
        }
        perform(&mut state.cached[file], &operation);
        state.operations.push((file, operation));
        Ok(())
    }
}

/// How many operations the last sync of a file covers, itself counted.
fn synced(operations: &[(usize, Operation)], file: usize) -> usize {
    let is_sync = |(of, operation): &(usize, Operation)| *of == file && matches!(operation, Operation::Sync);
    operations.iter().rposition(is_sync).map_or(0, |at| at + 1)
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

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().unwrap().cached[self.file].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.disk.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let found =
            state.cached[self.file].get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.disk.ask(self.file, Operation::SetLen(usize::try_from(length).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.ask(self.file, Operation::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.ask(
            self.file,
            Operation::Write { offset: usize::try_from(offset).unwrap(), data: data.to_vec() },
        )
    }
}
