//! `lab`: what an agreement costs, by protocol, size and faults, in a deterministic simulation.
//!
//! - `table`: for people, with a line a member.
//! - `csv`: for spreadsheets.
//! - `plot`: a picture.
//!
//! The experiments themselves are `bftd_sim::lab`.

mod csv;
mod plot;
mod table;

use std::{
    fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    time::Duration,
};

use bftd_client::{MAX_VALUE, genesis::Protocol};
use bftd_sim::lab::{
    BadNetwork, Costs, Experiment, MAX_CLIENTS, MAX_NODES, MAX_REQUESTS, Misconduct, Network, Refused,
    Report, Who, run_all, tolerates_liars,
};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    render,
    session::Session,
};

/// Measure the protocols against each other, in a deterministic simulation.
///
/// The replicas are the daemon's own; machines and network are a model. Times are virtual, in which a member works off one thing
/// after another. A run begins without faults; with the first request they begin, and the counting. Each request comes to a member
/// that does not lead. No daemon is needed, and none is touched.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Lab {
    /// Which protocols
    #[arg(long, value_delimiter = ',', value_name = "P,…", default_value = "bft-raft,pbft,ccro,raft")]
    protocols: Vec<Protocol>,
    /// How many members
    #[arg(
        long, value_delimiter = ',', value_name = "N,…", default_value = "4",
        value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES))
    )]
    nodes: Vec<u8>,
    /// How many requests a run
    #[arg(long, default_value_t = 100, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_REQUESTS)))]
    requests: u32,
    /// How many clients, each with one request at a time; with one, agreements don't overlap
    #[arg(long, default_value_t = 1, value_name = "C", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CLIENTS)))]
    clients: u32,
    /// Whether all members' votes may make a block final in one round, as in the daemon; `off` is the protocol of the books
    #[arg(long, value_enum, default_value_t)]
    one_round: Switch,
    /// The length of values, in bytes
    #[arg(long, default_value_t = 256, value_name = "BYTES", value_parser = value_size)]
    value_size: usize,
    /// What decides who is faulty and how long messages take: the same seed is the same run
    #[arg(long, default_value_t = 1, value_name = "S")]
    seed: u64,

    /// So many members are not there, drawn by the seed; `f`: as many as are tolerated
    #[arg(long, value_name = "K|f", value_parser = count, help_heading = "Faults")]
    offline: Option<Count>,
    /// So many lie: they vote for falsified digests and, when they lead, show different members different blocks
    #[arg(long, value_name = "K|f", value_parser = count, help_heading = "Faults")]
    malicious: Option<Count>,
    /// So many show different members different blocks, when they lead
    #[arg(long, value_name = "K|f", value_parser = count, help_heading = "Faults")]
    equivocate: Option<Count>,
    /// These members are not there; member 1 leads first
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "ID,…",
        conflicts_with = "offline",
        help_heading = "Faults"
    )]
    offline_members: Vec<u8>,
    /// These members lie
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "ID,…",
        conflicts_with = "malicious",
        help_heading = "Faults"
    )]
    malicious_members: Vec<u8>,
    /// These members equivocate
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "ID,…",
        conflicts_with = "equivocate",
        help_heading = "Faults"
    )]
    equivocate_members: Vec<u8>,
    /// The first leader is among those that --offline, --malicious or --equivocate draw (otherwise it never is, unless all others are)
    #[arg(long, help_heading = "Faults")]
    faulty_leader: bool,
    /// More members may be faulty than a protocol tolerates
    #[arg(long, help_heading = "Faults")]
    beyond_f: bool,

    /// One site, or five on four continents
    #[arg(long, value_enum, default_value_t, help_heading = "Network")]
    network: Place,
    /// The round trip between any two members instead, as in 500us
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Network")]
    rtt: Option<Duration>,
    /// Round trips between sites instead: a row a site, of milliseconds; members are placed in turn
    #[arg(long, value_name = "FILE", conflicts_with = "rtt", help_heading = "Network")]
    matrix: Option<PathBuf>,
    /// By how much a message may take longer than half a round trip [default: 10%]
    #[arg(long, value_name = "PERCENT", value_parser = percent, help_heading = "Network")]
    jitter: Option<f64>,
    /// How many packets are lost, and sent again [default: 0%]
    #[arg(long, value_name = "PERCENT", value_parser = percent, help_heading = "Network")]
    loss: Option<f64>,
    /// What each member's line carries, in Mbit/s [default: 10000, wan: 1000]
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000), help_heading = "Network")]
    bandwidth: Option<u64>,

    /// To make a signature [default: 5.5us]
    #[arg(long, value_name = "TIME", value_parser = short_time, help_heading = "Costs")]
    sign: Option<Duration>,
    /// To check a signature [default: 24us]
    #[arg(long, value_name = "TIME", value_parser = short_time, help_heading = "Costs")]
    verify: Option<Duration>,
    /// To send or to receive a message [default: 1us]
    #[arg(long, value_name = "TIME", value_parser = short_time, help_heading = "Costs")]
    per_message: Option<Duration>,
    /// To make a group of records durable [default: 100us]
    #[arg(long, value_name = "TIME", value_parser = short_time, help_heading = "Costs")]
    fsync: Option<Duration>,

    /// Write the runs as a table with a header to a file; `-` is stdout
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    csv: Option<PathBuf>,
    /// Draw consensus time and messages against the number of members, as SVG
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    plot: Option<PathBuf>,
    /// A line for every member of every run; otherwise, where there are many, for the faulty ones alone
    #[arg(long, help_heading = "Results")]
    per_node: bool,
}

