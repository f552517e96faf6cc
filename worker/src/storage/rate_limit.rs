//! A limit on the messages that are taken in a second, for work beside the writers that would not keep pace with them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The longest wait of one batch.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The limit, and how many messages have come so far.
#[derive(Debug, Default)]
pub(crate) struct IngestLimit {
    messages: AtomicU64,
    limit: Mutex<Option<Limit>>,
}

#[derive(Debug, Clone, Copy)]
struct Limit {
    per_second: f64,
    /// When all that was let pass is worked off.
    free_at: Instant,
}

impl IngestLimit {
    /// Lets so many messages pass in a second; `None` lets all pass.
    pub(crate) fn set(&self, per_second: Option<f64>) {
        let limit = per_second.map(|per_second| Limit { per_second, free_at: Instant::now() });
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
    }

    /// The messages that have come so far.
    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Waits until messages may pass.
    pub(super) async fn pass(&self, messages: usize) {
        self.messages.fetch_add(messages as u64, Ordering::Relaxed);
        let wait = self.take(messages, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// How long messages have to wait that come now.
    fn take(&self, messages: usize, now: Instant) -> Duration {
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(limit) = limit.as_mut() else { return Duration::ZERO };
        let from = limit.free_at.clamp(now, now + WAIT_MAX);
        limit.free_at = from + Duration::from_secs_f64(messages as f64 / limit.per_second);
        from - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_too_fast_waits_and_nobody_for_long() {
        let (limit, now) = (IngestLimit::default(), Instant::now());
        assert_eq!(limit.take(1_000_000, now), Duration::ZERO, "nothing is limited");
        limit.set(Some(1_000.0));
        let waits = [0, 100, 100, 5_000, 1, 1].map(|messages| limit.take(messages, now).as_millis());
        assert_eq!(waits[..4], [0, 0, 100, 200]);
        assert_eq!(waits[4..], [1_000, 1_000]);
        assert_eq!(limit.take(1, now + Duration::from_secs(9)), Duration::ZERO, "an idle time is over");
        limit.set(None);
        assert_eq!(limit.take(1, now), Duration::ZERO);
    }
}
