//! A message's way: past the sender's adversary, through loss and delay, to the receiver's verifier.

use std::collections::VecDeque;

use bftd_core::{
    ids::MemberId,
    message::Message,
    replica::{Input, To},
    verify::Verified,
};
use rand::RngExt;

use super::{ISOLATED_US, Next, STRAGGLING_US, Step, World};
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
            None => vec![message.clone()],
        };
        for message in leaving {
            self.travel(from, to, &message, lost)?;
        }
        Ok(())
    }

    pub(super) fn travel(&mut self, from: MemberId, to: MemberId, message: &Message, lost: bool) -> Step {
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
            let mut delay_us = between(bounds, &mut self.random);
            if !self.is_calm && self.random.random_bool(self.plan.straggling) {
                delay_us += between(STRAGGLING_US, &mut self.random);
            }
            self.schedule(delay_us, Next::Deliver(from, to, message.encode()));
        }
        Ok(())
    }

    pub(super) fn deliver(&mut self, from: MemberId, to: MemberId, bytes: &[u8]) -> Step {
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
}
