//! The world of a run: virtual time, members that work, messages on their way, clients.
//!
//! Everything happens in the order of one queue, whose ties are broken by the order of scheduling, and all chance comes from one
//! generator. What is under way is counted ([`World::pending`]), so that it is known when nothing is.

mod correct;
mod history;
#[cfg(test)]
mod tests;
mod work;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
};

use bftd_core::{
    block::Request,
    durable::Durable,
    ids::{MemberId, Now},
    kv::Operation,
    membership::Membership,
    replica::{Halt, Replica, Setup},
    verify::Verifier,
};
use bftd_faults::{Content, Fault, Liar, adversary};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::time::{ClockId, clock_gettime};

use self::history::History;
use super::{
    Experiment, Misconduct,
    cost::{Counted, CountedCheck, Meter},
    machine::{Item, Machine, Mail},
    network::Links,
    report::{ConsensusTime, Counts, Report, by_misconduct},
};
use crate::{node::State, scheme::Scheme};

/// How many time-outs the first block may take, and how many the last member may lag behind at the end.
const PATIENCE: u64 = 20;

/// Something that is going to happen.
enum Event {
    Arrive(MemberId, Mail),
    /// A liar has held this back until now.
    Leave(MemberId, Mail),
    Request(MemberId, u32, Request),
    /// A member is free again, and something waits.
    Free(MemberId),
    Tick(MemberId),
    Due(MemberId),
    Synced(MemberId),
}

struct Scheduled {
    at_ns: u64,
    number: u64,
    event: Event,
}

pub(super) struct World<'a> {
    experiment: &'a Experiment,
    cast: BTreeMap<MemberId, Misconduct>,
    progress: &'a dyn Fn(),
    timing: bftd_core::limits::Timing,
    members: Arc<Membership>,
    scheme: Scheme,
    random: ChaCha8Rng,
    now_ns: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    links: Links,
    /// In the order of their ids, which begin with 1.
    machines: Vec<Machine>,
    /// What is under way but for what a cluster at rest does, too: messages, syncs, requests.
    pending: u64,
    counts: Option<Counts>,
    clients: Clients,
    history: History,
}

/// Who asks for what.
#[derive(Default)]
struct Clients {
    /// When each request began.
    begun_ns: Vec<u64>,
    answered: u32,
    /// When the last one was answered.
    answered_ns: u64,
    /// The member that was asked last.
    asked: usize,
}

impl<'a> World<'a> {
    pub fn new(
        experiment: &'a Experiment,
        cast: BTreeMap<MemberId, Misconduct>,
        progress: &'a dyn Fn(),
    ) -> Self {
        let scheme = Scheme::new(experiment.nodes, false);
        let members = Arc::new(scheme.membership("lab", experiment.protocol));
        Self {
            experiment,
            cast,
            progress,
            timing: experiment.timing(),
            members,
            scheme,
            random: ChaCha8Rng::seed_from_u64(experiment.seed),
            now_ns: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            links: Links::new(experiment.network.clone()),
            machines: Vec::new(),
            pending: 0,
            counts: None,
            clients: Clients::default(),
            history: History::default(),
        }
    }

    pub fn run(mut self) -> Report {
        let began = cpu_seconds();
        self.warm_up();
        self.begin_faults();
        let report = self.measure();
        Report { cpu_seconds: cpu_seconds() - began, ..report }
    }

    // The parts of a run.

    /// Without faults, and nothing is counted.
    fn warm_up(&mut self) {
        self.begin();
        self.until(PATIENCE * self.timing.timeout_us * 1_000, |world| world.is_warm());
    }

    /// All requests, and what comes after them.
    fn measure(mut self) -> Report {
        let first = self.height();
        self.counts = Some(Counts::default());
        let started_ns = self.now_ns;
        self.ask_all();
        let ended_ns = self.clients.answered_ns.max(started_ns);
        self.until(PATIENCE * self.timing.timeout_us * 1_000, |world| world.is_level());
        let virtual_seconds = (ended_ns - started_ns) as f64 / 1e9;
        let blocks = self.height().saturating_sub(first);
        self.report(virtual_seconds, blocks)
    }

