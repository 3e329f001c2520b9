//! Random runs through the log on disk and through its specification in memory.

use bftd_core::{ids::Index, limits::FETCH_BLOCKS};

use super::{
    disk::{self, Disk},
    script::{Expected, Random, Script, block, committed, root},
};
use crate::store::LogStore;

fn open(disk: &Disk) -> LogStore {
    disk::open(disk).unwrap()
}

#[test]
fn the_log_adds_up_to_what_the_specification_says() {
    let (mut blocks, mut uncertified, mut abandoned) = (0, 0, 0);
    for seed in 0..300 {
        let mut script = Script::new(seed);
        let mut expected = Expected::default();
        let disk = Disk::with_log();
        let mut store = open(&disk);
        let mut random = Random(!seed);
        for number in 0..40 {
            let group = script.group();
            expected.apply(&group);
            store.append(&group).unwrap();
            if random.below(10) == 0 {
                drop(store);
                store = open(&disk);
            }
            if random.below(10) == 0 {
                store.apply().unwrap();
                expected.assert_is(&store, 1, &format!("seed {seed}, group {number}"));
            }
        }
        store.apply().unwrap();
        expected.assert_is(&store, 1, &format!("seed {seed}"));
        blocks += expected.chain.len();
        uncertified += expected.chain.len() - expected.certificates.len();
        abandoned += script.taken.get("abandoned").unwrap_or(&0);
    }
    println!(
        "{blocks} blocks committed, {uncertified} of them without a certificate; {abandoned} commits left others behind"
    );
    assert!(blocks > 5000 && uncertified > 500 && abandoned > 500);
}

#[test]
fn long_chains_are_read_in_pieces_and_within_bounds() {
    let mut random = Random(5);
    let mut expected = Expected::default();
    let mut store = open(&Disk::with_log());
    let mut parent = root();
    let length = 3 * FETCH_BLOCKS + 10;
    for number in 1..=length {
        let block = block(parent, root().term, &[1000], &mut random);
        parent = block.reference();
        let mut group = vec![bftd_core::durable::Record::Block(block.clone())];
        // Certificates at 50, 100, 150 and at the end.
        if number % 50 == 0 || number == length {
            group.push(committed(&block, &mut random));
        }
        expected.apply(&group);
        store.append(&group).unwrap();
    }
    store.apply().unwrap();
    let reader = store.reader();
    let all: Vec<_> = reader.blocks(Index(1), Index(u64::MAX)).map(Result::unwrap).collect();
    assert_eq!(all, expected.chain);
    let some: Vec<_> = reader.blocks(Index(60), Index(190)).map(Result::unwrap).collect();
    assert_eq!(some, expected.chain[59..190]);
    assert_eq!(reader.blocks(Index(length as u64 + 1), Index(u64::MAX)).count(), 0);

    let run = |after, max_blocks, max_bytes| {
        let run = reader.committed_after(Index(after), max_blocks, max_bytes).unwrap().unwrap();
        (run.blocks.len(), run.certificate.map(|certificate| certificate.block().index.0))
    };
    assert_eq!(run(0, 60, usize::MAX), (50, Some(50)), "ends with a certificate");
    assert_eq!(run(0, 49, usize::MAX), (49, None), "as many as fit where there is none");
    assert_eq!(run(0, 120, usize::MAX), (100, Some(100)), "the last certificate counts");
    assert_eq!(run(200, 100, usize::MAX), (length - 200, Some(length as u64)));
    assert_eq!(run(0, 100, 0), (1, None), "at least one block");
    let (count, _) = run(50, 40, 10_000);
    assert!((5..10).contains(&count), "bytes are bounded: {count}");
    assert_eq!(reader.committed_after(Index(length as u64), 100, usize::MAX).unwrap(), None);
}
