//! Signatures, certificates, disks and terms.

use super::*;
use crate::oracle::durability::Durability;
use BallotKind::{Commit, Prepare};
use bftd_core::evidence::Evidence;

/// Where a wrong certificate shows.
fn certificate_is_refused(change: impl Fn(&mut Certificate)) {
    let mut play = Play::new();
    let first = play.begin();
    let mut certificate = play.certificate(Commit, first.reference(), &[1, 2, 4]).as_ref().clone();
    let right = Arc::new(certificate.clone());
    play.send(3, 2, &Message::Certificate(right)).unwrap();
    change(&mut certificate);
    let wrong = Arc::new(certificate);
    fires(play.send(3, 2, &Message::Certificate(Arc::clone(&wrong))), "certificate");
    fires(play.sync(3, Record::Position(wrong)), "certificate");
}

#[test]
fn a_certificate_needs_distinct_members_and_true_signatures() {
    certificate_is_refused(|it| it.signatures.truncate(2));
    certificate_is_refused(|it| it.signatures[2] = it.signatures[1]);
    certificate_is_refused(|it| it.signatures[2].0 = id(3));
    certificate_is_refused(|it| it.signatures[2].0 = id(9));
    certificate_is_refused(|it| it.ballot.epoch = Epoch(1));
}

#[test]
fn a_suspect_certificate_needs_a_quorum() {
    let mut play = Play::new();
    let mut enter = play.enter(3, 1, None).as_ref().clone();
    enter.suspects = Some(play.suspects(0, &[1, 2]));
    fires(play.sync(3, Record::Term(Arc::new(enter.clone()))), "suspect-certificate");
    enter.suspects = Some(play.suspects(0, &[1, 2, 4]));
    Play::new().sync(3, Record::Term(Arc::new(enter))).unwrap();
}

#[test]
fn a_position_is_what_its_certificate_names() {
    let mut play = Play::new();
    let first = play.begin();
    let mut enter = play.enter(3, 1, Some(play.certificate(Prepare, first.reference(), &[1, 2, 3])));
    Arc::get_mut(&mut enter).unwrap().position = None;
    fires(play.sync(3, Record::Term(enter)), "position");
}

#[test]
fn what_is_passed_on_is_signed() {
    let mut play = Play::new();
    let mut batch = play.batch(2, 1, 1, vec![put("k", "v")]);
    batch.requests = vec![put("k", "w")];
    fires(play.send(3, 1, &Message::Batch(Arc::new(batch))), "forwarded");
    let block = play.block(0, play.root(), vec![]);
    let foreign = play.append(3, &block);
    fires(play.send(3, 1, &foreign), "forwarded");
}

#[test]
fn a_proof_is_two_statements_of_a_liar() {
    let mut play = Play::with_liars(&[1]);
    let proposal = |block: &Arc<Block>, message: Message| match message {
        Message::Append(append) => Proposal { header: block.header().clone(), signature: append.signature },
        _ => unreachable!("an append"),
    };
    let one = play.block(0, play.root(), vec![]);
    let two = play.block_with(0, play.root(), vec![], |header| header.time_ms = 7);
    let three = play.block(0, one.reference(), vec![]);
    let first = proposal(&one, play.append(1, &one));
    let proof = |play: &mut Play, evidence| play.send(2, 3, &Message::Evidence(Box::new(evidence)));
    for (block, leader, is_proof) in [(&two, 1, true), (&one, 1, false), (&three, 1, false), (&two, 4, false)]
    {
        let second = proposal(block, play.append(leader, block));
        let sent = proof(&mut play, Evidence::DoubleProposal { first: first.clone(), second });
        if is_proof { sent.unwrap() } else { fires(sent, "false-evidence") }
    }
    let (a, b) = (play.vote(1, Prepare, one.reference()), play.vote(1, Prepare, two.reference()));
    let (other, commit) = (play.vote(4, Prepare, two.reference()), play.vote(1, Commit, two.reference()));
    let double =
        |first: &Vote, second: &Vote| Evidence::DoubleVote { first: first.clone(), second: second.clone() };
    proof(&mut play, double(&a, &b)).unwrap();
    for second in [&a, &other, &commit] {
        fires(proof(&mut play, double(&a, second)), "false-evidence");
    }
    fires(play.sync(3, Record::Evidence(Box::new(double(&a, &other)))), "false-evidence");
    let low = |term| play.enter(1, term, None).vote.clone();
    let (later, same) = (low(1), low(0));
    proof(&mut play, Evidence::ForgottenLock { commit: commit.clone(), term_vote: later.clone() }).unwrap();
    fires(
        proof(&mut play, Evidence::ForgottenLock { commit: commit.clone(), term_vote: same }),
        "false-evidence",
    );
    fires(proof(&mut play, Evidence::ForgottenLock { commit: b, term_vote: later }), "false-evidence");
    let position = play.certificate(Prepare, two.reference(), &[1, 2, 3]);
    let reported = play.enter(1, 1, Some(position)).vote.clone();
    fires(proof(&mut play, Evidence::ForgottenLock { commit, term_vote: reported }), "false-evidence");
}

