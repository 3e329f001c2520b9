//! Reads: keys, what they were, and how they changed.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Entry, Error, Events, Head, LeaseStatus, Listing, Range, ReadTables, Refusal, Span, Table, Watched,
    entry::Stored,
    events::events,
    history::events_back,
    lease::leases,
    range::{Budget, range},
};

/// How many changes of a key one answer has at most.
pub const MAX_CHANGES: u64 = 10_000;

/// A question to local state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// One key, as it is now.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Keys, now or as of a revision.
    Range(Range),
    /// How one key changed, the newest change first.
    History {
        /// The key.
        key: Bytes,
        /// Only changes before this revision; 0 is all.
        before: u64,
        /// At most so many; 0 is [`MAX_CHANGES`].
        limit: u64,
    },
    /// How keys changed, the oldest change first.
    Events(Watched),
    /// One lease with the keys that hang on it, or all leases without.
    Leases {
        /// Which one.
        lease: Option<u64>,
    },
}

/// What a query finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Query::Get`]: the entry, if the key exists.
    Entry(Option<Entry>),
    /// To [`Query::Range`].
    Listing(Listing),
    /// To [`Query::History`].
    Changes(Changes),
    /// To [`Query::Events`].
    Events(Events),
    /// To [`Query::Leases`], rising by id; none where there is no such lease.
    Leases(Vec<LeaseStatus>),
    /// It can't be answered.
    Refused(Refusal),
}

/// How a key changed, the newest change first, down to the one that made it what it was as of the compacted revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Revisions, and what the key was from then on; none where it was deleted.
    pub changes: Vec<(u64, Option<Entry>)>,
    /// Whether there are more.
    pub more: bool,
}

impl Query {
    /// The keys whose entries it reads, if it does.
    pub fn keys(&self) -> Option<Span<&[u8]>> {
        match self {
            Self::Get { key } | Self::History { key, .. } => Some(Span::Key(key)),
            Self::Range(range) => Some(range.keys.borrowed()),
            Self::Events(_) | Self::Leases { .. } => None,
        }
    }

    /// Whether it reads the history, as the store is at a revision.
    pub fn reads_history(&self, now: u64) -> bool {
        match self {
            Self::Get { .. } | Self::Leases { .. } => false,
            Self::Range(range) => range.revision != 0 && range.revision != now,
            Self::History { .. } | Self::Events(_) => true,
        }
    }
}

/// Answers a query from tables whose state `head` tells. A count takes time in proportion to what it counts; a listing in the order of
/// keys holds no more in memory than it answers.
///
/// # Errors
/// The store's, or damaged contents.
pub fn query<T: ReadTables>(tables: &T, head: &Head, query: &Query) -> Result<Answer, Error<T::Error>> {
    let refused = |refusal| Ok(Answer::Refused(refusal));
    match query {
        Query::Get { key } => get(tables, key).map(Answer::Entry),
        Query::Range(asked) => {
            if let Err(refusal) = asked.keys.check() {
                return refused(refusal);
            }
            let found = range(tables, head, asked, &mut Budget::of_a_query())?;
            found.map_or_else(refused, |listing| Ok(Answer::Listing(listing)))
        }
        Query::History { key, before, limit } => {
            let limit = if *limit == 0 { MAX_CHANGES } else { MAX_CHANGES.min(*limit) };
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            events_back(tables, key, (head.compacted, *before, limit)).map(Answer::Changes)
        }
        Query::Leases { lease } => leases(tables, *lease).map(Answer::Leases),
        Query::Events(watched) => {
            events(tables, head, watched)?.map_or_else(refused, |events| Ok(Answer::Events(events)))
        }
    }
}

/// The entry of a key, if there is one.
///
/// # Errors
/// The store's, or a damaged entry.
pub fn get<T: ReadTables>(tables: &T, key: &[u8]) -> Result<Option<Entry>, Error<T::Error>> {
    let entry = tables.read(Table::Keys, key, |bytes| Some(Stored::decode(bytes)?.to_entry(true)))?;
    entry.map(|entry| entry.ok_or(Error::Damaged("an entry"))).transpose()
}
