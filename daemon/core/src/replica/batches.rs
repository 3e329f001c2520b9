//! Batches on their way into a block: an origin's own, a leader's pool, and what everybody expects of the leader.
//!
//! An origin keeps its batches until they are committed, and sends them again: to the leader, and to everybody once
//! the leader has let one wait for half a time-out. Whoever gets a late batch passes it on to the leader, again and
//! again, and expects it from then on: but per origin only the next one in order, and no longer once the chain is at or past
//! it. (Otherwise one lying origin could topple every leader.)

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::{
    block::{Batch, Mark, Marks, Request},
    crypto::{ClusterId, Signer},
    ids::{BatchNumber, Incarnation, MemberId},
    limits::{MAX_BLOCK, MAX_BLOCK_BATCHES, OWN_BATCHES, POOLED_BATCHES},
};

/// The batches of this member's own clients.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub incarnation: Incarnation,
    /// The number of the record that made the incarnation durable: no batch leaves before it.
    pub record: u64,
    next: BatchNumber,
    /// In the order of their numbers; at most [`OWN_BATCHES`], [`super::Replica::may_submit`] says when there is
    /// room.
    own: VecDeque<Own>,
}

/// A batch of this member's clients that is not committed yet.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub batch: Arc<Batch>,
    pub since_us: u64,
    pub sent_us: u64,
}

impl Origin {
    pub fn new(incarnation: Incarnation, record: u64) -> Self {
        Self { incarnation, record, next: BatchNumber(1), own: VecDeque::new() }
    }

    pub fn has_room(&self) -> bool {
        self.own.len() < OWN_BATCHES
    }

    pub fn submit(
        &mut self,
        requests: Vec<Request>,
        me: MemberId,
        cluster: ClusterId,
        signer: &dyn Signer,
        now_us: u64,
    ) -> Arc<Batch> {
        let batch = Arc::new(Batch::sign(cluster, me, self.incarnation, self.next, requests, signer));
        self.next = self.next.next();
        self.own.push_back(Own { batch: Arc::clone(&batch), since_us: now_us, sent_us: now_us });
        batch
    }

    /// The chain is at `mark` now: forgets what is committed.
    pub fn forget_through(&mut self, mark: Mark) {
        self.own.retain(|own| own.batch.mark() > mark);
    }

    /// Whether a committed batch of this member was not made by this run: then an older run, or another copy, made
    /// it, and if its incarnation is not lower this run can't be heard.
    pub fn is_outrun_by(&self, batch: &Batch) -> bool {
        batch.incarnation >= self.incarnation && !self.own.iter().any(|own| *own.batch == *batch)
    }

    /// Starts over in a higher incarnation: hands over the batches, to be submitted again.
    pub fn restart(&mut self, incarnation: Incarnation, record: u64) -> Vec<Own> {
        let own = std::mem::take(&mut self.own);
        *self = Self::new(incarnation, record);
        own.into()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Own> {
        self.own.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Own> {
        self.own.iter_mut()
    }
}

/// Batches for coming blocks, by origin and order. At most [`POOLED_BATCHES`] an origin and, beyond the first,
/// [`MAX_BLOCK`] bytes; what does not fit is dropped, the origin sends it again.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    origins: BTreeMap<MemberId, BTreeMap<Mark, Arc<Batch>>>,
}

impl Pool {
    /// Takes a batch, for a chain at `marks`. Where there is no room, the next ones on the chain come before those that would
    /// only come after others, and these in their order: else an origin could fill its place with what never comes, while all
    /// expect of the leader what could.
    pub fn insert(&mut self, batch: Arc<Batch>, marks: &Marks) {
        let pooled = self.origins.entry(batch.origin).or_default();
        // As what is expected: a newer run has given up what an older one sent.
        let newest = pooled.values().filter(|held| marks.accepts(held)).map(|held| held.incarnation).max();
        if newest.is_some_and(|newest| batch.incarnation < newest) || pooled.contains_key(&batch.mark()) {
            return;
        }
        if marks.accepts(&batch) {
            pooled.retain(|mark, _| mark.incarnation >= batch.incarnation);
        }
        let turn = |batch: &Batch| (!marks.accepts(batch), batch.mark());
        let bytes = |pooled: &BTreeMap<Mark, Arc<Batch>>| -> usize {
            pooled.values().map(|batch| batch.size()).sum()
        };
        while pooled.len() >= POOLED_BATCHES || bytes(pooled) + batch.size() > MAX_BLOCK {
            match pooled.values().map(|batch| turn(batch)).max() {
                Some(last) if last > turn(&batch) => pooled.remove(&last.1),
                Some(_) => return,
                None => break,
            };
        }
        pooled.insert(batch.mark(), batch);
    }

