//! Every check fires on a hand-made violation, and none on a conforming run.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod conduct;
mod promises;
mod results;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bftd_core::{
    ballot::{Ballot, BallotKind, Suspect, TermVote, Vote},
    block::{Batch, Block, BlockRef, Executed, Header, Proposal},
    certificate::{Certificate, SuspectCertificate},
    crypto::{Digest, Ed25519, Ed25519Signer, Signer},
    durable::{Accepted, Durable, Record},
    ids::{BatchNumber, Epoch, Incarnation, Index, MemberId, Term},
    kv::{Expect, Operation},
    membership::{Genesis, Member, Membership},
    message::{Append, Certificates, EnterTerm, Message, NewTerm, Route},
    protocol::Protocol,
};
use bytes::Bytes;

use super::Oracle;
use crate::event::{Event, Observer, Violation};

/// A cluster of four, played by hand.
struct Play {
    oracle: Oracle,
    members: Membership,
    signers: Vec<Ed25519Signer>,
    disks: BTreeMap<MemberId, Durable>,
    at_us: u64,
}

const ALL: [u8; 4] = [1, 2, 3, 4];

fn id(id: u8) -> MemberId {
    MemberId(id)
}

/// Which check a violation is of.
#[track_caller]
fn fires(result: Result<(), Violation>, check: &str) {
    assert_eq!(result.expect_err("a violation").check, check);
}

impl Play {
    fn new() -> Self {
        Self::with_liars(&[])
    }

    fn with_liars(liars: &[u8]) -> Self {
        let signers: Vec<_> = ALL.iter().map(|at| Ed25519Signer::from_seed(&[*at; 32])).collect();
        let member = |(at, signer): (&u8, &Ed25519Signer)| Member {
            id: id(*at),
            name: format!("node{at}"),
            key: signer.public_key(),
            address: "127.0.0.1:1".parse().unwrap(),
        };
        let members = ALL.iter().zip(&signers).map(member).collect();
        let genesis = Genesis { name: "play".into(), protocol: Protocol::BftRaft, created_ms: 0, members };
        let members = genesis.membership().unwrap();
        let correct: BTreeSet<_> = members.ids().filter(|id| !liars.contains(&id.0)).collect();
        let oracle = Oracle::new(&members, Arc::new(Ed25519), correct);
        let disks = members.ids().map(|id| (id, Durable::default())).collect();
        let mut play = Self { oracle, members, signers, disks, at_us: 0 };
        for node in ALL {
            play.start(node, false).unwrap();
            play.sync(node, Record::Incarnation(Incarnation(1))).unwrap();
        }
        play
    }

    fn see(&mut self, event: &Event<'_>) -> Result<(), Violation> {
        self.at_us += 1000;
        self.oracle.observe(self.at_us, event)
    }

    fn start(&mut self, node: u8, restart: bool) -> Result<(), Violation> {
        let durable = self.disks[&id(node)].clone();
        self.see(&Event::Started { node: id(node), correct: true, restart, durable: &durable })
    }

    fn sync(&mut self, node: u8, record: Record) -> Result<(), Violation> {
        self.disks.get_mut(&id(node)).unwrap().apply(&record);
        let durable = self.disks[&id(node)].clone();
        self.see(&Event::Synced { node: id(node), records: &[record], durable: &durable })
    }

    fn send(&mut self, from: u8, to: u8, message: &Message) -> Result<(), Violation> {
        let durable = self.disks[&id(from)].clone();
        self.see(&Event::Sent { from: id(from), to: id(to), message, durable: &durable })
    }

    fn deliver(&mut self, from: u8, to: u8, message: &Message) -> Result<(), Violation> {
        self.see(&Event::Delivered { from: id(from), to: id(to), message })
    }

    fn execute(&mut self, node: u8, block: &Arc<Block>, state: Digest) -> Result<(), Violation> {
        self.see(&Event::Executed { node: id(node), block, state })
    }

    fn signer(&self, node: u8) -> &dyn Signer {
        &self.signers[usize::from(node) - 1]
    }

    fn root(&self) -> BlockRef {
        self.members.root()
    }

