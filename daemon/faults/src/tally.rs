//! Gathers votes for a liar's own blocks, which the honest replica inside it knows nothing of.

use std::collections::BTreeMap;

use bftd_core::{
    ballot::{Ballot, BallotKind, Vote},
    certificate::Certificate,
    crypto::Digest,
    ids::{Index, MemberId},
};

use crate::Liar;

/// How many ballots are remembered; votes on more are passed over. Runs are short.
const REMEMBERED: usize = 256;

/// Votes by ballot.
#[derive(Default)]
pub(crate) struct Tally(BTreeMap<(Index, BallotKind, Digest), BTreeMap<MemberId, Vote>>);

impl Tally {
    /// Adds a vote, and the liar's own on the same ballot. Answers with the certificate that they make.
    pub fn add(&mut self, liar: &Liar, vote: &Vote) -> Option<Certificate> {
        let Ballot { kind, block, .. } = vote.ballot;
        if self.0.len() >= REMEMBERED {
            return None;
        }
        let votes = self.0.entry((block.index, kind, block.digest)).or_default();
        votes.insert(vote.signer, vote.clone());
        let own = Vote::sign(liar.members.cluster(), vote.ballot, liar.me, &*liar.signer);
        votes.insert(own.signer, own);
        Certificate::gather(&liar.members, vote.ballot, votes.values())
    }
}
