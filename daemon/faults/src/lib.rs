//! Adversaries, named by misbehaviour, one file each.
//!
//! An [`Adversary`] wraps an honest replica: it sees every message that would leave and every message that comes in, and says
//! what really leaves and what the replica hears. It may sign with the replica's key, and it knows its own key only. What
//! it does is decided by its seed. The honest core contains no line of this.
//!
//! [`Fault`] lists what there is, by name; [`adversary`] makes one.

mod amnesia;
mod bad_signature;
mod censor;
mod chance;
mod corrupt_vote;
mod crash_loop;
mod cry_late;
mod double_vote;
mod duplicate_signer;
mod equivocate;
mod fault;
mod fields;
mod flip_protocol;
mod forged_certificate;
mod forged_chain;
mod forged_evidence;
mod forged_tally;
mod forget;
mod fork_parent;
mod future_terms;
mod hidden_lock;
mod impersonate;
mod junk_batches;
mod lossy;
mod low_new_term;
mod lying_clock;
mod lying_height;
mod lying_reads;
mod lying_sync;
mod mutate;
mod oversized;
mod relabel;
mod replay;
mod selective_collector;
mod selective_send;
mod silent;
mod silent_collector;
mod slow;
mod split_routes;
mod tally;
mod together;
mod twin;
mod withhold_certificates;
mod wrong_state;

use std::sync::Arc;

use bftd_core::{
    ballot::{Ballot, BallotKind, Vote},
    block::{Block, BlockRef, Proposal},
    crypto::Signer,
    durable::Durable,
    ids::{MemberId, Now, Term},
    limits::Timing,
    membership::Membership,
    message::{Append, Certificates, Message, Route},
    verify::Verifier,
};

pub use fault::{Fault, UnknownFault, adversary};
pub use twin::{Sides, Twin};

/// What an adversary is made of.
#[derive(Clone)]
pub struct Liar {
    /// The member that lies.
    pub me: MemberId,
    /// All members.
    pub members: Arc<Membership>,
    /// The liar's own key.
    pub signer: Arc<dyn Signer>,
    /// What tells true messages from false ones, for a liar that runs a replica of its own.
    pub verifier: Arc<Verifier>,
    /// The times that its replica lives by.
    pub timing: Timing,
}

/// Something that leaves a liar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// To whom.
    pub to: MemberId,
    /// What.
    pub content: Content,
    /// How much later, in microseconds.
    pub delay_us: u64,
}

/// What is in a parcel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A message.
    Message(Message),
    /// What is no message at all, or too large a one.
    Bytes(Vec<u8>),
}

/// A member that misbehaves. What is not overridden is honest.
pub trait Adversary: Send {
    /// What leaves instead of a message that the honest replica sends to `to`.
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        vec![Parcel::now(to, message.clone())]
    }

    /// Whether the honest replica gets a message that came from `from`.
    fn hears(&mut self, from: MemberId, message: &Message) -> bool {
        let _ = (from, message);
        true
    }

    /// What leaves because a message has come from `from`, heard or not.
    fn incoming(&mut self, from: MemberId, message: &Message) -> Vec<Parcel> {
        let _ = (from, message);
        Vec::new()
    }

    /// What leaves because time passes; called at every tick.
    fn tick(&mut self, now: Now) -> Vec<Parcel> {
        let _ = now;
        Vec::new()
    }

    /// What the replica finds on its disk when it starts again.
    fn restart(&mut self, durable: &mut Durable) {
        let _ = durable;
    }

    /// What its wall clock says, in milliseconds since the Unix epoch.
    fn unix_ms(&self, honest: u64) -> u64 {
        honest
    }
}

impl Parcel {
    /// A message that leaves at once.
    pub fn now(to: MemberId, message: Message) -> Self {
        Self { to, content: Content::Message(message), delay_us: 0 }
    }

    /// Bytes that leave at once.
    pub fn bytes(to: MemberId, bytes: Vec<u8>) -> Self {
        Self { to, content: Content::Bytes(bytes), delay_us: 0 }
    }

    /// The same, later.
    pub fn after(self, delay_us: u64) -> Self {
        Self { delay_us: self.delay_us.saturating_add(delay_us), ..self }
    }
}

/// What liars do with what they are made of.
impl Liar {
    fn others(&self) -> impl Iterator<Item = MemberId> + '_ {
        self.members.ids().filter(|id| *id != self.me)
    }

    fn to_others(&self, message: &Message) -> Vec<Parcel> {
        self.others().map(|to| Parcel::now(to, message.clone())).collect()
    }

    fn leads(&self, term: Term) -> bool {
        self.members.leader(term) == self.me
    }

    fn ballot(&self, kind: BallotKind, block: BlockRef) -> Ballot {
        Ballot { kind, epoch: self.members.epoch(), block }
    }

    fn vote(&self, ballot: Ballot) -> Vote {
        Vote::sign(self.members.cluster(), ballot, self.me, &*self.signer)
    }

    /// A block of its own: it gathers the votes itself.
    fn append(&self, block: Arc<Block>, certificates: Certificates) -> Append {
        let signature = self.signer.sign(&Proposal::signed_bytes(block.header()));
        Append { block, signature, certificates, votes_to: Route::Leader }
    }

    /// Whether the honest replica broadcasts this certificate because it has gathered the votes for another leader.
    fn collects(&self, message: &Message) -> bool {
        matches!(message, Message::Certificate(it) if !self.leads(it.block().term))
    }
}

#[cfg(test)]
mod tests;
