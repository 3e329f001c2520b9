//! A seeded simulation of bftd's core.

pub mod event;
pub mod oracle;
