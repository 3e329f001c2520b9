//! Changing the term: Suspect, TermVote, NewTerm.
//!
//! - A Suspect promises nothing. It is repeated while its reason holds, and counts as withdrawn when it is repeated no
//!   longer: by its signer, as anybody else could repeat it for ever. A proof of equivocation never stops being a reason.
//! - A term is entered by a quorum's Suspects for the one before, by a valid NewTerm, or by a certificate of it: a
//!   liar alone moves nobody.
//! - A term opens once, by a NewTerm or a certificate of it, whatever the own position is.
//! - What is kept for peers: one Suspect and one TermVote a member.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Replica,
    gather::Gather,
    io::{Halt, Report, To},
    normal::Ignore,
    unanimity::Unanimity,
    votes::VoteKeeper,
};
use crate::{
    ballot::{Suspect, TermVote},
    block::BlockRef,
    certificate::SuspectCertificate,
    durable::Record,
    evidence::Evidence,
    ids::{Index, MemberId, Term},
    message::{Append, EnterTerm, Message, NewTerm},
};

/// What a replica knows of its current term, and forgets over a crash.
#[derive(Clone, Debug)]
pub(super) struct TermState {
    entered_us: u64,
    /// When the leader was last heard of, and since when without an interruption.
    heard_us: u64,
    in_touch_since_us: u64,
    /// How many terms in a row have passed without a commit.
    failed: u32,
    /// Whether this member led the term before it restarted: it can't know what it has sent.
    pub resigned: bool,
    /// The proof that the leader has signed two proposals for one index. It goes out with every Suspect.
    equivocated: Option<Box<Evidence>>,
    /// Whether the leader's clock lags far behind.
    lags: bool,
    /// A position that a reader waits for.
    expected_position: Option<(BlockRef, u64)>,

    pub suspecting: Option<&'static str>,
    suspected_us: u64,
    /// The newest Suspect of each member, and when it came.
    suspects: BTreeMap<MemberId, (Suspect, u64)>,

    /// The number of the record of the own TermVote, and when it was last sent.
    entered_record: u64,
    entered_sent_us: u64,
    /// As the leader of a term that is not open: one TermVote a member.
    term_votes: BTreeMap<MemberId, Arc<EnterTerm>>,
    /// What opened the term, to show to others.
    pub new_term: Option<Arc<NewTerm>>,

    pub votes: VoteKeeper,
    /// Blocks of this term that can't be accepted yet. Within the window, one an index.
    pub waiting: BTreeMap<Index, Append>,
    /// As the leader: what was sent, to send again. Within the window.
    pub appends: BTreeMap<Index, Append>,
    /// As the leader: the committed index that went out with the last block.
    pub announced: Index,
    /// As the leader: how long the next block waits to be filled.
    pub gather: Gather,
    /// Whether all members' votes are waited for.
    pub unanimity: Unanimity,
    /// When the last heartbeat was sent, and how many were in this term.
    pub heartbeat_us: u64,
    pub heartbeats: u64,
    /// When Appends were last repeated.
    pub repeated_us: u64,
    /// The highest index that a Commit vote was sent for.
    pub committed_vote: Index,
}

impl TermState {
    pub fn new(now_us: u64) -> Self {
        Self {
            entered_us: now_us,
            heard_us: now_us,
            in_touch_since_us: now_us,
            failed: 0,
            resigned: false,
            equivocated: None,
            lags: false,
            expected_position: None,
            suspecting: None,
            suspected_us: 0,
            suspects: BTreeMap::new(),
            entered_record: 0,
            entered_sent_us: now_us,
            term_votes: BTreeMap::new(),
            new_term: None,
            votes: VoteKeeper::default(),
            waiting: BTreeMap::new(),
            appends: BTreeMap::new(),
            announced: Index(0),
            gather: Gather::default(),
            unanimity: Unanimity::default(),
            heartbeat_us: 0,
            heartbeats: 0,
            repeated_us: 0,
            committed_vote: Index(0),
        }
    }

