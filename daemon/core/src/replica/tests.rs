//! Stories of four replicas on a perfect network whose links the story cuts. The simulator does the rest.

#![allow(clippy::unwrap_used)]

mod conduct;
mod evidence;
mod fetching;
mod liars;
mod routing;
mod rows;
mod unanimity;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::*;
use crate::{
    ballot::{Ballot, BallotKind, Vote},
    block::{Block, Header, Proposal, Request},
    crypto::{Ed25519, Ed25519Signer},
    ids::{BatchNumber, Epoch, Incarnation},
    membership::{Genesis, Member},
    message::{Append, Route},
    protocol::Protocol,
    verify::Verifier,
};

const TICK_MS: u64 = 50;

struct Cluster {
    members: Arc<Membership>,
    verifier: Verifier,
    nodes: BTreeMap<MemberId, Node>,
    now: Now,
    wire: VecDeque<(MemberId, MemberId, Vec<u8>)>,
    cut: BTreeSet<(MemberId, MemberId)>,
    timing: Timing,
    one_round: bool,
}

struct Node {
    replica: Option<Replica>,
    durable: Durable,
    executed: Vec<(BlockRef, Arc<Block>)>,
    readable: Vec<ReadTicket>,
    log: Vec<(Arc<Block>, Option<Arc<Certificate>>)>,
}

fn id(n: u8) -> MemberId {
    MemberId(n)
}

fn key(n: u8) -> Ed25519Signer {
    Ed25519Signer::from_seed(&[n; 32])
}

/// A stand-in for the state machine: the digest of the chain so far.
fn state_after(block: &BlockRef) -> Digest {
    block.digest
}

impl Cluster {
    fn new(n: u8) -> Self {
        Self::of(Protocol::BftRaft, n, true)
    }

    fn of(protocol: Protocol, n: u8, one_round: bool) -> Self {
        let members = (1..=n)
            .map(|i| Member {
                id: id(i),
                name: format!("node{i}"),
                key: key(i).public_key(),
                address: "127.0.0.1:1".parse().unwrap(),
            })
            .collect();
        let genesis = Genesis { name: "test".into(), protocol, created_ms: 0, members };
        let members = Arc::new(genesis.membership().unwrap());
        let mut cluster = Self {
            verifier: Verifier::new(Arc::clone(&members), Arc::new(Ed25519)),
            nodes: BTreeMap::new(),
            now: Now { monotonic_us: 1_000_000, unix_ms: 1_000_000 },
            wire: VecDeque::new(),
            cut: BTreeSet::new(),
            timing: Timing::default(),
            one_round,
            members,
        };
        for i in 1..=n {
            let node = Node {
                replica: None,
                durable: Durable::default(),
                executed: vec![],
                readable: vec![],
                log: vec![],
            };
            cluster.nodes.insert(id(i), node);
            cluster.start(i);
        }
        cluster.settle();
        cluster
    }

    fn start(&mut self, n: u8) {
        let node = self.nodes.get_mut(&id(n)).unwrap();
        let root = node.durable.committed.as_ref().map_or(self.members.root(), |c| c.certificate.block());
        let setup = Setup {
            me: id(n),
            members: Arc::clone(&self.members),
            signer: Arc::new(key(n)),
            timing: self.timing,
            protocol: None,
            one_round: self.one_round,
        };
        let states = vec![(root.index, state_after(&root))];
        node.replica = Some(Replica::start(setup, node.durable.clone(), states, self.now));
        self.drain(id(n));
    }

    fn crash(&mut self, n: u8) {
        self.nodes.get_mut(&id(n)).unwrap().replica = None;
    }

    fn isolate(&mut self, n: u8) {
        for other in self.members.ids().collect::<Vec<_>>() {
            self.cut.insert((id(n), other));
            self.cut.insert((other, id(n)));
        }
    }

    fn heal(&mut self) {
        self.cut.clear();
    }

    fn step(&mut self, to: MemberId, input: Input) {
        if let Some(replica) = &mut self.nodes.get_mut(&to).unwrap().replica {
            replica.step(self.now, input);
            replica.check_invariants().unwrap();
            self.drain(to);
        }
    }

