//! `txn`: compare, then or else.

use std::{fs, io::Read, path::PathBuf};

use bftd_client::{
    Bytes, Compare, Operation, Part, Property, Range, Relation, Span, StepOutcome, Taken, Transaction,
    TransactionStep, Want,
};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    kv::Row,
    render::{self, printable},
    session::Session,
};

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
What is compared: "value", "version", "revision" (of the last change) or "create_revision"; "is" may be "=" (as where it is
left out), "!=", "<" or ">". Of many keys it must hold of each; a key that does not exist has version and revisions 0, and no value.
Keys and values that are no text: "key_base64", "value_base64".

All comparisons look at the state before. All writes share one revision; so no key may be written twice.

Exit code 4: the comparison failed, and what stands under "else" was done."#;

/// Compare, and do one of two things, as one change.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Txn {
    /// The transaction, as JSON; `-` reads it from stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

/// A transaction as people write it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    compare: Vec<WrittenCompare>,
    #[serde(default)]
    then: Vec<WrittenStep>,
    #[serde(default, rename = "else")]
    otherwise: Vec<WrittenStep>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCompare {
    key: Option<String>,
    key_base64: Option<String>,
    prefix: Option<String>,
    from: Option<String>,
    end: Option<String>,
    #[serde(default)]
    is: Is,
    value: Option<String>,
    value_base64: Option<String>,
    version: Option<u64>,
    revision: Option<u64>,
    create_revision: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Is {
    #[default]
    #[serde(rename = "=")]
    Equal,
    #[serde(rename = "!=")]
    NotEqual,
    #[serde(rename = "<")]
    Less,
    #[serde(rename = ">")]
    Greater,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenStep {
    Put(WrittenPut),
    Get(WrittenGet),
    Del(WrittenDel),
    Txn(Written),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPut {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGet {
    key: Option<String>,
    key_base64: Option<String>,
    prefix: Option<String>,
    from: Option<String>,
    end: Option<String>,
    limit: Option<u64>,
    #[serde(default)]
    keys_only: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenDel {
    key: Option<String>,
    key_base64: Option<String>,
    prefix: Option<String>,
    from: Option<String>,
    end: Option<String>,
}

impl Txn {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let text = self.read(session.is_shell)?;
        let transaction = parse(&text)?;
        let operation = Operation::Transaction(transaction.clone());
        operation.check().map_err(|refusal| Failure::usage(refusal.to_string()))?;
        let (taken, changed) = session.changes().await?.transact(transaction).await?;
        let revision = changed.revision();
        match session.options.output() {
            Output::Json => render::json(&Body {
                succeeded: taken.succeeded,
                revision,
                index: changed.index,
                term: changed.term,
                results: results(&taken),
            })?,
            Output::Value => render::line(if taken.succeeded { "true" } else { "false" })?,
            Output::Table => {
                let words = if taken.succeeded { "the comparison held" } else { "the comparison failed" };
                render::line(&format!(
                    "{words} · revision {revision} · block {} · term {}",
                    changed.index, changed.term
                ))?;
                let mut lines = Vec::new();
                describe(&taken, 1, &mut lines);
                if !lines.is_empty() {
                    render::line(&lines.join("\n"))?;
                }
            }
        }
        Ok(if taken.succeeded { Code::Ok } else { Code::Mismatch })
    }

    fn read(&self, is_shell: bool) -> Result<String, Failure> {
        let mut text = String::new();
        let read = match self.file.to_str() {
            Some("-") if is_shell => {
                return Err(
                    Failure::usage("in the shell there is no other stdin to read from").next("use -f FILE")
                );
            }
            Some("-") => std::io::stdin().lock().take(MAX_FILE).read_to_string(&mut text),
            _ => fs::File::open(&self.file).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)),
        };
        read.map_err(|error| {
            Failure::usage(format!("can't read the transaction from {}", self.file.display())).cause(error)
        })?;
        Ok(text)
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

fn parse(text: &str) -> Result<Transaction, Failure> {
    let written: Written = serde_json::from_str(text).map_err(|error| {
        Failure::usage("the file is no transaction").cause(error).next("bftctl txn --help shows one")
    })?;
    let mut parts = Vec::new();
    place(written, &mut parts)?;
    Ok(Transaction { parts })
}

/// Puts a part, and then those in it, into the list. Answers where it is.
fn place(written: Written, parts: &mut Vec<Part>) -> Result<u8, Failure> {
    let at = parts.len();
    let number =
        u8::try_from(at).map_err(|_| Failure::usage("a transaction has at most 128 others in it"))?;
    let compare = written.compare.into_iter().map(compare).collect::<Result<_, _>>()?;
    parts.push(Part { compare, then: Vec::new(), otherwise: Vec::new() });
    let then = steps(written.then, parts)?;
    let otherwise = steps(written.otherwise, parts)?;
    if let Some(part) = parts.get_mut(at) {
        (part.then, part.otherwise) = (then, otherwise);
    }
    Ok(number)
}

fn steps(written: Vec<WrittenStep>, parts: &mut Vec<Part>) -> Result<Vec<TransactionStep>, Failure> {
    let step = |written| {
        Ok(match written {
            WrittenStep::Put(put) => {
                let key = bytes("key", put.key, put.key_base64)?.ok_or_else(|| lacks("a put", "a key"))?;
                let value =
                    bytes("value", put.value, put.value_base64)?.ok_or_else(|| lacks("a put", "a value"))?;
                TransactionStep::Put { key, value, lease: 0 }
            }
            WrittenStep::Get(get) => TransactionStep::Get(Range {
                limit: get.limit.unwrap_or(0),
                want: if get.keys_only { Want::Keys } else { Want::Entries },
                ..Range::of(span("a get", get.key, get.key_base64, get.prefix, get.from, get.end)?)
            }),
            WrittenStep::Del(del) => TransactionStep::Delete {
                keys: span("a del", del.key, del.key_base64, del.prefix, del.from, del.end)?,
            },
            WrittenStep::Txn(written) => TransactionStep::Nested(place(written, parts)?),
        })
    };
    written.into_iter().map(step).collect()
}

fn compare(written: WrittenCompare) -> Result<Compare, Failure> {
    let what = "a comparison";
    let keys = span(what, written.key, written.key_base64, written.prefix, written.from, written.end)?;
    let value = bytes("value", written.value, written.value_base64)?;
    let mut properties = [
        value.map(Property::Value),
        written.version.map(Property::Version),
        written.revision.map(Property::ModRevision),
        written.create_revision.map(Property::CreateRevision),
    ]
    .into_iter()
    .flatten();
    let (Some(property), None) = (properties.next(), properties.next()) else {
        return Err(lacks(what, "one of value, version, revision and create_revision"));
    };
    let relation = match written.is {
        Is::Equal => Relation::Equal,
        Is::NotEqual => Relation::NotEqual,
        Is::Less => Relation::Less,
        Is::Greater => Relation::Greater,
    };
    Ok(Compare { keys, property, relation })
}

/// The keys that one of the ways to name them names.
fn span(
    what: &str,
    key: Option<String>,
    key_base64: Option<String>,
    prefix: Option<String>,
    from: Option<String>,
    end: Option<String>,
) -> Result<Span, Failure> {
    match (bytes("key", key, key_base64)?, prefix, from, end) {
        (Some(key), None, None, None) => Ok(Span::Key(key)),
        (None, Some(prefix), None, None) => Ok(Span::Prefix(prefix.into())),
        (None, None, Some(from), Some(end)) => Ok(Span::Range { from: from.into(), end: end.into() }),
        (None, None, Some(from), None) => Ok(Span::From(from.into())),
        _ => Err(lacks(what, "one of key, prefix, and from with or without end")),
    }
}

fn bytes(name: &str, text: Option<String>, base64: Option<String>) -> Result<Option<Bytes>, Failure> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(Failure::usage(format!("{name} and {name}_base64 are both given"))),
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(base64)) => data_encoding::BASE64
            .decode(base64.as_bytes())
            .map(|bytes| Some(bytes.into()))
            .map_err(|error| Failure::usage(format!("{name}_base64 is not base64")).cause(error)),
        (None, None) => Ok(None),
    }
}

fn lacks(what: &str, needed: &str) -> Failure {
    Failure::usage(format!("{what} needs {needed}")).next("bftctl txn --help shows one")
}

/// What came of the steps, as JSON.
fn results(taken: &Taken) -> Vec<Value> {
    let step = |step: &StepOutcome| match step {
        StepOutcome::Put => json!({ "put": {} }),
        StepOutcome::Found(listing) => {
            let entries: Vec<_> =
                listing.entries.iter().map(|(key, entry)| Row::new(key, entry, true)).collect();
            json!({ "get": { "entries": entries, "more": listing.more } })
        }
        StepOutcome::NotRead => json!({ "get": { "not_read": true } }),
        StepOutcome::Deleted(keys) => json!({ "del": { "deleted": keys } }),
        StepOutcome::Nested(taken) => {
            json!({ "txn": { "succeeded": taken.succeeded, "results": results(taken) } })
        }
    };
    taken.steps.iter().map(step).collect()
}

/// What came of the steps, for people.
fn describe(taken: &Taken, depth: usize, lines: &mut Vec<String>) {
    let indent = "  ".repeat(depth);
    for step in &taken.steps {
        match step {
            StepOutcome::Put => lines.push(format!("{indent}put")),
            StepOutcome::NotRead => {
                lines.push(format!("{indent}not read: others read too much in this block"))
            }
            StepOutcome::Deleted(keys) => lines.push(format!("{indent}deleted {keys}")),
            StepOutcome::Found(listing) => {
                let more = if listing.more { ", and there are more" } else { "" };
                lines.push(format!("{indent}found {}{more}", listing.entries.len()));
                for (key, entry) in &listing.entries {
                    let (key, value) = (printable(key), printable(&entry.value));
                    lines.push(format!("{indent}  {key}\t{}\t{value}", entry.mod_revision));
                }
            }
            StepOutcome::Nested(taken) => {
                let words = if taken.succeeded { "the comparison held" } else { "the comparison failed" };
                lines.push(format!("{indent}{words}"));
                describe(taken, depth + 1, lines);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_example_of_the_help_is_a_transaction() {
        let example = EXAMPLE.split_once("\n\n").unwrap().1.split_once("\n\nKeys").unwrap().0;
        let transaction = parse(example).unwrap();
        assert!(transaction.check().is_ok());
        let [root, nested] = &transaction.parts[..] else { panic!("{transaction:?}") };
        assert_eq!((root.compare.len(), root.then.len(), root.otherwise.len()), (2, 2, 2));
        assert_eq!(root.otherwise[1], TransactionStep::Nested(1));
        assert_eq!(nested.then, [TransactionStep::Delete { keys: Span::Key("request".into()) }]);
        assert_eq!(root.compare[1].relation, Relation::Less);
    }

    #[test]
    fn what_is_none_is_refused_with_what_it_lacks() {
        for (text, words) in [
            ("{", "no transaction"),
            (r#"{"than": []}"#, "no transaction"),
            (r#"{"compare": [{"key": "a"}]}"#, "a comparison needs one of value"),
            (r#"{"compare": [{"key": "a", "value": "1", "version": 1}]}"#, "a comparison needs one of value"),
            (r#"{"compare": [{"version": 1}]}"#, "a comparison needs one of key"),
            (r#"{"compare": [{"key": "a", "prefix": "b", "version": 1}]}"#, "a comparison needs one of key"),
            (r#"{"then": [{"put": {"key": "a"}}]}"#, "a put needs a value"),
            (r#"{"then": [{"put": {"value": "a"}}]}"#, "a put needs a key"),
            (r#"{"then": [{"get": {"end": "a"}}]}"#, "a get needs one of key"),
            (r#"{"else": [{"del": {"key": "a", "key_base64": "YQ=="}}]}"#, "both given"),
            (r#"{"else": [{"del": {"key_base64": "?"}}]}"#, "is not base64"),
        ] {
            let failure = parse(text).unwrap_err();
            assert!(failure.message.contains(words), "{text}: {}", failure.message);
        }
    }
}