#[test]
fn a_correct_member_is_not_accused() {
    let mut play = Play::with_liars(&[1]);
    let one = play.block(0, play.root(), vec![]);
    let two = play.block_with(0, play.root(), vec![], |header| header.time_ms = 7);
    let (first, second) = (play.vote(4, Prepare, one.reference()), play.vote(4, Prepare, two.reference()));
    let evidence = Evidence::DoubleVote { first, second };
    fires(play.send(2, 3, &Message::Evidence(Box::new(evidence))), "falsely-accused");
}

#[test]
fn votes_do_not_conflict() {
    let mut play = Play::with_liars(&[1]);
    let one = play.block(0, play.root(), vec![]);
    let two = play.block_with(0, play.root(), vec![], |header| header.time_ms = 7);
    let root = play.root();
    play.accept(2, &one, root).unwrap();
    play.send(2, 1, &Message::Vote(play.vote(2, Prepare, one.reference()))).unwrap();
    play.start(2, true).unwrap();
    play.sync(2, Record::Block(Arc::clone(&two))).unwrap();
    let conflicting = Message::Vote(play.vote(2, Prepare, two.reference()));
    fires(play.send(2, 1, &conflicting), "conflicting-votes");
}

#[test]
fn a_liars_certificate_convicts_a_correct_signer() {
    let mut play = Play::with_liars(&[1]);
    let one = play.block(0, play.root(), vec![]);
    let two = play.block_with(0, play.root(), vec![], |header| header.time_ms = 7);
    let first = Message::Certificate(play.certificate(Prepare, one.reference(), &[1, 2, 3]));
    let second = Message::Certificate(play.certificate(Prepare, two.reference(), &[1, 2, 4]));
    play.send(1, 2, &first).unwrap();
    fires(play.send(1, 3, &second), "conflicting-votes");
}

#[test]
fn prepare_votes_of_a_term_lie_on_one_chain() {
    let mut play = Play::with_liars(&[1]);
    let root = play.root();
    let one = play.block(0, root, vec![]);
    let other = play.block_with(0, root, vec![], |header| header.time_ms = 7);
    let above = play.block(0, other.reference(), vec![]);
    for block in [&one, &other, &above] {
        play.sync(2, Record::Block(Arc::clone(block))).unwrap();
    }
    play.accept(2, &one, root).unwrap();
    play.send(2, 1, &Message::Vote(play.vote(2, Prepare, one.reference()))).unwrap();
    let vote = Message::Vote(play.vote(2, Prepare, above.reference()));
    play.accept(2, &above, root).unwrap();
    // Where a Commit certificate puts the other block in the first one's place, it may go on there.
    let mut excused = Play::with_liars(&[1]);
    for block in [&one, &other, &above] {
        excused.sync(2, Record::Block(Arc::clone(block))).unwrap();
    }
    excused.accept(2, &one, root).unwrap();
    excused.send(2, 1, &Message::Vote(play.vote(2, Prepare, one.reference()))).unwrap();
    excused
        .send(1, 2, &Message::Certificate(play.certificate(Commit, other.reference(), &[1, 3, 4])))
        .unwrap();
    excused.accept(2, &above, root).unwrap();
    excused.send(2, 1, &vote).unwrap();
    fires(play.send(2, 1, &vote), "two-chains");
}

#[test]
fn a_leader_proposes_one_block_an_index() {
    let mut play = Play::new();
    let one = play.block(0, play.root(), vec![]);
    let two = play.block_with(0, play.root(), vec![], |header| header.time_ms = 7);
    let first = play.append(1, &one);
    play.send(1, 2, &first).unwrap();
    play.send(1, 3, &first).unwrap();
    let second = play.append(1, &two);
    fires(play.send(1, 2, &second), "conflicting-proposals");
}

