//! What watchers are shown: the changes of keys in the order in which they happened.

use std::ops::ControlFlow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Entry, Error, Head, MAX_ANSWER, ReadTables, Refusal, Span,
    history::{Event as StoredEvent, Row, each_row, entry_exactly},
    range::PER_ENTRY,
};

/// About how many bytes of history are looked through for one answer.
const MAX_LOOKED_THROUGH: usize = 8 * MAX_ANSWER;

/// A question for changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Of which keys.
    pub keys: Span,
    /// From where on.
    pub from: Position,
    /// With what keys were before.
    pub with_previous: bool,
    /// Which kinds of changes.
    pub kinds: Kinds,
}

/// Kinds of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kinds {
    /// All.
    #[default]
    All,
    /// Puts.
    Puts,
    /// Deletions.
    Deletions,
}

/// A place in the order of all changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The revision.
    pub revision: u64,
    /// How many of its changes, whatever the keys, are before this place.
    pub within: u64,
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// At which revision: that of the request, which all its changes share.
    pub revision: u64,
    /// The key.
    pub key: Bytes,
    /// What it is now; none where it was deleted.
    pub entry: Option<Entry>,
    /// What it was before, if that was asked for and it was there.
    pub previous: Option<Entry>,
}

/// Changes in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Those that were asked for. Unless one revision alone is too much for an answer, they end with a revision's last one.
    pub events: Vec<Event>,
    /// From where the next ones come.
    pub next: Position,
    /// Whether there are more already: what was looked through is not all that there is.
    pub more: bool,
}

impl Position {
    /// Before a revision's first change.
    pub fn start_of(revision: u64) -> Self {
        Self { revision, within: 0 }
    }
}

impl Kinds {
    fn has(self, event: &StoredEvent<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Puts => event.change.entry().is_some(),
            Self::Deletions => event.change.entry().is_none(),
        }
    }
}

/// What is gathered for an answer.
struct Gathering<'a> {
    watched: &'a Watched,
    compacted: u64,
    events: Vec<Event>,
    /// How many of them belong to revisions that have ended, and the place after these.
    whole: (usize, Position),
    /// The place after the last change seen.
    at: Position,
    bytes: usize,
    looked_through: usize,
}

impl Gathering<'_> {
    /// Takes a change; whether there is room for another.
    fn take<T: ReadTables>(&mut self, tables: &T, event: &StoredEvent<'_>) -> Result<bool, Error<T::Error>> {
        if event.revision > self.at.revision {
            self.at = Position::start_of(event.revision);
            self.whole = (self.events.len(), self.at);
            if self.bytes >= MAX_ANSWER || self.looked_through >= MAX_LOOKED_THROUGH {
                return Ok(false);
            }
        }
        if self.at >= self.watched.from
            && self.watched.keys.contains(event.key)
            && self.watched.kinds.has(event)
        {
            let event = self.watched.shown(tables, event, self.compacted)?;
            let entries = [&event.entry, &event.previous].into_iter().flatten();
            let size = PER_ENTRY + event.key.len() + entries.map(|entry| entry.value.len()).sum::<usize>();
            if self.bytes + size > MAX_ANSWER && !self.events.is_empty() {
                return Ok(false);
            }
            self.bytes += size;
            self.events.push(event);
        }
        self.at.within += 1;
        Ok(true)
    }
}

impl Watched {
    fn shown<T: ReadTables>(
        &self,
        tables: &T,
        event: &StoredEvent<'_>,
        compacted: u64,
    ) -> Result<Event, Error<T::Error>> {
        let StoredEvent { revision, previous: before, key, change } = event;
        let was_there = change.entry().is_none_or(|entry| entry.version > 1);
        // What was before the compacted revision can't be read any more.
        let previous = if self.with_previous && was_there && *revision > compacted {
            let entry = entry_exactly(tables, key, *before)?;
            Some(entry.ok_or(Error::Damaged("the history of a key"))?)
        } else {
            None
        };
        let entry = change.entry().map(|stored| stored.to_entry(true));
        Ok(Event { revision: *revision, key: Bytes::copy_from_slice(key), entry, previous })
    }
}

/// Answers with the changes from a place on, as many as fit.
pub(super) fn events<T: ReadTables>(
    tables: &T,
    head: &Head,
    watched: &Watched,
) -> Result<Result<Events, Refusal>, Error<T::Error>> {
    let from = watched.from;
    if from.revision < head.compacted {
        return Ok(Err(Refusal::Compacted { compacted: head.compacted }));
    }
    let mut gathering = Gathering {
        watched,
        compacted: head.compacted,
        events: Vec::new(),
        whole: (0, from),
        at: Position::start_of(0),
        bytes: 0,
        looked_through: 0,
    };
    let mut is_full = false;
    if from.revision <= head.revision {
        let mut failed = None;
        each_row(tables, from.revision, |_, bytes| {
            let row = Row::decode(bytes, |event| {
                // Changes before the first one asked for may be in the same row.
                if event.revision < from.revision {
                    return ControlFlow::Continue(());
                }
                match gathering.take(tables, &event) {
                    Ok(true) => return ControlFlow::Continue(()),
                    Ok(false) => is_full = true,
                    Err(error) => failed = Some(error),
                }
                ControlFlow::Break(())
            });
            gathering.looked_through += bytes.len();
            let is_done = is_full || failed.is_some();
            row.map(|_| if is_done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if let Some(failed) = failed {
            return Err(failed);
        }
    }
    let Gathering { mut events, whole: (whole, start), at, .. } = gathering;
    let next = if !is_full {
        Position::start_of(head.revision + 1).max(from)
    } else if whole == 0 && !events.is_empty() {
        // A revision that is too much for an answer is cut, no other one.
        at
    } else {
        events.truncate(whole);
        start
    };
    Ok(Ok(Events { events, next, more: is_full }))
}
