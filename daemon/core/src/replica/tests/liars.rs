//! What liars did to correct members until the simulator's adversaries showed it.

use super::*;
use crate::{
    ballot::{Ballot, BallotKind, Vote},
    block::{Batch, Block, Header, Proposal},
    crypto::{Signature, Signer},
    ids::Epoch,
    message::{Append, Blocks},
};

fn key(n: u8) -> Ed25519Signer {
    Ed25519Signer::from_seed(&[n; 32])
}

impl Cluster {
    fn certificate(&self, kind: BallotKind, block: BlockRef) -> Arc<Certificate> {
        let ballot = Ballot { kind, epoch: Epoch(0), block };
        let votes = [1, 2, 3].map(|n| Vote::sign(self.members.cluster(), ballot, id(n), &key(n)));
        Arc::new(Certificate::gather(&self.members, ballot, &votes).unwrap())
    }

    fn batch(&self, origin: u8, incarnation: u64, number: u64) -> Arc<Batch> {
        let (incarnation, number) = (Incarnation(incarnation), BatchNumber(number));
        let requests = vec![Request::from_static(b"r")];
        let cluster = self.members.cluster();
        Arc::new(Batch::sign(cluster, id(origin), incarnation, number, requests, &key(origin)))
    }

    fn child_of(&self, parent: &Header, time_ms: u64) -> Header {
        Header { index: parent.index.next(), parent: parent.digest(), time_ms, ..parent.clone() }
    }
}

/// A sync peer invents blocks beyond what there is, and then says no more. Everybody was asked for what comes after them, and
/// nobody had anything to answer.
#[test]
fn invented_blocks_do_not_keep_a_member_from_catching_up() {
    let mut cluster = Cluster::new(4);
    cluster.isolate(4);
    for text in ["x", "y", "z"] {
        cluster.submit(1, text);
        cluster.settle();
    }
    let last = Arc::clone(&cluster.nodes[&id(1)].executed.last().unwrap().1);
    let first = cluster.nodes[&id(4)].executed.last().map_or_else(
        || {
            let header = cluster.nodes[&id(1)].executed[0].1.header().clone();
            (cluster.members.root(), header)
        },
        |(at, block)| (*at, block.header().clone()),
    );
    let mut blocks: Vec<Arc<Block>> = Vec::new();
    let (mut index, mut parent) = (first.0.index, first.0.digest);
    for _ in 0..20 {
        index = index.next();
        let batches = Block::batches_digest(&[]);
        let block = Arc::new(Block::new(Header { index, parent, batches, ..first.1.clone() }, vec![]));
        parent = block.digest();
        blocks.push(block);
    }
    let certificate = cluster.certificate(BallotKind::Commit, last.reference());
    cluster.heal();
    cluster.crash(3);
    cluster.hear(3, 4, Message::Certificate(certificate));
    cluster.hear(3, 4, Message::Blocks(Blocks { blocks, certificate: None }));
    cluster.wire.clear();
    // Nothing of the leader's is heard, so that only the fetch can help.
    for _ in 0..20 {
        cluster.now.monotonic_us += 50_000;
        cluster.step(id(4), Input::Tick);
        cluster.settle();
    }
    assert_eq!(cluster.requests(4), ["x", "y", "z"]);
}

/// A leader's heartbeats came in time, its blocks and certificates did not: nobody told the member what it missed.
#[test]
fn a_member_that_the_leader_leaves_out_learns_what_is_committed() {
    let mut cluster = Cluster::new(4);
    cluster.submit(1, "x");
    cluster.run(200);
    assert_eq!(cluster.requests(4), ["x"]);
    cluster.submit(1, "y");
    for _ in 0..60 {
        cluster.now.monotonic_us += 50_000;
        cluster.now.unix_ms += 50;
        for n in 1..=4 {
            cluster.step(id(n), Input::Tick);
        }
        while let Some((from, to, bytes)) = cluster.wire.pop_front() {
            let mut message = Message::decode(&bytes).unwrap();
            if (from, to) == (id(1), id(4)) {
                let Message::Heartbeat(heartbeat) = &mut message else { continue };
                heartbeat.certificates = Certificates::default();
            }
            cluster.hear(from.0, to.0, message);
        }
    }
    assert_eq!(cluster.status(4).term, Term(0));
    assert_eq!(cluster.requests(4), ["x", "y"]);
}

