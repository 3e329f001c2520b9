//! Faults that an operator injects into this daemon, for drills and tests: it lies, is cut off or dies.
//!
//! - Nothing happens unless this daemon's own configuration says `[faults] enabled = true`. With it on, **any member of the
//!   cluster may make this daemon misbehave**, or let it crash: a question is obeyed whichever member's daemon passes it
//!   on, and a liar needs no operator to ask one. The bound of f faulty members is kept by the daemon that is asked first, not
//!   here. So it is for drills and tests, never where data matters.
//! - An [`Adversary`] of `bftd-faults` stands between the driver and the transport: the replica stays honest, what leaves
//!   does not. Several faults apply one after the other.
//! - What others can't see for themselves is told to them ([`crate::peers::Progress`]), so that every `status` names the
//!   faults. Requests to inject and to clear, and that word, pass every fault.
//! - Faults end when they are cleared, when their time is over, and with the daemon.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bftd_client::protocol::{Failure, FaultChange};
use bftd_core::{
    ids::{MemberId, Now},
    limits::MAX_MESSAGE,
    message::Message,
};
use bftd_faults::{Adversary, Content, Fault, Liar, Parcel, adversary};

use crate::peers::is_printable;

/// How many faults may be active at once.
pub const MAX_ACTIVE: usize = 8;
/// The longest name of a fault, in bytes.
pub const MAX_NAME: usize = 64;
/// How long a daemon that is about to crash has to say so.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What can be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Injected {
    /// As if the host were off: nothing comes or goes.
    Offline,
    /// The process dies at once.
    Crash,
    /// Nothing comes from or goes to one member.
    Link(MemberId),
    /// It lies.
    Lie(Fault),
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offline => f.write_str("offline"),
            Self::Crash => f.write_str("crash"),
            Self::Link(to) => write!(f, "link={to}"),
            Self::Lie(fault) => fault.fmt(f),
        }
    }
}

impl FromStr for Injected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "offline" => Ok(Self::Offline),
            "crash" => Ok(Self::Crash),
            _ => match text.strip_prefix("link=") {
                Some(member) => member
                    .parse()
                    .map(|id| Self::Link(MemberId(id)))
                    .map_err(|_| format!("{member:?} is no member's number")),
                None => match text.parse() {
                    Ok(Fault::Amnesia | Fault::CrashLoop) => {
                        Err(format!("`{text}` needs restarts, and is for the simulator only"))
                    }
                    Ok(fault) => Ok(Self::Lie(fault)),
                    Err(unknown) => Err(format!("{unknown}; and offline, crash, link=N")),
                },
            },
        }
    }
}

struct Active {
    injected: Injected,
    until: Option<Instant>,
    adversary: Option<Box<dyn Adversary>>,
}

/// The faults of this daemon.
pub struct Faults {
    liar: Liar,
    is_enabled: bool,
    /// Whether there are any: what a daemon without faults looks at.
    any: AtomicBool,
    active: Mutex<Vec<Active>>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("active", &self.names()).finish_non_exhaustive()
    }
}

impl Faults {
    /// None yet. `liar` is what lies are made of.
    pub fn new(liar: Liar, is_enabled: bool) -> Self {
        Self { liar, is_enabled, any: AtomicBool::new(false), active: Mutex::default() }
    }

