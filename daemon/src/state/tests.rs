mod rows;

use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use bftd_core::{
    block::{Batch, Executed, Header},
    crypto::Signature,
    ids::{BatchNumber, Epoch, Incarnation, MemberId, Term},
    kv::{
        Answer, Kinds, Operation, Outcome, Position, Query, Range, ReadTables, Span, Table, Watched,
        WriteTables,
    },
};
use bytes::Bytes;
use redb::StorageBackend;

use super::*;

pub(super) const CLUSTER: ClusterId = ClusterId(Digest([1; 32]));
pub(super) const ROOT: BlockRef = BlockRef { term: Term(0), index: Index(0), digest: Digest([7; 32]) };

pub(super) fn put(key: impl Into<String>, value: impl Into<String>) -> Operation {
    Operation::put(key.into().into(), value.into().into())
}

/// A block of one unsigned batch: signatures are no business of the state.
pub(super) fn child(parent: BlockRef, operations: &[Operation]) -> Arc<Block> {
    let batches = vec![Arc::new(Batch {
        origin: MemberId(1),
        incarnation: Incarnation(1),
        number: BatchNumber(parent.index.0 + 1),
        requests: operations.iter().map(Operation::encode).collect(),
        signature: Signature([0; 64]),
    })];
    let header = Header {
        cluster: CLUSTER,
        epoch: Epoch(0),
        term: Term(1),
        index: parent.index.next(),
        parent: parent.digest,
        time_ms: 0,
        batches: Block::batches_digest(&batches),
        executed: Executed { index: Index(0), state: Digest::ZERO },
        sole: false,
    };
    Arc::new(Block::new(header, batches))
}

/// A chain after the root, its contents from a small generator: puts over 200 keys, deletes, and prefixes.
fn chain(blocks: u64, seed: u64) -> Vec<Arc<Block>> {
    let mut parent = ROOT;
    let mut random = seed;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    (0..blocks)
        .map(|_| {
            let operations: Vec<_> = (0..next(12))
                .map(|_| match next(10) {
                    0 => Operation::Delete { key: format!("k{}", next(200)).into() },
                    1 => Operation::DeletePrefix { prefix: format!("k{}", next(40)).into() },
                    _ => put(format!("k{}", next(200)), "v".repeat(next(600) as usize)),
                })
                .collect();
            let block = child(parent, &operations);
            parent = block.reference();
            block
        })
        .collect()
}

/// A disk in memory that loses what was not synced, and can be made to fail: a file, and a folder of such.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<DiskState>);

#[derive(Debug, Default)]
struct DiskState {
    /// What a reader sees, and what a crash leaves.
    contents: Mutex<(Vec<u8>, Vec<u8>)>,
    /// Likewise.
    folder: Mutex<(BTreeMap<u64, Disk>, BTreeMap<u64, Disk>)>,
    failing: Arc<AtomicBool>,
    /// The same for the folder and its files.
    folder_failing: Arc<AtomicBool>,
    /// How often it was written, made longer or shorter, or synced.
    steps: AtomicU64,
    /// The step that fails, counted from 1, and how.
    fails_at: Mutex<Option<(u64, io::ErrorKind)>>,
}

impl Disk {
    /// The disk after a crash: unsynced writes are lost.
    pub(super) fn crashed(&self) -> Self {
        let synced = self.0.contents.lock().unwrap().1.clone();
        let contents = Mutex::new((synced.clone(), synced));
        let folder: BTreeMap<_, _> =
            self.0.folder.lock().unwrap().1.iter().map(|(file, disk)| (*file, disk.crashed())).collect();
        let folder = Mutex::new((folder.clone(), folder));
        Self(Arc::new(DiskState { contents, folder, ..DiskState::default() }))
    }

