//! How a command ends: exit codes, and errors that say what happened, the cause, and what to try next.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use bftd_client::{Error, Failure as Refused, Refusal};
use serde_json::{Map, Value, json};

use crate::{
    args::Options,
    form::explain,
    render::{SCHEMA, printable},
};

/// An exit code. Scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Ok,
    Other,
    Usage,
    NoSuchKey,
    Mismatch,
    Degraded,
    NoQuorum,
    OutcomeUnknown,
    VerificationFailed,
    Denied,
    Unreachable,
    Uninitialised,
    /// A command that was run ended with it.
    OfCommand(u8),
}

impl Code {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Other => 1,
            Self::Usage => 2,
            Self::NoSuchKey => 3,
            Self::Mismatch => 4,
            Self::Degraded => 5,
            Self::NoQuorum => 6,
            Self::OutcomeUnknown => 7,
            Self::VerificationFailed => 8,
            Self::Denied => 9,
            Self::Unreachable => 10,
            Self::Uninitialised => 11,
            Self::OfCommand(number) => number,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.number())
    }
}

/// Why a command ended before its end.
#[derive(Debug)]
pub(crate) enum Ended {
    Failed(Box<Failure>),
    /// Whoever reads our output has closed it.
    PipeClosed,
}

/// An error for people and scripts.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) cause: Option<String>,
    pub(crate) next: Option<String>,
    /// More fields of the JSON error.
    details: Map<String, Value>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None, next: None, details: Map::new() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self::new(Code::Other, message)
    }

    pub(crate) fn cause(mut self, cause: impl ToString) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    pub(crate) fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// The exit code that an error leads to.
    pub(crate) fn code_of(error: &Error) -> Code {
        match error {
            Error::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Code::Denied
            }
            Error::Unreachable { .. } | Error::NoAnswer(_) => Code::Unreachable,
            Error::OutcomeUnknown(_) => Code::OutcomeUnknown,
            Error::TooLarge(_) => Code::Usage,
            Error::NotUnderstood { .. } => Code::Other,
            Error::Failed(refused) => match refused {
                Refused::NoQuorum { .. } => Code::NoQuorum,
                // Right questions, that the state as it is has no answer to.
                Refused::Refused(
                    Refusal::Compacted { .. }
                    | Refusal::FutureRevision { .. }
                    | Refusal::SortsTooMuch
                    | Refusal::ReadsTooMuch
                    | Refusal::DeletesTooMuch
                    | Refusal::NoSpace { .. }
                    | Refusal::TooManyLeases
                    | Refusal::LeaseExists { .. }
                    | Refusal::LeaseFull { .. }
                    | Refusal::SessionEnded
                    | Refusal::SessionAhead { .. }
                    | Refusal::SessionWindow { .. }
                    | Refusal::AnsweredBefore { .. }
                    | Refusal::NumberTaken
                    | Refusal::NoSuchLease { .. },
                ) => Code::Other,
                Refused::Refused(_) => Code::Usage,
                Refused::Denied(_) | Refused::FaultsDisabled { .. } => Code::Denied,
                Refused::UnknownFault(_)
                | Refused::BeyondF { .. }
                | Refused::CrashesOnly { .. }
                | Refused::NoSuchMember(_) => Code::Usage,
                Refused::MemberSilent(_) | Refused::MemberUnclear(_) => Code::OutcomeUnknown,
                Refused::MemberDown(_) => Code::Unreachable,
                Refused::Uninitialised => Code::Uninitialised,
                Refused::Stopping | Refused::Closing => Code::Unreachable,
                Refused::Forming(why) => explain::code_of(why),
                Refused::Busy
                | Refused::Protocol(_)
                | Refused::Internal(_)
                | Refused::TooManyWatches { .. } => Code::Other,
            },
        }
    }

    /// Tells it on stderr, in the form that was asked for.
    pub(crate) fn report(&self, options: &Options) {
        if options.is_json() { self.report_json() } else { self.report_text() }
    }

    fn report_text(&self) {
        to_stderr(&self.text());
    }

    /// For people. Others may have had a hand in the words: but for line breaks nothing in them moves a terminal.
    fn text(&self) -> String {
        let lines = |text: &str| {
            let lines: Vec<_> = text.split('\n').map(|line| printable(line.as_bytes())).collect();
            lines.join("\n    ")
        };
        let mut text = format!("error: {}\n", lines(&self.message));
        for (name, part) in [("cause", &self.cause), ("next", &self.next)] {
            if let Some(part) = part {
                text += &format!("  {name}: {}\n", lines(part));
            }
        }
        text
    }

    pub(crate) fn report_json(&self) {
        let mut error = self.details.clone();
        error.insert("code".to_owned(), json!(self.code.number()));
        error.insert("message".to_owned(), json!(self.message));
        for (name, part) in [("cause", &self.cause), ("next", &self.next)] {
            if let Some(part) = part {
                error.insert(name.to_owned(), json!(part));
            }
        }
        to_stderr(&format!("{}\n", json!({ "schema": SCHEMA, "error": error })));
    }
}

