//! Runs seeds of the simulator, and replays the one that fails.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use bftd_core::protocol::Protocol;
use bftd_faults::Fault;
use bftd_sim::{
    Failure, Options, Report,
    histories::{self, Blind, Summary},
    run,
    story::play,
};
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Simulates bftd clusters under faults, a seed at a time.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  bftd-sim --nodes 4 --seeds 10000\n  bftd-sim --nodes 4 --seed 42 --trace\n  bftd-sim --nodes 4 --adversary equivocate\n  bftd-sim --protocol raft --nodes 3\n  bftd-sim --histories --seeds 10000"
)]
struct Arguments {
    /// What they run: bft-raft, pbft, ccro or raft.
    #[arg(long, default_value_t)]
    protocol: Protocol,
    /// How many members.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..))]
    nodes: u8,
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    start_seed: u64,
    /// Run only this seed.
    #[arg(long, conflicts_with_all = ["seeds", "start_seed"])]
    seed: Option<u64>,
    /// Print every event of that seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// How many seeds run at once; by default one a core.
    #[arg(long)]
    threads: Option<usize>,
    /// Go on after a failure, and list the first failures.
    #[arg(long)]
    keep_going: bool,
    /// What a liar does in every run.
    #[arg(long, value_name = "NAME")]
    adversary: Option<Fault>,
    /// List what liars do.
    #[arg(long)]
    adversaries: bool,
    /// Play a story, and print how it goes.
    #[arg(long, value_name = "PATH")]
    story: Option<PathBuf>,
    /// Have clients make a history of at least 200 operations in each run, and check that it is linearizable.
    #[arg(long)]
    histories: bool,
    /// Without the oracle: the checker alone judges what clients saw.
    #[arg(long, requires = "histories")]
    checker_alone: bool,
    /// Sign with real keys: slower, and no different.
    #[arg(long)]
    ed25519: bool,
}

/// How many failures are told.
const TOLD: usize = 20;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.adversaries {
        let names: Vec<_> = Fault::all().map(|fault| fault.to_string()).collect();
        // Whoever reads may have seen enough.
        let _ = writeln!(std::io::stdout(), "{}", names.join("\n"));
        return ExitCode::SUCCESS;
    }
    if let Some(path) = &arguments.story {
        return tell_story(path);
    }
    let Arguments { protocol, nodes, ed25519, adversary, .. } = arguments;
    let options = Options { protocol, nodes, ed25519, adversary };
    match arguments.seed {
        Some(seed) => replay(&options, seed, &arguments),
        None => search(&options, &arguments),
    }
}

fn tell_story(path: &Path) -> ExitCode {
    let read = std::fs::read_to_string(path).map_err(|error| error.to_string());
    match read.and_then(|story| play(&story)) {
        Ok(told) => {
            print!("{told}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

/// One seed, with a history or without: then the summary is empty.
fn run_one(
    options: &Options,
    arguments: &Arguments,
    seed: u64,
    trace: Option<&mut dyn Write>,
) -> Result<(Report, Summary), Failure> {
    match (arguments.histories, arguments.checker_alone) {
        (true, true) => histories::run_with(options, seed, &mut Blind, trace),
        (true, false) => histories::run(options, seed, trace),
        (false, _) => Ok((run(options, seed, trace)?, Summary::default())),
    }
}

fn replay(options: &Options, seed: u64, arguments: &Arguments) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let trace = arguments.trace.then_some(&mut out as &mut dyn Write);
    match run_one(options, arguments, seed, trace) {
        Ok((report, summary)) => {
            println!("seed {seed} holds: {report:?}");
            if arguments.histories {
                println!("its history is linearizable: {summary:?}");
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            tell(options, seed, &failure, arguments);
            ExitCode::FAILURE
        }
    }
}

fn tell(options: &Options, seed: u64, failure: &Failure, arguments: &Arguments) {
    let at_ms = failure.at_us / 1000;
    println!("seed {seed}: {} at {at_ms} ms: {}", failure.violation.check, failure.violation.detail);
    let real = if options.ed25519 { " --ed25519" } else { "" };
    let made = match (arguments.histories, arguments.checker_alone) {
        (true, true) => " --histories --checker-alone",
        (true, false) => " --histories",
        (false, _) => "",
    };
    let liar = options.adversary.map_or_else(String::new, |fault| format!(" --adversary {fault}"));
    println!(
        "  replay: cargo run --release -p bftd-sim -- --protocol {} --nodes {}{real}{liar}{made} --seed {seed} --trace",
        options.protocol, options.nodes
    );
}

fn search(options: &Options, arguments: &Arguments) -> ExitCode {
    let threads = arguments
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let bar = ProgressBar::new(arguments.seeds);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    // A panic of the code under test is a finding like any other.
    std::panic::set_hook(Box::new(|_| {}));

    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let (slowest, slowest_seed) = (AtomicU64::new(0), AtomicU64::new(0));
    let sum = Mutex::new((Report::default(), Summary::default()));
    let failures = Mutex::new(Vec::new());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= arguments.seeds {
                        return;
                    }
                    let seed = arguments.start_seed.wrapping_add(number);
                    match run_one(options, arguments, seed, None) {
                        Ok((report, summary)) => {
                            let slowest = slowest.fetch_max(report.settled_us, Ordering::Relaxed);
                            if report.settled_us > slowest {
                                slowest_seed.store(seed, Ordering::Relaxed);
                            }
                            let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                            sum.0.add(&report);
                            sum.1.add(&summary);
                        }
                        Err(failure) => {
                            failures.lock().unwrap_or_else(PoisonError::into_inner).push((seed, failure));
                            stop.store(!arguments.keep_going, Ordering::Relaxed);
                        }
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let seconds = begun.elapsed().as_secs_f64();
    let ran = next.into_inner().min(arguments.seeds);
    let (sum, histories) = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.sort_by_key(|(seed, _)| *seed);
    println!(
        "{ran} seeds of {} nodes of {} in {seconds:.1} s: {:.0} seeds/s, {:.1} simulated hours",
        options.nodes,
        options.protocol,
        ran as f64 / seconds,
        sum.virtual_us as f64 / 3.6e9
    );
    println!(
        "{} messages, {} refused, {} blocks executed, {} terms, {} crashes, {} of {} writes acknowledged, {} reads; settled after at most {:.1} s (seed {})",
        sum.messages,
        sum.refused,
        sum.blocks,
        sum.terms,
        sum.crashes,
        sum.acknowledged,
        sum.writes,
        sum.reads,
        sum.settled_us as f64 / 1e6,
        slowest_seed.into_inner()
    );
    if arguments.histories {
        println!(
            "{} operations, {} changes of unknown outcome; at most {} configurations a history",
            histories.operations, histories.unknown, histories.configurations
        );
    }
    for (seed, failure) in failures.iter().take(TOLD) {
        tell(options, *seed, failure, arguments);
    }
    println!("{} seeds failed", failures.len());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
