//! When a failed delivery is tried again. Arithmetic only: the caller brings the clock and the randomness.

use std::time::Duration;

use litejoin_crds::plan::Dlq;

/// Returns the wait before retry `attempt` (0 is the first): `interval × multiplier^attempt`, at most
/// `backoff_max`, plus up to a tenth more. `jitter`, in `0.0..=1.0`, picks the share of that tenth.
/// Source: the original's delivery guide, `min(base × multiplier^n, max_backoff) + jitter`; the tenth is ours.
pub(crate) fn retry_delay(policy: &Dlq, attempt: u32, jitter: f64) -> Duration {
    let grown = policy.retry_interval.as_secs_f64() * policy.backoff_multiplier.powf(f64::from(attempt));
    let capped = grown.min(policy.backoff_max.as_secs_f64());
    Duration::from_secs_f64(capped * (1.0 + jitter / 10.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_its_limit() {
        let policy = Dlq {
            path: None,
            retry_interval: Duration::from_secs(30),
            retries_max: None,
            backoff_multiplier: 2.0,
            backoff_max: Duration::from_secs(300),
            ttl: Duration::from_secs(1),
            bytes_max: 1,
            cleanup_interval: Duration::from_secs(1),
            retry_nonce: None,
        };
        for (attempt, jitter, seconds) in [
            (0, 0.0, 30.0),
            (1, 0.0, 60.0),
            (3, 0.0, 240.0),
            (4, 0.0, 300.0),
            (4_000_000, 0.0, 300.0),
            (0, 1.0, 33.0),
        ] {
            assert_eq!(
                retry_delay(&policy, attempt, jitter),
                Duration::from_secs_f64(seconds),
                "{attempt} {jitter}"
            );
        }
    }
}
