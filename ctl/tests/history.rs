//! What keys were, through `bftctl` as a process, against the daemon's own state machine behind the real admin socket: output, JSON, exit
//! codes.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::Path,
    process::Output,
    sync::{Arc, Mutex},
};

use bftd::admin::{PeerCredentials, Service};
use bftd_client::{At, Operation, Request, Response};
use bftd_core::{
    block::{Batch, Block, BlockRef, Executed, Header},
    crypto::{ClusterId, Digest, Signature},
    ids::{BatchNumber, Epoch, Incarnation, Index, MemberId, Term},
    kv::{MemoryTables, Outcome, StateMachine, query},
};
use common::bftctl;
use serde_json::{Value, json};

/// One member's state, without a cluster.
struct Store(Mutex<State>);

struct State {
    tables: MemoryTables,
    machine: StateMachine,
    /// What the next block has as its time.
    time_ms: u64,
    /// What somebody else does before the next transaction.
    meddles: Option<Operation>,
}

impl Service for Store {
    async fn handle(&self, _: PeerCredentials, request: Request) -> Response {
        let mut state = self.0.lock().unwrap();
        match request {
            Request::Execute(operation) => {
                let is_transaction = match &operation {
                    Operation::InSession(request) => matches!(request.open(), Ok(Operation::Transaction(_))),
                    operation => matches!(operation, Operation::Transaction(_)),
                };
                if is_transaction && let Some(meddles) = state.meddles.take() {
                    state.execute(&meddles);
                }
                let outcome = state.execute(&operation);
                Response::Executed { outcome, index: state.machine.head().executed.index.0, term: 1 }
            }
            Request::Query { query: asked, .. } => {
                let head = state.machine.head();
                let answer = query(&state.tables, &head, &asked).unwrap();
                let (revision, index) = (head.revision, head.executed.index.0);
                let at = At { revision, index, age_ms: 0, time_ms: state.time_ms };
                Response::Answered { answer, at }
            }
            other => panic!("{other:?}"),
        }
    }
}

impl State {
    fn new() -> Self {
        let mut tables = MemoryTables::default();
        let root = BlockRef { term: Term(0), index: Index(0), digest: Digest::ZERO };
        let machine = StateMachine::open(&mut tables, root).unwrap();
        Self { tables, machine, time_ms: 1, meddles: None }
    }

    fn execute(&mut self, operation: &Operation) -> Outcome {
        let parent = self.machine.head().executed;
        let batches = vec![Arc::new(Batch {
            origin: MemberId(1),
            incarnation: Incarnation(1),
            number: BatchNumber(1),
            requests: vec![operation.encode()],
            signature: Signature([0; 64]),
        })];
        let header = Header {
            cluster: ClusterId(Digest::ZERO),
            epoch: Epoch(0),
            term: Term(1),
            index: parent.index.next(),
            parent: parent.digest,
            time_ms: self.time_ms,
            batches: Block::batches_digest(&batches),
            executed: Executed { index: Index(0), state: Digest::ZERO },
            sole: false,
        };
        let block = Arc::new(Block::new(header, batches));
        self.machine.execute(&mut self.tables, &[block]).unwrap().remove(0).outcomes.remove(0).remove(0)
    }
}

/// A daemon of its own for one test.
struct Daemon {
    directory: tempfile::TempDir,
    store: Arc<Store>,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store(Mutex::new(State::new())));
        common::serve(directory.path(), Arc::clone(&store));
        Self { directory, store }
    }

    /// `a` is put at 2, 3 and 6, `b` at 4, deleted at 5; `c` is put at 7.
    fn with_history() -> Self {
        let daemon = Self::start();
        for words in ["put a one", "put a two", "put b old", "del b", "put a three", "put c last"] {
            daemon.ok(words);
        }
        daemon
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.store.0.lock().unwrap());
    }

    fn run(&self, words: &str) -> Output {
        let mut command = bftctl(self.directory.path());
        command.arg("--socket").arg(self.directory.path().join("s")).args(words.split(' '));
        command.output().unwrap()
    }

    /// What is on stdout.
    #[track_caller]
    fn ok(&self, words: &str) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(0), "{words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, words: &str) -> Value {
        let mut value: Value = serde_json::from_str(&self.ok(&format!("{words} -o json"))).unwrap();
        assert_eq!(value.as_object_mut().unwrap().remove("schema"), Some(json!("bftctl/v1")));
        value
    }

    /// What is on stderr; nothing is on stdout.
    #[track_caller]
    fn fails(&self, words: &str, code: i32) -> String {
        let output = self.run(words);
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(code), &b""[..]), "{words}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn file(&self, text: &[u8]) -> String {
        let path = self.directory.path().join("txn.json");
        fs::write(&path, text).unwrap();
        Path::to_str(&path).unwrap().to_owned()
    }
}

