//! What is told of the replica: how far each file is, and since when it has not had everything.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::LastError;
use crate::replication::Replica;

/// How far a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FileProgress {
    /// The last transaction that Litestream has read.
    pub(crate) txid: u64,
    /// The last one in the replica.
    pub(crate) replicated_txid: u64,
    pub(crate) wal_bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    incarnation: String,
    base: String,
    /// `restore.timestamp` that the data was gone back to last.
    restored_timestamp: Option<String>,
    is_ready: bool,
    /// What was committed before this time, in seconds since the epoch, is in the replica.
    complete_until: i64,
    /// The last instant that the shards are known of together, in milliseconds since the epoch.
    cut_at: Option<i64>,
    /// How long writers rested for it.
    held: Duration,
    files: BTreeMap<String, FileProgress>,
}

/// Nothing of it is shown while nothing is replicated.
#[derive(Debug, Default)]
pub(crate) struct ReplicationStatus {
    state: Mutex<Option<State>>,
    pub(crate) error: LastError,
}

impl ReplicationStatus {
    /// Something is replicated from now on; what was committed before `complete_until` is in the replica already.
    pub(crate) fn begin(&self, replica: &Replica, complete_until: i64) {
        let state = State {
            incarnation: replica.marker.incarnation.to_string(),
            base: replica.site.base.to_string(),
            restored_timestamp: replica.marker.gone_back_to.clone(),
            complete_until,
            ..State::default()
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
    pub(crate) fn passed(&self, until: i64) {
        self.error.clear();
        self.change(|state| state.complete_until = until);
    }

    /// Writers rested for so long.
    pub(crate) fn held(&self, held: Duration) {
        self.change(|state| state.held = held);
    }

    /// A cut is in the store.
    pub(crate) fn cut(&self, at: i64) {
        self.change(|state| state.cut_at = Some(at));
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

    pub(crate) fn json(&self, now: i64) -> Value {
        let lag = self.lag(now).as_secs();
        let state = self.lock();
        let Some(state) = state.as_ref() else { return Value::Null };
        let files = state.files.iter().map(|(name, file)| {
            let value = json!({
                "txid": file.txid,
                "replicatedTxid": file.replicated_txid,
                "walBytes": file.wal_bytes,
            });
            (name.clone(), value)
        });
        json!({
            "base": state.base,
            "incarnation": state.incarnation,
            "restoredTimestamp": state.restored_timestamp,
            "ready": state.is_ready,
            "completeUntil": state.complete_until,
            "lagSeconds": lag,
            "lastCut": state.cut_at,
            "lastCutHeldSeconds": state.held.as_secs_f64(),
            "lastError": self.error.text(),
            "files": Value::Object(files.collect()),
        })
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        if let Some(state) = self.lock().as_mut() {
            change(state);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
