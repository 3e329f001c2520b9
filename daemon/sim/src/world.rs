//! The world of a run: virtual time, a network, disks, clients, and a plan of faults.
//!
//! Everything happens in the order of one queue, whose ties are broken by the order of scheduling, and all chance comes from
//! one generator: the same seed is the same run.

pub(crate) mod clients;
mod faults;
mod life;
mod network;
mod stage;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bftd_core::{
    ids::{MemberId, Now},
    membership::Membership,
    replica::Input,
    verify::Verifier,
};
use bftd_faults::{Liar, adversary};
use bytes::Bytes;
use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use self::clients::Clients;
use crate::{
    Options, Report,
    event::{Event, Observer, Violation},
    histories::Reads,
    linearizability::History,
    node::Node,
    plan::{Plan, between},
    scheme::Scheme,
};

/// How long after the faults everything may take until it is settled, in virtual time.
const PATIENCE_US: u64 = 40_000_000;
/// How long a settled cluster is watched for needless term changes.
const QUIET_US: u64 = 3_000_000;
/// The same where liars go on: they get time to topple a leader once more.
const QUIET_WITH_LIARS_US: u64 = 4_000_000;
/// How long a node stays cut off after a broadcast that reached only some.
const ISOLATED_US: (u64, u64) = (20_000, 600_000);
/// How much later a message comes that is overtaken by others.
const STRAGGLING_US: (u64, u64) = (10_000, 400_000);
/// At what intervals a liar restarts whose lie it is.
const RELAPSE_US: (u64, u64) = (20_000, 600_000);
/// How long a message and a sync take when all is calm.
const CALM_US: (u64, u64) = (50, 1_000);
/// How many keys there are.
const KEYS: u32 = 2;
/// When the world begins, on everybody's wall clock.
const EPOCH_MS: u64 = 1_000_000;

/// Something that is going to happen.
enum Next {
    Tick(MemberId),
    /// What a replica wanted to be called for at this time.
    Due(MemberId),
    Deliver(MemberId, MemberId, Vec<u8>),
    /// With the run that began the sync.
    SyncDone(MemberId, u64),
    /// With the run that the block is final in.
    Execute(MemberId, u64),
    Start(MemberId),
    Crash,
    /// A member is told to stop, and then does.
    Leave,
    Stop(MemberId),
    /// Of a liar whose lie it is, calm or not.
    Relapse(MemberId),
    Cut,
    Mend,
    Write,
    Read,
    Switch,
    /// A client's, where a history is made.
    Turn(usize),
    /// With the number of its wait.
    GiveUp(usize, u64),
    Calm,
}

pub(crate) struct World<'a> {
    members: Arc<Membership>,
    scheme: Scheme,
    verifier: Arc<Verifier>,
    plan: Plan,
    random: ChaCha8Rng,
    now_us: u64,
    queue: BTreeMap<(u64, u64), Next>,
    scheduled: u64,
    nodes: BTreeMap<MemberId, Node>,
    cut: BTreeSet<(MemberId, MemberId)>,
    is_calm: bool,
    /// Who is about to stop.
    leaving: BTreeSet<MemberId>,
    /// Nodes to crash when the current event is over.
    doomed: Vec<MemberId>,
    next_write: u64,
    next_read: u64,
    /// Where a history is made.
    clients: Option<Clients>,
    report: Report,
    observer: &'a mut dyn Observer,
}

type Step = Result<(), Violation>;

impl<'a> World<'a> {
    pub fn new(options: &Options, seed: u64, observer: &'a mut dyn Observer) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let plan = Plan::draw(options, &mut random);
        Self::with_plan(options, plan, random, observer)
    }

    /// A world in which clients make a history, under the faults that the seed has.
    pub fn with_clients(options: &Options, seed: u64, reads: Reads, observer: &'a mut dyn Observer) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut plan = Plan::draw(options, &mut random);
        let members: Vec<_> = (1..=options.nodes).map(MemberId).collect();
        let clients = Clients::draw(&mut plan, &members, reads, &random);
        Self { clients: Some(clients), ..Self::with_plan(options, plan, random, observer) }
    }

