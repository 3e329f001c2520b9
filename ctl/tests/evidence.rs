//! `bftctl evidence` against a daemon that holds one proof; and `verify` against none.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, process::Command, sync::Arc};

use bftd::admin::{AdminServer, PeerCredentials, Service};
use bftd_client::{
    Accusation, Failure, Request, Response,
    evidence::Evidence,
    genesis::{self, Genesis, Member, MemberId, Protocol},
};
use bftd_core::{
    ballot::{Ballot, BallotKind, Vote},
    block::BlockRef,
    crypto::{Digest, Ed25519Signer, Signer},
    ids::{Epoch, Index, Term},
};
use serde_json::Value;

fn genesis(name: &str) -> Genesis {
    let members = (1..=4).map(|id| Member {
        id: MemberId(id),
        name: format!("node{id}"),
        key: Ed25519Signer::from_seed(&[id; 32]).public_key(),
        address: "127.0.0.1:1".parse().unwrap(),
    });
    Genesis { name: name.into(), protocol: Protocol::BftRaft, created_ms: 0, members: members.collect() }
}

/// Member 2 has voted for two blocks.
fn proof(genesis: &Genesis) -> Accusation {
    let cluster = genesis.membership().unwrap().cluster();
    let [first, second] = [7, 8].map(|digest| {
        let block = BlockRef { term: Term(1), index: Index(5), digest: Digest([digest; 32]) };
        let ballot = Ballot { kind: BallotKind::Prepare, epoch: Epoch(0), block };
        Vote::sign(cluster, ballot, MemberId(2), &Ed25519Signer::from_seed(&[2; 32]))
    });
    Accusation {
        accused: 2,
        name: "node2".into(),
        kind: "double Prepare vote".into(),
        epoch: 0,
        term: 1,
        index: 5,
        evidence: Evidence::of_votes(&first, &second).unwrap(),
    }
}

struct Holder(Vec<Accusation>);

impl Service for Holder {
    async fn handle(&self, _: PeerCredentials, request: Request) -> Response {
        match request {
            Request::Evidence => Response::Evidence(self.0.clone()),
            _ => Response::Failed(Failure::Busy),
        }
    }
}

/// Serves in a thread, until the test process ends.
fn serve(directory: &Path, held: Vec<Accusation>) {
    let path = directory.join("s");
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = AdminServer::bind(&path).unwrap();
            ready.send(()).unwrap();
            let (_stop, stopped) = tokio::sync::watch::channel(false);
            server.serve(Arc::new(Holder(held)), stopped).await;
        });
    });
    is_ready.recv().unwrap();
}

fn run(directory: &Path, words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bftctl"));
    command.env("BFTCTL_CONTEXTS", directory.join("contexts.toml")).env("NO_COLOR", "1");
    let output = command.arg("--socket").arg(directory.join("s")).args(words).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn proofs_are_listed_shown_and_checked_by_anybody() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let here = genesis("here");
    let accusation = proof(&here);
    let id = accusation.evidence.digest().to_string();
    serve(at, vec![accusation]);

    let (code, table, _) = run(at, &["evidence", "ls"]);
    assert_eq!(code, 0);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("ID") && lines[1].contains("node2   double Prepare vote"), "{table}");
    let (code, json, _) = run(at, &["evidence", "ls", "-o", "json"]);
    let listed: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &listed["evidence"][0]["accused"]), (0, &Value::from(2)));

    let (code, text, _) = run(at, &["evidence", "show", &id[..6]]);
    assert_eq!(code, 0);
    assert!(text.starts_with("node2 (member 2) signed two Prepare votes for one index"), "{text}");
    let (code, _, error) = run(at, &["evidence", "show", "zzzz"]);
    assert_eq!(code, 1);
    assert!(error.contains("no proof's id begins with `zzzz`"), "{error}");

    let (_, json, _) = run(at, &["evidence", "show", &id, "-o", "json"]);
    let (file, trust, other) = (at.join("proof.json"), at.join("genesis.toml"), at.join("other.toml"));
    fs::write(&file, &json).unwrap();
    genesis::write(&trust, &here).unwrap();
    genesis::write(&other, &genesis("there")).unwrap();
    let verify = |trust: &Path, more: &[&str]| {
        let words = ["evidence", "verify", file.to_str().unwrap(), "--trust", trust.to_str().unwrap()];
        run(Path::new("/nonexistent"), &[&words, more].concat())
    };
    let (code, text, _) = verify(&trust, &[]);
    assert_eq!(code, 0);
    assert!(text.starts_with("valid: node2 (member 2) signed two Prepare votes"), "{text}");
    let (code, json, _) = verify(&trust, &["-o", "json"]);
    let verdict: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &verdict["valid"], &verdict["accused"]), (0, &Value::from(true), &Value::from(2)));

    let (code, _, error) = verify(&other, &[]);
    assert_eq!(code, 8);
    assert!(error.contains("proves nothing") && error.contains("`there`"), "{error}");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("0707", "0808")).unwrap();
    assert_eq!(verify(&trust, &[]).0, 8, "two equal votes are no proof");
    fs::write(&file, text.replace("\"signer\":2", "\"signer\":3")).unwrap();
    assert_eq!(verify(&trust, &[]).0, 8, "nor is it one against somebody else");
    fs::write(&file, "{}").unwrap();
    let (code, _, error) = verify(&trust, &[]);
    assert_eq!(code, 8);
    assert!(error.contains("is no proof"), "{error}");
}

#[test]
fn without_proofs_there_is_nothing_to_list() {
    let directory = tempfile::tempdir().unwrap();
    serve(directory.path(), vec![]);
    let (code, table, error) = run(directory.path(), &["evidence", "ls"]);
    assert_eq!((code, table.as_str()), (0, ""));
    assert!(error.contains("no member is proved to have lied"), "{error}");
}
