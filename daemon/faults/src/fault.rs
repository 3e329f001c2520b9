//! The list of all misbehaviours, by name.

use std::{fmt, str::FromStr};

use crate::{
    Adversary, Liar, amnesia::Amnesia, bad_signature::BadSignature, censor::Censor, chance::Chance,
    corrupt_vote::CorruptVote, crash_loop::CrashLoop, cry_late::CryLate, double_vote::DoubleVote,
    duplicate_signer::DuplicateSigner, equivocate::Equivocate, flip_protocol::FlipProtocol,
    forged_certificate::ForgedCertificate, forged_evidence::ForgedEvidence, forged_tally::ForgedTally,
    forget::Forget, fork_parent::ForkParent, future_terms::FutureTerms, hidden_lock::HiddenLock,
    impersonate::Impersonate, junk_batches::JunkBatches, lossy::Lossy, low_new_term::LowNewTerm,
    lying_clock::LyingClock, lying_height::LyingHeight, lying_reads::LyingReads, lying_sync::LyingSync,
    mutate::Mutate, oversized::Oversized, relabel::Relabel, replay::Replay,
    selective_collector::SelectiveCollector, selective_send::SelectiveSend, silent::Silent,
    silent_collector::SilentCollector, slow::Slow, split_routes::SplitRoutes, together::Together, twin::Twin,
    withhold_certificates::WithholdCertificates, wrong_state::WrongState,
};

/// A way to misbehave. Its name, as [`Fault::from_str`] reads it and `Display` writes it, is the file's where its lie is
/// described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Votes for falsified digests, reports falsified positions, and equivocates as the leader.
    Malicious,
    /// Delays all that it sends. Microseconds.
    Delay(u64),
    /// Drops this many percent of what it sends.
    Drop(u8),
    /// `equivocate.rs`
    Equivocate,
    /// `equivocate.rs`, with the members in two fixed halves: an ally that double-votes makes both stories final.
    Divide,
    /// `bad_signature.rs`
    BadSignature,
    /// `corrupt_vote.rs`
    CorruptVote,
    /// `wrong_state.rs`
    WrongState,
    /// `silent.rs`
    Silent,
    /// `slow.rs`
    Slow,
    /// `replay.rs`
    Replay,
    /// `double_vote.rs`
    DoubleVote,
    /// `forget.rs`
    Forget,
    /// `low_new_term.rs`
    LowNewTerm,
    /// `lying_reads.rs`
    LyingReads,
    /// `lying_height.rs`
    LyingHeight,
    /// `fork_parent.rs`
    ForkParent,
    /// `withhold_certificates.rs`
    WithholdCertificates,
    /// `censor.rs`
    Censor,
    /// `hidden_lock.rs`
    HiddenLock,
    /// `amnesia.rs`
    Amnesia,
    /// `twin.rs`
    Twin,
    /// `impersonate.rs`
    Impersonate,
    /// `forged_certificate.rs`
    ForgedCertificate,
    /// `forged_evidence.rs`
    ForgedEvidence,
    /// `duplicate_signer.rs`
    DuplicateSigner,
    /// `crash_loop.rs`
    CrashLoop,
    /// `relabel.rs`
    Relabel,
    /// `future_terms.rs`
    FutureTerms,
    /// `selective_send.rs`
    SelectiveSend,
    /// `oversized.rs`
    Oversized,
    /// `lying_sync.rs`
    LyingSync,
    /// `lying_clock.rs`
    LyingClock,
    /// `junk_batches.rs`
    JunkBatches,
    /// `mutate.rs`
    Mutate,
    /// `silent_collector.rs`
    SilentCollector,
    /// `forged_tally.rs`
    ForgedTally,
    /// `selective_collector.rs`
    SelectiveCollector,
    /// `cry_late.rs`
    CryLate,
    /// `split_routes.rs`
    SplitRoutes,
    /// `flip_protocol.rs`
    FlipProtocol,
}

