//! Counters of what messages did to topics.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

/// Counts of messages by what they did to a topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) created: u64,
    pub(crate) updated: u64,
    pub(crate) deleted: u64,
    /// The payload was there already, or the deleted key was not.
    pub(crate) unchanged: u64,
    /// A later message of the same batch had the same key.
    pub(crate) superseded: u64,
    /// The message's own time was older than what is stored.
    pub(crate) stale: u64,
    /// The message was below the offset that the shard has seen already.
    pub(crate) replayed: u64,
    pub(crate) expired: u64,
}

impl Counts {
    /// Messages that left something else in the topic than there was.
    pub(crate) fn changes(self) -> u64 {
        self.created + self.updated + self.deleted + self.expired
    }

    /// An entry of the part `topics` of `/status`.
    pub(super) fn json(self) -> Value {
        json!({
            "created": self.created,
            "updated": self.updated,
            "deleted": self.deleted,
            "unchanged": self.unchanged,
            "superseded": self.superseded,
            "stale": self.stale,
            "replayed": self.replayed,
            "expired": self.expired,
        })
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.created += other.created;
        self.updated += other.updated;
        self.deleted += other.deleted;
        self.unchanged += other.unchanged;
        self.superseded += other.superseded;
        self.stale += other.stale;
        self.replayed += other.replayed;
        self.expired += other.expired;
    }
}

/// The counters of a topic.
#[derive(Debug, Default)]
pub(crate) struct TopicStatus {
    counts: Mutex<Counts>,
}

impl TopicStatus {
    pub(crate) fn add(&self, counts: Counts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) += counts;
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