    /// The state of the next term. Suspects stay: they may be for it. So does what readers wait for.
    fn enter(&mut self, now_us: u64, record: u64) {
        *self = Self {
            failed: self.failed.saturating_add(1),
            suspects: std::mem::take(&mut self.suspects),
            expected_position: self.expected_position,
            entered_record: record,
            ..Self::new(now_us)
        };
    }

    /// Something was committed: time-outs fall back, and some waiting may be over.
    pub fn note_commit(&mut self, root: BlockRef) {
        self.failed = 0;
        let reached = |block: BlockRef| (root.term, root.index) >= (block.term, block.index);
        if self.expected_position.is_some_and(|(block, _)| reached(block)) {
            self.expected_position = None;
        }
    }

    /// When the term was entered.
    pub fn entered_us(&self) -> u64 {
        self.entered_us
    }

    /// The number of the record that this member has entered the term.
    pub fn entered_record(&self) -> u64 {
        self.entered_record
    }

    fn is_fresh(&self, at_us: u64, now_us: u64, resend_us: u64) -> bool {
        now_us.saturating_sub(at_us) <= 3 * resend_us
    }
}

impl Replica {
    /// A reader waits for a position: it is expected to commit, unless a block of a higher rank has overtaken it. One at a
    /// time, the first.
    pub(super) fn expect_position(&mut self, block: BlockRef) {
        let root = self.tree.root();
        if (block.term, block.index) > (root.term, root.index) {
            let now_us = self.now_us();
            self.term.expected_position.get_or_insert((block, now_us));
        }
    }

    /// Takes up the part that was left at the last stop.
    pub(super) fn take_up(&mut self, first_start: bool) {
        self.term.resigned = self.leader() == self.me() && !first_start;
        if self.safety.may_open() {
            self.repeat_term_vote();
        }
        self.propose();
    }

    pub(super) fn tick_term(&mut self) {
        let others = self.others_suspecting();
        self.conduct.tick(self.now.monotonic_us, &self.setup.timing, others);
        let reason = self.reason_to_suspect();
        if reason.is_some() != self.term.suspecting.is_some() {
            let term = self.safety.term();
            self.report(match reason {
                Some(reason) => Report::Suspecting(term, reason),
                None => Report::Trusting(term),
            });
        }
        self.term.suspecting = reason;
        let resend_us = self.setup.timing.resend_us;
        if self.safety.may_open() && self.now_us() >= self.term.entered_sent_us + resend_us {
            self.repeat_term_vote();
        }
        if reason.is_some() && self.now_us() >= self.term.suspected_us + resend_us {
            self.term.suspected_us = self.now_us();
            self.suspect();
        }
    }

    // Suspecting.

