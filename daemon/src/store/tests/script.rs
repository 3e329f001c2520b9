//! Made-up runs: groups of records as a replica emits them, and what they add up to by the specification.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bftd_core::{
    ballot::{Ballot, BallotKind, TermVote, Vote},
    block::{Batch, Block, BlockRef, Executed, Header, Marks},
    certificate::Certificate,
    crypto::{ClusterId, Digest, Signature},
    durable::{Accepted, Committed, Durable, Record},
    evidence::Evidence,
    ids::{BatchNumber, Epoch, Incarnation, Index, MemberId, Term},
    message::EnterTerm,
};

use crate::store::{Cluster, LogStore, Run};

/// Seeded chance: SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

pub fn cluster() -> Cluster {
    Cluster { name: "test".into(), id: ClusterId(Digest([7; 32])) }
}

/// The block that every chain starts at.
pub fn root() -> BlockRef {
    BlockRef { term: Term(0), index: Index(0), digest: cluster().id.0 }
}

/// A child of a block, with one batch of requests of these lengths.
pub fn block(parent: BlockRef, term: Term, requests: &[usize], random: &mut Random) -> Arc<Block> {
    let mut batches = Vec::new();
    if !requests.is_empty() {
        let requests = requests
            .iter()
            .map(|&length| (0..length).map(|_| random.next().to_le_bytes()[0]).collect())
            .collect();
        let (incarnation, number) = (Incarnation(1), BatchNumber(parent.index.0));
        let signature = Signature([random.next().to_le_bytes()[0]; 64]);
        batches.push(Arc::new(Batch { origin: MemberId(1), incarnation, number, requests, signature }));
    }
    let header = Header {
        cluster: cluster().id,
        epoch: Epoch(0),
        term,
        index: parent.index.next(),
        parent: parent.digest,
        time_ms: random.next(),
        batches: Block::batches_digest(&batches),
        executed: Executed { index: Index(0), state: Digest::ZERO },
        sole: false,
    };
    Arc::new(Block::new(header, batches))
}

pub fn certificate(kind: BallotKind, block: BlockRef, random: &mut Random) -> Arc<Certificate> {
    let ballot = Ballot { kind, epoch: Epoch(0), block };
    let signatures =
        (1..=3).map(|id| (MemberId(id), Signature([random.next().to_le_bytes()[0]; 64]))).collect();
    Arc::new(Certificate { ballot, signatures })
}

pub fn committed(block: &Block, random: &mut Random) -> Record {
    let mut marks = Marks::default();
    for batch in block.batches() {
        marks.record(batch);
    }
    Record::Committed(Committed {
        certificate: certificate(BallotKind::Commit, block.reference(), random),
        marks,
    })
}

/// What a log must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub durable: Durable,
    /// The committed blocks from index 1.
    pub chain: Vec<Arc<Block>>,
    pub certificates: BTreeMap<Index, Arc<Certificate>>,
}

impl Expected {
    pub fn apply(&mut self, group: &[Record]) {
        for record in group {
            self.chain.extend(self.durable.apply(record));
            if let Record::Committed(committed) = record {
                self.certificates
                    .insert(committed.certificate.block().index, Arc::clone(&committed.certificate));
            }
        }
    }

    /// By plain counting, what [`crate::store::LogReader::committed_after`] shall answer without a limit in bytes.
    pub fn run(&self, after: usize, max_blocks: usize) -> Option<Run> {
        let blocks: Vec<_> = self.chain.iter().skip(after).take(max_blocks).cloned().collect();
        let certified =
            |blocks: &[Arc<Block>]| self.certificates.get(&blocks.last()?.header().index).cloned();
        let length = (1..=blocks.len()).rev().find(|length| certified(&blocks[..*length]).is_some());
        let blocks = blocks[..length.unwrap_or(blocks.len())].to_vec();
        (!blocks.is_empty()).then(|| Run { certificate: certified(&blocks), blocks })
    }

    /// Compares what can be read from a log: everything, from every `stride`th index on.
    pub fn assert_is(&self, store: &LogStore, stride: usize, context: &str) {
        assert_eq!(store.load().unwrap(), self.durable, "{context}");
        let reader = store.reader();
        assert_eq!(reader.committed().unwrap(), self.durable.committed, "{context}");
        for after in (0..=self.chain.len()).step_by(stride) {
            for max_blocks in [1, 3, 100] {
                let run = reader.committed_after(Index(after as u64), max_blocks, usize::MAX).unwrap();
                assert_eq!(run, self.run(after, max_blocks), "after {after}, {context}");
            }
        }
        for (at, block) in self.chain.iter().enumerate().step_by(stride) {
            assert_eq!(reader.block_at(Index(at as u64 + 1)).unwrap().as_ref(), Some(block), "{context}");
        }
        assert_eq!(reader.block_at(Index(self.chain.len() as u64 + 1)).unwrap(), None, "{context}");
        let checked = reader.check(cluster().id).unwrap();
        assert_eq!(checked.blocks, self.chain.len() as u64, "{context}");
        assert_eq!(checked.certificates, self.certificates.len() as u64, "{context}");
    }
}