/// The leader has suspected its own term once, and thought better of it. Who repeated that for it made all others suspect.
#[test]
fn a_suspicion_counts_only_while_its_signer_repeats_it() {
    let mut cluster = Cluster::new(4);
    cluster.submit(1, "x");
    cluster.run(200);
    let suspect = crate::ballot::Suspect::sign(cluster.members.cluster(), Epoch(0), Term(0), id(1), &key(1));
    for _ in 0..20 {
        for to in [1, 2, 4] {
            cluster.hear(3, to, Message::Suspect(suspect.clone()));
        }
        cluster.run(100);
        assert_eq!(cluster.status(2).suspecting, None);
    }
    assert_eq!(cluster.status(4).term, Term(0));
}

/// Batch signatures were not covered by the block's digest, and are not checked in fetched blocks.
#[test]
fn a_sync_peer_cannot_spoil_the_signatures_of_batches() {
    let mut cluster = Cluster::new(4);
    cluster.submit(1, "x");
    cluster.settle();
    let block = Arc::clone(&cluster.nodes[&id(1)].executed.last().unwrap().1);
    let mut batch = Batch::clone(&block.batches()[0]);
    batch.signature = Signature([7; 64]);
    let spoiled = Arc::new(Block::new(block.header().clone(), vec![Arc::new(batch)]));
    let blocks = Blocks { blocks: vec![spoiled], certificate: None };
    assert!(cluster.verifier.verify(Message::Blocks(blocks)).is_err());
}

/// The proof went out once: where it was lost, one member alone suspected the leader, for good.
#[test]
fn a_proof_of_equivocation_reaches_everybody_in_the_end() {
    let mut cluster = Cluster::new(4);
    cluster.submit(2, "x");
    cluster.settle();
    let newest = cluster.nodes[&id(1)].executed.last().unwrap().1.header().clone();
    cluster.isolate(2);
    for time_ms in [newest.time_ms, newest.time_ms + 1] {
        let header = Header { batches: Block::batches_digest(&[]), ..cluster.child_of(&newest, time_ms) };
        let signature = key(1).sign(&Proposal::signed_bytes(&header));
        let block = Arc::new(Block::new(header, vec![]));
        let append = Append { block, signature, certificates: Certificates::default() };
        cluster.hear(1, 2, Message::Append(append));
    }
    cluster.settle();
    assert!(cluster.status(2).suspecting.is_some());
    cluster.heal();
    cluster.run(2_000);
    for n in 1..=4 {
        assert_ne!(cluster.status(n).leader, id(1), "at node {n}");
    }
}

/// An origin filled its place in the leader's pool with batches that can never come, so that the one that all expect of the
/// leader found no room: one liar toppled every leader.
#[test]
fn an_origin_cannot_topple_leaders_with_batches_that_never_come() {
    let mut cluster = Cluster::new(4);
    cluster.submit(1, "x");
    cluster.run(200);
    for number in 2..22 {
        let junk = cluster.batch(4, 7, number);
        cluster.hear(4, 1, Message::Batch(junk));
    }
    let good = cluster.batch(4, 8, 1);
    for to in [2, 3] {
        cluster.hear(4, to, Message::Batch(Arc::clone(&good)));
    }
    cluster.run(3_000);
    assert_eq!(cluster.requests(3), ["x", "r"]);
    assert_eq!(cluster.status(3).term, Term(0));
}

/// An old Prepare certificate, of a block that a later term has left behind, was expected to commit by everybody to whom it was
/// shown, again and again.
#[test]
fn a_position_that_was_overtaken_is_not_expected() {
    let mut cluster = Cluster::new(4);
    cluster.crash(1);
    cluster.submit(2, "x");
    cluster.run(5_000);
    let root = cluster.status(3).committed;
    assert!(root.term > Term(0));
    let abandoned = BlockRef { term: Term(0), index: Index(root.index.0 + 3), digest: Digest([7; 32]) };
    let certificate = cluster.certificate(BallotKind::Prepare, abandoned);
    for to in [2, 3, 4] {
        let from = if to == 4 { 3 } else { 4 };
        cluster.hear(from, to, Message::Certificate(Arc::clone(&certificate)));
    }
    cluster.run(10_000);
    assert_eq!(cluster.status(3).term, root.term);
}

