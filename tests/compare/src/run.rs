//! `run`: both systems in turns, each alone on the machine, on fresh clusters, under the same loads.
//!
//! A turn: a new cluster at rest, the keys, then gets, puts and a mixture with each number of clients and connections; last
//! puts with a follower stopped, and with one that lies.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::process::Signal;
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    bftd::Bftd,
    cluster::{Cluster, Places},
    etcd::Etcd,
    failure::Failure,
    load::{Kind, Spread},
    measure::{Measured, Times, fill, measure},
    proc::Usage,
    report::{self, Fault, Load, Quantity, Row, Samples, Side},
};

/// How many clients there are while a node is faulty.
const FAULT_CLIENTS: u32 = 64;
/// How long a new cluster is left alone before it is called idle.
const SETTLED: Duration = Duration::from_secs(1);
pub(crate) const MIB: f64 = 1_048_576.0;

/// Measure etcd and bftd in turns, and print medians and ratios.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  bftd-compare run --quick\n  bftd-compare -o json run --rounds 5 --clients 64"
)]
pub(crate) struct Run {
    /// How often each system has its turn
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// How long each load is measured, in seconds, after a warm-up
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: Option<u64>,
    /// How many clients there are, one number after the other
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: Option<Vec<u32>>,
    /// What they do
    #[arg(long, value_delimiter = ',', default_values = ["get", "put", "mixed"])]
    kinds: Vec<KindArgument>,
    /// Connections of their own (up to 100), or 4 that all share
    #[arg(long, value_delimiter = ',', default_values = ["own", "shared"])]
    connections: Vec<SpreadArgument>,
    /// How many keys are stored first
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// One round of 2 s a load, with 1, 64 and 1000 clients, unless told otherwise
    #[arg(long)]
    quick: bool,
    /// Leave out the faults
    #[arg(long)]
    no_faults: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArgument {
    Get,
    Put,
    Mixed,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SpreadArgument {
    Own,
    Shared,
}

/// What came out, and of what.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    systems: Vec<String>,
    cores: usize,
    rounds: u32,
    seconds: u64,
    keys: u64,
    rows: Vec<Row>,
}

impl Report {
    /// For people.
    pub(crate) fn text(&self) -> String {
        format!(
            "{}; {} cores; {} keys of 16 bytes, values of 256; {} rounds of {} s a load: median (min–max)\n\n{}",
            self.systems.join("; "),
            self.cores,
            self.keys,
            self.rounds,
            self.seconds,
            report::table(&self.rows)
        )
    }
}

impl Run {
    pub(crate) async fn run(self, places: &Places, is_quiet: bool) -> Result<Report, Failure> {
        let loads = self.loads();
        let faults = if self.no_faults { 0 } else { 5 };
        let steps = u64::from(self.rounds()) * (2 * loads.len() as u64 + 2 + faults);
        let bar = bar(steps, is_quiet);
        let mut samples = Samples::default();
        let mut systems = Vec::new();
        for round in 1..=self.rounds() {
            let turn = Turn { run: &self, loads: &loads, bar: &bar, round };
            let etcd = turn.take::<Etcd>(places, Side::Etcd, &mut samples).await?;
            let bftd = turn.take::<Bftd>(places, Side::Bftd, &mut samples).await?;
            systems = vec![etcd, bftd];
        }
        bar.finish_and_clear();
        Ok(Report {
            systems,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            rounds: self.rounds(),
            seconds: self.times().measured.as_secs(),
            keys: self.keys,
            rows: samples.rows(),
        })
    }

    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    fn times(&self) -> Times {
        let seconds = self.seconds.unwrap_or(if self.quick { 2 } else { 5 });
        let warm_up = Duration::from_millis(if self.quick { 500 } else { 1000 });
        Times { warm_up, measured: Duration::from_secs(seconds) }
    }

    /// Gets before puts, as they are measured on what a fresh cluster has stored.
    fn loads(&self) -> Vec<(Kind, Spread, u32)> {
        let default: &[u32] = if self.quick { &[1, 64, 1000] } else { &[1, 16, 64, 256, 1000] };
        let clients = self.clients.as_deref().unwrap_or(default);
        let mut loads = Vec::new();
        for kind in &self.kinds {
            for spread in &self.connections {
                for clients in clients {
                    let kind = match kind {
                        KindArgument::Get => Kind::Get,
                        KindArgument::Put => Kind::Put,
                        KindArgument::Mixed => Kind::Mixed,
                    };
                    let spread = match spread {
                        SpreadArgument::Own => Spread::Own,
                        SpreadArgument::Shared => Spread::Shared,
                    };
                    loads.push((kind, spread, *clients));
                }
            }
        }
        loads.sort_unstable();
        loads.dedup();
        loads
    }
}

/// One system's turn.
#[derive(Debug)]
struct Turn<'a> {
    run: &'a Run,
    loads: &'a [(Kind, Spread, u32)],
    bar: &'a ProgressBar,
    round: u32,
}

