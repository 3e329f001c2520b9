//! What keys were, on real daemons, through `bftctl`: the same on all members, after a restart, and after compaction.
#![allow(clippy::unwrap_used)]

use std::{
    process::{Command, Output},
    time::Duration,
};

use bftd_tests::{Cluster, binary};
use serde_json::Value;

fn run(cluster: &Cluster, id: u8, words: &str) -> Output {
    let mut command = Command::new(binary("bftctl"));
    command.arg("--socket").arg(cluster.home(id).join("s")).args(words.split(' '));
    command.output().unwrap()
}

#[track_caller]
fn ok(cluster: &Cluster, id: u8, words: &str) -> String {
    let output = run(cluster, id, words);
    assert_eq!(output.status.code(), Some(0), "{id}, {words}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fails(cluster: &Cluster, id: u8, words: &str, code: i32) -> String {
    let output = run(cluster, id, words);
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(code), &b""[..]),
        "{id}, {words}: {output:?}"
    );
    String::from_utf8(output.stderr).unwrap()
}

/// What all members answer, with the exit code: but for the block that it is answered from, it is the same.
#[track_caller]
fn all(cluster: &Cluster, words: &str) -> (Option<i32>, Value) {
    let mut answers = cluster.ids().map(|id| {
        let output = run(cluster, id, &format!("{words} -o json"));
        let mut answer: Value =
            serde_json::from_slice(&[output.stdout, output.stderr].concat()).expect("one object");
        answer.as_object_mut().unwrap().remove("index");
        (output.status.code(), answer)
    });
    let first = answers.next().unwrap();
    assert!(answers.all(|answer| answer == first), "{words}: the members differ from {first:?}");
    first
}

/// Puts, deletes and a transaction: `a` is put at 2, 3 and 6, `b` at 4, deleted at 5, and put back at 6 with `a`.
fn write_history(cluster: &Cluster) {
    ok(cluster, 1, "put a one");
    ok(cluster, 2, "put a two");
    ok(cluster, 3, "put b old");
    ok(cluster, 4, "del b");
    let file = cluster.path().join("txn.json");
    let both =
        r#"{"then": [{"put": {"key": "a", "value": "three"}}, {"put": {"key": "b", "value": "back"}}]}"#;
    std::fs::write(&file, both).unwrap();
    ok(cluster, 1, &format!("txn -f {}", file.display()));
}

