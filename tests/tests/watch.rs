//! Watches of real daemons: nothing lost, nothing twice, whatever happens to the daemon.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bftd_client::{
    Answer, Bytes, Client, CompactUntil, Consistency, Entry, Error, Event, Expect, Failure, Kinds, News,
    Position, Query, Span, Watch, WatchError, Watched, Watcher, watch::Changes,
};
use bftd_tests::{Cluster, PATIENCE, binary, load::Load};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{task::JoinSet, time::timeout};

const RESTARTS: usize = 20;

fn all() -> Span {
    Span::Prefix(Bytes::new())
}

async fn changes(watcher: &mut Watcher) -> Changes {
    match timeout(PATIENCE, watcher.next()).await.expect("news in time").unwrap() {
        News::Changes(changes) => changes,
        other => panic!("{other:?}"),
    }
}

async fn put(client: &Client, key: &str, value: impl Into<Bytes>) -> u64 {
    client
        .put(Bytes::copy_from_slice(key.as_bytes()), value.into(), Expect::Anything)
        .await
        .unwrap()
        .revision()
}

/// The store's revision, by a node's word.
async fn revision(client: &Client, consistency: Consistency) -> u64 {
    client.get("none".into(), consistency).await.unwrap().1.revision
}

/// All changes up to a revision, by the history of a node.
async fn history(client: &Client, until: u64) -> Vec<Event> {
    let mut from = Position::start_of(1);
    let mut all_events = Vec::new();
    while from.revision <= until {
        let watched = Watched { keys: all(), from, with_previous: false, kinds: Kinds::All };
        let (answer, _) = client.query(Query::Events(watched), Consistency::Linearizable).await.unwrap();
        let Answer::Events(found) = answer else { panic!("{answer:?}") };
        all_events.extend(found.events);
        from = found.next;
    }
    all_events.retain(|event| event.revision <= until);
    all_events
}

