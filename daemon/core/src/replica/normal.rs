//! The normal case: propose, accept, prepare, commit.

use std::sync::Arc;

use super::{
    Replica,
    io::{Halt, Output, Report, To},
};
use crate::{
    ballot::{Ballot, BallotKind, Vote},
    block::{Batch, Block, BlockRef, Executed, Header, Proposal},
    certificate::Certificate,
    durable::{Accepted, Committed, Record},
    ids::{Index, MemberId},
    limits::WINDOW,
    message::{Append, Heartbeat, Message},
};

/// Why a message is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ignore {
    /// It is about a term that was left.
    PastTerm,
    /// It is about a term that was not entered yet.
    FutureTerm,
    /// What it is about is committed already.
    Committed,
    /// It is too far ahead of what is committed.
    BeyondWindow,
    /// It is known already.
    Known,
    /// It claims to be from the leader of a term, and is this member's own term.
    OwnTerm,
    /// It may have been withdrawn, and comes from another than its signer.
    SecondHand,
    /// It does not come from the leader.
    NotTheLeader,
    /// Its parent is not the newest accepted block.
    WrongParent,
    /// A term's first block is empty, this one is not.
    FirstNotEmpty,
    /// Its time lies before its parent's.
    TimeWentBack,
    /// What it says was executed lies before what its parent says, or is no earlier block.
    ExecutedOutOfOrder,
    /// What it says of the state is not so here.
    StateDiffers,
    /// What it says of the state is news, and so old that it is not remembered here.
    StateForgotten,
    /// A batch of this origin is not its next.
    BatchOutOfOrder(MemberId),
    /// The term is open already.
    AlreadyOpen,
    /// Nothing that was asked for.
    NotAskedFor,
    /// It claims an index that is impossible here.
    NoSuchBlock,
    /// Its leader calls it the lowest in flight where there is no such thing.
    NotSole,
    /// A vote for another block than the leader, this member, proposed for that index.
    FalseVote,
}

impl Ignore {
    /// Whether no correct member sends such a thing: it is counted against the sender.
    pub fn is_lie(self) -> bool {
        match self {
            Self::FirstNotEmpty
            | Self::TimeWentBack
            | Self::ExecutedOutOfOrder
            | Self::StateDiffers
            | Self::StateForgotten
            | Self::BatchOutOfOrder(_)
            | Self::NotSole
            | Self::FalseVote => true,
            Self::PastTerm
            | Self::FutureTerm
            | Self::Committed
            | Self::BeyondWindow
            | Self::Known
            | Self::OwnTerm
            | Self::NotTheLeader
            | Self::SecondHand
            | Self::WrongParent
            | Self::AlreadyOpen
            | Self::NotAskedFor
            | Self::NoSuchBlock => false,
        }
    }
}

/// What to do with a block that would come next.
enum Judgement {
    Accept,
    /// Something that it needs may still come.
    Wait,
    Refuse(Ignore),
}

/// How many of a leader's blocks that can't be accepted yet are kept; the leader sends the others again.
const REMEMBERED: usize = 2 * WINDOW as usize;

impl Replica {
    // The leader's side.

    /// The accepted chain, if this member leads the term and may propose in it.
    fn leads(&self) -> Option<Accepted> {
        let open = self.safety.open()?;
        (self.leader() == self.me() && !self.term.resigned).then_some(open)
    }

    /// Proposes what the window has room for. Says whether certificates went out with it.
    pub(super) fn propose(&mut self) -> bool {
        let mut proposed = false;
        while let Some(batches) = self.next_batches() {
            if !self.propose_block(batches) {
                break;
            }
            proposed = true;
        }
        proposed
    }

    /// The batches of the next block, if one may be proposed now.
    fn next_batches(&self) -> Option<Vec<Arc<Batch>>> {
        let open = self.leads()?;
        let parent = self.tree.ancestry(&open.tip.digest)?;
        if self.is_before_first(&open) {
            return Some(Vec::new());
        }
        let in_flight = open.tip.index.0.saturating_sub(self.tree.committed().0);
        if !self.has_begun(&open) || in_flight >= WINDOW {
            return None;
        }
        let may_fill = in_flight > 0 || self.gathers_until().is_some();
        if may_fill && self.pool.size() < self.setup.timing.worth_a_block {
            return None;
        }
        let batches = self.pool.choose(&parent.marks, open.tip.index.0);
        (!batches.is_empty()).then_some(batches)
    }

