//! `bftctl` as a process, against an in-memory store behind the real admin socket: output, JSON, exit codes.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bftd::admin::{PeerCredentials, Service};
use bftd_client::{
    Answer, At, BlockAt, Bytes, ClusterStatus, Consistency, DiskUse, Entry, Expect, Failure, FaultChange,
    Health, Listing, MemberStatus, NodeTally, Operation, Outcome, Phase, Query, Refusal, Request, Response,
    Status, Step, Trace, Want, genesis::Protocol,
};
use common::bftctl;
use serde_json::{Value, json};

/// A store that knows the operations, and fails as it is told.
#[derive(Default)]
struct Store {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    revision: u64,
    entries: BTreeMap<Bytes, Entry>,
    health: Option<Health>,
    failure: Option<Failure>,
    is_silent: bool,
    calls: usize,
    faults: Vec<String>,
    /// Members beside the one that answers.
    others: Vec<MemberStatus>,
    /// Where an injection fails, and how.
    refuses: Option<(u8, Failure)>,
    /// Which members were asked to change their faults.
    asked: Vec<u8>,
    trace: Option<Trace>,
    protocol: Protocol,
}

impl Service for Store {
    async fn handle(&self, _: PeerCredentials, request: Request) -> Response {
        let answer = {
            let mut state = self.state.lock().unwrap();
            state.calls += 1;
            // What can't be decided can still be looked up here.
            let is_local = matches!(request, Request::Query { consistency: Consistency::Local, .. });
            (is_local || !state.is_silent).then(|| state.answer(request))
        };
        match answer {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

impl State {
    fn answer(&mut self, request: Request) -> Response {
        if let Some(failure) = &self.failure {
            return Response::Failed(failure.clone());
        }
        let at = At { revision: self.revision, index: 12, age_ms: 3, time_ms: 1 };
        match request {
            Request::Execute(operation) => {
                Response::Executed { outcome: self.execute(operation), index: 12, term: 1 }
            }
            Request::Traced(operation) => Response::Traced {
                outcome: self.execute(operation),
                index: 12,
                term: 1,
                trace: self.trace.clone().map(Box::new),
            },
            Request::Query { query: Query::Get { key }, .. } => {
                Response::Answered { answer: Answer::Entry(self.entries.get(&key).cloned()), at }
            }
            Request::Query { query: Query::Range(range), .. } => {
                let is_in = |(key, _): &(&Bytes, &Entry)| range.keys.contains(key);
                let of = |(key, entry): (&Bytes, &Entry)| (key.clone(), entry.clone());
                let mut entries: Vec<_> = self.entries.iter().filter(is_in).map(of).collect();
                let count = range.count.then_some(entries.len() as u64);
                let more = range.limit > 0 && entries.len() as u64 > range.limit;
                if more {
                    entries.truncate(range.limit as usize);
                }
                match range.want {
                    Want::Entries => {}
                    Want::Keys => entries.iter_mut().for_each(|(_, entry)| entry.value = Bytes::new()),
                    Want::Count => entries.clear(),
                }
                Response::Answered { answer: Answer::Listing(Listing { entries, more, count }), at }
            }
            Request::Query {
                query: Query::History { .. } | Query::Events(_) | Query::Leases { .. }, ..
            } => Response::Failed(Failure::Internal(
                "the test's daemon keeps no history, and no leases".to_owned(),
            )),
            Request::Status => Response::Status(Box::new(self.status())),
            Request::Evidence => Response::Evidence(vec![]),
            Request::Inject { node, change, beyond_f } => self.inject(node, &change, beyond_f),
            Request::Watch { .. } => Response::Failed(Failure::TooManyWatches { limit: 0 }),
            Request::Form(_) | Request::Examine => Response::Failed(Failure::Uninitialised),
        }
    }

    fn execute(&mut self, operation: Operation) -> Outcome {
        let revision = self.revision + 1;
        match operation {
            Operation::Put { key, value, expect, .. } => {
                let found = self.entries.get(&key).map_or(0, |entry| entry.mod_revision);
                let holds = match expect {
                    Expect::Anything => true,
                    Expect::Absent => found == 0,
                    Expect::Revision(wanted) => found == wanted,
                };
                if !holds {
                    return Outcome::Mismatch { revision: self.revision, found };
                }
                let entry =
                    Entry { value, create_revision: revision, mod_revision: revision, version: 1, lease: 0 };
                self.entries.insert(key, entry);
                self.revision = revision;
                Outcome::Put { revision }
            }
            Operation::Delete { key } => {
                let keys = u64::from(self.entries.remove(&key).is_some());
                Outcome::Deleted { revision, keys }
            }
            // Real daemons execute them, in tests of their own.
            Operation::Transaction(_)
            | Operation::Compact { .. }
            | Operation::GrantLease { .. }
            | Operation::KeepLease { .. }
            | Operation::RevokeLease { .. }
            | Operation::SetQuota { .. }
            | Operation::Tick => Outcome::Refused(Refusal::Malformed),
            Operation::SetProtocol { protocol } => {
                self.protocol = protocol;
                Outcome::ProtocolSet { revision: self.revision, protocol }
            }
            // Each is sent once.
            Operation::InSession(request) => self.execute(Operation::decode(&request.operation).unwrap()),
            Operation::DeletePrefix { prefix } => {
                let before = self.entries.len();
                self.entries.retain(|key, _| !key.starts_with(&prefix));
                Outcome::Deleted { revision, keys: (before - self.entries.len()) as u64 }
            }
        }
    }

    fn inject(&mut self, node: u8, change: &FaultChange, beyond_f: bool) -> Response {
        self.asked.push(node);
        if let Some((_, failure)) = self.refuses.as_ref().filter(|(refuses, _)| *refuses == node) {
            return Response::Failed(failure.clone());
        }
        let f = self.others.len() as u64 / 3;
        let other = self.others.iter_mut().find(|member| member.id == node);
        let faults = match other {
            Some(other) => &mut other.faults,
            None if node == 1 => &mut self.faults,
            None => return Response::Failed(Failure::NoSuchMember(node)),
        };
        match change {
            FaultChange::Start { .. } if f == 0 && !beyond_f => {
                return Response::Failed(Failure::BeyondF { faulty: 1, f });
            }
            FaultChange::Start { fault, .. } => faults.push(fault.clone()),
            FaultChange::Clear => faults.clear(),
        }
        Response::Injected
    }

    fn status(&self) -> Status {
        let mut members = vec![member(1)];
        members[0].faults.clone_from(&self.faults);
        members.extend(self.others.iter().cloned());
        let f = self.others.len() as u64 / 3;
        let cluster = ClusterStatus {
            name: "fake".to_owned(),
            id: "1d".to_owned(),
            protocol: Protocol::BftRaft,
            next_protocol: self.protocol,
            state: self.health.unwrap_or(Health::Healthy),
            n: members.len() as u64,
            f,
            tolerates: f,
            epoch: 0,
            term: 1,
            leader: 1,
            committed: 12,
            executed: 12,
            state_digest: "d1".to_owned(),
            revision: self.revision,
            compacted: 0,
            used: 12 << 20,
            quota: 8 << 30,
        };
        let disk = DiskUse { state: 96 << 20, log: 1 << 30 };
        Status { cluster, me: 1, members, hints: vec![], disk }
    }
}

fn member(id: u8) -> MemberStatus {
    MemberStatus {
        id,
        name: format!("node{id}"),
        leads: id == 1,
        reachable: true,
        prepared: 12,
        committed: 12,
        executed: 12,
        correct: 40,
        corrupt: 0,
        evidence: 0,
        faults: vec![],
        version: "0.1.0".to_owned(),
    }
}

/// A daemon of its own for one test, served by a thread.
struct Daemon {
    directory: tempfile::TempDir,
    store: Arc<Store>,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::default());
        common::serve(directory.path(), Arc::clone(&store));
        Self { directory, store }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.store.state.lock().unwrap());
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = bftctl(self.directory.path());
        command.arg("--socket").arg(self.socket()).args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Ran {
        Ran::new(self.command(words).output().unwrap())
    }

    fn run_with_input(&self, words: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(words);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A program that has read enough closes its end.
        let _ = stdin.write_all(input);
        drop(stdin);
        Ran::new(child.wait_with_output().unwrap())
    }
}

#[derive(Debug)]
struct Ran {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        let stderr = String::from_utf8(output.stderr).unwrap();
        Self {
            code: output.status.code().expect("it exits, and is not killed"),
            stdout: output.stdout,
            stderr,
        }
    }

    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        String::from_utf8(self.stdout).unwrap()
    }

    #[track_caller]
    fn json(self) -> Value {
        let text = self.ok();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["schema"], "bftctl/v1");
        assert_eq!(text.lines().count(), 1, "one object");
        value
    }

    /// The JSON error on stderr.
    #[track_caller]
    fn error(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, b"", "data goes to stdout, words don't");
        let value: Value = serde_json::from_str(&self.stderr).unwrap();
        assert_eq!((&value["schema"], &value["error"]["code"]), (&json!("bftctl/v1"), &json!(code)));
        value["error"].clone()
    }
}

