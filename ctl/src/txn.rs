//! `txn`: compare, then or else.

mod written;

use std::{fs, io::Read, path::PathBuf};

use bftd_client::{
    Bytes, Entry, Listing, Operation, Range, StepOutcome, Taken, Transaction, TransactionStep, Want,
};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    kv::Row,
    render::{self, printable},
    session::Session,
};
use written::parse;

/// A file may have as much as the daemon takes, and JSON makes of it.
const MAX_FILE: u64 = 16 << 20;
const EXAMPLE: &str = r#"Example:
  bftctl txn -f move.json

  {
    "compare": [ {"key": "holder", "value": "alice"},
                 {"prefix": "jobs/", "version": 3, "is": "<"} ],
    "then":    [ {"put": {"key": "holder", "value": "bob"}},
                 {"get": {"prefix": "jobs/", "limit": 10, "keys_only": true}} ],
    "else":    [ {"get": {"key": "holder"}},
                 {"txn": {"compare": [], "then": [ {"del": {"key": "request"}} ]}} ]
  }

Keys: "key"; "prefix"; "from" and "end", which is not among them; or "from" alone.
Keys and values that are no text: "key_base64", "value_base64".

What is compared: "value", "version", "revision" (of the last change), "create_revision" or
"lease"; "is" may be "=" (as where it is left out), "!=", "<" or ">". Of many keys it must hold of
each; a key that does not exist has version, revisions and lease 0, and no value.

A put may have a "lease": a number, or text in hexadecimal, as in "7f".

A get may have "limit"; "keys_only"; "rev", to read as of a revision; "sort" by "key", "version",
"created", "modified" or "value", and "reverse", the highest first; or "count", which gives nothing
but the number of keys. What it gives may be "cut", or "not_read", which does not mean that there is
nothing: what the clients of one daemon read by transactions in one block is bounded, to some 4,096
keys and 2 MiB.

All comparisons look at the state before. All writes share one revision; so no key may be written
twice. A transaction has at most 128 comparisons, 128 steps and 1.5 MiB of keys and values, with
those in it, which may stand 41 deep in each other. The file has at most 16 MiB.

Exit codes: 1 a revision is compacted or yet to come, or there is no such lease · 4 the comparison
failed, and what stands under "else" was done"#;

/// Compare, and do one of two things, as one change.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Txn {
    /// The transaction, as JSON; `-` reads it from stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

impl Txn {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let text = self.read(session.is_shell)?;
        let transaction = parse(&text)?;
        let operation = Operation::Transaction(transaction.clone());
        operation.check().map_err(|refusal| Failure::usage(refusal.to_string()))?;
        let (taken, changed) = session.changes().await?.transact(transaction.clone()).await?;
        let answered = Answered { transaction: &transaction, place: 0, taken: &taken };
        let revision = changed.revision();
        match session.options.output() {
            Output::Json => render::json(&Body {
                succeeded: taken.succeeded,
                revision,
                index: changed.index,
                term: changed.term,
                results: answered.results(),
            })?,
            Output::Value => render::line(if taken.succeeded { "true" } else { "false" })?,
            Output::Table => {
                let words = if taken.succeeded { "the comparison held" } else { "the comparison failed" };
                render::line(&format!(
                    "{words} · revision {revision} · block {} · term {}",
                    changed.index, changed.term
                ))?;
                let mut lines = Vec::new();
                answered.describe(1, &mut lines);
                if !lines.is_empty() {
                    render::line(&lines.join("\n"))?;
                }
            }
        }
        match answered.unread() {
            0 => {}
            unread => session.say(&format!(
                "not read, or cut: {unread}. Transactions read no more than that in one block; ask for fewer keys, or for a limit"
            )),
        }
        Ok(if taken.succeeded { Code::Ok } else { Code::Mismatch })
    }

    fn read(&self, is_shell: bool) -> Result<String, Failure> {
        let mut text = Vec::new();
        let read = match self.file.to_str() {
            Some("-") if is_shell => {
                return Err(
                    Failure::usage("in the shell there is no other stdin to read from").next("use -f FILE")
                );
            }
            Some("-") => std::io::stdin().lock().take(MAX_FILE + 1).read_to_end(&mut text),
            _ => fs::File::open(&self.file).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text)),
        };
        let name = match self.file.to_str() {
            Some("-") => "stdin".to_owned(),
            _ => self.file.display().to_string(),
        };
        read.map_err(|error| Failure::usage(format!("can't read the transaction from {name}")).cause(error))?;
        if text.len() as u64 > MAX_FILE {
            return Err(Failure::usage(format!(
                "the transaction in {name} is too long: more than 16 MiB of JSON"
            ))
            .cause("a transaction carries at most 1.5 MiB of keys and values")
            .next("make several of it; a large value of its own is stored by bftctl put KEY @FILE"));
        }
        String::from_utf8(text).map_err(|error| {
            Failure::usage(format!("the transaction in {name} is no JSON"))
                .cause(error.utf8_error())
                .next("JSON is UTF-8; other bytes go into \"key_base64\" and \"value_base64\"")
        })
    }
}

