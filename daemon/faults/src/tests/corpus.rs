//! One corpus of invalid objects: every field of every kind of message altered, in every way that [`alter`] knows. What a
//! verifier lets through claims nothing that its signers did not say; what a fetch brings is taken only where a certificate
//! covers it.

use std::collections::BTreeSet;

use bftd_core::{
    ballot::{Suspect, TermVote},
    block::{Batch, Executed, Header},
    certificate::{Certificate, SuspectCertificate},
    crypto::{Digest, Ed25519, Ed25519Signer},
    evidence::Evidence,
    ids::{BatchNumber, Epoch, Incarnation, Index},
    kv,
    membership::{Genesis, Member},
    message::{
        Blocks, EnterTerm, FetchAncestors, FetchCommitted, Heartbeat, NewTerm, ReadAnswer, ReadQuery,
        ReadRound,
    },
    protocol::Protocol,
    replica::{Input, Output, Replica, Setup},
};

use super::*;
use crate::{chance::Chance, fields, mutate::alter};

/// How often each field is altered.
const WAYS: u64 = 48;

struct Corpus {
    members: Arc<Membership>,
    signers: Vec<Arc<Ed25519Signer>>,
    verifier: Verifier,
}

impl Corpus {
    fn new() -> Self {
        let signers: Vec<_> = (1..=4).map(|id| Arc::new(Ed25519Signer::from_seed(&[id; 32]))).collect();
        let member = |(id, signer): (u8, &Arc<Ed25519Signer>)| Member {
            id: MemberId(id),
            name: format!("node{id}"),
            key: signer.public_key(),
            address: "127.0.0.1:1".parse().unwrap(),
        };
        let members = (1..=4).zip(&signers).map(member).collect();
        let genesis = Genesis { name: "x".into(), protocol: Protocol::BftRaft, created_ms: 0, members };
        let members = Arc::new(genesis.membership().unwrap());
        Self { verifier: Verifier::new(Arc::clone(&members), Arc::new(Ed25519)), members, signers }
    }

    fn signer(&self, id: u8) -> &Ed25519Signer {
        self.signers.get(usize::from(id) - 1).unwrap()
    }

    fn block(&self, parent: BlockRef, batches: Vec<Arc<Batch>>) -> Arc<Block> {
        self.block_that_is(false, parent, batches)
    }

    fn block_that_is(&self, sole: bool, parent: BlockRef, batches: Vec<Arc<Batch>>) -> Arc<Block> {
        let header = Header {
            cluster: self.members.cluster(),
            epoch: Epoch(0),
            term: Term(0),
            index: parent.index.next(),
            parent: parent.digest,
            time_ms: 100,
            batches: Block::batches_digest(&batches),
            executed: Executed { index: Index(0), state: kv::empty_state() },
            sole,
        };
        Arc::new(Block::new(header, batches))
    }

    fn chain(&self) -> [Arc<Block>; 2] {
        let first = self.block(self.members.root(), vec![]);
        let batch = Batch::sign(
            self.members.cluster(),
            MemberId(2),
            Incarnation(1),
            BatchNumber(1),
            vec![b"r".as_slice().into()],
            self.signer(2),
        );
        let second = self.block(first.reference(), vec![Arc::new(batch)]);
        [first, second]
    }

    fn vote(&self, id: u8, kind: BallotKind, block: BlockRef) -> Vote {
        let ballot = Ballot { kind, epoch: Epoch(0), block };
        Vote::sign(self.members.cluster(), ballot, MemberId(id), self.signer(id))
    }

    fn certificate(&self, kind: BallotKind, block: BlockRef) -> Arc<Certificate> {
        let voters = if matches!(kind, BallotKind::Sole { .. }) { 1..=4 } else { 1..=3 };
        let votes: Vec<_> = voters.map(|id| self.vote(id, kind, block)).collect();
        Arc::new(Certificate::gather(&self.members, Ballot { kind, epoch: Epoch(0), block }, &votes).unwrap())
    }

