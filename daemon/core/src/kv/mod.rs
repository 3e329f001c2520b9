//! The state machine: a key-value store with one global revision.
//!
//! Deterministic: the same blocks give the same state, the same answers and the same digest on every member.
//!
//! - [operation](Operation): what clients ask, and what they are answered.
//! - [tables](ReadTables): the ordered tables that hold the state: in memory here, on disk in the daemon.
//! - [machine](StateMachine): executes blocks, exactly once each, in the order of their indices.
//! - [session](SessionRequest): requests that are sent several times, and executed once.
//! - [transaction](Transaction): comparisons, and one of two lists of steps.
//! - [leases](LeaseStatus): keys that go when nobody keeps them.
//! - `history`: what keys were, until that is compacted.
//! - [digest](recompute): the digest of the state's contents, kept up to date change by change.
//! - [query](query()): reads: [ranges](Range) now or as of a revision, and [events](Watched) for those who watch.

mod buckets;
mod digest;
mod entry;
mod events;
mod history;
mod lease;
mod machine;
mod operation;
mod query;
mod range;
mod session;
mod span;
mod tables;
mod transact;
mod transaction;
mod writing;

pub use digest::{bucket_of, empty_state, entry_digest, key_hash, recompute};
pub use events::{Event, Events, Kinds, Position, Watched};
pub use lease::{LeaseStatus, MAX_ENDED};
pub use machine::{BlockOutcome, Error, Head, StateMachine, head};
pub use operation::{CompactUntil, Entry, Expect, Operation, Outcome, Refusal};
pub use query::{Answer, Changes, MAX_CHANGES, Query, get, query};
pub use range::{Filter, Listing, MAX_ANSWER, MAX_SORTED, Order, Range, SortBy, Want};
pub use session::{
    KEPT_ANSWER, KEPT_ANSWERS, MAX_SESSION_BYTES, MAX_SESSIONS, SESSION_MS, SESSION_WINDOW, SessionId,
    SessionRequest,
};
pub use span::Span;
pub use tables::{MemoryTables, ReadTables, Table, WriteTables};
pub use transaction::{
    Compare, MAX_DELETED, MAX_DELETED_BYTES, MAX_READ, MAX_STEPS, MAX_TRANSACTION, MAX_VISITED, Part,
    Property, Relation, Step, StepOutcome, Taken, Transaction,
};

#[cfg(test)]
mod tests;
