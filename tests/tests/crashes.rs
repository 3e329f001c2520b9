//! Crashes, pauses and lost quorums of real daemons: no acknowledged write is lost.

#![allow(clippy::unwrap_used)]

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bftd_client::{Consistency, Error, Expect, Failure, Health};
use bftd_tests::{
    Cluster,
    load::{Load, assert_all_there},
};
use rustix::process::Signal;

async fn sleep(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed_under_load() {
    let mut cluster = Cluster::start(4).await;
    let load = Load::start(&cluster, 4);
    sleep(1_000).await;
    let leader = cluster.leader(2).await;
    let before = load.count();
    assert!(before > 100, "the load runs: {before}");
    cluster.kill(leader);
    let killed = Instant::now();
    // What was on its way is answered at once; a new term answers what comes later.
    sleep(300).await;
    let at_kill = load.count();
    while load.count() < at_kill + 50 {
        assert!(killed.elapsed() < Duration::from_secs(5), "writes go on");
        sleep(10).await;
    }
    println!("writes went on {:?} after the kill", killed.elapsed());
    sleep(1_000).await;
    cluster.spawn(leader);
    cluster.wait_healthy().await;
    let unknown = load.unknown.load(Ordering::SeqCst);
    assert!(unknown > 0, "the killed node's clients are told that they can't know");
    let acknowledged = load.finish().await;
    cluster.wait_equal().await;
    assert_all_there(&cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_are_killed_at_once_under_load() {
    let mut cluster = Cluster::start(4).await;
    let load = Load::start(&cluster, 4);
    sleep(1_500).await;
    for id in cluster.ids() {
        cluster.kill(id);
    }
    let acknowledged = load.finish().await;
    assert!(acknowledged.values().sum::<u64>() > 100);
    for id in cluster.ids() {
        cluster.spawn(id);
    }
    cluster.wait_healthy().await;
    cluster.wait_equal().await;
    assert_all_there(&cluster, &acknowledged).await;
    let client = cluster.client(1).await.unwrap();
    client.put("after".into(), "all".into(), Expect::Absent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_writes_are_refused_and_with_it_all_works_again() {
    let mut cluster = Cluster::start(4).await;
    let client = cluster.client(1).await.unwrap();
    client.put("a".into(), "1".into(), Expect::Anything).await.unwrap();
    cluster.kill(3);
    cluster.kill(4);
    let status =
        cluster.wait_status(1, "without a quorum", |status| status.cluster.state == Health::NoQuorum).await;
    assert!(
        status.hints.iter().any(|hint| hint.contains("node3") && hint.contains("node4")),
        "{:?}",
        status.hints
    );
    let refused = client.put("a".into(), "2".into(), Expect::Anything).await;
    assert!(
        matches!(refused, Err(Error::Failed(Failure::NoQuorum { reachable: 2, needed: 3, .. }))),
        "{refused:?}"
    );
    let (local, _) = client.get("a".into(), Consistency::Local).await.unwrap();
    assert_eq!(local.unwrap().value, "1");

    cluster.spawn(3);
    cluster.wait_status(1, "degraded", |status| status.cluster.state == Health::Degraded).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.put("a".into(), "3".into(), Expect::Anything).await.is_err() {
        assert!(Instant::now() < deadline, "writes work again");
        sleep(100).await;
    }
    cluster.spawn(4);
    cluster.wait_healthy().await;
    cluster.wait_equal().await;
    for id in cluster.ids() {
        let (entry, _) =
            cluster.client(id).await.unwrap().get("a".into(), Consistency::Linearizable).await.unwrap();
        assert_eq!(entry.unwrap().value, "3");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_leader_is_replaced_and_does_no_harm_when_it_wakes() {
    let cluster = Cluster::start(4).await;
    let load = Load::start(&cluster, 4);
    sleep(500).await;
    let leader = cluster.leader(2).await;
    cluster.signal(leader, Signal::STOP);
    sleep(2_500).await;
    let asked = cluster.ids().find(|id| *id != leader).unwrap();
    assert_ne!(cluster.leader(asked).await, leader, "the others went on without it");
    let during = load.count();
    sleep(2_500).await;
    assert!(load.count() > during + 50, "writes go on during the pause");
    cluster.signal(leader, Signal::CONT);
    cluster.wait_healthy().await;
    let acknowledged = load.finish().await;
    cluster.wait_equal().await;
    assert_all_there(&cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_stops_cleanly_and_the_socket_is_gone() {
    let mut cluster = Cluster::start(1).await;
    let client = cluster.client(1).await.unwrap();
    client.put("a".into(), "1".into(), Expect::Anything).await.unwrap();
    assert_eq!(cluster.stop(1), Some(0));
    assert!(!cluster.home(1).join("s").exists());
    cluster.spawn(1);
    cluster.wait_healthy().await;
    let client = cluster.client(1).await.unwrap();
    let (entry, _) = client.get("a".into(), Consistency::Linearizable).await.unwrap();
    assert_eq!(entry.unwrap().value, "1");
}