    fn begin(&mut self) {
        let ids: Vec<_> = self.members.ids().collect();
        for id in ids {
            let meter = Arc::new(Meter::default());
            let plain = Arc::clone(&self.scheme.signers[&id]);
            let signer = |recognises| {
                Arc::new(Counted { inner: Arc::clone(&plain), meter: Arc::clone(&meter), recognises })
            };
            let check =
                Arc::new(CountedCheck { inner: Arc::clone(&self.scheme.check), meter: Arc::clone(&meter) });
            let verifier = Verifier::new(Arc::clone(&self.members), check).with_own(id, signer(true));
            let setup = Setup {
                me: id,
                members: Arc::clone(&self.members),
                signer: signer(false),
                timing: self.timing,
                protocol: None,
                one_round: self.experiment.one_round,
            };
            let state = State::new(&self.members);
            let now = Now { monotonic_us: 1, unix_ms: 0 };
            let replica = Replica::start(setup, Durable::default(), state.machine.recent_digests(), now);
            let machine = Machine::new(id, &self.members, replica, verifier, meter, state);
            self.machines.push(machine);
        }
        let ids: Vec<_> = self.members.ids().collect();
        for id in ids {
            self.carry_on(id);
            let phase_ns = self.random.random_range(0..self.timing.tick_us * 1_000);
            self.schedule(phase_ns, Event::Tick(id));
        }
    }

    /// Whether the first block is committed everywhere, and nothing is under way.
    fn is_warm(&self) -> bool {
        self.pending == 0 && self.is_level() && self.height() > 0
    }

    /// From now on the faulty ones are faulty.
    fn begin_faults(&mut self) {
        for (id, how) in self.cast.clone() {
            let seed = self.random.random();
            let Some(fault) = how.lie() else {
                self.machine(id).go_offline();
                continue;
            };
            self.corrupt(id, fault, seed);
        }
    }

    fn corrupt(&mut self, id: MemberId, fault: Fault, seed: u64) {
        let verifier = Verifier::new(Arc::clone(&self.members), Arc::clone(&self.scheme.check));
        let liar = Liar {
            me: id,
            members: Arc::clone(&self.members),
            signer: Arc::clone(&self.scheme.signers[&id]),
            verifier: Arc::new(verifier),
            timing: self.timing,
        };
        self.machine(id).adversary = Some(adversary(fault, liar, seed));
    }

    /// All requests, until they are answered or there is no progress.
    fn ask_all(&mut self) {
        self.clients.answered_ns = self.now_ns;
        let stuck_ns = self.stuck_ns();
        for _ in 0..self.experiment.clients.min(self.experiment.requests) {
            self.ask(self.now_ns);
        }
        while self.clients.answered < self.experiment.requests {
            let next_ns = self.queue.peek().map_or(self.now_ns, |next| next.0.at_ns);
            if next_ns > self.clients.answered_ns + stuck_ns || !self.happen_next() {
                return;
            }
            if self.experiment.clients == 1 && self.may_ask_next() {
                let idle_ns = self.machines.iter().map(|machine| machine.busy_until_ns).max();
                self.ask(self.now_ns.max(idle_ns.unwrap_or_default()));
            }
        }
    }

    /// For a single client: whether its request is answered and nothing of it is under way any more, or only what lies about.
    fn may_ask_next(&self) -> bool {
        let Clients { begun_ns, answered, answered_ns, .. } = &self.clients;
        let all_answered = begun_ns.len() == *answered as usize;
        let is_long_ago = self.now_ns > answered_ns + self.timing.resend_us * 1_000;
        all_answered && *answered < self.experiment.requests && (self.pending == 0 || is_long_ago)
    }

    /// For how long nothing is answered when nothing will be: so long that each faulty member may have led in vain.
    fn stuck_ns(&self) -> u64 {
        let timing = &self.timing;
        let terms = (1..=self.members.f() as u32 + 1)
            .map(|failed| timing.timeout_us.saturating_mul(1 << failed.min(20)).min(timing.max_timeout_us));
        2_000 * (terms.sum::<u64>() + PATIENCE * timing.timeout_us)
    }

