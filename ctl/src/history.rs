//! `history`, `revert` and `compact`: what keys were, back to what one was, and no more of it.

use std::time::Duration;

use bftd_client::{
    Bytes, Changed, CompactUntil, Compare, Consistency, Entry, Error, Failure as Refused, Part, Property,
    Range, Refusal, Relation, Span, StepOutcome, Taken, Transaction, TransactionStep as Step, Want,
};
use clap::Args;
use serde::Serialize;

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    kv::{Freshness, check_key, get_as_of, no_such_key},
    render::{self, printable, text_or_base64},
    session::Session,
};

/// Show how a key changed, the newest change first.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl history greeting\n  bftctl history greeting --limit 10\n  bftctl history greeting --before 57 -o \
                        json\n\nIt goes back to the change that made the key what it was as of the compacted revision.\n\nExit \
                        code 3: nothing is known of such a key."
)]
pub(crate) struct History {
    /// The key
    key: String,
    /// Print at most so many changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Only changes before this revision
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    before: Option<u64>,
    #[command(flatten)]
    freshness: Freshness,
}

/// Put back the value that a key had, or delete it if it was not there.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  bftctl history greeting\n  bftctl revert greeting --rev 5\n\nIt is a change like any other: the history \
                        keeps what was between. Where the key is what it was, nothing is changed.\n\nExit codes: 1 the revision is compacted, \
                        or yet to come · 4 somebody changed the key meanwhile"
)]
pub(crate) struct Revert {
    /// The key
    key: String,
    /// As of which revision
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rev: u64,
}

/// Forget what keys were, which frees space on all members.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl compact --keep 7d\n  bftctl compact --rev 57 --yes\n\nKeys as they are stay, whenever they were \
                        changed; and what they were from that revision on can still be read. What is forgotten is lost for all members. Where it is \
                        forgotten already, or nothing is so old, nothing is done, and that is no error.\n\nExit code 1: the revision is yet to come."
)]
#[group(required = true, multiple = false, args = ["rev", "keep"])]
pub(crate) struct Compact {
    /// What was before this revision
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rev: Option<u64>,
    /// What was so long ago, by the cluster's clock, as in 12h, 7d
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    keep: Option<Duration>,
}

/// A change as a JSON object.
#[derive(Serialize)]
struct Row<'a> {
    revision: u64,
    change: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

impl<'a> Row<'a> {
    fn new((revision, entry): &'a (u64, Option<Entry>)) -> Self {
        let (value, value_base64) = entry.as_ref().map_or((None, None), |it| text_or_base64(&it.value));
        Self {
            revision: *revision,
            change: word(entry.as_ref()),
            version: entry.as_ref().map(|it| it.version),
            create_revision: entry.as_ref().map(|it| it.create_revision),
            value,
            value_base64,
        }
    }
}

fn word(entry: Option<&Entry>) -> &'static str {
    if entry.is_some() { "put" } else { "deleted" }
}

impl History {
    /// Reads page after page: what an answer has no room for is asked for with the next question.
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        check_key(&self.key)?;
        let client = session.client().await?;
        let output = session.options.output();
        let (mut before, mut left) = (self.before.unwrap_or(0), self.limit.unwrap_or(u64::MAX));
        let mut all = Vec::new();
        let mut is_first = true;
        loop {
            // 0 asks for as many as an answer carries.
            let limit = if self.limit.is_some() { left } else { 0 };
            let (found, at) =
                client.history(self.key.clone().into(), (before, limit), self.freshness.get()).await?;
            let mut changes = found.changes;
            if is_first && changes.is_empty() {
                return Err(self.unknown().into());
            }
            left = left.saturating_sub(changes.len() as u64);
            before = changes.last().map_or(before, |(revision, _)| *revision);
            let is_last = !found.more || left == 0 || changes.is_empty();
            if output == Output::Json {
                all.append(&mut changes);
            } else {
                print_page(&changes, output, is_first)?;
            }
            is_first = false;
            if !is_last {
                continue;
            }
            if output == Output::Json {
                self.print_json(&all, found.more, (at.revision, at.index))?;
            } else if found.more && session.options.verbose {
                session.say(&format!("there are more: --before {before} continues"));
            }
            return Ok(Code::Ok);
        }
    }

    fn print_json(
        &self,
        changes: &[(u64, Option<Entry>)],
        more: bool,
        (revision, index): (u64, u64),
    ) -> Result<(), Ended> {
        #[derive(Serialize)]
        struct Body<'a> {
            key: &'a str,
            changes: Vec<Row<'a>>,
            count: usize,
            more: bool,
            revision: u64,
            index: u64,
        }
        let changes: Vec<_> = changes.iter().map(Row::new).collect();
        let count = changes.len();
        render::json(&Body { key: &self.key, changes, count, more, revision, index })
    }

    fn unknown(&self) -> Failure {
        match self.before {
            None => no_such_key(&self.key)
                .cause("it never was, or was deleted before the oldest revision that can be read"),
            Some(before) => Failure::new(
                Code::NoSuchKey,
                format!("nothing is known of {} before revision {before}", printable(self.key.as_bytes())),
            )
            .detail("key", self.key.clone())
            .next(format!("bftctl history {} shows what is known", printable(self.key.as_bytes()))),
        }
    }
}

