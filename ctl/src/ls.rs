//! `ls`: keys, now or as of a revision, in any order.

use bftd_client::{Bytes, Client, Entry, MAX_KEY, Order, Range, SortBy, Span, Want};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    kv::{Freshness, Row},
    render::{self, printable},
    session::Session,
};

/// How many keys are asked for at once.
const PAGE: u64 = 1000;

/// List keys.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl ls\n  bftctl ls users/ --values --limit 10\n  bftctl ls users/ --count --rev 5\n  bftctl ls \
                        --sort modified --reverse --limit 10\n\nA listing shows the keys as of one revision, however many they are. In \
                        another order than that of the keys it has at most 65,536, and 8 MiB.\n\nExit code 1: the revision is compacted, or \
                        yet to come; or a sorted listing is cut."
)]
pub(crate) struct Ls {
    /// What the keys begin with
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    /// Print the values too
    #[arg(long)]
    values: bool,
    /// Print at most so many keys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Only keys after this one
    #[arg(long, value_name = "KEY", conflicts_with_all = ["sort", "reverse"])]
    start_after: Option<String>,
    /// Print only how many there are
    #[arg(long, conflicts_with_all = ["values", "limit", "start_after", "sort", "reverse"])]
    count: bool,
    /// As they were at this revision, if that is not compacted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rev: Option<u64>,
    /// In this order: of keys, of how often they were put, of the revisions at which they were created or last changed, or of values
    #[arg(long, value_enum, value_name = "BY")]
    sort: Option<Sort>,
    /// The highest first
    #[arg(long)]
    reverse: bool,
    #[command(flatten)]
    freshness: Freshness,
}

/// What keys are sorted by.
#[derive(Clone, Copy, Debug, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sort {
    #[default]
    Key,
    Version,
    Created,
    Modified,
    Value,
}

impl Sort {
    pub(crate) fn order(self, descending: bool) -> Order {
        let by = match self {
            Self::Key => SortBy::Key,
            Self::Version => SortBy::Version,
            Self::Created => SortBy::CreateRevision,
            Self::Modified => SortBy::ModRevision,
            Self::Value => SortBy::Value,
        };
        Order { by, descending }
    }
}

/// A listing as a JSON object.
#[derive(Serialize)]
struct Body<'a> {
    entries: Vec<Row<'a>>,
    count: usize,
    more: bool,
    revision: u64,
    index: u64,
}

