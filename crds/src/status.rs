//! The statuses that the operator writes: conditions as kstatus and Gateway API have them, and a few facts beside.
//!
//! `Ready` is the summary of every kind; `Reconciling` and `Stalled` are there only while they are true. Children have
//! `Accepted` (valid and attached), `ResolvedRefs` (the documents and Secrets that they name exist) and `Programmed`
//! (the worker runs this generation). The Pipeline has ConfigValid, StorageReady, WorkerReady, ReplicationHealthy,
//! Resharding, Paused and Degraded.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::reshard::ReshardStrategy;

/// Status of a Pipeline.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PipelineStatus {
    /// Generation of the spec that this status is about; -1 before the operator has seen any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: whether each holds, why, and since when.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// How the data is laid out on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<LayoutStatus>,
    /// How far the replica is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<ReplicationStatus>,
    /// The last change of `shardCount`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reshard: Option<ReshardStatus>,
    /// The last restores and changes of layout, newest first, at most 5.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5), extend("x-kubernetes-list-type" = "atomic"))]
    pub history: Vec<HistoryEntry>,
    /// Hash of the config that the worker runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<String>,
    /// Version of the operator whose output the objects have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_version: Option<String>,
}

/// How the data is laid out on disk.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LayoutStatus {
    /// Shards that the data has.
    pub shard_count: u32,
    /// Identifier of the layout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout_id: Option<String>,
    /// UID of the volume claim that the data lies on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_claim_uid: Option<String>,
    /// Checksum of the layout's manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest_checksum: Option<String>,
}

/// How far the replica is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicationStatus {
    /// When the replica last had everything, to the minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync_time: Option<Time>,
    /// Incarnation that is being written, of which a restore is possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<i64>,
    /// Place of that incarnation: `replicaUrl` and identity, and the endpoint where one is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub place: Option<String>,
    /// `restore.timestamp` that the data was last taken back to; the same value does so only once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_timestamp: Option<String>,
    /// When a drill last found that the replica can be restored and is sound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_drill_time: Option<Time>,
}

/// Phases of a change of `shardCount` during which no other may begin.
pub const RESHARD_PHASES_ACTIVE: [&str; 5] = ["Pausing", "Copying", "Verifying", "Switching", "Cancelling"];

/// A change of `shardCount`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReshardStatus {
    /// Pending, Pausing, Copying, Verifying, Switching, Done, Cancelling, Cancelled or Failed.
    #[schemars(length(max = 64))]
    pub phase: String,
    /// Shards that the data had.
    pub from_shard_count: u32,
    /// Shards that it gets.
    pub to_shard_count: u32,
    /// How the data is moved.
    #[serde(default)]
    pub strategy: ReshardStrategy,
    /// Job that copies the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Rows that are through with this phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Rows that there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_total: Option<u64>,
    /// Share of the phase that is done, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<u32>,
    /// How many seconds the rest of the phase will take, by the pace so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<u64>,
    /// When rows, progress and remaining time were read last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_time: Option<Time>,
    /// When the change began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the copy was found to be whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<Time>,
    /// What went wrong, or what happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What comes next, and what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_step: Option<String>,
    /// Hash of the settings that this attempt was made with. After a failure, the next attempt takes other ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub settings: Option<String>,
}

/// Something that happened to the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// Time of the event.
    pub time: Time,
    /// Kind of event, in one CamelCase word.
    pub reason: String,
    /// The details.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Status of a Source, Join, Window or Sink.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ChildStatus {
    /// Generation of the spec that this status is about; -1 before the operator has seen any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: whether each holds, why, and since when.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The kind of the source, window or sink, such as `http` or `sse`.
    #[serde(skip_serializing_if = "Option::is_none", rename = "type")]
    pub kind: Option<String>,
    /// Hash of the config with which the worker acknowledged the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<String>,
}
