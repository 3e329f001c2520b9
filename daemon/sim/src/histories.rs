//! Runs whose clients make a history, which is then checked: at least 200 operations (put, get, delete, compare and set, moves between two
//! keys) of several concurrent clients, under the faults that the seed has in an ordinary run, liars among them.
//!
//! The oracle watches as it does in any run. The checker knows nothing of the cluster: it sees what clients saw.

use std::io::Write;

use crate::{
    Failure, Options, Report,
    event::{Event, Observer, Violation},
    linearizability::{History, Verdict, check},
    live,
    oracle::Oracle,
    world::{World, correct_members},
};

/// How a member answers questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// As the protocol has it.
    #[default]
    Linearizable,
    /// At once, from what it has executed: that is not linearizable, and the checker sees it.
    Local,
}

/// What a run's history was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many operations it has.
    pub operations: u64,
    /// Of these, changes that nobody knows the outcome of.
    pub unknown: u64,
    /// How many configurations the search had to remember.
    pub configurations: u64,
}

impl Summary {
    /// Adds another run's numbers; of the configurations the most.
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.unknown += other.unknown;
        self.configurations = self.configurations.max(other.configurations);
    }
}

/// Runs a seed under the oracle, and checks its history. `trace` gets a line an event.
///
/// # Errors
/// What the oracle, a panic of the code under test, or the checker found: `linearizable` where no order explains the history, and
/// `undecided` where the search was given up.
pub fn run(
    options: &Options,
    seed: u64,
    trace: Option<&mut dyn Write>,
) -> Result<(Report, Summary), Failure> {
    let (members, check) = World::about(options);
    let mut oracle = Oracle::new(&members, check, correct_members(options, seed));
    run_with(options, seed, &mut oracle, trace)
}

/// Runs a seed under any observer, and checks its history.
///
/// # Errors
/// See [`run`].
pub fn run_with(
    options: &Options,
    seed: u64,
    observer: &mut dyn Observer,
    trace: Option<&mut dyn Write>,
) -> Result<(Report, Summary), Failure> {
    let (report, history) = make(options, seed, Reads::Linearizable, observer, trace)?;
    let summary = judge(&history).map_err(|violation| Failure { violation, at_us: report.virtual_us })?;
    Ok((report, summary))
}

/// Runs a seed under any observer, and hands over its history.
///
/// # Errors
/// What the observer, or a panic of the code under test, found.
pub fn make(
    options: &Options,
    seed: u64,
    reads: Reads,
    observer: &mut dyn Observer,
    trace: Option<&mut dyn Write>,
) -> Result<(Report, History), Failure> {
    live(|observer| World::with_clients(options, seed, reads, observer).run(), observer, trace)
}

/// Watches nothing: then it is for the checker alone to find what clients should not have seen.
#[derive(Clone, Copy, Debug)]
pub struct Blind;

impl Observer for Blind {
    fn observe(&mut self, _at_us: u64, _event: &Event<'_>) -> Result<(), Violation> {
        Ok(())
    }
}

/// Checks a history.
///
/// # Errors
/// `linearizable`, `undecided`.
pub fn judge(history: &History) -> Result<Summary, Violation> {
    let judged = check(history);
    match judged.verdict {
        Verdict::Linearizable => Ok(Summary {
            operations: history.operations().len() as u64,
            unknown: history.unknown() as u64,
            configurations: judged.configurations as u64,
        }),
        Verdict::NotLinearizable(why) => Err(Violation { check: "linearizable", detail: why.to_string() }),
        Verdict::Unknown => {
            let detail = format!("the search was given up after {} configurations", judged.configurations);
            Err(Violation { check: "undecided", detail })
        }
    }
}
