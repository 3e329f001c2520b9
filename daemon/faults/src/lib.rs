//! Adversaries, named by misbehaviour, one file each.
//!
//! An [`Adversary`] wraps an honest replica: it sees every message that would leave and every message that comes in, and says
//! what really leaves. It may sign with the replica's key, and it knows its own key only. The honest core contains no line of
//! this.

mod double_voter;
mod equivocating_leader;
mod forgetful_term_voter;
mod low_new_term;
mod lying_reader;
mod tally;

use std::sync::Arc;

use bftd_core::{crypto::Signer, ids::MemberId, membership::Membership, message::Message};

pub use double_voter::DoubleVoter;
pub use equivocating_leader::EquivocatingLeader;
pub use forgetful_term_voter::ForgetfulTermVoter;
pub use low_new_term::LowNewTerm;
pub use lying_reader::{LyingReader, ReadLie};

/// What an adversary is made of.
#[derive(Clone)]
pub struct Liar {
    /// The member that lies.
    pub me: MemberId,
    /// All members.
    pub members: Arc<Membership>,
    /// The liar's own key.
    pub signer: Arc<dyn Signer>,
}

/// A member that misbehaves.
pub trait Adversary: Send {
    /// What leaves instead of `message`, which the honest replica sends to `to`.
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Message>;

    /// What leaves because `message` has come from `from`. The honest replica gets it too.
    fn incoming(&mut self, from: MemberId, message: &Message) -> Vec<(MemberId, Message)>;
}
