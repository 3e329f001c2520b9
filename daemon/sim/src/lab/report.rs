//! What a run has shown.

use std::collections::BTreeMap;

use bftd_core::{ids::MemberId, protocol::Protocol};
use serde::Serialize;

use super::{Costs, Misconduct, Network};

/// What a run has shown, and what it was, so that it can be made again. Everything but `cpu_seconds` follows from the experiment and
/// its seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The protocol.
    pub protocol: Protocol,
    /// How many members.
    pub nodes: u8,
    /// How many may be faulty.
    pub f: usize,
    /// How many are a quorum.
    pub quorum: usize,
    /// Whether all members' votes made blocks final in one round.
    pub one_round: bool,
    /// How many misbehave, by how.
    pub faulty: BTreeMap<&'static str, usize>,
    /// Which do.
    pub faulty_members: BTreeMap<&'static str, Vec<u8>>,
    /// Whether the members that were drawn might lead the first term.
    pub faulty_leader: bool,
    /// Whether more might be faulty than are tolerated.
    pub beyond_f: bool,
    /// The seed.
    pub seed: u64,
    /// How many clients had a request each at a time.
    pub clients: u32,
    /// The length of the values that they stored, in bytes.
    pub value_size: usize,
    /// What messages went through.
    pub network: Network,
    /// What work took.
    pub costs: Costs,
    /// How many requests there were, and how many were committed and answered.
    pub requests: u32,
    /// See above.
    pub committed: u32,
    /// How many blocks were committed from the first request on.
    pub blocks: u64,
    /// Whether no two correct members have executed different blocks, or got different states, at any index. Those that lag or have
    /// stopped differ from nobody by that.
    pub agreement: bool,
    /// The lowest index at which two do.
    pub disagreement_at: Option<u64>,
    /// Correct members that run, and have executed less than another one at the end.
    pub lagging: Vec<Lagging>,
    /// Correct members that have stopped.
    pub stopped: Vec<Stopped>,
    /// From a client's request to the execution at the member that it asked, in virtual milliseconds; none without a commit.
    pub consensus_time_ms: Option<ConsensusTime>,
    /// How many message delays lie on that way, the request's own to the leader among them: the median, in a network where
    /// messages take a time and nothing else does. None without a commit.
    pub delays: Option<f64>,
    /// Messages that left a member, a committed request; none without a commit, as for all of these. Heartbeats and what else the clock alone makes members repeat to each other in a
    /// cluster at rest are not among them.
    pub messages_per_commit: Option<f64>,
    /// Their encoded bytes, and those of lost packets once more each time that they are sent again.
    pub bytes_per_commit: Option<f64>,
    /// All that left, by kind.
    pub messages_by_kind: BTreeMap<&'static str, u64>,
    /// All that left.
    pub messages: u64,
    /// How many of those that are not there left.
    pub idle_messages: u64,
    /// Signatures that members made, a committed request.
    pub signatures_per_commit: Option<f64>,
    /// Signatures that members checked.
    pub verifications_per_commit: Option<f64>,
    /// How many terms were left.
    pub term_changes: u64,
    /// How many proofs of misbehaviour the correct members hold together, each counted once.
    pub evidence: usize,
    /// How long the requests took all together, in virtual time.
    pub virtual_seconds: f64,
    /// How long this took on a real core. Not what a daemon would need: signatures are keyed hashes here, which cost less than ed25519.
    /// What signatures cost a member is in the virtual times, by [`Costs`].
    pub cpu_seconds: f64,
    /// What left each member.
    pub nodes_tally: Vec<NodeTally>,
}

/// A correct member that is behind at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lagging {
    /// The member.
    pub id: u8,
    /// By how many blocks.
    pub blocks: u64,
}

/// A correct member that has stopped, as a daemon does that must not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stopped {
    /// The member.
    pub id: u8,
    /// What a daemon says that stops for it.
    pub why: String,
}

/// Quantiles of the consensus time, in virtual milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ConsensusTime {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are no slower.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

/// The messages that left a member from the first request on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeTally {
    /// The member.
    pub id: u8,
    /// Messages that the protocol asks for.
    pub correct: u64,
    /// Messages that a liar made, or altered.
    pub corrupt: u64,
    /// Of a member's messages, those that a correct receiver by itself saw to be a lie.
    pub found: u64,
}

impl ConsensusTime {
    /// The quantiles of some times in nanoseconds.
    pub(super) fn of(times_ns: &mut [u64]) -> Option<Self> {
        times_ns.sort_unstable();
        let at = |percent: usize| {
            // Nearest rank.
            let rank = (times_ns.len() * percent).div_ceil(100).max(1);
            times_ns.get(rank - 1).map(|ns| *ns as f64 / 1e6)
        };
        Some(Self { p50: at(50)?, p99: at(99)?, max: at(100)? })
    }
}

/// What is counted while a run lasts, from the first request on.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub messages: u64,
    pub bytes: u64,
    pub by_kind: BTreeMap<&'static str, u64>,
    pub idle: u64,
    pub signed: u64,
    pub verified: u64,
    pub times_ns: Vec<u64>,
    pub tallies: BTreeMap<MemberId, NodeTally>,
}

impl Counts {
    pub fn tally(&mut self, id: MemberId) -> &mut NodeTally {
        self.tallies.entry(id).or_insert(NodeTally { id: id.0, ..NodeTally::default() })
    }
}

/// How many misbehave in each way, and who.
pub(super) fn by_misconduct(cast: &BTreeMap<MemberId, Misconduct>) -> BTreeMap<&'static str, Vec<u8>> {
    let mut by_name: BTreeMap<_, Vec<u8>> = BTreeMap::new();
    for (id, how) in cast {
        by_name.entry(how.name()).or_default().push(id.0);
    }
    by_name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let of = |range: std::ops::RangeInclusive<u64>| {
            ConsensusTime::of(&mut range.rev().map(|ms| ms * 1_000_000).collect::<Vec<_>>())
        };
        assert_eq!(of(1..=100), Some(ConsensusTime { p50: 50.0, p99: 99.0, max: 100.0 }));
        assert_eq!(of(7..=7), Some(ConsensusTime { p50: 7.0, p99: 7.0, max: 7.0 }));
        assert_eq!(ConsensusTime::of(&mut []), None);
    }
}
