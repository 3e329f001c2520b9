//! `bftctl`: uses and manages bftd clusters.
//!
//! - [args](command): every command and flag, from which help, completions and man pages come.
//! - `failure`: exit codes, and errors that say what happened, why, and what to do next.
//! - `session`: which daemon to talk to, and the connections to it.
//! - `kv`, `ls`, `history`, `txn`, `watch`, `lease`, `lock`, `quota`, `status`, `protocol`, `form`, `genesis`, `doctor`, `inject`, `evidence`, `bench`, `lab`, `dev`,
//!   `contexts`, `shell`: one module a family of commands.
//! - `render`: data to stdout as a table, as JSON or as bare values; words to stderr.

mod args;
mod bench;
mod contexts;
mod dev;
mod doctor;
mod evidence;
mod failure;
mod form;
mod genesis;
mod history;
mod inject;
mod kv;
mod lab;
mod lease;
mod lock;
mod ls;
mod protocol;
mod quota;
mod render;
mod session;
mod shell;
mod status;
mod trace;
mod txn;
mod watch;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use failure::{Code, Ended};
use session::Session;

/// The definition of the command line, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &words),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: can't start: {error}");
            return Code::Other.into();
        }
    };
    let mut session = Session::new(cli.options);
    let ended = runtime.block_on(run(cli.command, &mut session));
    // A thread may still wait for input that will never come.
    runtime.shutdown_background();
    match ended {
        Ok(code) => code.into(),
        // Whoever read our output has seen enough.
        Err(Ended::PipeClosed) => Code::Ok.into(),
        Err(Ended::Failed(failure)) => {
            failure.report(&session.options);
            failure.code.into()
        }
    }
}

/// Runs one command.
async fn run(command: Command, session: &mut Session) -> Result<Code, Ended> {
    match command {
        Command::Put(put) => put.run(session).await,
        Command::Txn(txn) => txn.run(session).await,
        Command::History(history) => history.run(session).await,
        Command::Revert(revert) => revert.run(session).await,
        Command::Compact(compact) => compact.run(session).await,
        Command::Watch(watch) => watch.run(session).await,
        Command::Lease(lease) => lease.run(session).await,
        Command::Lock(lock) => lock.run(session).await,
        Command::Quota(quota) => quota.run(session).await,
        Command::Get(get) => get.run(session).await,
        Command::Ls(ls) => ls.run(session).await,
        Command::Del(del) => del.run(session).await,
        Command::Status(status) => status.run(session).await,
        Command::Init(init) => init.run(session).await,
        Command::Token(token) => token.run(session).await,
        Command::Join(join) => join.run(session).await,
        Command::Genesis(genesis) => genesis.run(session),
        Command::Doctor(doctor) => doctor.run(session).await,
        Command::Inject(inject) => inject.run(session).await,
        Command::Protocol(protocol) => protocol.run(session).await,
        Command::Evidence(evidence) => evidence.run(session).await,
        Command::Bench(bench) => bench.run(session).await,
        Command::Lab(lab) => lab.run(session),
        Command::Dev(dev) => dev.run(session).await,
        Command::Context(context) => context.run(session),
        Command::Shell(shell) => shell.run(session).await,
        Command::Completions(completions) => completions.run(),
    }
}

/// Prints help, or what is wrong with the command line: as JSON where that was asked for.
fn usage(error: &clap::Error, words: &[OsString]) -> ExitCode {
    let wants_json = words
        .windows(2)
        .any(|pair| matches!(pair, [flag, value] if (flag == "-o" || flag == "--output") && value == "json"))
        || words.iter().any(|word| word == "-ojson" || word == "-o=json" || word == "--output=json");
    if error.use_stderr() && wants_json {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        failure::Failure::new(Code::Usage, message).report_json();
    } else {
        // Where nobody listens there is nobody to tell.
        let _ = error.print();
    }
    if error.use_stderr() { Code::Usage.into() } else { Code::Ok.into() }
}
