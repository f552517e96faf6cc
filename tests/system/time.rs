//! Effects of time, and of the messages' own timestamps: time bounds in queries, stale messages,
//! tombstones, `_change`; and a query that fails while the worker runs.

use expect_test::expect;
use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::{Value, json};

/// A pipeline with a topic `orders`, one join, and more fields of the spec.
fn manifest(query: &str, more: &str) -> String {
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 2}}
  admin: {{addr: "127.0.0.1:0"}}
  sources:
    - name: ingest
      http: {{addr: "127.0.0.1:0", topics: [orders]}}
  joins:
    - {{name: watched, query: "{query}", sinks: [live]}}
    - {{name: keys, query: "SELECT key FROM orders", sinks: [live]}}
  sinks:
    - name: live
      sse: {{addr: "127.0.0.1:0"}}
  {more}
"#
    )
}

async fn subscribe(worker: &Worker) -> Subscription {
    let mut client = Subscription::open(worker.address("sink live"), "join=watched&replay=true", None).await;
    client.replayed().await;
    client
}

async fn next(client: &mut Subscription) -> String {
    let event = client.expect_next().await.result();
    format!("{} {} {}", event.op, event.key, Value::Array(event.rows))
}

/// A message with a time of its own.
fn at(timestamp: i64, key: &str, payload: Value) -> Value {
    let mut message = message("orders", key, payload);
    message["timestamp"] = json!(timestamp);
    message
}

async fn count(worker: &Worker) -> usize {
    worker.snapshot("live", "watched", 0).await.1.rows.len()
}

