//! The status of the replica: how far each file is, and since when it has not had everything.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) use litejoin_crds::worker_status::FileProgress;
use litejoin_crds::worker_status::ReplicationReport;
use serde_json::Value;

use super::counters::LastError;

#[derive(Debug, Default)]
struct ReplicationState {
    incarnation: String,
    base: String,
    /// `restore.timestamp` that the data was gone back to last.
    restored_timestamp: Option<String>,
    is_ready: bool,
    /// Commits from before this time, in seconds since the epoch, are in the replica.
    complete_until: i64,
    /// The last instant that the shards are known of together, in milliseconds since the epoch.
    restore_point_at: Option<i64>,
    /// How long writers rested for it.
    held: Duration,
    files: BTreeMap<String, FileProgress>,
}

/// The status of the replica; empty while nothing is replicated.
#[derive(Debug, Default)]
pub(crate) struct ReplicationStatus {
    state: Mutex<Option<ReplicationState>>,
    pub(crate) error: LastError,
}

impl ReplicationStatus {
    /// Something is replicated from now on; what was committed before `complete_until` is in the replica already.
    pub(crate) fn begin(
        &self,
        incarnation: String,
        base: String,
        restored_timestamp: Option<String>,
        complete_until: i64,
    ) {
        let state = ReplicationState {
            incarnation,
            base,
            restored_timestamp,
            complete_until,
            ..ReplicationState::default()
        };
        *self.lock() = Some(state);
    }

    pub(crate) fn set_ready(&self, is_ready: bool) {
        self.change(|state| state.is_ready = is_ready);
    }

    pub(crate) fn synced(&self, file: &str, progress: FileProgress) {
        self.change(|state| {
            state.files.insert(file.to_owned(), progress);
        });
    }

    pub(crate) fn not_synced(&self, file: &str, wal_bytes: u64) {
        self.change(|state| state.files.entry(file.to_owned()).or_default().wal_bytes = wal_bytes);
    }

    /// All that was committed before `until` is in the replica.
    pub(crate) fn synced_until(&self, until: i64) {
        self.error.clear();
        self.change(|state| state.complete_until = until);
    }

    /// Writers rested for so long.
    pub(crate) fn held(&self, held: Duration) {
        self.change(|state| state.held = held);
    }

    /// A restore point is in the store.
    pub(crate) fn restore_point(&self, at: i64) {
        self.change(|state| state.restore_point_at = Some(at));
    }

    /// How long ago the replica last had everything.
    pub(crate) fn lag(&self, now: i64) -> Duration {
        let until = self.lock().as_ref().map_or(now, |state| state.complete_until);
        Duration::from_secs(u64::try_from(now - until).unwrap_or(0))
    }

    /// How far each file is; `None` while nothing is replicated.
    pub(crate) fn files(&self) -> Option<BTreeMap<String, FileProgress>> {
        self.lock().as_ref().map(|state| state.files.clone())
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.lock().as_ref().is_some_and(|state| state.is_ready)
    }

    /// The part `replication` of `/status`; null while nothing is replicated.
    pub(crate) fn json(&self, now: i64) -> Value {
        serde_json::to_value(self.report(now)).expect("a report is plain data")
    }

    /// What is told to the operator; `None` while nothing is replicated.
    pub(crate) fn report(&self, now: i64) -> Option<ReplicationReport> {
        let lag_seconds = self.lag(now).as_secs();
        let state = self.lock();
        state.as_ref().map(|state| ReplicationReport {
            base: state.base.clone(),
            incarnation: state.incarnation.clone(),
            restored_timestamp: state.restored_timestamp.clone(),
            ready: state.is_ready,
            complete_until: state.complete_until,
            lag_seconds,
            last_cut: state.restore_point_at,
            last_cut_held_seconds: state.held.as_secs_f64(),
            last_error: self.error.text(),
            files: state.files.clone(),
        })
    }

    fn change(&self, change: impl FnOnce(&mut ReplicationState)) {
        if let Some(state) = self.lock().as_mut() {
            change(state);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<ReplicationState>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    #[test]
    fn the_operator_reads_what_is_written() {
        let status = ReplicationStatus::default();
        assert_eq!(status.json(1_700_000_000), Value::Null);

        *status.lock() = Some(ReplicationState {
            incarnation: "incarnation-3-0a1b".to_owned(),
            base: "s3://bucket/shop/orders".to_owned(),
            complete_until: 1_700_000_000,
            ..ReplicationState::default()
        });
        let progress = FileProgress { txid: 7, replicated_txid: 5, wal_bytes: 4_096 };
        status.synced("results.db", progress);
        let written = json!({
            "base": "s3://bucket/shop/orders",
            "incarnation": "incarnation-3-0a1b",
            "restoredTimestamp": null,
            "ready": false,
            "completeUntil": 1_700_000_000,
            "lagSeconds": 2,
            "lastCut": null,
            "lastCutHeldSeconds": 0.0,
            "lastError": null,
            "files": { "results.db": { "txid": 7, "replicatedTxid": 5, "walBytes": 4_096 } },
        });
        assert_eq!(status.json(1_700_000_002), written);

        status.set_ready(true);
        status.restore_point(1_700_000_001_500);
        status.held(Duration::from_millis(250));
        let report: ReplicationReport = serde_json::from_value(status.json(1_700_000_002)).unwrap();
        assert_eq!((report.incarnation_number(), report.ready), (Some(3), true));
        assert_eq!((report.complete_until, report.lag_seconds), (1_700_000_000, 2));
        assert_eq!((report.last_cut, report.last_cut_held_seconds), (Some(1_700_000_001_500), 0.25));
        assert_eq!(report.files["results.db"], progress);
    }
}
