//! Keys of records and keys of rows and results, which are not always the same; and offsets that have no record.

use std::collections::BTreeSet;

use litejoin_tests::ingest::message;
use litejoin_tests::kafka::{self, Record};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::{Value, json};

use super::sink::{dead_letters, pipeline, sink};
use super::source::{orders_site, rejected, source, wait_for};
use super::{ALL_ORDERS, LIVE, caught_up, ends, manifest, orders_from, unique};

/// Key, change and rows of each record.
fn shown(records: &[Record]) -> Vec<String> {
    records
        .iter()
        .map(|record| {
            let key = record.key.as_deref().expect("records have keys");
            let value = record.value.as_ref().map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
            let rows = value.map_or(Value::Null, |value| value["rows"].clone());
            format!("{key} {} {rows}", record.headers["op"])
        })
        .collect()
}

async fn dead_letter_count(worker: &Worker, count: u64) {
    until(&format!("{count} dead letters"), async || {
        (sink(worker).await["deadLetters"] == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_result_keys_that_would_be_one_record_key_the_second_is_refused_by_name() {
    let cluster = kafka::shared().await;
    for more in ["", ", transactional: true"] {
        let topic = unique("totals");
        cluster.create_topic(&topic, 1).await;
        let site = WorkerSite::with(&pipeline(cluster, &topic, more));
        let worker = site.start().await;
        let out = cluster.follow(&topic);
        worker.ingest().put("orders", "o1", json!({"customer": 7})).await;
        out.wait_for(1).await;
        worker.ingest().put("orders", "o2", json!({"customer": "7"})).await;
        dead_letter_count(&worker, 1).await;
        let reason = "the result keys \"7\" and 7 would both have records of the key 7, and that of 7 was there first; write \
                      keyFormat: json in the sink's kafka and another topic, or tell the keys apart in the query; once 7 is \
                      gone, litejoin dlq retry";
        assert_eq!(dead_letters(&site), [reason], "{more}");
        worker.stop().await;

        // The first one goes on after a restart, and a deletion of the second takes nothing of it away.
        let worker = site.start().await;
        worker.ingest().put("orders", "o3", json!({"customer": 7})).await;
        out.wait_for(2).await;
        worker.ingest().put("orders", "o2", Value::Null).await;
        dead_letter_count(&worker, 0).await;
        // Once the first is gone, the record is free for the other.
        worker.ingest().put("orders", "o3", Value::Null).await;
        out.wait_for(3).await;
        worker.ingest().put("orders", "o1", Value::Null).await;
        worker.ingest().put("orders", "o4", json!({"customer": "7"})).await;
        let records = out.wait_for(5).await;
        let expected = [
            r#"7 created [{"customer":7,"orders":1}]"#,
            r#"7 updated [{"customer":7,"orders":2}]"#,
            r#"7 updated [{"customer":7,"orders":1}]"#,
            r#"7 deleted null"#,
            r#"7 created [{"customer":"7","orders":1}]"#,
        ];
        assert_eq!(shown(&records), expected, "{more}");
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_are_json_are_told_apart() {
    let cluster = kafka::shared().await;
    let topic = unique("totals");
    cluster.create_topic(&topic, 1).await;
    let site = WorkerSite::with(&pipeline(cluster, &topic, ", keyFormat: json"));
    let worker = site.start().await;
    let orders = [json!({"customer": 7}), json!({"customer": "7"}), json!({}), json!({"customer": "null"})];
    let orders = orders.into_iter().enumerate();
    let orders: Vec<Value> =
        orders.map(|(n, payload)| message("orders", &format!("o{n}"), payload)).collect();
    worker.ingest().send(&orders).await;
    let records = cluster.follow(&topic).wait_for(4).await;
    let keys: BTreeSet<&str> = records.iter().filter_map(|record| record.key.as_deref()).collect();
    assert_eq!(keys, BTreeSet::from(["7", "\"7\"", "null", "\"null\""]));
    assert_eq!(sink(&worker).await["deadLetters"], 0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_to_come_behind_the_last_marker_of_a_transaction() {
    let cluster = kafka::shared().await;
    let topic = unique("totals");
    cluster.create_topic(&topic, 1).await;
    let site = WorkerSite::with(&pipeline(cluster, &topic, ", transactional: true"));
    let worker = site.start().await;
    worker.ingest().put("orders", "o1", json!({"customer": "ada"})).await;
    cluster.follow(&topic).wait_for(1).await;
    worker.stop().await;

    let group = unique("group");
    let from = orders_from(cluster, &topic, &format!(", groupId: {group}"));
    let site = WorkerSite::with(&manifest(&from, ALL_ORDERS, LIVE));
    // It is so as well for a start behind the last record.
    for _ in 0..2 {
        let worker = site.start().await;
        let kafka = until("no lag", async || {
            let kafka = source(&worker).await["kafka"].clone();
            (kafka["lag"] == 0).then_some(kafka)
        })
        .await;
        // A record and a marker.
        assert_eq!(kafka["partitions"][format!("{topic}/0")], json!({"next": 2, "end": 2, "lag": 0}));
        until("the broker to know", async || {
            (cluster.committed(&group, &topic, 0).await == Some(2)).then_some(())
        })
        .await;
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_finds_the_row_by_a_path_in_its_own_key() {
    let own_key = r#"{"id": 1}"#;
    for (more, left, refused) in [
        (", recordKeyPath: id", "", &[][..]),
        (
            ", keyPath: after.id",
            "1",
            &[
                "keyPath \"after.id\" finds nothing in the payload, or null; where the record's own key holds it, write \
                 recordKeyPath instead",
                "a record without a value deletes by its own key, which is an object, and keyPath gives rows other keys; \
                 write recordKeyPath instead of keyPath, such as \"id\" for {\"id\": 1}",
            ],
        ),
    ] {
        let (cluster, topic, site) = orders_site(1, more).await;
        let producer = cluster.producer();
        let keys = "SELECT coalesce(group_concat(key), '') FROM orders";
        let worker = site.start().await;
        producer.send(&topic, own_key, Some(r#"{"op": "c", "after": {"id": 1, "amount": 5}}"#)).await;
        wait_for(&site, keys, json!("1")).await;
        producer.send(&topic, own_key, Some(r#"{"op": "d", "before": {"id": 1}, "after": null}"#)).await;
        let end = producer.send(&topic, own_key, None).await;
        caught_up(&worker, &ends(&topic, &[end])).await;
        wait_for(&site, keys, json!(left)).await;
        worker.stop().await;
        let rejected = rejected(&site);
        assert_eq!(rejected.len(), refused.len(), "{rejected:?}");
        for (found, expected) in rejected.iter().zip(refused) {
            assert!(found.contains(expected), "{found}");
        }
    }
}
