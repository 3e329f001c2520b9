//! What is counted, and how it is reported.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bftd_client::Error;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::failure::{Code, Failure};

/// The longest latency that is told apart, in microseconds: an hour. Longer ones count as this.
const LONGEST_US: u64 = 3_600_000_000;

/// Counts while the load is on.
#[derive(Debug)]
pub(super) struct Tally {
    /// Microseconds, to three digits.
    latency: RefCell<Histogram<u64>>,
    errors: RefCell<BTreeMap<&'static str, u64>>,
    worst: Cell<Option<Code>>,
    last_done: Cell<Instant>,
    longest_pause: Cell<Duration>,
    is_open: Cell<bool>,
}

impl Tally {
    pub(super) fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, LONGEST_US, 3).expect("three digits are allowed");
        Self {
            latency: RefCell::new(latency),
            errors: RefCell::default(),
            worst: Cell::new(None),
            last_done: Cell::new(Instant::now()),
            longest_pause: Cell::new(Duration::ZERO),
            is_open: Cell::new(true),
        }
    }

    /// An operation that should have begun at `began` is done.
    pub(super) fn done(&self, began: Instant) {
        if !self.is_open.get() {
            return;
        }
        let now = Instant::now();
        let micros = u64::try_from(now.duration_since(began).as_micros()).unwrap_or(u64::MAX);
        self.latency.borrow_mut().saturating_record(micros.max(1));
        self.note_pause(now);
        self.last_done.set(now);
    }

    /// An operation failed.
    pub(super) fn failed(&self, error: &Error) {
        let kind = match error {
            Error::Unreachable { .. } | Error::NotUnderstood { .. } => "unreachable",
            Error::OutcomeUnknown(_) => "outcome_unknown",
            Error::NoAnswer(_) => "no_answer",
            Error::TooLarge(_) => "too_large",
            Error::Failed(bftd_client::Failure::Busy) => "busy",
            Error::Failed(bftd_client::Failure::NoQuorum { .. }) => "no_quorum",
            Error::Failed(_) => "failed",
        };
        self.count(kind, Failure::code_of(error));
    }

    /// No node answers.
    pub(super) fn unreachable(&self) {
        self.count("unreachable", Code::Unreachable);
    }

    fn count(&self, kind: &'static str, code: Code) {
        if self.is_open.get() {
            *self.errors.borrow_mut().entry(kind).or_default() += 1;
            self.worst.set(Some(code));
        }
    }

    fn note_pause(&self, now: Instant) {
        self.longest_pause.set(self.longest_pause.get().max(now.duration_since(self.last_done.get())));
    }

    /// Counts no more successes and errors: the time is over.
    pub(super) fn close(&self) {
        self.note_pause(Instant::now());
        self.is_open.set(false);
    }

    pub(super) fn operations(&self) -> u64 {
        self.latency.borrow().len()
    }

    pub(super) fn errors(&self) -> u64 {
        self.errors.borrow().values().sum()
    }

    pub(super) fn report(&self, elapsed: Duration, not_begun: u64) -> Report {
        let latency = self.latency.borrow();
        let at = |quantile| latency.value_at_quantile(quantile);
        Report {
            operations: latency.len(),
            elapsed,
            latency: Latency {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: latency.max(),
                mean: latency.mean(),
            },
            errors: self.errors.borrow().clone(),
            worst: self.worst.get(),
            longest_pause: self.longest_pause.get(),
            not_begun,
        }
    }
}

/// What came out.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) operations: u64,
    /// The last error's exit code.
    pub(super) worst: Option<Code>,
    elapsed: Duration,
    latency: Latency,
    errors: BTreeMap<&'static str, u64>,
    longest_pause: Duration,
    not_begun: u64,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Latency {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
    mean: f64,
}

/// The report as JSON.
#[derive(Debug, Serialize)]
pub(super) struct Body<'a> {
    kind: &'static str,
    clients: u32,
    operations: u64,
    errors: u64,
    errors_by_kind: &'a BTreeMap<&'static str, u64>,
    seconds: f64,
    throughput: f64,
    latency_us: Latency,
    longest_pause_ms: f64,
    not_begun: u64,
}

impl Report {
    pub(super) fn throughput(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(super) fn errors(&self) -> u64 {
        self.errors.values().sum()
    }

    pub(super) fn body(&self, kind: &'static str, clients: u32) -> Body<'_> {
        Body {
            kind,
            clients,
            operations: self.operations,
            errors: self.errors(),
            errors_by_kind: &self.errors,
            seconds: rounded(self.elapsed.as_secs_f64()),
            throughput: rounded(self.throughput()),
            latency_us: Latency { mean: rounded(self.latency.mean), ..self.latency },
            longest_pause_ms: rounded(self.longest_pause.as_secs_f64() * 1000.0),
            not_begun: self.not_begun,
        }
    }

    pub(super) fn text(&self, kind: &str, clients: u32) -> String {
        let plural = if clients == 1 { "" } else { "s" };
        let Latency { p50, p90, p99, p999, max, .. } = self.latency;
        let mut text = format!(
            "{kind}, {clients} client{plural}: {} operations in {:.1} s, {:.1}/s, {} errors\n\
             latency: p50 {} · p90 {} · p99 {} · p99.9 {} · max {}\n\
             longest pause without an answer: {}",
            self.operations,
            self.elapsed.as_secs_f64(),
            self.throughput(),
            self.errors(),
            time(p50),
            time(p90),
            time(p99),
            time(p999),
            time(max),
            time(u64::try_from(self.longest_pause.as_micros()).unwrap_or(u64::MAX)),
        );
        if self.not_begun > 0 {
            text += &format!(
                "\n{} operations were due and could not begin: the rate is too high",
                self.not_begun
            );
        }
        text
    }

    pub(super) fn errors_text(&self) -> String {
        let kinds: Vec<_> =
            self.errors.iter().map(|(kind, count)| format!("{count} {}", kind.replace('_', " "))).collect();
        format!("errors: {}", kinds.join(", "))
    }
}

/// Microseconds for people.
fn time(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} µs"),
        1000..1_000_000 => format!("{:.2} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_counted_is_reported() {
        let tally = Tally::new();
        let now = Instant::now();
        for micros in 1..=1000 {
            tally.done(now - Duration::from_micros(micros));
        }
        tally.failed(&Error::OutcomeUnknown(String::new()));
        tally.failed(&Error::Failed(bftd_client::Failure::Busy));
        tally.failed(&Error::Failed(bftd_client::Failure::Busy));
        tally.close();
        tally.done(now);
        let report = tally.report(Duration::from_secs(2), 0);
        let json = serde_json::to_value(report.body("put", 64)).unwrap();
        assert_eq!(
            (&json["operations"], &json["errors"], &json["throughput"]),
            (&1000.into(), &3.into(), &500.0.into())
        );
        assert_eq!(json["errors_by_kind"], serde_json::json!({ "busy": 2, "outcome_unknown": 1 }));
        let p50 = json["latency_us"]["p50"].as_u64().unwrap();
        assert!((500..2000).contains(&p50), "{p50}");
        assert!(json["latency_us"]["max"].as_u64().unwrap() >= 1000);
        assert_eq!(report.errors_text(), "errors: 2 busy, 1 outcome unknown");
        assert!(
            report.text("put", 1).starts_with("put, 1 client: 1000 operations in 2.0 s, 500.0/s, 3 errors\n")
        );
    }

    #[test]
    fn times_have_units() {
        assert_eq!(
            (time(999), time(1500), time(2_345_000)),
            ("999 µs".into(), "1.50 ms".into(), "2.35 s".into())
        );
    }
}
