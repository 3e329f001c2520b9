//! Liveness, and duties towards others.

use bftd_core::{
    evidence::Evidence,
    message::{ReadAnswer, ReadQuery, ReadRound},
    replica::Status,
};

use super::*;
use BallotKind::Prepare;

type Node = (MemberId, Status, Option<Digest>);

fn nodes(play: &Play, term: u64) -> Vec<Node> {
    let status = Status {
        term: Term(term),
        leader: id(1),
        open: true,
        committed: play.root(),
        prepared: Index(0),
        executed: Executed { index: Index(0), state: Digest::ZERO },
        suspecting: None,
        uncommitted: 0,
        pooled: 0,
        catching_up: false,
        protocol: Protocol::BftRaft,
        next_protocol: Protocol::BftRaft,
    };
    ALL.iter().map(|node| (id(*node), status.clone(), Some(Digest::ZERO))).collect()
}

/// Ends a calm run after 20 seconds.
fn end(
    play: &mut Play,
    nodes: &[Node],
    pending_writes: usize,
    pending_reads: usize,
) -> Result<(), Violation> {
    play.at_us = 20_000_000;
    play.see(&Event::End { nodes, pending_writes, pending_reads })
}

fn calm() -> (Play, Vec<Node>) {
    let mut play = Play::new();
    play.see(&Event::Calm { term: Term(0) }).unwrap();
    let nodes = nodes(&play, 0);
    (play, nodes)
}

#[test]
fn a_quiet_end_passes() {
    let (mut play, nodes) = calm();
    play.send(2, 1, &Message::Suspect(play.suspect(2, 0))).unwrap();
    end(&mut play, &nodes, 0, 0).unwrap();
}

#[test]
fn nobody_halts_or_breaks() {
    let mut play = Play::with_liars(&[1]);
    play.see(&Event::Halted { node: id(1), reason: "lies" }).unwrap();
    fires(play.see(&Event::Halted { node: id(2), reason: "conflict" }), "halted");
    fires(play.see(&Event::InvariantBroken { node: id(2), what: "tip" }), "invariant");
}

#[test]
fn work_is_answered() {
    let (mut play, nodes) = calm();
    fires(end(&mut play, &nodes, 1, 0), "stuck");
    fires(end(&mut play, &nodes, 0, 1), "stuck");
}

#[test]
fn members_end_alike() {
    let (mut play, all) = calm();
    fires(end(&mut play, &all[..3], 0, 0), "apart");
    let mut behind = all.clone();
    behind[3].1.committed.index = Index(1);
    fires(end(&mut play, &behind, 0, 0), "apart");
    let mut behind = all.clone();
    behind[2].1.executed.index = Index(1);
    fires(end(&mut play, &behind, 0, 0), "apart");
    let mut differs = all;
    differs[1].2 = Some(Digest([1; 32]));
    fires(end(&mut play, &differs, 0, 0), "apart");
}

#[test]
fn terms_are_few() {
    let (mut play, _) = calm();
    let bound = super::super::liveness::bound(4);
    let all = nodes(&play, bound);
    end(&mut play, &all, 0, 0).unwrap();
    let all = nodes(&play, bound + 1);
    fires(end(&mut play, &all, 0, 0), "terms");
}

#[test]
fn the_end_is_quiet() {
    let (mut play, nodes) = calm();
    play.at_us = 19_500_000;
    play.send(2, 1, &Message::Suspect(play.suspect(2, 0))).unwrap();
    fires(end(&mut play, &nodes, 0, 0), "restless");
    let (mut play, nodes) = calm();
    let enter = play.enter(2, 1, None);
    play.sync(2, Record::Term(Arc::clone(&enter))).unwrap();
    play.at_us = 19_500_000;
    play.send(2, 1, &Message::EnterTerm(enter)).unwrap();
    fires(end(&mut play, &nodes, 0, 0), "restless");
}

