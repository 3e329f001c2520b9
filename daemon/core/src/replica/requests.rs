//! Requests on their way into a block: this member's own, and other origins' that the leader has let wait.

use std::sync::Arc;

use super::{
    Replica,
    batches::Own,
    io::{Output, Report, To},
    normal::Ignore,
};
use crate::{
    block::{Batch, Request},
    durable::Record,
    ids::MemberId,
    message::Message,
};

impl Replica {
    pub(super) fn on_submit(&mut self, requests: Vec<Request>) {
        self.submit(requests, None);
        self.propose();
    }

    fn submit(&mut self, requests: Vec<Request>, before: Option<&Own>) {
        let since_us = before.map_or(self.now_us(), |own| own.since_us);
        let (me, cluster) = (self.me(), self.cluster());
        let batch = self.origin.submit(requests, me, cluster, &*self.setup.signer, since_us);
        self.outputs.push(Output::Numbered {
            before: before.map(|own| (own.batch.incarnation, own.batch.number)),
            now: (batch.incarnation, batch.number),
        });
        self.pass_to_leader(batch);
    }

    /// The chain shows a higher incarnation of this member than its own: goes above it, and submits again.
    pub(super) fn raise_incarnation(&mut self) {
        let shown = self.tree.committed_marks().get(self.me()).incarnation;
        let incarnation = shown.max(self.origin.incarnation).next();
        let record = self.persist(Record::Incarnation(incarnation));
        for own in self.origin.restart(incarnation, record) {
            self.submit(own.batch.requests.clone(), Some(&own));
        }
    }

    fn pass_to_leader(&mut self, batch: Arc<Batch>) {
        let leader = self.leader();
        if leader == self.me() {
            self.pool.insert(batch, self.tree.committed_marks());
        } else {
            let after = if batch.origin == self.me() { self.origin.record } else { 0 };
            self.send_after(To::Member(leader), Message::Batch(batch), after);
        }
    }

    pub(super) fn on_batch(&mut self, from: MemberId, batch: &Arc<Batch>) {
        let marks = self.tree.committed_marks();
        if batch.mark() <= marks.get(batch.origin) {
            self.report(Report::Ignored(from, "Batch", Ignore::Committed));
            return;
        }
        if self.leader() == self.me() {
            self.pool.insert(Arc::clone(batch), self.tree.committed_marks());
            self.propose();
        } else if from == batch.origin {
            // The leader has let it wait: it is expected from now on.
            self.expected.insert(batch, marks, self.now.monotonic_us);
            self.pass_to_leader(Arc::clone(batch));
        }
    }

    /// Sends again what is not committed: to the leader, and when it is late to everybody. What others' origins let be
    /// expected goes to the leader again, too: an origin may have died, and what it sent been lost.
    pub(super) fn tick_batches(&mut self) {
        let resend_us = self.setup.timing.resend_us;
        let late_us = self.timeout_us() / 2;
        let now_us = self.now_us();
        let mut again = Vec::new();
        for own in self.origin.iter_mut().filter(|own| own.sent_us + resend_us <= now_us) {
            own.sent_us = now_us;
            again.push((Arc::clone(&own.batch), own.since_us + late_us <= now_us));
        }
        for (batch, is_late) in again {
            if is_late {
                self.send_after(To::Others, Message::Batch(Arc::clone(&batch)), self.origin.record);
            }
            if !is_late || self.leader() == self.me() {
                self.pass_to_leader(batch);
            }
        }
        for batch in self.expected.take_unsent_since(now_us.saturating_sub(resend_us), now_us) {
            self.pass_to_leader(batch);
        }
    }

    /// A new term has a new leader: it gets everything that is still waiting.
    pub(super) fn pass_on_batches(&mut self) {
        let own: Vec<_> = self.origin.iter().map(|own| Arc::clone(&own.batch)).collect();
        let expected: Vec<_> = self.expected.batches().cloned().collect();
        for batch in own.into_iter().chain(expected) {
            self.pass_to_leader(batch);
        }
    }
}
