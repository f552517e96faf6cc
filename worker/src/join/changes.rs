//! What happened to topics between two cuts, one entry a row: the first old image and the last new one. Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::storage::log::LoggedChange;
use crate::storage::topics::TopicId;

/// Rows by topic and key.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    topics: HashMap<TopicId, HashMap<Box<str>, ChangedRow, fnv::FnvBuildHasher>>,
}

/// A row of a topic before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChangedRow {
    pub(crate) old: Option<Image>,
    pub(crate) new: Option<Image>,
    /// Whether retention had the last word, so that nobody is told what follows from it.
    pub(crate) expired: bool,
}

/// What a row holds beside its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) payload: Box<str>,
    pub(crate) timestamp: i64,
    /// Not known of an old image.
    pub(crate) change: Option<Box<str>>,
}

impl Changes {
    /// Adds an entry of the log; those of one row come in their order.
    pub(crate) fn add(&mut self, change: &LoggedChange<'_>) {
        let new = change.new.map(|payload| Image {
            payload: payload.into(),
            timestamp: change.timestamp,
            change: change.change.map(Into::into),
        });
        match self.topics.entry(change.topic).or_default().entry(change.key.into()) {
            Entry::Occupied(mut row) => {
                let row = row.get_mut();
                row.new = new;
                row.expired = change.expired;
            }
            Entry::Vacant(row) => {
                let old = change.old.map(|payload| Image {
                    payload: payload.into(),
                    timestamp: change.old_timestamp,
                    change: None,
                });
                row.insert(ChangedRow { old, new, expired: change.expired });
            }
        }
    }

    /// Topics in which anything has changed.
    pub(crate) fn topics(&self) -> impl Iterator<Item = TopicId> {
        self.topics.keys().copied()
    }

    /// The changed rows of a topic by key.
    pub(crate) fn rows(&self, topic: TopicId) -> impl Iterator<Item = (&str, &ChangedRow)> {
        self.topics.get(&topic).into_iter().flatten().map(|(key, row)| (&**key, row))
    }

    /// What became of a row, if it has changed, with its key.
    pub(crate) fn entry(&self, topic: TopicId, key: &str) -> Option<(&str, &ChangedRow)> {
        self.topics.get(&topic)?.get_key_value(key).map(|(key, row)| (&**key, row))
    }

    /// What became of a row, if it has changed.
    pub(crate) fn row(&self, topic: TopicId, key: &str) -> Option<&ChangedRow> {
        self.topics.get(&topic)?.get(key)
    }
}