    fn term_vote(&self, id: u8, term: u64, position: Option<BlockRef>) -> TermVote {
        let cluster = self.members.cluster();
        TermVote::sign(cluster, Epoch(0), Term(term), position, None, MemberId(id), self.signer(id))
    }

    fn term_vote_for(&self, id: u8, term: u64, sole: BlockRef) -> TermVote {
        let cluster = self.members.cluster();
        TermVote::sign(cluster, Epoch(0), Term(term), None, Some(sole), MemberId(id), self.signer(id))
    }

    fn suspect(&self, id: u8) -> Suspect {
        Suspect::sign(self.members.cluster(), Epoch(0), Term(0), MemberId(id), self.signer(id))
    }

    fn proposal(&self, block: &Block) -> Proposal {
        let signature = self.signer(1).sign(&Proposal::signed_bytes(block.header()));
        Proposal { header: block.header().clone(), signature }
    }

    /// A valid message of every kind, with all that it can carry.
    fn valid(&self) -> Vec<Message> {
        use BallotKind::{Commit, Prepare};
        let [first, second] = self.chain();
        let prepared = self.certificate(Prepare, second.reference());
        let committed = self.certificate(Commit, first.reference());
        let certificates =
            Certificates { prepared: Some(Arc::clone(&prepared)), committed: Some(Arc::clone(&committed)) };
        let at = Some(second.reference());
        let suspects = [1, 2, 3].map(|id| self.suspect(id));
        let suspects = SuspectCertificate::gather(&self.members, Term(0), &suspects).unwrap();
        let round = ReadRound { incarnation: Incarnation(1), number: 7 };
        let rival = self.block(first.reference(), vec![]);
        let sole = self.block_that_is(true, first.reference(), second.batches().to_vec());
        let Proposal { signature, .. } = self.proposal(&second);
        let batch = second.batches().first().cloned().unwrap();
        let evidence = |evidence: Option<Evidence>| Message::Evidence(Box::new(evidence.unwrap()));
        vec![
            Message::Batch(batch),
            Message::Append(Append {
                block: Arc::clone(&second),
                signature,
                certificates: certificates.clone(),
                votes_to: Route::Member(MemberId(3)),
            }),
            Message::Vote(self.vote(2, Prepare, second.reference())),
            Message::LateVote(self.vote(3, Commit, first.reference())),
            Message::Certificate(Arc::clone(&prepared)),
            Message::Heartbeat(Heartbeat { epoch: Epoch(0), term: Term(0), number: 1, certificates }),
            Message::Suspect(self.suspect(3)),
            evidence(Evidence::of_votes(
                &self.vote(2, Prepare, second.reference()),
                &self.vote(2, Prepare, rival.reference()),
            )),
            evidence(Evidence::of_proposals(&self.proposal(&second), &self.proposal(&rival))),
            evidence(Evidence::of_term_vote(
                &self.vote(2, Commit, second.reference()),
                &self.term_vote(2, 1, Some(first.reference())),
            )),
            Message::Proposal(Box::new(self.proposal(&second))),
            Message::EnterTerm(Arc::new(EnterTerm {
                vote: self.term_vote(2, 1, at),
                position: Some(Arc::clone(&prepared)),
                suspects: Some(Arc::new(suspects)),
                sole: None,
            })),
            Message::EnterTerm(Arc::new(EnterTerm {
                vote: self.term_vote_for(2, 1, sole.reference()),
                position: None,
                suspects: None,
                sole: Some(Arc::clone(&sole)),
            })),
            Message::NewTerm(Arc::new(NewTerm {
                epoch: Epoch(0),
                term: Term(1),
                votes: vec![self.term_vote(1, 1, at), self.term_vote(2, 1, None), self.term_vote(3, 1, None)],
                position: Some(Arc::clone(&prepared)),
                sole: None,
            })),
            Message::NewTerm(Arc::new(NewTerm {
                epoch: Epoch(0),
                term: Term(1),
                votes: vec![
                    self.term_vote_for(1, 1, sole.reference()),
                    self.term_vote_for(2, 1, sole.reference()),
                    self.term_vote(3, 1, Some(first.reference())),
                ],
                position: Some(Arc::clone(&committed)),
                sole: Some(Arc::clone(&sole)),
            })),
            Message::Certificate(self.certificate(BallotKind::Sole { members: 4 }, sole.reference())),
            Message::FetchAncestors(FetchAncestors { digest: second.digest(), above: Index(1) }),
            Message::FetchCommitted(FetchCommitted { after: Index(1) }),
            Message::Blocks(Blocks { blocks: vec![first, second], certificate: Some(committed) }),
            Message::ReadQuery(ReadQuery { epoch: Epoch(0), round }),
            Message::ReadAnswer(ReadAnswer {
                epoch: Epoch(0),
                round,
                position: Some(prepared),
                sole: Some(sole.reference()),
            }),
        ]
    }