const EXAMPLES: &str = "\
Examples:
  bftctl lab                                                    the protocols among four members
  bftctl lab --nodes 4,31,100 --plot lab.svg                    how they grow
  bftctl lab --protocols pbft,ccro,bft-raft --nodes 100 --malicious 33
  bftctl lab --nodes 4,7 --offline f --faulty-leader            what a leader that is gone costs
  bftctl lab --nodes 7 --network wan --loss 1% -o json
  bftctl lab --nodes 4 --malicious-members 1,3 --beyond-f       what happens when too many lie
  bftctl lab --nodes 31 --clients 64 --requests 5000 --csv -    clients that share blocks

Columns: P50, P99 consensus time at the member that was asked; DELAYS message delays on that way if nothing else takes time, the
request's own to the leader among them; MESSAGES, KB, SIGNED, CHECKED a committed request, over all members; TERMS term changes;
CPU S real time on this machine. It says nothing about a daemon's: the signatures here are keyed hashes, which cost less than
ed25519. What ed25519 takes is in the virtual times, by --sign and --verify.
EQUAL: no two correct members have executed different blocks, or got different states, at any index. Who lags, or has stopped as a daemon
does that sees more than f members lie, is named below the table (JSON: lagging, stopped, disagreement_at).
`Node i -> a correct b corrupt`: what left a member, by what the protocol asks of it.

Exit codes: 0 all was committed, and all correct members are equal · 1 all was committed, but a correct member has stopped ·
6 not all was committed · 8 correct members differ";

/// How many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Number(u8),
    Tolerated,
}

/// Whether.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Switch {
    #[default]
    On,
    Off,
}

/// Where members are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Place {
    /// A round trip of 60 µs, lines of 10 Gbit/s
    #[default]
    Lan,
    /// Round trips of 1 to 320 ms, lines of 1 Gbit/s
    Wan,
}

fn count(text: &str) -> Result<Count, String> {
    match text {
        "f" => Ok(Count::Tolerated),
        number => number
            .parse()
            .map(Count::Number)
            .map_err(|_| "a number of members, or `f` for as many as are tolerated".to_owned()),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.strip_suffix('%').unwrap_or(text).trim().parse().ok();
    let share = number.map(|percent| percent / 100.0).filter(|share| share.is_finite());
    share.ok_or_else(|| "a percentage, as in 1%".to_owned())
}

fn value_size(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|bytes| *bytes <= MAX_VALUE)
        .ok_or_else(|| format!("a number of bytes from 0 to {MAX_VALUE}"))
}

/// Humantime knows no fractions; costs are small.
fn short_time(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(10);
    let fraction = || {
        let (number, unit_ns) = [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)]
            .iter()
            .find_map(|(unit, ns)| Some((text.strip_suffix(unit)?.parse::<f64>().ok()?, ns)))?;
        (number >= 0.0).then(|| Duration::from_nanos((number * unit_ns).round() as u64))
    };
    fraction()
        .filter(|time| *time <= MOST)
        .ok_or_else(|| "a time up to 10s, as in 5.5us, 2ms or 0s".to_owned())
}

impl Lab {
    pub(crate) fn run(self, session: &Session) -> Result<Code, Ended> {
        self.check_flags()?;
        let experiments = self.experiments()?;
        // What can't be kept need not be measured.
        [&self.csv, &self.plot].into_iter().flatten().try_for_each(|path| check_place(path))?;
        let bar = bar(session, experiments.iter().map(|run| u64::from(run.requests)).sum());
        let reports = run_all(&experiments, &|| bar.inc(1));
        bar.finish_and_clear();
        let reports = reports.map_err(|why| self.refused(why))?;
        self.write(session, &reports)?;
        Ok(verdict(session, &reports))
    }

