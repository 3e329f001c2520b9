#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bftd_core::{
    ballot::{Ballot, BallotKind},
    block::{Batch, Executed, Header, Marks},
    crypto::{ClusterId, PublicKey, Signature},
    durable::{Accepted, Committed},
    ids::{BatchNumber, Epoch, Incarnation, Index, Term},
    membership::{Genesis, Member},
    protocol::Protocol,
};

use super::*;

const ME: MemberId = MemberId(1);
/// Of the terms 1 to 4 the members 2, 3, 4 and 1 lead.
const MY_TERM: u64 = 4;

/// A tracer on a clock that moves a millisecond an event, as the driver feeds it.
struct World {
    tracer: Tracer,
    now: Instant,
    records: u64,
}

type Answer = oneshot::Receiver<Vec<Phase>>;

impl World {
    fn new() -> Self {
        let member = |id: u8| Member {
            id: MemberId(id),
            name: format!("node{id}"),
            key: PublicKey([id + 10; 32]),
            address: "127.0.0.1:1".parse().unwrap(),
        };
        let members = (1..=4).map(member).collect();
        let genesis = Genesis { name: "t".into(), protocol: Protocol::BftRaft, created_ms: 0, members };
        let tracer = Tracer::new(ME, Arc::new(genesis.membership().unwrap()));
        Self { tracer, now: Instant::now(), records: 0 }
    }

    /// A request comes, and goes into the batch that is submitted next.
    fn ask(&mut self) -> Answer {
        let (answer, phases) = oneshot::channel();
        self.tracer.submit(Asked { since: self.now, answer });
        phases
    }

    fn tick(&mut self) -> Instant {
        self.now += Duration::from_millis(1);
        self.now
    }

    fn see(&mut self, output: Output) {
        let now = self.tick();
        let number = self.records + 1;
        self.records += u64::from(matches!(output, Output::Persist(_)));
        self.tracer.see(&output, number, now);
    }

    fn number(&mut self, before: Option<Numbered>, now: Numbered) {
        self.see(Output::Numbered { before, now });
    }

    /// The record that a block is here, and that it is the tip.
    fn accept(&mut self, block: &Arc<Block>) {
        self.see(Output::Persist(Record::Block(Arc::clone(block))));
        let tip = block.reference();
        let accepted = Accepted { term: tip.term, start: tip, tip, floor: Index(0), sole: None };
        self.see(Output::Persist(Record::Accepted(accepted)));
    }

    fn durable(&mut self) {
        let now = self.tick();
        self.tracer.see_durable(self.records, now);
    }

    fn prepare(&mut self, block: &Block, voters: [u8; 3]) {
        let certificate = certificate(BallotKind::Prepare, block, voters);
        self.see(Output::Persist(Record::Position(certificate)));
    }

    /// In the order of the replica: the blocks, and then their certificate.
    fn commit(&mut self, blocks: &[&Arc<Block>], voters: [u8; 3]) {
        for block in blocks {
            self.see(Output::Execute(Arc::clone(block)));
        }
        let certificate = certificate(BallotKind::Commit, blocks.last().unwrap(), voters);
        let marks = Marks::default();
        self.see(Output::Persist(Record::Committed(Committed { certificate, marks })));
    }

    fn execute(&mut self, block: &Block) {
        let now = self.tick();
        self.tracer.see_executed(block.reference(), now);
    }
}

fn numbered(incarnation: u64, number: u64) -> Numbered {
    (Incarnation(incarnation), BatchNumber(number))
}

fn block(term: u64, index: u64, parent: Digest, batches: &[(MemberId, Numbered)]) -> Arc<Block> {
    let batch = |&(origin, (incarnation, number))| {
        let signature = Signature([0; 64]);
        Arc::new(Batch { origin, incarnation, number, requests: vec![], signature })
    };
    let batches: Vec<_> = batches.iter().map(batch).collect();
    let header = Header {
        cluster: ClusterId(Digest::ZERO),
        epoch: Epoch(0),
        term: Term(term),
        index: Index(index),
        parent,
        time_ms: 0,
        batches: Block::batches_digest(&batches),
        executed: Executed { index: Index(0), state: Digest::ZERO },
        sole: false,
    };
    Arc::new(Block::new(header, batches))
}

fn certificate(kind: BallotKind, block: &Block, voters: [u8; 3]) -> Arc<Certificate> {
    let ballot = Ballot { kind, epoch: Epoch(0), block: block.reference() };
    let signatures = voters.map(|id| (MemberId(id), Signature([0; 64]))).to_vec();
    Arc::new(Certificate { ballot, signatures })
}

fn steps(phases: &[Phase]) -> Vec<Step> {
    phases.iter().map(|phase| phase.step).collect()
}

fn phase(phases: &[Phase], step: Step) -> &Phase {
    phases.iter().find(|phase| phase.step == step).unwrap()
}

