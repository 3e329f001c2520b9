//! Lies that are proved, and what becomes of the proofs.

use super::*;
use crate::{
    ballot::{Ballot, TermVote, Vote},
    ids::Epoch,
    limits::MAX_EVIDENCE,
    message::EnterTerm,
};

fn prepare_vote(cluster: &Cluster, n: u8, term: u64, index: u64, digest: u8) -> Message {
    let block = BlockRef { term: Term(term), index: Index(index), digest: Digest([digest; 32]) };
    let ballot = Ballot { kind: BallotKind::Prepare, epoch: Epoch(0), block };
    Message::Vote(Vote::sign(cluster.members.cluster(), ballot, id(n), &key(n)))
}

impl Cluster {
    pub(super) fn accused(&self, n: u8) -> Vec<(u8, u64)> {
        let replica = self.nodes[&id(n)].replica.as_ref().unwrap();
        let offences = replica.evidence().map(|evidence| evidence.offence(&self.members));
        offences.map(|offence| (offence.accused.0, offence.index.0)).collect()
    }
}

#[test]
fn a_proof_reaches_everybody_and_is_kept_over_restarts() {
    let mut cluster = Cluster::new(4);
    cluster.isolate(4);
    // The leader alone sees both votes, on a block that may come.
    for digest in [7, 8] {
        let vote = prepare_vote(&cluster, 2, 0, 5, digest);
        cluster.hear(2, 1, vote);
    }
    cluster.settle();
    for n in [1, 2, 3] {
        assert_eq!(cluster.accused(n), [(2, 5)], "at node {n}");
    }
    assert_eq!(cluster.accused(4), [], "it is cut off");
    // A double vote costs its signer its word, not the leader its term.
    cluster.submit(3, "x");
    cluster.settle();
    assert_eq!(cluster.requests(1), ["x"]);
    cluster.crash(1);
    cluster.start(1);
    assert_eq!(cluster.accused(1), [(2, 5)]);
    cluster.heal();
    cluster.run(20_000);
    assert_eq!(cluster.accused(4), [(2, 5)], "proofs are shown again to those who were away");
}

#[test]
fn proofs_against_one_member_are_few() {
    let mut cluster = Cluster::new(4);
    for index in 2..=30 {
        for digest in [7, 8, 9] {
            let vote = prepare_vote(&cluster, 2, 0, index, digest);
            cluster.hear(2, 1, vote);
        }
    }
    let other = [7, 8].map(|digest| prepare_vote(&cluster, 3, 0, 4, digest));
    for vote in other {
        cluster.hear(3, 1, vote);
    }
    cluster.settle();
    let accused = cluster.accused(4);
    assert_eq!(accused.iter().filter(|(accused, _)| *accused == 2).count(), MAX_EVIDENCE);
    assert!(accused.contains(&(3, 4)), "one liar leaves room for the proofs against another");
}

/// The leader shows one block to node 4 and another to the rest: nobody gets both, until what is certified contradicts what
/// one of them holds.
#[test]
fn a_leader_that_shows_each_member_one_story_is_proved_to_lie() {
    let mut cluster = Cluster::new(4);
    cluster.isolate(4);
    cluster.submit(1, "x");
    cluster.settle();
    let honest = cluster.newest(1);
    let forged = Header { batches: Block::batches_digest(&[]), ..honest.header().clone() };
    cluster.hear(1, 4, Cluster::append(forged));
    cluster.settle();
    assert_eq!(cluster.accused(4), []);
    cluster.heal();
    cluster.run(3_000);
    for n in 2..=4 {
        assert_eq!(cluster.accused(n), [(1, honest.header().index.0)], "at node {n}");
    }
}

/// Found by the simulator (`equivocator-kept`, mutate 3333): the only member that had the proof crashed, and trusted the
/// leader again.
#[test]
fn a_proved_leader_is_suspected_after_a_restart_too() {
    let mut cluster = Cluster::new(4);
    cluster.isolate(2);
    let newest = cluster.newest(1).header().clone();
    for time_ms in [newest.time_ms, newest.time_ms + 1] {
        cluster.hear(1, 2, Cluster::append(Cluster::child_of(&newest, time_ms)));
    }
    cluster.settle();
    cluster.crash(2);
    cluster.start(2);
    assert_eq!(cluster.accused(2), [(1, newest.index.next().0)]);
    cluster.heal();
    cluster.run(2_000);
    for n in 2..=4 {
        assert_ne!(cluster.status(n).leader, id(1), "at node {n}");
    }
}

