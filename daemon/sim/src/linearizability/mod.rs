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
//! An operation of unknown outcome may take effect at any time after its call, or never.
//!
//! Two cuts of our own keep the search short where many outcomes are unknown. An operation that fits, and whose answer says that it
//! changed nothing wherever it was, is taken at once, and no other order is tried: it can be moved here from wherever a
//! complete order has it. And one of unknown outcome is left out where it would change nothing.
//!
//! The model has no revisions: the store's one revision would tie all keys together. That is for the [oracle](crate::oracle) to check.

mod explain;
mod history;
pub mod kv;
mod partition;
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

/// How many configurations of one part are remembered at most: some hundred MiB with histories of some hundred operations.
pub const MAX_CONFIGURATIONS: usize = 4_000_000;

/// What is known of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains it.
    Linearizable,
    /// There is none.
    NotLinearizable(Box<Counterexample>),
    /// The search was given up: it would have to remember more configurations than it may.
    Unknown,
}

/// A verdict, and what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// How many configurations were remembered, over all parts.
    pub configurations: usize,
}

/// Looks for an order that explains a history.
pub fn check(history: &History) -> Judged {
    check_within(history, MAX_CONFIGURATIONS)
}

/// The same, with a bound of one's own on the configurations of a part. A part that fails is found even where others are given up.
pub fn check_within(history: &History, max_configurations: usize) -> Judged {
    let mut verdict = Verdict::Linearizable;
    let mut configurations = 0;
    for partition in partitions(history) {
        let searched = search(&partition.problem(), max_configurations);
        configurations += searched.configurations;
        match searched.found {
            Found::Order => {}
            Found::NoOrder(_) => {
                let why = Counterexample::of(&partition, max_configurations);
                return Judged { verdict: Verdict::NotLinearizable(Box::new(why)), configurations };
            }
            Found::GivenUp => verdict = Verdict::Unknown,
        }
    }
    Judged { verdict, configurations }
}
