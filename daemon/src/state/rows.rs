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
//! - **Before a checkpoint's transaction the files are synced**, so what the database names is there after a crash. The next
//!   row begins a new page: a torn write can't reach what was named before it.
//! - **What the database does not name is left over**: opening removes such files, and cuts the newest to its last row, once all
//!   that is named has been found.
//! - **A file goes when no place leads to it any more**, after the transaction of which that is true; the newest one stays.
//!   Readers of an older state have it open until they end, and its space is free then.
//! - A file takes a descriptor, as long as it is there.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    ops::{Bound, ControlFlow},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use bftd_core::kv::{ReadTables, Table, WriteTables};
use redb::{StorageBackend, StorageError, backends::FileBackend};

/// From this size on no row is added to a file.
const FULL_FILE: u64 = if cfg!(test) { 8 << 10 } else { 256 << 20 };
/// By how much a file grows: the sync after a write has fewer changes of its length to wait for.
const GROWTH: u64 = if cfg!(test) { 1 << 10 } else { 1 << 20 };
/// What a disk writes as a whole.
const PAGE: u64 = 4096;
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

    fn encode(&self) -> Vec<u8> {
        let Self { file, offset, length, checksum } = *self;
        let (file, offset) = (file.to_be_bytes(), offset.to_be_bytes());
        [&file[..], &offset, &length.to_be_bytes(), &checksum.to_be_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StorageError> {
        let parts = || {
            let (file, rest) = bytes.split_first_chunk()?;
            let (offset, rest) = rest.split_first_chunk()?;
            let (length, rest) = rest.split_first_chunk()?;
            let checksum = u32::from_be_bytes(rest.try_into().ok()?);
            let (file, offset) = (u64::from_be_bytes(*file), u64::from_be_bytes(*offset));
            Some(Self { file, offset, length: u32::from_be_bytes(*length), checksum })
        };
        parts().ok_or_else(|| damaged("the place of a row is no place".into()))
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
pub(super) struct Directory {
    path: PathBuf,
    /// Open, because a daemon that is short of descriptors must not fail at a checkpoint.
    handle: File,
}

impl Directory {
    /// The one in a data directory. It is made if it is not there.
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        let path = data.join(DIRECTORY);
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        File::open(data)?.sync_all()?;
        Ok(Self { handle: File::open(&path)?, path })
    }

    fn path(&self, file: u64) -> PathBuf {
        self.path.join(format!("{file:08}{SUFFIX}"))
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
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(SUFFIX));
            let number = name.and_then(|name| name.parse().ok());
            // What else lies there is somebody else's.
            numbers.extend(number.filter(|number| self.path(*number) == path));
        }
        Ok(numbers)
    }

    fn remove(&self, file: u64) -> io::Result<()> {
        fs::remove_file(self.path(file))
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
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
    /// How many bytes of rows were added since a checkpoint was begun.
    added: u64,
    /// Files have been made since that was made durable.
    is_new: bool,
}

impl RowFiles {
    /// Opens the files that hold the rows from the first place to the last one, and removes whatever else there is.
    pub(super) fn open(folder: Box<dyn Folder>, rows: Option<(Place, Place)>) -> Result<Self, StorageError> {
        let there = folder.list()?;
        let mut files = Files::new();
        let mut end =
            End { file: 0, offset: FULL_FILE, length: 0, unsynced: BTreeSet::new(), added: 0, is_new: false };
        if let Some((first, last)) = rows {
            if first.file > last.file {
                return Err(damaged(format!("file {} comes before file {}", first.file, last.file)));
            }
            for file in first.file..=last.file {
                if !there.contains(&file) {
                    return Err(damaged(format!("file {file} is missing")));
                }
                files.insert(file, folder.open(file)?);
            }
            files.row(&first)?;
            files.row(&last)?;
            end.file = last.file;
            (end.offset, end.length) = (last.end().next_multiple_of(PAGE), last.end());
        }
        for file in there.iter().filter(|file| !files.contains_key(file)) {
            folder.remove(*file)?;
        }
        if let Some(newest) = files.get(&end.file) {
            newest.set_len(end.length)?;
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

    /// Says in which file the next row is added, or in a later one. From here on what is added counts for the next checkpoint.
    pub(super) fn begin_checkpoint(&self) -> u64 {
        let end = &mut *self.end();
        end.added = 0;
        end.file
    }

    /// How many bytes of rows were added since a checkpoint was begun.
    pub(super) fn added(&self) -> u64 {
        self.end().added
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
        let file = files.get(&end.file).expect("the newest file is never let go of");
        if end.length < place.end() {
            end.length = place.end().next_multiple_of(GROWTH);
            file.set_len(end.length)?;
        }
        file.write(place.offset, row)?;
        end.offset = place.end();
        end.unsynced.insert(end.file);
        end.added += u64::from(length);
        Ok(place)
    }

    /// Makes durable all rows that were added before.
    pub(super) fn sync(&self) -> Result<(), StorageError> {
        let (unsynced, is_new) = {
            let end = &mut *self.end();
            end.offset = end.offset.next_multiple_of(PAGE);
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

    /// Removes files that were let go of. Where that fails, the next opening does it.
    pub(super) fn remove(&self, files: &[u64]) {
        for file in files {
            if let Err(error) = self.folder.remove(*file)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(file, %error, "a file of compacted history can't be removed now; the next start tries again");
            }
        }
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
pub(super) struct Located<'r, B, R> {
    pub(super) tables: B,
    rows: &'r R,
    /// The row that was read last: of the changes in one, often several are asked for.
    last: RefCell<Option<(Place, Rc<Vec<u8>>)>>,
}

impl<'r, B, R: ReadRows> Located<'r, B, R> {
    pub(super) fn new(tables: B, rows: &'r R) -> Self {
        Self { tables, rows, last: RefCell::new(None) }
    }

    fn row(&self, place: &[u8]) -> Result<Rc<Vec<u8>>, StorageError> {
        let place = Place::decode(place)?;
        if let Some((last, row)) = &*self.last.borrow()
            && *last == place
        {
            return Ok(Rc::clone(row));
        }
        let row = Rc::new(self.rows.row(&place)?);
        *self.last.borrow_mut() = Some((place, Rc::clone(&row)));
        Ok(row)
    }
}

impl<B: ReadTables<Error = StorageError>, R: ReadRows> ReadTables for Located<'_, B, R> {
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
        let row = self.tables.read(table, key, |place| self.row(place))?.transpose()?;
        Ok(row.map(|row| f(&row)))
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
        self.tables.scan(table, from, |key, place| match self.row(place) {
            Ok(row) => f(key, &row),
            Err(error) => {
                failed = Err(error);
                ControlFlow::Break(())
            }
        })?;
        failed
    }
}

impl<B: WriteTables<Error = StorageError>> WriteTables for Located<'_, B, RowFiles> {
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