    /// The disk after the process was killed: rows are there that no checkpoint knows of.
    fn killed(&self) -> Self {
        let killed = self.crashed();
        let written = |disk: &Self| {
            let contents = disk.0.contents.lock().unwrap().0.clone();
            Self(Arc::new(DiskState {
                contents: Mutex::new((contents.clone(), contents)),
                ..DiskState::default()
            }))
        };
        let files: BTreeMap<_, _> =
            self.0.folder.lock().unwrap().0.iter().map(|(file, disk)| (*file, written(disk))).collect();
        *killed.0.folder.lock().unwrap() = (files.clone(), files);
        killed
    }

    pub(super) fn steps(&self) -> u64 {
        self.0.steps.load(Ordering::Relaxed)
    }

    /// Lets the n-th step from now on fail, n counted from 1; those after it don't.
    pub(super) fn fail_at(&self, step: u64, kind: io::ErrorKind) {
        *self.0.fails_at.lock().unwrap() = Some((self.steps() + step, kind));
    }

    fn step(&self) -> io::Result<()> {
        let step = self.0.steps.fetch_add(1, Ordering::Relaxed) + 1;
        match *self.0.fails_at.lock().unwrap() {
            Some((at, kind)) if at == step => Err(kind.into()),
            _ => self.check(),
        }
    }

    pub(super) fn open(&self) -> StateStore {
        StateStore::open_file(self, || Ok(Box::new(self.clone())), Path::new("disk"), CLUSTER, ROOT).unwrap()
    }

    fn check(&self) -> io::Result<()> {
        if self.0.failing.load(Ordering::Relaxed) { Err(io::Error::other("broken disk")) } else { Ok(()) }
    }

    fn check_folder(&self) -> io::Result<()> {
        if self.0.folder_failing.load(Ordering::Relaxed) {
            Err(io::Error::other("broken folder"))
        } else {
            Ok(())
        }
    }

    /// What can fail: the database's file, and the files of rows.
    fn switches(&self) -> [Arc<AtomicBool>; 2] {
        [&self.0.failing, &self.0.folder_failing].map(Arc::clone)
    }
}

impl Folder for Disk {
    fn open(&self, file: u64) -> io::Result<Arc<dyn StorageBackend>> {
        self.check_folder()?;
        let failing = Arc::clone(&self.0.folder_failing);
        let made = || Self(Arc::new(DiskState { failing, ..DiskState::default() }));
        Ok(Arc::new(self.0.folder.lock().unwrap().0.entry(file).or_insert_with(made).clone()))
    }

    fn list(&self) -> io::Result<Vec<u64>> {
        Ok(self.0.folder.lock().unwrap().0.keys().copied().collect())
    }

    fn remove(&self, file: u64) -> io::Result<()> {
        self.check_folder()?;
        let removed = self.0.folder.lock().unwrap().0.remove(&file);
        removed.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.check_folder()?;
        let (files, synced) = &mut *self.0.folder.lock().unwrap();
        synced.clone_from(files);
        Ok(())
    }
}

impl File for Disk {
    fn open(&self) -> Result<Database, StateError> {
        Database::builder().create_with_backend(self.clone()).map_err(StateError::storage)
    }

    fn size(&self) -> io::Result<u64> {
        self.len()
    }

