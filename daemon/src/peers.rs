//! What this daemon knows of its peers beside consensus: what they say of themselves, and how well their messages
//! stand up to verification.
//!
//! A frame between daemons is a consensus message or a [`Progress`]: each daemon tells the others twice a second how far it
//! is. That serves `status` and the question whether a quorum is reachable, never consensus.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bftd_client::protocol::FaultChange;
use bftd_core::{
    ids::MemberId,
    membership::Membership,
    message::{Malformed, Message},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    control::Changed,
    faults::{MAX_ACTIVE, MAX_NAME},
};

/// How often a daemon tells its peers how far it is.
pub const TELL_EVERY: Duration = Duration::from_millis(500);
/// A peer that was not heard of for so long counts as unreachable.
pub const UNREACHABLE_AFTER: Duration = Duration::from_millis(1_800);
/// How often it is seen to whether a peer that is waited for has gone.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a proof of misbehaviour is news: a member that has lied a moment ago is not counted on.
const FRESH: Duration = Duration::from_secs(600);

/// What a daemon says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Its term.
    pub term: u64,
    /// The index of its highest certificate.
    pub prepared: u64,
    /// Its committed index.
    pub committed: u64,
    /// Its executed index.
    pub executed: u64,
    /// Its program's version.
    pub version: String,
    /// The faults injected there.
    pub faults: Vec<String>,
    /// Its clock, in milliseconds since the Unix epoch.
    pub clock_ms: u64,
}

impl Progress {
    /// Whether it is short enough to be kept, and fit to be shown.
    fn is_bounded(&self) -> bool {
        self.version.len() <= MAX_NAME && is_printable(&self.version) && are_fault_names(&self.faults)
    }
}

/// Whether these may be the names of a member's faults: few, short and printable.
pub fn are_fault_names(names: &[String]) -> bool {
    let is_name = |name: &String| (1..=MAX_NAME).contains(&name.len()) && is_printable(name);
    names.len() <= MAX_ACTIVE && names.iter().all(is_name)
}

/// Whether a member's words can do no harm to a terminal, and look as what they are.
pub fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
}

/// A frame between daemons.
#[derive(Debug)]
pub enum Frame {
    /// For the replica.
    Message(Box<Message>),
    /// For `status`.
    Progress(Progress),
    /// An operator elsewhere wants faults of this daemon changed; with a number for the answer.
    Ask(u64, FaultChange),
    /// What came of it.
    Answer(u64, Changed),
}

const MESSAGE: u8 = 0;
const PROGRESS: u8 = 1;
const ASK: u8 = 2;
const ANSWER: u8 = 3;
/// The largest frame of the last three kinds, in bytes.
const MAX_SMALL: usize = 4096;

impl Frame {
    /// A consensus message as a frame.
    pub fn of_message(message: &Message) -> Bytes {
        encode(MESSAGE, message)
    }

    /// What a liar sends in the place of a consensus message.
    pub fn of_bytes(bytes: &[u8]) -> Bytes {
        [&[MESSAGE], bytes].concat().into()
    }

    /// A progress report as a frame.
    pub fn of_progress(progress: &Progress) -> Bytes {
        encode(PROGRESS, progress)
    }

    /// A question as a frame.
    pub fn of_ask(number: u64, change: &FaultChange) -> Bytes {
        encode(ASK, &(number, change))
    }

    /// An answer as a frame.
    pub fn of_answer(number: u64, result: &Changed) -> Bytes {
        encode(ANSWER, &(number, result))
    }

    /// The frame in some bytes.
    ///
    /// # Errors
    /// The bytes are not exactly one frame.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.split_first() {
            Some((&MESSAGE, rest)) => Message::decode(rest).map(|message| Self::Message(Box::new(message))),
            Some((&PROGRESS, rest)) => {
                small(rest).filter(Progress::is_bounded).map(Self::Progress).ok_or(Malformed)
            }
            Some((&ASK, rest)) => {
                small(rest).map(|(number, change)| Self::Ask(number, change)).ok_or(Malformed)
            }
            Some((&ANSWER, rest)) => {
                small(rest).map(|(number, result)| Self::Answer(number, result)).ok_or(Malformed)
            }
            _ => Err(Malformed),
        }
    }
}

fn small<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) if bytes.len() <= MAX_SMALL => Some(value),
        _ => None,
    }
}

fn encode<T: Serialize>(kind: u8, value: &T) -> Bytes {
    postcard::to_extend(value, vec![kind]).expect("encoding into a growing buffer succeeds").into()
}

