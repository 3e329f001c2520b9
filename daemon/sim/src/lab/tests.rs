#![allow(clippy::unwrap_used)]
mod formulas;

use bftd_core::protocol::VotesTo;

use super::*;

const BYZANTINE: [Protocol; 3] = [Protocol::BftRaft, Protocol::Pbft, Protocol::Ccro];

fn few(protocol: Protocol, nodes: u8, requests: u32) -> Experiment {
    Experiment { requests, ..Experiment::new(protocol, nodes) }
}

#[track_caller]
fn run(experiment: &Experiment) -> Report {
    let report = experiment.run(&|| {}).unwrap();
    assert_eq!(report.committed, experiment.requests, "{report:?}");
    assert!(report.agreement, "{report:?}");
    report
}

#[track_caller]
fn p50(experiment: &Experiment) -> f64 {
    run(experiment).consensus_time_ms.unwrap().p50
}

#[test]
fn every_size_works() {
    for protocol in Protocol::ALL {
        for nodes in [1, 2, 3, 5, 6, 128] {
            assert_eq!(run(&few(protocol, nodes, 2)).term_changes, 0);
        }
    }
}

#[test]
fn a_seed_is_the_same_run_every_time_and_another_is_not() {
    let at = |protocol, seed| {
        let network = Network::wan().with_loss(0.01).unwrap();
        let faulty = vec![(Misconduct::Malicious, Who::Tolerated)];
        let experiment = Experiment { seed, network, faulty, ..few(protocol, 7, 20) };
        Report { cpu_seconds: 0.0, ..run(&experiment) }
    };
    for protocol in BYZANTINE {
        assert_eq!(at(protocol, 7), at(protocol, 7));
        assert_ne!(at(protocol, 7).consensus_time_ms, at(protocol, 8).consensus_time_ms);
    }
}

#[test]
fn as_many_as_are_tolerated_may_be_gone() {
    for protocol in Protocol::ALL {
        let faulty = vec![(Misconduct::Offline, Who::Tolerated)];
        let with = Experiment { faulty, ..few(protocol, 31, 10) };
        let report = run(&with);
        assert_eq!(report.faulty["offline"], report.f);
        assert_eq!(report.term_changes, 0, "the leader is not among them");
        let gone = &report.faulty_members["offline"];
        assert!(report.nodes_tally.iter().all(|it| gone.contains(&it.id) == (it.correct == 0)), "{report:?}");
        let without_leader = run(&Experiment { faulty_leader: true, ..with });
        assert!(without_leader.faulty_members["offline"].contains(&1));
        assert!(without_leader.term_changes > 0);
        assert!(without_leader.consensus_time_ms.unwrap().max > 600.0, "a time-out");
    }
}

#[test]
fn as_many_as_are_tolerated_may_lie() {
    for protocol in BYZANTINE {
        let faulty = vec![(Misconduct::Malicious, Who::Tolerated)];
        let with = Experiment { faulty, ..few(protocol, 31, 10) };
        let report = run(&with);
        assert_eq!((report.faulty["malicious"], report.term_changes), (10, 0));
        for tally in &report.nodes_tally {
            let lies = report.faulty_members["malicious"].contains(&tally.id);
            assert_eq!(tally.corrupt > 0, lies, "{tally:?}");
            assert!(tally.found == 0 || lies, "nobody else is accused: {tally:?}");
        }
        let led = run(&Experiment { faulty_leader: true, ..with });
        assert!(led.term_changes > 0 && led.evidence > 0, "{led:?}");
    }
}

#[test]
fn a_leader_that_equivocates_is_left_and_proved() {
    for protocol in BYZANTINE {
        let faulty = vec![(Misconduct::Equivocate, Who::Members(vec![1]))];
        let report = run(&Experiment { faulty, ..few(protocol, 4, 10) });
        assert!(report.term_changes > 0 && report.evidence > 0, "{report:?}");
        assert!(report.nodes_tally[0].corrupt > 0);
    }
}

#[test]
fn without_a_quorum_nothing_is_committed_and_the_run_ends() {
    for protocol in BYZANTINE {
        let faulty = vec![(Misconduct::Offline, Who::Some(2))];
        let experiment = Experiment { faulty, beyond_f: true, ..few(protocol, 4, 5) };
        let report = experiment.run(&|| {}).unwrap();
        assert_eq!((report.committed, report.consensus_time_ms, report.messages_per_commit), (0, None, None));
        assert!(report.term_changes == 0 && report.messages > 0, "they go on asking: {report:?}");
    }
}