    fn drain(&mut self, me: MemberId) {
        let others: Vec<_> = self.members.ids().filter(|other| *other != me).collect();
        let mut inputs = VecDeque::new();
        loop {
            let node = self.nodes.get_mut(&me).unwrap();
            let Some(replica) = &mut node.replica else { return };
            for output in replica.take_outputs() {
                match output {
                    Output::Persist(record) => {
                        let blocks = node.durable.apply(&record);
                        let last = blocks.len().saturating_sub(1);
                        for (i, block) in blocks.into_iter().enumerate() {
                            let certificate = match &record {
                                Record::Committed(committed) if i == last => {
                                    Some(Arc::clone(&committed.certificate))
                                }
                                _ => None,
                            };
                            node.log.push((block, certificate));
                        }
                    }
                    Output::Send { to: To::Member(to), message, .. } if to == me => {
                        inputs.push_back(Input::Message(me, message));
                    }
                    Output::Send { to, message, .. } => {
                        let receivers = match to {
                            To::Member(to) => vec![to],
                            To::Others => others.clone(),
                        };
                        for to in receivers {
                            self.wire.push_back((me, to, message.encode()));
                        }
                    }
                    Output::Execute(block) => {
                        let reference = block.reference();
                        node.executed.push((reference, block));
                        inputs.push_back(Input::Executed(reference, state_after(&reference)));
                    }
                    Output::Readable(tickets) => node.readable.extend(tickets),
                    Output::ServeCommitted { to, after } => {
                        let run: Vec<_> =
                            node.log.iter().filter(|(b, _)| b.header().index > after).take(64).collect();
                        let certificate = run.last().and_then(|(_, certificate)| certificate.clone());
                        let blocks = run.iter().map(|(block, _)| Arc::clone(block)).collect();
                        let answer = Message::Blocks(crate::message::Blocks { blocks, certificate });
                        self.wire.push_back((me, to, answer.encode()));
                    }
                    Output::Halt(halt) => panic!("{me} halts: {halt}"),
                    Output::Numbered { .. } | Output::Report(_) => {}
                }
            }
            let Some(input) = inputs.pop_front() else { return };
            node.replica.as_mut().unwrap().step(self.now, input);
        }
    }

    /// Delivers everything that is on the wire, and what follows from it.
    fn settle(&mut self) {
        self.settle_through(|_, _, message| Some(message));
    }

    /// The same, on a network that alters and drops.
    fn settle_through(&mut self, mut pass: impl FnMut(u8, u8, Message) -> Option<Message>) {
        for _ in 0..1_000 {
            while let Some((from, to, bytes)) = self.wire.pop_front() {
                if self.cut.contains(&(from, to)) {
                    continue;
                }
                if let Some(message) = pass(from.0, to.0, Message::decode(&bytes).unwrap()) {
                    self.hear(from.0, to.0, message);
                }
            }
            if !self.wake() {
                return;
            }
        }
        panic!("it does not settle: somebody waits for ever");
    }

    /// Lets the time come for which a replica waits. Says whether one does.
    fn wake(&mut self) -> bool {
        let due = |node: &Node| node.replica.as_ref().and_then(Replica::due_us);
        let waiting: Vec<_> = self.nodes.iter().filter_map(|(id, node)| Some((*id, due(node)?))).collect();
        for (id, due_us) in &waiting {
            self.now.monotonic_us = self.now.monotonic_us.max(*due_us);
            self.step(*id, Input::Due);
        }
        !waiting.is_empty()
    }

    fn hear(&mut self, from: u8, to: u8, message: Message) {
        let message = self.verifier.verify(message).unwrap();
        self.step(id(to), Input::Message(id(from), message));
    }

    fn tick(&mut self) {
        self.now.monotonic_us += TICK_MS * 1000;
        self.now.unix_ms += TICK_MS;
        for member in self.members.ids().collect::<Vec<_>>() {
            self.step(member, Input::Tick);
        }
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms / TICK_MS {
            self.tick();
            self.settle();
        }
    }

