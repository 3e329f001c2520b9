//! The world of a run: virtual time, a network, disks, clients, and a plan of faults.
//!
//! Everything happens in the order of one queue, whose ties are broken by the order of scheduling, and all chance comes from
//! one generator: the same seed is the same run.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bftd_core::{
    block::Block,
    ids::{MemberId, Now},
    kv::{Expect, Operation, Outcome},
    membership::{Genesis, Member, Membership},
    message::Message,
    protocol::Protocol,
    replica::{Input, Output, ReadTicket, Replica, Setup, To},
    verify::{Verified, Verifier},
};
use bftd_faults::{
    Adversary, DoubleVoter, EquivocatingLeader, ForgetfulTermVoter, Liar, LowNewTerm, LyingReader, ReadLie,
};
use bytes::Bytes;
use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use crate::{
    Options, Report,
    event::{Event, Observer, Violation},
    node::{Held, Node, Read},
    plan::{Kind, Lie, Plan, between},
    scheme::Scheme,
};

/// How long after the faults everything may take until it is settled, in virtual time.
const PATIENCE_US: u64 = 40_000_000;
/// How long a settled cluster is watched for needless term changes.
const QUIET_US: u64 = 3_000_000;
/// How long a node stays cut off after a broadcast that reached only some.
const ISOLATED_US: (u64, u64) = (20_000, 600_000);
/// How many keys there are.
const KEYS: u32 = 2;
/// When the world begins, on everybody's wall clock.
const EPOCH_MS: u64 = 1_000_000;

/// Something that is going to happen.
enum Next {
    Tick(MemberId),
    Deliver(MemberId, MemberId, Vec<u8>),
    /// With the run that began the sync.
    SyncDone(MemberId, u64),
    /// With the run that the block is final in.
    Execute(MemberId, u64),
    Start(MemberId),
    Crash,
    Cut,
    Mend,
    Write,
    Read,
    Calm,
}

pub(crate) struct World<'a> {
    members: Arc<Membership>,
    scheme: Scheme,
    verifier: Verifier,
    plan: Plan,
    random: ChaCha8Rng,
    now_us: u64,
    queue: BTreeMap<(u64, u64), Next>,
    scheduled: u64,
    nodes: BTreeMap<MemberId, Node>,
    cut: BTreeSet<(MemberId, MemberId)>,
    is_calm: bool,
    /// Nodes to crash when the current event is over.
    doomed: Vec<MemberId>,
    next_write: u64,
    next_read: u64,
    report: Report,
    observer: &'a mut dyn Observer,
}

type Step = Result<(), Violation>;

impl<'a> World<'a> {
    pub fn new(options: &Options, seed: u64, observer: &'a mut dyn Observer) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let scheme = Scheme::new(options.nodes, options.ed25519);
        let members = Arc::new(membership(&scheme));
        let plan = Plan::draw(options.nodes, members.f(), &mut random);
        let mut nodes = BTreeMap::new();
        for id in members.ids() {
            let lie = plan.liars.get(&id);
            let liar =
                Liar { me: id, members: Arc::clone(&members), signer: Arc::clone(&scheme.signers[&id]) };
            let adversary = lie.map(|lie| adversary(lie, liar));
            let skew_ms = random.random_range(-plan.skew_ms..=plan.skew_ms);
            nodes.insert(id, Node::new(id, &members, adversary, skew_ms));
        }
        Self {
            verifier: Verifier::new(Arc::clone(&members), Arc::clone(&scheme.check)),
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
            doomed: Vec::new(),
            next_write: 0,
            next_read: 0,
            report: Report::default(),
            observer,
        }
    }

    /// The members of a run, and who can check their signatures: what an oracle starts from.
    pub fn about(options: &Options) -> (Membership, Arc<dyn bftd_core::crypto::CheckSignature>) {
        let scheme = Scheme::new(options.nodes, options.ed25519);
        (membership(&scheme), scheme.check)
    }

