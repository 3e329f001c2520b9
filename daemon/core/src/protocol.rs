//! Protocols as rows of data: nothing else in the core asks which protocol runs.

use serde::{Deserialize, Serialize};

use crate::membership::Faults;

/// The name of a protocol, as it stands in genesis files and on command lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Raft's leader and log, made Byzantine-tolerant: votes travel to the leader.
    #[default]
    BftRaft,
    /// Votes travel to every member: two delays fewer, n² messages.
    Pbft,
    /// Votes travel to a communication node that the leader names by trust.
    Ccro,
    /// Crash faults only, one phase, unsigned certificates.
    Raft,
}

/// What a protocol consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The name in files, flags and output.
    pub name: &'static str,
    /// What members may do wrong, and with it n, f and q.
    pub faults: Faults,
    /// Whether a block needs a quorum's Prepare votes before Commit votes. Else its acceptance is enough, and the position that a
    /// member reports is the last block that it has accepted.
    pub prepares: bool,
    /// Whether members sign what they say. Else the channel that it comes on is believed, and who tells what others said: no
    /// statement can be proved to anybody, and none against anybody.
    pub signs: bool,
    /// Where the leader wants votes to travel. No bearing on safety.
    pub votes_to: VotesTo,
}

/// Where a voter sends its votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VotesTo {
    /// To the leader of the term, which gathers and sends certificates.
    Leader,
    /// To every member; each gathers for itself.
    Everyone,
    /// To one member that the leader names, which gathers and broadcasts.
    CommunicationNode,
}

/// What the protocols have in common that lies can't break.
const BYZANTINE: Row =
    Row { name: "", faults: Faults::Byzantine, prepares: true, signs: true, votes_to: VotesTo::Leader };

impl Protocol {
    /// All protocols, in the order in which they are presented.
    pub const ALL: [Self; 4] = [Self::BftRaft, Self::Pbft, Self::Ccro, Self::Raft];

    /// The protocol's row.
    pub const fn row(self) -> Row {
        match self {
            Self::BftRaft => Row { name: "bft-raft", votes_to: VotesTo::Leader, ..BYZANTINE },
            Self::Pbft => Row { name: "pbft", votes_to: VotesTo::Everyone, ..BYZANTINE },
            Self::Ccro => Row { name: "ccro", votes_to: VotesTo::CommunicationNode, ..BYZANTINE },
            Self::Raft => Row {
                name: "raft",
                faults: Faults::Crash,
                prepares: false,
                signs: false,
                votes_to: VotesTo::Leader,
            },
        }
    }
}

impl Protocol {
    /// Whether a running cluster may go over to another one: if they differ in nothing but where votes travel.
    pub fn may_become(self, other: Self) -> bool {
        Row { name: "", votes_to: VotesTo::Leader, ..self.row() }
            == Row { name: "", votes_to: VotesTo::Leader, ..other.row() }
    }

    /// Those that a running cluster goes over to.
    pub fn switchable() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|protocol| Self::BftRaft.may_become(*protocol))
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.row().name)
    }
}

impl std::str::FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(name: &str) -> Result<Self, UnknownProtocol> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.row().name == name)
            .ok_or_else(|| UnknownProtocol { name: name.to_owned() })
    }
}

/// A name that no protocol has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown protocol `{name}`; known are bft-raft, pbft, ccro and raft")]
pub struct UnknownProtocol {
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byzantine_rows_may_become_each_other_and_raft_nothing_else() {
        use Protocol::{BftRaft, Ccro, Pbft, Raft};
        for from in [BftRaft, Pbft, Ccro] {
            assert!([BftRaft, Pbft, Ccro].iter().all(|to| from.may_become(*to)));
            assert!(!from.may_become(Raft) && !Raft.may_become(from));
        }
        assert_eq!(Protocol::switchable().collect::<Vec<_>>(), [BftRaft, Pbft, Ccro]);
    }
}
