//! A laboratory: what an agreement costs, by protocol, size and faults.
//!
//! The replicas, verifiers, state machines and liars are the daemon's own; what they run on is a model, so that a hundred
//! members fit on one machine, and all protocols get the same machine:
//!
//! - A **member** is a server that works off what comes to it, one thing after another. Each message that it gets or sends, each
//!   signature that it makes or checks, takes a time ([`Costs`]). What is counted is what the production verifier really asks for.
//! - A **disk** makes all that has gathered durable with one sync, as the daemon's log does.
//! - The **network** takes latency, and the time that the sender's line needs for the bytes ([`Network`]). As over QUIC nothing is lost
//!   for good: a lost packet is sent again, and what comes after it on its stream waits.
//!
//! A run begins without faults, until the first block is committed and all is quiet. Then the faults begin, and with them the
//! counting. Every request comes to a correct member that does not lead, so that it takes the way to the leader first. With one
//! client a request begins when nothing of the one before is under way any more: one agreement at a time.
//!
//! Not modelled: several cores a member, the time that execution takes, what transport adds to a message.
//!
//! A correct member that must not go on, since more than f others are faulty, stops as its daemon would, and is not started again.
//!
//! One seed decides everything. Two runs of one experiment differ in their real CPU time alone. That time is not
//! a daemon's: signatures are keyed hashes here, counted and charged as if they were ed25519.

mod cost;
mod machine;
mod network;
mod report;
mod world;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bftd_core::{
    ids::MemberId,
    limits::{MAX_VALUE, Timing},
    membership::Faults,
    protocol::Protocol,
};
use bftd_faults::Fault;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use self::world::World;
pub use self::{
    cost::Costs,
    network::{BadNetwork, Network},
    report::{ConsensusTime, Lagging, NodeTally, Report, Stopped},
};

/// The largest cluster.
pub const MAX_NODES: u8 = 128;
/// The most requests of a run, and the most clients.
pub const MAX_REQUESTS: u32 = 1_000_000;
/// See [`MAX_REQUESTS`].
pub const MAX_CLIENTS: u32 = 10_000;

/// One run.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// The protocol.
    pub protocol: Protocol,
    /// How many members.
    pub nodes: u8,
    /// Who misbehaves, and how.
    pub faulty: Vec<(Misconduct, Who)>,
    /// Whether the members that are drawn may lead the first term: one of them then does.
    pub faulty_leader: bool,
    /// Whether more members than the protocol tolerates may be faulty.
    pub beyond_f: bool,
    /// How many requests.
    pub requests: u32,
    /// How many clients, each with one request at a time.
    pub clients: u32,
    /// The length of the values that they store, in bytes.
    pub value_size: usize,
    /// Whether blocks whose parent is committed may become final in one round, by all members' votes.
    pub one_round: bool,
    /// What decides who is faulty, how, and how long messages take.
    pub seed: u64,
    /// What messages go through.
    pub network: Network,
    /// What work takes.
    pub costs: Costs,
}

/// How a member misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Misconduct {
    /// It is not there.
    Offline,
    /// [`Fault::Malicious`].
    Malicious,
    /// [`Fault::Equivocate`].
    Equivocate,
}

impl Misconduct {
    /// Its name in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Malicious => "malicious",
            Self::Equivocate => "equivocate",
        }
    }

    const fn lie(self) -> Option<Fault> {
        match self {
            Self::Offline => None,
            Self::Malicious => Some(Fault::Malicious),
            Self::Equivocate => Some(Fault::Equivocate),
        }
    }
}

/// Which members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// So many, drawn by the seed.
    Some(u8),
    /// As many as the protocol tolerates at this size.
    Tolerated,
    /// These.
    Members(Vec<u8>),
}

