//! What differs from row to row.

use super::*;
use crate::{crypto::Signature, evidence::Evidence, verify::Misbehavior};

fn vote(cluster: &Cluster, n: u8, kind: BallotKind, block: BlockRef) -> Vote {
    let signer = cluster.members.signer(Arc::new(key(n)));
    Vote::sign(cluster.members.cluster(), Ballot { kind, epoch: Epoch(0), block }, id(n), &*signer)
}

#[test]
fn every_row_agrees_and_gets_over_a_dead_leader() {
    for (protocol, n) in [
        (Protocol::BftRaft, 4),
        (Protocol::Pbft, 4),
        (Protocol::Ccro, 4),
        (Protocol::Raft, 3),
        (Protocol::Raft, 5),
    ] {
        for one_round in [true, false] {
            let mut cluster = Cluster::of(protocol, n, one_round);
            cluster.submit(2, "before");
            cluster.settle();
            cluster.run(200);
            cluster.crash(1);
            cluster.submit(3, "after");
            for _ in 0..100 {
                cluster.tick();
                cluster.deliver_all();
            }
            for n in 2..=n {
                assert_eq!(cluster.requests(n), ["before", "after"], "{protocol} at node {n}");
            }
        }
    }
}

impl Cluster {
    /// Delivers everything on the wire. Time passes by ticks only.
    fn deliver_all(&mut self) {
        while let Some((from, to, bytes)) = self.wire.pop_front() {
            if !self.cut.contains(&(from, to)) {
                self.hear(from.0, to.0, Message::decode(&bytes).unwrap());
            }
        }
    }
}

#[test]
fn one_cluster_of_a_single_member_of_each_row() {
    for protocol in Protocol::ALL {
        let mut cluster = Cluster::of(protocol, 1, true);
        cluster.submit(1, "alone");
        cluster.settle();
        assert_eq!(cluster.requests(1), ["alone"], "{protocol}");
    }
}

#[test]
fn without_one_round_there_are_two() {
    for protocol in [Protocol::BftRaft, Protocol::Pbft, Protocol::Ccro] {
        let mut cluster = Cluster::of(protocol, 4, false);
        let mut kinds = BTreeSet::new();
        cluster.submit(2, "x");
        cluster.settle_through(|_, _, message| {
            if let Message::Vote(vote) = &message {
                kinds.insert(vote.ballot.kind);
            }
            Some(message)
        });
        assert_eq!(kinds, BTreeSet::from([BallotKind::Prepare, BallotKind::Commit]), "{protocol}");
    }
}

#[test]
fn raft_votes_once_and_signs_nothing() {
    let mut cluster = Cluster::of(Protocol::Raft, 3, true);
    let mut votes = Vec::new();
    cluster.submit(2, "x");
    cluster.settle_through(|_, _, message| {
        match &message {
            Message::Vote(vote) => votes.push((vote.ballot.kind, vote.signature)),
            Message::Append(append) => assert_eq!(append.signature, Signature::NONE),
            Message::Batch(batch) => assert_eq!(batch.signature, Signature::NONE),
            _ => {}
        }
        Some(message)
    });
    assert_eq!(votes, [(BallotKind::Commit, Signature::NONE); 2], "one of each follower");
    assert_eq!(cluster.requests(3), ["x"]);
    let committed = cluster.nodes[&id(1)].durable.committed.clone().unwrap();
    assert_eq!(committed.certificate.signatures.len(), 2, "a majority's names");
}

#[test]
fn raft_starts_a_term_on_the_last_accepted_block() {
    let mut cluster = Cluster::of(Protocol::Raft, 3, true);
    cluster.submit(1, "x");
    // It reaches member 3 alone, whose vote is lost: nobody knows it to be committed, and it may be.
    cluster.settle_through(|_, to, message| match message {
        Message::Append(_) if to == 2 => None,
        Message::Vote(_) => None,
        other => Some(other),
    });
    assert!((1..=3).all(|n| cluster.requests(n).is_empty()));
    cluster.crash(1);
    cluster.crash(3);
    cluster.start(3);
    for _ in 0..60 {
        cluster.tick();
        cluster.deliver_all();
    }
    for n in [2, 3] {
        assert_eq!(cluster.requests(n), ["x"], "at node {n}");
        assert_eq!(cluster.status(n).leader, id(2), "who did not have it");
    }
}

