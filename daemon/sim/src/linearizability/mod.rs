//! Whether what clients saw could have come from one store that does one thing at a time.
//!
//! A [`History`] is what clients asked, when, and what they were answered. It is *linearizable* where its operations can be put
//! in one order such that each one is answered as a single [`store`] would answer, and an operation that returned before another was
//! called comes before it (Herlihy & Wing, TOPLAS 12(3), 1990). [`check`] looks for such an order:
//!
//! - The search is that of Wing & Gong ("Testing and verifying concurrent objects", JPDC 17, 1993): take any operation that was
//!   called before the first return that is not accounted for, execute it, go on; go back where none fits.
//! - Lowe ("Testing for linearizability", CCPE 29(4), 2017) remembers the configurations that led nowhere: the set of operations
//!   executed, a bit each, and the state, which is kept once and named by a number. None is looked at twice.
//! - Horn & Kroening ("Faster linearizability checking via P-compositionality", FORTE 2015): keys are checked apart, since a store is
//!   linearizable if each key is. Keys that a transaction of the history touches together are one part.
//!
//! # Unknown outcomes
//!
//! An operation of unknown outcome may take effect at any time after its call, or never. With dozens of them in a part the plain search
//! takes forever: each may stand nearly anywhere. But clients learn little of them, and what nobody learns of need not be told
//! apart. So a part is rewritten before it is searched, and the rules of the search are made for what is left.
//! Each rule keeps the verdict, whichever it is (*sound*: no order is found where there is none; *complete*: none is missed):
//!
//! - What `problem.rs` does to a part: every execution of the one is an execution of the other with the same answers. Dozens
//!   of operations become a few kinds, and thousands of states a few.
//! - *A kind is counted.* Its operations are equal but for their calls, so an order can be told with the earliest first. Only how many were
//!   taken is part of a configuration.
//! - *Less supposed is better.* With the same answered operations executed, and the same state, a configuration is dropped if one was seen
//!   that had taken no more of any kind: whatever follows the dropped one can follow the other, by operations that were called no later.
//! - *Nothing for nothing.* One of unknown outcome is not taken where it would change nothing: the order without it is as good.
//! - *A look is taken at once.* An operation that fits, and whose answer says that it changed nothing wherever it was, is taken, and no other
//!   order is tried: it can be moved here from wherever a complete order has it.
//! - *What was answered comes first.* Those of unknown outcome are tried when nothing else fits, so that a configuration that supposes less is
//!   seen before those that it replaces. This is an order of trying only: nothing is left out.
//!
//! The problem stays NP-hard (Gibbons & Korach, SIAM J. Comput. 26(4), 1997), so a search has [`Limits`], and may be given up.
//!
//! The model has no revisions: the store's one revision would tie all keys together. That is for the [oracle](crate::oracle) to check.

mod explain;
mod history;
pub mod kv;
mod partition;
mod problem;
mod search;
pub mod store;
#[cfg(test)]
mod tests;
mod workload;

pub use self::{
    explain::Counterexample,
    history::{History, Operation, Outcome, Ticket},
    store::{Action, Answer, Compare, Step, Test, Transaction},
    workload::Workload,
};
use self::{
    partition::partitions,
    search::{Found, search},
};

/// How much the search of one part may take before it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What the remembered configurations take, roughly.
    pub bytes: usize,
    /// Operations tried and configurations compared: some hundred million a second where most are comparisons, some ten million
    /// where few are.
    pub steps: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 512 << 20, steps: 500_000_000 }
    }
}

/// What is known of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains it.
    Linearizable,
    /// There is none.
    NotLinearizable(Box<Counterexample>),
    /// The search was given up at one of its limits.
    Unknown,
}

/// A verdict, and what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// How many configurations were remembered, over all parts.
    pub configurations: usize,
    /// How many operations were tried, and configurations compared.
    pub steps: u64,
}

/// Looks for an order that explains a history.
pub fn check(history: &History) -> Judged {
    check_within(history, Limits::default())
}

/// The same, with limits of one's own for each part. A part that fails is found even where others are given up.
pub fn check_within(history: &History, limits: Limits) -> Judged {
    let mut judged = Judged { verdict: Verdict::Linearizable, configurations: 0, steps: 0 };
    for partition in partitions(history) {
        let searched = search(&partition.problem(), limits);
        judged.configurations += searched.configurations;
        judged.steps += searched.steps;
        match searched.found {
            Found::Order => {}
            Found::NoOrder(_) => {
                let why = Counterexample::of(&partition, limits);
                return Judged { verdict: Verdict::NotLinearizable(Box::new(why)), ..judged };
            }
            Found::GivenUp => judged.verdict = Verdict::Unknown,
        }
    }
    judged
}
