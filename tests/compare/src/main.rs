//! `bftd-compare`: bftd beside etcd, on one machine, under the same loads.
//!
//! - `cluster`: what both systems are to a measurement; `etcd` and `bftd` are the two.
//! - `load`: clients in a closed loop. `measure`: one measurement. `proc`: what the processes used.
//! - `run`: all measurements, in turns. `report`: medians and ratios.
//! - `growth`: how bftd fares while it fills up. `plot`: the picture of it.
//!
//! What it does not do: an open loop (`bftctl bench --rate`), many machines, links with a delay.

mod bftd;
mod cluster;
mod etcd;
mod failure;
mod growth;
mod load;
mod measure;
mod plot;
mod proc;
mod report;
mod run;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::LocalSet,
};

use cluster::Places;
use failure::Failure;

/// Measure bftd beside etcd on this machine.
///
/// etcd comes from Debian's package etcd-server, unpacked into --dir: nothing is installed in the system. bftd and bftctl
/// are those beside this program. Whatever is started is ended again, and its data deleted.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Output,
    /// Where etcd is unpacked, and all data is while it runs [default: compare in the target directory]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Growth(growth::Growth),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: can't start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let work = async {
        tokio::select! {
            ended = cli.run() => ended,
            ended = interrupted() => ended,
        }
    };
    match LocalSet::new().block_on(&runtime, work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    async fn run(self) -> Result<(), Failure> {
        let places = places(self.dir)?;
        bftd::Bftd::end_leftovers(&places);
        let is_json = self.output == Output::Json;
        match self.command {
            Command::Run(run) => {
                let report = run.run(&places, is_json).await?;
                if is_json { print_json(&report) } else { print(&report.text()) }
            }
            Command::Growth(growth) => {
                let report = growth.run(&places, is_json).await?;
                if is_json { print_json(&report) } else { print(&report.text()) }
            }
        }
    }
}

/// Until somebody wants us to stop. What runs is dropped then, and cleans up.
async fn interrupted() -> Result<(), Failure> {
    let cant = |error: std::io::Error| Failure::new("can't listen for signals").cause(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(cant)?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    Err(Failure::new("interrupted"))
}

fn places(root: Option<PathBuf>) -> Result<Places, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new("can't tell where this program is").cause(error))?;
    let programs = program.parent().map(PathBuf::from).unwrap_or_default();
    let root = root.unwrap_or_else(|| programs.parent().unwrap_or(&programs).join("compare"));
    Places::open(&root, &programs)
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    written.map_err(|error| Failure::new("can't write to stdout").cause(error))
}

fn print_json(body: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(body).expect("our documents have string keys");
    print(&text)
}
