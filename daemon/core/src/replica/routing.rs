//! Where votes travel (DESIGN.md §2.4): the leader says it with each block, voters fall back to everybody.
//!
//! - The row in force when the term began says which routes its leader chooses; voters follow any. A route has no bearing on safety: who holds a quorum's votes
//!   holds a certificate, and who uses one checks it.
//! - Everybody who gathers a quorum uses the certificate. The leader sends it with its next block or at once; a communication node
//!   broadcasts it at once; where votes go to everybody nobody needs to.
//! - A vote that did not go to the leader is *awaited*: if no certificate comes within a few times what certificates took lately, at
//!   most the resend time, it goes to every member as a [`Message::LateVote`], again after each resend time. Whoever knows more than
//!   such a voter answers with its certificate, the same one to the same member once a resend time. Later votes for that block go to
//!   everybody at once.
//! - A route to nobody is one to the leader.
//! - What becomes of a block counts for or against its communication node (`trust.rs`), with the leader that named it.
//! - The row can be set by any member's operator, or by whoever has taken a member over. So a leader hands its term over to another row only when it has led it
//!   for [`TIMEOUTS_LED`] time-outs: one that flips the row for ever costs a change of the term in such a time, and no more.
//!
//! Votes to the leader are not awaited: a leader that does not gather is suspected.
//! What is kept: one entry a block in flight or committed lately, two votes a block, within the window; two answers a member.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Replica,
    io::To,
    trust::{Service, Trust},
};
use crate::{
    ballot::{BallotKind, Vote},
    block::BlockRef,
    certificate::Certificate,
    ids::{Index, MemberId},
    limits::{Timing, WINDOW},
    message::{Message, Route},
    protocol::{Protocol, VotesTo},
};

/// After how many times what is usual a vote goes to everybody.
const PATIENCE: u64 = 4;
/// The patience is no shorter than this part of the time between two heartbeats.
const LEAST_SHARE: u64 = 4;
/// And, while nothing is known, this part.
const FIRST_SHARE: u64 = 2;
/// How many blocks are remembered whose communication node was judged, in case that somebody had no certificate of it.
const REMEMBERED: usize = 2 * WINDOW as usize;
/// What is usual moves by this part of the difference.
const SMOOTHING: u64 = 8;
/// For how many time-outs a leader keeps its term although its row was given up.
const TIMEOUTS_LED: u64 = 10;
/// The same answer goes to a member again after this part of the resend time. Not the whole of it: the network brings what was
/// sent so far apart closer together.
const ANSWER_SHARE: u64 = 2;

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub(super) struct Routing {
    pub trust: Trust,
    /// How long certificates took lately, over all terms.
    usual_us: Option<u64>,
    /// The blocks of the term that are in flight, by what the leader said of them.
    told: BTreeMap<Index, Told>,
    /// Votes whose certificate has not come.
    awaited: BTreeMap<(Index, BallotKind), Awaited>,
    /// As the leader: blocks of the term that are committed; the newest [`REMEMBERED`].
    judged: BTreeMap<Index, Told>,
    /// What members that fell back were answered last, and when: one Commit certificate, and one of another kind, a member.
    answered: BTreeMap<(MemberId, bool), (BlockRef, u64)>,
}

#[derive(Clone, Debug)]
struct Told {
    route: Route,
    /// Whether a certificate has come from the communication node.
    is_served: bool,
    /// Who fell back.
    late: BTreeSet<MemberId>,
}

#[derive(Clone, Debug)]
struct Awaited {
    vote: Vote,
    /// The record that it promises.
    after: u64,
    since_us: u64,
    /// When it goes to everybody, next.
    until_us: u64,
}

impl Routing {
    /// The leader has said of a block of the term whom it wants to have the votes.
    pub fn note_route(&mut self, index: Index, route: Route) {
        let told = Told { route, is_served: false, late: BTreeSet::new() };
        self.told.insert(index, told);
    }