    /// Until when the next block waits to be filled, if it does.
    pub(super) fn gathers_until(&self) -> Option<u64> {
        self.leads()?;
        let waiting = self.pool.requests();
        self.term.gather.waits_until(waiting, self.now_us()).filter(|_| waiting > 0)
    }

    fn propose_block(&mut self, batches: Vec<Arc<Batch>>) -> bool {
        let Some(open) = self.leads() else { return false };
        let Some(parent) = self.tree.ancestry(&open.tip.digest) else { return false };
        let Some(executed) = self.executed_to_report(parent.executed) else { return false };
        let header = Header {
            cluster: self.cluster(),
            epoch: self.members().epoch(),
            term: open.term,
            index: open.tip.index.next(),
            parent: open.tip.digest,
            time_ms: self.now.unix_ms.max(parent.time_ms),
            batches: Block::batches_digest(&batches),
            executed,
            sole: self.may_be_sole(&open, &batches),
        };
        let signature = self.setup.signer.sign(&Proposal::signed_bytes(&header));
        let block = Arc::new(Block::new(header, batches));
        let certificates = self.newest_certificates();
        self.term.announced = self.tree.committed();
        // It may leave before the block is durable here; only this member's own vote may not. But the term must be: a
        // leader that forgets over a crash that it led this term would propose in it again.
        let votes_to = self.choose_route();
        self.note_route(block.header().index, votes_to);
        let append = Append { block: Arc::clone(&block), signature, certificates, votes_to };
        let after = self.origin.record.max(self.term.entered_record());
        self.term.appends.insert(block.header().index, append.clone());
        self.send_after(To::Others, Message::Append(append), after);
        self.accept(&block);
        true
    }

    /// What a new block says was executed: the state after what was announced as committed with the block before,
    /// so that followers have had the time to execute it too; never less than the parent says.
    fn executed_to_report(&self, parent: Option<Executed>) -> Option<Executed> {
        let own = self.states.at_or_below(self.term.announced);
        match (own, parent) {
            (Some(own), Some(parent)) if own.index < parent.index => Some(parent),
            (Some(own), _) => Some(own),
            (None, parent) => parent,
        }
    }

    /// Says that the leader is here, and sends again what members have not voted for. While a block waits, what would help it may
    /// have been lost: then certificates are repeated more often.
    pub(super) fn tick_leader(&mut self) {
        let Some(open) = self.leads() else { return };
        self.propose();
        let (now_us, every_us) = (self.now_us(), self.setup.timing.heartbeat_us);
        let is_time = |since_us: u64| since_us + every_us <= now_us;
        let oldest = self.tree.descend(&open.tip.digest).last().map(|block| block.digest());
        let is_stalled = oldest.and_then(|oldest| self.tree.since_us(&oldest)).is_some_and(is_time);
        if is_stalled || is_time(self.term.heartbeat_us) {
            self.send_heartbeat(&open);
        }
        if is_time(self.term.repeated_us) {
            self.term.repeated_us = now_us;
            self.repeat_appends(&open);
        }
    }

    fn send_heartbeat(&mut self, open: &Accepted) {
        self.term.heartbeat_us = self.now_us();
        self.term.heartbeats += 1;
        let heartbeat = Heartbeat {
            epoch: self.members().epoch(),
            term: open.term,
            number: self.term.heartbeats,
            certificates: self.newest_certificates(),
        };
        self.send(To::Others, Message::Heartbeat(heartbeat));
    }

