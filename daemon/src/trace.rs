//! What one agreement took, as this daemon saw it: the phases of the batches that a client asked to trace.
//!
//! Rules:
//! 1. The [`Tracer`] is shown what the driver sees anyway, each on the driver's own clock: the numbering of batches, records
//!    as they are emitted and become durable, blocks as they are handed to execution and executed. Nothing is asked of
//!    other members, so what does not pass here (a Prepare certificate that a follower never saw) has no phase. None is
//!    ever invented.
//! 2. A certificate for a block further up the chain certifies the traced block too. Its phase names the block that was voted for.
//! 3. A batch may stand in several blocks, one after the other, when terms change: each has its phases, in the order of time. A
//!    batch that is numbered anew was in no block of this run: whatever stood under its old number was not it.
//! 4. When nobody traces, all this costs the driver a branch an output. At most [`TRACED`] are followed at once; more are
//!    carried out all the same, and answered without a trace: a write is worth more than its trace.

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Instant};

use bftd_client::protocol::{BlockAt, Phase, Step};
use bftd_core::{
    block::{Block, BlockRef},
    certificate::Certificate,
    crypto::Digest,
    durable::Record,
    ids::MemberId,
    membership::Membership,
    replica::Output,
};
use tokio::sync::oneshot;

use crate::execute::Numbered;

/// How many requests are traced at once. Those of clients that have gone away make room for others.
pub const TRACED: usize = 16;
/// How many phases of one are kept. The oldest that speak of blocks give way.
const PHASES: usize = 32;
/// How many blocks above a traced one are known as such; certificates for those beyond count no longer. More than the window.
const ABOVE: usize = 64;

/// Somebody wants to know what a request takes.
#[derive(Debug)]
pub struct Asked {
    /// When the request came.
    pub since: Instant,
    /// Where the phases go when it is executed. Dropped when it is not followed.
    pub answer: oneshot::Sender<Vec<Phase>>,
}

/// Follows the traced batches of this member. See the module's header.
#[derive(Debug)]
pub struct Tracer {
    me: MemberId,
    members: Arc<Membership>,
    /// Those in the batch that was submitted last, until it has a number. With `followed` at most [`TRACED`].
    submitted: Vec<Asked>,
    followed: Vec<Followed>,
}

#[derive(Debug)]
struct Followed {
    asked: Asked,
    batch: Numbered,
    /// In the order of time; at most [`PHASES`].
    phases: Vec<Phase>,
    /// The newest block with the batch that is here, and those seen above it; at most [`ABOVE`] more.
    chain: Vec<Digest>,
    /// What was noted of this chain already, by step and term. Bounded as the chain is.
    noted: Vec<(Step, u64)>,
    /// The record that holds that block, until it is durable.
    record: Option<u64>,
    /// The block that is final, and waits for its execution.
    executing: Option<BlockRef>,
}

impl Tracer {
    /// A tracer that follows nothing.
    pub fn new(me: MemberId, members: Arc<Membership>) -> Self {
        Self { me, members, submitted: Vec::new(), followed: Vec::new() }
    }

    /// Whether anything is followed: else nothing needs to be shown.
    pub fn is_active(&self) -> bool {
        !self.followed.is_empty() || !self.submitted.is_empty()
    }

    /// A traced request goes into the batch that is submitted next.
    pub fn submit(&mut self, asked: Asked) {
        let count = |tracer: &Self| tracer.followed.len() + tracer.submitted.len();
        if count(self) >= TRACED {
            self.followed.retain(|followed| !followed.asked.answer.is_closed());
        }
        if count(self) < TRACED {
            self.submitted.push(asked);
        }
    }

    /// The replica has an output. `number` is the record's, if it is one.
    pub fn see(&mut self, output: &Output, number: u64, now: Instant) {
        match output {
            Output::Numbered { before: None, now: batch } => {
                let new = self.submitted.drain(..).map(|asked| Followed::new(asked, *batch, now));
                self.followed.extend(new);
            }
            Output::Numbered { before: Some(before), now: batch } => {
                for followed in self.followed.iter_mut().filter(|followed| followed.batch == *before) {
                    followed.renumber(*batch, now);
                }
            }
            Output::Persist(record) => self.see_record(record, number, now),
            Output::Execute(block) => {
                for followed in &mut self.followed {
                    if followed.executing.is_none() && followed.is_in(block, self.me) {
                        followed.executing = Some(block.reference());
                    }
                }
            }
            Output::Send { .. }
            | Output::Readable(_)
            | Output::ServeCommitted { .. }
            | Output::Report(_)
            | Output::Halt(_) => {}
        }
    }

