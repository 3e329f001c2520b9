//! The daemon: one member of a cluster, on real disks and sockets.
//!
//! ARCHITECTURE.md is the map; [`node`] wires the parts, [`driver`] is the loop that drives the replica.

pub mod admin;
pub mod args;
pub mod config;
pub mod control;
pub mod doctor;
pub mod driver;
pub mod execute;
pub mod faults;
pub mod forming;
pub mod identity;
pub mod logging;
pub mod node;
pub mod outlet;
pub mod peers;
pub mod reads;
pub mod service;
pub mod serving;
pub mod state;
pub mod store;
pub mod supervision;
mod ticking;
pub mod trace;
pub mod transport;
pub mod watch;