#[test]
fn the_protocol_is_shown_and_set_within_what_is_possible() {
    let daemon = Daemon::start();
    assert_eq!(daemon.run(&["protocol"]).ok(), "bft-raft\n");
    assert_eq!(daemon.run(&["protocol", "set", "ccro"]).ok(), "ccro from the next term on · block 12\n");
    assert_eq!(daemon.run(&["protocol"]).ok(), "bft-raft, ccro from the next term on\n");
    let shown = daemon.run(&["protocol", "-o", "json"]).json();
    assert_eq!(shown, json!({ "schema": "bftctl/v1", "protocol": "bft-raft", "next": "ccro", "term": 1 }));
    assert_eq!(daemon.run(&["protocol", "-o", "value"]).ok(), "bft-raft\n");
    let set = daemon.run(&["protocol", "set", "pbft", "-o", "json"]).json();
    assert_eq!(set, json!({ "schema": "bftctl/v1", "protocol": "pbft", "index": 12, "term": 1 }));
    assert_eq!(daemon.run(&["protocol", "set", "bft-raft", "-o", "value"]).ok(), "bft-raft\n");
    assert_eq!(daemon.run(&["protocol", "set", "bft-raft"]).ok(), "already runs bft-raft\n");
    let set = daemon.run(&["protocol", "set", "bft-raft", "-o", "json"]).json();
    assert_eq!(set, json!({ "schema": "bftctl/v1", "protocol": "bft-raft", "term": 1 }));
    let refused = daemon.run(&["protocol", "set", "raft"]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("bft-raft, pbft and ccro"), "{}", refused.stderr);
    assert_eq!(daemon.run(&["protocol", "set", "paxos"]).code, 2);
}

