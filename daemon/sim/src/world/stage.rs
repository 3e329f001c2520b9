//! A world whose events are called from outside, one by one: for stories and for twins.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bftd_core::{ids::MemberId, protocol::Protocol};
use bftd_faults::{Fault, Liar, Sides, Twin};
use bytes::Bytes;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{Next, Step, World};
use crate::{
    Options,
    event::{Observer, Violation},
    plan::{Kind, Plan},
};

impl<'a> World<'a> {
    /// Nothing goes wrong in it but what its director says.
    pub fn staged(
        options: &Options,
        liars: BTreeMap<MemberId, (Fault, u64)>,
        observer: &'a mut dyn Observer,
    ) -> Self {
        Self::with_plan(options, Plan::quiet(liars), ChaCha8Rng::seed_from_u64(0), observer)
    }

    /// Gives a member a twin, and hands over who talks to whom. Time-outs do not double.
    pub fn give_twin(&mut self, me: MemberId) -> Arc<Mutex<Sides>> {
        self.plan.timing.max_timeout_us = self.plan.timing.timeout_us;
        let sides = Arc::default();
        let liar = Liar {
            me,
            members: Arc::clone(&self.members),
            signer: self.members.signer(Arc::clone(&self.scheme.signers[&me])),
            verifier: Arc::clone(&self.verifier),
            timing: self.plan.timing,
        };
        if let Some(node) = self.nodes.get_mut(&me) {
            node.adversary = Some(Box::new(Twin::steered(liar, Arc::clone(&sides))));
        }
        sides
    }

    pub fn stage_begin(&mut self) -> Step {
        self.begin()
    }

    /// Lets time pass.
    pub fn stage_run(&mut self, us: u64) -> Step {
        let end_us = self.now_us + us;
        self.until_time(end_us, |_| false)
    }

    /// Lets time pass until all correct members are in a term of this leader, or it takes too long. Says whether they are.
    pub fn stage_seek(&mut self, leader: MemberId, at_most_us: u64) -> Result<bool, Violation> {
        let end_us = self.now_us + at_most_us;
        self.until_time(end_us, |world| world.is_led_by(leader))?;
        Ok(self.is_led_by(leader))
    }

    fn is_led_by(&self, leader: MemberId) -> bool {
        let mut correct = self.nodes.values().filter(|node| node.is_correct());
        correct.all(|node| node.replica.as_ref().is_some_and(|replica| replica.status().leader == leader))
    }

    fn until_time(&mut self, end_us: u64, mut done: impl FnMut(&Self) -> bool) -> Step {
        let is_due = |queue: &BTreeMap<(u64, u64), Next>| {
            queue.first_key_value().is_some_and(|((at_us, _), _)| *at_us <= end_us)
        };
        while is_due(&self.queue) {
            if done(self) {
                return Ok(());
            }
            let Some(((at_us, _), next)) = self.queue.pop_first() else { break };
            self.now_us = at_us;
            self.happen(next)?;
            while let Some(id) = self.doomed.pop() {
                self.crash(id)?;
            }
        }
        self.now_us = self.now_us.max(end_us);
        Ok(())
    }

    pub fn stage_write(&mut self, id: MemberId, key: &str) -> Step {
        self.write_at(id, Bytes::from(key.to_owned()))
    }

    pub fn stage_read(&mut self, id: MemberId, key: &str) -> Step {
        self.read_at(id, Bytes::from(key.to_owned()))
    }

    /// Has the cluster go over to another protocol.
    pub fn stage_switch(&mut self, id: MemberId, protocol: Protocol) -> Step {
        self.switch_at(id, protocol)
    }

    /// Cuts the links from some members to some others.
    pub fn stage_cut(&mut self, from: &[MemberId], to: &[MemberId]) {
        let links = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
        self.cut.extend(links.filter(|(from, to)| from != to));
    }

    pub fn stage_mend(&mut self) {
        self.cut.clear();
        self.plan.kind_loss.clear();
    }

    /// Loses all messages of a kind from now on, on all links.
    pub fn stage_lose(&mut self, kind: Kind) {
        let ids: Vec<_> = self.members.ids().collect();
        self.plan.lossy_links = ids.iter().flat_map(|from| ids.iter().map(move |to| (*from, *to))).collect();
        self.plan.kind_loss.push((kind, 1.0));
    }

    pub fn stage_crash(&mut self, id: MemberId) -> Step {
        self.crash(id)
    }

    pub fn stage_start(&mut self, id: MemberId) -> Step {
        self.start(id)
    }

    /// Faults stop; then all must get done.
    pub fn stage_end(&mut self) -> Step {
        self.happen(Next::Calm)?;
        self.settle()
    }

    pub fn now_us(&self) -> u64 {
        self.now_us
    }
}
