//! What clients asked, in which order things happened, and what they were answered.

use std::fmt;

use super::store::{Action, Answer};

/// Operations in the order of their calls. Calls and returns are numbered together as they are told, so everything that happened
/// has its place, and no operation returns before it is called.
///
/// A call must be told before anything is sent, and a return after the answer has come: then the history
/// claims no order that was not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    operations: Vec<Operation>,
    events: u64,
}

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Whose it is.
    pub client: u32,
    /// What was asked.
    pub action: Action,
    /// Its call's place.
    pub called: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody knows: it may have taken effect, may still do so, or never.
    Unknown,
    /// It never takes effect: whoever was asked has refused it.
    Refused,
    /// It was answered.
    Answered {
        /// The return's place.
        returned: u64,
        /// The answer.
        answer: Answer,
    },
}

/// Names an operation of one history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(usize);

impl History {
    /// A client calls an operation. Until more is told its outcome is unknown.
    pub fn call(&mut self, client: u32, action: Action) -> Ticket {
        let called = self.next_event();
        self.operations.push(Operation { client, action, called, outcome: Outcome::Unknown });
        Ticket(self.operations.len() - 1)
    }

    /// Its answer has come.
    pub fn answer(&mut self, ticket: Ticket, answer: Answer) {
        let returned = self.next_event();
        self.end(ticket, Outcome::Answered { returned, answer });
    }

    /// It is certain that it never takes effect.
    pub fn refuse(&mut self, ticket: Ticket) {
        self.end(ticket, Outcome::Refused);
    }

    /// All operations, in the order of their calls.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// How many have no known outcome and may have changed something.
    pub fn unknown(&self) -> usize {
        let is_unknown =
            |operation: &&Operation| operation.outcome == Outcome::Unknown && operation.action.writes();
        self.operations.iter().filter(is_unknown).count()
    }

    fn end(&mut self, ticket: Ticket, outcome: Outcome) {
        if let Some(operation) = self.operations.get_mut(ticket.0) {
            debug_assert_eq!(operation.outcome, Outcome::Unknown, "an operation ends once");
            operation.outcome = outcome;
        }
    }

    fn next_event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, action, called, outcome } = self;
        match outcome {
            Outcome::Unknown => write!(f, "[{called}, ?] client {client}: {action}: unknown"),
            Outcome::Refused => write!(f, "[{called}, -] client {client}: {action}: refused"),
            Outcome::Answered { returned, answer } => {
                write!(f, "[{called}, {returned}] client {client}: {action}: {answer}")
            }
        }
    }
}
