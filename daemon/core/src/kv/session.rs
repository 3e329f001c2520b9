//! Sessions: a request that is sent several times is executed once, and has one answer.
//!
//! A client that gets no answer can't know whether its request was executed. In a session it sends the same request again, through
//! whichever member, as often as it likes: a [`SessionRequest`] carries the session's id, which the client chose at random, and the
//! request's sequence number in it. Rules, the same on every member:
//!
//! - A sequence number that the session knows is not executed again: it gets its **first answer**, with the index and term of the
//!   block that executed it. One that it does not know is executed, and its answer is kept.
//! - Members see the numbers of other members' clients, and one that lies could use them. So a number that is known with **another
//!   operation** is refused: [`Refusal::NumberTaken`]. Whoever is told so knows that what he sent was not executed.
//! - The client says up to which number it needs no answers any more (`answered`). What is below is forgotten, and a late copy of it
//!   refused: [`Refusal::AnsweredBefore`]. So who gives a request up and goes on need not fear it any more. From there on
//!   [`SESSION_WINDOW`] numbers are open; one beyond is refused and not kept.
//! - What a transaction has **read** is kept only while that is little: up to [`KEPT_ANSWER`] bytes an answer and [`KEPT_ANSWERS`]
//!   a session, and repeating answers is paid for out of the budget of reads. Beyond that a copy is told less: first each listing becomes
//!   [`StepOutcome::NotRead`], then [`Taken::steps`] is empty. Whether the comparisons held, and the revision, is always kept.
//! - A session **ends** when it was not used for [`SESSION_MS`] of block time, looked at when a block has requests in sessions; and, at the end
//!   of a block, the least recently used ones end while there are more than [`MAX_SESSIONS`], or they take more than
//!   [`MAX_SESSION_BYTES`]. Equally old ones end in the order of their keys.
//! - The **floor** is the highest time at which a session that has ended was last used. It only rises.
//! - A request says when its session was **opened**, which is part of the session's name: with another time it is another session. Where that is
//!   above the time of the block it is refused ([`Refusal::SessionAhead`]). A session that is not known **begins** with a request that
//!   says a time above the floor; others are refused ([`Refusal::SessionEnded`]).
//!
//! Why an ended session never begins again: it began in a block of time t ≥ `opened_ms`, was last used at u ≥ t, and the floor is at
//! u or above since it ended. So `opened_ms` is at or below the floor for ever, and every copy is refused. That is why a time to come is not taken
//! for now: it could be above u, and a copy would begin the session again once that time has come. And that is why it is part of the name: else
//! a liar could begin the session again with a later one. Clients take the time from their daemon, which knows it from a block, so later
//! blocks are not before it.
//!
//! A session's time of use, what it has answered and its answers are one row of [`Table::Sessions`], read when the first request
//! of a block is in it and written once at the block's end; the floor is another row. Each row is an item of the state's digest.
//! The order of use is in memory, made when the state is opened.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ops::{Bound, ControlFlow},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Error, Operation, Outcome, ReadTables, Refusal, StateMachine, StepOutcome, Table, Taken, WriteTables,
    buckets::Buckets,
    digest::{operation_digest, session_item},
    entry::Numbers,
};
use crate::{
    block::Header,
    crypto::Digest,
    ids::{Index, Term},
};

/// How many sequence numbers are open at once in a session, from the lowest without an answer on.
pub const SESSION_WINDOW: u64 = 256;
/// How long a session lasts without use, in milliseconds of block time.
pub const SESSION_MS: u64 = 3_600_000;
/// How many sessions there are at most.
pub const MAX_SESSIONS: usize = if cfg!(test) { 4 } else { 65_536 };
/// How many bytes they take together at most: so much has to be hashed for a block that has requests in all of them.
pub const MAX_SESSION_BYTES: usize = if cfg!(test) { 20 << 10 } else { 32 << 20 };
/// Up to how many bytes an answer is kept whole.
pub const KEPT_ANSWER: usize = if cfg!(test) { 256 } else { 16 << 10 };
/// Up to how many bytes all answers of a session are kept whole.
pub const KEPT_ANSWERS: usize = if cfg!(test) { 512 } else { 64 << 10 };

