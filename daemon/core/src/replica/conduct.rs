//! A floor on a leader's conduct: who commits, but loses or spoils much of what it sends, is suspected all the same.
//!
//! A time-out catches a leader with whom nothing commits. One that is bad enough to be slow, and not bad enough to stop,
//! would keep its term for ever. Aardvark (NSDI'09, §4.3) asks each leader for a share of what the ones before achieved. Here a
//! member counts *lapses*, which no correct leader makes on connections that keep the order and lose nothing:
//!
//! - a **missing heartbeat**: they are numbered;
//! - a **missing block**: an Append of the term skips an index;
//! - a **missing certificate**: an Append says that a block is committed, and when the next one comes no Prepare certificate of
//!   that block or a later one has come, alone or with an Append. (A leader sends it before anybody can vote Commit. It takes
//!   another way than Appends, so it gets the time of a whole block more. What a heartbeat repeats does not count. Nor do blocks whose
//!   votes others gather, or that have no Prepare certificates.)
//! - a **late batch** of this member's: committed only after [`LATE`] times what was usual, and a heartbeat's time. What was on its way
//!   when the last late one came is late for the same reason.
//! - a **corrupt message**: one that the verifier refuses, or that no correct member sends ([`Ignore::is_lie`]).
//!
//! Each lapse fills a leaky bucket by [`LAPSE_MERITS`]; each *merit*, a committed block or a heartbeat, takes 1 away. Above
//! [`MAX_LAPSES`] lapses the leader is suspected, until half of that is left or no lapse has come for some time. When f+1 others
//! suspect it, for whatever reason, half is enough to begin with: a correct one is among them. A connection that breaks once is no
//! reason, and soon made good. Only a quorum of Suspects moves the term: one bad connection moves nobody, nor do liars.
//!
//! Where the *network* loses messages every leader lapses, and none is better. Terms that ended while this member suspected their
//! leader for lapses are counted: f may have been liars', with each one more the limit doubles. The count falls by one after
//! [`FORGIVING_MERITS`] merits without a lapse.
//!
//! Deviation from Aardvark: no throughput is expected of a leader, as what clients ask for varies. What is usual is learned over all
//! terms, and slowly where it gets worse.

use super::{Replica, normal::Ignore};
use crate::{
    ballot::BallotKind,
    certificate::Certificate,
    ids::{Index, MemberId},
    limits::{FORGIVING_MERITS, LAPSE_MERITS, MAX_DOUBLINGS, MAX_LAPSES, Timing},
    message::{Append, Heartbeat, Route},
};

/// How many times the usual time makes a batch late.
const LATE: u64 = 16;
/// What is usual moves by this part of the difference.
const SMOOTHING: u64 = 16;
/// For how many time-outs without a lapse a suspicion stands at most.
const STANDS_TIMEOUTS: u64 = 2;

/// What this member holds against the leader of its term, and how patient others have made it.
#[derive(Clone, Debug, Default)]
pub(super) struct Conduct {
    f: u32,
    /// In merits. At most twice the limit.
    pub bucket: u64,
    lapsed_us: u64,
    is_suspect: bool,
    shown: Shown,
    /// How many terms ended so, less those that are forgiven.
    left: u32,
    /// How long this member's batches take to be committed, over all terms.
    usual_us: Option<u64>,
    /// When the last late one came.
    late_us: u64,
    /// How many merits came since the last lapse, or since one was forgiven.
    flawless: u64,
}

/// What the leader of the term has shown to this member itself.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    heartbeat: Option<u64>,
    /// The indices of the first and the highest Append.
    appends: Option<(Index, Index)>,
    /// The highest index of a Prepare certificate.
    prepared: Index,
    /// The highest committed index that came with an Append, of the blocks that Appends had shown before.
    committed: Index,
}

impl Conduct {
    pub fn new(f: usize) -> Self {
        Self { f: u32::try_from(f).unwrap_or(u32::MAX), ..Self::default() }
    }

    /// How full the bucket may be.
    fn limit(&self) -> u64 {
        let doublings = self.left.saturating_sub(self.f).min(MAX_DOUBLINGS);
        (MAX_LAPSES * LAPSE_MERITS) << doublings
    }

    /// The leader has lapsed so many times.
    fn lapse(&mut self, count: u32, now_us: u64) {
        self.flawless = 0;
        self.lapsed_us = now_us;
        let limit = self.limit();
        self.bucket = self.bucket.saturating_add(u64::from(count) * LAPSE_MERITS).min(2 * limit);
        self.is_suspect |= self.bucket > limit;
    }

    /// So many blocks are committed, or heartbeats have come.
    pub fn note_merits(&mut self, count: u64) {
        self.bucket = self.bucket.saturating_sub(count);
        self.flawless = self.flawless.saturating_add(count);
        if self.flawless >= FORGIVING_MERITS {
            self.flawless = 0;
            self.left = self.left.saturating_sub(1);
            self.bucket = self.bucket.min(2 * self.limit());
        }
        self.is_suspect &= self.bucket > self.limit() / 2;
    }

    /// An own batch that was sent at a time is committed. Answers whether it is late.
    fn is_late(&mut self, since_us: u64, now_us: u64, least_us: u64) -> bool {
        let took_us = now_us.saturating_sub(since_us);
        let usual_us = *self.usual_us.get_or_insert(took_us);
        let is_late = took_us > usual_us.saturating_mul(LATE).max(least_us) && since_us >= self.late_us;
        let took_us = took_us.min(2 * usual_us.max(1));
        self.usual_us = Some((usual_us * (SMOOTHING - 1) + took_us).div_ceil(SMOOTHING));
        if is_late {
            self.late_us = now_us;
        }
        is_late
    }

