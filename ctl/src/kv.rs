//! `put`, `get` and `del`.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, IsTerminal, Read},
    os::unix::ffi::{OsStrExt, OsStringExt},
    time::Duration,
};

use bftd_client::{
    At, Bytes, Changed, Client, Compare, Consistency, Entry, Expect, MAX_VALUE, Operation, Outcome, Part,
    Property, Range, Relation, Span, StepOutcome, Trace, Transaction, TransactionStep,
};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    lease::{grant, lease_id},
    render::{self, printable, text_or_base64},
    session::Session,
    trace,
};

/// Store a value.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl put greeting hello\n  bftctl put photo @cat.jpg\n  date | bftctl put now -\n  \
                        bftctl put greeting bonjour --if-rev 5\n  bftctl put greeting salut --trace\n\nA value that \
                        begins with `@`, or is `-`, comes through stdin: printf @home | bftctl put place -\n\nA trace tells what \
                        the daemon asked saw, in seconds since the request came: votes go to the leader, so a follower \
                        sees their certificates, and few messages."
)]
pub(crate) struct Put {
    /// The key: 1 B to 4 KiB
    key: String,
    /// The value, up to 1 MiB; `-` reads it from stdin, `@FILE` from a file
    #[arg(allow_hyphen_values = true)]
    value: OsString,
    /// Only if the key was last changed at this revision
    #[arg(long, value_name = "N", conflicts_with = "if_absent")]
    if_rev: Option<u64>,
    /// Only if the key does not exist
    #[arg(long)]
    if_absent: bool,
    /// Let the key go when this lease ends
    #[arg(long, value_name = "ID", value_parser = lease_id, conflicts_with = "ttl")]
    lease: Option<u64>,
    /// Let the key go after this time, as in 30s: on a lease of its own
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    #[command(flatten)]
    fence: Fence,
    /// Check that the value is JSON
    #[arg(long)]
    json: bool,
    /// Print what the agreement took: when and by whose votes, and what messages came meanwhile, as the daemon asked saw it
    #[arg(long)]
    trace: bool,
}

/// Print the value of a key.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl get greeting\n  bftctl get greeting --rev 5\n  bftctl get greeting -o json --consistency \
                        local\n\nExit codes: 1 the revision is compacted, or yet to come · 3 no such key, or none at that revision"
)]
pub(crate) struct Get {
    /// The key
    key: String,
    /// As it was at this revision, if that is not compacted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rev: Option<u64>,
    #[command(flatten)]
    freshness: Freshness,
}

/// Delete a key, or all keys that begin with a prefix.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl del greeting\n  bftctl del users/ --prefix\n\nExit code 3: no such key."
)]
pub(crate) struct Del {
    /// The key
    key: String,
    /// Delete every key that begins with it
    #[arg(long)]
    prefix: bool,
    #[command(flatten)]
    fence: Fence,
}

#[derive(Args, Debug)]
struct Fence {
    /// Only while there is the key KEY that was created at revision N: the lock that `bftctl lock` holds
    #[arg(long, value_name = "KEY@N", env = "BFTCTL_FENCE")]
    fence: Option<String>,
}

impl Fence {
    fn compare(&self) -> Result<Option<Compare>, Failure> {
        let Some(text) = self.fence.as_ref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let parts = text.rsplit_once('@').and_then(|(key, token)| Some((key, token.parse().ok()?)));
        let (key, token) = parts.ok_or_else(|| {
            Failure::usage("a fence is a key, @ and the revision at which it was created")
                .next("bftctl lock sets it as BFTCTL_FENCE for the command that it runs")
        })?;
        check_key(key)?;
        Ok(Some(bftd_client::fence(Bytes::copy_from_slice(key.as_bytes()), token)))
    }
}

/// What a put expects of its key, as a comparison.
fn expected(key: &Bytes, expect: Expect) -> Option<Compare> {
    let property = match expect {
        Expect::Anything => return None,
        Expect::Absent => Property::CreateRevision(0),
        Expect::Revision(revision) => Property::ModRevision(revision),
    };
    Some(Compare { keys: Span::Key(key.clone()), property, relation: Relation::Equal })
}

