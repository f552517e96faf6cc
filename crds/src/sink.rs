//! `Sink`: where results go. A sink is of exactly one kind.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::credentials::{Auth, ClientTls, Credential, KafkaSasl};
use crate::defaults;
use crate::duration::DurationText;
use crate::names::NAME_PATTERN;
use crate::reference::PipelineRef;
use crate::serving::ServingSpec;
use crate::status::ChildStatus;

/// A sink that stands alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "litejoin.io",
    version = "v1alpha1",
    kind = "Sink",
    plural = "sinks",
    shortname = "ljsnk",
    category = "litejoin",
    namespaced,
    status = "ChildStatus",
    derive = "PartialEq",
    selectable = ".spec.pipelineRef.name",
    doc = "Takes results of a Pipeline: streams them to browsers, prints, posts or stores them, or writes them to Kafka.",
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
pub struct SinkSpec {
    /// The Pipeline that the sink belongs to.
    pub pipeline_ref: PipelineRef,
    /// Where results go.
    #[serde(flatten)]
    pub sink: SinkBody,
}

/// A sink inside a Pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InlineSink {
    /// Name of the sink, unique among the sinks of the pipeline.
    #[schemars(regex(pattern = NAME_PATTERN), length(max = 63))]
    pub name: String,
    /// Where results go.
    #[serde(flatten)]
    pub sink: SinkBody,
}

/// Where results go: exactly one of `sse`, `stdout`, `http`, `kafka` and `sqlite`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::rules::sink_body()))]
pub struct SinkBody {
    /// Joins and windows whose results the sink takes; a join or window may name the sink instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub joins: Vec<String>,
    /// Streams results to any number of HTTP clients as Server-Sent Events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse: Option<SseSinkSpec>,
    /// Prints results on standard output, one JSON line each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<StdoutSinkSpec>,
    /// Posts results as JSON to a URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSinkSpec>,
    /// Writes results to a Kafka topic by their result keys; a deleted result is a record without a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaSinkSpec>,
    /// Keeps results in the tables of a SQLite file, one a join, with its columns and `_key`, the result key as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqlite: Option<SqliteSinkSpec>,
}

/// Server-Sent Events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SseSinkSpec {
    /// Address to listen on, `host:port` or `:port`.
    #[schemars(length(min = 1, max = 262))]
    pub addr: String,
    /// Origins that browsers may come from; `*` alone, the default, is any.
    #[serde(default = "default_cors_origins")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)), extend("x-kubernetes-list-type" = "atomic"))]
    pub cors_origins: Vec<String>,
    /// Time between heartbeat comments, which keep proxies from closing an idle connection.
    #[serde(default = "default_heartbeat_interval")]
    pub heartbeat_interval: DurationText,
    /// Clients at once, at least 1; more are told to come back later.
    #[serde(default = "default_max_clients")]
    #[schemars(range(min = 1, max = 1000000))]
    pub max_clients: u32,
    /// Credentials and TLS of the address.
    #[serde(flatten)]
    pub serving: ServingSpec,
}

fn default_cors_origins() -> Vec<String> {
    vec![defaults::SSE_CORS_ORIGIN.to_owned()]
}

fn default_heartbeat_interval() -> DurationText {
    defaults::SSE_HEARTBEAT_INTERVAL.into()
}

fn default_max_clients() -> u32 {
    defaults::SSE_CLIENTS_MAX
}

/// Standard output, which has no settings: write `stdout: {}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StdoutSinkSpec {}

/// JSON by POST.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSinkSpec {
    /// Where results are posted to; `${NAME}` is replaced by the environment variable.
    #[schemars(length(min = 1, max = 4096))]
    pub url: String,
    /// Time for one request.
    #[serde(default = "default_http_timeout")]
    pub timeout: DurationText,
    /// More headers of the request. Credentials belong in `auth`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub headers: BTreeMap<String, String>,
    /// Results in one request: 1 posts an object, more an array.
    #[serde(default = "default_http_batch_size")]
    #[schemars(range(min = 1, max = 10000))]
    pub batch_size: u32,
    /// Requests under way at once, never two for one result key.
    #[serde(default = "default_http_concurrency")]
    #[schemars(range(min = 1, max = 256))]
    pub concurrency: u32,
    /// How the worker authenticates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// Key of an HMAC-SHA256 signature of the body, sent as `LiteJoin-Signature: sha256=<hex>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<Credential>,
    /// How the server is checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
    /// Proxy to go through, such as `http://proxy:3128`; the environment's where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub proxy: Option<String>,
}

fn default_http_timeout() -> DurationText {
    defaults::HTTP_SINK_TIMEOUT.into()
}

fn default_http_batch_size() -> u32 {
    defaults::HTTP_SINK_BATCH_SIZE
}

fn default_http_concurrency() -> u32 {
    defaults::HTTP_SINK_CONCURRENCY
}

/// Records in a Kafka topic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSinkSpec {
    /// Addresses of brokers, `host:port`, with commas between.
    #[schemars(length(min = 1, max = 4096))]
    pub brokers: String,
    /// Kafka topic.
    #[schemars(length(min = 1, max = 249))]
    pub topic: String,
    /// Whether results are written in transactions, so that consumers that read committed records see each once.
    #[serde(default)]
    pub transactional: bool,
    /// How a result key becomes the key of its record: `text`, the default, or `json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_format: Option<KafkaKeyFormat>,
    /// How the worker authenticates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sasl: Option<KafkaSasl>,
    /// How the brokers are checked; without it the connection is not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
}

/// How a result key becomes the key of its record. `text`, the default, is text as it is (`o1`), and everything else as JSON
/// (`1`, `null`); of two result keys that are the same text, such as `"1"` and `1`, the second becomes a dead letter. `json`
/// is JSON throughout (`"o1"`), so that each result key is a record key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KafkaKeyFormat {
    /// Text as it is.
    #[default]
    Text,
    /// JSON throughout.
    Json,
}

/// Tables of a SQLite file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SqliteSinkSpec {
    /// The file, relative to the working directory.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
}
