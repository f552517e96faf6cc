//! How safe a message or a result has to be: a source waits for it before it acknowledges, a sink before it gets a
//! result.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How safe something is before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// In the files of the pipeline.
    #[default]
    Committed,
    /// In the replica too.
    Replicated,
}
