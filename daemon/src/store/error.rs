//! What can go wrong with a data directory and the log in it.

use std::{io, path::PathBuf};

use bftd_core::ids::Index;

use super::dir::Cluster;

/// Why the log can't be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: a verb for the path.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process uses the directory.
    #[error("data directory {} is in use{}; stop that daemon, or choose another directory", path.display(),
        holder.map_or(String::new(), |pid| format!(" by process {pid}")))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process that holds it, if known.
        holder: Option<u32>,
    },
    /// Others than its owner may enter the directory.
    #[error("data directory {path} is open to other users (mode {mode:03o}); run: chmod 700 {path}",
        path = path.display())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The directory belongs to another cluster.
    #[error("data directory {} belongs to cluster {found}, not {wanted}; choose another directory, or remove this one \
        if its data is no longer needed", path.display())]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: Box<Cluster>,
        /// Who wants it.
        wanted: Box<Cluster>,
    },
    /// A newer program wrote it.
    #[error("{} has format version {found}, and this program knows versions up to {known}; install a newer bftd",
        path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest known version.
        known: u32,
    },
    /// `cluster.toml` makes no sense.
    #[error("{}: {reason}; restore the file from a backup of this directory", path.display())]
    BadIdentity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with line and column.
        reason: String,
    },
    /// The directory was in use before, and its log is gone.
    #[error("the log {} is missing or empty, though this member has used it before; it must not vote again without \
        it: restore the directory, or replace the member", path.display())]
    LogLost {
        /// The file that should be there.
        path: PathBuf,
    },
    /// The database beneath the log failed.
    #[error("the log's database failed: {0}")]
    Database(Box<redb::Error>),
    /// A write-ahead file failed.
    #[error("cannot {action} a write-ahead file of the log: {source}")]
    Wal {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A value can't be what was written.
    #[error("the log is damaged: {what}; restore the directory from a backup, or replace the member")]
    Damaged {
        /// Which value, and what is wrong with it.
        what: String,
    },
    /// A commit does not join the chain: an error of this program, not of the disk.
    #[error("block {index} was to be committed, but the log lacks its block {missing}")]
    Disconnected {
        /// The committed index.
        index: Index,
        /// The ancestor (or the block itself) that is not there.
        missing: Index,
    },
    /// An earlier write failed.
    #[error(
        "the log takes no more records, because an earlier write to it failed; the daemon has to be restarted"
    )]
    Poisoned,
}

impl StoreError {
    /// Puts a path and a verb to what the operating system said.
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }
}

macro_rules! from_redb {
    ($($error:ident)*) => {
        $(impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        })*
    };
}

from_redb!(DatabaseError TransactionError TableError StorageError CommitError SetDurabilityError);
