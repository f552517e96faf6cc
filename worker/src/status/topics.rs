//! Counters of what messages did to topics, how much is in them, and what the plan says of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use litejoin_crds::duration::{FOREVER, duration_text};
use litejoin_crds::plan::{Plan, Retention, SourceKind};
use serde_json::{Value, json};

use super::counters::Gauge;

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

    fn json(self) -> Value {
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

/// How much is in a topic, or by how much that grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TopicSize {
    pub(crate) rows: i64,
    /// Bytes of keys and payloads.
    pub(crate) bytes: i64,
}

impl TopicSize {
    /// Returns by how much a topic grows where a key gets the payload `new` in the place of `old`; `None` is no row.
    pub(crate) fn between(key: &str, old: Option<&str>, new: Option<&str>) -> Self {
        let size = |payload: Option<&str>| match payload {
            Some(payload) => (1, i64::try_from(key.len() + payload.len()).unwrap_or(i64::MAX)),
            None => (0, 0),
        };
        let (old, new) = (size(old), size(new));
        Self { rows: new.0 - old.0, bytes: new.1 - old.1 }
    }
}

impl std::ops::AddAssign for TopicSize {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
    }
}

/// The counters of a topic, and its size over all shards.
#[derive(Debug, Default)]
pub(crate) struct TopicStatus {
    counts: Mutex<Counts>,
    pub(super) rows: Gauge,
    pub(super) bytes: Gauge,
}

impl TopicStatus {
    pub(crate) fn add(&self, counts: Counts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) += counts;
    }

    pub(crate) fn grow(&self, growth: TopicSize) {
        self.rows.add(growth.rows);
        self.bytes.add(growth.bytes);
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An entry of the part `topics` of `/status`.
    pub(super) fn json(&self, name: &str, settings: &TopicSettings) -> Value {
        let mut json = self.counts().json();
        json["source"] = json!(settings.sources(name));
        json["rows"] = json!(self.rows.value());
        json["bytes"] = json!(self.bytes.value());
        json["retention"] = json!(settings.retention(name));
        json
    }
}

/// What the plan says of topics.
#[derive(Debug)]
pub(super) struct TopicSettings {
    /// Names of sources by the topic that they are known to fill, in lower case.
    sources: BTreeMap<String, Vec<String>>,
    /// Names of sources that may fill any topic.
    of_any_topic: Vec<String>,
    retention: Retention,
}

impl TopicSettings {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut sources: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut of_any_topic = Vec::new();
        for source in &plan.sources {
            let fills_any = match &source.kind {
                SourceKind::Http(http) => http.topics.is_empty(),
                SourceKind::File(file) => file.topic.is_none(),
                SourceKind::Kafka(kafka) => kafka.takes_any_topic(),
                SourceKind::Api(_) => false,
            };
            if fills_any {
                of_any_topic.push(source.name.clone());
            }
            for topic in source.kind.topics() {
                let filling = sources.entry(topic.to_ascii_lowercase()).or_default();
                if filling.last() != Some(&source.name) {
                    filling.push(source.name.clone());
                }
            }
        }
        Self { sources, of_any_topic, retention: plan.retention.clone() }
    }

    /// Names of the sources that fill a topic. The names of topics that only we fill begin with an underscore.
    fn sources(&self, topic: &str) -> Vec<&str> {
        let known = self.sources.get(&topic.to_ascii_lowercase()).into_iter().flatten();
        let of_any = self.of_any_topic.iter().filter(|_| !topic.starts_with('_'));
        known.chain(of_any).map(String::as_str).collect()
    }

    /// The age at which rows of a topic expire, as a manifest has it.
    fn retention(&self, topic: &str) -> String {
        self.retention.of(topic).map_or_else(|| FOREVER.to_owned(), duration_text)
    }
}