    fn repeat_appends(&mut self, open: &Accepted) {
        const AT_ONCE: usize = 2;
        let resend_us = self.setup.timing.resend_us;
        let overdue: Vec<_> = self
            .tree
            .path(&open.tip.digest)
            .iter()
            .filter(|block| block.header().term == open.term)
            .filter(|block| {
                self.tree.since_us(&block.digest()).is_some_and(|since| since + resend_us <= self.now_us())
            })
            .map(|block| block.header().index)
            .collect();
        let ids: Vec<_> = self.members().ids().filter(|id| *id != self.me()).collect();
        for member in ids {
            let missing = overdue.iter().filter(|index| !self.has_accepted(**index, member)).take(AT_ONCE);
            let appends: Vec<_> = missing.filter_map(|index| self.term.appends.get(index).cloned()).collect();
            for append in appends {
                let after = self.origin.record.max(self.term.entered_record());
                self.send_after(To::Member(member), Message::Append(append), after);
            }
        }
    }

    // The follower's side.

    pub(super) fn on_append(&mut self, from: MemberId, append: &Append) {
        self.watch_append(from, append);
        for certificate in append.certificates.iter() {
            self.watch_prepared(from, certificate);
            self.on_certificate(from, certificate);
        }
        if let Some(why) = self.ignore_append(from, append) {
            self.report(Report::Ignored(from, "Append", why));
            return;
        }
        self.hear_leader(from, append.block.header().term);
        if self.watch_proposal(&append.proposal()) {
            let index = append.block.header().index;
            self.note_route(index, append.votes_to);
            self.term.waiting.insert(index, append.clone());
            self.accept_waiting();
        }
    }

    fn ignore_append(&mut self, _from: MemberId, append: &Append) -> Option<Ignore> {
        let header = append.block.header();
        let term = self.safety.term();
        if header.term < term {
            return Some(Ignore::PastTerm);
        }
        if header.term > term {
            return Some(Ignore::FutureTerm);
        }
        if self.leader() == self.me() {
            return Some(Ignore::OwnTerm);
        }
        if header.index <= self.tree.committed() {
            return Some(Ignore::Committed);
        }
        if !self.is_in_window(header.index) || self.term.waiting.len() >= REMEMBERED {
            return Some(Ignore::BeyondWindow);
        }
        if self.is_accepted(append.block.reference()) {
            self.repeat_vote(append.block.reference());
            return Some(Ignore::Known);
        }
        None
    }

    /// Accepts the blocks that wait and have become acceptable, in order.
    pub(super) fn accept_waiting(&mut self) {
        self.take_start();
        while let Some(open) = self.safety.open() {
            let next = open.tip.index.next();
            let Some(append) = self.term.waiting.get(&next) else { return };
            let block = Arc::clone(&append.block);
            match self.judge(&open, &block) {
                Judgement::Wait => return,
                Judgement::Accept => {
                    self.term.waiting.remove(&next);
                    self.accept(&block);
                }
                Judgement::Refuse(why) => {
                    self.term.waiting.remove(&next);
                    let leader = self.leader();
                    self.note_ignored(leader, why);
                    if why == Ignore::StateDiffers {
                        let index = block.header().executed.index;
                        self.report(Report::StateDiffers(open.term, index));
                    }
                    self.report(Report::Ignored(leader, "Append", why));
                }
            }
        }
    }

