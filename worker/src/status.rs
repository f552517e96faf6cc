//! The status of the worker: counters that the rooms raise, and their two outlets, `/status` (JSON)
//! and `/metrics` (Prometheus). Counters are since the start of the process.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use fnv::FnvHasher;
use litejoin_crds::kind::Kind;
use litejoin_crds::plan::Plan;
use litejoin_crds::worker_status::{DegradedPart, ReshardReport};
use serde_json::{Value, json};

use self::config::ConfigStatus;
use self::counters::{ByName, Counter, Gauge, LastError};
use self::join::{ClassInForce, JoinStatus};
use self::replication::ReplicationStatus;
use self::reshard::MoveStatus;
use self::sink::SinkStatus;
use self::source::SourceStatus;
use self::storage::StorageStatus;
use self::topics::{TopicSettings, TopicStatus};

pub(crate) mod audit;
pub(crate) mod config;
mod contact;
pub(crate) mod counters;
pub(crate) mod join;
pub(crate) mod kafka;
pub(crate) mod prometheus;
pub(crate) mod replication;
pub(crate) mod reshard;
pub(crate) mod sink;
pub(crate) mod source;
pub(crate) mod storage;
pub(crate) mod topics;

/// Everything that is told. Sources, joins and sinks are those of the config in force, topics may be added.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) pipeline: String,
    pub(crate) identity: String,
    pub(crate) config: ConfigStatus,
    pub(crate) started_at: i64,
    /// Whether everything is started and nothing is stopping yet.
    pub(crate) ready: AtomicBool,
    pub(crate) lineage: Mutex<String>,
    pub(crate) epoch_applied: Gauge,
    pub(crate) outbox_bytes: Gauge,
    pub(crate) outbox_compacted: Counter,
    pub(crate) inflight_bytes: Gauge,
    pub(crate) replication: Arc<ReplicationStatus>,
    /// The move of the data to another number of shards, if one was begun.
    pub(crate) reshard: Mutex<Option<MoveStatus>>,
    /// The error that keeps results from being stored, and whether that is a full disk.
    results_error: LastError,
    results_disk_full: AtomicBool,
    shard_errors: Vec<LastError>,
    /// How much the files of the data take.
    pub(crate) storage: StorageStatus,
    topic_settings: RwLock<TopicSettings>,
    topics: RwLock<BTreeMap<Arc<str>, Arc<TopicStatus>>>,
    sources: ByName<SourceStatus>,
    joins: ByName<JoinStatus>,
    sinks: ByName<SinkStatus>,
}

impl Status {
    pub(crate) fn new<'j>(
        plan: &Plan,
        classes: impl IntoIterator<Item = (&'j str, ClassInForce)>,
        started_at: i64,
    ) -> Self {
        let status = Self {
            pipeline: plan.name.clone(),
            identity: plan.identity.clone(),
            config: ConfigStatus::new(plan.config_hash.clone(), started_at),
            started_at,
            ready: AtomicBool::new(false),
            lineage: Mutex::default(),
            epoch_applied: Gauge::default(),
            outbox_bytes: Gauge::default(),
            outbox_compacted: Counter::default(),
            inflight_bytes: Gauge::default(),
            replication: Arc::default(),
            reshard: Mutex::default(),
            results_error: LastError::default(),
            results_disk_full: AtomicBool::new(false),
            shard_errors: (0..plan.storage.shard_count).map(|_| LastError::default()).collect(),
            storage: StorageStatus::default(),
            topic_settings: RwLock::new(TopicSettings::new(plan)),
            topics: RwLock::default(),
            sources: ByName::default(),
            joins: ByName::default(),
            sinks: ByName::default(),
        };
        status.follow(plan, classes);
        status
    }

