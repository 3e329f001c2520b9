//! Where votes go, and what becomes of them where nobody serves.

use super::*;

fn of_kind(name: &'static str) -> impl Fn(&(u8, u8, Message)) -> bool {
    move |(_, _, message)| message.name() == name
}

impl Cluster {
    /// What is sent while a request of a member is committed, on a network that passes on what `pass` lets through.
    fn traffic(
        &mut self,
        n: u8,
        text: &'static str,
        mut pass: impl FnMut(u8, u8, &Message) -> bool,
    ) -> Vec<(u8, u8, Message)> {
        let mut sent = Vec::new();
        self.submit(n, text);
        self.settle_through(|from, to, message| {
            sent.push((from, to, message.clone()));
            pass(from, to, &message).then_some(message)
        });
        sent
    }

    /// What the leader of term 0 says next, with a route of its own.
    fn append_to(&self, votes_to: Route) -> Message {
        let parent = self.newest(2).header().clone();
        let Message::Append(append) =
            Self::append(Header { sole: false, ..Self::child_of(&parent, parent.time_ms) })
        else {
            unreachable!()
        };
        Message::Append(Append { votes_to, ..append })
    }
}

/// Whether a message is a certificate that a member other than the leader of term 0 has gathered.
fn is_served_by(node: u8) -> impl Fn(u8, u8, &Message) -> bool {
    move |from, _, message| from == node && matches!(message, Message::Certificate(_))
}

#[test]
fn of_pbft_everybody_gathers_and_nobody_sends_certificates() {
    let mut cluster = Cluster::of(Protocol::Pbft, 4, true);
    let sent = cluster.traffic(2, "x", |_, _, _| true);
    assert_eq!(sent.iter().filter(|it| of_kind("Vote")(it)).count(), 4 * 3, "each member to each other");
    assert!(!sent.iter().any(of_kind("Certificate")), "{sent:?}");
    assert!((1..=4).all(|n| cluster.requests(n) == ["x"]));
}

#[test]
fn of_ccro_votes_go_to_one_member_that_is_not_the_leader_and_it_serves_all() {
    let mut cluster = Cluster::of(Protocol::Ccro, 4, true);
    let sent = cluster.traffic(2, "x", |_, _, _| true);
    let to: BTreeSet<_> = sent.iter().filter(|it| of_kind("Vote")(it)).map(|(_, to, _)| *to).collect();
    assert_eq!(to, BTreeSet::from([2]), "the first after the leader");
    let servers: Vec<_> =
        sent.iter().filter(|it| of_kind("Certificate")(it)).map(|(from, to, _)| (*from, *to)).collect();
    assert_eq!(servers, [(2, 1), (2, 3), (2, 4)]);
    assert!((1..=4).all(|n| cluster.requests(n) == ["x"]));
}

#[test]
fn a_node_that_serves_nobody_costs_one_fall_back_and_is_named_no_more() {
    for one_round in [true, false] {
        let mut cluster = Cluster::of(Protocol::Ccro, 4, one_round);
        let silent = is_served_by(2);
        let before_us = cluster.now.monotonic_us;
        let sent = cluster.traffic(3, "x", |from, to, message| !silent(from, to, message));
        assert!(sent.iter().any(of_kind("LateVote")));
        assert!((1..=4).all(|n| cluster.requests(n) == ["x"]), "one round: {one_round}");
        let took_us = cluster.now.monotonic_us - before_us;
        assert!(took_us <= 2 * cluster.timing.resend_us, "{took_us}");
        let sent = cluster.traffic(3, "y", |from, to, message| !silent(from, to, message));
        assert!(!sent.iter().any(of_kind("LateVote")), "{sent:?}");
        let named: BTreeSet<_> = sent
            .iter()
            .filter_map(|(_, _, message)| match message {
                Message::Append(append) => Some(append.votes_to),
                _ => None,
            })
            .collect();
        assert_eq!(named, BTreeSet::from([Route::Member(id(3))]));
        assert!((1..=4).all(|n| cluster.status(n).term == Term(0)), "nobody is suspected for it");
    }
}