/// This host's clock, in milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// What is known of each peer.
#[derive(Debug)]
pub struct Peers {
    me: MemberId,
    peers: BTreeMap<MemberId, Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    correct: AtomicU64,
    corrupt: AtomicU64,
    /// Messages that did not pass verification, and that the replica does not know of yet.
    refused: AtomicU32,
    heard: Mutex<Option<(Instant, Progress)>>,
    /// By how much its clock was ahead of ours when that came, in milliseconds.
    ahead_ms: AtomicI64,
    /// Whether an injected fault here keeps it away.
    is_cut: AtomicBool,
    /// When the last proof against it came.
    proved: Mutex<Option<Instant>>,
}

impl Peers {
    /// Nothing is known yet of the members.
    pub fn new(me: MemberId, members: &Membership) -> Self {
        Self { me, peers: members.ids().map(|id| (id, Peer::default())).collect() }
    }

    /// A message of a peer has passed every check, or has not. Answers how many have not.
    pub fn count(&self, from: MemberId, correct: bool) -> u64 {
        let Some(peer) = self.peers.get(&from) else { return 0 };
        if !correct {
            peer.refused.fetch_add(1, Ordering::Relaxed);
        }
        let counter = if correct { &peer.correct } else { &peer.corrupt };
        counter.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A message that had passed every check was a lie after all: it said what no correct member says.
    pub fn recount(&self, from: MemberId) {
        if let Some(peer) = self.peers.get(&from) {
            // Somebody else may have passed it on, and got the count.
            let _ =
                peer.correct.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
            peer.corrupt.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many messages of each peer were refused since this was asked last, of those of whom any were.
    pub fn take_refused(&self) -> impl Iterator<Item = (MemberId, u32)> {
        let taken = self.peers.iter().map(|(id, peer)| (*id, peer.refused.swap(0, Ordering::Relaxed)));
        taken.filter(|(_, count)| *count > 0)
    }

    /// How many messages of a peer were correct, and how many corrupt.
    pub fn counts(&self, id: MemberId) -> (u64, u64) {
        self.peers.get(&id).map_or((0, 0), |peer| {
            (peer.correct.load(Ordering::Relaxed), peer.corrupt.load(Ordering::Relaxed))
        })
    }

    /// A peer has said how far it is.
    pub fn hear(&self, from: MemberId, progress: Progress) {
        if let Some(peer) = self.peers.get(&from) {
            let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
            peer.ahead_ms
                .store(signed(progress.clock_ms).saturating_sub(signed(now_ms())), Ordering::Relaxed);
            *peer.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), progress));
        }
    }

    /// By how much the clock of a peer that is heard of is ahead of ours, by its own word, in milliseconds.
    pub fn clock_ahead_ms(&self, id: MemberId) -> Option<i64> {
        let peer = self.peers.get(&id).filter(|_| id != self.me && self.is_heard(id))?;
        Some(peer.ahead_ms.load(Ordering::Relaxed))
    }

    /// A peer's faults have changed just now.
    pub fn hear_faults(&self, from: MemberId, faults: Vec<String>) {
        if let Some(peer) = self.peers.get(&from)
            && let Some((_, progress)) = &mut *peer.heard.lock().unwrap_or_else(PoisonError::into_inner)
        {
            progress.faults = faults;
        }
    }

    /// Injected faults here keep a peer away, or no longer.
    pub fn cut(&self, id: MemberId, is_cut: bool) {
        if let Some(peer) = self.peers.get(&id) {
            peer.is_cut.store(is_cut, Ordering::Relaxed);
        }
    }

    /// What a peer said last, and whether that is recent enough to call it reachable. One whose faults keep it away from
    /// here is not. Of one that is not heard of any more the faults are left out: they end with its daemon.
    pub fn progress(&self, id: MemberId) -> (bool, Progress) {
        let Some((at, mut progress)) = self.last(id) else { return (false, Progress::default()) };
        if at.elapsed() >= UNREACHABLE_AFTER {
            progress.faults.clear();
            return (false, progress);
        }
        let is_cut = self.peers.get(&id).is_some_and(|peer| peer.is_cut.load(Ordering::Relaxed));
        let is_away = is_cut || progress.faults.iter().any(|fault| self.keeps_away(fault));
        (!is_away, progress)
    }

    /// Whether a member's daemon runs, as far as can be known here: it was heard of lately, if only by what passes every
    /// injected fault. Of this member always.
    pub fn is_heard(&self, id: MemberId) -> bool {
        id == self.me || self.last(id).is_some_and(|(at, _)| at.elapsed() < UNREACHABLE_AFTER)
    }