#[test]
fn a_followers_trace_has_every_phase_in_order_with_its_time_and_voters() {
    let mut world = World::new();
    assert!(!world.tracer.is_active());
    let mut answer = world.ask();
    let ours = block(1, 7, Digest::ZERO, &[(MemberId(2), numbered(1, 5)), (ME, numbered(1, 1))]);
    world.number(None, numbered(1, 1));
    world.accept(&ours);
    world.durable();
    world.prepare(&ours, [1, 2, 3]);
    world.commit(&[&ours], [2, 3, 4]);
    world.execute(&block(1, 6, Digest::ZERO, &[]));
    assert!(answer.try_recv().is_err(), "it is not executed yet");
    world.execute(&ours);
    let at = |step, ms: u64, block, voters: &[u8]| Phase {
        step,
        at_us: ms * 1000,
        block,
        voters: voters.to_vec(),
    };
    let there = Some(BlockAt { index: 7, term: 1, leader: 2 });
    let expected = [
        at(Step::Submitted, 1, None, &[]),
        at(Step::Accepted, 3, there, &[]),
        at(Step::Durable, 4, None, &[]),
        at(Step::Prepared, 5, there, &[1, 2, 3]),
        at(Step::Committed, 7, there, &[2, 3, 4]),
        at(Step::Executed, 9, None, &[]),
    ];
    assert_eq!(answer.try_recv().unwrap(), expected);
    assert!(!world.tracer.is_active(), "nothing is followed any more");
}

#[test]
fn the_leader_proposes_what_others_accept() {
    let mut world = World::new();
    let mut answer = world.ask();
    let ours = block(MY_TERM, 7, Digest::ZERO, &[(ME, numbered(1, 1))]);
    world.number(None, numbered(1, 1));
    world.accept(&ours);
    world.commit(&[&ours], [1, 2, 3]);
    world.execute(&ours);
    let phases = answer.try_recv().unwrap();
    assert_eq!(steps(&phases)[..2], [Step::Submitted, Step::Proposed]);
    assert_eq!(phase(&phases, Step::Proposed).block.unwrap().leader, 1);
}

#[test]
fn what_was_not_seen_is_left_out() {
    let mut world = World::new();
    let mut answer = world.ask();
    world.number(None, numbered(1, 1));
    // A block that was fetched: nobody accepted it here, and no Prepare certificate for it came.
    let ours = block(1, 7, Digest::ZERO, &[(ME, numbered(1, 1))]);
    world.see(Output::Persist(Record::Block(Arc::clone(&ours))));
    // A commit certificate may be the position; it is not a Prepare certificate.
    let position = certificate(BallotKind::Commit, &ours, [1, 2, 3]);
    world.see(Output::Persist(Record::Position(position)));
    // What is said of others says nothing of it.
    let other = block(1, 7, Digest::ZERO, &[(MemberId(2), numbered(1, 1)), (ME, numbered(1, 2))]);
    world.accept(&other);
    world.prepare(&other, [1, 2, 3]);
    world.commit(&[&other], [1, 2, 3]);
    world.execute(&other);
    world.commit(&[&ours], [2, 3, 4]);
    world.execute(&ours);
    let phases = answer.try_recv().unwrap();
    assert_eq!(steps(&phases), [Step::Submitted, Step::Committed, Step::Executed]);
    assert_eq!(phase(&phases, Step::Committed).voters, [2, 3, 4]);
}

#[test]
fn certificates_of_blocks_above_count_and_name_the_block_voted_for() {
    let mut world = World::new();
    let mut answer = world.ask();
    world.number(None, numbered(1, 1));
    let ours = block(1, 7, Digest::ZERO, &[(ME, numbered(1, 1))]);
    let above = block(1, 8, ours.digest(), &[]);
    let top = block(1, 9, above.digest(), &[]);
    for block in [&ours, &above, &top] {
        world.accept(block);
    }
    world.prepare(&above, [1, 2, 3]);
    world.prepare(&top, [1, 3, 4]);
    world.commit(&[&ours, &above], [2, 3, 4]);
    world.execute(&ours);
    let phases = answer.try_recv().unwrap();
    let expected = [Step::Submitted, Step::Accepted, Step::Prepared, Step::Committed, Step::Executed];
    assert_eq!(steps(&phases), expected, "each once");
    assert_eq!(phase(&phases, Step::Accepted).block.unwrap().index, 7);
    let prepared = phase(&phases, Step::Prepared);
    assert_eq!((prepared.block.unwrap().index, &*prepared.voters), (8, &[1, 2, 3][..]), "the first to come");
    assert_eq!(phase(&phases, Step::Committed).block.unwrap().index, 8);
}

