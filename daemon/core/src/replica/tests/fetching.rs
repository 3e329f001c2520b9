//! Catching up, from members that lie, are slow or say nothing.

use super::*;
use crate::{
    block::Batch,
    crypto::Signature,
    limits::{MAX_FETCHED, WINDOW},
    message::Blocks,
};

impl Cluster {
    /// Node 4 lacks three committed blocks, and is told so by node 3.
    fn one_behind() -> Self {
        let mut cluster = Self::new(4);
        cluster.isolate(4);
        for text in ["x", "y", "z"] {
            cluster.submit(1, text);
            cluster.settle();
        }
        cluster.heal();
        let certificate = cluster.certificate(BallotKind::Commit, cluster.newest(1).reference());
        cluster.hear(3, 4, Message::Certificate(certificate));
        cluster
    }

    /// The certificates that a member has sent to member 3 and that have not arrived.
    fn certificates_shown(&self, from: u8) -> Vec<Arc<Certificate>> {
        let sent = self.wire.iter().filter(|(by, to, _)| *by == id(from) && *to == id(3));
        let messages = sent.map(|(_, _, bytes)| Message::decode(bytes).unwrap());
        let certificate =
            |message| if let Message::Certificate(shown) = message { Some(shown) } else { None };
        messages.filter_map(certificate).collect()
    }

    /// Blocks that nobody has agreed on, after what node 4 has committed.
    fn invented(&self, count: usize) -> Vec<Arc<Block>> {
        let root = self.status(4).committed;
        let template = self.newest(1).header().clone();
        let first = Header { index: root.index.next(), parent: root.digest, ..template };
        let first = Header { batches: Block::batches_digest(&[]), ..first };
        let headers = std::iter::successors(Some(first), |last| Some(Self::child_of(last, last.time_ms)));
        headers.take(count).map(|header| Arc::new(Block::new(header, vec![]))).collect()
    }

    /// The leader shows node 4 that blocks are prepared, one after another, and nobody that any is committed.
    fn show_prepared(&mut self, blocks: &[Arc<Block>]) {
        for block in blocks {
            let prepared = self.certificate(BallotKind::Prepare, block.reference());
            self.hear(1, 4, Message::Certificate(prepared));
            self.hear(1, 4, part(std::slice::from_ref(block)));
            self.wire.clear();
        }
    }

    /// Time passes for node 4 alone: nothing of the leader's is heard, so that only the fetch can help.
    fn tick_4(&mut self) {
        self.now.monotonic_us += TICK_MS * 1000;
        self.step(id(4), Input::Tick);
    }
}

fn part(blocks: &[Arc<Block>]) -> Message {
    Message::Blocks(Blocks { blocks: blocks.to_vec(), certificate: None })
}

/// A sync peer invents blocks beyond what there is, and then says no more. Everybody was asked for what comes after them, and
/// nobody had anything to answer.
#[test]
fn invented_blocks_do_not_keep_a_member_from_catching_up() {
    let mut cluster = Cluster::one_behind();
    cluster.crash(3);
    let invented = cluster.invented(20);
    cluster.hear(3, 4, part(&invented));
    cluster.wire.clear();
    for _ in 0..20 {
        cluster.tick_4();
        cluster.settle();
    }
    assert_eq!(cluster.requests(4), ["x", "y", "z"]);
}

/// A sync peer that answers at once, and never with anything of use, was asked again and again, and nobody else was.
#[test]
fn a_sync_peer_that_brings_nothing_is_passed_over() {
    let mut cluster = Cluster::one_behind();
    cluster.crash(3);
    let useless = [cluster.newest(1)];
    for _ in 0..40 {
        cluster.tick_4();
        // A block that extends nothing; the others answer as they are.
        cluster.hear(3, 4, part(&useless));
        cluster.settle();
    }
    assert_eq!(cluster.requests(4), ["x", "y", "z"]);
}

