//! The chain, its state, and what clients are told.

use super::*;
use BallotKind::Commit;

fn state(byte: u8) -> Digest {
    Digest([byte; 32])
}

/// A block on the first one, made final and executed: what does the oracle say?
fn second_block(make: impl Fn(&Play, BlockRef) -> Arc<Block>) -> Result<(), Violation> {
    let mut play = Play::new();
    let first = play.begin();
    let block = make(&play, first.reference());
    let root = play.root();
    play.commit(1, &block, root, 2)
}

#[test]
fn nobody_commits_two_chains() {
    let mut play = Play::with_liars(&[1, 2, 3]);
    let first = play.begin();
    let other = play.block_with(0, play.root(), vec![], |header| header.time_ms = 7);
    play.send(1, 4, &play.append(1, &other)).unwrap();
    fires(play.show_commit(1, &other), "agreement");
    fires(play.execute(4, &other, state(1)), "agreement");
    let above = play.block(0, other.reference(), vec![]);
    play.send(1, 4, &play.append(1, &above)).unwrap();
    fires(play.show_commit(1, &above), "agreement");
    assert_ne!(first.digest(), other.digest());
}

#[test]
fn only_what_is_certified_is_executed() {
    let mut play = Play::new();
    let root = play.root();
    let block = play.block(0, root, vec![]);
    play.prepare(1, &block, root).unwrap();
    let position = play.certificate(BallotKind::Prepare, block.reference(), &[1, 2, 3]);
    for node in [2, 3] {
        play.sync(node, Record::Position(Arc::clone(&position))).unwrap();
        play.send(node, 1, &Message::Vote(play.vote(node, Commit, block.reference()))).unwrap();
    }
    fires(play.execute(2, &block, state(1)), "uncertified");
    // The third vote makes a quorum, whether or not a certificate was shown.
    let mut voted = Play::new();
    voted.prepare(1, &block, root).unwrap();
    voted.lock(1, &block).unwrap();
    voted.execute(2, &block, state(1)).unwrap();
    // And so does a certificate.
    play.sync(1, Record::Position(position)).unwrap();
    play.show_commit(1, &block).unwrap();
    play.execute(2, &block, state(1)).unwrap();
}

#[test]
fn a_liars_vote_counts_with_its_true_signature_only() {
    for is_true in [true, false] {
        let mut play = Play::with_liars(&[4]);
        let root = play.root();
        let block = play.block(0, root, vec![]);
        play.send(1, 4, &play.append(1, &block)).unwrap();
        let position = play.certificate(BallotKind::Prepare, block.reference(), &[1, 2, 3]);
        for node in [2, 3] {
            play.accept(node, &block, root).unwrap();
            play.sync(node, Record::Position(Arc::clone(&position))).unwrap();
            play.send(node, 1, &Message::Vote(play.vote(node, Commit, block.reference()))).unwrap();
        }
        let mut vote = play.vote(4, Commit, block.reference());
        if !is_true {
            vote.signature.0[0] ^= 1;
        }
        play.send(4, 1, &Message::Vote(vote)).unwrap();
        let executed = play.execute(2, &block, state(1));
        if is_true { executed.unwrap() } else { fires(executed, "uncertified") }
    }
}

#[test]
fn a_descendants_certificate_will_do_even_before_its_blocks_are_seen() {
    let mut play = Play::with_liars(&[1]);
    let first = play.block(0, play.root(), vec![]);
    let second = play.block(0, first.reference(), vec![]);
    let certificate = play.certificate(Commit, second.reference(), &[1, 2, 3]);
    play.send(1, 4, &Message::Certificate(certificate)).unwrap();
    play.send(1, 4, &play.append(1, &second)).unwrap();
    play.send(1, 4, &play.append(1, &first)).unwrap();
    play.execute(4, &first, state(1)).unwrap();
    play.execute(4, &second, state(2)).unwrap();
}

#[test]
fn nothing_is_executed_twice_or_left_out() {
    let mut play = Play::new();
    let first = play.begin();
    fires(play.execute(2, &first, state(1)), "order");
    play.start(2, true).unwrap();
    play.execute(2, &first, state(1)).unwrap();
}