#[test]
fn time_goes_where_the_model_says() {
    const MS: u64 = 1_000_000;
    for protocol in Protocol::ALL {
        let ideal = Experiment { network: Network::ideal(MS), costs: Costs::NONE, ..few(protocol, 4, 9) };
        let delays = p50(&ideal);
        assert_eq!(run(&ideal).delays, Some(delays));
        let far = Experiment { network: Network::ideal(10 * MS), ..ideal.clone() };
        assert!((p50(&far) - 10.0 * delays).abs() < 1e-6);
        let row = protocol.row();
        // The followers' records of the block; with two rounds those of the lock, too.
        let slow_disk = |one_round| Experiment {
            costs: Costs { fsync_ns: 10 * MS, ..Costs::NONE },
            one_round,
            ..ideal.clone()
        };
        let synced = p50(&slow_disk(true)) - delays;
        assert!((synced - 10.0).abs() < 1e-6, "{protocol}: {synced}");
        if row.prepares {
            let two_rounds = Experiment { one_round: false, ..ideal.clone() };
            let synced = p50(&slow_disk(false)) - p50(&two_rounds);
            assert!((synced - 20.0).abs() < 1e-6, "{protocol}: {synced}");
        }
        let signing = Experiment { costs: Costs { verify_ns: MS, ..Costs::NONE }, ..ideal.clone() };
        assert_eq!(p50(&signing) > delays + 3.0, row.signs, "{protocol}");
    }
}

#[test]
fn a_message_costs_its_sender_and_its_receiver() {
    const MS: u64 = 1_000_000;
    let to_the_leader = |protocol: &Protocol| protocol.row().votes_to == VotesTo::Leader;
    for protocol in Protocol::ALL.into_iter().filter(to_the_leader) {
        // With two members each message goes to the other one, and waits for nothing else.
        let ideal = Experiment { network: Network::ideal(MS), costs: Costs::NONE, ..few(protocol, 2, 5) };
        let delays = p50(&ideal);
        let costs = Costs { message_ns: MS, ..Costs::NONE };
        let with_work = p50(&Experiment { costs, ..ideal });
        assert!((with_work - 3.0 * delays).abs() < 1e-6, "{protocol}: {with_work}, {delays}");
    }
}

#[test]
fn a_narrow_line_and_lost_packets_cost_time() {
    for protocol in Protocol::ALL {
        let quick = few(protocol, 4, 30);
        let narrow = Network::lan().with_bandwidth(10_000_000).unwrap();
        assert!(p50(&Experiment { network: narrow, ..quick.clone() }) > p50(&quick) + 0.2);
        let lossy = Network::lan().with_loss(0.05).unwrap();
        let lossy = run(&Experiment { network: lossy, ..quick.clone() }).consensus_time_ms.unwrap();
        assert!(lossy.p99 > 26.0, "a packet is sent again after some 26 ms: {lossy:?}");
    }
}

#[test]
fn what_the_clock_alone_makes_members_send_is_not_counted() {
    for protocol in Protocol::ALL {
        let quick = Experiment { one_round: false, ..few(protocol, 4, 100) };
        let slow = run(&Experiment { network: Network::ideal(5_000_000), ..quick.clone() });
        assert!(slow.idle_messages > 20, "heartbeats were sent: {slow:?}");
        // Some votes go to everybody until voters know how long a round trip takes.
        let but_for_votes = |report: Report| {
            let kinds = report.messages_by_kind.into_iter();
            kinds.filter(|(kind, _)| !kind.ends_with("Vote")).collect::<Vec<_>>()
        };
        assert_eq!(but_for_votes(slow), but_for_votes(run(&quick)));
    }
}

#[test]
fn clients_share_blocks() {
    for protocol in Protocol::ALL {
        let alone = run(&few(protocol, 4, 300));
        let many = run(&Experiment { clients: 64, ..few(protocol, 4, 300) });
        assert_eq!(alone.blocks, 300);
        assert!(many.blocks < 60, "{many:?}");
        assert!(many.virtual_seconds < alone.virtual_seconds / 4.0);
        assert!(many.signatures_per_commit <= alone.signatures_per_commit);
    }
}

#[test]
fn what_is_too_much_for_a_batch_takes_several() {
    for protocol in Protocol::ALL {
        // Three members are asked by 64 clients in turn: 21 values of 200 KB each, where a batch holds 2 MiB.
        let large = Experiment { value_size: 200_000, clients: 64, ..few(protocol, 4, 128) };
        let report = run(&large);
        assert!(report.blocks >= 13, "a block holds 4 MiB at most: {report:?}");
        let many = Experiment { value_size: 1, clients: MAX_CLIENTS, ..few(protocol, 2, MAX_CLIENTS) };
        let report = run(&many);
        assert!(report.signatures_per_commit.unwrap() < 0.01, "{report:?}");
    }
}

