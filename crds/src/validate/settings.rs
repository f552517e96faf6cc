//! The settings of a Pipeline: durations within their bounds, and values that need each other.

use std::path::PathBuf;
use std::time::Duration;

use crate::complaint::Reason;
use crate::durability::Durability;
use crate::duration::{DURATION_MAX, parse_timestamp};
use crate::pipeline::{DeliveryGuarantee, OnNodeLoss, PipelineSpec, SynchronousMode};
use crate::plan::{
    Admin, Audit, Delivery, Dlq, Encryption, Guarantee, Place, Replication, Reshard, Retention, Storage,
    Synchronous,
};
use crate::replication::{ReplicationSpec, SCHEMES, ServerSideEncryption};
use crate::reshard::ReshardSpec;
use crate::rules::DRILL_MESSAGE;
use crate::schedule::{SCHEDULE_MESSAGE, is_schedule};
use crate::validate::complaints::Complaints;
use crate::validate::connections;
use crate::validate::read::{Contents, PipelineDocument};
use crate::validate::scope::{DURATION_MIN, SECOND, Scope};
use crate::validate::topics;

/// The parts of a plan that come from the Pipeline alone.
pub(crate) struct Settings {
    pub(crate) storage: Storage,
    pub(crate) retention: Retention,
    pub(crate) delivery: Delivery,
    pub(crate) replication: Option<Replication>,
    pub(crate) audit: Audit,
    pub(crate) admin: Admin,
}

/// Checks the settings and parses them.
pub(crate) fn plan(
    pipeline: &PipelineDocument,
    contents: &Contents,
    complaints: &mut Complaints,
) -> Settings {
    let spec = &pipeline.spec;
    let place = Place { document: pipeline.document, path: "spec".to_owned() };
    let mut scope = Scope { place: &place, complaints };
    if spec.replicas > 1 {
        let message = format!(
            "got {}, allowed 0 or 1: one pod holds all shards; give it more cores by resources",
            spec.replicas
        );
        scope.error("replicas", Reason::OutOfRange, message);
    }
    pod_monitor(spec, &mut scope);
    Settings {
        storage: storage(spec, &mut scope),
        retention: retention(spec, contents, &mut scope),
        delivery: delivery(spec, &mut scope),
        replication: replication(spec, &mut scope),
        audit: audit(spec, &mut scope),
        admin: Admin {
            addr: spec.admin.addr.clone(),
            serving: connections::serving("admin", &spec.admin.serving, &mut scope),
        },
    }
}

/// Checks the settings of the PodMonitor.
fn pod_monitor(spec: &PipelineSpec, scope: &mut Scope<'_>) {
    let monitor = &spec.pod_monitor;
    if let Some(interval) = &monitor.interval {
        scope.duration("podMonitor.interval", interval, SECOND, DAY);
    }
    if monitor.enabled && spec.admin.serving.tls.is_some() && monitor.server_name.is_none() {
        let message = "Prometheus asks by the pod's address, which is in no certificate; write a name that the \
                       certificate of admin.tls carries";
        scope.error("podMonitor.serverName", Reason::MissingField, message);
    }
}

fn storage(spec: &PipelineSpec, scope: &mut Scope<'_>) -> Storage {
    let storage = &spec.storage;
    let reshard = storage.reshard.as_ref().map(|reshard| {
        let ReshardSpec { from_shard_count, to_shard_count, strategy, ref keep_old_layout } = *reshard;
        if from_shard_count == to_shard_count {
            let message = format!(
                "from and to are both {from_shard_count}; write the number of shards that the data has and the one it is \
                 to have"
            );
            scope.error("storage.reshard", Reason::Conflict, message);
        }
        if to_shard_count != storage.shard_count {
            let message = format!(
                "the data is to have {to_shard_count} shards by this, and {} by storage.shardCount; write the same number in \
                 both, or take storage.reshard away",
                storage.shard_count
            );
            scope.error("storage.reshard.toShardCount", Reason::Conflict, message);
        }
        Reshard {
            from: from_shard_count as usize,
            to: to_shard_count as usize,
            strategy,
            keep_old_layout: scope.duration(
                "storage.reshard.keepOldLayout",
                keep_old_layout,
                Duration::ZERO,
                DURATION_MAX,
            ),
        }
    });
    Storage {
        shard_count: storage.shard_count as usize,
        data_dir: PathBuf::from(&storage.data_dir),
        reader_pool_size: storage.reader_pool_size as usize,
        batch_messages_max: storage.batch_size as usize,
        flush_interval: scope.duration(
            "storage.flushInterval",
            &storage.flush_interval,
            DURATION_MIN,
            MINUTE,
        ),
        synchronous: match storage.synchronous {
            SynchronousMode::Normal => Synchronous::Normal,
            SynchronousMode::Full => Synchronous::Full,
        },
        bytes_max: storage
            .max_bytes
            .as_ref()
            .map(|bytes| scope.bytes("storage.maxBytes", bytes, STORAGE_BYTES_LEAST)),
        accept_loss: storage.accept_loss.clone(),
        reshard,
    }
}

