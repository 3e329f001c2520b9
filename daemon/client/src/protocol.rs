//! What crosses the admin socket.
//!
//! Both sides first send a [`Greeting`]. After it the client sends [`Request`]s, each in a [`Call`] with a number of
//! the client's choice, and the daemon answers each with a [`Reply`] of that number, in any order. Every item is a
//! frame: its length as four bytes, little-endian, then the item in postcard's encoding.

use bftd_core::{
    evidence::Evidence,
    kv::{Answer, Operation, Outcome, Query, Refusal, Watched},
    membership::{Faults, Membership},
    protocol::Protocol,
};
use serde::{Deserialize, Serialize};

use crate::forming::{FormFailure, FormRequest, Forming, Token};

/// The largest frame in bytes, either way.
pub const MAX_FRAME: usize = 16 << 20;
/// The version of this protocol: both sides must speak the same.
pub const VERSION: u32 = 1;
/// A reply of this number concerns no call but the connection, which the daemon closes after it. Calls have others.
/// With [`Failure::Closing`] it also says that no call without an answer was read.
pub const CONNECTION: u64 = 0;
/// What every greeting begins with.
pub const MAGIC: [u8; 8] = *b"bftdctl\0";

/// The first frame of either side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// The program's version, for people.
    pub software: String,
}

/// A numbered request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Unique among the calls in flight on a connection, and not [`CONNECTION`].
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The call's number, or [`CONNECTION`].
    pub id: u64,
    /// The answer.
    pub response: Response,
}

/// What a client asks of its daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Decide and execute a change.
    Execute(Operation),
    /// Look something up.
    Query {
        /// What.
        query: Query,
        /// How fresh the answer must be.
        consistency: Consistency,
    },
    /// How the cluster is.
    Status,
    /// The proofs of misbehaviour that the daemon holds.
    Evidence,
    /// A member shall misbehave, or do so no longer.
    Inject {
        /// Which member.
        node: u8,
        /// How.
        change: FaultChange,
        /// Even if more members misbehave at once than the cluster tolerates.
        beyond_f: bool,
    },
    /// [`Request::Execute`], and tell what it took.
    Traced(Operation),
    /// Of a cluster that is not formed yet.
    Form(FormRequest),
    /// Whether this daemon's host and its peers are as they should be.
    Examine,
    /// Wait for changes of keys. Answered with [`Answer::Events`] as soon as there are some from
    /// the position on, by this daemon's state; after a while with none, and the position that all was looked through up to. Who asks
    /// again from there misses nothing, whatever happens in between. With [`Failure::Closing`] where the daemon stops.
    Watch {
        /// Which changes, and from where on.
        watched: Watched,
        /// For how long to wait, in milliseconds; 10 s at most.
        wait_ms: u64,
    },
}

/// A change of the faults of one daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultChange {
    /// One more.
    Start {
        /// Its name, with its number where it has one, as in `delay=200ms`.
        fault: String,
        /// For how long, in milliseconds; else until it is cleared or the daemon ends.
        for_ms: Option<u64>,
    },
    /// None any more.
    Clear,
}

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// It reflects every change that was acknowledged to anybody before the question.
    #[default]
    Linearizable,
    /// It reflects some state that the cluster was in: what this daemon has executed.
    Local,
}

