//! Duties towards others that show in what a correct member sends (DESIGN.md §2.3, §2.6).
//!
//! - `suspect-unanswered`: whoever has a Commit certificate answers a Suspect with one at once.
//! - `commit-withheld`: a member whose disk holds the Prepare certificate of a block of its current term, on the chain that it
//!   has accepted or above it, casts its Commit vote at once: it counts a certified block as accepted.
//! - `start-missing`: a leader shows a NewTerm only when it holds the block that the term starts on.
//! - `liar-forgiven`: a member that has proved its term's leader to equivocate goes on suspecting it, whatever commits.
//! - `position-not-passed`: a reader that learns of a position which nobody has committed passes it to every member.
//!
//! "At once" is before the next message is delivered to it. Only Suspects of correct members are counted: what a liar
//! sends may be refused.

use std::collections::{BTreeMap, BTreeSet};

use bftd_core::{
    ballot::BallotKind,
    block::BlockRef,
    certificate::Certificate,
    crypto::Digest,
    durable::{Durable, Record},
    evidence::Evidence,
    ids::{Index, MemberId, Term},
    message::{Message, ReadAnswer, ReadRound},
};

use super::{
    agreement::Agreement,
    cast::{Cast, Place, require},
};
use crate::event::Violation;

/// When a Suspect that is not repeated counts as withdrawn, and more. Microseconds.
const FORGIVEN_US: u64 = 500_000;

/// What members owe each other right now.
#[derive(Default)]
pub struct Conduct(BTreeMap<MemberId, Duties>);

#[derive(Default)]
struct Duties {
    /// The term that it has entered, as far as it has said so.
    entered: Term,
    /// The blocks that came to it in this run.
    given: BTreeSet<Digest>,
    /// Who is owed a Commit certificate.
    owed: Option<MemberId>,
    /// The block that a Commit vote is owed for, and the highest that one was cast for in this run.
    to_commit: Option<Place>,
    committed: Option<Place>,
    /// The term whose leader it has proved to lie, and when it proved or suspected that last.
    proved: Option<(Term, u64)>,
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

    /// Records of a correct member have become durable.
    pub fn synced(&mut self, cast: &Cast, node: MemberId, records: &[Record], durable: &Durable) {
        let duties = self.0.entry(node).or_default();
        let raised = records.iter().any(|record| matches!(record, Record::Position(_)));
        let prepared = durable.position.as_ref().filter(|it| !is_final(cast, it));
        if let Some(certificate) = prepared.filter(|_| raised) {
            let block = certificate.ballot.block;
            let is_due = durable.accepted.is_some_and(|accepted| {
                let current = durable.term.as_ref().map_or(Term(0), |entered| entered.vote.term);
                accepted.term == block.term
                    && block.term == current
                    && (is_ancestor(durable, accepted.tip, block)
                        || is_ancestor(durable, block, accepted.tip))
            });
            let place = cast.place(block);
            duties.to_commit = (is_due && duties.committed < Some(place)).then_some(place);
        }
    }

    /// A correct member sends something.
    ///
    /// # Errors
    /// `start-missing`.
    pub fn sent(
        &mut self,
        at_us: u64,
        cast: &Cast,
        (from, to): (MemberId, MemberId),
        message: &Message,
        durable: &Durable,
    ) -> Result<(), Violation> {
        let duties = self.0.entry(from).or_default();
        match message {
            Message::Certificate(certificate) => {
                if is_final(cast, certificate) && duties.owed == Some(to) {
                    duties.owed = None;
                }
                if let Some((place, got)) = &mut duties.position
                    && cast.place(certificate.ballot.block) >= *place
                {
                    got.insert(to);
                }
            }
            Message::Evidence(evidence) => {
                let current = durable.term.as_ref().map_or(Term(0), |entered| entered.vote.term);
                if let Evidence::DoubleProposal { first, .. } = &**evidence
                    && first.header.term == current
                    && duties.entered <= current
                {
                    duties.proved = Some((current, at_us));
                }
            }
            Message::Suspect(suspect) if suspect.signer == from => {
                let proved = duties.proved.filter(|(term, _)| *term == suspect.term);
                duties.proved = proved.map(|(term, _)| (term, at_us));
            }
            Message::EnterTerm(enter) if enter.vote.signer == from => {
                duties.entered = enter.vote.term;
                duties.proved = duties.proved.filter(|(term, _)| *term >= enter.vote.term);
            }
            Message::NewTerm(new_term) if cast.leads(new_term.term, from) => {
                let position = new_term.position.as_ref().map_or(cast.root, |position| position.ballot.block);
                let start = new_term.sole.as_ref().map_or(position, |sole| sole.reference());
                let committed = durable.committed.as_ref().map(|it| it.certificate.ballot.block.index);
                let is_held = start == cast.root
                    || committed.is_some_and(|committed| start.index <= committed)
                    || durable.blocks.contains_key(&(start.index, start.digest))
                    || duties.given.contains(&start.digest);
                require(is_held, "start-missing", || {
                    format!("{from} starts term {} at {start:?}, which it does not hold", new_term.term)
                })?;
            }
            Message::Vote(vote) | Message::LateVote(vote)
                if vote.signer == from && vote.ballot.kind == BallotKind::Commit =>
            {
                let place = cast.place(vote.ballot.block);
                duties.committed = duties.committed.max(Some(place));
                duties.to_commit = duties.to_commit.filter(|owed| *owed > place);
            }
            Message::ReadQuery(query) if query.round > duties.round => {
                duties.round = query.round;
                duties.answered = BTreeSet::from([from]);
                // Its own answer. What others report below it may have been overtaken by what is final here.
                let committed = durable.committed.as_ref().map(|it| &it.certificate);
                // (A position that nobody's signatures show it tells when it is durable, and may be alone with it until then.)
                let own = durable.position.iter().chain(committed);
                let is_done = |it: &Certificate| is_final(cast, it) || !cast.prepares();
                duties.highest = own.map(|it| (cast.place(it.ballot.block), is_done(it))).max();
            }
            _ => {}
        }
        Ok(())
    }

