//! The effects of a transaction until it is committed.

use super::Stream;
use super::event_times::NotedTime;
use crate::status::topics::{Counts, TopicSize};
use crate::storage::topics::TopicId;

/// The size of a change in memory beside its texts, in bytes.
const CHANGE_BYTES: usize = 192;

/// The effects of a transaction that is still open; dropped when it is rolled back.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) counts: Vec<(TopicId, Counts)>,
    /// What becomes of the sizes of the topics that have entries in the change log.
    pub(super) sizes: Vec<(TopicId, TopicSize)>,
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

/// What a transaction did to topics.
#[derive(Debug, Default)]
pub(crate) struct CommittedChanges {
    pub(crate) counts: Vec<(TopicId, Counts)>,
    /// By how much the topics have grown.
    pub(crate) sizes: Vec<(TopicId, TopicSize)>,
}

impl Pending {
    /// Notes that a change of a row was logged.
    pub(super) fn log(&mut self, topic: TopicId, key: &str, old: Option<&str>, new: Option<&str>) {
        self.bytes += change_bytes(key, old, new);
        let growth = TopicSize::between(key, old, new);
        // Changes of one topic come in a row.
        match self.sizes.iter_mut().rfind(|(grown, _)| *grown == topic) {
            Some((_, size)) => *size += growth,
            None => self.sizes.push((topic, growth)),
        }
    }

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
fn change_bytes(key: &str, old: Option<&str>, new: Option<&str>) -> usize {
    let [old, new] = [old, new].map(|payload| payload.map_or(0, str::len));
    CHANGE_BYTES + key.len() + old + new
}