    fn name(&self) -> String {
        "disk".to_owned()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.contents.lock().unwrap().0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check()?;
        let contents = &self.0.contents.lock().unwrap().0;
        let offset = offset as usize;
        let found = contents.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step()?;
        self.0.contents.lock().unwrap().0.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.step()?;
        let (contents, synced) = &mut *self.0.contents.lock().unwrap();
        synced.clone_from(contents);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.step()?;
        let offset = offset as usize;
        self.0.contents.lock().unwrap().0[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }
}

#[test]
fn what_was_closed_is_there_again() {
    let directory = tempfile::tempdir().unwrap();
    let open = || StateStore::open(directory.path(), CLUSTER, ROOT).unwrap();
    let mut store = open();
    assert!(matches!(StateStore::open(directory.path(), CLUSTER, ROOT), Err(StateError::InUse(_))));
    let results = store.execute(&chain(300, 1)).unwrap();
    assert_eq!(results.len(), 300);
    assert_eq!(results.last().unwrap().head, store.head());
    let (head, recent) = (store.head(), store.recent_digests());
    store.close().unwrap();
    let store = open();
    assert_eq!((store.head(), store.recent_digests()), (head, recent));
    assert_eq!(store.reader().verify().unwrap(), head);
}

#[test]
fn a_tick_makes_a_checkpoint_when_it_is_time_and_there_is_something_to_write() {
    let disk = Disk::default();
    let mut store = disk.open();
    let long_ago = Instant::now().checked_sub(MAX_AGE).unwrap();
    store.checkpoint = long_ago;
    store.tick().unwrap();
    assert!(store.writing.is_none(), "nothing to write");
    store.checkpoint = Instant::now();
    store.execute(&chain(5, 9)).unwrap();
    store.tick().unwrap();
    assert!(store.writing.is_none(), "too early");
    store.checkpoint = long_ago;
    store.tick().unwrap();
    store.finish_checkpoint().unwrap();
    assert_eq!(disk.crashed().open().head(), store.head());
}

/// Checkpoints of all sizes with puts and deletes of few and of all keys, against a map; runs stay within their bounds.
#[test]
fn runs_hide_what_is_below_and_are_merged() {
    let mut disk = Disk::default();
    let mut database = Database::builder().create_with_backend(disk.clone()).unwrap();
    let mut expected = BTreeMap::new();
    let mut random = 3_u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let (mut most_runs, mut most_rows) = (0, 0);
    for checkpoint in 0..600 {
        let transaction = begin(&database).unwrap();
        let mut tables = Tables::open_for_writing(&transaction).unwrap();
        let of = if checkpoint % 7 == 0 { 20 } else { 2000 };
        // For a while most keys are removed again.
        let removed = if (300..400).contains(&checkpoint) { 9 } else { 2 };
        let changes: BTreeMap<_, _> = (0..next(60))
            .map(|_| {
                (
                    format!("k{:05}", next(of)),
                    (next(10) >= removed).then(|| vec![b'v'; next(90) as usize + 1]),
                )
            })
            .collect();
        tables.begin_run(changes.len()).unwrap();
        for (key, value) in changes {
            match value {
                Some(value) => {
                    tables.put(Table::Keys, key.as_bytes(), &value).unwrap();
                    expected.insert(key, value);
                }
                None => {
                    let is_there = tables.remove(Table::Keys, key.as_bytes()).unwrap();
                    assert_eq!(is_there, expected.remove(&key).is_some());
                }
            }
        }
        tables.merge().unwrap();
        let (keys, rows, runs) = tables.sizes();
        assert!(runs <= 16 && rows <= keys.max(60), "{runs} runs of {rows} rows above {keys} keys");
        (most_runs, most_rows) = (runs.max(most_runs), rows.max(most_rows));
        drop(tables);
        transaction.commit().unwrap();
        if checkpoint % 50 == 0 {
            drop(database);
            disk = disk.crashed();
            database = Database::builder().create_with_backend(disk.clone()).unwrap();
        }
        let tables =
            Tables::open_for_reading(&redb::ReadableDatabase::begin_read(&database).unwrap()).unwrap();
        let key = format!("k{:05}", next(of));
        assert_eq!(
            tables.read(Table::Keys, key.as_bytes(), <[u8]>::to_vec).unwrap(),
            expected.get(&key).cloned()
        );
        for from in [Bound::Unbounded, Bound::Included(key.as_bytes()), Bound::Excluded(key.as_bytes())] {
            let mut found = vec![];
            let take = |key: &[u8], value: &[u8]| {
                found.push((String::from_utf8(key.to_vec()).unwrap(), value.to_vec()));
                std::ops::ControlFlow::Continue(())
            };
            tables.scan(Table::Keys, from, take).unwrap();
            let from = from.map(|key| std::str::from_utf8(key).unwrap());
            let wanted = expected.range::<str, _>((from, Bound::Unbounded));
            assert!(found.iter().map(|(key, value)| (key, value)).eq(wanted), "checkpoint {checkpoint}");
        }
    }
    assert!(most_runs > 10 && most_rows > 200, "{most_runs} runs, {most_rows} rows");
}

#[test]
fn another_clusters_data_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    StateStore::open(directory.path(), CLUSTER, ROOT).unwrap().close().unwrap();
    let other = ClusterId(Digest([2; 32]));
    let error = StateStore::open(directory.path(), other, ROOT).unwrap_err().to_string();
    let named = [directory.path().to_str().unwrap(), &CLUSTER.to_string(), &other.to_string()];
    assert!(named.iter().all(|name| error.contains(name)), "{error}");
    StateStore::open(directory.path(), CLUSTER, ROOT).unwrap();
}

