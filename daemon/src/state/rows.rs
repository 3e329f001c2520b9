//! The rows of the history, in files of their own: the database holds where each row is.
//!
//! A row is as large as what was written with it, is never changed, and goes after those before it. Files that grow at
//! their end and are removed from the first one on take such rows with one write each; a tree of pages would copy them
//! several times, and a checkpoint would have to keep them in memory.
//!
//! # Rules
//!
//! - **A row is written when it is made**, at the end of the newest file, and its [`Place`] takes its place in
//!   [`Table::History`]. There it is read from by the place, which has its checksum.
//! - **Before a checkpoint's transaction the files are synced**, so what the database names is there after a crash.
//! - **What the database does not name is left over**: opening removes such files, and cuts the newest to its last row.
//! - **A file goes when no place leads to it any more**, after the transaction of which that is true. Whoever reads an older
//!   state has it open until then.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    ops::{Bound, ControlFlow},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use bftd_core::kv::{ReadTables, Table, WriteTables};
use redb::{StorageBackend, StorageError, backends::FileBackend};

/// From this size on no row is added to a file.
const FULL_FILE: u64 = if cfg!(test) { 8 << 10 } else { 256 << 20 };
/// By how much a file grows: the sync after a write has fewer changes of its length to wait for.
const GROWTH: u64 = if cfg!(test) { 1 << 10 } else { 1 << 20 };
/// The directory in the data directory.
pub const DIRECTORY: &str = "history";
/// What the names of files end with, after their numbers.
const SUFFIX: &str = ".rows";

/// Where a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The file's number.
    pub(super) file: u64,
    offset: u64,
    length: u32,
    checksum: u32,
}

impl Place {
    /// Where the next row begins.
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.length.into())
    }

    fn encode(&self) -> [u8; 24] {
        let Self { file, offset, length, checksum } = *self;
        let number = u128::from(file) << 64 | u128::from(offset);
        let rest = u64::from(length) << 32 | u64::from(checksum);
        let mut bytes = [0; 24];
        let (numbers, rests) = bytes.split_at_mut(16);
        numbers.copy_from_slice(&number.to_be_bytes());
        rests.copy_from_slice(&rest.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StorageError> {
        let split = bytes.split_first_chunk::<16>();
        let parts = split.and_then(|(number, rest)| Some((number, <[u8; 8]>::try_from(rest).ok()?)));
        let Some((number, rest)) = parts else {
            return Err(damaged("the place of a row is no place".into()));
        };
        let (number, rest) = (u128::from_be_bytes(*number), u64::from_be_bytes(rest));
        Ok(Self {
            file: (number >> 64) as u64,
            offset: number as u64,
            length: (rest >> 32) as u32,
            checksum: rest as u32,
        })
    }
}

fn damaged(what: String) -> StorageError {
    StorageError::Corrupted(format!(
        "the history: {what}; restore state.redb and {DIRECTORY}/ from one backup, or delete state.redb to have both made \
         anew from the log"
    ))
}

/// Where the files are.
pub(super) trait Folder: Debug + Send + Sync {
    /// Opens a file, which is made if it is not there.
    fn open(&self, file: u64) -> io::Result<Arc<dyn StorageBackend>>;
    /// The numbers of the files that there are.
    fn list(&self) -> io::Result<Vec<u64>>;
    fn remove(&self, file: u64) -> io::Result<()>;
    /// Makes durable which files there are.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the file system.
#[derive(Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    /// The one in a data directory. It is made if it is not there.
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        let path = data.join(DIRECTORY);
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        File::open(data)?.sync_all()?;
        Ok(Self(path))
    }

    fn path(&self, file: u64) -> PathBuf {
        self.0.join(format!("{file:08}{SUFFIX}"))
    }
}

impl Folder for Directory {
    fn open(&self, file: u64) -> io::Result<Arc<dyn StorageBackend>> {
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(self.path(file))?;
        Ok(Arc::new(FileBackend::new(file).map_err(io::Error::other)?))
    }

    fn list(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse::<u64>().ok());
            numbers.extend(number);
        }
        Ok(numbers)
    }

    fn remove(&self, file: u64) -> io::Result<()> {
        fs::remove_file(self.path(file))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}

/// Open files by their numbers. Replaced whole, so that whoever reads has them as they were.
pub(super) type Files = BTreeMap<u64, Arc<dyn StorageBackend>>;

/// The files with the rows. One writer adds to them, many readers read what has a place.
#[derive(Debug)]
pub(super) struct RowFiles {
    folder: Box<dyn Folder>,
    files: RwLock<Arc<Files>>,
    end: Mutex<End>,
}

/// Where rows are added.
#[derive(Debug)]
struct End {
    /// The newest file.
    file: u64,
    /// Where its last row ends; it is [`FULL_FILE`] or more where there is no such file yet.
    offset: u64,
    /// How long the file is.
    length: u64,
    /// What was written to and not synced since.
    unsynced: BTreeSet<u64>,
    /// Files have been made since that was made durable.
    is_new: bool,
}

