//! The write-ahead files: what is durable before the database beneath the log knows of it.
//!
//! # Rules
//!
//! - **One write and one sync a group.** Groups are overwritten over zeros or over groups that are no longer needed, so
//!   that a sync has no file system's journal to wait for.
//! - **A page with a durable group is not written again while the group is needed.** Groups start at whole pages. Two
//!   files take turns: the other one is begun anew only when the database has durably taken up all that it holds.
//! - **Old bytes are never taken for new ones.** A group carries the random id of its log, the number of the opening
//!   that wrote it (the epoch), and its sequence number, all under a SHA-256 seal. In one epoch each sequence number is
//!   written once. The id never leaves the machine, so no client can send bytes that look like a group.
//! - **A torn group is the last one.** It was not acknowledged and is dropped. A gap before a whole group, or two groups
//!   in a row of which neither is whole, are damage and refused: a group is begun when those before it are durable.
//! - **The files and the database belong together.** The database names the id and the epoch; each file has both in
//!   its head, twice, so that a torn write of one leaves the other. Files that are missing, older or another log's
//!   are refused, and so are groups of an epoch that the database does not know.
//!
//! File: two pages of head, slot `epoch % 2`: id, epoch, seal. Then groups: id, epoch, sequence, length, seal, and as many
//! bytes of postcard, filled up with zeros to whole pages.

use std::{collections::BTreeMap, io};

use aws_lc_rs::{
    digest::{Context, SHA256},
    rand,
};
use bftd_core::durable::Record;
use redb::StorageBackend;
use serde::{Deserialize, Serialize};

use super::error::StoreError;

/// How large a file gets before it is the other one's turn. It grows on when the other one is still needed.
pub(super) const TURN: u64 = 8 << 20;

/// The unit in which groups are laid out.
const PAGE: u64 = 4096;
/// Where the first group is.
const FIRST: u64 = 2 * PAGE;
/// By how much a file grows.
const GROWTH: u64 = 1 << 20;
/// How much of its buffer a file keeps between two groups.
const BUFFER: usize = 1 << 20;

const ID: usize = 16;
const SEAL: usize = 32;
/// The length of a group's head, without the seal: id, epoch, sequence, length.
const HEAD: usize = ID + 3 * 8;

/// Which files belong to a log, and what of them is not needed any more. The database holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// The log's random id.
    id: [u8; ID],
    /// How often the log has been opened.
    epoch: u64,
    /// The last group that the database holds.
    pub applied: u64,
}

impl Stamp {
    /// The stamp of a new log.
    pub(super) fn random() -> Self {
        let mut id = [0; ID];
        rand::fill(&mut id).expect("the operating system has random bytes");
        Self { id, epoch: 0, applied: 0 }
    }
}

/// A file as [`Wal`] uses it.
pub(super) type WalFile = Box<dyn StorageBackend>;

/// What is at the start of a page.
enum Found<'a> {
    /// No head of a group of this epoch.
    Nothing,
    /// The head of a group of a later epoch.
    Later,
    /// The head of a group that is not whole: its number.
    Begun(u64),
    /// A whole group: its number, its records' encoding, and where the next one may begin.
    Group(u64, &'a [u8], u64),
}

/// The two files.
#[derive(Debug)]
pub(super) struct Wal {
    files: [WalFile; 2],
    /// The last group in each file; 0 if there is none.
    last: [u64; 2],
    /// Which file grows.
    active: usize,
    /// Where its next group goes.
    end: u64,
    /// The last group that was written.
    sequence: u64,
    stamp: Stamp,
    /// [`TURN`], or less in tests.
    turn: u64,
    buffer: Vec<u8>,
}

impl Wal {
    /// Makes an empty file belong to a new log, durably. It gets its place on the disk now.
    pub(super) fn create(file: &dyn StorageBackend, stamp: Stamp, turn: u64) -> io::Result<()> {
        grow(file, turn.max(FIRST))?;
        write_head(file, stamp)
    }