/// A sync peer that invents one block an answer kept a member busy for as many answers as a run may have blocks.
#[test]
fn a_sync_peer_that_drips_is_passed_over() {
    let mut cluster = Cluster::one_behind();
    let invented = cluster.invented(100);
    let mut answers = invented.chunks(1).map(part);
    for _ in 0..60 {
        cluster.tick_4();
        let mut is_asked = false;
        cluster.settle_through(|_, to, message| match &message {
            Message::FetchCommitted(_) if to == 3 => {
                is_asked = true;
                None
            }
            Message::Blocks(_) | Message::FetchCommitted(_) => Some(message),
            _ => None,
        });
        if is_asked {
            cluster.hear(3, 4, answers.next().unwrap());
        }
    }
    assert_eq!(cluster.requests(4), ["x", "y", "z"]);
}

/// One true block an answer, each with its certificate: nobody else was asked, and the end was never reached.
#[test]
fn a_sync_peer_that_drips_true_blocks_is_passed_over() {
    let mut cluster = Cluster::new(4);
    cluster.isolate(4);
    for _ in 0..100 {
        cluster.submit(1, "x");
        cluster.settle();
    }
    cluster.heal();
    let last = cluster.newest(1);
    let certificate = cluster.certificate(BallotKind::Commit, last.reference());
    cluster.hear(3, 4, Message::Certificate(certificate));
    for _ in 0..80 {
        cluster.tick_4();
        cluster.settle_through(|_, to, message| match &message {
            Message::FetchCommitted(_) if to == 3 => None,
            Message::Blocks(_) | Message::FetchCommitted(_) => Some(message),
            _ => None,
        });
        let next = cluster.status(4).committed.index.next();
        let executed = &cluster.nodes[&id(1)].executed;
        if let Some((at, block)) = executed.iter().find(|(at, _)| at.index == next) {
            let certificate = Some(cluster.certificate(BallotKind::Commit, *at));
            let blocks = vec![Arc::clone(block)];
            cluster.hear(3, 4, Message::Blocks(Blocks { blocks, certificate }));
        }
    }
    assert_eq!(cluster.status(4).committed, last.reference());
}

/// An answer to another question came between the parts of a run, and the parts before it were thrown away.
#[test]
fn a_useless_answer_costs_nothing_that_was_brought() {
    let mut cluster = Cluster::one_behind();
    let root = cluster.status(4).committed;
    let run: Vec<_> = cluster.nodes[&id(1)].executed.iter().map(|(_, block)| Arc::clone(block)).collect();
    let run: Vec<_> = run.into_iter().filter(|block| block.header().index > root.index).collect();
    let (first, rest) = run.split_at(1);
    cluster.wire.clear();
    cluster.hear(3, 4, part(first));
    cluster.hear(3, 4, part(&run[2..]));
    let certificate = Some(cluster.certificate(BallotKind::Commit, cluster.newest(1).reference()));
    cluster.hear(3, 4, Message::Blocks(Blocks { blocks: rest.to_vec(), certificate }));
    assert_eq!(cluster.requests(4), ["x", "y", "z"]);
}

/// More than f members have made two blocks final, and this one has gone on since.
#[test]
#[should_panic(expected = "halts: more than f members are faulty")]
fn another_block_made_final_in_the_place_of_an_older_one_halts() {
    let mut cluster = Cluster::new(4);
    for text in ["x", "y", "z"] {
        cluster.submit(1, text);
        cluster.settle();
    }
    let (older, _) = cluster.nodes[&id(2)].executed[1];
    let certificate = cluster.certificate(BallotKind::Commit, BlockRef { digest: Digest([7; 32]), ..older });
    cluster.hear(3, 2, Message::Certificate(certificate));
}

/// What a member says when it halts, as it must during this.
fn halts(n: u8, cluster: &mut Cluster, during: impl FnOnce(&mut Cluster)) -> String {
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| during(cluster)));
    let said = *panicked.expect_err("nobody halts").downcast::<String>().expect("it says why");
    assert!(said.starts_with(&format!("{n} halts")), "{said}");
    said
}

