//! What the log refuses: other clusters, lost logs, damage, and commits that do not join the chain.

use std::{fs, os::unix::fs::PermissionsExt};

use bftd_core::{crypto::ClusterId, crypto::Digest, durable::Record, ids::Index, ids::Term};
use redb::{Database, ReadableTable};

use super::script::{Expected, Random, Script, block, cluster, committed, root};
use crate::store::{
    Cluster, DataDir, LogStore, StoreError, codec,
    home::{BLOCKS, BlockKey, CERTIFICATES, META, meta},
};

#[test]
fn a_log_on_a_real_disk_is_there_again() {
    let parent = tempfile::tempdir().unwrap();
    let mut script = Script::new(3);
    let mut expected = Expected::default();
    for _ in 0..4 {
        let directory = DataDir::open(parent.path()).unwrap();
        let mut store = LogStore::open(&directory, &cluster()).unwrap();
        expected.assert_is(&store, 1, "opened");
        for _ in 0..10 {
            let group = script.group();
            expected.apply(&group);
            store.append(&group).unwrap();
        }
        store.apply().unwrap();
        expected.assert_is(&store, 1, "written");
    }
}

#[test]
fn another_cluster_is_refused_by_name() {
    let parent = tempfile::tempdir().unwrap();
    let directory = DataDir::open(parent.path()).unwrap();
    drop(LogStore::open(&directory, &cluster()).unwrap());
    let other = Cluster { name: "other".into(), id: ClusterId(Digest([8; 32])) };
    let error = LogStore::open(&directory, &other).unwrap_err().to_string();
    let path = parent.path().display();
    let begins = format!(
        "data directory {path} belongs to cluster `test` (id 070707070707…), not `other` (id 080808080808…);"
    );
    assert!(error.starts_with(&begins), "{error}");

    fs::remove_file(parent.path().join("cluster.toml")).unwrap();
    let error = LogStore::open(&directory, &other).unwrap_err();
    assert!(matches!(error, StoreError::OtherCluster { .. }), "the log knows as well: {error}");
    assert_eq!(directory.cluster().unwrap(), None, "and nothing is written down for the other one");
}

#[test]
fn a_lost_log_is_not_started_afresh() {
    let parent = tempfile::tempdir().unwrap();
    let directory = DataDir::open(parent.path()).unwrap();
    drop(LogStore::open(&directory, &cluster()).unwrap());
    for lose in [fs::remove_file, |path| fs::write(path, "")] {
        lose(parent.path().join("log.redb")).unwrap();
        let error = LogStore::open(&directory, &cluster()).unwrap_err();
        assert!(matches!(error, StoreError::LogLost { .. }), "{error}");
    }
    // The record of the cluster is lost with it, but the state shows that there was one.
    for name in ["log.redb", "cluster.toml"] {
        fs::remove_file(parent.path().join(name)).unwrap();
    }
    fs::write(parent.path().join("state.redb"), "").unwrap();
    let error = LogStore::open(&directory, &cluster()).unwrap_err();
    assert!(matches!(error, StoreError::LogLost { .. }), "{error}");
    assert!(parent.path().join("log.0.wal").exists(), "what is left is left");
    for name in ["log.0.wal", "log.1.wal"] {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDir::open(parent.path()).unwrap();
        drop(LogStore::open(&directory, &cluster()).unwrap());
        fs::write(parent.path().join(name), "").unwrap();
        let error = LogStore::open(&directory, &cluster()).unwrap_err();
        assert!(error.to_string().contains("there is no head that belongs to its database"), "{error}");
        fs::remove_file(parent.path().join(name)).unwrap();
        let error = LogStore::open(&directory, &cluster()).unwrap_err();
        assert!(matches!(&error, StoreError::LogLost { path } if path.ends_with(name)), "{error}");
    }
}

#[test]
fn a_start_that_was_cut_off_is_made_up_for() {
    let parent = tempfile::tempdir().unwrap();
    let directory = DataDir::open(parent.path()).unwrap();
    for name in ["log.redb.new", "log.0.wal", "log.1.wal"] {
        fs::write(parent.path().join(name), "half a file").unwrap();
    }
    drop(LogStore::open(&directory, &cluster()).unwrap());
    assert!(!parent.path().join("log.redb.new").exists());
    assert_eq!(fs::metadata(parent.path().join("log.redb")).unwrap().permissions().mode() & 0o777, 0o600);
    fs::remove_file(parent.path().join("cluster.toml")).unwrap();
    drop(LogStore::open(&directory, &cluster()).unwrap());
    assert_eq!(directory.cluster().unwrap(), Some(cluster()), "the log was there, its name was not");
}

