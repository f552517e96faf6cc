//! `Source`: where messages come from. A source is of exactly one kind.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults;
use crate::durability::Durability;
use crate::names::{NAME_PATTERN, TOPIC_PATTERN};
use crate::quantity::Bytes;
use crate::reference::PipelineRef;
use crate::serving::ServingSpec;
use crate::status::ChildStatus;

pub mod api;
pub mod kafka;

use api::ApiSourceSpec;
use kafka::KafkaSourceSpec;

/// A source that stands alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "litejoin.io",
    version = "v1alpha1",
    kind = "Source",
    plural = "sources",
    shortname = "ljsrc",
    category = "litejoin",
    namespaced,
    status = "ChildStatus",
    derive = "PartialEq",
    selectable = ".spec.pipelineRef.name",
    doc = "Fills topics of a Pipeline with messages: over HTTP, from a file, by polling an API, or from Kafka.",
    printcolumn(name = "Pipeline", type_ = "string", json_path = ".spec.pipelineRef.name"),
    printcolumn(name = "Type", type_ = "string", json_path = ".status.type"),
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
pub struct SourceSpec {
    /// The Pipeline that the source belongs to.
    pub pipeline_ref: PipelineRef,
    /// The kind of the source, with its settings.
    #[serde(flatten)]
    pub source: SourceBody,
}

/// A source inside a Pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InlineSource {
    /// Name of the source, unique among the sources of the pipeline.
    #[schemars(regex(pattern = NAME_PATTERN), length(max = 63))]
    pub name: String,
    /// The kind of the source, with its settings.
    #[serde(flatten)]
    pub source: SourceBody,
}

/// The kind of a source: exactly one of `http`, `file`, `api` and `kafka`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::rules::source_body()))]
pub struct SourceBody {
    /// Takes messages over HTTP: POST /ingest with `{topic, key, payload}`, an array of them, or one a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSourceSpec>,
    /// Reads a file, or standard input, line by line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSourceSpec>,
    /// Polls an HTTP API and takes what has changed since; needs `topic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<ApiSourceSpec>,
    /// Consumes Kafka topics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaSourceSpec>,
    /// Topic that an `api` source fills, or a `kafka` source in place of topics named as in Kafka. The other kinds
    /// name their topics themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = TOPIC_PATTERN), length(max = 63))]
    pub topic: Option<String>,
    /// When a message is acknowledged: once it is `committed` here, or once it is `replicated` too. An http source
    /// answers then, and a kafka source commits the offset of its group; api and file sources acknowledge nothing.
    #[serde(default)]
    pub ack: Durability,
}

/// Messages over HTTP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSourceSpec {
    /// Address to listen on, `host:port` or `:port`.
    #[schemars(length(min = 1, max = 262))]
    pub addr: String,
    /// Topics that are taken; any where absent, up to 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 100),
        inner(regex(pattern = TOPIC_PATTERN), length(max = 63)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub topics: Vec<String>,
    /// Largest body of one request, such as `16Mi`.
    #[serde(default = "default_body_bytes_max")]
    pub max_body_bytes: Bytes,
    /// Credentials and TLS of the address.
    #[serde(flatten)]
    pub serving: ServingSpec,
}

fn default_body_bytes_max() -> Bytes {
    Bytes::Number(defaults::HTTP_SOURCE_BODY_BYTES_MAX)
}

/// Lines of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::rules::file_source()))]
pub struct FileSourceSpec {
    /// The file, relative to the folder of the manifest; `-` is standard input.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
    /// How lines are read; by the ending of `path` where absent: .csv, .ndjson, .jsonl.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<FileSourceFormat>,
    /// Topic of every row; needs `keyColumns`. Without it each line is `{topic, key, payload}` (ndjson only).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = TOPIC_PATTERN), length(max = 63))]
    pub topic: Option<String>,
    /// Columns (csv) or top-level fields (ndjson) whose values, joined by `|`, are the key. With several of them, a `|` or
    /// `\` within a value has a `\` before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 256)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub key_columns: Vec<String>,
    /// Fields (csv) that stand for null; an empty one where absent.
    #[serde(default = "default_null_values")]
    #[schemars(length(max = 16), inner(length(max = 256)), extend("x-kubernetes-list-type" = "atomic"))]
    pub null_values: Vec<String>,
    /// Types of columns (csv) by their names; a column that is not named is text, whatever it looks like, unless
    /// `infer` is set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub types: BTreeMap<String, ColumnType>,
    /// How columns (csv) that `types` does not name get a type; where absent they are text. `column`: by all values of the
    /// column in the first 1,000 rows (16 MiB at most), found once for each column and kept for good. A column is integer,
    /// real or boolean if every value that is not null is that type's own way of writing it: 01569, 1e3, 1.50, identifiers
    /// of 20 digits, and 5 beside 1.5 stay text, as does a later value that is of another type (a warning tells the first).
    /// A shorter file counts with the whole rows that it has at the first look, or with its first one. Of standard input, no
    /// row is handed on before all of these are there or the input ends, unless the types are known from an earlier run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infer: Option<TypeInference>,
    /// Rows a second at most, at least 1; as fast as they can be stored where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000000))]
    pub rate: Option<u32>,
    /// Whether to wait for more at the end of the file.
    #[serde(default)]
    pub follow: bool,
}

fn default_null_values() -> Vec<String> {
    vec![defaults::FILE_SOURCE_NULL_VALUE.to_owned()]
}

/// What the fields of a CSV column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// Text as it stands there.
    Text,
    /// Whole numbers of 64 bits.
    Integer,
    /// Numbers with a fraction.
    Real,
    /// `true` and `false`.
    Boolean,
    /// JSON documents.
    Json,
}

/// What the types of CSV columns are found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TypeInference {
    /// All values of a column in the first rows.
    Column,
}

/// How lines of a file are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileSourceFormat {
    /// Comma-separated values with a header line.
    Csv,
    /// One JSON document a line.
    Ndjson,
}