    fn judge(&self, open: &Accepted, block: &Block) -> Judgement {
        use Judgement::{Refuse, Wait};
        let header = block.header();
        if header.parent != open.tip.digest {
            return Refuse(Ignore::WrongParent);
        }
        let Some(parent) = self.tree.ancestry(&header.parent) else { return Wait };
        if self.is_before_first(open) {
            if !block.batches().is_empty() {
                return Refuse(Ignore::FirstNotEmpty);
            }
        } else if !self.has_begun(open) {
            return Wait;
        }
        if header.index.0 > self.tree.committed().0.max(open.start.index.0).saturating_add(WINDOW) {
            return Wait;
        }
        if header.time_ms < parent.time_ms {
            return Refuse(Ignore::TimeWentBack);
        }
        if header.time_ms > self.now.unix_ms.saturating_add(self.setup.timing.max_ahead_ms) {
            return Wait;
        }
        let executed = header.executed;
        if executed.index >= header.index || parent.executed.is_some_and(|p| executed.index < p.index) {
            return Refuse(Ignore::ExecutedOutOfOrder);
        }
        if executed.index > self.states.newest().index {
            return Wait;
        }
        // What was certified before stands, even where nobody remembers that state any more.
        if parent.executed.is_some_and(|p| executed.index == p.index && executed.state != p.state) {
            return Refuse(Ignore::StateDiffers);
        }
        let is_repeated = parent.executed.is_some_and(|p| executed.index == p.index);
        match self.states.get(executed.index) {
            Some(ours) if ours != executed.state => return Refuse(Ignore::StateDiffers),
            // Nobody might remember it who votes here, and somebody who is behind.
            None if !is_repeated => return Refuse(Ignore::StateForgotten),
            _ => {}
        }
        if header.sole {
            if !self.row().prepares {
                return Refuse(Ignore::NotSole);
            }
            if open.tip != self.tree.root() {
                return Wait;
            }
        }
        let mut marks = parent.marks.clone();
        match marks.record_block(block) {
            Ok(()) => Judgement::Accept,
            Err(origin) => Refuse(Ignore::BatchOutOfOrder(origin)),
        }
    }

    /// Takes a block as the tip: persists it, and then votes for it.
    fn accept(&mut self, block: &Arc<Block>) {
        let reference = block.reference();
        self.tree.insert(Arc::clone(block), self.now_us());
        self.note_lag(block.header().time_ms);
        self.persist(Record::Block(Arc::clone(block)));
        if let Some(accepted) = self.safety.record_extend(reference, block.header().sole) {
            let after = self.persist(Record::Accepted(accepted));
            if self.row().prepares {
                self.send_vote(self.first_ballot(block.header()), reference, after);
            } else {
                self.raise(&Arc::new(Certificate::of_acceptance(block.header().epoch, reference)));
            }
        }
        self.commit_to_prepared();
    }

    /// Whether a block stands on the accepted chain of the current term.
    pub(super) fn is_accepted(&self, block: BlockRef) -> bool {
        self.safety.open().is_some_and(|open| self.tree.is_on_chain(block, &open.tip.digest))
    }

    /// Whether an index may be spoken of in the current term. The window is counted from the term's start: term after term
    /// may add a prepared block while none is committed.
    pub(super) fn is_in_window(&self, index: Index) -> bool {
        let committed = self.tree.committed();
        let lowest = self.safety.open().map_or(committed, |open| open.start.index);
        index > committed && index >= lowest && index.0 <= self.window_base().0.saturating_add(2 * WINDOW)
    }

    /// Where the window is counted from.
    pub(super) fn window_base(&self) -> Index {
        let committed = self.tree.committed();
        match self.safety.open() {
            Some(open) => open.start.index.max(committed),
            None => self.safety.rank().map_or(committed, |rank| rank.index.max(committed)),
        }
    }

    /// Whether the chain has no block of its term yet, so that the next is the term's first.
    fn is_before_first(&self, open: &Accepted) -> bool {
        open.tip.term != open.term || open.tip == self.members().root()
    }

    /// Whether the term's first block is committed. Until then nothing else is in flight.
    fn has_begun(&self, open: &Accepted) -> bool {
        let root = self.tree.root();
        root.term == open.term && root != self.members().root()
    }

    // Votes.

    /// The ballot that accepting a block allows.
    fn first_ballot(&self, header: &Header) -> BallotKind {
        if !self.row().prepares {
            return BallotKind::Commit;
        }
        match u8::try_from(self.members().n()) {
            Ok(members) if header.sole => BallotKind::Sole { members },
            _ => BallotKind::Prepare,
        }
    }

    /// Whether a member has voted for the block that this leader has proposed for an index.
    fn has_accepted(&self, index: Index, member: MemberId) -> bool {
        self.term.appends.get(&index).is_some_and(|append| {
            self.term.votes.has_voted(index, self.first_ballot(append.block.header()), member)
        })
    }

    fn send_vote(&mut self, kind: BallotKind, block: BlockRef, after: u64) {
        if let Some(vote) = self.sign_vote(kind, block) {
            self.route_vote(vote, after);
        }
    }

