//! `/metrics`: the counters of [`Status`] in the Prometheus text format. Users read what each metric counts in
//! `README.md` beside this file; a test holds that table to the ones below.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Status;
use super::audit::AuditStatus;
use super::config::ReloadOutcome;
use super::join::JoinStatus;
use super::replication::FileProgress;
use super::sink::SinkStatus;
use super::source::SourceStatus;
use super::topics::TopicStatus;
use crate::clock;

/// One metric of `/metrics`.
struct Metric {
    /// Without `_total`, which the text format adds to counters.
    name: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    help: &'static str,
    series: fn(&Status) -> Series,
}

/// Values of one metric, each with a text for every label.
type Series = Vec<(Vec<String>, f64)>;

/// Metrics of the worker as a whole.
const OF_WORKER: &[Metric] = &[
    Metric {
        name: "litejoin_ready",
        kind: MetricType::Gauge,
        labels: &[],
        help: "1 while the worker serves",
        series: |status| flag(status.unready().is_none()),
    },
    Metric {
        name: "litejoin_config_reloads",
        kind: MetricType::Counter,
        labels: &["outcome"],
        help: "Reloads of the config by what became of them",
        series: |status| {
            let reloads = |outcome: ReloadOutcome| {
                (vec![outcome.as_str().to_owned()], status.config.reloads(outcome) as f64)
            };
            ReloadOutcome::ALL.map(reloads).into()
        },
    },
    Metric {
        name: "litejoin_config_last_reload_successful",
        kind: MetricType::Gauge,
        labels: &[],
        help: "0 while the config that was asked for last is not the one in force, since it was refused",
        series: |status| flag(status.config.is_up_to_date()),
    },
    Metric {
        name: "litejoin_epoch_applied",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Number of the last epoch whose results are stored",
        series: |status| one(status.epoch_applied.value() as f64),
    },
    Metric {
        name: "litejoin_outbox_bytes",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Results that sinks may still ask for",
        series: |status| one(status.outbox_bytes.value() as f64),
    },
    Metric {
        name: "litejoin_outbox_compacted",
        kind: MetricType::Counter,
        labels: &[],
        help: "Results that a lagging sink never got, since a newer one of the same key had come",
        series: |status| one(status.outbox_compacted.value() as f64),
    },
    Metric {
        name: "litejoin_ingest_inflight_bytes",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Messages on their way from sources to shards",
        series: |status| one(status.inflight_bytes.value() as f64),
    },
    Metric {
        name: "litejoin_storage_failing",
        kind: MetricType::Gauge,
        labels: &[],
        help: "1 while data can't be stored",
        series: |status| flag(status.storage_error().is_some()),
    },
    Metric {
        name: "litejoin_storage_bytes",
        kind: MetricType::Gauge,
        labels: &[],
        help: "What shards and results take in their files",
        series: |status| one(status.storage.bytes() as f64),
    },
    Metric {
        name: "litejoin_storage_bytes_max",
        kind: MetricType::Gauge,
        labels: &[],
        help: "What shards and results may take before messages are refused; absent where there is no bound",
        series: |status| status.storage.bytes_max().map_or_else(Series::new, |bytes| one(bytes as f64)),
    },
];

/// Metrics of the replica; absent while nothing is replicated.
const OF_REPLICA: &[Metric] = &[
    Metric {
        name: "litejoin_replication_lag_seconds",
        kind: MetricType::Gauge,
        labels: &[],
        help: "How long ago the replica last had everything",
        series: |status| one(status.replication.lag(crate::clock::epoch_seconds()).as_secs_f64()),
    },
    Metric {
        name: "litejoin_replication_ready",
        kind: MetricType::Gauge,
        labels: &[],
        help: "1 once a restore would take what this worker has replicated",
        series: |status| flag(status.replication.is_ready()),
    },
    Metric {
        name: "litejoin_replication_failing",
        kind: MetricType::Gauge,
        labels: &[],
        help: "1 while the replica can't be brought up to date",
        series: |status| flag(status.replication.error.text().is_some()),
    },
    Metric {
        name: "litejoin_replicated_transaction",
        kind: MetricType::Gauge,
        labels: &["file"],
        help: "The last transaction of a file that is in the replica, as Litestream counts them",
        series: |status| of_files(status, |file| file.replicated_txid as f64),
    },
    Metric {
        name: "litejoin_wal_bytes",
        kind: MetricType::Gauge,
        labels: &["file"],
        help: "What a file's WAL holds on disk; it is kept short also while the replica is away",
        series: |status| of_files(status, |file| file.wal_bytes as f64),
    },
];

