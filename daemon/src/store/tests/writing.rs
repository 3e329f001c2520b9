//! The thread of durable writes.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use super::{
    disk::{self, Disk, Failure, Loss},
    script::{Expected, Random, Script, block, root},
};
use crate::store::{
    LogStore, LogWriter, MAX_WAITING_BYTES, MAX_WAITING_RECORDS, StoreError,
    writer::{MAX_BEHIND_BYTES, MAX_BEHIND_RECORDS},
};
use bftd_core::{durable::Record, ids::Incarnation, ids::Term};

fn open(disk: &Disk) -> LogStore {
    disk::open(disk).unwrap()
}

#[test]
fn what_is_reported_is_durable_and_closing_writes_the_rest() {
    let disk = Disk::with_log();
    let mut script = Script::new(8);
    let mut expected = vec![Expected::default()];
    let reports = Arc::new(Mutex::new(Vec::new()));
    let (of_thread, of_disk) = (Arc::clone(&reports), disk.clone());
    let report = move |result: Result<u64, StoreError>| {
        of_thread.lock().unwrap().push((result.unwrap(), of_disk.operations()));
    };
    let writer = LogWriter::start(open(&disk), Box::new(report)).unwrap();
    for _ in 0..200 {
        let group = script.group();
        for record in &group {
            let mut next = expected.last().cloned().unwrap();
            next.apply(std::slice::from_ref(record));
            expected.push(next);
        }
        writer.append(group);
        writer.flush();
    }
    writer.close().unwrap();

    let reports = reports.lock().unwrap();
    assert!(reports.windows(2).all(|pair| pair[0].0 < pair[1].0), "numbers rise");
    assert_eq!(reports.last().unwrap().0, expected.len() as u64 - 1, "every record is reported in the end");
    for (number, operations) in reports.iter() {
        let cut = Disk::new(disk.after_cut(*operations, Loss::All, &mut Random(0)));
        let held = open(&cut).load().unwrap();
        assert_eq!(held, expected[usize::try_from(*number).unwrap()].durable, "record {number}");
    }
    // Both threads' operations in the order in which they came, cut everywhere.
    for cut in 0..=disk.operations() {
        let reported = reports.iter().rfind(|(_, operations)| *operations <= cut);
        let reported = usize::try_from(reported.map_or(0, |(number, _)| *number)).unwrap();
        let rest = Disk::new(disk.after_cut(cut, Loss::Sectors, &mut Random(cut as u64)));
        let held = open(&rest).load().unwrap();
        assert!(expected[reported..].iter().any(|expected| expected.durable == held), "cut at {cut}");
    }
    expected.last().unwrap().assert_is(&open(&disk), 1, "closed");
}

#[test]
fn a_failure_is_reported_once_and_last() {
    let working = Disk::with_log();
    drop(open(&working));
    let disk = Disk::with_log().failing(Failure::Once(working.operations() + 10));
    let (send, receive) = mpsc::channel();
    let writer = LogWriter::start(open(&disk), Box::new(move |result| send.send(result).unwrap())).unwrap();
    let mut durable = 0;
    for number in 1..=100 {
        writer.append([Record::Incarnation(Incarnation(number))]);
        writer.flush();
        match receive.recv_timeout(Duration::from_secs(10)).unwrap() {
            Ok(reported) => {
                assert_eq!(reported, number);
                durable = number;
            }
            Err(error) => {
                assert!(matches!(error, StoreError::Database(_) | StoreError::Wal { .. }), "{error}");
                break;
            }
        }
    }
    let asked = disk.asked_of_wal();
    writer.append([Record::Incarnation(Incarnation(99))]);
    writer.flush();
    assert!(!writer.is_full(), "what can't be written does not gather");
    assert!(matches!(writer.close(), Err(StoreError::Poisoned)));
    assert!(receive.try_recv().is_err(), "no second report");
    assert_eq!(disk.asked_of_wal(), asked, "nothing was tried again");
    assert!(durable >= 1);
    let rest = Disk::new(disk.after_cut(disk.operations(), Loss::All, &mut Random(0)));
    assert_eq!(open(&rest).load().unwrap().incarnation, Incarnation(durable));
}