    /// Every field of a message altered in many ways.
    fn altered(message: &Message) -> Vec<Message> {
        let mut count = 0;
        fields::visit(&mut message.clone(), &mut |_| count += 1);
        let alter_one = |chosen: u64, way: u64| {
            let mut altered = message.clone();
            let (mut at, mut chance) = (0, Chance::new(way));
            fields::visit(&mut altered, &mut |field| {
                if at == chosen {
                    alter(field, &mut chance);
                }
                at += 1;
            });
            altered
        };
        let all = (0..count).flat_map(|chosen| (0..WAYS).map(move |way| (chosen, way)));
        let all = all.map(|(chosen, way)| alter_one(chosen, way));
        all.filter(|altered| altered != message).collect()
    }
}

/// Whether an altered message says nothing that was not said: what is left is unsigned and binds nobody, or part of the true
/// one.
fn claims_nothing_new(message: &Message, altered: &Message) -> bool {
    let part = |altered: &Option<Arc<Certificate>>, whole: &Option<Arc<Certificate>>| {
        altered.is_none() || altered == whole
    };
    let parts = |altered: &Certificates, whole: &Certificates| {
        part(&altered.prepared, &whole.prepared) && part(&altered.committed, &whole.committed)
    };
    match (message, altered) {
        (Message::Append(whole), Message::Append(it)) => {
            (&it.block, &it.signature) == (&whole.block, &whole.signature)
                && parts(&it.certificates, &whole.certificates)
        }
        (Message::Heartbeat(whole), Message::Heartbeat(it)) => parts(&it.certificates, &whole.certificates),
        (Message::EnterTerm(whole), Message::EnterTerm(it)) => {
            (&it.vote, &it.position, &it.sole) == (&whole.vote, &whole.position, &whole.sole)
                && (it.suspects.is_none() || it.suspects == whole.suspects)
        }
        // Blocks are believed by their digests: one of a true digest is the true block.
        (Message::Blocks(whole), Message::Blocks(it)) => {
            let true_block = |block: &Arc<Block>| {
                whole.blocks.iter().all(|other| other.digest() != block.digest() || other == block)
            };
            it.blocks.iter().all(true_block) && part(&it.certificate, &whole.certificate)
        }
        // Fewer votes for a sole block, and still a quorum's.
        (Message::Certificate(whole), Message::Certificate(it)) => {
            it.ballot == whole.ballot && it.signatures.iter().all(|it| whole.signatures.contains(it))
        }
        (Message::ReadAnswer(whole), Message::ReadAnswer(it)) => part(&it.position, &whole.position),
        (
            Message::FetchAncestors(_) | Message::FetchCommitted(_) | Message::ReadQuery(_),
            Message::FetchAncestors(_) | Message::FetchCommitted(_) | Message::ReadQuery(_),
        ) => true,
        _ => false,
    }
}