#[test]
fn liars_do_not_topple_a_correct_leader() {
    let topple = |begins: bool, at_us: u64| {
        let mut play = Play::with_liars(&[4]);
        let first = begins.then(|| play.begin());
        let position = first.map(|first| play.certificate(Prepare, first.reference(), &[1, 2, 3]));
        play.see(&Event::Calm { term: Term(0) }).unwrap();
        let enter = play.enter(2, 1, position);
        play.sync(2, Record::Term(Arc::clone(&enter))).unwrap();
        play.at_us = at_us;
        play.send(2, 1, &Message::EnterTerm(enter))
    };
    fires(topple(true, 3_000_000), "toppled");
    topple(true, 1_000_000).unwrap();
    topple(false, 3_000_000).unwrap();
}

#[test]
fn a_leader_hands_its_term_on_to_another_protocol_and_not_at_once() {
    let hand_on = |is_asked: bool, suspects: u8, at_us: u64| {
        let mut play = Play::with_liars(&[4]);
        let first = play.begin();
        let mut newest = first;
        if is_asked {
            let request = Operation::SetProtocol { protocol: Protocol::Ccro }.encode();
            let batch = play.batch(4, 1, 1, vec![request]);
            newest = play.block(0, newest.reference(), vec![batch]);
            let root = play.root();
            play.commit(1, &newest, root, 2).unwrap();
        }
        let position = play.certificate(Prepare, newest.reference(), &[1, 2, 3]);
        play.see(&Event::Calm { term: Term(0) }).unwrap();
        play.at_us = at_us;
        play.send(suspects, 2, &Message::Suspect(play.suspect(suspects, 0))).unwrap();
        play.at_us = 3_000_000;
        let enter = play.enter(2, 1, Some(position));
        play.sync(2, Record::Term(Arc::clone(&enter))).unwrap();
        play.send(2, 1, &Message::EnterTerm(enter))
    };
    hand_on(true, 1, 2_000_000).unwrap();
    fires(hand_on(true, 1, 1_000_000), "toppled");
    fires(hand_on(true, 3, 2_000_000), "toppled");
    fires(hand_on(false, 1, 2_000_000), "toppled");
}

/// Member 2 shows member 3 that member 1 has proposed two blocks.
fn show_proof(play: &mut Play) {
    let proposal = |time_ms| {
        let header = play.block_with(0, play.root(), vec![], |it| it.time_ms = time_ms).header().clone();
        let signature = play.signer(1).sign(&Proposal::signed_bytes(&header));
        Proposal { header, signature }
    };
    let proof = Evidence::DoubleProposal { first: proposal(1), second: proposal(2) };
    play.send(2, 3, &Message::Evidence(Box::new(proof))).unwrap();
}

#[test]
fn a_proved_liar_does_not_lead_on() {
    let mut play = Play::with_liars(&[1]);
    play.see(&Event::Calm { term: Term(0) }).unwrap();
    show_proof(&mut play);
    let all = nodes(&play, 0);
    fires(end(&mut play, &all, 0, 0), "equivocator-kept");
    let all = nodes(&play, 1);
    end(&mut play, &all, 0, 0).unwrap();
}

#[test]
fn a_proved_liar_is_suspected_for_good() {
    for repeats in [true, false] {
        let mut play = Play::with_liars(&[1]);
        show_proof(&mut play);
        play.at_us += 450_000;
        if repeats {
            play.send(2, 3, &Message::Suspect(play.suspect(2, 0))).unwrap();
        }
        play.at_us += 450_000;
        let next = play.deliver(1, 2, &Message::Suspect(play.suspect(1, 0)));
        if repeats { next.unwrap() } else { fires(next, "liar-forgiven") }
    }
}

