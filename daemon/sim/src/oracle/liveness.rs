//! Once faults stop, all goes on (DESIGN.md §2.3, §2.6), and what must never be said.
//!
//! - `halted`, `invariant`: no correct member stops for good, or finds its own state broken.
//! - `stuck`: at the end no correct member has work of its clients without an answer.
//! - `apart`: at the end correct members have committed and executed the same.
//! - `toppled`: when faults have stopped for [`GRACE_US`], a correct leader that has committed a block in its term keeps it,
//!   although the liars go on. One that was asked to go over to another protocol keeps it for [`LED_US`].
//! - `terms`: after faults stop, at most [`bound`] more terms pass.
//! - `restless`: without a liar, nobody enters a term or suspects in the last [`QUIET_US`] (a suspicion is withdrawn
//!   when what it waited for has committed).
//! - `equivocator-kept`: at the end nobody is in a term whose leader a correct member has proved to lie.

use std::collections::{BTreeMap, BTreeSet};

use bftd_core::{
    block::Block,
    crypto::Digest,
    evidence::Evidence,
    ids::{MemberId, Term},
    kv::Operation,
    message::Message,
    replica::Status,
};

use super::cast::{Cast, require};
use crate::event::Violation;

/// How long the end of a run without liars is quiet. Microseconds of virtual time.
pub const QUIET_US: u64 = 1_000_000;

/// How long what faults have left behind may topple leaders, when they have stopped: a few time-outs.
pub const GRACE_US: u64 = 2_000_000;

/// How long a leader keeps its term whatever protocol it is asked to go over to: ten of the shortest time-outs of the plans, less the
/// time in which its entering the term becomes durable.
pub const LED_US: u64 = 1_750_000;

/// What was seen of progress.
#[derive(Default)]
pub struct Liveness {
    calm: Option<Term>,
    calm_us: u64,
    /// When the cluster last went over to another protocol: then its leader hands on its term.
    switched_us: u64,
    disturbed: Option<(u64, String)>,
    proved: BTreeSet<u64>,
    entered: BTreeMap<MemberId, u64>,
    /// The terms with a block that a correct member has executed.
    begun: BTreeSet<u64>,
    /// Whether a block says that the protocol is to be another one.
    is_switched: bool,
    /// When the leader of each term said first that it has entered it, and which ones it has handed on long after that.
    led_since_us: BTreeMap<u64, u64>,
    handed_on: BTreeSet<u64>,
}

/// How many terms may pass after faults stop. With time-outs that double, all correct members come to share a term
/// for long enough after at most one round of leaders by the terms whose time-out is still too short or whose leader
/// resigned (n); the next round has n−f correct leaders in it, each of which can hold its term (another n), and
/// members that were behind may see one Suspect certificate more.
pub fn bound(n: usize) -> u64 {
    2 * n as u64 + 1
}

impl Liveness {
    /// Faults have stopped.
    pub fn calm(&mut self, at_us: u64, term: Term) {
        self.calm = Some(term);
        self.calm_us = at_us;
    }

    /// A correct member has executed a block.
    pub fn executed(&mut self, block: &Block) {
        self.begun.insert(block.header().term.0);
        let mut requests = block.batches().iter().flat_map(|batch| &batch.requests);
        self.is_switched |=
            requests.any(|request| matches!(Operation::decode(request), Ok(Operation::SetProtocol { .. })));
    }

    /// A correct member has executed a request that sets the protocol.
    pub fn switched(&mut self, at_us: u64) {
        self.switched_us = at_us;
    }

