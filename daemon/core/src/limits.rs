//! Sizes and times that every member must agree on or that bound what a peer can make us keep.

/// The longest key, in bytes. The shortest has one byte.
pub const MAX_KEY: usize = 4 << 10;
/// The longest value, in bytes.
pub const MAX_VALUE: usize = 1 << 20;
/// The largest block: the sum of its batches' sizes, in bytes.
pub const MAX_BLOCK: usize = 4 << 20;
/// The largest batch, in bytes: a block always has room for one.
pub const MAX_BATCH: usize = 2 << 20;
/// The most requests in a batch.
pub const MAX_BATCH_REQUESTS: usize = 4096;
/// The most batches in a block.
pub const MAX_BLOCK_BATCHES: usize = 1024;
/// The largest encoded peer message, in bytes: a few blocks, or one term's worth of certificates.
pub const MAX_MESSAGE: usize = 16 << 20;

/// How many blocks of one term may be in flight: proposed and not committed.
pub const WINDOW: u64 = 8;
/// The largest sole block, in bytes: term votes carry it. Larger ones are worth two rounds of votes.
pub const MAX_SOLE: usize = 64 << 10;
/// How many of its own batches an origin keeps in flight. More requests wait in the daemon's queue.
pub const OWN_BATCHES: usize = 4;
/// How many batches of one origin a leader keeps for coming blocks. The rest is dropped: origins send again.
pub const POOLED_BATCHES: usize = 2 * OWN_BATCHES;
/// How many blocks, and how many bytes of them, one answer to a fetch carries (always at least one block).
pub const FETCH_BLOCKS: usize = 64;
/// See [`FETCH_BLOCKS`].
pub const FETCH_BYTES: usize = 1 << 20;
/// How many blocks above the committed index a fetch may add before it is given up.
pub const MAX_FETCHED: usize = 512;
/// How many reads wait for one quorum round. More are refused as busy by the daemon.
pub const WAITING_READS: usize = 65_536;
/// How many proofs of misbehaviour are kept of each kind for each member: enough to be sure, and no more than a liar can be
/// made to cost.
pub const MAX_EVIDENCE: usize = 4;
/// How many of the leaders' newest proposals are remembered, to compare with others.
pub const WATCHED_PROPOSALS: usize = 64;
/// A proof is shown again after so many [`Timing::resend_us`], one proof at a time.
pub const EVIDENCE_RESENDS: u64 = 25;
/// How many committed blocks are remembered by name, to notice that another one was made final in the place of one of them.
pub const REMEMBERED_BLOCKS: usize = 256;
/// How many bytes of keys and values a store may hold, with the history that is not compacted, until that is set: 8 GiB.
pub const DEFAULT_QUOTA: u64 = 8 << 30;
/// What it can be set to at least.
pub const MIN_QUOTA: u64 = 1 << 20;
/// How many leases there are at once.
pub const MAX_LEASES: usize = 65_536;
/// The shortest time to live of a lease, in milliseconds.
pub const MIN_TTL_MS: u64 = 1_000;
/// The longest, in milliseconds: ten years.
pub const MAX_TTL_MS: u64 = 10 * 365 * 86_400_000;
/// For how many indices the state digest is remembered, to compare it with a leader's.
pub const REMEMBERED_STATES: usize = 256;

/// How many merits, committed blocks and heartbeats, make good for one lapse of a leader. So one lapse in 16 is let pass for ever.
pub const LAPSE_MERITS: u64 = 16;
/// Above how many lapses that were not made good a leader is suspected. Few, as the slower a leader is the rarer its lapses are;
/// and no fewer than a connection makes that breaks once: heartbeats are missed, and blocks.
pub const MAX_LAPSES: u64 = 2;
/// How often the limit of lapses doubles at most.
pub const MAX_DOUBLINGS: u32 = 6;
/// After how many merits without a lapse one of the terms that ended for lapses is forgiven.
pub const FORGIVING_MERITS: u64 = 1024;

/// Times that a replica lives by, and when it proposes. Microseconds, unless the name says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often the driver calls with `Input::Tick`.
    pub tick_us: u64,
    /// How often a leader says that it is there.
    pub heartbeat_us: u64,
    /// How long a replica waits for its leader, or for work that it knows of, before it suspects. Doubles per
    /// failed term.
    pub timeout_us: u64,
    /// Where the doubling ends.
    pub max_timeout_us: u64,
    /// How often what got no answer is sent again. Suspicions count as withdrawn when they have not been
    /// repeated for three times as long.
    pub resend_us: u64,
    /// How far ahead of the local clock a block's time may be before the block waits. Milliseconds.
    pub max_ahead_ms: u64,
    /// How far behind the local clock a new block's time may be before its leader is suspected. Milliseconds.
    pub max_behind_ms: u64,
    /// From how many bytes of waiting batches on a leader proposes a block while others are in flight. With fewer the next
    /// block fills while this one is under way: each costs the same signatures, whatever is in it.
    pub worth_a_block: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            tick_us: 100_000,
            heartbeat_us: 100_000,
            timeout_us: 600_000,
            max_timeout_us: 20_000_000,
            resend_us: 200_000,
            max_ahead_ms: 2_000,
            max_behind_ms: 10_000,
            worth_a_block: 256 << 10,
        }
    }
}
