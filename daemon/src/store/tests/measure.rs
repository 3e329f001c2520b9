//! What a durable write costs on this machine's disk. Run it with
//! `cargo test --release -p bftd store::tests::measure -- --ignored --nocapture`.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use bftd_core::{block::BlockRef, durable::Record, ids::Term};

use super::script::{Random, block, cluster, committed, root};
use crate::store::{DataDir, LogStore, LogWriter};

/// A group as in the normal case: a block, and the commit of the block before.
fn groups(count: usize, requests: &[usize]) -> Vec<Vec<Record>> {
    let mut random = Random(1);
    let mut parent: BlockRef = root();
    let mut before = None;
    (0..count)
        .map(|_| {
            let block = block(parent, Term(0), requests, &mut random);
            parent = block.reference();
            let commit = before.replace(block.clone()).map(|before| committed(&before, &mut random));
            [Record::Block(block)].into_iter().chain(commit).collect()
        })
        .collect()
}

/// Medians in microseconds: of an append, and of a hand-over to the thread and its report.
fn measure(requests: &[usize], count: usize) -> (f64, f64, f64) {
    let parent = tempfile::tempdir_in(".").unwrap();
    let directory = DataDir::open(parent.path().join("data")).unwrap();
    let mut store = LogStore::open(&directory, &cluster()).unwrap();
    let mut groups = groups(2 * count, requests);
    let rest = groups.split_off(count);
    let direct = groups.iter().map(|group| {
        let started = Instant::now();
        store.append(group).unwrap();
        started.elapsed()
    });
    let direct = median(direct.collect());
    let bytes = directory.log_path().metadata().unwrap().len() as f64 / count as f64;

    let done = Arc::new((Mutex::new(0), std::sync::Condvar::new()));
    let of_thread = Arc::clone(&done);
    let report = move |result: Result<u64, _>| {
        *of_thread.0.lock().unwrap() = result.unwrap();
        of_thread.1.notify_one();
    };
    let writer = LogWriter::start(store, Box::new(report)).unwrap();
    let mut number = 0;
    let handed = rest.into_iter().map(|group| {
        number += group.len() as u64;
        let started = Instant::now();
        writer.append(group);
        writer.flush();
        let mut reported = done.0.lock().unwrap();
        while *reported < number {
            reported = done.1.wait(reported).unwrap();
        }
        started.elapsed()
    });
    let handed = median(handed.collect());
    (direct, handed, bytes)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

#[test]
#[ignore = "a measurement, not a check"]
fn durable_writes() {
    for (name, requests, count) in [("1 x 256 B", vec![256], 2000), ("100 x 256 B", vec![256; 100], 1000)] {
        for stores in [1, 4] {
            let requests = &requests;
            let results: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = (0..stores).map(|_| scope.spawn(|| measure(requests, count))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            for (direct, handed, bytes) in results {
                print!("{name}, {stores} at once: p50 {direct:.0} us, through the thread {handed:.0} us, ");
                println!("{bytes:.0} B of file a block");
            }
        }
    }
}
