//! The write-ahead files: what of them counts when a log is opened.

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
        for at in [3, 17, 25, 33, 41, 70] {
            let mut damaged = image.clone();
            damaged[1][start + at] ^= 1;
            match open(&Disk::new(damaged)) {
                Ok(store) => {
                    assert_eq!(number, 5, "byte {at}");
                    before.assert_is(&store, 1, "without the last group");
                }
                Err(error) => {
                    assert!(number < 5, "byte {at}: {error}");
                    assert!(error.to_string().contains("is missing before group"), "{error}");
                }
            }
        }
    }
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