fn retention(spec: &PipelineSpec, contents: &Contents, scope: &mut Scope<'_>) -> Retention {
    let retention = &spec.retention;
    Retention {
        duration: scope.age("retention.duration", &retention.duration, SECOND),
        topics: topics::retention(spec, contents, scope),
        clean_interval: scope.duration("retention.cleanInterval", &retention.clean_interval, TENTH, DAY),
        emit_expiry: retention.emit_expiry,
        tombstone_duration: scope.duration(
            "retention.tombstoneDuration",
            &retention.tombstone_duration,
            SECOND,
            DURATION_MAX,
        ),
    }
}

fn audit(spec: &PipelineSpec, scope: &mut Scope<'_>) -> Audit {
    let audit = &spec.audit;
    Audit {
        enabled: audit.enabled,
        idle_after: scope.duration("audit.idleAfter", &audit.idle_after, TENTH, DAY),
        interval: scope.duration("audit.interval", &audit.interval, TENTH, DURATION_MAX),
        repair: audit.repair,
    }
}

fn delivery(spec: &PipelineSpec, scope: &mut Scope<'_>) -> Delivery {
    let delivery = &spec.delivery;
    let dlq = &delivery.dlq;
    let retry_interval =
        scope.duration("delivery.dlq.retryInterval", &dlq.retry_interval, DURATION_MIN, DURATION_MAX);
    let backoff_max = scope.duration("delivery.dlq.maxBackoff", &dlq.max_backoff, DURATION_MIN, DURATION_MAX);
    if backoff_max < retry_interval && !backoff_max.is_zero() {
        let message = format!(
            "got {:?}, shorter than retryInterval {:?}; write at least as long a time",
            dlq.max_backoff.0, dlq.retry_interval.0
        );
        scope.error("delivery.dlq.maxBackoff", Reason::Conflict, message);
    }
    Delivery {
        guarantee: match delivery.guarantee {
            DeliveryGuarantee::BestEffort => Guarantee::BestEffort,
            DeliveryGuarantee::AtLeastOnce => Guarantee::AtLeastOnce,
        },
        replay_window: scope.duration("delivery.replayWindow", &delivery.replay_window, SECOND, DURATION_MAX),
        outbox_bytes_max: scope.bytes(
            "delivery.outboxMaxBytes",
            &delivery.outbox_max_bytes,
            OUTBOX_BYTES_LEAST,
        ),
        circuit_failures: delivery.circuit_failures,
        dlq: Dlq {
            path: dlq.path.as_ref().map(PathBuf::from),
            retry_interval,
            retries_max: (dlq.max_retries > 0).then_some(dlq.max_retries),
            backoff_multiplier: dlq.backoff_multiplier,
            backoff_max,
            ttl: scope.duration("delivery.dlq.ttl", &dlq.ttl, SECOND, DURATION_MAX),
            bytes_max: u64::from(dlq.max_size_mb) << 20,
            cleanup_interval: scope.duration(
                "delivery.dlq.cleanupInterval",
                &dlq.cleanup_interval,
                TENTH,
                DURATION_MAX,
            ),
            retry_nonce: dlq.retry_nonce.clone(),
        },
    }
}

