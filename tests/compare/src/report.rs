//! Samples of rounds, and the table of their medians and ratios.

use std::{collections::BTreeMap, fmt};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::load::{Kind, MOST_OWN, SHARED, Spread};

/// What is measured. The order is that of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quantity {
    Throughput,
    P50,
    P99,
    Cpu,
    Disk,
    Written,
    Generator,
    Share,
    Errors,
    IdleCpu,
    ClusterMemory,
    NodeMemory,
}

impl Quantity {
    /// Its name and unit, and how many digits after the point it is worth.
    fn describe(self) -> (&'static str, usize) {
        match self {
            Self::Throughput => ("operations/s", 0),
            Self::P50 => ("latency p50, ms", 3),
            Self::P99 => ("latency p99, ms", 3),
            Self::Cpu => ("CPU of all servers, µs an operation", 1),
            Self::Disk => ("written to the disk, KiB a put", 2),
            Self::Written => ("write_bytes of all servers, KiB a put", 2),
            Self::Generator => ("CPU of the load generator, µs an operation", 1),
            Self::Share => ("puts/s, % of fault-free", 0),
            Self::Errors => ("failed operations", 0),
            Self::IdleCpu => ("CPU of the idle cluster, % of a core", 2),
            Self::ClusterMemory => ("RSS of all servers, MiB", 1),
            Self::NodeMemory => ("RSS of a server (mean), MiB", 1),
        }
    }
}

/// Under what it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    /// A new cluster, without keys.
    Idle,
    Steady(Kind, Spread, u32),
    /// Puts through all nodes but a follower, and what that one does.
    Faulty(Fault, u32),
    /// The largest value under any load.
    Largest,
}

/// What the one node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    None,
    Stopped,
    Lying,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: u32| if count == 1 { "" } else { "s" };
        match self {
            Self::Idle => write!(f, "idle"),
            Self::Steady(kind, spread, clients) => {
                write!(f, "{kind}, {clients} client{}, ", plural(*clients))?;
                match spread {
                    Spread::Own if *clients > MOST_OWN => write!(f, "{MOST_OWN} connections"),
                    Spread::Own => write!(f, "a connection each"),
                    Spread::Shared => write!(f, "{SHARED} shared connections"),
                }
            }
            Self::Faulty(fault, clients) => {
                let fault = match fault {
                    Fault::None => "unused",
                    Fault::Stopped => "stopped",
                    Fault::Lying => "lying",
                };
                write!(f, "put, {clients} client{}, a follower {fault}", plural(*clients))
            }
            Self::Largest => write!(f, "largest under load"),
        }
    }
}

/// Every value that was measured, of etcd and of bftd.
#[derive(Debug, Default)]
pub(crate) struct Samples(BTreeMap<(Quantity, Load), [Vec<f64>; 2]>);

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Etcd = 0,
    Bftd = 1,
}

impl Samples {
    pub(crate) fn add(&mut self, side: Side, quantity: Quantity, load: Load, value: f64) {
        let [etcd, bftd] = self.0.entry((quantity, load)).or_default();
        match side {
            Side::Etcd => etcd.push(value),
            Side::Bftd => bftd.push(value),
        }
    }

    /// A row a quantity and load.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let row = |((quantity, load), [etcd, bftd]): (&(Quantity, Load), &[Vec<f64>; 2])| {
            let (measure, digits) = quantity.describe();
            let (etcd, bftd) = (Summary::of(etcd), Summary::of(bftd));
            let ratio = match (&etcd, &bftd) {
                (Some(etcd), Some(bftd)) if etcd.median > 0.0 => Some(bftd.median / etcd.median),
                _ => None,
            };
            Row { measure, load: load.to_string(), etcd, bftd, ratio, digits }
        };
        self.0.iter().map(row).collect()
    }
}

/// What came of one quantity under one load.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    measure: &'static str,
    load: String,
    etcd: Option<Summary>,
    bftd: Option<Summary>,
    /// bftd's median over etcd's.
    ratio: Option<f64>,
    #[serde(skip)]
    digits: usize,
}

/// All rounds of one system.
#[derive(Debug, Serialize)]
struct Summary {
    median: f64,
    min: f64,
    max: f64,
    samples: Vec<f64>,
}

impl Summary {
    fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: median(&sorted)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            samples: samples.to_vec(),
        })
    }

    fn text(&self, digits: usize) -> String {
        let median = format!("{:.digits$}", self.median);
        match self.samples.len() {
            1 => median,
            _ => format!("{median} ({:.digits$}–{:.digits$})", self.min, self.max),
        }
    }
}

/// The middle of sorted numbers, or of an even count of them the mean of the two in the middle.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// The rows as a table, a block a measure.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut blocks = Vec::new();
    for rows in rows.chunk_by(|one, other| one.measure == other.measure) {
        let mut table = Table::new();
        let title = rows.first().map(|row| row.measure).unwrap_or_default();
        table.load_style(presets::NOTHING).force_no_tty().set_header([title, "etcd", "bftd", "bftd/etcd"]);
        for row in rows {
            let text = |summary: &Option<Summary>| {
                summary.as_ref().map_or_else(|| "-".to_owned(), |summary| summary.text(row.digits))
            };
            let ratio = row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            table.add_row([row.load.clone(), text(&row.etcd), text(&row.bftd), ratio]);
        }
        for (at, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if at > 0 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        blocks.push(table.trim_fmt());
    }
    blocks.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_odd_and_of_even_counts() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
    }

    #[test]
    fn a_row_has_both_medians_and_their_ratio() {
        let mut samples = Samples::default();
        let load = Load::Steady(Kind::Put, Spread::Own, 64);
        for (etcd, bftd) in [(100.0, 250.0), (300.0, 200.0), (90.0, 150.0)] {
            samples.add(Side::Etcd, Quantity::Throughput, load, etcd);
            samples.add(Side::Bftd, Quantity::Throughput, load, bftd);
        }
        samples.add(Side::Bftd, Quantity::Share, Load::Faulty(Fault::Lying, 64), 97.0);
        let rows = samples.rows();
        assert_eq!(rows.iter().map(|row| row.ratio).collect::<Vec<_>>(), [Some(2.0), None]);
        let text = table(&rows);
        let row = text.lines().find(|line| line.starts_with("put, 64 clients, a connection each"));
        let words: Vec<_> = row.unwrap_or_default().split_whitespace().skip(6).collect();
        assert_eq!(words, ["100", "(90–300)", "200", "(150–250)", "2.00"]);
        assert!(text.contains("a follower lying") && text.contains("  -"));
    }
}
