//! When the next request may go. Arithmetic only: the caller brings clock and randomness.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a source waits after polls that have failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    pub(super) interval: Duration,
    /// Failures in a row before the waits grow.
    pub(super) failures_max: u32,
    pub(super) backoff_max: Duration,
}

impl Waits {
    /// Returns the wait after `failures` in a row: the interval; from `failures_max` on twice as long each time, up to
    /// `backoff_max`, plus up to a tenth. `jitter`, in `0.0..=1.0`, picks the share of that tenth. Never less than the
    /// server has `asked` for.
    pub(super) fn after(self, failures: u32, asked: Option<Duration>, jitter: f64) -> Duration {
        let doublings = (failures + 1).saturating_sub(self.failures_max).min(32);
        let wait = match doublings {
            0 => self.interval,
            _ => {
                let grown = self.interval.as_secs_f64() * 2.0_f64.powf(f64::from(doublings));
                let capped = grown.min(self.backoff_max.max(self.interval).as_secs_f64());
                Duration::from_secs_f64(capped * (1.0 + jitter / 10.0))
            }
        };
        wait.max(asked.unwrap_or_default())
    }
}

/// So many requests in any span of a length.
#[derive(Debug)]
pub(super) struct RateLimit {
    requests: usize,
    per: Duration,
    /// When the last ones went.
    sent: VecDeque<Instant>,
}

impl RateLimit {
    pub(super) fn new(requests: u32, per: Duration) -> Self {
        Self { requests: requests.max(1) as usize, per, sent: VecDeque::new() }
    }

    /// How long the next request has to wait.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        match self.sent.front() {
            Some(first) if self.sent.len() >= self.requests => {
                (*first + self.per).saturating_duration_since(now)
            }
            _ => Duration::ZERO,
        }
    }

    /// Notes a request.
    pub(super) fn sent(&mut self, now: Instant) {
        if self.sent.len() >= self.requests {
            self.sent.pop_front();
        }
        self.sent.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_after_some_failures_and_heed_the_server() {
        let waits = Waits {
            interval: Duration::from_secs(10),
            failures_max: 3,
            backoff_max: Duration::from_secs(60),
        };
        for (failures, asked, jitter, seconds) in [
            (1, None, 1.0, 10.0),
            (2, None, 1.0, 10.0),
            (3, None, 0.0, 20.0),
            (4, None, 0.0, 40.0),
            (5, None, 0.0, 60.0),
            (5, None, 1.0, 66.0),
            (u32::MAX - 1, None, 0.0, 60.0),
            (1, Some(90), 0.0, 90.0),
            (3, Some(5), 0.0, 20.0),
        ] {
            let wait = waits.after(failures, asked.map(Duration::from_secs), jitter);
            assert_eq!(wait, Duration::from_secs_f64(seconds), "{failures} {asked:?} {jitter}");
        }
    }

    #[test]
    fn no_span_has_more_requests_than_are_allowed() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut limit = RateLimit::new(2, second);
        assert_eq!(limit.wait(start), Duration::ZERO);
        limit.sent(start);
        limit.sent(start + second / 2);
        assert_eq!(limit.wait(start + second / 2), second / 2);
        assert_eq!(limit.wait(start + second), Duration::ZERO);
        limit.sent(start + second);
        assert_eq!(limit.wait(start + second), second / 2);
    }
}
