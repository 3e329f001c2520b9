//! Genesis files: TOML, made to be read and compared by people.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use bftd_core::{
    crypto::{ClusterId, PublicKey},
    ids::MemberId,
    membership::{Genesis, Member},
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

/// Digits and letters that are not mistaken for each other when they are read out (Crockford's base32).
const SPOKEN: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// How many characters a fingerprint has, of five bits each: two geneses with the same fingerprint, which a dishonest
/// inviter might want, take some 2⁶⁰ tries.
const FINGERPRINT: usize = 24;

/// A cluster's id in short, for operators to compare by phone: six groups of four.
pub fn fingerprint(id: &ClusterId) -> String {
    let bits = |at: usize| {
        // Five bits from bit 5·at on lie in two bytes at most.
        let byte = |at: usize| u16::from(id.0.0.get(at).copied().unwrap_or_default());
        let two = byte(at * 5 / 8) << 8 | byte(at * 5 / 8 + 1);
        usize::from(two >> (11 - at * 5 % 8) & 31)
    };
    let letters: Vec<_> =
        (0..FINGERPRINT).filter_map(|at| SPOKEN.get(bits(at)).copied().map(char::from)).collect();
    letters.chunks(4).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join("-")
}

/// The fingerprint of a cluster whose id is given in hexadecimal, if it is one.
pub fn fingerprint_of(id: &str) -> Option<String> {
    id.parse().ok().map(|id| fingerprint(&ClusterId(id)))
}

/// Whether it can be the name of a cluster or of a member that is made here: it is spoken, typed and shown.
pub fn is_name(name: &str) -> bool {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (1..=64).contains(&name.len()) && name.chars().all(is_fit)
}

/// The genesis in a text; the error names line and key.
///
/// # Errors
/// The text is no genesis.
pub fn parse(text: &str) -> Result<Genesis, String> {
    toml::from_str(text).map_err(|error| error.to_string())
}

/// A genesis as text, for people to read and compare.
pub fn to_text(genesis: &Genesis) -> String {
    toml::to_string(genesis).expect("a genesis is plain tables")
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
    parse(&text).map_err(|reason| GenesisError::Invalid { path: path.to_owned(), reason })
}

/// Writes a genesis file.
///
/// # Errors
/// See [`GenesisError`].
pub fn write(path: &Path, genesis: &Genesis) -> Result<(), GenesisError> {
    fs::write(path, to_text(genesis)).map_err(|source| GenesisError::Io {
        verb: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bftd_core::crypto::Digest;

    use super::*;

    #[test]
    fn a_fingerprint_is_the_first_bits_of_the_id() {
        let mut id = ClusterId(Digest([0; 32]));
        assert_eq!(fingerprint(&id), "0000-0000-0000-0000-0000-0000");
        id.0.0[..5].copy_from_slice(&[0b00001_000, 0b10_00011_0, 0b0100_0010, 0b1_00110_00, 0b111_01000]);
        assert_eq!(fingerprint(&id), "1234-5678-0000-0000-0000-0000");
        let other = ClusterId(Digest([0xff; 32]));
        assert_eq!(fingerprint(&other), "ZZZZ-ZZZZ-ZZZZ-ZZZZ-ZZZZ-ZZZZ");
    }

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