    pub fn run(mut self) -> Result<Report, (Violation, u64)> {
        match self.live() {
            Ok(()) => Ok(self.report),
            Err(violation) => Err((violation, self.now_us)),
        }
    }

    fn live(&mut self) -> Step {
        let ids: Vec<_> = self.members.ids().collect();
        for id in &ids {
            self.start(*id)?;
            let phase = self.random.random_range(0..self.plan.timing.tick_us);
            self.schedule(phase, Next::Tick(*id));
        }
        for _ in 0..self.plan.writes {
            let at = self.random.random_range(0..self.plan.chaos_us);
            self.schedule(at, Next::Write);
        }
        for _ in 0..self.plan.reads {
            let at = self.random.random_range(0..self.plan.chaos_us);
            self.schedule(at, Next::Read);
        }
        self.schedule_fault(self.plan.crash_every_us, Next::Crash);
        self.schedule_fault(self.plan.cut_every_us, Next::Cut);
        self.schedule(self.plan.chaos_us, Next::Calm);
        self.until(|world| world.is_calm)?;
        let calm_since = self.now_us;
        let deadline = calm_since + PATIENCE_US;
        // Nobody must be settled by chance in the middle of a term change.
        let mut settled_since = None;
        self.until(|world| {
            if !world.is_settled() {
                settled_since = None;
            } else if settled_since.is_none() {
                settled_since = Some(world.now_us);
            }
            let settled = settled_since.is_some_and(|since| world.now_us >= since + QUIET_US);
            // A liar that leads may go on proposing empty blocks: then it is never quiet, but done for a moment.
            let restless = !world.plan.liars.is_empty() && world.now_us > calm_since + PATIENCE_US / 4;
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
                self.step(id, Input::Tick)
            }
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
            Next::Calm => self.calm(),
        }
    }

    // Faults.

    fn calm(&mut self) -> Step {
        self.is_calm = true;
        self.cut.clear();
        let ids: Vec<_> = self.members.ids().collect();
        for id in ids {
            self.start(id)?;
        }
        let correct = self.nodes.values().filter(|node| node.is_correct());
        let term = correct.filter_map(|node| Some(node.replica.as_ref()?.status().term)).max();
        self.observe(&Event::Calm { term: term.unwrap_or_default() })
    }

