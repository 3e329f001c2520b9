//! The consensus log on disk: what a replica must remember over a crash, and the chain of committed blocks.
//!
//! # Rules
//!
//! - **Groups are atomic and ordered.** [`LogStore::append`] writes a group of records as one durable transaction.
//!   After a crash the log holds the effect ([`bftd_core::durable::Durable::apply`]) of a prefix of the groups,
//!   with every acknowledged one among them.
//! - **A failed write is final.** After any error the store refuses everything, and the daemon stops: what a failed
//!   sync has left on the disk is unknown, and a second sync that succeeds proves nothing.
//! - **The chain has no holes.** Committed blocks stay for ever, one for each index from 1. A commit whose blocks do
//!   not join the chain is refused.
//! - **Values are checked when read.** Each carries a digest of its own: redb verifies its checksums only when it
//!   repairs a file, and nothing that a disk has altered may be executed or passed on.
//! - **One process, one cluster per directory.** [`DataDir`] is locked for as long as it lives; a directory that
//!   belongs to another cluster, or whose log has vanished, is refused.
//!
//! [`LogWriter`] runs a store on a thread of its own and commits whatever is waiting as one group. [`LogReader`]s
//! serve peers and replay blocks meanwhile.

mod codec;
mod dir;
mod error;
mod log;
mod prefill;
mod reader;
mod writer;

pub use dir::{Cluster, DataDir};
pub use error::StoreError;
pub use log::LogStore;
pub use reader::{Blocks, Checked, LogReader, Run};
pub use writer::{LogWriter, MAX_WAITING_BYTES, MAX_WAITING_RECORDS, OnDurable};

#[cfg(test)]
mod tests;