    /// Reads what the database does not hold yet: the number of the last group, and the records of those after
    /// `stamp.applied`.
    ///
    /// # Errors
    /// A file is another log's, older, or damaged, or can't be read.
    pub(super) fn read(files: &[WalFile; 2], stamp: Stamp) -> Result<(u64, Vec<Record>), StoreError> {
        let mut groups = BTreeMap::new();
        let mut begun = stamp.applied;
        for file in files {
            let content = whole(&**file).map_err(failed("read"))?;
            check_head(&content, stamp)?;
            let mut at = FIRST;
            while at < content.len() as u64 {
                at = match find(&content, at, stamp) {
                    Found::Nothing => at + PAGE,
                    Found::Later => {
                        return Err(damaged(
                            "there are groups of a later opening than its database knows of",
                        ));
                    }
                    Found::Begun(sequence) => {
                        begun = begun.max(sequence);
                        at + PAGE
                    }
                    Found::Group(sequence, payload, end) => {
                        if sequence > stamp.applied {
                            groups.insert(sequence, decode(sequence, payload)?);
                        }
                        end
                    }
                };
            }
        }
        let mut sequence = stamp.applied;
        let mut records = Vec::new();
        for (found, group) in groups {
            if found != sequence + 1 {
                return Err(missing(sequence + 1, found));
            }
            sequence = found;
            records.extend(group);
        }
        // A group is begun when those before it are durable.
        if begun > sequence + 1 {
            return Err(missing(sequence + 1, begun));
        }
        if begun == sequence + 1 {
            tracing::info!(
                group = begun,
                "the last group of the log was not written to its end, and is dropped"
            );
        }
        Ok((sequence, records))
    }

    /// Starts the next epoch in both files, durably. What they hold counts until the database has the new stamp.
    pub(super) fn start(
        files: [WalFile; 2],
        applied: u64,
        before: Stamp,
        turn: u64,
    ) -> Result<Self, StoreError> {
        let stamp = Stamp { id: before.id, epoch: before.epoch + 1, applied };
        for file in &files {
            write_head(&**file, stamp).map_err(failed("write"))?;
        }
        Ok(Self {
            files,
            last: [0; 2],
            active: 0,
            end: FIRST,
            sequence: applied,
            stamp,
            turn,
            buffer: Vec::new(),
        })
    }

    /// The stamp to keep in the database when it has taken up all groups up to `applied`.
    pub(super) fn stamp(&self, applied: u64) -> Stamp {
        Stamp { applied, ..self.stamp }
    }

    /// The last group that was written.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Notes what the database durably holds: the place of those groups may be taken by others.
    pub(super) fn release(&mut self, applied: u64) {
        self.stamp.applied = applied;
    }

    /// Writes a group, and returns when it is durable.
    ///
    /// # Errors
    /// The write or the sync failed. Whether the group is durable is unknown then; nothing may be written any more.
    pub(super) fn append(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        bytes.resize(HEAD + SEAL, 0);
        bytes = postcard::to_extend(records, bytes).expect("encoding into a growing buffer succeeds");
        let sequence = self.sequence + 1;
        let length = bytes.len() - HEAD - SEAL;
        let head = head(self.stamp, sequence, length as u64);
        let seal = seal(&head, &bytes[HEAD + SEAL..]);
        bytes[..HEAD].copy_from_slice(&head);
        bytes[HEAD..HEAD + SEAL].copy_from_slice(&seal);
        bytes.resize(bytes.len().next_multiple_of(usize::try_from(PAGE).expect("a page is small")), 0);
        self.write(&bytes).map_err(failed("write"))?;
        self.sequence = sequence;
        self.last[self.active] = sequence;
        bytes.truncate(BUFFER);
        bytes.shrink_to(BUFFER);
        self.buffer = bytes;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        let other = 1 - self.active;
        if self.end + length > self.turn && self.last[other] <= self.stamp.applied {
            self.active = other;
            self.end = FIRST;
        }
        let file = &self.files[self.active];
        let end = self.end + length;
        if end > file.len()? {
            grow(&**file, end.next_multiple_of(GROWTH.min(self.turn)))?;
        }
        file.write(self.end, bytes)?;
        file.sync_data()?;
        self.end = end;
        Ok(())
    }
}