    /// A block on another one; its time is its index, and it says that nothing was executed.
    fn block(&self, term: u64, parent: BlockRef, batches: Vec<Batch>) -> Arc<Block> {
        self.block_with(term, parent, batches, |_| {})
    }

    fn block_with(
        &self,
        term: u64,
        parent: BlockRef,
        batches: Vec<Batch>,
        change: impl Fn(&mut Header),
    ) -> Arc<Block> {
        let batches: Vec<_> = batches.into_iter().map(Arc::new).collect();
        let mut header = Header {
            cluster: self.members.cluster(),
            epoch: Epoch(0),
            term: Term(term),
            index: parent.index.next(),
            parent: parent.digest,
            time_ms: 100,
            batches: Block::batches_digest(&batches),
            executed: Executed { index: Index(0), state: Digest::ZERO },
            sole: false,
        };
        change(&mut header);
        Arc::new(Block::new(header, batches))
    }

    fn batch(&self, origin: u8, incarnation: u64, number: u64, requests: Vec<Bytes>) -> Batch {
        let (incarnation, number) = (Incarnation(incarnation), BatchNumber(number));
        Batch::sign(self.members.cluster(), id(origin), incarnation, number, requests, self.signer(origin))
    }

    fn append(&self, leader: u8, block: &Arc<Block>) -> Message {
        let signature = self.signer(leader).sign(&Proposal::signed_bytes(block.header()));
        Message::Append(Append {
            block: Arc::clone(block),
            signature,
            certificates: Certificates::default(),
            votes_to: Route::Leader,
        })
    }

    fn vote(&self, node: u8, kind: BallotKind, block: BlockRef) -> Vote {
        let ballot = Ballot { kind, epoch: Epoch(0), block };
        Vote::sign(self.members.cluster(), ballot, id(node), self.signer(node))
    }

    fn certificate(&self, kind: BallotKind, block: BlockRef, signers: &[u8]) -> Arc<Certificate> {
        let votes: Vec<_> = signers.iter().map(|node| self.vote(*node, kind, block)).collect();
        let signatures = votes.iter().map(|vote| (vote.signer, vote.signature)).collect();
        Arc::new(Certificate { ballot: votes[0].ballot, signatures })
    }

    fn enter(&self, node: u8, term: u64, position: Option<Arc<Certificate>>) -> Arc<EnterTerm> {
        let block = position.as_ref().map(|it| it.ballot.block);
        let (epoch, term) = (Epoch(0), Term(term));
        let vote =
            TermVote::sign(self.members.cluster(), epoch, term, block, None, id(node), self.signer(node));
        Arc::new(EnterTerm { vote, position, suspects: None, sole: None })
    }

    fn suspect(&self, node: u8, term: u64) -> Suspect {
        Suspect::sign(self.members.cluster(), Epoch(0), Term(term), id(node), self.signer(node))
    }

    fn suspects(&self, term: u64, signers: &[u8]) -> Arc<SuspectCertificate> {
        let signatures =
            signers.iter().map(|node| (id(*node), self.suspect(*node, term).signature)).collect();
        Arc::new(SuspectCertificate { epoch: Epoch(0), term: Term(term), signatures })
    }

    fn new_term(&self, term: u64, enters: &[Arc<EnterTerm>], position: Option<Arc<Certificate>>) -> Message {
        let votes = enters.iter().map(|enter| enter.vote.clone()).collect();
        Message::NewTerm(Arc::new(NewTerm { epoch: Epoch(0), term: Term(term), votes, position, sole: None }))
    }

    /// A node persists a block as the tip of a term that starts at `start`.
    fn accept(&mut self, node: u8, block: &Arc<Block>, start: BlockRef) -> Result<(), Violation> {
        self.sync(node, Record::Block(Arc::clone(block)))?;
        let (term, tip) = (block.header().term, block.reference());
        self.sync(node, Record::Accepted(Accepted { term, start, tip, floor: start.index, sole: None }))
    }

