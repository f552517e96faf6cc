//! A barrier that opens when recent commits are in the replica. A wait has the next sync round begin soon, and all
//! waits that begin meanwhile share the round.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// How far the sync rounds are, and how many wait for one.
#[derive(Clone, Default)]
pub(crate) struct ReplicationBarrier(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The number of the last sync round that has begun.
    begun: AtomicU64,
    /// The number of the last sync round after which all earlier commits count as replicated.
    good: watch::Sender<u64>,
    /// Why sync rounds fail, once they have failed for a while.
    failing: watch::Sender<Option<String>>,
    waiting: AtomicUsize,
    wanted: Notify,
}

/// Counts a wait until the task that waits drops it.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ReplicationBarrier {
    /// Waits until all that is committed now is in an incarnation that is READY, and that the claim named thereafter: a
    /// worker that takes over from now on restores it. Returns `false` after `timeout`.
    pub(crate) async fn wait(&self, timeout: Duration) -> bool {
        let shared = &self.0;
        shared.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(&shared.waiting);
        let wanted = shared.begun.load(Ordering::SeqCst) + 1;
        let mut good = shared.good.subscribe();
        shared.wanted.notify_one();
        let waited = tokio::time::timeout(timeout, good.wait_for(|good| *good >= wanted)).await;
        waited.is_ok_and(|found| found.is_ok())
    }

    /// The same, for somebody who can come back later: an error says at once why sync rounds fail, where they do.
    pub(crate) async fn wait_unless_failing(&self, timeout: Duration) -> Result<bool, String> {
        let mut failing = self.0.failing.subscribe();
        tokio::select! {
            biased;
            waited = self.wait(timeout) => Ok(waited),
            Ok(why) = failing.wait_for(Option::is_some) => Err(why.clone().unwrap_or_default()),
        }
    }

    /// Whether anybody waits.
    pub(crate) fn is_awaited(&self) -> bool {
        self.0.waiting.load(Ordering::SeqCst) > 0
    }

    /// Returns when a wait has begun, and others have had this time to begin too.
    pub(crate) async fn wanted_for(&self, gap: Duration) {
        self.0.wanted.notified().await;
        tokio::time::sleep(gap).await;
    }

    /// Returns the number of the sync round that begins.
    pub(crate) fn begin(&self) -> u64 {
        self.0.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Notes that a sync round has ended well.
    pub(crate) fn end(&self, round: u64) {
        self.0.failing.send_replace(None);
        self.0.good.send_replace(round);
    }

    /// Notes that sync rounds have failed for a while, and why.
    pub(crate) fn fail(&self, why: &str) {
        self.0.failing.send_replace(Some(why.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_round_that_had_begun_before_does_not_count() {
        let barrier = ReplicationBarrier::default();
        let under_way = barrier.begin();
        let waiting = tokio::spawn({
            let barrier = barrier.clone();
            async move { barrier.wait(Duration::from_secs(60)).await }
        });
        barrier.wanted_for(Duration::ZERO).await;
        assert!(barrier.is_awaited());
        barrier.end(under_way);
        assert!(!barrier.wait(SOON).await);
        let next = barrier.begin();
        barrier.end(next);
        assert!(waiting.await.unwrap());
        assert!(!barrier.is_awaited());
    }

    #[tokio::test]
    async fn who_can_come_back_later_does_not_wait_while_rounds_fail() {
        let barrier = ReplicationBarrier::default();
        barrier.fail("no route");
        let long = Duration::from_secs(60);
        assert_eq!(barrier.wait_unless_failing(long).await, Err("no route".to_owned()));
        barrier.end(barrier.begin());
        assert_eq!(barrier.wait_unless_failing(SOON).await, Ok(false), "no round has begun since");
    }
}