/// Crashes after every block of a run with a durable transaction every seven blocks; then executes the rest again.
#[test]
fn execution_goes_on_after_a_crash_as_if_there_had_been_none() {
    let blocks = chain(60, 2);
    let mut heads = vec![];
    let disk = Disk::default();
    let mut store = disk.open();
    heads.push(store.head());
    let mut durable = 0;
    for (index, block) in blocks.iter().enumerate() {
        let results = store.execute(std::slice::from_ref(block)).unwrap();
        heads.push(results[0].head);
        if index % 7 == 6 {
            store.sync().unwrap();
            durable = index + 1;
        }
        let crashed = disk.crashed();
        let mut again = crashed.open();
        assert_eq!(again.head(), heads[durable], "what is durable, and nothing else, is there after a crash");
        let replayed = again.execute(&blocks[durable..=index]).unwrap();
        assert_eq!(replayed.last().map_or(heads[durable], |last| last.head), heads[index + 1]);
        assert_eq!(again.recent_digests(), store.recent_digests());
        assert_eq!(again.reader().verify().unwrap(), heads[index + 1]);
    }
}

/// Drops stores without closing them, and lets checkpoints come by themselves.
#[test]
fn a_dropped_store_is_at_its_last_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let open = || StateStore::open(directory.path(), CLUSTER, ROOT).unwrap();
    let value = "v".repeat(bftd_core::limits::MAX_VALUE);
    let mut blocks = chain(100, 3);
    let mut parent = blocks.last().unwrap().reference();
    for key in 0..60 {
        blocks.push(child(parent, &[put(key.to_string(), &value)]));
        parent = blocks.last().unwrap().reference();
    }
    let mut store = open();
    let mut heads = vec![store.head()];
    heads.extend(blocks.iter().map(|block| store.execute(std::slice::from_ref(block)).unwrap()[0].head));
    let last = store.head();
    drop(store);
    let mut store = open();
    let Index(durable) = store.head().executed.index;
    assert_eq!(durable, 148, "every 16 of the large values make a checkpoint");
    assert_eq!(store.head(), heads[durable as usize]);
    store.execute(&blocks[durable as usize..]).unwrap();
    assert_eq!(store.head(), last);
    store.reader().verify().unwrap();
}

