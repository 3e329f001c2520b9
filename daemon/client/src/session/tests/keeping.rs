//! Locks whose leases are kept late, or not at all: their holders are told in time.

use super::*;
use crate::{client::Client, lock::Lock};

const TTL: Duration = Duration::from_secs(3);
/// So long an answer is late. A loss that is told later than half of that after it can't be excluded any more is told too late.
const LATE: Duration = Duration::from_millis(1_800);

/// When which change came to the daemon.
type Came = Arc<Mutex<Vec<Instant>>>;

/// A lock that nobody else wants, of a cluster that does with its changes what it is told, and then says nothing any more.
async fn lock(whims: Vec<Whim>, then: Whim) -> (Lock, Arc<Cluster>, Came, tempfile::TempDir) {
    let came = Came::default();
    let mut whims = whims.into_iter();
    let notes = Arc::clone(&came);
    let cluster = Cluster::new(move |_| {
        notes.lock().unwrap().push(Instant::now());
        whims.next().unwrap_or(then)
    });
    let directory = tempfile::tempdir().unwrap();
    let path = cluster.serve(&directory, 0);
    let client = Client::connect(&path).await.unwrap();
    let session = Session::open([path], options(60_000)).await.unwrap();
    let lock = Lock::acquire(&client, &session, b"lock", TTL, std::future::pending()).await.unwrap();
    (lock, cluster, came, directory)
}

/// How long after one of the changes came the loss of the lock was told.
async fn lost(lock: &Lock, came: &Came, which: usize) -> Duration {
    tokio::time::timeout(3 * TTL, lock.lost()).await.unwrap();
    came.lock().unwrap()[which].elapsed()
}

#[tokio::test]
async fn a_lock_is_sure_from_when_its_lease_was_asked_for_not_from_the_answer() {
    // The grant, and the key.
    let (lock, _cluster, came, _directory) =
        lock(vec![Whim::Late(LATE.as_millis() as u64), Whim::Answer], Whim::Silent).await;
    let after = lost(&lock, &came, 0).await;
    assert!(after < TTL + LATE / 2, "told after {after:?}");
}

#[tokio::test]
async fn a_lock_is_sure_from_when_its_lease_was_asked_to_be_kept_not_from_the_answer() {
    let whims = vec![Whim::Answer, Whim::Answer, Whim::Late(LATE.as_millis() as u64)];
    let (lock, _cluster, came, _directory) = lock(whims, Whim::Silent).await;
    let after = lost(&lock, &came, 2).await;
    assert!(after >= TTL - LATE / 2 && after < TTL + LATE / 2, "told after {after:?}");
}

#[tokio::test]
async fn a_lock_whose_lease_was_revoked_is_lost_when_that_is_heard() {
    let (lock, cluster, came, _directory) = lock(vec![], Whim::Answer).await;
    let key = std::str::from_utf8(lock.key()).unwrap();
    let lease = u64::from_str_radix(key.rsplit('/').next().unwrap(), 16).unwrap();
    cluster.execute(&Operation::RevokeLease { lease });
    let after = lost(&lock, &came, 1).await;
    assert!(after < TTL * 2 / 3, "told after {after:?}");
}
