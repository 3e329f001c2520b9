//! What correct members have come to: who of them leads, lags or has stopped, and what they hold.

use std::collections::BTreeSet;

use bftd_core::{
    ids::{Index, MemberId},
    replica::{Replica, Status},
};

use super::{
    super::{
        machine::Machine,
        report::{Lagging, Stopped},
    },
    World,
};

impl World<'_> {
    pub(super) fn correct(&self) -> impl Iterator<Item = (&Machine, Status)> {
        let correct = self.machines.iter().filter(|machine| !self.cast.contains_key(&machine.id));
        correct.filter_map(|machine| Some((machine, machine.replica.as_ref()?.status())))
    }

    /// Whether all that run have executed all that is committed, and nothing else is known to any.
    pub(super) fn is_level(&self) -> bool {
        let running = self.correct().filter(|(machine, _)| machine.is_running());
        let mut heights = running.map(|(machine, status)| {
            let executed = machine.executed();
            (executed == status.committed.index).then_some(executed)
        });
        let Some(first) = heights.next() else { return true };
        first.is_some() && heights.all(|height| height == first)
    }

    /// Who runs, and has not executed what another one has.
    pub(super) fn lagging(&self) -> Vec<Lagging> {
        let highest = self.correct().map(|(machine, _)| machine.executed()).max().unwrap_or(Index(0));
        let running = self.correct().filter(|(machine, _)| machine.is_running());
        let behind = running.map(|(it, _)| Lagging { id: it.id.0, blocks: highest.0 - it.executed().0 });
        behind.filter(|lagging| lagging.blocks > 0).collect()
    }

    /// Who runs no more, though it is correct.
    pub(super) fn stopped(&self) -> Vec<Stopped> {
        let halted = self.correct().filter_map(|(machine, _)| Some((machine.id.0, machine.halted.as_ref()?)));
        halted.map(|(id, halt)| Stopped { id, why: halt.to_string() }).collect()
    }

    /// The highest committed index.
    pub(super) fn height(&self) -> u64 {
        self.correct().map(|(_, status)| status.committed.index).max().unwrap_or(Index(0)).0
    }

    pub(super) fn term(&self) -> u64 {
        self.correct().map(|(_, status)| status.term.0).max().unwrap_or_default()
    }

    /// The leader of the highest term.
    pub(super) fn leader(&self) -> Option<MemberId> {
        self.correct().max_by_key(|(_, status)| status.term).map(|(_, status)| status.leader)
    }

    pub(super) fn evidence(&self) -> usize {
        let replicas = self.machines.iter().filter(|machine| !self.cast.contains_key(&machine.id));
        let proofs = replicas.filter_map(|machine| machine.replica.as_ref()).flat_map(Replica::evidence);
        proofs.map(|proof| proof.offence(&self.members)).collect::<BTreeSet<_>>().len()
    }
}
