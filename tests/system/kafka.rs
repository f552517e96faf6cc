//! Kafka sources and sinks against Apache Kafka itself.

mod example;
mod faults;
mod keys;
mod memory;
mod security;
pub(crate) mod sink;
mod source;

use std::collections::BTreeMap;

use litejoin_tests::kafka::{KafkaCluster, Record};
use litejoin_tests::wait::until;
use litejoin_tests::worker::Worker;
use serde_json::Value;

/// A manifest with these sources, joins and sinks, each a list in one line or more.
fn manifest(sources: &str, joins: &str, sinks: &str) -> String {
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 4, flushInterval: 2ms}}
  admin: {{addr: "127.0.0.1:0"}}
  delivery: {{dlq: {{retryInterval: 500ms, maxBackoff: 2s}}}}
  sources:
{sources}
  joins:
{joins}
  sinks:
{sinks}
"#
    )
}

/// A name for a Kafka topic that no other test has.
pub(crate) fn unique(name: &str) -> String {
    format!("{name}-{:08x}", rand::random::<u32>())
}

/// A source that reads Kafka topics into `orders`.
fn orders_from(cluster: &KafkaCluster, kafka_topic: &str, more: &str) -> String {
    let brokers = cluster.brokers();
    format!(
        r#"    - {{name: events, topic: orders, kafka: {{brokers: "{brokers}", topics: ["{kafka_topic}"]{more}}}}}"#
    )
}

const ALL_ORDERS: &str =
    r#"    - {name: all_orders, query: "SELECT key, payload, _change FROM orders", sinks: [out]}"#;

const LIVE: &str = r#"    - {name: out, sse: {addr: "127.0.0.1:0"}}"#;

/// Waits until everything that is in Kafka is stored, by what the worker shows.
pub(crate) async fn caught_up(worker: &Worker, end: &BTreeMap<String, u64>) {
    until("everything in Kafka to be stored", async || {
        let status = worker.status().await;
        let partitions = status["sources"]["events"]["kafka"]["partitions"].as_object()?.clone();
        let is_there =
            |(name, end): (&String, &u64)| partitions.get(name)?["next"].as_u64().filter(|next| next >= end);
        end.iter().all(|entry| is_there(entry).is_some()).then_some(())
    })
    .await;
}

/// Where the partitions of some records end, as the worker names them.
pub(crate) fn ends(kafka_topic: &str, records: &[(i32, i64)]) -> BTreeMap<String, u64> {
    let mut ends = BTreeMap::new();
    for (partition, offset) in records {
        let end: &mut u64 = ends.entry(format!("{kafka_topic}/{partition}")).or_default();
        *end = (*end).max(u64::try_from(*offset).expect("not negative") + 1);
    }
    ends
}

/// The last value of each key, in the order of offsets within each partition; none where it was deleted last.
fn last_values(records: &[Record]) -> BTreeMap<String, Option<Value>> {
    let value = |text: &String| serde_json::from_str(text).expect("values are JSON");
    records
        .iter()
        .map(|record| (record.key.clone().expect("records have keys"), record.value.as_ref().map(value)))
        .collect()
}