#[test]
fn a_read_of_raft_waits_for_what_a_majority_may_have_committed() {
    let mut cluster = Cluster::of(Protocol::Raft, 3, true);
    cluster.submit(1, "x");
    // The leader executes, and nobody hears of it.
    cluster.settle_through(|_, _, message| (message.name() != "Certificate").then_some(message));
    assert_eq!(cluster.requests(1), ["x"]);
    cluster.crash(1);
    cluster.step(id(2), Input::Read(ReadTicket(1)));
    cluster.deliver_all();
    assert_eq!(
        cluster.nodes[&id(2)].readable,
        [],
        "its own state is older than what the leader has answered from"
    );
    for _ in 0..60 {
        cluster.tick();
        cluster.deliver_all();
    }
    assert_eq!(cluster.nodes[&id(2)].readable, [ReadTicket(1)]);
    assert_eq!(cluster.requests(2), ["x"]);
}

#[test]
fn what_raft_does_not_hold_is_refused() {
    let mut cluster = Cluster::of(Protocol::Raft, 3, true);
    cluster.submit(1, "x");
    cluster.settle();
    let block = cluster.newest(1).reference();
    let verify = |message| cluster.verifier.verify(message).map(|_| ());
    let gathered = |kind, voters: &[u8]| {
        let signatures = voters.iter().map(|n| (id(*n), Signature::NONE)).collect();
        let ballot = Ballot { kind, epoch: Epoch(0), block };
        Message::Certificate(Arc::new(Certificate { ballot, signatures }))
    };
    use BallotKind::{Commit, Prepare, Sole};
    assert_eq!(verify(Message::Vote(vote(&cluster, 2, Commit, block))), Ok(()));
    assert_eq!(verify(Message::Vote(vote(&cluster, 2, Prepare, block))), Err(Misbehavior::NoSuchBallot));
    let sole = Sole { members: 3 };
    assert_eq!(verify(Message::LateVote(vote(&cluster, 2, sole, block))), Err(Misbehavior::NoSuchBallot));
    assert_eq!(verify(gathered(Commit, &[1, 2])), Ok(()));
    assert_eq!(verify(gathered(Commit, &[1])), Err(Misbehavior::NoQuorum));
    assert_eq!(verify(gathered(Commit, &[1, 1])), Err(Misbehavior::NoQuorum));
    assert_eq!(verify(gathered(Commit, &[1, 9])), Err(Misbehavior::NoQuorum));
    assert_eq!(verify(gathered(Commit, &[])), Err(Misbehavior::NoQuorum));
    assert_eq!(verify(gathered(Prepare, &[])), Ok(()), "an acceptance");
    assert_eq!(verify(gathered(Prepare, &[1, 2])), Err(Misbehavior::NoSuchBallot));
    assert_eq!(verify(gathered(sole, &[1, 2, 3])), Err(Misbehavior::NoSuchBallot));
    let mut signed = vote(&cluster, 2, Commit, block);
    signed.signature.0[0] = 1;
    assert_eq!(verify(Message::Vote(signed)), Err(Misbehavior::BadSignature(id(2))));
    let mut foreign = vote(&cluster, 2, Commit, block);
    foreign.signer = id(9);
    assert_eq!(verify(Message::Vote(foreign)), Err(Misbehavior::NotAMember(id(9))));
}

#[test]
fn where_signatures_count_an_acceptance_proves_nothing() {
    let cluster = Cluster::new(4);
    let bare = Certificate::of_acceptance(Epoch(0), cluster.newest(1).reference());
    let refused = cluster.verifier.verify(Message::Certificate(Arc::new(bare)));
    assert_eq!(refused.map(|_| ()), Err(Misbehavior::NoQuorum));
}

#[test]
fn raft_takes_votes_from_their_voters_alone_and_accuses_nobody() {
    let mut cluster = Cluster::of(Protocol::Raft, 3, true);
    cluster.settle();
    let parent = cluster.newest(1).header().clone();
    let block = |time_ms| {
        let header = Cluster::child_of(&parent, time_ms);
        BlockRef { term: header.term, index: header.index, digest: header.digest() }
    };
    let (one, other) = (block(parent.time_ms), block(parent.time_ms + 1));
    // Member 2 votes for two blocks, and for one in another's name.
    for (n, block) in [(2, one), (2, other), (3, one)] {
        let vote = vote(&cluster, n, BallotKind::Commit, block);
        cluster.hear(2, 1, Message::Vote(vote));
    }
    let replica = cluster.nodes[&id(1)].replica.as_ref().unwrap();
    assert_eq!(replica.evidence().count(), 0);
    assert_eq!(replica.status().committed.index, parent.index, "one vote is no majority");
    assert!(!replica.status().catching_up, "nor a certificate of a block that it lacks");
    let proof = Evidence::of_votes(
        &vote(&cluster, 2, BallotKind::Commit, one),
        &vote(&cluster, 2, BallotKind::Commit, other),
    );
    let checked = proof.unwrap().check(&cluster.members, &Ed25519);
    assert_eq!(checked, Err(Misbehavior::NoProof), "anybody could have made it up");
}
