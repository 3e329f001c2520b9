//! What correct members say of others is true (DESIGN.md §2.9).
//!
//! - `false-evidence`: a proof that a correct member sends or persists is two statements with true signatures of one
//!   member, which contradict each other.
//! - `falsely-accused`: nobody has a valid proof against a correct member, whatever that one has gone through.

use bftd_core::{
    ballot::{BallotKind, TermVote, Vote},
    block::Proposal,
    evidence::Evidence,
    ids::MemberId,
};

use super::{
    cast::{Cast, require},
    certificates::vote_is_true,
};
use crate::event::Violation;

/// Checks a proof that a correct member sends or persists.
///
/// # Errors
/// `false-evidence`, `falsely-accused`.
pub fn check(cast: &Cast, by: MemberId, evidence: &Evidence) -> Result<(), Violation> {
    let accused = contradicts_itself(cast, evidence);
    require(accused.is_some(), "false-evidence", || format!("{by} accuses without proof: {evidence:?}"))?;
    require(accused.is_none_or(|accused| !cast.is_correct(accused)), "falsely-accused", || {
        format!("{by} has a proof against {accused:?}, which is correct: {evidence:?}")
    })
}

/// Who contradicts itself, if anybody does.
fn contradicts_itself(cast: &Cast, evidence: &Evidence) -> Option<MemberId> {
    let (accused, contradicts) = match evidence {
        Evidence::DoubleVote { first, second } => {
            let (a, b) = (first.ballot, second.ballot);
            let is_commit = |kind| kind == BallotKind::Commit;
            let same_place = first.signer == second.signer
                && (is_commit(a.kind), a.epoch, a.block.term, a.block.index)
                    == (is_commit(b.kind), b.epoch, b.block.term, b.block.index);
            let are_true = vote_is_true(cast, first) && vote_is_true(cast, second);
            (first.signer, same_place && are_true && a.block.digest != b.block.digest)
        }
        Evidence::DoubleProposal { first, second } => {
            let leader = cast.keys().find(|id| cast.leads(first.header.term, *id))?;
            let (a, b) = (&first.header, &second.header);
            let same_place = (a.term, a.index) == (b.term, b.index);
            let are_true = is_proposed(cast, first) && is_proposed(cast, second);
            (leader, same_place && a != b && are_true)
        }
        Evidence::ForgottenLock { commit, term_vote } => (commit.signer, forgets(cast, commit, term_vote)),
    };
    contradicts.then_some(accused)
}

/// Whether a proposal carries the signature of its term's leader.
pub fn is_proposed(cast: &Cast, proposal: &Proposal) -> bool {
    let header = &proposal.header;
    let bytes = Proposal::signed_bytes(header);
    let leader = cast.keys().find(|id| cast.leads(header.term, *id));
    header.epoch == cast.epoch
        && leader.is_some_and(|leader| cast.signed(leader, &bytes, &proposal.signature))
}

fn forgets(cast: &Cast, commit: &Vote, term_vote: &TermVote) -> bool {
    let TermVote { epoch, term, position, sole, signer, signature } = term_vote;
    let bytes = TermVote::signed_bytes(cast.cluster, *epoch, *term, *position, *sole);
    let promised = cast.place(commit.ballot.block);
    let reported = position.map(|block| cast.place(block));
    *signer == commit.signer
        && commit.ballot.kind == BallotKind::Commit
        && vote_is_true(cast, commit)
        && *epoch == cast.epoch
        && cast.signed(*signer, &bytes, signature)
        && promised.1 < term.0
        && reported.is_none_or(|reported| reported < promised)
}