#[test]
fn put_get_ls_del_as_in_the_contract() {
    let daemon = Daemon::start();
    assert_eq!(daemon.run(&["put", "a", "1"]).ok(), "revision 1 · block 12 · term 1\n");
    assert_eq!(daemon.run(&["get", "a"]).ok(), "1", "the value's bytes alone");
    let get = daemon.run(&["get", "a", "-o", "json"]).json();
    let expected = json!({ "schema": "bftctl/v1", "key": "a", "value": "1", "revision": 1, "create_revision": 1,
                           "version": 1, "index": 12 });
    assert_eq!(get, expected);
    let put = daemon.run(&["put", "b", "2", "-o", "json"]).json();
    assert_eq!(put, json!({ "schema": "bftctl/v1", "revision": 2, "index": 12, "term": 1 }));
    assert_eq!(daemon.run(&["put", "b", "3", "-o", "value"]).ok(), "3\n");

    assert_eq!(daemon.run(&["ls"]).ok(), "a\nb\n");
    assert_eq!(daemon.run(&["ls", "--count"]).ok(), "2\n");
    assert_eq!(daemon.run(&["ls", "--start-after", "a"]).ok(), "b\n");
    assert_eq!(daemon.run(&["ls", "x"]).ok(), "");
    let ls = daemon.run(&["ls", "--values", "--limit", "1", "-o", "json"]).json();
    assert_eq!(
        (&ls["count"], &ls["more"], &ls["entries"][0]["value"]),
        (&json!(1), &json!(true), &json!("1"))
    );
    assert!(daemon.run(&["ls", "-o", "json"]).json()["entries"][0].get("value").is_none());

    assert_eq!(daemon.run(&["del", "a"]).ok(), "deleted 1 key · block 12 · term 1\n");
    let deleted = daemon.run(&["del", "", "--prefix", "-o", "json"]).json();
    assert_eq!((&deleted["deleted"], &deleted["index"]), (&json!(1), &json!(12)));
}

