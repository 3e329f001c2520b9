//! The promises of one member: "may I" next to "I did".
//!
//! Everything that safety rests on is in this small state, and changes only through the functions below. Each
//! change is a record to persist before what it allows is sent. The proof that these rules suffice is in
//! ARCHITECTURE.md.
//!
//! 1. Within a term, Prepare votes go to blocks of one growing chain: a vote needs a block right on the tip, above the
//!    floor.
//! 2. A Commit vote needs its Prepare certificate (or a higher one) as the position. (Where the protocol has no Prepare votes, a block's
//!    acceptance stands in the place of that certificate: [`Certificate::of_acceptance`].)
//! 3. A term is entered once, upwards, with one term vote that reports the position.
//! 4. A term opens once.
//! 5. The sole block that was voted for last is remembered, and every term vote names it while nothing is known to be
//!    committed in its place.

use std::sync::Arc;

use crate::{
    ballot::Rank,
    block::BlockRef,
    certificate::Certificate,
    durable::Accepted,
    ids::{Epoch, Term},
    message::EnterTerm,
};

#[derive(Clone, Debug)]
pub(super) struct Safety {
    epoch: Epoch,
    entered: Option<Arc<EnterTerm>>,
    accepted: Option<Accepted>,
    position: Option<Arc<Certificate>>,
}

impl Safety {
    pub fn new(
        epoch: Epoch,
        entered: Option<Arc<EnterTerm>>,
        accepted: Option<Accepted>,
        position: Option<Arc<Certificate>>,
    ) -> Self {
        Self { epoch, entered, accepted, position }
    }

    /// The current term.
    pub fn term(&self) -> Term {
        self.entered.as_ref().map_or(Term(0), |entered| entered.vote.term)
    }

    /// The term vote with which the current term was entered; none in term 0.
    pub fn entered(&self) -> Option<&Arc<EnterTerm>> {
        self.entered.as_ref()
    }

    /// The accepted chain of the current term, if it has opened.
    pub fn open(&self) -> Option<Accepted> {
        self.accepted.filter(|accepted| accepted.term == self.term())
    }

    /// The sole block that was voted for last.
    pub fn sole(&self) -> Option<BlockRef> {
        self.accepted.and_then(|accepted| accepted.sole)
    }

    /// The highest certificate; none at the epoch's root.
    pub fn position(&self) -> Option<&Arc<Certificate>> {
        self.position.as_ref()
    }

    /// The position's rank; the epoch's root ranks lowest.
    pub fn rank(&self) -> Option<Rank> {
        self.position.as_ref().map(|certificate| certificate.rank())
    }

    /// Whether a term may be entered: upwards only.
    pub fn may_enter(&self, term: Term) -> bool {
        term > self.term()
    }

    /// The term is entered. From here on no ballot of a lower term is signed.
    pub fn record_enter(&mut self, entered: Arc<EnterTerm>) {
        debug_assert!(self.may_enter(entered.vote.term), "terms only rise");
        self.entered = Some(entered);
    }

    /// Whether the current term may be opened: once.
    pub fn may_open(&self) -> bool {
        self.open().is_none()
    }

    /// The current term opens at `start`.
    pub fn record_open(&mut self, start: BlockRef) -> Accepted {
        debug_assert!(self.may_open(), "a term opens once");
        let accepted =
            Accepted { term: self.term(), start, tip: start, floor: start.index, sole: self.sole() };
        self.accepted = Some(accepted);
        accepted
    }

    /// Whether a block may become the tip: it is of the open term, and one above the tip.
    pub fn may_extend(&self, block: BlockRef) -> bool {
        self.open().is_some_and(|open| block.term == open.term && block.index == open.tip.index.next())
    }

    /// The block is accepted: it is the tip now.
    pub fn record_extend(&mut self, block: BlockRef, is_sole: bool) -> Option<Accepted> {
        debug_assert!(self.may_extend(block), "the chain of a term grows block by block");
        let open = self.accepted.as_mut()?;
        open.tip = block;
        if is_sole {
            open.sole = Some(block);
        }
        Some(*open)
    }

    /// Whether a Prepare vote may be signed for a block that stands on the accepted chain. For a sole one only if it is
    /// remembered as such: one that was adopted with its certificate is not.
    pub fn may_prepare(&self, block: BlockRef, is_sole: bool) -> bool {
        let is_remembered = !is_sole || self.sole() == Some(block);
        is_remembered
            && self.open().is_some_and(|open| {
                block.term == open.term && block.index > open.floor && block.index <= open.tip.index
            })
    }

    /// A certified block of this term takes the tip's place: one that extends the chain, or, where `replaces`, one
    /// that a Commit certificate puts in the place of an accepted one.
    pub fn record_adopt(&mut self, block: BlockRef, replaces: bool) -> Option<Accepted> {
        let open = self.accepted.as_mut()?;
        debug_assert!(block.term == open.term, "only blocks of the term are adopted");
        if replaces {
            open.floor = open.floor.max(open.tip.index);
        }
        open.tip = block;
        Some(*open)
    }

    /// Whether a certificate ranks above the position.
    pub fn may_raise(&self, certificate: &Certificate) -> bool {
        certificate.ballot.epoch == self.epoch && Some(certificate.rank()) > self.rank()
    }

    /// The certificate is the position now: the lock.
    pub fn record_raise(&mut self, certificate: Arc<Certificate>) {
        debug_assert!(self.may_raise(&certificate), "positions only rise");
        self.position = Some(certificate);
    }

    /// Whether a Commit vote may be signed for a prepared block that stands on the accepted chain: the position
    /// reports it, or more.
    pub fn may_commit(&self, certificate: &Certificate) -> bool {
        self.open().is_some_and(|open| certificate.block().term == open.term)
            && self.rank() >= Some(certificate.rank())
    }
}