/// What can be read of it, of every revision there is, as all members say.
fn everything(cluster: &Cluster, from: u64, to: u64) -> Vec<(Option<i32>, Value)> {
    let of_revisions = (from..=to).flat_map(|revision| {
        [
            all(cluster, &format!("get a --rev {revision}")),
            all(cluster, &format!("get b --rev {revision}")),
            all(cluster, &format!("ls --rev {revision} --values --sort value --reverse")),
        ]
    });
    let mut seen: Vec<_> = of_revisions.collect();
    seen.push(all(cluster, "history a"));
    seen.push(all(cluster, "history b"));
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_know_what_was_and_still_do_after_restarts() {
    let mut cluster = Cluster::start(4).await;
    write_history(&cluster);
    assert_eq!(ok(&cluster, 2, "get a --rev 2"), "one");
    assert_eq!(ok(&cluster, 3, "get b --rev 4"), "old");
    assert_eq!(ok(&cluster, 3, "ls --rev 5"), "a\n");
    assert_eq!(ok(&cluster, 4, "history b -o value"), "6\tback\n5\n4\told\n");
    fails(&cluster, 1, "get b --rev 5", 3);
    assert!(fails(&cluster, 1, "get a --rev 7", 1).contains("the store is at revision 6"));
    let before = everything(&cluster, 1, 6);

    // One that ends in order, and one that does not: it executes again what it had not made durable.
    assert_eq!(cluster.stop(2), Some(0));
    cluster.kill(3);
    cluster.spawn(2);
    cluster.spawn(3);
    cluster.wait_healthy().await;
    cluster.wait_equal().await;
    assert_eq!(everything(&cluster, 1, 6), before);

    let told = ok(&cluster, 2, "revert a --rev 3");
    assert!(told.starts_with("put back the value of revision 3 · revision 7"), "{told}");
    assert_eq!(all(&cluster, "get a").1["value"], "two");
    assert_eq!(ok(&cluster, 3, "revert b --rev 5 -o value"), "deleted\n");
    assert_eq!(all(&cluster, "get b").0, Some(3));
    assert!(ok(&cluster, 4, "revert b --rev 5").starts_with("nothing to change"));
    cluster.wait_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_compaction_all_members_know_the_same_rest() {
    let mut cluster = Cluster::start(4).await;
    write_history(&cluster);
    assert!(fails(&cluster, 1, "compact --rev 5", 2).contains("--yes"));
    assert!(ok(&cluster, 1, "compact --keep 1h --yes").starts_with("nothing is so old"));
    let before = everything(&cluster, 5, 6);
    assert_eq!(ok(&cluster, 2, "compact --rev 5 --yes -o value"), "5\n");
    assert_eq!(ok(&cluster, 3, "compact --rev 4 --yes -o value"), "5\n");
    cluster.wait_equal().await;
    for id in cluster.ids() {
        let told = fails(&cluster, id, "get a --rev 4", 1);
        assert!(told.contains("revision 5 is the oldest that can be read"), "{told}");
        let cluster = cluster.status(id).await.unwrap().cluster;
        assert_eq!((cluster.revision, cluster.compacted), (6, 5));
    }
    // The deletion at 5 is what b was then: nothing that history tells of.
    let (of_revisions, _) = before.split_at(before.len() - 2);
    let after = everything(&cluster, 5, 6);
    assert_eq!(&after[..of_revisions.len()], of_revisions);
    assert_eq!(ok(&cluster, 1, "history a -o value"), "6\tthree\n3\ttwo\n");
    assert_eq!(ok(&cluster, 1, "history b -o value"), "6\tback\n");

    // Idle members trim what is compacted. It changes nothing that can be read, before or after a restart.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(everything(&cluster, 5, 6), after);
    let digest = cluster.wait_equal().await;
    assert_eq!(cluster.stop(4), Some(0));
    cluster.kill(1);
    cluster.spawn(1);
    cluster.spawn(4);
    cluster.wait_healthy().await;
    assert_eq!(cluster.wait_equal().await, digest);
    assert_eq!(everything(&cluster, 5, 6), after);
    ok(&cluster, 1, "revert a --rev 5");
    assert_eq!(all(&cluster, "get a").1["value"], "two");
    cluster.wait_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_and_changes_nothing() {
    let cluster = Cluster::start(1).await;
    ok(&cluster, 1, "put a one");
    for (words, code, told) in [
        ("get a --rev 0", 2, "--rev"),
        ("get a --rev -3", 2, "unexpected argument"),
        ("get a --rev 18446744073709551615", 1, "the store is at revision 2"),
        ("ls --rev 3 --count", 1, "yet to come"),
        ("ls --sort size", 2, "modified"),
        ("history", 2, "<KEY>"),
        ("history nobody", 3, "no such key: nobody"),
        ("revert a --rev 99", 1, "bftctl status"),
        ("compact --yes", 2, "--keep"),
        ("compact --rev 99 --yes", 1, "the store is at revision 2"),
        ("compact --keep soon --yes", 2, "soon"),
    ] {
        let words_told = fails(&cluster, 1, words, code);
        assert!(words_told.contains(told), "{words}: {words_told}");
    }
    let status = String::from_utf8(run(&cluster, 1, "status").stdout).unwrap();
    assert!(status.lines().next().unwrap().ends_with("· revision 2"), "{status}");
    assert_eq!(ok(&cluster, 1, "history a -o value"), "2\tone\n");
}