/// What node 1, which follows node 2, saw of an agreement in which node 4 lied.
fn trace() -> Trace {
    let there = Some(BlockAt { index: 12, term: 1, leader: 2 });
    let phase = |step, at_us, block, voters: &[u8]| Phase { step, at_us, block, voters: voters.to_vec() };
    let node = |id: u8, correct, corrupt| NodeTally { id, name: format!("node{id}"), correct, corrupt };
    Trace {
        me: 1,
        phases: vec![
            phase(Step::Submitted, 41, None, &[]),
            phase(Step::Accepted, 803, there, &[]),
            phase(Step::Durable, 1_204, None, &[]),
            phase(Step::Prepared, 1_834, there, &[1, 2, 3]),
            phase(Step::Committed, 2_990, there, &[2, 3, 4]),
            phase(Step::Executed, 3_121, None, &[]),
        ],
        total_us: 3_121,
        nodes: vec![node(1, 0, 0), node(2, 3, 0), node(3, 0, 0), node(4, 1, 1)],
    }
}

#[test]
fn a_traced_put_tells_what_the_agreement_took() {
    let daemon = Daemon::start();
    daemon.set(|state| state.trace = Some(trace()));
    let expected = "\
revision 1 · block 12 · term 1

  submitted   0.000041s
  accepted    0.000803s  block 12 of term 1, proposed by 2 node2
  durable     0.001204s
  prepared    0.001834s  block 12 of term 1, voted: 1 node1, 2 node2, 3 node3
  committed   0.002990s  block 12 of term 1, voted: 2 node2, 3 node3, 4 node4
  executed    0.003121s

Consensus time: 0.003121s
Node 1 -> 0 correct 0 corrupt (the node asked)
Node 2 -> 3 correct 0 corrupt
Node 3 -> 0 correct 0 corrupt
Node 4 -> 1 correct 1 corrupt
";
    assert_eq!(daemon.run(&["put", "a", "1", "--trace"]).ok(), expected);
    assert_eq!(daemon.run(&["get", "a"]).ok(), "1", "it is a put all the same");

    let put = daemon.run(&["put", "a", "2", "--trace", "-o", "json"]).json();
    assert_eq!((&put["revision"], &put["index"], &put["term"]), (&json!(2), &json!(12), &json!(1)));
    let trace = &put["trace"];
    assert_eq!((&trace["self"], &trace["consensus_time_us"]), (&json!(1), &json!(3121)));
    assert_eq!(trace["phases"][0], json!({ "name": "submitted", "at_us": 41 }));
    let prepared = json!({ "name": "prepared", "at_us": 1834, "block": 12, "term": 1, "leader": 2,
                           "voters": [1, 2, 3] });
    assert_eq!(trace["phases"][3], prepared);
    assert_eq!(trace["nodes"][3], json!({ "id": 4, "name": "node4", "correct": 1, "corrupt": 1 }));

    let bare = daemon.run(&["put", "a", "3", "--trace", "-o", "value"]);
    assert!(bare.stderr.contains("\nConsensus time: 0.003121s\n"), "{}", bare.stderr);
    assert_eq!(bare.ok(), "3\n");
    let plain = daemon.run(&["put", "a", "4", "-o", "json"]).json();
    assert!(plain.get("trace").is_none(), "only where it is asked for");
}

#[test]
fn a_trace_says_what_was_not_seen_and_a_put_needs_none() {
    let daemon = Daemon::start();
    daemon.set(|state| {
        let mut partial = trace();
        partial
            .phases
            .retain(|phase| matches!(phase.step, Step::Submitted | Step::Committed | Step::Executed));
        state.trace = Some(partial);
    });
    let text = daemon.run(&["put", "a", "1", "--trace"]).ok();
    let lines = "\n  submitted   0.000041s\n  accepted    not seen here\n  prepared    not seen here\n  committed   0.002990s  ";
    assert!(text.contains(lines), "{text}");

    daemon.set(|state| state.trace = None);
    let ran = daemon.run(&["put", "a", "2", "--trace"]);
    assert!(ran.stderr.starts_with("no trace: "), "{}", ran.stderr);
    assert_eq!(ran.ok(), "revision 2 · block 12 · term 1\n");
    let error = daemon.run(&["put", "a", "3", "--trace", "--if-absent", "-o", "json"]).error(4);
    assert_eq!(error["found"], 2, "it compares");
    daemon.set(|state| state.failure = Some(Failure::Stopping));
    daemon.run(&["put", "a", "3", "--trace", "-o", "json"]).error(7);
}

