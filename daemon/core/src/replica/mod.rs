//! One member's part in the protocol: a pure state machine over [`Input`]s and [`Output`]s.
//!
//! # The protocol
//!
//! A block goes through two marks, each backed by a quorum's signatures ([`crate::certificate`]):
//!
//! ```text
//! accepted ──Prepare votes──▶ prepared ──Commit votes──▶ committed ──▶ executed
//! ```
//!
//! *Normal case* (`normal.rs`; PBFT, OSDI'99, §4.2, with Raft's log matching by hash chain). The leader of an open term
//! signs a block on its tip and sends it. A follower that finds it in order persists it, then votes Prepare. A
//! quorum's votes are a Prepare certificate; who holds it for an accepted block of the current term persists it as
//! its position, then votes Commit. A quorum of those makes the block and its prefix final.
//!
//! *Changing the term* (`term.rs`; Raft's pre-vote, Ongaro's thesis §9.6, made checkable). Who sees no progress
//! broadcasts a Suspect and stays. A quorum of Suspects moves everybody to the next term, each with one signed TermVote that
//! reports its position. The new leader, `members[term mod n]`, shows a quorum of TermVotes and starts on the
//! highest position among them, with an empty block.
//!
//! *Reads* (`reads.rs`; Ongaro's thesis §6.4, without trust in a leader). The reader asks all for their position, takes
//! the highest of a quorum's, and waits until it has executed that.
//!
//! *Catching up* (`fetch.rs`). Blocks are fetched from anybody and believed by digest chain and certificate.
//!
//! *Rows* ([`crate::protocol`]). Where votes travel, how many rounds there are, what a position is, and whether anything is signed
//! comes from the protocol's row. With `raft` the first round is left out: what is accepted is prepared.
//!
//! # Deviations from the sources
//!
//! - A position may be a Commit certificate too: it implies that the Prepare certificate exists.
//! - Nobody suspects because others do, with one exception: when the leader of the term itself suspects it, it has
//!   resigned, and waiting for it is of no use.
//! - A leader is also suspected for what it loses or spoils although blocks commit (`conduct.rs`; Aardvark, NSDI'09).
//! - Certificates, heartbeats and fetches carry no promise, so their sends wait for no disk.
//!
//! # Reading on
//!
//! `routing.rs` sends votes to whom the leader wants to have them, `trust.rs` says whom that is where it is a communication node,
//! `conduct.rs` counts a leader's lapses, `evidence.rs` compares what members sign, `conflict.rs` what quorums do, `safety.rs` holds every
//! promise that safety rests on, `tree.rs` the uncommitted blocks, `batches.rs` and `requests.rs` requests on their way into a block, `votes.rs` the only counting, `invariants.rs` what holds after every step.

mod batches;
mod conduct;
mod conflict;
mod evidence;
mod fetch;
mod gather;
mod invariants;
mod io;
mod normal;
mod reads;
mod requests;
mod routing;
mod safety;
mod term;
mod tree;
mod trust;
mod unanimity;
mod votes;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

pub use io::{Halt, Input, Output, ReadTicket, Report, To};
pub use normal::Ignore;

use self::{
    batches::{Expected, Origin, Pool},
    conduct::Conduct,
    evidence::Watch,
    fetch::Fetcher,
    reads::Reads,
    routing::Routing,
    safety::Safety,
    term::TermState,
    tree::{Ancestry, BlockTree},
};
use crate::{
    block::{BlockRef, Executed},
    certificate::Certificate,
    crypto::{ClusterId, Digest, Signer},
    durable::{Accepted, Durable, Record},
    ids::{Index, MemberId, Now, Term},
    limits::{REMEMBERED_STATES, Timing},
    membership::Membership,
    message::{Certificates, Message},
    protocol::{Protocol, Row},
    verify::Verified,
};

/// What a replica is made of.
#[derive(Clone)]
pub struct Setup {
    /// This member.
    pub me: MemberId,
    /// All members.
    pub members: Arc<Membership>,
    /// This member's key.
    pub signer: Arc<dyn Signer>,
    /// The times that it lives by.
    pub timing: Timing,
    /// What the replicated state says that leaders run; none while that is what the genesis says.
    pub protocol: Option<Protocol>,
    /// Whether all members' votes for a sole block make it final. Without it every block takes two rounds.
    pub one_round: bool,
}

/// One member's part in the protocol. See the module's header.
pub struct Replica {
    setup: Setup,
    now: Now,
    outputs: Vec<Output>,
    /// The number of the last record emitted.
    persisted: u64,
    halted: bool,