    /// Flags that say nothing with the others.
    fn check_flags(&self) -> Result<(), Failure> {
        let drawn = [self.offline, self.malicious, self.equivocate];
        let is_drawn = drawn.into_iter().flatten().any(|count| count != Count::Number(0));
        if self.faulty_leader && !is_drawn {
            return Err(Failure::usage("--faulty-leader needs faulty members to be drawn")
                .cause("it says which ones the seed draws, and none are drawn")
                .next("--offline 1 --faulty-leader; or name the first leader: --offline-members 1"));
        }
        if self.plot.as_deref().is_some_and(|path| path.as_os_str() == "-") {
            return Err(Failure::usage("can't draw the plot to stdout")
                .cause("stdout is for the runs")
                .next("name a file: --plot lab.svg"));
        }
        Ok(())
    }

    fn experiments(&self) -> Result<Vec<Experiment>, Failure> {
        let network = self.network()?;
        let faulty = self.faulty();
        let mut experiments = Vec::new();
        for protocol in distinct(&self.protocols) {
            for nodes in distinct(&self.nodes) {
                let experiment = Experiment {
                    faulty: faulty.clone(),
                    faulty_leader: self.faulty_leader,
                    beyond_f: self.beyond_f,
                    requests: self.requests,
                    clients: self.clients,
                    value_size: self.value_size,
                    one_round: self.one_round == Switch::On,
                    seed: self.seed,
                    network: network.clone(),
                    costs: self.costs(),
                    ..Experiment::new(protocol, nodes)
                };
                experiment.cast().map_err(|why| self.refused(why))?;
                experiments.push(experiment);
            }
        }
        Ok(experiments)
    }

    fn refused(&self, refused: Refused) -> Failure {
        let failure = Failure::usage(refused.to_string());
        match refused {
            Refused::NoLiars(_) => {
                let asked = distinct(&self.protocols).into_iter();
                let others = asked.filter(|protocol| tolerates_liars(*protocol));
                let mut others: Vec<_> = others.map(|protocol| protocol.row().name).collect();
                if others.is_empty() {
                    others.push(Protocol::default().row().name);
                }
                failure.next(format!(
                    "--protocols {} alone; or --beyond-f, to see what happens",
                    others.join(",")
                ))
            }
            refused if refused.is_beyond_f() => failure.next(
                "fewer faulty members; `f` is as many as are tolerated at each size; or --beyond-f, to see what happens",
            ),
            Refused::NoSuchMember { .. } => {
                failure.next("members are numbered from 1; leave out the sizes that are too small")
            }
            _ => failure,
        }
    }

    fn faulty(&self) -> Vec<(Misconduct, Who)> {
        let kinds = [
            (Misconduct::Offline, self.offline, &self.offline_members),
            (Misconduct::Malicious, self.malicious, &self.malicious_members),
            (Misconduct::Equivocate, self.equivocate, &self.equivocate_members),
        ];
        let who = |count: Option<Count>, members: &Vec<u8>| match count {
            Some(Count::Number(count)) => Some(Who::Some(count)),
            Some(Count::Tolerated) => Some(Who::Tolerated),
            None => (!members.is_empty()).then(|| Who::Members(members.clone())),
        };
        kinds.into_iter().filter_map(|(how, count, members)| Some((how, who(count, members)?))).collect()
    }

    fn network(&self) -> Result<Network, Failure> {
        let bad = |error: BadNetwork| Failure::usage(error.to_string());
        let mut network = match self.network {
            Place::Lan => Network::lan(),
            Place::Wan => Network::wan(),
        };
        if let Some(rtt) = self.rtt {
            let rtt_ns = u64::try_from(rtt.as_nanos()).ok().filter(|ns| *ns <= 60_000_000_000);
            let rtt_ns = rtt_ns.ok_or_else(|| Failure::usage("a round trip takes at most 60s"))?;
            network = network.with_rtt_ns(rtt_ns);
        }
        if let Some(path) = &self.matrix {
            let cant = || format!("can't use the matrix {}", path.display());
            let text = fs::read_to_string(path).map_err(|error| {
                Failure::usage(cant()).cause(error).next("name a file with a row a site, as in: 1 70")
            })?;
            network = network.with_matrix(&text).map_err(|error| {
                Failure::usage(cant())
                    .cause(error)
                    .next("two sites 70 ms apart are the lines `1 70` and `70 1`")
            })?;
        }
        if let Some(jitter) = self.jitter {
            network = network.with_jitter(jitter).map_err(bad)?;
        }
        if let Some(loss) = self.loss {
            network = network.with_loss(loss).map_err(bad)?;
        }
        if let Some(mbit) = self.bandwidth {
            network = network.with_bandwidth(mbit.saturating_mul(1_000_000)).map_err(bad)?;
        }
        Ok(network)
    }