    fn crash(&mut self, id: MemberId) -> Step {
        let sync_made_it = self.random.random_bool(0.5);
        let down_us = between(self.plan.down_us, &mut self.random);
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.replica.is_some()) else { return Ok(()) };
        node.crash(sync_made_it);
        self.report.crashes += 1;
        let durable = node.disk.durable.clone();
        self.schedule(down_us, Next::Start(id));
        self.observe(&Event::Crashed { node: id, durable: &durable })
    }

    fn start(&mut self, id: MemberId) -> Step {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.replica.is_none() && !node.halted) else {
            return Ok(());
        };
        node.recover_state(&self.members);
        let durable = node.disk.durable.clone();
        let (correct, restart) = (node.is_correct(), node.run > 0);
        self.observe(&Event::Started { node: id, correct, restart, durable: &durable })?;
        let now = self.now(id);
        let setup = Setup {
            me: id,
            members: Arc::clone(&self.members),
            signer: Arc::clone(&self.scheme.signers[&id]),
            timing: self.plan.timing,
        };
        if let Some(node) = self.nodes.get_mut(&id) {
            let states = node.state.machine.recent_digests();
            node.replica = Some(Replica::start(setup, durable, states, now));
        }
        self.carry_out(id, VecDeque::new())
    }

    /// Who crashes for no reason.
    fn next_victim(&mut self) -> MemberId {
        let leads = |node: &Node| node.replica.as_ref().is_some_and(|it| it.status().leader == node.id);
        let leader = self.nodes.values().find(|node| leads(node)).map(|node| node.id);
        match leader {
            Some(leader) if self.plan.crash_leaders => leader,
            _ => self.any_member(),
        }
    }

    /// Cuts off a node both ways.
    fn isolate(&mut self, alone: MemberId) {
        for other in self.members.ids().filter(|id| *id != alone) {
            self.cut.insert((alone, other));
            self.cut.insert((other, alone));
        }
    }

    fn cut_links(&mut self) {
        self.cut.clear();
        let ids: Vec<_> = self.members.ids().collect();
        match self.random.random_range(0..4) {
            0 => {}
            // One node alone, or deaf, or dumb.
            1 | 2 => {
                let alone = self.any_member();
                let (hears, speaks) = match (self.plan.one_way, self.random.random_bool(0.5)) {
                    (true, true) => (true, false),
                    (true, false) => (false, true),
                    (false, _) => (false, false),
                };
                for other in ids.iter().filter(|id| **id != alone) {
                    if !hears {
                        self.cut.insert((*other, alone));
                    }
                    if !speaks {
                        self.cut.insert((alone, *other));
                    }
                }
            }
            _ => {
                for from in &ids {
                    for to in &ids {
                        if self.random.random_bool(0.3) {
                            self.cut.insert((*from, *to));
                        }
                    }
                }
            }
        }
    }

    // Clients.

    fn write(&mut self) -> Step {
        let id = self.any_member();
        let key = key(self.random.random_range(0..KEYS));
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if !node.replica.as_ref().is_some_and(Replica::may_submit) {
            return Ok(());
        }
        self.next_write += 1;
        let value = Bytes::from(self.next_write.to_string());
        let request = Operation::Put { key, value, expect: Expect::Anything }.encode();
        node.submitted = Some(self.next_write);
        self.report.writes += 1;
        self.observe(&Event::Submitted { node: id, write: self.next_write, request: &request })?;
        self.step(id, Input::Submit(vec![request]))
    }

    fn read(&mut self) -> Step {
        let id = self.any_member();
        let key = key(self.random.random_range(0..KEYS));
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.replica.is_some()) else { return Ok(()) };
        self.next_read += 1;
        let ticket = ReadTicket(self.next_read);
        node.reads.insert(ticket, Read { number: self.next_read, key: key.clone() });
        self.report.reads += 1;
        self.observe(&Event::ReadBegun { node: id, read: self.next_read, key: &key })?;
        self.step(id, Input::Read(ticket))
    }

    // A node's life.

    fn step(&mut self, id: MemberId, input: Input) -> Step {
        let now = self.now(id);
        let Some(replica) = self.nodes.get_mut(&id).and_then(|node| node.replica.as_mut()) else {
            return Ok(());
        };
        replica.step(now, input);
        self.carry_out(id, VecDeque::new())
    }

    /// Carries out a node's outputs, and takes the inputs that follow from them, in order, as the daemon's driver does.
    fn carry_out(&mut self, id: MemberId, mut inputs: VecDeque<Input>) -> Step {
        loop {
            let now = self.now(id);
            let Some(replica) = self.nodes.get_mut(&id).and_then(|node| node.replica.as_mut()) else {
                return Ok(());
            };
            if let Some(input) = inputs.pop_front() {
                replica.step(now, input);
            }
            let broken = replica.check_invariants().err();
            let outputs = replica.take_outputs();
            if let Some(what) = broken {
                self.observe(&Event::InvariantBroken { node: id, what: &what })?;
            }
            for output in outputs {
                self.take_output(id, output, &mut inputs)?;
            }
            self.begin_sync(id);
            if inputs.is_empty() {
                return Ok(());
            }
        }
    }

    fn take_output(&mut self, id: MemberId, output: Output, inputs: &mut VecDeque<Input>) -> Step {
        if self.doomed.contains(&id) {
            return Ok(());
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        match output {
            Output::Persist(record) => {
                node.emitted += 1;
                node.unsynced.push_back(record);
                Ok(())
            }
            Output::Send { to, message, after } if after <= node.synced => {
                self.send(id, to, &message, inputs)
            }
            Output::Send { to, message, after } => {
                node.held.push_back((after, Held::Send(to, message)));
                Ok(())
            }
            Output::Numbered { before, now } => {
                let write = match before {
                    Some(before) => node.writes.remove(&before),
                    None => node.submitted.take(),
                };
                if let Some(write) = write {
                    node.writes.insert(now, write);
                }
                Ok(())
            }
            Output::Readable(tickets) => self.answer_reads(id, &tickets),
            Output::Report(_) => Ok(()),
            other if node.emitted <= node.synced => self.do_other(id, other, inputs),
            other => {
                node.held.push_back((node.emitted, Held::Other(other)));
                Ok(())
            }
        }
    }

    fn do_other(&mut self, id: MemberId, output: Output, inputs: &mut VecDeque<Input>) -> Step {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        match output {
            Output::Execute(block)
                if self.plan.execute_us.1 > 0 && !self.is_calm || !node.executing.is_empty() =>
            {
                node.executing.push_back(block);
                let run = node.run;
                let in_us = between(self.plan.execute_us, &mut self.random);
                self.schedule(in_us, Next::Execute(id, run));
                Ok(())
            }
            Output::Execute(block) => self.execute(id, &block, inputs),
            Output::ServeCommitted { to, after } => {
                if let Some(blocks) = node.disk.committed_after(after) {
                    self.leave(id, to, &Message::Blocks(blocks), false)?;
                }
                Ok(())
            }
            Output::Halt(halt) => {
                node.halted = true;
                let reason = halt.to_string();
                self.observe(&Event::Halted { node: id, reason: &reason })
            }
            _ => Ok(()),
        }
    }

    fn execute_next(&mut self, id: MemberId, run: u64) -> Step {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.run == run) else { return Ok(()) };
        let Some(block) = node.executing.pop_front() else { return Ok(()) };
        let mut inputs = VecDeque::new();
        self.execute(id, &block, &mut inputs)?;
        self.carry_out(id, inputs)
    }

    fn execute(&mut self, id: MemberId, block: &Arc<Block>, inputs: &mut VecDeque<Input>) -> Step {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let (state, outcomes) = node.state.execute(block);
        let mut done = Vec::new();
        for (batch, outcomes) in block.batches().iter().zip(outcomes) {
            let write = (batch.origin == id)
                .then(|| node.writes.remove(&(batch.incarnation, batch.number)))
                .flatten();
            if let (Some(write), Some(Outcome::Put { revision })) = (write, outcomes.first()) {
                done.push((write, *revision));
            }
        }
        inputs.push_back(Input::Executed(block.reference(), state));
        self.report.blocks += 1;
        self.observe(&Event::Executed { node: id, block, state })?;
        for (write, revision) in done {
            self.report.acknowledged += 1;
            self.observe(&Event::Acknowledged { node: id, write, revision })?;
        }
        Ok(())
    }

    fn answer_reads(&mut self, id: MemberId, tickets: &[ReadTicket]) -> Step {
        for ticket in tickets {
            let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
            let Some(Read { number, key }) = node.reads.remove(ticket) else { continue };
            let entry = node.state.get(&key);
            let revision = entry.as_ref().map_or(0, |entry| entry.mod_revision);
            let value = entry.as_ref().map(|entry| &entry.value);
            self.observe(&Event::ReadAnswered { node: id, read: number, key: &key, revision, value })?;
        }
        Ok(())
    }

    // The disk.

    fn begin_sync(&mut self, id: MemberId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.syncing.is_none() && !node.unsynced.is_empty() {
            node.syncing = Some(node.unsynced.len());
            let (run, takes_us) = (node.run, between(self.plan.sync_us, &mut self.random));
            self.schedule(takes_us, Next::SyncDone(id, run));
        }
    }

    fn sync_done(&mut self, id: MemberId, run: u64) -> Step {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.run == run) else { return Ok(()) };
        if !self.is_calm && self.plan.crash_in_sync > 0.0 && self.random.random_bool(self.plan.crash_in_sync)
        {
            self.doomed.push(id);
            return Ok(());
        }
        let records = node.finish_sync();
        let durable = node.disk.durable.clone();
        self.observe(&Event::Synced { node: id, records: &records, durable: &durable })?;
        let mut inputs = VecDeque::new();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let synced = node.synced;
        let (ready, held) =
            std::mem::take(&mut node.held).into_iter().partition(|(after, _)| *after <= synced);
        node.held = held;
        let ready: VecDeque<(u64, Held)> = ready;
        for (_, held) in ready {
            if self.doomed.contains(&id) {
                break;
            }
            match held {
                Held::Send(to, message) => self.send(id, to, &message, &mut inputs)?,
                Held::Other(output) => self.do_other(id, output, &mut inputs)?,
            }
        }
        self.carry_out(id, inputs)
    }

    // The network.

    fn send(
        &mut self,
        from: MemberId,
        to: To,
        message: &Verified<Message>,
        inputs: &mut VecDeque<Input>,
    ) -> Step {
        match to {
            To::Member(to) if to == from => {
                if let Some(node) = self.nodes.get(&from) {
                    let durable = &node.disk.durable;
                    self.observer.observe(self.now_us, &Event::Sent { from, to, message, durable })?;
                }
                inputs.push_back(Input::Message(from, message.clone()));
                Ok(())
            }
            To::Member(to) => self.leave(from, to, message, false),
            To::Others => {
                let partial = self.is_partial(Kind::of(message));
                let others: Vec<_> = self.members.ids().filter(|id| *id != from).collect();
                // A node that crashes in the middle of a broadcast has reached only some.
                for to in others {
                    if self.doomed.contains(&from) {
                        break;
                    }
                    let lost = partial && self.random.random_bool(0.5);
                    self.leave(from, to, message, lost)?;
                }
                if partial
                    && self.plan.isolate_after_partial > 0.0
                    && self.random.random_bool(self.plan.isolate_after_partial)
                {
                    self.isolate(from);
                    let mended_us = between(ISOLATED_US, &mut self.random);
                    self.schedule(mended_us, Next::Mend);
                }
                Ok(())
            }
        }
    }

    fn is_partial(&mut self, kind: Kind) -> bool {
        !self.is_calm && self.draw_for(kind, |plan| &plan.partial)
    }

    /// Whether what the plan says of a kind of message happens now.
    fn draw_for(&mut self, kind: Kind, which: impl Fn(&Plan) -> &Vec<(Kind, f64)>) -> bool {
        let chance = which(&self.plan).iter().find(|(of, _)| *of == kind).map(|(_, chance)| *chance);
        chance.is_some_and(|chance| self.random.random_bool(chance))
    }

    fn leave(&mut self, from: MemberId, to: MemberId, message: &Message, lost: bool) -> Step {
        let Some(node) = self.nodes.get_mut(&from) else { return Ok(()) };
        let leaving = match &mut node.adversary {
            Some(adversary) => adversary.outgoing(to, message),
            None => vec![message.clone()],
        };
        for message in leaving {
            self.travel(from, to, &message, lost)?;
        }
        Ok(())
    }

    fn travel(&mut self, from: MemberId, to: MemberId, message: &Message, lost: bool) -> Step {
        self.report.messages += 1;
        let kind = Kind::of(message);
        if let Some(node) = self.nodes.get(&from) {
            let durable = &node.disk.durable;
            self.observer.observe(self.now_us, &Event::Sent { from, to, message, durable })?;
        }
        if !self.is_calm {
            if self.draw_for(kind, |plan| &plan.crash_after) {
                self.doomed.push(from);
            }
            let is_lost = self.random.random_bool(self.plan.loss)
                || self.plan.lossy_links.contains(&(from, to)) && self.draw_for(kind, |plan| &plan.kind_loss);
            if lost || is_lost || self.cut.contains(&(from, to)) {
                return Ok(());
            }
        }
        let copies = if self.random.random_bool(self.plan.duplication) { 2 } else { 1 };
        let bounds = if self.is_calm { (50, 1_000) } else { self.plan.delay_us };
        for _ in 0..copies {
            let delay_us = between(bounds, &mut self.random);
            self.schedule(delay_us, Next::Deliver(from, to, message.encode()));
        }
        Ok(())
    }

    fn deliver(&mut self, from: MemberId, to: MemberId, bytes: &[u8]) -> Step {
        let is_running = self.nodes.get(&to).is_some_and(|node| node.replica.is_some() && !node.halted);
        if !is_running {
            return Ok(());
        }
        let message = Message::decode(bytes).expect("what was encoded can be decoded");
        match self.verifier.verify(message) {
            Ok(message) => {
                self.observe(&Event::Delivered { from, to, message: &message })?;
                let extra = match self.nodes.get_mut(&to).and_then(|node| node.adversary.as_mut()) {
                    Some(adversary) => adversary.incoming(from, &message),
                    None => Vec::new(),
                };
                for (receiver, message) in extra {
                    self.travel(to, receiver, &message, false)?;
                }
                self.step(to, Input::Message(from, message))
            }
            Err(why) if self.nodes.get(&from).is_some_and(Node::is_correct) => {
                let what = format!("sent a message that is refused: {why}");
                self.observe(&Event::InvariantBroken { node: from, what: &what })
            }
            Err(_) => Ok(()),
        }
    }

    // The end.

    /// Whether nothing is left to do: for correct nodes all is answered and equal.
    fn is_settled(&self) -> bool {
        let mut heads = BTreeSet::new();
        for node in self.nodes.values().filter(|node| node.is_correct()) {
            let Some(replica) = &node.replica else { return node.halted };
            let status = replica.status();
            if !node.writes.is_empty()
                || !node.reads.is_empty()
                || status.committed.index != status.executed.index
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
        let skew_ms = self.nodes.get(&id).map_or(0, |node| node.skew_ms);
        let unix_ms = (EPOCH_MS + self.now_us / 1000).saturating_add_signed(skew_ms);
        Now { monotonic_us: self.now_us + 1, unix_ms }
    }
}