/// Metrics of topics and sources.
const OF_INPUT: &[Metric] = &[
    Metric {
        name: "litejoin_topic_messages",
        kind: MetricType::Counter,
        labels: &["topic", "op"],
        help: "Messages by what they did to their topic",
        series: of_topics,
    },
    Metric {
        name: "litejoin_topic_rows",
        kind: MetricType::Gauge,
        labels: &["topic"],
        help: "Rows of a topic",
        series: |status| of_sizes(status, |topic| topic.rows.value() as f64),
    },
    Metric {
        name: "litejoin_topic_bytes",
        kind: MetricType::Gauge,
        labels: &["topic"],
        help: "Keys and payloads of the rows of a topic",
        series: |status| of_sizes(status, |topic| topic.bytes.value() as f64),
    },
    Metric {
        name: "litejoin_source_accepted",
        kind: MetricType::Counter,
        labels: &["source"],
        help: "Messages that a source has stored",
        series: |status| of_sources(status, |source| source.accepted.value() as f64),
    },
    Metric {
        name: "litejoin_source_refused",
        kind: MetricType::Counter,
        labels: &["source"],
        help: "Messages that a source has refused; those of files and Kafka are in the dead-letter queue",
        series: |status| of_sources(status, |source| source.refused.value() as f64),
    },
    Metric {
        name: "litejoin_source_degraded",
        kind: MetricType::Gauge,
        labels: &["source"],
        help: "1 while what a source reads from does not answer",
        series: |status| of_sources(status, |source| is_there(&source.silent(clock::epoch_seconds()))),
    },
    Metric {
        name: "litejoin_source_lag_records",
        kind: MetricType::Gauge,
        labels: &["source", "kafka_topic", "kafka_partition"],
        help: "Offsets between what is stored of a Kafka partition and its end",
        series: of_partitions,
    },
    Metric {
        name: "litejoin_source_lost_records",
        kind: MetricType::Counter,
        labels: &["source"],
        help: "Records that Kafka had removed before they were read",
        series: |status| of_sources(status, |source| source.kafka.lost.value() as f64),
    },
];