#[tokio::test]
async fn a_row_that_leaves_by_a_time_bound_of_the_query_is_sent() {
    let site =
        WorkerSite::with(&manifest("SELECT key FROM orders WHERE timestamp > unixepoch('now') - 2", ""));
    let worker = site.start().await;
    let mut client = subscribe(&worker).await;
    worker.ingest().put("orders", "o1", json!({})).await;
    assert_eq!(next(&mut client).await, r#"created "o1" [{"key":"o1"}]"#);
    assert_eq!(next(&mut client).await, r#"deleted "o1" []"#);
    let (_, keys) = worker.snapshot("live", "keys", 0).await;
    assert_eq!(keys.rows.len(), 1, "the row itself is still there");
}

#[tokio::test]
async fn a_time_bound_that_was_crossed_while_the_worker_was_down_is_sent_at_its_start() {
    let site =
        WorkerSite::with(&manifest("SELECT key FROM orders WHERE timestamp > unixepoch('now') - 3", ""));
    let worker = site.start().await;
    let mut client = subscribe(&worker).await;
    worker.ingest().put("orders", "o1", json!({})).await;
    assert_eq!(next(&mut client).await, r#"created "o1" [{"key":"o1"}]"#);
    worker.kill().await;
    client.rest().await;
    let worker = site.start().await;
    let id = client.last_event_id.as_deref();
    let mut client = Subscription::open(worker.address("sink live"), "join=watched", id).await;
    assert_eq!(next(&mut client).await, r#"deleted "o1" []"#);
}

#[tokio::test]
async fn messages_that_come_too_late_are_ignored() {
    let site = WorkerSite::with(&manifest("SELECT key, payload->>'n' AS n, timestamp FROM orders", ""));
    let worker = site.start().await;
    let ingest = worker.ingest();
    let now = worker_time(&ingest, &worker).await;
    let mut client = subscribe(&worker).await;
    for message in [
        at(now - 100, "o1", json!({"n": 1})),
        at(now - 200, "o1", json!({"n": 2})), // older than the stored row
        at(now - 50, "o1", json!({"n": 3})),
        at(now - 60, "o1", Value::Null), // an old delete
        at(now - 40, "o1", Value::Null),
        at(now - 45, "o1", json!({"n": 4})), // older than the delete: it can't revive the key
        at(now - 30, "o1", json!({"n": 5})),
        at(now - 20, "o2", Value::Null), // a delete before its upsert
        at(now - 25, "o2", json!({"n": 6})),
        at(now - 10, "o2", json!({"n": 7})),
    ] {
        let epoch = ingest.send(&[message]).await;
        // Each message gets an epoch of its own, however busy the machine is.
        worker.snapshot("live", "watched", epoch).await;
    }
    let mut said = String::new();
    for _ in 0..5 {
        let event = client.expect_next().await.result();
        said += &format!(
            "{} {} {}\n",
            event.op,
            event.key,
            event.rows.first().map_or(Value::Null, |row| row["n"].clone())
        );
    }
    expect![[r#"
        created "o1" 1
        updated "o1" 3
        deleted "o1" null
        created "o1" 5
        created "o2" 7
    "#]]
    .assert_eq(&said);
    assert_eq!(worker.status().await["topics"]["orders"]["stale"], 4);
}

#[tokio::test]
async fn a_delete_is_remembered_for_as_long_as_is_asked_for() {
    let retention = "retention: {duration: 720h, cleanInterval: 100ms, tombstoneDuration: 1s}";
    let site = WorkerSite::with(&manifest("SELECT key, timestamp FROM orders", retention));
    let worker = site.start().await;
    let ingest = worker.ingest();
    let now = worker_time(&ingest, &worker).await;
    ingest.send(&[at(now - 40, "o1", Value::Null)]).await;
    until("the delete to be forgotten, and an older message to count", async || {
        let epoch = ingest.send(&[at(now - 45, "o1", json!({"n": 1}))]).await;
        let (_, results) = worker.snapshot("live", "watched", epoch).await;
        (results.rows.len() == 2).then_some(())
    })
    .await;
    assert_eq!(worker.status().await["topics"]["orders"]["expired"], 0, "the row stays");
}

/// The worker's clock, as it stamps a row.
async fn worker_time(ingest: &Ingest, worker: &Worker) -> i64 {
    let epoch = ingest.put("orders", "clock", json!({})).await;
    let (_, results) = worker.snapshot("live", "watched", epoch).await;
    let row: Value =
        serde_json::from_str(&results.rows.values().next().expect("a row")[0]).expect("a row is JSON");
    row["timestamp"].as_i64().expect("a time is a number")
}

#[tokio::test]
async fn queries_may_read_what_a_write_has_changed() {
    let site = WorkerSite::with(&manifest("SELECT key, _change AS what FROM orders", ""));
    let worker = site.start().await;
    let mut client = subscribe(&worker).await;
    let mut said = String::new();
    for payload in [json!({"n": 1, "a": 1}), json!({"n": 2, "a": 1}), json!({"n": 2, "b": 1}), json!([1])] {
        worker.ingest().put("orders", "o1", payload).await;
        said += &format!("{}\n", next(&mut client).await);
    }
    expect![[r#"
        created "o1" [{"key":"o1","what":"{\"op\":\"created\"}"}]
        updated "o1" [{"key":"o1","what":"{\"op\":\"updated\",\"fields\":[\"n\"]}"}]
        updated "o1" [{"key":"o1","what":"{\"op\":\"updated\",\"fields\":[\"b\",\"a\"]}"}]
        updated "o1" [{"key":"o1","what":"{\"op\":\"updated\"}"}]
    "#]]
    .assert_eq(&said);
}

#[tokio::test]
async fn a_query_that_fails_leaves_the_other_joins_alone() {
    let site = WorkerSite::with(&manifest("SELECT 1 AS k, sum(payload->>'n') AS s FROM orders", ""));
    let worker = site.start().await;
    let ingest = worker.ingest();
    // The sum of no rows is a result too.
    until("the first evaluation", async || (count(&worker).await == 1).then_some(())).await;
    let mut client = subscribe(&worker).await;
    ingest.put("orders", "o1", json!({"n": i64::MAX})).await;
    assert_eq!(client.expect_next().await.result().op, "updated");
    let epoch = ingest.put("orders", "o2", json!({"n": i64::MAX})).await;
    assert_eq!(worker.snapshot("live", "keys", epoch).await.1.rows.len(), 2, "the other join goes on");
    assert_eq!(count(&worker).await, 1, "results stay as they were");
    let status = worker.status().await;
    expect!["the query failed: integer overflow"]
        .assert_eq(status["joins"]["watched"]["lastError"].as_str().expect("the join says what is wrong"));
    assert_eq!(status["joins"]["keys"]["lastError"], Value::Null);

    // The query fails after a restart too, and is right again once the data is.
    worker.kill().await;
    let worker = site.start().await;
    let ingest = worker.ingest();
    let epoch = ingest.put("orders", "o3", json!({"n": 0})).await;
    worker.snapshot("live", "keys", epoch).await;
    assert!(worker.status().await["joins"]["watched"]["lastError"].is_string());
    let epoch = ingest.put("orders", "o2", json!({"n": -1})).await;
    let (_, results) = worker.snapshot("live", "watched", epoch).await;
    let row = &results.rows.values().next().expect("a row")[0];
    assert_eq!(*row, json!({"k": 1, "s": i64::MAX - 1}).to_string());
    assert_eq!(worker.status().await["joins"]["watched"]["lastError"], Value::Null);
}
