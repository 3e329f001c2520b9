//! Genesis files: TOML, made to be read and compared by people.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use bftd_core::{
    crypto::PublicKey,
    ids::MemberId,
    membership::{Faults, Genesis, Member},
    protocol::Protocol,
};

/// Why a genesis file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    /// It can't be read or written.
    #[error("can't {verb} the genesis {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what it should be; the text names line and key.
    #[error("in the genesis {}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        reason: String,
    },
}

/// Reads a genesis file.
///
/// # Errors
/// See [`GenesisError`].
pub fn read(path: &Path) -> Result<Genesis, GenesisError> {
    let text = fs::read_to_string(path).map_err(|source| GenesisError::Io {
        verb: "read",
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text)
        .map_err(|error| GenesisError::Invalid { path: path.to_owned(), reason: error.to_string() })
}

/// Writes a genesis file.
///
/// # Errors
/// See [`GenesisError`].
pub fn write(path: &Path, genesis: &Genesis) -> Result<(), GenesisError> {
    let text = toml::to_string(genesis)
        .map_err(|error| GenesisError::Invalid { path: path.to_owned(), reason: error.to_string() })?;
    fs::write(path, text).map_err(|source| GenesisError::Io { verb: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_genesis_reads_as_it_was_written_and_mistakes_are_named() {
        let directory = std::env::temp_dir().join(format!("bftd-genesis-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("genesis.toml");
        let member = Member {
            id: MemberId(1),
            name: "node1".into(),
            key: PublicKey([7; 32]),
            address: "127.0.0.1:7000".parse().unwrap(),
        };
        let genesis =
            Genesis { name: "x".into(), protocol: Protocol::BftRaft, created_ms: 3, members: vec![member] };
        write(&path, &genesis).unwrap();
        let found = read(&path).unwrap();
        assert_eq!(found, genesis);
        assert_eq!(found.cluster_id(), genesis.cluster_id());

        let text =
            fs::read_to_string(&path).unwrap().replace("protocol = \"bft-raft\"", "protocol = \"paxos\"");
        fs::write(&path, text).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("genesis.toml") && error.contains("line 2"), "{error}");
        fs::remove_dir_all(&directory).unwrap();
    }
}