#[derive(Serialize)]
struct Body {
    succeeded: bool,
    revision: u64,
    index: u64,
    term: u64,
    results: Vec<Value>,
}

/// A part of a transaction, and what came of it. How an answer is to be read depends on what was asked.
#[derive(Clone, Copy)]
struct Answered<'a> {
    transaction: &'a Transaction,
    place: usize,
    taken: &'a Taken,
}

impl<'a> Answered<'a> {
    /// The steps that were taken, each with what came of it.
    fn steps(self) -> impl Iterator<Item = (&'a TransactionStep, &'a StepOutcome)> {
        let part = self.transaction.parts.get(self.place);
        let asked = part.map(|part| if self.taken.succeeded { &part.then } else { &part.otherwise });
        asked.into_iter().flatten().zip(&self.taken.steps)
    }

    fn nested(self, asked: &TransactionStep, taken: &'a Taken) -> Self {
        let place = if let TransactionStep::Nested(place) = asked { usize::from(*place) } else { usize::MAX };
        Self { transaction: self.transaction, place, taken }
    }

    /// What came of the steps, as JSON.
    fn results(self) -> Vec<Value> {
        let step = |(asked, outcome): (&TransactionStep, &'a StepOutcome)| match outcome {
            StepOutcome::Put => json!({ "put": {} }),
            StepOutcome::Found(Listing { count: Some(count), .. }) => json!({ "get": { "count": count } }),
            StepOutcome::Found(listing) => {
                let row = |(key, entry): &'a (Bytes, Entry)| Row::new(key, entry, has_values(asked));
                let entries: Vec<_> = listing.entries.iter().map(row).collect();
                let mut found = json!({ "entries": entries, "more": listing.more });
                if is_cut(asked, listing) {
                    found["cut"] = true.into();
                }
                json!({ "get": found })
            }
            StepOutcome::NotRead => json!({ "get": { "not_read": true } }),
            StepOutcome::Deleted(keys) => json!({ "del": { "deleted": keys } }),
            StepOutcome::Nested(taken) => {
                let results = self.nested(asked, taken).results();
                json!({ "txn": { "succeeded": taken.succeeded, "results": results } })
            }
        };
        self.steps().map(step).collect()
    }

    /// What came of the steps, for people.
    fn describe(self, depth: usize, lines: &mut Vec<String>) {
        let indent = "  ".repeat(depth);
        for (asked, outcome) in self.steps() {
            match outcome {
                StepOutcome::Put => lines.push(format!("{indent}put")),
                StepOutcome::NotRead => {
                    lines.push(format!("{indent}not read: there may be such keys, or none"))
                }
                StepOutcome::Deleted(keys) => lines.push(format!("{indent}deleted {keys}")),
                StepOutcome::Found(Listing { count: Some(count), .. }) => {
                    lines.push(format!("{indent}counted {count}"))
                }
                StepOutcome::Found(listing) => {
                    let more = match (listing.more, is_cut(asked, listing)) {
                        (false, _) => "",
                        (true, false) => ", and there are more",
                        (true, true) => ", cut: there are more, that were not read",
                    };
                    lines.push(format!("{indent}found {}{more}", listing.entries.len()));
                    for (key, entry) in &listing.entries {
                        let (key, revision) = (printable(key), entry.mod_revision);
                        let mut line = format!("{indent}  {key}\t{revision}");
                        if has_values(asked) {
                            line += &format!("\t{}", printable(&entry.value));
                        }
                        lines.push(line);
                    }
                }
                StepOutcome::Nested(taken) => {
                    let words = if taken.succeeded { "the comparison held" } else { "the comparison failed" };
                    lines.push(format!("{indent}{words}"));
                    self.nested(asked, taken).describe(depth + 1, lines);
                }
            }
        }
    }

    /// How many gets were not read, or not to their end.
    fn unread(self) -> usize {
        let step = |(asked, outcome): (&TransactionStep, &'a StepOutcome)| match outcome {
            StepOutcome::NotRead => 1,
            StepOutcome::Found(listing) => usize::from(is_cut(asked, listing)),
            StepOutcome::Nested(taken) => self.nested(asked, taken).unread(),
            StepOutcome::Put | StepOutcome::Deleted(_) => 0,
        };
        self.steps().map(step).sum()
    }
}

/// Whether an answer has values: where only keys were asked for they are empty, which says nothing.
fn has_values(asked: &TransactionStep) -> bool {
    matches!(asked, TransactionStep::Get(Range { want: Want::Entries, .. }))
}

/// Whether there are more keys than an answer has, though more were asked for.
fn is_cut(asked: &TransactionStep, listing: &Listing) -> bool {
    let TransactionStep::Get(Range { limit, .. }) = asked else { return false };
    listing.more && (*limit == 0 || (listing.entries.len() as u64) < *limit)
}