/// What each is called, with an example where it takes a number.
const NAMES: &[(Fault, &str)] = &[
    (Fault::Malicious, "malicious"),
    (Fault::Delay(200_000), "delay=200ms"),
    (Fault::Drop(30), "drop=30%"),
    (Fault::Equivocate, "equivocate"),
    (Fault::Divide, "divide"),
    (Fault::BadSignature, "bad-signature"),
    (Fault::CorruptVote, "corrupt-vote"),
    (Fault::WrongState, "wrong-state"),
    (Fault::Silent, "silent"),
    (Fault::Slow, "slow"),
    (Fault::Replay, "replay"),
    (Fault::DoubleVote, "double-vote"),
    (Fault::Forget, "forget"),
    (Fault::LowNewTerm, "low-new-term"),
    (Fault::LyingReads, "lying-reads"),
    (Fault::LyingHeight, "lying-height"),
    (Fault::ForkParent, "fork-parent"),
    (Fault::WithholdCertificates, "withhold-certificates"),
    (Fault::Censor, "censor"),
    (Fault::HiddenLock, "hidden-lock"),
    (Fault::Amnesia, "amnesia"),
    (Fault::Twin, "twin"),
    (Fault::Impersonate, "impersonate"),
    (Fault::ForgedCertificate, "forged-certificate"),
    (Fault::ForgedEvidence, "forged-evidence"),
    (Fault::DuplicateSigner, "duplicate-signer"),
    (Fault::CrashLoop, "crash-loop"),
    (Fault::Relabel, "relabel"),
    (Fault::FutureTerms, "future-terms"),
    (Fault::SelectiveSend, "selective-send"),
    (Fault::Oversized, "oversized"),
    (Fault::LyingSync, "lying-sync"),
    (Fault::LyingClock, "lying-clock"),
    (Fault::JunkBatches, "junk-batches"),
    (Fault::Mutate, "mutate"),
    (Fault::SilentCollector, "silent-collector"),
    (Fault::ForgedTally, "forged-tally"),
    (Fault::SelectiveCollector, "selective-collector"),
    (Fault::CryLate, "cry-late"),
    (Fault::SplitRoutes, "split-routes"),
    (Fault::FlipProtocol, "flip-protocol"),
];

/// Makes a liar misbehave. The same seed is the same behaviour.
pub fn adversary(fault: Fault, liar: Liar, seed: u64) -> Box<dyn Adversary> {
    let chance = Chance::new(seed);
    match fault {
        Fault::Malicious => {
            let parts = [Fault::Equivocate, Fault::CorruptVote, Fault::LyingReads, Fault::LyingHeight];
            let parts = parts.map(|part| adversary(part, liar.clone(), seed));
            Box::new(Together(parts.into()))
        }
        Fault::Delay(delay_us) => Box::new(Lossy::new(delay_us, 0, chance)),
        Fault::Drop(percent) => Box::new(Lossy::new(0, percent, chance)),
        Fault::Equivocate => Box::new(Equivocate::new(liar, chance)),
        Fault::Divide => Box::new(Equivocate::dividing(liar)),
        Fault::BadSignature => Box::new(BadSignature::new(chance)),
        Fault::CorruptVote => Box::new(CorruptVote::new(liar, chance)),
        Fault::WrongState => Box::new(WrongState::new(liar, chance)),
        Fault::Silent => Box::new(Silent),
        Fault::Slow => Box::new(Slow::new(&liar, chance)),
        Fault::Replay => Box::new(Replay::new(liar, chance)),
        Fault::DoubleVote => Box::new(DoubleVote::new(liar)),
        Fault::Forget => Box::new(Forget::new(liar, chance)),
        Fault::LowNewTerm => Box::new(LowNewTerm::new(liar)),
        Fault::LyingReads => Box::new(LyingReads::new(liar, chance)),
        Fault::LyingHeight => Box::new(LyingHeight::new(liar, chance)),
        Fault::ForkParent => Box::new(ForkParent::new(liar, chance)),
        Fault::WithholdCertificates => Box::new(WithholdCertificates::new(&liar, chance)),
        Fault::Censor => Box::new(Censor::new(&liar, chance)),
        Fault::HiddenLock => Box::new(HiddenLock::new(liar, chance)),
        Fault::Amnesia => Box::new(Amnesia::new(chance)),
        Fault::Twin => Box::new(Twin::new(liar, chance)),
        Fault::Impersonate => Box::new(Impersonate::new(liar, chance)),
        Fault::ForgedCertificate => Box::new(ForgedCertificate::new(liar, chance)),
        Fault::ForgedEvidence => Box::new(ForgedEvidence::new(liar, chance)),
        Fault::DuplicateSigner => Box::new(DuplicateSigner::new(liar, chance)),
        Fault::CrashLoop => Box::new(CrashLoop::new(chance)),
        Fault::Relabel => Box::new(Relabel::new(liar, chance)),
        Fault::FutureTerms => Box::new(FutureTerms::new(liar, chance)),
        Fault::SelectiveSend => Box::new(SelectiveSend::new(liar, chance)),
        Fault::Oversized => Box::new(Oversized::new(liar, chance)),
        Fault::LyingSync => Box::new(LyingSync::new(liar, chance)),
        Fault::LyingClock => Box::new(LyingClock::new(&liar, chance)),
        Fault::JunkBatches => Box::new(JunkBatches::new(liar, chance)),
        Fault::Mutate => Box::new(Mutate::new(liar, chance)),
        Fault::SilentCollector => Box::new(SilentCollector::new(liar)),
        Fault::ForgedTally => Box::new(ForgedTally::new(liar, chance)),
        Fault::SelectiveCollector => Box::new(SelectiveCollector::new(liar, chance)),
        Fault::CryLate => Box::new(CryLate::new(liar)),
        Fault::SplitRoutes => Box::new(SplitRoutes::new(liar, chance)),
        Fault::FlipProtocol => Box::new(FlipProtocol::new(liar, chance)),
    }
}