#[test]
fn a_key_is_read_as_it_was() {
    let daemon = Daemon::with_history();
    assert_eq!(daemon.ok("get a"), "three");
    for (revision, value) in [(2, "one"), (3, "two"), (5, "two"), (6, "three"), (7, "three")] {
        assert_eq!(daemon.ok(&format!("get a --rev {revision}")), value);
    }
    let then = daemon.json("get a --rev 5");
    assert_eq!(
        then,
        json!({"key": "a", "value": "two", "revision": 3, "create_revision": 2, "version": 2, "index": 6})
    );
    let told = daemon.fails("get b --rev 5", 3);
    assert!(told.contains("no such key at revision 5: b\n") && told.contains("bftctl history b"), "{told}");
    let told = daemon.fails("get a --rev 8", 1);
    assert!(told.contains("the store is at revision 7") && told.contains("up to 7"), "{told}");
    daemon.fails("get a --rev 0", 2);
}

#[test]
fn listings_are_of_a_revision_and_in_any_order() {
    let daemon = Daemon::with_history();
    assert_eq!(daemon.ok("ls"), "a\nc\n");
    assert_eq!(daemon.ok("ls --rev 4 --values -o value"), "a\ttwo\nb\told\n");
    assert_eq!(daemon.ok("ls --rev 4 --count"), "2\n");
    assert_eq!(daemon.json("ls b --rev 4 --count"), json!({"count": 1, "revision": 4, "index": 6}));
    let then = daemon.json("ls --rev 4");
    assert_eq!((&then["revision"], &then["count"], &then["more"]), (&json!(4), &json!(2), &json!(false)));
    assert_eq!(daemon.ok("ls --rev 1"), "");
    let told = daemon.fails("ls --rev 8", 1);
    assert!(told.contains("yet to come"), "{told}");

    // a: version 3, created 2, modified 6, "three". c: 1, 7, 7, "last". d: 2, 8, 9, "zzz".
    daemon.ok("put d 1");
    daemon.ok("put d zzz");
    for (order, listed) in [
        ("key", "a\nc\nd\n"),
        ("version", "c\nd\na\n"),
        ("created", "a\nc\nd\n"),
        ("modified", "a\nc\nd\n"),
        ("value", "c\na\nd\n"),
    ] {
        assert_eq!(daemon.ok(&format!("ls --sort {order}")), listed, "{order}");
        let back: Vec<_> = listed.lines().rev().map(|line| format!("{line}\n")).collect();
        assert_eq!(daemon.ok(&format!("ls --sort {order} --reverse")), back.concat(), "{order} back");
    }
    assert_eq!(daemon.ok("ls --reverse"), "d\nc\na\n");
    let newest = daemon.json("ls --sort modified --reverse --limit 1 --values --rev 8");
    assert_eq!((&newest["entries"][0]["value"], &newest["more"]), (&json!("1"), &json!(true)));
    for wrong in ["ls --sort size", "ls --limit 0", "ls --sort key --start-after a", "ls --count --reverse"] {
        daemon.fails(wrong, 2);
    }
}

#[test]
fn a_sorted_listing_that_is_cut_is_an_error() {
    let daemon = Daemon::start();
    let value = daemon.file(&vec![b'x'; 1 << 20]);
    for key in 0..9 {
        daemon.ok(&format!("put {key} @{value}"));
    }
    let output = daemon.run("ls --sort modified --values -o json");
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &listed["more"]), (Some(1), &json!(true)));
    assert!(listed["count"].as_u64().unwrap() < 9);
    let told: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(told["error"]["message"].as_str().unwrap().contains("is cut: it has the first 7 keys"), "{told}");
    // In the order of keys there is no end to it, and with a limit nobody asked for more.
    assert_eq!(daemon.json("ls --values")["count"], 9);
    assert_eq!(daemon.json("ls --values --sort modified --limit 5")["count"], 5);
    assert_eq!(daemon.json("ls --sort modified")["count"], 9);
}

