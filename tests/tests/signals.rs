//! What a service manager does to a daemon: stops it, and has it read its configuration again.

#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::MetadataExt, sync::atomic::Ordering, time::Duration};

use bftd_client::Expect;
use bftd_tests::{
    Cluster,
    load::{Load, assert_all_there},
};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_told_to_stop_leaves_no_client_in_doubt() {
    let mut cluster = Cluster::start(4).await;
    let load = Load::start(&cluster, 16);
    sleep(Duration::from_millis(500)).await;
    let leader = cluster.leader(2).await;
    let follower = cluster.ids().find(|id| *id != leader).unwrap();
    for id in [follower, leader] {
        let before = load.count();
        assert!(before > 100, "the load runs: {before}");
        assert_eq!(cluster.stop(id), Some(0), "{}", cluster.log(id));
        cluster.spawn(id);
        cluster.wait_healthy().await;
        sleep(Duration::from_millis(300)).await;
    }
    let unknown = load.unknown.load(Ordering::SeqCst);
    let acknowledged = load.finish().await;
    assert_eq!(unknown, 0, "who was answered knows, and who was refused knows that nothing happened");
    assert_all_there(&cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_told_to_stop_hands_its_term_on() {
    let mut cluster = Cluster::start(4).await;
    let leader = cluster.leader(1).await;
    let follower = cluster.ids().find(|id| *id != leader).unwrap();
    assert_eq!(cluster.stop(leader), Some(0), "{}", cluster.log(leader));
    // Nobody had to wait for a leader that is gone: when it ended there was another one.
    let status = cluster.status(follower).await.unwrap();
    assert_ne!(status.cluster.leader, leader, "{status:?}");
    let log = cluster.log(follower);
    assert!(!log.contains("nothing was heard of it"), "{log}");
    let client = cluster.client(follower).await.unwrap();
    client.put("after".into(), "all".into(), Expect::Anything).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_a_daemon_stops_soon_all_the_same() {
    let mut cluster = Cluster::start(4).await;
    let load = Load::start(&cluster, 4);
    sleep(Duration::from_millis(300)).await;
    cluster.signal(3, Signal::STOP);
    cluster.signal(4, Signal::STOP);
    let told = Instant::now();
    assert_eq!(cluster.stop(1), Some(0), "{}", cluster.log(1));
    assert!(told.elapsed() < Duration::from_secs(4), "{:?}", told.elapsed());
    cluster.signal(3, Signal::CONT);
    cluster.signal(4, Signal::CONT);
    drop(load);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reloads_the_log_level_and_says_what_needs_a_restart() {
    let cluster = Cluster::start(4).await;
    let config = cluster.home(1).join("bftd.toml");
    let before = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        format!("{before}\n[log]\nlevel = \"warn\"\n").replace("enabled = true", "enabled = false"),
    )
    .unwrap();
    hang_up(&cluster, "keys=\"faults.enabled\"").await;
    fs::write(&config, format!("{before}\n[log]\nlevel = \"loud=loud\"\n")).unwrap();
    hang_up(&cluster, "goes on with what it had").await;
    fs::write(&config, &before).unwrap();
    hang_up(&cluster, "level=\"info\"").await;
    assert!(cluster.status(1).await.is_ok());
}

/// Sends SIGHUP to node 1, and waits for these words in its log.
async fn hang_up(cluster: &Cluster, words: &str) {
    let before = cluster.log(1).len();
    cluster.signal(1, Signal::HUP);
    let end = Instant::now() + Duration::from_secs(5);
    while !cluster.log(1)[before..].contains(words) {
        assert!(Instant::now() < end, "no {words} in {}", &cluster.log(1)[before..]);
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_admin_socket_is_for_others_than_the_daemon() {
    let cluster = Cluster::start(1).await;
    let data = cluster.home(1).join("data");
    for file in fs::read_dir(&data).unwrap().map(Result::unwrap) {
        let mode = file.metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", file.path().display());
    }
    let mode = fs::metadata(cluster.home(1).join("s")).unwrap().mode() & 0o7777;
    assert_eq!(mode, 0o660);
}
