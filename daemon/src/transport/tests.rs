//! Real endpoints on the loopback interface.
#![allow(clippy::unwrap_used)]

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
        self.frames.send((from, lane, frame)).unwrap();
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
        TransportConfig { me: MemberId(id), members: self.members.clone(), listen: self.address(id) }
    }

    async fn start(&self, id: u8) -> Node {
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

async fn frames_arrive_in_order(n: usize) {
    const FRAMES: u32 = 2_000;
    let cluster = Cluster::new(n);
    let mut nodes = cluster.start_all().await;
    let size = |lane, number: u32| match lane {
        Lane::Votes => 4 + number as usize % 300,
        Lane::Bulk => 4 + if number.is_multiple_of(100) { 100_000 } else { number as usize % 20_000 },
    };
    for number in 0..FRAMES {
        for (node, from) in nodes.iter().zip(1..) {
            for to in (1..=n as u8).filter(|to| *to != from) {
                for lane in [Lane::Votes, Lane::Bulk] {
                    let mut frame = vec![from; size(lane, number)];
                    frame[..4].copy_from_slice(&number.to_le_bytes());
                    node.send(to, lane, &frame);
                }
            }
        }
        if number.is_multiple_of(50) {
            sleep(Duration::from_millis(1)).await;
        }
    }
    for (node, id) in nodes.iter_mut().zip(1..) {
        let mut expected = HashMap::new();
        for _ in 0..(n - 1) * 2 * FRAMES as usize {
            let (from, lane, frame) = node.next().await;
            let number: &mut u32 = expected.entry((from, lane)).or_default();
            assert_eq!(frame[..4], number.to_le_bytes(), "from {from} to {id}, {lane:?}");
            assert!(frame.len() == size(lane, *number) && frame[4..].iter().all(|byte| *byte == from.0));
            *number += 1;
        }
        for peer in node.transport.peers() {
            assert_eq!((peer.dropped, peer.oversized, peer.breaches), (0, 0, 0));
            assert_eq!(peer.received.frames, u64::from(2 * FRAMES));
            assert_eq!(peer.sent, peer.received, "all send alike");
            assert!(peer.last_received.is_some() && peer.round_trip.is_some());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_arrive_in_order_between_two() {
    frames_arrive_in_order(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_arrive_in_order_between_four() {
    frames_arrive_in_order(4).await;
}

#[tokio::test]
async fn a_stranger_that_dials_gets_an_alert() {
    let cluster = Cluster::new(2);
    let node = cluster.start(1).await;
    let (_endpoint, connection) = cluster.dial_as(&new_identity(), 1).await;
    assert_eq!(closed_with(&connection).await, CERTIFICATE_UNKNOWN);
    assert_eq!(node.transport.refused(), Refused { strangers: 1, ..Refused::default() });

    let (_endpoint, connection) = cluster.dial_as(cluster.identity(1), 1).await;
    assert_eq!(closed_with(&connection).await, CERTIFICATE_UNKNOWN, "nor may a second holder of our own key");
    assert_eq!(node.transport.refused().strangers, 2);
    assert!(!node.peer(2).inbound);
}

#[tokio::test]
async fn a_members_certificate_without_its_key_is_worthless() {
    let cluster = Cluster::new(2);
    let node = cluster.start(1).await;
    let (member, thief) = (cluster.identity(2), new_identity());
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let thiefs_key = provider.key_provider.load_private_key(thief.private_key()).unwrap();
    let stolen = CertifiedKey::new(vec![member.certificate()], thiefs_key);
    let (_endpoint, connection) = cluster.dial_with(1, client_tls(&cluster, Some(stolen))).await;
    assert_eq!(closed_with(&connection).await, DECRYPT_ERROR);
    assert_eq!(node.transport.refused().strangers, 1);
    assert!(!node.peer(2).inbound);
}

#[tokio::test]
async fn other_certificates_are_refused() {
    let cluster = Cluster::new(2);
    let node = cluster.start(1).await;
    let provider = rustls::crypto::aws_lc_rs::default_provider();

    let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&p256).unwrap();
    let key = provider
        .key_provider
        .load_private_key(PrivatePkcs8KeyDer::from(p256.serialize_der()).into())
        .unwrap();
    let not_ed25519 = CertifiedKey::new(vec![certificate.der().clone()], key);

    let member = cluster.identity(2);
    let key = provider.key_provider.load_private_key(member.private_key()).unwrap();
    let two = CertifiedKey::new(vec![member.certificate(), member.certificate()], key.clone());
    let garbage = CertifiedKey::new(vec![vec![0x30, 0x03, 0x02, 0x01, 0x00].into()], key);

    for (count, certified) in (1..).zip([Some(two), Some(garbage), Some(not_ed25519), None]) {
        let (_endpoint, connection) = cluster.dial_with(1, client_tls(&cluster, certified)).await;
        closed_with(&connection).await;
        assert_eq!(node.transport.refused().strangers, count);
        assert!(!node.peer(2).inbound);
    }
}

/// A dialler's TLS that takes any server and shows any certificate, or none.
fn client_tls(cluster: &Cluster, certified: Option<CertifiedKey>) -> quinn::crypto::rustls::QuicClientConfig {
    #[derive(Debug)]
    struct Show(Option<SingleCertAndKey>);
    impl ResolvesClientCert for Show {
        fn resolve(&self, hints: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            // A resolver of rustls checks the schemes; this one shows what it has.
            self.0.as_ref()?.resolve(hints, &[rustls::SignatureScheme::ED25519])
        }
        fn has_certs(&self) -> bool {
            self.0.is_some()
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(tls::exact_key(cluster.identity(1).public_key()))
        .with_client_cert_resolver(Arc::new(Show(certified.map(SingleCertAndKey::from))));
    config.alpn_protocols = vec![tls::alpn(cluster.members.cluster()).into_bytes()];
    config.try_into().unwrap()
}

#[tokio::test]
async fn a_stranger_at_a_members_address_is_refused() {
    let cluster = Cluster::new(3);
    let stranger = new_identity();
    let tls = tls::server_config(&stranger, MemberId(2), &cluster.members).unwrap();
    let impostor = Endpoint::server(settings::server(tls, 3), cluster.address(2)).unwrap();
    // And member 3 at another member's address: a member, but not the one that was dialled.
    let node = cluster.start(1).await;
    let incoming = timeout(PATIENCE, impostor.accept()).await.unwrap().unwrap();
    assert!(incoming.await.is_err(), "we end the handshake");
    eventually("counted", || node.transport.refused().strangers > 0).await;
    assert!(!node.peer(2).connected && node.peer(2).sent == Traffic::default());
}

#[tokio::test]
async fn another_member_at_a_members_address_is_refused() {
    let cluster = Cluster::new(3);
    let tls = tls::server_config(cluster.identity(3), MemberId(3), &cluster.members).unwrap();
    let misplaced = Endpoint::server(settings::server(tls, 3), cluster.address(2)).unwrap();
    let node = cluster.start(1).await;
    let incoming = timeout(PATIENCE, misplaced.accept()).await.unwrap().unwrap();
    assert!(incoming.await.is_err(), "we end the handshake");
    eventually("counted", || node.transport.refused().strangers > 0).await;
    assert!(!node.peer(2).connected && !node.peer(3).connected);
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let cluster = Cluster::new(2);
    let addresses = [cluster.address(1), cluster.address(2)];
    let members = membership(&cluster.identities, &addresses, 1);
    let node = cluster.start(1).await;
    let (frames, _received) = mpsc::unbounded_channel();
    let inbox = Arc::new(Inbox { frames, bulk_open: AtomicBool::new(true), gate: Semaphore::new(0) });
    let config = TransportConfig { me: MemberId(2), members, listen: addresses[1] };
    let other = Transport::start(config, cluster.identity(2), inbox).await.unwrap();
    eventually("both count", || {
        node.transport.refused().other_cluster > 0 && other.refused().other_cluster > 0
    })
    .await;
    assert_eq!(node.transport.refused().strangers, 0);
    assert!(!node.peer(2).connected && !node.peer(2).inbound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_frame_ends_the_connection_and_the_member_comes_back() {
    let cluster = Cluster::new(2);
    let mut nodes = cluster.start_all().await;
    let mut second = nodes.pop().unwrap();
    let mut first = nodes.pop().unwrap();

    let (_endpoint, liar) = cluster.dial_as(cluster.identity(2), 1).await;
    let mut stream = liar.open_uni().await.unwrap();
    stream.write_all(&(MAX_MESSAGE as u32 + 1).to_le_bytes()).await.unwrap();
    assert_eq!(closed_with(&liar).await, CloseCode::Oversized as u64);
    eventually("counted", || first.peer(2).oversized == 1).await;

    second.send_until_received(&mut first, 1, b"after").await;
    first.send_until_received(&mut second, 2, b"still").await;
    assert_eq!((first.peer(2).oversized, first.peer(2).breaches), (1, 0));

    let ours = vec![0; MAX_MESSAGE + 1];
    first.send(2, Lane::Bulk, &ours);
    assert_eq!(first.peer(2).dropped, 1, "our own oversized frames don't leave");
}

#[tokio::test]
async fn an_ended_lane_is_a_breach() {
    let cluster = Cluster::new(2);
    let node = cluster.start(1).await;
    let (_endpoint, connection) = cluster.dial_as(cluster.identity(2), 1).await;
    let mut stream = connection.open_uni().await.unwrap();
    stream.write_all(&[1, 0]).await.unwrap();
    stream.finish().unwrap();
    assert_eq!(closed_with(&connection).await, CloseCode::Protocol as u64);
    assert_eq!(node.peer(2).breaches, 1);
    assert_eq!(node.peer(2).received.frames, 0);
}

#[tokio::test]
async fn the_newest_connection_of_a_member_lives() {
    let cluster = Cluster::new(2);
    let mut node = cluster.start(1).await;
    let (_endpoint, older) = cluster.dial_as(cluster.identity(2), 1).await;
    eventually("let in", || node.peer(2).inbound).await;
    let (_endpoint, newer) = cluster.dial_as(cluster.identity(2), 1).await;
    assert_eq!(closed_with(&older).await, CloseCode::Replaced as u64);
    let mut stream = newer.open_uni().await.unwrap();
    stream.write_all(&[1, 0, 0, 0, b'x']).await.unwrap();
    assert_eq!(node.next().await, (MemberId(2), Lane::Votes, Bytes::from_static(b"x")));
    assert!(node.peer(2).inbound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_down_costs_nothing_and_comes_back_soon() {
    let cluster = Cluster::new(2);
    let first = cluster.start(1).await;
    let started = Instant::now();
    let frame = Bytes::from(vec![0; 1 << 20]);
    for _ in 0..1_000 {
        first.transport.send(MemberId(2), Lane::Bulk, frame.clone());
        first.send(2, Lane::Votes, b"lost");
    }
    assert!(started.elapsed() < Duration::from_secs(1), "send never waits");
    assert!(first.peer(2).dropped >= 1_000 - 32, "the queue is bounded");
    assert!(!first.peer(2).connected);
    // Long enough for the waits to have grown to their longest.
    sleep(Duration::from_secs(6)).await;

    let mut second = cluster.start(2).await;
    let started = Instant::now();
    first.send_until_received(&mut second, 2, b"found").await;
    assert!(started.elapsed() < Duration::from_secs(3), "took {:?}", started.elapsed());
    assert_eq!(second.peer(1).received.frames, first.peer(2).sent.frames, "and nothing stale came with it");
    assert!(second.peer(1).received.bytes < 1 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_the_same_key_is_noticed_at_once() {
    let cluster = Cluster::new(2);
    let mut nodes = cluster.start_all().await;
    let second = nodes.pop().unwrap();
    let mut first = nodes.pop().unwrap();
    for graceful in [true, false] {
        if graceful {
            second.transport.shutdown().await;
            eventually("told", || !first.peer(2).connected && !first.peer(2).inbound).await;
        }
    }
    drop(second);
    sleep(Duration::from_millis(100)).await;
    let mut second = cluster.start(2).await;
    first.send_until_received(&mut second, 2, b"to the new one").await;
    second.send_until_received(&mut first, 1, b"from the new one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_do_not_hold_up_votes() {
    let cluster = Cluster::new(2);
    let mut nodes = cluster.start_all().await;
    let mut second = nodes.pop().unwrap();
    let first = nodes.pop().unwrap();
    second.inbox.bulk_open.store(false, Ordering::Relaxed);

    // The receiver takes no block: its window fills, then our queue, then the newest are dropped.
    let block = Bytes::from(vec![7; 4 << 20]);
    for _ in 0..20 {
        first.transport.send(MemberId(2), Lane::Bulk, block.clone());
    }
    eventually("the window is full", || first.peer(2).sent.bytes >= 4 << 20).await;
    for number in 0..1_000u32 {
        first.send(2, Lane::Votes, &number.to_le_bytes());
        let (_, lane, frame) = second.next().await;
        assert_eq!((lane, frame.as_ref()), (Lane::Votes, &number.to_le_bytes()[..]));
    }
    let dropped = first.peer(2).dropped;
    assert!((1..20).contains(&dropped), "{dropped} dropped");

    second.inbox.bulk_open.store(true, Ordering::Relaxed);
    second.inbox.gate.add_permits(1);
    for _ in 0..20 - dropped {
        assert_eq!(second.next().await, (MemberId(1), Lane::Bulk, block.clone()));
    }
}

#[tokio::test]
async fn a_wrong_start_says_what_is_wrong() {
    let cluster = Cluster::new(2);
    let node = cluster.start(1).await;
    assert_eq!(node.transport.local_address().unwrap(), cluster.address(1));
    let refuse = async |config, identity| {
        Transport::start(config, identity, node.inbox.clone()).await.err().expect("refused")
    };

    let mut config = cluster.config(2);
    config.listen = cluster.address(1);
    let error = refuse(config, cluster.identity(2)).await;
    assert!(
        matches!(error, TransportError::Listen { address, .. } if address == cluster.address(1)),
        "{error}"
    );

    let error = refuse(cluster.config(2), cluster.identity(1)).await;
    assert!(matches!(error, TransportError::OtherKey { me: MemberId(2), .. }), "{error}");

    let mut config = cluster.config(2);
    config.me = MemberId(9);
    let error = refuse(config, cluster.identity(2)).await;
    assert!(matches!(error, TransportError::NotAMember { me: MemberId(9) }), "{error}");

    node.send(1, Lane::Votes, b"to myself");
    node.send(9, Lane::Votes, b"to nobody");
    assert_eq!(node.transport.peers().len(), 1);
}
