//! Crashes, pauses and lost quorums of real daemons: no acknowledged write is lost.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bftd_client::{Client, Consistency, Error, Expect, Failure, Health};
use bftd_tests::Cluster;
use rustix::process::Signal;

/// Writers on every node, each on keys of its own, that remember what was acknowledged.
struct Load {
    acknowledged: Arc<Mutex<BTreeMap<String, u64>>>,
    unknown: Arc<AtomicU64>,
    newest: Arc<Mutex<Instant>>,
    stop: Arc<AtomicBool>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    fn start(cluster: &Cluster, writers: u64) -> Self {
        let load = Self {
            acknowledged: Arc::default(),
            unknown: Arc::default(),
            newest: Arc::new(Mutex::new(Instant::now())),
            stop: Arc::default(),
            tasks: tokio::task::JoinSet::new(),
        };
        let mut load = load;
        for id in cluster.ids() {
            let socket = cluster.home(id).join("s");
            for writer in 0..writers {
                let key = format!("node{id}-writer{writer}");
                let (acknowledged, unknown) = (load.acknowledged.clone(), load.unknown.clone());
                let (newest, stop, socket) = (load.newest.clone(), load.stop.clone(), socket.clone());
                load.tasks.spawn(async move {
                    let mut client = None;
                    for value in 1_u64.. {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        if client.is_none() {
                            client = Client::connect(&socket).await.ok();
                        }
                        let Some(connected) = &client else {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            continue;
                        };
                        let connected = connected.with_deadline(Duration::from_secs(5));
                        let put =
                            connected.put(key.clone().into(), value.to_string().into(), Expect::Anything);
                        match put.await {
                            Ok(_) => {
                                acknowledged.lock().unwrap().insert(key.clone(), value);
                                *newest.lock().unwrap() = Instant::now();
                            }
                            Err(Error::OutcomeUnknown(_)) => {
                                unknown.fetch_add(1, Ordering::SeqCst);
                                client = None;
                            }
                            Err(_) => {
                                client = None;
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                        }
                    }
                });
            }
        }
        load
    }

    fn count(&self) -> u64 {
        self.acknowledged.lock().unwrap().values().sum()
    }

    async fn finish(mut self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
        self.acknowledged.lock().unwrap().clone()
    }
}

/// Every acknowledged value, or a later one whose outcome was unknown, is there, by every node's word.
async fn assert_all_there(cluster: &Cluster, acknowledged: &BTreeMap<String, u64>) {
    for id in cluster.ids() {
        let client = cluster.client(id).await.unwrap();
        for (key, value) in acknowledged {
            let (entry, _) = client.get(key.clone().into(), Consistency::Linearizable).await.unwrap();
            let entry = entry.unwrap_or_else(|| panic!("{key} is lost at node {id}"));
            let found: u64 = String::from_utf8(entry.value.to_vec()).unwrap().parse().unwrap();
            assert!(found >= *value, "{key} is {found} at node {id}, {value} was acknowledged");
        }
    }
}

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
