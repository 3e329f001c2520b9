//! How an entry is stored: its numbers first, so that they can be read without the value.

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};

use super::{Entry, digest::entry_digest};
use crate::crypto::Digest;

/// An entry in [`super::Table::Keys`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored<'a> {
    pub(super) create_revision: u64,
    pub(super) mod_revision: u64,
    pub(super) version: u64,
    /// 0 where there is none.
    pub(super) lease: u64,
    #[serde(serialize_with = "as_bytes")]
    pub(super) value: &'a [u8],
}

/// What changing an entry needs to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Below 2⁴⁸, as all revisions and versions.
    pub(super) create_revision: u64,
    pub(super) mod_revision: u64,
    pub(super) version: u64,
    /// How many bytes the value has.
    pub(super) size: u32,
    /// Whether the key hangs on a lease.
    pub(super) is_leased: bool,
}

impl Numbers {
    /// Those of what is no entry.
    pub(super) const NONE: Self =
        Self { create_revision: 0, mod_revision: 0, version: 0, size: 0, is_leased: false };
}

/// Encodes bytes at once, not one by one.
pub(super) fn as_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
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
        let Self { create_revision, mod_revision, version, lease, value } = *self;
        let size = u32::try_from(value.len()).unwrap_or(u32::MAX);
        Numbers { create_revision, mod_revision, version, size, is_leased: lease != 0 }
    }

    /// The digest of a key with this entry.
    pub(super) fn digest(&self, key: &[u8]) -> Digest {
        entry_digest(key, [self.create_revision, self.mod_revision, self.version, self.lease], self.value)
    }

    /// The entry, with its value or with an empty one.
    pub(super) fn to_entry(self, with_value: bool) -> Entry {
        let Self { create_revision, mod_revision, version, lease, value } = self;
        let value = if with_value { Bytes::copy_from_slice(value) } else { Bytes::new() };
        Entry { value, create_revision, mod_revision, version, lease }
    }
}

impl Entry {
    pub(super) fn stored(&self) -> Stored<'_> {
        let Self { value, create_revision, mod_revision, version, lease } = self;
        Stored {
            create_revision: *create_revision,
            mod_revision: *mod_revision,
            version: *version,
            lease: *lease,
            value,
        }
    }
}
