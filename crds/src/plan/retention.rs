//! `spec.retention` in a plan, with what `spec.topics` says of single topics.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// How long rows are kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Retention {
    /// Age at which a row expires; `None`: never.
    pub duration: Option<Duration>,
    /// Topics of which another age holds, by their names in lower case.
    pub topics: BTreeMap<String, Option<Duration>>,
    /// How often expired rows are looked for.
    pub clean_interval: Duration,
    /// Whether results that leave by expiry are sent as deleted.
    pub emit_expiry: bool,
    /// How long a deleted key is remembered.
    pub tombstone_duration: Duration,
}

impl Retention {
    /// Returns the age at which a row of a topic expires; `None`: never.
    pub fn of(&self, topic: &str) -> Option<Duration> {
        self.topics.get(&topic.to_ascii_lowercase()).copied().unwrap_or(self.duration)
    }
}