    /// A client asks a correct member that does not lead. Where all have stopped nobody hears it.
    fn ask(&mut self, at_ns: u64) {
        let number = self.clients.begun_ns.len() as u32;
        let leader = self.leader();
        let n = self.machines.len();
        let in_turn = (1..=n).map(|step| (self.clients.asked + step) % n);
        let is_correct = |it: &Machine| it.is_running() && !self.cast.contains_key(&it.id);
        let correct = |at: &usize| self.machines.get(*at).is_some_and(is_correct);
        let mut correct = in_turn.filter(correct).peekable();
        let any = correct.peek().copied();
        let at = correct.find(|at| self.machines.get(*at).is_some_and(|it| Some(it.id) != leader));
        self.clients.begun_ns.push(at_ns);
        let Some(at) = at.or(any) else { return };
        self.clients.asked = at;
        let Some(id) = self.machines.get(at).map(|machine| machine.id) else { return };
        let key = format!("lab/{number}").into();
        let value = vec![b'x'; self.experiment.value_size].into();
        let request = Operation::put(key, value).encode();
        self.pending += 1;
        self.schedule_at(at_ns, Event::Request(id, number, request));
    }

    /// A request is executed at the member that was asked.
    fn answer(&mut self, number: u32, at_ns: u64) {
        let begun_ns = self.clients.begun_ns.get(number as usize).copied().unwrap_or(at_ns);
        self.clients.answered += 1;
        self.clients.answered_ns = self.clients.answered_ns.max(at_ns);
        if let Some(counts) = &mut self.counts {
            counts.times_ns.push(at_ns.saturating_sub(begun_ns));
        }
        (self.progress)();
        let is_more = self.clients.begun_ns.len() < self.experiment.requests as usize;
        if self.experiment.clients > 1 && is_more {
            self.ask(at_ns);
        }
    }

    fn report(self, virtual_seconds: f64, blocks: u64) -> Report {
        let Experiment { protocol, nodes, seed, clients, requests, value_size, .. } = *self.experiment;
        let (term_changes, evidence) = (self.term(), self.evidence());
        let (lagging, stopped) = (self.lagging(), self.stopped());
        let disagreement_at = self.history.parted_at().map(|index| index.0);
        let faulty_members = by_misconduct(&self.cast);
        let mut counts = self.counts.unwrap_or_default();
        let committed = counts.times_ns.len();
        let each = |total: u64| (committed > 0).then_some(total as f64 / committed as f64);
        let tallies = self.machines.iter().map(|machine| *counts.tally(machine.id)).collect();
        Report {
            protocol,
            nodes,
            f: self.members.f(),
            quorum: self.members.quorum(),
            one_round: self.experiment.one_round,
            faulty: faulty_members.iter().map(|(how, ids)| (*how, ids.len())).collect(),
            faulty_members,
            faulty_leader: self.experiment.faulty_leader,
            beyond_f: self.experiment.beyond_f,
            seed,
            clients,
            requests,
            value_size,
            network: self.experiment.network.clone(),
            costs: self.experiment.costs,
            committed: committed as u32,
            blocks,
            agreement: disagreement_at.is_none(),
            disagreement_at,
            lagging,
            stopped,
            delays: None,
            consensus_time_ms: ConsensusTime::of(&mut counts.times_ns),
            messages_per_commit: each(counts.messages),
            bytes_per_commit: each(counts.bytes),
            messages_by_kind: counts.by_kind,
            messages: counts.messages,
            idle_messages: counts.idle,
            signatures_per_commit: each(counts.signed),
            verifications_per_commit: each(counts.verified),
            term_changes,
            evidence,
            virtual_seconds,
            cpu_seconds: 0.0,
            nodes_tally: tallies,
        }
    }

    // Time.

    /// Lets things happen until `done` holds, or it takes too long.
    fn until(&mut self, at_most_ns: u64, done: impl Fn(&Self) -> bool) {
        let end_ns = self.now_ns + at_most_ns;
        while self.now_ns < end_ns && !(self.pending == 0 && done(self)) && self.happen_next() {}
    }

    fn happen_next(&mut self) -> bool {
        let Some(Reverse(Scheduled { at_ns, event, .. })) = self.queue.pop() else { return false };
        self.now_ns = at_ns;
        match event {
            Event::Arrive(id, mail) => self.take(id, Item::Mail(mail)),
            Event::Leave(to, mail) => {
                self.settle(&mail);
                let mut at_ns = at_ns;
                self.post(to, mail, &mut at_ns);
            }
            Event::Request(id, number, request) => self.take(id, Item::Request(number, request)),
            Event::Free(id) => {
                self.machine(id).is_called = false;
                if let Some(item) = self.machine(id).inbox.pop_front() {
                    self.work_off(id, item);
                }
                self.call_when_free(id);
            }
            Event::Tick(id) => {
                self.schedule(self.timing.tick_us * 1_000, Event::Tick(id));
                self.take(id, Item::Tick);
            }
            Event::Due(id) => self.take(id, Item::Due),
            Event::Synced(id) => self.take(id, Item::Synced),
        }
        true
    }