impl Turn<'_> {
    /// Answers with what ran.
    async fn take<C: Cluster>(
        &self,
        places: &Places,
        side: Side,
        samples: &mut Samples,
    ) -> Result<String, Failure> {
        self.say::<C>("starts");
        let cluster = C::start(places).await?;
        self.idle(&cluster, side, samples).await?;
        fill(&cluster, self.run.keys).await?;
        let mut largest = 0;
        for load in self.loads {
            let nodes = cluster.leader_first().await?;
            let name = Load::Steady(load.0, load.1, load.2);
            let measured = self.measure(&cluster, &nodes, *load, name).await?;
            record(samples, side, name, load.0, &measured);
            largest = largest.max(measured.servers.resident);
        }
        if !self.loads.is_empty() {
            record_memory(samples, side, Load::Largest, largest, cluster.pids().len());
        }
        if !self.run.no_faults {
            self.faults(&cluster, side, samples).await?;
        }
        Ok(cluster.version().to_owned())
    }

    async fn idle<C: Cluster>(&self, cluster: &C, side: Side, samples: &mut Samples) -> Result<(), Failure> {
        self.say::<C>("idle");
        sleep(SETTLED).await;
        let before = Usage::of(cluster.pids())?;
        let measured = self.run.times().measured;
        sleep(measured).await;
        let used = Usage::of(cluster.pids())? - before;
        let share = 100.0 * used.cpu.as_secs_f64() / measured.as_secs_f64();
        samples.add(side, Quantity::IdleCpu, Load::Idle, share);
        record_memory(samples, side, Load::Idle, used.resident, cluster.pids().len());
        self.bar.inc(1);
        Ok(())
    }

    async fn measure<C: Cluster>(
        &self,
        cluster: &C,
        nodes: &[usize],
        load: (Kind, Spread, u32),
        name: Load,
    ) -> Result<Measured, Failure> {
        self.say::<C>(&name.to_string());
        let measured = measure(cluster, nodes, load, self.run.keys, self.run.times()).await?;
        if let Some(why) = &measured.last_error {
            let text =
                format!("{}: {name}: {} operations failed, the last one as {why}", C::NAME, measured.errors);
            self.bar.suspend(|| eprintln!("{text}"));
        }
        self.bar.inc(1);
        Ok(measured)
    }

    /// The last node in line misbehaves, and no client uses it. The lie comes last: it may be remembered.
    async fn faults<C: Cluster>(
        &self,
        cluster: &C,
        side: Side,
        samples: &mut Samples,
    ) -> Result<(), Failure> {
        let mut nodes = cluster.leader_first().await?;
        let Some(victim) = nodes.pop() else { return Ok(()) };
        let mut free_of_faults = 0.0;
        for fault in [Fault::None, Fault::Stopped, Fault::Lying] {
            match fault {
                Fault::None => {}
                Fault::Stopped => cluster.signal(victim, Signal::STOP)?,
                Fault::Lying if C::CAN_LIE => cluster.make_lie(victim).await?,
                Fault::Lying => continue,
            }
            let name = Load::Faulty(fault, FAULT_CLIENTS);
            let load = (Kind::Put, Spread::Own, FAULT_CLIENTS);
            let measured = self.measure(cluster, &nodes, load, name).await;
            if fault == Fault::Stopped {
                cluster.signal(victim, Signal::CONT)?;
                cluster.wait_caught_up(victim).await?;
            }
            let measured = measured?;
            record(samples, side, name, load.0, &measured);
            if fault == Fault::None {
                free_of_faults = measured.throughput();
            } else {
                let share = 100.0 * measured.throughput() / free_of_faults.max(1e-9);
                samples.add(side, Quantity::Share, name, share);
            }
        }
        Ok(())
    }

    fn say<C: Cluster>(&self, what: &str) {
        self.bar.set_message(format!("round {}: {}, {what}", self.round, C::NAME));
    }
}

fn record(samples: &mut Samples, side: Side, load: Load, kind: Kind, measured: &Measured) {
    let micros = |usage: Usage| measured.per_operation(usage.cpu.as_secs_f64() * 1e6);
    samples.add(side, Quantity::Throughput, load, measured.throughput());
    samples.add(side, Quantity::P50, load, measured.p50_us / 1000.0);
    samples.add(side, Quantity::P99, load, measured.p99_us / 1000.0);
    samples.add(side, Quantity::Cpu, load, micros(measured.servers));
    samples.add(side, Quantity::Generator, load, micros(measured.generator));
    if kind == Kind::Put {
        let kib = |bytes: u64| measured.per_operation(bytes as f64 / 1024.0);
        samples.add(side, Quantity::Written, load, kib(measured.servers.written));
        if let Some(bytes) = measured.disk_written {
            samples.add(side, Quantity::Disk, load, kib(bytes));
        }
    }
    if measured.errors > 0 {
        samples.add(side, Quantity::Errors, load, measured.errors as f64);
    }
}

fn record_memory(samples: &mut Samples, side: Side, load: Load, bytes: u64, nodes: usize) {
    samples.add(side, Quantity::ClusterMemory, load, bytes as f64 / MIB);
    samples.add(side, Quantity::NodeMemory, load, bytes as f64 / MIB / nodes.max(1) as f64);
}

/// A bar on a terminal.
pub(crate) fn bar(steps: u64, is_quiet: bool) -> ProgressBar {
    let is_hidden = is_quiet || !io::stderr().is_terminal();
    let target = if is_hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}, {eta} left  {msg}")
        .expect("the template is well-formed");
    ProgressBar::with_draw_target(Some(steps), target).with_style(style)
}