/// The daemon that serves the watch is killed and stopped in turns, while every node is written to.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_the_log_over_twenty_restarts() {
    let mut cluster = Cluster::start(4).await;
    let watch = Watch::new(all()).from_revision(1).with_interruptions();
    let mut watcher = cluster.client(1).await.unwrap().watch(watch).unwrap();
    let (told, until) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(u64::MAX)));
    let watching = {
        let (told, until) = (told.clone(), until.clone());
        tokio::spawn(async move {
            let (mut events, mut interruptions) = (Vec::new(), 0);
            while told.load(Ordering::SeqCst) < until.load(Ordering::SeqCst) {
                match timeout(PATIENCE, watcher.next()).await.expect("news in time").unwrap() {
                    News::Changes(Changes { revision, events: more, .. }) => {
                        assert!(more.iter().all(|event| event.revision == revision));
                        told.store(revision, Ordering::SeqCst);
                        events.extend(more);
                    }
                    News::Interrupted(_) => interruptions += 1,
                    News::Resumed => {}
                    News::Progress(_) => panic!("nobody asked for it"),
                }
            }
            (events, interruptions)
        })
    };
    let load = Load::start(&cluster, 2);
    let other = cluster.client(2).await.unwrap();
    for round in 0..RESTARTS {
        if round % 2 == 0 {
            cluster.kill(1);
        } else {
            assert_eq!(cluster.stop(1), Some(0));
        }
        cluster.spawn(1);
        // The daemon has caught up, and its watcher as well.
        let head = revision(&other, Consistency::Local).await;
        let deadline = Instant::now() + PATIENCE;
        while told.load(Ordering::SeqCst) <= head {
            assert!(
                Instant::now() < deadline,
                "round {round}: nothing is told; the log:\n{}",
                cluster.log(1)
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    load.finish().await;
    let last = put(&other, "last", "x").await;
    until.store(last, Ordering::SeqCst);
    let (events, interruptions) = watching.await.unwrap();
    let expected = history(&cluster.client(3).await.unwrap(), last).await;
    assert!(expected.len() > 1000, "too little happened: {}", expected.len());
    assert!(interruptions >= RESTARTS, "only {interruptions} interruptions");
    let first = events.iter().zip(&expected).position(|(told, is)| told != is);
    assert_eq!(first, None, "the first difference, of {} and {} changes", events.len(), expected.len());
    assert_eq!(events.len(), expected.len());
}

/// How much memory a node's process has, in KiB.
fn memory(cluster: &Cluster, id: u8) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", cluster.pid(id))).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_watchers_on_one_connection_cost_little_and_hold_up_nobody() {
    let mut cluster = Cluster::start(4).await;
    let client = cluster.client(1).await.unwrap();
    let before = memory(&cluster, 1);
    let first = put(&client, "first", "x").await;
    let mut watchers = JoinSet::new();
    for at in 0..1000 {
        let keys = match at % 3 {
            0 => Span::Key(format!("w{at:04}").into()),
            1 => Span::Prefix(format!("w{at:04}").into()),
            _ => Span::Range { from: format!("w{at:04}").into(), end: format!("w{:04}", at + 1).into() },
        };
        let mut watcher = client.watch(Watch::new(keys).from_revision(first)).unwrap();
        watchers.spawn(async move {
            let told = changes(&mut watcher).await;
            // The next question of each waits until the daemon stops.
            let waiting = tokio::spawn(async move { watcher.next().await });
            (at, told.events, waiting)
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut slowest = Duration::ZERO;
    let mut puts = Vec::new();
    for at in 0..1000 {
        let began = Instant::now();
        puts.push(put(&client, &format!("w{at:04}"), "x").await);
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "a put took {slowest:?}");
    let mut waiting = Vec::new();
    while let Some(told) = watchers.join_next().await {
        let (at, events, more) = told.unwrap();
        assert_eq!(events.iter().map(|event| event.revision).collect::<Vec<_>>(), [puts[at]]);
        waiting.push(more);
    }
    let grown = memory(&cluster, 1).saturating_sub(before);
    println!("1,000 watchers: {grown} KiB more, the slowest put {slowest:?}");
    assert!(grown < 100 << 10, "{grown} KiB");

    // More than the connection may have: refused, and nothing else is.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut more = JoinSet::new();
    for _ in 0..100 {
        let mut watcher = client.watch(Watch::new(all()).from_revision(u64::MAX)).unwrap();
        more.spawn(async move { timeout(Duration::from_secs(1), watcher.next()).await });
    }
    let mut refused = 0;
    while let Some(ended) = more.join_next().await {
        if let Ok(told) = ended.unwrap() {
            let limit = matches!(
                told,
                Err(WatchError::Failed(Error::Failed(Failure::TooManyWatches { limit: 1024 })))
            );
            assert!(limit, "{told:?}");
            refused += 1;
        }
    }
    assert_eq!(refused, 76);
    put(&client, "still", "works").await;

    // A daemon that is to stop waits for none of them.
    let began = Instant::now();
    assert_eq!(cluster.stop(1), Some(0));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "they wait for it to come back");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_gets_all_of_it_until_it_is_compacted() {
    let cluster = Cluster::start(4).await;
    let client = cluster.client(1).await.unwrap();
    let mut slow = client.watch(Watch::new(Span::Prefix("k".into()))).unwrap();
    assert!(timeout(Duration::from_millis(300), slow.next()).await.is_err(), "it begins now");
    let start = revision(&client, Consistency::Linearizable).await;
    // 24 MiB: more than one answer.
    let mut puts = JoinSet::new();
    for at in 0..1200 {
        let client = client.clone();
        puts.spawn(async move { put(&client, &format!("k{at}"), vec![b'x'; 20 << 10]).await });
    }
    let mut revisions = Vec::new();
    while let Some(put) = puts.join_next().await {
        revisions.push(put.unwrap());
    }
    revisions.sort_unstable();
    let deleted = client.delete_prefix("k1".into()).await.unwrap().revision();
    for revision in &revisions {
        assert_eq!(changes(&mut slow).await.revision, *revision);
    }
    let Changes { revision, events, more } = changes(&mut slow).await;
    assert_eq!((revision, events.len(), more), (deleted, 1 + 10 + 100 + 200, false));

    // What keys were, and one kind alone.
    let watch =
        Watch::new(Span::Key("k1".into())).from_revision(start).with_previous().kinds(Kinds::Deletions);
    let told = changes(&mut client.watch(watch).unwrap()).await;
    let previous = |event: &Event| event.previous.as_ref().map(|Entry { version, .. }| *version);
    assert_eq!(told.events.iter().map(previous).collect::<Vec<_>>(), [Some(1)]);

    let mut late = client.watch(Watch::new(all()).from_revision(start)).unwrap();
    let (compacted, _) = client.compact(CompactUntil::Revision(deleted)).await.unwrap();
    assert_eq!(compacted, deleted);
    let told = late.next().await;
    assert!(
        matches!(told, Err(WatchError::Compacted { compacted, from }) if compacted == deleted && from == start),
        "{told:?}"
    );
    let output = bftctl(&cluster, &["watch", "k1", "--from-rev", "2"]).output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    let next = format!("--from-rev {}", deleted + 1);
    assert!(words.contains(&format!("up to {deleted} are gone")) && words.contains(&next), "{words}");
    // Who had been told all of it goes on.
    let put = put(&client, "k", "y").await;
    assert_eq!(changes(&mut slow).await.revision, put);
}

fn bftctl(cluster: &Cluster, words: &[&str]) -> Command {
    let mut command = Command::new(binary("bftctl"));
    command.arg("--socket").arg(cluster.home(1).join("s")).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Ends a process as Ctrl-C does. Says its exit code, and what it had to say.
fn interrupt(mut child: Child) -> (Option<i32>, String) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).unwrap();
    let status = child.wait().unwrap();
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    (status.code(), words)
}

#[tokio::test(flavor = "multi_thread")]
async fn bftctl_prints_changes_and_runs_commands() {
    let mut cluster = Cluster::start(4).await;
    let client = cluster.client(2).await.unwrap();
    let from = put(&client, "a/1", "one").await;
    put(&client, "b", "not this").await;
    client.delete("a/1".into()).await.unwrap();
    let from_text = from.to_string();
    let mut child =
        bftctl(&cluster, &["watch", "--prefix", "a/", "--from-rev", &from_text, "--prev"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), format!("{from}\tput\ta/1\tone"));
    assert_eq!(lines.next().unwrap().unwrap(), format!("{}\tdelete\ta/1\t\tone", from + 2));
    // Over a restart.
    cluster.kill(1);
    let put_meanwhile = put(&client, "a/2", "two").await;
    cluster.spawn(1);
    assert_eq!(lines.next().unwrap().unwrap(), format!("{put_meanwhile}\tput\ta/2\ttwo"));
    let (code, words) = interrupt(child);
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("the daemon does not answer") && words.contains("answers again"), "{words}");
    assert!(words.contains(&format!("go on with --from-rev {}", put_meanwhile + 1)), "{words}");

    // A command gets each change, the value on stdin; one that fails ends it, at that revision.
    let told = cluster.path().join("told");
    let script = format!(
        "{{ echo \"$BFTCTL_EVENT $BFTCTL_REVISION $BFTCTL_KEY\"; cat; echo; }} >> {}; test $BFTCTL_KEY != a/2",
        told.display()
    );
    let words = [
        "watch",
        "--from",
        "a/",
        "--end",
        "b",
        "--from-rev",
        &from_text,
        "-o",
        "json",
        "--",
        "sh",
        "-c",
        &script,
    ];
    let output = bftctl(&cluster, &words).output().unwrap();
    let failure: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((output.status.code(), &failure["error"]["revision"]), (Some(1), &put_meanwhile.into()));
    let expected = format!("put {from} a/1\none\ndelete {} a/1\n\nput {put_meanwhile} a/2\ntwo\n", from + 2);
    assert_eq!(fs::read_to_string(&told).unwrap(), expected);

    for words in
        [&["watch"][..], &["watch", "a", "--prefix", "b"], &["watch", "a", "--end", "b"], &["watch", ""]]
    {
        assert_eq!(bftctl(&cluster, words).output().unwrap().status.code(), Some(2), "{words:?}");
    }
}

/// Puts a second, by so many clients of one connection.
async fn throughput(client: &Client, clients: usize, time: Duration) -> f64 {
    let (began, count) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for at in 0..clients {
        let (client, count) = (client.clone(), count.clone());
        tasks.spawn(async move {
            while began.elapsed() < time {
                put(&client, &format!("load{at}"), vec![b'x'; 256]).await;
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

/// Puts beside none and beside 1,000 watchers of other keys, in turns; and beside 10 that watch all of them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn what_watchers_cost() {
    let cluster = Cluster::start(4).await;
    let client = cluster.client(1).await.unwrap();
    let time = Duration::from_secs(3);
    throughput(&client, 256, time).await;
    for round in 0..3 {
        let without = throughput(&client, 256, time).await;
        for (count, keys) in [(1000, "w"), (10, "load")] {
            let (watching, told) = (cluster.client(1).await.unwrap(), Arc::new(AtomicU64::new(0)));
            let mut watchers = JoinSet::new();
            for at in 0..count {
                let name = if count == 1000 { format!("{keys}{at}") } else { keys.to_owned() };
                let (mut watcher, told) =
                    (watching.watch(Watch::new(Span::Prefix(name.into()))).unwrap(), told.clone());
                watchers.spawn(async move {
                    while let Ok(News::Changes(changes)) = watcher.next().await {
                        told.fetch_add(changes.events.len() as u64, Ordering::Relaxed);
                    }
                });
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            let with = throughput(&client, 256, time).await;
            let (rate, told) = (with / without, told.load(Ordering::Relaxed));
            println!(
                "round {round}: {without:.0} puts/s, {with:.0} beside {count} of `{keys}`: {rate:.2}; {told} changes told"
            );
            watchers.shutdown().await;
        }
    }
}
