//! One measurement: connections, clients, a warm-up, and what everybody used meanwhile.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::{
    cluster::Cluster,
    failure::Failure,
    load::{Clients, Kind, Plan, Spread},
    proc::{Disk, Usage},
};

/// How many clients store the keys before anything is measured.
const FILLING: u32 = 256;

/// How long clients work before they are measured, and while they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

/// What came out.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    pub(crate) operations: u64,
    pub(crate) errors: u64,
    pub(crate) last_error: Option<String>,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Of all processes of the cluster.
    pub(crate) servers: Usage,
    /// Of this process, which makes the load.
    pub(crate) generator: Usage,
    /// Bytes that went to the disk, from whatever process; none where the data is on no disk of its own.
    pub(crate) disk_written: Option<u64>,
}

impl Measured {
    pub(crate) fn throughput(&self) -> f64 {
        self.operations as f64 / self.seconds.max(1e-9)
    }

    /// Something that was used, for each operation.
    pub(crate) fn per_operation(&self, used: f64) -> f64 {
        used / self.operations.max(1) as f64
    }
}

/// Opens so many connections, to one of these nodes after the other.
pub(crate) async fn connect<C: Cluster>(
    cluster: &C,
    nodes: &[usize],
    count: usize,
) -> Result<Vec<C::Connection>, Failure> {
    let mut connections = Vec::new();
    for node in nodes.iter().cycle().take(count) {
        connections.push(cluster.connect(*node).await?);
    }
    Ok(connections)
}

/// Stores every key once.
pub(crate) async fn fill<C: Cluster>(cluster: &C, keys: u64) -> Result<(), Failure> {
    let spread = Spread::Own;
    let plan = Plan { kind: Kind::Put, clients: FILLING, spread, keys, is_in_order: true, count: Some(keys) };
    let connections = connect(cluster, &cluster.leader_first().await?, spread.connections(FILLING)).await?;
    let mut clients = Clients::start(plan, connections);
    clients.finished().await;
    match clients.stop().await.last_error {
        None => Ok(()),
        Some(why) => Err(Failure::new(format!("can't store {keys} keys in {}", C::NAME)).cause(why)),
    }
}

/// Lets clients work on the keys that are stored, through some of the nodes.
pub(crate) async fn measure<C: Cluster>(
    cluster: &C,
    nodes: &[usize],
    (kind, spread, clients): (Kind, Spread, u32),
    keys: u64,
    times: Times,
) -> Result<Measured, Failure> {
    let connections = connect(cluster, nodes, spread.connections(clients)).await?;
    let plan = Plan { kind, clients, spread, keys, is_in_order: false, count: None };
    let clients = Clients::start(plan, connections);
    sleep(times.warm_up).await;
    let disk = Disk::of(cluster.directory());
    let written = || disk.as_ref().and_then(Disk::written);
    let (servers, generator, before) = (Usage::of(cluster.pids())?, Usage::of_self()?, written());
    clients.clear();
    let began = Instant::now();
    sleep(times.measured).await;
    let elapsed = began.elapsed();
    let (servers, generator) = (Usage::of(cluster.pids())? - servers, Usage::of_self()? - generator);
    let disk_written = written().zip(before).map(|(now, before)| now.saturating_sub(before));
    let tally = clients.stop().await;
    Ok(Measured {
        seconds: elapsed.as_secs_f64(),
        operations: tally.operations(),
        errors: tally.errors,
        p50_us: tally.latency.value_at_quantile(0.5) as f64,
        p99_us: tally.latency.value_at_quantile(0.99) as f64,
        last_error: tally.last_error,
        servers,
        generator,
        disk_written,
    })
}