    safety: Safety,
    tree: BlockTree,
    /// The newest Commit certificate; none at the epoch's root.
    committed: Option<Arc<Certificate>>,
    states: States,
    /// The number of the record of the position; 0 for that of an earlier run.
    raised_record: u64,

    term: TermState,
    conduct: Conduct,
    routing: Routing,
    /// What decides on routes in the current term, and what will in the next: where votes go is all in which they differ.
    protocol: Protocol,
    next_protocol: Protocol,
    /// This member is about to stop: it leads no more.
    leaving: bool,
    origin: Origin,
    pool: Pool,
    expected: Expected,
    fetcher: Fetcher,
    reads: Reads,
    watch: Watch,
}

/// A replica's state in numbers, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The current term.
    pub term: Term,
    /// Its leader.
    pub leader: MemberId,
    /// Whether it has opened here.
    pub open: bool,
    /// The newest committed block.
    pub committed: BlockRef,
    /// The index of the highest position.
    pub prepared: Index,
    /// The last executed block and the state's digest after it.
    pub executed: Executed,
    /// Why the leader is suspected, if it is.
    pub suspecting: Option<&'static str>,
    /// How many blocks above the committed one are kept.
    pub uncommitted: usize,
    /// How many batches wait for a place in a block here.
    pub pooled: usize,
    /// Whether committed blocks are known of that are not here yet.
    pub catching_up: bool,
    /// The protocol in force, and the one from the next term on.
    pub protocol: Protocol,
    /// See above.
    pub next_protocol: Protocol,
}

impl Replica {
    /// Starts a replica from what is durable, and takes up its part.
    ///
    /// `states` are the digests of the state after the newest executed indices, rising. The last one is the committed
    /// index: whoever starts a replica has executed the log first. For an empty log that is the empty state's, at
    /// the epoch's root.
    pub fn start(setup: Setup, durable: Durable, states: Vec<(Index, Digest)>, now: Now) -> Self {
        let setup = Setup { signer: setup.members.signer(setup.signer), ..setup };
        let root = root(&setup.members, &durable);
        let committed = durable.committed.as_ref().map(|committed| Arc::clone(&committed.certificate));
        let mut tree = BlockTree::new(root);
        for block in durable.blocks.values() {
            if tree.contains(&block.header().parent) {
                tree.insert(Arc::clone(block), now.monotonic_us);
            }
        }
        let position = highest(durable.position.clone(), committed.clone());
        let said = setup.protocol.filter(|protocol| setup.members.protocol().may_become(*protocol));
        let protocol = said.unwrap_or(setup.members.protocol());
        let first_start = durable == Durable::default();
        let accepted = durable.accepted.or_else(|| first_term(&setup.members));
        let safety = Safety::new(setup.members.epoch(), durable.term.clone(), accepted, position);
        let incarnation = shown_incarnation(&setup, &durable, &tree);
        let term = TermState::new(now.monotonic_us);
        let mut replica = Self {
            now,
            outputs: Vec::new(),
            persisted: 0,
            halted: false,
            states: States::new(states, tree.root()),
            safety,
            tree,
            committed,
            raised_record: 0,
            term,
            conduct: Conduct::new(setup.members.f()),
            routing: Routing::default(),
            protocol,
            next_protocol: protocol,
            leaving: false,
            origin: Origin::new(incarnation.next(), 1),
            pool: Pool::default(),
            expected: Expected::default(),
            fetcher: Fetcher::default(),
            reads: Reads::default(),
            watch: Watch::default(),
            setup,
        };
        replica.persist(Record::Incarnation(replica.origin.incarnation));
        replica.recall_evidence(durable.evidence.into_values());
        replica.take_up(first_start);
        replica
    }

    /// Takes one input. Its effects are in [`Replica::take_outputs`].
    pub fn step(&mut self, now: Now, input: Input) {
        self.now = now;
        if self.halted {
            return;
        }
        match input {
            Input::Tick => self.on_tick(),
            Input::Due => self.on_due(),
            Input::Message(from, message) => self.on_message(from, &message),
            Input::Submit(requests) => self.on_submit(requests),
            Input::Read(ticket) => self.on_read(ticket),
            Input::Refused(from, count) => self.note_lapses(from, count),
            Input::Executed(block, state) => self.on_executed(block, state),
            Input::Protocol(protocol) => self.on_protocol(protocol),
            Input::Leave => {
                self.leaving = true;
                self.tick_term();
            }
        }
    }

