//! The one place where tests poll, or keep to a timetable. A wait ends as soon as its event is there; its timeout
//! only makes a hang a failure: no test passes or fails by how long something took.

use std::time::{Duration, Instant};

/// How long a test waits at most for an event that is certain to come.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Pause between two looks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Returns what `probe` finds, as soon as it finds something.
///
/// # Panics
/// If it finds nothing within [`TIMEOUT`]; `what` completes the sentence "waited in vain for".
pub async fn until<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(TIMEOUT, what, probe).await
}

/// Returns what `probe` finds, for programs of others that may take longer than [`TIMEOUT`].
///
/// # Panics
/// If it finds nothing within `timeout`.
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

/// Waits for the moment at which a timetable wants something to happen, such as a message of a steady load.
#[expect(clippy::disallowed_methods, reason = "the moment itself is what is waited for")]
pub fn until_moment(moment: Instant) {
    std::thread::sleep(moment.saturating_duration_since(Instant::now()));
}

/// Lets time pass by a timetable: an outage has a length, and a client a pace.
pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
