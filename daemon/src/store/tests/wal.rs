//! The write-ahead files: what of them counts when a log is opened.

use bftd_core::ids::Index;

use super::{
    disk::{Disk, Image, open},
    script::{Expected, Script},
};

const PAGE: usize = 4096;
/// Where the first group is.
const FIRST: usize = 2 * PAGE;

/// The files after some groups of which the database has none, and what all but the last of them add up to.
fn written() -> (Image, Expected, Expected) {
    let disk = Disk::with_log();
    let mut store = open(&disk).unwrap();
    let mut script = Script::new(21);
    let (mut before, mut after) = (Expected::default(), Expected::default());
    let groups = std::iter::repeat_with(|| script.group()).filter(|group| !group.is_empty());
    for group in groups.take(6) {
        before = after.clone();
        after.apply(&group);
        store.append(&group).unwrap();
    }
    let image = disk.image();
    (image, before, after)
}

/// Where groups start in the first file.
fn starts(image: &Image) -> Vec<usize> {
    let id = image[1][..16].to_vec();
    (FIRST..image[1].len()).step_by(PAGE).filter(|at| image[1][*at..].starts_with(&id)).collect()
}

#[test]
fn a_damaged_last_group_was_not_acknowledged_and_one_before_it_is_found() {
    let (image, before, after) = written();
    after.assert_is(&open(&Disk::new(image.clone())).unwrap(), 1, "whole");
    let starts = starts(&image);
    assert_eq!(starts.len(), 6);
    for (number, start) in starts.iter().enumerate() {
        // In the id, the epoch, the sequence number, the length, the seal, and the records.
        for at in [3, 16, 24, 33, 41, 70] {
            let mut damaged = image.clone();
            damaged[1][start + at] ^= 0x80;
            // No torn write leaves another epoch or number than the one that was written.
            let refused = match at {
                16 => Some("there are groups of a later opening"),
                24 => Some("is missing before group"),
                _ => None,
            };
            match open(&Disk::new(damaged)) {
                Ok(store) => {
                    assert!(number == 5 && refused.is_none(), "group {number}, byte {at}");
                    before.assert_is(&store, 1, "without the last group");
                }
                Err(error) => {
                    assert!(number < 5 || refused.is_some(), "group {number}, byte {at}: {error}");
                    let text = refused.unwrap_or("is missing before group");
                    assert!(error.to_string().contains(text), "group {number}, byte {at}: {error}");
                }
            }
        }
    }
}

#[test]
fn two_damaged_groups_at_the_end_are_no_torn_write() {
    let (image, ..) = written();
    let starts = starts(&image);
    let mut damaged = image.clone();
    for start in &starts[4..] {
        damaged[1][start + 70] ^= 1;
    }
    let error = open(&Disk::new(damaged)).unwrap_err();
    assert!(error.to_string().contains("group 5 is missing before group 6"), "{error}");
}

#[test]
fn groups_that_the_database_holds_may_be_damaged() {
    let disk = Disk::with_log();
    let mut store = open(&disk).unwrap();
    let mut script = Script::new(22);
    let mut expected = Expected::default();
    for number in 0..6 {
        let group = std::iter::repeat_with(|| script.group()).find(|group| !group.is_empty()).unwrap();
        expected.apply(&group);
        store.append(&group).unwrap();
        if number == 2 {
            store.apply().unwrap();
        }
    }
    let image = disk.image();
    for start in &starts(&image)[..3] {
        let mut damaged = image.clone();
        damaged[1][start + 70] ^= 1;
        expected.assert_is(&open(&Disk::new(damaged)).unwrap(), 1, "nobody needs it");
    }
}

#[test]
fn a_database_from_before_the_last_opening_is_refused_if_it_lacks_something() {
    let disk = Disk::with_log();
    drop(open(&disk).unwrap());
    let before = disk.image();
    let mut script = Script::new(23);
    let mut store = open(&disk).unwrap();
    // The database is one opening behind, as if that had been cut off; nothing is lost yet.
    let mut image = disk.image();
    image[0] = before[0].clone();
    drop(open(&Disk::new(image)).unwrap());
    store
        .append(&std::iter::repeat_with(|| script.group()).find(|group| !group.is_empty()).unwrap())
        .unwrap();
    let mut image = disk.image();
    image[0] = before[0].clone();
    let error = open(&Disk::new(image)).unwrap_err();
    assert!(error.to_string().contains("there are groups of a later opening"), "{error}");
}

#[test]
fn peers_are_served_what_is_durable_and_not_in_the_database_yet() {
    let mut store = open(&Disk::with_log()).unwrap();
    let reader = store.reader();
    let mut script = Script::new(24);
    let mut expected = Expected::default();
    let mut held = 0;
    for number in 1..=95 {
        let group = script.group();
        expected.apply(&group);
        store.append(&group).unwrap();
        if number % 40 == 0 {
            store.apply().unwrap();
            held = expected.chain.len();
            store.reader().check(super::script::cluster().id).unwrap();
        }
        for after in held..=expected.chain.len() {
            for max_blocks in [1, 3, 100] {
                let run = reader.committed_after(Index(after as u64), max_blocks, usize::MAX).unwrap();
                assert_eq!(run, expected.run(after, max_blocks), "group {number}, after {after}");
            }
        }
        if expected.chain.len() > held {
            let one = reader.committed_after(Index(held as u64), 100, 0).unwrap().unwrap();
            assert_eq!(one.blocks, expected.chain[held..=held], "within bounds, yet at least one");
        }
    }
    assert!(expected.chain.len() > held + 3 && held > 10);
}

#[test]
fn files_of_another_log_or_another_time_are_refused() {
    let (image, ..) = written();
    let (foreign, ..) = written();
    let later = Disk::new(image.clone());
    for _ in 0..3 {
        drop(open(&later).unwrap());
    }
    let later = later.image();
    let cases = [
        (&image, &foreign, "there is no head that belongs to its database"),
        (&later, &image, "are older than its database"),
        (&image, &later, "are later than its database"),
    ];
    for (home, wal, found) in cases {
        for file in [1, 2] {
            let mut mixed = home.clone();
            mixed[file] = wal[file].clone();
            let error = open(&Disk::new(mixed)).unwrap_err();
            assert!(error.to_string().contains(found), "file {file}: {error}, not: {found}");
        }
    }
}

#[test]
fn a_torn_head_leaves_the_other() {
    let (image, _, after) = written();
    // The epoch under way is 1, so its head is in the second page, and the next one goes to the first.
    let mut torn = image.clone();
    torn[1][20] ^= 1;
    after.assert_is(&open(&Disk::new(torn)).unwrap(), 1, "the head that is written next was torn");
    let mut lost = image;
    lost[1][PAGE + 20] ^= 1;
    assert!(open(&Disk::new(lost)).unwrap_err().to_string().contains("older"), "the head that counts");
}