impl Ls {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        for key in [Some(&self.prefix), self.start_after.as_ref()].into_iter().flatten() {
            if key.len() > MAX_KEY {
                return Err(Failure::usage(format!(
                    "a key has at most {MAX_KEY} bytes, this one has {}",
                    key.len()
                ))
                .into());
            }
        }
        let client = session.client().await?;
        if self.count {
            self.count(session, &client).await
        } else if self.order() == Order::default() {
            self.list(session, &client).await
        } else {
            self.sorted(session, &client).await
        }
    }

    fn order(&self) -> Order {
        self.sort.unwrap_or_default().order(self.reverse)
    }

    /// All that is asked of these keys, but for their number.
    fn range(&self, keys: Span) -> Range {
        let want = if self.values { Want::Entries } else { Want::Keys };
        Range { revision: self.rev.unwrap_or(0), order: self.order(), want, ..Range::of(keys) }
    }

    fn prefix(&self) -> Span {
        Span::Prefix(self.prefix.clone().into())
    }

    async fn count(&self, session: &Session, client: &Client) -> Result<Code, Ended> {
        #[derive(Serialize)]
        struct Body {
            count: u64,
            revision: u64,
            index: u64,
        }
        let range = Range { revision: self.rev.unwrap_or(0), ..Range::count_of(self.prefix()) };
        let (listing, at) = client.range(range, self.freshness.get()).await?;
        let count = listing.count.unwrap_or_default();
        if session.options.is_json() {
            render::json(&Body { count, revision: self.rev.unwrap_or(at.revision), index: at.index })?;
        } else {
            render::line(&count.to_string())?;
        }
        Ok(Code::Ok)
    }

    /// Reads page after page. A table or bare values are printed as they come, JSON is one object at the end.
    async fn list(&self, session: &Session, client: &Client) -> Result<Code, Ended> {
        let output = session.options.output();
        let mut start_after: Option<Bytes> = self.start_after.clone().map(Into::into);
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut revision = self.rev;
        let mut all = Vec::new();
        loop {
            let keys = match &start_after {
                Some(after) => Span::prefix_after(self.prefix.as_bytes(), after),
                None => self.prefix(),
            };
            let range = Range { revision: revision.unwrap_or(0), limit: left.min(PAGE), ..self.range(keys) };
            let (listing, at) = client.range(range, self.freshness.get()).await?;
            // All pages are of the first one's revision.
            let revision = *revision.get_or_insert(at.revision);
            left = left.saturating_sub(listing.entries.len() as u64);
            start_after = listing.entries.last().map(|(key, _)| key.clone());
            let is_last = !listing.more || left == 0 || start_after.is_none();
            if output == Output::Json {
                all.extend(listing.entries);
            } else {
                self.print_page(&listing.entries, output)?;
            }
            if !is_last {
                continue;
            }
            if output == Output::Json {
                self.print_json(&all, listing.more, (revision, at.index))?;
            } else if listing.more && session.options.verbose {
                session.say("there are more: --start-after KEY continues");
            }
            return Ok(Code::Ok);
        }
    }

    /// What is sorted comes in one answer. One that is cut has no other half, so it is an error.
    async fn sorted(&self, session: &Session, client: &Client) -> Result<Code, Ended> {
        let range = Range { limit: self.limit.unwrap_or(0), ..self.range(self.prefix()) };
        let (listing, at) = client.range(range, self.freshness.get()).await?;
        let output = session.options.output();
        if output == Output::Json {
            self.print_json(&listing.entries, listing.more, (self.rev.unwrap_or(at.revision), at.index))?;
        } else {
            self.print_page(&listing.entries, output)?;
        }
        let is_cut = listing.more && self.limit.is_none_or(|limit| (listing.entries.len() as u64) < limit);
        if is_cut {
            let first = listing.entries.len();
            return Err(Failure::other(format!("the listing is cut: it has the first {first} keys"))
                .cause("one answer carries about 8 MiB, and a sorted listing is one answer")
                .next("leave out --values, give a longer prefix, or ask for the order of keys: that one has no limit")
                .into());
        }
        Ok(Code::Ok)
    }

    fn print_json(
        &self,
        entries: &[(Bytes, Entry)],
        more: bool,
        (revision, index): (u64, u64),
    ) -> Result<(), Ended> {
        let entries: Vec<_> = entries.iter().map(|(key, entry)| Row::new(key, entry, self.values)).collect();
        let count = entries.len();
        render::json(&Body { entries, count, more, revision, index })
    }

    fn print_page(&self, entries: &[(Bytes, Entry)], output: Output) -> Result<(), Ended> {
        if entries.is_empty() {
            return Ok(());
        }
        if output == Output::Table && self.values {
            let row = |(key, entry): &(Bytes, Entry)| {
                vec![
                    printable(key).into_owned(),
                    entry.mod_revision.to_string(),
                    printable(&entry.value).into_owned(),
                ]
            };
            let rows = entries.iter().map(row).collect();
            return render::line(&render::table(&["KEY", "REVISION", "VALUE"], &[1], rows));
        }
        let mut lines = Vec::new();
        for (key, entry) in entries {
            match output {
                Output::Table => lines.extend_from_slice(printable(key).as_bytes()),
                _ => lines.extend_from_slice(key),
            }
            if self.values {
                lines.push(b'\t');
                lines.extend_from_slice(&entry.value);
            }
            lines.push(b'\n');
        }
        render::bytes(&lines)
    }
}
