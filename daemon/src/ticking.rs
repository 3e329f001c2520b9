//! Lets time pass: a lease ends with a block, so when its deadline has come and nobody writes, somebody must propose one.
//!
//! The leader's daemon does it first; the others follow one after another, each a little later, while there is no block yet. A deadline is
//! by the clocks of leaders: one whose clock is behind is asked again until its time has come.

use std::{sync::Arc, time::Duration};

use bftd_core::{ids::MemberId, kv::Operation, membership::Membership, replica::Status};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};

use crate::{
    driver::Event,
    peers::{Peers, now_ms},
};

/// How much later than the one before it a member proposes.
const TURN: Duration = Duration::from_millis(300);
/// How long it waits before it proposes again.
const AGAIN: Duration = Duration::from_millis(500);

/// What proposing needs to know.
pub struct Ticking {
    /// This member.
    pub me: MemberId,
    /// All members.
    pub members: Arc<Membership>,
    /// The replica, as the driver shows it.
    pub status: watch::Receiver<Status>,
    /// When the next lease ends.
    pub lease_end_ms: watch::Receiver<Option<u64>>,
    /// Who can be reached: without a quorum there is no block, and nothing to propose.
    pub peers: Arc<Peers>,
    /// The driver.
    pub events: mpsc::Sender<Event>,
}

impl Ticking {
    /// Runs until the executor or the driver is gone.
    pub async fn run(mut self) {
        loop {
            let end_ms = *self.lease_end_ms.borrow_and_update();
            let wait =
                end_ms.map(|end_ms| Duration::from_millis(end_ms.saturating_sub(now_ms())) + self.turn());
            let is_due = async {
                match wait {
                    Some(wait) => sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.lease_end_ms.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = is_due => {
                    if self.tick().await.is_err() {
                        return;
                    }
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// How long others have the first word: none for the leader.
    fn turn(&self) -> Duration {
        let leader = self.status.borrow().leader;
        let ids: Vec<_> = self.members.ids().collect();
        let place = |id| ids.iter().position(|other| *other == id).unwrap_or_default();
        let turns = (place(self.me) + ids.len() - place(leader)) % ids.len().max(1);
        TURN * u32::try_from(turns).unwrap_or_default()
    }

    /// Proposes a block, and waits until there is one. Fails when the driver is gone.
    async fn tick(&self) -> Result<(), ()> {
        if self.peers.reachable() < self.members.quorum() {
            return Ok(());
        }
        let (client, done) = oneshot::channel();
        match self.events.try_send(Event::Change(Operation::Tick.encode(), client, None)) {
            // Whatever the queue is full of makes blocks, too.
            Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(()),
            Ok(()) => {
                // One at a time: what waits without a quorum must not pile up.
                let _ = done.await;
                Ok(())
            }
        }
    }
}
