//! `spec.replication`: copies of the shards at another place, kept by Litestream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::credentials::SecretRef;
use crate::defaults;
use crate::duration::DurationText;

/// Beginnings of a `replicaUrl`: the backends.
pub const SCHEMES: [&str; 5] = ["s3://", "gcs://", "abs://", "sftp://", "file://"];

/// Files that are replicated besides the shards: results, dead letters, and what sources remember.
pub const FILES_BESIDE_SHARDS: u32 = 3;

/// Copies of the data at another place, kept by Litestream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = crate::rules::replication()))]
pub struct ReplicationSpec {
    /// Whether the data is replicated.
    pub enabled: bool,
    /// Who runs Litestream: `sidecar` beside the worker, or `embedded` as its child process.
    pub mode: ReplicationMode,
    /// Where the replica lives: s3://, gcs://, abs://, sftp:// or file://. No two pipelines share one prefix: each
    /// writes below its identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub replica_url: Option<String>,
    /// How often new data is shipped.
    pub sync_interval: DurationText,
    /// Whether files that are missing at the start are restored.
    pub restore_on_boot: bool,
    /// How often a whole snapshot is written.
    pub snapshot_interval: DurationText,
    /// How long snapshots, and what leads from one to the next, are kept.
    pub retention: DurationText,
    /// Identity of the data; `<namespace>/<name>` where absent. A pipeline of the same identity takes the replica
    /// over.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub identity: Option<String>,
    /// Secret with the credentials of the backend, as environment variables; without it the pod's own identity
    /// or environment counts. S3: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`; Google:
    /// `GOOGLE_APPLICATION_CREDENTIALS`; Azure: `LITESTREAM_AZURE_ACCOUNT_KEY`; SFTP: `LITEJOIN_SFTP_KEY_PATH` and
    /// `LITEJOIN_SFTP_HOST_KEY`. A path may be that of another key of this Secret, which is mounted too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
    /// Image of Litestream; the one this version was tested with where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Endpoint of an S3-compatible store, such as `https://minio.storage:9000`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub endpoint: Option<String>,
    /// Region of the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub region: Option<String>,
    /// Encryption by an S3 store, with a key of yours; without it the bucket's own counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_side_encryption: Option<ServerSideEncryption>,
    /// Which state is restored, and when.
    pub restore: RestoreSpec,
    /// Consent to a new replica where this one is gone, such as `incarnation-7-0a1b2c3d`: the volume's data counts. The
    /// status says which one is gone; any other value means nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub begin_anew: Option<String>,
    /// Restores now and then to a volume that is thrown away, and checks every file; none where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillSpec>,
}

impl Default for ReplicationSpec {
    fn default() -> Self {
        ReplicationSpec {
            enabled: false,
            mode: ReplicationMode::Sidecar,
            replica_url: None,
            sync_interval: defaults::REPLICATION_SYNC_INTERVAL.into(),
            restore_on_boot: defaults::REPLICATION_RESTORE_ON_BOOT,
            snapshot_interval: defaults::REPLICATION_SNAPSHOT_INTERVAL.into(),
            retention: defaults::REPLICATION_RETENTION.into(),
            identity: None,
            credentials_secret_ref: None,
            image: None,
            endpoint: None,
            region: None,
            server_side_encryption: None,
            restore: RestoreSpec::default(),
            begin_anew: None,
            drill: None,
        }
    }
}

/// Who runs Litestream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReplicationMode {
    /// A container or process beside the worker.
    Sidecar,
    /// The worker, as its child process.
    Embedded,
}

/// Encryption by an S3 store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerSideEncryption {
    /// `aws:kms`, with a key that S3 keeps, or `sse-c`, with one that only you keep: 32 bytes in base64, in a file that
    /// `LITEJOIN_SSE_CUSTOMER_KEY_PATH` names among the credentials. Without that key the replica is lost.
    #[schemars(length(min = 1, max = 64))]
    pub algorithm: String,
    /// Identifier of the key, for `aws:kms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub key_id: Option<String>,
}

/// Restores that only show that the replica is sound: a CronJob of the pipeline's name, whose jobs fail where it is
/// not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::rules::drill()))]
pub struct DrillSpec {
    /// When, as a CronJob has it, such as `0 4 * * *` for every day at four.
    #[schemars(length(min = 1, max = 128))]
    pub schedule: String,
    /// Time zone of the schedule, such as `Europe/Berlin`; that of Kubernetes' own controllers where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: Option<String>,
}

/// Which state is restored, and when.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestoreSpec {
    /// Go back to this point in time (RFC 3339, such as `2026-05-01T12:00:00Z`), once for each new value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    pub timestamp: Option<String>,
    /// Start from another pipeline's replica, which is only read: the `replicaUrl` and identity of that, such as
    /// `s3://bucket/prefix/shop/orders`. The field counts until this pipeline has a replica of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub from_url: Option<String>,
    /// Reaction to missing files: `Auto` restores them if something was ever replicated, `Required`
    /// stops when there is no replica, `Never` starts empty.
    pub policy: RestorePolicy,
}

/// Reaction to files that are missing at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum RestorePolicy {
    /// The files are restored if anything was ever replicated.
    #[default]
    Auto,
    /// The pipeline starts empty.
    Never,
    /// The files are restored, and without a replica nothing starts.
    Required,
}
