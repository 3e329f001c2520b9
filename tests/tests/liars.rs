//! Members that lie, live: the others go on, lose nothing, agree, and accuse nobody else.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use bftd_client::{Consistency, Error, Expect, Failure, FaultChange, Health, Operation, Step, Trace};
use bftd_core::protocol::Protocol;
use bftd_tests::{
    Cluster,
    load::{Load, assert_all_there},
};

/// The kinds that CLI.md names, but `crash`, and two that leave proofs.
const KINDS: [&str; 12] = [
    "offline",
    "malicious",
    "equivocate",
    "bad-signature",
    "corrupt-vote",
    "wrong-state",
    "silent",
    "slow",
    "replay",
    "delay=200ms",
    "drop=30%",
    "double-vote",
];

/// Those that leave a proof: of a follower, and of a leader.
const PROVED: [&[&str]; 2] = [&["malicious"], &["malicious", "equivocate"]];

fn start(fault: &str) -> FaultChange {
    FaultChange::Start { fault: fault.to_owned(), for_ms: None }
}

async fn inject(cluster: &Cluster, asked: u8, node: u8, fault: &str) {
    cluster.client(asked).await.unwrap().inject(node, start(fault), false).await.unwrap();
}

async fn clear(cluster: &Cluster, asked: u8, node: u8) {
    cluster.client(asked).await.unwrap().inject(node, FaultChange::Clear, false).await.unwrap();
    let is_clear = |status: &bftd_client::Status| status.members.iter().all(|it| it.faults.is_empty());
    for id in cluster.ids() {
        cluster.wait_status(id, "told that there are no faults", is_clear).await;
    }
}