/// In [`Table::Sessions`]: the floor, little-endian. Keys of sessions are longer.
const FLOOR: &[u8] = b"floor";

/// A session's name, chosen by its client at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u128);

/// A request in a session.
///
/// The operation is encoded in it, so decoding does not recurse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRequest<B = Bytes> {
    /// The session.
    pub session: SessionId,
    /// The block time that the client was told when it opened the session, in milliseconds since the Unix epoch. The same in all
    /// requests of a session.
    pub opened_ms: u64,
    /// The request's number in the session.
    pub sequence: u64,
    /// The client needs no answers to any number below; itself at most `sequence`.
    pub answered: u64,
    /// The operation, encoded: one that changes keys, and is in no session itself.
    pub operation: B,
}

impl<B: AsRef<[u8]>> SessionRequest<B> {
    /// The session's key.
    fn key(&self) -> Key {
        let mut key = [0; 24];
        let (id, opened) = key.split_at_mut(16);
        id.copy_from_slice(&self.session.0.to_be_bytes());
        opened.copy_from_slice(&self.opened_ms.to_be_bytes());
        key
    }

    /// The operation in it.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] where that is none, or is in a session itself; [`Refusal::NotInSession`]; and what is
    /// refused of the operation itself.
    pub fn open(&self) -> Result<Operation<&[u8]>, Refusal> {
        if self.answered > self.sequence {
            return Err(Refusal::Malformed);
        }
        match Operation::decode_in(self.operation.as_ref())? {
            Operation::InSession(_) => Err(Refusal::Malformed),
            Operation::SetProtocol { .. } | Operation::SetQuota { .. } => Err(Refusal::NotInSession),
            operation => operation.check().map(|()| operation),
        }
    }
}

/// The first half of an operation's digest: nobody finds another operation with that of a given one.
type OperationHash = [u8; 16];

fn operation_hash(operation: &[u8]) -> OperationHash {
    let Digest(digest) = operation_digest(operation);
    digest.first_chunk().copied().unwrap_or_default()
}

/// What came of a request, and which block has executed it, where that was another one or this one before.
pub(super) type Told = (Outcome, Option<(Index, Term)>);

/// The key of a session's row: its id and when it was opened, both big-endian.
type Key = [u8; 24];

/// A session in [`Table::Sessions`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The time of the block with its last request. First, so that it can be read alone.
    used_ms: u64,
    /// No number below is open.
    answered: u64,
    /// By sequence number; at most [`SESSION_WINDOW`].
    answers: BTreeMap<u64, Kept>,
}

/// An answer that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// The block that executed the request.
    index: Index,
    term: Term,
    /// Which operation it was.
    operation: OperationHash,
    /// The outcome, without the steps of a transaction.
    brief: Outcome,
    /// The outcome with them, encoded.
    whole: Option<Bytes>,
}

impl Record {
    /// Keeps an answer, and what was read of as many as there is room for, the newest first.
    fn keep(
        &mut self,
        (sequence, operation): (u64, OperationHash),
        (index, term): (Index, Term),
        outcome: &Outcome,
    ) {
        let whole = match outcome {
            Outcome::Transaction { taken, .. } if !taken.steps.is_empty() => {
                let whole = encode(outcome);
                Some(if whole.len() > KEPT_ANSWER { encode(&without_reads(outcome.clone())) } else { whole })
            }
            _ => None,
        };
        let is_large = whole.is_some();
        let kept = Kept { index, term, operation, brief: without_steps(outcome), whole };
        self.answers.insert(sequence, kept);
        if !is_large {
            return;
        }
        let sizes = self.answers.values().filter_map(|kept| kept.whole.as_ref()).map(Bytes::len);
        let mut size: usize = sizes.sum();
        let mut shrink = |by: fn(Outcome) -> Option<Outcome>| {
            for kept in self.answers.values_mut() {
                let Some(whole) = kept.whole.as_ref().filter(|_| size > KEPT_ANSWERS) else { continue };
                size -= whole.len();
                kept.whole = decode(whole).and_then(by).map(|outcome| encode(&outcome));
                size += kept.whole.as_ref().map_or(0, Bytes::len);
            }
        };
        shrink(|outcome| Some(without_reads(outcome)));
        shrink(|_| None);
    }
}