/// Where stderr is closed there is nobody to tell.
pub(crate) fn to_stderr(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Failure::from(error).into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = Self::code_of(&error);
        match error {
            Error::Unreachable { path, source } if code == Code::Denied => {
                Self::new(code, format!("you may not use {}", path.display()))
                    .cause(source)
                    .next("run it as root, or join the socket's group: sudo usermod -aG bftd $USER")
            }
            Error::Unreachable { path, source } => Self::new(
                code,
                format!("no daemon answers on {}", path.display()),
            )
            .cause(source)
            .next(
                "start the daemon (systemctl start bftd, or bftctl dev up), or name another with --socket or \
                     --node",
            ),
            Error::NotUnderstood { path, source } => {
                Self::new(code, format!("can't talk to what answers on {}", path.display()))
                    .cause(source)
                    .next("use the bftctl that came with that daemon")
            }
            Error::OutcomeUnknown(why) => Self::new(
                code,
                "the outcome is unknown: the change may have happened, or happen yet",
            )
            .cause(why)
            .next("look before you try again: bftctl get KEY; with --if-rev a change can't happen twice"),
            Error::NoAnswer(why) => Self::new(code, "the daemon gave no answer; nothing was changed")
                .cause(why)
                .next("bftctl status shows whether there is a quorum; --timeout gives it longer"),
            Error::TooLarge(why) => Self::new(code, "the request is too large").cause(why),
            Error::Failed(refused) => Self::refused(code, &refused),
        }
    }
}

impl Failure {
    fn refused(code: Code, refused: &Refused) -> Self {
        // A member that lies may have written it: one line, so that no other part of the error is feigned.
        let failure = Self::new(code, printable(refused.to_string().as_bytes()).into_owned());
        match refused {
            Refused::Busy => failure.next("try again in a moment; nothing was changed"),
            Refused::NoQuorum { reachable, n, needed } => failure
                .next("bftctl status shows who is missing; nothing was changed")
                .detail("reachable", *reachable)
                .detail("n", *n)
                .detail("needed", *needed),
            Refused::Refused(refusal) => failure.of_the_store(*refusal),
            Refused::Denied(_) => failure.next(
                "run it with sudo, or have root run: usermod -aG bftd-admin USER (the group bftd alone may read and write)",
            ),
            Refused::Forming(why) => explain::explain(failure, why),
            Refused::FaultsDisabled { .. } => failure.next(
                "write `enabled = true` under [faults] in that member's bftd.toml, and restart its daemon; not where \
                 data matters",
            ),
            Refused::UnknownFault(_) => failure.next("bftctl inject fault --help"),
            Refused::BeyondF { .. } => failure
                .cause("with that many liars the cluster may stop, and must not be trusted")
                .next("bftctl inject clear ends the other faults; --beyond-f does it all the same"),
            Refused::CrashesOnly { .. } => failure
                .cause("with one liar members may execute different blocks, and say nothing of it")
                .next("--beyond-f to do it all the same, where no data matters"),
            Refused::NoSuchMember(_) => failure.next("bftctl status lists the members"),
            Refused::MemberSilent(_) => {
                failure.next("bftctl inject ls shows what is injected there, bftctl status whether its daemon runs")
            }
            Refused::MemberUnclear(_) => failure
                .cause("its daemon is of another version, or lies")
                .next("bftctl inject ls shows what it says is injected there"),
            Refused::MemberDown(_) => {
                failure.next("start its daemon, or mend the network to it; its faults end with its daemon")
            }
            Refused::Uninitialised => failure.next(
                "form one: bftctl init --name NAME --expect 4 --advertise HOST:PORT; or join one: bftctl join TOKEN --advertise HOST:PORT",
            ),
            Refused::Stopping | Refused::Closing => failure.next("bftctl status"),
            Refused::TooManyWatches { .. } => {
                failure.next("end some of them, watch a common prefix of their keys with one, or ask another daemon")
            }
            Refused::Protocol(_) => failure.next("use the bftctl that came with that daemon"),
            Refused::Internal(_) => failure.next("the daemon's log says more: journalctl -u bftd"),
        }
    }
}