#[test]
fn it_is_full_by_count_and_by_bytes_and_room_returns() {
    let large = block(root(), Term(0), &[MAX_WAITING_BYTES], &mut Random(0));
    let cases = [vec![Record::Incarnation(Incarnation(1)); MAX_WAITING_RECORDS], vec![Record::Block(large)]];
    for records in cases {
        // The first report holds the thread up until we have looked.
        let (release, released) = mpsc::channel::<()>();
        let (send, receive) = mpsc::channel();
        let report = move |result: Result<u64, StoreError>| {
            send.send(result.unwrap()).unwrap();
            let _ = released.recv();
        };
        let writer = LogWriter::start(open(&Disk::with_log()), Box::new(report)).unwrap();
        writer.append([Record::Incarnation(Incarnation(1))]);
        writer.flush();
        assert_eq!(receive.recv().unwrap(), 1);
        let (last, count) = (records.last().cloned(), records.len() as u64);
        writer.append(records.into_iter().skip(1));
        writer.flush();
        assert!(!writer.is_full());
        writer.append(last);
        writer.flush();
        assert!(writer.is_full());
        drop(release);
        assert_eq!(receive.recv().unwrap(), 1 + count);
        assert!(!writer.is_full());
        writer.close().unwrap();
    }
}

/// Lets a test that fails come to its end.
struct Release<'a>(&'a Disk);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.hold_database(false);
    }
}

/// A writer that reports how many records are durable, on a disk whose database takes nothing up.
fn start_held(disk: &Disk) -> (mpsc::Receiver<u64>, LogWriter, Release<'_>) {
    let (send, receive) = mpsc::channel();
    let report = move |result: Result<u64, StoreError>| send.send(result.unwrap()).unwrap();
    let writer = LogWriter::start(open(disk), Box::new(report)).unwrap();
    disk.hold_database(true);
    (receive, writer, Release(disk))
}

#[test]
fn a_database_that_falls_behind_holds_the_writer_up_within_bounds() {
    const GROUP: usize = 512;
    let large = block(root(), Term(0), &[MAX_BEHIND_BYTES], &mut Random(0));
    let many = vec![Record::Incarnation(Incarnation(1)); GROUP];
    // The records that are written at once, how many such groups may be, and one more group.
    let cases = [(many.clone(), MAX_BEHIND_RECORDS / GROUP), (vec![Record::Block(large)], 1)];
    for (records, groups) in cases {
        let disk = Disk::with_log();
        let (receive, writer, _guard) = start_held(&disk);
        let mut count = 0;
        for _ in 0..groups {
            writer.append(records.clone());
            writer.flush();
            count += records.len() as u64;
            assert_eq!(receive.recv_timeout(Duration::from_secs(10)).unwrap(), count);
        }
        let asked = disk.asked_of_wal();
        // The thread takes the first group, and waits with it.
        writer.append(many.clone());
        writer.flush();
        let is_silent = receive.recv_timeout(Duration::from_millis(400)).is_err();
        writer.append(vec![Record::Incarnation(Incarnation(1)); MAX_WAITING_RECORDS]);
        writer.flush();
        count += (GROUP + MAX_WAITING_RECORDS) as u64;
        let (is_full, asked_later) = (writer.is_full(), disk.asked_of_wal());
        disk.hold_database(false);
        assert!(is_silent && asked_later == asked, "no group was written");
        assert!(is_full, "and the driver was held up");
        let reported = || receive.recv_timeout(Duration::from_secs(10)).unwrap();
        while reported() < count {}
        assert!(!writer.is_full());
        writer.close().unwrap();
    }
}

#[test]
fn what_the_database_is_taking_up_stays_in_the_write_ahead_files_until_that_is_durable() {
    let disk = Disk::with_log();
    let (receive, writer, _guard) = start_held(&disk);
    for number in 1..=60 {
        writer.append([Record::Incarnation(Incarnation(number))]);
        writer.flush();
        assert_eq!(receive.recv_timeout(Duration::from_secs(10)).unwrap(), number);
        if number == 20 {
            // More than the first file holds. Until the database has begun with them.
            std::thread::sleep(Duration::from_millis(500));
        }
        let cut = Disk::new(disk.after_cut(disk.operations(), Loss::All, &mut Random(0)));
        assert_eq!(open(&cut).load().unwrap().incarnation, Incarnation(number));
    }
    disk.hold_database(false);
    writer.close().unwrap();
}
