//! Where consensus messages leave the daemon: as the replica meant them, or as injected faults have them.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bftd_core::{
    ids::{MemberId, Now},
    membership::Membership,
    message::Message,
    replica::To,
};
use bftd_faults::{Content, Parcel};
use bytes::Bytes;

use crate::{
    faults::Faults,
    peers::Frame,
    transport::{Lane, Transport},
};

/// How many bytes may wait to be late at once, by an injected fault. More are lost.
const MAX_LATE_BYTES: usize = 64 << 20;
/// What a frame that waits costs beside its bytes.
const LATE_OVERHEAD: usize = 512;

/// The way to the other members.
pub struct Outlet {
    others: Vec<MemberId>,
    transport: Arc<Transport>,
    faults: Arc<Faults>,
    late_bytes: Arc<AtomicUsize>,
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("faults", &self.faults).finish_non_exhaustive()
    }
}

impl Outlet {
    /// From `me` to all others of `members`.
    pub fn new(me: MemberId, members: &Membership, transport: Arc<Transport>, faults: Arc<Faults>) -> Self {
        let others = members.ids().filter(|id| *id != me).collect();
        Self { others, transport, faults, late_bytes: Arc::default() }
    }

    /// Sends a message, or what the faults make of it.
    pub fn send(&self, to: To, message: &Message) {
        let to = match &to {
            To::Member(member) => std::slice::from_ref(member),
            To::Others => &self.others,
        };
        if self.faults.any() {
            for member in to {
                self.dispatch(self.faults.outgoing(*member, message));
            }
            return;
        }
        let (lane, frame) = packed(message);
        for member in to {
            self.transport.send(*member, lane, frame.clone());
        }
    }

    /// Whether the replica gets a message that has come. Faults may answer it on their own.
    pub fn hears(&self, from: MemberId, message: &Message) -> bool {
        if !self.faults.any() {
            return true;
        }
        let (hears, parcels) = self.faults.incoming(from, message);
        self.dispatch(parcels);
        hears
    }

    /// Time passes: faults end, and some lies come of themselves.
    pub fn tick(&self, now: Now) {
        if self.faults.any() {
            self.dispatch(self.faults.tick(now));
        }
    }

    /// What the clocks say to the replica.
    pub fn clock(&self, now: Now) -> Now {
        self.faults.clock(now)
    }

    /// Sends parcels, late ones late.
    fn dispatch(&self, parcels: Vec<Parcel>) {
        for Parcel { to, content, delay_us } in parcels {
            let (lane, frame) = match content {
                Content::Message(message) => packed(&message),
                Content::Bytes(bytes) => (Lane::Bulk, Frame::of_bytes(&bytes)),
            };
            if delay_us == 0 {
                self.transport.send(to, lane, frame);
                continue;
            }
            let bytes = frame.len() + LATE_OVERHEAD;
            if self.late_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_LATE_BYTES {
                self.late_bytes.fetch_sub(bytes, Ordering::Relaxed);
                continue;
            }
            let (transport, late_bytes) = (Arc::clone(&self.transport), Arc::clone(&self.late_bytes));
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_micros(delay_us)).await;
                late_bytes.fetch_sub(bytes, Ordering::Relaxed);
                transport.send(to, lane, frame);
            });
        }
    }
}

/// A message as a frame, and the lane that it takes.
fn packed(message: &Message) -> (Lane, Bytes) {
    let lane = if message.is_bulk() { Lane::Bulk } else { Lane::Votes };
    (lane, Frame::of_message(message))
}
