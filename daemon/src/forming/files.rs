//! Small files of the data directory: after a crash they are there whole, as they were, or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Why such a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses.
    #[error("can't {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not hold what it should.
    #[error("{} is not what it should be: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, column, and what is wrong there.
        reason: String,
    },
}

impl FileError {
    pub(super) fn malformed(directory: &Path, name: &str, reason: &impl ToString) -> Self {
        Self::Malformed { path: directory.join(name), reason: reason.to_string() }
    }
}

/// The text of a file; none where there is no such file.
pub(crate) fn read(directory: &Path, name: &str) -> Result<Option<String>, FileError> {
    let path = directory.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Io { action: "read", path, source }),
    }
}

/// Puts a file in the place of what was there, durably. Only its owner can read it.
pub(crate) fn replace(directory: &Path, name: &str, contents: &[u8]) -> Result<(), FileError> {
    let path = directory.join(name);
    let temporary = directory.join(format!("{name}.new"));
    let write = || {
        remove_if_there(&temporary)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        sync(directory)
    };
    write().map_err(|source| FileError::Io { action: "write", path: path.clone(), source })
}

/// Removes a file, if it is there, and what a crash has left of a new one, durably.
pub(super) fn remove(directory: &Path, name: &str) -> Result<(), FileError> {
    let path = directory.join(name);
    let remove = || {
        remove_if_there(&directory.join(format!("{name}.new")))?;
        remove_if_there(&path)?;
        sync(directory)
    };
    remove().map_err(|source| FileError::Io { action: "remove", path: path.clone(), source })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory).and_then(|directory| directory.sync_all())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_crashs_leftover_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        assert_eq!(read(at, "f").unwrap(), None);
        fs::write(at.join("f.new"), "half").unwrap();
        replace(at, "f", b"one").unwrap();
        replace(at, "f", b"two").unwrap();
        assert_eq!(read(at, "f").unwrap().as_deref(), Some("two"));
        assert_eq!(fs::metadata(at.join("f")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(at).unwrap().count(), 1);
        fs::write(at.join("f.new"), "half").unwrap();
        remove(at, "f").unwrap();
        remove(at, "f").unwrap();
        assert_eq!(fs::read_dir(at).unwrap().count(), 0);
    }
}