    /// A message arrives at a correct member, which has a Commit certificate or not. `is_valid` says whether the position
    /// in an answer is.
    ///
    /// # Errors
    /// `suspect-unanswered`, `commit-withheld`, `liar-forgiven`, `position-not-passed`: of what was delivered before.
    pub fn delivered(
        &mut self,
        at_us: u64,
        (cast, chain): (&Cast, &Agreement),
        (from, to): (MemberId, MemberId),
        message: &Message,
        is_valid: bool,
    ) -> Result<(), Violation> {
        let has_certificate = chain.executed_by(to) > cast.root.index.0;
        let duties = self.0.entry(to).or_default();
        require(duties.owed.is_none(), "suspect-unanswered", || {
            format!("{to} has not answered a Suspect of {:?} with a Commit certificate", duties.owed)
        })?;
        let owed = duties.to_commit.filter(|owed| owed.2 > chain.height());
        require(owed.is_none(), "commit-withheld", || {
            format!("{to} holds a Prepare certificate for {owed:?}, and casts no Commit vote")
        })?;
        require(
            duties.proved.is_none_or(|(_, last_us)| at_us <= last_us + FORGIVEN_US),
            "liar-forgiven",
            || {
                format!(
                    "{to} has proved the leader of its term to lie, and no longer suspects it: {:?}",
                    duties.proved
                )
            },
        )?;
        if let Some((place, got)) = duties.position.take() {
            require(
                place.2 <= chain.height() || got.len() + 1 >= cast.keys().count(),
                "position-not-passed",
                || format!("{to} reads at {place:?}, which is not committed, and told only {got:?} of it"),
            )?;
        }
        match message {
            Message::Append(append) => {
                duties.given.insert(append.block.digest());
            }
            Message::EnterTerm(enter) => duties.given.extend(enter.sole.iter().map(|block| block.digest())),
            Message::Blocks(blocks) => duties.given.extend(blocks.blocks.iter().map(|block| block.digest())),
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

/// Whether `old` is `new` or one of its ancestors, by the blocks that a disk holds.
fn is_ancestor(durable: &Durable, old: BlockRef, new: BlockRef) -> bool {
    let (mut index, mut digest) = (new.index, new.digest);
    while index > old.index {
        let Some(block) = durable.blocks.get(&(index, digest)) else { return false };
        digest = block.header().parent;
        index = Index(index.0 - 1);
    }
    (index, digest) == (old.index, old.digest)
}

impl Duties {
    fn answer(&mut self, cast: &Cast, chain: &Agreement, from: MemberId, answer: &ReadAnswer) {
        if answer.epoch != cast.epoch || self.answered.len() >= cast.q() || !self.answered.insert(from) {
            return;
        }
        let position = answer
            .position
            .as_ref()
            .map(|certificate| (cast.place(certificate.ballot.block), is_final(cast, certificate)));
        self.highest = self.highest.max(position);
        if self.answered.len() >= cast.q()
            && let Some((place, false)) = self.highest
            && place.2 > chain.height()
        {
            self.position = Some((place, BTreeSet::new()));
        }
    }
}

fn is_final(cast: &Cast, certificate: &Certificate) -> bool {
    cast.is_final(certificate.ballot.kind, certificate.signatures.len())
}
