//! What is known of one peer: its queues, its two connections, its counters.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bftd_core::{crypto::PublicKey, ids::MemberId, membership::Member};
use quinn::Connection;
use tokio::sync::Notify;

use super::{CloseCode, Lane, notice::Notice, queue::Queue};

/// A peer as seen from here, at one moment.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// The peer.
    pub id: MemberId,
    /// Whether what we send gets there: our connection to it stands, and it has accepted us.
    pub connected: bool,
    /// Whether its connection to us stands.
    pub inbound: bool,
    /// The round trip time of our connection, if it stands.
    pub round_trip: Option<Duration>,
    /// When its last frame came.
    pub last_received: Option<Instant>,
    /// What was handed to QUIC for it since the start. Some of it may not have arrived.
    pub sent: Traffic,
    /// What came from it since the start.
    pub received: Traffic,
    /// Frames for it that were dropped: too many or too old, or over the size limit.
    pub dropped: u64,
    /// Frames over the size limit that it began to send.
    pub oversized: u64,
    /// Other breaches of the transport's rules.
    pub breaches: u64,
}

/// Frames and bytes of them, without headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames.
    pub frames: u64,
    /// Bytes.
    pub bytes: u64,
}

/// One other member.
pub(super) struct Peer {
    pub(super) id: MemberId,
    pub(super) key: PublicKey,
    pub(super) address: SocketAddr,
    /// Tells the dialler that the peer is up: it has just dialled us.
    pub(super) is_up: Notify,
    pub(super) sent: Counter,
    pub(super) received: Counter,
    pub(super) oversized: AtomicU64,
    pub(super) breaches: AtomicU64,
    pub(super) breach_notice: Notice,
    votes: Queue,
    bulk: Queue,
    links: Mutex<Links>,
}

/// [`Traffic`] that goes on.
#[derive(Default)]
pub(super) struct Counter {
    frames: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Default)]
struct Links {
    outgoing: Option<Connection>,
    incoming: Option<Connection>,
    last_received: Option<Instant>,
}

impl Peer {
    pub(super) fn new(member: &Member) -> Self {
        Self {
            id: member.id,
            key: member.key,
            address: member.address,
            is_up: Notify::new(),
            sent: Counter::default(),
            received: Counter::default(),
            oversized: AtomicU64::new(0),
            breaches: AtomicU64::new(0),
            breach_notice: Notice::default(),
            votes: Queue::new(Lane::Votes),
            bulk: Queue::new(Lane::Bulk),
            links: Mutex::default(),
        }
    }

    pub(super) fn queue(&self, lane: Lane) -> &Queue {
        match lane {
            Lane::Votes => &self.votes,
            Lane::Bulk => &self.bulk,
        }
    }

    /// Our connection to the peer stands, or is gone.
    pub(super) fn set_outgoing(&self, connection: Option<Connection>) {
        for queue in [&self.votes, &self.bulk] {
            queue.set_connected(connection.is_some());
        }
        self.links().outgoing = connection;
    }

    /// The peer has dialled us: an older connection of it ends.
    pub(super) fn set_incoming(&self, connection: Connection) {
        let older = self.links().incoming.replace(connection);
        if let Some(older) = older {
            older.close(CloseCode::Replaced.into(), b"replaced by a newer connection of the same member");
        }
        self.is_up.notify_one();
    }

    /// Frames have come.
    pub(super) fn note_received(&self, at: Instant) {
        self.links().last_received = Some(at);
    }

    pub(super) fn status(&self) -> PeerStatus {
        let links = self.links();
        let outgoing = links.outgoing.as_ref().filter(|connection| is_confirmed(connection));
        PeerStatus {
            id: self.id,
            connected: outgoing.is_some(),
            inbound: links.incoming.as_ref().is_some_and(|connection| connection.close_reason().is_none()),
            round_trip: outgoing.map(Connection::rtt),
            last_received: links.last_received,
            sent: self.sent.total(),
            received: self.received.total(),
            dropped: self.votes.dropped() + self.bulk.dropped(),
            oversized: self.oversized.load(Ordering::Relaxed),
            breaches: self.breaches.load(Ordering::Relaxed),
        }
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        // No code panics while it holds the lock; if one did, the links would still be whole.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counter {
    pub(super) fn add(&self, frames: u64, bytes: u64) {
        self.frames.fetch_add(frames, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn total(&self) -> Traffic {
        Traffic { frames: self.frames.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// Whether a connection that we dialled stands and the peer has let us in. In TLS 1.3 the dialler is done before the other
/// side has looked at its certificate; QUIC's HANDSHAKE_DONE says that it has.
pub(super) fn is_confirmed(connection: &Connection) -> bool {
    connection.close_reason().is_none() && connection.stats().frame_rx.handshake_done > 0
}