/// Metrics of joins and of their audits.
const OF_JOINS: &[Metric] = &[
    Metric {
        name: "litejoin_join_evaluations",
        kind: MetricType::Counter,
        labels: &["join"],
        help: "Evaluations of a join",
        series: |status| of_joins(status, |join| join.evaluations.value() as f64),
    },
    Metric {
        name: "litejoin_join_evaluation_seconds",
        kind: MetricType::Counter,
        labels: &["join"],
        help: "Time spent on evaluating a join",
        series: |status| of_joins(status, |join| join.evaluation_microseconds.value() as f64 / 1e6),
    },
    Metric {
        name: "litejoin_join_results_changed",
        kind: MetricType::Counter,
        labels: &["join"],
        help: "Results of a join that have changed",
        series: |status| of_joins(status, |join| join.results_changed.value() as f64),
    },
    Metric {
        name: "litejoin_join_full_evaluations",
        kind: MetricType::Counter,
        labels: &["join"],
        help: "Evaluations of a join that ran over everything",
        series: |status| of_joins(status, |join| join.evaluations_full.value() as f64),
    },
    Metric {
        name: "litejoin_join_vm_steps",
        kind: MetricType::Counter,
        labels: &["join"],
        help: "Steps of SQLite's virtual machine that evaluating a join by key has taken",
        series: |status| of_joins(status, |join| join.steps.value() as f64),
    },
    Metric {
        name: "litejoin_join_probes",
        kind: MetricType::Counter,
        labels: &["join"],
        help: "Look-ups in shards that evaluating a join by key has taken",
        series: |status| of_joins(status, |join| join.probes.value() as f64),
    },
    Metric {
        name: "litejoin_join_class",
        kind: MetricType::Gauge,
        labels: &["join", "class"],
        help: "1 for the class in force: how a join is kept current",
        series: |status| {
            let classes = status.joins.map(JoinStatus::class).into_iter();
            classes
                .filter_map(|(name, class)| Some((vec![name, class?.name.as_str().to_owned()], 1.0)))
                .collect()
        },
    },
    Metric {
        name: "litejoin_join_fallbacks",
        kind: MetricType::Counter,
        labels: &["join", "cause"],
        help: "Times that a slower class than planned had to keep a join current",
        series: |status| {
            let of_join = |(join, causes): (String, BTreeMap<&'static str, u64>)| {
                causes
                    .into_iter()
                    .map(move |(cause, count)| (vec![join.clone(), cause.to_owned()], count as f64))
            };
            status.joins.map(|join| join.fallbacks.values()).into_iter().flat_map(of_join).collect()
        },
    },
    Metric {
        name: "litejoin_join_failing",
        kind: MetricType::Gauge,
        labels: &["join"],
        help: "1 while a join's query fails",
        series: |status| of_joins(status, |join| f64::from(u8::from(join.error.text().is_some()))),
    },
    Metric {
        name: "litejoin_join_failing_results",
        kind: MetricType::Gauge,
        labels: &["join"],
        help: "Results of a join that can't be evaluated and stay as they were",
        series: |status| of_joins(status, |join| join.failing_count() as f64),
    },
    Metric {
        name: "litejoin_audits",
        kind: MetricType::Counter,
        labels: &["join"],
        help: "Comparisons of a join's stored results with what its query yields",
        series: |status| of_audits(status, |audit| Some(audit.count() as f64)),
    },
    Metric {
        name: "litejoin_audit_differences",
        kind: MetricType::Gauge,
        labels: &["join"],
        help: "Stored results of a join that differed from what its query yields, by the last audit; must be 0",
        series: |status| of_audits(status, |audit| Some(audit.differences()? as f64)),
    },
    Metric {
        name: "litejoin_audit_last_success_timestamp_seconds",
        kind: MetricType::Gauge,
        labels: &["join"],
        help: "When an audit last found that all stored results of a join are what its query yields",
        series: |status| of_audits(status, |audit| Some(audit.clean_at()? as f64)),
    },
];

/// Metrics of sinks.
const OF_SINKS: &[Metric] = &[
    Metric {
        name: "litejoin_sink_delivered",
        kind: MetricType::Counter,
        labels: &["sink"],
        help: "Results that a sink has taken",
        series: |status| of_sinks(status, |sink| sink.delivered.value() as f64),
    },
    Metric {
        name: "litejoin_sink_failed",
        kind: MetricType::Counter,
        labels: &["sink"],
        help: "Deliveries to a sink that failed",
        series: |status| of_sinks(status, |sink| sink.failed.value() as f64),
    },
    Metric {
        name: "litejoin_sink_dropped",
        kind: MetricType::Counter,
        labels: &["sink"],
        help: "Results that a best-effort sink did not take",
        series: |status| of_sinks(status, |sink| sink.dropped.value() as f64),
    },
    Metric {
        name: "litejoin_sink_dead_letters",
        kind: MetricType::Gauge,
        labels: &["sink"],
        help: "Results of a sink in the dead-letter queue",
        series: |status| of_sinks(status, |sink| sink.dead_letters.value() as f64),
    },
    Metric {
        name: "litejoin_sink_lag_epochs",
        kind: MetricType::Gauge,
        labels: &["sink"],
        help: "Epochs that a sink is behind",
        series: |status| of_sinks(status, |sink| sink.lag_epochs.value() as f64),
    },
    Metric {
        name: "litejoin_sink_clients",
        kind: MetricType::Gauge,
        labels: &["sink"],
        help: "Connected SSE clients",
        series: |status| of_sinks(status, |sink| sink.clients.value() as f64),
    },
    Metric {
        name: "litejoin_sink_circuit_open",
        kind: MetricType::Gauge,
        labels: &["sink"],
        help: "1 while a sink is left alone after repeated failures",
        series: |status| {
            of_sinks(status, |sink| f64::from(u8::from(sink.circuit_open.load(Ordering::Relaxed))))
        },
    },
    Metric {
        name: "litejoin_sink_degraded",
        kind: MetricType::Gauge,
        labels: &["sink"],
        help: "1 while all deliveries to a sink fail",
        series: |status| of_sinks(status, |sink| is_there(&sink.failing(clock::epoch_seconds()))),
    },
];

