//! The only place where tests poll or follow a timetable. A wait ends as soon as its event occurs; its timeout only
//! turns a hang into a failure: no test passes or fails by how long an action took.

use std::time::{Duration, Instant};

/// How long a test waits at most for an expected event.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Pause between two polls.
const INTERVAL: Duration = Duration::from_millis(10);

/// Returns the first value of `probe`.
///
/// # Panics
/// If `probe` returns no value within [`TIMEOUT`]; `what` completes the sentence "waited in vain for".
pub async fn until<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(TIMEOUT, what, probe).await
}

/// Returns the first value of `probe`, for external programs that may take longer than [`TIMEOUT`].
///
/// # Panics
/// If `probe` returns no value within `timeout`.
pub async fn until_within<T>(timeout: Duration, what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < timeout, "waited in vain for {what}");
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Waits for a moment of a timetable, such as that of the next message of a steady load.
#[expect(clippy::disallowed_methods, reason = "the moment itself is what is waited for")]
pub fn until_moment(moment: Instant) {
    std::thread::sleep(moment.saturating_duration_since(Instant::now()));
}

/// Lets time pass by a timetable, such as the length of an outage or the pace of a client.
pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
