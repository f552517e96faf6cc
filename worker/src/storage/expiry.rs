//! The request of retention to a shard: the keys that may have expired, and by which time.

use std::sync::mpsc;

use super::topics::TopicId;

/// One shard's part in an expiry pass; see [`super::retention`].
pub(crate) struct Expiry {
    pub(crate) candidates: Vec<Expired>,
    pub(crate) tombstones_before: i64,
    /// Whether results leave without an event.
    pub(crate) quiet: bool,
    /// Told when this shard is done, or dropped.
    pub(crate) done: mpsc::Sender<()>,
}

/// Keys of a topic that may have expired.
pub(crate) struct Expired {
    pub(crate) topic: TopicId,
    /// A row that is no older than this is left alone, in seconds since the Unix epoch.
    pub(crate) before: i64,
    pub(crate) keys: Vec<String>,
}

/// Rows that retention leaves alone: a window has frames open that hold them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NeededRows {
    pub(crate) topic: String,
    /// The time of a row as SQL over the columns of the topic, in seconds since the Unix epoch or NULL.
    pub(crate) time: String,
    /// The least time that is needed.
    pub(crate) since: i64,
}

impl NeededRows {
    /// Returns whether the rows are of this topic.
    pub(crate) fn is_of(&self, topic: &str) -> bool {
        self.topic.eq_ignore_ascii_case(topic)
    }
}