    fn sign_vote(&self, kind: BallotKind, block: BlockRef) -> Option<Vote> {
        let is_sole = matches!(kind, BallotKind::Sole { .. });
        if self.halted {
            return None;
        }
        if kind.mark() == BallotKind::Prepare && !self.safety.may_prepare(block, is_sole) {
            return None;
        }
        let ballot = Ballot { kind, epoch: self.members().epoch(), block };
        Some(Vote::sign(self.cluster(), ballot, self.me(), &*self.setup.signer))
    }

    /// Signs the same vote again, for a leader that has not got it.
    fn repeat_vote(&mut self, block: BlockRef) {
        let held = self.tree.descend(&block.digest).next().map(|held| self.first_ballot(held.header()));
        if let Some(kind) = held
            && block.term == self.safety.term()
            && let Some(vote) = self.sign_vote(kind, block)
        {
            self.send_after(To::Member(self.leader()), Message::Vote(vote), self.persisted);
        }
    }

    pub(super) fn on_vote(&mut self, from: MemberId, vote: &Vote) {
        self.take_vote(from, vote, false);
    }

    /// A vote, for the first time or because it is late.
    pub(super) fn take_vote(&mut self, from: MemberId, vote: &Vote, is_late: bool) {
        self.watch_vote(vote);
        let block = vote.ballot.block;
        let ignored = if vote.ballot.kind == BallotKind::Commit && block.index <= self.tree.committed() {
            Some(Ignore::Committed)
        } else if block.term < self.safety.term() {
            Some(Ignore::PastTerm)
        } else if block.term > self.safety.term() {
            Some(Ignore::FutureTerm)
        } else if !self.is_in_window(block.index) {
            Some(Ignore::BeyondWindow)
        } else if from != vote.signer && !self.row().signs {
            Some(Ignore::SecondHand)
        } else if self.has_proposed_another(block) {
            Some(Ignore::FalseVote)
        } else {
            None
        };
        if let Some(why) = ignored {
            self.report(Report::Ignored(from, "Vote", why));
            return;
        }
        if let Some(certificate) = self.term.votes.add(vote.clone(), &self.setup.members) {
            let certificate = Arc::new(certificate);
            if !self.waits_for_all(&certificate) {
                self.use_certificate(certificate, is_late);
            }
        }
    }

    /// A certificate that was gathered here, at last of a vote that was late or not.
    pub(super) fn use_certificate(&mut self, certificate: Arc<Certificate>, is_late: bool) {
        let me = self.me();
        let is_to_broadcast = self.is_to_broadcast(certificate.block().index, is_late);
        if is_to_broadcast && self.leader() != me {
            // Others wait for it, and this member may go on to vote on what it allows.
            self.send(To::Others, Message::Certificate(Arc::clone(&certificate)));
        }
        self.on_certificate(me, &certificate);
        // A leader's travels with the next block, or alone when there is none.
        if self.leader() == me && !self.propose() && is_to_broadcast {
            self.send(To::Others, Message::Certificate(certificate));
        }
    }

    /// What another member got of the leader: it is to be committed in time.
    pub(super) fn on_proposal(&mut self, proposal: &Proposal) {
        self.watch_proposal(proposal);
        let Header { term, index, .. } = proposal.header;
        if term == self.safety.term() && index > self.tree.committed() {
            self.expect_position(BlockRef { term, index, digest: proposal.header.digest() });
        }
    }

    /// Whether this member leads the block's term and has proposed another one for its index.
    fn has_proposed_another(&self, block: BlockRef) -> bool {
        let own = self.term.appends.get(&block.index).map(|append| append.block.digest());
        !self.term.resigned && self.leader() == self.me() && own.is_some_and(|own| own != block.digest)
    }

    // Certificates.

    /// A certificate on its own: news from the leader, or from a reader who waits for its block.
    pub(super) fn on_expected_certificate(&mut self, from: MemberId, certificate: &Arc<Certificate>) {
        let block = certificate.block();
        if from != self.leader() && !certificate.is_commit() && block.index > self.tree.committed() {
            self.expect_position(block);
        }
        self.watch_prepared(from, certificate);
        self.note_served(from, certificate);
        self.on_certificate(from, certificate);
    }