/// The certificate for another story comes first. It must not be forgotten when the own one becomes final: nobody may be left to
/// say it again.
#[test]
fn a_rival_made_final_before_the_own_block_halts_and_both_are_shown() {
    let mut cluster = Cluster::new(4);
    cluster.submit(1, "x");
    cluster.settle();
    let next = Index(cluster.status(3).committed.index.0 + 1);
    let own = cluster.newest(1).reference();
    let rival = BlockRef { index: next, digest: Digest([7; 32]), ..own };
    let certificate = cluster.certificate(BallotKind::Commit, rival);
    cluster.hear(3, 2, Message::Certificate(Arc::clone(&certificate)));
    cluster.wire.clear();
    cluster.submit(1, "y");
    let said = halts(2, &mut cluster, Cluster::settle);
    assert!(said.contains("more than f members are faulty"), "{said}");
    let shown: Vec<_> = cluster.certificates_shown(2).iter().map(|shown| shown.block()).collect();
    assert!(shown.contains(&rival), "{shown:?}");
    assert!(shown.iter().any(|block| block.index == next && *block != rival), "{shown:?}");
}

/// The rival is looked for, and forgotten for a later block of the own story, before that one's chain comes.
#[test]
fn a_rival_that_was_passed_by_is_remembered_until_its_place_is_taken() {
    let mut cluster = Cluster::one_behind();
    let committed = cluster.nodes[&id(1)].executed.clone();
    let root = cluster.status(4).committed;
    let (next, _) = committed.iter().find(|(block, _)| block.index == root.index.next()).unwrap();
    let rival = BlockRef { digest: Digest([7; 32]), ..*next };
    cluster.crash(4);
    cluster.start(4);
    cluster.wire.clear();
    let rival_final = cluster.certificate(BallotKind::Commit, rival);
    cluster.hear(3, 4, Message::Certificate(rival_final));
    let newest = cluster.certificate(BallotKind::Commit, cluster.newest(1).reference());
    cluster.hear(3, 4, Message::Certificate(newest));
    let said = halts(4, &mut cluster, Cluster::settle);
    assert!(said.contains("more than f members are faulty"), "{said}");
}

/// A quorum has prepared one block, and another is final in its place, whichever is heard of first.
#[test]
fn a_block_made_final_against_the_position_halts_and_both_are_shown() {
    for is_final_first in [false, true] {
        let mut cluster = Cluster::new(4);
        cluster.submit(1, "x");
        cluster.settle();
        cluster.submit(1, "y");
        // The block arrives, but nobody hears a vote for it.
        cluster.settle_through(|_, to, message| match message {
            Message::Vote(_) | Message::Certificate(_) => None,
            message => (to == 2).then_some(message),
        });
        let root = cluster.status(2).committed;
        let tip = cluster.nodes[&id(2)].replica.as_ref().unwrap().safety.open().unwrap().tip;
        assert!(tip.index == root.index.next(), "{tip:?} on {root:?}");
        let rival = BlockRef { digest: Digest([7; 32]), ..tip };
        let prepared = cluster.certificate(BallotKind::Prepare, tip);
        let made_final = cluster.certificate(BallotKind::Commit, rival);
        let (first, second) = if is_final_first { (made_final, prepared) } else { (prepared, made_final) };
        cluster.hear(3, 2, Message::Certificate(first));
        cluster.wire.clear();
        let said = halts(2, &mut cluster, |cluster| cluster.hear(4, 2, Message::Certificate(second)));
        assert!(said.contains("more than f members are faulty"), "{said}");
        let shown: Vec<_> = cluster.certificates_shown(2).iter().map(|shown| shown.block()).collect();
        assert!(shown.contains(&rival) && shown.contains(&tip), "{shown:?}");
    }
}

/// Two blocks of one index that are both final, and neither is here.
#[test]
fn two_stories_that_are_both_told_by_others_halt() {
    let mut cluster = Cluster::new(4);
    cluster.submit(1, "x");
    cluster.settle();
    let own = cluster.newest(1).reference();
    let stories = [7, 8].map(|byte| BlockRef { index: own.index.next(), digest: Digest([byte; 32]), ..own });
    let [one, other] = stories.map(|story| cluster.certificate(BallotKind::Commit, story));
    cluster.hear(3, 2, Message::Certificate(one));
    cluster.wire.clear();
    let said = halts(2, &mut cluster, |cluster| cluster.hear(4, 2, Message::Certificate(other)));
    assert!(said.contains("more than f members are faulty"), "{said}");
    let shown: Vec<_> = cluster.certificates_shown(2).iter().map(|shown| shown.block()).collect();
    assert!(stories.iter().all(|story| shown.contains(story)), "{shown:?}");
}

