//! A node's life: its clients, its replica's outputs carried out as the daemon's driver does, its disk, its execution.

use std::{collections::VecDeque, sync::Arc};

use bftd_core::{
    block::Block,
    ids::MemberId,
    kv::{Operation, Outcome},
    message::Message,
    protocol::Protocol,
    replica::{Input, Output, ReadTicket, Replica},
};
use bytes::Bytes;
use rand::RngExt;

use super::{CALM_US, KEYS, Next, Step, World, key};
use crate::{
    event::Event,
    node::{Held, Read},
    plan::between,
};

impl World<'_> {
    pub(super) fn write(&mut self) -> Step {
        let id = self.any_member();
        let key = key(self.random.random_range(0..KEYS));
        self.write_at(id, key)
    }

    /// A client of this member writes a value of its own.
    pub(super) fn write_at(&mut self, id: MemberId, key: Bytes) -> Step {
        let value = Bytes::from((self.next_write + 1).to_string());
        self.submit_at(id, &Operation::put(key, value))
    }

    pub(super) fn submit_at(&mut self, id: MemberId, operation: &Operation) -> Step {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if !node.replica.as_ref().is_some_and(Replica::may_submit) {
            return Ok(());
        }
        let request = operation.encode();
        self.next_write += 1;
        node.submitted = Some(self.next_write);
        self.report.writes += 1;
        self.observe(&Event::Submitted { node: id, write: self.next_write, request: &request })?;
        self.step(id, Input::Submit(vec![request]))
    }

    /// An operator at some member has the cluster go over to another protocol.
    pub(super) fn switch(&mut self) -> Step {
        let id = self.any_member();
        let protocols: Vec<_> = Protocol::switchable().collect();
        let at = self.random.random_range(0..protocols.len());
        self.switch_at(id, protocols[at])
    }

    /// The same, at this member and to this one.
    pub(super) fn switch_at(&mut self, id: MemberId, protocol: Protocol) -> Step {
        self.submit_at(id, &Operation::SetProtocol { protocol })
    }

    pub(super) fn read(&mut self) -> Step {
        let id = self.any_member();
        let key = key(self.random.random_range(0..KEYS));
        self.read_at(id, key)
    }

    /// A client of this member reads.
    pub(super) fn read_at(&mut self, id: MemberId, key: Bytes) -> Step {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.replica.is_some()) else { return Ok(()) };
        self.next_read += 1;
        let ticket = ReadTicket(self.next_read);
        node.reads.insert(ticket, Read { number: self.next_read, key: key.clone() });
        self.report.reads += 1;
        self.observe(&Event::ReadBegun { node: id, read: self.next_read, key: &key })?;
        self.step(id, Input::Read(ticket))
    }

    pub(super) fn step(&mut self, id: MemberId, input: Input) -> Step {
        let now = self.now(id);
        let Some(replica) = self.nodes.get_mut(&id).and_then(|node| node.replica.as_mut()) else {
            return Ok(());
        };
        replica.step(now, input);
        self.carry_out(id, VecDeque::new())
    }

    /// Carries out a node's outputs, and takes the inputs that follow from them, in order, as the daemon's driver does.
    pub(super) fn carry_out(&mut self, id: MemberId, mut inputs: VecDeque<Input>) -> Step {
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
                self.schedule_due(id);
                return Ok(());
            }
        }
    }

    /// Calls the replica again when it wants to be called.
    fn schedule_due(&mut self, id: MemberId) {
        let now_us = self.now(id).monotonic_us;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let due_us = node.replica.as_ref().and_then(Replica::due_us);
        if due_us != std::mem::replace(&mut node.due_us, due_us)
            && let Some(due_us) = due_us
        {
            self.schedule(due_us.saturating_sub(now_us), Next::Due(id));
        }
    }

    pub(super) fn take_output(&mut self, id: MemberId, output: Output, inputs: &mut VecDeque<Input>) -> Step {
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

    pub(super) fn do_other(&mut self, id: MemberId, output: Output, inputs: &mut VecDeque<Input>) -> Step {
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

    pub(super) fn execute_next(&mut self, id: MemberId, run: u64) -> Step {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.run == run) else { return Ok(()) };
        let Some(block) = node.executing.pop_front() else { return Ok(()) };
        let mut inputs = VecDeque::new();
        self.execute(id, &block, &mut inputs)?;
        self.carry_out(id, inputs)
    }

    pub(super) fn execute(&mut self, id: MemberId, block: &Arc<Block>, inputs: &mut VecDeque<Input>) -> Step {
        self.note_liars_requests(id, block);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let (state, outcomes) = node.state.execute(block);
        node.executed = node.executed.max(block.header().index);
        let mut done = Vec::new();
        for (batch, outcomes) in block.batches().iter().zip(outcomes) {
            let write = (batch.origin == id)
                .then(|| node.writes.remove(&(batch.incarnation, batch.number)))
                .flatten();
            for outcome in &outcomes {
                if let Outcome::ProtocolSet { protocol, .. } = outcome {
                    inputs.push_back(Input::Protocol(*protocol));
                }
            }
            if let (Some(write), Some(outcome)) = (write, outcomes.into_iter().next()) {
                done.push((write, outcome));
            }
        }
        inputs.push_back(Input::Executed(block.reference(), state));
        self.report.blocks += 1;
        self.observe(&Event::Executed { node: id, block, state })?;
        for (write, outcome) in done {
            let revision = match &outcome {
                Outcome::Put { revision }
                | Outcome::Deleted { revision, .. }
                | Outcome::Transaction { revision, .. } => *revision,
                _ => continue,
            };
            self.report.acknowledged += 1;
            self.observe(&Event::Acknowledged { node: id, write, revision })?;
            self.answer_write(write, &outcome);
        }
        Ok(())
    }

    pub(super) fn answer_reads(&mut self, id: MemberId, tickets: &[ReadTicket]) -> Step {
        for ticket in tickets {
            let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
            let Some(Read { number, key }) = node.reads.remove(ticket) else { continue };
            let entry = node.state.get(&key);
            let revision = entry.as_ref().map_or(0, |entry| entry.mod_revision);
            let value = entry.as_ref().map(|entry| &entry.value);
            self.observe(&Event::ReadAnswered { node: id, read: number, key: &key, revision, value })?;
            self.answer_read(number, entry.as_ref());
        }
        Ok(())
    }

    pub(super) fn begin_sync(&mut self, id: MemberId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.syncing.is_none() && !node.unsynced.is_empty() {
            node.syncing = Some(node.unsynced.len());
            // When all is calm disks are quick, too: else a short time-out could be shorter than a few syncs.
            let bounds = if self.is_calm { CALM_US } else { self.plan.sync_us };
            let (run, takes_us) = (node.run, between(bounds, &mut self.random));
            self.schedule(takes_us, Next::SyncDone(id, run));
        }
    }

    pub(super) fn sync_done(&mut self, id: MemberId, run: u64) -> Step {
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
}
