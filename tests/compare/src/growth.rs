//! `growth`: how bftd fares while it fills up: throughput, memory and disk over time.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    bftd::Bftd,
    cluster::{Cluster, Places},
    failure::Failure,
    load::{Clients, Kind, Plan, Spread},
    measure::connect,
    plot,
    proc::{Usage, disk_usage},
    run::{MIB, bar},
};

/// The most rows of the table; JSON and the plot have every sample.
const ROWS: usize = 20;

/// Store many values in bftd, and see what becomes of its throughput, memory and disk.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  bftd-compare growth --puts 10000000 --keys 1000000 --plot growth.svg")]
pub(crate) struct Growth {
    /// How many puts
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    puts: u64,
    /// Over how many different keys
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// How many clients
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// How often to look, in seconds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    /// Draw it, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// How it was at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    /// Puts that were acknowledged until then.
    pub(crate) puts: u64,
    /// Puts a second since the sample before.
    pub(crate) throughput: f64,
    /// Resident memory of a daemon, on average.
    pub(crate) rss_bytes: u64,
    /// What the data of a daemon takes on the disk, on average.
    pub(crate) disk_bytes: u64,
}

/// What came out, and of what.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    system: String,
    keys: u64,
    clients: u32,
    errors: u64,
    samples: Vec<Sample>,
}

impl Growth {
    pub(crate) async fn run(self, places: &Places, is_quiet: bool) -> Result<Report, Failure> {
        let bar = bar(self.puts, is_quiet);
        bar.set_message("starts");
        let cluster = Bftd::start(places).await?;
        let spread = Spread::Own;
        let nodes = cluster.leader_first().await?;
        let connections = connect(&cluster, &nodes, spread.connections(self.clients)).await?;
        let plan = Plan {
            kind: Kind::Put,
            clients: self.clients,
            spread,
            keys: self.keys,
            is_in_order: false,
            count: Some(self.puts),
        };
        let mut clients = Clients::start(plan, connections);
        let samples = self.watch(&cluster, &mut clients, &bar).await?;
        let tally = clients.stop().await;
        bar.finish_and_clear();
        if let Some(why) = &tally.last_error {
            eprintln!("{} puts failed, the last one as {why}", tally.errors);
        }
        if let Some(path) = &self.plot {
            plot::draw(path, &samples)?;
        }
        Ok(Report {
            system: cluster.version().to_owned(),
            keys: self.keys,
            clients: self.clients,
            errors: tally.errors,
            samples,
        })
    }

    async fn watch(
        &self,
        cluster: &Bftd,
        clients: &mut Clients,
        bar: &ProgressBar,
    ) -> Result<Vec<Sample>, Failure> {
        let began = Instant::now();
        let mut every = interval(Duration::from_secs(self.every));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut samples: Vec<Sample> = Vec::new();
        let mut is_over = false;
        while !is_over {
            tokio::select! {
                () = clients.finished() => is_over = true,
                _ = every.tick() => {}
            }
            let nodes = cluster.pids().len().max(1) as u64;
            let sample = Sample {
                seconds: began.elapsed().as_secs_f64(),
                puts: clients.operations(),
                throughput: 0.0,
                rss_bytes: Usage::of(cluster.pids())?.resident / nodes,
                disk_bytes: disk_usage(cluster.directory()) / nodes,
            };
            let throughput = samples.last().map_or(0.0, |last| rate(last, &sample));
            samples.push(Sample { throughput, ..sample });
            bar.set_position(sample.puts);
            bar.set_message(format!("{throughput:.0}/s, {:.0} MiB a daemon", sample.rss_bytes as f64 / MIB));
        }
        Ok(samples)
    }
}

/// Puts a second between two samples.
fn rate(earlier: &Sample, later: &Sample) -> f64 {
    (later.puts - earlier.puts) as f64 / (later.seconds - earlier.seconds).max(1e-3)
}

impl Report {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new();
        let header = ["seconds", "puts", "puts/s", "RSS of a daemon, MiB", "disk of a daemon, MiB"];
        table.load_style(presets::NOTHING).force_no_tty().set_header(header);
        let chosen = thinned(&self.samples, ROWS);
        for pair in chosen.windows(2) {
            let [earlier, later] = pair else { continue };
            table.add_row([
                format!("{:.0}", later.seconds),
                later.puts.to_string(),
                format!("{:.0}", rate(earlier, later)),
                format!("{:.1}", later.rss_bytes as f64 / MIB),
                format!("{:.1}", later.disk_bytes as f64 / MIB),
            ]);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2)).set_cell_alignment(CellAlignment::Right);
        }
        let Self { system, keys, clients, errors, .. } = self;
        format!(
            "{system}; puts of {clients} clients over {keys} keys; {errors} failed\n\n{}",
            table.trim_fmt()
        )
    }
}

/// The first sample, the last one, and some between them, evenly: `rows` intervals at most.
fn thinned(samples: &[Sample], rows: usize) -> Vec<Sample> {
    let last = samples.len().saturating_sub(1);
    let rows = rows.min(last);
    (0..=rows).filter_map(|row| samples.get(row * last / rows.max(1)).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: u32) -> Sample {
        Sample { seconds: f64::from(second), puts: u64::from(second) * 500, ..Sample::default() }
    }

    #[test]
    fn the_table_has_both_ends_and_few_rows() {
        let samples: Vec<_> = (0..1000).map(sample).collect();
        let chosen = thinned(&samples, ROWS);
        assert_eq!(chosen.len(), ROWS + 1);
        assert_eq!((chosen.first().map(|s| s.puts), chosen.last().map(|s| s.puts)), (Some(0), Some(499_500)));
        assert!(chosen.windows(2).all(|pair| rate(&pair[0], &pair[1]).round() == 500.0));
        assert_eq!((thinned(&samples[..2], ROWS).len(), thinned(&[], ROWS).len()), (2, 0));
    }

    #[test]
    fn the_picture_has_a_chart_for_each_quantity() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("growth.svg");
        plot::draw(&path, &(0..50).map(sample).collect::<Vec<_>>()).expect("it can be drawn");
        let text = std::fs::read_to_string(&path).expect("a file");
        assert!(["puts/s", "RSS", "disk"].iter().all(|name| text.contains(name)), "{text}");
        assert!(plot::draw(&path, &[]).is_err());
    }
}
