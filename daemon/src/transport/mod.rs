//! Frames between members, over QUIC.
//!
//! - Each node dials every other member, and only sends on what it dialled; it only receives on what it accepted. So there
//!   is no choice between two connections of a pair to agree on, and a fault in one direction stays in that direction.
//! - A connection has two one-way streams, the [`Lane`]s: stream 0 for votes, which goes first, and stream 1 for blocks.
//! - Frames of one lane arrive in the order in which they were sent. Some may be missing: those that a full queue refused
//!   (`queue`), and those under way when a connection broke. Nothing is sent again here; replicas do that.
//! - Members are known by their keys alone (`tls`). At most one incoming connection of a member lives, the newest.
//! - A receiver that is slow slows down its sender: `deliver` is awaited, then QUIC's window fills, then the sender's
//!   queue.
//! - What a peer does wrong is counted and closes its connection; it may dial again.
//!
//! Path of a frame: [`Transport::send`] → queue → the peer's task (`dial`) → QUIC → one task per lane (`listen`) →
//! [`Deliver::deliver`].

mod dial;
mod frame;
pub(crate) mod listen;
pub(crate) mod notice;
mod peer;
mod queue;
pub(crate) mod settings;
pub(crate) mod tls;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bftd_core::{crypto::PublicKey, ids::MemberId, limits::MAX_MESSAGE, membership::Membership};
use bytes::Bytes;
use quinn::{Endpoint, TokioRuntime, VarInt};
use tokio::{task::JoinSet, time::timeout};

use self::{notice::Notice, peer::Peer};
pub use self::{peer::PeerStatus, peer::Traffic, tls::TlsError};
use crate::identity::Identity;

/// How long [`Transport::shutdown`] waits for the last packets to leave.
const SHUTDOWN_WAIT: Duration = Duration::from_millis(500);

/// For how long after the start others may still be about to start.
const BEGINNING: Duration = Duration::from_secs(10);

/// Which of a connection's two streams a frame takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Small messages that decide: sent first.
    Votes,
    /// Messages with payloads.
    Bulk,
}

/// What to connect.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// This node's number.
    pub me: MemberId,
    /// All members, with this node.
    pub members: Arc<Membership>,
    /// What members are told that ask as if the cluster were being formed: one that crashed then needs it.
    pub welcome: Bytes,
    /// The UDP address to listen on and to dial from.
    pub listen: SocketAddr,
}

/// Takes what comes in.
pub trait Deliver: Send + Sync + 'static {
    /// Takes a frame of a member: at most [`MAX_MESSAGE`] bytes that nobody has looked at. Frames of one member and lane
    /// come one at a time; until the future is done, that member's lane waits. The future is dropped unfinished when
    /// the connection ends.
    fn deliver(&self, from: MemberId, lane: Lane, frame: Bytes) -> impl Future<Output = ()> + Send;
}

/// Why the transport can't start.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The configuration names this node as somebody who is no member.
    #[error("member {me} is not among the cluster's members")]
    NotAMember {
        /// The number.
        me: MemberId,
    },
    /// The identity is not that of the member that this node is said to be.
    #[error(
        "this node's key is {found}, but member {me} has the key {expected}: the data directory is another member's, or \
         its identity.key was lost; use the right directory, or restore the key from a backup"
    )]
    OtherKey {
        /// The number.
        me: MemberId,
        /// The member's key.
        expected: PublicKey,
        /// This node's key.
        found: PublicKey,
    },
    /// The address can't be listened on.
    #[error("cannot listen on {address} (UDP): {source}. Is another daemon running there?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS can't be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] TlsError),
}

/// How many connections were refused since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// The other side, dialling or dialled, did not prove that it is the member that it should be.
    pub strangers: u64,
    /// It is of another cluster, or speaks another version of the protocol.
    pub other_cluster: u64,
    /// It dialled while too many handshakes were under way.
    pub overload: u64,
}

/// The connections to all peers. Dropping it closes them.
pub struct Transport {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    tasks: Mutex<JoinSet<()>>,
}

/// What all tasks of a transport share.
struct Shared {
    members: Arc<Membership>,
    welcome: Bytes,
    started: Instant,
    /// All members but this node, in the order of their ids.
    peers: Vec<Arc<Peer>>,
    strangers: Counted,
    other_cluster: Counted,
    overload: Counted,
}

/// Refusals of one kind.
#[derive(Default)]
struct Counted {
    count: AtomicU64,
    notice: Notice,
}

