//! A message's way: past the sender's adversary, through loss and delay, to the receiver's verifier.

use std::collections::VecDeque;

use bftd_core::{
    ids::MemberId,
    limits::MAX_MESSAGE,
    message::Message,
    replica::{Input, To},
    verify::Verified,
};
use bftd_faults::{Content, Parcel};
use rand::RngExt;

use super::{CALM_US, ISOLATED_US, Next, STRAGGLING_US, Step, World};
use crate::{
    event::Event,
    node::Node,
    plan::{Kind, Plan, between},
};

impl World<'_> {
    pub(super) fn send(
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

    pub(super) fn is_partial(&mut self, kind: Kind) -> bool {
        !self.is_calm && self.draw_for(kind, |plan| &plan.partial)
    }

    /// Whether what the plan says of a kind of message happens now.
    pub(super) fn draw_for(&mut self, kind: Kind, which: impl Fn(&Plan) -> &Vec<(Kind, f64)>) -> bool {
        let chance = which(&self.plan).iter().find(|(of, _)| *of == kind).map(|(_, chance)| *chance);
        chance.is_some_and(|chance| self.random.random_bool(chance))
    }

    pub(super) fn leave(&mut self, from: MemberId, to: MemberId, message: &Message, lost: bool) -> Step {
        let Some(node) = self.nodes.get_mut(&from) else { return Ok(()) };
        let leaving = match &mut node.adversary {
            Some(adversary) => adversary.outgoing(to, message),
            None => vec![Parcel::now(to, message.clone())],
        };
        self.post(from, leaving, lost)
    }

    /// Lets an adversary do what it does as time passes.
    pub(super) fn tick_adversary(&mut self, id: MemberId) -> Step {
        let now = self.now(id);
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.replica.is_some()) else { return Ok(()) };
        let leaving = node.adversary.as_mut().map_or_else(Vec::new, |adversary| adversary.tick(now));
        self.post(id, leaving, false)
    }

    fn post(&mut self, from: MemberId, leaving: Vec<Parcel>, lost: bool) -> Step {
        for Parcel { to, content, delay_us } in leaving {
            match content {
                Content::Message(message) => self.travel(from, to, &message, delay_us, lost)?,
                Content::Bytes(bytes) => self.travel_as_bytes(from, to, bytes, delay_us),
            }
        }
        Ok(())
    }

    fn travel(&mut self, from: MemberId, to: MemberId, message: &Message, held_us: u64, lost: bool) -> Step {
        let kind = Kind::of(message);
        if let Some(node) = self.nodes.get(&from) {
            let durable = &node.disk.durable;
            self.observer.observe(self.now_us, &Event::Sent { from, to, message, durable })?;
        }
        if !self.is_calm {
            if self.draw_for(kind, |plan| &plan.crash_after) {
                self.doomed.push(from);
            }
            if self.plan.lossy_links.contains(&(from, to)) && self.draw_for(kind, |plan| &plan.kind_loss)
                || lost
            {
                self.report.messages += 1;
                return Ok(());
            }
        }
        self.travel_as_bytes(from, to, message.encode(), held_us);
        Ok(())
    }

    fn travel_as_bytes(&mut self, from: MemberId, to: MemberId, bytes: Vec<u8>, held_us: u64) {
        self.report.messages += 1;
        // No transport lets a frame through that is larger than any message.
        if bytes.len() > MAX_MESSAGE {
            self.report.refused += 1;
            return;
        }
        if !self.is_calm && (self.random.random_bool(self.plan.loss) || self.cut.contains(&(from, to))) {
            return;
        }
        let copies = if self.random.random_bool(self.plan.duplication) { 2 } else { 1 };
        let bounds = if self.is_calm { CALM_US } else { self.plan.delay_us };
        for _ in 0..copies {
            let mut delay_us = held_us + between(bounds, &mut self.random);
            if !self.is_calm && self.random.random_bool(self.plan.straggling) {
                delay_us += between(STRAGGLING_US, &mut self.random);
            }
            self.schedule(delay_us, Next::Deliver(from, to, bytes.clone()));
        }
    }

    pub(super) fn deliver(&mut self, from: MemberId, to: MemberId, bytes: &[u8]) -> Step {
        let is_running = self.nodes.get(&to).is_some_and(|node| node.replica.is_some() && !node.halted);
        if !is_running {
            return Ok(());
        }
        let message = match Message::decode(bytes) {
            Ok(message) => message,
            Err(why) => return self.refuse(from, to, &why.to_string()),
        };
        let message = match self.verifier.verify(message) {
            Ok(message) => message,
            Err(why) => return self.refuse(from, to, &why.to_string()),
        };
        self.observe(&Event::Delivered { from, to, message: &message })?;
        let Some(node) = self.nodes.get_mut(&to) else { return Ok(()) };
        let mut hears = true;
        if let Some(adversary) = &mut node.adversary {
            hears = adversary.hears(from, &message);
            let leaving = adversary.incoming(from, &message);
            self.post(to, leaving, false)?;
        }
        if hears { self.step(to, Input::Message(from, message)) } else { Ok(()) }
    }

    /// A message is of no use: who sent it is a liar, or there is a bug.
    fn refuse(&mut self, from: MemberId, to: MemberId, why: &str) -> Step {
        self.report.refused += 1;
        if !self.nodes.get(&from).is_some_and(Node::is_correct) {
            return self.step(to, Input::Refused(from, 1));
        }
        let what = format!("sent a message that is refused: {why}");
        self.observe(&Event::InvariantBroken { node: from, what: &what })
    }
}