    fn submit(&mut self, n: u8, text: &'static str) {
        self.step(id(n), Input::Submit(vec![Request::from_static(text.as_bytes())]));
    }

    fn requests(&self, n: u8) -> Vec<String> {
        self.nodes[&id(n)]
            .executed
            .iter()
            .flat_map(|(_, block)| block.batches().to_vec())
            .flat_map(|batch| batch.requests.clone())
            .map(|request| String::from_utf8(request.to_vec()).unwrap())
            .collect()
    }

    /// The newest block that a member has executed.
    fn newest(&self, n: u8) -> Arc<Block> {
        Arc::clone(&self.nodes[&id(n)].executed.last().unwrap().1)
    }

    /// Members 1, 2 and 3 agree on a block.
    fn certificate(&self, kind: BallotKind, block: BlockRef) -> Arc<Certificate> {
        let ballot = Ballot { kind, epoch: Epoch(0), block };
        let votes = [1, 2, 3].map(|n| Vote::sign(self.members.cluster(), ballot, id(n), &key(n)));
        Arc::new(Certificate::gather(&self.members, ballot, &votes).unwrap())
    }

    /// An empty block on another one.
    fn child_of(parent: &Header, time_ms: u64) -> Header {
        let batches = Block::batches_digest(&[]);
        Header { index: parent.index.next(), parent: parent.digest(), time_ms, batches, ..parent.clone() }
    }

    /// What the leader of term 0 may say.
    fn append(header: Header) -> Message {
        let signature = key(1).sign(&Proposal::signed_bytes(&header));
        let block = Arc::new(Block::new(header, vec![]));
        Message::Append(Append {
            block,
            signature,
            certificates: Certificates::default(),
            votes_to: Route::Leader,
        })
    }

    fn status(&self, n: u8) -> Status {
        self.nodes[&id(n)].replica.as_ref().unwrap().status()
    }
}

#[test]
fn requests_of_all_members_commit_everywhere_in_one_order() {
    let mut cluster = Cluster::new(4);
    for n in 1..=4 {
        cluster.submit(n, ["a", "b", "c", "d"][usize::from(n - 1)]);
    }
    cluster.settle();
    cluster.run(200);
    let first = cluster.requests(1);
    assert_eq!(first.len(), 4);
    for n in 2..=4 {
        assert_eq!(cluster.requests(n), first);
    }
    assert_eq!(cluster.status(1).term, Term(0), "nobody had a reason to leave the first term");
}

#[test]
fn an_idle_cluster_stays_in_its_term() {
    let mut cluster = Cluster::new(4);
    cluster.run(60_000);
    for n in 1..=4 {
        assert_eq!(cluster.status(n).term, Term(0));
        assert_eq!(cluster.status(n).suspecting, None);
        assert_eq!(cluster.status(n).committed.index, Index(1), "the term's first block");
    }
}

#[test]
fn a_dead_leader_is_replaced_and_nothing_is_lost() {
    let mut cluster = Cluster::new(4);
    cluster.submit(2, "before");
    cluster.settle();
    cluster.crash(1);
    cluster.submit(3, "after");
    cluster.run(2_000);
    for n in 2..=4 {
        assert_eq!(cluster.requests(n), ["before", "after"], "at node {n}");
        assert_eq!(cluster.status(n).term, Term(1));
    }
    cluster.start(1);
    cluster.run(1_000);
    assert_eq!(cluster.requests(1).last().unwrap(), "after");
    assert_eq!(cluster.status(1).term, Term(1));
}

#[test]
fn a_leader_that_restarts_resigns_at_once() {
    let mut cluster = Cluster::new(4);
    cluster.crash(1);
    cluster.start(1);
    cluster.submit(2, "x");
    cluster.run(600);
    assert_eq!(cluster.status(2).term, Term(1));
    assert_eq!(cluster.requests(2), ["x"]);
}

