//! Power cuts at every operation of a run, and disks that fail at every operation.

use super::{
    disk::{Disk, Failure, Image, Loss, TURN, open},
    script::{Expected, Random, Script, block, cluster, committed, root},
};
use crate::store::{LogStore, StoreError};
use bftd_core::{durable::Record, ids::Term};

/// How much may be lost in a cut, and how often a chance is taken.
const LOSSES: [(Loss, usize); 5] =
    [(Loss::All, 1), (Loss::Nothing, 1), (Loss::Tail, 2), (Loss::Some, 2), (Loss::Sectors, 3)];

/// After which groups the database is brought up to date: mostly every seven, and once not for so long that both
/// write-ahead files are full of what it lacks.
fn is_applied(number: usize) -> bool {
    number % 7 == 6 && !(10..52).contains(&number)
}

/// A run on a disk that notes everything.
struct Recorded {
    disk: Disk,
    groups: Vec<Vec<Record>>,
    /// What the log holds before the first group, after the first, …
    expected: Vec<Expected>,
    /// How many operations there were when the first group was acknowledged, the second, …
    acknowledged: Vec<usize>,
}

fn record(disk: Disk, groups: usize) -> Recorded {
    let mut script = Script::new(11);
    let groups: Vec<_> = (0..groups).map(|_| script.group()).collect();
    for kind in ["incarnation", "term", "position", "block", "fork", "commit", "commit of many", "abandoned"]
    {
        assert!(script.taken.contains_key(kind), "the script has no {kind}");
    }
    let mut expected = vec![Expected::default()];
    let mut store = open(&disk).unwrap();
    let mut acknowledged = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        store.append(group).unwrap();
        acknowledged.push(disk.operations());
        if is_applied(number) {
            store.apply().unwrap();
        }
        let mut next = expected.last().cloned().unwrap();
        next.apply(group);
        expected.push(next);
    }
    drop(store);
    Recorded { disk, groups, expected, acknowledged }
}

impl Recorded {
    /// How many groups had been acknowledged before an operation.
    fn acknowledged_at(&self, cut: usize) -> usize {
        self.acknowledged.iter().filter(|operations| **operations <= cut).count()
    }

    /// Opens what a cut has left. How many groups does it hold?
    fn reopen(&self, disk: &Disk, acknowledged: usize, context: &str) -> Result<(LogStore, usize), String> {
        let store = open(disk).map_err(|error| format!("{error}, {context}"))?;
        let durable = store.load().map_err(|error| format!("{error}, {context}"))?;
        for held in acknowledged..=(acknowledged + 1).min(self.groups.len()) {
            if self.expected[held].durable == durable {
                return Ok((store, held));
            }
        }
        Err(format!("the log holds neither what was acknowledged nor that and the next group, {context}"))
    }
}

/// Cuts the power at every operation, and says how many cuts were survived with and without the group under way.
fn cut_everywhere(run: &Recorded) -> Result<(usize, usize), String> {
    let (mut without, mut with) = (0, 0);
    for cut in 0..=run.disk.operations() {
        let acknowledged = run.acknowledged_at(cut);
        for (loss, times) in LOSSES {
            for time in 0..times {
                let mut random = Random((cut * 10 + time) as u64);
                let context = format!("cut at {cut}, {loss:?}, time {time}");
                let disk = Disk::new(run.disk.after_cut(cut, loss, &mut random));
                let (mut store, held) = run.reopen(&disk, acknowledged, &context)?;
                run.expected[held].assert_is(&store, 7, &context);
                *(if held > acknowledged { &mut with } else { &mut without }) += 1;
                if cut % 5 == time {
                    for group in &run.groups[held..] {
                        store.append(group).map_err(|error| format!("{error}, went on after {context}"))?;
                    }
                    store.apply().map_err(|error| format!("{error}, went on after {context}"))?;
                    run.expected[run.groups.len()].assert_is(&store, 7, &format!("went on after {context}"));
                }
            }
        }
    }
    Ok((without, with))
}