    /// A world of a certain plan.
    pub fn with_plan(
        options: &Options,
        plan: Plan,
        mut random: ChaCha8Rng,
        observer: &'a mut dyn Observer,
    ) -> Self {
        let scheme = Scheme::new(options.nodes, options.ed25519);
        let members = Arc::new(scheme.membership("sim", options.protocol));
        let verifier = Arc::new(Verifier::new(Arc::clone(&members), Arc::clone(&scheme.check)));
        let mut nodes = BTreeMap::new();
        for id in members.ids() {
            let (members, verifier) = (Arc::clone(&members), Arc::clone(&verifier));
            let signer = members.signer(Arc::clone(&scheme.signers[&id]));
            let liar = Liar { me: id, members: Arc::clone(&members), signer, verifier, timing: plan.timing };
            let adversary = plan.liars.get(&id).map(|(fault, seed)| adversary(*fault, liar, *seed));
            let skew_ms = random.random_range(-plan.skew_ms..=plan.skew_ms);
            nodes.insert(id, Node::new(id, &members, adversary, skew_ms));
        }
        Self {
            verifier,
            members,
            scheme,
            plan,
            random,
            now_us: 0,
            queue: BTreeMap::new(),
            scheduled: 0,
            nodes,
            cut: BTreeSet::new(),
            is_calm: false,
            leaving: BTreeSet::new(),
            doomed: Vec::new(),
            next_write: 0,
            next_read: 0,
            clients: None,
            report: Report::default(),
            observer,
        }
    }

    /// The members of a run, and who can check their signatures: what an oracle starts from.
    pub fn about(options: &Options) -> (Membership, Arc<dyn bftd_core::crypto::CheckSignature>) {
        let scheme = Scheme::new(options.nodes, options.ed25519);
        (scheme.membership("sim", options.protocol), scheme.check)
    }

    /// Runs it. What clients saw is empty where none make a history.
    pub fn run(mut self) -> Result<(Report, History), (Violation, u64)> {
        match self.live() {
            Ok(()) => Ok((self.report, self.clients.map(Clients::into_history).unwrap_or_default())),
            Err(violation) => Err((violation, self.now_us)),
        }
    }