    /// Something comes to a member: it is worked off at once, or when what came before it is.
    fn take(&mut self, id: MemberId, item: Item) {
        let now_ns = self.now_ns;
        let machine = self.machine(id);
        if !machine.is_running() {
            self.drop(&item);
        } else if machine.busy_until_ns <= now_ns && machine.inbox.is_empty() {
            self.work_off(id, item);
        } else {
            match item {
                // As in the daemon, whose driver looks at what became durable before it looks at anything else.
                Item::Synced => machine.inbox.push_front(item),
                _ => machine.inbox.push_back(item),
            }
            self.call_when_free(id);
        }
    }

    fn call_when_free(&mut self, id: MemberId) {
        let machine = self.machine(id);
        if !machine.is_called && !machine.inbox.is_empty() {
            machine.is_called = true;
            let at_ns = machine.busy_until_ns;
            self.schedule_at(at_ns, Event::Free(id));
        }
    }

    /// A member does nothing any more, as a daemon that has ended.
    fn stop(&mut self, id: MemberId, halt: Halt) {
        let machine = self.machine(id);
        machine.halted = Some(halt);
        let inbox = std::mem::take(&mut machine.inbox);
        inbox.iter().for_each(|item| self.drop(item));
    }

    /// Nothing will come of this any more.
    fn drop(&mut self, item: &Item) {
        match item {
            Item::Mail(mail) => self.settle(mail),
            Item::Request(..) | Item::Synced => self.pending -= 1,
            Item::Tick | Item::Due => {}
        }
    }

    /// A message is on its way no more.
    fn settle(&mut self, mail: &Mail) {
        if !mail.is_idle {
            self.pending -= 1;
        }
    }

    /// A message is handed to the sender's line.
    fn post(&mut self, to: MemberId, mail: Mail, at_ns: &mut u64) {
        let bytes = match &*mail.content {
            Content::Message(message) => message.encode().len(),
            Content::Bytes(bytes) => bytes.len(),
        };
        self.post_sized(to, mail, bytes as u64, at_ns);
    }

    fn post_sized(&mut self, to: MemberId, mail: Mail, bytes: u64, at_ns: &mut u64) {
        *at_ns += self.experiment.costs.message_ns;
        if let Some(counts) = &mut self.counts {
            if mail.is_idle {
                counts.idle += 1;
            } else {
                counts.messages += 1;
                counts.bytes += bytes;
                *counts.by_kind.entry(kind(&mail.content)).or_default() += 1;
            }
        }
        if !mail.is_idle {
            self.pending += 1;
        }
        let is_bulk = match &*mail.content {
            Content::Message(message) => message.is_bulk(),
            Content::Bytes(_) => false,
        };
        let passage = self.links.pass(mail.from, to, bytes, is_bulk, *at_ns, &mut self.random);
        if let Some(counts) = &mut self.counts
            && !mail.is_idle
        {
            counts.bytes += passage.resent;
        }
        self.schedule_at(passage.arrival_ns, Event::Arrive(to, mail));
    }

    fn schedule(&mut self, in_ns: u64, event: Event) {
        self.schedule_at(self.now_ns + in_ns, event);
    }

    fn schedule_at(&mut self, at_ns: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled { at_ns, number: self.scheduled, event }));
    }

    fn machine(&mut self, id: MemberId) -> &mut Machine {
        self.machines.get_mut(usize::from(id.0) - 1).expect("every member has a machine")
    }
}

/// What a message is called in the counts.
fn kind(content: &Content) -> &'static str {
    use bftd_core::{ballot::BallotKind, message::Message};
    match content {
        Content::Message(Message::Vote(vote)) => match vote.ballot.kind.mark() {
            BallotKind::Commit => "CommitVote",
            _ => "PrepareVote",
        },
        Content::Message(message) => message.name(),
        Content::Bytes(_) => "Rubbish",
    }
}

/// What this thread has used of a processor.
fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ns, self.number).cmp(&(other.at_ns, other.number))
    }
}
