//! The data directory: one process uses it at a time, and it belongs to one cluster.
//!
//! `lock` is locked (flock) while a [`DataDir`] lives, and names the process that holds it. `cluster.toml` says whose
//! the directory is. It is written after the log has become durable, so a directory with it and without a log has
//! lost its log.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use bftd_client::DiskUse;
use bftd_core::crypto::ClusterId;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use crate::state;

/// The newest format of the directory and the log that this program knows.
pub(super) const FORMAT: u32 = 1;

const LOCK: &str = "lock";
const IDENTITY: &str = "cluster.toml";
const LOG: &str = "log.redb";
const WAL: [&str; 2] = ["log.0.wal", "log.1.wal"];

/// Whose a directory is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The cluster's name for people.
    pub name: String,
    /// The cluster's id.
    pub id: ClusterId,
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` (id {:.12}…)", self.name, self.id.to_string())
    }
}

/// What `cluster.toml` holds.
#[derive(Serialize, Deserialize)]
struct Identity {
    format: u32,
    name: String,
    id: ClusterId,
}

/// A locked data directory. Dropping it releases the lock.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Locks a directory, which is created with mode 0700 if it is not there. Of an existing directory that is empty
    /// the mode is set.
    ///
    /// # Errors
    /// Another process holds it, other users may enter it, or the operating system refuses.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        make_private(&path)?;
        let lock = lock(&path)?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cluster that it belongs to; none while it belongs to none.
    ///
    /// # Errors
    /// `cluster.toml` can't be read, makes no sense, or is of a newer format.
    pub fn cluster(&self) -> Result<Option<Cluster>, StoreError> {
        let path = self.path.join(IDENTITY);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        let bad = |error: toml::de::Error| StoreError::BadIdentity {
            path: path.clone(),
            reason: error.to_string(),
        };
        let table: toml::Table = toml::from_str(&text).map_err(bad)?;
        match table.get("format").and_then(toml::Value::as_integer) {
            Some(format) if format > i64::from(FORMAT) => {
                let found = u32::try_from(format).unwrap_or(u32::MAX);
                Err(StoreError::NewerFormat { path, found, known: FORMAT })
            }
            _ => {
                let Identity { name, id, .. } = toml::from_str(&text).map_err(bad)?;
                Ok(Some(Cluster { name, id }))
            }
        }
    }

    /// Where the log is.
    pub(super) fn log_path(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// Whether the state is here, which is made only after the log.
    pub(super) fn was_used(&self) -> bool {
        self.path.join(state::FILE_NAME).exists()
    }

    /// Where the write-ahead files are.
    pub(super) fn wal_paths(&self) -> [PathBuf; 2] {
        WAL.map(|name| self.path.join(name))
    }

    /// Writes down that the directory belongs to a cluster, durably and at once as a whole.
    pub(super) fn record_cluster(&self, cluster: &Cluster) -> Result<(), StoreError> {
        let path = self.path.join(IDENTITY);
        let temporary = self.path.join("cluster.toml.new");
        let identity = Identity { format: FORMAT, name: cluster.name.clone(), id: cluster.id };
        let text = toml::to_string(&identity).expect("a number and two strings are TOML");
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(StoreError::io("write", &path))?;
        self.sync()
    }

    /// Makes the directory's entries durable.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        sync_directory(&self.path)
    }
}

/// What the files in a data directory take of the disk; nothing where they can't be looked at.
pub fn disk_use(directory: &Path) -> DiskUse {
    let size = |name: &str| fs::metadata(directory.join(name)).map_or(0, |found| size_on_disk(&found));
    let log = WAL.into_iter().chain([LOG]).map(size).sum();
    let rows = fs::read_dir(directory.join(state::HISTORY)).into_iter().flatten().flatten();
    let rows: u64 = rows.filter_map(|file| Some(size_on_disk(&file.metadata().ok()?))).sum();
    DiskUse { state: size(state::FILE_NAME) + rows, log }
}

/// How many bytes of the disk a file takes: less than its length where it has holes, and redb lets files grow ahead of what it writes.
pub(crate) fn size_on_disk(found: &fs::Metadata) -> u64 {
    found.blocks() * 512
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(StoreError::io("sync", path))
}

fn make_private(path: &Path) -> Result<(), StoreError> {
    let mode = match fs::metadata(path) {
        Ok(metadata) => metadata.permissions().mode() & 0o777,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return create(path);
        }
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let mut entries = fs::read_dir(path).map_err(StoreError::io("list", path))?;
    if entries.next().is_some() {
        return Err(StoreError::Exposed { path: path.to_owned(), mode });
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .map_err(StoreError::io("set the mode of", path))
}

/// Creates a directory and those above it that are not there, durably.
fn create(path: &Path) -> Result<(), StoreError> {
    let absent = path.ancestors().take_while(|above| !above.exists() && *above != Path::new("")).count();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StoreError::io("create directory", path))?;
    for parent in path.ancestors().skip(1).take(absent) {
        sync_directory(if parent == Path::new("") { Path::new(".") } else { parent })?;
    }
    Ok(())
}

fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let holder = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(StoreError::InUse { path: directory.to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", path)(error)),
    }
    let name_holder = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    name_holder(&mut file).map_err(StoreError::io("write", path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bftd_core::crypto::Digest;

    use super::*;

    fn cluster(name: &str, byte: u8) -> Cluster {
        Cluster { name: name.into(), id: ClusterId(Digest([byte; 32])) }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn it_is_private_and_remembers_its_cluster() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let directory = DataDir::open(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(directory.cluster().unwrap(), None);
        directory.record_cluster(&cluster("alpha", 1)).unwrap();
        assert_eq!(mode(&path.join(IDENTITY)), 0o600);
        drop(directory);
        assert_eq!(DataDir::open(&path).unwrap().cluster().unwrap(), Some(cluster("alpha", 1)));
    }

    #[test]
    fn one_holder_at_a_time_and_it_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let held = DataDir::open(parent.path()).unwrap();
        let error = DataDir::open(parent.path()).unwrap_err();
        assert!(
            error.to_string().contains(&format!("is in use by process {}", std::process::id())),
            "{error}"
        );
        drop(held);
        DataDir::open(parent.path()).unwrap();
    }

    #[test]
    fn a_directory_open_to_others_is_closed_while_empty_and_refused_when_in_use() {
        let parent = tempfile::tempdir().unwrap();
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).unwrap();
        drop(DataDir::open(parent.path()).unwrap());
        assert_eq!(mode(parent.path()), 0o700);
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o750)).unwrap();
        let error = DataDir::open(parent.path()).unwrap_err();
        assert!(error.to_string().contains("(mode 750); run: chmod 700 "), "{error}");
    }

    #[test]
    fn a_newer_or_broken_identity_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDir::open(parent.path()).unwrap();
        fs::write(parent.path().join(IDENTITY), "format = 2\nshape = \"unknown\"\n").unwrap();
        let error = directory.cluster().unwrap_err();
        assert!(matches!(error, StoreError::NewerFormat { found: 2, known: 1, .. }), "{error}");
        fs::write(parent.path().join(IDENTITY), "format = 1\nname = 7\n").unwrap();
        let error = directory.cluster().unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
