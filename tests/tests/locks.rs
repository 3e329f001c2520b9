//! Locks on real daemons: the client's, and `bftctl lock`.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    future::pending,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bftd_client::{
    Bytes, Client, Consistency, Lock, Part, Session, SessionOptions, Transaction, TransactionStep as Step,
};
use bftd_tests::{Cluster, binary};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

const TTL: Duration = Duration::from_secs(2);

async fn party(cluster: &Cluster, id: u8) -> (Client, Session) {
    let client = cluster.client(id).await.unwrap();
    let session = Session::open([cluster.home(id).join("s")], SessionOptions::default()).await.unwrap();
    (client, session)
}

/// What a write of the holder is: it must come in time, or not at all.
fn fenced(lock: &Lock, value: &str) -> Transaction {
    let put = Step::Put { key: "guarded".into(), value: Bytes::copy_from_slice(value.as_bytes()), lease: 0 };
    Transaction { parts: vec![Part { compare: vec![lock.fence()], then: vec![put], otherwise: vec![] }] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_goes_from_holder_to_holder_in_the_order_of_asking() {
    let cluster = Cluster::start(4).await;
    let (a, b, c) = (party(&cluster, 1).await, party(&cluster, 2).await, party(&cluster, 3).await);
    let first = Lock::acquire(&a.0, &a.1, b"leader", TTL, pending()).await.unwrap();
    let second = tokio::spawn({
        let b = b.clone();
        async move { Lock::acquire(&b.0, &b.1, b"leader", TTL, pending()).await }
    });
    sleep(Duration::from_millis(700)).await;
    let third = tokio::spawn({
        let c = c.clone();
        async move { Lock::acquire(&c.0, &c.1, b"leader", TTL, pending()).await }
    });
    // Longer than a lease: it is kept as long as its holder lives.
    sleep(TTL * 2).await;
    assert!(!second.is_finished() && !third.is_finished());
    assert!(a.1.transact(fenced(&first, "first")).await.unwrap().0.succeeded);
    let token = first.token();
    let fence = fenced(&first, "late");
    first.release().await.unwrap();
    let second = timeout(Duration::from_secs(5), second).await.unwrap().unwrap().unwrap();
    assert!(second.token() > token && !third.is_finished());
    assert!(!a.1.transact(fence).await.unwrap().0.succeeded);
    assert!(b.1.transact(fenced(&second, "second")).await.unwrap().0.succeeded);
    let token = second.token();
    // One that just goes away is waited for as long as its lease lives.
    let since = Instant::now();
    drop(second);
    let third = timeout(TTL * 4, third).await.unwrap().unwrap().unwrap();
    assert!(third.token() > token && since.elapsed() > TTL / 3, "{:?}", since.elapsed());
    // Who gives up leaves the queue.
    let gave_up = Lock::acquire(&a.0, &a.1, b"leader", TTL * 100, sleep(TTL / 4)).await;
    assert!(matches!(gave_up, Err(bftd_client::LockError::GaveUp)));
    assert_eq!(
        a.0.count(bftd_client::Span::Prefix("leader/".into()), Consistency::Linearizable).await.unwrap().0,
        1
    );
    third.release().await.unwrap();
    let (leases, _) = a.0.leases(None, Consistency::Linearizable).await.unwrap();
    assert_eq!(leases, []);
    cluster.wait_equal().await;
}

/// `bftctl lock` of a node, with a script as its command.
fn lock(cluster: &Cluster, id: u8, script: &str) -> Child {
    let mut command = Command::new(binary("bftctl"));
    command.arg("--socket").arg(cluster.home(id).join("s"));
    command.args(["lock", "job", "--ttl", "2s", "--", "sh", "-c", script]);
    command.env("BFTCTL", binary("bftctl")).env("DIR", cluster.path());
    command.env("BFTCTL_SOCKET", cluster.home(id).join("s"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

async fn wait_for(path: &std::path::Path) -> String {
    let since = Instant::now();
    loop {
        match fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => assert!(since.elapsed() < Duration::from_secs(20), "{} comes", path.display()),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// The holder is stopped beyond its lease, and goes on: too late.
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_was_paused_writes_nothing_late() {
    let cluster = Cluster::start(4).await;
    // The command itself is not stopped: it goes on writing while nobody keeps its lease.
    let first = lock(
        &cluster,
        1,
        "echo $BFTCTL_LOCK_TOKEN > $DIR/first; while [ ! -e $DIR/go ]; do sleep 0.1; done; \
         $BFTCTL put guarded late; echo $? > $DIR/late",
    );
    let token: u64 = wait_for(&cluster.path().join("first")).await.parse().unwrap();
    let pid = Pid::from_child(&first);
    kill_process(pid, Signal::STOP).unwrap();
    let second =
        lock(&cluster, 2, "echo $BFTCTL_LOCK_TOKEN > $DIR/second; $BFTCTL put guarded in-time; exit 7");
    let higher: u64 = wait_for(&cluster.path().join("second")).await.parse().unwrap();
    assert!(higher > token);
    assert_eq!(second.wait_with_output().unwrap().status.code(), Some(7), "the command's own");
    fs::write(cluster.path().join("go"), "").unwrap();
    assert_eq!(wait_for(&cluster.path().join("late")).await, "4", "the fence does not hold any more");
    kill_process(pid, Signal::CONT).unwrap();
    let ended = first.wait_with_output().unwrap();
    let words = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.code().is_some_and(|code| code <= 1), "{:?} {words}", ended.status);
    let client = cluster.client(3).await.unwrap();
    let (entry, _) = client.get("guarded".into(), Consistency::Linearizable).await.unwrap();
    assert_eq!(entry.unwrap().value, "in-time");
}