#[test]
fn a_history_is_told_newest_first() {
    let daemon = Daemon::with_history();
    let told = daemon.ok("history a");
    let rows: Vec<Vec<_>> = told.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["REVISION", "VERSION", "CHANGE", "VALUE"]);
    assert_eq!(rows[1..], [["6", "3", "put", "three"], ["3", "2", "put", "two"], ["2", "1", "put", "one"]]);
    assert_eq!(daemon.ok("history b -o value"), "5\n4\told\n");
    let expected = json!({
        "key": "b", "count": 2, "more": false, "revision": 7, "index": 6,
        "changes": [{"revision": 5, "change": "deleted"},
                    {"revision": 4, "change": "put", "version": 1, "create_revision": 4, "value": "old"}],
    });
    assert_eq!(daemon.json("history b"), expected);
    let newest = daemon.json("history a --limit 1");
    assert_eq!((&newest["changes"][0]["revision"], &newest["more"]), (&json!(6), &json!(true)));
    assert_eq!(daemon.ok("history a --before 6 --limit 1 -o value"), "3\ttwo\n");
    assert!(daemon.fails("history x", 3).contains("no such key: x\n"));
    assert!(daemon.fails("history a --before 2", 3).contains("nothing is known of a before revision 2"));
    for wrong in ["history a --limit 0", "history a --before 0", "history a --limit many"] {
        daemon.fails(wrong, 2);
    }
}

/// An answer carries some 8 MiB: this history takes two.
#[test]
fn a_long_history_is_told_whole() {
    let daemon = Daemon::start();
    let value = daemon.file(&vec![b'x'; 1 << 20]);
    for _ in 0..12 {
        daemon.ok(&format!("put big @{value}"));
    }
    let told = daemon.json("history big");
    let revisions: Vec<_> =
        told["changes"].as_array().unwrap().iter().map(|it| it["revision"].as_u64().unwrap()).collect();
    assert_eq!(revisions, (2..=13).rev().collect::<Vec<_>>());
    assert_eq!((&told["more"], &told["count"]), (&json!(false), &json!(12)));
    assert_eq!(daemon.ok("history big -o value").lines().count(), 12);
    assert_eq!(daemon.ok("history big").matches("VERSION").count(), 1, "one header, however many answers");
    let told = daemon.json("history big --limit 10");
    assert_eq!((&told["more"], &told["count"]), (&json!(true), &json!(10)));
}

#[test]
fn a_key_goes_back_to_what_it_was() {
    let daemon = Daemon::with_history();
    let told = daemon.ok("revert a --rev 3");
    assert_eq!(told, "put back the value of revision 3 · revision 8 · block 7 · term 1\n");
    assert_eq!(daemon.ok("get a"), "two");
    assert_eq!(daemon.json("get a")["version"], 4, "a change like any other");
    // As it is already: nothing happens, nor is there a block.
    assert_eq!(daemon.ok("revert a --rev 4"), "nothing to change: the value is that of revision 4\n");
    assert_eq!(
        daemon.json("revert a --rev 3"),
        json!({"key": "a", "action": "unchanged", "as_of": 3, "revision": 8})
    );
    // It was not there.
    let deleted = daemon.json("revert c --rev 6");
    assert_eq!(
        deleted,
        json!({"key": "c", "action": "deleted", "as_of": 6, "revision": 9, "index": 8, "term": 1})
    );
    daemon.fails("get c", 3);
    assert!(
        daemon.ok("revert c --rev 6").contains("there is no such key now, nor was there one at revision 6")
    );
    // It is not there now.
    assert_eq!(daemon.ok("revert b --rev 4 -o value"), "put\n");
    assert_eq!(daemon.ok("get b"), "old");
    assert!(daemon.fails("revert a --rev 99", 1).contains("the store is at revision 10"));
    daemon.fails("revert a", 2);
    daemon.fails("revert a --rev 0", 2);
}

#[test]
fn who_is_faster_is_not_overwritten() {
    let daemon = Daemon::with_history();
    daemon.set(|state| state.meddles = Some(Operation::put("a".into(), "mine".into())));
    let told = daemon.fails("revert a --rev 3", 4);
    assert!(told.contains("nothing was changed: somebody else changed a meanwhile"), "{told}");
    assert!(told.contains("it is at revision 8 now; it was at revision 6 when it was read"), "{told}");
    assert_eq!(daemon.ok("get a"), "mine");
    daemon.set(|state| state.meddles = Some(Operation::Delete { key: "a".into() }));
    assert!(daemon.fails("revert a --rev 3", 4).contains("it is deleted now"));
    daemon.fails("get a", 3);
    daemon.set(|state| state.meddles = Some(Operation::put("a".into(), "again".into())));
    let told = daemon.fails("revert a --rev 3 -o json", 4);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["error"]["found"], &told["error"]["code"]), (&json!(10), &json!(4)));
    assert_eq!(daemon.ok("get a"), "again");
}

