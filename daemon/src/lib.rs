//! The daemon: one member of a cluster, on real disks and sockets.

pub mod state;
pub mod store;