#[test]
fn lost_packets_of_large_values_are_sent_again_alone() {
    // With two members nobody fetches a block because a certificate has overtaken it.
    let large = Experiment { value_size: 400_000, ..few(Protocol::BftRaft, 2, 30) };
    let bytes = |report: &Report| report.bytes_per_commit.unwrap();
    let without = run(&large);
    let network = Network::lan().with_loss(0.01).unwrap();
    let lossy = run(&Experiment { network, ..large });
    let share = bytes(&lossy) / bytes(&without);
    assert!((1.008..1.012).contains(&share), "one packet in a hundred: {share}");
    let slowest = lossy.consensus_time_ms.unwrap().max;
    assert!(lossy.term_changes == 0 && slowest < 400.0, "a few rounds of some 26 ms: {lossy:?}");
}

#[test]
fn the_seed_draws_and_the_leader_only_on_request() {
    let drawn = |seed, faulty_leader, count| {
        let faulty = vec![(Misconduct::Offline, Who::Some(count)), (Misconduct::Malicious, Who::Some(count))];
        let experiment = Experiment { seed, faulty, faulty_leader, ..Experiment::new(Protocol::Pbft, 31) };
        experiment.cast().unwrap()
    };
    assert_eq!(drawn(3, false, 5), drawn(3, false, 5));
    assert_ne!(drawn(3, false, 5), drawn(4, false, 5));
    for seed in 0..50 {
        let cast = drawn(seed, false, 5);
        assert_eq!(cast.values().filter(|how| **how == Misconduct::Offline).count(), 5);
        assert!(cast.len() == 10 && !cast.contains_key(&MemberId(1)), "{cast:?}");
        assert!(drawn(seed, true, 5).contains_key(&MemberId(1)));
    }
}

#[test]
fn what_can_not_be_is_refused() {
    use Misconduct::{Equivocate, Malicious, Offline};
    let refused = |protocol, nodes, faulty: Vec<(Misconduct, Who)>, beyond_f| {
        Experiment { faulty, beyond_f, ..Experiment::new(protocol, nodes) }.cast().unwrap_err()
    };
    let (raft, pbft) = (Protocol::Raft, Protocol::Pbft);
    assert_eq!(refused(pbft, 0, vec![], false), Refused::Nodes(0));
    assert_eq!(refused(pbft, 129, vec![], false), Refused::Nodes(129));
    let two = vec![(Offline, Who::Some(1)), (Equivocate, Who::Some(1))];
    assert_eq!(refused(pbft, 6, two, false), Refused::BeyondF { protocol: pbft, nodes: 6, f: 1, faulty: 2 });
    let many = vec![(Offline, Who::Some(5))];
    assert_eq!(refused(pbft, 4, many, true), Refused::MoreThanMembers { faulty: 5, nodes: 4 });
    assert_eq!(refused(pbft, 4, vec![(Offline, Who::Some(4))], true), Refused::NobodyCorrect(4));
    assert_eq!(refused(raft, 3, vec![(Malicious, Who::Some(1))], false), Refused::NoLiars(raft));
    assert_eq!(refused(raft, 3, vec![(Equivocate, Who::Members(vec![2]))], false), Refused::NoLiars(raft));
    let named = |ids: &[u8]| Who::Members(ids.to_vec());
    assert_eq!(
        refused(pbft, 4, vec![(Offline, named(&[5]))], false),
        Refused::NoSuchMember { id: 5, nodes: 4 }
    );
    assert_eq!(
        refused(pbft, 4, vec![(Offline, named(&[0]))], false),
        Refused::NoSuchMember { id: 0, nodes: 4 }
    );
    let twice = vec![(Offline, named(&[2])), (Malicious, named(&[2]))];
    assert_eq!(refused(pbft, 31, twice, false), Refused::Twice(2));
    let none = Experiment { requests: 0, ..Experiment::new(pbft, 4) };
    assert_eq!(none.run(&|| {}).unwrap_err(), Refused::Requests(0));
    let large = Experiment { value_size: MAX_VALUE + 1, ..Experiment::new(pbft, 4) };
    assert_eq!(run_all(&[few(pbft, 4, 1), large], &|| {}).unwrap_err(), Refused::ValueSize(MAX_VALUE + 1));
}

#[test]
fn reports_come_in_the_order_of_the_experiments() {
    let experiments = [few(Protocol::Raft, 3, 2), few(Protocol::Pbft, 7, 2), few(Protocol::Ccro, 5, 2)];
    let reports = run_all(&experiments, &|| {}).unwrap();
    let of: Vec<_> = reports.iter().map(|report| (report.protocol, report.nodes)).collect();
    assert_eq!(of, [(Protocol::Raft, 3), (Protocol::Pbft, 7), (Protocol::Ccro, 5)]);
}
