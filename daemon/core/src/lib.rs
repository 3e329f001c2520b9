//! The consensus core of bftd: pure, deterministic, without clock, sockets, files, threads or randomness.
//!
//! One [`replica::Replica`] takes one [`replica::Input`] at a time and leaves [`replica::Output`]s to be carried out in
//! order. A daemon drives it with real disks and sockets, a simulator with virtual ones.
//!
//! Read [`replica`] for the protocol, [`verify`] for what is believed of peers, [`durable`] for what survives a crash,
//! [`kv`] for the state machine that the blocks drive.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

pub mod ballot;
pub mod block;
pub mod certificate;
pub mod crypto;
pub mod durable;
pub mod evidence;
pub mod ids;
pub mod kv;
pub mod limits;
pub mod membership;
pub mod message;
pub mod protocol;
pub mod replica;
pub mod verify;