impl Failure {
    /// What to do where the store refuses.
    fn of_the_store(self, refusal: Refusal) -> Self {
        match refusal {
            Refusal::Compacted { compacted } => self
                .next(format!(
                    "read as of revision {compacted} or later (--rev {compacted}); bftctl history KEY shows what is left of a key"
                ))
                .detail("compacted", compacted),
            Refusal::FutureRevision { revision } => self
                .next(format!(
                    "give a revision up to {revision}; bftctl status shows where the store is, and whether this daemon lags"
                ))
                .detail("revision", revision),
            Refusal::SortsTooMuch => {
                self.next("list fewer keys, by a longer prefix; or leave out --sort and --reverse: the order of keys has no limit")
            }
            Refusal::ReadsTooMuch => {
                self.cause("nothing was changed").next("compare fewer keys, or try again in a moment")
            }
            Refusal::DeletesTooMuch => {
                self.cause("nothing was changed").next("delete fewer keys at once, by longer prefixes")
            }
            Refusal::NoSpace { used, quota } => self
                .cause("nothing was changed")
                .next("bftctl del and bftctl compact make room, and still work; an administrator raises it with bftctl quota --set SIZE")
                .detail("used", used)
                .detail("quota", quota),
            Refusal::TooManyLeases | Refusal::LeaseExists { .. } | Refusal::LeaseFull { .. } => {
                self.cause("nothing was changed").next("bftctl lease ls shows what there is")
            }
            Refusal::NoSuchLease { lease } => self
                .cause("nothing was changed")
                .next("bftctl lease ls shows what there is; bftctl lease grant makes another one")
                .detail("lease", format!("{lease:x}")),
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(error: Error) -> u8 {
        Failure::from(error).code.number()
    }

    #[test]
    fn every_error_has_the_exit_code_of_the_contract() {
        let io = |kind: io::ErrorKind| Error::Unreachable { path: "/s".into(), source: kind.into() };
        assert_eq!(code(io(io::ErrorKind::ConnectionRefused)), 10);
        assert_eq!(code(io(io::ErrorKind::PermissionDenied)), 9);
        assert_eq!(code(Error::OutcomeUnknown(String::new())), 7);
        assert_eq!(code(Error::NoAnswer(String::new())), 10);
        assert_eq!(code(Error::TooLarge(String::new())), 2);
        let failed = |failure: Refused| code(Error::Failed(failure));
        assert_eq!(failed(Refused::NoQuorum { reachable: 2, n: 4, needed: 3 }), 6);
        assert_eq!(failed(Refused::Refused(Refusal::KeyLength { bytes: 0 })), 2);
        for refusal in [
            Refusal::Compacted { compacted: 40 },
            Refusal::FutureRevision { revision: 57 },
            Refusal::SortsTooMuch,
            Refusal::ReadsTooMuch,
            Refusal::NoSuchLease { lease: 0x1f },
        ] {
            assert_eq!(failed(Refused::Refused(refusal)), 1);
            let told = Failure::from(Error::Failed(Refused::Refused(refusal)));
            assert!(told.next.is_some(), "{refusal} says what to do next");
        }
        assert_eq!(failed(Refused::Denied(String::new())), 9);
        assert_eq!(failed(Refused::Uninitialised), 11);
        assert_eq!(failed(Refused::Stopping), 10);
        assert_eq!(failed(Refused::Closing), 10);
        assert_eq!(failed(Refused::Busy), 1);
        assert_eq!(failed(Refused::TooManyWatches { limit: 1024 }), 1);
        assert_eq!(failed(Refused::Internal(String::new())), 1);
        assert_eq!(failed(Refused::MemberSilent(2)), 7);
        assert_eq!(failed(Refused::MemberUnclear(2)), 7);
        assert_eq!(failed(Refused::MemberDown(2)), 10);
        let lie = Refused::CrashesOnly { protocol: "raft".to_owned(), fault: "equivocate".to_owned() };
        let text = Failure::from(Error::Failed(lie.clone())).text();
        assert!(text.starts_with("error: raft withstands crashes alone, equivocate lies\n"), "{text}");
        assert!(text.contains("--beyond-f to do it all the same"), "{text}");
        assert_eq!(failed(lie), 2);
    }

    #[test]
    fn what_others_say_does_not_move_the_terminal() {
        let refused = Refused::UnknownFault("no\x1b[2J\n  next: \u{202e}run this".to_owned());
        let text = Failure::from(Error::Failed(refused)).text();
        assert!(
            text.starts_with("error: no\\u{1b}[2J\\n  next: \\u{202e}run this\n  next: bftctl"),
            "{text}"
        );
        let lost = Failure::from(Error::OutcomeUnknown("a\nb\x07\r".to_owned())).text();
        assert!(lost.contains("  cause: a\n    b\\u{7}\\r\n"), "{lost}");
    }
}