#[test]
fn all_members_restart_and_go_on() {
    let mut cluster = Cluster::new(4);
    cluster.submit(2, "x");
    cluster.run(200);
    for n in 1..=4 {
        cluster.crash(n);
    }
    for n in 1..=4 {
        cluster.start(n);
    }
    cluster.submit(4, "y");
    cluster.run(3_000);
    for n in 1..=4 {
        assert_eq!(cluster.requests(n).last().unwrap(), "y", "at node {n}");
    }
}

#[test]
fn a_member_that_was_cut_off_catches_up() {
    let mut cluster = Cluster::new(4);
    cluster.isolate(3);
    for _ in 0..100 {
        cluster.submit(2, "x");
        cluster.run(100);
    }
    assert_eq!(cluster.requests(2).len(), 100);
    assert_eq!(cluster.requests(3).len(), 0);
    cluster.heal();
    cluster.submit(3, "y");
    cluster.run(2_000);
    assert_eq!(cluster.requests(3), cluster.requests(2));
    assert_eq!(cluster.requests(3).last().unwrap(), "y");
    assert_eq!(cluster.status(2).term, Term(0), "one that was cut off topples nobody");
}

#[test]
fn without_a_quorum_nothing_commits_and_with_it_everything_does() {
    let mut cluster = Cluster::new(4);
    cluster.crash(3);
    cluster.crash(4);
    cluster.submit(2, "x");
    cluster.run(10_000);
    assert_eq!(cluster.requests(2).len(), 0);
    cluster.start(3);
    cluster.run(25_000);
    assert_eq!(cluster.requests(2), ["x"]);
    assert_eq!(cluster.requests(3), ["x"]);
}

#[test]
fn reads_are_answered_after_what_was_committed_before_them() {
    let mut cluster = Cluster::new(4);
    cluster.submit(1, "x");
    cluster.settle();
    cluster.step(id(3), Input::Read(ReadTicket(7)));
    cluster.settle();
    assert_eq!(cluster.nodes[&id(3)].readable, [ReadTicket(7)]);
    assert_eq!(cluster.requests(3), ["x"]);
    cluster.isolate(3);
    cluster.step(id(3), Input::Read(ReadTicket(8)));
    cluster.run(1_000);
    assert_eq!(cluster.nodes[&id(3)].readable, [ReadTicket(7)], "no quorum, no answer");
    cluster.heal();
    cluster.run(1_000);
    assert_eq!(cluster.nodes[&id(3)].readable, [ReadTicket(7), ReadTicket(8)]);
}

/// An answer that was sent before a write committed arrives after it, at a member that has restarted meanwhile and asks
/// again.
#[test]
fn answers_to_an_earlier_run_do_not_count() {
    let mut cluster = Cluster::new(4);
    cluster.step(id(3), Input::Read(ReadTicket(1)));
    let queries: Vec<_> = cluster.wire.drain(..).collect();
    for (from, to, bytes) in queries {
        let message = cluster.verifier.verify(Message::decode(&bytes).unwrap()).unwrap();
        cluster.step(to, Input::Message(from, message));
    }
    let late: Vec<_> = cluster.wire.drain(..).collect();
    assert_eq!(late.len(), 3);
    cluster.crash(3);
    cluster.submit(1, "x");
    cluster.settle();
    assert_eq!(cluster.requests(1), ["x"]);
    cluster.start(3);
    cluster.isolate(3);
    cluster.step(id(3), Input::Read(ReadTicket(2)));
    cluster.settle();
    cluster.heal();
    cluster.wire.extend(late);
    cluster.settle();
    assert_eq!(cluster.nodes[&id(3)].readable, [], "nobody has been asked since the write");
    cluster.run(1_000);
    assert_eq!(cluster.nodes[&id(3)].readable, [ReadTicket(2)]);
    assert_eq!(cluster.requests(3), ["x"]);
}

