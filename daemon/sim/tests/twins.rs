//! All that one member with two replicas can do in two rounds, and samples of what it can do in more.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use bftd_core::ids::MemberId;
use bftd_sim::twins::{Round, play};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Plays all scenarios on all cores.
fn play_all(scenarios: &[(MemberId, Vec<Round>)]) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let failures = Mutex::new(Vec::new());
    let led = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for part in scenarios.chunks(scenarios.len().div_ceil(threads)) {
            let (failures, led) = (&failures, &led);
            scope.spawn(move || {
                for (twin, rounds) in part {
                    match play(*twin, rounds) {
                        Ok(count) => {
                            led.fetch_add(count, Ordering::Relaxed);
                        }
                        Err(failure) => {
                            let text = format!("twin {twin}, {rounds:?}: {failure:?}");
                            failures.lock().expect("nobody panics with it").push(text);
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("nobody panicked with it");
    assert!(failures.is_empty(), "{} fail, the first of them: {}", failures.len(), failures[0]);
    let rounds = scenarios.iter().map(|(_, rounds)| rounds.len()).sum::<usize>();
    let led = led.into_inner();
    assert_eq!(led, rounds, "rounds with the leader that they should have");
}

#[test]
fn two_rounds_exhaustively() {
    let pairs = Round::all().flat_map(|first| Round::all().map(move |second| vec![first, second]));
    let scenarios: Vec<_> = pairs.map(|rounds| (MemberId(1), rounds)).collect();
    assert_eq!(scenarios.len(), 64 * 64);
    play_all(&scenarios);
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
    play_all(&scenarios);
}