#[test]
fn a_leader_that_restarts_proposes_no_more() {
    let mut play = Play::new();
    let first = play.begin();
    play.start(1, true).unwrap();
    let second = play.block(0, first.reference(), vec![]);
    let append = play.append(1, &second);
    fires(play.send(1, 2, &append), "proposal-after-restart");

    let mut silent = Play::new();
    silent.start(1, true).unwrap();
    let first = silent.append(1, &first);
    fires(silent.send(1, 2, &first), "proposal-after-restart");
}

#[test]
fn after_a_term_vote_nothing_lower_is_signed() {
    let mut play = Play::new();
    let root = play.root();
    let first = play.begin();
    let second = play.block(0, first.reference(), vec![]);
    let position = play.certificate(Prepare, first.reference(), &[1, 2, 3]);
    play.accept(3, &second, root).unwrap();
    for node in [1, 3] {
        let enter = play.enter(node, 1, Some(Arc::clone(&position)));
        play.sync(node, Record::Term(Arc::clone(&enter))).unwrap();
        play.send(node, 2, &Message::EnterTerm(enter)).unwrap();
    }
    fires(play.send(3, 1, &Message::Vote(play.vote(3, Prepare, second.reference()))), "vote-after-term-vote");
    fires(play.send(1, 3, &play.append(1, &second)), "vote-after-term-vote");
}

#[test]
fn a_term_has_one_term_vote() {
    let mut play = Play::new();
    let first = play.begin();
    let position = play.certificate(Prepare, first.reference(), &[1, 2, 3]);
    let enter = play.enter(3, 1, Some(position));
    play.sync(3, Record::Term(Arc::clone(&enter))).unwrap();
    play.send(3, 2, &Message::EnterTerm(Arc::clone(&enter))).unwrap();
    play.send(3, 2, &Message::EnterTerm(enter)).unwrap();
    let other = play.enter(3, 1, None);
    play.disks.get_mut(&id(3)).unwrap().term = Some(Arc::clone(&other));
    fires(play.send(3, 2, &Message::EnterTerm(other)), "conflicting-term-votes");
}

#[test]
fn a_term_vote_reports_what_was_voted_to_commit() {
    let mut play = Play::new();
    play.begin();
    let low = play.enter(3, 1, None);
    play.sync(3, Record::Term(Arc::clone(&low))).unwrap();
    fires(play.send(3, 2, &Message::EnterTerm(low)), "position-too-low");
}

#[test]
fn votes_wait_for_the_disk() {
    let mut play = Play::new();
    let root = play.root();
    let block = play.block(0, root, vec![]);
    let append = play.append(1, &block);
    play.send(1, 2, &append).unwrap();
    let vote = Message::Vote(play.vote(2, Prepare, block.reference()));
    fires(play.send(2, 1, &vote), "prepare-not-durable");
    play.sync(3, Record::Block(Arc::clone(&block))).unwrap();
    let vote = Message::Vote(play.vote(3, Prepare, block.reference()));
    fires(play.send(3, 1, &vote), "prepare-not-durable");
    play.accept(4, &block, root).unwrap();
    play.send(4, 1, &Message::Vote(play.vote(4, Prepare, block.reference()))).unwrap();
    fires(play.send(4, 1, &Message::Vote(play.vote(4, Commit, block.reference()))), "commit-not-durable");
}

#[test]
fn a_prepare_vote_needs_the_ancestors_on_disk() {
    let mut play = Play::new();
    let root = play.root();
    let below = play.block(0, root, vec![]);
    let above = play.block(0, below.reference(), vec![]);
    play.accept(2, &above, root).unwrap();
    fires(play.send(2, 1, &Message::Vote(play.vote(2, Prepare, above.reference()))), "prepare-not-durable");
}

#[test]
fn a_leaders_own_vote_waits_for_its_disk() {
    let mut play = Play::new();
    let block = play.block(0, play.root(), vec![]);
    play.send(1, 2, &play.append(1, &block)).unwrap();
    let certificate = Message::Certificate(play.certificate(Prepare, block.reference(), &[1, 2, 3]));
    fires(play.send(1, 2, &certificate), "own-vote-not-durable");
}

#[test]
fn a_term_vote_waits_for_the_disk() {
    let mut play = Play::new();
    let enter = Message::EnterTerm(play.enter(3, 1, None));
    fires(play.send(3, 2, &enter), "term-vote-not-durable");

    let block = play.block(0, play.root(), vec![]);
    let unheld = play.enter(3, 1, Some(play.certificate(Prepare, block.reference(), &[1, 2, 4])));
    play.sync(3, Record::Term(Arc::clone(&unheld))).unwrap();
    fires(play.send(3, 2, &Message::EnterTerm(unheld)), "term-vote-not-durable");
}

