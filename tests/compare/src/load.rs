//! Clients in a closed loop: each has one operation under way, and begins the next when it is answered.
//!
//! The loop is the same for both systems, down to its connections; all of it runs on one thread, so that the processes
//! that are measured have the others.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
    time::{Duration, Instant},
};

use bftd_client::Bytes;
use hdrhistogram::Histogram;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{task::JoinSet, time::timeout};

use crate::cluster::Connection;

/// The length of every value, in bytes. Keys have 16.
pub(crate) const VALUE: usize = 256;
/// The most connections that clients have of their own; more clients share these.
pub(crate) const MOST_OWN: u32 = 100;
/// The number of connections that all clients share, in the other mode.
pub(crate) const SHARED: usize = 4;
/// The longest latency that is told apart, in microseconds.
const LONGEST_US: u64 = 60_000_000;
/// How long a client waits after an error before it goes on.
const PAUSE: Duration = Duration::from_millis(20);
/// How long operations that are under way at the end are waited for.
const GRACE: Duration = Duration::from_secs(2);

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Linearizable gets.
    Get,
    /// Puts.
    Put,
    /// 90 % gets, 10 % puts.
    Mixed,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Mixed => "mixed",
        })
    }
}

/// Which connections clients use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Spread {
    /// One each, up to [`MOST_OWN`]; the first one's is to the leader, the next one's to the node after it.
    Own,
    /// [`SHARED`] together, which each takes in turns: even a lone client meets all nodes.
    Shared,
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Own => "own",
            Self::Shared => "shared",
        })
    }
}

impl Spread {
    /// How many connections so many clients have.
    pub(crate) fn connections(self, clients: u32) -> usize {
        match self {
            Self::Own => clients.min(MOST_OWN) as usize,
            Self::Shared => SHARED,
        }
    }

    /// The connection for an operation of a client.
    fn choose(self, client: u32, operation: usize, connections: usize) -> usize {
        match self {
            Self::Own => client as usize % connections,
            Self::Shared => (client as usize + operation) % connections,
        }
    }
}

/// What all clients do, until they are stopped or have done enough.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    pub(crate) clients: u32,
    pub(crate) spread: Spread,
    /// How many different keys there are.
    pub(crate) keys: u64,
    /// Every key once, in their order, instead of any key in any order.
    pub(crate) is_in_order: bool,
    /// How many operations they do; none where only time ends them.
    pub(crate) count: Option<u64>,
}

/// Counts of what was answered. Cleared when the clients are warm.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Microseconds, to three digits.
    pub(crate) latency: Histogram<u64>,
    pub(crate) errors: u64,
    pub(crate) last_error: Option<String>,
}

impl Tally {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, LONGEST_US, 3).expect("three digits are allowed");
        Self { latency, errors: 0, last_error: None }
    }

    /// How many operations were answered.
    pub(crate) fn operations(&self) -> u64 {
        self.latency.len()
    }
}

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Clients {
    shared: Rc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    tally: RefCell<Tally>,
    begun: Cell<u64>,
    is_over: Cell<bool>,
}

impl Clients {
    /// Sets clients to work, on this thread.
    pub(crate) fn start<C: Connection>(plan: Plan, connections: Vec<C>) -> Self {
        let shared = Rc::new(Shared {
            plan,
            tally: RefCell::new(Tally::new()),
            begun: Cell::new(0),
            is_over: Cell::new(false),
        });
        let connections: Rc<[C]> = connections.into();
        let mut tasks = JoinSet::new();
        for client in 0..plan.clients {
            tasks.spawn_local(work(client, Rc::clone(&shared), Rc::clone(&connections)));
        }
        Self { shared, tasks }
    }

    /// Forgets what was counted so far.
    pub(crate) fn clear(&self) {
        *self.shared.tally.borrow_mut() = Tally::new();
    }

    /// How many operations were answered since.
    pub(crate) fn operations(&self) -> u64 {
        self.shared.tally.borrow().operations()
    }