    /// Comes to its end when a member is not heard of any more.
    pub async fn gone(&self, id: MemberId) {
        while self.is_heard(id) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn last(&self, id: MemberId) -> Option<(Instant, Progress)> {
        self.peers.get(&id)?.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A proof against a member has come just now.
    pub fn note_proof(&self, accused: MemberId) {
        if let Some(peer) = self.peers.get(&accused) {
            *peer.proved.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    /// Whether a proof against a member came a short time ago. Those that were on disk at the start are older.
    pub fn is_proof_fresh(&self, id: MemberId) -> bool {
        let proved = |peer: &Peer| *peer.proved.lock().unwrap_or_else(PoisonError::into_inner);
        self.peers.get(&id).and_then(proved).is_some_and(|at| at.elapsed() < FRESH)
    }

    /// Whether a peer's fault keeps its messages from this daemon.
    fn keeps_away(&self, fault: &str) -> bool {
        fault == "offline" || fault == "silent" || fault == format!("link={}", self.me)
    }

    /// How many members are reachable, this one included.
    pub fn reachable(&self) -> usize {
        self.peers.keys().filter(|id| **id == self.me || self.progress(**id).0).count()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn frames_are_what_they_were_and_nothing_else_is_a_frame() {
        let faults = vec!["malicious".to_owned()];
        let progress = Progress { term: 3, version: "0.1.0".into(), faults, ..Progress::default() };
        let bytes = Frame::of_progress(&progress);
        assert!(matches!(Frame::decode(&bytes).unwrap(), Frame::Progress(found) if found == progress));
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Frame::decode(&longer).is_err(), "bytes left over");
        assert!(Frame::decode(&[]).is_err());
        assert!(Frame::decode(&[9, 0]).is_err(), "an unknown kind");
        assert!(Frame::decode(&bytes[..bytes.len() - 1]).is_err(), "a part");
        let unfit = Progress { version: "\x1b[2J".into(), ..progress.clone() };
        assert!(Frame::decode(&Frame::of_progress(&unfit)).is_err(), "what a terminal would obey");
        let unfit = Progress { faults: vec!["slow\nslow".into()], ..progress };
        assert!(Frame::decode(&Frame::of_progress(&unfit)).is_err(), "what a terminal would obey");
    }

    fn peers() -> Peers {
        Peers::new(MemberId(1), &crate::faults::tests::members())
    }

    fn progress(faults: &[&str]) -> Progress {
        let faults = faults.iter().map(|fault| (*fault).to_owned()).collect();
        Progress { term: 3, faults, ..Progress::default() }
    }

    /// As if a peer had last been heard of so long ago.
    fn silent_for(peers: &Peers, id: MemberId, time: Duration) {
        let mut heard = peers.peers[&id].heard.lock().unwrap();
        heard.as_mut().unwrap().0 = Instant::now().checked_sub(time).unwrap();
    }

    #[test]
    fn faults_are_known_of_a_member_that_is_heard_of_and_no_longer() {
        let (peers, other) = (peers(), MemberId(2));
        assert!(!peers.is_heard(other) && peers.is_heard(MemberId(1)));
        for fault in ["offline", "silent", "link=1"] {
            peers.hear(other, progress(&[fault]));
            let (reachable, said) = peers.progress(other);
            assert!(!reachable && peers.is_heard(other), "{fault}");
            assert_eq!(said.faults, [fault], "it is cut off, and its reports pass");
        }
        peers.hear(other, progress(&["slow"]));
        assert_eq!(peers.progress(other), (true, progress(&["slow"])));
        silent_for(&peers, other, UNREACHABLE_AFTER);
        assert_eq!(peers.progress(other), (false, progress(&[])));
        assert!(!peers.is_heard(other));
    }

    #[tokio::test]
    async fn who_is_not_heard_of_is_gone() {
        let (peers, other) = (peers(), MemberId(2));
        let gone = || tokio::time::timeout(Duration::from_millis(300), peers.gone(other));
        assert!(gone().await.is_ok());
        peers.hear(other, progress(&[]));
        assert!(gone().await.is_err());
        silent_for(&peers, other, UNREACHABLE_AFTER);
        assert!(gone().await.is_ok());
    }

    #[test]
    fn what_was_refused_is_told_once_and_lies_that_pass_are_not() {
        let (peers, other) = (peers(), MemberId(2));
        assert_eq!(peers.take_refused().next(), None);
        peers.count(other, true);
        peers.count(other, false);
        peers.count(other, false);
        // The replica has found this one itself.
        peers.recount(other);
        assert_eq!(peers.take_refused().collect::<Vec<_>>(), [(other, 2)]);
        assert_eq!(peers.take_refused().next(), None);
        assert_eq!(peers.counts(other), (0, 3));
    }

    #[test]
    fn a_proof_is_news_for_a_while() {
        let (peers, other) = (peers(), MemberId(2));
        assert!(!peers.is_proof_fresh(other));
        peers.note_proof(other);
        assert!(peers.is_proof_fresh(other) && !peers.is_proof_fresh(MemberId(3)));
        let long_ago = Instant::now().checked_sub(FRESH).unwrap();
        *peers.peers[&other].proved.lock().unwrap() = Some(long_ago);
        assert!(!peers.is_proof_fresh(other));
    }
}
