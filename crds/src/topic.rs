//! `topics` of a Pipeline: settings of single topics. A topic needs none: it is there once a source names it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::AgeText;
use crate::names::TOPIC_PATTERN;

/// Settings of one topic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopicSpec {
    /// Name of the topic, or of a window: its results expire as rows do.
    #[schemars(regex(pattern = TOPIC_PATTERN), length(max = 63))]
    pub name: String,
    /// Age at which a row of this topic expires, or `forever`; as `retention.duration` has it where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<AgeText>,
}
