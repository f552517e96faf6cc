//! What a worker says of its replica, as the operator judges it.

use std::time::Duration;

use litejoin_crds::worker_status::ReplicationReport;

/// How far a replica is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replica {
    /// The number of the incarnation that is being written.
    pub(crate) incarnation: Option<i64>,
    /// Whether a restore would take this one: everything was copied once.
    pub(crate) is_ready: bool,
    /// The replica has what was committed before this time, in seconds since the epoch.
    pub(crate) complete_until: i64,
    /// For how long the replica has not had everything.
    pub(crate) lag: Duration,
    /// `restore.timestamp` that the data was last taken back to.
    pub(crate) restored_timestamp: Option<String>,
    /// The last error, until a sync succeeds again.
    pub(crate) error: Option<String>,
    /// Whether it can't be brought up to date, and not for a moment only.
    pub(crate) is_failing: bool,
}

impl From<ReplicationReport> for Replica {
    fn from(report: ReplicationReport) -> Self {
        Self {
            is_failing: report.is_failing(),
            incarnation: report.incarnation_number(),
            is_ready: report.ready,
            complete_until: report.complete_until,
            lag: Duration::from_secs(report.lag_seconds),
            restored_timestamp: report.restored_timestamp,
            error: report.last_error.filter(|error| !error.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use litejoin_crds::worker_status::WorkerStatus;
    use serde_json::json;

    #[test]
    fn what_the_worker_says_is_read() {
        let status = json!({ "replication": {
            "incarnation": "incarnation-3-0a1b", "ready": true, "completeUntil": 1_700_000_000, "lagSeconds": 2,
            "restoredTimestamp": "2026-05-01T12:00:00Z", "lastError": null,
        }});
        let status: WorkerStatus = serde_json::from_value(status).unwrap();
        let read = Replica {
            incarnation: Some(3),
            is_ready: true,
            complete_until: 1_700_000_000,
            lag: Duration::from_secs(2),
            restored_timestamp: Some("2026-05-01T12:00:00Z".to_owned()),
            error: None,
            is_failing: false,
        };
        assert_eq!(status.replication.map(Replica::from), Some(read));
    }
}
