//! `Pipeline`: how data is stored, how long, how results are delivered; and, inline, where data comes from and goes to.

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults;
use crate::durability::Durability;
use crate::duration::{AgeText, DurationText};
use crate::join::InlineJoin;
use crate::network_policy::NetworkPolicySpec;
use crate::pod::PodTemplate;
use crate::pod_monitor::PodMonitorSpec;
use crate::quantity::{Bytes, QuantityText};
use crate::replication::ReplicationSpec;
use crate::reshard::ReshardSpec;
use crate::serving::ServingSpec;
use crate::sink::InlineSink;
use crate::source::InlineSource;
use crate::status::PipelineStatus;
use crate::topic::TopicSpec;
use crate::window::InlineWindow;

/// A pipeline: sources that fill topics, joins and windows over them, sinks that take the results. Each of
/// them may be written inside the Pipeline, or stand alone and name it in `spec.pipelineRef`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "litejoin.io",
    version = "v1alpha1",
    kind = "Pipeline",
    plural = "pipelines",
    shortname = "ljp",
    category = "litejoin",
    namespaced,
    status = "PipelineStatus",
    derive = "PartialEq",
    doc = "Joins live data over SQLite: sources fill topics, joins and windows query them, sinks take the results.",
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
    printcolumn(name = "Shards", type_ = "integer", json_path = ".status.layout.shardCount"),
    printcolumn(name = "Reshard", type_ = "string", json_path = ".status.reshard.phase"),
    printcolumn(
        name = "Replicated",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='ReplicationHealthy')].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = crate::rules::pipeline_spec()))]
pub struct PipelineSpec {
    /// Image of the worker; the operator's own version where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Pods that run the pipeline: 1, or 0 for a pipeline at rest.
    #[serde(default = "default_replicas")]
    pub replicas: u32,
    /// Whether the pipeline rests: no pod, everything else stays.
    pub suspend: bool,
    /// Whether the operator leaves everything as it is, for repairs by hand.
    pub reconciliation_paused: bool,
    /// Any text; a new one restarts the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub restart_nonce: Option<String>,
    /// Where and how topics are stored.
    pub storage: StorageSpec,
    /// How long rows are kept.
    pub retention: RetentionSpec,
    /// Topics of which more is to be said than their names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub topics: Vec<TopicSpec>,
    /// How results reach their sinks.
    pub delivery: DeliverySpec,
    /// How stored results are compared with what their queries yield.
    pub audit: AuditSpec,
    /// Copies of the data at another place, by Litestream.
    pub replication: ReplicationSpec,
    /// Health, metrics and status.
    pub admin: AdminSpec,
    /// Who may reach the pod.
    pub network_policy: NetworkPolicySpec,
    /// How Prometheus finds the pod's metrics.
    pub pod_monitor: PodMonitorSpec,
    /// Sources of this pipeline.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200))]
    pub sources: Vec<InlineSource>,
    /// Joins of this pipeline.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200))]
    pub joins: Vec<InlineJoin>,
    /// Windows of this pipeline.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200))]
    pub windows: Vec<InlineWindow>,
    /// Sinks of this pipeline.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200))]
    pub sinks: Vec<InlineSink>,
    /// CPU and memory of the worker's container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Other settings of the pod.
    pub pod_template: PodTemplate,
}

fn default_replicas() -> u32 {
    defaults::REPLICAS
}