    fn live(&mut self) -> Step {
        self.begin()?;
        let restless = self.plan.liars.iter().filter(|(_, (fault, _))| fault.wants_restarts());
        for id in restless.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.schedule(RELAPSE_US.0, Next::Relapse(id));
        }
        for _ in 0..self.plan.writes {
            let at = self.random.random_range(0..self.plan.chaos_us);
            self.schedule(at, Next::Write);
        }
        for _ in 0..self.plan.reads {
            let at = self.random.random_range(0..self.plan.chaos_us);
            self.schedule(at, Next::Read);
        }
        for _ in 0..self.plan.switches {
            let at = self.random.random_range(0..self.plan.chaos_us);
            self.schedule(at, Next::Switch);
        }
        for _ in 0..self.plan.leaves {
            let at = self.random.random_range(0..self.plan.chaos_us);
            self.schedule(at, Next::Leave);
        }
        self.begin_clients();
        self.schedule_fault(self.plan.crash_every_us, Next::Crash);
        self.schedule_fault(self.plan.cut_every_us, Next::Cut);
        self.schedule(self.plan.chaos_us, Next::Calm);
        self.until(|world| world.is_calm)?;
        self.settle()
    }

    /// All nodes start.
    fn begin(&mut self) -> Step {
        let ids: Vec<_> = self.members.ids().collect();
        for id in &ids {
            self.start(*id)?;
            let phase = self.random.random_range(0..self.plan.timing.tick_us);
            self.schedule(phase, Next::Tick(*id));
        }
        Ok(())
    }

    /// From the calm on, until nothing is left to do.
    fn settle(&mut self) -> Step {
        let calm_since = self.now_us;
        let deadline = calm_since + PATIENCE_US;
        let quiet_us = if self.has_no_liars() { QUIET_US } else { QUIET_WITH_LIARS_US };
        // Nobody must be settled by chance in the middle of a term change.
        let mut settled_since = None;
        self.until(|world| {
            if !world.is_settled() {
                settled_since = None;
            } else if settled_since.is_none() {
                settled_since = Some(world.now_us);
            }
            let settled = settled_since.is_some_and(|since| world.now_us >= since + quiet_us);
            // A liar that leads may go on proposing empty blocks: then it is never quiet, but done for a moment.
            let restless = !world.has_no_liars() && world.now_us > calm_since + PATIENCE_US / 4;
            settled || restless && settled_since.is_some() || world.now_us > deadline
        })?;
        self.report.settled_us = self.now_us - calm_since;
        self.end()
    }

    /// Lets things happen until `done` holds. Asked at every tick, so not too often.
    fn until(&mut self, mut done: impl FnMut(&Self) -> bool) -> Step {
        loop {
            let Some(((at_us, _), next)) = self.queue.pop_first() else { return Ok(()) };
            self.now_us = at_us;
            let ask = matches!(next, Next::Tick(_) | Next::Calm);
            self.happen(next)?;
            while let Some(id) = self.doomed.pop() {
                self.crash(id)?;
            }
            if ask && done(self) {
                return Ok(());
            }
        }
    }

    fn happen(&mut self, next: Next) -> Step {
        match next {
            Next::Tick(id) => {
                self.schedule(self.plan.timing.tick_us, Next::Tick(id));
                self.tick_adversary(id)?;
                self.step(id, Input::Tick)
            }
            Next::Due(id) => self.step(id, Input::Due),
            Next::Deliver(from, to, bytes) => self.deliver(from, to, &bytes),
            Next::SyncDone(id, run) => self.sync_done(id, run),
            Next::Execute(id, run) => self.execute_next(id, run),
            Next::Start(id) => self.start(id),
            Next::Crash => {
                if !self.is_calm {
                    self.schedule_fault(self.plan.crash_every_us, Next::Crash);
                    let id = self.next_victim();
                    self.crash(id)?;
                }
                Ok(())
            }
            Next::Leave => self.tell_to_stop(),
            Next::Stop(id) => self.stop(id),
            Next::Relapse(id) => {
                let in_us = between(RELAPSE_US, &mut self.random);
                self.schedule(in_us, Next::Relapse(id));
                self.crash(id)
            }
            Next::Cut => {
                if !self.is_calm {
                    self.schedule_fault(self.plan.cut_every_us, Next::Cut);
                    self.cut_links();
                }
                Ok(())
            }
            Next::Mend => {
                self.cut.clear();
                Ok(())
            }
            Next::Write => self.write(),
            Next::Read => self.read(),
            Next::Switch => self.switch(),
            Next::Turn(client) => self.turn(client),
            Next::GiveUp(client, waits) => self.give_up(client, waits),
            Next::Calm => self.calm(),
        }
    }

    fn has_no_liars(&self) -> bool {
        self.nodes.values().all(Node::is_correct)
    }

    // The end.

    /// Whether nothing is left to do: for correct nodes all is answered and equal.
    fn is_settled(&self) -> bool {
        if !self.clients.as_ref().is_none_or(Clients::are_done) {
            return false;
        }
        let mut heads = BTreeSet::new();
        for node in self.nodes.values().filter(|node| node.is_correct()) {
            let Some(replica) = &node.replica else { return node.halted };
            let status = replica.status();
            // Liars may have it asked to for ever.
            let hands_on = status.leader == node.id && status.protocol != status.next_protocol;
            if !node.writes.is_empty()
                || !node.reads.is_empty()
                || status.committed.index != status.executed.index
                || self.has_no_liars() && (!status.open || hands_on)
            {
                return false;
            }
            heads.insert((status.committed.digest, status.executed.state));
        }
        heads.len() == 1
    }

    fn end(&mut self) -> Step {
        self.report.virtual_us = self.now_us;
        let mut nodes = Vec::new();
        let (mut pending_writes, mut pending_reads) = (0, 0);
        for node in self.nodes.values() {
            if node.is_correct() {
                pending_writes += node.writes.len();
                pending_reads += node.reads.len();
            }
            if let Some(replica) = &node.replica {
                let status = replica.status();
                self.report.terms = self.report.terms.max(status.term.0);
                let state = node.state.machine.head().state;
                nodes.push((node.id, status, Some(state)));
            }
        }
        self.observe(&Event::End { nodes: &nodes, pending_writes, pending_reads })
    }

    // Small things.

    fn observe(&mut self, event: &Event<'_>) -> Step {
        self.observer.observe(self.now_us, event)
    }

    fn schedule(&mut self, in_us: u64, next: Next) {
        self.scheduled += 1;
        self.queue.insert((self.now_us + in_us, self.scheduled), next);
    }

    fn schedule_fault(&mut self, every_us: Option<u64>, next: Next) {
        if let Some(every_us) = every_us {
            let in_us = self.random.random_range(0..2 * every_us);
            self.schedule(in_us, next);
        }
    }

    fn any_member(&mut self) -> MemberId {
        let ids: Vec<_> = self.members.ids().collect();
        *ids.choose(&mut self.random).expect("a cluster has members")
    }

    fn now(&self, id: MemberId) -> Now {
        let node = self.nodes.get(&id);
        let skew_ms = node.map_or(0, |node| node.skew_ms);
        let honest = (EPOCH_MS + self.now_us / 1000).saturating_add_signed(skew_ms);
        let adversary = node.and_then(|node| node.adversary.as_ref());
        let unix_ms = adversary.map_or(honest, |adversary| adversary.unix_ms(honest));
        Now { monotonic_us: self.now_us + 1, unix_ms }
    }
}

fn key(number: u32) -> Bytes {
    format!("key{number}").into()
}

/// Who of a seed's members follows the protocol.
pub(crate) fn correct_members(options: &Options, seed: u64) -> BTreeSet<MemberId> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (members, _) = World::about(options);
    let plan = Plan::draw(options, &mut random);
    members.ids().filter(|id| !plan.liars.contains_key(id)).collect()
}