    /// The batches that may stand in a block after a chain at `marks`: a fair share of each origin, beginning with
    /// another one each time.
    pub fn choose(&self, marks: &Marks, turn: u64) -> Vec<Arc<Batch>> {
        let mut marks = marks.clone();
        let mut chosen: Vec<Arc<Batch>> = Vec::new();
        let mut bytes = 0;
        let origins: Vec<_> = self.origins.keys().copied().collect();
        let skip = usize::try_from(turn % (origins.len().max(1) as u64)).unwrap_or(0);
        loop {
            let before = chosen.len();
            for origin in origins.iter().cycle().skip(skip).take(origins.len()) {
                let Some(batch) = self.next(*origin, marks.get(*origin)) else { continue };
                if chosen.len() < MAX_BLOCK_BATCHES && bytes + batch.size() <= MAX_BLOCK {
                    bytes += batch.size();
                    marks.record(batch);
                    chosen.push(Arc::clone(batch));
                }
            }
            if chosen.len() == before {
                return chosen;
            }
        }
    }

    fn next(&self, origin: MemberId, mark: Mark) -> Option<&Arc<Batch>> {
        let pooled = self.origins.get(&origin)?;
        let same_run = Mark { incarnation: mark.incarnation, number: mark.number.next() };
        let newer_run = || {
            let newer = Mark { incarnation: mark.incarnation.next(), number: BatchNumber(1) };
            pooled.range(newer..).find(|(next, _)| mark.precedes(**next)).map(|(_, batch)| batch)
        };
        if mark.incarnation > Incarnation(0) { pooled.get(&same_run).or_else(newer_run) } else { newer_run() }
    }

    /// The size of all batches, in bytes.
    pub fn size(&self) -> usize {
        self.origins.values().flat_map(BTreeMap::values).map(|batch| batch.size()).sum()
    }

    /// How many requests are in the batches.
    pub fn requests(&self) -> usize {
        self.origins.values().flat_map(BTreeMap::values).map(|batch| batch.requests.len()).sum()
    }

    pub fn forget_through(&mut self, marks: &Marks) {
        for (origin, pooled) in &mut self.origins {
            *pooled = pooled.split_off(&marks.get(*origin));
            pooled.remove(&marks.get(*origin));
        }
    }

    pub fn len(&self) -> usize {
        self.origins.values().map(BTreeMap::len).sum()
    }
}

/// Late batches that this member expects the leader to commit: one an origin, the next in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    origins: BTreeMap<MemberId, Late>,
}

#[derive(Clone, Debug)]
struct Late {
    batch: Arc<Batch>,
    since_us: u64,
    sent_us: u64,
}

impl Expected {
    /// Expects a batch from now on, if it is its origin's next. One that is expected already stays.
    pub fn insert(&mut self, batch: &Arc<Batch>, marks: &Marks, now_us: u64) {
        if marks.accepts(batch) {
            let late = || Late { batch: Arc::clone(batch), since_us: now_us, sent_us: now_us };
            let expected = self.origins.entry(batch.origin).or_insert_with(late);
            // A newer run of the origin has given up what was expected of the older.
            if expected.batch.incarnation < batch.incarnation {
                *expected = late();
            }
        }
    }

    /// The chain is at `marks` now: expects no longer what it has reached or passed.
    pub fn forget_through(&mut self, marks: &Marks) {
        self.origins.retain(|origin, late| marks.get(*origin) < late.batch.mark());
    }

    pub fn batches(&self) -> impl Iterator<Item = &Arc<Batch>> {
        self.origins.values().map(|late| &late.batch)
    }

    /// Those that were last passed to the leader before a time, which are passed to it now: their origin may be dead.
    pub fn take_unsent_since(&mut self, before_us: u64, now_us: u64) -> Vec<Arc<Batch>> {
        let due = self.origins.values_mut().filter(|late| late.sent_us <= before_us);
        due.map(|late| {
            late.sent_us = now_us;
            Arc::clone(&late.batch)
        })
        .collect()
    }

    /// Since when the longest expected one has been expected.
    pub fn oldest_us(&self) -> Option<u64> {
        self.origins.values().map(|late| late.since_us).min()
    }
}
