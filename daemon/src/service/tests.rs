#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use bftd_core::{
    ballot::{Ballot, BallotKind, Vote},
    block::{BlockRef, Executed},
    crypto::{Digest, Ed25519Signer},
    ids::{Epoch, Index, Term},
    replica::Status as ReplicaStatus,
};

use super::*;
use crate::{
    faults::tests::{faults, members},
    peers::Progress,
    state::StateStore,
};

/// Member 2's service, whose questions to others get no answer; and the directory that its state is in.
fn service() -> (NodeService, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let members = members();
    let me = MemberId(2);
    let faults = Arc::new(faults(true));
    let state = StateStore::open(directory.path(), members.cluster(), members.root()).unwrap();
    let status = ReplicaStatus {
        term: Term(0),
        leader: MemberId(1),
        open: true,
        committed: members.root(),
        prepared: Index(0),
        executed: Executed { index: Index(0), state: Digest::ZERO },
        suspecting: None,
        uncommitted: 0,
        pooled: 0,
        catching_up: false,
        protocol: members.protocol(),
        next_protocol: members.protocol(),
    };
    let genesis = Genesis {
        name: "test".into(),
        protocol: members.protocol(),
        created_ms: 0,
        members: members.members().to_vec(),
    };
    let service = NodeService {
        me,
        genesis,
        peers: Arc::new(Peers::new(me, &members)),
        control: Arc::new(Control::new(me, Arc::clone(&faults))),
        members,
        faults,
        status: watch::channel(status).1,
        evidence: watch::channel(Vec::new()).1,
        events: mpsc::channel(1).0,
        reads: Reads::new(state.reader()),
        watches: Watches::start(state.reader()).unwrap(),
        closing: watch::channel(false).1,
        directory: directory.path().to_owned(),
        state: state.reader(),
        executed_ms: Arc::default(),
    };
    (service, directory)
}

/// Members report, each with its faults.
fn hear(service: &NodeService, reports: &[(u8, &[&str])]) {
    for (id, faults) in reports {
        let faults = faults.iter().map(|fault| (*fault).to_owned()).collect();
        service.peers.hear(MemberId(*id), Progress { faults, ..Progress::default() });
    }
}

async fn inject(service: &NodeService, node: u8, fault: Option<&str>, beyond_f: bool) -> Response {
    let change = match fault {
        Some(fault) => FaultChange::Start { fault: fault.to_owned(), for_ms: None },
        None => FaultChange::Clear,
    };
    let peer = PeerCredentials { uid: 0, gid: 0, pid: None, connection: 1 };
    service.handle(peer, Request::Inject { node, change, beyond_f }).await
}

#[tokio::test]
async fn members_that_are_down_count_among_the_faulty() {
    let (service, _directory) = service();
    hear(&service, &[(1, &[]), (3, &[])]);
    let refused = Response::Failed(Failure::BeyondF { faulty: 2, f: 1 });
    assert_eq!(inject(&service, 2, Some("slow"), false).await, refused, "member 4 is down");
    assert_eq!(inject(&service, 1, Some("slow"), false).await, refused);
    assert_eq!(inject(&service, 2, Some("slow"), true).await, Response::Injected);
    assert_eq!(inject(&service, 2, None, false).await, Response::Injected);
    hear(&service, &[(4, &[])]);
    assert_eq!(inject(&service, 2, Some("slow"), false).await, Response::Injected);
}

#[tokio::test]
async fn a_member_that_is_cut_off_by_a_fault_is_faulty_once_and_can_be_asked() {
    let (service, _directory) = service();
    hear(&service, &[(1, &[]), (3, &[]), (4, &["offline"])]);
    let refused = Response::Failed(Failure::BeyondF { faulty: 2, f: 1 });
    assert_eq!(inject(&service, 2, Some("slow"), false).await, refused);
    let began = Instant::now();
    let asked = inject(&service, 4, Some("slow"), false).await;
    assert_eq!(asked, Response::Failed(Failure::MemberSilent(4)), "within the bound");
    assert!(began.elapsed() > Duration::from_secs(2), "it was asked");
}

#[tokio::test]
async fn a_member_that_is_down_is_not_waited_for() {
    let (service, _directory) = service();
    hear(&service, &[(1, &[]), (3, &[])]);
    let down = Response::Failed(Failure::MemberDown(4));
    let began = Instant::now();
    assert_eq!(inject(&service, 4, None, false).await, down);
    assert_eq!(inject(&service, 4, Some("slow"), true).await, down);
    assert!(began.elapsed() < Duration::from_secs(1));
    // One that has just ended is waited for as long as it may be there.
    hear(&service, &[(4, &["crash"])]);
    assert_eq!(inject(&service, 4, None, false).await, down);
    assert!(began.elapsed() < Duration::from_millis(2_800));
}

#[tokio::test]
async fn status_leaves_out_the_faults_of_a_daemon_that_has_ended() {
    let (service, _directory) = service();
    hear(&service, &[(1, &[]), (3, &[]), (4, &["silent"])]);
    let faults_of_4 = || service.status().members[3].faults.clone();
    assert_eq!(faults_of_4(), ["silent"]);
    tokio::time::timeout(Duration::from_secs(5), service.peers.gone(MemberId(4))).await.unwrap();
    assert!(faults_of_4().is_empty());
    let hints = service.status().hints;
    assert!(hints.iter().any(|hint| hint.contains("start node1, node3, node4")), "{hints:?}");
}

#[test]
fn a_member_that_is_proved_to_lie_is_not_counted_on_but_an_old_proof_is_no_news() {
    let (mut service, _directory) = service();
    let votes = [7, 8].map(|digest| {
        let block = BlockRef { term: Term(1), index: Index(5), digest: Digest([digest; 32]) };
        let ballot = Ballot { kind: BallotKind::Prepare, epoch: Epoch(0), block };
        Vote::sign(service.members.cluster(), ballot, MemberId(4), &Ed25519Signer::from_seed(&[4; 32]))
    });
    let proof = Evidence::of_votes(&votes[0], &votes[1]).unwrap();
    hear(&service, &[(1, &[]), (3, &[]), (4, &[])]);
    let (_driver, on_disk) = watch::channel(vec![proof.clone()]);
    service.evidence = on_disk;
    assert_eq!((service.status().members[3].evidence, service.status().cluster.tolerates), (1, 1));

    // Another one comes, as the driver notes it.
    service.peers.note_proof(MemberId(4));
    assert_eq!((service.status().members[3].evidence, service.status().cluster.tolerates), (1, 0));
}

#[tokio::test]
async fn where_crashes_alone_are_withstood_a_lie_is_refused_by_its_name() {
    let (mut service, _directory) = service();
    let genesis = Genesis { protocol: bftd_core::protocol::Protocol::Raft, ..service.genesis.clone() };
    service.members = Arc::new(genesis.membership().unwrap());
    hear(&service, &[(1, &[]), (3, &[]), (4, &[])]);
    let lies = Failure::CrashesOnly { protocol: "raft".to_owned(), fault: "equivocate".to_owned() };
    assert_eq!(inject(&service, 2, Some("equivocate"), false).await, Response::Failed(lies));
    assert_eq!(inject(&service, 2, Some("slow"), false).await, Response::Injected);
    assert_eq!(inject(&service, 2, Some("equivocate"), true).await, Response::Injected);
}
