//! Clients of a run that makes a history: several, each in a closed loop, on few keys, at correct members.
//!
//! A client has no session: a change that it has no answer to is of unknown outcome and not sent again. A question is asked again
//! at another member. What a member can't take (it is down, its batches are all in flight) was never sent: another one is asked.
//!
//! All chance is drawn from a stream of their own, so that a seed's faults are those of its ordinary run.

use bftd_core::{
    block::Block,
    ids::{Index, MemberId},
    kv::{Entry, Operation, Outcome},
    replica::Replica,
};
use rand::{Rng, RngExt, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use super::{Next, Step, World};
use crate::{
    histories::Reads,
    linearizability::{
        Action, Answer, History, Ticket, Workload,
        kv::{to_action, to_answer, to_operation},
    },
    node::Node,
    plan::{Plan, between},
};

/// How many operations a run has at least.
const OPERATIONS: u32 = 200;
/// How soon a client that could not even ask looks for another member.
const LOOKS_AGAIN_US: (u64, u64) = (1_000, 30_000);
/// How soon a client sees that the member it asked is gone.
const BREAKS_US: (u64, u64) = (0, 5_000);
/// Whose operations lying origins ask for.
const NOBODY: u32 = u32::MAX;
/// How much longer the faults last than in an ordinary run.
const MORE_CHAOS_US: u64 = 1_000_000;

/// The clients of a run, and what they saw.
pub(crate) struct Clients {
    random: ChaCha8Rng,
    reads: Reads,
    habits: Habits,
    clients: Vec<Client>,
    /// Operations yet to be begun.
    left: u32,
    history: History,
    /// The highest index that a correct member has executed.
    executed: Index,
    workload: Workload,
}

/// What the clients of a run are like.
struct Habits {
    think_us: (u64, u64),
    patience_us: u64,
    /// How likely a client goes to another member for its next operation.
    wanders: f64,
}

struct Client {
    at: MemberId,
    /// How often it has begun to wait; a wait that ended is not given up later.
    waits: u64,
    asked: Option<Asked>,
}

/// What a client waits for.
struct Asked {
    ticket: Ticket,
    action: Action,
    /// The world's number of the write or read.
    number: u64,
}

impl Clients {
    /// Draws the clients of a run, and prolongs its faults.
    pub fn draw(plan: &mut Plan, members: &[MemberId], reads: Reads, random: &ChaCha8Rng) -> Self {
        let mut random = random.clone();
        random.set_stream(3);
        plan.writes = 0;
        plan.reads = 0;
        plan.chaos_us += MORE_CHAOS_US;
        let correct: Vec<_> = members.iter().copied().filter(|id| !plan.liars.contains_key(id)).collect();
        let count = random.random_range(3..=8_u64);
        // With no waiting at all they would be through when the faults have hardly begun.
        let share_us = plan.chaos_us * count / u64::from(OPERATIONS);
        let habits = Habits {
            think_us: (0, random.random_range(0..=2 * share_us)),
            patience_us: random.random_range(150_000..1_000_000),
            wanders: *[0.0, 0.1, 0.5].choose(&mut random).expect("there are some"),
        };
        let workload = Workload::new(random.next_u64(), "");
        let client = |random: &mut ChaCha8Rng| Client {
            at: *correct.choose(random).expect("most members are correct"),
            waits: 0,
            asked: None,
        };
        let clients = (0..count).map(|_| client(&mut random)).collect();
        Self {
            random,
            reads,
            habits,
            clients,
            left: OPERATIONS,
            history: History::default(),
            executed: Index(0),
            workload,
        }
    }

    /// Whether all operations were begun and came to an end.
    pub fn are_done(&self) -> bool {
        self.left == 0 && self.clients.iter().all(|client| client.asked.is_none())
    }

    pub fn into_history(self) -> History {
        self.history
    }

    /// What a client waits for is answered, if one still does. Says which client.
    fn end(&mut self, number: u64, writes: bool, answer: Answer) -> Option<usize> {
        let waits = |client: &Client| {
            client
                .asked
                .as_ref()
                .is_some_and(|asked| asked.number == number && asked.action.writes() == writes)
        };
        let at = self.clients.iter().position(waits)?;
        let Asked { ticket, action, .. } = self.clients.get_mut(at)?.asked.take()?;
        self.workload.learn(&action, &answer);
        self.history.answer(ticket, answer);
        Some(at)
    }
}

impl World<'_> {
    /// All clients begin.
    pub(super) fn begin_clients(&mut self) {
        for client in 0..self.clients.as_ref().map_or(0, |them| them.clients.len()) {
            self.schedule_turn(client, None);
        }
    }

    /// A client's next turn: in that time, or when it has thought.
    fn schedule_turn(&mut self, client: usize, within_us: Option<(u64, u64)>) {
        let Some(them) = &mut self.clients else { return };
        let in_us = between(within_us.unwrap_or(them.habits.think_us), &mut them.random);
        self.schedule(in_us, Next::Turn(client));
    }

    /// A client begins an operation, or looks for somebody to ask.
    pub(super) fn turn(&mut self, client: usize) -> Step {
        let Some(them) = self.clients.as_mut().filter(|them| them.left > 0) else { return Ok(()) };
        if them.random.random_bool(them.habits.wanders) {
            self.go_elsewhere(client);
        }
        let Some(them) = &mut self.clients else { return Ok(()) };
        let Some(at) = them.clients.get(client).map(|it| it.at) else { return Ok(()) };
        let action = them.workload.draw();
        if !self.takes(at, &action) {
            self.go_elsewhere(client);
            self.schedule_turn(client, Some(LOOKS_AGAIN_US));
            return Ok(());
        }
        let Some(them) = &mut self.clients else { return Ok(()) };
        them.left -= 1;
        let number = u32::try_from(client).unwrap_or(u32::MAX);
        let ticket = them.history.call(number, action.clone());
        self.ask(client, ticket, action)
    }

    fn go_elsewhere(&mut self, client: usize) {
        let correct: Vec<_> =
            self.nodes.values().filter(|node| node.is_correct()).map(|node| node.id).collect();
        let Some(them) = &mut self.clients else { return };
        if let (Some(client), Some(at)) = (them.clients.get_mut(client), correct.choose(&mut them.random)) {
            client.at = *at;
        }
    }

    /// Whether a member takes what is asked of it.
    fn takes(&self, id: MemberId, action: &Action) -> bool {
        let replica = self.nodes.get(&id).and_then(|node| node.replica.as_ref());
        replica.is_some_and(if action.writes() { Replica::may_submit } else { Replica::may_read })
    }

    /// Sends what a member takes, and waits. It may be answered at once.
    fn ask(&mut self, client: usize, ticket: Ticket, action: Action) -> Step {
        let operation = to_operation(&action);
        let number = if operation.is_some() { self.next_write + 1 } else { self.next_read + 1 };
        let key = action.keys().first().map(|key| (*key).clone()).unwrap_or_default();
        let Some(them) = &mut self.clients else { return Ok(()) };
        let patience_us = them.habits.patience_us;
        let Some(it) = them.clients.get_mut(client) else { return Ok(()) };
        it.waits += 1;
        let (waits, at) = (it.waits, it.at);
        it.asked = Some(Asked { ticket, action, number });
        self.schedule(patience_us, Next::GiveUp(client, waits));
        match operation {
            Some(operation) => self.submit_at(at, &operation),
            None if self.clients.as_ref().is_some_and(|them| them.reads == Reads::Local) => {
                let entry = self.nodes.get(&at).and_then(|node| node.state.get(&key));
                self.answer_read(number, entry.as_ref());
                Ok(())
            }
            None => self.read_at(at, key),
        }
    }

    /// A client does not wait any longer.
    pub(super) fn give_up(&mut self, client: usize, waits: u64) -> Step {
        let Some(it) = self.clients.as_mut().and_then(|them| them.clients.get_mut(client)) else {
            return Ok(());
        };
        if it.waits != waits {
            return Ok(());
        }
        let Some(Asked { ticket, action, .. }) = it.asked.take() else { return Ok(()) };
        self.go_elsewhere(client);
        let at = self.clients.as_ref().and_then(|them| them.clients.get(client)).map(|it| it.at);
        if !action.writes() && at.is_some_and(|at| self.takes(at, &action)) {
            return self.ask(client, ticket, action);
        }
        self.schedule_turn(client, None);
        Ok(())
    }

    /// A member has crashed: who waits for it sees that soon.
    pub(super) fn break_connections(&mut self, id: MemberId) {
        let Some(them) = &mut self.clients else { return };
        let is_waiting = |it: &Client| it.at == id && it.asked.is_some();
        let waiting = them.clients.iter().enumerate().filter(|(_, it)| is_waiting(it));
        for (client, waits) in waiting.map(|(at, it)| (at, it.waits)).collect::<Vec<_>>() {
            let Some(them) = &mut self.clients else { return };
            let in_us = between(BREAKS_US, &mut them.random);
            self.schedule(in_us, Next::GiveUp(client, waits));
        }
    }

    /// A correct member is about to execute a block. What a lying origin asked for in it was not asked by any client here: it may copy
    /// what another's client asked, too. These are operations of nobody's, called now at the latest.
    pub(super) fn note_liars_requests(&mut self, id: MemberId, block: &Block) {
        let is_correct = |id: &MemberId| self.nodes.get(id).is_some_and(Node::is_correct);
        if !is_correct(&id) {
            return;
        }
        let theirs: Vec<_> = block.batches().iter().filter(|batch| !is_correct(&batch.origin)).collect();
        let Some(them) = self.clients.as_mut().filter(|them| them.executed < block.header().index) else {
            return;
        };
        them.executed = block.header().index;
        for request in theirs.iter().flat_map(|batch| &batch.requests) {
            let action = Operation::decode(request).ok().and_then(|operation| to_action(&operation));
            if let Some(action) = action {
                them.history.call(NOBODY, action);
            }
        }
    }

    /// A write of this number was executed where it was asked for.
    pub(super) fn answer_write(&mut self, number: u64, outcome: &Outcome) {
        let Some(answer) = to_answer(outcome) else { return };
        self.answer_client(number, true, answer);
    }

    /// A read of this number was answered.
    pub(super) fn answer_read(&mut self, number: u64, entry: Option<&Entry>) {
        self.answer_client(number, false, Answer::Found(entry.map(|entry| entry.value.clone())));
    }

    fn answer_client(&mut self, number: u64, writes: bool, answer: Answer) {
        let client = self.clients.as_mut().and_then(|them| them.end(number, writes, answer));
        if let Some(client) = client {
            self.schedule_turn(client, None);
        }
    }
}