/// Where and how topics are stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StorageSpec {
    /// Shards that topics are spread over, 1 to 64. Each is a file with a writer of its own. Fixed once data is
    /// there: changing it takes `reshard`.
    #[schemars(range(min = 1, max = 64))]
    pub shard_count: u32,
    /// Folder of the data, relative to the working directory; in a cluster the volume is mounted there.
    #[schemars(length(min = 1, max = 1024))]
    pub data_dir: String,
    /// Connections that read at once, 1 to 256.
    #[schemars(range(min = 1, max = 256))]
    pub reader_pool_size: u32,
    /// Messages one shard commits together at most, 1 to 100000. More means fewer syncs and later results.
    #[schemars(range(min = 1, max = 100000))]
    pub batch_size: u32,
    /// How long a message waits for others before its batch is committed.
    pub flush_interval: DurationText,
    /// Crash that an acknowledged message survives: `normal` that of the process, `full` that of the machine too.
    pub synchronous: SynchronousMode,
    /// Size of the volume, such as `10Gi`; it can only grow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<QuantityText>,
    /// Size, such as `5Gi` and `1Mi` at least, that shards and results may take in their files; any size where absent. Above
    /// it messages that bring a payload are refused until there is room again, and deletions are taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Bytes>,
    /// Storage class of the volume; the cluster's default where absent. Fixed once the volume is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
    /// How the volume may be mounted. Only `ReadWriteOncePod` keeps a second pod from writing to it.
    pub access_mode: AccessMode,
    /// Whether the volume stays when the Pipeline is deleted.
    pub retain_on_delete: bool,
    /// Whether the data lives in the pod only and comes back from the replica; needs `replication`.
    pub ephemeral: bool,
    /// Reaction to a node that does not answer: `Wait` for the node, or `Replace` pod and volume
    /// and restore from the replica; `Replace` needs `replication`.
    pub on_node_loss: OnNodeLoss,
    /// Consent to another `shardCount`: the data is moved to a new layout while the pipeline is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reshard: Option<ReshardSpec>,
    /// Consent to begin without data that is gone or can't be used, from the replica if there is one: the UID of the
    /// volume claim that is gone, or the name that the worker gives to what is there, whose files are then set aside.
    /// The status says which; any other value means nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub accept_loss: Option<String>,
}

impl Default for StorageSpec {
    fn default() -> Self {
        StorageSpec {
            shard_count: defaults::SHARD_COUNT,
            data_dir: defaults::DATA_DIR.to_owned(),
            reader_pool_size: defaults::READER_POOL_SIZE,
            batch_size: defaults::BATCH_SIZE,
            flush_interval: defaults::FLUSH_INTERVAL.into(),
            synchronous: SynchronousMode::Normal,
            size: None,
            max_bytes: None,
            storage_class_name: None,
            access_mode: AccessMode::ReadWriteOncePod,
            retain_on_delete: defaults::RETAIN_ON_DELETE,
            ephemeral: false,
            on_node_loss: OnNodeLoss::Wait,
            reshard: None,
            accept_loss: None,
        }
    }
}

/// SQLite's setting `synchronous`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SynchronousMode {
    /// Survives a crash of the process.
    Normal,
    /// Survives a crash of the machine too.
    Full,
}

/// How a volume may be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    /// By one pod.
    ReadWriteOncePod,
    /// By the pods of one node.
    ReadWriteOnce,
}

/// Reaction to a node that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnNodeLoss {
    /// It waits for the node.
    Wait,
    /// Pod and volume are replaced, and restored from the replica.
    Replace,
}

/// How long rows are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RetentionSpec {
    /// Age at which a row expires, since a message last brought it, or `forever`. It holds for topics that `topics` does
    /// not name; the rows of a topic that files alone fill stay, since a file that was read does not bring them again.
    pub duration: AgeText,
    /// How often expired rows are looked for.
    pub clean_interval: DurationText,
    /// Whether results that leave because their rows expired are sent as deleted. Results that expiry changes are sent in
    /// either case.
    pub emit_expiry: bool,
    /// How long a deleted key is remembered, so that an older write cannot revive it.
    pub tombstone_duration: DurationText,
}

impl Default for RetentionSpec {
    fn default() -> Self {
        RetentionSpec {
            duration: defaults::RETENTION_DURATION.into(),
            clean_interval: defaults::RETENTION_CLEAN_INTERVAL.into(),
            emit_expiry: defaults::RETENTION_EMIT_EXPIRY,
            tombstone_duration: defaults::RETENTION_TOMBSTONE_DURATION.into(),
        }
    }
}

