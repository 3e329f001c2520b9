//! The files of the history's rows.

use super::*;
use crate::state::rows::{Directory, Place, ReadRows};

/// Blocks whose rows are about as large as a file may be.
fn large(parent: BlockRef, blocks: usize) -> Vec<Arc<Block>> {
    let mut parent = parent;
    let mut make = |at: usize| {
        let operations: Vec<_> =
            (0..3).map(|key| put(format!("k{key}"), at.to_string().repeat(999))).collect();
        let block = child(parent, &operations);
        parent = block.reference();
        block
    };
    (0..blocks).map(&mut make).collect()
}

/// All that can be read of the past.
fn past(store: &StateStore) -> Vec<Answer> {
    let keys = ["k0", "k1", "k2"].map(|key| Query::History { key: key.into(), before: 0, limit: 0 });
    store.reader().query_many(&keys).unwrap().answers
}

fn compact(store: &mut StateStore, until: kv::CompactUntil) {
    let block = child(store.head().executed, &[Operation::Compact { until }]);
    let outcomes = store.execute(&[block]).unwrap();
    assert!(matches!(outcomes[0].outcomes[0][0], Outcome::Compacted { .. }), "{outcomes:?}");
    while !store.machine.is_trimmed() {
        store.tick().unwrap();
    }
    store.sync().unwrap();
}

#[test]
fn after_a_crash_rows_are_what_the_checkpoint_names_and_nothing_else_is_left() {
    for of_the_machine in [false, true] {
        let disk = Disk::default();
        let mut store = disk.open();
        let blocks = large(ROOT, 30);
        store.execute(&blocks[..17]).unwrap();
        store.sync().unwrap();
        let (head, known) = (store.head(), past(&store));
        store.execute(&blocks[17..]).unwrap();
        let (last, all) = (store.head(), past(&store));
        let files = disk.list().unwrap();

        let crashed = if of_the_machine { disk.crashed() } else { disk.killed() };
        let mut again = crashed.open();
        assert!(crashed.list().unwrap().len() < files.len(), "rows of no checkpoint are gone");
        assert_eq!((again.head(), past(&again)), (head, known));
        again.execute(&blocks[17..]).unwrap();
        assert_eq!((again.head(), past(&again)), (last, all));
        again.sync().unwrap();
        let again = crashed.crashed().open();
        assert_eq!(again.reader().verify().unwrap(), last);
    }
}

#[test]
fn files_go_with_their_last_rows() {
    let disk = Disk::default();
    let mut store = disk.open();
    store.execute(&large(ROOT, 40)).unwrap();
    store.sync().unwrap();
    let files = disk.list().unwrap();
    assert!(files.len() > 10, "{files:?}");

    // A file is kept for its last row.
    compact(&mut store, kv::CompactUntil::Revision(60));
    let kept = disk.list().unwrap();
    assert!(kept.len() < files.len() && kept.last() == files.last(), "{kept:?} of {files:?}");
    let known = past(&store);
    assert_eq!(known, past(&disk.crashed().open()));
    store.reader().verify().unwrap();

    // All are compacted; rows go on after them, and after a restart.
    let head = store.head();
    compact(&mut store, kv::CompactUntil::Revision(head.revision));
    assert!(disk.list().unwrap().len() <= 2);
    store.execute(&large(store.head().executed, 9)).unwrap();
    store.sync().unwrap();
    store.reader().verify().unwrap();
    let mut store = disk.crashed().open();
    store.execute(&large(store.head().executed, 9)).unwrap();
    store.reader().verify().unwrap();
}

#[test]
fn the_first_rows_stay_when_a_checkpoint_from_before_them_ends() {
    let disk = Disk::default();
    let mut store = disk.open();
    store.execute(&[child(ROOT, &[])]).unwrap();
    store.shared.freeze(&mut store.machine).unwrap();
    store.execute(&large(store.head().executed, 4)).unwrap();
    let known = past(&store);
    store.shared.write_frozen().unwrap();
    assert_eq!(past(&store), known);
    store.execute(&large(store.head().executed, 4)).unwrap();
    store.sync().unwrap();
    disk.crashed().open().reader().verify().unwrap();
}

