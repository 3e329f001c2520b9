#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::{
    block::{Block, BlockRef, Executed, Header},
    crypto::{Ed25519, Ed25519Signer, Signer},
    membership::{Genesis, Member},
    protocol::Protocol,
};

fn signer(n: u8) -> Ed25519Signer {
    Ed25519Signer::from_seed(&[n; 32])
}

fn members(name: &str) -> Membership {
    let members = (1..=4).map(|n| Member {
        id: MemberId(n),
        name: format!("node{n}"),
        key: signer(n).public_key(),
        address: "127.0.0.1:1".parse().unwrap(),
    });
    let genesis =
        Genesis { name: name.into(), protocol: Protocol::BftRaft, created_ms: 0, members: members.collect() };
    genesis.membership().unwrap()
}

fn block(term: u64, index: u64, digest: u8) -> BlockRef {
    BlockRef { term: Term(term), index: Index(index), digest: Digest([digest; 32]) }
}

fn vote(members: &Membership, n: u8, kind: BallotKind, block: BlockRef) -> Vote {
    Vote::sign(members.cluster(), Ballot { kind, epoch: members.epoch(), block }, MemberId(n), &signer(n))
}

fn term_vote(members: &Membership, n: u8, term: u64, position: Option<BlockRef>) -> TermVote {
    TermVote::sign(members.cluster(), members.epoch(), Term(term), position, None, MemberId(n), &signer(n))
}

fn proposal(members: &Membership, n: u8, term: u64, time_ms: u64) -> Proposal {
    let header = Header {
        cluster: members.cluster(),
        epoch: members.epoch(),
        term: Term(term),
        index: Index(3),
        parent: Digest([1; 32]),
        time_ms,
        batches: Block::batches_digest(&[]),
        executed: Executed { index: Index(0), state: Digest([0; 32]) },
        sole: false,
    };
    let signature = signer(n).sign(&Proposal::signed_bytes(&header));
    Proposal { header, signature }
}

/// One of each kind, all against member 2.
fn proofs(members: &Membership) -> [Evidence; 3] {
    use BallotKind::{Commit, Prepare};
    let (one, two) = (block(1, 3, 7), block(1, 3, 8));
    [
        Evidence::of_votes(&vote(members, 2, Prepare, one), &vote(members, 2, Prepare, two)).unwrap(),
        Evidence::of_proposals(&proposal(members, 2, 1, 5), &proposal(members, 2, 1, 6)).unwrap(),
        Evidence::of_term_vote(
            &vote(members, 2, Commit, one),
            &term_vote(members, 2, 2, Some(block(1, 2, 9))),
        )
        .unwrap(),
    ]
}

#[test]
fn a_contradiction_is_a_proof_for_everybody() {
    let members = members("here");
    for proof in proofs(&members) {
        proof.check(&members, &Ed25519).unwrap();
        assert_eq!(proof.offence(&members).accused, MemberId(2));
        let bytes = postcard::to_stdvec(&proof).unwrap();
        let again: Evidence = postcard::from_bytes(&bytes).unwrap();
        assert_eq!((again.digest(), &again), (proof.digest(), &proof));
    }
}

#[test]
fn what_a_correct_member_says_is_no_proof() {
    use BallotKind::{Commit, Prepare};
    let members = members("here");
    let at = |block, kind| vote(&members, 2, kind, block);
    let (one, two) = (block(1, 3, 7), block(1, 3, 8));
    for (first, second) in [
        (at(one, Prepare), at(one, Prepare)),
        (at(one, Prepare), at(two, Commit)),
        (at(one, Prepare), at(block(2, 3, 8), Prepare)),
        (at(one, Prepare), at(block(1, 4, 8), Prepare)),
        (at(one, Prepare), vote(&members, 3, Prepare, two)),
    ] {
        assert_eq!(Evidence::of_votes(&first, &second), None);
    }
    let commit = at(one, Commit);
    for (commit, reported) in [
        (commit.clone(), term_vote(&members, 2, 2, Some(one))),
        (commit.clone(), term_vote(&members, 2, 2, Some(block(1, 4, 9)))),
        (commit.clone(), term_vote(&members, 2, 1, None)),
        (commit, term_vote(&members, 3, 2, None)),
        (at(one, Prepare), term_vote(&members, 2, 2, None)),
    ] {
        assert_eq!(Evidence::of_term_vote(&commit, &reported), None);
    }
    let first = proposal(&members, 2, 1, 5);
    assert_eq!(Evidence::of_proposals(&first, &first), None);
    assert_eq!(Evidence::of_proposals(&first, &proposal(&members, 3, 2, 5)), None);
}

#[test]
fn a_proof_that_was_altered_proves_nothing() {
    let here = members("here");
    for proof in proofs(&here) {
        assert!(proof.check(&members("there"), &Ed25519).is_err(), "another cluster's");
        let bytes = postcard::to_stdvec(&proof).unwrap();
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            if let Ok(altered) = postcard::from_bytes::<Evidence>(&altered)
                && altered != proof
            {
                assert!(altered.check(&here, &Ed25519).is_err(), "byte {at} of {proof:?}");
            }
        }
    }
    // Nobody but the term's leader proposes: another member's two headers are no proof against the leader.
    let forged = Evidence::of_proposals(&proposal(&here, 3, 1, 5), &proposal(&here, 3, 1, 6)).unwrap();
    assert_eq!(forged.check(&here, &Ed25519), Err(Misbehavior::BadSignature(MemberId(2))));
    // Nor are two statements of two members, whatever they say.
    let [double, ..] = proofs(&here);
    let Evidence::DoubleVote { first, second } = double else { unreachable!("a double vote") };
    let stranger = Evidence::DoubleVote { first, second: Vote { signer: MemberId(3), ..second } };
    assert_eq!(stranger.check(&here, &Ed25519), Err(Misbehavior::NoProof));
}

#[test]
fn one_offence_has_many_proofs() {
    let members = Arc::new(members("here"));
    let votes = [7, 8, 9].map(|digest| vote(&members, 2, BallotKind::Prepare, block(1, 3, digest)));
    let [a, b, c] = &votes;
    let (first, second) = (Evidence::of_votes(a, b).unwrap(), Evidence::of_votes(a, c).unwrap());
    assert_eq!(first.offence(&members), second.offence(&members));
    assert_ne!(first.digest(), second.digest());
}