    /// A correct member sends something.
    ///
    /// # Errors
    /// `toppled`.
    pub fn sent(
        &mut self,
        cast: &Cast,
        at_us: u64,
        from: MemberId,
        message: &Message,
    ) -> Result<(), Violation> {
        match message {
            Message::Suspect(suspect) if suspect.signer == from => {
                self.disturbed = Some((at_us, format!("{from} suspects term {}", suspect.term)));
                let led_since_us = self.led_since_us.get(&suspect.term.0).copied().unwrap_or(0);
                if cast.leads(suspect.term, from) && self.is_switched && at_us >= led_since_us + LED_US {
                    self.handed_on.insert(suspect.term.0);
                }
            }
            Message::EnterTerm(enter) if enter.vote.signer == from => {
                if cast.leads(enter.vote.term, from) {
                    self.led_since_us.entry(enter.vote.term.0).or_insert(at_us);
                }
                let newest = self.entered.values().max().copied().unwrap_or(0);
                self.check_toppled(cast, at_us, newest, enter.vote.term)?;
                let entered = self.entered.entry(from).or_default();
                if enter.vote.term.0 > *entered {
                    *entered = enter.vote.term.0;
                    self.disturbed = Some((at_us, format!("{from} enters term {}", enter.vote.term)));
                }
            }
            Message::Evidence(evidence) => {
                if let Evidence::DoubleProposal { first, .. } = &**evidence {
                    self.proved.insert(first.header.term.0);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_toppled(&self, cast: &Cast, at_us: u64, newest: u64, entered: Term) -> Result<(), Violation> {
        // Without liars `restless` is the stricter one.
        let since_us = self.calm_us.max(self.switched_us);
        let is_late = self.calm.is_some() && !cast.all_correct() && at_us > since_us + GRACE_US;
        let was_led = self.begun.contains(&newest)
            && cast.correct().iter().any(|leader| cast.leads(Term(newest), *leader));
        let is_kept = was_led && !self.handed_on.contains(&newest);
        require(!(is_late && is_kept && entered.0 > newest), "toppled", || {
            format!("term {newest} of a correct leader is left for {entered}, long after all is calm")
        })
    }

    /// The run is over.
    ///
    /// # Errors
    /// `stuck`, `apart`, `terms`, `restless`, `equivocator-kept`.
    pub fn end(
        &self,
        cast: &Cast,
        at_us: u64,
        nodes: &[(MemberId, Status, Option<Digest>)],
        pending: (usize, usize),
    ) -> Result<(), Violation> {
        let Some(calm) = self.calm else { return Ok(()) };
        require(pending == (0, 0), "stuck", || {
            format!("{} writes and {} reads have no answer at the end", pending.0, pending.1)
        })?;
        let correct: Vec<_> = nodes.iter().filter(|(id, ..)| cast.is_correct(*id)).collect();
        require(correct.len() == cast.correct().len(), "apart", || "a correct member is not running".into())?;
        if let Some((first, status, state)) = correct.first() {
            for (id, other, digest) in &correct {
                let is_same = other.committed == status.committed
                    && other.executed.index == status.executed.index
                    && digest == state;
                require(is_same, "apart", || {
                    format!(
                        "{first} is at {:?}, executed {}, {state:?}; {id} at {:?}, executed {}, {digest:?}",
                        status.committed, status.executed.index, other.committed, other.executed.index
                    )
                })?;
            }
        }
        for (id, status, _) in &correct {
            require(!self.proved.contains(&status.term.0), "equivocator-kept", || {
                format!("{id} is still in term {}, whose leader is proved to lie", status.term)
            })?;
            let passed = status.term.0.saturating_sub(calm.0);
            require(passed <= bound(cast.keys().count()), "terms", || {
                format!("{passed} terms passed after faults had stopped in term {calm}")
            })?;
        }
        let since_us = at_us.saturating_sub(QUIET_US).max(self.calm_us);
        match &self.disturbed {
            Some((last_us, what)) if cast.all_correct() && at_us >= self.calm_us + 3 * QUIET_US => {
                require(*last_us < since_us, "restless", || {
                    format!("{what} at {last_us} us, long after all is calm")
                })
            }
            _ => Ok(()),
        }
    }
}
