//! `shell`: every command at a prompt, with history and completion, on one connection.

use std::path::PathBuf;

use clap::{Args, Parser};
use etcetera::BaseStrategy;
use rustyline::{
    CompletionType, Config, Context, Editor, Helper, Highlighter, Hinter, Validator, completion::Completer,
    error::ReadlineError, history::FileHistory,
};

use crate::{
    args::{Cli, Command},
    failure::{Code, Ended, Failure, to_stderr},
    session::Session,
};

/// How many lines are remembered.
const HISTORY: usize = 10_000;

/// All commands at a prompt, with history and completion.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  bftctl shell\n  bftctl> put greeting hello\n  bftctl> get greeting\n\nLeave with `exit` or Ctrl-D."
)]
pub(crate) struct Shell {}

impl Shell {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        if session.is_shell {
            return Err(Failure::usage("this is the shell").into());
        }
        session.is_shell = true;
        let broken = |error: ReadlineError| Failure::other("can't read from the terminal").cause(error);
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .max_history_size(HISTORY)
            .map_err(broken)?
            .build();
        let mut editor = Editor::with_config(config).map_err(broken)?;
        editor.set_helper(Some(Words { command: built() }));
        let history = history_file();
        if let Some(history) = &history {
            // There is none at first.
            let _ = editor.load_history(history);
        }
        loop {
            // The prompt waits on a thread of its own, so that connections are looked after meanwhile.
            let prompted = tokio::task::spawn_blocking(move || {
                let line = editor.readline("bftctl> ");
                (editor, line)
            });
            let line;
            (editor, line) =
                prompted.await.map_err(|error| Failure::other("the prompt broke").cause(error))?;
            match line {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    remember(&mut editor, &line, history.as_ref());
                    if !execute(&line, session).await? {
                        break;
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(broken(error).into()),
            }
        }
        Ok(Code::Ok)
    }
}

/// Runs a line; false where it says that we should leave. Errors of a command are told, and that is it.
async fn execute(line: &str, session: &mut Session) -> Result<bool, Ended> {
    let Some(words) = shlex::split(line) else {
        Failure::usage("a quote is not closed").report(&session.options);
        return Ok(true);
    };
    match words.first().map(String::as_str) {
        Some("exit" | "quit") => return Ok(false),
        // A line of nothing but a comment.
        None => return Ok(true),
        Some(_) => {}
    }
    let words = ["bftctl".to_owned()].into_iter().chain(words);
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            // Where nobody listens there is nobody to tell.
            let _ = error.print();
            return Ok(true);
        }
    };
    if matches!(cli.command, Command::Shell(_)) {
        to_stderr("this is the shell\n");
        return Ok(true);
    }
    let outer = session.options.clone();
    session.options = cli.options.or(&outer);
    // These end by themselves, and have something to say or to give back at their end.
    let ends_itself =
        matches!(cli.command, Command::Watch(_) | Command::Bench(_) | Command::Lease(_) | Command::Lock(_));
    let ended = tokio::select! {
        ended = Box::pin(crate::run(cli.command, session)) => ended,
        _ = tokio::signal::ctrl_c(), if !ends_itself => {
            to_stderr("interrupted: a change that was asked for may or may not happen\n");
            Ok(Code::Other)
        }
    };
    if let Err(Ended::Failed(failure)) = &ended {
        failure.report(&session.options);
    }
    session.options = outer;
    match ended {
        Err(Ended::PipeClosed) => Err(Ended::PipeClosed),
        Ok(_) | Err(Ended::Failed(_)) => Ok(true),
    }
}

/// History is a convenience: that it can't be kept is no reason to stop.
fn remember(editor: &mut Editor<Words, FileHistory>, line: &str, file: Option<&PathBuf>) {
    let _ = editor.add_history_entry(line);
    if let Some(file) = file {
        let _ = editor.append_history(file);
    }
}

fn history_file() -> Option<PathBuf> {
    let base = etcetera::choose_base_strategy().ok()?;
    let directory = base.state_dir().unwrap_or_else(|| base.data_dir()).join("bftd");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join("shell-history"))
}

fn built() -> clap::Command {
    let mut command = crate::command();
    command.build();
    command
}

/// Completes commands and flags from the definition of the command line.
#[derive(Debug, Helper, Highlighter, Hinter, Validator)]
struct Words {
    command: clap::Command,
}

impl Completer for Words {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let line = line.get(..at).unwrap_or(line);
        let start = line.rfind(char::is_whitespace).map_or(0, |blank| blank + 1);
        let (before, word) = line.split_at(start);
        Ok((start, self.candidates(before, word)))
    }
}

impl Words {
    /// What may stand where `word` begins, after the words `before`.
    fn candidates(&self, before: &str, word: &str) -> Vec<String> {
        let mut command = &self.command;
        for earlier in before.split_whitespace() {
            command = command.find_subcommand(earlier).unwrap_or(command);
        }
        let mut found: Vec<_> = if word.starts_with('-') {
            let visible = command.get_arguments().filter(|argument| !argument.is_hide_set());
            visible.filter_map(|argument| argument.get_long()).map(|long| format!("--{long} ")).collect()
        } else {
            let visible = command.get_subcommands().filter(|command| !command.is_hide_set());
            let values = command.get_positionals().flat_map(clap::Arg::get_possible_values);
            let values = values.map(|value| format!("{} ", value.get_name()));
            visible.map(|command| format!("{} ", command.get_name())).chain(values).collect()
        };
        if before.trim().is_empty() && !word.starts_with('-') {
            found.push("exit ".to_owned());
        }
        found.retain(|candidate| candidate.starts_with(word));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_values_and_flags_are_completed() {
        let words = Words { command: built() };
        assert_eq!(words.candidates("", "pu"), ["put "]);
        assert_eq!(words.candidates("", "ex"), ["exit "]);
        assert_eq!(words.candidates("dev ", "re"), ["restart ", "resume "]);
        assert_eq!(words.candidates("bench ", "m"), ["mixed "]);
        assert_eq!(words.candidates("put ", "--if-"), ["--if-rev ", "--if-absent "]);
        assert!(words.candidates("ls ", "--").contains(&"--output ".to_owned()), "global flags too");
        assert_eq!(words.candidates("", "comp"), ["compact "], "hidden commands stay hidden");
    }
}