/// A run in the making.
pub struct Script {
    random: Random,
    expected: Expected,
    term: Term,
    /// How often each kind of step was taken.
    pub taken: BTreeMap<&'static str, usize>,
}

impl Script {
    pub fn new(seed: u64) -> Self {
        Self { random: Random(seed), expected: Expected::default(), term: Term(0), taken: BTreeMap::new() }
    }

    /// The next group: 1 to 8 records.
    pub fn group(&mut self) -> Vec<Record> {
        let mut group = Vec::new();
        for _ in 0..=self.random.below(4) {
            let records = self.step();
            self.expected.apply(&records);
            group.extend(records);
        }
        group
    }

    fn step(&mut self) -> Vec<Record> {
        let random = &mut self.random;
        let committed = self.expected.chain.last().map_or(root(), |block| block.reference());
        // Those blocks that can still be committed; the others are descendants of blocks that lost.
        let mut alive = BTreeSet::from([committed.digest]);
        let above = self.expected.durable.blocks.values().cloned();
        let above: Vec<_> = above
            .filter(|block| alive.contains(&block.header().parent) && alive.insert(block.digest()))
            .collect();
        let any =
            |random: &mut Random| (!above.is_empty()).then(|| Arc::clone(&above[random.below(above.len())]));
        let (name, records) = match random.below(13) {
            0 => ("incarnation", vec![Record::Incarnation(self.expected.durable.incarnation.next())]),
            1 => {
                self.term = self.term.next();
                let position = any(random).map(|block| block.reference());
                let signature = Signature([random.next().to_le_bytes()[0]; 64]);
                let vote = TermVote {
                    epoch: Epoch(0),
                    term: self.term,
                    position,
                    sole: None,
                    signer: MemberId(2),
                    signature,
                };
                let position = position.map(|block| certificate(BallotKind::Prepare, block, random));
                (
                    "term",
                    vec![Record::Term(Arc::new(EnterTerm { vote, position, suspects: None, sole: None }))],
                )
            }
            2 | 3 => match any(random) {
                None => ("nothing", vec![]),
                Some(block) => (
                    "position",
                    vec![Record::Position(certificate(BallotKind::Prepare, block.reference(), random))],
                ),
            },
            4..=7 => {
                // Mostly the newest chain grows; sometimes an older block gets another child.
                let fork = random.below(3) == 0;
                let parent = if fork { any(random) } else { above.last().cloned() };
                let parent = parent.map_or(committed, |block| block.reference());
                let count = random.below(4);
                let requests: Vec<_> = (0..count).map(|_| random.below(300)).collect();
                let requests = if random.below(20) == 0 { vec![9_000] } else { requests };
                let block = block(parent, self.term, &requests, random);
                let tip = block.reference();
                let accepted =
                    Accepted { term: self.term, start: committed, tip, floor: Index(0), sole: None };
                let forks = above.iter().any(|other| other.header().index == tip.index);
                (if forks { "fork" } else { "block" }, vec![Record::Block(block), Record::Accepted(accepted)])
            }
            8 => match any(random) {
                None => ("nothing", vec![]),
                Some(block) => ("block again", vec![Record::Block(block)]),
            },
            9 => {
                let vote = |random: &mut Random| {
                    let digest = Digest([random.next().to_le_bytes()[0]; 32]);
                    let block = BlockRef { term: self.term, index: committed.index.next(), digest };
                    let ballot = Ballot { kind: BallotKind::Prepare, epoch: Epoch(0), block };
                    Vote { ballot, signer: MemberId(2), signature: Signature([7; 64]) }
                };
                let evidence = Evidence::DoubleVote { first: vote(random), second: vote(random) };
                ("evidence", vec![Record::Evidence(Box::new(evidence))])
            }
            _ => match any(random) {
                None => ("nothing", vec![]),
                Some(block) => {
                    let skips = block.header().index > committed.index.next();
                    (if skips { "commit of many" } else { "commit" }, vec![self::committed(&block, random)])
                }
            },
        };
        let mut after = self.expected.clone();
        after.apply(&records);
        let reached: BTreeSet<_> = after.durable.blocks.keys().collect();
        let gone = self.expected.durable.blocks.keys().filter(|key| !reached.contains(key)).count();
        if gone > after.chain.len() - self.expected.chain.len() {
            *self.taken.entry("abandoned").or_default() += 1;
        }
        *self.taken.entry(name).or_default() += 1;
        records
    }
}
