//! Every adversary of the list, in some hundred seeds of four members of each Byzantine row: no violation, no correct member accused.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use bftd_core::protocol::Protocol;
use bftd_faults::Fault;
use bftd_sim::{Options, run};

/// The rows, and how many seeds of each adversary.
const ROWS: [(Protocol, u64); 3] = [(Protocol::BftRaft, 400), (Protocol::Pbft, 150), (Protocol::Ccro, 200)];

#[test]
fn every_adversary_in_hundreds_of_seeds() {
    let faults = || Fault::all().flat_map(|fault| ROWS.map(|(protocol, seeds)| (fault, protocol, seeds)));
    let runs: Vec<_> = faults()
        .filter(|(fault, protocol, _)| *protocol == Protocol::Ccro || !fault.is_of_collectors())
        .collect();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some((fault, protocol, seeds)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let options = Options { adversary: Some(*fault), ..Options::of(*protocol, 4) };
                    for seed in 0..*seeds {
                        if let Err(failure) = run(&options, seed, None) {
                            let text = format!(
                                "--protocol {protocol} --adversary {fault} --seed {seed}: {failure:?}"
                            );
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