/// Bare values stand behind their revision and a tab; a deletion is a revision alone.
fn print_page(changes: &[(u64, Option<Entry>)], output: Output, is_first: bool) -> Result<(), Ended> {
    if output == Output::Table {
        let row = |(revision, entry): &(u64, Option<Entry>)| {
            let (version, value) = entry.as_ref().map_or_else(
                || ("-".to_owned(), String::new()),
                |it| (it.version.to_string(), printable(&it.value).into_owned()),
            );
            vec![revision.to_string(), version, word(entry.as_ref()).to_owned(), value]
        };
        let table = render::table(
            &["REVISION", "VERSION", "CHANGE", "VALUE"],
            &[0, 1],
            changes.iter().map(row).collect(),
        );
        let rows = table.split_once('\n').map_or("", |(_, rows)| rows);
        return render::line(if is_first { &table } else { rows });
    }
    let mut lines = Vec::new();
    for (revision, entry) in changes {
        lines.extend_from_slice(revision.to_string().as_bytes());
        if let Some(entry) = entry {
            lines.push(b'\t');
            lines.extend_from_slice(&entry.value);
        }
        lines.push(b'\n');
    }
    render::bytes(&lines)
}

impl Revert {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        check_key(&self.key)?;
        let client = session.client().await?;
        let key: Bytes = self.key.clone().into();
        let fresh = Consistency::Linearizable;
        let (then, _) = get_as_of(&client, key.clone(), self.rev, fresh).await?;
        let (now, at) = get_as_of(&client, key.clone(), 0, fresh).await?;
        if then.as_ref().map(|it| &it.value) == now.as_ref().map(|it| &it.value) {
            let words = match &now {
                Some(_) => "nothing to change: the value is that of revision",
                None => "nothing to change: there is no such key now, nor was there one at revision",
            };
            return self.print(session, words, ("unchanged", at.revision), None);
        }
        let (taken, changed) = client.transact(back(&key, then.as_ref(), now.as_ref())).await?;
        if !taken.succeeded {
            return Err(self.overtaken(now.as_ref(), &taken).into());
        }
        let (words, action) = match then {
            Some(_) => ("put back the value of revision", "put"),
            None => ("deleted: there was no such key at revision", "deleted"),
        };
        self.print(session, words, (action, changed.revision()), Some(&changed))
    }

    fn print(
        &self,
        session: &Session,
        words: &str,
        (action, revision): (&'static str, u64),
        changed: Option<&Changed>,
    ) -> Result<Code, Ended> {
        #[derive(Serialize)]
        struct Body<'a> {
            key: &'a str,
            action: &'static str,
            as_of: u64,
            revision: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            index: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            term: Option<u64>,
        }
        match session.options.output() {
            Output::Json => {
                let (index, term) = (changed.map(|it| it.index), changed.map(|it| it.term));
                render::json(&Body { key: &self.key, action, as_of: self.rev, revision, index, term })?;
            }
            Output::Value => render::line(action)?,
            Output::Table => {
                let place = changed.map_or_else(String::new, |Changed { index, term, .. }| {
                    format!(" · revision {revision} · block {index} · term {term}")
                });
                render::line(&format!("{words} {}{place}", self.rev))?;
            }
        }
        Ok(Code::Ok)
    }

    /// Somebody changed the key between our reading and our writing.
    fn overtaken(&self, read: Option<&Entry>, taken: &Taken) -> Failure {
        let name = printable(self.key.as_bytes());
        let found = match taken.steps.first() {
            Some(StepOutcome::Found(listing)) => {
                listing.entries.first().map_or(0, |(_, entry)| entry.mod_revision)
            }
            _ => 0,
        };
        let now = if found == 0 {
            "it is deleted now".to_owned()
        } else {
            format!("it is at revision {found} now")
        };
        let before = read.map_or_else(
            || "there was no such key when it was read".to_owned(),
            |it| format!("it was at revision {} when it was read", it.mod_revision),
        );
        Failure::new(Code::Mismatch, format!("nothing was changed: somebody else changed {name} meanwhile"))
            .cause(format!("{now}; {before}"))
            .next(format!("bftctl history {name} shows what it is now; then the same command again"))
            .detail("key", self.key.clone())
            .detail("found", found)
    }
}

