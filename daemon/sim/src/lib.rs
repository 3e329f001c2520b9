//! A deterministic simulator of bftd clusters.
//!
//! The replicas, verifiers and state machines are the daemon's own; time, network, disks and clients are virtual, and one seed
//! decides everything: what faults there are ([`plan`](self)), when, and in what order. An [`event::Observer`] sees every
//! message that leaves, every record that becomes durable, every block that is executed. The [`oracle::Oracle`] is one; it
//! shares no predicate with the core.
//!
//! A run has two parts: faults, then calm. In the calm everything must get done, within a bounded time, and then nothing
//! more may happen. A liar, if there is one, goes on throughout.

pub mod event;
pub mod histories;
pub mod lab;
pub mod linearizability;
mod node;
pub mod oracle;
mod plan;
mod scheme;
pub mod story;
mod trace;
pub mod twins;
mod world;

use std::{
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
};

use bftd_core::{crypto::Digest, protocol::Protocol};
use bftd_faults::Fault;

use crate::{
    event::{Observer, Violation},
    linearizability::History,
    oracle::Oracle,
    trace::Trace,
    world::World,
};

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What they run.
    pub protocol: Protocol,
    /// How many members.
    pub nodes: u8,
    /// Whether signatures are real ones.
    pub ed25519: bool,
    /// What a liar does in every run; what else goes wrong is for the seed to say.
    pub adversary: Option<Fault>,
}

impl Options {
    /// So many members that run a protocol; what goes wrong is for the seed to say.
    pub const fn of(protocol: Protocol, nodes: u8) -> Self {
        Self { protocol, nodes, ed25519: false, adversary: None }
    }
}

/// What a run was like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How much virtual time passed, and how much of it after the faults.
    pub virtual_us: u64,
    /// See above.
    pub settled_us: u64,
    /// The highest term.
    pub terms: u64,
    /// Blocks executed, over all nodes.
    pub blocks: u64,
    /// Crashes, each with a restart.
    pub crashes: u64,
    /// Messages that left a node.
    pub messages: u64,
    /// Of these, those that no receiver would take.
    pub refused: u64,
    /// Writes asked for, and those acknowledged.
    pub writes: u64,
    /// See above.
    pub acknowledged: u64,
    /// Reads asked for.
    pub reads: u64,
    /// A digest of everything that happened: equal for equal seeds.
    pub trace: Option<Digest>,
}

impl Report {
    /// Adds another run's numbers.
    pub fn add(&mut self, other: &Self) {
        self.virtual_us += other.virtual_us;
        self.settled_us = self.settled_us.max(other.settled_us);
        self.terms += other.terms;
        self.blocks += other.blocks;
        self.crashes += other.crashes;
        self.messages += other.messages;
        self.refused += other.refused;
        self.writes += other.writes;
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
    }
}

/// A run that must not have gone as it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was found.
    pub violation: Violation,
    /// When, in virtual time.
    pub at_us: u64,
}

/// Runs a seed under the oracle. `trace` gets a line an event.
///
/// # Errors
/// What the oracle, or a panic of the code under test, found.
pub fn run(options: &Options, seed: u64, trace: Option<&mut dyn Write>) -> Result<Report, Failure> {
    let (members, check) = World::about(options);
    let mut oracle = Oracle::new(&members, check, world::correct_members(options, seed));
    run_with(options, seed, &mut oracle, trace)
}

/// Runs a seed under any observer.
///
/// # Errors
/// What the observer, or a panic of the code under test, found.
pub fn run_with(
    options: &Options,
    seed: u64,
    observer: &mut dyn Observer,
    trace: Option<&mut dyn Write>,
) -> Result<Report, Failure> {
    live(|observer| World::new(options, seed, observer).run(), observer, trace).map(|(report, _)| report)
}

/// Lets a world live, and catches its panics.
fn live(
    run: impl FnOnce(&mut dyn Observer) -> Result<(Report, History), (Violation, u64)>,
    observer: &mut dyn Observer,
    trace: Option<&mut dyn Write>,
) -> Result<(Report, History), Failure> {
    let mut trace = Trace::new(observer, trace);
    let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut trace)));
    match outcome {
        Ok(Ok((report, history))) => Ok((Report { trace: Some(trace.hash()), ..report }, history)),
        Ok(Err((violation, at_us))) => Err(Failure { violation, at_us }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            Err(Failure { violation: Violation { check: "panic", detail: text.to_owned() }, at_us: 0 })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use bftd_core::{
        ids::{Index, MemberId, Term},
        message::Message,
    };

    use super::*;
    use crate::event::Event;

    const FOUR: Options = Options::of(Protocol::BftRaft, 4);

    #[test]
    fn seeds_hold() {
        for seed in 0..300 {
            if let Err(failure) = run(&FOUR, seed, None) {
                panic!("seed {seed}: {failure:?}");
            }
        }
    }

    #[test]
    fn a_seed_is_the_same_run_every_time_and_others_are_not() {
        let trace = |seed| run(&FOUR, seed, None).unwrap().trace;
        assert_eq!(trace(7), trace(7));
        assert_ne!(trace(7), trace(8));
    }

    #[test]
    fn real_signatures_hold_too() {
        for seed in 0..3 {
            run(&Options { ed25519: true, ..FOUR }, seed, None).unwrap();
        }
    }

    #[test]
    fn faults_really_happen() {
        let mut sum = Report::default();
        for seed in 0..100 {
            sum.add(&run(&FOUR, seed, None).unwrap());
        }
        assert!(sum.crashes > 50 && sum.terms > 100 && sum.blocks > 1000 && sum.reads > 50, "{sum:?}");
        assert!(sum.acknowledged * 2 > sum.writes, "{sum:?}");
    }

    /// Where each term starts, by who says so.
    #[derive(Default)]
    struct Starts(BTreeMap<(MemberId, Term), BTreeSet<Index>>);

    impl Observer for Starts {
        fn observe(&mut self, _at_us: u64, event: &Event<'_>) -> Result<(), Violation> {
            if let Event::Sent { from, message: Message::NewTerm(new_term), .. } = event {
                let start = new_term.position.as_ref().map_or(Index(0), |position| position.block().index);
                self.0.entry((*from, new_term.term)).or_default().insert(start);
            }
            Ok(())
        }
    }

    #[test]
    fn a_forgetful_term_voter_really_starts_terms_in_two_places() {
        let mut deceptions = 0;
        for seed in 0..1500 {
            let mut starts = Starts::default();
            run_with(&FOUR, seed, &mut starts, None).unwrap();
            deceptions += starts.0.values().filter(|starts| starts.len() > 1).count();
        }
        assert!(deceptions > 5, "{deceptions}");
    }
}
