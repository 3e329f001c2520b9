//! The daemon of a Byzantine fault-tolerant key-value store.

pub mod store;