#[test]
fn whoever_has_files_open_reads_on_when_they_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let folder = || Box::new(Directory::open(directory.path()).unwrap());
    let rows = RowFiles::open(folder(), None).unwrap();
    let row = |at: u8| vec![at; 3_000];
    let places: Vec<Place> = (0..12).map(|at| rows.append(&row(at)).unwrap()).collect();
    let before = rows.files();
    let released = rows.release_before(places[5].file);
    assert!(!released.is_empty());
    rows.remove(&released);
    for (at, place) in (0..).zip(&places) {
        assert_eq!(before.row(place).unwrap(), row(at));
        assert_eq!(rows.row(place).is_ok(), place.file >= places[5].file);
    }
    rows.sync().unwrap();
    drop((rows, before));
    let data = directory.path().join("history");
    std::fs::write(data.join("7.rows"), "somebody else's").unwrap();

    // What was there from the fifth row on is there again, and nothing that came after the tenth.
    let rows = RowFiles::open(folder(), Some((places[5], places[10]))).unwrap();
    assert_eq!(rows.row(&places[10]).unwrap(), row(10));
    assert!(rows.row(&places[11]).is_err());
    assert!(data.join("7.rows").exists());
    let next = rows.append(&row(99)).unwrap();
    assert_eq!((rows.row(&next).unwrap(), rows.row(&places[10]).unwrap()), (row(99), row(10)));
}

#[test]
fn rows_that_are_missing_or_changed_are_found() {
    let open = |disk: &Disk| {
        StateStore::open_file(disk, || Ok(Box::new(disk.clone())), Path::new("disk"), CLUSTER, ROOT)
    };
    let disk = Disk::default();
    let mut store = disk.open();
    store.execute(&large(ROOT, 9)).unwrap();
    store.sync().unwrap();
    drop(store);
    let files = disk.list().unwrap();
    let last = *files.last().unwrap();

    // Nothing is removed before all is found that is named.
    let lost = disk.crashed();
    lost.remove(files[1]).unwrap();
    Folder::open(&lost, last + 1).unwrap();
    let error = open(&lost).unwrap_err().to_string();
    assert!(error.contains(&format!("file {} is missing", files[1])), "{error}");
    assert_eq!(lost.list().unwrap().last(), Some(&(last + 1)));

    let short = disk.crashed();
    short.0.folder.lock().unwrap().0[&last].set_len(100).unwrap();
    let error = open(&short).unwrap_err().to_string();
    assert!(error.contains(&format!("file {last} is too short")), "{error}");

    let odd = disk.crashed();
    let database = File::open(&odd).unwrap();
    let transaction = redb::ReadableDatabase::begin_read(&database).unwrap();
    let (first, end) = Tables::open_for_reading(&transaction).unwrap().ends_of_history().unwrap().unwrap();
    let error = RowFiles::open(Box::new(odd.clone()), Some((end, first))).unwrap_err().to_string();
    assert!(error.contains("comes before"), "{error}");
    assert_eq!(odd.list().unwrap(), files);

    let changed = disk.crashed();
    changed.0.folder.lock().unwrap().0[&files[1]].write(2_000, b"x").unwrap();
    let reader = open(&changed).unwrap().reader();
    let error = reader.verify().unwrap_err().to_string();
    assert!(error.contains(&format!("file {} are not what was written", files[1])), "{error}");
}

/// They are in no change that a checkpoint has in memory, but wait to be synced all the same.
#[test]
fn many_bytes_of_rows_make_a_checkpoint_and_one_only() {
    let mut store = Disk::default().open();
    let value = "v".repeat(bftd_core::limits::MAX_VALUE);
    let mut checkpoints = Vec::new();
    for block in 0..60_usize {
        let begun = store.checkpoint;
        store.execute(&[child(store.head().executed, &[put("hot", &value)])]).unwrap();
        checkpoints.extend((store.checkpoint != begun).then_some(block));
    }
    let every = (MAX_ROWS as usize).div_ceil(value.len());
    assert_eq!(checkpoints, [every - 1, 2 * every - 1]);
}