/// Reads from the file and from memory are merged: the same answers before and after a checkpoint.
#[test]
fn answers_are_the_same_before_and_after_a_checkpoint() {
    let blocks = chain(300, 6);
    let mut store = Disk::default().open();
    let reader = store.reader();
    let list = |prefix: &'static str, start_after: Option<&'static str>, limit| {
        let keys = match start_after {
            Some(after) => Span::prefix_after(prefix.as_bytes(), after.as_bytes()),
            None => Span::Prefix(prefix.into()),
        };
        Query::Range(Range { limit, ..Range::of(keys) })
    };
    let watched = Watched {
        keys: Span::Prefix("k".into()),
        from: Position::start_of(1),
        with_previous: true,
        kinds: Kinds::All,
    };
    let queries = [
        list("", None, 1000),
        list("k1", None, 7),
        list("k1", Some("k11"), 7),
        Query::Range(Range::count_of(Span::Prefix("k".into()))),
        Query::Range(Range { revision: 40, ..Range::of(Span::Prefix("".into())) }),
        Query::History { key: "k17".into(), before: 0, limit: 0 },
        Query::Events(Watched { with_previous: false, ..watched.clone() }),
        Query::Events(watched),
        Query::Get { key: "k17".into() },
        Query::Get { key: "nothing".into() },
    ];
    let mut most = 0;
    for blocks in blocks.chunks(10) {
        store.execute(blocks).unwrap();
        let before = reader.query_many(&queries).unwrap();
        store.reader().verify().unwrap();
        store.sync().unwrap();
        assert_eq!(reader.query_many(&queries).unwrap(), before);
        assert_eq!(Answer::Entry(reader.get(&"k17".into()).unwrap()), before.answers[8]);
        let [Answer::Listing(all), _, _, Answer::Listing(counted), ..] = &before.answers[..] else {
            panic!()
        };
        let count = counted.count.unwrap();
        assert_eq!(all.entries.len() as u64, count);
        assert!(all.entries.is_sorted_by(|(a, _), (b, _)| a < b));
        most = most.max(count);
    }
    assert!(most > 20, "{most}");
}

#[test]
fn a_block_out_of_order_changes_nothing_and_poisons_nothing() {
    let blocks = chain(3, 4);
    let mut store = Disk::default().open();
    store.execute(&blocks[..1]).unwrap();
    let head = store.head();
    for wrong in [&blocks[..1], &blocks[2..]] {
        let error = store.execute(wrong).unwrap_err();
        assert!(matches!(error, StateError::Execution(kv::Error::NotNext { .. })), "{error}");
        assert_eq!((store.head(), store.reader().head().unwrap()), (head, head));
    }
    store.execute(&blocks[1..]).unwrap();
}

#[test]
fn a_failing_disk_poisons_the_store_for_good() {
    let blocks = chain(4, 5);
    for switch in 0..2 {
        let disk = Disk::default();
        let switch = &disk.switches()[switch];
        let mut store = disk.open();
        let reader = store.reader();
        store.execute(&blocks[..2]).unwrap();
        store.sync().unwrap();
        let durable = store.head();
        store.execute(&blocks[2..3]).unwrap();
        switch.store(true, Ordering::Relaxed);
        assert!(matches!(store.sync(), Err(StateError::Storage(_) | StateError::Execution(_))));
        switch.store(false, Ordering::Relaxed);
        assert!(matches!(store.execute(&blocks[3..]), Err(StateError::Poisoned)));
        assert!(matches!(store.sync(), Err(StateError::Poisoned)));
        assert!(matches!(reader.head(), Err(StateError::Poisoned)));
        assert!(matches!(store.close(), Err(StateError::Poisoned)));
        assert_eq!(disk.crashed().open().head(), durable);
    }
}

#[test]
fn a_row_that_can_not_be_added_poisons_the_store() {
    let disk = Disk::default();
    let mut store = disk.open();
    disk.0.folder_failing.store(true, Ordering::Relaxed);
    let error = store.execute(&[child(ROOT, &[put("a", "1")])]).unwrap_err();
    assert!(error.to_string().contains("broken folder"), "{error}");
    disk.0.folder_failing.store(false, Ordering::Relaxed);
    assert!(matches!(store.execute(&[child(ROOT, &[])]), Err(StateError::Poisoned)));
}