/// Waits until another `more` writes are acknowledged.
async fn wait_progress(load: &Load, more: u64, what: &str) {
    let (before, deadline) = (load.count(), Instant::now() + Duration::from_secs(20));
    while load.count() < before + more {
        assert!(Instant::now() < deadline, "writes don't go on: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn accused(cluster: &Cluster, asked: u8) -> BTreeSet<u8> {
    let proofs = cluster.client(asked).await.unwrap().evidence().await.unwrap();
    proofs.into_iter().map(|proof| proof.accused).collect()
}

/// Waits until a node has a proof against a liar.
async fn wait_accused(cluster: &Cluster, asked: u8, liar: u8) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !accused(cluster, asked).await.contains(&liar) {
        assert!(Instant::now() < deadline, "node {asked} has no proof against node {liar}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Every kind on one node after the other, each cleared before the next. `target` says who lies now.
async fn all_kinds(n: u8, leads: bool) {
    let cluster = Cluster::start(n).await;
    let load = Load::start(&cluster, 2);
    wait_progress(&load, 50, "before any fault").await;
    let mut liars = BTreeSet::new();
    for kind in KINDS {
        let leader = cluster.leader(1).await;
        let target = if leads { leader } else { leader % n + 1 };
        let asked = target % n + 1;
        liars.insert(target);
        let term = cluster.status(asked).await.unwrap().cluster.term;
        inject(&cluster, asked, target, kind).await;
        let shown = cluster.status(asked).await.unwrap();
        let member = shown.members.iter().find(|member| member.id == target).unwrap();
        assert_eq!(member.faults, [kind], "the status of node {asked} names it at once");
        assert_eq!((shown.cluster.state, shown.cluster.tolerates), (Health::Degraded, 0), "{kind}");
        wait_progress(&load, 100, &format!("{kind} at node {target}, leader: {leads}")).await;
        let led = shown.cluster.leader == target;
        if PROVED[usize::from(leads)].contains(&kind) && led == leads {
            wait_accused(&cluster, asked, target).await;
        }
        let terms = cluster.status(asked).await.unwrap().cluster.term - term;
        // One is what it takes; a slow machine may add some, a storm would not end.
        assert!(terms <= 3, "{kind} at node {target}: {terms} term changes");
        clear(&cluster, asked, target).await;
        cluster.wait_healthy().await;
        wait_progress(&load, 20, &format!("after {kind}")).await;
    }
    let acknowledged = load.finish().await;
    cluster.wait_equal().await;
    assert_all_there(&cluster, &acknowledged).await;
    for id in cluster.ids() {
        let accused = accused(&cluster, id).await;
        assert!(accused.is_subset(&liars), "node {id} accuses {accused:?}, liars were {liars:?}");
        assert!(!accused.is_empty(), "node {id} has proofs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_follower_of_each_kind_harms_nobody() {
    all_kinds(4, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_leader_of_each_kind_harms_nobody() {
    all_kinds(4, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_different_liars_of_seven_harm_nobody() {
    let cluster = Cluster::start(7).await;
    let load = Load::start(&cluster, 1);
    wait_progress(&load, 20, "before any fault").await;
    let leader = cluster.leader(1).await;
    // The next leader is honest.
    let (first, second, asked) = (leader, (leader + 1) % 7 + 1, (leader + 2) % 7 + 1);
    inject(&cluster, asked, first, "equivocate").await;
    inject(&cluster, asked, second, "malicious").await;
    let refused = cluster.client(asked).await.unwrap().inject(asked, start("silent"), false).await;
    assert!(matches!(refused, Err(Error::Failed(Failure::BeyondF { faulty: 3, f: 2 }))), "{refused:?}");
    wait_progress(&load, 200, "with two liars of seven").await;
    // A slow machine may have moved the term before the leader lied: then whoever leads now does.
    let (mut equivocating, mut liars) = (first, BTreeSet::from([first, second]));
    let deadline = Instant::now() + Duration::from_secs(60);
    while !accused(&cluster, asked).await.contains(&equivocating) {
        assert!(Instant::now() < deadline, "the equivocating leader is proved to lie");
        let leader = cluster.leader(asked).await;
        if !liars.contains(&leader) && leader != asked {
            let client = cluster.client(asked).await.unwrap();
            client.inject(equivocating, FaultChange::Clear, false).await.unwrap();
            inject(&cluster, asked, leader, "equivocate").await;
            equivocating = leader;
            liars.insert(leader);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // A lying leader keeps quiet about false votes; the next one does not.
    wait_accused(&cluster, asked, second).await;
    for node in [equivocating, second] {
        let client = cluster.client(asked).await.unwrap();
        client.inject(node, FaultChange::Clear, false).await.unwrap();
    }
    cluster.wait_healthy().await;
    let acknowledged = load.finish().await;
    cluster.wait_equal().await;
    assert_all_there(&cluster, &acknowledged).await;
    let accused = accused(&cluster, asked).await;
    assert!(accused.is_subset(&liars), "{accused:?}, liars were {liars:?}");
}

/// A write through a node, traced, and what every trace must show.
async fn traced(cluster: &Cluster, asked: u8) -> Trace {
    let put = Operation::put("traced".into(), "1".into());
    let before = cluster.status(asked).await.unwrap();
    let (changed, trace) = cluster.client(asked).await.unwrap().execute_traced(put).await.unwrap();
    let after = cluster.status(asked).await.unwrap();
    let trace = trace.expect("nobody else traces");
    for (node, (before, after)) in trace.nodes.iter().zip(before.members.iter().zip(&after.members)) {
        assert!(node.corrupt <= after.corrupt - before.corrupt, "only what came meanwhile: {trace:?}");
        // What proves to be a lie counts as correct no longer.
        if after.corrupt == before.corrupt {
            assert!(node.correct <= after.correct - before.correct, "only what came meanwhile: {trace:?}");
        }
    }
    assert_eq!((trace.me, trace.nodes.len()), (asked, 4), "{trace:?}");
    assert!(trace.phases.is_sorted_by_key(|phase| phase.at_us), "{trace:?}");
    assert_eq!(trace.phases.first().unwrap().step, Step::Submitted, "{trace:?}");
    let last = trace.phases.last().unwrap();
    assert_eq!((last.step, last.at_us), (Step::Executed, trace.total_us), "{trace:?}");
    let committed = trace.phases.iter().find(|phase| phase.step == Step::Committed).unwrap();
    assert!(committed.block.unwrap().index >= changed.index, "its block, or one above: {trace:?}");
    for phase in &trace.phases {
        let is_certified = matches!(phase.step, Step::Prepared | Step::Committed);
        let voters: BTreeSet<_> =
            phase.voters.iter().copied().filter(|id| cluster.ids().any(|it| it == *id)).collect();
        assert_eq!(voters.len(), phase.voters.len(), "members, each once: {trace:?}");
        assert_eq!(voters.len() >= 3, is_certified, "a quorum where there is a certificate: {trace:?}");
        // The leader has gathered the votes itself, so they have come while it waited.
        if is_certified && phase.block.unwrap().leader == asked {
            let came = |id: &u8| *id == asked || trace.nodes[usize::from(*id) - 1].correct > 0;
            assert!(voters.iter().all(came), "{trace:?}");
        }
    }
    trace
}

#[tokio::test(flavor = "multi_thread")]
async fn a_traced_write_shows_who_voted_and_who_lied() {
    let cluster = Cluster::start(4).await;
    for asked in cluster.ids() {
        let trace = traced(&cluster, asked).await;
        assert!(trace.nodes.iter().all(|node| node.corrupt == 0), "nobody lies: {trace:?}");
    }
    inject(&cluster, 1, 2, "malicious").await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline, "the leader's trace shows node 2's false votes");
        // Votes go to the leader, so it hears the lies of a member that doesn't lead.
        let asked = cluster.leader(1).await;
        if asked == 2 {
            traced(&cluster, 1).await;
            continue;
        }
        let trace = traced(&cluster, asked).await;
        let of_others = |phase: &&bftd_client::Phase| phase.block.is_some_and(|block| block.leader != 2);
        let mut certificates = trace.phases.iter().filter(of_others);
        assert!(certificates.all(|phase| !phase.voters.contains(&2)), "its votes are for nothing: {trace:?}");
        assert!(trace.nodes.iter().all(|node| node.id == 2 || node.corrupt == 0), "{trace:?}");
        if trace.nodes[1].corrupt > 0 {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_are_kept_over_a_restart() {
    let mut cluster = Cluster::start(4).await;
    let load = Load::start(&cluster, 1);
    inject(&cluster, 1, 3, "malicious").await;
    wait_accused(&cluster, 2, 3).await;
    load.finish().await;
    let before = cluster.client(2).await.unwrap().evidence().await.unwrap();
    cluster.kill(2);
    cluster.spawn(2);
    cluster.wait_status(2, "up", |status| status.cluster.state != Health::NoQuorum).await;
    let after = cluster.client(2).await.unwrap().evidence().await.unwrap();
    assert!(before.iter().all(|proof| after.contains(proof)), "{before:?} {after:?}");
    let status = cluster.status(2).await.unwrap();
    let of = |id: u8| status.members.iter().find(|member| member.id == id).unwrap().evidence;
    assert!(of(3) > 0 && [1, 2, 4].iter().all(|id| of(*id) == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_allows_no_faults_takes_none_and_an_injected_crash_is_one() {
    let mut cluster = Cluster::prepare(4, Protocol::default());
    let config = cluster.home(2).join("bftd.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("enabled = true", "enabled = false")).unwrap();
    for id in cluster.ids() {
        cluster.spawn(id);
    }
    cluster.wait_healthy().await;
    let client = cluster.client(1).await.unwrap();
    let refused = client.inject(2, start("silent"), false).await;
    assert!(matches!(refused, Err(Error::Failed(Failure::FaultsDisabled { node: 2 }))), "{refused:?}");
    inject(&cluster, 1, 3, "crash").await;
    assert_eq!(cluster.wait_exit(3), None, "it ended by a signal");
    // It is not heard of any more, and not waited for: neither its faults nor its answer.
    let (began, cleared) = (Instant::now(), client.inject(3, FaultChange::Clear, false).await);
    assert!(matches!(cleared, Err(Error::Failed(Failure::MemberDown(3)))), "{cleared:?}");
    assert!(began.elapsed() < Duration::from_millis(2_500));
    let status = client.status().await.unwrap();
    assert!(status.members.iter().all(|member| member.faults.is_empty()), "{status:?}");
    let refused = client.inject(1, start("slow"), false).await;
    assert!(matches!(refused, Err(Error::Failed(Failure::BeyondF { faulty: 2, f: 1 }))), "{refused:?}");
    client.put("a".into(), "1".into(), Expect::Anything).await.unwrap();
    cluster.spawn(3);
    cluster.wait_healthy().await;
    let (entry, _) =
        cluster.client(3).await.unwrap().get("a".into(), Consistency::Linearizable).await.unwrap();
    assert_eq!(entry.unwrap().value, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_link_is_one_link_and_ends_by_itself() {
    let cluster = Cluster::start(4).await;
    let client = cluster.client(1).await.unwrap();
    let link = FaultChange::Start { fault: "link=3".into(), for_ms: Some(4_000) };
    client.inject(1, link, false).await.unwrap();
    let reaches = |id: u8| {
        move |status: &bftd_client::Status| {
            status.members.iter().any(|member| member.id == id && member.reachable)
        }
    };
    cluster.wait_status(1, "cut off from 3", |status| !reaches(3)(status)).await;
    cluster.wait_status(3, "cut off from 1", |status| !reaches(1)(status)).await;
    cluster.wait_status(2, "in touch", |status| reaches(1)(status) && reaches(3)(status)).await;
    client.put("a".into(), "1".into(), Expect::Anything).await.unwrap();
    cluster.wait_healthy().await;
    cluster.wait_equal().await;
}

/// The leader and its ally make two stories final, one with each of the correct members. When these hear of each other's, they
/// stop: there is no right answer any more.
#[tokio::test(flavor = "multi_thread")]
async fn beyond_f_correct_members_stop_and_say_why() {
    let mut cluster = Cluster::start(4).await;
    let load = Load::start(&cluster, 1);
    wait_progress(&load, 20, "before any fault").await;
    let leader = cluster.leader(1).await;
    let mut others = (1..=4).filter(|id| *id != leader);
    let (ally, deceived, other) = (others.next().unwrap(), others.next().unwrap(), others.next().unwrap());
    inject(&cluster, other, ally, "double-vote").await;
    let client = cluster.client(other).await.unwrap();
    let refused = client.inject(leader, start("divide"), false).await;
    assert!(matches!(refused, Err(Error::Failed(Failure::BeyondF { faulty: 2, f: 1 }))), "{refused:?}");
    client.inject(leader, start("divide"), true).await.unwrap();
    for id in [deceived, other] {
        assert_eq!(cluster.wait_exit(id), Some(1), "node {id} has failed");
        let log = cluster.log(id);
        assert!(log.contains("more than f members are faulty"), "{log}");
        // Nor does it go on when somebody starts it again.
        cluster.spawn(id);
        assert_eq!(cluster.wait_exit(id), Some(78), "node {id} stays away");
        let log = cluster.log(id);
        assert!(log.contains("halted.txt") && log.contains("stop all members"), "{log}");
    }
    load.finish().await;
}
