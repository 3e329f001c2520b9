//! How an entry is stored: its numbers first, so that they can be read without the value.

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};

use super::Entry;

/// An entry in [`super::Table::Keys`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored<'a> {
    pub(super) create_revision: u64,
    pub(super) mod_revision: u64,
    pub(super) version: u64,
    #[serde(serialize_with = "as_bytes")]
    pub(super) value: &'a [u8],
}

/// An entry's history in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) create_revision: u64,
    pub(super) mod_revision: u64,
    pub(super) version: u64,
}

/// Encodes bytes at once, not one by one.
fn as_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

impl<'a> Stored<'a> {
    /// Replaces the contents of `buffer` by the encoded entry.
    pub(super) fn encode(&self, buffer: &mut Vec<u8>) {
        buffer.clear();
        *buffer = postcard::to_extend(self, std::mem::take(buffer))
            .expect("encoding into a growing buffer succeeds");
    }

    /// The entry in a table's value; none where the value is damaged.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        match postcard::take_from_bytes(bytes) {
            Ok((stored, [])) => Some(stored),
            _ => None,
        }
    }

    pub(super) fn numbers(&self) -> Numbers {
        let Self { create_revision, mod_revision, version, .. } = *self;
        Numbers { create_revision, mod_revision, version }
    }

    /// The entry, with its value or with an empty one.
    pub(super) fn to_entry(self, with_value: bool) -> Entry {
        let Self { create_revision, mod_revision, version, value } = self;
        let value = if with_value { Bytes::copy_from_slice(value) } else { Bytes::new() };
        Entry { value, create_revision, mod_revision, version }
    }
}
