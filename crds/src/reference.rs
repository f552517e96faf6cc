//! `pipelineRef`, by which a document that stands alone names its Pipeline.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::PIPELINE_PATTERN;

/// The Pipeline that a document belongs to, in the same namespace. The reference cannot be changed afterwards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PipelineRef {
    /// Name of the Pipeline.
    #[schemars(regex(pattern = PIPELINE_PATTERN), length(max = 52))]
    pub name: String,
}