    fn route(&self, index: Index) -> Route {
        self.told.get(&index).map_or(Route::Leader, |told| told.route)
    }

    /// When the next vote goes to everybody.
    pub fn due_us(&self) -> Option<u64> {
        self.awaited.values().map(|awaited| awaited.until_us).min()
    }

    /// Less than the time between two heartbeats to begin with: else who is served by nobody but the leader's heartbeats would never
    /// fall back.
    fn patience_us(&self, timing: &Timing) -> u64 {
        let first_us = timing.heartbeat_us / FIRST_SHARE;
        let patience_us = self.usual_us.map_or(first_us, |usual| usual.saturating_mul(PATIENCE));
        patience_us.max(timing.heartbeat_us / LEAST_SHARE).min(timing.resend_us)
    }

    fn learn(&mut self, took_us: u64) {
        let usual_us = *self.usual_us.get_or_insert(took_us);
        let took_us = took_us.min(2 * usual_us.max(1));
        self.usual_us = Some((usual_us * (SMOOTHING - 1) + took_us).div_ceil(SMOOTHING));
    }

    /// A certificate of the term has come that speaks for the votes of a mark up to an index.
    fn note_certified(&mut self, kind: BallotKind, index: Index, is_own: bool, now_us: u64) {
        let is_done =
            |at: Index, mark: BallotKind| at <= index && (mark == kind || kind == BallotKind::Commit);
        let done: Vec<_> = self.awaited.keys().copied().filter(|(at, mark)| is_done(*at, *mark)).collect();
        for place in done {
            // One that the leader has repeated says nothing of how long those who gather take.
            let told = self.told.get(&place.0);
            let is_gathered =
                is_own || told.is_some_and(|told| told.is_served || told.route == Route::Everyone);
            if let Some(awaited) = self.awaited.remove(&place)
                && is_gathered
            {
                self.learn(now_us.saturating_sub(awaited.since_us));
            }
        }
    }

    /// A certificate of the term came from a member itself: it covers the blocks below. Answers whether it is the first of its
    /// block, from the block's communication node.
    fn note_served(&mut self, from: MemberId, index: Index) -> bool {
        let is_first =
            self.told.get(&index).is_some_and(|told| told.route == Route::Member(from) && !told.is_served);
        for told in self.told.range_mut(..=index).map(|(_, told)| told) {
            told.is_served |= told.route == Route::Member(from);
        }
        is_first
    }

    /// Whether a member that fell back is to get an answer: not the same again within some time.
    fn may_answer(&mut self, to: MemberId, certificate: &Certificate, now_us: u64, every_us: u64) -> bool {
        let (place, block) = ((to, certificate.is_commit()), certificate.block());
        let is_due =
            |(last, at_us): &(BlockRef, u64)| *last != block || now_us >= at_us.saturating_add(every_us);
        let may_answer = self.answered.get(&place).is_none_or(is_due);
        if may_answer {
            self.answered.insert(place, (block, now_us));
        }
        may_answer
    }

    /// What is kept, for the invariants.
    pub fn len(&self) -> usize {
        self.told.len() + self.awaited.len() + self.judged.len()
    }

    /// How many answers are remembered, for the invariants.
    pub fn answers(&self) -> usize {
        self.answered.len()
    }

    /// A member has fallen back, of whom f may be liars.
    fn note_late(&mut self, index: Index, voter: MemberId, f: usize) {
        if let Some(told) = self.told.get_mut(&index) {
            told.late.insert(voter);
        } else if let Some(told) = self.judged.get_mut(&index)
            && let Route::Member(node) = told.route
            && told.late.insert(voter)
        {
            // It was committed here before: the judgement is made good.
            if told.late.len() == f + 1 {
                self.trust.note_service(node, Service::Failed);
            } else if told.late.len() <= f {
                self.trust.note_service(node, Service::Doubted);
            }
        }
    }
}

