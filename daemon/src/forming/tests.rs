//! Daemons that form a cluster over real sockets, in one process: whoever lies, is late, or floods.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use bftd_client::{
    forming::{FormRequest, Forming as Shown, Init, Phase, Place},
    protocol::{Failure, Request, Response},
};
use bftd_core::{ids::MemberId, membership::Member, protocol::Protocol};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::{
    crypto::aws_lc_rs::{self, sign::any_eddsa_type},
    pki_types::PrivatePkcs8KeyDer,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::task::JoinSet;

use super::{
    endpoint::{STRANGER_DEADLINE, STRANGERS},
    plan::Gathering,
    wire::{Ask, Candidate},
    *,
};

async fn form(forming: &Forming, request: FormRequest) -> Result<Response, FormFailure> {
    match forming.handle(Request::Form(request)).await {
        Response::Failed(Failure::Forming(why)) => Err(why),
        other => Ok(other),
    }
}

fn place(address: SocketAddr, name: &str) -> Place {
    Place { advertise: Some(address.to_string()), name: Some(name.to_owned()) }
}

async fn join(forming: &Forming, token: &str, address: SocketAddr, name: &str) -> Result<(), FormFailure> {
    let request = FormRequest::Join { token: token.to_owned(), place: place(address, name) };
    form(forming, request).await.map(|_| ())
}

async fn forget(forming: &Forming, name: &str) -> Result<(), FormFailure> {
    form(forming, FormRequest::Forget { name: name.to_owned() }).await.map(|_| ())
}

fn identity() -> (tempfile::TempDir, Arc<Identity>) {
    let directory = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::load_or_create(directory.path()).unwrap());
    (directory, identity)
}

/// A daemon in this process.
struct Host {
    directory: tempfile::TempDir,
    identity: Arc<Identity>,
    forming: Arc<Forming>,
    address: SocketAddr,
}

fn free_address() -> SocketAddr {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Host {
    fn start() -> Self {
        let (directory, identity) = identity();
        let config = NodeConfig::default();
        let forming = Forming::start(&config, directory.path().to_owned(), Arc::clone(&identity)).unwrap();
        Self { directory, identity, forming, address: free_address() }
    }

    async fn gathering(expect: u8) -> (Self, Invitation) {
        let host = Self::start();
        let place = place(host.address, "host0");
        let (name, protocol) = ("prod".to_owned(), Protocol::BftRaft);
        let init = Init { name, expect, protocol, without_tolerance: true, place };
        form(&host.forming, FormRequest::Init(init)).await.unwrap();
        let token = host.token(100).await;
        (host, Invitation::of_token(&token).unwrap())
    }

    async fn token(&self, uses: u16) -> String {
        match form(&self.forming, FormRequest::CreateToken { for_s: 3600, uses }).await.unwrap() {
            Response::Token(made) => made.token,
            other => panic!("{other:?}"),
        }
    }

    async fn members(&self) -> usize {
        self.shown().await.members.len()
    }

    async fn shown(&self) -> Shown {
        match form(&self.forming, FormRequest::Progress).await.unwrap() {
            Response::Forming(shown) => *shown,
            other => panic!("{other:?}"),
        }
    }
}

fn joiner(invitation: &Invitation, endpoint: &Endpoint, identity: &Arc<Identity>, name: &str) -> Joiner {
    Joiner {
        endpoint: endpoint.clone(),
        identity: Arc::clone(identity),
        invitation: invitation.clone(),
        name: name.to_owned(),
        address: endpoint.local_addr().unwrap(),
    }
}

/// A socket that answers as a joiner's does: it lets the inviter in.
fn answering(identity: &Arc<Identity>) -> Endpoint {
    let endpoint = endpoint::bind(identity, free_address()).unwrap();
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            tokio::spawn(async move {
                // Whoever expected somebody else breaks the handshake off.
                if let Ok(connection) = incoming.accept().unwrap().await {
                    connection.closed().await;
                }
            });
        }
    });
    endpoint
}

