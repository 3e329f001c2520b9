//! One round of votes where all vote, and what becomes of it where somebody doesn't.

use super::*;
use crate::{
    block::Executed,
    message::{Heartbeat, ReadAnswer},
};

/// What the leader of term 0 says, with a certificate.
fn append_with(header: Header, committed: Option<Arc<Certificate>>) -> Message {
    let Message::Append(mut append) = Cluster::append(header) else { unreachable!() };
    append.certificates.committed = committed;
    Message::Append(append)
}

fn reference(header: &Header) -> BlockRef {
    BlockRef { term: header.term, index: header.index, digest: header.digest() }
}

impl Cluster {
    /// The kinds of the votes on the way.
    fn votes(&self) -> Vec<BallotKind> {
        let messages = self.wire.iter().map(|(_, _, bytes)| Message::decode(bytes).unwrap());
        let kind = |message| if let Message::Vote(vote) = message { Some(vote.ballot.kind) } else { None };
        messages.filter_map(kind).collect()
    }
}

#[test]
fn where_all_vote_nobody_votes_twice() {
    let mut cluster = Cluster::new(4);
    cluster.submit(2, "x");
    let mut kinds = Vec::new();
    cluster.settle_through(|_, _, message| {
        if let Message::Vote(vote) = &message {
            kinds.push(vote.ballot.kind);
        }
        Some(message)
    });
    assert_eq!(kinds, [BallotKind::Sole { members: 4 }; 3], "the leader's own never leaves");
    assert_eq!(cluster.requests(4), ["x"]);
}

#[test]
fn where_one_is_missing_there_is_a_second_round_and_soon_no_waiting() {
    let mut cluster = Cluster::new(4);
    cluster.isolate(4);
    cluster.submit(2, "x");
    cluster.settle();
    assert_eq!(cluster.requests(2), ["x"]);
    cluster.submit(2, "y");
    // No time passes: nobody waits for member 4 any more.
    while let Some((from, to, bytes)) = cluster.wire.pop_front() {
        if !cluster.cut.contains(&(from, to)) {
            cluster.hear(from.0, to.0, Message::decode(&bytes).unwrap());
        }
    }
    assert_eq!(cluster.requests(2), ["x", "y"]);
    cluster.heal();
    cluster.run(1_000);
    assert_eq!(cluster.requests(4), ["x", "y"]);
    assert_eq!(cluster.status(2).term, Term(0));
}

#[test]
fn what_all_have_voted_for_survives_a_leader_that_alone_knew() {
    let mut cluster = Cluster::new(4);
    cluster.submit(1, "x");
    // The leader gets all votes, executes, and is never heard of again.
    cluster.settle_through(|from, _, message| {
        let tells = matches!(message, Message::Certificate(_) | Message::Heartbeat(_));
        (from != 1 || !tells).then_some(message)
    });
    assert_eq!(cluster.requests(1), ["x"]);
    assert_eq!(cluster.requests(2), Vec::<String>::new());
    cluster.crash(1);
    cluster.run(3_000);
    for n in 2..=4 {
        assert_eq!(cluster.requests(n), ["x"], "at node {n}");
    }
}

/// Found in a review: who has voted for what nobody else has seen may have restarted, and can't show the leader's signature.
#[test]
fn a_read_is_not_kept_waiting_by_a_block_that_only_one_has() {
    for restarts in [false, true] {
        let mut cluster = Cluster::new(4);
        cluster.submit(2, "x");
        cluster.settle();
        cluster.run(200);
        let parent = cluster.newest(2).header().clone();
        cluster.crash(1);
        let header = Header { sole: true, ..Cluster::child_of(&parent, parent.time_ms) };
        let sole = reference(&header);
        cluster.hear(1, 2, append_with(header, None));
        assert_eq!(cluster.votes(), [BallotKind::Sole { members: 4 }]);
        cluster.settle();
        if restarts {
            cluster.crash(2);
            cluster.start(2);
        }
        cluster.step(id(3), Input::Read(ReadTicket(7)));
        for number in 0..400 {
            cluster.tick();
            for to in [2, 3, 4] {
                let certificates = Certificates::default();
                let heartbeat = Heartbeat { epoch: Epoch(0), term: Term(0), number, certificates };
                cluster.hear(1, to, Message::Heartbeat(heartbeat));
            }
            // The liar answers as member 2 does, and member 4's answer comes late.
            let mut rounds = Vec::new();
            cluster.settle_through(|from, to, message| {
                if let (1, Message::ReadQuery(query)) = (to, &message) {
                    rounds.push((from, query.round));
                }
                (!(from == 4 && to == 3 && matches!(message, Message::ReadAnswer(_)))).then_some(message)
            });
            for (reader, round) in rounds {
                let answer = ReadAnswer { epoch: Epoch(0), round, position: None, sole: Some(sole) };
                cluster.hear(1, reader, Message::ReadAnswer(answer));
            }
        }
        assert_eq!(cluster.nodes[&id(3)].readable, [ReadTicket(7)], "restarts: {restarts}");
    }
}

/// Found in a review: voters that had forgotten a state believed what a leader said of it, and a member that was behind and
/// remembered it halted.
#[test]
fn what_nobody_remembers_is_not_believed() {
    let mut cluster = Cluster::new(4);
    cluster.submit(2, "x");
    cluster.settle();
    cluster.run(200);
    let mut parent = cluster.newest(2).header().clone();
    cluster.crash(1);
    cluster.isolate(4);
    let mut committed = None;
    for _ in 0..340 {
        let mut header = Header { sole: false, ..Cluster::child_of(&parent, parent.time_ms) };
        let is_lie = header.index == Index(300);
        if is_lie {
            header.executed = Executed { index: Index(41), state: Digest([9; 32]) };
        }
        cluster.wire.clear();
        for to in [2, 3] {
            cluster.hear(1, to, append_with(header.clone(), committed.clone()));
        }
        assert_eq!(cluster.votes().is_empty(), is_lie, "{header:?}");
        if is_lie {
            return;
        }
        let certificate = cluster.certificate(BallotKind::Commit, reference(&header));
        for to in [2, 3] {
            cluster.hear(1, to, Message::Certificate(Arc::clone(&certificate)));
        }
        committed = Some(certificate);
        parent = header;
    }
    panic!("the lie was not told");
}