/// One step, if all comparisons hold.
fn fenced(compare: Vec<Compare>, step: TransactionStep) -> Operation {
    let part = Part { compare, then: vec![step], otherwise: vec![] };
    Operation::Transaction(Transaction { parts: vec![part] })
}

fn behind_fence(key: &str) -> Failure {
    Failure::new(
        Code::Mismatch,
        format!("{} was not changed: the fence does not hold", printable(key.as_bytes())),
    )
    .cause("the lock is not held any more, or the key is not as was expected")
    .next("take the lock again: bftctl lock NAME -- CMD")
}

#[derive(Args, Debug)]
pub(crate) struct Freshness {
    /// `linearizable` reflects everything acknowledged before; `local` is at once and may be old
    #[arg(long, value_enum, default_value_t)]
    consistency: Fresh,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Fresh {
    #[default]
    Linearizable,
    Local,
}

impl Freshness {
    pub(crate) fn get(&self) -> Consistency {
        match self.consistency {
            Fresh::Linearizable => Consistency::Linearizable,
            Fresh::Local => Consistency::Local,
        }
    }
}

impl Put {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let value = read_value(self.value, session.is_shell)?;
        if self.json {
            check_json(&value)?;
        }
        let expect = match self.if_rev {
            _ if self.if_absent => Expect::Absent,
            Some(revision) => Expect::Revision(revision),
            None => Expect::Anything,
        };
        let key: Bytes = self.key.clone().into();
        Operation::put(key.clone(), value.clone())
            .check()
            .map_err(|refusal| Failure::usage(refusal.to_string()))?;
        let fence = self.fence.compare()?;
        let granted = match self.ttl {
            Some(ttl) => Some(grant(session, None, ttl).await?.0),
            None => None,
        };
        let lease = granted.or(self.lease).unwrap_or(0);
        let operation = match fence {
            None => Operation::Put { key, value, expect, lease },
            Some(fence) => {
                let mut compare = vec![fence];
                compare.extend(expected(&key, expect));
                fenced(compare, TransactionStep::Put { key, value, lease })
            }
        };
        let (changed, trace) = if self.trace {
            execute_traced(session, operation).await?
        } else {
            (execute(session, operation).await?, None)
        };
        let is_put = match &changed.outcome {
            Outcome::Put { .. } => true,
            Outcome::Transaction { taken, .. } => taken.succeeded,
            _ => false,
        };
        if let (Some(lease), false) = (granted, is_put) {
            // Nothing hangs on it. Where that fails, it ends by itself.
            let _ = session.changes().await?.execute(Operation::RevokeLease { lease }).await;
        }
        let revision = match changed.outcome {
            Outcome::Put { revision } => revision,
            Outcome::Transaction { ref taken, revision } if taken.succeeded => revision,
            Outcome::Transaction { revision, .. } => {
                return Err(behind_fence(&self.key).detail("revision", revision).into());
            }
            Outcome::Mismatch { found, revision } => {
                return Err(mismatch(&self.key, expect, found).detail("revision", revision).into());
            }
            ref other => return Err(unexpected(other).into()),
        };
        let words = match granted {
            Some(lease) => format!("revision {revision} · lease {lease:x}"),
            None => format!("revision {revision}"),
        };
        print_change(session, &words, revision, None, &changed, trace.as_ref())?;
        if self.trace && trace.is_none() {
            session
                .say("no trace: the daemon follows as many changes as it may already; the value is stored");
        }
        Ok(Code::Ok)
    }
}

impl Get {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        check_key(&self.key)?;
        let client = session.client().await?;
        let key: Bytes = self.key.clone().into();
        let (entry, at) = match self.rev {
            None => client.get(key, self.freshness.get()).await?,
            Some(revision) => get_as_of(&client, key, revision, self.freshness.get()).await?,
        };
        session.debug(|| format!("answered from block {}, executed {} ms ago", at.index, at.age_ms));
        let Some(entry) = entry else {
            return Err(match self.rev {
                None => no_such_key(&self.key),
                Some(revision) => not_there_at(&self.key, revision),
            }
            .into());
        };
        if session.options.is_json() {
            #[derive(Serialize)]
            struct Body<'a> {
                #[serde(flatten)]
                row: Row<'a>,
                index: u64,
            }
            render::json(&Body { row: Row::new(self.key.as_bytes(), &entry, true), index: at.index })?;
        } else {
            let mut value = entry.value.to_vec();
            if (session.is_shell || io::stdout().is_terminal()) && !value.ends_with(b"\n") {
                value.push(b'\n');
            }
            render::bytes(&value)?;
        }
        Ok(Code::Ok)
    }
}