impl Told {
    fn service(&self, f: usize) -> Service {
        if self.late.len() > f || !self.is_served {
            Service::Failed
        } else if self.late.is_empty() {
            Service::Served
        } else {
            Service::Doubted
        }
    }
}

impl Replica {
    /// As the leader: whom the row wants to have the votes for the next block.
    pub(super) fn choose_route(&mut self) -> Route {
        match self.protocol.row().votes_to {
            VotesTo::Leader => Route::Leader,
            VotesTo::Everyone => Route::Everyone,
            VotesTo::CommunicationNode => {
                // In turn after the leader, so that not all leaders begin with the same one.
                let me = self.me();
                let (before, after): (Vec<_>, Vec<_>) =
                    self.members().ids().filter(|id| *id != me).partition(|id| *id < me);
                let others = [after, before].concat();
                self.routing.trust.choose(&others).map_or(Route::Leader, Route::Member)
            }
        }
    }

    /// The cluster goes over to another protocol, with the next term: its leader suspects itself when it has led its own for a while.
    pub(super) fn on_protocol(&mut self, protocol: Protocol) {
        // Where the rows differ in more than routes the cluster stays with what it was made for.
        if self.members().protocol().may_become(protocol) {
            self.next_protocol = protocol;
            self.tick_term();
        }
    }

    /// Whether this member leads a term of a protocol that was given up, and has for so long that it hands the term on.
    pub(super) fn leads_given_up(&self) -> bool {
        let led_us = self.now_us().saturating_sub(self.term.entered_us());
        self.leader() == self.me()
            && self.protocol != self.next_protocol
            && led_us >= self.setup.timing.timeout_us.saturating_mul(TIMEOUTS_LED)
    }

    /// Whom the leader wants to have the votes for a block of its term.
    pub(super) fn note_route(&mut self, index: Index, route: Route) {
        let is_somebody = match route {
            Route::Member(id) => self.members().get(id).is_some(),
            Route::Leader | Route::Everyone => true,
        };
        self.routing.note_route(index, if is_somebody { route } else { Route::Leader });
    }

    /// Whether the votes for a block go to the leader.
    pub(super) fn goes_to_leader(&self, index: Index) -> bool {
        self.routing.route(index) == Route::Leader
    }

    /// Sends a vote on its way.
    pub(super) fn route_vote(&mut self, vote: Vote, after: u64) {
        let index = vote.ballot.block.index;
        let told = self.routing.told.get(&index);
        let is_late = told.is_some_and(|told| told.late.contains(&self.setup.me));
        let route = self.routing.route(index);
        match route {
            Route::Leader => {
                let leader = self.leader();
                self.send_after(To::Member(leader), Message::Vote(vote), after);
                return;
            }
            _ if is_late => self.tell_everybody(&Message::LateVote(vote.clone()), after),
            Route::Everyone => self.tell_everybody(&Message::Vote(vote.clone()), after),
            Route::Member(node) => self.send_after(To::Member(node), Message::Vote(vote.clone()), after),
        }
        let now_us = self.now_us();
        let until_us = now_us.saturating_add(self.routing.patience_us(&self.setup.timing));
        let awaited = Awaited { vote, after, since_us: now_us, until_us };
        let place = (index, awaited.vote.ballot.kind.mark());
        self.routing.awaited.entry(place).or_insert(awaited);
    }

    fn tell_everybody(&mut self, message: &Message, after: u64) {
        self.send_after(To::Others, message.clone(), after);
        self.send_after(To::Member(self.me()), message.clone(), after);
    }

    /// Sends votes to everybody whose certificates have not come in time.
    pub(super) fn fall_back(&mut self) {
        let (now_us, resend_us) = (self.now_us(), self.setup.timing.resend_us);
        let overdue = self.routing.awaited.values_mut().filter(|awaited| awaited.until_us <= now_us);
        let late: Vec<_> = overdue
            .map(|awaited| {
                awaited.until_us = now_us.saturating_add(resend_us);
                (awaited.vote.clone(), awaited.after)
            })
            .collect();
        for (vote, after) in late {
            self.note_late(&vote);
            self.tell_everybody(&Message::LateVote(vote), after);
        }
    }