/// Makes a key what it was, if it is still what was read. It hangs on the lease that it hangs on now.
fn back(key: &Bytes, then: Option<&Entry>, now: Option<&Entry>) -> Transaction {
    let keys = Span::Key(key.clone());
    let step = match then {
        Some(then) => {
            let lease = now.map_or(0, |now| now.lease);
            Step::Put { key: key.clone(), value: then.value.clone(), lease }
        }
        None => Step::Delete { keys: keys.clone() },
    };
    let compare = Compare {
        keys: keys.clone(),
        property: Property::ModRevision(now.map_or(0, |now| now.mod_revision)),
        relation: Relation::Equal,
    };
    let found = Step::Get(Range { want: Want::Keys, ..Range::of(keys) });
    Transaction { parts: vec![Part { compare: vec![compare], then: vec![step], otherwise: vec![found] }] }
}

impl Compact {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let (until, what) = match (self.rev, self.keep) {
            (Some(revision), _) => (CompactUntil::Revision(revision), format!("before revision {revision}")),
            (None, keep) => {
                let keep = keep.unwrap_or_default();
                let age_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
                (CompactUntil::Age(age_ms), format!("{} ago", humantime::format_duration(keep)))
            }
        };
        let client = session.client().await?;
        if !session
            .confirms(&format!("Forget, on all members, what keys were {what}? It can't be read again."))?
        {
            return Err(Failure::other("nothing was compacted").into());
        }
        match client.compact(until).await {
            Ok((compacted, changed)) => print_compacted(session, compacted, Some(&changed)),
            // That it is forgotten already is what was asked for.
            Err(Error::Failed(Refused::Refused(Refusal::Compacted { compacted }))) => {
                print_compacted(session, compacted, None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Says what can be read now. Before the first compaction that is everything, from the empty store at revision 1 on.
fn print_compacted(session: &Session, compacted: u64, changed: Option<&Changed>) -> Result<Code, Ended> {
    #[derive(Serialize)]
    struct Body {
        oldest: u64,
        compacted: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        revision: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        index: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        term: Option<u64>,
    }
    let oldest = compacted.max(1);
    match session.options.output() {
        Output::Json => render::json(&Body {
            oldest,
            compacted,
            revision: changed.map(Changed::revision),
            index: changed.map(|it| it.index),
            term: changed.map(|it| it.term),
        })?,
        Output::Value => render::line(&oldest.to_string())?,
        Output::Table => {
            let words = match (compacted, changed) {
                (0, _) => "nothing is so old: all can be read, from revision 1 on".to_owned(),
                (_, None) => {
                    format!("nothing to do: revision {oldest} is the oldest that can be read already")
                }
                (_, Some(_)) => format!("revision {oldest} is the oldest that can be read now"),
            };
            let place = changed.map_or_else(String::new, |Changed { index, term, .. }| {
                format!(" · block {index} · term {term}")
            });
            render::line(&format!("{words}{place}"))?;
        }
    }
    Ok(Code::Ok)
}