/// A state that was certified for an index stays what it was, also when nobody remembers it any more.
#[test]
fn a_certified_state_is_not_said_to_be_another_later() {
    let mut cluster = Cluster::new(4);
    for _ in 0..3 {
        cluster.submit(2, "x");
        cluster.run(100);
    }
    let newest = cluster.nodes[&id(1)].executed.last().unwrap().1.header().clone();
    let replica = cluster.nodes.get_mut(&id(2)).unwrap().replica.as_mut().unwrap();
    replica.states.digests.retain(|(index, _)| *index > newest.executed.index);
    let mut header =
        Header { batches: Block::batches_digest(&[]), ..cluster.child_of(&newest, newest.time_ms) };
    header.executed.state.0[0] ^= 1;
    let signature = key(1).sign(&Proposal::signed_bytes(&header));
    let block = Arc::new(Block::new(header, vec![]));
    let append = Append { block: Arc::clone(&block), signature, certificates: Certificates::default() };
    cluster.wire.clear();
    cluster.hear(1, 2, Message::Append(append));
    let is_vote = |bytes: &[u8]| matches!(Message::decode(bytes), Ok(Message::Vote(_)));
    assert!(!cluster.wire.iter().any(|(_, _, bytes)| is_vote(bytes)));
}

/// The pool kept the oldest runs of an origin and the others expect the newest: a stream of small batches of older runs kept out
/// the one that all expected of the leader.
#[test]
fn an_origin_cannot_topple_leaders_with_batches_of_older_runs() {
    let cluster = Cluster::new(4);
    let marks = crate::block::Marks::default();
    let expected = cluster.batch(4, 1_000, 1);
    for order in [true, false] {
        let mut pool = Pool::default();
        if order {
            pool.insert(Arc::clone(&expected), &marks);
        }
        for run in 1..=20 {
            pool.insert(cluster.batch(4, run, 1), &marks);
        }
        pool.insert(Arc::clone(&expected), &marks);
        assert_eq!(pool.choose(&marks, 0), [Arc::clone(&expected)]);
    }
}

/// A sync peer that answers at once, and never with anything of use, was asked again and again, and nobody else was.
#[test]
fn a_sync_peer_that_brings_nothing_is_passed_over() {
    let mut cluster = Cluster::new(4);
    cluster.isolate(4);
    for text in ["x", "y", "z"] {
        cluster.submit(1, text);
        cluster.settle();
    }
    let last = Arc::clone(&cluster.nodes[&id(1)].executed.last().unwrap().1);
    let certificate = cluster.certificate(BallotKind::Commit, last.reference());
    cluster.heal();
    cluster.crash(3);
    cluster.hear(3, 4, Message::Certificate(certificate));
    for _ in 0..40 {
        cluster.now.monotonic_us += 50_000;
        cluster.step(id(4), Input::Tick);
        // A block that extends nothing; the others answer as they are.
        let useless = Blocks { blocks: vec![Arc::clone(&last)], certificate: None };
        cluster.hear(3, 4, Message::Blocks(useless));
        cluster.settle();
    }
    assert_eq!(cluster.requests(4), ["x", "y", "z"]);
}

/// Headers of indices far ahead displaced all true ones from what is watched, and a leader could equivocate unseen.
#[test]
fn a_leader_cannot_blind_the_watch_with_headers_far_ahead() {
    let mut cluster = Cluster::new(4);
    let newest = cluster.nodes[&id(1)].executed.last().unwrap().1.header().clone();
    let proposal = |header: Header| {
        let signature = key(1).sign(&Proposal::signed_bytes(&header));
        Message::Proposal(Box::new(Proposal { header, signature }))
    };
    for far in 0..70 {
        cluster.hear(1, 3, proposal(Header { index: Index(u64::MAX - far), ..newest.clone() }));
    }
    for time_ms in [newest.time_ms, newest.time_ms + 1] {
        let header = cluster.child_of(&newest, time_ms);
        cluster.hear(1, 3, proposal(header));
    }
    assert_eq!(cluster.accused(3), [(1, newest.index.next().0)]);
}
