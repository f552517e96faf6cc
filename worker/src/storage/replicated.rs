//! Waiting until what was just committed is in the replica. Whoever waits has the next pass begin soon, and all who
//! wait meanwhile share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// How far the keeper is with its passes, and who waits for one.
#[derive(Clone, Default)]
pub(crate) struct Passes(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The number of the last pass that has begun.
    begun: AtomicU64,
    /// The number of the last one after which all that was committed before it counts as replicated.
    good: watch::Sender<u64>,
    waiting: AtomicUsize,
    wanted: Notify,
}

/// Gone with whoever waited.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Passes {
    /// Waits until all that is committed now is in an incarnation that is READY, and that the claim named thereafter:
    /// whoever takes over from now on restores it. Returns `false` where that takes too long.
    pub(crate) async fn replicated(&self, patience: Duration) -> bool {
        let shared = &self.0;
        shared.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(&shared.waiting);
        let wanted = shared.begun.load(Ordering::SeqCst) + 1;
        let mut good = shared.good.subscribe();
        shared.wanted.notify_one();
        let waited = tokio::time::timeout(patience, good.wait_for(|good| *good >= wanted)).await;
        waited.is_ok_and(|found| found.is_ok())
    }

    /// Whether anybody waits.
    pub(crate) fn is_awaited(&self) -> bool {
        self.0.waiting.load(Ordering::SeqCst) > 0
    }

    /// Returns when somebody has begun to wait, and others have had this time to do so too.
    pub(crate) async fn wanted_for(&self, gap: Duration) {
        self.0.wanted.notified().await;
        tokio::time::sleep(gap).await;
    }

    /// Returns the number of the pass that begins.
    pub(crate) fn begin(&self) -> u64 {
        self.0.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// This pass has shown that all is well.
    pub(crate) fn end(&self, pass: u64) {
        self.0.good.send_replace(pass);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_pass_that_had_begun_before_does_not_count() {
        let passes = Passes::default();
        let under_way = passes.begin();
        let waiting = tokio::spawn({
            let passes = passes.clone();
            async move { passes.replicated(Duration::from_secs(60)).await }
        });
        passes.wanted_for(Duration::ZERO).await;
        assert!(passes.is_awaited());
        passes.end(under_way);
        assert!(!passes.replicated(SOON).await);
        let next = passes.begin();
        passes.end(next);
        assert!(waiting.await.unwrap());
        assert!(!passes.is_awaited());
    }
}
