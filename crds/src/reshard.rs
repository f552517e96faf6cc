//! `storage.reshard` of a Pipeline: another number of shards.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults;
use crate::duration::DurationText;

/// Consent to a change of `shardCount`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReshardSpec {
    /// The `shardCount` that the data has.
    #[schemars(range(min = 1, max = 64))]
    pub from_shard_count: u32,
    /// The `shardCount` that it is to have; the same number as in `storage.shardCount`.
    #[schemars(range(min = 1, max = 64))]
    pub to_shard_count: u32,
    /// How the data is moved.
    #[serde(default)]
    pub strategy: ReshardStrategy,
    /// How long the layout of before is kept beside the new one, on the same volume, so that `litejoin reshard --undo`
    /// can go back to it.
    #[serde(default = "default_keep_old_layout")]
    pub keep_old_layout: DurationText,
}

fn default_keep_old_layout() -> DurationText {
    defaults::KEEP_OLD_LAYOUT.into()
}

/// How the data is moved to another number of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ReshardStrategy {
    /// While the pipeline is stopped: by a Job on Kubernetes, else by the command or the start that finds the data.
    #[default]
    Job,
    /// While the pipeline runs; it pauses for the end alone.
    Online,
}
