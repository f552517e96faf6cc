//! The effects of a transaction until it is committed.

use super::Stream;
use super::event_times::NotedTime;
use crate::status::topics::Counts;
use crate::storage::topics::TopicId;

/// The size of a change in memory beside its texts, in bytes.
const CHANGE_BYTES: usize = 192;

/// The effects of a transaction that is still open; dropped when it is rolled back.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) counts: Vec<(TopicId, Counts)>,
    /// Newest `seq` once it is committed.
    pub(crate) last_seq: i64,
    /// The memory that an evaluator needs to hold these changes, about.
    pub(crate) bytes: usize,
    pub(super) offsets: Vec<Stream>,
    pub(super) new_tables: Vec<TopicId>,
    pub(super) tombstones: bool,
    pub(super) trimmed_to: Option<i64>,
    /// Event times by the batch that brings them and by the name of their clock.
    pub(crate) times: Vec<NotedTime>,
}

impl Pending {
    pub(super) fn count(&mut self, topic: TopicId) -> &mut Counts {
        let index = match self.counts.iter().position(|(counted, _)| *counted == topic) {
            Some(index) => index,
            None => {
                self.counts.push((topic, Counts::default()));
                self.counts.len() - 1
            }
        };
        &mut self.counts[index].1
    }
}

/// Bytes that an evaluator needs to hold a change in memory, about.
pub(super) fn change_bytes(key: &str, old: Option<&str>, new: Option<&str>) -> usize {
    let [old, new] = [old, new].map(|payload| payload.map_or(0, str::len));
    CHANGE_BYTES + key.len() + old + new
}
