//! The state machine: a key-value store with one global revision.
//!
//! Deterministic: the same blocks give the same state, the same answers and the same digest on every member.
//!
//! - [operation](Operation): what clients ask, and what they are answered.
//! - [tables](ReadTables): the ordered tables that hold the state: in memory here, on disk in the daemon.
//! - [machine](StateMachine): executes blocks, exactly once each, in the order of their indices.
//! - [digest](recompute): the digest of the state's contents, kept up to date change by change.
//! - [transaction](Transaction): comparisons, and one of two lists of steps.
//! - [query](query()): reads.

mod buckets;
mod digest;
mod entry;
mod machine;
mod operation;
mod query;
mod tables;
mod transact;
mod transaction;

pub use digest::{bucket_of, empty_state, entry_digest, key_hash, recompute};
pub use machine::{BlockOutcome, Error, Head, StateMachine, head};
pub use operation::{Entry, Expect, Listing, Operation, Outcome, Query, Refusal};
pub use query::{Answer, MAX_ANSWER, get, query};
pub use tables::{MemoryTables, ReadTables, Table, WriteTables};
pub use transaction::{
    Compare, MAX_READ_KEYS, MAX_STEPS, MAX_TRANSACTION, Part, Property, Relation, Span, Step, StepOutcome,
    Taken, Transaction,
};

#[cfg(test)]
mod tests;