#[test]
fn a_node_that_serves_the_leader_alone_is_named_no_more_although_that_is_enough_to_commit() {
    let mut cluster = Cluster::of(Protocol::Ccro, 4, true);
    let selective = |from, to, message: &Message| !(is_served_by(2)(from, to, message) && to != 1);
    let sent = cluster.traffic(1, "x", selective);
    assert!(!sent.iter().any(|(from, _, message)| *from == 1 && matches!(message, Message::LateVote(_))));
    let sent = cluster.traffic(1, "y", selective);
    assert!(!sent.iter().any(of_kind("LateVote")), "{sent:?}");
    assert!((1..=4).all(|n| cluster.requests(n) == ["x", "y"]));
}

#[test]
fn a_node_that_serves_the_leader_alone_is_named_no_more() {
    let mut cluster = Cluster::of(Protocol::Ccro, 4, false);
    let selective = |from, to, message: &Message| !(is_served_by(2)(from, to, message) && to != 1);
    let sent = cluster.traffic(1, "x", selective);
    let late: BTreeSet<_> =
        sent.iter().filter(|it| of_kind("LateVote")(it)).map(|(from, _, _)| *from).collect();
    assert!(late.is_superset(&[3, 4].into()), "{late:?}");
    let sent = cluster.traffic(1, "y", selective);
    assert!(!sent.iter().any(of_kind("LateVote")), "{sent:?}");
    assert!((1..=4).all(|n| cluster.requests(n) == ["x", "y"]));
}

#[test]
fn who_falls_back_is_answered_with_what_is_known() {
    // All certificates reach all but member 4, which hears only what it is told as an answer.
    let mut cluster = Cluster::of(Protocol::Ccro, 4, false);
    let parent = cluster.newest(4).clone();
    cluster.submit(1, "x");
    let mut answers = Vec::new();
    let mut has_asked = false;
    cluster.settle_through(|from, to, message| {
        has_asked |= from == 4 && matches!(message, Message::LateVote(_));
        let is_news = matches!(message, Message::Certificate(_) | Message::Heartbeat(_));
        if to == 4 && is_news && has_asked {
            answers.push((from, message.name()));
        }
        (to != 4 || !is_news || has_asked).then_some(message)
    });
    assert!(!answers.is_empty(), "nobody answers");
    assert_ne!(cluster.newest(4).digest(), parent.digest());
    assert_eq!(cluster.requests(4), ["x"]);
}

impl Cluster {
    /// Whom a member would name, if it led, of those that don't now.
    fn would_name(&self, n: u8) -> Option<MemberId> {
        let replica = self.nodes[&id(n)].replica.as_ref().unwrap();
        replica.routing.trust.clone().choose(&[id(2), id(3), id(4)])
    }
}

#[test]
fn a_leader_that_tells_the_node_another_route_harms_it_with_nobody() {
    for one_round in [true, false] {
        let mut cluster = Cluster::of(Protocol::Ccro, 4, one_round);
        for round in ["a", "b", "c"] {
            cluster.submit(1, round);
            let mut late = 0;
            cluster.settle_through(|_, to, message| match message {
                Message::Append(append) => {
                    let votes_to = if to == 2 { Route::Leader } else { Route::Member(id(2)) };
                    Some(Message::Append(Append { votes_to, ..append }))
                }
                message => {
                    late += u32::from(matches!(message, Message::LateVote(_)));
                    Some(message)
                }
            });
            assert!(late > 0, "all fall back");
        }
        assert!((1..=4).all(|n| cluster.requests(n) == ["a", "b", "c"]));
        for n in [2, 3, 4] {
            assert_eq!(cluster.would_name(n), Some(id(2)), "member {n}, one round: {one_round}");
        }
    }
}

#[test]
fn who_gathers_before_the_append_comes_broadcasts_nothing_where_votes_go_to_everybody() {
    for (protocol, is_sent) in [(Protocol::Pbft, false), (Protocol::Ccro, true)] {
        let mut cluster = Cluster::of(protocol, 4, false);
        cluster.submit(1, "x");
        let mut certificates = 0;
        cluster.settle_through(|from, to, message| {
            certificates += u32::from(from == 2 && message.name() == "Certificate");
            // Votes overtake the Append to member 2.
            (to != 2 || message.name() != "Append" || certificates > 0).then_some(message)
        });
        assert_eq!(certificates > 0, is_sent, "{protocol}");
        assert!([1, 3, 4].iter().all(|n| cluster.requests(*n) == ["x"]));
    }
}