    fn note_late(&mut self, vote: &Vote) {
        if vote.ballot.block.term == self.safety.term() {
            let f = self.members().f();
            self.routing.note_late(vote.ballot.block.index, vote.signer, f);
        }
    }

    /// A vote whose certificate has not come: perhaps it has here.
    pub(super) fn on_late_vote(&mut self, from: MemberId, vote: &Vote) {
        if from == vote.signer && from != self.me() {
            self.note_late(vote);
            let ballot = vote.ballot;
            let is_known = |position: &&Arc<Certificate>| {
                ballot.kind.mark() == BallotKind::Prepare
                    && self.members().protocol().row().prepares
                    && position.block().term == ballot.block.term
                    && position.block().index >= ballot.block.index
            };
            let news = if ballot.block.index <= self.tree.committed() {
                self.committed.clone()
            } else {
                self.safety.position().filter(is_known).cloned()
            };
            let (now_us, every_us) = (self.now_us(), self.setup.timing.resend_us / ANSWER_SHARE);
            if let Some(certificate) = news
                && self.routing.may_answer(from, &certificate, now_us, every_us)
            {
                self.send(To::Member(from), Message::Certificate(certificate));
            }
        }
        self.take_vote(from, vote, true);
    }

    /// Whether this member is to send on a certificate that it has gathered, of votes that came late or not.
    pub(super) fn is_to_broadcast(&self, index: Index, is_late: bool) -> bool {
        match self.routing.told.get(&index).map(|told| told.route) {
            Some(Route::Everyone) => false,
            Some(Route::Member(node)) if node == self.me() => true,
            // Who sends it votes may know more of what the leader wants. But where they go to everybody the Append is only late.
            None => {
                self.leader() == self.me() || !is_late && self.protocol.row().votes_to != VotesTo::Everyone
            }
            Some(Route::Leader | Route::Member(_)) => self.leader() == self.me(),
        }
    }

    /// A certificate is known to be valid, from a member or gathered here.
    pub(super) fn note_certified(&mut self, from: MemberId, certificate: &Certificate) {
        if certificate.block().term == self.safety.term() {
            let kind = if certificate.is_commit() { BallotKind::Commit } else { BallotKind::Prepare };
            let now_us = self.now_us();
            self.routing.note_certified(kind, certificate.block().index, from == self.me(), now_us);
        }
    }

    /// A certificate came on its own.
    pub(super) fn note_served(&mut self, from: MemberId, certificate: &Certificate) {
        let block = certificate.block();
        if block.term != self.safety.term() || !matches!(self.routing.route(block.index), Route::Member(_)) {
            return;
        }
        if self.routing.note_served(from, block.index) && self.leader() == self.me() {
            let signers: Vec<_> = certificate.signatures.iter().map(|(signer, _)| *signer).collect();
            self.routing.trust.note_signers(self.setup.members.ids(), &signers);
        }
    }

    /// What is committed now is in flight no longer: says what it tells of the communication nodes that this member named.
    pub(super) fn forget_routes(&mut self, committed: Index) {
        self.routing.awaited.retain(|(index, _), _| *index > committed);
        let leads = self.leader() == self.me();
        let in_flight = self.routing.told.split_off(&committed.next());
        for (index, told) in std::mem::replace(&mut self.routing.told, in_flight) {
            if let Route::Member(node) = told.route
                && leads
            {
                self.routing.trust.note_service(node, told.service(self.members().f()));
                self.routing.judged.insert(index, told);
            }
        }
        while self.routing.judged.len() > REMEMBERED {
            self.routing.judged.pop_first();
        }
    }

    /// A new term: its leader says where votes go.
    pub(super) fn forget_term_routes(&mut self) {
        self.protocol = self.next_protocol;
        self.routing.told.clear();
        self.routing.judged.clear();
        self.routing.awaited.clear();
    }
}
