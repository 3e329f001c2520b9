//! Sessions on real daemons: what is sent again, after kill -9, through another daemon, or by hand, is executed once.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bftd_client::{
    Changed, Client, Consistency, Error, Expect, Failure, Operation, Outcome, Refusal, Session, SessionId,
    SessionOptions, SessionRequest,
};
use bftd_tests::{Cluster, PATIENCE, binary};
use tokio::task::JoinSet;

async fn sleep(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// The sockets of all nodes, some node's first.
fn sockets(cluster: &Cluster, first: u8) -> Vec<PathBuf> {
    let mut sockets: Vec<_> = cluster.ids().map(|id| cluster.home(id).join("s")).collect();
    sockets.rotate_left(usize::from(first) - 1);
    sockets
}

/// Kills one node after the other, and starts each again.
async fn kill_one_after_the_other(cluster: &mut Cluster, rounds: u32) {
    for _ in 0..rounds {
        for id in cluster.ids() {
            sleep(300).await;
            cluster.kill(id);
            sleep(500).await;
            cluster.spawn(id);
            cluster.wait_healthy().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_made_once_while_daemons_are_killed() {
    let mut cluster = Cluster::start(4).await;
    let options = SessionOptions { deadline: 2 * PATIENCE, ..SessionOptions::default() };
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut writers = JoinSet::new();
    for first in cluster.ids() {
        let session = Session::open(sockets(&cluster, first), options.clone()).await.unwrap();
        for writer in 0..8 {
            let (session, stopped) = (session.clone(), stopped.clone());
            writers.spawn(async move {
                let mut made = Vec::new();
                while !*stopped.borrow() {
                    let key = format!("{first}-{writer}-{}", made.len());
                    let changed = session.put(key.clone().into(), "1".into(), Expect::Anything).await;
                    made.push((key, changed.unwrap().revision()));
                }
                made
            });
        }
    }
    kill_one_after_the_other(&mut cluster, 2).await;
    stop.send(true).unwrap();
    let made: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
    assert!(made.len() > 500, "the load ran: {}", made.len());
    cluster.wait_equal().await;
    let reader = cluster.client(3).await.unwrap();
    for (key, revision) in &made {
        let (entry, _) = reader.get(key.clone().into(), Consistency::Local).await.unwrap();
        let entry = entry.unwrap();
        assert_eq!((entry.version, entry.mod_revision), (1, *revision), "{key}");
    }
    println!("{} puts, each made once", made.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_counts_right_while_daemons_are_killed() {
    let mut cluster = Cluster::start(4).await;
    let count = |first: u8| -> Child {
        let mut command = Command::new(binary("counter"));
        command.arg("300").args(sockets(&cluster, first)).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().unwrap()
    };
    let counters = [count(1), count(3)];
    kill_one_after_the_other(&mut cluster, 1).await;
    for mut counter in counters {
        let code = tokio::task::spawn_blocking(move || counter.wait().unwrap()).await.unwrap();
        assert!(code.success(), "{code}");
    }
    let client = cluster.client(2).await.unwrap();
    let (entry, _) = client.get("counter".into(), Consistency::Linearizable).await.unwrap();
    let entry = entry.unwrap();
    assert_eq!((&entry.value[..], entry.version), (&b"600"[..], 600));
}

/// What a daemon logs at its start when its log has blocks that its state has not.
const EXECUTED_AGAIN: &str = "executing the log again";

fn request(session: (SessionId, u64), sequence: u64) -> Operation {
    let operation = Operation::put(format!("k{sequence}").into(), "1".into()).encode();
    let (session, opened_ms) = session;
    Operation::InSession(SessionRequest { session, opened_ms, sequence, answered: 0, operation })
}

async fn versions(client: &Client, count: u64) -> Vec<u64> {
    let mut versions = Vec::new();
    for number in 0..count {
        let (entry, _) = client.get(format!("k{number}").into(), Consistency::Linearizable).await.unwrap();
        versions.push(entry.unwrap().version);
    }
    versions
}

/// Requests of a new session, each sent twice at once, through two daemons; and the answers.
async fn each_twice(cluster: &Cluster, count: u64) -> ((SessionId, u64), Vec<Changed>) {
    let (first, second) = (cluster.client(1).await.unwrap(), cluster.client(2).await.unwrap());
    let (_, at) = first.get("k0".into(), Consistency::Local).await.unwrap();
    let session = (SessionId(0x5e55_1011), at.time_ms);
    let mut answers: Vec<Changed> = Vec::new();
    for sequence in 0..count {
        let (one, other) = tokio::join!(
            first.execute(request(session, sequence)),
            second.execute(request(session, sequence))
        );
        let one = one.unwrap();
        assert!(matches!(one.outcome, Outcome::Put { .. }), "{one:?}");
        assert_eq!(one, other.unwrap(), "{sequence}");
        answers.push(one);
    }
    assert_eq!(versions(&first, count).await, vec![1; count as usize]);
    (session, answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_through_other_daemons_and_after_restarts_get_the_first_answer() {
    const COUNT: u64 = 200;
    let mut cluster = Cluster::start(4).await;
    let (session, answers) = each_twice(&cluster, COUNT).await;

    // After all were killed; and once more without their states, which are made anew from the log.
    for forgets in [false, true] {
        for id in cluster.ids() {
            cluster.kill(id);
        }
        for id in cluster.ids() {
            if forgets {
                fs::remove_file(cluster.home(id).join("data/state.redb")).unwrap();
            }
            cluster.spawn(id);
        }
        cluster.wait_healthy().await;
        assert!(!forgets || cluster.ids().all(|id| cluster.log(id).contains(EXECUTED_AGAIN)));
        let third = cluster.client(3).await.unwrap();
        for (sequence, answer) in (0..).zip(&answers) {
            assert_eq!(third.execute(request(session, sequence)).await.unwrap(), *answer, "{sequence}");
        }
        assert_eq!(versions(&third, COUNT).await, vec![1; COUNT as usize]);
    }
    cluster.wait_equal().await;

    // Nobody sets the protocol by way of a session, whatever he may do.
    let third = cluster.client(3).await.unwrap();
    let protocol = Operation::SetProtocol { protocol: bftd_core::protocol::Protocol::Ccro }.encode();
    let (session, opened_ms) = session;
    let sneaky = SessionRequest { session, opened_ms, sequence: COUNT, answered: 0, operation: protocol };
    let refused = third.execute(Operation::InSession(sneaky)).await;
    assert!(matches!(refused, Err(Error::Failed(Failure::Refused(Refusal::NotInSession)))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_after_a_restart_get_the_first_answer_from_the_checkpoint_alone() {
    const COUNT: u64 = 200;
    let mut cluster = Cluster::start(4).await;
    let (session, answers) = each_twice(&cluster, COUNT).await;
    // Every member has executed all, and stops in order, which writes a checkpoint of all that it has executed.
    cluster.wait_equal().await;
    let last = answers.iter().map(|answer| answer.index).max().unwrap();
    for id in cluster.ids() {
        assert!(cluster.status(id).await.unwrap().cluster.executed >= last, "node {id}");
    }
    for id in cluster.ids() {
        assert_eq!(cluster.stop(id), Some(0), "node {id}");
    }
    let ended: Vec<_> = cluster.ids().map(|id| cluster.log(id).len()).collect();
    for id in cluster.ids() {
        cluster.spawn(id);
    }
    cluster.wait_healthy().await;
    for (id, ended) in cluster.ids().zip(ended) {
        let log = cluster.log(id);
        assert!(
            !log[ended..].contains(EXECUTED_AGAIN),
            "node {id} has a session from elsewhere: {}",
            &log[ended..]
        );
    }
    for id in [3, 4] {
        let client = cluster.client(id).await.unwrap();
        for (sequence, answer) in (0..).zip(&answers) {
            assert_eq!(
                client.execute(request(session, sequence)).await.unwrap(),
                *answer,
                "{sequence} at node {id}"
            );
        }
        assert_eq!(versions(&client, COUNT).await, vec![1; COUNT as usize]);
    }
    cluster.wait_equal().await;
}