#[test]
fn a_suspect_is_answered() {
    let mut play = Play::new();
    let first = play.begin();
    let suspect = Message::Suspect(play.suspect(3, 0));
    play.deliver(3, 2, &suspect).unwrap();
    let certificate = play.certificate(BallotKind::Commit, first.reference(), &[1, 2, 3]);
    let position = play.certificate(Prepare, first.reference(), &[1, 2, 3]);
    play.send(2, 3, &Message::Certificate(certificate)).unwrap();
    play.deliver(3, 2, &suspect).unwrap();
    play.send(2, 3, &Message::Certificate(position)).unwrap();
    fires(play.deliver(3, 2, &suspect), "suspect-unanswered");
    // Who has none to show need not answer.
    let mut play = Play::new();
    play.deliver(3, 2, &suspect).unwrap();
    play.deliver(3, 2, &suspect).unwrap();
}

#[test]
fn a_certified_block_counts_as_accepted() {
    for votes in [true, false] {
        let mut play = Play::new();
        let root = play.root();
        let block = play.block(0, root, vec![]);
        play.prepare(1, &block, root).unwrap();
        let position = play.certificate(Prepare, block.reference(), &[1, 2, 3]);
        play.sync(3, Record::Position(position)).unwrap();
        if votes {
            let vote = play.vote(3, BallotKind::Commit, block.reference());
            play.send(3, 1, &Message::Vote(vote)).unwrap();
        }
        let next = play.deliver(1, 3, &Message::Suspect(play.suspect(1, 0)));
        if votes { next.unwrap() } else { fires(next, "commit-withheld") }
    }
}

#[test]
fn a_leader_starts_where_it_can_go_on() {
    for is_held in [true, false] {
        let mut play = Play::new();
        let root = play.root();
        let block = play.block(0, root, vec![]);
        let append = play.append(1, &block);
        for member in [1, 3, 4] {
            play.accept(member, &block, root).unwrap();
        }
        let position = play.certificate(Prepare, block.reference(), &[1, 3, 4]);
        let votes: Vec<_> = [1, 3, 4].map(|it| play.enter(it, 1, Some(Arc::clone(&position)))).into();
        for (member, enter) in [1, 3, 4].into_iter().zip(&votes) {
            play.sync(member, Record::Position(Arc::clone(&position))).unwrap();
            play.sync(member, Record::Term(Arc::clone(enter))).unwrap();
        }
        let own = play.enter(2, 1, None);
        play.sync(2, Record::Term(own)).unwrap();
        if is_held {
            play.deliver(1, 2, &append).unwrap();
        }
        let votes = votes.iter().map(|enter| enter.vote.clone()).collect();
        let new_term =
            NewTerm { epoch: Epoch(0), term: Term(1), votes, position: Some(position), sole: None };
        let sent = play.send(2, 3, &Message::NewTerm(Arc::new(new_term)));
        if is_held { sent.unwrap() } else { fires(sent, "start-missing") }
    }
}

#[test]
fn a_reader_passes_an_uncommitted_position() {
    for told in [&[1, 2, 4][..], &[1, 2]] {
        let mut play = Play::new();
        let root = play.root();
        let block = play.block(0, root, vec![]);
        play.prepare(1, &block, root).unwrap();
        let position = play.certificate(Prepare, block.reference(), &[1, 2, 3]);
        let round = ReadRound { incarnation: Incarnation(1), number: 1 };
        let query = Message::ReadQuery(ReadQuery { epoch: Epoch(0), round });
        let answer =
            |position| Message::ReadAnswer(ReadAnswer { epoch: Epoch(0), round, position, sole: None });
        play.send(3, 1, &query).unwrap();
        play.deliver(1, 3, &answer(None)).unwrap();
        play.deliver(2, 3, &answer(Some(Arc::clone(&position)))).unwrap();
        for to in told {
            play.send(3, *to, &Message::Certificate(Arc::clone(&position))).unwrap();
        }
        let next = play.deliver(1, 3, &query);
        if told.len() == 3 { next.unwrap() } else { fires(next, "position-not-passed") }
    }
}
