//! When more than f members are faulty, and how that comes to light: a certified block that does not stand on a final one which ranks no
//! higher. No quorums of which two meet in a correct member make both. There is no right answer any more, so this replica stops, and
//! shows the others what it saw.

use std::sync::Arc;

use super::{
    Replica,
    io::{Halt, Output, To},
};
use crate::{block::BlockRef, certificate::Certificate, message::Message};

impl Replica {
    /// Compares a certificate with all that are known here; halts, and says so, if both can't be.
    pub(super) fn contradicts(&mut self, certificate: &Arc<Certificate>) -> bool {
        if self.halted {
            return true;
        }
        let block = certificate.block();
        let committed = self.tree.committed_at(block.index).filter(|committed| *committed != block);
        if let Some(committed) = committed.filter(|_| certificate.is_commit()) {
            self.halt_for_conflict(committed, certificate);
            return true;
        }
        let known = self.committed.iter().chain(self.safety.position()).chain(self.fetcher.certificates());
        let contradicts = |other: &&Arc<Certificate>| {
            self.stands_aside(certificate, other) || self.stands_aside(other, certificate)
        };
        let Some(other) = { known }.find(contradicts).cloned() else { return false };
        let (certified, made_final) = if self.stands_aside(certificate, &other) {
            (certificate, &other)
        } else {
            (&other, certificate)
        };
        self.send(To::Others, Message::Certificate(Arc::clone(made_final)));
        self.halt_for_conflict(made_final.block(), certified);
        true
    }

    /// Whether other blocks are final in the place of those that have just been committed; halts, if so.
    pub(super) fn is_rivalled(&mut self) -> bool {
        let rival = |certificate: &Arc<Certificate>| {
            let committed = self.tree.committed_at(certificate.block().index)?;
            let is_rival = certificate.is_commit() && committed != certificate.block();
            is_rival.then(|| (committed, Arc::clone(certificate)))
        };
        let Some((committed, certificate)) = self.fetcher.certificates().find_map(rival) else {
            return false;
        };
        self.halt_for_conflict(committed, &certificate);
        true
    }

    /// Whether a certified block ranks no lower than a final one and does not stand on it, as far as its chain is here.
    fn stands_aside(&self, certificate: &Certificate, made_final: &Certificate) -> bool {
        if !made_final.is_commit() || certificate.rank() < made_final.rank() {
            return false;
        }
        let (block, tip) = (made_final.block(), certificate.block());
        if tip.index == block.index {
            return tip != block;
        }
        let mut chain = self.tree.descend(&tip.digest).map(|ancestor| ancestor.reference());
        let there = chain.find(|ancestor| ancestor.index <= block.index);
        there.is_some_and(|there| there.index == block.index && there != block)
    }

    /// Stops, as a certified block stands against what is final.
    pub(super) fn halt_for_conflict(&mut self, committed: BlockRef, certificate: &Arc<Certificate>) {
        // Somebody may hold neither, or only this one.
        self.send(To::Others, Message::Certificate(Arc::clone(certificate)));
        self.halt(Halt::ConflictingCertificates { committed, certified: certificate.block() });
    }

    pub(super) fn halt(&mut self, halt: Halt) {
        self.halted = true;
        if let (Halt::ConflictingCertificates { .. }, Some(certificate)) = (&halt, self.committed.clone()) {
            // Whoever has committed the other block must not go on either.
            self.send(To::Others, Message::Certificate(certificate));
        }
        self.outputs.push(Output::Halt(halt));
    }
}
