//! What happens in the world, as an observer sees it.

use std::sync::Arc;

use bftd_core::{
    block::Block,
    crypto::Digest,
    durable::{Durable, Record},
    ids::{MemberId, Term},
    message::Message,
    replica::Status,
};
use bytes::Bytes;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A node starts, with what its disk holds.
    Started {
        /// Which.
        node: MemberId,
        /// Whether it follows the protocol.
        correct: bool,
        /// Whether it ran before.
        restart: bool,
        /// What its disk holds.
        durable: &'a Durable,
    },
    /// A node stops without a warning; what was not synced is lost.
    Crashed {
        /// Which.
        node: MemberId,
        /// What its disk still holds.
        durable: &'a Durable,
    },
    /// A message leaves.
    Sent {
        /// From whom.
        from: MemberId,
        /// To whom; possibly the sender itself.
        to: MemberId,
        /// What.
        message: &'a Message,
        /// What the sender's disk holds at that moment.
        durable: &'a Durable,
    },
    /// A message arrives at a running node.
    Delivered {
        /// From whom.
        from: MemberId,
        /// To whom.
        to: MemberId,
        /// What.
        message: &'a Message,
    },
    /// Records have become durable.
    Synced {
        /// Where.
        node: MemberId,
        /// Which, in order.
        records: &'a [Record],
        /// What the disk holds now.
        durable: &'a Durable,
    },
    /// A node has executed a block.
    Executed {
        /// Which node.
        node: MemberId,
        /// The block.
        block: &'a Arc<Block>,
        /// The digest of the state after it.
        state: Digest,
    },
    /// A client asks for a write: a request of its own contents.
    Submitted {
        /// At which node.
        node: MemberId,
        /// The world's number for it.
        write: u64,
        /// The encoded operation.
        request: &'a Bytes,
    },
    /// The client is told that the write is done.
    Acknowledged {
        /// By which node.
        node: MemberId,
        /// The world's number for it.
        write: u64,
        /// The store's revision after it.
        revision: u64,
    },
    /// A client asks for a key.
    ReadBegun {
        /// At which node.
        node: MemberId,
        /// The world's number for it.
        read: u64,
        /// The key.
        key: &'a Bytes,
    },
    /// The client is answered.
    ReadAnswered {
        /// By which node.
        node: MemberId,
        /// The world's number for it.
        read: u64,
        /// The key.
        key: &'a Bytes,
        /// The revision that last changed the key; 0 where it does not exist.
        revision: u64,
        /// The value, where it exists.
        value: Option<&'a Bytes>,
    },
    /// A node stopped for good because it found the cluster broken.
    Halted {
        /// Which.
        node: MemberId,
        /// Its words.
        reason: &'a str,
    },
    /// A node's own invariants do not hold.
    InvariantBroken {
        /// Which.
        node: MemberId,
        /// Which invariant.
        what: &'a str,
    },
    /// Faults of network and machines have stopped; liars go on.
    Calm {
        /// The highest term of a correct node.
        term: Term,
    },
    /// The run is over.
    End {
        /// Every running node, with its last executed state.
        nodes: &'a [(MemberId, Status, Option<Digest>)],
        /// Writes at correct nodes without an answer.
        pending_writes: usize,
        /// Reads at correct nodes without an answer.
        pending_reads: usize,
    },
}

/// Something that must not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which check found it.
    pub check: &'static str,
    /// What it found.
    pub detail: String,
}

/// Watches a run.
pub trait Observer {
    /// Takes note of an event.
    ///
    /// # Errors
    /// The event must not happen.
    fn observe(&mut self, at_us: u64, event: &Event<'_>) -> Result<(), Violation>;
}
