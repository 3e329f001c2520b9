//! Committed blocks for members that lack them: read from the log beside the driver, one answer after the other.
//!
//! Of each member the newest question counts, so questions can't pile up. After each answer this task rests for as long as the
//! answer took: whoever asks without end gets no more than half of a core.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bftd_core::{
    ids::{Index, MemberId},
    limits::{FETCH_BLOCKS, FETCH_BYTES, MAX_MESSAGE},
    message::{Blocks, Message},
    replica::To,
};
use tokio::sync::{Notify, mpsc};

use crate::{
    driver::Internal,
    outlet::Outlet,
    store::{LogReader, StoreError},
};

/// Who lacks which blocks.
#[derive(Debug, Default)]
pub struct Lacking {
    /// The last index that each has.
    after: Mutex<BTreeMap<MemberId, Index>>,
    news: Notify,
}

impl Lacking {
    /// A member lacks what is committed after an index.
    pub fn note(&self, member: MemberId, after: Index) {
        self.lock().insert(member, after);
        self.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MemberId, Index>> {
        self.after.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next member in turn after the last one served.
    fn take_next(&self, last: MemberId) -> Option<(MemberId, Index)> {
        let mut lacking = self.lock();
        let next = lacking.keys().find(|member| **member > last).or(lacking.keys().next()).copied()?;
        lacking.remove_entry(&next)
    }

    /// Serves until nobody is there any more to serve for. A log that can't be read is told to the driver.
    pub async fn serve(
        self: Arc<Self>,
        log: LogReader,
        outlet: Arc<Outlet>,
        report: mpsc::UnboundedSender<Internal>,
    ) {
        let mut last = MemberId(0);
        loop {
            let Some((member, after)) = self.take_next(last) else {
                self.news.notified().await;
                continue;
            };
            last = member;
            let begun = Instant::now();
            let (log, outlet) = (log.clone(), Arc::clone(&outlet));
            let sent = tokio::task::spawn_blocking(move || answer(&log, &outlet, member, after)).await;
            if let Err(error) = sent.unwrap_or(Err(StoreError::Poisoned)) {
                // The driver has gone only when the daemon stops.
                let _ = report.send(Internal::Unreadable(error));
                return;
            }
            tokio::time::sleep(begun.elapsed()).await;
        }
    }
}

fn answer(log: &LogReader, outlet: &Outlet, member: MemberId, after: Index) -> Result<(), StoreError> {
    let mut run = log.committed_after(after, FETCH_BLOCKS, FETCH_BYTES)?;
    if run.as_ref().is_some_and(|run| run.certificate.is_none()) {
        // A run that proves itself is worth some more: it is believed even when it comes late.
        run = log.committed_after(after, FETCH_BLOCKS, MAX_MESSAGE / 2)?;
    }
    if let Some(run) = run {
        let blocks = Blocks { blocks: run.blocks, certificate: run.certificate };
        outlet.send(To::Member(member), &Message::Blocks(blocks));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_member_the_newest_question_counts_and_all_get_their_turn() {
        let lacking = Lacking::default();
        for after in 0..100_000 {
            lacking.note(MemberId(2), Index(after));
        }
        lacking.note(MemberId(3), Index(7));
        assert_eq!(lacking.take_next(MemberId(2)), Some((MemberId(3), Index(7))), "the flood waits its turn");
        assert_eq!(lacking.take_next(MemberId(3)), Some((MemberId(2), Index(99_999))));
        assert_eq!(lacking.take_next(MemberId(2)), None);
    }
}
