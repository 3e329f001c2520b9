//! One simulated machine: a replica, its disk, its state machine, its clients.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bftd_core::{
    block::Block,
    certificate::Certificate,
    crypto::Digest,
    durable::{Durable, Record},
    ids::{BatchNumber, Incarnation, Index, MemberId},
    kv::{self, MemoryTables, StateMachine},
    limits::{FETCH_BLOCKS, FETCH_BYTES},
    membership::Membership,
    message::{Blocks, Message},
    replica::{Output, ReadTicket, Replica, To},
    verify::Verified,
};
use bftd_faults::Adversary;
use bytes::Bytes;

/// What waits for a record to be durable.
pub(crate) enum Held {
    Send(To, Verified<Message>),
    Other(Output),
}

/// A read that a client waits for.
pub(crate) struct Read {
    pub number: u64,
    pub key: Bytes,
}

pub(crate) struct Node {
    pub id: MemberId,
    pub adversary: Option<Box<dyn Adversary>>,
    pub skew_ms: i64,
    /// How often it has started; what was scheduled for an earlier run is void.
    pub run: u64,
    pub replica: Option<Replica>,
    pub halted: bool,
    /// When it last wanted to be called.
    pub due_us: Option<u64>,

    pub disk: Disk,
    /// Records emitted in this run, and durable ones.
    pub emitted: u64,
    pub synced: u64,
    pub unsynced: VecDeque<Record>,
    /// How many records the sync under way makes durable.
    pub syncing: Option<usize>,
    pub held: VecDeque<(u64, Held)>,

    pub state: State,
    /// The highest index that any run has executed.
    pub executed: Index,
    /// Final blocks that wait for execution: at most as many as are committed between two executions.
    pub executing: VecDeque<Arc<Block>>,
    /// The writes of each own batch of this run.
    pub writes: BTreeMap<(Incarnation, BatchNumber), u64>,
    pub submitted: Option<u64>,
    pub reads: BTreeMap<ReadTicket, Read>,
}

/// What survives a crash.
#[derive(Default)]
pub(crate) struct Disk {
    pub durable: Durable,
    /// The committed chain, and where a block has a certificate of its own, that.
    pub log: Vec<(Arc<Block>, Option<Arc<Certificate>>)>,
}

impl Disk {
    pub fn apply(&mut self, record: &Record) {
        let mut chain = self.durable.apply(record).into_iter().peekable();
        while let Some(block) = chain.next() {
            let certificate = match record {
                Record::Committed(committed) if chain.peek().is_none() => {
                    Some(Arc::clone(&committed.certificate))
                }
                _ => None,
            };
            self.log.push((block, certificate));
        }
    }

    /// Forgets what the replica's memory does not call committed any more, where an adversary has changed that.
    pub fn forget_uncommitted(&mut self) {
        let committed = self.durable.committed.as_ref().map_or(0, |it| it.certificate.block().index.0);
        self.log.truncate(usize::try_from(committed).unwrap_or(usize::MAX));
    }

    /// Committed blocks after an index, as the daemon's store serves them: ending with one that has a certificate, if
    /// any has.
    pub fn committed_after(&self, after: Index) -> Option<Blocks> {
        let start = usize::try_from(after.0).ok()?;
        let mut bytes = 0;
        let mut run = Vec::new();
        let mut last = None;
        for (block, certificate) in self.log.get(start..)?.iter().take(FETCH_BLOCKS) {
            bytes += block.size();
            if bytes > FETCH_BYTES && !run.is_empty() {
                break;
            }
            run.push(Arc::clone(block));
            if let Some(certificate) = certificate {
                last = Some((run.len(), Arc::clone(certificate)));
            }
        }
        if run.is_empty() {
            return None;
        }
        let certificate = last.map(|(count, certificate)| {
            run.truncate(count);
            certificate
        });
        Some(Blocks { blocks: run, certificate })
    }
}

/// The state machine, which is executed again from the log after a crash.
pub(crate) struct State {
    pub tables: MemoryTables,
    pub machine: StateMachine,
}

impl State {
    pub fn new(members: &Membership) -> Self {
        let mut tables = MemoryTables::default();
        let machine = StateMachine::open(&mut tables, members.root()).expect("memory does not fail");
        Self { tables, machine }
    }

    /// Executes a block, and answers with the state's digest and the outcome of each request.
    pub fn execute(&mut self, block: &Arc<Block>) -> (Digest, Vec<Vec<kv::Outcome>>) {
        let outcomes = self
            .machine
            .execute(&mut self.tables, std::slice::from_ref(block))
            .unwrap_or_else(|error| panic!("a block out of order is executed: {error}"));
        let outcome = outcomes.into_iter().next().expect("one block, one outcome");
        (outcome.head.state, outcome.outcomes)
    }

    pub fn get(&self, key: &Bytes) -> Option<kv::Entry> {
        kv::get(&self.tables, key).expect("memory does not fail")
    }
}

impl Node {
    pub fn new(
        id: MemberId,
        members: &Membership,
        adversary: Option<Box<dyn Adversary>>,
        skew_ms: i64,
    ) -> Self {
        Self {
            id,
            adversary,
            skew_ms,
            run: 0,
            replica: None,
            halted: false,
            due_us: None,
            disk: Disk::default(),
            emitted: 0,
            synced: 0,
            unsynced: VecDeque::new(),
            syncing: None,
            held: VecDeque::new(),
            state: State::new(members),
            executed: Index(0),
            executing: VecDeque::new(),
            writes: BTreeMap::new(),
            submitted: None,
            reads: BTreeMap::new(),
        }
    }

    pub fn is_correct(&self) -> bool {
        self.adversary.is_none()
    }

    /// Loses everything but the disk. A sync under way may have made it.
    pub fn crash(&mut self, sync_made_it: bool) {
        self.replica = None;
        self.due_us = None;
        if let (true, Some(count)) = (sync_made_it, self.syncing) {
            for record in self.unsynced.drain(..count) {
                self.disk.apply(&record);
            }
        }
        self.unsynced.clear();
        self.syncing = None;
        self.held.clear();
        self.executing.clear();
        self.emitted = 0;
        self.synced = 0;
        self.writes.clear();
        self.submitted = None;
        self.reads.clear();
        self.run += 1;
    }

    /// Executes the log again, as the daemon does before it takes part. Answers with the blocks that this node has never
    /// executed before, and the state after each.
    pub fn recover_state(&mut self, members: &Membership) -> Vec<(Arc<Block>, Digest)> {
        self.state = State::new(members);
        let mut new = Vec::new();
        for (block, _) in &self.disk.log {
            let (state, _) = self.state.execute(block);
            if block.header().index > self.executed {
                self.executed = block.header().index;
                new.push((Arc::clone(block), state));
            }
        }
        new
    }

    /// What became durable with the sync under way.
    pub fn finish_sync(&mut self) -> Vec<Record> {
        let count = self.syncing.take().unwrap_or(0);
        let records: Vec<_> = self.unsynced.drain(..count).collect();
        for record in &records {
            self.disk.apply(record);
        }
        self.synced += records.len() as u64;
        records
    }
}