async fn refusal(joiner: &Joiner) -> FormFailure {
    let result = async { joiner.ask(&joiner.connect().await?, 0).await };
    result.await.map(|_| ()).unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_else_at_the_inviters_address_is_found_out_and_learns_nothing() {
    let (inviter, invitation) = Host::gathering(4).await;
    let other = Arc::new(Identity::ephemeral());
    let in_between = endpoint::bind(&other, free_address()).unwrap();
    let hears = in_between.clone();
    // The one in between takes whatever is said to it.
    let heard = tokio::spawn(async move {
        let connection = hears.accept().await?.accept().ok()?.await.ok()?;
        let (_, mut receive) = connection.accept_bi().await.ok()?;
        wire::receive::<Ask>(&mut receive, 1024).await.ok()
    });
    let key = Arc::new(Identity::ephemeral());
    let socket = answering(&key);
    let address = in_between.local_addr().unwrap();
    let fooled = Invitation { address, ..invitation };
    assert_eq!(
        refusal(&joiner(&fooled, &socket, &key, "b")).await,
        FormFailure::WrongKey { address, expected: inviter.identity.public_key(), found: other.public_key() }
    );
    assert_eq!(heard.await.unwrap(), None, "the secret was not told");
    assert_eq!(inviter.members().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_the_inviters_certificate_without_its_key_is_found_out() {
    let (inviter, invitation) = Host::gathering(4).await;
    let other = Identity::ephemeral();
    let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(other.private_key().secret_der())).unwrap();
    let stolen = CertifiedKey::new(vec![inviter.identity.certificate()], key);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(stolen)));
    config.alpn_protocols = vec![b"bftd-form/1".to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).unwrap()));
    let in_between = Endpoint::server(config, free_address()).unwrap();
    let address = in_between.local_addr().unwrap();
    let answers =
        tokio::spawn(async move { in_between.accept().await.unwrap().accept().unwrap().await.is_ok() });
    let key = Arc::new(Identity::ephemeral());
    let socket = answering(&key);
    let fooled = Invitation { address, ..invitation };
    let refused = refusal(&joiner(&fooled, &socket, &key, "b")).await;
    assert!(
        matches!(&refused, FormFailure::InviterMisbehaves { what, .. } if what.contains("somebody is in between")),
        "{refused}"
    );
    assert!(!answers.await.unwrap(), "nothing was said to it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_is_told_by_how_much() {
    let (inviter, invitation) = Host::gathering(4).await;
    let key = Arc::new(Identity::ephemeral());
    let socket = answering(&key);
    let joiner = joiner(&invitation, &socket, &key, "b");
    for off in [3_600_000_i64, -90_000] {
        let connection = joiner.connect().await.unwrap();
        let ask = Ask::Join {
            token: invitation.id,
            secret: invitation.secret,
            name: "b".to_owned(),
            address: joiner.address,
            clock_ms: now_ms().checked_add_signed(off).unwrap(),
            seen: 0,
        };
        match join::question(&connection, &ask).await.unwrap() {
            Reply::Refused(FormFailure::ClockOff { ahead_ms }) => {
                assert!((ahead_ms - off).abs() < 1_000, "{ahead_ms} is not about {off}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(inviter.members().await, 1);
    assert!(matches!(joiner.ask(&joiner.connect().await.unwrap(), 0).await, Ok(join::Answer::Gathered(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_not_be_reached_is_not_taken_in() {
    let (inviter, invitation) = Host::gathering(4).await;
    let key = Arc::new(Identity::ephemeral());
    let socket = answering(&key);
    let mut deaf = joiner(&invitation, &socket, &key, "b");
    deaf.address = free_address();
    let refused = refusal(&deaf).await;
    assert!(
        matches!(&refused, FormFailure::NotReached { address, .. } if *address == deaf.address),
        "{refused}"
    );

    let other = Arc::new(Identity::ephemeral());
    deaf.address = answering(&other).local_addr().unwrap();
    let refused = refusal(&deaf).await.to_string();
    assert!(refused.contains(&format!("with the key {}", other.public_key())), "{refused}");
    assert_eq!(inviter.members().await, 1, "neither was taken in");
    assert_eq!(inviter.shown().await.refused.len(), 2);
}

/// A genesis of an inviter that lies.
async fn lying_inviter(genesis: impl FnOnce(PublicKey, PublicKey, SocketAddr) -> Genesis) -> FormFailure {
    let liar = Arc::new(Identity::ephemeral());
    let socket = endpoint::bind(&liar, free_address()).unwrap();
    let key = Arc::new(Identity::ephemeral());
    let own = answering(&key);
    let invitation = Invitation::new(liar.public_key(), socket.local_addr().unwrap(), "prod");
    let told = genesis(liar.public_key(), key.public_key(), own.local_addr().unwrap());
    tokio::spawn(async move {
        let connection = socket.accept().await.unwrap().accept().unwrap().await.unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        wire::receive::<Ask>(&mut receive, 1024).await.unwrap();
        wire::send(&mut send, &Reply::Formed(told)).await.unwrap();
        connection.closed().await;
    });
    let joiner = joiner(&invitation, &own, &key, "b");
    let connection = joiner.connect().await.unwrap();
    joiner.ask(&connection, 0).await.map(|_| ()).unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_genesis_that_is_not_what_was_agreed_is_not_taken() {
    let member =
        |id, name: &str, key, address| Member { id: MemberId(id), name: name.to_owned(), key, address };
    let elsewhere: SocketAddr = "10.0.0.1:1".parse().unwrap();
    let of = |name: &str, members| Genesis {
        name: name.to_owned(),
        protocol: Protocol::BftRaft,
        created_ms: 1,
        members,
    };
    let inviter = |key| member(1, "a", key, elsewhere);
    let told = [
        lying_inviter(|liar, _, _| of("prod", vec![inviter(liar)])).await,
        lying_inviter(|liar, me, _| {
            of("prod", vec![inviter(liar), member(2, "b", me, "10.0.0.2:1".parse().unwrap())])
        })
        .await,
        lying_inviter(|liar, me, at| of("prod", vec![inviter(liar), member(2, "c", me, at)])).await,
        lying_inviter(|liar, me, at| of("other", vec![inviter(liar), member(2, "b", me, at)])).await,
        lying_inviter(|_, me, at| of("prod", vec![member(2, "b", me, at)])).await,
        lying_inviter(|liar, me, at| of("prod", vec![inviter(liar), member(1, "b", me, at)])).await,
    ];
    let words = [
        "without this host's key",
        "as `b` at 10.0.0.2:1",
        "as `c`",
        "another name",
        "without its own key",
        "member ids",
    ];
    for (failure, word) in told.iter().zip(words) {
        assert!(failure.to_string().contains(word), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_was_complete_when_the_inviter_crashed_becomes_a_genesis() {
    let (directory, key) = identity();
    let members = (1..=4_u8).map(|n| Candidate {
        name: format!("host{n}"),
        key: if n == 1 { key.public_key() } else { PublicKey([n; 32]) },
        address: if n == 1 { free_address() } else { format!("127.0.0.1:{n}").parse().unwrap() },
    });
    let plan = Gathering {
        name: "prod".into(),
        protocol: Protocol::BftRaft,
        expect: 4,
        created_ms: 7,
        members: members.collect(),
        tokens: vec![],
    };
    let expected = plan.genesis().unwrap();
    Plan::Gathering(plan).store(directory.path()).unwrap();
    fs::write(directory.path().join("genesis.toml.new"), "half").unwrap();
    let forming = Forming::start(&NodeConfig::default(), directory.path().to_owned(), key).unwrap();
    assert_eq!(forming.finish().await, expected);
    assert_eq!(stored_genesis(directory.path()).unwrap(), Some(expected));
    let mut left: Vec<_> = names(directory.path());
    left.sort();
    assert_eq!(left, ["genesis.toml", "identity.key"], "nothing half-made stays");
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_another_key_is_refused() {
    let (inviter, _) = Host::gathering(4).await;
    let key = Arc::new(Identity::ephemeral());
    let result = Forming::start(&NodeConfig::default(), inviter.directory.path().to_owned(), key);
    let error = result.err().unwrap().to_string();
    assert!(error.contains("forming.toml") && error.contains("restore identity.key"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_taken_out_stays_out_until_it_is_invited_again() {
    let (inviter, invitation) = Host::gathering(3).await;
    let (one, two) = (Host::start(), Host::start());
    join(&one.forming, &invitation.to_token(), one.address, "one").await.unwrap();
    assert_eq!(inviter.members().await, 2);
    forget(&inviter.forming, "one").await.unwrap();
    assert_eq!(forget(&inviter.forming, "host0").await, Err(FormFailure::NoSuchMember("host0".into())));
    // `one` asks all the time, and its token is of no more use, to others as well.
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(inviter.members().await, 1);
    let refused = join(&two.forming, &invitation.to_token(), two.address, "two").await;
    assert_eq!(refused, Err(FormFailure::UnknownToken));
    let again = inviter.token(2).await;
    join(&one.forming, &again, one.address, "one").await.unwrap();
    join(&two.forming, &again, two.address, "two").await.unwrap();
    let (mine, theirs, its) =
        tokio::join!(inviter.forming.finish(), one.forming.finish(), two.forming.finish());
    assert_eq!((&mine, &mine), (&theirs, &its));
    assert_eq!(mine.members.len(), 3);
    assert_eq!(inviter.shown().await.phase, Phase::Formed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_nothing_half_done() {
    let (_inviter, invitation) = Host::gathering(3).await;
    let one = Host::start();
    join(&one.forming, &invitation.to_token(), one.address, "one").await.unwrap();
    // Nobody answers there: its operator waits for a moment, and ends the command.
    let nobody = Invitation::new(PublicKey([9; 32]), free_address(), "prod").to_token();
    let ended = timeout(Duration::from_millis(300), join(&one.forming, &nobody, one.address, "one")).await;
    assert!(ended.is_err(), "{ended:?}");
    sleep(endpoint::DIAL_DEADLINE).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let shown = one.shown().await;
        if (shown.phase, shown.members.len()) == (Phase::Joining, 2) {
            break;
        }
        assert!(Instant::now() < deadline, "it does not join what it was let into: {shown:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_has_one_connection() {
    let (inviter, invitation) = Host::gathering(3).await;
    let key = Arc::new(Identity::ephemeral());
    let joiner = joiner(&invitation, &answering(&key), &key, "b");
    let first = joiner.connect().await.unwrap();
    joiner.ask(&first, 0).await.unwrap();
    let second = joiner.connect().await.unwrap();
    joiner.ask(&second, 0).await.unwrap();
    timeout(Duration::from_secs(2), first.closed()).await.expect("the first one is closed");
    assert!(second.close_reason().is_none());
    assert_eq!(inviter.forming.shared.state.lock().await.here.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_genesis_that_could_not_be_stored_is_made_when_somebody_asks_again() {
    let (inviter, invitation) = Host::gathering(2).await;
    let in_the_way = inviter.directory.path().join("genesis.toml.new");
    fs::create_dir(&in_the_way).unwrap();
    let one = Host::start();
    let refused = join(&one.forming, &invitation.to_token(), one.address, "one").await;
    assert!(matches!(refused, Err(FormFailure::Impossible(_))), "{refused:?}");
    assert_eq!(inviter.shown().await.phase, Phase::Gathering);
    fs::remove_dir(&in_the_way).unwrap();
    join(&one.forming, &invitation.to_token(), one.address, "one").await.unwrap();
    let (mine, its) = tokio::join!(inviter.forming.finish(), one.forming.finish());
    assert_eq!(mine, its);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_daemon_does_can_be_given_up() {
    let (inviter, _) = Host::gathering(3).await;
    let abandon = |phase| form(&inviter.forming, FormRequest::Abandon { phase });
    assert!(matches!(abandon(Phase::Joining).await, Err(FormFailure::Engaged(_))));
    assert_eq!(inviter.members().await, 1);
    abandon(Phase::Gathering).await.unwrap();
    assert_eq!(inviter.shown().await.phase, Phase::Idle);
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Bad joins, some at once, each with a key of its own.
async fn flood(invitation: &Invitation, count: usize) {
    let socket = endpoint::bind(&Identity::ephemeral(), free_address()).unwrap();
    let mut rest = count;
    let mut flying = JoinSet::new();
    while rest > 0 || !flying.is_empty() {
        while rest > 0 && flying.len() < 8 {
            rest -= 1;
            let strange = Invitation::new(invitation.inviter, invitation.address, "prod");
            let joiner = joiner(&strange, &socket, &Arc::new(Identity::ephemeral()), "b");
            flying.spawn(async move {
                let why = refusal(&joiner).await;
                assert!(matches!(why, FormFailure::UnknownToken | FormFailure::InviterBusy(_)), "{why}");
            });
        }
        flying.join_next().await.unwrap().unwrap();
    }
}

/// In a process of its own: the memory of other tests is none of its business.
#[test]
fn a_flood_of_bad_joins_costs_a_bounded_amount_of_memory() {
    let alone = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "forming::tests::a_flood_alone"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&alone.stdout);
    assert!(alone.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test above, in a process of its own"]
async fn a_flood_alone() {
    let (inviter, invitation) = Host::gathering(4).await;
    flood(&invitation, 1_000).await;
    let before = resident_kib();
    flood(&invitation, 8_000).await;
    let grown = resident_kib().saturating_sub(before);
    // The allocator settles some 15 MiB up, in steps of 3 MiB, however long the flood lasts: so
    // many joins that 3 KiB kept of each would be more than that.
    assert!(grown < 24 << 10, "8,000 bad joins left {grown} KiB behind");
    let state = inviter.forming.shared.state.lock().await;
    assert_eq!((state.here.len(), state.refused.len(), state.stored.len()), (0, REFUSALS, 0));
    drop(state);
    let plan = fs::read_to_string(inviter.directory.path().join(plan::PLAN_FILE)).unwrap();
    assert!(plan.len() < 1_500, "nothing of strangers is kept: {plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_say_nothing_hold_a_bounded_number_of_places_for_a_bounded_time() {
    let (inviter, invitation) = Host::gathering(4).await;
    let one = Host::start();
    join(&one.forming, &invitation.to_token(), one.address, "one").await.unwrap();

    let key = Arc::new(Identity::ephemeral());
    let socket = endpoint::bind(&key, free_address()).unwrap();
    let mut silent = Vec::new();
    for _ in 0..3 * STRANGERS {
        let dialled =
            endpoint::dial(&socket, &key, invitation.address, invitation.inviter, Duration::from_millis(500))
                .await;
        silent.extend(dialled);
    }
    sleep(Duration::from_millis(300)).await;
    let alive = silent.iter().filter(|connection| connection.close_reason().is_none()).count();
    assert!((STRANGERS / 2..=STRANGERS).contains(&alive), "{alive} strangers are served");
    assert!(inviter.shown().await.members.iter().all(|member| member.is_here), "who is in is served still");

    sleep(STRANGER_DEADLINE + Duration::from_millis(500)).await;
    let two = Host::start();
    join(&two.forming, &invitation.to_token(), two.address, "two").await.unwrap();
    assert_eq!(inviter.members().await, 3);
}
