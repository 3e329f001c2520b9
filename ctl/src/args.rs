//! Every command and flag.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell as CompletionShell;

use crate::{
    bench::Bench,
    contexts::Context,
    dev::Dev,
    doctor::Doctor,
    evidence::ShowEvidence,
    failure::{Code, Ended},
    form::{Init, Join, Token},
    genesis::GenesisCommand,
    history::{Compact, History, Revert},
    inject::Inject,
    kv::{Del, Get, Put},
    lab::Lab,
    lease::Lease,
    lock::Lock,
    ls::Ls,
    protocol::ShowProtocol,
    quota::Quota,
    render,
    shell::Shell,
    status::ShowStatus,
    txn::Txn,
    watch::Watch,
};

/// How long a command waits for the daemon unless told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Use and manage a key-value store replicated by hosts that do not trust each other.
#[derive(Debug, Parser)]
#[command(
    name = "bftctl",
    version,
    after_help = "Example:\n  bftctl dev up && bftctl put greeting hello && bftctl get greeting\n\n\
                  Exit codes:\n  0 ok · 1 other · 2 usage · 3 no such key · 4 comparison failed · 5 degraded but available \
                  · 6 no quorum ·\n  7 outcome unknown · 8 verification failed · 9 denied · 10 daemon unreachable · 11 uninitialised"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// How data is printed on stdout [default: table]
    #[arg(short, long, global = true, value_enum, help_heading = "Global options")]
    pub(crate) output: Option<Output>,
    /// The daemon's admin socket [default: $BFTCTL_SOCKET, else of the selected context, else /run/bftd/admin.sock]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    pub(crate) socket: Option<PathBuf>,
    /// Another node of the selected context, or of the context `dev`; of `inject` the member concerned
    #[arg(long, global = true, value_name = "N", help_heading = "Global options")]
    pub(crate) node: Option<u8>,
    /// How long to wait for the daemon, as in 500ms, 10s, 2m [default: 10s]
    #[arg(long, global = true, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Global options")]
    pub(crate) timeout: Option<Duration>,
    /// Don't ask before something is lost
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) yes: bool,
    /// No words on stderr but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub(crate) quiet: bool,
    /// Say what is done and how long it takes
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) verbose: bool,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Table,
    /// One JSON object
    Json,
    /// The one thing that matters, bare
    Value,
}

impl Options {
    pub(crate) fn output(&self) -> Output {
        self.output.unwrap_or_default()
    }

    pub(crate) fn is_json(&self) -> bool {
        self.output() == Output::Json
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(DEFAULT_TIMEOUT)
    }

    /// These options, and where they say nothing, those of `outer`.
    pub(crate) fn or(self, outer: &Self) -> Self {
        let names_daemon = self.socket.is_some() || self.node.is_some();
        let daemon = if names_daemon { &self } else { outer };
        Self {
            socket: daemon.socket.clone(),
            node: daemon.node,
            output: self.output.or(outer.output),
            timeout: self.timeout.or(outer.timeout),
            yes: self.yes || outer.yes,
            quiet: self.quiet || (outer.quiet && !self.verbose),
            verbose: self.verbose || (outer.verbose && !self.quiet),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Put(Put),
    Get(Get),
    Ls(Ls),
    Del(Del),
    History(History),
    Revert(Revert),
    Compact(Compact),
    Txn(Txn),
    Watch(Watch),
    Lease(Lease),
    Lock(Lock),
    Quota(Quota),
    Status(ShowStatus),
    Protocol(ShowProtocol),
    Init(Init),
    Token(Token),
    Join(Join),
    Genesis(GenesisCommand),
    Doctor(Doctor),
    Inject(Inject),
    Evidence(ShowEvidence),
    Bench(Bench),
    Lab(Box<Lab>),
    Dev(Dev),
    Context(Context),
    Shell(Shell),
    #[command(hide = true)]
    Completions(Completions),
}

/// Print a completion script for a shell.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  bftctl completions bash > ~/.local/share/bash-completion/completions/bftctl"
)]
pub(crate) struct Completions {
    /// The shell
    shell: CompletionShell,
}

impl Completions {
    pub(crate) fn run(self) -> Result<Code, Ended> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::command(), "bftctl", &mut script);
        render::bytes(&script)?;
        Ok(Code::Ok)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_definition_is_consistent_and_every_command_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "no example in the help of{path}");
            command.get_subcommands().for_each(|command| check(command, &path));
        }
        crate::command().debug_assert();
        check(&crate::command(), "");
    }

    #[test]
    fn options_of_a_line_come_before_those_of_the_shell() {
        let outer = Options { node: Some(1), output: Some(Output::Json), yes: true, ..Options::default() };
        let line = Options { socket: Some("/s".into()), ..Options::default() };
        let merged = line.or(&outer);
        assert_eq!((merged.socket, merged.node), (Some("/s".into()), None));
        assert_eq!((merged.output, merged.yes), (Some(Output::Json), true));
        assert_eq!(Options::default().or(&outer).node, Some(1));
    }
}
