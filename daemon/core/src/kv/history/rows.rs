//! How rows are stored: where the chain was, when, and the events.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::{Mark, tombstone_digest};
use crate::{
    crypto::Digest,
    kv::{
        digest::size_of,
        entry::{Stored, as_bytes},
    },
};

/// What a row begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::kv) struct Row {
    /// The end of the row before it.
    pub(in crate::kv) before: Mark,
    /// The time of its block.
    pub(in crate::kv) time_ms: u64,
}

/// One key's change at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::kv) struct Event<'a> {
    pub(in crate::kv) revision: u64,
    /// The revision of the key's change before this one; 0 where it was never there, or was deleted at a revision that was
    /// compacted when it came back.
    pub(in crate::kv) previous: u64,
    #[serde(serialize_with = "as_bytes")]
    pub(in crate::kv) key: &'a [u8],
    #[serde(borrow)]
    pub(in crate::kv) change: Change<'a>,
}

/// See [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::kv) enum Change<'a> {
    /// The key has this entry now.
    #[serde(borrow)]
    Put(Stored<'a>),
    /// There is no such key any more.
    Delete,
}

impl Event<'_> {
    pub(super) fn encode(&self, row: &mut Vec<u8>) {
        *row =
            postcard::to_extend(self, std::mem::take(row)).expect("encoding into a growing buffer succeeds");
    }

    /// What it counts for, in bytes.
    pub(super) fn size(&self) -> u64 {
        size_of(self.key, self.change.entry().map_or(0, |entry| entry.value.len()))
    }

    pub(in crate::kv) fn digest(&self) -> Digest {
        match &self.change {
            Change::Put(stored) => stored.digest(self.key),
            Change::Delete => tombstone_digest(self.key, self.revision),
        }
    }
}

impl Row {
    pub(super) fn encode(&self, row: &mut Vec<u8>) {
        *row =
            postcard::to_extend(self, std::mem::take(row)).expect("encoding into a growing buffer succeeds");
    }

    /// Shows `f` the events of a row until it breaks; none where the row is damaged.
    pub(in crate::kv) fn decode<'a>(
        bytes: &'a [u8],
        mut f: impl FnMut(Event<'a>) -> ControlFlow<()>,
    ) -> Option<Self> {
        let (row, mut rest) = postcard::take_from_bytes::<Self>(bytes).ok()?;
        while !rest.is_empty() {
            let event;
            (event, rest) = postcard::take_from_bytes::<Event<'a>>(rest).ok()?;
            if f(event).is_break() {
                break;
            }
        }
        Some(row)
    }
}
