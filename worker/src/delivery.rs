//! Getting results to their sinks: the retry schedule, the circuit, the dead-letter queue, and the loop that
//! runs one sink. Decisions are pure; [`dispatch`] acts on them.
//!
//! Order rule: results of one key reach a sink in the order of their ids. A result that can't be delivered goes
//! to the dead-letter queue and holds back its key alone; a newer result of the key takes its place there.

pub(crate) mod circuit;
pub(crate) mod dispatch;
pub(crate) mod schedule;

/// Wait after a failure of our own files.
const FILE_RETRY: std::time::Duration = std::time::Duration::from_secs(1);