#[test]
fn a_block_of_a_later_term_has_phases_of_its_own() {
    let mut world = World::new();
    let mut answer = world.ask();
    world.number(None, numbered(1, 1));
    let lost = block(1, 7, Digest::ZERO, &[(ME, numbered(1, 1))]);
    world.accept(&lost);
    let ours = block(2, 8, Digest::ZERO, &[(ME, numbered(1, 1))]);
    world.accept(&ours);
    world.prepare(&lost, [1, 2, 3]);
    world.commit(&[&ours], [1, 2, 3]);
    world.execute(&ours);
    let phases = answer.try_recv().unwrap();
    let expected = [Step::Submitted, Step::Accepted, Step::Accepted, Step::Committed, Step::Executed];
    assert_eq!(steps(&phases), expected);
    let blocks: Vec<_> =
        phases.iter().filter_map(|phase| phase.block).map(|at| (at.term, at.index)).collect();
    assert_eq!(blocks, [(1, 7), (2, 8), (2, 8)]);
}

#[test]
fn a_block_that_takes_anothers_place_in_its_term_has_phases_of_its_own() {
    let mut world = World::new();
    let mut answer = world.ask();
    world.number(None, numbered(1, 1));
    let lost = block(1, 7, Digest::ZERO, &[(ME, numbered(1, 1))]);
    let ours = block(1, 7, Digest::ZERO, &[(MemberId(2), numbered(1, 1)), (ME, numbered(1, 1))]);
    for block in [&lost, &ours] {
        world.accept(block);
    }
    world.prepare(&lost, [1, 2, 3]);
    world.commit(&[&ours], [1, 2, 3]);
    world.execute(&lost);
    world.execute(&ours);
    let steps = steps(&answer.try_recv().unwrap());
    assert_eq!(steps, [Step::Submitted, Step::Accepted, Step::Accepted, Step::Committed, Step::Executed]);
}

#[test]
fn a_batch_is_followed_under_its_new_number() {
    let mut world = World::new();
    let mut answer = world.ask();
    world.number(None, numbered(1, 1));
    // An older run's batch of the same number: not this one.
    let old = block(1, 7, Digest::ZERO, &[(ME, numbered(1, 1))]);
    world.accept(&old);
    world.commit(&[&old], [1, 2, 3]);
    world.number(Some(numbered(1, 1)), numbered(2, 1));
    world.durable();
    world.execute(&old);
    assert!(answer.try_recv().is_err(), "the old number says nothing any more");
    let ours = block(1, 8, old.digest(), &[(ME, numbered(2, 1))]);
    world.accept(&ours);
    world.commit(&[&ours], [2, 3, 4]);
    world.execute(&ours);
    let phases = answer.try_recv().unwrap();
    let expected = [Step::Submitted, Step::Renumbered, Step::Accepted, Step::Committed, Step::Executed];
    assert_eq!(steps(&phases), expected);
    assert_eq!(phase(&phases, Step::Committed).block.unwrap().index, 8);
}

#[test]
fn all_traced_requests_of_a_batch_get_its_phases_since_they_came() {
    let mut world = World::new();
    let mut first = world.ask();
    world.tick();
    let mut second = world.ask();
    world.number(None, numbered(1, 1));
    let mut later = world.ask();
    world.number(None, numbered(1, 2));
    let ours = block(1, 7, Digest::ZERO, &[(ME, numbered(1, 1))]);
    world.commit(&[&ours], [1, 2, 3]);
    world.execute(&ours);
    let submitted = |answer: &mut Answer| answer.try_recv().unwrap().first().unwrap().at_us;
    assert_eq!((submitted(&mut first), submitted(&mut second)), (2000, 1000));
    assert!(later.try_recv().is_err(), "another batch");
    assert!(world.tracer.is_active());
}

#[test]
fn more_than_so_many_are_not_followed_and_those_who_left_make_room() {
    let mut world = World::new();
    let mut answers: Vec<_> = (1..=TRACED as u64)
        .map(|number| {
            let answer = world.ask();
            world.number(None, numbered(1, number));
            answer
        })
        .collect();
    let mut refused = world.ask();
    assert!(matches!(refused.try_recv(), Err(oneshot::error::TryRecvError::Closed)), "told at once");
    drop(answers.pop());
    let mut taken = world.ask();
    assert!(matches!(taken.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
    let mut refused = world.ask();
    assert!(matches!(refused.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
}

#[test]
fn a_trace_over_many_terms_keeps_its_first_and_its_newest_phases() {
    let mut world = World::new();
    let mut answer = world.ask();
    world.number(None, numbered(1, 1));
    let mut newest = None;
    for term in 1..=100 {
        let ours = block(term, 7, Digest::ZERO, &[(ME, numbered(1, 1))]);
        world.accept(&ours);
        newest = Some(ours);
    }
    let newest = newest.unwrap();
    world.commit(&[&newest], [1, 2, 3]);
    world.execute(&newest);
    let phases = answer.try_recv().unwrap();
    assert_eq!(phases.len(), PHASES);
    assert_eq!(phases.first().unwrap().step, Step::Submitted);
    let last: Vec<_> = steps(&phases).split_off(PHASES - 2);
    assert_eq!(last, [Step::Committed, Step::Executed]);
}
