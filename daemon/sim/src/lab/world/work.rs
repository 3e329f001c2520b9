//! How a member works off what comes to it: verifies, steps its replica, carries out the outputs as the daemon's driver does.

use std::{collections::VecDeque, sync::Arc};

use bftd_core::{
    block::{Block, Request},
    ids::MemberId,
    limits::{MAX_BATCH, MAX_BATCH_REQUESTS},
    message::Message,
    replica::{Input, Output, Replica, Report, To},
    verify::Verified,
};
use bftd_faults::{Content, Parcel};

use super::{
    super::machine::{Held, Item, Mail},
    Event, World,
};

impl World<'_> {
    /// A member works something off, from now on until it is free again.
    pub(super) fn work_off(&mut self, id: MemberId, item: Item) {
        let mut at_ns = self.now_ns;
        let mut inputs = VecDeque::new();
        let is_tick = matches!(item, Item::Tick);
        self.drop(&item);
        match item {
            Item::Mail(mail) => {
                at_ns += self.experiment.costs.message_ns;
                inputs.extend(self.receive(id, &mail, &mut at_ns));
            }
            Item::Request(number, request) => {
                self.machine(id).waiting.push_back((number, request));
            }
            Item::Tick => {
                self.tick_adversary(id, &mut at_ns);
                inputs.push_back(Input::Tick);
            }
            Item::Due => inputs.push_back(Input::Due),
            Item::Synced => {
                let released = self.machine(id).finish_sync();
                // The disk goes on while the messages leave.
                self.begin_sync(id, at_ns);
                for held in released {
                    match held {
                        Held::Send { to, message, is_idle } => {
                            self.send(id, to, &message, is_idle, &mut inputs, &mut at_ns);
                        }
                        Held::Other(output) => self.do_other(id, output, &mut inputs, at_ns),
                    }
                }
            }
        }
        self.carry_out(id, inputs, is_tick, at_ns);
    }

    /// What a replica wants to be done at its start.
    pub(super) fn carry_on(&mut self, id: MemberId) {
        self.carry_out(id, VecDeque::new(), false, self.now_ns);
    }

    /// A message is decoded and verified. Answers with what the replica hears of it.
    fn receive(&mut self, id: MemberId, mail: &Mail, at_ns: &mut u64) -> Option<Input> {
        let from = mail.from;
        let message = match &*mail.content {
            Content::Message(message) => Some(message.clone()),
            Content::Bytes(bytes) => Message::decode(bytes).ok(),
        };
        let machine = self.machine(id);
        let verified = message.and_then(|message| machine.verifier.verify(message).ok());
        self.charge(id, at_ns);
        let Some(message) = verified else {
            self.note_found(id, from);
            return Some(Input::Refused(from, 1));
        };
        let machine = self.machine(id);
        let Some(adversary) = &mut machine.adversary else { return Some(Input::Message(from, message)) };
        let hears = adversary.hears(from, &message);
        let leaving = adversary.incoming(from, &message);
        self.post_lies(id, leaving, None, at_ns);
        hears.then_some(Input::Message(from, message))
    }

    /// A receiver has seen that a message is a lie.
    fn note_found(&mut self, by: MemberId, from: MemberId) {
        if !self.cast.contains_key(&by)
            && let Some(counts) = &mut self.counts
        {
            counts.tally(from).found += 1;
        }
    }

    /// Lets an adversary do what it does as time passes.
    fn tick_adversary(&mut self, id: MemberId, at_ns: &mut u64) {
        let machine = self.machine(id);
        let now = machine.now(*at_ns);
        let leaving = machine.adversary.as_mut().map(|adversary| adversary.tick(now));
        self.post_lies(id, leaving.unwrap_or_default(), None, at_ns);
    }

    /// The time for the signatures that were made and checked since the last time.
    fn charge(&mut self, id: MemberId, at_ns: &mut u64) {
        let work = self.machine(id).meter.take();
        *at_ns += self.experiment.costs.of(work);
        if let Some(counts) = &mut self.counts {
            counts.signed += work.signed;
            counts.verified += work.verified + work.recognised;
        }
    }

    /// Hands inputs to a replica and carries out what it puts out, until nothing is left. As in the daemon, inputs come before the
    /// clients' requests, and each batch of those is under way before the next one is made.
    fn carry_out(&mut self, id: MemberId, mut inputs: VecDeque<Input>, is_tick: bool, mut at_ns: u64) {
        let mut sync_ns = None;
        loop {
            self.step(id, &mut inputs, at_ns);
            self.take_outputs(id, is_tick, &mut inputs, &mut at_ns, &mut sync_ns);
            while let Some(requests) = self.next_batch(id) {
                self.step(id, &mut VecDeque::from([Input::Submit(requests)]), at_ns);
                self.take_outputs(id, is_tick, &mut inputs, &mut at_ns, &mut sync_ns);
            }
            if inputs.is_empty() {
                break;
            }
        }
        self.machine(id).busy_until_ns = at_ns;
        self.begin_sync(id, sync_ns.unwrap_or(at_ns));
        self.schedule_due(id, at_ns);
        self.call_when_free(id);
    }

    fn step(&mut self, id: MemberId, inputs: &mut VecDeque<Input>, at_ns: u64) {
        let machine = self.machine(id);
        let now = machine.now(at_ns);
        for input in inputs.drain(..) {
            if let Some(replica) = &mut machine.replica {
                replica.step(now, input);
            }
        }
    }

    /// The requests of a member's next batch, if its replica has room for one: no more than others take, as the daemon's driver
    /// bounds them. The rest waits.
    fn next_batch(&mut self, id: MemberId) -> Option<Vec<Request>> {
        // What a request costs in a batch beside its bytes, and a batch beside its requests.
        const OVERHEAD: usize = 8;
        let machine = self.machine(id);
        if machine.waiting.is_empty() || !machine.is_running() || !machine.replica.as_ref()?.may_submit() {
            return None;
        }
        let mut bytes = 256;
        let mut requests = Vec::new();
        while let Some((_, next)) = machine.waiting.front() {
            bytes += next.len() + OVERHEAD;
            if requests.len() >= MAX_BATCH_REQUESTS || (bytes > MAX_BATCH && !requests.is_empty()) {
                break;
            }
            if let Some((number, request)) = machine.waiting.pop_front() {
                machine.submitted.push(number);
                requests.push(request);
            }
        }
        Some(requests)
    }

    fn take_outputs(
        &mut self,
        id: MemberId,
        is_tick: bool,
        inputs: &mut VecDeque<Input>,
        at_ns: &mut u64,
        sync_ns: &mut Option<u64>,
    ) {
        let replica = self.machine(id).replica.as_mut();
        let outputs = replica.map(Replica::take_outputs).unwrap_or_default();
        self.charge(id, at_ns);
        if outputs.iter().any(|output| matches!(output, Output::Persist(_))) {
            // Beside what is sent.
            sync_ns.get_or_insert(*at_ns);
        }
        for output in outputs {
            self.take_output(id, output, is_tick, inputs, at_ns);
        }
    }

    fn take_output(
        &mut self,
        id: MemberId,
        output: Output,
        is_tick: bool,
        inputs: &mut VecDeque<Input>,
        at_ns: &mut u64,
    ) {
        let machine = self.machine(id);
        match output {
            Output::Persist(record) => {
                machine.emitted += 1;
                machine.unsynced.push_back(record);
            }
            Output::Send { to, message, after } => {
                let is_idle = is_idle(&message, to, is_tick);
                if after <= machine.synced {
                    self.send(id, to, &message, is_idle, inputs, at_ns);
                } else {
                    machine.held.push_back((after, Held::Send { to, message, is_idle }));
                }
            }
            Output::Numbered { before, now } => {
                let numbers = match before {
                    Some(before) => machine.batches.remove(&before),
                    None => Some(std::mem::take(&mut machine.submitted)),
                };
                machine.batches.insert(now, numbers.unwrap_or_default());
            }
            Output::Report(Report::Ignored(from, _, why)) if why.is_lie() => self.note_found(id, from),
            Output::Report(_) | Output::Readable(_) => {}
            other if machine.emitted <= machine.synced => self.do_other(id, other, inputs, *at_ns),
            other => machine.held.push_back((machine.emitted, Held::Other(other))),
        }
    }

    fn do_other(&mut self, id: MemberId, output: Output, inputs: &mut VecDeque<Input>, mut at_ns: u64) {
        let machine = self.machine(id);
        match output {
            Output::Execute(block) => self.execute(id, &block, inputs, at_ns),
            Output::ServeCommitted { to, after } => {
                if let Some(blocks) = machine.disk.committed_after(after) {
                    self.send_one(id, to, &Message::Blocks(blocks), false, &mut at_ns);
                }
            }
            Output::Halt(halt) => self.stop(id, halt),
            _ => {}
        }
    }

    fn execute(&mut self, id: MemberId, block: &Arc<Block>, inputs: &mut VecDeque<Input>, at_ns: u64) {
        let machine = self.machine(id);
        let (state, _) = machine.state.execute(block);
        inputs.push_back(Input::Executed(block.reference(), state));
        if !self.cast.contains_key(&id) {
            self.history.note(block.reference(), state);
        }
        let machine = self.machine(id);
        let own = block.batches().iter().filter(|batch| batch.origin == id);
        let answered: Vec<_> = own
            .filter_map(|batch| machine.batches.remove(&(batch.incarnation, batch.number)))
            .flatten()
            .collect();
        for number in answered {
            self.answer(number, at_ns);
        }
    }

    fn begin_sync(&mut self, id: MemberId, at_ns: u64) {
        let fsync_ns = self.experiment.costs.fsync_ns;
        let machine = self.machine(id);
        if machine.syncing.is_none() && !machine.unsynced.is_empty() {
            machine.syncing = Some(machine.unsynced.len());
            self.pending += 1;
            self.schedule_at(at_ns + fsync_ns, Event::Synced(id));
        }
    }

    /// Calls the replica again when it wants to be called.
    fn schedule_due(&mut self, id: MemberId, at_ns: u64) {
        let machine = self.machine(id);
        let now = machine.now(at_ns);
        let due_us = machine.replica.as_ref().and_then(Replica::due_us);
        if due_us != std::mem::replace(&mut machine.due_us, due_us)
            && let Some(due_us) = due_us
        {
            self.schedule_at(at_ns + due_us.saturating_sub(now.monotonic_us) * 1_000, Event::Due(id));
        }
    }

    // Sending.

    fn send(
        &mut self,
        from: MemberId,
        to: To,
        message: &Verified<Message>,
        is_idle: bool,
        inputs: &mut VecDeque<Input>,
        at_ns: &mut u64,
    ) {
        match to {
            To::Member(to) if to == from => inputs.push_back(Input::Message(from, message.clone())),
            To::Member(to) => self.send_one(from, to, message, is_idle, at_ns),
            To::Others => {
                let others: Vec<_> = self.members.ids().filter(|id| *id != from).collect();
                if self.machine(from).adversary.is_some() {
                    for to in others {
                        self.send_one(from, to, message, is_idle, at_ns);
                    }
                    return;
                }
                let bytes = message.encode().len() as u64;
                let mail =
                    Mail { from, content: Arc::new(Content::Message(Message::clone(message))), is_idle };
                self.note_correct(from, others.len() as u64, is_idle);
                for to in others {
                    self.post_sized(to, mail.clone(), bytes, at_ns);
                }
            }
        }
    }

    fn send_one(&mut self, from: MemberId, to: MemberId, message: &Message, is_idle: bool, at_ns: &mut u64) {
        let machine = self.machine(from);
        if let Some(adversary) = &mut machine.adversary {
            let leaving = adversary.outgoing(to, message);
            self.post_lies(from, leaving, Some((to, message, is_idle)), at_ns);
            return;
        }
        self.note_correct(from, 1, is_idle);
        let content = Arc::new(Content::Message(message.clone()));
        self.post(to, Mail { from, content, is_idle }, at_ns);
    }

    /// What leaves a liar instead of a message of its honest replica, or of itself.
    fn post_lies(
        &mut self,
        from: MemberId,
        leaving: Vec<Parcel>,
        honest: Option<(MemberId, &Message, bool)>,
        at_ns: &mut u64,
    ) {
        for Parcel { to, content, delay_us } in leaving {
            let is_honest = honest.is_some_and(|(honest_to, message, _)| {
                to == honest_to && matches!(&content, Content::Message(leaving) if leaving == message)
            });
            let is_idle = honest.is_some_and(|(.., is_idle)| is_idle);
            if is_honest {
                self.note_correct(from, 1, is_idle);
            } else if let Some(counts) = &mut self.counts {
                counts.tally(from).corrupt += 1;
            }
            let mail = Mail { from, content: Arc::new(content), is_idle };
            if delay_us == 0 {
                self.post(to, mail, at_ns);
            } else {
                if !mail.is_idle {
                    self.pending += 1;
                }
                self.schedule_at(*at_ns + delay_us * 1_000, Event::Leave(to, mail));
            }
        }
    }

    fn note_correct(&mut self, from: MemberId, messages: u64, is_idle: bool) {
        if let Some(counts) = &mut self.counts
            && !is_idle
        {
            counts.tally(from).correct += messages;
        }
    }
}

/// Whether a cluster at rest sends such a message: heartbeats, and the newest Commit certificate that members show each other in
/// turn.
fn is_idle(message: &Message, to: To, is_tick: bool) -> bool {
    match message {
        Message::Heartbeat(_) => true,
        Message::Certificate(_) => is_tick && matches!(to, To::Member(_)),
        _ => false,
    }
}
