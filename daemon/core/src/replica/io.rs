//! What goes into a replica and what comes out: plain data, so that a run can be recorded and replayed.

use std::sync::Arc;

use crate::{
    block::{Block, BlockRef, Request},
    crypto::Digest,
    durable::Record,
    evidence::Offence,
    ids::{BatchNumber, Incarnation, Index, MemberId, Term},
    message::Message,
    protocol::Protocol,
    verify::Verified,
};

/// An event for a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Some time has passed: comes every [`crate::limits::Timing::tick_us`].
    Tick,
    /// It is the time that [`super::Replica::due_us`] named.
    Due,
    /// A verified message from a peer, or from this replica itself ([`To::Member`] with its own id).
    Message(MemberId, Verified<Message>),
    /// Requests of this member's own clients, for one batch. Only while [`super::Replica::may_submit`] says so.
    Submit(Vec<Request>),
    /// A linearizable read wants to know when local state is fresh enough.
    Read(ReadTicket),
    /// So many messages of a peer did not stand up to verification since it was last said. The driver gathers them: one such
    /// input a peer and tick, so that a flood of rubbish is no flood of inputs.
    Refused(MemberId, u32),
    /// The state machine has executed a block and the state has this digest now.
    Executed(BlockRef, Digest),
    /// The state machine has executed a request that sets the protocol. Comes after the block's [`Input::Executed`] or before, but
    /// in the order in which requests set it.
    Protocol(Protocol),
    /// This member is about to stop. Where it leads it suspects itself from now on, so that the others don't wait for it in vain.
    Leave,
}

/// The caller's name for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadTicket(pub u64);

/// An effect for the driver to carry out, in order.
///
/// The contract: records are made durable in the order of emission, and are numbered from 1 in that order within
/// a run. A `Send` leaves only when the record that its `after` names is durable. A block is executed, and a peer
/// served, only when all records before that output are durable. Everything else waits for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Make this durable.
    Persist(Record),
    /// Send a message once the record numbered `after` is durable (0: at once).
    Send {
        /// To whom.
        to: To,
        /// What. Verified, because it is this replica's own: it may come straight back as an input.
        message: Verified<Message>,
        /// What it promises: the number of the last record that must be durable before it leaves.
        after: u64,
    },
    /// A batch was made of the last [`Input::Submit`], or an older one was numbered anew.
    Numbered {
        /// Its run and number before, if it had any.
        before: Option<(Incarnation, BatchNumber)>,
        /// Its run and number now.
        now: (Incarnation, BatchNumber),
    },
    /// Execute this block: it is final. Blocks come in the order of their indices, each once per run.
    Execute(Arc<Block>),
    /// These reads may be answered from local state: what it shows is durable at a quorum, if not yet here.
    Readable(Vec<ReadTicket>),
    /// A peer lacks committed blocks: send it some of those after this index, with a certificate.
    ServeCommitted {
        /// The peer.
        to: MemberId,
        /// The last index that it has.
        after: Index,
    },
    /// Something that an operator should know of.
    Report(Report),
    /// More than f members are faulty, or this one is broken: stop, and touch nothing more.
    Halt(Halt),
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// One member; possibly the sender itself, which then gets it as an input.
    Member(MemberId),
    /// All members but the sender.
    Others,
}

/// Events of note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A term was entered.
    EnteredTerm(Term),
    /// A term was opened at this block.
    OpenedTerm(Term, BlockRef),
    /// This replica suspects its term's leader.
    Suspecting(Term, &'static str),
    /// It no longer does.
    Trusting(Term),
    /// A member is proved to have lied.
    Evidence(Offence),
    /// A leader's state after this index differs from this replica's: one of the two has diverged.
    StateDiffers(Term, Index),
    /// A message was of no use, and why.
    Ignored(MemberId, &'static str, super::Ignore),
}

/// Why a replica must not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// Two conflicting blocks are certified.
    #[error(
        "more than f members are faulty: block {certified} is certified, and conflicts with block {committed}, \
         which is committed"
    )]
    ConflictingCertificates {
        /// What a Commit certificate says, of a block that is here as a rule.
        committed: BlockRef,
        /// What a certificate or a new term says instead.
        certified: BlockRef,
    },
    /// The members have agreed on another state than this replica's.
    #[error(
        "the state of this member differs from what a quorum certified for index {index}: {ours} here, \
         {certified} there; its disk or its program is broken"
    )]
    StateDiverged {
        /// The index.
        index: Index,
        /// This replica's digest.
        ours: Digest,
        /// The certified digest.
        certified: Digest,
    },
}
