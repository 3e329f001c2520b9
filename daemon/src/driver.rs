//! The loop that drives a replica: inputs in, outputs carried out in order.
//!
//! It takes everything that waits, lets the replica step through it, hands all new records to the log's thread as one
//! group, and sends what needs no disk. What promises something is held back until its record is durable: the
//! order of [`Output`] is the contract. While a group syncs the next one gathers. Records that nothing waits for (that a block
//! is committed) go with the next group, or with the next tick.
//!
//! Bounds: [`EVENTS`] inputs wait from peers and clients (peers are slowed down, clients are told `Busy`);
//! `QUEUED_REQUESTS` requests and `QUEUED_BYTES` bytes of them wait for a batch (more are `Busy`). While the log's
//! thread has as much to write as it may, or execution is `BEHIND` blocks behind, no input is taken.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bftd_core::{
    block::Request,
    durable::Record,
    evidence::Evidence,
    ids::{Index, MemberId, Now, Term},
    limits::{MAX_BATCH, MAX_BATCH_REQUESTS, Timing},
    membership::Membership,
    message::Message,
    replica::{Halt, Input, Output, ReadTicket, Replica, Report, Status, To},
    verify::Verified,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    execute::{Executor, Waiting},
    logging,
    outlet::Outlet,
    peers::Peers,
    serving::Lacking,
    store::{LogWriter, StoreError},
    supervision::Pulse,
    trace::{Asked, Tracer},
};

/// How many events wait for the driver.
pub const EVENTS: usize = 8192;
/// How many of its clients' requests wait for a batch.
const QUEUED_REQUESTS: usize = 65_536;
/// How many bytes of them.
const QUEUED_BYTES: usize = 64 << 20;
/// How many blocks execution may be behind before the driver waits for it.
const BEHIND: usize = 256;
/// How many events are taken at once.
const AT_ONCE: usize = 512;
/// How long a driver that is to stop waits for what its clients are waiting for.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a leader that is to stop waits until another one leads. Where no quorum is there, none will.
const HAND_OVER: Duration = Duration::from_millis(500);

/// What comes to the driver from peers and clients.
#[derive(Debug)]
pub enum Event {
    /// A verified message.
    Message(MemberId, Verified<Message>),
    /// A client's change, whom to tell what came of it, and whether somebody wants to know what it took.
    Change(Request, oneshot::Sender<Done>, Option<Box<Asked>>),
    /// A client's linearizable read, and whom to tell that it may be answered from local state.
    Read(oneshot::Sender<()>),
}

/// What came of a change.
pub type Done = Result<Executed, Refused>;

/// A change is committed and executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// What came of it.
    pub outcome: bftd_core::kv::Outcome,
    /// The index of the block that executed it: in a session it may be an earlier one than the block that this copy is in.
    pub index: Index,
    /// The term of that block.
    pub term: Term,
}

/// Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The daemon's queue is full.
    Full,
    /// It is about to stop.
    Closing,
}

/// What comes to the driver from the daemon's own threads. Each has at most a few under way.
#[derive(Debug)]
pub enum Internal {
    /// The log is durable up to this record, or broken.
    Durable(Result<u64, StoreError>),
    /// The log can't be read for a peer.
    Unreadable(StoreError),
    /// A block is executed, or execution is broken.
    Executed(Result<(bftd_core::block::BlockRef, bftd_core::crypto::Digest), crate::state::StateError>),
    /// A request that sets the protocol is executed.
    Protocol(bftd_core::protocol::Protocol),
}