/// An outcome whose listings are left out.
fn without_reads(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Transaction { revision, taken } => {
            Outcome::Transaction { revision, taken: taken_without_reads(taken) }
        }
        other => other,
    }
}

/// Parts are at most [`super::MAX_STEPS`] deep.
fn taken_without_reads(taken: Taken) -> Taken {
    let step = |step| match step {
        StepOutcome::Found(_) => StepOutcome::NotRead,
        StepOutcome::Nested(taken) => StepOutcome::Nested(taken_without_reads(taken)),
        other => other,
    };
    Taken { succeeded: taken.succeeded, steps: taken.steps.into_iter().map(step).collect() }
}

/// An outcome that takes a few bytes, whatever it was.
fn without_steps(outcome: &Outcome) -> Outcome {
    match outcome {
        Outcome::Transaction { revision, taken } => {
            let taken = Taken { succeeded: taken.succeeded, steps: Vec::new() };
            Outcome::Transaction { revision: *revision, taken }
        }
        other => other.clone(),
    }
}

fn encode(outcome: &Outcome) -> Bytes {
    postcard::to_stdvec(outcome).expect("encoding into a growing buffer succeeds").into()
}

fn decode(whole: &[u8]) -> Option<Outcome> {
    postcard::from_bytes(whole).ok()
}

/// Which sessions there are, and those with requests in the open block.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    floor_ms: u64,
    /// All, by their last use. Bounded by [`MAX_SESSIONS`] and those of one block.
    by_use: BTreeSet<(u64, Key)>,
    /// What their rows take.
    bytes: usize,
    /// The open block's place and time.
    place: (Index, Term),
    now_ms: u64,
    /// Whether the block has requests in sessions. Then those that were not used for long have ended.
    has_looked: bool,
    /// Whether the floor is not in its row yet.
    has_risen: bool,
    /// Those with requests in this block. Bounded by the size of a block.
    open: BTreeMap<Key, Open>,
}

/// A session with requests in the open block.
#[derive(Clone, Debug)]
struct Open {
    record: Record,
    /// What its row says: the time of its last use; and how many bytes the row has. None where it begins.
    row: Option<(u64, usize)>,
}

/// What becomes of a request in a session.
enum Admitted {
    /// It is executed.
    New(OperationHash),
    /// It was executed before.
    Known(Kept),
    Refused(Refusal),
}

