//! What a seed decides before its run: which faults there are, and how often.
//!
//! Every knob is off in many runs and strong in some ("swarm testing"): bugs need few faults of the right kinds together, not all
//! faults a little. Most runs are small: few blocks, two to four terms, crashes right after a send.

use std::collections::BTreeMap;

use bftd_core::{ids::MemberId, limits::Timing, message::Message, protocol::Protocol};
use bftd_faults::Fault;
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use crate::Options;

/// How one run goes.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub timing: Timing,
    /// How long there are faults.
    pub chaos_us: u64,
    /// How many writes and reads clients ask for meanwhile.
    pub writes: u32,
    pub reads: u32,
    /// How often an operator has the cluster go over to another protocol meanwhile.
    pub switches: u32,
    /// How often a daemon is told to stop: it hands its term on, and is gone soon after.
    pub leaves: u32,
    /// A message's time on the way: at least, and at most.
    pub delay_us: (u64, u64),
    /// A sync's time.
    pub sync_us: (u64, u64),
    /// How long a block waits for its execution.
    pub execute_us: (u64, u64),
    /// Per message.
    pub loss: f64,
    pub duplication: f64,
    /// How likely a message comes long after those sent later.
    pub straggling: f64,
    /// How likely a broadcast of a kind reaches only some.
    pub partial: Vec<(Kind, f64)>,
    /// How likely a sender is cut off both ways right after a broadcast of its kind that reached only some.
    pub isolate_after_partial: f64,
    /// How likely a kind is lost.
    pub kind_loss: Vec<(Kind, f64)>,
    /// The links on which that is so.
    pub lossy_links: Vec<(MemberId, MemberId)>,
    /// How likely a node crashes right after a message of this kind has left.
    pub crash_after: Vec<(Kind, f64)>,
    /// How likely a node crashes while it syncs.
    pub crash_in_sync: f64,
    /// At what mean interval a running node crashes for no reason.
    pub crash_every_us: Option<u64>,
    /// Whether that node is the leader of its term.
    pub crash_leaders: bool,
    /// How long a crashed node stays down.
    pub down_us: (u64, u64),
    /// At what mean interval links are cut or mended, and how.
    pub cut_every_us: Option<u64>,
    pub one_way: bool,
    /// How far wall clocks are apart, either way.
    pub skew_ms: i64,
    /// At most f: what each does, and its seed.
    pub liars: BTreeMap<MemberId, (Fault, u64)>,
}

/// Longer than any run.
const NEVER_US: u64 = 1 << 60;

/// A kind of message that matters to schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Append,
    Prepare,
    Commit,
    Certificate,
    Heartbeat,
    Suspect,
    EnterTerm,
    NewTerm,
    Blocks,
    Batch,
    Read,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Append,
        Self::Prepare,
        Self::Commit,
        Self::Certificate,
        Self::Heartbeat,
        Self::Suspect,
        Self::EnterTerm,
        Self::NewTerm,
        Self::Blocks,
        Self::Batch,
        Self::Read,
    ];

    /// The kind of this name, as `Debug` writes it.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| format!("{kind:?}") == name)
    }

    pub fn of(message: &Message) -> Self {
        match message {
            Message::Append(_) => Self::Append,
            Message::Vote(vote) | Message::LateVote(vote) => match vote.ballot.kind {
                bftd_core::ballot::BallotKind::Prepare | bftd_core::ballot::BallotKind::Sole { .. } => {
                    Self::Prepare
                }
                bftd_core::ballot::BallotKind::Commit => Self::Commit,
            },
            Message::Certificate(_) => Self::Certificate,
            Message::Heartbeat(_) => Self::Heartbeat,
            Message::Suspect(_) | Message::Evidence(_) | Message::Proposal(_) => Self::Suspect,
            Message::EnterTerm(_) => Self::EnterTerm,
            Message::NewTerm(_) => Self::NewTerm,
            Message::FetchAncestors(_) | Message::FetchCommitted(_) | Message::Blocks(_) => Self::Blocks,
            Message::Batch(_) => Self::Batch,
            Message::ReadQuery(_) | Message::ReadAnswer(_) => Self::Read,
        }
    }
}

