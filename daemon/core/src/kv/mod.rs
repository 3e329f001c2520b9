//! The state machine: a key-value store with one global revision.
//!
//! Deterministic: the same blocks give the same state, the same answers and the same digest on every member.

mod operation;

pub use operation::{Entry, Expect, Listing, Operation, Outcome, Query, Refusal};
