//! What a worker says of its replica, read from `replication` of its `/status`.

use std::time::Duration;

use serde_json::Value;

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replica {
    /// The number of the incarnation that is written.
    pub(crate) incarnation: Option<i64>,
    /// Whether a restore would take this one: everything was copied once.
    pub(crate) is_ready: bool,
    /// The replica has what was committed before this time, in seconds since the epoch.
    pub(crate) complete_until: i64,
    /// How long it has not had everything.
    pub(crate) lag: Duration,
    /// `restore.timestamp` that the data was gone back to last.
    pub(crate) restored_timestamp: Option<String>,
    /// What went wrong last, while it still does.
    pub(crate) error: Option<String>,
}

impl Replica {
    /// Reads it; `None` where the worker replicates nothing.
    pub(crate) fn read(status: &Value) -> Option<Self> {
        let told = status.get("replication").filter(|told| told.is_object())?;
        // `incarnation-<number>-<id>`
        let number = told["incarnation"].as_str().and_then(|name| name.split('-').nth(1)?.parse().ok());
        let error = told["lastError"].as_str().filter(|error| !error.is_empty());
        Some(Self {
            incarnation: number,
            is_ready: told["ready"] == true,
            complete_until: told["completeUntil"].as_i64().unwrap_or_default(),
            lag: Duration::from_secs(told["lagSeconds"].as_u64().unwrap_or_default()),
            restored_timestamp: told["restoredTimestamp"].as_str().map(str::to_owned),
            error: error.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    #[test]
    fn what_the_worker_says_is_read() {
        let status = json!({ "replication": {
            "incarnation": "incarnation-3-0a1b", "ready": true, "completeUntil": 1_700_000_000, "lagSeconds": 2,
            "restoredTimestamp": "2026-05-01T12:00:00Z", "lastError": null,
        }});
        let read = Replica {
            incarnation: Some(3),
            is_ready: true,
            complete_until: 1_700_000_000,
            lag: Duration::from_secs(2),
            restored_timestamp: Some("2026-05-01T12:00:00Z".to_owned()),
            error: None,
        };
        assert_eq!(Replica::read(&status), Some(read));
        assert_eq!(Replica::read(&json!({ "replication": null })), None);
        assert_eq!(Replica::read(&json!({})), None);
    }
}
