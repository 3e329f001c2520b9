//! Reads: one key, keys in order, or how many there are.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Entry, Error, Listing, Query, ReadTables, Table, entry::Stored};

/// About how many bytes of keys and values an answer carries. One entry is always carried.
pub const MAX_ANSWER: usize = 8 << 20;
/// What an entry costs beside its key and value, in bytes.
pub(super) const PER_ENTRY: usize = 48;

/// What a query finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Query::Get`]: the entry, if the key exists.
    Entry(Option<Entry>),
    /// To [`Query::List`].
    Listing(Listing),
    /// To [`Query::Count`].
    Count(u64),
}

/// Answers a query from tables. A count takes time in proportion to what it counts; a listing holds no more in memory
/// than it answers.
///
/// # Errors
/// The store's, or a damaged entry.
pub fn query<T: ReadTables>(tables: &T, query: &Query) -> Result<Answer, Error<T::Error>> {
    match query {
        Query::Get { key } => get(tables, key).map(Answer::Entry),
        Query::List { prefix, start_after, limit, keys_only } => {
            list(tables, prefix, start_after.as_deref(), *limit, *keys_only).map(Answer::Listing)
        }
        Query::Count { prefix } => count(tables, prefix).map(Answer::Count),
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

fn list<T: ReadTables>(
    tables: &T,
    prefix: &[u8],
    start_after: Option<&[u8]>,
    limit: u64,
    keys_only: bool,
) -> Result<Listing, Error<T::Error>> {
    let from = match start_after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    let mut listing = Listing::default();
    let mut size = 0;
    let mut damaged = false;
    tables.scan(Table::Keys, from, |key, bytes| {
        if !key.starts_with(prefix) {
            return ControlFlow::Break(());
        }
        let Some(stored) = Stored::decode(bytes) else {
            damaged = true;
            return ControlFlow::Break(());
        };
        size += PER_ENTRY + key.len() + if keys_only { 0 } else { stored.value.len() };
        let full = size > MAX_ANSWER && !listing.entries.is_empty();
        if full || listing.entries.len() as u64 >= limit {
            listing.more = true;
            return ControlFlow::Break(());
        }
        listing.entries.push((Bytes::copy_from_slice(key), stored.to_entry(!keys_only)));
        ControlFlow::Continue(())
    })?;
    if damaged { Err(Error::Damaged("an entry")) } else { Ok(listing) }
}

fn count<T: ReadTables>(tables: &T, prefix: &[u8]) -> Result<u64, Error<T::Error>> {
    let mut keys = 0;
    tables.scan(Table::Keys, Bound::Included(prefix), |key, _| {
        if !key.starts_with(prefix) {
            return ControlFlow::Break(());
        }
        keys += 1;
        ControlFlow::Continue(())
    })?;
    Ok(keys)
}
