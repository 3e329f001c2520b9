//! The daemon of bftd.

pub mod state;
