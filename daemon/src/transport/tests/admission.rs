//! Who is let in, and what ends a connection.

use super::*;

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
    let config = TransportConfig { me: MemberId(2), members, welcome: Bytes::new(), listen: addresses[1] };
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

    // The real member 2 dials again and again, and may replace the liar before its frame is seen.
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < PATIENCE, "never seen");
        let (_endpoint, liar) = cluster.dial_as(cluster.identity(2), 1).await;
        if let Ok(mut stream) = liar.open_uni().await {
            let _ = stream.write_all(&(MAX_MESSAGE as u32 + 1).to_le_bytes()).await;
        }
        let code = closed_with(&liar).await;
        if code == CloseCode::Oversized as u64 {
            break;
        }
        assert_eq!(code, CloseCode::Replaced as u64);
    }
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

/// A relay that lets a dialler begin a handshake and never end it: what the server answers is lost, but for the demand to
/// prove an address where `pass_retry` says so.
async fn black_hole(server: SocketAddr, pass_retry: bool) -> SocketAddr {
    let inside = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let outside = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = inside.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut there, mut back) = ([0; 2048], [0; 2048]);
        let mut dialler = None;
        loop {
            tokio::select! {
                Ok((length, from)) = inside.recv_from(&mut there) => {
                    dialler = Some(from);
                    outside.send_to(&there[..length], server).await.unwrap();
                }
                Ok((length, _)) = outside.recv_from(&mut back) => {
                    // RFC 9000, §17.2.5: a long header of type 3.
                    if pass_retry && back[0] & 0xf0 == 0xf0 {
                        inside.send_to(&back[..length], dialler.unwrap()).await.unwrap();
                    }
                }
            }
        }
    });
    address
}

/// Begins handshakes with node 1 that never end.
async fn begin_handshakes(
    cluster: &Cluster,
    count: usize,
    pass_retry: bool,
) -> (Endpoint, Vec<quinn::Connecting>) {
    let stranger = new_identity();
    let tls =
        tls::client_config(&stranger, cluster.members.cluster(), cluster.identity(1).public_key()).unwrap();
    let config = settings::client(tls, 2);
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut begun = Vec::new();
    for _ in 0..count {
        let relay = black_hole(cluster.address(1), pass_retry).await;
        begun.push(endpoint.connect_with(config.clone(), relay, "x").unwrap());
    }
    sleep(Duration::from_millis(300)).await;
    (endpoint, begun)
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_addresses_do_not_keep_members_out() {
    let cluster = Cluster::new(2);
    let node = cluster.start(1).await;
    let _flood = begin_handshakes(&cluster, 40, false).await;
    let started = Instant::now();
    let (_endpoint, _connection) = cluster.dial_as(cluster.identity(2), 1).await;
    eventually("let in", || node.peer(2).inbound).await;
    assert!(started.elapsed() < Duration::from_secs(2), "while the flood's handshakes are under way");
    assert_eq!(node.transport.refused(), Refused::default(), "there was always room");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_handshakes_is_bounded_and_passes() {
    let cluster = Cluster::new(2);
    let node = cluster.start(1).await;
    let flood = begin_handshakes(&cluster, 40, true).await;
    assert!(node.transport.refused().overload >= 40 - 2 * 8, "{:?}", node.transport.refused());
    drop(flood);
    let second = cluster.start(2).await;
    eventually("connected", || node.peer(2).inbound && second.peer(1).connected).await;
}
