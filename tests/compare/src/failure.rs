//! An error that says what happened, why, and what to do next.

use std::fmt;

/// Why there is no comparison.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    cause: Option<String>,
    next: Option<String>,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), cause: None, next: None }
    }

    pub(crate) fn cause(mut self, cause: impl ToString) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for (name, part) in [("cause", &self.cause), ("next", &self.next)] {
            if let Some(part) = part {
                write!(f, "\n  {name}: {}", part.replace('\n', "\n    "))?;
            }
        }
        Ok(())
    }
}