/// Its blocks go on to commit, and nobody else has the proof.
#[test]
fn a_proved_leader_stays_suspected_when_blocks_commit() {
    let mut cluster = Cluster::new(4);
    let newest = cluster.newest(1).header().clone();
    cluster.cut.extend([1, 3, 4].map(|to| (id(2), id(to))));
    for time_ms in [newest.time_ms, newest.time_ms + 1] {
        let header = Header { index: Index(newest.index.0 + 3), ..Cluster::child_of(&newest, time_ms) };
        let signature = key(1).sign(&Proposal::signed_bytes(&header));
        cluster.hear(1, 2, Message::Proposal(Box::new(Proposal { header, signature })));
    }
    assert!(cluster.status(2).suspecting.is_some());
    cluster.submit(1, "x");
    cluster.settle();
    assert_eq!(cluster.requests(2), ["x"]);
    cluster.run(1_000);
    assert!(cluster.status(2).suspecting.is_some());
}

#[test]
fn a_forgotten_lock_is_proved() {
    let mut cluster = Cluster::new(4);
    // Where not all vote there is a second round.
    cluster.isolate(4);
    cluster.submit(2, "x");
    cluster.settle();
    // Everybody has seen member 3's Commit votes, in certificates. It says that it has seen nothing.
    let vote = TermVote::sign(cluster.members.cluster(), Epoch(0), Term(1), None, None, id(3), &key(3));
    let enter = EnterTerm { vote, position: None, suspects: None, sole: None };
    cluster.hear(3, 2, Message::EnterTerm(Arc::new(enter)));
    cluster.settle();
    let certificates_of_3 = cluster.nodes[&id(2)]
        .log
        .iter()
        .filter_map(|(_, certificate)| certificate.as_ref())
        .any(|certificate| certificate.signatures.iter().any(|(signer, _)| *signer == id(3)));
    assert!(certificates_of_3, "the quorum's fastest members are 1, 2 and 3 here");
    assert_eq!(cluster.accused(1), [(3, 2)]);
}

#[test]
fn a_vote_for_what_was_never_proposed_is_a_lie() {
    let mut cluster = Cluster::new(4);
    cluster.isolate(1);
    cluster.submit(1, "x");
    let vote = prepare_vote(&cluster, 2, 0, 2, 7);
    let message = cluster.verifier.verify(vote).unwrap();
    let now = cluster.now;
    let replica = cluster.nodes.get_mut(&id(1)).unwrap().replica.as_mut().unwrap();
    replica.step(now, Input::Message(id(2), message));
    let lie = Output::Report(Report::Ignored(id(2), "Vote", Ignore::FalseVote));
    assert!(replica.take_outputs().contains(&lie));
    assert!(Ignore::FalseVote.is_lie() && !Ignore::PastTerm.is_lie());
}

/// Neither block is ever certified, and nobody has both: the term is left, and the liar named all the same.
#[test]
fn a_leader_whose_two_stories_both_fail_is_proved_to_lie() {
    let mut cluster = Cluster::new(4);
    let newest = cluster.newest(1).header().clone();
    cluster.crash(1);
    for (to, time_ms) in [(2, 1), (3, 2), (4, 2)] {
        let header = Cluster::child_of(&newest, newest.time_ms + time_ms);
        cluster.hear(1, to, Cluster::append(header));
    }
    cluster.wire.clear();
    cluster.run(3_000);
    for n in 2..=4 {
        assert!(cluster.status(n).term > Term(0));
        assert_eq!(cluster.accused(n), [(1, newest.index.next().0)], "at node {n}");
    }
}

/// The proof was there before the term was entered, and the term's leader was trusted.
#[test]
fn a_leader_proved_to_lie_beforehand_is_suspected_when_its_term_begins() {
    let mut cluster = Cluster::new(4);
    let newest = cluster.newest(1).header().clone();
    let liar = cluster.members.leader(Term(4));
    let proposals = [1, 2].map(|time_ms| {
        let header = Header { term: Term(4), ..Cluster::child_of(&newest, newest.time_ms + time_ms) };
        let signature = key(liar.0).sign(&Proposal::signed_bytes(&header));
        Proposal { header, signature }
    });
    let [first, second] = proposals;
    let proof = crate::evidence::Evidence::DoubleProposal { first, second };
    cluster.hear(3, 2, Message::Evidence(Box::new(proof)));
    cluster.settle();
    let suspects = [1, 2, 3]
        .map(|n| crate::ballot::Suspect::sign(cluster.members.cluster(), Epoch(0), Term(3), id(n), &key(n)));
    let replica = cluster.nodes.get_mut(&id(2)).unwrap().replica.as_mut().unwrap();
    let suspects =
        crate::certificate::SuspectCertificate::gather(&cluster.members, Term(3), &suspects).unwrap();
    replica.enter_term(Term(4), Some(Arc::new(suspects)));
    cluster.step(id(2), Input::Tick);
    assert!(cluster.status(2).suspecting.is_some());
}
