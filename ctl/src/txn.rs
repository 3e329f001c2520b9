//! `txn`: compare, then or else.

use std::{fs, io::Read, path::PathBuf};

use bftd_client::{
    Bytes, Compare, Entry, Listing, Operation, Part, Property, Range, Relation, Span, StepOutcome, Taken,
    Transaction, TransactionStep, Want,
};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    kv::Row,
    ls::Sort,
    render::{self, printable},
    session::Session,
};

/// A file may have as much as the daemon takes, and JSON makes of it.
const MAX_FILE: u64 = 16 << 20;
/// How deep transactions may stand in each other. The JSON reader, which bounds its own stack, goes no deeper.
const MAX_NESTED: usize = 41;
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
What is compared: "value", "version", "revision" (of the last change), "create_revision" or "lease"; "is" may be "=" (as where it is
left out), "!=", "<" or ">". Of many keys it must hold of each; a key that does not exist has version, revisions and lease 0, and no value.
Keys and values that are no text: "key_base64", "value_base64".

A put may have a "lease": a number, or text in hexadecimal, as in "7f".
A get may have "keys_only"; "limit"; "rev", to read as of a revision; "sort" by "key", "version", "created", "modified" or "value", and
"reverse", the highest first; or "count", which gives nothing but the number of keys. What it gives may be "cut", or "not_read", which is
not the same as empty: what transactions read in one block is bounded, to some 4,096 keys and 2 MiB for the clients of each daemon.

All comparisons look at the state before. All writes share one revision; so no key may be written twice. A transaction has at most 128
comparisons, 128 steps and 1.5 MiB of keys and values, those in it included; they may stand 41 deep in each other. The file has at
most 16 MiB.

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
    lease: Option<Lease>,
}

/// A lease's id.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a lease is a number below 2^64, or text in hexadecimal")]
enum Lease {
    Number(u64),
    Hex(String),
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
    lease: Option<Lease>,
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
    rev: Option<u64>,
    sort: Option<Sort>,
    #[serde(default)]
    reverse: bool,
    #[serde(default)]
    count: bool,
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
        let (taken, changed) = session.client().await?.transact(transaction.clone()).await?;
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
        let name = self.file.display();
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

fn parse(text: &str) -> Result<Transaction, Failure> {
    let written: Written = serde_json::from_str(text).map_err(|error| {
        // There is no other way to tell this error from others.
        if error.to_string().starts_with("recursion limit exceeded") {
            return Failure::usage(format!(
                "the transactions stand too deep in each other: {MAX_NESTED} deep is as deep as it goes"
            ))
            .cause(error)
            .next("put their comparisons into one, or decide in several transactions, each after the one before");
        }
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
                TransactionStep::Put { key, value, lease: lease(put.lease)?.unwrap_or(0) }
            }
            WrittenStep::Get(get) => TransactionStep::Get(range(get)?),
            WrittenStep::Del(del) => TransactionStep::Delete {
                keys: span("a del", del.key, del.key_base64, del.prefix, del.from, del.end)?,
            },
            WrittenStep::Txn(written) => TransactionStep::Nested(place(written, parts)?),
        })
    };
    written.into_iter().map(step).collect()
}

fn range(get: WrittenGet) -> Result<Range, Failure> {
    let is_listing = get.keys_only || get.limit.is_some() || get.sort.is_some() || get.reverse;
    if get.count && is_listing {
        return Err(Failure::usage(
            "a get with \"count\" gives a number alone: no keys_only, limit, sort or reverse",
        )
        .next("make two gets of it"));
    }
    // 0 stands for the newest one, and for no limit, where they are left out.
    if get.rev == Some(0) || get.limit == Some(0) {
        return Err(Failure::usage("\"rev\" and \"limit\" begin at 1")
            .next("leave it out to read the newest, or all"));
    }
    let keys = span("a get", get.key, get.key_base64, get.prefix, get.from, get.end)?;
    let want = match (get.count, get.keys_only) {
        (true, _) => Want::Count,
        (false, true) => Want::Keys,
        (false, false) => Want::Entries,
    };
    Ok(Range {
        revision: get.rev.unwrap_or(0),
        limit: get.limit.unwrap_or(0),
        order: get.sort.unwrap_or_default().order(get.reverse),
        want,
        count: get.count,
        ..Range::of(keys)
    })
}

fn lease(written: Option<Lease>) -> Result<Option<u64>, Failure> {
    match written {
        None => Ok(None),
        Some(Lease::Number(id)) => Ok(Some(id)),
        Some(Lease::Hex(text)) => u64::from_str_radix(&text, 16).map(Some).map_err(|error| {
            Failure::usage(format!("{text:?} is no lease"))
                .cause(error)
                .next("a lease is a number, or text in hexadecimal, as in \"7f\"")
        }),
    }
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
        lease(written.lease)?.map(Property::Lease),
    ]
    .into_iter()
    .flatten();
    let (Some(property), None) = (properties.next(), properties.next()) else {
        return Err(lacks(what, "one of value, version, revision, create_revision and lease"));
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