#[test]
fn what_is_compacted_is_gone_and_errors_say_what_is_left() {
    let daemon = Daemon::with_history();
    let told = daemon.fails("compact --rev 5", 2);
    assert!(told.contains("nobody to ask") && told.contains("add --yes"), "{told}");
    assert_eq!(daemon.ok("get a --rev 2"), "one", "it was not done");
    for wrong in
        ["compact", "compact --rev 0", "compact --rev 3 --keep 1d", "compact --keep 7", "compact --keep -1d"]
    {
        daemon.fails(&format!("{wrong} --yes"), 2);
    }
    assert!(daemon.fails("compact --rev 8 --yes", 1).contains("the store is at revision 7"));

    let told = daemon.ok("compact --rev 5 --yes");
    assert_eq!(told, "revision 5 is the oldest that can be read now · block 8 · term 1\n");
    assert_eq!((daemon.ok("get a --rev 5"), daemon.ok("get a")), ("two".to_owned(), "three".to_owned()));
    for words in
        ["get a --rev 4", "ls --rev 4", "ls --rev 1 --count", "revert a --rev 2", "ls --rev 4 --sort value"]
    {
        let told = daemon.fails(words, 1);
        assert!(
            told.contains("revision 5 is the oldest that can be read") && told.contains("--rev 5"),
            "{told}"
        );
    }
    let told: Value = serde_json::from_str(&daemon.fails("get a --rev 4 -o json", 1)).unwrap();
    assert_eq!(told["error"]["compacted"], 5);
    assert_eq!(daemon.ok("history a -o value"), "6\tthree\n3\ttwo\n");
    assert!(daemon.fails("history b", 3).contains("deleted before the oldest revision that can be read"));

    // Again, or less: that is so already.
    let told = daemon.ok("compact --rev 5 --yes");
    assert_eq!(told, "nothing to do: revision 5 is the oldest that can be read already\n");
    assert_eq!(daemon.json("compact --rev 3 --yes"), json!({"oldest": 5, "compacted": 5}));
    let done = daemon.json("compact --rev 7 --yes");
    assert_eq!(done, json!({"oldest": 7, "compacted": 7, "revision": 7, "index": 11, "term": 1}));
}

#[test]
fn what_is_young_is_kept() {
    const DAY: u64 = 86_400_000;
    let daemon = Daemon::start();
    daemon.set(|state| state.time_ms = 10 * DAY);
    daemon.ok("put a one");
    let told = daemon.ok("compact --keep 7d --yes");
    assert_eq!(told, "nothing is so old: all can be read, from revision 1 on · block 2 · term 1\n");
    assert_eq!(daemon.ok("compact --keep 7d --yes -o value"), "1\n");
    daemon.set(|state| state.time_ms = 14 * DAY);
    daemon.ok("put a two");
    daemon.set(|state| state.time_ms = 20 * DAY);
    daemon.ok("put a three");
    // What was 7 days ago can be read; what that replaced can't.
    assert_eq!(daemon.ok("compact --keep 6d12h --yes -o value"), "2\n");
    daemon.set(|state| state.time_ms = 21 * DAY);
    assert_eq!(daemon.ok("compact --keep 7days --yes -o value"), "3\n");
    assert_eq!(daemon.ok("get a --rev 3"), "two");
    daemon.fails("get a --rev 2", 1);
    assert_eq!(daemon.ok("compact --keep 0s --yes -o value"), "4\n");
    assert_eq!(daemon.ok("get a"), "three");
}

