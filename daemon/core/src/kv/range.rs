//! Ranges of keys, as etcd reads them: at a revision, filtered, sorted, limited.

use std::{
    cmp::Ordering,
    ops::{Bound, ControlFlow},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Entry, Error, Head, ReadTables, Refusal, Span, Table,
    entry::Stored,
    history::{AsOf, entry_as_of, revision_of_tombstone},
    transaction::MAX_VISITED,
};

/// About how many bytes of keys and values an answer carries. One entry is always carried.
pub const MAX_ANSWER: usize = 8 << 20;
/// How many keys are held to be sorted, at most.
pub const MAX_SORTED: usize = 65_536;
/// How many bytes of them.
const MAX_SORTED_BYTES: usize = 8 * MAX_ANSWER;
/// What an entry costs beside its key and value, in bytes.
pub(super) const PER_ENTRY: usize = 48;
/// How many keys of an older revision are looked up together.
const PAGE: usize = 256;

/// A question for keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range<B = Bytes> {
    /// Which.
    pub keys: Span<B>,
    /// As of which revision; 0 is now.
    pub revision: u64,
    /// At most so many; 0 is as many as there are.
    pub limit: u64,
    /// In which order.
    pub order: Order,
    /// Only those whose numbers are in bounds.
    pub filter: Filter,
    /// What of them.
    pub want: Want,
    /// Say how many keys there are in all, whatever the filter and the limit are.
    pub count: bool,
}

/// What an answer carries of each key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// All.
    #[default]
    Entries,
    /// No value.
    Keys,
    /// Nothing: only how many there are, in [`Listing::count`].
    Count,
}

/// In which order keys are answered. Equal ones follow each other by key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// By what.
    pub by: SortBy,
    /// The highest first.
    pub descending: bool,
}

/// What keys are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SortBy {
    /// The key.
    #[default]
    Key,
    /// How often it was put since it was created.
    Version,
    /// The revision at which it was created.
    CreateRevision,
    /// The revision of its last change.
    ModRevision,
    /// Its value.
    Value,
}

/// Bounds of a key's revisions, both included; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// The lowest revision of the last change.
    pub min_mod_revision: u64,
    /// The highest.
    pub max_mod_revision: u64,
    /// The lowest revision at which a key was created.
    pub min_create_revision: u64,
    /// The highest.
    pub max_create_revision: u64,
}

/// Keys, as many as fit in an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The keys and their entries; with empty values where only keys were asked for.
    pub entries: Vec<(Bytes, Entry)>,
    /// Whether there are more.
    pub more: bool,
    /// How many keys there are, where that was asked.
    pub count: Option<u64>,
}

impl<B> Range<B> {
    /// All of these keys, as they are now, in their order.
    pub fn of(keys: Span<B>) -> Self {
        Self {
            keys,
            revision: 0,
            limit: 0,
            order: Order::default(),
            filter: Filter::default(),
            want: Want::default(),
            count: false,
        }
    }

    /// How many of these keys there are.
    pub fn count_of(keys: Span<B>) -> Self {
        Self { want: Want::Count, count: true, ..Self::of(keys) }
    }
}

impl Filter {
    fn passes(&self, entry: &Stored<'_>) -> bool {
        let within = |revision: u64, min: u64, max: u64| revision >= min && (max == 0 || revision <= max);
        within(entry.mod_revision, self.min_mod_revision, self.max_mod_revision)
            && within(entry.create_revision, self.min_create_revision, self.max_create_revision)
    }
}

impl Order {
    fn compare(
        self,
        (key, entry): (&[u8], &Stored<'_>),
        (other_key, other): (&[u8], &Stored<'_>),
    ) -> Ordering {
        let order = match self.by {
            SortBy::Key => Ordering::Equal,
            SortBy::Version => entry.version.cmp(&other.version),
            SortBy::CreateRevision => entry.create_revision.cmp(&other.create_revision),
            SortBy::ModRevision => entry.mod_revision.cmp(&other.mod_revision),
            SortBy::Value => entry.value.cmp(other.value),
        };
        let order = order.then_with(|| key.cmp(other_key));
        if self.descending { order.reverse() } else { order }
    }
}

/// What reading may still cost, in bytes.
///
/// What is read within a transaction costs every member time and memory, whoever asked for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// For rows that are visited, whether answered or not.
    visits: usize,
    /// For what is answered.
    answer: usize,
}

impl Budget {
    /// A row that is visited costs a page of the store at least.
    const VISIT: usize = 4096;
    /// To look for the first row of a span costs more: rows that were removed may lie before it.
    pub(super) const SCAN: usize = 16 * Self::VISIT;