impl Del {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let key: Bytes = self.key.clone().into();
        let operation = match (self.fence.compare()?, self.prefix) {
            (Some(fence), is_prefix) => {
                let keys = if is_prefix { Span::Prefix(key) } else { Span::Key(key) };
                fenced(vec![fence], TransactionStep::Delete { keys })
            }
            (None, true) => Operation::DeletePrefix { prefix: key },
            (None, false) => Operation::Delete { key },
        };
        let changed = execute(session, operation).await?;
        let (revision, keys) = match changed.outcome {
            Outcome::Deleted { revision, keys } => (revision, keys),
            Outcome::Transaction { ref taken, revision } => match &taken.steps[..] {
                [StepOutcome::Deleted(keys)] if taken.succeeded => (revision, *keys),
                _ => return Err(behind_fence(&self.key).detail("revision", revision).into()),
            },
            ref other => return Err(unexpected(other).into()),
        };
        if keys == 0 && !self.prefix {
            return Err(no_such_key(&self.key).detail("revision", revision).into());
        }
        let plural = if keys == 1 { "" } else { "s" };
        print_change(
            session,
            &format!("deleted {keys} key{plural}"),
            keys,
            Some((revision, keys)),
            &changed,
            None,
        )?;
        Ok(Code::Ok)
    }
}

/// An entry as a JSON object.
#[derive(Serialize)]
pub(crate) struct Row<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    revision: u64,
    create_revision: u64,
    version: u64,
}

impl<'a> Row<'a> {
    pub(crate) fn new(key: &'a [u8], entry: &'a Entry, with_value: bool) -> Self {
        let (key, key_base64) = text_or_base64(key);
        let (value, value_base64) = if with_value { text_or_base64(&entry.value) } else { (None, None) };
        let Entry { create_revision, mod_revision: revision, version, .. } = *entry;
        Self { key, key_base64, value, value_base64, revision, create_revision, version }
    }
}

/// A key as it was at a revision; 0 is now.
pub(crate) async fn get_as_of(
    client: &Client,
    key: Bytes,
    revision: u64,
    consistency: Consistency,
) -> Result<(Option<Entry>, At), Ended> {
    let (listing, at) = client.range(Range { revision, ..Range::of(Span::Key(key)) }, consistency).await?;
    Ok((listing.entries.into_iter().next().map(|(_, entry)| entry), at))
}

/// Has a change made, once. What is out of bounds is refused before a daemon is even looked for.
async fn execute(session: &mut Session, operation: Operation) -> Result<Changed, Ended> {
    operation.check().map_err(|refusal| Failure::usage(refusal.to_string()))?;
    Ok(session.changes().await?.execute(operation).await?)
}

/// [`execute`], with what it took, where the daemon tells.
async fn execute_traced(
    session: &mut Session,
    operation: Operation,
) -> Result<(Changed, Option<Trace>), Ended> {
    operation.check().map_err(|refusal| Failure::usage(refusal.to_string()))?;
    Ok(session.changes().await?.execute_traced(operation).await?)
}

fn print_change(
    session: &Session,
    words: &str,
    value: u64,
    deleted: Option<(u64, u64)>,
    changed: &Changed,
    trace: Option<&Trace>,
) -> Result<(), Ended> {
    #[derive(Serialize)]
    struct Body<'a> {
        revision: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        deleted: Option<u64>,
        index: u64,
        term: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        trace: Option<trace::Body<'a>>,
    }
    let Changed { index, term, .. } = *changed;
    match session.options.output() {
        Output::Table => {
            let line = format!("{words} · block {index} · term {term}\n");
            let trace = trace.map_or_else(String::new, |trace| format!("\n{}", trace::text(trace)));
            render::bytes(format!("{line}{trace}").as_bytes())
        }
        Output::Value => {
            if let Some(trace) = trace {
                session.say(trace::text(trace).trim_end());
            }
            render::line(&value.to_string())
        }
        Output::Json => {
            let revision = deleted.map_or(value, |(revision, _)| revision);
            let (deleted, trace) = (deleted.map(|(_, keys)| keys), trace.map(trace::Body::new));
            render::json(&Body { revision, deleted, index, term, trace })
        }
    }
}