    /// The effects of all steps since the last call, in order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Whether there is room for another batch of this member's clients.
    pub fn may_submit(&self) -> bool {
        self.origin.has_room()
    }

    /// When to call with [`Input::Due`], on the monotonic clock.
    pub fn due_us(&self) -> Option<u64> {
        let waits = [self.gathers_until(), self.term.unanimity.waits_until(), self.routing.due_us()];
        waits.into_iter().flatten().min()
    }

    /// A summary for operators.
    pub fn status(&self) -> Status {
        Status {
            term: self.safety.term(),
            leader: self.leader(),
            open: self.safety.open().is_some(),
            committed: self.tree.root(),
            prepared: self.safety.rank().map_or(self.tree.committed(), |rank| rank.index),
            executed: self.states.newest(),
            suspecting: self.term.suspecting,
            uncommitted: self.tree.len(),
            pooled: self.pool.len(),
            catching_up: self.fetcher.is_behind(),
            protocol: self.protocol,
            next_protocol: self.next_protocol,
        }
    }

    fn on_message(&mut self, from: MemberId, message: &Verified<Message>) {
        match &**message {
            Message::Batch(batch) => self.on_batch(from, batch),
            Message::Append(append) => self.on_append(from, append),
            Message::Vote(vote) => self.on_vote(from, vote),
            Message::Certificate(certificate) => self.on_expected_certificate(from, certificate),
            Message::Heartbeat(heartbeat) => self.on_heartbeat(from, heartbeat),
            Message::Suspect(suspect) => self.on_suspect(from, suspect),
            Message::Evidence(evidence) => self.on_evidence(evidence),
            Message::Proposal(proposal) => self.on_proposal(proposal),
            Message::EnterTerm(enter) => self.on_enter_term(from, enter),
            Message::NewTerm(new_term) => self.on_new_term(from, new_term),
            Message::FetchAncestors(fetch) => self.on_fetch_ancestors(from, fetch),
            Message::FetchCommitted(fetch) => self.on_fetch_committed(from, fetch),
            Message::Blocks(blocks) => self.on_blocks(from, blocks),
            Message::ReadQuery(query) => self.on_read_query(from, query),
            Message::ReadAnswer(answer) => self.on_read_answer(from, answer),
            Message::LateVote(vote) => self.on_late_vote(from, vote),
        }
    }

    fn on_tick(&mut self) {
        self.tick_leader();
        self.wait_no_longer();
        self.fall_back();
        self.tick_batches();
        self.tick_fetches();
        self.tick_reads();
        self.tick_evidence();
        self.accept_waiting();
        self.tick_term();
    }

    fn on_due(&mut self) {
        self.propose();
        self.wait_no_longer();
        self.fall_back();
    }

    fn on_executed(&mut self, block: BlockRef, state: Digest) {
        match self.states.record(block, state) {
            Ok(()) => {
                self.accept_waiting();
                self.propose();
                self.release_reads();
            }
            Err(halt) => self.halt(halt),
        }
    }

    // What every part of the replica uses.

    fn me(&self) -> MemberId {
        self.setup.me
    }

    fn members(&self) -> &Membership {
        &self.setup.members
    }

    fn cluster(&self) -> ClusterId {
        self.setup.members.cluster()
    }

    fn row(&self) -> Row {
        self.setup.members.protocol().row()
    }

    /// The number of the record that the own position rests on, if nothing but this member's word does: an acceptance that is told
    /// is a promise. (A leader that forgets over a crash what it accepted first in its term would propose something else.)
    fn position_record(&self) -> u64 {
        if self.row().prepares { 0 } else { self.raised_record }
    }

    fn leader(&self) -> MemberId {
        self.setup.members.leader(self.safety.term())
    }

    fn now_us(&self) -> u64 {
        self.now.monotonic_us
    }

    /// Emits a record, and answers with its number.
    fn persist(&mut self, record: Record) -> u64 {
        self.outputs.push(Output::Persist(record));
        self.persisted += 1;
        self.persisted
    }

    /// Sends a message that promises nothing.
    fn send(&mut self, to: To, message: Message) {
        self.send_after(to, message, 0);
    }

    /// Sends a message that promises what the record numbered `after`, and those before it, say.
    fn send_after(&mut self, to: To, message: Message, after: u64) {
        self.outputs.push(Output::Send { to, message: Verified::own(message), after });
    }

    fn report(&mut self, report: Report) {
        self.outputs.push(Output::Report(report));
    }