#[test]
fn a_leader_enters_its_term_on_disk_first() {
    let mut play = Play::new();
    let enters: Vec<_> = ALL.iter().map(|node| play.enter(*node, 1, None)).collect();
    let others = [0, 2, 3].map(|at| Arc::clone(&enters[at]));
    let new_term = play.new_term(1, &others, None);
    fires(play.send(2, 1, &new_term), "term-not-durable");
    let block = play.block(1, play.root(), vec![]);
    fires(play.send(2, 1, &play.append(2, &block)), "term-not-durable");
    play.sync(2, Record::Term(Arc::clone(&enters[1]))).unwrap();
    play.send(2, 1, &new_term).unwrap();
    play.send(2, 1, &play.append(2, &block)).unwrap();
}

#[test]
fn a_batch_waits_for_its_incarnation() {
    let mut play = Play::new();
    let batch = Arc::new(play.batch(3, 2, 1, vec![put("k", "v")]));
    fires(play.send(3, 1, &Message::Batch(batch)), "incarnation-not-durable");
}

#[test]
fn disks_do_not_go_back() {
    let mut play = Play::new();
    let root = play.root();
    let one = play.block(0, root, vec![]);
    let two = play.block(0, one.reference(), vec![]);
    play.accept(2, &two, root).unwrap();
    fires(play.accept(2, &one, root), "disk-went-back");
    let restarted =
        Accepted { term: Term(0), start: one.reference(), tip: two.reference(), floor: Index(2), sole: None };
    fires(play.sync(2, Record::Accepted(restarted)), "disk-went-back");
    play.sync(3, Record::Term(play.enter(3, 2, None))).unwrap();
    fires(play.sync(3, Record::Term(play.enter(3, 1, None))), "disk-went-back");
}

#[test]
fn a_new_term_takes_the_highest_of_a_quorum() {
    let mut play = Play::new();
    let first = play.begin();
    let position = play.certificate(Prepare, first.reference(), &[1, 2, 3]);
    let enters: Vec<_> = ALL.iter().map(|node| play.enter(*node, 1, Some(Arc::clone(&position)))).collect();
    play.sync(2, Record::Term(Arc::clone(&enters[1]))).unwrap();
    let two = play.new_term(1, &enters[..2], Some(Arc::clone(&position)));
    fires(play.send(2, 1, &two), "new-term");
    let twice = [Arc::clone(&enters[0]), Arc::clone(&enters[0]), Arc::clone(&enters[2])];
    let twice = play.new_term(1, &twice, Some(position));
    fires(play.send(2, 1, &twice), "new-term");
    let low = play.new_term(1, &enters[..3], None);
    fires(play.send(2, 1, &low), "new-term");
}

#[test]
fn a_terms_first_block_is_empty_and_on_its_start() {
    let mut play = Play::new();
    let full = play.block(0, play.root(), vec![play.batch(2, 1, 1, vec![put("k", "v")])]);
    fires(play.send(1, 2, &play.append(1, &full)), "first-block");
    let mut play = Play::new();
    let first = play.begin();
    let elsewhere = play.block(1, first.reference(), vec![]);
    play.sync(2, Record::Term(play.enter(2, 1, None))).unwrap();
    fires(play.send(2, 1, &play.append(2, &elsewhere)), "first-block");
}

#[test]
fn nothing_goes_with_a_terms_first_block() {
    let mut play = Play::new();
    let root = play.root();
    let first = play.block(0, root, vec![]);
    let second = play.block(0, first.reference(), vec![]);
    play.prepare(1, &first, root).unwrap();
    fires(play.send(1, 2, &play.append(1, &second)), "pipelined-start");
}

#[test]
fn what_a_member_tells_of_itself_is_on_its_own_disk_whoever_told_it_before() {
    let play = Play::new();
    let cast = &play.oracle.cast;
    let block = play.block(0, play.root(), vec![]).reference();
    let accepted = Durable {
        position: Some(Arc::new(Certificate::of_acceptance(Epoch(0), block))),
        ..Durable::default()
    };
    let mut durability = Durability::default();
    fires(durability.tell(cast, id(2), block, false, &Durable::default()), "acceptance-not-durable");
    let mut durability = Durability::default();
    durability.tell(cast, id(1), block, true, &accepted).unwrap();
    durability.tell(cast, id(2), block, false, &Durable::default()).unwrap();
    fires(durability.tell(cast, id(2), block, true, &Durable::default()), "acceptance-not-durable");
    durability.tell(cast, id(2), block, true, &accepted).unwrap();
}