/// Why an experiment can't be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too few members, or too many.
    #[error("a cluster in the laboratory has 1 to {MAX_NODES} members, not {0}")]
    Nodes(u8),
    /// Nothing to do, or too much.
    #[error("a run has 1 to {MAX_REQUESTS} requests, not {0}")]
    Requests(u32),
    /// Nobody who asks, or too many.
    #[error("a run has 1 to {MAX_CLIENTS} clients, not {0}")]
    Clients(u32),
    /// A value that no member would take.
    #[error("a value has at most {MAX_VALUE} bytes, not {0}")]
    ValueSize(usize),
    /// There is no such member.
    #[error("there is no member {id} among {nodes}")]
    NoSuchMember {
        /// The id.
        id: u8,
        /// How many members there are.
        nodes: u8,
    },
    /// One member, two faults.
    #[error("member {0} can't misbehave in two ways at once")]
    Twice(u8),
    /// More are faulty than there are.
    #[error("{faulty} members can't be faulty: there are {nodes}")]
    MoreThanMembers {
        /// How many shall be faulty.
        faulty: usize,
        /// How many members there are.
        nodes: u8,
    },
    /// Nobody follows the protocol.
    #[error("all {0} members are faulty: nobody is left to be measured")]
    NobodyCorrect(u8),
    /// More than f are faulty.
    #[error("{protocol} with {nodes} members tolerates {f} faulty ones, not {faulty}")]
    BeyondF {
        /// The protocol.
        protocol: Protocol,
        /// How many members there are.
        nodes: u8,
        /// How many may be faulty.
        f: usize,
        /// How many shall be.
        faulty: usize,
    },
    /// Liars where only crashes are tolerated.
    #[error("{0} tolerates members that crash, and none that lie")]
    NoLiars(Protocol),
}

impl Refused {
    /// Whether it can be measured all the same, by who says that it shall go beyond what is tolerated.
    pub const fn is_beyond_f(&self) -> bool {
        matches!(self, Self::BeyondF { .. } | Self::NoLiars(_))
    }
}

impl Experiment {
    /// One hundred requests of one client to this many correct members on a LAN.
    pub fn new(protocol: Protocol, nodes: u8) -> Self {
        Self {
            protocol,
            nodes,
            faulty: Vec::new(),
            faulty_leader: false,
            beyond_f: false,
            requests: 100,
            clients: 1,
            value_size: 256,
            one_round: true,
            seed: 1,
            network: Network::lan(),
            costs: Costs::default(),
        }
    }

    /// Who misbehaves, and how.
    ///
    /// # Errors
    /// The experiment can't be made.
    pub fn cast(&self) -> Result<BTreeMap<MemberId, Misconduct>, Refused> {
        self.check_sizes()?;
        let f = self.tolerated();
        let mut cast = BTreeMap::new();
        let named = self.faulty.iter().filter_map(|(how, who)| match who {
            Who::Members(ids) => Some((*how, ids)),
            _ => None,
        });
        for (how, ids) in named {
            for id in ids {
                if !(1..=self.nodes).contains(id) {
                    return Err(Refused::NoSuchMember { id: *id, nodes: self.nodes });
                }
                if cast.insert(MemberId(*id), how).is_some() {
                    return Err(Refused::Twice(*id));
                }
            }
        }
        let drawn: Vec<_> = self.faulty.iter().flat_map(|(how, who)| self.drawn(*how, who)).collect();
        let faulty = cast.len() + drawn.len();
        let lies = cast.values().chain(&drawn).any(|how| how.lie().is_some());
        if faulty > usize::from(self.nodes) {
            return Err(Refused::MoreThanMembers { faulty, nodes: self.nodes });
        }
        if faulty == usize::from(self.nodes) {
            return Err(Refused::NobodyCorrect(self.nodes));
        }
        if !self.beyond_f && lies && !tolerates_liars(self.protocol) {
            return Err(Refused::NoLiars(self.protocol));
        }
        if !self.beyond_f && faulty > f {
            return Err(Refused::BeyondF { protocol: self.protocol, nodes: self.nodes, f, faulty });
        }
        let candidates = self.draw(&cast, drawn.len());
        cast.extend(candidates.into_iter().zip(drawn));
        Ok(cast)
    }

