//! What an agreement costs without faults, in closed form: derived by hand from what the core does, and compared exactly with what
//! the laboratory counts.
//!
//! One request at a time, from a follower, which is its *origin*. Every formula begins with the same steps:
//!
//! - the origin signs a batch and passes it to the leader: 1 message, 1 signature, which the leader checks;
//! - the leader signs a proposal and sends it with the batch: n−1 messages, 1 signature. Each follower checks it and the batch (the
//!   origin recognises its own).
//!
//! Then votes, in one *round* where all members vote for a sole block, else in two. A round's certificate holds all n votes of
//! a sole block, or q. Members sign nothing with `raft`.

use super::*;

/// What one agreement costs.
#[derive(Debug, PartialEq)]
struct Cost {
    messages: u64,
    /// Until the origin has executed the block, the request's own to the leader among them.
    delays: u64,
    signed: u64,
    checked: u64,
}

/// How many rounds of votes there are.
fn rounds(protocol: Protocol, one_round: bool) -> u64 {
    if protocol.row().prepares && !one_round { 2 } else { 1 }
}

/// How many signatures a certificate holds.
fn voters(protocol: Protocol, n: u64, one_round: bool) -> u64 {
    let q = protocol.row().faults.quorum(n as usize) as u64;
    if one_round && protocol.row().prepares { n } else { q }
}

/// The leader gathers. A round: each follower's vote to the leader (its own costs nothing), the certificate to each follower.
fn to_the_leader(n: u64, rounds: u64, voters: u64) -> Cost {
    Cost {
        messages: 1 + (n - 1) + rounds * 2 * (n - 1),
        delays: 2 + rounds * 2,
        signed: 2 + rounds * n,
        // The leader: the batch, and the others' votes. A follower: proposal, batch, certificates.
        checked: 1 + rounds * (n - 1) + (n - 1) * (2 + rounds * voters),
    }
}

/// Everybody gathers. A round: each member's vote to each other one, and no certificate.
fn to_everyone(n: u64, rounds: u64, voters: u64) -> Cost {
    Cost {
        messages: 1 + (n - 1) + rounds * n * (n - 1),
        delays: 2 + rounds,
        signed: 2 + rounds * n,
        // All check the others' votes. The leader's next block brings followers its certificates of the last one, which hold other
        // members' votes than their own: they are checked, too.
        checked: 1 + rounds * (n - 1) + (n - 1) * (2 + rounds * (n - 1) + rounds * voters),
    }
}

/// A communication node gathers. A round: each other member's vote to it, its certificate to each other member.
fn to_a_communication_node(n: u64, rounds: u64, voters: u64) -> Cost {
    let leader = 1 + rounds * voters;
    // The leader's next block brings it the certificates back.
    let node = 2 + rounds * (n - 1) + rounds * voters;
    Cost {
        messages: 1 + (n - 1) + rounds * 2 * (n - 1),
        delays: 2 + rounds * 2,
        signed: 2 + rounds * n,
        checked: leader + node + (n - 2) * (2 + rounds * voters),
    }
}

fn expected(protocol: Protocol, n: u64, one_round: bool) -> Cost {
    let (rounds, voters) = (rounds(protocol, one_round), voters(protocol, n, one_round));
    let cost = match protocol.row().votes_to {
        VotesTo::Leader => to_the_leader(n, rounds, voters),
        VotesTo::Everyone => to_everyone(n, rounds, voters),
        VotesTo::CommunicationNode => to_a_communication_node(n, rounds, voters),
    };
    if protocol.row().signs { cost } else { Cost { signed: 0, checked: 0, ..cost } }
}

#[test]
fn costs_are_the_closed_formulas() {
    const REQUESTS: u32 = 10;
    for protocol in Protocol::ALL {
        for nodes in [4, 31, 100] {
            for one_round in [true, false] {
                let report = run(&Experiment { one_round, ..few(protocol, nodes, REQUESTS) });
                let total = |each: Option<f64>| (each.unwrap() * f64::from(REQUESTS)).round() as u64;
                let cost = expected(protocol, u64::from(nodes), one_round);
                let all = |each: u64| each * u64::from(REQUESTS);
                let name = format!("{protocol}, {nodes} members, one_round {one_round}");
                assert_eq!(
                    report.messages,
                    all(cost.messages),
                    "messages: {name}: {:?}",
                    report.messages_by_kind
                );
                assert_eq!(report.delays, Some(cost.delays as f64), "delays: {name}");
                assert_eq!(total(report.signatures_per_commit), all(cost.signed), "signed: {name}");
                assert_eq!(total(report.verifications_per_commit), all(cost.checked), "checked: {name}");
                assert_eq!((report.blocks, report.term_changes), (u64::from(REQUESTS), 0), "{name}");
            }
        }
    }
}
