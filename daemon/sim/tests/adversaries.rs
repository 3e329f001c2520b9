//! Every adversary of the list, in 400 seeds of four members: no violation, no correct member accused.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use bftd_faults::Fault;
use bftd_sim::{Options, run};

const SEEDS: u64 = 400;

#[test]
fn every_adversary_in_400_seeds() {
    let faults: Vec<_> = Fault::all().collect();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let options = Options { nodes: 4, ed25519: false, adversary: Some(*fault) };
                    for seed in 0..SEEDS {
                        if let Err(failure) = run(&options, seed, None) {
                            let text = format!("--adversary {fault} --seed {seed}: {failure:?}");
                            failures.lock().expect("nobody panics with it").push(text);
                            break;
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("nobody panicked with it");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