/// Turns what the operating system says about a file into an error.
fn failed(action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Wal { action, source }
}

fn damaged(what: impl std::fmt::Display) -> StoreError {
    StoreError::damaged(format!("in its write-ahead files {what}"))
}

fn missing(sequence: u64, later: u64) -> StoreError {
    damaged(format!("group {sequence} is missing before group {later}"))
}

fn whole(file: &dyn StorageBackend) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut content = vec![0; length];
    file.read(0, &mut content)?;
    Ok(content)
}

/// Lengthens a file by written zeros instead of a hole.
fn grow(file: &dyn StorageBackend, length: u64) -> io::Result<()> {
    let mut filled = file.len()?;
    file.set_len(length)?;
    while filled < length {
        let next = (filled + GROWTH).min(length);
        file.write(filled, &vec![0; usize::try_from(next - filled).map_err(io::Error::other)?])?;
        filled = next;
    }
    Ok(())
}

fn write_head(file: &dyn StorageBackend, stamp: Stamp) -> io::Result<()> {
    let head = head(stamp, 0, 0);
    let bytes = [&head[..], &seal(&head, &[])].concat();
    file.write(stamp.epoch % 2 * PAGE, &bytes)?;
    file.sync_data()
}

/// Looks whether a file belongs to the database that has this stamp.
fn check_head(content: &[u8], stamp: Stamp) -> Result<(), StoreError> {
    let epochs = [0, PAGE].into_iter().filter_map(|at| {
        let head = slice(content, at, HEAD as u64)?;
        let sealed = slice(content, at + HEAD as u64, SEAL as u64)?;
        let (id, rest) = head.split_first_chunk::<ID>()?;
        (seal(head, &[]) == *sealed && *id == stamp.id).then(|| number(rest, 0))
    });
    match epochs.max() {
        // One ahead: the opening that began this epoch was cut off.
        Some(epoch) if epoch == stamp.epoch || epoch == stamp.epoch + 1 => Ok(()),
        Some(epoch) if epoch > stamp.epoch => {
            Err(damaged("are later than its database; one of them was replaced"))
        }
        Some(_) => Err(damaged("are older than its database; one of them was replaced")),
        None => Err(damaged("there is no head that belongs to its database")),
    }
}

fn find(content: &[u8], at: u64, stamp: Stamp) -> Found<'_> {
    let Some(found) = slice(content, at, HEAD as u64).filter(|found| found.starts_with(&stamp.id)) else {
        return Found::Nothing;
    };
    let (epoch, sequence, length) = (number(found, ID), number(found, ID + 8), number(found, ID + 16));
    if epoch != stamp.epoch {
        return if epoch > stamp.epoch { Found::Later } else { Found::Nothing };
    }
    let start = at + (HEAD + SEAL) as u64;
    match (slice(content, at + HEAD as u64, SEAL as u64), slice(content, start, length)) {
        (Some(sealed), Some(payload)) if seal(found, payload) == *sealed => {
            Found::Group(sequence, payload, (start + length).next_multiple_of(PAGE))
        }
        _ => Found::Begun(sequence),
    }
}

fn decode(sequence: u64, payload: &[u8]) -> Result<Vec<Record>, StoreError> {
    match postcard::take_from_bytes(payload) {
        Ok((records, [])) => Ok(records),
        _ => Err(damaged(format!("group {sequence} makes no sense"))),
    }
}

fn head(stamp: Stamp, sequence: u64, length: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..ID].copy_from_slice(&stamp.id);
    for (number, place) in [stamp.epoch, sequence, length].iter().zip(head[ID..].chunks_exact_mut(8)) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    head
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    u64::from_le_bytes(*bytes.expect("a head holds its numbers"))
}

fn slice(bytes: &[u8], at: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(at).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

fn seal(head: &[u8], payload: &[u8]) -> [u8; SEAL] {
    let mut context = Context::new(&SHA256);
    context.update(head);
    context.update(payload);
    *context.finish().as_ref().first_chunk().expect("a SHA-256 digest has 32 bytes")
}
