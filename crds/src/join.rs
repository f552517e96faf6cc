//! `Join`: a SELECT over topics, other joins and windows, kept up to date.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults;
use crate::duration::DurationText;
use crate::names::NAME_PATTERN;
use crate::reference::PipelineRef;
use crate::status::ChildStatus;

/// A join that stands alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "litejoin.io",
    version = "v1alpha1",
    kind = "Join",
    plural = "joins",
    shortname = "ljj",
    category = "litejoin",
    namespaced,
    status = "ChildStatus",
    derive = "PartialEq",
    selectable = ".spec.pipelineRef.name",
    doc = "A SELECT over the topics, joins and windows of a Pipeline; its results are kept up to date and sent to sinks.",
    printcolumn(name = "Pipeline", type_ = "string", json_path = ".spec.pipelineRef.name"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type=='Programmed')].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct JoinSpec {
    /// The Pipeline that the join belongs to.
    pub pipeline_ref: PipelineRef,
    /// The query and what becomes of its results.
    #[serde(flatten)]
    pub join: JoinBody,
}

/// A join inside a Pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InlineJoin {
    /// Name of the join, unique among topics, joins and windows of the pipeline; other queries read it by this name.
    #[schemars(regex(pattern = NAME_PATTERN), length(max = 63))]
    pub name: String,
    /// The query and what becomes of its results.
    #[serde(flatten)]
    pub join: JoinBody,
}

/// A query and what becomes of its results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JoinBody {
    /// One SELECT. A topic is a table `(key, payload, timestamp)` with a JSON payload; joins and windows are tables
    /// of their columns.
    #[schemars(length(min = 1, max = 65536))]
    pub query: String,
    /// Output column whose value groups rows into results; the first where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub key_column: Option<String>,
    /// A second name of the field `key` in results.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub result_key: Option<String>,
    /// How often the query is run again where it reads the clock in another way than by comparing the value of a row
    /// with it (`timestamp > unixepoch() - 3600` is followed row by row); at least 1s.
    #[serde(default = "refresh")]
    pub refresh: DurationText,
    /// Sinks that take the join's results; a sink may name the join instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub sinks: Vec<String>,
}

fn refresh() -> DurationText {
    defaults::JOIN_REFRESH.into()
}
