//! All that one member with two replicas can do in two rounds, and samples of what it can do in more.

use std::sync::Mutex;

use bftd_core::ids::MemberId;
use bftd_sim::twins::{Round, play};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Plays all scenarios on all cores, and answers with what failed.
fn play_all(scenarios: &[(MemberId, Vec<Round>)]) -> Vec<String> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for part in scenarios.chunks(scenarios.len().div_ceil(threads)) {
            let failures = &failures;
            scope.spawn(move || {
                for (twin, rounds) in part {
                    if let Err(failure) = play(*twin, rounds) {
                        let text = format!("twin {twin}, {rounds:?}: {failure:?}");
                        failures.lock().expect("nobody panics with it").push(text);
                    }
                }
            });
        }
    });
    failures.into_inner().expect("nobody panicked with it")
}

#[test]
fn two_rounds_exhaustively() {
    let pairs = Round::all().flat_map(|first| Round::all().map(move |second| vec![first, second]));
    let scenarios: Vec<_> = pairs.map(|rounds| (MemberId(1), rounds)).collect();
    assert_eq!(scenarios.len(), 64 * 64);
    let failures = play_all(&scenarios);
    assert!(failures.is_empty(), "{} fail, the first of them: {}", failures.len(), failures[0]);
}

#[test]
fn more_rounds_sampled() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let all: Vec<_> = Round::all().collect();
    let mut scenarios = Vec::new();
    for _ in 0..1000 {
        let count = random.random_range(3..=6);
        let rounds: Vec<_> = (0..count).map(|_| all[random.random_range(0..all.len())]).collect();
        scenarios.push((MemberId(random.random_range(1..=4)), rounds));
    }
    let failures = play_all(&scenarios);
    assert!(failures.is_empty(), "{} fail, the first of them: {}", failures.len(), failures[0]);
}