#[test]
fn a_listing_goes_beyond_one_page() {
    let daemon = Daemon::start();
    daemon.set(|state| {
        let entry = Entry { value: Bytes::new(), create_revision: 1, mod_revision: 1, version: 1, lease: 0 };
        state.entries = (0..2500).map(|key| (format!("{key:05}").into(), entry.clone())).collect();
    });
    let all = daemon.run(&["ls"]).ok();
    assert_eq!(all.lines().count(), 2500);
    assert!(all.lines().is_sorted());
    assert_eq!(daemon.run(&["ls", "--limit", "1500", "-o", "json"]).json()["count"], 1500);
}

#[test]
fn values_come_from_arguments_files_and_stdin() {
    let daemon = Daemon::start();
    daemon.run_with_input(&["put", "k", "-"], b"\xff\x00from stdin").ok();
    assert_eq!(daemon.run(&["get", "k"]).stdout, b"\xff\x00from stdin");
    let get = daemon.run(&["get", "k", "-o", "json"]).json();
    assert_eq!(get["value_base64"], "/wBmcm9tIHN0ZGlu");
    assert!(get.get("value").is_none());

    let file = daemon.directory.path().join("value");
    std::fs::write(&file, "from a file").unwrap();
    daemon.run(&["put", "k", &format!("@{}", file.display())]).ok();
    assert_eq!(daemon.run(&["get", "k"]).ok(), "from a file");
    daemon.run(&["put", "k", "-5"]).ok();
    assert_eq!(daemon.run(&["get", "k"]).ok(), "-5");
    daemon.run(&["put", "k", r#"{"a":[1]}"#, "--json"]).ok();

    let calls = daemon.store.state.lock().unwrap().calls;
    daemon.run(&["put", "k", "{a}", "--json", "-o", "json"]).error(2);
    daemon.run(&["put", "k", "@/does/not/exist", "-o", "json"]).error(2);
    assert_eq!(daemon.store.state.lock().unwrap().calls, calls, "nothing was sent");
}

#[test]
fn what_is_out_of_bounds_is_refused_before_anything_is_sent() {
    let daemon = Daemon::start();
    let long_key = "k".repeat(4097);
    let largest = vec![b'x'; 1 << 20];
    for (words, input) in [
        (&["put", "", "v", "-o", "json"][..], &b""[..]),
        (&["put", &long_key, "v", "-o", "json"], b""),
        (&["get", "", "-o", "json"], b""),
        (&["del", &long_key, "-o", "json"], b""),
        (&["ls", &long_key, "-o", "json"], b""),
        (&["put", "k", "-", "-o", "json"], &[&largest[..], b"x"].concat()),
    ] {
        let error = daemon.run_with_input(words, input).error(2);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("4096") || message.contains("1048576"), "the limit is named: {message}");
    }
    assert_eq!(daemon.store.state.lock().unwrap().calls, 0);
    daemon.run_with_input(&["put", &"k".repeat(4096), "-"], &largest).ok();
}

#[test]
fn comparisons_that_fail_exit_4_and_name_the_revision() {
    let daemon = Daemon::start();
    daemon.run(&["put", "a", "1", "--if-absent"]).ok();
    daemon.run(&["put", "a", "2", "--if-rev", "1"]).ok();
    let error = daemon.run(&["put", "a", "3", "--if-rev", "1", "-o", "json"]).error(4);
    assert_eq!((&error["found"], &error["key"]), (&json!(2), &json!("a")));
    let ran = daemon.run(&["put", "a", "3", "--if-absent"]);
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("at revision 2"), "{}", ran.stderr);
    assert_eq!(daemon.run(&["get", "a"]).ok(), "2");
}

#[test]
fn failures_have_their_exit_codes() {
    let daemon = Daemon::start();
    daemon.run(&["get", "nope", "-o", "json"]).error(3);
    daemon.run(&["del", "nope", "-o", "json"]).error(3);
    daemon.run(&["get", "-o", "json"]).error(2);
    for (failure, code) in [
        (Failure::NoQuorum { reachable: 2, n: 4, needed: 3 }, 6),
        (Failure::Denied("no".to_owned()), 9),
        (Failure::Uninitialised, 11),
        (Failure::Busy, 1),
    ] {
        daemon.set(|state| state.failure = Some(failure));
        daemon.run(&["put", "a", "1", "-o", "json"]).error(code);
        daemon.run(&["get", "a", "-o", "json"]).error(code);
    }
    daemon.set(|state| state.failure = Some(Failure::Stopping));
    daemon.run(&["put", "a", "1", "-o", "json"]).error(7);

    let nobody =
        bftctl(daemon.directory.path()).args(["--socket", "/nope", "get", "a", "-o", "json"]).output();
    Ran::new(nobody.unwrap()).error(10);
}

