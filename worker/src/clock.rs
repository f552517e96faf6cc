//! The one place that reads the system clock; everything else is given the time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment by both clocks: the one that files remember, and the one that never goes back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// Seconds since the Unix epoch.
    pub(crate) seconds: i64,
    pub(crate) instant: Instant,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { seconds: epoch_seconds(), instant: Instant::now() }
    }

    /// The moment `wait` later, in whole seconds for files.
    pub(crate) fn after(self, wait: Duration) -> Self {
        let seconds = self.seconds.saturating_add(i64::try_from(wait.as_secs()).unwrap_or(i64::MAX));
        Self { seconds, instant: self.instant + wait }
    }
}

/// Seconds since the Unix epoch; 0 for a clock set before it.
pub(crate) fn epoch_seconds() -> i64 {
    epoch_milliseconds() / 1_000
}

/// Milliseconds since the Unix epoch; 0 for a clock set before it.
#[expect(clippy::disallowed_methods, reason = "this is the room where the clock is read")]
pub(crate) fn epoch_milliseconds() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}