impl RowFiles {
    /// Opens the files that hold the rows from the first place to the last one, and removes whatever else there is.
    pub(super) fn open(folder: Box<dyn Folder>, rows: Option<(Place, Place)>) -> Result<Self, StorageError> {
        let mut files = Files::new();
        let mut end = End { file: 0, offset: FULL_FILE, length: 0, unsynced: BTreeSet::new(), is_new: false };
        let there = folder.list()?;
        for file in &there {
            if rows.is_none_or(|(first, last)| !(first.file..=last.file).contains(file)) {
                folder.remove(*file)?;
            }
        }
        if let Some((first, last)) = rows {
            for file in first.file..=last.file {
                if !there.contains(&file) {
                    return Err(damaged(format!("file {file} is missing")));
                }
                files.insert(file, folder.open(file)?);
            }
            if let Some(file) = files.get(&last.file) {
                if file.len()? < last.end() {
                    return Err(damaged(format!("file {} is too short", last.file)));
                }
                file.set_len(last.end())?;
            }
            (end.file, end.offset, end.length) = (last.file, last.end(), last.end());
        }
        Ok(Self { folder, files: RwLock::new(Arc::new(files)), end: Mutex::new(end) })
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files that there are now.
    pub(super) fn files(&self) -> Arc<Files> {
        Arc::clone(&self.files.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change_files(&self, change: impl FnOnce(&mut Files)) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut files));
    }

    /// Where the next row is added, or in a later file.
    pub(super) fn newest(&self) -> u64 {
        self.end().file
    }

    /// Adds a row. For the one writer.
    pub(super) fn append(&self, row: &[u8]) -> Result<Place, StorageError> {
        let end = &mut *self.end();
        if end.offset >= FULL_FILE {
            let number = end.file + 1;
            let file = self.folder.open(number)?;
            file.set_len(0)?;
            self.change_files(|files| drop(files.insert(number, file)));
            (end.file, end.offset, end.length, end.is_new) = (number, 0, 0, true);
        }
        let length = u32::try_from(row.len()).map_err(|_| StorageError::ValueTooLarge(row.len()))?;
        let place = Place { file: end.file, offset: end.offset, length, checksum: crc32fast::hash(row) };
        let files = self.files();
        let file = files.get(&end.file).ok_or_else(|| damaged(format!("file {} is not open", end.file)))?;
        if end.length < place.end() {
            end.length = place.end().next_multiple_of(GROWTH);
            file.set_len(end.length)?;
        }
        file.write(place.offset, row)?;
        end.offset = place.end();
        end.unsynced.insert(end.file);
        Ok(place)
    }

    /// Makes durable all rows that were added before.
    pub(super) fn sync(&self) -> Result<(), StorageError> {
        let (unsynced, is_new) = {
            let end = &mut *self.end();
            (std::mem::take(&mut end.unsynced), std::mem::take(&mut end.is_new))
        };
        let files = self.files();
        for file in unsynced.iter().filter_map(|file| files.get(file)) {
            file.sync_data()?;
        }
        if is_new {
            self.folder.sync()?;
        }
        Ok(())
    }

    /// Lets go of the files before one: [`RowFiles::remove`] them then. Who has them open can go on reading them.
    pub(super) fn release_before(&self, first: u64) -> Vec<u64> {
        let mut released = Vec::new();
        self.change_files(|files| {
            let kept = files.split_off(&first);
            released.extend(std::mem::replace(files, kept).into_keys());
        });
        released
    }

    /// Removes files that were let go of.
    pub(super) fn remove(&self, files: &[u64]) -> Result<(), StorageError> {
        files.iter().try_for_each(|file| Ok(self.folder.remove(*file)?))
    }
}

/// Reading rows by their places.
pub(super) trait ReadRows {
    /// The row at a place.
    fn row(&self, place: &Place) -> Result<Vec<u8>, StorageError>;
}

impl ReadRows for Files {
    fn row(&self, place: &Place) -> Result<Vec<u8>, StorageError> {
        let Place { file: number, offset, length, checksum } = *place;
        let file = self.get(&number).ok_or_else(|| damaged(format!("file {number} is not there")))?;
        if file.len()? < place.end() {
            return Err(damaged(format!("file {number} is too short")));
        }
        let mut row = vec![0; length as usize];
        file.read(offset, &mut row)?;
        if crc32fast::hash(&row) != checksum {
            return Err(damaged(format!(
                "the {length} bytes at {offset} of file {number} are not what was written"
            )));
        }
        Ok(row)
    }
}

impl ReadRows for RowFiles {
    fn row(&self, place: &Place) -> Result<Vec<u8>, StorageError> {
        self.files().row(place)
    }
}

/// Tables that hold the places of the history's rows, seen as if they held the rows.
#[derive(Debug)]
pub(super) struct Located<B, R> {
    pub(super) tables: B,
    pub(super) rows: R,
}

impl<B: ReadTables<Error = StorageError>, R: ReadRows> ReadTables for Located<B, &R> {
    type Error = StorageError;

    fn read<T>(
        &self,
        table: Table,
        key: &[u8],
        f: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, StorageError> {
        if table != Table::History {
            return self.tables.read(table, key, f);
        }
        let place = self.tables.read(table, key, Place::decode)?.transpose()?;
        place.map(|place| Ok(f(&self.rows.row(&place)?))).transpose()
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        mut f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        if table != Table::History {
            return self.tables.scan(table, from, f);
        }
        let mut failed = Ok(());
        self.tables.scan(table, from, |key, place| {
            match Place::decode(place).and_then(|place| self.rows.row(&place)) {
                Ok(row) => f(key, &row),
                Err(error) => {
                    failed = Err(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        failed
    }
}

impl<B: WriteTables<Error = StorageError>> WriteTables for Located<B, &RowFiles> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        if table != Table::History {
            return self.tables.put(table, key, value);
        }
        let place = self.rows.append(value)?;
        self.tables.put(table, key, &place.encode())
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<bool, StorageError> {
        self.tables.remove(table, key)
    }
}