    fn active(&self) -> MutexGuard<'_, Vec<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of the faults that are active.
    pub fn names(&self) -> Vec<String> {
        if !self.any() {
            return Vec::new();
        }
        self.active().iter().map(|active| active.injected.to_string()).collect()
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Injects or clears.
    ///
    /// # Errors
    /// This daemon takes no faults, knows no such fault, or has too many.
    pub fn change(&self, change: &FaultChange) -> Result<(), Failure> {
        if !self.is_enabled {
            return Err(Failure::FaultsDisabled { node: self.liar.me.0 });
        }
        match change {
            FaultChange::Clear => {
                tracing::warn!("the injected faults are cleared");
                let mut active = self.active();
                active.clear();
                self.any.store(false, Ordering::Relaxed);
                Ok(())
            }
            FaultChange::Start { fault, for_ms } => self.start(fault, *for_ms),
        }
    }

    fn start(&self, fault: &str, for_ms: Option<u64>) -> Result<(), Failure> {
        if fault.len() > MAX_NAME || !is_printable(fault) {
            return Err(Failure::UnknownFault(format!(
                "a fault's name has at most {MAX_NAME} bytes, all printable ASCII"
            )));
        }
        let injected: Injected = fault.parse().map_err(Failure::UnknownFault)?;
        if let Injected::Link(to) = injected
            && (to == self.liar.me || self.liar.members.get(to).is_none())
        {
            return Err(Failure::UnknownFault(format!("member {} has no link to {to}", self.liar.me)));
        }
        let mut active = self.active();
        active.retain(|other| other.injected != injected);
        if active.len() >= MAX_ACTIVE {
            return Err(Failure::UnknownFault(format!(
                "{MAX_ACTIVE} faults are active there already; clear them first"
            )));
        }
        tracing::warn!(fault = %injected, for_ms, "a fault is injected: this daemon misbehaves from now on");
        let seed = u64::from(std::process::id()) << 32 | active.len() as u64;
        active.push(Active {
            injected,
            until: for_ms.map(|ms| Instant::now() + Duration::from_millis(ms)),
            adversary: match injected {
                Injected::Lie(fault) => Some(adversary(fault, self.liar.clone(), seed)),
                _ => None,
            },
        });
        self.any.store(true, Ordering::Relaxed);
        if injected == Injected::Crash {
            tokio::spawn(async {
                tokio::time::sleep(LAST_WORDS).await;
                // As a power cut would: nothing is written, nobody is told.
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            });
        }
        Ok(())
    }

    /// Whether nothing comes from or goes to a member.
    pub fn is_cut(&self, other: MemberId) -> bool {
        self.any()
            && self.active().iter().any(|active| {
                matches!(active.injected, Injected::Offline | Injected::Lie(Fault::Silent))
                    || active.injected == Injected::Link(other)
            })
    }

    /// What leaves instead of a message.
    pub fn outgoing(&self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let first = vec![Parcel::now(to, message.clone())];
        let mut active = self.active();
        let parcels = active.iter_mut().fold(first, |parcels, active| match &mut active.adversary {
            Some(adversary) => {
                parcels.into_iter().flat_map(|parcel| through(&mut **adversary, parcel)).collect()
            }
            None => parcels,
        });
        drop(active);
        self.sendable(parcels)
    }

    /// Whether the replica gets a message, and what leaves because it has come.
    pub fn incoming(&self, from: MemberId, message: &Message) -> (bool, Vec<Parcel>) {
        if self.is_deaf_to(from) {
            return (false, Vec::new());
        }
        let mut hears = true;
        let mut parcels = Vec::new();
        for adversary in self.active().iter_mut().filter_map(|active| active.adversary.as_mut()) {
            hears &= adversary.hears(from, message);
            parcels.extend(adversary.incoming(from, message));
        }
        (hears, self.sendable(parcels))
    }

    /// Time passes: faults end, and some lies come of themselves.
    pub fn tick(&self, now: Now) -> Vec<Parcel> {
        let mut active = self.active();
        let at = Instant::now();
        active.retain(|active| {
            let is_over = active.until.is_some_and(|until| until <= at);
            if is_over {
                tracing::warn!(fault = %active.injected, "an injected fault is over");
            }
            !is_over
        });
        self.any.store(!active.is_empty(), Ordering::Relaxed);
        let adversaries = active.iter_mut().filter_map(|active| active.adversary.as_mut());
        let parcels = adversaries.flat_map(|adversary| adversary.tick(now)).collect();
        drop(active);
        self.sendable(parcels)
    }

    /// What the clocks say to the replica.
    pub fn clock(&self, now: Now) -> Now {
        if !self.any() {
            return now;
        }
        let adversaries = self.active();
        let adversaries = adversaries.iter().filter_map(|active| active.adversary.as_ref());
        let unix_ms = adversaries.fold(now.unix_ms, |ms, adversary| adversary.unix_ms(ms));
        Now { unix_ms, ..now }
    }

    fn is_deaf_to(&self, from: MemberId) -> bool {
        let is_deaf =
            |active: &Active| active.injected == Injected::Offline || active.injected == Injected::Link(from);
        self.active().iter().any(is_deaf)
    }

    /// Without what a cut link keeps here, and what the transport would refuse as a mistake of ours: frames over the limit
    /// leave only in the simulator.
    fn sendable(&self, mut parcels: Vec<Parcel>) -> Vec<Parcel> {
        let is_too_large = |parcel: &Parcel| match &parcel.content {
            Content::Bytes(bytes) if bytes.len() > MAX_MESSAGE => {
                tracing::debug!(to = parcel.to.0, bytes = bytes.len(), "a lie is too large to be sent");
                true
            }
            _ => false,
        };
        parcels.retain(|parcel| !self.is_cut(parcel.to) && !is_too_large(parcel));
        parcels
    }
}

/// A parcel of one liar passes the next.
fn through(adversary: &mut dyn Adversary, parcel: Parcel) -> Vec<Parcel> {
    match parcel.content {
        Content::Message(message) => {
            let parcels = adversary.outgoing(parcel.to, &message).into_iter();
            parcels.map(|next| next.after(parcel.delay_us)).collect()
        }
        Content::Bytes(_) => vec![parcel],
    }
}

#[cfg(test)]
pub(crate) mod tests;