impl Plan {
    /// Nothing goes wrong but what `liars` do; messages take a millisecond.
    pub fn quiet(liars: BTreeMap<MemberId, (Fault, u64)>) -> Self {
        let timing = Timing {
            tick_us: 20_000,
            heartbeat_us: 40_000,
            timeout_us: 300_000,
            max_timeout_us: 2_000_000,
            resend_us: 60_000,
            ..Timing::default()
        };
        Self {
            timing,
            chaos_us: 0,
            writes: 0,
            reads: 0,
            switches: 0,
            leaves: 0,
            delay_us: (1_000, 1_000),
            sync_us: (200, 200),
            execute_us: (0, 0),
            loss: 0.0,
            duplication: 0.0,
            straggling: 0.0,
            partial: Vec::new(),
            isolate_after_partial: 0.0,
            kind_loss: Vec::new(),
            lossy_links: Vec::new(),
            crash_after: Vec::new(),
            crash_in_sync: 0.0,
            crash_every_us: None,
            crash_leaders: false,
            down_us: (NEVER_US, NEVER_US),
            cut_every_us: None,
            one_way: false,
            skew_ms: 0,
            liars,
        }
    }

    pub fn draw(options: &Options, random: &mut ChaCha8Rng) -> Self {
        let n = options.nodes;
        let base = random.random_range(1..=4_u64) * 60_000;
        let timing = Timing {
            tick_us: 20_000,
            heartbeat_us: 40_000,
            timeout_us: base + 120_000,
            max_timeout_us: 2_000_000,
            resend_us: 60_000,
            ..Timing::default()
        };
        // Small batches: else no run would have two blocks in flight.
        let timing = Timing { worth_a_block: if random.random_bool(0.5) { 1 } else { 64 << 10 }, ..timing };
        let slow_net = random.random_bool(0.3);
        let slow_disk = random.random_bool(0.4);
        let is_calm = random.random_bool(0.05);
        let kinds = |random: &mut ChaCha8Rng, chance: f64, strength: (f64, f64)| {
            let mut chosen = Vec::new();
            if !is_calm && random.random_bool(chance) {
                for _ in 0..random.random_range(1..=2) {
                    let kind = Kind::ALL[random.random_range(0..Kind::ALL.len())];
                    chosen.push((kind, random.random_range(strength.0..strength.1)));
                }
            }
            chosen
        };
        let liars = draw_liars(options, random);
        let mut partial = kinds(random, 0.6, (0.1, 0.9));
        if liars.values().any(|lie| matches!(lie, (Fault::Forget, _))) && random.random_bool(0.7) {
            // Its lies need members whose positions differ.
            partial = [Kind::Append, Kind::Certificate, Kind::Heartbeat].map(|kind| (kind, 0.8)).into();
        }
        let all_links = random.random_bool(0.5);
        let links = (1..=n).flat_map(|from| (1..=n).map(move |to| (MemberId(from), MemberId(to))));
        let may_switch = matches!(options.protocol, Protocol::Pbft | Protocol::Ccro);
        let switches = if may_switch && random.random_bool(0.2) { random.random_range(1..=2) } else { 0 };
        let lossy_links = links.filter(|_| all_links || random.random_bool(0.3)).collect();
        let drawn = Self {
            timing,
            chaos_us: random.random_range(200_000..1_600_000),
            writes: random.random_range(1..=10),
            switches,
            leaves: 0,
            reads: if random.random_bool(0.5) { random.random_range(1..=12) } else { 0 },
            delay_us: if slow_net { (200, 40_000) } else { (50, 2_000) },
            sync_us: if slow_disk { (200, 40_000) } else { (50, 1_000) },
            loss: if !is_calm && random.random_bool(0.3) { random.random_range(0.01..0.3) } else { 0.0 },
            duplication: if random.random_bool(0.2) { 0.1 } else { 0.0 },
            straggling: if !is_calm && random.random_bool(0.2) {
                random.random_range(0.01..0.2)
            } else {
                0.0
            },
            partial,
            isolate_after_partial: if random.random_bool(0.3) { random.random_range(0.2..1.0) } else { 0.0 },
            lossy_links,
            kind_loss: kinds(random, 0.5, (0.1, 1.0)),
            crash_after: kinds(random, 0.6, (0.02, 0.4)),
            crash_in_sync: if !is_calm && random.random_bool(0.2) {
                random.random_range(0.01..0.2)
            } else {
                0.0
            },
            crash_every_us: (!is_calm && random.random_bool(0.3))
                .then(|| random.random_range(100_000..800_000)),
            crash_leaders: random.random_bool(0.4),
            execute_us: if random.random_bool(0.2) { (0, 50_000) } else { (0, 0) },
            down_us: if random.random_bool(0.6) { (500, 30_000) } else { (10_000, 600_000) },
            cut_every_us: (!is_calm && random.random_bool(0.5)).then(|| random.random_range(50_000..500_000)),
            one_way: random.random_bool(0.4),
            skew_ms: if random.random_bool(0.2) { 500 } else { 0 },
            liars,
        };
        drawn.with_later(options, random)
    }