#[test]
fn a_verifier_lets_nothing_through_that_was_not_said() {
    let corpus = Corpus::new();
    let mut kinds = BTreeSet::new();
    let (mut refused, mut count) = (0, 0);
    for message in corpus.valid() {
        corpus.verifier.verify(message.clone()).unwrap_or_else(|why| panic!("{why}: {message:?}"));
        kinds.insert(message.name());
        for altered in Corpus::altered(&message) {
            count += 1;
            // Over the wire, as a peer would.
            let altered = Message::decode(&altered.encode()).unwrap();
            match corpus.verifier.verify(altered.clone()) {
                Err(_) => refused += 1,
                Ok(_) => {
                    assert!(claims_nothing_new(&message, &altered), "{altered:?}\nfrom {message:?}");
                }
            }
        }
    }
    assert_eq!(kinds.len(), 16, "every kind of message: {kinds:?}");
    println!("{refused} of {count} altered messages refused, the rest claims nothing new");
    assert!(refused > count / 2);
}

/// What a verifier refuses of a peer is refused of the disk too, wherever it stands there.
#[test]
fn a_replica_does_not_start_from_what_was_not_said() {
    let corpus = Corpus::new();
    let [first, second] = corpus.chain();
    let committed = |certificate: &Arc<Certificate>| {
        let marks = bftd_core::block::Marks::default();
        Some(bftd_core::durable::Committed { certificate: Arc::clone(certificate), marks })
    };
    let first_at = (first.header().index, first.digest());
    let second_at = (second.header().index, second.digest());
    let is_sound = |durable: &Durable| durable.check(MemberId(2), &corpus.verifier).is_ok();
    let (mut sound, mut count) = (0, 0);
    let mut check = |is_valid: bool, durables: &[Durable]| {
        for durable in durables {
            count += 1;
            sound += usize::from(is_sound(durable));
            assert!(is_valid || !is_sound(durable), "{durable:?}");
        }
    };
    for message in corpus.valid() {
        for altered in std::iter::once(message.clone()).chain(Corpus::altered(&message)) {
            let is_valid = corpus.verifier.verify(altered.clone()).is_ok();
            match altered {
                Message::Certificate(certificate) => {
                    let position = Some(Arc::clone(&certificate));
                    check(is_valid, &[Durable { position, ..Durable::default() }]);
                    // A Prepare certificate commits nothing.
                    let committed_block = Some(Arc::clone(&second));
                    let committed = committed(&certificate);
                    check(false, &[Durable { committed, committed_block, ..Durable::default() }]);
                }
                Message::EnterTerm(entered) => {
                    let is_valid = is_valid && entered.vote.signer == MemberId(2);
                    check(is_valid, &[Durable { term: Some(entered), ..Durable::default() }]);
                }
                Message::Blocks(blocks) => {
                    for block in &blocks.blocks {
                        for (at, truth) in [(first_at, &first), (second_at, &second)] {
                            let blocks = [(at, Arc::clone(block))].into();
                            check(block == truth, &[Durable { blocks, ..Durable::default() }]);
                        }
                    }
                    if let Some(certificate) = &blocks.certificate {
                        let committed_block = blocks.blocks.first().cloned();
                        let certified = Message::Certificate(Arc::clone(certificate));
                        let is_valid = corpus.verifier.verify(certified).is_ok()
                            && committed_block.as_ref() == Some(&first);
                        let committed = committed(certificate);
                        check(is_valid, &[Durable { committed, committed_block, ..Durable::default() }]);
                    }
                }
                _ => {}
            }
        }
    }
    assert!(sound > 10 && sound < count / 2, "{sound} of {count} may be started from");
}

