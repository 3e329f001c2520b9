//! The daemon: everything around the consensus core that touches sockets, files and clocks.

pub mod identity;
pub mod transport;
