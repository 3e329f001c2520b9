//! The connection of a session: one at a time, to whichever daemon answers.

use std::{io, path::PathBuf, time::Duration};

use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep, timeout_at},
};

use crate::client::{Client, Error, GREETING_DEADLINE};

/// How long is waited before the second attempt. Each further wait doubles, up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// See [`FIRST_WAIT`].
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Waits between attempts, ever longer, each from a half to all of its length: so those who failed together don't come back together.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// Waits; not at all where the time would be over then, which it says.
    pub(super) async fn wait(&mut self, until: Instant) -> bool {
        let longest = FIRST_WAIT.saturating_mul(1 << self.attempts.min(16)).min(LONGEST_WAIT);
        self.attempts += 1;
        let wait = longest.mul_f64(0.5 + f64::from(u16::from_le_bytes(random())) / 131_072.0);
        if Instant::now() + wait >= until {
            return false;
        }
        sleep(wait).await;
        true
    }
}

/// Random bytes.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

/// The daemons of a session, and the connection to one of them.
#[derive(Debug)]
pub(super) struct Links {
    sockets: Vec<PathBuf>,
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    client: Option<Client>,
    /// How many connections were made or left: the number of the one that there is.
    number: u64,
    /// The socket that is tried next.
    next: usize,
}

impl Links {
    pub(super) fn new(sockets: Vec<PathBuf>, patience: Duration) -> Self {
        Self { sockets, patience, state: Mutex::default() }
    }

    /// How long one daemon's answer is waited for.
    pub(super) fn limit(&self, until: Instant) -> Duration {
        let left = until.saturating_duration_since(Instant::now());
        if self.sockets.len() > 1 { left.min(self.patience) } else { left }
    }

    /// The connection, with its number; a new one where it is broken. Unless told to insist, one attempt is made.
    pub(super) async fn get(&self, until: Instant, insist: bool) -> Result<(u64, Client), Error> {
        let Ok(mut state) = timeout_at(until, self.state.lock()).await else {
            return Err(Error::NoAnswer("no daemon could be reached in time".to_owned()));
        };
        if let Some(client) = state.client.as_ref().filter(|client| !client.is_broken()) {
            return Ok((state.number, client.clone()));
        }
        let mut backoff = Backoff::default();
        loop {
            let mut lasts = true;
            let mut last = None;
            for _ in 0..self.sockets.len() {
                match self.connect(&mut state, until).await {
                    Ok(found) => return Ok(found),
                    Err(error) if !insist => return Err(error),
                    Err(error) => {
                        lasts &= is_lasting(&error);
                        last = Some(error);
                    }
                }
            }
            let error = last.unwrap_or_else(|| Error::NoAnswer("the session has no sockets".to_owned()));
            if lasts || !backoff.wait(until).await {
                return Err(error);
            }
        }
    }

    async fn connect(
        &self,
        state: &mut MutexGuard<'_, State>,
        until: Instant,
    ) -> Result<(u64, Client), Error> {
        state.client = None;
        let none = || Error::NoAnswer("the session has no sockets".to_owned());
        let socket = self.sockets.get(state.next % self.sockets.len().max(1)).ok_or_else(none)?;
        match Client::connect_within(socket, self.limit(until).min(GREETING_DEADLINE)).await {
            Ok(client) => {
                state.number += 1;
                state.client = Some(client.clone());
                Ok((state.number, client))
            }
            Err(error) => {
                state.next += 1;
                Err(error)
            }
        }
    }

    /// Gives a connection up, and turns to the next daemon; unless somebody else has done so.
    pub(super) fn leave(&self, number: u64) {
        // Who has it is on the way to another connection, however long that takes.
        let Ok(mut state) = self.state.try_lock() else { return };
        if state.number == number {
            state.client = None;
            state.number += 1;
            state.next += 1;
        }
    }
}

/// Whether a daemon can't be used however long one waits.
fn is_lasting(error: &Error) -> bool {
    match error {
        Error::NotUnderstood { .. } => true,
        Error::Unreachable { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
        _ => false,
    }
}