#[test]
fn a_fetch_takes_only_what_a_certificate_covers() {
    let corpus = Corpus::new();
    let chain = corpus.chain();
    let [_, second] = &chain;
    let certificate = corpus.certificate(BallotKind::Commit, second.reference());
    let truth =
        Message::Blocks(Blocks { blocks: chain.to_vec(), certificate: Some(Arc::clone(&certificate)) });
    let start = || {
        let setup = Setup {
            me: MemberId(4),
            members: Arc::clone(&corpus.members),
            signer: Arc::clone(corpus.signers.last().unwrap()) as Arc<dyn Signer>,
            timing: Timing::default(),
            protocol: None,
            one_round: true,
        };
        let states = vec![(Index(0), kv::empty_state())];
        Replica::start(setup, Durable::default(), states, Now { monotonic_us: 1, unix_ms: 100 })
    };
    let mut taken = 0;
    for altered in Corpus::altered(&truth) {
        let mut replica = start();
        let behind = Message::Certificate(Arc::clone(&certificate));
        for message in [behind, altered, truth.clone()] {
            let Ok(message) = corpus.verifier.verify(message) else { continue };
            let now = Now { monotonic_us: 2, unix_ms: 100 };
            // As if each had been asked.
            for from in 1..=3 {
                replica.step(now, Input::Message(MemberId(from), message.clone()));
            }
            replica.check_invariants().unwrap();
        }
        let outputs = replica.take_outputs();
        let executed: Vec<_> = outputs
            .iter()
            .filter_map(|output| if let Output::Execute(block) = output { Some(block) } else { None })
            .collect();
        assert!(executed.iter().zip(&chain).all(|(block, truth)| *block == truth), "{executed:?}");
        assert!(!outputs.iter().any(|output| matches!(output, Output::Halt(_))), "{outputs:?}");
        taken += executed.len();
    }
    assert!(taken > 100, "most of them are mended by the true answer: {taken}");
}

/// A million signed messages over terms, indices and digests from one member: what is kept stays bounded.
#[test]
fn a_flood_of_signed_messages_is_not_kept() {
    let corpus = Corpus::new();
    let setup = Setup {
        me: MemberId(1),
        members: Arc::clone(&corpus.members),
        signer: Arc::clone(corpus.signers.first().unwrap()) as Arc<dyn Signer>,
        timing: Timing::default(),
        protocol: None,
        one_round: true,
    };
    let now = Now { monotonic_us: 1, unix_ms: 100 };
    let mut replica = Replica::start(setup, Durable::default(), vec![(Index(0), kv::empty_state())], now);
    let mut chance = Chance::new(1);
    // A signature scheme that believes everything: what is tested comes after the signatures.
    struct Believe;
    impl bftd_core::crypto::CheckSignature for Believe {
        fn check(
            &self,
            _: &bftd_core::crypto::PublicKey,
            _: &[u8],
            _: &bftd_core::crypto::Signature,
        ) -> bool {
            true
        }
    }
    let verifier = Verifier::new(Arc::clone(&corpus.members), Arc::new(Believe));
    let signature = bftd_core::crypto::Signature([7; 64]);
    let from = MemberId(2);
    for _ in 0..1_000_000 {
        let mut number = || if chance.one_in(4) { chance.below(u64::MAX) } else { chance.below(40) };
        let (term, index) = (Term(number()), Index(number()));
        let mut digest = Digest([0; 32]);
        digest.0[..8].copy_from_slice(&number().to_le_bytes());
        let block = BlockRef { term, index, digest };
        let message = match chance.below(5) {
            0 | 1 => {
                let kind = if chance.one_in(2) { BallotKind::Prepare } else { BallotKind::Commit };
                let vote = Vote { ballot: Ballot { kind, epoch: Epoch(0), block }, signer: from, signature };
                if chance.one_in(2) { Message::Vote(vote) } else { Message::LateVote(vote) }
            }
            2 => Message::Suspect(Suspect { epoch: Epoch(0), term, signer: from, signature }),
            3 => {
                let vote =
                    TermVote { epoch: Epoch(0), term, position: None, sole: None, signer: from, signature };
                Message::EnterTerm(Arc::new(EnterTerm { vote, position: None, suspects: None, sole: None }))
            }
            _ => {
                let (incarnation, number) = (Incarnation(term.0 % 50), BatchNumber(index.0 % 50));
                let requests = vec![vec![7; 100].into()];
                Message::Batch(Arc::new(Batch { origin: from, incarnation, number, requests, signature }))
            }
        };
        let message = verifier.verify(message).unwrap();
        replica.step(now, Input::Message(from, message));
        drop(replica.take_outputs());
        debug_assert!(replica.check_invariants().is_ok());
    }
    // The bounds of all that is kept are among the invariants.
    replica.check_invariants().unwrap();
    let most = bftd_core::evidence::OffenceKind::COUNT * bftd_core::limits::MAX_EVIDENCE;
    assert!(replica.evidence().count() <= most);
}
