//! The records that a Kafka sink writes, and how often.

use std::collections::{BTreeMap, BTreeSet};

use litejoin_tests::ingest::message;
use litejoin_tests::kafka::{self, KafkaCluster, Record};
use litejoin_tests::repetition::seeds;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::{Value, json};

use super::{last_values, manifest, unique};

/// Places of the worker at which these tests let it die.
pub(crate) fn points() -> impl Iterator<Item = &'static str> {
    POINTS.into_iter()
}

const POINTS: [&str; 2] = ["kafka-transaction-written", "kafka-transaction-committed"];

const TOTALS: &str = r#"    - name: totals
      query: |
        SELECT payload->>'customer' AS customer, count(*) AS orders FROM orders GROUP BY payload->>'customer'
      sinks: [out]"#;

/// A pipeline from HTTP to Kafka.
pub(super) fn pipeline(cluster: &KafkaCluster, topic: &str, more: &str) -> String {
    let brokers = cluster.brokers();
    manifest(
        r#"    - {name: ingest, http: {addr: "127.0.0.1:0", topics: [orders]}}"#,
        TOTALS,
        &format!(r#"    - {{name: out, kafka: {{brokers: "{brokers}", topic: "{topic}"{more}}}}}"#),
    )
}

pub(super) async fn sink(worker: &Worker) -> Value {
    worker.status().await["sinks"]["out"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_are_records_by_their_keys() {
    let cluster = kafka::shared().await;
    let topic = unique("totals");
    cluster.create_topic(&topic, 3).await;
    let site = WorkerSite::with(&pipeline(cluster, &topic, ""));
    let worker = site.start().await;
    let ingest = worker.ingest();
    ingest.put("orders", "o1", json!({"customer": "ada"})).await;
    ingest.put("orders", "o2", json!({"customer": 7})).await;
    let out = cluster.follow(&topic);
    out.wait_for(2).await;
    ingest.put("orders", "o1", json!({"customer": 7})).await;
    let records = out.wait_for(4).await;
    let keys: BTreeSet<String> = records
        .iter()
        .map(|record| {
            let value = record.value.as_ref().map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
            if let Some(value) = &value {
                assert_eq!(value["id"], *record.headers["id"]);
                assert_eq!(value["epoch"].to_string(), record.headers["epoch"]);
                assert_eq!(value["op"], *record.headers["op"]);
            }
            assert_eq!(record.headers["query"], "totals");
            let key = record.key.as_deref().expect("records have keys");
            format!(
                "{key} {} {}",
                record.headers["op"],
                value.map_or(Value::Null, |value| value["rows"].clone())
            )
        })
        .collect();
    let expected = [
        r#"ada created [{"customer":"ada","orders":1}]"#,
        r#"7 created [{"customer":7,"orders":1}]"#,
        r#"ada deleted null"#,
        r#"7 updated [{"customer":7,"orders":2}]"#,
    ];
    assert_eq!(keys, expected.map(str::to_owned).into());
    let partitions: BTreeMap<&str, BTreeSet<i32>> =
        records.iter().fold(BTreeMap::new(), |mut all, record| {
            all.entry(record.key.as_deref().unwrap_or_default()).or_default().insert(record.partition);
            all
        });
    assert!(partitions.values().all(|of_key| of_key.len() == 1), "a key keeps its partition: {partitions:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_a_topic_refuses_become_dead_letters_and_the_rest_gets_through() {
    let cluster = kafka::shared().await;
    for more in ["", ", transactional: true"] {
        let topic = unique("totals");
        let site = WorkerSite::with(&pipeline(cluster, &topic, more));
        let worker = site.start().await;
        let ingest = worker.ingest();
        let missing = format!("there is no Kafka topic {topic:?}; make it");
        until("the missing topic to be shown", async || {
            (sink(&worker).await["lastError"] == *missing).then_some(())
        })
        .await;
        cluster.create_topic_with(&topic, 1, &[("max.message.bytes", "2000")]).await;
        let long = format!("{}{}", "x".repeat(1_000), rand_text(3_000));
        // Both orders are of one epoch, so of one call of the sink: a record that is too large must not fail the other.
        let orders = [("o1", long.as_str()), ("o2", "short")];
        let orders = orders.map(|(key, customer)| message("orders", key, json!({"customer": customer})));
        ingest.send(&orders).await;
        let out = cluster.follow(&topic);
        let records = out.wait_for(1).await;
        assert_eq!(records[0].key.as_deref(), Some("short"), "{more}");
        let reason =
            format!("the record is larger than the Kafka topic {topic:?} takes; raise its max.message.bytes");
        until("the dead letter", async || {
            let sink = sink(&worker).await;
            (sink["deadLetters"] == 1 && sink["delivered"] == 1).then_some(())
        })
        .await;
        assert_eq!(dead_letters(&site), [reason], "{more}");
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_are_too_large_only_together_get_through() {
    let cluster = kafka::shared().await;
    for more in ["", ", transactional: true"] {
        let topic = unique("totals");
        cluster.create_topic_with(&topic, 1, &[("max.message.bytes", "2000")]).await;
        let site = WorkerSite::with(&pipeline(cluster, &topic, more));
        let worker = site.start().await;
        let customers: BTreeSet<String> = (0..200).map(|_| rand_text(100)).collect();
        let orders: Vec<Value> = customers
            .iter()
            .map(|customer| message("orders", customer, json!({"customer": customer})))
            .collect();
        worker.ingest().send(&orders).await;
        until("all to be delivered", async || {
            (sink(&worker).await["delivered"] == customers.len()).then_some(())
        })
        .await;
        assert_eq!(sink(&worker).await["deadLetters"], 0, "{more}");
        let records = cluster.follow(&topic).wait_for(customers.len()).await;
        let sent: BTreeSet<String> = records.into_iter().filter_map(|record| record.key).collect();
        assert_eq!(sent, customers, "{more}");
        worker.stop().await;
    }
}

/// Text that does not compress.
fn rand_text(length: usize) -> String {
    (0..length).map(|_| char::from(b'a' + rand::random::<u8>() % 26)).collect()
}

#[expect(clippy::disallowed_methods, reason = "the file is read as a user would read it")]
pub(super) fn dead_letters(site: &WorkerSite) -> Vec<String> {
    let dlq = rusqlite::Connection::open(site.data_dir().join("dlq.db")).expect("the queue is a database");
    let mut statement = dlq.prepare("SELECT reason FROM letters").expect("the queue has dead letters");
    let rows = statement.query_map([], |row| row.get(0)).expect("the queue can be read");
    rows.collect::<Result<_, _>>().expect("the queue can be read")
}

/// Each result is there once, each key in the order of its results, and the last of each is right.
fn assert_once(records: &[Record], expected: &BTreeMap<String, u64>, what: &str) {
    let mut ids = BTreeSet::new();
    let mut last: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for record in records {
        let id = &record.headers["id"];
        assert!(ids.insert(id.clone()), "{what}: {id} was written twice");
        let mut parts = id.split('.').skip(1).map(|part| part.parse::<u64>().expect("a number"));
        let position = (parts.next().expect("an epoch"), parts.next().expect("a number"));
        let before = last.insert(record.key.as_deref().expect("a key"), position);
        assert!(before.is_none_or(|before| before < position), "{what}: {id} after {before:?}");
    }
    let found: BTreeMap<String, u64> = last_values(records)
        .into_iter()
        .map(|(key, value)| {
            (key, value.expect("nothing was deleted")["rows"][0]["orders"].as_u64().expect("a count"))
        })
        .collect();
    assert_eq!(&found, expected, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committed_results_are_there_once_whenever_the_worker_dies() {
    let cluster = kafka::shared().await;
    let topic = unique("totals");
    cluster.create_topic(&topic, 2).await;
    let site = WorkerSite::with(&pipeline(cluster, &topic, ", transactional: true"));
    let (mut orders, mut expected) = (0_u64, BTreeMap::<String, u64>::new());
    let mut deaths = Vec::new();
    for point in POINTS.into_iter().chain(["delivered", "cursor-moved"]) {
        deaths.extend(seeds(2, 10).into_iter().map(|n| format!("{point}:{n}")));
    }
    for fault in deaths {
        eprintln!("LITEJOIN_FAULT={fault}");
        let mut worker = site.run([]).with_variable("LITEJOIN_FAULT", &fault).start().await;
        let ingest = worker.ingest();
        let before = orders;
        while worker.is_running() {
            assert!(orders < before + 10_000, "{fault} is not reached");
            let customer = format!("c{}", orders % 3);
            let message = litejoin_tests::ingest::message(
                "orders",
                &format!("o{orders}"),
                json!({"customer": customer}),
            );
            let Ok(answer) = ingest.try_send(&[message]).await else { continue };
            if answer.status == 200 {
                *expected.entry(customer).or_default() += 1;
                orders += 1;
            }
        }
        worker.ended().await;
        // The present message may be stored without an answer; sending it again changes nothing.
        let worker = site.start().await;
        let customer = format!("c{}", orders % 3);
        worker.ingest().put("orders", &format!("o{orders}"), json!({"customer": customer})).await;
        *expected.entry(customer).or_default() += 1;
        orders += 1;
        until("the results to be committed", async || {
            let records = cluster.read(&topic).await;
            let last = last_values(&records);
            let count = |value: &Option<Value>| value.as_ref()?["rows"][0]["orders"].as_u64();
            expected.iter().all(|(key, orders)| last.get(key).and_then(count) == Some(*orders)).then_some(())
        })
        .await;
        worker.stop().await;
        assert_once(&cluster.read(&topic).await, &expected, &fault);
    }
}