#[test]
fn a_change_without_an_answer_is_unknown_and_a_read_is_not() {
    let daemon = Daemon::start();
    daemon.set(|state| state.is_silent = true);
    let began = Instant::now();
    daemon.run(&["put", "a", "1", "--timeout", "300ms", "-o", "json"]).error(7);
    daemon.run(&["put", "a", "1", "--trace", "--timeout", "300ms", "-o", "json"]).error(7);
    daemon.run(&["get", "a", "--timeout", "300ms", "-o", "json"]).error(10);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn status_tells_by_its_exit_code() {
    let daemon = Daemon::start();
    let text = daemon.run(&["status"]).ok();
    assert!(
        text.starts_with(
            "● fake HEALTHY 1/1 members, tolerates 0 faults · term 1 · leader node1 · block 12\n"
        ),
        "{text}"
    );
    let json = daemon.run(&["status", "-o", "json"]).json();
    assert_eq!((&json["self"], &json["members"][0]["role"]), (&json!(1), &json!("leader")));
    for (health, code, word) in [
        (Health::Degraded, 5, "DEGRADED"),
        (Health::NoQuorum, 6, "NO QUORUM"),
        (Health::Uninitialised, 11, "UNINITIALISED"),
    ] {
        daemon.set(|state| state.health = Some(health));
        let ran = daemon.run(&["status", "-o", "value"]);
        assert_eq!((ran.code, ran.stdout), (code, format!("{word}\n").into_bytes()));
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let daemon = Daemon::start();
    daemon.set(|state| {
        let entry = Entry { value: Bytes::new(), create_revision: 1, mod_revision: 1, version: 1, lease: 0 };
        // More than a pipe holds.
        state.entries = (0..5000).map(|key| (format!("{key:0200}").into(), entry.clone())).collect();
    });
    let mut child = daemon.command(&["ls"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::with_capacity(100, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first.trim_end(), format!("{:0200}", 0));
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert_eq!((child.wait().unwrap().code(), &*words), (Some(0), ""));
}

#[test]
fn the_shell_goes_on_after_an_error() {
    let daemon = Daemon::start();
    let lines = "put a 'one two'\nget nope\nnonsense\nget 'open\n\nget a\nget a -o json\nexit\nget never\n";
    let ran = daemon.run_with_input(&["shell"], lines.as_bytes());
    assert_eq!(ran.code, 0, "{ran:?}");
    let stdout = String::from_utf8(ran.stdout).unwrap();
    assert!(stdout.contains("one two\n{\"schema\":\"bftctl/v1\",\"key\":\"a\""), "{stdout}");
    assert!(ran.stderr.contains("no such key: nope") && ran.stderr.contains("'nonsense'"), "{}", ran.stderr);
    assert!(ran.stderr.contains("a quote is not closed") && !ran.stderr.contains("never"), "{}", ran.stderr);
}

#[test]
fn bench_counts_what_it_did() {
    let daemon = Daemon::start();
    let bench =
        daemon.run(&["bench", "mixed", "--seconds", "1", "--clients", "8", "--keys", "50", "-o", "json"]);
    assert_eq!(bench.stderr, "", "no progress bar in JSON");
    let bench = bench.json();
    let calls = daemon.store.state.lock().unwrap().calls as u64;
    let operations = bench["operations"].as_u64().unwrap();
    assert!(operations > 100 && (operations..operations + 8 + 1).contains(&(calls - 50)), "{bench} {calls}");
    assert_eq!(bench["errors"], 0);
    let latency = |name: &str| bench["latency_us"][name].as_u64().unwrap();
    assert!(0 < latency("p50") && latency("p50") <= latency("p99") && latency("p999") <= latency("max"));

    daemon.set(|state| state.failure = Some(Failure::Busy));
    let ran = daemon.run(&["bench", "put", "--seconds", "0.2", "-o", "json"]);
    assert_eq!(ran.code, 1);
    let bench: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(bench["operations"], 0);
    assert_eq!(bench["errors"], bench["errors_by_kind"]["busy"]);
    assert!(bench["errors"].as_u64().unwrap() >= 64);
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let daemon = Daemon::start();
    let bench = daemon.run(&["bench", "put", "--seconds", "1", "--rate", "500", "-o", "json"]).json();
    let operations = bench["operations"].as_u64().unwrap();
    assert!((450..=500).contains(&operations), "{bench}");
}

#[test]
fn sockets_come_from_flags_the_environment_and_contexts() {
    let daemon = Daemon::start();
    let directory = daemon.directory.path();
    daemon.run(&["put", "a", "1"]).ok();
    let run = |words: &[&str], socket: Option<&str>| {
        let mut command = bftctl(directory);
        if let Some(socket) = socket {
            command.env("BFTCTL_SOCKET", socket);
        }
        Ran::new(command.args(words).output().unwrap())
    };
    let socket = daemon.socket();
    let socket = socket.to_str().unwrap();
    assert_eq!(run(&["get", "a"], Some(socket)).ok(), "1");
    assert_eq!(run(&["get", "a", "--socket", socket], Some("/nope")).ok(), "1", "a flag comes first");

    let contexts = format!(
        "[contexts.here]\nnodes = [{{ id = 1, socket = \"/nope\" }}, {{ id = 2, socket = {socket:?} }}]\n"
    );
    std::fs::write(directory.join("contexts.toml"), contexts).unwrap();
    run(&["context", "use", "other", "-o", "json"], None).error(2);
    run(&["context", "use", "here"], None).ok();
    assert_eq!(run(&["context", "ls", "-o", "json"], None).json()["contexts"][0]["selected"], true);
    assert_eq!(run(&["get", "a"], None).code, 10, "the first node");
    assert_eq!(run(&["get", "a", "--node", "2"], None).ok(), "1");
    run(&["get", "a", "--node", "3", "-o", "json"], None).error(2);
    assert_eq!(run(&["get", "a"], Some(socket)).ok(), "1", "the environment comes before contexts");

    std::fs::write(directory.join("contexts.toml"), "[contexts]\nwrong\n").unwrap();
    let error = run(&["get", "a", "-o", "json"], None).error(1);
    assert!(error["cause"].as_str().unwrap().contains("line 2"), "{error}");
}

#[test]
fn completions_name_the_commands() {
    let script = Ran::new(bftctl(&std::env::temp_dir()).args(["completions", "bash"]).output().unwrap()).ok();
    assert!(script.contains("bench") && script.contains("--consistency"));
}

#[test]
fn faults_are_injected_listed_and_cleared() {
    let daemon = Daemon::start();
    assert_eq!(daemon.run(&["status", "--node", "1"]).code, 2, "--socket and --node name two daemons");
    let refused = daemon.run(&["inject", "fault", "--node", "1", "malicious"]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("--beyond-f"), "{}", refused.stderr);
    assert_eq!(daemon.run(&["inject", "fault", "--node", "7", "slow"]).code, 2);
    assert_eq!(daemon.run(&["inject", "fault", "--node", "1", "--beyond-f", "silent"]).code, 0);
    assert_eq!(daemon.run(&["inject", "clear", "--node", "1"]).code, 0);
    let refused = daemon.run(&["inject", "fault", "malicious"]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("--node N"), "{}", refused.stderr);
    let injected = daemon.run(&["inject", "fault", "--random", "1", "--beyond-f", "slow", "-o", "json"]);
    assert_eq!(injected.code, 0, "{}", injected.stderr);
    assert_eq!(injected.json()["nodes"], json!([1]));
    let listed = daemon.run(&["inject", "ls"]);
    assert_eq!(listed.ok(), "MEMBER  FAULT\nnode1   slow\n");
    assert_eq!(daemon.run(&["inject", "ls", "-o", "json"]).json()["faults"], json!({"1": ["slow"]}));
    let again = daemon.run(&["inject", "fault", "--random", "1", "--beyond-f", "slow"]);
    assert_eq!(again.code, 2, "no member without a fault is left");
    assert_eq!(daemon.run(&["inject", "clear"]).code, 0);
    assert!(daemon.run(&["inject", "ls"]).stdout.is_empty());
}

/// A daemon of a cluster of seven, of which member 7 is down.
fn one_of_seven() -> Daemon {
    let daemon = Daemon::start();
    daemon.set(|state| {
        state.others = (2..=7).map(member).collect();
        state.others[5].reachable = false;
    });
    daemon
}

#[test]
fn members_are_drawn_among_those_that_are_there_and_within_the_bound() {
    let daemon = one_of_seven();
    let error = daemon.run(&["inject", "fault", "--random", "2", "slow", "-o", "json"]).error(2);
    assert!(error["message"].as_str().unwrap().starts_with("3 members would misbehave"), "{error}");
    daemon.run(&["inject", "fault", "--random", "7", "--beyond-f", "slow", "-o", "json"]).error(2);
    assert_eq!(daemon.store.state.lock().unwrap().asked, [0; 0], "nobody was asked");
    let all = daemon.run(&["inject", "fault", "--random", "6", "--beyond-f", "slow", "-o", "json"]).json();
    assert_eq!(all["nodes"], json!([1, 2, 3, 4, 5, 6]));

    // Who is cut off by a fault of the daemon that is asked is there.
    let daemon = one_of_seven();
    daemon.set(|state| state.faults.push("link=7".to_owned()));
    daemon.run(&["inject", "fault", "--random", "1", "slow"]).ok();
    daemon.run(&["inject", "fault", "--random", "1", "slow", "-o", "json"]).error(2);
}

#[test]
fn a_failure_says_where_the_fault_is_injected_already() {
    let daemon = one_of_seven();
    daemon.set(|state| {
        state.others.pop();
        state.refuses = Some((2, Failure::MemberSilent(2)));
    });
    let words = ["inject", "fault", "--random", "6", "--beyond-f", "slow"];
    let error = daemon.run(&[&words[..], &["-o", "json"]].concat()).error(7);
    assert_eq!(error["injected"], json!([1]));
    assert!(error["message"].as_str().unwrap().contains("it is injected at node 1, which"), "{error}");
    assert_eq!(daemon.store.state.lock().unwrap().asked, [1, 2], "and no more were asked");
    daemon.run(&["inject", "clear"]).ok();
    daemon.set(|state| state.refuses = Some((1, Failure::FaultsDisabled { node: 1 })));
    let error = daemon.run(&[&words[..], &["-o", "json"]].concat()).error(9);
    assert_eq!(error["injected"], json!([]));
}

#[test]
fn a_crash_lasts_until_the_daemon_is_started() {
    let daemon = one_of_seven();
    let ran = daemon.run(&["inject", "fault", "--node", "3", "crash"]);
    assert!(
        ran.stderr.contains("has ended") && ran.stderr.contains("bftctl dev restart 3"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("systemctl start bftd") && !ran.stderr.contains("clear"), "{}", ran.stderr);
}

#[test]
fn clearing_passes_over_members_that_are_down() {
    let daemon = one_of_seven();
    daemon.run(&["inject", "fault", "--node", "2", "offline"]).ok();
    daemon.run(&["inject", "fault", "--node", "3", "slow"]).ok();
    // It has ended since the daemon heard of it last.
    daemon.set(|state| {
        state.others[0].reachable = false;
        state.refuses = Some((3, Failure::MemberDown(3)));
        state.asked.clear();
    });
    let ran = daemon.run(&["inject", "clear"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stderr, "node 2: no faults\nnode 3, node 7: not heard of; faults end with the daemon\n");
    assert_eq!(daemon.store.state.lock().unwrap().asked, [2, 3], "who is down is not asked");
    let cleared = daemon.run(&["inject", "clear", "--node", "7", "-o", "json"]).json();
    assert_eq!((&cleared["cleared"], &cleared["down"]), (&json!([]), &json!([7])));
    daemon.run(&["inject", "clear", "--node", "8", "-o", "json"]).error(2);
}

#[test]
fn what_a_lying_member_says_does_not_move_the_terminal() {
    let daemon = one_of_seven();
    let lie = Failure::UnknownFault("\x1b[2Jno\n  next: run this".to_owned());
    daemon.set(|state| state.refuses = Some((2, lie)));
    let ran = daemon.run(&["inject", "fault", "--node", "2", "slow"]);
    assert!(
        ran.stderr.starts_with("error: \\u{1b}[2Jno\\n  next: run this\n  next: bftctl"),
        "{}",
        ran.stderr
    );
}
