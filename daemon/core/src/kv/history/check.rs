//! The history's chain, from nothing else than its rows.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

use super::{Change, Mark, Row, Standing, chained, last_of_row, walk::each_row};
use crate::{
    crypto::Digest,
    kv::{Error, ReadTables, Table, entry::Stored},
};

/// The ends of the chain, by all rows that there are. What is said of this member alone is left out.
///
/// # Errors
/// The store's; damaged rows, or rows that don't follow each other.
pub(in crate::kv) fn recomputed<T: ReadTables>(
    tables: &T,
    compacted: u64,
) -> Result<Standing, Error<T::Error>> {
    let mut standing = Standing::default();
    // Of each key the digest of what it was after the last row; zero where it was not there.
    let mut known = held(tables)?;
    let mut is_first = true;
    let mut is_based = false;
    let mut differs = false;
    each_row(tables, 0, |key, bytes| {
        let mut digests = Vec::new();
        let mut size = 0;
        let row = Row::decode(bytes, |event| {
            size += event.size();
            let digest = event.digest();
            digests.extend_from_slice(&digest.0);
            let replaced = known.get(event.key).copied().unwrap_or(Digest::ZERO);
            digests.extend_from_slice(&replaced.0);
            digests.extend_from_slice(&event.previous.to_le_bytes());
            let now = if matches!(event.change, Change::Put(_)) { digest } else { Digest::ZERO };
            known.insert(event.key.to_vec(), now);
            ControlFlow::Continue(())
        })?;
        if std::mem::take(&mut is_first) {
            (standing.end, standing.base) = (row.before, row.before);
        }
        differs |= row.before != standing.end;
        if last_of_row(key)? > compacted && !is_based {
            is_based = true;
            standing.base = standing.end;
        }
        standing.end = Mark {
            digest: chained(standing.end.digest, row.time_ms, &digests),
            bytes: standing.end.bytes + size,
        };
        Some(ControlFlow::Continue(()))
    })?;
    if differs {
        return Err(Error::Damaged("the chain of the history"));
    }
    if is_first {
        standing = super::read_standing(tables)?;
        standing.base = standing.end;
    } else if !is_based {
        standing.base = standing.end;
    }
    Ok(standing)
}

/// The digests of the entries as of the last trimmed row, where they are not the current ones. Those that are current were not
/// replaced by any row.
fn held<T: ReadTables>(tables: &T) -> Result<BTreeMap<Vec<u8>, Digest>, Error<T::Error>> {
    let mut held = BTreeMap::new();
    let mut is_damaged = false;
    tables.scan(Table::Held, Bound::Unbounded, |key, bytes| {
        match Stored::decode(bytes) {
            Some(stored) => drop(held.insert(key.to_vec(), stored.digest(key))),
            None => is_damaged = true,
        }
        if is_damaged { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if is_damaged { Err(Error::Damaged("an entry")) } else { Ok(held) }
}