/// Why we close a connection: the code that the peer sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum CloseCode {
    /// This node stops.
    Shutdown = 0,
    /// The member has dialled again.
    Replaced = 1,
    /// A frame over the limit.
    Oversized = 2,
    /// A stream ended, or one too many began.
    Protocol = 3,
}

impl Transport {
    /// Listens, and begins to dial all other members, for as long as it lives.
    ///
    /// # Errors
    /// See [`TransportError`].
    pub async fn start<D: Deliver>(
        config: TransportConfig,
        identity: &Identity,
        deliver: Arc<D>,
    ) -> Result<Self, TransportError> {
        let TransportConfig { me, members, welcome, listen } = config;
        let member = members.get(me).ok_or(TransportError::NotAMember { me })?;
        if member.key != identity.public_key() {
            let (expected, found) = (member.key, identity.public_key());
            return Err(TransportError::OtherKey { me, expected, found });
        }
        let server = settings::server(tls::server_config(identity, me, &members)?, members.n());
        let endpoint = UdpSocket::bind(listen)
            .and_then(|socket| {
                settings::enlarge_buffers(&socket);
                Endpoint::new(settings::endpoint(identity), Some(server), socket, Arc::new(TokioRuntime))
            })
            .map_err(|source| TransportError::Listen { address: listen, source })?;

        let others = members.members().iter().filter(|member| member.id != me);
        let shared = Arc::new(Shared {
            peers: others.map(|member| Arc::new(Peer::new(member))).collect(),
            members,
            welcome,
            started: Instant::now(),
            strangers: Counted::default(),
            other_cluster: Counted::default(),
            overload: Counted::default(),
        });
        let mut tasks = JoinSet::new();
        for peer in &shared.peers {
            let tls = tls::client_config(identity, shared.members.cluster(), peer.key)?;
            let client = settings::client(tls, shared.members.n());
            tasks.spawn(dial::keep_dialling(shared.clone(), peer.clone(), endpoint.clone(), client));
        }
        tasks.spawn(listen::keep_accepting(shared.clone(), endpoint.clone(), deliver));
        Ok(Self { shared, endpoint, tasks: Mutex::new(tasks) })
    }

    /// Queues a frame for a member. Never waits; drops by the policy in `queue`. A frame over [`MAX_MESSAGE`] is
    /// dropped and counted, one for nobody (this node itself, or no member) is ignored.
    pub fn send(&self, to: MemberId, lane: Lane, frame: Bytes) {
        let Some(peer) = self.shared.peer(to) else {
            return;
        };
        if frame.len() > MAX_MESSAGE {
            tracing::error!(%to, ?lane, bytes = frame.len(), "dropped a message of ours that is over the size limit");
            peer.queue(lane).count_dropped();
            return;
        }
        peer.queue(lane).push(frame);
    }

    /// How each other member is connected, in the order of their ids.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.shared.peers.iter().map(|peer| peer.status()).collect()
    }

    /// How many connections were refused.
    pub fn refused(&self) -> Refused {
        let count = |counted: &Counted| counted.count.load(Ordering::Relaxed);
        Refused {
            strangers: count(&self.shared.strangers),
            other_cluster: count(&self.shared.other_cluster),
            overload: count(&self.shared.overload),
        }
    }

    /// The UDP address that is listened on.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Closes all connections, tells the peers so, and waits briefly until that has left. What is still queued is dropped.
    pub async fn shutdown(&self) {
        self.close();
        // A peer that is not there never acknowledges; there is nothing more to do for it.
        let _ = timeout(SHUTDOWN_WAIT, self.endpoint.wait_idle()).await;
    }

    fn close(&self) {
        // No code panics while it holds the lock.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.endpoint.close(CloseCode::Shutdown.into(), b"this node stops");
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn peer(&self, id: MemberId) -> Option<&Arc<Peer>> {
        let at = self.peers.binary_search_by_key(&id, |peer| peer.id).ok()?;
        self.peers.get(at)
    }

    /// A daemon that shares a past with us may be a moment behind: where a cluster was just formed, that is no news.
    fn count_other_cluster(&self, log: impl FnOnce(u64)) {
        let is_new = self.started.elapsed() < BEGINNING;
        self.other_cluster.count(|left_out| {
            if !is_new {
                log(left_out)
            }
        });
    }
}

impl Counted {
    /// Counts one more, and calls `log` with the number of those that went unmentioned, unless it was called just now.
    fn count(&self, log: impl FnOnce(u64)) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.notice.give(log);
    }
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        Self::from_u32(code as u32)
    }
}
