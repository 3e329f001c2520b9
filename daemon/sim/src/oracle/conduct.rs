//! Duties towards others that show in what a correct member sends (DESIGN.md §2.3, §2.6).
//!
//! - `suspect-unanswered`: whoever has a Commit certificate answers a Suspect with one at once.
//! - `position-not-passed`: a reader that learns of a position which nobody has committed passes it to every member.
//!
//! "At once" is before the next message is delivered to it. Only Suspects of correct members are counted: what a liar
//! sends may be refused.

use std::collections::{BTreeMap, BTreeSet};

use bftd_core::{
    ballot::BallotKind,
    ids::MemberId,
    message::{Message, ReadAnswer, ReadRound},
};

use super::{
    agreement::Agreement,
    cast::{Cast, Place, require},
};
use crate::event::Violation;

/// What members owe each other right now.
#[derive(Default)]
pub struct Conduct(BTreeMap<MemberId, Duties>);

#[derive(Default)]
struct Duties {
    /// Who is owed a Commit certificate.
    owed: Option<MemberId>,
    /// A position to pass on, and who has got it.
    position: Option<(Place, BTreeSet<MemberId>)>,
    /// The newest round of reads: who has answered, and the highest position among the answers.
    round: ReadRound,
    answered: BTreeSet<MemberId>,
    highest: Option<(Place, bool)>,
}

impl Conduct {
    /// A member starts: it owes nothing.
    pub fn start(&mut self, node: MemberId) {
        self.0.insert(node, Duties::default());
    }

    /// A correct member sends something.
    pub fn sent(&mut self, cast: &Cast, from: MemberId, to: MemberId, message: &Message) {
        let duties = self.0.entry(from).or_default();
        match message {
            Message::Certificate(certificate) => {
                if certificate.ballot.kind == BallotKind::Commit && duties.owed == Some(to) {
                    duties.owed = None;
                }
                if let Some((place, got)) = &mut duties.position
                    && cast.place(certificate.ballot.block) >= *place
                {
                    got.insert(to);
                }
            }
            Message::ReadQuery(query) if query.round > duties.round => {
                duties.round = query.round;
                duties.answered = BTreeSet::from([from]);
                duties.highest = None;
            }
            _ => {}
        }
    }

    /// A message arrives at a correct member, which has a Commit certificate or not. `is_valid` says whether the position
    /// in an answer is.
    ///
    /// # Errors
    /// `suspect-unanswered`, `position-not-passed`: of what was delivered before.
    pub fn delivered(
        &mut self,
        cast: &Cast,
        chain: &Agreement,
        (from, to): (MemberId, MemberId),
        message: &Message,
        is_valid: bool,
    ) -> Result<(), Violation> {
        let has_certificate = chain.executed_by(to) > cast.root.index.0;
        let duties = self.0.entry(to).or_default();
        require(duties.owed.is_none(), "suspect-unanswered", || {
            format!("{to} has not answered a Suspect of {:?} with a Commit certificate", duties.owed)
        })?;
        if let Some((place, got)) = duties.position.take() {
            require(
                place.2 <= chain.height() || got.len() + 1 >= cast.keys().count(),
                "position-not-passed",
                || format!("{to} reads at {place:?}, which is not committed, and told only {got:?} of it"),
            )?;
        }
        match message {
            Message::Suspect(suspect) if from == suspect.signer && from != to && cast.is_correct(from) => {
                duties.owed = has_certificate.then_some(from);
            }
            Message::ReadAnswer(answer) if is_valid && answer.round == duties.round => {
                duties.answer(cast, chain, from, answer);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Duties {
    fn answer(&mut self, cast: &Cast, chain: &Agreement, from: MemberId, answer: &ReadAnswer) {
        if answer.epoch != cast.epoch || self.answered.len() >= cast.q() || !self.answered.insert(from) {
            return;
        }
        let position = answer.position.as_ref().map(|certificate| {
            (cast.place(certificate.ballot.block), certificate.ballot.kind == BallotKind::Commit)
        });
        self.highest = self.highest.max(position);
        if self.answered.len() >= cast.q()
            && let Some((place, false)) = self.highest
            && place.2 > chain.height()
        {
            self.position = Some((place, BTreeSet::new()));
        }
    }
}
