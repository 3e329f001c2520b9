//! `bench`: load, and how the cluster bears it.
//!
//! - `load`: clients, each with one operation at a time, spread over the nodes.
//! - `pace`: when operations begin in an open loop (`--rate`).
//! - `tally`: what is counted and reported.
//!
//! Everything runs on one thread: the daemons need the others.

mod load;
mod pace;
mod tally;

use std::{
    io::{self, IsTerminal},
    rc::Rc,
    time::{Duration, Instant},
};

use bftd_client::MAX_VALUE;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::{JoinSet, LocalSet};

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    render,
    session::Session,
};
use load::{Client, Connections, Plan};
use pace::Pace;
use tally::{Report, Tally};

/// How long operations that are under way at the end may take to be answered and counted.
const GRACE: Duration = Duration::from_secs(2);

/// Put load on a cluster, and measure it.
///
/// The clients are spread over all nodes of the selected context, or use the one daemon that --socket or --node names.
/// Keys are `bench/…`; bftctl del bench/ --prefix removes them.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl bench put --clients 64 --seconds 10\n  bftctl bench get --clients 256 -o json\n  \
                        bftctl bench mixed --rate 2000\n\nWithout --rate each client waits for its answer before it goes on. \
                        With it, operations\nbegin on schedule, and their latency counts from when they should have begun."
)]
pub(crate) struct Bench {
    /// What the clients do; `mixed` is half puts, half gets
    #[arg(value_enum)]
    kind: Kind,
    /// How many clients
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// For how long, in seconds
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    /// The length of values, in bytes
    #[arg(long, default_value_t = 256, value_name = "BYTES")]
    value_size: usize,
    /// How many different keys
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Begin so many operations a second, whether earlier ones are answered or not
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// How many connections the clients share [default: one a node]
    #[arg(long, value_name = "C", value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: Option<u16>,
    /// Store values in sessions, one a connection: what gets no answer is sent again, and made once
    #[arg(long)]
    exactly_once: bool,
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Store values
    Put,
    /// Look keys up, linearizable
    Get,
    /// Half of each
    Mixed,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.1..=86_400.0).contains(seconds))
        .ok_or_else(|| "a number of seconds from 0.1 to 86400".to_owned())
}

impl Bench {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        if self.value_size > MAX_VALUE {
            return Err(Failure::usage(format!("a value has at most {MAX_VALUE} bytes")).into());
        }
        let sockets = session.all_sockets()?;
        let connections = self.connections.map_or(sockets.len(), usize::from);
        let timeout = session.options.timeout();
        let mut connections = Connections::open(session, &sockets, connections).await?;
        if self.exactly_once {
            connections.open_sessions(timeout).await?;
        }
        let connections = Rc::new(connections);
        let plan = Rc::new(Plan { kind: self.kind, keys: self.keys, value_size: self.value_size, timeout });
        let report = LocalSet::new().run_until(self.measure(session, plan, connections)).await?;
        self.print(session, &report)?;
        let worst = report.worst;
        Ok(if report.operations == 0 { worst.unwrap_or(Code::Other) } else { Code::Ok })
    }

    async fn measure(
        &self,
        session: &Session,
        plan: Rc<Plan>,
        connections: Rc<Connections>,
    ) -> Result<Report, Ended> {
        let bar = bar(session);
        if self.kind != Kind::Put {
            bar.set_message("storing the keys");
            load::fill(&plan, &connections).await?;
        }
        let tally = Rc::new(Tally::new());
        let began = Instant::now();
        let duration = Duration::from_secs_f64(self.seconds);
        let pace = self.rate.map(|rate| Rc::new(Pace::start(rate, began, duration)));
        let mut clients = JoinSet::new();
        for number in 0..self.clients {
            let client = Client {
                number,
                plan: Rc::clone(&plan),
                connections: Rc::clone(&connections),
                tally: Rc::clone(&tally),
                pace: pace.clone(),
                until: began + duration,
            };
            clients.spawn_local(client.run());
        }
        let ended = watch(&bar, &tally, began, duration);
        let finished = async { while clients.join_next().await.is_some() {} };
        tokio::select! {
            () = ended => {}
            _ = tokio::signal::ctrl_c() => session.say("interrupted"),
        }
        let elapsed = began.elapsed();
        tally.close();
        if let Some(pace) = &pace {
            pace.stop();
        }
        // Clients look at the time between operations; those that wait for an answer are not waited for long.
        let under_way = tokio::time::timeout(GRACE, finished).await.is_err();
        bar.finish_and_clear();
        if under_way {
            session.debug(|| "some operations were not answered in time to be counted".to_owned());
        }
        Ok(tally.report(elapsed.min(duration), pace.map_or(0, |pace| pace.not_begun(elapsed))))
    }

    fn print(&self, session: &Session, report: &Report) -> Result<(), Ended> {
        match session.options.output() {
            Output::Json => render::json(&report.body(self.kind.name(), self.clients)),
            Output::Value => render::line(&format!("{:.1}", report.throughput())),
            Output::Table => {
                render::line(&report.text(self.kind.name(), self.clients))?;
                if report.errors() > 0 {
                    session.say(&report.errors_text());
                }
                Ok(())
            }
        }
    }
}

fn bar(session: &Session) -> ProgressBar {
    let hidden = session.options.is_json() || session.options.quiet || !io::stderr().is_terminal();
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style =
        ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}").expect("the template is well-formed");
    ProgressBar::with_draw_target(Some(1000), target).with_style(style)
}

/// Keeps the bar going until the time is over.
async fn watch(bar: &ProgressBar, tally: &Tally, began: Instant, duration: Duration) {
    let mut every = tokio::time::interval(Duration::from_millis(200));
    let mut last = (Instant::now(), 0);
    let ended = tokio::time::sleep_until((began + duration).into());
    tokio::pin!(ended);
    loop {
        tokio::select! {
            () = &mut ended => return,
            _ = every.tick() => {}
        }
        let (now, operations) = (Instant::now(), tally.operations());
        let rate = (operations - last.1) as f64 / now.duration_since(last.0).as_secs_f64().max(0.001);
        last = (now, operations);
        let share = began.elapsed().as_secs_f64() / duration.as_secs_f64();
        bar.set_position((1000.0 * share) as u64);
        bar.set_message(format!("{rate:.0}/s, {} errors", tally.errors()));
    }
}