#[test]
fn promptness_counts_once_a_block_and_only_as_the_leader_that_named_the_node() {
    let mut cluster = Cluster::of(Protocol::Ccro, 4, false);
    let append = cluster.append_to(Route::Member(id(3)));
    let Message::Append(block) = &append else { unreachable!() };
    let certificate = cluster.certificate(BallotKind::Prepare, block.block.reference());
    cluster.hear(1, 4, append.clone());
    let trust = |cluster: &Cluster, n: u8| {
        format!("{:?}", cluster.nodes[&id(n)].replica.as_ref().unwrap().routing.trust)
    };
    let before = trust(&cluster, 4);
    for from in [2, 3, 3, 3] {
        cluster.hear(from, 4, Message::Certificate(Arc::clone(&certificate)));
    }
    assert_eq!(trust(&cluster, 4), before, "a follower counts nothing");
    cluster.submit(1, "x");
    let mut after = Vec::new();
    let mut shown = None;
    cluster.settle_through(|from, to, message| {
        if (from, to) == (2, 1)
            && let Message::Certificate(certificate) = &message
        {
            shown.get_or_insert(Arc::clone(certificate));
            return None;
        }
        // Nobody but the node may serve the leader.
        (to != 1 || message.name() != "LateVote").then_some(message)
    });
    let shown = shown.expect("the node serves");
    after.push(trust(&cluster, 1));
    for from in [3, 4, 2, 2, 2, 2] {
        cluster.hear(from, 1, Message::Certificate(Arc::clone(&shown)));
        after.push(trust(&cluster, 1));
    }
    let changes = after.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes <= 1, "{changes}");
}

#[test]
fn a_late_vote_that_is_repeated_is_no_amplifier() {
    let mut cluster = Cluster::of(Protocol::Ccro, 4, false);
    cluster.submit(1, "x");
    cluster.settle();
    let answers = |cluster: &mut Cluster| {
        let block = cluster.newest(1).reference();
        for kind in [BallotKind::Prepare, BallotKind::Commit] {
            let ballot = Ballot { kind, epoch: Epoch(0), block };
            let vote = Vote::sign(cluster.members.cluster(), ballot, id(4), &key(4));
            for _ in 0..100 {
                cluster.hear(4, 1, Message::LateVote(vote.clone()));
            }
        }
        let is_answer = |bytes: &[u8]| Message::decode(bytes).unwrap().name() == "Certificate";
        let sent = cluster.wire.drain(..).filter(|(_, to, bytes)| *to == id(4) && is_answer(bytes));
        sent.count()
    };
    assert_eq!(answers(&mut cluster), 1, "of two hundred");
    assert_eq!(answers(&mut cluster), 0);
    cluster.now.monotonic_us += cluster.timing.resend_us;
    assert_eq!(answers(&mut cluster), 1, "the answer may have been lost");
}

#[test]
fn a_route_to_nobody_costs_time_only() {
    let routes = [
        Route::Member(id(200)),
        Route::Member(id(0)),
        Route::Member(id(1)),
        Route::Member(id(4)),
        Route::Everyone,
    ];
    for route in routes {
        let mut cluster = Cluster::new(4);
        cluster.settle();
        // Member 4 takes no part.
        cluster.isolate(4);
        let append = cluster.append_to(route);
        for n in [2, 3] {
            cluster.hear(1, n, append.clone());
        }
        // What the leader itself votes for is for it to say.
        let Message::Append(append) = &append else { unreachable!() };
        let ballot = Ballot { kind: BallotKind::Prepare, epoch: Epoch(0), block: append.block.reference() };
        for n in [2, 3] {
            let kinds = [BallotKind::Prepare, BallotKind::Commit];
            for kind in kinds {
                let vote = Vote::sign(cluster.members.cluster(), Ballot { kind, ..ballot }, id(1), &key(1));
                cluster.hear(1, n, Message::Vote(vote));
            }
        }
        // No tick: what is late is late by the replicas' own wish to be called.
        let late = cluster.timing.resend_us;
        for _ in 0..3 {
            while let Some((from, to, bytes)) = cluster.wire.pop_front() {
                if !cluster.cut.contains(&(from, to)) && to.0 != 1 {
                    cluster.hear(from.0, to.0, Message::decode(&bytes).unwrap());
                }
            }
            cluster.now.monotonic_us += late;
            for n in [2, 3] {
                cluster.step(id(n), Input::Due);
            }
        }
        let goes_to_leader = !matches!(route, Route::Everyone)
            && route != Route::Member(id(1))
            && route != Route::Member(id(4));
        for n in [2, 3] {
            let is_committed = cluster.status(n).committed.digest == append.block.digest();
            assert_eq!(
                is_committed, !goes_to_leader,
                "{route:?} at node {n}: a route to nobody is one to the leader"
            );
        }
    }
}