/// Found by the simulator (`restless`): members that had passed it on once, in vain, suspected every leader for good.
#[test]
fn a_late_batch_whose_origin_dies_reaches_the_leader() {
    let mut cluster = Cluster::new(4);
    // Node 3 alone hears of it, and what it passes on is lost.
    cluster.cut.extend([(id(2), id(1)), (id(2), id(4)), (id(3), id(1))]);
    cluster.submit(2, "x");
    cluster.run(1_500);
    cluster.crash(2);
    cluster.heal();
    cluster.run(5_000);
    assert_eq!(cluster.requests(3), ["x"]);
    for n in [1, 3, 4] {
        assert_eq!(cluster.status(n).suspecting, None, "at node {n}");
    }
}

#[test]
fn many_terms_without_a_commit_do_not_close_the_window() {
    let mut cluster = Cluster::new(4);
    // Every term prepares its first block on the one before; no Commit vote arrives for as long as 25 terms.
    cluster.submit(2, "x");
    for _ in 0..10_000 {
        cluster.tick();
        cluster.settle_through(|_, _, message| match &message {
            Message::Vote(vote) if vote.ballot.kind == BallotKind::Commit => None,
            Message::Vote(vote) if vote.signer == id(4) => None,
            _ => Some(message),
        });
        if cluster.status(1).term > Term(25) {
            break;
        }
    }
    assert!(cluster.status(1).term > Term(25), "{:?}", cluster.status(1));
    cluster.run(60_000);
    for n in 1..=4 {
        assert_eq!(cluster.requests(n), ["x"], "at node {n}");
    }
}

#[test]
fn a_cluster_of_one_works_and_restarts() {
    let mut cluster = Cluster::new(1);
    cluster.submit(1, "x");
    cluster.run(100);
    assert_eq!(cluster.requests(1), ["x"]);
    cluster.crash(1);
    cluster.start(1);
    cluster.submit(1, "y");
    cluster.run(1_000);
    assert_eq!(cluster.requests(1), ["x", "y"]);
}

#[test]
fn a_censoring_leader_is_replaced() {
    let mut cluster = Cluster::new(4);
    // The leader does not hear of node 2 at all, directly or in others' names: it drops its batches.
    let mut committed_meanwhile = 0;
    cluster.submit(2, "censored");
    cluster.wire.retain(|(from, _, _)| *from != id(2));
    for _ in 0..60 {
        cluster.submit(3, "other");
        for _ in 0..4 {
            cluster.tick();
            cluster.settle_through(|_, to, message| match &message {
                Message::Batch(batch) if to == 1 && batch.origin == id(2) => None,
                _ => Some(message),
            });
        }
        committed_meanwhile = cluster.requests(3).len();
    }
    assert!(cluster.requests(3).contains(&"censored".to_owned()));
    assert!(committed_meanwhile > 10);
    assert_ne!(cluster.status(3).leader, id(1));
}

#[test]
fn an_outrun_origin_goes_above_what_the_chain_shows() {
    let mut cluster = Cluster::new(4);
    cluster.submit(2, "a");
    cluster.run(200);
    // Node 2 comes back without its disk, in a first incarnation again.
    cluster.crash(2);
    let node = cluster.nodes.get_mut(&id(2)).unwrap();
    node.durable = Durable::default();
    node.executed.clear();
    node.log.clear();
    cluster.start(2);
    cluster.submit(2, "b");
    cluster.run(3_000);
    assert_eq!(cluster.requests(1), ["a", "b"]);
    let batch = cluster.nodes[&id(1)].executed.iter().flat_map(|(_, b)| b.batches()).last().unwrap();
    assert!(batch.incarnation > Incarnation(1));
    assert_eq!(batch.number, BatchNumber(1));
}

#[test]
fn a_leader_that_is_about_to_stop_hands_its_term_on_at_once() {
    let mut cluster = Cluster::new(4);
    cluster.submit(2, "a");
    cluster.settle();
    cluster.step(id(1), Input::Leave);
    cluster.run(300);
    assert!((1..=4).all(|n| cluster.status(n).term == Term(1)), "long before a time-out");
    // Who follows may leave, too: nobody minds.
    cluster.step(id(4), Input::Leave);
    cluster.submit(3, "b");
    cluster.settle();
    assert!((1..=4).all(|n| cluster.requests(n) == ["a", "b"] && cluster.status(n).term == Term(1)));
}