    fn check_sizes(&self) -> Result<(), Refused> {
        if !(1..=MAX_NODES).contains(&self.nodes) {
            return Err(Refused::Nodes(self.nodes));
        }
        if !(1..=MAX_REQUESTS).contains(&self.requests) {
            return Err(Refused::Requests(self.requests));
        }
        if !(1..=MAX_CLIENTS).contains(&self.clients) {
            return Err(Refused::Clients(self.clients));
        }
        if self.value_size > MAX_VALUE {
            return Err(Refused::ValueSize(self.value_size));
        }
        Ok(())
    }

    /// How many members may be faulty.
    pub fn tolerated(&self) -> usize {
        self.protocol.row().faults.tolerated(usize::from(self.nodes))
    }

    fn drawn(&self, how: Misconduct, who: &Who) -> Vec<Misconduct> {
        let count = match who {
            Who::Some(count) => usize::from(*count),
            Who::Tolerated => self.tolerated(),
            Who::Members(_) => 0,
        };
        vec![how; count]
    }

    /// Members that are not faulty yet, in the order in which they become it.
    fn draw(&self, taken: &BTreeMap<MemberId, Misconduct>, count: usize) -> Vec<MemberId> {
        // Members take turns, so the first one leads the first term.
        let leader = MemberId(1);
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let others = (2..=self.nodes).map(MemberId).filter(|id| !taken.contains_key(id));
        let mut candidates: Vec<_> = others.collect();
        candidates.shuffle(&mut random);
        if !taken.contains_key(&leader) {
            let at = if self.faulty_leader { 0 } else { candidates.len() };
            candidates.insert(at, leader);
        }
        candidates.truncate(count);
        candidates
    }

    /// The times that members live by: the daemon's, or longer ones where messages and disks are slow.
    pub fn timing(&self) -> Timing {
        let daemon = Timing::default();
        let slowest_us = (self.network.largest_rtt_ns() + self.costs.fsync_ns) / 1_000;
        Timing {
            heartbeat_us: daemon.heartbeat_us.max(2 * slowest_us),
            timeout_us: daemon.timeout_us.max(10 * slowest_us),
            max_timeout_us: daemon.max_timeout_us.max(100 * slowest_us),
            resend_us: daemon.resend_us.max(5 * slowest_us),
            ..daemon
        }
    }

    /// Makes the experiment. `progress` is called with each request that is committed.
    ///
    /// # Errors
    /// It can't be made.
    pub fn run(&self, progress: &dyn Fn()) -> Result<Report, Refused> {
        let cast = self.cast()?;
        let report = World::new(self, cast.clone(), progress).run();
        let delays = self.delays(cast);
        Ok(Report { delays, ..report })
    }

    /// How many message delays a request takes.
    fn delays(&self, cast: BTreeMap<MemberId, Misconduct>) -> Option<f64> {
        const DELAY_NS: u64 = 1_000_000;
        /// Enough for a median that knows who is there.
        const REQUESTS: u32 = 9;
        let ideal = Self {
            requests: REQUESTS.min(self.requests),
            clients: 1,
            network: Network::ideal(DELAY_NS),
            costs: Costs::NONE,
            ..self.clone()
        };
        let report = World::new(&ideal, cast, &|| {}).run();
        report.consensus_time_ms.map(|time| time.p50 / (DELAY_NS as f64 / 1e6))
    }
}

/// Whether a protocol tolerates members that lie, and not only such as crash.
pub fn tolerates_liars(protocol: Protocol) -> bool {
    protocol.row().faults != Faults::Crash
}

/// Makes experiments on several threads, the largest first. The reports are in the order of the experiments.
///
/// # Errors
/// One that can't be made; then none is.
pub fn run_all(experiments: &[Experiment], progress: &(dyn Fn() + Sync)) -> Result<Vec<Report>, Refused> {
    for experiment in experiments {
        experiment.cast()?;
    }
    let mut order: Vec<_> = (0..experiments.len()).collect();
    order.sort_by_key(|at| experiments.get(*at).map(|experiment| std::cmp::Reverse(experiment.nodes)));
    let next = AtomicUsize::new(0);
    let reports = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed))
            && let Some(experiment) = experiments.get(*at)
        {
            let report = experiment.run(&|| progress());
            reports.lock().unwrap_or_else(PoisonError::into_inner).insert(*at, report);
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(experiments.len());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    reports.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}