    /// What came to be drawn later than the rest: from a stream of its own, so that seeds kept their meaning.
    fn with_later(self, options: &Options, random: &ChaCha8Rng) -> Self {
        let mut random = random.clone();
        random.set_stream(1);
        let goes_over = options.protocol == Protocol::BftRaft && random.random_bool(0.1);
        let switches = if goes_over { random.random_range(1..=2) } else { self.switches };
        random.set_stream(2);
        let leaves = if random.random_bool(0.15) { random.random_range(1..=3) } else { 0 };
        Self { switches, leaves, ..self }
    }
}

/// Nobody lies in many runs. Some lies need much else to go wrong: they are drawn more often.
fn draw_liars(options: &Options, random: &mut ChaCha8Rng) -> BTreeMap<MemberId, (Fault, u64)> {
    let mut liars = BTreeMap::new();
    let f = most_liars(options);
    let has_any = random.random_bool(0.6) || options.adversary.is_some();
    if f == 0 || !has_any {
        return liars;
    }
    let has_collectors = options.protocol == Protocol::Ccro;
    // Seeds of bft-raft are older than some liars, and keep their meaning.
    let is_drawn = |fault: &Fault| match options.protocol {
        Protocol::BftRaft | Protocol::Raft => !fault.is_of_collectors() && *fault != Fault::FlipProtocol,
        Protocol::Pbft => !fault.is_of_collectors(),
        Protocol::Ccro => true,
    };
    let all: Vec<_> = Fault::all().filter(is_drawn).collect();
    let of_collectors: Vec<_> = Fault::all().filter(|fault| fault.is_of_collectors()).collect();
    for number in 0..random.random_range(1..=f) {
        let fault = match (number, options.adversary, random.random_range(0..10)) {
            (0, Some(fault), _) => fault,
            (_, _, 0..2) => Fault::Equivocate,
            (_, _, 2..4) => Fault::Forget,
            (_, _, 4..6) if has_collectors => of_collectors[random.random_range(0..of_collectors.len())],
            _ => all[random.random_range(0..all.len())],
        };
        // One that leads early often, as most terms are early ones: the second who needs a term before.
        let early = if fault == Fault::Forget { 2 } else { 1 };
        let id = if random.random_bool(0.5) { early } else { random.random_range(1..=options.nodes) };
        liars.entry(MemberId(id)).or_insert((fault, random.next_u64()));
    }
    liars
}

/// How many members may lie: as many as the protocol takes, and where it takes none, one that is asked for.
fn most_liars(options: &Options) -> usize {
    match options.protocol {
        Protocol::BftRaft | Protocol::Pbft | Protocol::Ccro => (usize::from(options.nodes) - 1) / 3,
        Protocol::Raft => usize::from(options.adversary.is_some()),
    }
}

/// A time between two bounds.
pub(crate) fn between(bounds: (u64, u64), random: &mut impl Rng) -> u64 {
    random.random_range(bounds.0..=bounds.1)
}