    /// Adds counters for the plan's topics, sources, joins and sinks and removes those of sources, joins and sinks that are
    /// gone. `classes` are the joins by name.
    pub(crate) fn follow<'j>(&self, plan: &Plan, classes: impl IntoIterator<Item = (&'j str, ClassInForce)>) {
        self.sources.keep(plan.sources.iter().map(|source| source.name.as_str()));
        self.joins.keep(plan.outputs().map(|output| output.name));
        self.sinks.keep(plan.sinks.iter().map(|sink| sink.name.as_str()));
        *self.topic_settings.write().unwrap_or_else(PoisonError::into_inner) = TopicSettings::new(plan);
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        for topic in plan.sources.iter().flat_map(|source| source.kind.topics()) {
            if !topics.keys().any(|known| known.eq_ignore_ascii_case(topic)) {
                topics.insert(topic.into(), Arc::default());
            }
        }
        drop(topics);
        for (name, class) in classes {
            self.join(name).set_class(class);
        }
    }

    /// The counters of a source of the plan.
    pub(crate) fn source(&self, name: &str) -> Arc<SourceStatus> {
        self.sources.of(name)
    }

    /// The counters of a join of the plan.
    pub(crate) fn join(&self, name: &str) -> Arc<JoinStatus> {
        self.joins.of(name)
    }

    /// The counters of a join that the plan may have no more.
    pub(crate) fn find_join(&self, name: &str) -> Option<Arc<JoinStatus>> {
        self.joins.find(name)
    }

    /// Changes that these topics have seen.
    pub(crate) fn changes_of(&self, topics: &BTreeSet<String>) -> u64 {
        let all = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        let wanted =
            all.iter().filter(|(name, _)| topics.iter().any(|topic| topic.eq_ignore_ascii_case(name)));
        wanted.map(|(_, topic)| topic.counts().changes()).sum()
    }

    /// The counters of a sink of the plan.
    pub(crate) fn sink(&self, name: &str) -> Arc<SinkStatus> {
        self.sinks.of(name)
    }

    /// The counters of a topic.
    pub(crate) fn topic(&self, name: &Arc<str>) -> Arc<TopicStatus> {
        if let Some(topic) = self.topics.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Arc::clone(topic);
        }
        Arc::clone(
            self.topics.write().unwrap_or_else(PoisonError::into_inner).entry(Arc::clone(name)).or_default(),
        )
    }

    /// Notes that a shard could not be written; returns whether this is news.
    pub(crate) fn storage_failed(&self, shard_index: usize, error: &str) -> bool {
        self.shard_errors[shard_index].set(error)
    }

    pub(crate) fn storage_recovered(&self, shard_index: usize) {
        if self.shard_errors[shard_index].clear() {
            tracing::info!(shard = shard_index, "the shard can be written again");
        }
    }

    /// Notes that results can't be stored; returns whether this is news.
    pub(crate) fn results_failed(&self, error: &str, disk_full: bool) -> bool {
        self.results_disk_full.store(disk_full, Ordering::Relaxed);
        self.results_error.set(error)
    }

    /// Notes that results can be stored; returns whether this is news.
    pub(crate) fn results_recovered(&self) -> bool {
        self.results_error.clear()
    }

    /// The error that keeps results from being stored, and whether that is a full disk.
    pub(crate) fn results_problem(&self) -> Option<(String, bool)> {
        self.results_error.text().map(|error| (error, self.results_disk_full.load(Ordering::Relaxed)))
    }

    /// The error that keeps data from being stored right now, if any.
    pub(crate) fn storage_error(&self) -> Option<String> {
        let of_shard = self
            .shard_errors
            .iter()
            .enumerate()
            .find_map(|(index, error)| error.text().map(|error| format!("shard_{index}.db: {error}")));
        of_shard
            .or_else(|| self.results_error.text().map(|error| format!("results.db: {error}")))
            .or_else(|| self.storage.excess().map(|excess| excess.to_string()))
    }

    /// The reason why the worker is not ready, if any. Whether other servers answer is none: that keeps no client from the
    /// rest, and is told by [`Self::degraded`].
    pub(crate) fn unready(&self) -> Option<String> {
        (!self.ready.load(Ordering::Relaxed)).then(|| "starting or stopping".to_owned())
    }

    /// How many messages each source has refused in this run.
    pub(crate) fn refusals(&self) -> Vec<(String, u64)> {
        self.sources.map(|source| source.refused.value()).into_iter().collect()
    }

    /// The sources and sinks that can't do their work at the moment `now`.
    pub(crate) fn degraded(&self, now: i64) -> Vec<DegradedPart> {
        let mut found = Vec::new();
        for (name, silent) in self.sources.map(|source| source.silent(now)) {
            found.extend(silent.map(|(at, lost)| lost.part(Kind::Source, name, "Unreachable", at)));
        }
        for (name, failing) in self.sinks.map(|sink| sink.failing(now)) {
            found.extend(failing.map(|(at, lost)| lost.part(Kind::Sink, name, "DeliveryFails", at)));
        }
        found
    }

    /// How far the data is on its way to another number of shards; `None` where nothing was begun.
    fn reshard(&self) -> Option<ReshardReport> {
        self.reshard.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(MoveStatus::report)
    }

    /// An `ETag` of all that the operator acts upon at the moment `now`; numbers that always move are left out.
    pub(crate) fn tag(&self, now: i64) -> String {
        let mut config = self.config.report();
        config.reloads.clear();
        let replica = self.replication.report(now).map(|replica| (replica.ready, replica.is_failing()));
        let lineage = self.lineage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let reshard = self.reshard().map(|report| (report.phase, report.message));
        let news = json!([self.unready(), lineage, config, replica, self.degraded(now), reshard]);
        let mut hasher = FnvHasher::default();
        hasher.write(news.to_string().as_bytes());
        format!("\"{:016x}\"", hasher.finish())
    }

    /// Brings all rates up to date; to be called every `seconds`.
    pub(crate) fn sample_rates(&self, seconds: f64) {
        self.sources.map(|source| source.accepted.sample(seconds));
        self.sinks.map(|sink| sink.delivered.sample(seconds));
    }

    /// The whole as JSON.
    pub(crate) fn json(&self, now: i64) -> Value {
        // Before the counters: those of an epoch that is shown are all in.
        let epoch = self.epoch_applied.value();
        let map = |entries: Vec<(String, Value)>| Value::Object(entries.into_iter().collect());
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        let settings = self.topic_settings.read().unwrap_or_else(PoisonError::into_inner);
        let topics =
            topics.iter().map(|(name, topic)| (name.to_string(), topic.json(name, &settings))).collect();
        json!({
            "pipeline": self.pipeline,
            "identity": self.identity,
            "config": self.config.json(),
            "version": env!("CARGO_PKG_VERSION"),
            "ready": self.unready().is_none(),
            "uptimeSeconds": (now - self.started_at).max(0),
            "lineage": *self.lineage.lock().unwrap_or_else(PoisonError::into_inner),
            "epoch": epoch,
            "outboxBytes": self.outbox_bytes.value(),
            "outboxCompacted": self.outbox_compacted.value(),
            "inflightBytes": self.inflight_bytes.value(),
            "storageError": self.storage_error(),
            "storageBytes": self.storage.bytes(),
            "storageBytesMax": self.storage.bytes_max(),
            "replication": self.replication.json(now),
            "degraded": self.degraded(now),
            "shardCount": self.shard_errors.len(),
            "reshard": self.reshard(),
            "sources": map(self.sources.map(SourceStatus::json)),
            "topics": map(topics),
            "joins": map(self.joins.map(JoinStatus::json)),
            "sinks": map(self.sinks.map(SinkStatus::json)),
        })
    }
}
