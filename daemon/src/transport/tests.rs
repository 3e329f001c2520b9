//! Real endpoints on the loopback interface.
#![allow(clippy::unwrap_used)]

mod admission;
mod traffic;

use std::{
    collections::HashMap,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use bftd_core::{
    membership::{Genesis, Member},
    protocol::Protocol,
};
use quinn::{Connection, ConnectionError};
use rustls::{
    client::ResolvesClientCert,
    pki_types::PrivatePkcs8KeyDer,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};

use super::*;

/// Longer than anything here should take, short enough to see a failure.
const PATIENCE: Duration = Duration::from_secs(10);
const CERTIFICATE_UNKNOWN: u64 = 0x100 + 46;
const DECRYPT_ERROR: u64 = 0x100 + 51;

type Received = (MemberId, Lane, Bytes);

/// Passes frames on; waits on the gate of their lane first.
struct Inbox {
    frames: mpsc::UnboundedSender<Received>,
    bulk_open: AtomicBool,
    gate: Semaphore,
}

impl Deliver for Inbox {
    async fn deliver(&self, from: MemberId, lane: Lane, frame: Bytes) {
        if lane == Lane::Bulk && !self.bulk_open.load(Ordering::Relaxed) {
            self.gate.acquire().await.unwrap().forget();
        }
        // The test may be over already.
        let _ = self.frames.send((from, lane, frame));
    }
}

struct Node {
    transport: Transport,
    received: mpsc::UnboundedReceiver<Received>,
    inbox: Arc<Inbox>,
}

/// Keys and addresses; nothing runs yet.
struct Cluster {
    members: Arc<Membership>,
    identities: Vec<Identity>,
}

fn new_identity() -> Identity {
    Identity::load_or_create(tempfile::tempdir().unwrap().path()).unwrap()
}

fn membership(identities: &[Identity], addresses: &[SocketAddr], created_ms: u64) -> Arc<Membership> {
    let members = identities.iter().zip(addresses).zip(1..);
    let members = members.map(|((identity, &address), id)| Member {
        id: MemberId(id),
        name: format!("node{id}"),
        key: identity.public_key(),
        address,
    });
    let genesis =
        Genesis { name: "test".into(), protocol: Protocol::BftRaft, created_ms, members: members.collect() };
    Arc::new(genesis.membership().unwrap())
}

impl Cluster {
    fn new(n: usize) -> Self {
        let sockets: Vec<_> = (0..n).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let identities: Vec<_> = (0..n).map(|_| new_identity()).collect();
        Self { members: membership(&identities, &addresses, 0), identities }
    }

    fn identity(&self, id: u8) -> &Identity {
        &self.identities[usize::from(id) - 1]
    }

    fn address(&self, id: u8) -> SocketAddr {
        self.members.get(MemberId(id)).unwrap().address
    }

    fn config(&self, id: u8) -> TransportConfig {
        TransportConfig {
            me: MemberId(id),
            members: self.members.clone(),
            welcome: Bytes::from_static(b"welcome"),
            listen: self.address(id),
        }
    }

    async fn start(&self, id: u8) -> Node {
        let address = self.address(id);
        eventually("a former socket is closed", || UdpSocket::bind(address).is_ok()).await;
        let (frames, received) = mpsc::unbounded_channel();
        let inbox = Arc::new(Inbox { frames, bulk_open: AtomicBool::new(true), gate: Semaphore::new(0) });
        let transport = Transport::start(self.config(id), self.identity(id), inbox.clone()).await.unwrap();
        Node { transport, received, inbox }
    }

    async fn start_all(&self) -> Vec<Node> {
        let mut nodes = Vec::new();
        for member in self.members.members() {
            nodes.push(self.start(member.id.0).await);
        }
        for node in &nodes {
            eventually("all are connected", || {
                node.transport.peers().iter().all(|peer| peer.connected && peer.inbound)
            })
            .await;
        }
        nodes
    }

    /// A connection to a member by hand, with whatever TLS.
    async fn dial_with(
        &self,
        to: u8,
        tls: quinn::crypto::rustls::QuicClientConfig,
    ) -> (Endpoint, Connection) {
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = settings::client(tls, self.members.n());
        let connection = endpoint.connect_with(config, self.address(to), "x").unwrap().await.unwrap();
        (endpoint, connection)
    }

    async fn dial_as(&self, identity: &Identity, to: u8) -> (Endpoint, Connection) {
        let key = self.members.get(MemberId(to)).unwrap().key;
        let tls = tls::client_config(identity, self.members.cluster(), key).unwrap();
        self.dial_with(to, tls).await
    }
}

impl Node {
    fn peer(&self, id: u8) -> PeerStatus {
        self.transport.peers().into_iter().find(|peer| peer.id == MemberId(id)).unwrap()
    }

    fn send(&self, to: u8, lane: Lane, frame: &[u8]) {
        self.transport.send(MemberId(to), lane, Bytes::copy_from_slice(frame));
    }

    async fn next(&mut self) -> Received {
        timeout(PATIENCE, self.received.recv()).await.expect("a frame comes").unwrap()
    }

    /// Sends until the peer gets it, as a replica would.
    async fn send_until_received(&self, to: &mut Node, to_id: u8, frame: &[u8]) {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            self.send(to_id, Lane::Votes, frame);
            if let Ok(Some((_, _, received))) = timeout(Duration::from_millis(50), to.received.recv()).await
                && received == frame
            {
                return;
            }
        }
        panic!("the frame never came");
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// The QUIC error that the other side closed the connection with.
async fn closed_with(connection: &Connection) -> u64 {
    match timeout(PATIENCE, connection.closed()).await.expect("the connection is closed") {
        ConnectionError::ConnectionClosed(close) => close.error_code.into(),
        ConnectionError::ApplicationClosed(close) => close.error_code.into(),
        other => panic!("closed otherwise: {other}"),
    }
}