    pub(super) fn new(visits: usize, answer: usize) -> Self {
        Self { visits, answer }
    }

    /// For a client's own question, which costs its own daemon alone.
    pub(super) fn of_a_query() -> Self {
        Self { visits: usize::MAX, answer: MAX_ANSWER }
    }

    /// Takes a row of so many bytes; whether that much was left.
    pub(super) fn visit(&mut self, bytes: usize) -> bool {
        let left = self.visits.checked_sub(bytes.max(Self::VISIT));
        self.visits = left.unwrap_or_default();
        left.is_some()
    }

    /// At most a quarter of what all transactions have, for one of them.
    pub(super) fn of_a_transaction(&self) -> Self {
        Self { visits: self.visits.min(MAX_VISITED / 4), answer: self.answer }
    }

    /// Takes what has been spent of another budget that was a part of this one.
    pub(super) fn take_spent(&mut self, before: &Self, after: &Self) {
        self.visits -= before.visits - after.visits;
        self.answer -= before.answer - after.answer;
    }

    /// Takes an entry of the answer, if it fits.
    pub(super) fn answer(&mut self, bytes: usize) -> bool {
        let left = self.answer.checked_sub(bytes);
        self.answer = left.unwrap_or(self.answer);
        left.is_some()
    }
}

/// Why a range was not read to its end, beside the store's errors.
enum Stop {
    Damaged,
    Spent,
}

/// Reads a range. Where its revision can't be read, or the budget is spent before it ends, it is refused.
pub(super) fn range<T: ReadTables, B: AsRef<[u8]>>(
    tables: &T,
    head: &Head,
    range: &Range<B>,
    budget: &mut Budget,
) -> Result<Result<Listing, Refusal>, Error<T::Error>> {
    if let Err(refusal) = head.check_readable(range.revision) {
        return Ok(Err(refusal));
    }
    if range.want == Want::Count {
        return count(tables, head, range, budget);
    }
    if range.order == Order::default() {
        in_order(tables, head, range, budget)
    } else {
        sorted(tables, head, range, budget)
    }
}

fn count<T: ReadTables, B: AsRef<[u8]>>(
    tables: &T,
    head: &Head,
    range: &Range<B>,
    budget: &mut Budget,
) -> Result<Result<Listing, Refusal>, Error<T::Error>> {
    let mut count = 0;
    let ended = each(tables, head, (&range.keys, range.revision), budget, |_, _, _| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(ended.map(|()| Listing { count: Some(count), ..Listing::default() }))
}

/// The order of keys is that of the tables: nothing is held but what is answered.
fn in_order<T: ReadTables, B: AsRef<[u8]>>(
    tables: &T,
    head: &Head,
    range: &Range<B>,
    budget: &mut Budget,
) -> Result<Result<Listing, Refusal>, Error<T::Error>> {
    let mut listing = Listing::default();
    let mut count = 0;
    let ended = each(tables, head, (&range.keys, range.revision), budget, |key, stored, budget| {
        count += 1;
        if !listing.more && range.filter.passes(stored) {
            listing.more = !listing.take(key, stored, range, budget);
        }
        let is_done = listing.more && !range.count;
        if is_done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    listing.count = range.count.then_some(count);
    Ok(ended.map(|()| listing))
}

/// In any other order all keys are held first.
fn sorted<T: ReadTables, B: AsRef<[u8]>>(
    tables: &T,
    head: &Head,
    range: &Range<B>,
    budget: &mut Budget,
) -> Result<Result<Listing, Refusal>, Error<T::Error>> {
    let by_value = range.order.by == SortBy::Value || range.want == Want::Entries;
    let size = |key: &[u8], value: &[u8]| PER_ENTRY + key.len() + if by_value { value.len() } else { 0 };
    let sort = |found: &mut Vec<(Bytes, Entry)>| {
        found.sort_by(|(key, entry), (other_key, other)| {
            range.order.compare((key, &entry.stored()), (other_key, &other.stored()))
        });
        // One more than are answered shows that there are more.
        let kept = usize::try_from(range.limit).unwrap_or(usize::MAX).saturating_add(1);
        if range.limit > 0 {
            found.truncate(kept);
        }
    };
    let (mut found, mut count, mut bytes): (Vec<(Bytes, Entry)>, u64, usize) = (Vec::new(), 0, 0);
    let mut is_too_much = false;
    let ended = each(tables, head, (&range.keys, range.revision), budget, |key, stored, _| {
        count += 1;
        if !range.filter.passes(stored) {
            return ControlFlow::Continue(());
        }
        if found.len() == MAX_SORTED || bytes > MAX_SORTED_BYTES {
            sort(&mut found);
            bytes = found.iter().map(|(key, entry)| size(key, &entry.value)).sum();
            is_too_much = found.len() > MAX_SORTED / 2 || bytes > MAX_SORTED_BYTES / 2;
        }
        if is_too_much {
            return ControlFlow::Break(());
        }
        bytes += size(key, stored.value);
        found.push((Bytes::copy_from_slice(key), stored.to_entry(by_value)));
        ControlFlow::Continue(())
    })?;
    if let Err(refusal) = ended {
        return Ok(Err(refusal));
    }
    if is_too_much {
        return Ok(Err(Refusal::SortsTooMuch));
    }
    sort(&mut found);
    let mut listing = Listing { count: range.count.then_some(count), ..Listing::default() };
    for (key, entry) in &found {
        if !listing.take(key, &entry.stored(), range, budget) {
            listing.more = true;
            break;
        }
    }
    Ok(Ok(listing))
}

impl Listing {
    /// Takes one more entry, if there may be one more and it fits. An answer to a query has at least one.
    fn take<B>(&mut self, key: &[u8], stored: &Stored<'_>, range: &Range<B>, budget: &mut Budget) -> bool {
        if range.limit > 0 && self.entries.len() as u64 >= range.limit {
            return false;
        }
        let with_value = range.want == Want::Entries;
        let size = PER_ENTRY + key.len() + if with_value { stored.value.len() } else { 0 };
        if !budget.answer(size) {
            return false;
        }
        self.entries.push((Bytes::copy_from_slice(key), stored.to_entry(with_value)));
        true
    }
}

/// Shows `f` the keys of a span as of a revision, rising, until it breaks.
pub(super) fn each<T: ReadTables, B: AsRef<[u8]>>(
    tables: &T,
    head: &Head,
    (span, revision): (&Span<B>, u64),
    budget: &mut Budget,
    f: impl FnMut(&[u8], &Stored<'_>, &mut Budget) -> ControlFlow<()>,
) -> Result<Result<(), Refusal>, Error<T::Error>> {
    let is_now = revision == 0 || revision == head.revision;
    let stop = match (is_now, span) {
        (true, Span::Key(key)) => each_of_one(tables, key.as_ref(), budget, f)?,
        (true, _) => each_now(tables, span, budget, f)?,
        (false, _) => each_as_of(tables, (span, revision, head.compacted), budget, f)?,
    };
    match stop {
        None => Ok(Ok(())),
        Some(Stop::Spent) => Ok(Err(Refusal::ReadsTooMuch)),
        Some(Stop::Damaged) => Err(Error::Damaged("an entry")),
    }
}

fn each_of_one<T: ReadTables>(
    tables: &T,
    key: &[u8],
    budget: &mut Budget,
    mut f: impl FnMut(&[u8], &Stored<'_>, &mut Budget) -> ControlFlow<()>,
) -> Result<Option<Stop>, T::Error> {
    if !budget.visit(0) {
        return Ok(Some(Stop::Spent));
    }
    let found = tables.read(Table::Keys, key, |bytes| {
        let Some(stored) = Stored::decode(bytes) else { return Some(Stop::Damaged) };
        if bytes.len() > Budget::VISIT && !budget.visit(bytes.len() - Budget::VISIT) {
            return Some(Stop::Spent);
        }
        let _ = f(key, &stored, budget);
        None
    })?;
    Ok(found.flatten())
}

fn each_now<T: ReadTables, B: AsRef<[u8]>>(
    tables: &T,
    span: &Span<B>,
    budget: &mut Budget,
    mut f: impl FnMut(&[u8], &Stored<'_>, &mut Budget) -> ControlFlow<()>,
) -> Result<Option<Stop>, T::Error> {
    if !budget.visit(Budget::SCAN) {
        return Ok(Some(Stop::Spent));
    }
    let mut stop = None;
    tables.scan(Table::Keys, Bound::Included(span.first()), |key, bytes| {
        if !span.reaches(key) {
            return ControlFlow::Break(());
        }
        if !budget.visit(key.len() + bytes.len()) {
            stop = Some(Stop::Spent);
            return ControlFlow::Break(());
        }
        let Some(stored) = Stored::decode(bytes) else {
            stop = Some(Stop::Damaged);
            return ControlFlow::Break(());
        };
        f(key, &stored, budget)
    })?;
    Ok(stop)
}

/// Keys that there are, and such that were deleted since, page by page.
fn each_as_of<T: ReadTables, B: AsRef<[u8]>>(
    tables: &T,
    (span, revision, compacted): (&Span<B>, u64, u64),
    budget: &mut Budget,
    mut f: impl FnMut(&[u8], &Stored<'_>, &mut Budget) -> ControlFlow<()>,
) -> Result<Option<Stop>, Error<T::Error>> {
    let mut from = Bound::Included(span.first().to_vec());
    loop {
        let page = match span {
            Span::Key(key) => Page { keys: vec![key.as_ref().to_vec()], next: None },
            _ if !budget.visit(Budget::SCAN) => return Ok(Some(Stop::Spent)),
            _ => Page::read(tables, (span, compacted), from.as_ref().map(Vec::as_slice))?,
        };
        for key in &page.keys {
            match entry_as_of(tables, key, revision, budget)? {
                AsOf::Spent => return Ok(Some(Stop::Spent)),
                AsOf::Nothing => {}
                AsOf::Entry(entry) => {
                    if f(key, &entry.stored(), budget).is_break() {
                        return Ok(None);
                    }
                }
            }
        }
        match page.next {
            Some(next) => from = Bound::Excluded(next),
            None => return Ok(None),
        }
    }
}

/// Some keys of a span, those that there are and those that were deleted, and after which one others may come.
struct Page {
    keys: Vec<Vec<u8>>,
    next: Option<Vec<u8>>,
}

impl Page {
    fn read<T: ReadTables, B: AsRef<[u8]>>(
        tables: &T,
        (span, compacted): (&Span<B>, u64),
        from: Bound<&[u8]>,
    ) -> Result<Self, Error<T::Error>> {
        let mut keys = Vec::new();
        let mut next: Option<Vec<u8>> = None;
        for table in [Table::Keys, Table::Deleted] {
            let mut of_table = Vec::new();
            let mut is_damaged = false;
            tables.scan(table, from, |key, bytes| {
                if !span.reaches(key) {
                    return ControlFlow::Break(());
                }
                if table == Table::Deleted {
                    let deleted = revision_of_tombstone(bytes);
                    is_damaged |= deleted.is_none();
                    // Not every member has these any more.
                    if deleted.is_none_or(|deleted| deleted <= compacted) {
                        return ControlFlow::Continue(());
                    }
                }
                of_table.push(key.to_vec());
                if of_table.len() == PAGE { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if is_damaged {
                return Err(Error::Damaged("a tombstone"));
            }
            if of_table.len() == PAGE
                && let Some(last) = of_table.last()
                && next.as_ref().is_none_or(|next| last < next)
            {
                next = Some(last.clone());
            }
            keys.append(&mut of_table);
        }
        keys.sort_unstable();
        if let Some(next) = &next {
            keys.retain(|key| key <= next);
        }
        Ok(Self { keys, next })
    }
}