/// More than f members have made another chain final, and it is longer by now.
#[test]
#[should_panic(expected = "halts: more than f members are faulty")]
fn a_final_chain_that_passes_by_halts() {
    let mut cluster = Cluster::new(4);
    cluster.submit(1, "x");
    cluster.settle();
    let newest = cluster.newest(1).header().clone();
    let first = Header { parent: Digest([7; 32]), ..Cluster::child_of(&newest, newest.time_ms) };
    let second = Cluster::child_of(&first, newest.time_ms);
    let blocks: Vec<_> =
        [first, second].map(|header| Arc::new(Block::new(header, vec![]))).into_iter().collect();
    let certificate = cluster.certificate(BallotKind::Commit, blocks[1].reference());
    cluster.hear(3, 2, Message::Certificate(Arc::clone(&certificate)));
    cluster.wire.clear();
    cluster.hear(3, 2, Message::Blocks(Blocks { blocks, certificate: Some(certificate) }));
}

/// Found by the simulator (`toppled`, seed 18458): a run of committed blocks began with one that was wanted by itself, too. The
/// rest was thrown away, and a leader that was behind was suspected before it had caught up.
#[test]
fn an_answer_serves_both_questions() {
    let mut cluster = Cluster::one_behind();
    let root = cluster.status(4).committed;
    let executed = &cluster.nodes[&id(1)].executed;
    let (lowest, _) = executed.iter().find(|(block, _)| block.index == root.index.next()).unwrap();
    let certificate = cluster.certificate(BallotKind::Prepare, *lowest);
    cluster.hear(1, 4, Message::Certificate(certificate));
    cluster.settle_through(|_, _, message| match &message {
        Message::FetchCommitted(_) | Message::Blocks(_) => Some(message),
        _ => None,
    });
    assert_eq!(cluster.requests(4), ["x", "y", "z"]);
}

/// Every answer takes longer than a resend period. Each came when somebody else had been asked, and was thrown away.
#[test]
fn slow_answers_are_waited_for() {
    // The second time it is node 1 alone that answers, and never while it is the one asked.
    for (late_us, in_parts) in [(500_000, true), (6_000_000, false)] {
        let mut cluster = Cluster::one_behind();
        let mut under_way: VecDeque<(u64, u8, Message)> = VecDeque::new();
        for _ in 0..200 {
            cluster.tick_4();
            let now_us = cluster.now.monotonic_us;
            while let Some((_, from, message)) = under_way.pop_front_if(|(at_us, ..)| *at_us <= now_us) {
                cluster.hear(from, 4, message);
            }
            cluster.settle_through(|from, to, message| match message {
                Message::Blocks(mut answer) if to == 4 && (in_parts || from == 1) => {
                    if in_parts && answer.blocks.len() > 1 {
                        answer.blocks.truncate(1);
                        answer.certificate = None;
                    }
                    under_way.push_back((now_us + late_us, from, Message::Blocks(answer)));
                    None
                }
                Message::FetchCommitted(_) => Some(message),
                _ => None,
            });
        }
        assert_eq!(cluster.requests(4), ["x", "y", "z"], "{late_us} µs");
    }
}

/// A leader's heartbeats came in time, its blocks and certificates did not: nobody told the member what it missed.
#[test]
fn a_member_that_the_leader_leaves_out_learns_what_is_committed() {
    let mut cluster = Cluster::new(4);
    cluster.submit(1, "x");
    cluster.run(200);
    assert_eq!(cluster.requests(4), ["x"]);
    cluster.submit(1, "y");
    for _ in 0..60 {
        cluster.tick();
        cluster.settle_through(|from, to, mut message| {
            if (from, to) == (1, 4) {
                let Message::Heartbeat(heartbeat) = &mut message else { return None };
                heartbeat.certificates = Certificates::default();
            }
            Some(message)
        });
    }
    assert_eq!(cluster.status(4).term, Term(0));
    assert_eq!(cluster.requests(4), ["x", "y"]);
}

