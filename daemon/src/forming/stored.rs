//! The genesis that a daemon was given: `genesis.toml` in the data directory.

use std::path::Path;

use bftd_client::genesis::{parse, to_text};
use bftd_core::membership::Genesis;

use super::{
    files::{self, FileError},
    plan::Plan,
};

/// The file's name within the data directory.
pub const GENESIS_FILE: &str = "genesis.toml";

/// The genesis in a data directory, if one was given.
///
/// # Errors
/// It can't be read, or is none.
pub fn stored_genesis(directory: &Path) -> Result<Option<Genesis>, FileError> {
    let Some(text) = files::read(directory, GENESIS_FILE)? else { return Ok(None) };
    parse(&text).map(Some).map_err(|reason| FileError::malformed(directory, GENESIS_FILE, &reason))
}

/// Keeps a genesis, durably. What led to it is of no more use.
pub(super) fn store(directory: &Path, genesis: &Genesis) -> Result<(), FileError> {
    let text = format!(
        "# The founding members of this cluster, whose keys are all that an auditor needs to trust. Not to be changed:\n\
         # its digest is the cluster's id.\n{}",
        to_text(genesis)
    );
    files::replace(directory, GENESIS_FILE, text.as_bytes())?;
    Plan::forget(directory)
}

/// After a crash in between: forgets what led to a genesis that is stored.
///
/// # Errors
/// It can't be removed.
pub fn tidy(directory: &Path) -> Result<(), FileError> {
    Plan::forget(directory)
}