#[test]
fn a_checkpoint_that_fails_beside_execution_stops_everything() {
    let blocks = chain(3, 8);
    for switch in 0..2 {
        let disk = Disk::default();
        let switch = &disk.switches()[switch];
        let mut store = disk.open();
        let reader = store.reader();
        store.execute(&blocks[..1]).unwrap();
        switch.store(true, Ordering::Relaxed);
        store.start_checkpoint().unwrap();
        let limit = Instant::now() + Duration::from_secs(10);
        while reader.head().is_ok() {
            assert!(Instant::now() < limit, "readers go on after a failed checkpoint");
            thread::yield_now();
        }
        switch.store(false, Ordering::Relaxed);
        let error = store.execute(&blocks[1..2]).unwrap_err();
        assert!(matches!(error, StateError::Storage(_)), "the cause is told first: {error}");
        assert!(matches!(store.execute(&blocks[1..2]), Err(StateError::Poisoned)));
    }
}

#[test]
fn damage_met_by_execution_poisons_the_store() {
    let disk = Disk::default();
    let mut store = disk.open();
    store.execute(&[child(ROOT, &[put("a", "1")])]).unwrap();
    store.close().unwrap();
    let mut store = disk.open();
    let bucket = kv::bucket_of(&kv::key_hash(b"a")).to_be_bytes();
    overwrite(&mut store, Table::Buckets, &bucket, |stored| *stored.last_mut().unwrap() ^= 1);
    let block = child(store.head().executed, &[put("a", "2")]);
    let error = store.execute(std::slice::from_ref(&block)).unwrap_err();
    assert!(matches!(error, StateError::Execution(kv::Error::Damaged(_))), "{error}");
    assert!(matches!(store.execute(&[block]), Err(StateError::Poisoned)));
    assert!(matches!(store.reader().head(), Err(StateError::Poisoned)));
}

/// Changes a stored entry behind the store's back, and lets the store see it.
fn overwrite(store: &mut StateStore, table: Table, key: &[u8], change: impl FnOnce(&mut Vec<u8>)) {
    let transaction = begin(store.shared.database()).unwrap();
    let mut tables = Tables::open_for_writing(&transaction).unwrap();
    let mut stored = tables.read(table, key, <[u8]>::to_vec).unwrap().unwrap();
    change(&mut stored);
    tables.put(table, key, &stored).unwrap();
    drop(tables);
    transaction.commit().unwrap();
    store.execute(&[child(store.head().executed, &[put("other", "")])]).unwrap();
    store.sync().unwrap();
}

/// Each block sets all of eight keys to its index: a reader must never see two of them differ.
#[test]
fn readers_see_whole_blocks_and_everything_executed() {
    const BLOCKS: u64 = 400;
    let mut store = Disk::default().open();
    let executed = Arc::new(Mutex::new(Index(0)));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (reader, executed) = (store.reader(), Arc::clone(&executed));
            thread::spawn(move || {
                let queries: Vec<_> =
                    (0..8).map(|key| Query::Get { key: Bytes::from(key.to_string()) }).collect();
                let mut seen = Index(0);
                while seen < Index(BLOCKS) {
                    let least = *executed.lock().unwrap();
                    let answers = reader.query_many(&queries).unwrap();
                    let expected = answers.head.executed.index;
                    assert!(expected >= least && expected >= seen, "{expected} after {least} and {seen}");
                    seen = expected;
                    for answer in answers.answers {
                        let Answer::Entry(entry) = answer else { panic!("{answer:?}") };
                        let value = entry.map_or(Bytes::from("0"), |entry| entry.value);
                        assert_eq!(value, expected.to_string());
                    }
                }
            })
        })
        .collect();
    for index in 1..=BLOCKS {
        let operations: Vec<_> = (0..8).map(|key| put(key.to_string(), index.to_string())).collect();
        let results = store.execute(&[child(store.head().executed, &operations)]).unwrap();
        assert!(results[0].outcomes[0].iter().all(|outcome| matches!(outcome, Outcome::Put { .. })));
        *executed.lock().unwrap() = Index(index);
        if index % 20 == 0 {
            store.start_checkpoint().unwrap();
        }
    }
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