/// A daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Execute`]: it is committed and executed. Of a change in a session that was executed before, what came of it then, and
    /// the block that it was executed with.
    Executed {
        /// What came of it.
        outcome: Outcome,
        /// The index of its block.
        index: u64,
        /// The term of its block.
        term: u64,
    },
    /// To [`Request::Query`] and [`Request::Watch`].
    Answered {
        /// What was found.
        answer: Answer,
        /// What it was answered from.
        at: At,
    },
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Evidence`].
    Evidence(Vec<Accusation>),
    /// To [`Request::Inject`]: it is so.
    Injected,
    /// The daemon could not do it.
    Failed(Failure),
    /// To [`Request::Traced`]: it is committed and executed.
    Traced {
        /// What came of it.
        outcome: Outcome,
        /// The index of its block.
        index: u64,
        /// The term of its block.
        term: u64,
        /// What it took; none where the daemon follows as many changes as it may already.
        trace: Option<Box<Trace>>,
    },
    /// To [`Request::Form`]: how far it is now.
    Forming(Box<Forming>),
    /// To [`FormRequest::CreateToken`].
    Token(Token),
    /// To [`Request::Examine`].
    Examined(Vec<Finding>),
}

/// What one agreement took, as the daemon that was asked saw it, by its own monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The id of the daemon that was asked.
    pub me: u8,
    /// In the order of time. What was not seen there is not among them.
    pub phases: Vec<Phase>,
    /// From the arrival of the request to its execution, in microseconds: the consensus time.
    pub total_us: u64,
    /// Every member, in the order of their ids.
    pub nodes: Vec<NodeTally>,
}

/// A step of an agreement. A change of the term in between makes some of them come again, for another block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Which.
    pub step: Step,
    /// When, in microseconds after the request came.
    pub at_us: u64,
    /// The block that it speaks of, where it does: the one with the change, or one above it in whose certificate it is
    /// included.
    pub block: Option<BlockAt>,
    /// The members whose votes the certificate has; none where there is no certificate.
    pub voters: Vec<u8>,
}

/// See [`Phase`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockAt {
    /// Its index.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The member that proposed it: its term's leader.
    pub leader: u8,
}

/// See [`Phase`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The change is in a signed batch, on its way to the leader.
    Submitted,
    /// The batch goes under another number now, signed anew.
    Renumbered,
    /// The daemon, which leads, has put it into a block.
    Proposed,
    /// The daemon, which follows, has accepted the leader's block with it.
    Accepted,
    /// The block is durable there.
    Durable,
    /// There is a Prepare certificate.
    Prepared,
    /// There is a Commit certificate.
    Committed,
    /// The daemon's state has changed.
    Executed,
}

/// How many messages of a member came to the daemon during an agreement, about whatever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTally {
    /// The member.
    pub id: u8,
    /// Its name.
    pub name: String,
    /// Messages that passed every check. None of the daemon itself, which sends itself nothing.
    pub correct: u64,
    /// Messages that did not.
    pub corrupt: u64,
}

/// A proof that a member lied, and what it proves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accusation {
    /// The member.
    pub accused: u8,
    /// Its name.
    pub name: String,
    /// The misbehaviour, in a few words.
    pub kind: String,
    /// Where it lied: the epoch.
    pub epoch: u64,
    /// The term.
    pub term: u64,
    /// The index.
    pub index: u64,
    /// The proof.
    pub evidence: Evidence,
}

impl Accusation {
    /// What a proof proves, by its own word. None if it accuses nobody of these members. It is not checked here.
    pub fn of(evidence: Evidence, members: &Membership) -> Option<Self> {
        let offence = evidence.offence(members);
        let accused = members.get(offence.accused)?;
        Some(Self {
            accused: accused.id.0,
            name: accused.name.clone(),
            kind: offence.kind.to_string(),
            epoch: offence.epoch.0,
            term: offence.term.0,
            index: offence.index.0,
            evidence,
        })
    }
}

/// The state that a query was answered from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct At {
    /// The store's revision.
    pub revision: u64,
    /// The index of the last executed block.
    pub index: u64,
    /// How long ago that block was made, in milliseconds, by this daemon's clock: how old a local answer may be.
    pub age_ms: u64,
    /// The time of that block, in milliseconds since the Unix epoch; 0 where the daemon has executed none since it started.
    pub time_ms: u64,
}

/// Why a daemon could not do what was asked. Unless it says otherwise nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// Its queue is full.
    #[error("the daemon is busy: its queue is full")]
    Busy,
    /// Too few members can be reached. Nothing was sent.
    #[error("no quorum: {reachable} of {n} members are reachable, {needed} are needed")]
    NoQuorum {
        /// How many are, this one included.
        reachable: u64,
        /// Of how many.
        n: u64,
        /// How many are needed.
        needed: u64,
    },
    /// The request is out of bounds.
    #[error("{0}")]
    Refused(Refusal),
    /// The caller may not do it.
    #[error("denied: {0}")]
    Denied(String),
    /// The configuration of the member concerned allows no faults.
    #[error("member {node} takes no faults: its configuration does not allow them")]
    FaultsDisabled {
        /// The member.
        node: u8,
    },
    /// There is no such fault, or it can't be had there.
    #[error("{0}")]
    UnknownFault(String),
    /// More members would misbehave at once than the cluster tolerates.
    #[error("{faulty} members would misbehave at once, the cluster tolerates {f}")]
    BeyondF {
        /// How many.
        faulty: u64,
        /// How many may.
        f: u64,
    },
    /// There is no such member.
    #[error("the cluster has no member {0}")]
    NoSuchMember(u8),
    /// The member concerned gave no answer.
    #[error("member {0} gave no answer; it may or may not have done it")]
    MemberSilent(u8),
    /// The client broke the admin protocol's rules, and is disconnected.
    #[error("the daemon closed the connection: {0}")]
    Protocol(String),
    /// The daemon belongs to no cluster yet.
    #[error("this daemon belongs to no cluster yet")]
    Uninitialised,
    /// The daemon is stopping; what was sent may or may not happen.
    #[error("the daemon is stopping; the request may or may not take effect")]
    Stopping,
    /// Its disk or its program fails.
    #[error("the daemon failed: {0}")]
    Internal(String),
    /// The member concerned gave an answer that no correct daemon gives.
    #[error("member {0} gave an answer that makes no sense; it may or may not have done it")]
    MemberUnclear(u8),
    /// The member concerned is not heard of: it was not asked, or is gone since. If its daemon has ended, its faults have, too.
    #[error("member {0} is not heard of: its daemon does not run, or can't be reached")]
    MemberDown(u8),
    /// A cluster is not formed, or not as was asked.
    #[error(transparent)]
    Forming(#[from] FormFailure),
    /// The daemon is stopping, and takes nothing any more.
    #[error("the daemon is stopping; nothing was done")]
    Closing,
    /// What the cluster runs withstands no lie at all.
    #[error("{protocol} withstands crashes alone, {fault} lies")]
    CrashesOnly {
        /// The name of the protocol.
        protocol: String,
        /// The fault that was asked for.
        fault: String,
    },
    /// As many watches wait as may, on this connection or in all.
    #[error("{limit} watches wait already, and no more may")]
    TooManyWatches {
        /// How many may.
        limit: u64,
    },
}

/// The cluster as one daemon sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster.
    pub cluster: ClusterStatus,
    /// The id of the daemon that answers.
    pub me: u8,
    /// Every member, in the order of their ids.
    pub members: Vec<MemberStatus>,
    /// What an operator could do, a sentence each.
    pub hints: Vec<String>,
    /// What the answering daemon's files take.
    pub disk: DiskUse,
}

/// What a daemon's files take of its disk, in bytes; 0 where it has none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// The store: keys, their history, and space that is free in its file.
    pub state: u64,
    /// The log of blocks.
    pub log: u64,
}

/// See [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// Its id, in hexadecimal.
    pub id: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// How it is.
    pub state: Health,
    /// The number of members.
    pub n: u64,
    /// How many may be faulty by design.
    pub f: u64,
    /// How many more may fail before writes stop. Members that are known to be faulty are not counted on.
    pub tolerates: u64,
    /// The epoch.
    pub epoch: u64,
    /// The term.
    pub term: u64,
    /// The term's leader.
    pub leader: u8,
    /// The committed index.
    pub committed: u64,
    /// The executed index.
    pub executed: u64,
    /// The digest of the state after it, in hexadecimal.
    pub state_digest: String,
    /// What the cluster runs from the next term on.
    pub next_protocol: Protocol,
    /// The store's revision, as far as the daemon has executed; 0 where it has no store to read.
    pub revision: u64,
    /// The oldest revision that can be read; 0 before the first compaction.
    pub compacted: u64,
    /// How many bytes of keys and values the store holds, with the history that is not compacted.
    pub used: u64,
    /// How many it may hold.
    pub quota: u64,
}

/// How a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Health {
    /// All members are reachable, agree on the term, and have no injected fault.
    Healthy,
    /// A quorum is reachable, but not all is well.
    Degraded,
    /// No quorum is: nothing can be decided.
    NoQuorum,
    /// The daemon belongs to no cluster yet.
    Uninitialised,
}

impl Health {
    /// As people and scripts read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Healthy => "HEALTHY",
            Self::Degraded => "DEGRADED",
            Self::NoQuorum => "NO QUORUM",
            Self::Uninitialised => "UNINITIALISED",
        }
    }
}

impl Status {
    /// What follows the cluster's name and state in the line that says how it is. Names in it are as they came.
    pub fn summary(&self) -> String {
        let ClusterStatus { n, tolerates, term, leader, committed, .. } = &self.cluster;
        let reachable = self.members.iter().filter(|member| member.reachable).count();
        // Who withstands crashes alone is not to be taken for more.
        let what = match (self.cluster.protocol.row().faults, *tolerates) {
            (Faults::Byzantine, 1) => "fault",
            (Faults::Byzantine, _) => "faults",
            (Faults::Crash, 1) => "crash",
            (Faults::Crash, _) => "crashes",
        };
        let leader = self
            .members
            .iter()
            .find(|member| member.id == *leader)
            .map_or_else(|| leader.to_string(), |leader| leader.name.clone());
        format!(
            "{reachable}/{n} members, tolerates {tolerates} {what} · term {term} · leader {leader} · block {committed}"
        )
    }
}

/// One member as the answering daemon sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id.
    pub id: u8,
    /// Its name.
    pub name: String,
    /// Whether it leads the term.
    pub leads: bool,
    /// Whether it was heard of within the last seconds; of the answering daemon always.
    pub reachable: bool,
    /// The index of its highest certificate, as last heard.
    pub prepared: u64,
    /// Its committed index, as last heard.
    pub committed: u64,
    /// Its executed index, as last heard.
    pub executed: u64,
    /// Messages from it that passed every check.
    pub correct: u64,
    /// Messages from it that did not.
    pub corrupt: u64,
    /// Proofs of misbehaviour against it.
    pub evidence: u64,
    /// Faults injected there; none while it is not heard of, as they end with its daemon.
    pub faults: Vec<String>,
    /// Its program's version, as last heard; empty before.
    pub version: String,
}

/// What was found about one thing that a daemon needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub subject: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub text: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: String,
}

/// See [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Unknown,
    /// It works, but not as well as it should, or not for long.
    Warn,
    /// It does not work.
    Fail,
}
