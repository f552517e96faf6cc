//! The status of a Kafka source's partitions: how far each is read, and what was missed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::counters::{Counter, LastError};

/// How far a partition is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartitionStatus {
    /// All records below it are stored.
    pub(crate) next: u64,
    /// Where the partition ends, once the broker has said so.
    pub(crate) end: Option<u64>,
}

impl PartitionStatus {
    /// Offsets that are still to come.
    pub(crate) fn lag(self) -> Option<u64> {
        Some(self.end?.saturating_sub(self.next))
    }
}

/// By Kafka topic and partition.
pub(crate) type PartitionStatuses = BTreeMap<(String, i32), PartitionStatus>;

/// The status of a Kafka source; empty for sources of other kinds.
#[derive(Debug, Default)]
pub(crate) struct KafkaStatus {
    partitions: Mutex<PartitionStatuses>,
    /// Records that were gone before they were read.
    pub(crate) lost: Counter,
    /// The last records that were missed.
    pub(crate) loss: LastError,
    /// A fault that costs no data.
    pub(crate) warning: LastError,
}

impl KafkaStatus {
    pub(crate) fn show(&self, partitions: PartitionStatuses) {
        *self.partitions.lock().unwrap_or_else(PoisonError::into_inner) = partitions;
    }

    pub(crate) fn partitions(&self) -> PartitionStatuses {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `null` for a source that reads no Kafka, or none yet.
    pub(crate) fn json(&self) -> Value {
        let partitions = self.partitions();
        let (loss, warning) = (self.loss.text(), self.warning.text());
        if partitions.is_empty() && loss.is_none() && warning.is_none() {
            return Value::Null;
        }
        let lag: Option<u64> = partitions.values().map(|partition| partition.lag()).sum();
        let partitions: serde_json::Map<String, Value> = partitions
            .into_iter()
            .map(|((kafka_topic, number), partition)| {
                let value = json!({"next": partition.next, "end": partition.end, "lag": partition.lag()});
                (format!("{kafka_topic}/{number}"), value)
            })
            .collect();
        json!({
            "lag": lag,
            "partitions": partitions,
            "lost": self.lost.value(),
            "lastLoss": loss,
            "warning": warning,
        })
    }
}