/// Writes all metrics.
pub(crate) fn encode(status: &Arc<Status>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(Arc::clone(status))));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape(Arc<Status>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let of_replica = if self.0.replication.files().is_some() { OF_REPLICA } else { &[] };
        for metric in [OF_WORKER, of_replica, OF_INPUT, OF_JOINS, OF_SINKS].into_iter().flatten() {
            let Metric { name, kind, labels, help, series } = metric;
            let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
            for (texts, value) in series(&self.0) {
                let labels: Vec<(&str, String)> = labels.iter().copied().zip(texts).collect();
                let encoder = family.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(value).encode(encoder)?,
                    _ => ConstGauge::new(value).encode(encoder)?,
                }
            }
        }
        Ok(())
    }
}

fn one(value: f64) -> Series {
    vec![(Vec::new(), value)]
}

fn flag(value: bool) -> Series {
    one(f64::from(u8::from(value)))
}

/// Values of things that have a name, which is the one label.
fn named(values: Vec<(String, f64)>) -> Series {
    values.into_iter().map(|(name, value)| (vec![name], value)).collect()
}

fn of_files(status: &Status, value: fn(&FileProgress) -> f64) -> Series {
    let files = status.replication.files().unwrap_or_default();
    files.into_iter().map(|(name, file)| (vec![name], value(&file))).collect()
}

fn of_topics(status: &Status) -> Series {
    let topics = status.topics.read().unwrap_or_else(PoisonError::into_inner);
    let mut changes = Series::new();
    for (name, topic) in topics.iter() {
        let counts = topic.counts();
        for (op, count) in [
            ("created", counts.created),
            ("updated", counts.updated),
            ("deleted", counts.deleted),
            ("unchanged", counts.unchanged),
            ("superseded", counts.superseded),
            ("stale", counts.stale),
            ("replayed", counts.replayed),
            ("expired", counts.expired),
        ] {
            changes.push((vec![name.to_string(), op.to_owned()], count as f64));
        }
    }
    changes
}

fn of_sizes(status: &Status, value: fn(&TopicStatus) -> f64) -> Series {
    let topics = status.topics.read().unwrap_or_else(PoisonError::into_inner);
    topics.iter().map(|(name, topic)| (vec![name.to_string()], value(topic))).collect()
}

fn of_sources(status: &Status, value: fn(&SourceStatus) -> f64) -> Series {
    named(status.sources.map(value))
}

/// The lag of each Kafka partition whose end is known.
fn of_partitions(status: &Status) -> Series {
    let mut lags = Series::new();
    for (source, partitions) in status.sources.map(|source| source.kafka.partitions()) {
        for ((kafka_topic, number), partition) in partitions {
            if let Some(lag) = partition.lag() {
                lags.push((vec![source.clone(), kafka_topic, number.to_string()], lag as f64));
            }
        }
    }
    lags
}

fn of_joins(status: &Status, value: fn(&JoinStatus) -> f64) -> Series {
    named(status.joins.map(value))
}

fn of_audits(status: &Status, value: fn(&AuditStatus) -> Option<f64>) -> Series {
    let known = status.joins.map(|join| value(&join.audit));
    named(known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

fn is_there<T>(value: &Option<T>) -> f64 {
    f64::from(u8::from(value.is_some()))
}

fn of_sinks(status: &Status, value: fn(&SinkStatus) -> f64) -> Series {
    named(status.sinks.map(value))
}
