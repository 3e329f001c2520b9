//! One member of a laboratory's cluster: a replica, its verifier, its disk, its state, and what waits for it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bftd_core::{
    block::Request,
    ids::{BatchNumber, Incarnation, Index, MemberId, Now},
    membership::Membership,
    message::Message,
    replica::{Halt, Output, Replica, To},
    verify::{Verified, Verifier},
};
use bftd_faults::{Adversary, Content};

use super::cost::Meter;
use crate::node::{Disk, State};

/// A message on its way.
#[derive(Clone)]
pub(super) struct Mail {
    pub from: MemberId,
    pub content: Arc<Content>,
    /// Whether a cluster at rest sends such a thing, too.
    pub is_idle: bool,
}

/// Something for a member to work off.
pub(super) enum Item {
    Mail(Mail),
    /// A client's request.
    Request(u32, Request),
    Tick,
    Due,
    Synced,
}

/// An output that waits for a record to be durable.
pub(super) enum Held {
    Send { to: To, message: Verified<Message>, is_idle: bool },
    Other(Output),
}

pub(super) struct Machine {
    pub id: MemberId,
    /// None of one that is offline.
    pub replica: Option<Replica>,
    pub adversary: Option<Box<dyn Adversary>>,
    pub verifier: Verifier,
    pub meter: Arc<Meter>,
    /// Why it has stopped, if it has.
    pub halted: Option<Halt>,

    pub inbox: VecDeque<Item>,
    /// Until when it is busy; whether it is called then.
    pub busy_until_ns: u64,
    pub is_called: bool,
    pub due_us: Option<u64>,

    pub disk: Disk,
    pub state: State,
    pub emitted: u64,
    pub synced: u64,
    pub unsynced: VecDeque<bftd_core::durable::Record>,
    /// How many records the sync under way makes durable.
    pub syncing: Option<usize>,
    /// With the number of the record.
    pub held: VecDeque<(u64, Held)>,

    /// Requests of its clients that no batch has room for yet: one a client at most.
    pub waiting: VecDeque<(u32, Request)>,
    pub submitted: Vec<u32>,
    pub batches: BTreeMap<(Incarnation, BatchNumber), Vec<u32>>,
}

impl Machine {
    pub fn new(
        id: MemberId,
        members: &Membership,
        replica: Replica,
        verifier: Verifier,
        meter: Arc<Meter>,
        state: State,
    ) -> Self {
        debug_assert!(members.get(id).is_some());
        Self {
            id,
            replica: Some(replica),
            adversary: None,
            verifier,
            meter,
            halted: None,
            inbox: VecDeque::new(),
            busy_until_ns: 0,
            is_called: false,
            due_us: None,
            disk: Disk::default(),
            state,
            emitted: 0,
            synced: 0,
            unsynced: VecDeque::new(),
            syncing: None,
            held: VecDeque::new(),
            waiting: VecDeque::new(),
            submitted: Vec::new(),
            batches: BTreeMap::new(),
        }
    }

    /// Whether it does anything.
    pub fn is_running(&self) -> bool {
        self.replica.is_some() && self.halted.is_none()
    }

    /// What it has executed last.
    pub fn executed(&self) -> Index {
        self.state.machine.head().executed.index
    }

    /// What its clocks say.
    pub fn now(&self, at_ns: u64) -> Now {
        /// When the world begins, on everybody's wall clock.
        const EPOCH_MS: u64 = 1_000_000;
        let honest = EPOCH_MS + at_ns / 1_000_000;
        let unix_ms = self.adversary.as_ref().map_or(honest, |adversary| adversary.unix_ms(honest));
        Now { monotonic_us: at_ns / 1_000 + 1, unix_ms }
    }

    /// The sync under way is over.
    pub fn finish_sync(&mut self) -> Vec<Held> {
        let count = self.syncing.take().unwrap_or(0);
        for record in self.unsynced.drain(..count) {
            self.disk.apply(&record);
        }
        self.synced += count as u64;
        let synced = self.synced;
        let (ready, held): (VecDeque<(u64, Held)>, _) =
            std::mem::take(&mut self.held).into_iter().partition(|(after, _)| *after <= synced);
        self.held = held;
        ready.into_iter().map(|(_, held)| held).collect()
    }

    /// It is there no more.
    pub fn go_offline(&mut self) {
        self.replica = None;
        self.inbox.clear();
        self.held.clear();
        self.unsynced.clear();
        self.due_us = None;
    }
}