/// Why the driver stopped although nobody told it to.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The log can't be written.
    #[error("the log can't be written, and what is not durable must not be voted for: {0}")]
    Log(#[from] StoreError),
    /// The log can't be read.
    #[error("the log can't be read, and a peer that lacks blocks can't be served: {0}")]
    Unreadable(StoreError),
    /// The state can't be changed.
    #[error("the state can't be changed: {0}")]
    State(#[from] crate::state::StateError),
    /// The replica refuses to go on.
    #[error("{0}")]
    Halted(Halt),
    /// A thread of the daemon ended.
    #[error("a thread of the daemon ended; its last log lines say why")]
    ThreadEnded,
}

/// The loop, and what it holds between two turns.
pub struct Driver {
    parts: Parts,

    /// Records emitted, and records durable: numbered from 1.
    emitted: u64,
    /// The term in which the leader's state was last said to differ.
    differed_in: Option<Term>,
    durable: u64,
    /// In the order of emission. Bounded, as the replica's window and the log's bounds are.
    held: VecDeque<(u64, Effect)>,
    loopback: VecDeque<Verified<Message>>,
    records: Vec<Record>,
    /// Which record says that which block is committed, of those not durable yet. Bounded as the log's records are.
    commits: VecDeque<(u64, Index)>,

    queue: VecDeque<Queued>,
    queued_bytes: usize,
    /// The clients of the batch that was submitted last, until it has a number.
    submitted: Waiting,
    reads: BTreeMap<ReadTicket, oneshot::Sender<()>>,
    next_read: u64,
    tracer: Tracer,
    /// Since when it goes on only for the sake of its clients, and of who waits for a leader.
    stopping: Option<Instant>,
}

/// A client's change that waits for a batch.
#[derive(Debug)]
struct Queued {
    request: Request,
    client: oneshot::Sender<Done>,
    trace: Option<Box<Asked>>,
}

/// What waits for a record to be durable.
#[derive(Debug)]
enum Effect {
    Send(To, Verified<Message>),
    Other(Output),
}

/// The two clocks of [`Now`].
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// When it shows so many microseconds.
    fn at(&self, monotonic_us: u64) -> Instant {
        self.0 + Duration::from_micros(monotonic_us)
    }

    /// The time.
    pub fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Now {
            monotonic_us: u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1),
            unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Waits until a time; for ever where there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// What a driver is made of.
pub struct Parts {
    /// This member.
    pub me: MemberId,
    /// All members.
    pub members: Arc<Membership>,
    /// The replica, just started.
    pub replica: Replica,
    /// The clock that it was started with.
    pub clock: Clock,
    /// The times that it lives by.
    pub timing: Timing,
    /// The log's thread.
    pub log: LogWriter,
    /// The executing thread.
    pub executor: Executor,
    /// The way to the peers.
    pub outlet: Arc<Outlet>,
    /// Who of them lacks blocks.
    pub lacking: Arc<Lacking>,
    /// Where the replica's state is shown.
    pub status: watch::Sender<Status>,
    /// What is known of the other members.
    pub peers: Arc<Peers>,
    /// Where the driver shows the proofs of misbehaviour.
    pub evidence: watch::Sender<Vec<Evidence>>,
    /// Beats once a turn.
    pub pulse: Arc<Pulse>,
}

impl Driver {
    /// A driver that has not begun.
    pub fn new(parts: Parts) -> Self {
        Self {
            tracer: Tracer::new(parts.me, Arc::clone(&parts.members)),
            parts,
            emitted: 0,
            differed_in: None,
            durable: 0,
            held: VecDeque::new(),
            loopback: VecDeque::new(),
            records: Vec::new(),
            commits: VecDeque::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            submitted: Vec::new(),
            reads: BTreeMap::new(),
            next_read: 0,
            stopping: None,
        }
    }

    /// Runs until `stop` is set or something breaks. Then the log is flushed and the state made durable. Before that, clients
    /// who wait for something get their answer, if it comes within `DRAIN`; new changes are refused meanwhile; and a leader
    /// hands its term on.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut internal: mpsc::UnboundedReceiver<Internal>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), DriverError> {
        let result = self.drive(&mut events, &mut internal, &mut stop).await;
        events.close();
        while let Ok(event) = events.try_recv() {
            if let Event::Change(_, client, _) = event {
                // The client may have gone away: then nobody wants to know.
                let _ = client.send(Err(Refused::Closing));
            }
        }
        let closed = tokio::task::spawn_blocking(move || {
            let Parts { log, executor, .. } = self.parts;
            log.close()?;
            executor.close()?;
            Ok::<_, DriverError>(())
        });
        result?;
        closed.await.map_err(|_| DriverError::ThreadEnded)?
    }

    async fn drive(
        &mut self,
        events: &mut mpsc::Receiver<Event>,
        internal: &mut mpsc::UnboundedReceiver<Internal>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), DriverError> {
        let mut tick = tokio::time::interval(Duration::from_micros(self.parts.timing.tick_us));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut taken = Vec::with_capacity(AT_ONCE);
        self.carry_out()?;
        loop {
            let due = self.parts.replica.due_us().map(|due_us| self.parts.clock.at(due_us));
            let is_full = self.parts.log.is_full() || self.parts.executor.behind() >= BEHIND;
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop), if self.stopping.is_none() => {
                    self.stopping = Some(Instant::now());
                    self.step(Input::Leave);
                }
                () = at(self.stopping.map(|since| since + DRAIN)) => return Ok(()),
                event = internal.recv() => {
                    self.on_internal(event.ok_or(DriverError::ThreadEnded)?)?;
                    while let Ok(event) = internal.try_recv() {
                        self.on_internal(event)?;
                    }
                }
                () = at(due) => self.step(Input::Due),
                _ = tick.tick() => {
                    let peers = Arc::clone(&self.parts.peers);
                    for (from, count) in peers.take_refused() {
                        self.step(Input::Refused(from, count));
                    }
                    self.step(Input::Tick);
                    self.parts.log.flush();
                    self.parts.outlet.tick(self.parts.clock.now());
                }
                count = events.recv_many(&mut taken, AT_ONCE), if !is_full => {
                    if count == 0 {
                        return Ok(());
                    }
                }
            }
            for event in taken.drain(..) {
                self.on_event(event);
            }
            self.carry_out()?;
            self.show_status();
            self.parts.pulse.beat();
            if let Some(since) = self.stopping
                && self.is_drained()
                && (!self.leads() || since.elapsed() >= HAND_OVER)
            {
                return Ok(());
            }
        }
    }

    /// Whether this member leads, and there are others that could.
    fn leads(&self) -> bool {
        self.parts.members.n() > 1 && self.parts.replica.status().leader == self.parts.me
    }

    /// Whether no client waits for anything any more.
    fn is_drained(&self) -> bool {
        self.queue.is_empty()
            && self.submitted.is_empty()
            && self.reads.is_empty()
            && !self.parts.executor.has_clients()
    }

    fn step(&mut self, input: Input) {
        let now = self.parts.outlet.clock(self.parts.clock.now());
        self.parts.replica.step(now, input);
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Message(from, message) => {
                if self.parts.outlet.hears(from, &message) {
                    self.step(Input::Message(from, message));
                }
            }
            Event::Change(_, client, _) if self.stopping.is_some() => {
                // The client may have gone away: then nobody wants to know.
                let _ = client.send(Err(Refused::Closing));
            }
            Event::Change(request, client, trace) => {
                if self.queue.len() >= QUEUED_REQUESTS || self.queued_bytes + request.len() > QUEUED_BYTES {
                    // The client may have gone away: then nobody wants to know.
                    let _ = client.send(Err(Refused::Full));
                    return;
                }
                self.queued_bytes += request.len();
                self.queue.push_back(Queued { request, client, trace });
            }
            Event::Read(client) => {
                if !self.parts.replica.may_read() {
                    // Dropping the sender tells the client that the daemon is busy.
                    return;
                }
                self.next_read += 1;
                let ticket = ReadTicket(self.next_read);
                self.reads.insert(ticket, client);
                self.step(Input::Read(ticket));
            }
        }
    }

    fn on_internal(&mut self, event: Internal) -> Result<(), DriverError> {
        match event {
            Internal::Durable(durable) => {
                self.durable = durable?;
                if self.tracer.is_active() {
                    self.tracer.see_durable(self.durable, Instant::now());
                }
                while let Some((_, index)) = self.commits.pop_front_if(|(record, _)| *record <= self.durable)
                {
                    self.parts.executor.note_durable(index);
                }
            }
            Internal::Unreadable(error) => return Err(DriverError::Unreadable(error)),
            Internal::Protocol(protocol) => self.step(Input::Protocol(protocol)),
            Internal::Executed(executed) => {
                let (block, state) = executed?;
                if self.tracer.is_active() {
                    self.tracer.see_executed(block, Instant::now());
                }
                self.step(Input::Executed(block, state));
            }
        }
        Ok(())
    }

    /// Carries out all outputs, and what follows from them, until nothing is left that can be done now.
    fn carry_out(&mut self) -> Result<(), DriverError> {
        loop {
            self.submit();
            for output in self.parts.replica.take_outputs() {
                self.take_output(output);
            }
            if !self.records.is_empty() {
                self.parts.log.append(self.records.drain(..));
            }
            self.release()?;
            if !self.held.is_empty() {
                self.parts.log.flush();
            }
            if self.loopback.is_empty() {
                return Ok(());
            }
            while let Some(message) = self.loopback.pop_front() {
                self.step(Input::Message(self.parts.me, message));
            }
        }
    }

    /// Makes a batch of the requests that wait, if the replica has room for one.
    fn submit(&mut self) {
        while !self.queue.is_empty() && self.parts.replica.may_submit() {
            // What a request costs in a batch beside its bytes, and a batch beside its requests.
            const OVERHEAD: usize = 8;
            let mut bytes = 256;
            let mut requests = Vec::new();
            while let Some(next) = self.queue.front() {
                bytes += next.request.len() + OVERHEAD;
                if requests.len() >= MAX_BATCH_REQUESTS || (bytes > MAX_BATCH && !requests.is_empty()) {
                    break;
                }
                if let Some(Queued { request, client, trace }) = self.queue.pop_front() {
                    self.queued_bytes -= request.len();
                    requests.push(request);
                    self.submitted.push(client);
                    if let Some(asked) = trace {
                        self.tracer.submit(*asked);
                    }
                }
            }
            self.step(Input::Submit(requests));
            for output in self.parts.replica.take_outputs() {
                self.take_output(output);
            }
        }
    }

    fn take_output(&mut self, output: Output) {
        if self.tracer.is_active() {
            self.tracer.see(&output, self.emitted + 1, Instant::now());
        }
        match output {
            Output::Persist(record) => {
                self.emitted += 1;
                if let Record::Committed(committed) = &record {
                    self.commits.push_back((self.emitted, committed.certificate.block().index));
                }
                self.records.push(record);
            }
            Output::Send { to, message, after } if after <= self.durable => self.send(to, message),
            Output::Send { to, message, after } => self.held.push_back((after, Effect::Send(to, message))),
            // Clients must be known before their batch is executed.
            Output::Numbered { before, now } => match before {
                Some(before) => self.parts.executor.renumber(before, now),
                None => self.parts.executor.expect(now, std::mem::take(&mut self.submitted)),
            },
            Output::Report(report) => self.log_report(&report),
            Output::Readable(tickets) => {
                for ticket in tickets {
                    if let Some(client) = self.reads.remove(&ticket) {
                        // A client that has gone away doesn't want to know.
                        let _ = client.send(());
                    }
                }
            }
            other => self.held.push_back((self.emitted, Effect::Other(other))),
        }
    }

    /// Lets go of everything whose record is durable, in the order of emission.
    fn release(&mut self) -> Result<(), DriverError> {
        let mut still_held = VecDeque::new();
        while let Some((after, effect)) = self.held.pop_front() {
            if after > self.durable {
                still_held.push_back((after, effect));
                continue;
            }
            match effect {
                Effect::Send(to, message) => self.send(to, message),
                Effect::Other(Output::Execute(block)) => self.parts.executor.execute(block),
                Effect::Other(Output::ServeCommitted { to, after }) => self.parts.lacking.note(to, after),
                Effect::Other(Output::Halt(halt)) => return Err(DriverError::Halted(halt)),
                Effect::Other(_) => {}
            }
        }
        self.held = still_held;
        Ok(())
    }

    fn send(&mut self, to: To, message: Verified<Message>) {
        if to == To::Member(self.parts.me) {
            self.loopback.push_back(message);
        } else {
            self.parts.outlet.send(to, &message);
        }
    }

    fn show_status(&self) {
        let status = self.parts.replica.status();
        self.parts.status.send_if_modified(|shown| {
            let is_new = *shown != status;
            *shown = status;
            is_new
        });
    }

    fn log_report(&mut self, report: &Report) {
        match report {
            Report::EnteredTerm(term) => {
                tracing::info!(message_id = logging::ENTERED_TERM, term = term.0, "entered a term");
            }
            Report::OpenedTerm(term, start) => {
                let leader = self.parts.replica.status().leader;
                tracing::info!(
                    message_id = logging::OPENED_TERM,
                    term = term.0,
                    leader = leader.0,
                    index = start.index.0,
                    "the term is open"
                );
            }
            Report::Suspecting(term, reason) => {
                let leader = self.parts.replica.status().leader;
                tracing::warn!(
                    message_id = logging::SUSPECTING,
                    term = term.0,
                    leader = leader.0,
                    reason,
                    "suspecting the leader"
                );
            }
            Report::Trusting(term) => tracing::info!(term = term.0, "trusting the leader again"),
            Report::Evidence(offence) => {
                self.parts.peers.note_proof(offence.accused);
                self.parts.evidence.send_replace(self.parts.replica.evidence().cloned().collect());
                tracing::warn!(
                    message_id = logging::PROVED,
                    peer = offence.accused.0,
                    kind = %offence.kind,
                    term = offence.term.0,
                    index = offence.index.0,
                    "a member is proved to have lied; see `bftctl evidence ls`"
                );
            }
            // Each of the leader's blocks may show it.
            Report::StateDiffers(term, _) if self.differed_in.replace(*term) == Some(*term) => {}
            Report::StateDiffers(term, index) => tracing::error!(
                message_id = logging::STATE_DIFFERS,
                term = term.0,
                index = index.0,
                "the leader's state differs from ours: one of the two has diverged"
            ),
            Report::Ignored(from, message, why) if why.is_lie() => {
                self.parts.peers.recount(*from);
                tracing::debug!(peer = from.0, message, ?why, "a lie");
            }
            Report::Ignored(from, message, why) => {
                tracing::trace!(peer = from.0, message, ?why, "ignored");
            }
        }
    }
}