    pub(super) fn on_heartbeat(&mut self, from: MemberId, heartbeat: &Heartbeat) {
        self.watch_heartbeat(from, heartbeat);
        for certificate in heartbeat.certificates.iter() {
            self.on_certificate(from, certificate);
        }
        if heartbeat.term < self.safety.term() {
            self.show_term(from);
            return;
        }
        if heartbeat.term == self.safety.term() && from == self.leader() && from != self.me() {
            self.hear_leader(from, heartbeat.term);
            self.repeat_overdue_votes();
        }
    }

    /// Votes to the leader whose certificate should have come by now. Others are awaited.
    fn repeat_overdue_votes(&mut self) {
        let Some(open) = self.safety.open() else { return };
        let resend_us = self.setup.timing.resend_us;
        let overdue: Vec<_> = self
            .tree
            .descend(&open.tip.digest)
            .filter(|block| {
                self.tree.since_us(&block.digest()).is_some_and(|since| since + resend_us <= self.now_us())
            })
            .map(|block| block.reference())
            .filter(|block| self.goes_to_leader(block.index))
            .collect();
        for block in overdue {
            self.repeat_vote(block);
        }
        let position = self.safety.position().map(|certificate| certificate.block().index);
        if position.is_some_and(|index| self.goes_to_leader(index)) {
            self.term.committed_vote = Index(0);
            self.commit_to_prepared();
        }
    }

    /// Any certificate, wherever it came with. A Commit certificate needs no term check.
    pub(super) fn on_certificate(&mut self, from: MemberId, certificate: &Arc<Certificate>) {
        self.watch_certificate(certificate);
        let block = certificate.block();
        if self.contradicts(certificate) || block.index <= self.tree.committed() {
            return;
        }
        if self.safety.may_enter(block.term) {
            self.enter_term(block.term, None);
        }
        if block.term == self.safety.term() && self.safety.may_open() {
            self.open_term(block);
        }
        self.note_certified(from, certificate);
        if !self.tree.contains(&block.digest) {
            self.fetch(from, certificate);
        } else if certificate.is_commit() {
            self.commit(certificate);
        } else {
            self.prepare(certificate);
        }
    }

    /// A Prepare certificate for a block that is here: the position rises, and then a Commit vote may be cast.
    fn prepare(&mut self, certificate: &Arc<Certificate>) {
        self.raise(certificate);
        if certificate.block().term == self.safety.term() {
            self.adopt_certified(certificate.block());
            self.commit_to_prepared();
        }
    }

    fn raise(&mut self, certificate: &Arc<Certificate>) {
        if self.safety.may_raise(certificate) {
            self.safety.record_raise(Arc::clone(certificate));
            self.raised_record = self.persist(Record::Position(Arc::clone(certificate)));
        }
    }

    /// A quorum accepted this block on a chain that goes on from the tip: it counts as accepted here.
    fn adopt_certified(&mut self, block: BlockRef) {
        if let Some(open) = self.safety.open()
            && block.term == open.term
            && block.index > open.tip.index
            && self.tree.is_on_chain(open.tip, &block.digest)
            && let Some(accepted) = self.safety.record_adopt(block, false)
        {
            self.persist(Record::Accepted(accepted));
            self.accept_waiting();
        }
    }

    /// Casts a Commit vote for the highest prepared block, once it is accepted.
    fn commit_to_prepared(&mut self) {
        let Some(certificate) = self.safety.position() else { return };
        let block = certificate.block();
        let is_due = !certificate.is_commit()
            && block.index > self.term.committed_vote
            && block.index > self.tree.committed()
            && self.is_accepted(block)
            && self.safety.may_commit(certificate);
        if is_due {
            self.term.committed_vote = block.index;
            let after = self.persisted;
            self.send_vote(BallotKind::Commit, block, after);
        }
    }

