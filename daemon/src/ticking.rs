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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bftd_core::{
        block::Executed,
        crypto::Digest,
        ids::{Index, Term},
    };
    use tokio::{
        task::JoinHandle,
        time::{Instant, timeout},
    };

    use super::*;
    use crate::{driver::Done, faults::tests::members, peers::Progress};

    const HOUR: Duration = Duration::from_secs(3600);

    struct Rig {
        status: watch::Sender<Status>,
        lease_end_ms: watch::Sender<Option<u64>>,
        peers: Arc<Peers>,
        events: mpsc::Receiver<Event>,
        task: JoinHandle<()>,
    }

    impl Rig {
        /// A member of four, who hears nobody.
        fn start(me: u8, leader: u8) -> Self {
            let members = members();
            let status = Status {
                term: Term(0),
                leader: MemberId(leader),
                open: true,
                committed: members.root(),
                prepared: Index(0),
                executed: Executed { index: Index(0), state: Digest::ZERO },
                suspecting: None,
                uncommitted: 0,
                pooled: 0,
                catching_up: false,
                protocol: members.protocol(),
                next_protocol: members.protocol(),
            };
            let (status, status_seen) = watch::channel(status);
            let (lease_end_ms, end_seen) = watch::channel(None);
            let (events_sender, events) = mpsc::channel(8);
            let peers = Arc::new(Peers::new(MemberId(me), &members));
            let ticking = Ticking {
                me: MemberId(me),
                members,
                status: status_seen,
                lease_end_ms: end_seen,
                peers: Arc::clone(&peers),
                events: events_sender,
            };
            Self { status, lease_end_ms, peers, events, task: tokio::spawn(ticking.run()) }
        }

        fn hear_all(&self) {
            (1..=4).for_each(|id| self.peers.hear(MemberId(id), Progress::default()));
        }

        /// After how long it proposes that time passes, if that is soon enough; and whom to tell that it has.
        async fn proposed(&mut self, within: Duration) -> Option<(Duration, oneshot::Sender<Done>)> {
            self.hear_all();
            let begun = Instant::now();
            let event = timeout(within, self.events.recv()).await.ok()?;
            let Some(Event::Change(request, client, None)) = event else { panic!("no proposal") };
            assert_eq!(request, Operation::Tick.encode());
            Some((begun.elapsed(), client))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_leader_has_the_first_word_and_the_others_follow_one_after_another() {
        for (me, turns) in [(3, 0), (4, 1), (1, 2), (2, 3)] {
            let mut rig = Rig::start(me, 3);
            rig.lease_end_ms.send_replace(Some(1));
            let (after, _) = rig.proposed(HOUR).await.unwrap();
            assert_eq!(after.as_millis() / 10, (TURN * turns).as_millis() / 10, "member {me}");
        }
        // Who leads is looked at each time.
        let mut rig = Rig::start(2, 3);
        rig.status.send_modify(|status| status.leader = MemberId(2));
        rig.lease_end_ms.send_replace(Some(1));
        assert!(rig.proposed(TURN / 2).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_proposed_again_until_the_lease_has_ended_but_one_at_a_time() {
        let mut rig = Rig::start(1, 1);
        rig.lease_end_ms.send_replace(Some(1));
        let (_, client) = rig.proposed(TURN).await.unwrap();
        assert!(rig.proposed(HOUR).await.is_none(), "the first one is under way");
        drop(client);
        for _ in 0..3 {
            let (after, _) = rig.proposed(HOUR).await.unwrap();
            assert_eq!(after.as_millis() / 10, AGAIN.as_millis() / 10);
        }
        rig.lease_end_ms.send_replace(None);
        assert!(rig.proposed(HOUR).await.is_none());
        drop(rig.lease_end_ms);
        timeout(HOUR, rig.task).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_kept_is_waited_for_anew_and_one_that_ends_earlier_too() {
        let mut rig = Rig::start(1, 1);
        let hours = |count: u64| Some(now_ms() + count * 3_600_000);
        rig.lease_end_ms.send_replace(hours(2));
        assert!(rig.proposed(HOUR).await.is_none());
        rig.lease_end_ms.send_replace(hours(5));
        assert!(rig.proposed(4 * HOUR).await.is_none());
        rig.lease_end_ms.send_replace(hours(1));
        assert!(rig.proposed(2 * HOUR).await.is_some());
        drop(rig.events);
        rig.lease_end_ms.send_replace(Some(1));
        timeout(HOUR, rig.task).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_proposed_without_a_quorum() {
        let mut rig = Rig::start(1, 1);
        rig.lease_end_ms.send_replace(Some(1));
        // Itself and one other.
        rig.peers.hear(MemberId(2), Progress::default());
        assert!(timeout(HOUR, rig.events.recv()).await.is_err());
        assert!(rig.proposed(2 * AGAIN).await.is_some());
    }
}
