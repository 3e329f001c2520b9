//! What liars did to correct members until the simulator's adversaries showed it.

use super::*;
use crate::{block::Batch, ids::Epoch};

impl Cluster {
    fn batch(&self, origin: u8, incarnation: u64, number: u64) -> Arc<Batch> {
        let (incarnation, number) = (Incarnation(incarnation), BatchNumber(number));
        let requests = vec![Request::from_static(b"r")];
        let cluster = self.members.cluster();
        Arc::new(Batch::sign(cluster, id(origin), incarnation, number, requests, &key(origin)))
    }
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

/// The proof went out once: where it was lost, one member alone suspected the leader, for good.
#[test]
fn a_proof_of_equivocation_reaches_everybody_in_the_end() {
    let mut cluster = Cluster::new(4);
    cluster.submit(2, "x");
    cluster.settle();
    let newest = cluster.newest(1).header().clone();
    cluster.isolate(2);
    for time_ms in [newest.time_ms, newest.time_ms + 1] {
        cluster.hear(1, 2, Cluster::append(Cluster::child_of(&newest, time_ms)));
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
    let newest = cluster.newest(1).header().clone();
    let replica = cluster.nodes.get_mut(&id(2)).unwrap().replica.as_mut().unwrap();
    replica.states.digests.retain(|(index, _)| *index > newest.executed.index);
    let mut header = Cluster::child_of(&newest, newest.time_ms);
    header.executed.state.0[0] ^= 1;
    cluster.wire.clear();
    cluster.hear(1, 2, Cluster::append(header));
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

/// Headers of indices far ahead displaced all true ones from what is watched, and a leader could equivocate unseen.
#[test]
fn a_leader_cannot_blind_the_watch_with_headers_far_ahead() {
    let mut cluster = Cluster::new(4);
    let newest = cluster.newest(1).header().clone();
    let proposal = |header: Header| {
        let signature = key(1).sign(&Proposal::signed_bytes(&header));
        Message::Proposal(Box::new(Proposal { header, signature }))
    };
    for far in 0..70 {
        cluster.hear(1, 3, proposal(Header { index: Index(u64::MAX - far), ..newest.clone() }));
    }
    for time_ms in [newest.time_ms, newest.time_ms + 1] {
        let header = Cluster::child_of(&newest, time_ms);
        cluster.hear(1, 3, proposal(header));
    }
    assert_eq!(cluster.accused(3), [(1, newest.index.next().0)]);
}