impl Fault {
    /// Whether it does its worst when its process dies and starts again, often.
    pub fn wants_restarts(self) -> bool {
        matches!(self, Self::Amnesia | Self::CrashLoop)
    }

    /// Whether it is a lie of a communication node, or about one: of use only where votes travel to one.
    pub fn is_of_collectors(self) -> bool {
        matches!(
            self,
            Self::SilentCollector
                | Self::ForgedTally
                | Self::SelectiveCollector
                | Self::CryLate
                | Self::SplitRoutes
        )
    }

    /// Whether it says what is not so. Else it loses, delays or leaves out, as crashed machines and networks do.
    pub fn is_lie(self) -> bool {
        !matches!(
            self,
            Self::Delay(_)
                | Self::Drop(_)
                | Self::Silent
                | Self::Slow
                | Self::CrashLoop
                | Self::Censor
                | Self::SelectiveSend
                | Self::WithholdCertificates
                | Self::SilentCollector
                | Self::SelectiveCollector
        )
    }

    /// All there are; those that take a number, with the one that [`Fault::from_str`] shows as an example.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|(fault, _)| *fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delay(us) if us % 1_000 != 0 => write!(f, "delay={us}us"),
            Self::Delay(us) => write!(f, "delay={}ms", us / 1_000),
            Self::Drop(percent) => write!(f, "drop={percent}%"),
            other => {
                let name = NAMES.iter().find(|(fault, _)| fault == other).map(|(_, name)| *name);
                f.write_str(name.unwrap_or("?"))
            }
        }
    }
}

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, UnknownFault> {
        let unknown = || UnknownFault(text.to_owned());
        if let Some(time) = text.strip_prefix("delay=") {
            return parse_us(time).map(Self::Delay).ok_or_else(unknown);
        }
        if let Some(share) = text.strip_prefix("drop=") {
            let percent = share.strip_suffix('%').and_then(|number| number.parse().ok());
            return percent.filter(|percent| *percent <= 100).map(Self::Drop).ok_or_else(unknown);
        }
        let named = NAMES.iter().find(|(_, name)| *name == text);
        named.map(|(fault, _)| *fault).ok_or_else(unknown)
    }
}

/// At most a minute, so that what is held back is bounded.
fn parse_us(text: &str) -> Option<u64> {
    const MINUTE_US: u64 = 60_000_000;
    let (number, unit_us) = [("us", 1), ("ms", 1_000), ("s", 1_000_000)]
        .iter()
        .find_map(|(unit, us)| Some((text.strip_suffix(unit)?.parse::<u64>().ok()?, *us)))?;
    number.checked_mul(unit_us).filter(|us| *us <= MINUTE_US)
}

/// A text that names no [`Fault`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no fault is called {0:?}; there are: {list} (a delay of up to 60s, a share of up to 100%)", list = list())]
pub struct UnknownFault(String);

fn list() -> String {
    NAMES.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
}