    fn newest_certificates(&self) -> Certificates {
        // A position that is a Commit certificate is the committed one: no need to send it twice. One that nobody has signed says
        // nothing that blocks don't.
        let is_news = |certificate: &&Arc<Certificate>| self.row().prepares && !certificate.is_commit();
        let prepared = self.safety.position().filter(is_news).cloned();
        Certificates { prepared, committed: self.committed.clone() }
    }
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("me", &self.setup.me).field("status", &self.status()).finish()
    }
}

/// The newest committed block, as the root of the tree.
fn root(members: &Membership, durable: &Durable) -> Ancestry {
    match (&durable.committed, &durable.committed_block) {
        (Some(committed), Some(block)) => Ancestry {
            block: committed.certificate.block(),
            time_ms: block.header().time_ms,
            executed: Some(block.header().executed),
            marks: committed.marks.clone(),
        },
        _ => Ancestry {
            block: members.root(),
            time_ms: 0,
            executed: None,
            marks: crate::block::Marks::default(),
        },
    }
}

/// Every epoch starts open, in its term 0, at its root.
fn first_term(members: &Membership) -> Option<Accepted> {
    let root = members.root();
    Some(Accepted { term: Term(0), start: root, tip: root, floor: root.index, sole: None })
}

fn highest(a: Option<Arc<Certificate>>, b: Option<Arc<Certificate>>) -> Option<Arc<Certificate>> {
    [a, b].into_iter().flatten().max_by_key(|certificate| certificate.rank())
}

/// The highest incarnation of this member that its store or the chain shows.
fn shown_incarnation(setup: &Setup, durable: &Durable, tree: &BlockTree) -> crate::ids::Incarnation {
    let in_blocks = durable
        .blocks
        .values()
        .flat_map(|block| block.batches())
        .filter(|batch| batch.origin == setup.me)
        .map(|batch| batch.incarnation);
    let committed = tree.committed_marks().get(setup.me).incarnation;
    in_blocks.fold(durable.incarnation.max(committed), std::cmp::max)
}

/// The digests of the state after the newest executed indices, and what quorums certified about them.
#[derive(Clone, Debug)]
struct States {
    executed: BlockRef,
    /// Rising; at most [`REMEMBERED_STATES`].
    digests: VecDeque<(Index, Digest)>,
    /// What committed headers say about indices that are not executed here yet. Bounded, as it is pruned with every
    /// executed index and headers only speak of earlier ones.
    certified: BTreeMap<Index, Digest>,
}

impl States {
    fn new(digests: Vec<(Index, Digest)>, executed: BlockRef) -> Self {
        Self { executed, digests: digests.into(), certified: BTreeMap::new() }
    }

    fn newest(&self) -> Executed {
        let (index, state) = self.digests.back().copied().unwrap_or((self.executed.index, Digest::ZERO));
        Executed { index, state }
    }

    /// The state's digest after an index, while it is remembered.
    fn get(&self, index: Index) -> Option<Digest> {
        let at = self.digests.binary_search_by_key(&index, |(index, _)| *index).ok()?;
        self.digests.get(at).map(|(_, digest)| *digest)
    }

    /// The newest state at or below an index, while it is remembered.
    fn at_or_below(&self, index: Index) -> Option<Executed> {
        let after = self.digests.partition_point(|(at, _)| *at <= index);
        let (index, state) = *self.digests.get(after.checked_sub(1)?)?;
        Some(Executed { index, state })
    }

    fn record(&mut self, block: BlockRef, state: Digest) -> Result<(), Halt> {
        debug_assert!(block.index > self.executed.index, "blocks are executed in order");
        self.executed = block;
        self.digests.push_back((block.index, state));
        if self.digests.len() > REMEMBERED_STATES {
            self.digests.pop_front();
        }
        let certified = self.certified.remove(&block.index);
        self.certified.retain(|index, _| *index > block.index);
        match certified {
            Some(certified) if certified != state => {
                Err(Halt::StateDiverged { index: block.index, ours: state, certified })
            }
            _ => Ok(()),
        }
    }

    /// A quorum has certified what the state is after an index.
    fn certify(&mut self, executed: Executed) -> Result<(), Halt> {
        match self.get(executed.index) {
            Some(ours) if ours != executed.state => {
                Err(Halt::StateDiverged { index: executed.index, ours, certified: executed.state })
            }
            Some(_) => Ok(()),
            None => {
                if executed.index > self.executed.index {
                    self.certified.insert(executed.index, executed.state);
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