    fn costs(&self) -> Costs {
        let default = Costs::default();
        let ns = |time: Option<Duration>, default| {
            time.map_or(default, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
        };
        Costs {
            sign_ns: ns(self.sign, default.sign_ns),
            verify_ns: ns(self.verify, default.verify_ns),
            message_ns: ns(self.per_message, default.message_ns),
            fsync_ns: ns(self.fsync, default.fsync_ns),
        }
    }

    fn write(&self, session: &Session, reports: &[Report]) -> Result<(), Ended> {
        let mut is_on_stdout = false;
        if let Some(path) = &self.csv {
            let text = csv::text(reports);
            is_on_stdout = path.as_os_str() == "-";
            if is_on_stdout {
                render::bytes(text.as_bytes())?;
            } else {
                fs::write(path, text).map_err(|error| cant_write(&path.display().to_string(), error))?;
                session.say(&format!("the runs are in {}", path.display()));
            }
        }
        if let Some(path) = &self.plot {
            let svg = plot::svg(reports).map_err(|why| Failure::other("can't draw the plot").cause(why))?;
            fs::write(path, svg).map_err(|error| cant_write(&path.display().to_string(), error))?;
            session.say(&format!("the plot is in {}", path.display()));
        }
        if is_on_stdout {
            return Ok(());
        }
        match session.options.output() {
            Output::Json => render::json(&Body { runs: reports }),
            Output::Value => reports.iter().try_for_each(|report| render::line(&table::p50(report))),
            Output::Table => render::line(&table::text(reports, self.per_node)),
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    runs: &'a [Report],
}

fn check_place(path: &Path) -> Result<(), Failure> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if directory.is_dir() && !path.is_dir() {
        return Ok(());
    }
    Err(Failure::usage(format!("can't write {}", path.display()))
        .cause(format!("{} is no directory, or this is one", directory.display()))
        .next("name a file in a directory that exists"))
}

fn cant_write(what: &str, error: io::Error) -> Failure {
    Failure::other(format!("can't write {what}")).cause(error)
}

fn distinct<T: Copy + PartialEq>(items: &[T]) -> Vec<T> {
    let mut distinct = Vec::new();
    for item in items {
        if !distinct.contains(item) {
            distinct.push(*item);
        }
    }
    distinct
}

/// Says what went wrong, if something did.
fn verdict(session: &Session, reports: &[Report]) -> Code {
    let name = |report: &Report| format!("{} with {} members", report.protocol, report.nodes);
    let mut code = Code::Ok;
    for report in reports {
        if report.committed < report.requests {
            session.say(&format!(
                "{}: {} of {} requests were committed, then nothing was for long",
                name(report),
                report.committed,
                report.requests
            ));
            code = if code == Code::VerificationFailed { code } else { Code::NoQuorum };
        }
        if let Some(index) = report.disagreement_at {
            session.say(&format!(
                "{}: correct members differ from block {index} on; more than it tolerates were faulty, or this is a bug",
                name(report)
            ));
            code = Code::VerificationFailed;
        }
        if !report.stopped.is_empty() {
            let ids: Vec<_> = report.stopped.iter().map(|stopped| stopped.id.to_string()).collect();
            session.say(&format!("{}: correct members stopped: {}", name(report), ids.join(", ")));
            code = if code == Code::Ok { Code::Other } else { code };
        }
    }
    code
}

fn bar(session: &Session, requests: u64) -> ProgressBar {
    let hidden = session.options.is_json() || session.options.quiet || !io::stderr().is_terminal();
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {pos} of {len} requests, {eta} left")
        .expect("the template is well-formed");
    ProgressBar::with_draw_target(Some(requests), target).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_shares_are_read() {
        assert_eq!(short_time("5.5us"), Ok(Duration::from_nanos(5_500)));
        assert_eq!(short_time("2ms"), Ok(Duration::from_millis(2)));
        assert_eq!(short_time("0s"), Ok(Duration::ZERO));
        assert!(short_time("-1us").is_err());
        assert!(short_time("11s").is_err());
        assert!(short_time("nans").is_err());
        assert!(short_time("5").is_err());
        assert_eq!(percent("1%"), Ok(0.01));
        assert_eq!(percent("50"), Ok(0.5));
        assert!(percent("x%").is_err());
        assert_eq!(count("f"), Ok(Count::Tolerated));
        assert_eq!(count("7"), Ok(Count::Number(7)));
        assert!(count("-1").is_err());
    }
}
