//! What goes wrong: crashes and restarts, links cut and mended; and the calm after it.

use std::{collections::VecDeque, sync::Arc};

use bftd_core::{
    ids::MemberId,
    replica::{Input, Replica, Setup},
};
use rand::RngExt;

use super::{Next, Step, World};
use crate::{event::Event, node::Node, plan::between};

/// How soon a member stops after it was told to: it may hear of the next term, or not.
const STOPS_IN_US: (u64, u64) = (1_000, 400_000);

impl World<'_> {
    pub(super) fn calm(&mut self) -> Step {
        self.is_calm = true;
        self.cut.clear();
        for id in self.leaving.clone() {
            self.stop(id)?;
        }
        let ids: Vec<_> = self.members.ids().collect();
        for id in ids {
            self.start(id)?;
        }
        let correct = self.nodes.values().filter(|node| node.is_correct());
        let term = correct.filter_map(|node| Some(node.replica.as_ref()?.status().term)).max();
        self.observe(&Event::Calm { term: term.unwrap_or_default() })
    }

    pub(super) fn crash(&mut self, id: MemberId) -> Step {
        let sync_made_it = self.random.random_bool(0.5);
        let down_us = between(self.plan.down_us, &mut self.random);
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.replica.is_some()) else { return Ok(()) };
        node.crash(sync_made_it);
        self.leaving.remove(&id);
        self.report.crashes += 1;
        let durable = node.disk.durable.clone();
        self.schedule(down_us, Next::Start(id));
        self.break_connections(id);
        self.observe(&Event::Crashed { node: id, durable: &durable })
    }

    /// An operator tells a member to stop.
    pub(super) fn tell_to_stop(&mut self) -> Step {
        let id = self.next_victim();
        self.leaving.insert(id);
        let in_us = between(STOPS_IN_US, &mut self.random);
        self.schedule(in_us, Next::Stop(id));
        self.step(id, Input::Leave)
    }

    /// Who was told to stop is gone, unless it went before.
    pub(super) fn stop(&mut self, id: MemberId) -> Step {
        if self.leaving.remove(&id) { self.crash(id) } else { Ok(()) }
    }

    pub(super) fn start(&mut self, id: MemberId) -> Step {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.replica.is_none() && !node.halted) else {
            return Ok(());
        };
        if let (true, Some(adversary)) = (node.run > 0, &mut node.adversary) {
            adversary.restart(&mut node.disk.durable);
            node.disk.forget_uncommitted();
        }
        let recovered = node.recover_state(&self.members);
        let durable = node.disk.durable.clone();
        let (correct, restart) = (node.is_correct(), node.run > 0);
        self.observe(&Event::Started { node: id, correct, restart, durable: &durable })?;
        for (block, state) in &recovered {
            self.note_liars_requests(id, block);
            self.observe(&Event::Executed { node: id, block, state: *state })?;
        }
        if correct && let Err(unsound) = durable.check(id, &self.verifier) {
            self.observe(&Event::InvariantBroken { node: id, what: &unsound.to_string() })?;
        }
        let now = self.now(id);
        let setup = Setup {
            me: id,
            members: Arc::clone(&self.members),
            signer: Arc::clone(&self.scheme.signers[&id]),
            timing: self.plan.timing,
            protocol: None,
            one_round: true,
        };
        if let Some(node) = self.nodes.get_mut(&id) {
            let setup = Setup { protocol: node.state.machine.protocol(), ..setup };
            let states = node.state.machine.recent_digests();
            node.replica = Some(Replica::start(setup, durable, states, now));
        }
        self.carry_out(id, VecDeque::new())
    }

    /// Who crashes for no reason.
    pub(super) fn next_victim(&mut self) -> MemberId {
        let leads = |node: &Node| node.replica.as_ref().is_some_and(|it| it.status().leader == node.id);
        let leader = self.nodes.values().find(|node| leads(node)).map(|node| node.id);
        match leader {
            Some(leader) if self.plan.crash_leaders => leader,
            _ => self.any_member(),
        }
    }

    /// Cuts off a node both ways.
    pub(super) fn isolate(&mut self, alone: MemberId) {
        for other in self.members.ids().filter(|id| *id != alone) {
            self.cut.insert((alone, other));
            self.cut.insert((other, alone));
        }
    }

    pub(super) fn cut_links(&mut self) {
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
}