/// How results reach their sinks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeliverySpec {
    /// How often a result is tried: `best_effort` once, `at_least_once` until the sink has it or the
    /// dead-letter queue drops it.
    pub guarantee: DeliveryGuarantee,
    /// When a result may leave: once it is `committed` here, or once it is `replicated` too.
    pub after: Durability,
    /// How long results are kept that every sink has had, for SSE clients that come back.
    pub replay_window: DurationText,
    /// Size, such as `1Gi`, above which the results that a lagging sink has yet to get are compacted to the newest
    /// of each key.
    pub outbox_max_bytes: Bytes,
    /// Failures in a row after which a sink is left alone for a while, at least 1.
    #[schemars(range(min = 1, max = 1000000))]
    pub circuit_failures: u32,
    /// The dead-letter queue, for results that could not be delivered.
    pub dlq: DlqSpec,
}

impl Default for DeliverySpec {
    fn default() -> Self {
        DeliverySpec {
            guarantee: DeliveryGuarantee::AtLeastOnce,
            after: Durability::Committed,
            replay_window: defaults::REPLAY_WINDOW.into(),
            outbox_max_bytes: Bytes::Number(defaults::OUTBOX_BYTES_MAX),
            circuit_failures: defaults::CIRCUIT_FAILURES,
            dlq: DlqSpec::default(),
        }
    }
}

/// How often a result is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryGuarantee {
    /// Tried once.
    BestEffort,
    /// Tried until the sink has it, or the dead-letter queue drops it.
    AtLeastOnce,
}

/// The dead-letter queue: results that could not be delivered, and messages that could not be read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DlqSpec {
    /// File of the queue; `dlq.db` in the data folder where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub path: Option<String>,
    /// Wait before the first retry.
    pub retry_interval: DurationText,
    /// Retries before a letter is given up; 0 is no limit.
    #[schemars(range(min = 0, max = 1000000))]
    pub max_retries: u32,
    /// Factor by which the wait grows from retry to retry, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub backoff_multiplier: f64,
    /// The longest wait between retries.
    pub max_backoff: DurationText,
    /// Age at which a letter is dropped.
    pub ttl: DurationText,
    /// Size in MB (of 2^20 bytes) above which the oldest letters are dropped.
    #[schemars(range(min = 1, max = 1048576))]
    pub max_size_mb: u32,
    /// How often age and size are checked.
    pub cleanup_interval: DurationText,
    /// Any text; a new one has all letters tried again at once, also those that were given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub retry_nonce: Option<String>,
}

impl Default for DlqSpec {
    fn default() -> Self {
        DlqSpec {
            path: None,
            retry_interval: defaults::DLQ_RETRY_INTERVAL.into(),
            max_retries: defaults::DLQ_MAX_RETRIES,
            backoff_multiplier: defaults::DLQ_BACKOFF_MULTIPLIER,
            max_backoff: defaults::DLQ_MAX_BACKOFF.into(),
            ttl: defaults::DLQ_TTL.into(),
            max_size_mb: defaults::DLQ_MAX_SIZE_MB,
            cleanup_interval: defaults::DLQ_CLEANUP_INTERVAL.into(),
            retry_nonce: None,
        }
    }
}

/// How stored results are compared with what their queries yield over everything: a check of the worker itself,
/// which must find no difference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditSpec {
    /// Whether audits run by themselves, while nothing is written.
    pub enabled: bool,
    /// How long nothing must have been written before an audit begins.
    pub idle_after: DurationText,
    /// Least time from one join to the next.
    pub interval: DurationText,
    /// Whether results that differ are put right and sent.
    pub repair: bool,
}

impl Default for AuditSpec {
    fn default() -> Self {
        AuditSpec {
            enabled: true,
            idle_after: defaults::AUDIT_IDLE_AFTER.into(),
            interval: defaults::AUDIT_INTERVAL.into(),
            repair: true,
        }
    }
}

/// Health, metrics and status, to be read only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AdminSpec {
    /// Address to listen on, `host:port` or `:port`.
    #[schemars(length(min = 1, max = 262))]
    pub addr: String,
    /// Credentials and TLS of the address.
    #[serde(flatten)]
    pub serving: ServingSpec,
}

impl Default for AdminSpec {
    fn default() -> Self {
        AdminSpec { addr: defaults::ADMIN_ADDR.to_owned(), serving: ServingSpec::default() }
    }
}