    fn see_record(&mut self, record: &Record, number: u64, now: Instant) {
        let (me, members) = (self.me, &self.members);
        let at = |block: BlockRef| BlockAt {
            index: block.index.0,
            term: block.term.0,
            leader: members.leader(block.term).0,
        };
        for followed in &mut self.followed {
            match record {
                Record::Block(block) => followed.see_block(block, number, me),
                Record::Accepted(accepted) if followed.is_certified_by(accepted.tip) => {
                    let is_own = members.leader(accepted.tip.term) == me;
                    let step = if is_own { Step::Proposed } else { Step::Accepted };
                    followed.note_once(step, now, at(accepted.tip), vec![]);
                }
                Record::Position(certificate)
                    if !certificate.is_commit()
                        && !certificate.signatures.is_empty()
                        && followed.is_certified_by(certificate.block()) =>
                {
                    followed.note_once(Step::Prepared, now, at(certificate.block()), voters(certificate));
                }
                // It comes right after the blocks that it makes final.
                Record::Committed(committed) if followed.executing.is_some() => {
                    let certificate = &committed.certificate;
                    followed.note_once(Step::Committed, now, at(certificate.block()), voters(certificate));
                }
                _ => {}
            }
        }
    }

    /// The log is durable up to this record.
    pub fn see_durable(&mut self, durable: u64, now: Instant) {
        for followed in &mut self.followed {
            if followed.record.take_if(|record| *record <= durable).is_some() {
                followed.note(Step::Durable, now, None, vec![]);
            }
        }
    }

    /// A block is executed: whoever waited for a trace that ends with it gets it.
    pub fn see_executed(&mut self, block: BlockRef, now: Instant) {
        for mut followed in self.followed.extract_if(.., |followed| followed.executing == Some(block)) {
            followed.note(Step::Executed, now, None, vec![]);
            // A client that has gone away doesn't want to know.
            let _ = followed.asked.answer.send(followed.phases);
        }
    }
}

impl Followed {
    fn new(asked: Asked, batch: Numbered, now: Instant) -> Self {
        let (phases, chain, noted) = (Vec::new(), Vec::new(), Vec::new());
        let mut new = Self { asked, batch, phases, chain, noted, record: None, executing: None };
        new.note(Step::Submitted, now, None, vec![]);
        new
    }

    fn renumber(&mut self, batch: Numbered, now: Instant) {
        self.batch = batch;
        self.phases.retain(|phase| matches!(phase.step, Step::Submitted | Step::Renumbered));
        self.chain.clear();
        self.noted.clear();
        (self.record, self.executing) = (None, None);
        self.note(Step::Renumbered, now, None, vec![]);
    }

    fn is_in(&self, block: &Block, me: MemberId) -> bool {
        let is_it = |origin, numbered| origin == me && numbered == self.batch;
        block.batches().iter().any(|batch| is_it(batch.origin, (batch.incarnation, batch.number)))
    }

    fn see_block(&mut self, block: &Block, number: u64, me: MemberId) {
        if self.is_in(block, me) {
            self.chain = vec![block.digest()];
            self.noted.clear();
            self.record = Some(number);
        } else if self.chain.contains(&block.header().parent) && self.chain.len() <= ABOVE {
            self.chain.push(block.digest());
        }
    }

    /// Whether what is said of a block is said of the newest block with the batch, too.
    fn is_certified_by(&self, block: BlockRef) -> bool {
        self.chain.contains(&block.digest)
    }

    /// Notes a step that a chain takes once a term: what is said of the blocks above says nothing new.
    fn note_once(&mut self, step: Step, now: Instant, block: BlockAt, voters: Vec<u8>) {
        if !self.noted.contains(&(step, block.term)) {
            self.noted.push((step, block.term));
            self.note(step, now, Some(block), voters);
        }
    }

    fn note(&mut self, step: Step, now: Instant, block: Option<BlockAt>, voters: Vec<u8>) {
        if self.phases.len() >= PHASES {
            // The first is that it was submitted.
            self.phases.remove(1);
        }
        let at = now.saturating_duration_since(self.asked.since);
        let at_us = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        self.phases.push(Phase { step, at_us, block, voters });
    }
}

fn voters(certificate: &Certificate) -> Vec<u8> {
    certificate.signatures.iter().map(|(signer, _)| signer.0).collect()
}
