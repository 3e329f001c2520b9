//! `bftctl evidence` against a daemon that holds a proof of each kind; and `verify` against none.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path, sync::Arc};

use bftd::admin::{PeerCredentials, Service};
use bftd_client::{
    Accusation, Failure, Request, Response,
    evidence::Evidence,
    genesis::{self, Genesis, Member, MemberId, Protocol},
};
use bftd_core::{
    ballot::{Ballot, BallotKind, TermVote, Vote},
    block::{Block, BlockRef, Executed, Header, Proposal},
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

/// A proof of each kind, all against member 2, which leads term 1.
fn proofs(genesis: &Genesis) -> [Accusation; 3] {
    let members = genesis.membership().unwrap();
    let (cluster, epoch, me) = (members.cluster(), Epoch(0), MemberId(2));
    let signer = Ed25519Signer::from_seed(&[2; 32]);
    let vote = |kind, digest| {
        let block = BlockRef { term: Term(1), index: Index(5), digest: Digest([digest; 32]) };
        Vote::sign(cluster, Ballot { kind, epoch, block }, me, &signer)
    };
    let proposal = |time_ms| {
        let header = Header {
            cluster,
            epoch,
            term: Term(1),
            index: Index(6),
            parent: Digest([1; 32]),
            time_ms,
            batches: Block::batches_digest(&[]),
            executed: Executed { index: Index(0), state: Digest::ZERO },
            sole: false,
        };
        Proposal { signature: signer.sign(&Proposal::signed_bytes(&header)), header }
    };
    let term_vote = TermVote::sign(cluster, epoch, Term(2), None, None, me, &signer);
    [
        Evidence::of_votes(&vote(BallotKind::Prepare, 7), &vote(BallotKind::Prepare, 8)),
        Evidence::of_proposals(&proposal(1), &proposal(2)),
        Evidence::of_term_vote(&vote(BallotKind::Commit, 7), &term_vote),
    ]
    .map(|proof| Accusation::of(proof.unwrap(), &members).unwrap())
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

fn run(directory: &Path, words: &[&str]) -> (i32, String, String) {
    let mut command = common::bftctl(directory);
    let output = command.arg("--socket").arg(directory.join("s")).args(words).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// `evidence verify`, without any daemon.
fn verify(file: &Path, trust: &Path, more: &[&str]) -> (i32, String, String) {
    let words = ["evidence", "verify", file.to_str().unwrap(), "--trust", trust.to_str().unwrap()];
    run(Path::new("/nonexistent"), &[&words, more].concat())
}

#[test]
fn proofs_are_listed_shown_and_checked_by_anybody() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let here = genesis("here");
    let (file, trust, other) = (at.join("proof.json"), at.join("genesis.toml"), at.join("other.toml"));
    genesis::write(&trust, &here).unwrap();
    genesis::write(&other, &genesis("there")).unwrap();
    let held = proofs(&here);
    common::serve(at, Arc::new(Holder(held.to_vec())));

    let (code, table, _) = run(at, &["evidence", "ls"]);
    assert_eq!(code, 0);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("ID") && lines.len() == 4, "{table}");
    let (code, json, _) = run(at, &["evidence", "ls", "-o", "json"]);
    let listed: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &listed["evidence"][2]["accused"]), (0, &Value::from(2)));
    let (code, _, error) = run(at, &["evidence", "show", "zzzz"]);
    assert_eq!(code, 1);
    assert!(error.contains("no proof's id begins with `zzzz`"), "{error}");

    // What each is called, what people read, and a part of a statement that can't be altered.
    let kinds = [
        ("double Prepare vote", "signed two Prepare votes for one index", "0707", "0808"),
        ("double proposal", "proposed two blocks for one index", "\"time_ms\":1", "\"time_ms\":2"),
        ("forgotten lock", "forgot what it had promised to remember", "\"term\":2", "\"term\":3"),
    ];
    for ((accusation, line), (kind, said, before, after)) in held.iter().zip(&lines[1..]).zip(kinds) {
        let id = accusation.evidence.digest().to_string();
        assert!(line.contains(&format!("node2   {kind}")), "{table}");
        let (code, text, _) = run(at, &["evidence", "show", &id[..6]]);
        assert_eq!(code, 0);
        let sentence = format!("node2 (member 2) {said}\n  1  ");
        assert!(text.starts_with(&sentence), "{text}");

        let (_, json, _) = run(at, &["evidence", "show", &id, "-o", "json"]);
        fs::write(&file, &json).unwrap();
        let (code, text, _) = verify(&file, &trust, &[]);
        assert_eq!(code, 0);
        assert!(text.starts_with(&format!("valid: {sentence}")), "{text}");
        let (code, verdict, _) = verify(&file, &trust, &["-o", "json"]);
        let verdict: Value = serde_json::from_str(&verdict).unwrap();
        assert_eq!((code, &verdict["valid"], &verdict["accused"]), (0, &Value::from(true), &Value::from(2)));
        assert_eq!((&verdict["kind"], &verdict["id"]), (&Value::from(kind), &Value::from(id)));

        let (code, _, error) = verify(&file, &other, &[]);
        assert_eq!(code, 8);
        assert!(error.contains("proves nothing") && error.contains("`there`"), "{error}");
        let altered = json.replace(before, after);
        assert_ne!(altered, json);
        fs::write(&file, altered).unwrap();
        assert_eq!(verify(&file, &trust, &[]).0, 8, "{kind}: an altered statement is no proof");
        let blames = json.replace("\"signer\":2", "\"signer\":3").replace("\"accused\":2", "\"accused\":3");
        fs::write(&file, blames).unwrap();
        let (code, text, _) = verify(&file, &trust, &[]);
        assert!(
            code == 8 || text.starts_with(&format!("valid: {sentence}")),
            "nor against somebody else: {text}"
        );
    }
}

#[test]
fn a_file_that_is_no_proof_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let (file, trust) = (directory.path().join("proof.json"), directory.path().join("genesis.toml"));
    genesis::write(&trust, &genesis("here")).unwrap();
    let mut too_large = serde_json::to_vec(&"x").unwrap();
    too_large.resize((1 << 20) + 1, b' ');
    for (contents, why) in [
        (&b"{}"[..], "missing field"),
        (b"", "EOF"),
        (b"{\"id\":\"\xff\"}", "utf-8"),
        (&too_large, "more than 1048576 bytes"),
    ] {
        fs::write(&file, contents).unwrap();
        let (code, _, error) = verify(&file, &trust, &[]);
        assert_eq!(code, 8, "{error}");
        assert!(error.contains("is no proof") && error.contains(why), "{why}: {error}");
    }
}

#[test]
fn without_proofs_there_is_nothing_to_list() {
    let directory = tempfile::tempdir().unwrap();
    common::serve(directory.path(), Arc::new(Holder(vec![])));
    let (code, table, error) = run(directory.path(), &["evidence", "ls"]);
    assert_eq!((code, table.as_str()), (0, ""));
    assert!(error.contains("no member is proved to have lied"), "{error}");
}
