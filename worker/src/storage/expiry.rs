//! The request of retention to a shard: the keys that may have expired, and by which time.

use std::sync::mpsc;

use super::topics::TopicId;

/// One shard's part in an expiry pass; see [`super::retention`].
pub(crate) struct Expiry {
    pub(crate) candidates: Vec<(TopicId, Vec<String>)>,
    pub(crate) before: i64,
    pub(crate) tombstones_before: i64,
    /// Whether results leave without an event.
    pub(crate) quiet: bool,
    /// Told when this shard is done, or dropped.
    pub(crate) done: mpsc::Sender<()>,
}