    /// The leader proposes, all accept, and vote to the leader.
    fn prepare(&mut self, leader: u8, block: &Arc<Block>, start: BlockRef) -> Result<(), Violation> {
        let append = self.append(leader, block);
        ALL.iter().filter(|to| **to != leader).try_for_each(|to| self.send(leader, *to, &append))?;
        for node in ALL {
            self.accept(node, block, start)?;
            if node != leader {
                let vote = Message::Vote(self.vote(node, BallotKind::Prepare, block.reference()));
                self.send(node, leader, &vote)?;
            }
        }
        Ok(())
    }

    /// Everybody persists the Prepare certificate, and votes to commit.
    fn lock(&mut self, leader: u8, block: &Arc<Block>) -> Result<(), Violation> {
        let certificate = self.certificate(BallotKind::Prepare, block.reference(), &[1, 2, 3]);
        for node in ALL {
            self.sync(node, Record::Position(Arc::clone(&certificate)))?;
            if node != leader {
                let vote = Message::Vote(self.vote(node, BallotKind::Commit, block.reference()));
                self.send(node, leader, &vote)?;
            }
        }
        Ok(())
    }

    /// The whole way of a block.
    fn commit(
        &mut self,
        leader: u8,
        block: &Arc<Block>,
        start: BlockRef,
        state: u8,
    ) -> Result<(), Violation> {
        self.prepare(leader, block, start)?;
        self.lock(leader, block)?;
        self.show_commit(leader, block)?;
        ALL.iter().try_for_each(|node| self.execute(*node, block, Digest([state; 32])))
    }

    fn show_commit(&mut self, leader: u8, block: &Arc<Block>) -> Result<(), Violation> {
        let certificate = self.certificate(BallotKind::Commit, block.reference(), &[1, 2, 3]);
        let to = leader % 4 + 1;
        self.send(leader, to, &Message::Certificate(certificate))
    }

    /// The first block of term 0, committed and executed by all.
    fn begin(&mut self) -> Arc<Block> {
        let first = self.block(0, self.root(), vec![]);
        self.commit(1, &first, self.root(), 1).unwrap();
        first
    }
}

fn put(key: &str, value: &str) -> Bytes {
    let operation = Operation::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        expect: Expect::Anything,
        lease: 0,
    };
    postcard::to_stdvec(&operation).unwrap().into()
}

#[test]
fn quorums_leaders_and_ranks_are_the_oracles_own() {
    let play = Play::new();
    let cast = &play.oracle.cast;
    assert_eq!((cast.f(), cast.q()), (1, 3));
    let leaders: Vec<_> =
        (0..5).map(|term| ALL.iter().find(|it| cast.leads(Term(term), id(**it))).unwrap()).collect();
    assert_eq!(leaders, [&1, &2, &3, &4, &1]);
    let quorum = |ids: &[u8]| cast.is_quorum(ids.iter().map(|it| id(*it)));
    assert!(quorum(&[3, 1, 2]) && !quorum(&[1, 2]) && !quorum(&[1, 2, 2]) && !quorum(&[1, 2, 3, 9]));
}

#[test]
fn a_conforming_run_of_two_terms_passes() {
    let mut play = Play::new();
    let first = play.begin();
    let batch = play.batch(2, 1, 1, vec![put("k", "v")]);
    let second = play.block(0, first.reference(), vec![batch]);
    let root = play.root();
    play.commit(1, &second, root, 2).unwrap();
    let position = play.certificate(BallotKind::Prepare, second.reference(), &[1, 2, 3]);
    let enters: Vec<_> = ALL.iter().map(|node| play.enter(*node, 1, Some(Arc::clone(&position)))).collect();
    for (node, enter) in ALL.iter().zip(&enters) {
        play.sync(*node, Record::Term(Arc::clone(enter))).unwrap();
        play.send(*node, 2, &Message::EnterTerm(Arc::clone(enter))).unwrap();
    }
    let new_term = play.new_term(1, &enters[..3], Some(position));
    play.send(2, 1, &new_term).unwrap();
    let third = play.block(1, second.reference(), vec![]);
    play.commit(2, &third, second.reference(), 3).unwrap();
    let restarted = play.start(2, true);
    restarted.unwrap();
}