#[test]
fn transactions_read_what_was_asked() {
    let daemon = Daemon::with_history();
    let file = daemon.file(
        br#"{"compare": [{"key": "a", "lease": 0}, {"key": "x", "lease": "0"}],
             "then": [{"get": {"prefix": "", "keys_only": true}},
                      {"get": {"prefix": "", "rev": 4, "sort": "modified", "reverse": true}},
                      {"get": {"prefix": "", "count": true, "rev": 4}},
                      {"get": {"key": "none"}},
                      {"get": {"prefix": "", "limit": 1}}]}"#,
    );
    let taken = daemon.json(&format!("txn -f {file}"));
    let results = taken["results"].as_array().unwrap();
    assert_eq!(
        results[0]["get"]["entries"][0],
        json!({"key": "a", "revision": 6, "create_revision": 2, "version": 3})
    );
    let values: Vec<_> = results[1]["get"]["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["value"].as_str().unwrap())
        .collect();
    assert_eq!(values, ["old", "two"]);
    assert_eq!(results[2], json!({"get": {"count": 2}}));
    assert_eq!(results[3], json!({"get": {"entries": [], "more": false}}));
    assert_eq!(results[4]["get"]["more"], true);
    assert!(results[4]["get"].get("cut").is_none(), "as many as were asked for");
    let told = daemon.ok(&format!("txn -f {file}"));
    assert!(told.contains("\n  counted 2\n  found 0\n"), "{told}");
    assert!(told.starts_with("the comparison held") && told.contains("\n    a\t6\n"), "{told}");

    let refused = daemon.file(br#"{"then": [{"put": {"key": "a", "value": "", "lease": "7F"}}]}"#);
    let told = daemon.fails(&format!("txn -f {refused}"), 1);
    assert!(told.contains("there is no lease 7f") && told.contains("nothing was changed"), "{told}");
    daemon.ok("compact --rev 6 --yes");
    let told = daemon
        .fails(&format!("txn -f {}", daemon.file(br#"{"then": [{"get": {"key": "a", "rev": 4}}]}"#)), 1);
    assert!(told.contains("revision 6 is the oldest"), "{told}");
}

#[test]
fn what_a_transaction_did_not_read_is_not_taken_for_empty() {
    let daemon = Daemon::start();
    let value = daemon.file(&vec![b'x'; 1 << 20]);
    for key in ["a", "b", "c"] {
        daemon.ok(&format!("put {key} @{value}"));
    }
    // 2 MiB are answered: the first get takes one of them and is cut, the rest has no room.
    let gets = format!(r#"{{"then": [{}]}}"#, [r#"{"get": {"prefix": ""}}"#; 20].join(","));
    let file = daemon.file(gets.as_bytes());
    let output = daemon.run(&format!("txn -o json -f {file}"));
    assert_eq!(output.status.code(), Some(0));
    let taken: Value = serde_json::from_slice(&output.stdout).unwrap();
    let results = taken["results"].as_array().unwrap();
    assert_eq!((&results[0]["get"]["more"], &results[0]["get"]["cut"]), (&json!(true), &json!(true)));
    assert_eq!(results[0]["get"]["entries"].as_array().unwrap().len(), 1);
    // Each looks at 3 MiB of the 16 that there are.
    assert_eq!(results[19], json!({"get": {"not_read": true}}));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("not read, or cut: 20."), "{told}");
    let told = daemon.ok(&format!("txn -f {file}"));
    assert!(told.contains("found 1, cut: there are more") && told.contains("\n  not read: "), "{told}");
}

#[test]
fn transactions_that_are_too_long_or_too_deep_are_refused_in_words() {
    let daemon = Daemon::start();
    let mut long = br#"{"then": []}"#.to_vec();
    long.resize(16 << 20, b' ');
    assert!(daemon.ok(&format!("txn -f {}", daemon.file(&long))).starts_with("the comparison held"));
    long.push(b' ');
    let told = daemon.fails(&format!("txn -f {}", daemon.file(&long)), 2);
    assert!(told.contains("is too long: more than 16 MiB of JSON"), "{told}");

    let deep = |depth: usize| {
        let inner = r#"{"then": [{"put": {"key": "a", "value": "deep"}}]}"#;
        let text = format!("{}{inner}{}", r#"{"then": [{"txn": "#.repeat(depth), "}]}".repeat(depth));
        daemon.file(text.as_bytes())
    };
    daemon.ok(&format!("txn -f {}", deep(41)));
    assert_eq!(daemon.ok("get a"), "deep");
    let told = daemon.fails(&format!("txn -f {}", deep(42)), 2);
    assert!(told.contains("too deep in each other: 41 deep is as deep as it goes"), "{told}");
    daemon.fails(&format!("txn -f {}", deep(100_000)), 2);

    let told = daemon.fails(&format!("txn -f {}", daemon.file(b"{\"then\": \xff}")), 2);
    assert!(told.contains("is no JSON") && told.contains("value_base64"), "{told}");
    for (wrong, words) in [
        (r#"{"then": [{"get": {"key": "a", "rev": 0}}]}"#, "begin at 1"),
        (r#"{"then": [{"get": {"key": "a", "count": true, "limit": 3}}]}"#, "a number alone"),
        (r#"{"then": [{"get": {"key": "a", "sort": "size"}}]}"#, "unknown variant `size`"),
        (r#"{"then": [{"put": {"key": "a", "value": "", "lease": "xyz"}}]}"#, "is no lease"),
        (r#"{"then": [{"put": {"key": "a", "value": "", "lease": -1}}]}"#, "a lease is a number"),
        (r#"{"compare": [{"key": "a", "lease": 1, "version": 1}]}"#, "needs one of value"),
    ] {
        let told = daemon.fails(&format!("txn -f {}", daemon.file(wrong.as_bytes())), 2);
        assert!(told.contains(words), "{wrong}: {told}");
    }
}