/// The value that an argument names: itself, stdin, or a file.
fn read_value(argument: OsString, is_shell: bool) -> Result<Bytes, Failure> {
    match argument.as_bytes() {
        b"-" if is_shell => {
            Err(Failure::usage("in the shell there is no other stdin to read a value from").next("use @FILE"))
        }
        b"-" => {
            read_limited(io::stdin().lock()).map_err(|error| Failure::other("can't read stdin").cause(error))
        }
        [b'@', path @ ..] => {
            let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
            File::open(path).and_then(read_limited).map_err(|error| {
                Failure::usage(format!("can't read the value from {}", path.display())).cause(error).next(
                    "a value that begins with @ itself comes through stdin: printf @x | bftctl put KEY -",
                )
            })
        }
        _ => Ok(argument.into_vec().into()),
    }
}

/// One byte more than a value may have is enough to refuse it.
fn read_limited(input: impl Read) -> io::Result<Bytes> {
    let mut value = Vec::new();
    input.take(MAX_VALUE as u64 + 1).read_to_end(&mut value)?;
    Ok(value.into())
}

fn check_json(value: &[u8]) -> Result<(), Failure> {
    serde_json::from_slice::<serde::de::IgnoredAny>(value).map(|_| ()).map_err(|error| {
        Failure::usage("the value is not JSON").cause(error).next("leave out --json to store it as it is")
    })
}

pub(crate) fn check_key(key: &str) -> Result<(), Failure> {
    let operation = Operation::Delete { key: Bytes::copy_from_slice(key.as_bytes()) };
    operation.check().map_err(|refusal| Failure::usage(refusal.to_string()))
}

pub(crate) fn no_such_key(key: &str) -> Failure {
    Failure::new(Code::NoSuchKey, format!("no such key: {}", printable(key.as_bytes()))).detail("key", key)
}

fn not_there_at(key: &str, revision: u64) -> Failure {
    let name = printable(key.as_bytes());
    Failure::new(Code::NoSuchKey, format!("no such key at revision {revision}: {name}"))
        .next(format!("bftctl history {name} shows when it was there"))
        .detail("key", key)
        .detail("revision", revision)
}

fn mismatch(key: &str, expect: Expect, found: u64) -> Failure {
    let name = printable(key.as_bytes());
    let cause = match (expect, found) {
        (_, 0) => "the key does not exist".to_owned(),
        (Expect::Revision(wanted), found) => format!("the key is at revision {found}, not {wanted}"),
        (_, found) => format!("the key exists, at revision {found}"),
    };
    let next = if found == 0 {
        format!("bftctl put {name} … --if-absent")
    } else {
        format!("bftctl get {name} -o json")
    };
    Failure::new(Code::Mismatch, format!("nothing was changed: the comparison failed for {name}"))
        .cause(cause)
        .next(next)
        .detail("key", key)
        .detail("found", found)
}

fn unexpected(outcome: &Outcome) -> Failure {
    Failure::other("the daemon did something else").cause(format!("{outcome:?}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn entries_are_text_where_they_can_be() {
        let entry =
            Entry { value: vec![0xff].into(), create_revision: 2, mod_revision: 5, version: 3, lease: 0 };
        let text = serde_json::to_string(&Row::new(b"a", &entry, true)).unwrap();
        assert_eq!(text, r#"{"key":"a","value_base64":"/w==","revision":5,"create_revision":2,"version":3}"#);
        let text = serde_json::to_string(&Row::new(b"\xfe", &entry, false)).unwrap();
        assert_eq!(text, r#"{"key_base64":"/g==","revision":5,"create_revision":2,"version":3}"#);
    }

    #[test]
    fn a_mismatch_names_what_was_found() {
        let cause = |expect, found| mismatch("k", expect, found).cause.unwrap();
        assert_eq!(cause(Expect::Revision(3), 7), "the key is at revision 7, not 3");
        assert_eq!(cause(Expect::Absent, 7), "the key exists, at revision 7");
        assert_eq!(cause(Expect::Revision(3), 0), "the key does not exist");
    }
}
