//! What the rows withstand: `raft` crashes of a minority and no lie, `pbft` and `ccro` as much as `bft-raft`, and gone over from one to
//! another meanwhile.

use std::collections::BTreeSet;

use bftd_core::{
    ids::{MemberId, Term},
    message::{Message, Route},
    protocol::Protocol,
};
use bftd_faults::Fault;
use bftd_sim::{
    Options, Report,
    event::{Event, Observer, Violation},
    run, run_with,
};

fn holds(options: &Options, seeds: std::ops::Range<u64>) -> Report {
    let mut sum = Report::default();
    for seed in seeds {
        match run(options, seed, None) {
            Ok(report) => sum.add(&report),
            Err(failure) => panic!("{options:?} seed {seed}: {failure:?}"),
        }
    }
    sum
}

#[test]
fn raft_gets_over_crashes_and_a_bad_network() {
    for (nodes, seeds) in [(1, 50), (2, 100), (3, 400), (4, 200), (5, 300)] {
        let sum = holds(&Options::of(Protocol::Raft, nodes), 0..seeds);
        assert!(sum.crashes > seeds && sum.terms > seeds / 2, "{sum:?}");
        assert!(sum.acknowledged * 2 > sum.writes, "{sum:?}");
        assert_eq!(sum.refused, 0, "nobody lies");
    }
}

/// A leader told a reader of its first block, crashed before it was durable, and proposed another one; and what the oracle had wrong.
#[test]
fn what_the_simulator_found_before() {
    holds(&Options::of(Protocol::Raft, 5), 7820..7821);
    // A liar's old request to go over came long after all was calm, and the leader handed its term on.
    holds(&Options::of(Protocol::Pbft, 4), 8597..8598);
    // A reader whose own position had overtaken what others answered was asked to pass that on.
    holds(&Options::of(Protocol::Raft, 3), 10804..10805);
}

#[test]
fn one_liar_is_too_many_for_raft_and_the_oracle_sees_it() {
    for fault in [Fault::Equivocate, Fault::DoubleVote, Fault::Twin, Fault::Amnesia, Fault::Forget] {
        let options = Options { adversary: Some(fault), ..Options::of(Protocol::Raft, 3) };
        let found = (0..400).filter_map(|seed| run(&options, seed, None).err());
        let checks: BTreeSet<_> = found.map(|failure| failure.violation.check).collect();
        assert!(checks.contains("agreement"), "{fault}: {checks:?}");
    }
}

#[test]
fn the_same_liars_do_nothing_to_the_rows_that_withstand_them() {
    for protocol in [Protocol::BftRaft, Protocol::Pbft, Protocol::Ccro] {
        for fault in [Fault::Equivocate, Fault::DoubleVote, Fault::Twin, Fault::Amnesia, Fault::Forget] {
            holds(&Options { adversary: Some(fault), ..Options::of(protocol, 4) }, 0..60);
        }
    }
}

#[test]
fn more_members_of_pbft_and_ccro() {
    for protocol in [Protocol::Pbft, Protocol::Ccro] {
        holds(&Options::of(protocol, 7), 0..60);
        holds(&Options::of(protocol, 1), 0..30);
        holds(&Options::of(protocol, 3), 0..60);
    }
}

/// Which routes leaders choose, and in how many runs there are several kinds.
#[derive(Default)]
struct Routes {
    kinds: BTreeSet<u8>,
    named: BTreeSet<(Term, MemberId)>,
    late: u64,
}

impl Observer for Routes {
    fn observe(&mut self, _at_us: u64, event: &Event<'_>) -> Result<(), Violation> {
        if let Event::Sent { message, .. } = event {
            match message {
                Message::Append(append) => {
                    let term = append.block.header().term;
                    self.kinds.insert(match append.votes_to {
                        Route::Leader => 0,
                        Route::Everyone => 1,
                        Route::Member(_) => 2,
                    });
                    if let Route::Member(node) = append.votes_to {
                        self.named.insert((term, node));
                    }
                }
                Message::LateVote(_) => self.late += 1,
                _ => {}
            }
        }
        Ok(())
    }
}

#[test]
fn clusters_really_go_over_and_really_fall_back() {
    let (mut mixed, mut late, mut renamed) = (0, 0, 0);
    for seed in 0..200 {
        let mut routes = Routes::default();
        run_with(&Options::of(Protocol::Ccro, 4), seed, &mut routes, None).expect("nothing is judged");
        mixed += u32::from(routes.kinds.len() > 1);
        late += routes.late;
        let terms: BTreeSet<_> = routes.named.iter().map(|(term, _)| term).collect();
        renamed += routes.named.len() - terms.len();
    }
    assert!(mixed > 8 && late > 1_000 && renamed > 50, "{mixed} {late} {renamed}");
}