#[test]
fn a_power_cut_at_any_operation_keeps_whole_groups_and_all_acknowledged_ones() {
    let run = record(Disk::with_log(), 60);
    let (without, with) = cut_everywhere(&run).unwrap();
    println!(
        "{} operations, survived {without} cuts without and {with} with the group under way",
        run.disk.operations()
    );
    assert!(without > 1000 && with > 100, "both ways out of a cut occur");
}

#[test]
fn a_power_cut_while_a_log_is_made_leaves_nothing_that_is_taken_for_another_one() {
    let disk = Disk::new(Image::default());
    let [home, first, second] = disk.files();
    LogStore::create(home, [first, second], &cluster(), TURN).unwrap();
    let (mut opened, mut refused) = (0, 0);
    for cut in 0..=disk.operations() {
        for (loss, times) in LOSSES {
            for time in 0..times {
                let mut random = Random((cut * 10 + time) as u64);
                let rest = Disk::new(disk.after_cut(cut, loss, &mut random));
                match open(&rest) {
                    Ok(store) => {
                        Expected::default().assert_is(&store, 1, &format!("cut at {cut}, {loss:?}"));
                        opened += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(opened > 0 && refused > 0, "{opened} {refused}");
}

#[test]
fn a_power_cut_during_recovery_is_survived() {
    let run = record(Disk::with_log(), 30);
    let mut cuts = 0;
    for cut in (0..run.disk.operations()).step_by(7) {
        let mut random = Random(cut as u64);
        let first = Disk::new(run.disk.after_cut(cut, Loss::Sectors, &mut random));
        let acknowledged = run.acknowledged_at(cut);
        let (mut store, held) = run.reopen(&first, acknowledged, &format!("cut at {cut}")).unwrap();
        let opened = first.operations();
        let Some(group) = run.groups.get(held) else { continue };
        store.append(group).unwrap();
        let appended = first.operations();
        drop(store);
        for again in 0..=first.operations() {
            for loss in [Loss::All, Loss::Tail, Loss::Some, Loss::Sectors] {
                let second = Disk::new(first.after_cut(again, loss, &mut random));
                let context = format!("cut at {cut}, and in recovery at {again}, {loss:?}");
                // What a log has once shown to its reader must stay.
                let known = match again {
                    _ if again < opened => acknowledged,
                    _ if again < appended => held,
                    _ => held + 1,
                };
                let (store, held) = run.reopen(&second, known, &context).unwrap();
                run.expected[held].assert_is(&store, 7, &context);
                cuts += 1;
            }
        }
    }
    assert!(cuts > 1000);
}

#[test]
fn what_is_read_after_a_kill_survives_a_power_cut() {
    let run = record(Disk::with_log(), 90);
    let mut cuts = 0;
    for kill in 0..=run.disk.operations() {
        let disk = run.disk.after_kill(kill);
        let context = format!("killed at {kill}");
        let (store, held) = run.reopen(&disk, run.acknowledged_at(kill), &context).unwrap();
        for loss in [Loss::All, Loss::Sectors] {
            let cut = Disk::new(disk.after_cut(disk.operations(), loss, &mut Random(kill as u64)));
            let store = open(&cut).unwrap();
            run.expected[held].assert_is(&store, 7, &format!("{context}, power cut, {loss:?}"));
            cuts += 1;
        }
        drop(store);
    }
    assert!(cuts > 500, "{cuts}");
}

#[test]
fn the_crash_test_finds_a_disk_that_lies_about_syncs() {
    let error = cut_everywhere(&record(Disk::with_log().lying(), 60)).unwrap_err();
    println!("found: {error}");
}

#[test]
fn the_crash_test_finds_acknowledgements_before_the_last_sync() {
    let mut run = record(Disk::with_log(), 60);
    for operations in &mut run.acknowledged {
        *operations = (0..*operations).rfind(|at| run.disk.is_sync(*at)).unwrap();
    }
    let error = cut_everywhere(&run).unwrap_err();
    println!("found: {error}");
}

/// Runs the groups on a failing disk. What was acknowledged must be there in the end, whatever was lost.
fn fail(run: &Recorded, initial: Disk, failure: Failure) -> Disk {
    let context = format!("{failure:?}");
    let disk = initial.failing(failure);
    let mut acknowledged = 0;
    if let Ok(mut store) = open(&disk) {
        let mut groups = run.groups.iter();
        let error = groups.find_map(|group| match store.append(group) {
            Ok(()) => {
                acknowledged += 1;
                if is_applied(acknowledged - 1) { store.apply().err() } else { None }
            }
            Err(error) => Some(error),
        });
        if let Some(error) = error {
            assert!(matches!(error, StoreError::Database(_) | StoreError::Wal { .. }), "{error}, {context}");
            let (Failure::Once(at) | Failure::From(at)) = failure else { panic!("{context}") };
            assert_eq!((disk.asked(), disk.failed()), (at + 1, 1), "noticed at once, {context}");
            for group in groups {
                assert!(matches!(store.append(group), Err(StoreError::Poisoned)), "{context}");
            }
            assert!(matches!(store.apply(), Err(StoreError::Poisoned)), "{context}");
            assert_eq!(disk.asked(), at + 1, "nothing is tried after an error, {context}");
            // The database may be closed properly when it was a write-ahead file that failed.
            let asked = disk.asked_of_wal();
            drop(store);
            assert_eq!(disk.asked_of_wal(), asked, "nothing is tried after an error, {context}");
        }
    }
    for (loss, seed) in [(Loss::All, 0), (Loss::Nothing, 0), (Loss::Sectors, 1)] {
        let rest = Disk::new(disk.after_cut(disk.operations(), loss, &mut Random(seed)));
        let (store, held) = run.reopen(&rest, acknowledged, &format!("{context}, {loss:?}")).unwrap();
        run.expected[held].assert_is(&store, 7, &context);
    }
    disk
}

#[test]
fn a_disk_that_fails_at_any_operation_ends_the_log_without_a_false_acknowledgement() {
    let run = record(Disk::with_log(), 80);
    let last = *run.acknowledged.last().unwrap();
    assert!(last > 200, "{last}");
    for at in 0..last {
        for failure in [Failure::Once(at), Failure::From(at)] {
            let disk = fail(&run, Disk::with_log(), failure);
            assert!(disk.failed() > 0, "{failure:?}");
        }
    }
}

/// With a cache smaller than a group, pages leave it before the commit.
fn record_large() -> Recorded {
    let mut random = Random(4);
    let mut parent = root();
    let disk = Disk::with_log();
    let mut store = open(&disk).unwrap();
    let (mut groups, mut expected, mut acknowledged) = (Vec::new(), vec![Expected::default()], Vec::new());
    for _ in 0..2 {
        let mut group = Vec::new();
        for _ in 0..4 {
            let block = block(parent, Term(0), &[1_000_000], &mut random);
            parent = block.reference();
            group.extend([Record::Block(block.clone()), committed(&block, &mut random)]);
        }
        store.append(&group).unwrap();
        acknowledged.push(disk.operations());
        store.apply().unwrap();
        let mut next = expected.last().cloned().unwrap();
        next.apply(&group);
        expected.push(next);
        groups.push(group);
    }
    Recorded { disk, groups, expected, acknowledged }
}

#[test]
fn groups_larger_than_the_cache_are_whole_too() {
    let run = record_large();
    println!("{} operations", run.disk.operations());
    for cut in 0..=run.disk.operations() {
        let context = format!("cut at {cut}");
        let disk = Disk::new(run.disk.after_cut(cut, Loss::Sectors, &mut Random(cut as u64)));
        let (store, held) = run.reopen(&disk, run.acknowledged_at(cut), &context).unwrap();
        run.expected[held].assert_is(&store, 7, &context);
    }
    for at in (0..*run.acknowledged.last().unwrap()).step_by(3) {
        fail(&run, Disk::with_log(), Failure::Once(at));
    }
}