#[test]
fn verify_finds_contents_that_were_changed_behind_its_back() {
    let mut store = Disk::default().open();
    store.execute(&[child(ROOT, &[put("a", "1"), put("b", "2")])]).unwrap();
    store.sync().unwrap();
    let reader = store.reader();
    reader.verify().unwrap();
    overwrite(&mut store, Table::Keys, b"a", |stored| *stored.last_mut().unwrap() = b'9');
    assert_eq!(reader.get(&"a".into()).unwrap().unwrap().value, "9");
    assert!(matches!(reader.verify(), Err(StateError::Damaged { .. })));
}

/// Prints what execution and reading cost: `cargo test --release -p bftd state::tests::measure -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a test"]
fn measure() {
    const KEYS: u64 = 1_000_000;
    let directory = tempfile::tempdir_in(".").unwrap();
    let mut store = StateStore::open(directory.path(), CLUSTER, ROOT).unwrap();
    let mut random = 1_u64;
    let mut key = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:016}", (random >> 33) % KEYS)
    };
    let value = "v".repeat(256);
    for chunk in 0..KEYS / 1000 {
        let puts: Vec<_> = (0..1000).map(|key| put(format!("{:016}", chunk * 1000 + key), &value)).collect();
        store.execute(&[child(store.head().executed, &puts)]).unwrap();
    }
    store.sync().unwrap();
    for size in [1_usize, 16, 200, 1000] {
        let count = 400_000 / size.max(10);
        let mut parent = store.head().executed;
        let blocks: Vec<_> = (0..count)
            .map(|_| {
                let puts: Vec<_> = (0..size).map(|_| put(key(), &value)).collect();
                let block = child(parent, &puts);
                parent = block.reference();
                block
            })
            .collect();
        let (cpu, own, start) = (cpu_us("self"), cpu_us("thread-self"), Instant::now());
        let mut slowest = Duration::ZERO;
        for block in &blocks {
            let start = Instant::now();
            store.execute(std::slice::from_ref(block)).unwrap();
            slowest = slowest.max(start.elapsed());
        }
        let executed = (cpu_us("thread-self"), start.elapsed());
        store.sync().unwrap();
        let puts = (count * size) as f64;
        println!(
            "{size:>4} puts a block: {:.2} µs CPU a put, {:.2} with the checkpoints; {:.2} µs elapsed; slowest {slowest:?}",
            (executed.0 - own) / puts,
            (cpu_us("self") - cpu) / puts,
            executed.1.as_secs_f64() * 1e6 / puts,
        );
    }
    let reader = store.reader();
    let keys: Vec<_> = (0..200_000).map(|_| Bytes::from(key())).collect();
    let start = Instant::now();
    keys.iter().for_each(|key| assert!(reader.get(key).unwrap().is_some()));
    println!("{:.0} gets/s on one thread", keys.len() as f64 / start.elapsed().as_secs_f64());
    let start = Instant::now();
    reader.verify().unwrap();
    println!("verify: {:?}", start.elapsed());
    println!("file: {} MB", std::fs::metadata(directory.path().join(FILE_NAME)).unwrap().len() >> 20);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
        .for_each(|line| println!("{line}"));
    drop(reader);
    store.close().unwrap();
    let start = Instant::now();
    let mut store = StateStore::open(directory.path(), CLUSTER, ROOT).unwrap();
    println!("open: {:?}", start.elapsed());
    store.execute(&[child(store.head().executed, &[put("a", "1")])]).unwrap();
    store.sync().unwrap();
    drop(store);
    let start = Instant::now();
    StateStore::open(directory.path(), CLUSTER, ROOT).unwrap();
    println!("open without a close before: {:?}", start.elapsed());
}

/// CPU time of this process (`self`) or thread (`thread-self`), in microseconds, to a hundredth of a second.
fn cpu_us(of: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{of}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) * 10_000.0
}
