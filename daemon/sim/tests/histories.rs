//! Histories of simulated clients are linearizable, and the checker finds by itself those that are not.

use bftd_core::protocol::Protocol;
use bftd_sim::{
    Options, Report,
    histories::{Blind, Reads, Summary, judge, make, run, run_with},
};

#[test]
fn histories_are_linearizable_under_faults() {
    for (protocol, seeds) in [(Protocol::BftRaft, 60), (Protocol::Pbft, 30), (Protocol::Ccro, 30)] {
        let mut sum = (Report::default(), Summary::default());
        for seed in 0..seeds {
            match run(&Options::of(protocol, 4), seed, None) {
                Ok((report, summary)) => {
                    assert!(summary.operations >= 200, "{summary:?}");
                    sum.0.add(&report);
                    sum.1.add(&summary);
                }
                Err(failure) => panic!("{protocol} seed {seed}: {failure:?}"),
            }
        }
        // There are faults, clients see them, and most of them get their answers.
        assert!(sum.0.crashes > seeds && sum.0.terms > seeds, "{protocol}: {sum:?}");
        assert!(sum.1.unknown > 2 * seeds && sum.1.unknown * 5 < sum.1.operations, "{protocol}: {sum:?}");
    }
}

/// With a fault planted in the core this is what fails; nothing but the clients' answers is looked at.
#[test]
fn the_checker_alone_accepts_what_the_protocol_does() {
    for seed in 0..60 {
        run_with(&Options::of(Protocol::BftRaft, 4), seed, &mut Blind, None)
            .unwrap_or_else(|failure| panic!("seed {seed}: {failure:?}"));
    }
}

/// Reads from local state, which see no quorum: no oracle is asked.
#[test]
fn the_checker_alone_finds_stale_reads() {
    let options = Options::of(Protocol::BftRaft, 4);
    let (mut found, mut undecided) = (0, 0);
    for seed in 0..60 {
        let (_, history) = make(&options, seed, Reads::Local, &mut Blind, None)
            .unwrap_or_else(|failure| panic!("seed {seed}: {failure:?}"));
        match judge(&history) {
            Ok(_) => {}
            Err(violation) if violation.check == "linearizable" => {
                assert!(violation.detail.contains("get "), "{violation:?}");
                found += 1;
            }
            Err(_) => undecided += 1,
        }
    }
    assert!(found > 5 && undecided == 0, "{found} found, {undecided} undecided");
}