impl Sessions {
    /// The sessions in the tables.
    pub(super) fn open<T: ReadTables>(tables: &T) -> Result<Self, Error<T::Error>> {
        let mut sessions = Self::default();
        let mut is_damaged = false;
        tables.scan(Table::Sessions, Bound::Unbounded, |key, row| {
            if key == FLOOR {
                match row.try_into().map(u64::from_le_bytes) {
                    Ok(floor_ms) => sessions.floor_ms = floor_ms,
                    Err(_) => is_damaged = true,
                }
            } else {
                match (Key::try_from(key), postcard::take_from_bytes(row)) {
                    (Ok(key), Ok((used_ms, _))) => {
                        sessions.by_use.insert((used_ms, key));
                        sessions.bytes += key.len() + row.len();
                    }
                    _ => is_damaged = true,
                }
            }
            if is_damaged { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if is_damaged { Err(Error::Damaged("the list of sessions")) } else { Ok(sessions) }
    }

    /// A block begins.
    pub(super) fn begin_block(&mut self, header: &Header) {
        self.place = (header.index, header.term);
        self.now_ms = header.time_ms;
        self.has_looked = false;
    }

    /// Writes what the block's requests have changed. Costs nothing where none was in a session.
    pub(super) fn end_block<T: WriteTables>(
        &mut self,
        tables: &mut T,
        buckets: &mut Buckets,
    ) -> Result<(), Error<T::Error>> {
        if !self.has_looked {
            return Ok(());
        }
        for (key, Open { record, row }) in std::mem::take(&mut self.open) {
            if let Some((used_ms, bytes)) = row {
                self.by_use.remove(&(used_ms, key));
                self.bytes -= key.len() + bytes;
            }
            let row = postcard::to_stdvec(&record).expect("encoding into a growing buffer succeeds");
            self.by_use.insert((record.used_ms, key));
            self.bytes += key.len() + row.len();
            write(tables, buckets, &key, &row)?;
        }
        while (self.by_use.len() > MAX_SESSIONS || self.bytes > MAX_SESSION_BYTES)
            && self.end_first(tables, buckets)?
        {}
        if std::mem::take(&mut self.has_risen) {
            write(tables, buckets, FLOOR, &self.floor_ms.to_le_bytes())?;
        }
        Ok(())
    }

    /// Ends the sessions that were not used for long.
    fn end_unused<T: WriteTables>(
        &mut self,
        tables: &mut T,
        buckets: &mut Buckets,
    ) -> Result<(), Error<T::Error>> {
        while let Some((used_ms, _)) = self.by_use.first()
            && self.now_ms.saturating_sub(*used_ms) > SESSION_MS
        {
            self.end_first(tables, buckets)?;
        }
        Ok(())
    }

    /// Ends the least recently used session, if there is one.
    fn end_first<T: WriteTables>(
        &mut self,
        tables: &mut T,
        buckets: &mut Buckets,
    ) -> Result<bool, Error<T::Error>> {
        let Some((used_ms, key)) = self.by_use.pop_first() else { return Ok(false) };
        let size = tables.read(Table::Sessions, &key, |row| key.len() + row.len())?;
        self.bytes -= size.ok_or(Error::Damaged("the list of sessions"))?;
        tables.remove(Table::Sessions, &key)?;
        let (place, _) = session_item(&key, &[]);
        buckets.place(tables, &place)?.remove();
        self.has_risen |= used_ms > self.floor_ms;
        self.floor_ms = self.floor_ms.max(used_ms);
        Ok(true)
    }

    /// Whether a request is to be executed. If it is, its answer has to be kept.
    fn admit<T: WriteTables>(
        &mut self,
        tables: &mut T,
        buckets: &mut Buckets,
        request: &SessionRequest<&[u8]>,
    ) -> Result<Admitted, Error<T::Error>> {
        if !std::mem::replace(&mut self.has_looked, true) {
            self.end_unused(tables, buckets)?;
        }
        let SessionRequest { opened_ms, sequence, answered, .. } = *request;
        let key = request.key();
        let Self { floor_ms, now_ms, .. } = *self;
        if opened_ms > now_ms {
            return Ok(Admitted::Refused(Refusal::SessionAhead { time_ms: now_ms }));
        }
        let record = match self.find(tables, key)? {
            Some(record) => record,
            None if opened_ms <= floor_ms => return Ok(Admitted::Refused(Refusal::SessionEnded)),
            None if sequence - answered >= SESSION_WINDOW => {
                return Ok(Admitted::Refused(Refusal::SessionWindow { answered }));
            }
            None => {
                let record = Record { used_ms: now_ms, answered, answers: BTreeMap::new() };
                &mut self.open.entry(key).or_insert(Open { record, row: None }).record
            }
        };
        record.used_ms = record.used_ms.max(now_ms);
        if answered > record.answered {
            record.answered = answered;
            record.answers = record.answers.split_off(&answered);
        }
        let answered = record.answered;
        let operation = operation_hash(request.operation);
        Ok(match record.answers.get(&sequence) {
            Some(kept) if kept.operation != operation => Admitted::Refused(Refusal::NumberTaken),
            Some(kept) => Admitted::Known(kept.clone()),
            None if sequence < answered => Admitted::Refused(Refusal::AnsweredBefore { answered }),
            None if sequence - answered >= SESSION_WINDOW => {
                Admitted::Refused(Refusal::SessionWindow { answered })
            }
            None => Admitted::New(operation),
        })
    }

    /// A session that has begun and not ended.
    fn find<T: ReadTables>(&mut self, tables: &T, key: Key) -> Result<Option<&mut Record>, Error<T::Error>> {
        let vacant = match self.open.entry(key) {
            Entry::Occupied(open) => return Ok(Some(&mut open.into_mut().record)),
            Entry::Vacant(vacant) => vacant,
        };
        let decode = |row: &[u8]| Some((postcard::from_bytes::<Record>(row).ok()?, row.len()));
        let Some(found) = tables.read(Table::Sessions, &key, decode)? else {
            return Ok(None);
        };
        let (record, bytes) = found.ok_or(Error::Damaged("a session"))?;
        let row = Some((record.used_ms, bytes));
        Ok(Some(&mut vacant.insert(Open { record, row }).record))
    }

    /// Keeps the answer to a request that was admitted.
    fn keep(&mut self, request: &SessionRequest<&[u8]>, operation: OperationHash, outcome: &Outcome) {
        if let Some(open) = self.open.get_mut(&request.key()) {
            open.record.keep((request.sequence, operation), self.place, outcome);
        }
    }
}

/// Sets a row, and its item of the digest.
fn write<T: WriteTables>(
    tables: &mut T,
    buckets: &mut Buckets,
    key: &[u8],
    row: &[u8],
) -> Result<(), Error<T::Error>> {
    tables.put(Table::Sessions, key, row)?;
    let (place, digest) = session_item(key, row);
    buckets.place(tables, &place)?.set(Numbers::NONE, digest);
    Ok(())
}

/// Adds the items of all rows to buckets.
pub(super) fn gather_sessions<T: ReadTables>(
    tables: &T,
    mut add: impl FnMut(&Digest, Numbers, Digest),
) -> Result<(), T::Error> {
    tables.scan(Table::Sessions, Bound::Unbounded, |key, row| {
        let (place, digest) = session_item(key, row);
        add(&place, Numbers::NONE, digest);
        ControlFlow::Continue(())
    })
}

impl StateMachine {
    /// Executes a request in a session, unless it was executed before. Says where it was, in that case.
    pub(super) fn in_session<T: WriteTables>(
        &mut self,
        tables: &mut T,
        request: &SessionRequest<&[u8]>,
    ) -> Result<Told, Error<T::Error>> {
        let operation = match request.open() {
            Ok(operation) => operation,
            Err(refusal) => return Ok((Outcome::Refused(refusal), None)),
        };
        match self.sessions.admit(tables, &mut self.buckets, request)? {
            Admitted::Refused(refusal) => Ok((Outcome::Refused(refusal), None)),
            Admitted::Known(Kept { index, term, brief, whole, .. }) => {
                // Copies are small, what they are answered need not be.
                let whole = whole.filter(|whole| self.reads.answer(whole.len()));
                let outcome = whole.and_then(|whole| decode(&whole)).unwrap_or(brief);
                Ok((outcome, Some((index, term))))
            }
            Admitted::New(hash) => {
                let outcome = self.change(tables, &operation)?;
                self.sessions.keep(request, hash, &outcome);
                Ok((outcome, None))
            }
        }
    }
}