    /// Why the leader of the current term is suspected now, if it is. Withdrawing is this turning to none.
    fn reason_to_suspect(&self) -> Option<&'static str> {
        let is_overdue =
            |since: u64| self.now_us() > since.max(self.term.entered_us).saturating_add(self.timeout_us());
        if self.term.equivocated.is_some() {
            return Some("it signed two blocks for one index");
        }
        if self.term.resigned {
            return Some("this member led the term before it restarted");
        }
        if self.leads_given_up() {
            return Some("the cluster goes over to another protocol");
        }
        if self.leaving && self.leader() == self.me() {
            return Some("this member is about to stop");
        }
        if self.leader() != self.me() {
            if self.leader_resigned() {
                return Some("it suspects its own term");
            }
            if is_overdue(self.term.heard_us) {
                return Some("nothing was heard of it");
            }
            if self.term.lags {
                return Some("its clock lags far behind");
            }
            if self.conduct.is_suspect() {
                return Some("it loses, spoils or delays much of what it sends");
            }
        }
        if !self.has_committed_first() && is_overdue(self.term.entered_us) {
            return Some("the term's first block is not committed");
        }
        if self.oldest_work_us().is_some_and(is_overdue) {
            return Some("known work is not committed");
        }
        None
    }

    /// Since when the oldest work that this replica knows of has been waiting.
    fn oldest_work_us(&self) -> Option<u64> {
        let accepted = self
            .safety
            .open()
            .and_then(|open| self.tree.descend(&open.tip.digest).last())
            .and_then(|block| self.tree.since_us(&block.digest()));
        let own = self.origin.iter().map(|own| own.since_us).min();
        let position = self.term.expected_position.map(|(_, since)| since);
        [accepted, own, self.expected.oldest_us(), position].into_iter().flatten().min()
    }

    fn has_committed_first(&self) -> bool {
        let root = self.tree.root();
        root.term == self.safety.term() && root != self.members().root()
    }

    /// How many other members suspect the current term now.
    fn others_suspecting(&self) -> usize {
        let (term, now_us, resend_us) = (self.safety.term(), self.now_us(), self.setup.timing.resend_us);
        let others = self.term.suspects.values().filter(|(suspect, _)| suspect.signer != self.me());
        others
            .filter(|(suspect, at_us)| suspect.term == term && self.term.is_fresh(*at_us, now_us, resend_us))
            .count()
    }

    fn leader_resigned(&self) -> bool {
        let resend_us = self.setup.timing.resend_us;
        self.term.suspects.get(&self.leader()).is_some_and(|(suspect, at_us)| {
            suspect.term == self.safety.term() && self.term.is_fresh(*at_us, self.now_us(), resend_us)
        })
    }

    /// How long the current term's leader is waited for: doubled for each term in a row without a commit.
    pub(super) fn timeout_us(&self) -> u64 {
        let timing = &self.setup.timing;
        let doubled = timing.timeout_us.saturating_mul(1 << self.term.failed.min(20));
        doubled.min(timing.max_timeout_us)
    }

    pub(super) fn hear_leader(&mut self, from: MemberId, term: Term) {
        if from != self.leader() || term != self.safety.term() {
            return;
        }
        let now_us = self.now_us();
        if now_us > self.term.heard_us + self.setup.timing.timeout_us {
            self.term.in_touch_since_us = now_us;
        }
        self.term.heard_us = now_us;
    }

    /// Compares the time of a new block with this clock. Blocks that come after an outage are old, not late.
    pub(super) fn note_lag(&mut self, time_ms: u64) {
        let timing = &self.setup.timing;
        let in_touch_ms = self.now_us().saturating_sub(self.term.in_touch_since_us) / 1000;
        let is_late = time_ms.saturating_add(timing.max_behind_ms) < self.now.unix_ms;
        self.term.lags = is_late && in_touch_ms > timing.max_behind_ms;
    }

    fn suspect(&mut self) {
        let (epoch, term) = (self.members().epoch(), self.safety.term());
        let suspect = Suspect::sign(self.cluster(), epoch, term, self.me(), &*self.setup.signer);
        self.send(To::Others, Message::Suspect(suspect.clone()));
        if let Some(proof) = self.term.equivocated.clone() {
            let after = self.persisted;
            self.send_after(To::Others, Message::Evidence(proof), after);
        }
        self.show_proposal();
        let me = self.me();
        self.on_suspect(me, &suspect);
    }

    pub(super) fn on_suspect(&mut self, from: MemberId, suspect: &Suspect) {
        if from != suspect.signer {
            self.report(Report::Ignored(from, "Suspect", Ignore::SecondHand));
            return;
        }
        if from != self.me() {
            // The suspecting member may only be behind.
            if let Some(certificate) = &self.committed {
                let certificate = Arc::clone(certificate);
                self.send(To::Member(from), Message::Certificate(certificate));
            }
            if suspect.term < self.safety.term() {
                self.show_term(from);
            }
        }
        let newest = self.term.suspects.get(&suspect.signer).map(|(newest, _)| newest.term);
        if newest.is_some_and(|newest| newest > suspect.term) {
            self.report(Report::Ignored(from, "Suspect", Ignore::PastTerm));
            return;
        }
        let now_us = self.now_us();
        self.term.suspects.insert(suspect.signer, (suspect.clone(), now_us));
        if suspect.term >= self.safety.term() {
            self.leave_suspected(suspect.term);
        }
    }

    /// Leaves a term that a quorum suspects now.
    fn leave_suspected(&mut self, term: Term) {
        let resend_us = self.setup.timing.resend_us;
        let fresh = self
            .term
            .suspects
            .values()
            .filter(|(_, at_us)| self.term.is_fresh(*at_us, self.now_us(), resend_us))
            .map(|(suspect, _)| suspect);
        if let Some(certificate) = SuspectCertificate::gather(&self.setup.members, term, fresh) {
            self.enter_term(term.next(), Some(Arc::new(certificate)));
        }
    }

    /// The leader of a term is proved to have signed two headers for one index: its term is suspected for good. Answers
    /// whether that is a new reason.
    pub(super) fn prove_leader(&mut self, term: Term, proof: &Evidence) -> bool {
        let is_reason = term == self.safety.term() && self.term.equivocated.is_none();
        if is_reason {
            self.term.equivocated = Some(Box::new(proof.clone()));
        }
        is_reason
    }

    // Entering.

    /// Enters a term: one TermVote, persisted before it leaves.
    pub(super) fn enter_term(&mut self, term: Term, suspects: Option<Arc<SuspectCertificate>>) {
        if !self.safety.may_enter(term) {
            return;
        }
        let position = self.safety.position().cloned();
        let block = position.as_ref().map(|certificate| certificate.block());
        let epoch = self.members().epoch();
        let sole = self.open_sole();
        let named = sole.as_ref().map(|block| block.reference());
        let vote = TermVote::sign(self.cluster(), epoch, term, block, named, self.me(), &*self.setup.signer);
        let entered = Arc::new(EnterTerm { vote, position, suspects, sole });
        self.safety.record_enter(Arc::clone(&entered));
        let record = self.persist(Record::Term(Arc::clone(&entered)));
        self.term.enter(self.now.monotonic_us, record);
        self.conduct.enter_term();
        self.forget_term_routes();
        self.watch.enter_term();
        self.recall_proof();
        self.report(Report::EnteredTerm(term));
        self.repeat_term_vote();
        self.pass_on_batches();
    }

    /// Sends the one TermVote of this term, verbatim.
    fn repeat_term_vote(&mut self) {
        self.term.entered_sent_us = self.now_us();
        let Some(entered) = self.safety.entered().cloned() else { return };
        let after = self.term.entered_record;
        if self.leader() == self.me() {
            self.send_after(To::Member(self.me()), Message::EnterTerm(Arc::clone(&entered)), after);
        }
        self.send_after(To::Others, Message::EnterTerm(entered), after);
    }

    pub(super) fn on_enter_term(&mut self, from: MemberId, enter: &Arc<EnterTerm>) {
        let term = enter.vote.term;
        self.watch_term_vote(&enter.vote);
        if let Some(suspects) = &enter.suspects
            && self.safety.may_enter(term)
        {
            self.enter_term(term, Some(Arc::clone(suspects)));
        }
        if let Some(certificate) = &enter.position {
            self.on_certificate(from, certificate);
        }
        if term < self.safety.term() {
            self.show_term(from);
        } else if term > self.safety.term() {
            self.report(Report::Ignored(from, "EnterTerm", Ignore::FutureTerm));
        } else if self.leader() == self.me() {
            match &self.term.new_term {
                Some(new_term) => {
                    let new_term = Arc::clone(new_term);
                    let after = self.term.entered_record;
                    self.send_after(To::Member(from), Message::NewTerm(new_term), after);
                }
                None => {
                    self.term.term_votes.entry(enter.vote.signer).or_insert_with(|| Arc::clone(enter));
                    self.start_term();
                }
            }
        }
    }

    /// Shows a member that is behind why this one is in its term.
    pub(super) fn show_term(&mut self, to: MemberId) {
        let entered = self.safety.entered().filter(|entered| entered.suspects.is_some()).cloned();
        let message = if let Some(entered) = entered {
            Message::EnterTerm(entered)
        } else if let Some(new_term) = &self.term.new_term {
            Message::NewTerm(Arc::clone(new_term))
        } else if let Some(certificate) = self.safety.position() {
            Message::Certificate(Arc::clone(certificate))
        } else {
            return;
        };
        let after = self.term.entered_record.max(self.position_record());
        self.send_after(To::Member(to), message, after);
    }

    // Opening.

    /// As the leader: opens the term once a quorum's TermVotes are here, with the blocks of their positions.
    pub(super) fn start_term(&mut self) {
        if self.leader() != self.me() || self.term.resigned || !self.safety.may_open() {
            return;
        }
        let chosen: Vec<_> = self
            .term
            .term_votes
            .values()
            .filter(|enter| enter.vote.position.is_none_or(|block| self.is_held(block)))
            .take(self.members().quorum())
            .cloned()
            .collect();
        if !self.members().is_quorum(chosen.iter().map(|enter| enter.vote.signer)) {
            return;
        }
        let highest = chosen.iter().max_by_key(|enter| enter.vote.rank());
        let mut new_term = NewTerm {
            epoch: self.members().epoch(),
            term: self.safety.term(),
            votes: chosen.iter().map(|enter| enter.vote.clone()).collect(),
            position: highest.and_then(|enter| enter.position.clone()),
            sole: None,
        };
        if let Some(start) = new_term.sole_start(&self.setup.members) {
            let mut soles = chosen.iter().filter_map(|enter| enter.sole.as_ref());
            new_term.sole = soles.find(|block| block.reference() == start).cloned();
            if !new_term.sole.as_ref().is_some_and(|sole| self.take_sole(sole)) {
                // Its parent is committed, and not here yet.
                return;
            }
        }
        let new_term = Arc::new(new_term);
        if self.follow_new_term(&new_term) {
            let after = self.term.entered_record;
            self.send_after(To::Others, Message::NewTerm(new_term), after);
            self.propose();
        }
    }

    /// Whether a block and its ancestors are here, or behind what is committed.
    fn is_held(&self, block: BlockRef) -> bool {
        block.index <= self.tree.committed() || self.tree.contains(&block.digest)
    }

    pub(super) fn on_new_term(&mut self, from: MemberId, new_term: &Arc<NewTerm>) {
        for vote in &new_term.votes {
            self.watch_term_vote(vote);
        }
        if new_term.term < self.safety.term() {
            self.report(Report::Ignored(from, "NewTerm", Ignore::PastTerm));
            self.show_term(from);
            return;
        }
        self.enter_term(new_term.term, None);
        if !self.safety.may_open() {
            self.report(Report::Ignored(from, "NewTerm", Ignore::AlreadyOpen));
            return;
        }
        if self.follow_new_term(new_term) {
            self.hear_leader(from, new_term.term);
            if let Some(certificate) = &new_term.position {
                self.on_certificate(from, certificate);
            }
            self.accept_waiting();
        }
    }

    /// Opens the current term where a NewTerm says, unless that contradicts what is committed here.
    fn follow_new_term(&mut self, new_term: &Arc<NewTerm>) -> bool {
        let start = new_term.start(&self.setup.members);
        let root = self.tree.root();
        if start.index < root.index || (start.index == root.index && start != root) {
            // What contradicts is what a quorum says in it.
            self.send(To::Others, Message::NewTerm(Arc::clone(new_term)));
            self.halt(Halt::ConflictingCertificates { committed: root, certified: start });
            return false;
        }
        self.term.new_term = Some(Arc::clone(new_term));
        self.take_start();
        self.open_term(start);
        true
    }

    pub(super) fn open_term(&mut self, start: BlockRef) {
        let accepted = self.safety.record_open(start);
        self.persist(Record::Accepted(accepted));
        // Blocks of terms that were left may be needed again only up to the highest position.
        let position = self.safety.position().map(|certificate| certificate.block().digest);
        let sole = self.safety.sole().map(|block| block.digest);
        let kept: Vec<_> = position.into_iter().chain(sole).chain([start.digest]).collect();
        self.tree.retain_chains(&kept);
        self.report(Report::OpenedTerm(accepted.term, start));
    }
}
