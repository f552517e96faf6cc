//! The part of a worker's `/status` that the operator reads: which config is in force, and how far the replica is. The
//! worker writes that part with these types, so neither program can rename a field alone.
//!
//! The two programs may be of different versions: fields that are unknown here are passed over, and fields that are
//! missing have their defaults.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The part of `/status` for the operator; the rest is read only by people and tests.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// The config in force, and how the last reload went.
    pub config: ConfigReport,
    /// How far the replica is; `None` while nothing is replicated.
    pub replication: Option<ReplicationReport>,
    /// Sources and sinks that can't do their work now, in the order of their names. All others go on.
    pub degraded: Vec<DegradedPart>,
    /// Shards that the data has; `None` where the worker does not tell.
    #[serde(rename = "shardCount")]
    pub shard_count: Option<u32>,
    /// How far a re-shard is; `None` where none is under way.
    pub reshard: Option<ReshardReport>,
}

/// How far a re-shard is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReshardReport {
    /// The step that is under way: `Copying`, `Verifying` or `Verified`, and beside a pipeline that runs also `CatchingUp`,
    /// `Switching`, and in the end `Done` or `Failed`.
    pub phase: String,
    /// Shards that the data has.
    pub from_shard_count: u32,
    /// Shards that it gets.
    pub to_shard_count: u32,
    /// Rows that are through with this step.
    pub rows: u64,
    /// Rows that there are.
    pub rows_total: u64,
    /// How many seconds the rest will take, by the pace so far.
    pub remaining_seconds: Option<u64>,
    /// When the copy was found to be whole, in seconds since the epoch.
    pub verified_at: Option<i64>,
    /// Details, and what to do.
    pub message: Option<String>,
}

/// The config in force, and how the last reload went.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigReport {
    /// Hash of the documents that are in force.
    pub hash: String,
    /// Since when they are, in seconds since the epoch.
    pub applied_at: i64,
    /// Parts of those documents that are not in force as they are written, because they are wrong.
    pub left_out: Vec<LeftOut>,
    /// `None` before the first reload.
    pub last_reload: Option<LastReload>,
    /// How many reloads ended so, by outcome.
    pub reloads: BTreeMap<String, u64>,
}

/// A source, join, window or sink that is wrong, and without which the rest runs, or with its version of before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeftOut {
    /// The kind of the part, as in the field `kind` of a document.
    pub kind: String,
    /// The name of the part.
    pub name: String,
    /// All that is wrong with it, with paths as the worker's documents have them, and the remedy.
    pub message: String,
    /// The same one by one. A worker of an earlier version does not tell them.
    pub complaints: Vec<PartComplaint>,
    /// Whether the version of before runs on.
    pub runs_on: bool,
}

/// One thing that is wrong with a part.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PartComplaint {
    /// The field below the part, such as `query`; empty for the whole part.
    pub field: String,
    /// The message: what is wrong, and the remedy.
    pub message: String,
}

/// A source or sink that can't do its work now, and is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DegradedPart {
    /// `Source` or `Sink`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The reason in one word, as conditions have it.
    pub reason: String,
    /// Where it looks, and the last error.
    pub message: String,
    /// Since when, in seconds since the epoch.
    pub since: i64,
}

/// How a reload went.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LastReload {
    /// Hash of the documents that the reload was about; `None` if they can't be read.
    pub hash: Option<String>,
    /// When it was, in seconds since the epoch.
    pub at: i64,
    /// Whether the documents are in force.
    pub ok: bool,
    /// The outcome of the reload, in one word.
    pub outcome: String,
    /// Why the documents were refused.
    pub error: Option<String>,
}

/// How far the replica is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicationReport {
    /// Where the replica is: `replicaUrl` and identity.
    pub base: String,
    /// The incarnation that is written, `incarnation-<number>-<id>`.
    pub incarnation: String,
    /// `restore.timestamp` that the data was last taken back to.
    pub restored_timestamp: Option<String>,
    /// Whether a restore would take this incarnation: everything was copied once.
    pub ready: bool,
    /// The time, in seconds since the epoch, before which all commits are in the replica.
    pub complete_until: i64,
    /// For how many seconds the replica has not had everything.
    pub lag_seconds: u64,
    /// The last instant that all shards can be restored to together, in milliseconds since the epoch.
    pub last_cut: Option<i64>,
    /// How long writers rested for that instant.
    pub last_cut_held_seconds: f64,
    /// The last error, until a sync succeeds again.
    pub last_error: Option<String>,
    /// How far each file is.
    pub files: BTreeMap<String, FileProgress>,
}

/// How far a replicated file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FileProgress {
    /// The last transaction that Litestream has read.
    pub txid: u64,
    /// The last transaction in the replica.
    pub replicated_txid: u64,
    /// Size of the file's WAL.
    pub wal_bytes: u64,
}

/// A replica that has not had everything for so many seconds, with an error, is failing.
pub const REPLICA_FAILING_SECONDS: u64 = 10;

impl ReplicationReport {
    /// Whether the replica can't be brought up to date, and not for a moment only.
    pub fn is_failing(&self) -> bool {
        self.last_error.is_some() && self.lag_seconds >= REPLICA_FAILING_SECONDS
    }

    /// The number of the incarnation that is written.
    pub fn incarnation_number(&self) -> Option<i64> {
        self.incarnation.split('-').nth(1)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    #[test]
    fn a_status_of_another_version_is_read() {
        let older = json!({
            "pipeline": "orders",
            "config": { "hash": "a", "lastReload": { "error": "no", "took": 3 } },
            "replication": { "incarnation": "incarnation-3-0a1b" },
        });
        let status: WorkerStatus = serde_json::from_value(older).unwrap();
        let last_reload = LastReload { error: Some("no".to_owned()), ..LastReload::default() };
        let config =
            ConfigReport { hash: "a".to_owned(), last_reload: Some(last_reload), ..ConfigReport::default() };
        assert_eq!(status.config, config);
        assert_eq!(status.replication.unwrap().incarnation_number(), Some(3));
        let nothing: WorkerStatus = serde_json::from_value(json!({ "replication": null })).unwrap();
        assert_eq!(nothing, WorkerStatus::default());
    }

    #[test]
    fn a_text_that_is_no_incarnation_has_no_number() {
        for text in ["", "incarnation", "incarnation-x-0a1b"] {
            let report = ReplicationReport { incarnation: text.to_owned(), ..ReplicationReport::default() };
            assert_eq!(report.incarnation_number(), None, "{text}");
        }
    }
}
