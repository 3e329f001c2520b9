//! Twins, exhaustively (Bano et al., arXiv 2004.10617): four members, one of which is two replicas with one key.
//!
//! A run is a list of rounds. In each the five replicas are split into two halves that hear nothing of each other, and one
//! member leads: so there are 16 × 4 = 64 choices a round. Leaders take turns here, so the members are first led to a term of
//! the leader, by losing everything that would let a term begin. Every correct member has a client that writes. After the
//! rounds all links are mended, both twins go on, and everything must get done.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use bftd_core::{ids::MemberId, protocol::Protocol};
use bftd_faults::Sides;

use crate::{Failure, Options, event::Violation, oracle::Oracle, plan::Kind, world::World};

/// How many splits there are of five replicas into two halves, one of which may be empty.
pub const SPLITS: u8 = 16;
/// How many members there are.
pub const MEMBERS: u8 = 4;

/// What one round is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Bit i says whether replica i is apart from the last one: three correct members and the first twin, in the order of
    /// ids; the second twin is the last.
    pub split: u8,
    /// Who leads.
    pub leader: MemberId,
}

impl Round {
    /// All there are.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        let leaders = (1..=MEMBERS).map(MemberId);
        leaders.flat_map(|leader| (0..SPLITS).map(move |split| Self { split, leader }))
    }
}

/// How long a round lasts: less than a time-out.
const ROUND_US: u64 = 200_000;
/// How long it may take to come to the leader's term.
const SEEK_US: u64 = 4_000_000;

/// Plays rounds with a twin of `twin`, under the oracle. Answers in how many of them the leader was who it should be.
///
/// # Errors
/// What the oracle found.
pub fn play(twin: MemberId, rounds: &[Round]) -> Result<usize, Failure> {
    let options = Options::of(Protocol::BftRaft, MEMBERS);
    let (members, check) = World::about(&options);
    let correct: BTreeSet<_> = members.ids().filter(|id| *id != twin).collect();
    let mut oracle = Oracle::new(&members, check, correct);
    let mut world = World::staged(&options, Default::default(), &mut oracle);
    let result = play_in(&mut world, twin, rounds);
    result.map_err(|violation| Failure { violation, at_us: world.now_us() })
}

fn play_in(world: &mut World<'_>, twin: MemberId, rounds: &[Round]) -> Result<usize, Violation> {
    let sides = world.give_twin(twin);
    let correct: Vec<_> = (1..=MEMBERS).map(MemberId).filter(|id| *id != twin).collect();
    steer(&sides, &correct, &correct);
    world.stage_begin()?;
    let mut led = 0;
    for Round { split, leader } in rounds {
        for kind in [Kind::Append, Kind::NewTerm, Kind::Heartbeat] {
            world.stage_lose(kind);
        }
        led += usize::from(world.stage_seek(*leader, SEEK_US)?);
        world.stage_mend();
        let is_apart = |at: usize| split & (1 << at) != 0;
        let half = |apart: bool| -> Vec<MemberId> {
            correct.iter().enumerate().filter(|(at, _)| is_apart(*at) == apart).map(|(_, id)| *id).collect()
        };
        let (near, far) = (half(false), half(true));
        world.stage_cut(&near, &far);
        world.stage_cut(&far, &near);
        let first_is_apart = is_apart(correct.len());
        steer(&sides, if first_is_apart { &far } else { &near }, &near);
        for id in &correct {
            world.stage_write(*id, "key0")?;
        }
        world.stage_run(ROUND_US)?;
        steer(&sides, &correct, &correct);
        world.stage_mend();
    }
    world.stage_end()?;
    Ok(led)
}

fn steer(sides: &Arc<Mutex<Sides>>, first: &[MemberId], second: &[MemberId]) {
    let chosen = Sides { first: first.iter().copied().collect(), second: second.iter().copied().collect() };
    *sides.lock().unwrap_or_else(PoisonError::into_inner) = chosen;
}
