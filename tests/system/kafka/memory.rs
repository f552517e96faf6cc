//! A Kafka topic that is larger than memory should be, and shards that stand still.

use litejoin_tests::kafka;
use litejoin_tests::wait::until;
use litejoin_tests::worker::WorkerSite;
use serde_json::json;

use super::{ALL_ORDERS, LIVE, caught_up, ends, manifest, orders_from, unique};

/// Records, and bytes of each: 300 MB in all.
const RECORDS: u32 = 3_000;
const BYTES: usize = 100_000;

/// The memory that a worker may have: messages on their way to the shards (64 MiB), fetched records, and itself.
const MEMORY_MAX: u64 = 200 << 20;

/// Looks in a row that find the same, after which a worker has taken what it takes.
const LOOKS: u32 = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_that_stand_still_hold_up_reading_and_not_memory() {
    let cluster = kafka::shared().await;
    let topic = unique("orders");
    cluster.create_topic(&topic, 2).await;
    // Letters in random order, so that compression does not make the fetched records smaller.
    let text: String = (0..2 * BYTES).map(|_| char::from(b'a' + rand::random::<u8>() % 26)).collect();
    let producer = cluster.producer();
    let record = |n: u32| {
        let text = &text[n as usize..n as usize + BYTES];
        (format!("k{}", n % 40), Some(json!({"n": n, "text": text}).to_string()))
    };
    producer.send_all(&topic, (0..RECORDS).map(record)).await;
    let end = producer.send(&topic, "end", Some("1")).await;

    let site = WorkerSite::with(&manifest(&orders_from(cluster, &topic, ""), ALL_ORDERS, LIVE));
    let worker = site.run([]).with_variable("LITEJOIN_STALL", "batch-written:20").start().await;
    let (mut last, mut same, mut peak) = (0, 0, 0);
    until("the worker to take no more", async || {
        let status = worker.status().await;
        let inflight = status["inflightBytes"].as_u64().expect("a number");
        peak = peak.max(worker.memory_bytes());
        let is_stuck = inflight > 0 && inflight == last;
        same = if is_stuck { same + 1 } else { 0 };
        last = inflight;
        (same >= LOOKS).then_some(())
    })
    .await;
    let accepted = worker.status().await["sources"]["events"]["accepted"].as_u64().expect("a counter");
    assert!(accepted < u64::from(RECORDS), "{accepted} records were stored while a shard stood still");
    assert!(peak < MEMORY_MAX, "{} MB while records wait in Kafka", peak >> 20);
    worker.kill().await;

    let worker = site.start().await;
    caught_up(&worker, &ends(&topic, &[end])).await;
    until("all keys", async || {
        let created = worker.status().await["topics"]["orders"].clone();
        (created["created"].as_u64() > Some(0)).then_some(())
    })
    .await;
    assert!(worker.memory_bytes() < MEMORY_MAX, "{} MB", worker.memory_bytes() >> 20);
    worker.stop().await;
}