#[test]
fn states_are_equal() {
    let mut play = Play::new();
    let first = play.begin();
    play.start(2, true).unwrap();
    fires(play.execute(2, &first, state(9)), "state");
    let says = |index, byte| {
        second_block(move |play, first| {
            play.block_with(0, first, vec![], |header| {
                header.executed = Executed { index: Index(index), state: state(byte) };
            })
        })
    };
    says(1, 1).unwrap();
    fires(says(1, 9), "state");
    fires(says(2, 2), "state");
}

#[test]
fn time_does_not_go_back() {
    fires(
        second_block(|play, first| play.block_with(0, first, vec![], |header| header.time_ms = 99)),
        "time",
    );
}

#[test]
fn batches_are_consecutive() {
    let with = |marks: &[(u64, u64)]| {
        second_block(|play, first| {
            let batches =
                marks.iter().map(|(incarnation, number)| play.batch(2, *incarnation, *number, vec![]));
            play.block(0, first, batches.collect())
        })
    };
    with(&[(1, 1), (1, 2), (3, 1)]).unwrap();
    fires(with(&[(1, 2)]), "batches");
    fires(with(&[(1, 1), (1, 1)]), "batches");
    fires(with(&[(1, 1), (1, 3)]), "batches");
    fires(with(&[(2, 1), (1, 2)]), "batches");
    fires(with(&[(1, 1), (2, 2)]), "batches");
    fires(with(&[(0, 1)]), "batches");
}

/// A put of `k`, committed, with the batch's block.
fn written(play: &mut Play) -> Bytes {
    let request = put("k", "v");
    play.see(&Event::Submitted { node: id(2), write: 7, request: &request }).unwrap();
    let first = play.begin();
    let batch = play.batch(2, 1, 1, vec![request.clone()]);
    let block = play.block(0, first.reference(), vec![batch]);
    let root = play.root();
    play.commit(1, &block, root, 2).unwrap();
    request
}

#[test]
fn acknowledged_writes_are_in_the_chain() {
    let mut play = Play::new();
    written(&mut play);
    let told = |write, revision| Event::Acknowledged { node: id(2), write, revision };
    play.see(&told(7, 2)).unwrap();
    fires(play.see(&told(7, 3)), "lost-write");
    let other = put("other", "v");
    play.see(&Event::Submitted { node: id(2), write: 8, request: &other }).unwrap();
    fires(play.see(&told(8, 3)), "lost-write");
    fires(play.oracle.clients.end(), "lost-write");
}

#[test]
fn reads_see_what_was_acknowledged() {
    let mut play = Play::new();
    let key = Bytes::from("k");
    let value = Bytes::from("v");
    let begun = |read| Event::ReadBegun { node: id(3), read, key: &key };
    let answer =
        |read, revision, value| Event::ReadAnswered { node: id(3), read, key: &key, revision, value };
    play.see(&begun(1)).unwrap();
    written(&mut play);
    play.see(&begun(2)).unwrap();
    play.see(&answer(2, 0, None)).unwrap();
    play.see(&Event::Acknowledged { node: id(2), write: 7, revision: 2 }).unwrap();
    play.see(&answer(1, 0, None)).unwrap();
    play.see(&begun(3)).unwrap();
    fires(play.see(&answer(3, 0, None)), "stale-read");
    play.see(&begun(4)).unwrap();
    play.see(&answer(4, 2, Some(&value))).unwrap();
    play.see(&begun(5)).unwrap();
    fires(play.see(&answer(5, 2, Some(&key))), "false-read");
}

#[test]
fn a_read_sees_no_less_than_one_answered_before() {
    let mut play = Play::new();
    let key = Bytes::from("k");
    let value = Bytes::from("v");
    written(&mut play);
    play.see(&Event::ReadBegun { node: id(3), read: 1, key: &key }).unwrap();
    play.see(&Event::ReadAnswered { node: id(3), read: 1, key: &key, revision: 2, value: Some(&value) })
        .unwrap();
    play.see(&Event::ReadBegun { node: id(4), read: 2, key: &key }).unwrap();
    let stale = Event::ReadAnswered { node: id(4), read: 2, key: &key, revision: 0, value: None };
    fires(play.see(&stale), "stale-read");
}
