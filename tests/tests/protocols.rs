//! Real daemons on the other rows: they write, lose a member, and go over from one row to another.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use bftd_client::{Error, Failure, Health};
use bftd_core::{
    kv::{Operation, Outcome},
    protocol::Protocol,
};
use bftd_tests::{
    Cluster,
    load::{Load, assert_all_there},
};

/// Waits until so many more writes are acknowledged.
async fn wait_writes(load: &Load, more: u64) {
    let (wanted, since) = (load.count() + more, Instant::now());
    while load.count() < wanted {
        assert!(since.elapsed() < Duration::from_secs(20), "writes go on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn loses_its_leader(n: u8, protocol: Protocol) {
    let mut cluster = Cluster::start_with(n, protocol).await;
    assert_eq!(cluster.status(1).await.unwrap().cluster.protocol, protocol);
    let load = Load::start(&cluster, 2);
    wait_writes(&load, 100).await;
    let leader = cluster.leader(1).await;
    cluster.kill(leader);
    wait_writes(&load, 50).await;
    cluster.spawn(leader);
    cluster.wait_healthy().await;
    wait_writes(&load, 50).await;
    let acknowledged = load.finish().await;
    cluster.wait_equal().await;
    assert_all_there(&cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pbft_loses_its_leader_under_load() {
    loses_its_leader(4, Protocol::Pbft).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ccro_loses_its_leader_under_load() {
    loses_its_leader(4, Protocol::Ccro).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn raft_of_three_loses_its_leader_under_load() {
    loses_its_leader(3, Protocol::Raft).await;
}

/// One member after the other is away: among them are those that were named to gather the votes.
#[tokio::test(flavor = "multi_thread")]
async fn ccro_goes_on_whoever_is_away() {
    let mut cluster = Cluster::start_with(4, Protocol::Ccro).await;
    let load = Load::start(&cluster, 1);
    for id in cluster.ids() {
        cluster.kill(id);
        wait_writes(&load, 50).await;
        cluster.spawn(id);
        cluster.wait_healthy().await;
    }
    let acknowledged = load.finish().await;
    cluster.wait_equal().await;
    assert_all_there(&cluster, &acknowledged).await;
}

async fn set(cluster: &Cluster, protocol: Protocol) -> Result<Outcome, Error> {
    let client = cluster.client(1).await?;
    Ok(client.execute(Operation::SetProtocol { protocol }).await?.outcome)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_cluster_goes_over_from_row_to_row_and_keeps_it() {
    let mut cluster = Cluster::start(4).await;
    let load = Load::start(&cluster, 2);
    for protocol in [Protocol::Ccro, Protocol::Pbft, Protocol::BftRaft, Protocol::Ccro] {
        let outcome = set(&cluster, protocol).await.unwrap();
        assert!(
            matches!(outcome, Outcome::ProtocolSet { protocol: set, .. } if set == protocol),
            "{outcome:?}"
        );
        for id in cluster.ids() {
            cluster.wait_status(id, "gone over", |status| status.cluster.protocol == protocol).await;
        }
        wait_writes(&load, 50).await;
    }
    let refused = set(&cluster, Protocol::Raft).await;
    assert!(matches!(refused, Err(Error::Failed(Failure::Refused(_)))), "{refused:?}");
    for id in cluster.ids() {
        cluster.kill(id);
    }
    let acknowledged = load.finish().await;
    for id in cluster.ids() {
        cluster.spawn(id);
    }
    for id in cluster.ids() {
        let is_so = |status: &bftd_client::Status| {
            status.cluster.protocol == Protocol::Ccro && status.cluster.state == Health::Healthy
        };
        cluster.wait_status(id, "what it was set to", is_so).await;
    }
    cluster.wait_equal().await;
    assert_all_there(&cluster, &acknowledged).await;
}
