//! `/metrics`: the counters of [`Status`] in the Prometheus text format.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Status;
use super::config::ReloadOutcome;
use super::replication::FileProgress;

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

/// Values of one metric with their labels.
type Series = Vec<(Vec<(&'static str, String)>, f64)>;

/// Values that each have a name, as a metric that has it for its one label.
fn series(label: &'static str, values: Vec<(String, f64)>) -> Series {
    values.into_iter().map(|(name, value)| (vec![(label, name)], value)).collect()
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = &self.0;
        let mut metric =
            |name: &str, help: &str, kind: MetricType, series: Series| -> Result<(), fmt::Error> {
                let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
                for (labels, value) in series {
                    let labels: Vec<(&str, String)> = labels;
                    let encoder = metric.encode_family(&labels)?;
                    match kind {
                        MetricType::Counter => ConstCounter::new(value).encode(encoder)?,
                        _ => ConstGauge::new(value).encode(encoder)?,
                    }
                }
                Ok(())
            };
        let one = |value: f64| vec![(Vec::new(), value)];
        let flag = |value: bool| f64::from(u8::from(value));
        let (counter, gauge) = (MetricType::Counter, MetricType::Gauge);

        metric("litejoin_ready", "1 while the worker serves", gauge, one(flag(status.unready().is_none())))?;
        let reloads = ReloadOutcome::ALL.map(|outcome| {
            (vec![("outcome", outcome.as_str().to_owned())], status.config.reloads(outcome) as f64)
        });
        metric(
            "litejoin_config_reloads",
            "Reloads of the config by what became of them",
            counter,
            Series::from(reloads),
        )?;
        metric(
            "litejoin_config_last_reload_successful",
            "0 while the config that was asked for last is not the one in force, since it was refused",
            gauge,
            one(flag(status.config.is_up_to_date())),
        )?;
        metric(
            "litejoin_epoch_applied",
            "Number of the last epoch whose results are stored",
            gauge,
            one(status.epoch_applied.value() as f64),
        )?;
        metric(
            "litejoin_outbox_bytes",
            "Results that sinks may still ask for",
            gauge,
            one(status.outbox_bytes.value() as f64),
        )?;
        metric(
            "litejoin_outbox_compacted",
            "Results that a lagging sink never got, since a newer one of the same key had come",
            counter,
            one(status.outbox_compacted.value() as f64),
        )?;
        metric(
            "litejoin_ingest_inflight_bytes",
            "Messages on their way from sources to shards",
            gauge,
            one(status.inflight_bytes.value() as f64),
        )?;
        metric(
            "litejoin_storage_failing",
            "1 while data can't be stored",
            gauge,
            one(flag(status.storage_error().is_some())),
        )?;

        if let Some(files) = status.replication.files() {
            let now = crate::clock::epoch_seconds();
            metric(
                "litejoin_replication_lag_seconds",
                "How long ago the replica last had everything",
                gauge,
                one(status.replication.lag(now).as_secs_f64()),
            )?;
            metric(
                "litejoin_replication_ready",
                "1 once a restore would take what this worker has replicated",
                gauge,
                one(flag(status.replication.is_ready())),
            )?;
            metric(
                "litejoin_replication_failing",
                "1 while the replica can't be brought up to date",
                gauge,
                one(flag(status.replication.error.text().is_some())),
            )?;
            let of_files = |value: fn(&FileProgress) -> f64| -> Series {
                series("file", files.iter().map(|(name, file)| (name.clone(), value(file))).collect())
            };
            metric(
                "litejoin_replicated_transaction",
                "The last transaction of a file that is in the replica, as Litestream counts them",
                gauge,
                of_files(|file| file.replicated_txid as f64),
            )?;
            metric(
                "litejoin_wal_bytes",
                "What a file's WAL holds on disk; it is kept short also while the replica is away",
                gauge,
                of_files(|file| file.wal_bytes as f64),
            )?;
        }

        let topics = status.topics.read().unwrap_or_else(std::sync::PoisonError::into_inner);
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
                changes.push((vec![("topic", name.to_string()), ("op", op.to_owned())], count as f64));
            }
        }
        metric("litejoin_topic_messages", "Messages by what they did to their topic", counter, changes)?;

        let of_sources = |value: fn(&super::source::SourceStatus) -> f64| -> Series {
            series("source", status.sources.map(value))
        };
        metric(
            "litejoin_source_accepted",
            "Messages that a source has stored",
            counter,
            of_sources(|source| source.accepted.value() as f64),
        )?;
        metric(
            "litejoin_source_refused",
            "Messages that a source has refused; those of files and Kafka are in the dead-letter queue",
            counter,
            of_sources(|source| source.refused.value() as f64),
        )?;
        let mut lags = Series::new();
        for (source, partitions) in status.sources.map(|source| source.kafka.partitions()) {
            for ((kafka_topic, number), partition) in partitions {
                let Some(lag) = partition.lag() else { continue };
                let labels = vec![
                    ("source", source.clone()),
                    ("kafka_topic", kafka_topic),
                    ("kafka_partition", number.to_string()),
                ];
                lags.push((labels, lag as f64));
            }
        }
        metric(
            "litejoin_source_lag_records",
            "Offsets between what is stored of a Kafka partition and its end",
            gauge,
            lags,
        )?;
        metric(
            "litejoin_source_lost_records",
            "Records that Kafka had removed before they were read",
            counter,
            of_sources(|source| source.kafka.lost.value() as f64),
        )?;

        let of_joins = |value: fn(&super::join::JoinStatus) -> f64| -> Series {
            series("join", status.joins.map(value))
        };
        metric(
            "litejoin_join_evaluations",
            "Evaluations of a join",
            counter,
            of_joins(|join| join.evaluations.value() as f64),
        )?;
        metric(
            "litejoin_join_evaluation_seconds",
            "Time spent on evaluating a join",
            counter,
            of_joins(|join| join.evaluation_microseconds.value() as f64 / 1e6),
        )?;
        metric(
            "litejoin_join_results_changed",
            "Results of a join that have changed",
            counter,
            of_joins(|join| join.results_changed.value() as f64),
        )?;
        metric(
            "litejoin_join_full_evaluations",
            "Evaluations of a join that ran over everything",
            counter,
            of_joins(|join| join.evaluations_full.value() as f64),
        )?;
        metric(
            "litejoin_join_vm_steps",
            "Steps of SQLite's virtual machine that evaluating a join by key has taken",
            counter,
            of_joins(|join| join.steps.value() as f64),
        )?;
        metric(
            "litejoin_join_probes",
            "Look-ups in shards that evaluating a join by key has taken",
            counter,
            of_joins(|join| join.probes.value() as f64),
        )?;
        let classes =
            status.joins.map(super::join::JoinStatus::class).into_iter().filter_map(|(name, class)| {
                Some((vec![("join", name), ("class", class?.name.to_owned())], 1.0))
            });
        metric(
            "litejoin_join_class",
            "1 for how a join is kept current: by key, or by an evaluation in full at each change",
            gauge,
            classes.collect(),
        )?;
        metric(
            "litejoin_join_failing",
            "1 while a join's query fails",
            gauge,
            of_joins(|join| f64::from(u8::from(join.error.text().is_some()))),
        )?;

        let of_audits = |value: fn(&super::audit::AuditStatus) -> Option<f64>| -> Series {
            let known = status.joins.map(|join| value(&join.audit));
            series("join", known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
        };
        metric(
            "litejoin_audits",
            "Comparisons of a join's stored results with what its query yields",
            counter,
            of_audits(|audit| Some(audit.count() as f64)),
        )?;
        metric(
            "litejoin_audit_differences",
            "Stored results of a join that differed from what its query yields, by the last audit; must be 0",
            gauge,
            of_audits(|audit| Some(audit.differences()? as f64)),
        )?;
        metric(
            "litejoin_audit_last_success_timestamp_seconds",
            "When an audit last found that all stored results of a join are what its query yields",
            gauge,
            of_audits(|audit| Some(audit.clean_at()? as f64)),
        )?;

        let of_sinks = |value: fn(&super::sink::SinkStatus) -> f64| -> Series {
            series("sink", status.sinks.map(value))
        };
        metric(
            "litejoin_sink_delivered",
            "Results that a sink has taken",
            counter,
            of_sinks(|sink| sink.delivered.value() as f64),
        )?;
        metric(
            "litejoin_sink_failed",
            "Deliveries to a sink that failed",
            counter,
            of_sinks(|sink| sink.failed.value() as f64),
        )?;
        metric(
            "litejoin_sink_dropped",
            "Results that a best-effort sink did not take",
            counter,
            of_sinks(|sink| sink.dropped.value() as f64),
        )?;
        metric(
            "litejoin_sink_dead_letters",
            "Results of a sink in the dead-letter queue",
            gauge,
            of_sinks(|sink| sink.dead_letters.value() as f64),
        )?;
        metric(
            "litejoin_sink_lag_epochs",
            "Epochs that a sink is behind",
            gauge,
            of_sinks(|sink| sink.lag_epochs.value() as f64),
        )?;
        metric(
            "litejoin_sink_clients",
            "Connected SSE clients",
            gauge,
            of_sinks(|sink| sink.clients.value() as f64),
        )?;
        metric(
            "litejoin_sink_circuit_open",
            "1 while a sink is left alone after repeated failures",
            gauge,
            of_sinks(|sink| f64::from(u8::from(sink.circuit_open.load(Ordering::Relaxed)))),
        )
    }
}