#[test]
fn a_cluster_goes_over_to_another_protocol_and_writes_go_on() {
    let mut cluster = Cluster::new(4);
    cluster.submit(2, "a");
    cluster.settle();
    // The request that sets it is executed here and there, as it comes.
    for n in [3, 1] {
        cluster.step(id(n), Input::Protocol(Protocol::Ccro));
    }
    assert_eq!(cluster.status(1).protocol, Protocol::BftRaft, "in this term");
    assert_eq!(cluster.status(1).next_protocol, Protocol::Ccro);
    cluster.submit(3, "b");
    cluster.settle();
    assert!((1..=4).all(|n| cluster.requests(n) == ["a", "b"]));
    for n in [2, 4] {
        cluster.step(id(n), Input::Protocol(Protocol::Ccro));
    }
    cluster.run(4_000);
    assert!((1..=4).all(|n| cluster.status(n).term == Term(0)), "not before it has led for ten time-outs");
    assert_eq!(cluster.status(1).next_protocol, Protocol::Ccro, "until then status shows what comes");
    cluster.run(3_000);
    assert!((1..=4).all(|n| cluster.status(n).term == Term(1)), "the leader has handed it on, once");
    assert!((1..=4).all(|n| cluster.status(n).protocol == Protocol::Ccro));
    let sent = cluster.traffic(4, "c", |_, _, _| true);
    let to: BTreeSet<_> = sent.iter().filter(|it| of_kind("Vote")(it)).map(|(_, to, _)| *to).collect();
    assert_eq!(to, BTreeSet::from([3]), "the first after the leader, which is 2");
    cluster.run(2_000);
    assert!((1..=4).all(|n| cluster.requests(n) == ["a", "b", "c"]));
    assert!((1..=4).all(|n| cluster.status(n).term == Term(1)));
}

#[test]
fn one_that_flips_the_protocol_for_ever_moves_the_term_once_in_ten_time_outs() {
    let mut cluster = Cluster::new(4);
    let rows = [Protocol::Ccro, Protocol::Pbft, Protocol::BftRaft];
    let timeout_ms = cluster.timing.timeout_us / 1000;
    for round in 0..300 {
        for n in 1..=4 {
            cluster.step(id(n), Input::Protocol(rows[round % rows.len()]));
        }
        cluster.run(timeout_ms / 3);
    }
    let term = cluster.status(1).term;
    assert!((Term(5)..=Term(10)).contains(&term), "100 time-outs: {term}");
}

#[test]
fn a_leader_that_has_not_heard_of_the_change_does_no_harm() {
    let mut cluster = Cluster::new(4);
    for n in [2, 3, 4] {
        cluster.step(id(n), Input::Protocol(Protocol::Pbft));
    }
    cluster.submit(2, "a");
    cluster.settle();
    cluster.run(2_000);
    assert!((1..=4).all(|n| cluster.requests(n) == ["a"]));
    assert!((1..=4).all(|n| cluster.status(n).term == Term(0)), "it is for the leader to end its term");
    assert_eq!(cluster.status(2).protocol, Protocol::BftRaft);
}

#[test]
fn what_counts_otherwise_is_not_gone_over_to() {
    let mut cluster = Cluster::new(4);
    cluster.step(id(1), Input::Protocol(Protocol::Raft));
    assert_eq!(cluster.status(1).next_protocol, Protocol::BftRaft);
    let mut cluster = Cluster::of(Protocol::Raft, 3, true);
    cluster.step(id(1), Input::Protocol(Protocol::Pbft));
    assert_eq!(cluster.status(1).next_protocol, Protocol::Raft);
}

#[test]
fn a_leader_that_gathers_no_votes_owes_nobody_prepare_certificates() {
    for protocol in [Protocol::Pbft, Protocol::Ccro] {
        let mut cluster = Cluster::of(protocol, 4, false);
        for _ in 0..20 {
            cluster.submit(2, "x");
            cluster.settle();
        }
        cluster.run(300);
        for n in 1..=4 {
            assert_eq!((cluster.status(n).suspecting, cluster.status(n).term), (None, Term(0)), "{protocol}");
        }
    }
}