fn replication(spec: &PipelineSpec, scope: &mut Scope<'_>) -> Option<Replication> {
    let replication = &spec.replication;
    let sync_interval = scope.duration("replication.syncInterval", &replication.sync_interval, TENTH, DAY);
    let snapshot_interval =
        scope.duration("replication.snapshotInterval", &replication.snapshot_interval, MINUTE, DURATION_MAX);
    let retention = scope.duration("replication.retention", &replication.retention, MINUTE, DURATION_MAX);
    if retention < snapshot_interval && !retention.is_zero() {
        let message = format!(
            "got {:?}, shorter than snapshotInterval {:?}: what is kept would lead from no snapshot; write at least as \
             long a time",
            replication.retention.0, replication.snapshot_interval.0
        );
        scope.error("replication.retention", Reason::Conflict, message);
    }
    for (field, url) in
        [("replicaUrl", &replication.replica_url), ("restore.fromUrl", &replication.restore.from_url)]
    {
        if let Some(url) = url
            && !SCHEMES.iter().any(|scheme| url.starts_with(scheme) && url.len() > scheme.len())
        {
            let message = format!("got {url:?}, allowed: s3://…, gcs://…, abs://…, sftp://… or file://…");
            scope.error(&format!("replication.{field}"), Reason::InvalidValue, message);
        }
    }
    if let Some(Err(message)) = replication.restore.timestamp.as_deref().map(parse_timestamp) {
        scope.error("replication.restore.timestamp", Reason::InvalidValue, message);
    }
    if let Some(identity) = &replication.identity
        && identity.split('/').any(|part| matches!(part, "" | "." | ".."))
    {
        let message = format!("got {identity:?}, which is no path; write for example \"production/orders\"");
        scope.error("replication.identity", Reason::InvalidValue, message);
    }
    drill(replication, scope);
    if replication.enabled {
        if replication.replica_url.is_none() {
            let message = "replication is enabled without a replicaUrl; add the place the copies go to, such as replicaUrl: s3://bucket/prefix";
            scope.error("replication.enabled", Reason::Conflict, message);
        }
        return Some(Replication {
            mode: replication.mode,
            replica_url: replication.replica_url.clone()?,
            sync_interval,
            snapshot_interval,
            retention,
            restore_on_boot: replication.restore_on_boot,
            credentials_secret: replication.credentials_secret_ref.as_ref().map(|secret| secret.name.clone()),
            endpoint: replication.endpoint.clone(),
            region: replication.region.clone(),
            encryption: encryption(replication, scope),
            restore: replication.restore.policy,
            restore_timestamp: replication.restore.timestamp.clone(),
            restore_from_url: replication.restore.from_url.clone(),
            begin_anew: replication.begin_anew.clone(),
            results_wait: spec.delivery.after == Durability::Replicated,
        });
    }
    if spec.storage.ephemeral {
        let message = "needs replication.enabled: true, else every restart loses the data";
        scope.error("storage.ephemeral", Reason::Conflict, message);
    }
    if spec.storage.on_node_loss == OnNodeLoss::Replace {
        let message = "Replace needs replication.enabled: true to restore from; else write Wait";
        scope.error("storage.onNodeLoss", Reason::Conflict, message);
    }
    if spec.delivery.after == Durability::Replicated {
        let message = "replicated needs replication.enabled: true; else write committed";
        scope.error("delivery.after", Reason::Conflict, message);
    }
    None
}

fn drill(replication: &ReplicationSpec, scope: &mut Scope<'_>) {
    let Some(drill) = &replication.drill else { return };
    let is_reached = replication.replica_url.as_ref().is_some_and(|url| !url.starts_with("file://"));
    if !replication.enabled || !is_reached {
        scope.error("replication.drill", Reason::Conflict, DRILL_MESSAGE);
    }
    if !is_schedule(&drill.schedule) {
        let message = format!("got {:?}, {SCHEDULE_MESSAGE}", drill.schedule);
        scope.error("replication.drill.schedule", Reason::InvalidValue, message);
    }
}

/// The key by which S3 encrypts; `None` leaves the encryption to the settings of the bucket.
fn encryption(replication: &ReplicationSpec, scope: &mut Scope<'_>) -> Option<Encryption> {
    let ServerSideEncryption { algorithm, key_id } = replication.server_side_encryption.as_ref()?;
    let is_s3 = replication.replica_url.as_ref().is_some_and(|url| url.starts_with("s3://"));
    match (algorithm.as_str(), key_id) {
        ("aws:kms", Some(key_id)) if is_s3 => Some(Encryption::Kms { key_id: key_id.clone() }),
        ("sse-c", None) if is_s3 => Some(Encryption::CustomerKey),
        _ => {
            let message = format!(
                "got algorithm {algorithm:?} {} a keyId, allowed: aws:kms with a keyId, or sse-c without one, on s3://; \
                 for others remove this and set the default encryption of the bucket",
                if key_id.is_some() { "with" } else { "without" }
            );
            scope.error("replication.serverSideEncryption", Reason::InvalidValue, message);
            None
        }
    }
}

const TENTH: Duration = Duration::from_millis(100);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The smallest bound on the data, in bytes: the empty tables of a few shards take as much.
const STORAGE_BYTES_LEAST: u64 = 1 << 20;
/// The smallest limit of the outbox, in bytes: below it the outbox would be compacted with every batch.
const OUTBOX_BYTES_LEAST: u64 = 1 << 20;
