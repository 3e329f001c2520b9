//! Tests of the log: against its specification, against power cuts and failing disks, and at its edges.

#![allow(clippy::unwrap_used)]

mod crash;
mod differential;
mod disk;
mod measure;
mod opening;
mod script;
mod wal;
mod writing;