fn key(number: u32) -> Bytes {
    format!("key{number}").into()
}

fn membership(scheme: &Scheme) -> Membership {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let members = scheme
        .signers
        .iter()
        .map(|(id, signer)| Member { id: *id, name: format!("node{id}"), key: signer.public_key(), address })
        .collect();
    let genesis = Genesis { name: "sim".to_owned(), protocol: Protocol::BftRaft, created_ms: 0, members };
    genesis.membership().expect("the simulated members form a cluster")
}

fn adversary(lie: &Lie, liar: Liar) -> Box<dyn Adversary> {
    match lie {
        Lie::Equivocate { deceived, shown } => {
            Box::new(EquivocatingLeader::new(liar, deceived.clone(), shown.clone()))
        }
        Lie::Forget { deceived } => Box::new(ForgetfulTermVoter::new(liar, deceived.clone())),
        Lie::VoteTwice => Box::new(DoubleVoter::new(liar)),
        Lie::LowNewTerm => Box::new(LowNewTerm::new(liar)),
        Lie::ReadNothing => Box::new(LyingReader::new(liar, ReadLie::Nothing)),
        Lie::ReadFarAhead => Box::new(LyingReader::new(liar, ReadLie::FarAhead)),
    }
}

/// Who of a seed's members follows the protocol.
pub(crate) fn correct_members(options: &Options, seed: u64) -> BTreeSet<MemberId> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (members, _) = World::about(options);
    let plan = Plan::draw(options.nodes, members.f(), &mut random);
    members.ids().filter(|id| !plan.liars.contains_key(id)).collect()
}
