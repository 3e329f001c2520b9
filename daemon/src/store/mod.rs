//! The consensus log on disk: what a replica must remember over a crash, and the chain of committed blocks.
//!
//! # Rules
//!
//! - **Groups are atomic and ordered.** [`LogStore::append`] makes a group of records durable in the write-ahead files;
//!   the database takes up many at a time, later. After a crash, what is missing there is taken up before anything is
//!   read, and the log holds the effect ([`bftd_core::durable::Durable::apply`]) of a prefix of the groups,
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
//! [`LogWriter`] runs a store on two threads: one writes whatever is waiting as one group, one brings the database up to
//! date. [`LogReader`]s serve peers and replay blocks meanwhile, from the database; what it lacks of the chain is in memory.

mod chain;
mod codec;
mod dir;
mod error;
mod home;
mod log;
mod prefill;
mod reader;
mod recent;
mod wal;
mod writer;

pub(crate) use dir::size_on_disk;
pub use dir::{Cluster, DataDir, disk_use};
pub use error::StoreError;
pub use log::LogStore;
pub use reader::{Blocks, Checked, LogReader, Run};
pub use writer::{LogWriter, MAX_WAITING_BYTES, MAX_WAITING_RECORDS, OnDurable};

#[cfg(test)]
mod tests;
