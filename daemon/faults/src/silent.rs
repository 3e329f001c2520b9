//! Hears everything and says nothing.
//! Defence: the correct members are a quorum without it, and a silent leader is suspected.

use bftd_core::{ids::MemberId, message::Message};

use crate::{Adversary, Parcel};

/// See the module's header.
pub(crate) struct Silent;

impl Adversary for Silent {
    fn outgoing(&mut self, _to: MemberId, _message: &Message) -> Vec<Parcel> {
        Vec::new()
    }
}