/// Batch signatures were not covered by the block's digest, and are not checked in fetched blocks.
#[test]
fn a_sync_peer_cannot_spoil_the_signatures_of_batches() {
    let mut cluster = Cluster::new(4);
    cluster.submit(1, "x");
    cluster.settle();
    let block = cluster.newest(1);
    let mut batch = Batch::clone(&block.batches()[0]);
    batch.signature = Signature([7; 64]);
    let spoiled = Arc::new(Block::new(block.header().clone(), vec![Arc::new(batch)]));
    let blocks = Blocks { blocks: vec![spoiled], certificate: None };
    assert!(cluster.verifier.verify(Message::Blocks(blocks)).is_err());
}

/// Found by the simulator: the rest of a chain that was being fetched committed on another way, and the last answer
/// was taken for a proof that more than f members lie.
#[test]
fn a_chain_that_commits_while_it_is_fetched_is_no_conflict() {
    let mut cluster = Cluster::new(4);
    cluster.isolate(4);
    for text in ["w", "x", "y", "z"] {
        cluster.submit(1, text);
        cluster.settle();
    }
    let blocks: Vec<_> = cluster.nodes[&id(1)].executed.iter().map(|(_, block)| Arc::clone(block)).collect();
    let [_, second, third, fourth, fifth] = &blocks[..] else { panic!("five blocks, not {}", blocks.len()) };
    let prepared = [fourth, fifth].map(|block| cluster.certificate(BallotKind::Prepare, block.reference()));
    let committed = cluster.certificate(BallotKind::Commit, third.reference());
    let mut hear = |message| {
        cluster.hear(1, 4, message);
        cluster.wire.clear();
    };
    let some = |blocks: &[&Arc<Block>]| {
        let blocks = blocks.iter().map(|block| Arc::clone(block)).collect();
        Message::Blocks(Blocks { blocks, certificate: None })
    };
    // Both chains lack the second block; the first answer with it completes one of them.
    for certificate in prepared {
        hear(Message::Certificate(certificate));
    }
    hear(some(&[fourth, third]));
    hear(some(&[fifth, fourth, third]));
    hear(some(&[second]));
    hear(Message::Certificate(committed));
    hear(some(&[second]));
    assert_eq!(cluster.status(4).committed, third.reference());
    assert_eq!(cluster.status(4).prepared, fifth.header().index);
}

/// Found by the simulator (`--histories`, seed 1413): a leader kept Commit certificates from one member, which had heard of more blocks
/// within a time-out than its window has. It follows what a quorum has prepared, and the check of the invariants said that it must not.
#[test]
fn a_member_that_hears_of_no_commit_follows_what_is_prepared() {
    let mut cluster = Cluster::new(4);
    let blocks = cluster.invented(2 * usize::try_from(WINDOW).unwrap() + 4);
    let last = blocks.last().unwrap().reference();
    cluster.show_prepared(&blocks);
    assert_eq!(cluster.status(4).prepared, last.index);
    let replica = cluster.nodes[&id(4)].replica.as_ref().unwrap();
    assert!(replica.is_accepted(last), "it helps to commit it");
    let committed = cluster.certificate(BallotKind::Commit, last);
    cluster.hear(3, 4, Message::Certificate(committed));
    assert_eq!(cluster.status(4).committed, last);
}

/// The same leader goes on, and nothing else gets through to the member: what it held had no bound.
#[test]
fn what_is_prepared_and_not_known_to_be_committed_is_bounded() {
    let mut cluster = Cluster::new(4);
    let blocks = cluster.invented(MAX_FETCHED + 4);
    let (near, far) = blocks.split_at(MAX_FETCHED);
    let [highest, last] = [near, far].map(|blocks| blocks.last().unwrap().reference());
    cluster.show_prepared(&blocks);
    assert_eq!(cluster.status(4).uncommitted, MAX_FETCHED);
    assert_eq!(cluster.status(4).prepared, highest.index);
    // It goes on as soon as somebody tells what is committed.
    let committed = cluster.certificate(BallotKind::Commit, highest);
    cluster.hear(3, 4, Message::Certificate(committed));
    cluster.show_prepared(far);
    assert_eq!(cluster.status(4).committed, highest);
    assert_eq!(cluster.status(4).prepared, last.index);
}