    /// A Commit certificate for a block that is here: it and its prefix are final.
    pub(super) fn commit(&mut self, certificate: &Arc<Certificate>) {
        let tip = self.safety.open().map(|open| open.tip);
        let tip_was_here = tip.is_some_and(|tip| self.tree.contains(&tip.digest));
        let since_us = self.tree.since_us(&certificate.block().digest);
        let chain = self.tree.commit(&certificate.block().digest);
        let requests = chain.iter().flat_map(|block| block.batches()).map(|batch| batch.requests.len()).sum();
        self.conduct.note_merits(chain.len() as u64);
        let root = self.tree.root();
        self.committed = Some(Arc::clone(certificate));
        if self.safety.may_raise(certificate) {
            // Durable with the record of the commit.
            self.safety.record_raise(Arc::clone(certificate));
        }
        let me = self.me();
        let mut own = chain.iter().flat_map(|block| block.batches()).filter(|batch| batch.origin == me);
        let is_outrun = own.any(|batch| self.origin.is_outrun_by(batch));
        for block in chain {
            if let Err(halt) = self.states.certify(block.header().executed) {
                self.halt(halt);
                return;
            }
            self.outputs.push(Output::Execute(block));
        }
        // After the blocks' execution, which needs only the blocks to be durable.
        let marks = self.tree.committed_marks().clone();
        self.persist(Record::Committed(Committed { certificate: Arc::clone(certificate), marks }));
        if let Some(tip) = tip
            && !self.tree.contains(&tip.digest)
            && (tip_was_here || root.term == self.safety.term() || tip.index <= root.index)
            && !self.adopt_committed(tip)
        {
            return;
        }
        if is_outrun {
            self.raise_incarnation();
        }
        if self.is_rivalled() {
            return;
        }
        self.forget_committed(root.index);
        // A block that was lost on the way and sent again says nothing of how long clients take.
        let most_us = self.setup.timing.heartbeat_us / 2;
        let took_us = since_us.map_or(0, |since| self.now_us().saturating_sub(since)).min(most_us);
        self.term.gather.begin(requests, took_us, self.pool.requests(), self.now.monotonic_us);
        self.after_commit();
    }

    /// The committed block is not an ancestor of the tip. In its own term that is a leader's equivocation, or news
    /// from ahead: the committed chain takes the tip's place. In a later term it can't be.
    fn adopt_committed(&mut self, tip: BlockRef) -> bool {
        let root = self.tree.root();
        if root.term != self.safety.term() {
            if let Some(new_term) = self.term.new_term.clone() {
                self.send(To::Others, Message::NewTerm(new_term));
            }
            self.halt(Halt::ConflictingCertificates { committed: root, certified: tip });
            return false;
        }
        if let Some(accepted) = self.safety.record_adopt(root, true) {
            self.persist(Record::Accepted(accepted));
        }
        true
    }

    fn forget_committed(&mut self, committed: Index) {
        self.term.votes.forget_through(committed);
        let later = committed.next();
        for by_index in [&mut self.term.waiting, &mut self.term.appends] {
            *by_index = by_index.split_off(&later);
        }
        let marks = self.tree.committed_marks().clone();
        self.pool.forget_through(&marks);
        self.expected.forget_through(&marks);
        let own = self.origin.iter().take_while(|own| own.batch.mark() <= marks.get(self.me()));
        let entered_us = self.term.entered_us();
        let oldest_us = own.map(|own| own.since_us).find(|since_us| *since_us >= entered_us);
        self.origin.forget_through(marks.get(self.me()));
        if let Some(since_us) = oldest_us {
            self.watch_own(since_us);
        }
        self.fetcher.forget_through(committed);
        self.watch.forget_through(committed);
        self.term.unanimity.forget_through(committed);
        self.forget_routes(committed);
        self.term.note_commit(self.tree.root());
    }

    fn after_commit(&mut self) {
        // It may have taken the place of a tip that another leader's story had put there.
        if let Some(position) = self.safety.position() {
            self.adopt_certified(position.block());
        }
        self.accept_waiting();
        self.commit_to_prepared();
        self.start_term();
        self.propose();
        self.fetch_on();
    }
}