    /// Waits until all that was planned is done.
    pub(crate) async fn finished(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    /// Ends the clients. Answers with what was counted; what is under way does not count.
    pub(crate) async fn stop(mut self) -> Tally {
        self.shared.is_over.set(true);
        let tally = self.shared.tally.replace(Tally::new());
        // Those that get no answer are aborted when `self` is dropped.
        let _ = timeout(GRACE, self.finished()).await;
        tally
    }
}

async fn work<C: Connection>(client: u32, shared: Rc<Shared>, connections: Rc<[C]>) {
    let plan = shared.plan;
    let mut random = SmallRng::seed_from_u64(u64::from(client));
    let mut value = vec![0; VALUE];
    random.fill_bytes(&mut value);
    for operation in 0.. {
        let number = shared.begun.get();
        if shared.is_over.get() || plan.count.is_some_and(|count| number >= count) {
            return;
        }
        shared.begun.set(number + 1);
        let Some(connection) = connections.get(plan.spread.choose(client, operation, connections.len()))
        else {
            return;
        };
        let key = key(if plan.is_in_order { number } else { random.next_u64() } % plan.keys);
        let is_put = match plan.kind {
            Kind::Put => true,
            Kind::Get => false,
            Kind::Mixed => random.next_u32().is_multiple_of(10),
        };
        let began = Instant::now();
        let result = if is_put {
            // Every value is another one.
            value.iter_mut().zip(number.to_le_bytes()).for_each(|(byte, new)| *byte = new);
            connection.put(key, Bytes::copy_from_slice(&value)).await
        } else {
            connection.get(key).await.and_then(check)
        };
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let failed = {
            let mut tally = shared.tally.borrow_mut();
            match result {
                Ok(()) => {
                    tally.latency.saturating_record(micros.max(1));
                    false
                }
                Err(why) => {
                    tally.errors += 1;
                    tally.last_error = Some(why);
                    true
                }
            }
        };
        if failed {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whether a get found what was stored.
fn check(found: Option<usize>) -> Result<(), String> {
    match found {
        Some(VALUE) => Ok(()),
        Some(length) => Err(format!("a value has {length} bytes instead of {VALUE}")),
        None => Err("a key that was stored is not there".to_owned()),
    }
}

/// A key of 16 bytes.
fn key(number: u64) -> Bytes {
    format!("bench/{number:010}").into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::task::LocalSet;

    use super::*;

    type Stored = Rc<RefCell<BTreeMap<Bytes, usize>>>;

    /// Knows which of several connections was used.
    #[derive(Clone)]
    struct Memory(Stored, Rc<Cell<u64>>);

    impl Connection for Memory {
        async fn put(&self, key: Bytes, value: Bytes) -> Result<(), String> {
            tokio::task::yield_now().await;
            self.1.set(self.1.get() + 1);
            self.0.borrow_mut().insert(key, value.len());
            Ok(())
        }

        async fn get(&self, key: Bytes) -> Result<Option<usize>, String> {
            tokio::task::yield_now().await;
            Ok(self.0.borrow().get(&key).copied())
        }
    }

    fn plan(kind: Kind) -> Plan {
        Plan { kind, clients: 7, spread: Spread::Shared, keys: 100, is_in_order: true, count: Some(100) }
    }

    #[tokio::test]
    async fn every_key_is_stored_once_over_all_connections_and_then_found() {
        let run = async {
            let stored = Stored::default();
            let connections: Vec<_> = (0..4).map(|_| Memory(Rc::clone(&stored), Rc::default())).collect();
            let mut clients = Clients::start(plan(Kind::Put), connections.clone());
            clients.finished().await;
            let tally = clients.stop().await;
            assert_eq!((tally.operations(), tally.errors, stored.borrow().len()), (100, 0, 100));
            assert!(connections.iter().all(|connection| connection.1.get() >= 20));
            assert!(stored.borrow().iter().all(|(key, length)| key.len() == 16 && *length == VALUE));

            stored.borrow_mut().remove(&key(5));
            let mut clients = Clients::start(plan(Kind::Get), connections);
            clients.finished().await;
            let tally = clients.stop().await;
            assert_eq!((tally.operations(), tally.errors), (99, 1));
            assert_eq!(tally.last_error.as_deref(), Some("a key that was stored is not there"));
        };
        LocalSet::new().run_until(run).await;
    }

    #[test]
    fn clients_have_the_same_number_of_connections_with_both_systems() {
        assert_eq!([1, 64, 1000].map(|clients| Spread::Own.connections(clients)), [1, 64, 100]);
        assert_eq!([1, 64, 1000].map(|clients| Spread::Shared.connections(clients)), [4, 4, 4]);
        assert_eq!((Spread::Own.choose(101, 9, 100), Spread::Shared.choose(3, 2, 4)), (1, 1));
    }
}