#[test]
fn commits_that_do_not_join_the_chain_are_refused() {
    let mut random = Random(1);
    let first = block(root(), Term(0), &[], &mut random);
    let stray = block(first.reference(), Term(1), &[10], &mut random);
    let child = block(stray.reference(), Term(1), &[], &mut random);
    let (commit_first, commit_child) = (committed(&first, &mut random), committed(&child, &mut random));
    let cases = [
        ("a block that is not there", vec![commit_first.clone()], 1, 1),
        ("a missing ancestor", vec![Record::Block(first.clone()), Record::Block(child), commit_child], 3, 2),
        ("committed already", vec![Record::Block(first), commit_first.clone(), commit_first], 1, 1),
    ];
    for (name, records, at, lacks) in cases {
        let parent = tempfile::tempdir().unwrap();
        let mut store = LogStore::open(&DataDir::open(parent.path()).unwrap(), &cluster()).unwrap();
        match store.append(&records) {
            Err(StoreError::Disconnected { index: Index(index), missing: Index(missing) }) => {
                assert_eq!((index, missing), (at, lacks), "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert!(matches!(store.append(&records[..1]), Err(StoreError::Poisoned)), "{name}");
        assert_eq!(
            store.load().unwrap(),
            Expected::default().durable,
            "{name}: nothing of the group is there"
        );
    }
}

#[test]
fn a_block_at_a_committed_index_is_passed_over() {
    let mut random = Random(2);
    let first = block(root(), Term(0), &[], &mut random);
    let rival = block(root(), Term(1), &[], &mut random);
    let parent = tempfile::tempdir().unwrap();
    let mut store = LogStore::open(&DataDir::open(parent.path()).unwrap(), &cluster()).unwrap();
    let group = [Record::Block(first.clone()), committed(&first, &mut random)];
    let mut expected = Expected::default();
    expected.apply(&group);
    store.append(&group).unwrap();
    store.append(&[Record::Block(rival)]).unwrap();
    store.apply().unwrap();
    expected.assert_is(&store, 1, "a rival came late");
}

#[test]
fn damage_is_found_when_read() {
    let mut random = Random(3);
    let first = block(root(), Term(0), &[100], &mut random);
    let second = block(first.reference(), Term(0), &[100], &mut random);
    let other = block(root(), Term(4), &[100], &mut random);
    let group =
        [Record::Block(first.clone()), Record::Block(second.clone()), committed(&second, &mut random)];
    type Change = fn(&Database, &Digest, &Digest);
    let changes: [(&str, Change); 3] = [
        ("block 1 has been altered", |database, first, _| {
            with_blocks(database, |blocks| {
                let mut bytes = blocks.get((1, &first.0)).unwrap().unwrap().value().to_vec();
                bytes[40] ^= 1;
                blocks.insert((1, &first.0), &*bytes).unwrap();
            });
        }),
        ("no block stands at committed index 1", |database, first, _| {
            with_blocks(database, |blocks| drop(blocks.remove((1, &first.0)).unwrap()));
        }),
        ("more than one block stands at committed index 1", |database, first, other| {
            with_blocks(database, |blocks| {
                let bytes = blocks.get((1, &first.0)).unwrap().unwrap().value().to_vec();
                blocks.insert((1, &other.0), &*bytes).unwrap();
            });
        }),
    ];
    for (found, change) in changes {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDir::open(parent.path()).unwrap();
        let mut store = LogStore::open(&directory, &cluster()).unwrap();
        store.append(&group).unwrap();
        store.apply().unwrap();
        drop(store);
        change(&Database::open(parent.path().join("log.redb")).unwrap(), &first.digest(), &other.digest());
        let store = LogStore::open(&directory, &cluster()).unwrap();
        let reader = store.reader();
        let errors = [
            reader.check(cluster().id).unwrap_err(),
            reader.committed_after(Index(0), 10, usize::MAX).unwrap_err(),
            reader.blocks(Index(1), Index(2)).find_map(Result::err).unwrap(),
        ];
        for error in errors {
            assert!(error.to_string().contains(found), "{error}, not: {found}");
        }
    }
}

#[test]
fn a_certificate_in_the_wrong_place_and_a_newer_format_are_found() {
    let mut random = Random(4);
    let first = block(root(), Term(0), &[], &mut random);
    let second = block(first.reference(), Term(0), &[], &mut random);
    let parent = tempfile::tempdir().unwrap();
    let directory = DataDir::open(parent.path()).unwrap();
    let mut store = LogStore::open(&directory, &cluster()).unwrap();
    store
        .append(&[Record::Block(first), Record::Block(second.clone()), committed(&second, &mut random)])
        .unwrap();
    store.apply().unwrap();
    drop(store);
    let change = |change: &dyn Fn(&redb::WriteTransaction)| {
        let database = Database::open(parent.path().join("log.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        change(&transaction);
        transaction.commit().unwrap();
    };

    change(&|transaction| {
        let mut certificates = transaction.open_table(CERTIFICATES).unwrap();
        let bytes = certificates.get(2).unwrap().unwrap().value().to_vec();
        certificates.insert(1, &*bytes).unwrap();
    });
    let store = LogStore::open(&directory, &cluster()).unwrap();
    let reader = store.reader();
    for error in [
        reader.check(cluster().id).unwrap_err(),
        reader.committed_after(Index(0), 1, usize::MAX).unwrap_err(),
    ] {
        assert!(error.to_string().contains("the certificate at 1 names another block"), "{error}");
    }
    drop((store, reader));

    change(&|transaction| {
        let mut buffer = Vec::new();
        let newer = codec::encode(&2_u32, &mut buffer);
        transaction.open_table(META).unwrap().insert(meta::FORMAT, newer).unwrap();
    });
    let error = LogStore::open(&directory, &cluster()).unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { found: 2, known: 1, .. }), "{error}");
}

fn with_blocks(database: &Database, change: impl FnOnce(&mut redb::Table<BlockKey, &'static [u8]>)) {
    let transaction = database.begin_write().unwrap();
    change(&mut transaction.open_table(BLOCKS).unwrap());
    transaction.commit().unwrap();
}