    /// Time has passed, and so many others suspect the leader now.
    pub fn tick(&mut self, now_us: u64, timing: &Timing, others: usize) {
        self.is_suspect |= others > self.f as usize && self.bucket > self.limit() / 2;
        if self.is_suspect && now_us > self.lapsed_us.saturating_add(STANDS_TIMEOUTS * timing.timeout_us) {
            self.bucket = self.limit() / 2;
            self.is_suspect = false;
        }
    }

    /// Whether the leader is suspected for its lapses.
    pub fn is_suspect(&self) -> bool {
        self.is_suspect
    }

    /// A term begins, with an empty bucket.
    pub fn enter_term(&mut self) {
        let most = self.f.saturating_add(MAX_DOUBLINGS);
        let left = (self.left + u32::from(self.is_suspect)).min(most);
        let (f, flawless, usual_us) = (self.f, self.flawless, self.usual_us);
        *self = Self { f, left, flawless, usual_us, ..Self::default() };
    }

    /// Whether what is kept is within its bounds.
    pub fn is_bounded(&self) -> bool {
        self.bucket <= 2 * self.limit() && self.left <= self.f.saturating_add(MAX_DOUBLINGS)
    }
}

impl Shown {
    /// A heartbeat has come. Answers how many lapses that shows.
    fn heartbeat(&mut self, number: u64) -> u32 {
        let is_gap = self.heartbeat.is_some_and(|last| number > last.saturating_add(1));
        self.heartbeat = self.heartbeat.max(Some(number));
        u32::from(is_gap)
    }

    /// An Append has come, and with it a Commit certificate of the term, or none. Answers how many lapses that shows.
    fn append(&mut self, index: Index, committed: Option<Index>) -> u32 {
        let Some((first, highest)) = self.appends else {
            // What was sent before this member entered the term, or started, is not missed.
            self.appends = Some((index, index));
            return 0;
        };
        if index <= highest {
            return 0;
        }
        self.appends = Some((first, index));
        let is_gap = index > highest.next();
        let is_unprepared = self.prepared < self.committed;
        self.prepared = self.prepared.max(self.committed);
        let committed = committed.filter(|committed| (first..=highest).contains(committed));
        self.committed = self.committed.max(committed.unwrap_or_default());
        // What was lost together is one lapse.
        u32::from(is_gap || is_unprepared)
    }
}

impl Replica {
    pub(super) fn watch_heartbeat(&mut self, from: MemberId, heartbeat: &Heartbeat) {
        if self.is_other_leader(from) && heartbeat.term == self.safety.term() {
            let lapses = self.conduct.shown.heartbeat(heartbeat.number);
            self.note_lapses(from, lapses);
            self.conduct.note_merits(1);
        }
    }

    pub(super) fn watch_append(&mut self, from: MemberId, append: &Append) {
        let header = append.block.header();
        if !self.is_other_leader(from) || header.term != self.safety.term() {
            return;
        }
        // One far ahead would hide all gaps below it. Those in order may be far ahead of a member that is behind.
        let is_next = self.conduct.shown.appends.is_some_and(|(_, highest)| header.index == highest.next());
        if !is_next && !self.is_in_window(header.index) {
            return;
        }
        let committed = append.certificates.committed.as_ref().map(|certificate| certificate.block());
        // Only where it gathers the votes must a leader have shown a Prepare certificate.
        let shows = self.row().prepares && append.votes_to == Route::Leader;
        let committed = committed.filter(|block| shows && block.term == header.term).map(|block| block.index);
        let lapses = self.conduct.shown.append(header.index, committed);
        self.note_lapses(from, lapses);
    }

    /// A certificate has come, alone or with an Append.
    pub(super) fn watch_prepared(&mut self, from: MemberId, certificate: &Certificate) {
        let block = certificate.block();
        let is_prepared = certificate.ballot.kind.mark() == BallotKind::Prepare;
        if self.is_other_leader(from) && is_prepared && block.term == self.safety.term() {
            let shown = &mut self.conduct.shown;
            shown.prepared = shown.prepared.max(block.index);
        }
    }

    /// This member's oldest batch that is on its way is committed, sent at a time in this term.
    pub(super) fn watch_own(&mut self, since_us: u64) {
        let least_us = self.setup.timing.heartbeat_us;
        if self.conduct.is_late(since_us, self.now.monotonic_us, least_us) {
            self.note_lapses(self.leader(), 1);
        }
    }

    /// A member has said what is of no use: a lapse, if no correct member says it.
    pub(super) fn note_ignored(&mut self, from: MemberId, why: Ignore) {
        self.note_lapses(from, u32::from(why.is_lie()));
    }

    /// A member has lapsed so many times: that counts if it leads.
    pub(super) fn note_lapses(&mut self, from: MemberId, count: u32) {
        if count > 0 && self.is_other_leader(from) {
            self.conduct.lapse(count, self.now.monotonic_us);
        }
    }

    fn is_other_leader(&self, from: MemberId) -> bool {
        from == self.leader() && from != self.me()
    }
}

#[cfg(test)]
mod tests;
