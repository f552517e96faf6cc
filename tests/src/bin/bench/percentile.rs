//! Percentiles of durations. Pure.

use std::time::Duration;

/// Sorted durations.
#[derive(Debug, Clone)]
pub(crate) struct Durations(Vec<Duration>);

impl Durations {
    /// Sorts durations; panics without any.
    pub(crate) fn of(mut durations: Vec<Duration>) -> Self {
        assert!(!durations.is_empty(), "nothing was measured");
        durations.sort_unstable();
        Self(durations)
    }

    /// Returns the least duration that `percent` of all durations don't exceed (the nearest rank); the greatest at
    /// 100.
    pub(crate) fn percentile(&self, percent: f64) -> Duration {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_figures() {
        let hundred = Durations::of((1..=100).rev().map(Duration::from_millis).collect());
        let cases = [(0.0, 1), (1.0, 1), (50.0, 50), (50.1, 51), (99.0, 99), (99.9, 100), (100.0, 100)];
        for (percent, expected) in cases {
            assert_eq!(hundred.percentile(percent), Duration::from_millis(expected), "{percent} %");
        }
        let one = Durations::of(vec![Duration::from_millis(7)]);
        assert_eq!(one.percentile(50.0), one.percentile(99.0));
    }
}
