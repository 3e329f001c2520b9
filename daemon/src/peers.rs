//! What this daemon knows of its peers beside consensus: what they say of themselves, and how well their messages
//! stand up to verification.
//!
//! A frame between daemons is a consensus message or a [`Progress`]: each daemon tells the others twice a second how far it
//! is. That serves `status` and the question whether a quorum is reachable, never consensus.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bftd_core::{
    ids::MemberId,
    membership::Membership,
    message::{Malformed, Message},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// How often a daemon tells its peers how far it is.
pub const TELL_EVERY: Duration = Duration::from_millis(500);
/// A peer that was not heard of for so long counts as unreachable.
pub const UNREACHABLE_AFTER: Duration = Duration::from_millis(1_800);

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
}

/// A frame between daemons.
#[derive(Debug)]
pub enum Frame {
    /// For the replica.
    Message(Box<Message>),
    /// For `status`.
    Progress(Progress),
}

const MESSAGE: u8 = 0;
const PROGRESS: u8 = 1;

impl Frame {
    /// A consensus message as a frame.
    pub fn of_message(message: &Message) -> Bytes {
        encode(MESSAGE, message)
    }

    /// A progress report as a frame.
    pub fn of_progress(progress: &Progress) -> Bytes {
        encode(PROGRESS, progress)
    }

    /// The frame in some bytes.
    ///
    /// # Errors
    /// The bytes are not exactly one frame.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.split_first() {
            Some((&MESSAGE, rest)) => Message::decode(rest).map(|message| Self::Message(Box::new(message))),
            Some((&PROGRESS, rest)) => match postcard::take_from_bytes::<Progress>(rest) {
                Ok((progress, [])) if progress.version.len() <= 64 => Ok(Self::Progress(progress)),
                _ => Err(Malformed),
            },
            _ => Err(Malformed),
        }
    }
}

fn encode<T: Serialize>(kind: u8, value: &T) -> Bytes {
    postcard::to_extend(value, vec![kind]).expect("encoding into a growing buffer succeeds").into()
}

/// What is known of each peer.
#[derive(Debug)]
pub struct Peers {
    peers: BTreeMap<MemberId, Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    correct: AtomicU64,
    corrupt: AtomicU64,
    heard: Mutex<Option<(Instant, Progress)>>,
}

impl Peers {
    /// Nothing is known yet of the members.
    pub fn new(members: &Membership) -> Self {
        Self { peers: members.ids().map(|id| (id, Peer::default())).collect() }
    }

    /// A message of a peer has passed every check, or has not. Answers how many have not.
    pub fn count(&self, from: MemberId, correct: bool) -> u64 {
        let Some(peer) = self.peers.get(&from) else { return 0 };
        let counter = if correct { &peer.correct } else { &peer.corrupt };
        counter.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A message that had passed every check was a lie after all: it said what no correct member says.
    pub fn recount(&self, from: MemberId) {
        if let Some(peer) = self.peers.get(&from) {
            peer.correct.fetch_sub(1, Ordering::Relaxed);
            peer.corrupt.fetch_add(1, Ordering::Relaxed);
        }
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
            *peer.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), progress));
        }
    }

    /// What a peer said last, and whether that is recent enough to call it reachable.
    pub fn progress(&self, id: MemberId) -> (bool, Progress) {
        let heard = self
            .peers
            .get(&id)
            .and_then(|peer| peer.heard.lock().unwrap_or_else(PoisonError::into_inner).clone());
        heard.map_or((false, Progress::default()), |(at, progress)| {
            (at.elapsed() < UNREACHABLE_AFTER, progress)
        })
    }

    /// How many members are reachable, this one included.
    pub fn reachable(&self, me: MemberId) -> usize {
        self.peers.keys().filter(|id| **id == me || self.progress(**id).0).count()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn frames_are_what_they_were_and_nothing_else_is_a_frame() {
        let progress = Progress { term: 3, version: "0.1.0".into(), ..Progress::default() };
        let bytes = Frame::of_progress(&progress);
        assert!(matches!(Frame::decode(&bytes).unwrap(), Frame::Progress(found) if found == progress));
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Frame::decode(&longer).is_err(), "bytes left over");
        assert!(Frame::decode(&[]).is_err());
        assert!(Frame::decode(&[9, 0]).is_err(), "an unknown kind");
        assert!(Frame::decode(&bytes[..bytes.len() - 1]).is_err(), "a part");
    }
}
