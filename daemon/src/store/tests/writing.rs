//! The thread of durable writes.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use super::{
    disk::{self, Disk, Failure, Loss},
    script::{Expected, Random, Script, block, root},
};
use crate::store::{LogStore, LogWriter, MAX_WAITING_BYTES, MAX_WAITING_RECORDS, StoreError};
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
        let reported = reports.iter().filter(|(_, operations)| *operations <= cut).next_back();
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
    for number in 1.. {
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
