#![allow(clippy::unwrap_used)]

use bftd_core::kv::{CompactUntil, Head, Operation};

use super::{
    super::tests::{Disk, child, put},
    *,
};

const KEYS: usize = 600;

/// The disk of a store whose keys are almost all gone, and those that are left here and there in the file.
fn mostly_free() -> (Disk, Head) {
    let disk = Disk::default();
    let mut store = disk.open();
    let mut execute = |operations: &[Operation]| {
        let block = child(store.head().executed, operations);
        store.execute(&[block]).unwrap();
        store.sync().unwrap();
        store.head()
    };
    let key = |number: usize| format!("k{number}");
    for part in 0..20 {
        let keys = (part * KEYS / 20..).take(KEYS / 20);
        // In no order of theirs.
        execute(&keys.map(|number| put(key(number * 7 % KEYS), "v".repeat(3000))).collect::<Vec<_>>());
    }
    let gone = (0..KEYS).filter(|number| !number.is_multiple_of(15));
    let deletions: Vec<_> = gone.map(|number| Operation::Delete { key: key(number).into() }).collect();
    execute(&deletions);
    // What was before the newest change is held while that can be asked for.
    let revision = execute(&[put("last", "1")]).revision;
    execute(&[Operation::Compact { until: CompactUntil::Revision(revision) }]);
    while !store.machine.is_trimmed() {
        store.tick().unwrap();
    }
    let head = store.head();
    store.close().unwrap();
    (disk, head)
}

/// That the store is as it was, and works.
fn check(disk: &Disk, head: Head) {
    let mut store = disk.open();
    assert_eq!(store.head(), head);
    assert_eq!(store.reader().verify().unwrap(), head);
    store.execute(&[child(head.executed, &[put("new", "1")])]).unwrap();
    store.close().unwrap();
}

#[test]
fn opening_gives_back_what_is_free_and_does_so_once() {
    let (disk, head) = mostly_free();
    let before = disk.size().unwrap();
    drop(disk.open());
    let after = disk.size().unwrap();
    assert!(before > 8 * MIN_FREE && after < before / 2, "{before} → {after}");
    let steps = || {
        let begun = disk.steps();
        drop(disk.open());
        disk.steps() - begun
    };
    let (second, third) = (steps(), steps());
    assert_eq!(second, third);
    let (full, _) = mostly_free();
    let begun = full.steps();
    drop(full.open());
    assert!(full.steps() - begun > 2 * second, "{} and {second}", full.steps() - begun);
    check(&disk, head);
}

#[test]
fn what_could_not_be_given_back_is_not_tried_again() {
    let (disk, head) = mostly_free();
    let before = disk.size().unwrap();
    // Notes it, or that nothing is known, and says whether there was a note.
    let note = |left: Option<u64>| {
        let database = File::open(&disk).unwrap();
        let transaction = begin(&database).unwrap();
        let mut about = transaction.open_table(ABOUT).unwrap();
        let was_noted = about.remove(LEFT).unwrap().is_some();
        if let Some(left) = left {
            about.insert(LEFT, left.to_be_bytes().as_slice()).unwrap();
        }
        drop(about);
        transaction.commit().unwrap();
        was_noted
    };
    note(Some(before));
    drop(disk.open());
    assert!(disk.size().unwrap() > before / 2);
    note(None);
    drop(disk.open());
    assert!(disk.size().unwrap() < before / 2);
    assert!(note(None));
    check(&disk, head);
}

#[test]
fn what_is_not_worth_it_is_left() {
    let mib = |size: u64, free: u64| Space { size: size * MIN_FREE, free: free * MIN_FREE };
    for (space, left, is_worth_it) in [
        (mib(10, 6), 0, true),
        (mib(10, 5), 0, false),
        (Space { size: MIN_FREE, free: MIN_FREE - 1 }, 0, false),
        (Space { size: MIN_FREE, free: MIN_FREE }, 0, true),
        (mib(10, 6), 5 * MIN_FREE, true),
        (mib(10, 6), 5 * MIN_FREE + 1, false),
        (mib(10, 6), 20 * MIN_FREE, false),
    ] {
        assert_eq!(space.is_worth_it(left), is_worth_it, "{space:?} {left}");
    }
}

#[test]
fn a_crash_at_any_step_loses_nothing_and_the_next_opening_goes_on() {
    let (full, head) = mostly_free();
    let live = full.crashed().open().machine.live();
    let (before, mut step, mut halfway) = (full.size().unwrap(), 0, 0);
    loop {
        step += 1;
        let disk = full.crashed();
        let database = File::open(&disk).unwrap();
        disk.fail_at(step, io::ErrorKind::Other);
        let given_back = give_back(database, &disk, live);
        let crashed = disk.crashed();
        if crashed.size().unwrap() < before {
            halfway += 1;
        }
        check(&crashed, head);
        assert!(crashed.size().unwrap() < before / 2, "step {step}");
        if given_back.is_ok() {
            break;
        }
    }
    assert!(step > 20 && halfway > 5 && halfway < step, "{step} {halfway}");
}

#[test]
fn where_the_disk_is_full_the_store_goes_on_as_it_was() {
    let (full, head) = mostly_free();
    let live = full.crashed().open().machine.live();
    for (kind, goes_on) in [
        (io::ErrorKind::StorageFull, true),
        (io::ErrorKind::QuotaExceeded, true),
        (io::ErrorKind::Other, false),
    ] {
        for step in [1, 5, 10, 20] {
            let disk = full.crashed();
            let database = File::open(&disk).unwrap();
            disk.fail_at(step, kind);
            let given_back = give_back(database, &disk, live);
            assert_eq!(given_back.is_ok(), goes_on, "{kind} at {step}: {:?}", given_back.err());
            drop(given_back);
            check(&disk, head);
        }
    }
}
