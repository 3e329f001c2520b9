//! Leases on real daemons.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use bftd_client::{Client, Consistency, Error, Expect, Failure, Operation, Refusal, Span};
use bftd_tests::Cluster;
use tokio::time::sleep;

async fn put_on(client: &Client, key: &'static str, lease: u64) {
    let put = Operation::Put { key: key.into(), value: "".into(), expect: Expect::Anything, lease };
    client.execute(put).await.unwrap();
}

async fn count(client: &Client) -> u64 {
    client.count(Span::Prefix("".into()), Consistency::Linearizable).await.unwrap().0
}

fn is_no_such(error: &Error) -> bool {
    matches!(error, Error::Failed(Failure::Refused(Refusal::NoSuchLease { .. })))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_when_nobody_keeps_it_and_nobody_writes() {
    let cluster = Cluster::start(4).await;
    let (one, two) = (cluster.client(1).await.unwrap(), cluster.client(2).await.unwrap());
    let (kept, _) = one.grant_lease(0, Duration::from_secs(2)).await.unwrap();
    let (left, _) = two.grant_lease(0xdecaf, Duration::from_secs(2)).await.unwrap();
    assert_eq!(left, 0xdecaf);
    put_on(&one, "kept", kept).await;
    put_on(&one, "left/a", left).await;
    put_on(&two, "left/b", left).await;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(5) {
        two.keep_lease(kept).await.unwrap();
        sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(count(&one).await, 1);
    let (leases, _) = one.leases(Some(kept), Consistency::Linearizable).await.unwrap();
    assert_eq!((leases.len(), &leases[0].keys[..]), (1, &["kept".into()][..]));
    assert!(is_no_such(&one.keep_lease(left).await.unwrap_err()));
    // From now on nobody asks anything of the cluster until its time is up.
    sleep(Duration::from_secs(4)).await;
    let (entry, _) = one.get("kept".into(), Consistency::Local).await.unwrap();
    assert_eq!(entry, None, "a block is made when a lease must end");
    cluster.wait_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_of_the_leader_shortens_a_lease() {
    let mut cluster = Cluster::start(4).await;
    let client = cluster.client(2).await.unwrap();
    let ttl = Duration::from_secs(4);
    let (lease, _) = client.grant_lease(0, ttl).await.unwrap();
    put_on(&client, "held", lease).await;
    let since = Instant::now();
    let leader = client.status().await.unwrap().cluster.leader;
    let asked = if leader == 2 { 3 } else { 2 };
    let client = cluster.client(asked).await.unwrap();
    cluster.kill(leader);
    while count_if_known(&client).await != Some(0) {
        assert!(since.elapsed() < Duration::from_secs(30), "it ends under the next leader");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(since.elapsed() >= ttl, "it ended after {:?}", since.elapsed());
    cluster.spawn(leader);
    cluster.wait_healthy().await;
    cluster.wait_equal().await;
}

/// How many keys there are, if that can be said now.
async fn count_if_known(client: &Client) -> Option<u64> {
    let counted = client.count(Span::Prefix("".into()), Consistency::Linearizable).await;
    counted.ok().map(|(count, _)| count)
}
