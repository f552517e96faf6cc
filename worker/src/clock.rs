//! The one place that reads the system clock; everything else is given the time.

use std::sync::atomic::{AtomicI64, Ordering};
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
    #[cfg(debug_assertions)]
    if let Some(seconds) = test_clock() {
        return seconds * 1_000;
    }
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

/// Seconds by which the system clock may be set back before results follow it back.
const CORRECTION_MAX: i64 = 60;

/// The clock that queries see: whole seconds that stand still while the system clock is a little behind.
#[derive(Debug)]
pub(crate) struct SteadyClock(AtomicI64);

impl SteadyClock {
    /// Starts at the moment that results are as of.
    pub(crate) fn new(reached: Option<i64>) -> Self {
        Self(AtomicI64::new(reached.unwrap_or(i64::MIN)))
    }

    /// Seconds since the Unix epoch.
    pub(crate) fn now(&self) -> i64 {
        let now = steady(self.0.load(Ordering::Relaxed), epoch_seconds());
        self.0.store(now, Ordering::Relaxed);
        now
    }

    /// Returns the time until the next second.
    pub(crate) fn until_next(&self) -> Duration {
        if cfg!(debug_assertions) && test_clock().is_some() {
            return Duration::from_millis(5);
        }
        let passed = u64::try_from(epoch_milliseconds().rem_euclid(1_000)).unwrap_or(0);
        Duration::from_millis(1_001 - passed)
    }
}

fn steady(reached: i64, now: i64) -> i64 {
    let is_correction = now < reached && reached.saturating_sub(now) <= CORRECTION_MAX;
    if is_correction { reached } else { now }
}

/// Seconds since the Unix epoch from the file that `LITEJOIN_CLOCK` names: tests move the time with it.
#[cfg(debug_assertions)]
fn test_clock() -> Option<i64> {
    use std::sync::OnceLock;
    static FILE: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os("LITEJOIN_CLOCK").map(Into::into)).as_ref()?;
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(not(debug_assertions))]
fn test_clock() -> Option<i64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correction_of_the_clock_is_waited_for_and_a_new_time_is_followed() {
        assert_eq!(steady(1_000, 1_001), 1_001);
        assert_eq!(steady(1_000, 940), 1_000);
        assert_eq!(steady(1_000, 939), 939);
        assert_eq!(steady(i64::MIN, 5), 5);
    }
}
