//! Reads of the state that may take long, beside the threads that agreement runs on.
//!
//! - [`AT_ONCE`] of them run at once, whoever asks; more wait in turn.
//! - A connection has [`OF_A_CONNECTION`] of them under way, and an answer that the client has not taken counts. So what waits
//!   for a client that does not read is bounded, and such a client holds up nobody else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bftd_client::protocol::Failure;
use bftd_core::kv::{Query, Span};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
};

use crate::state::{Answers, StateError, StateReader};

/// How many reads run at once.
pub const AT_ONCE: usize = 4;
/// How many reads of one connection are under way or not taken.
pub const OF_A_CONNECTION: usize = 2;
/// From how many connections on those that are gone are looked for.
const MANY: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct Reads {
    state: StateReader,
    slots: Arc<Semaphore>,
    /// By the number of the connection. Those without a read are forgotten now and then.
    shares: Mutex<HashMap<u64, Weak<Semaphore>>>,
}

/// Whether a query takes so little that it is answered at once: one key, as it is now.
pub fn is_short(query: &Query) -> bool {
    match query {
        Query::Get { .. } => true,
        Query::Range(range) => range.revision == 0 && matches!(range.keys, Span::Key(_)),
        Query::History { .. } | Query::Events(_) | Query::Leases { .. } => false,
    }
}

impl Reads {
    /// Reads of this state.
    pub fn new(state: StateReader) -> Self {
        Self { state, slots: Arc::new(Semaphore::new(AT_ONCE)), shares: Mutex::default() }
    }

    /// Answers a query of a connection.
    ///
    /// # Errors
    /// The store's.
    pub async fn query(&self, connection: u64, query: Query) -> Result<Answers, Failure> {
        let share = self.share(connection);
        let failed = |error: &dyn std::fmt::Display| Failure::Internal(error.to_string());
        // Held until the client's session takes the answer.
        let _taken = share.acquire().await.map_err(|error| failed(&error))?;
        let (state, slots) = (self.state.clone(), Arc::clone(&self.slots));
        // A task of its own: it goes on, and lets others have its slot, while the session takes no answers. Dropped with this.
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            let slot = slots.acquire_owned().await;
            let read = spawn_blocking(move || {
                let _slot = slot;
                state.query_many(&[query])
            });
            read.await.unwrap_or_else(|_| Err(StateError::Poisoned))
        });
        match reading.join_next().await {
            Some(Ok(answers)) => answers.map_err(|error| failed(&error)),
            _ => Err(failed(&"a read ended before its end")),
        }
    }

    fn share(&self, connection: u64) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&connection).and_then(Weak::upgrade) {
            return share;
        }
        if shares.len() >= MANY && shares.len().is_power_of_two() {
            shares.retain(|_, share| share.strong_count() > 0);
        }
        let share = Arc::new(Semaphore::new(OF_A_CONNECTION));
        shares.insert(connection, Arc::downgrade(&share));
        share
    }
}
