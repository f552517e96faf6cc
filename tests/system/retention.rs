//! Retention: what leaves, what stays, and what sinks are told. The worker's clock is set by hand, so that days pass at
//! once.

use expect_test::expect;
use litejoin_tests::ingest::message;
use litejoin_tests::server::{Reply, Server};
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::{Value, json};

const START: i64 = 1_700_000_000;
const DAY: i64 = 86_400;

/// Orders that come over HTTP, and customers that lie in a file.
fn manifest(query: &str, more: &str) -> String {
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 2}}
  admin: {{addr: "127.0.0.1:0"}}
  audit: {{enabled: false}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [orders, devices]}}}}
    - {{name: customers, file: {{path: customers.csv, topic: customers, keyColumns: [id]}}}}
  joins:
    - {{name: watched, query: "{query}", sinks: [live]}}
    - {{name: keys, query: "SELECT key FROM orders", sinks: [live]}}
  sinks:
    - {{name: live, sse: {{addr: "127.0.0.1:0"}}}}
  {more}
"#
    )
}

fn site(query: &str, more: &str) -> WorkerSite {
    let site = WorkerSite::with(&manifest(query, more));
    site.write("customers.csv", "id,name\nc1,Ada\n");
    site.set_clock(START);
    site
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

/// The rows of the join, as JSON.
async fn rows(worker: &Worker, join: &str, epoch: u64) -> Vec<String> {
    worker.snapshot("live", join, epoch).await.1.rows.into_values().flatten().collect()
}

/// Waits until a topic has lost so many rows.
async fn expired(worker: &Worker, topic: &str, count: u64) {
    until("rows to expire", async || {
        let status = worker.status().await;
        (status["topics"][topic]["expired"].as_u64() == Some(count)).then_some(())
    })
    .await;
}

const NAMED: &str = "SELECT o.key, c.payload->>'name' AS name FROM orders o LEFT JOIN customers c ON c.key = \
                     o.payload->>'customer'";

#[tokio::test]
async fn nothing_expires_unless_that_is_asked_for() {
    let site = site(NAMED, "retention: {cleanInterval: 100ms, tombstoneDuration: 1s}");
    let worker = site.start().await;
    let ingest = worker.ingest();
    ingest.put("orders", "o1", json!({"customer": "c1"})).await;
    ingest.put("orders", "gone", Value::Null).await;
    site.set_clock(START + 365 * DAY);
    // A tombstone of a year ago is forgotten, so a pass of the cleaner is over: an older message counts again.
    until("a pass of the cleaner", async || {
        let older = json!({"topic": "orders", "key": "gone", "payload": {}, "timestamp": START - 1});
        let epoch = ingest.send(&[older]).await;
        (rows(&worker, "keys", epoch).await.len() == 2).then_some(())
    })
    .await;
    assert!(rows(&worker, "watched", 0).await.contains(&r#"{"key":"o1","name":"Ada"}"#.to_owned()));
    assert_eq!(worker.status().await["topics"]["orders"]["expired"], 0);
}

#[tokio::test]
async fn reference_data_of_a_file_stays_beside_orders_that_leave() {
    let site = site(NAMED, "retention: {duration: 24h, cleanInterval: 100ms}");
    let worker = site.start().await;
    let ingest = worker.ingest();
    ingest.put("orders", "o1", json!({"customer": "c1"})).await;
    site.set_clock(START + 2 * DAY);
    expired(&worker, "orders", 1).await;
    let epoch = ingest.put("orders", "o2", json!({"customer": "c1"})).await;
    assert_eq!(rows(&worker, "watched", epoch).await, [r#"{"key":"o2","name":"Ada"}"#]);
    // The file is not read again at a restart: its place is stored.
    worker.stop().await;
    let worker = site.start().await;
    let epoch = worker.ingest().put("orders", "o3", json!({"customer": "c1"})).await;
    assert!(rows(&worker, "watched", epoch).await.contains(&r#"{"key":"o3","name":"Ada"}"#.to_owned()));
}

#[tokio::test]
async fn each_topic_has_an_age_of_its_own() {
    let more = "retention: {cleanInterval: 100ms}\n  topics: [{name: Orders, retention: 1h}, {name: customers, retention: 2h}]";
    let site = site(NAMED, more);
    let worker = site.start().await;
    let ingest = worker.ingest();
    ingest.put("orders", "o1", json!({"customer": "c1"})).await;
    ingest.put("devices", "d1", json!({})).await;
    site.set_clock(START + 3_601);
    expired(&worker, "orders", 1).await;
    let epoch = ingest.put("orders", "o2", json!({"customer": "c1"})).await;
    assert_eq!(rows(&worker, "watched", epoch).await, [r#"{"key":"o2","name":"Ada"}"#]);
    site.set_clock(START + 7_201);
    expired(&worker, "customers", 1).await;
    until("the name to go", async || {
        (rows(&worker, "watched", 0).await == [r#"{"key":"o2","name":null}"#]).then_some(())
    })
    .await;
    assert_eq!(worker.status().await["topics"]["devices"]["expired"], 0);

    // Other ages take effect while the worker runs.
    let other = more.replace("{name: Orders, retention: 1h}", "{name: devices, retention: 1h}");
    site.write("pipeline.yaml", manifest(NAMED, &other));
    worker.reload().await;
    site.set_clock(START + 400 * DAY);
    expired(&worker, "devices", 1).await;
    assert_eq!(worker.status().await["topics"]["orders"]["expired"], 1, "the second order stays for ever");
}

#[tokio::test]
async fn sinks_are_told_of_results_that_change_or_leave_by_expiry() {
    let counted = "SELECT payload->>'customer' AS customer, count(*) AS n FROM orders GROUP BY 1";
    let site = site(counted, "retention: {duration: 1h, cleanInterval: 100ms}");
    let worker = site.start().await;
    let ingest = worker.ingest();
    let mut client = subscribe(&worker).await;
    ingest.put("orders", "o1", json!({"customer": "c1"})).await;
    let mut said = next(&mut client).await;
    site.set_clock(START + 1_800);
    ingest.put("orders", "o2", json!({"customer": "c1"})).await;
    said += &format!("\n{}", next(&mut client).await);
    site.set_clock(START + 3_601);
    said += &format!("\n{}", next(&mut client).await);
    site.set_clock(START + 5_401);
    said += &format!("\n{}", next(&mut client).await);
    // The key is not buried: it may come back.
    ingest.put("orders", "o1", json!({"customer": "c1"})).await;
    said += &format!("\n{}\n", next(&mut client).await);
    expect![[r#"
        created "c1" [{"customer":"c1","n":1}]
        updated "c1" [{"customer":"c1","n":2}]
        updated "c1" [{"customer":"c1","n":1}]
        deleted "c1" []
        created "c1" [{"customer":"c1","n":1}]
    "#]]
    .assert_eq(&said);
}

#[tokio::test]
async fn results_that_leave_by_expiry_can_be_kept_quiet_and_those_that_change_can_not() {
    let counted = "SELECT payload->>'customer' AS customer, count(*) AS n FROM orders GROUP BY 1";
    let site = site(counted, "retention: {duration: 1h, cleanInterval: 100ms, emitExpiry: false}");
    let worker = site.start().await;
    let ingest = worker.ingest();
    let mut client = subscribe(&worker).await;
    ingest.send(&[message("orders", "o1", json!({"customer": "c1"}))]).await;
    let mut said = next(&mut client).await;
    site.set_clock(START + 1_800);
    ingest.put("orders", "o2", json!({"customer": "c1"})).await;
    said += &format!("\n{}", next(&mut client).await);
    site.set_clock(START + 3_601);
    said += &format!("\n{}", next(&mut client).await);
    site.set_clock(START + 5_401);
    expired(&worker, "orders", 2).await;
    until("the result to leave", async || rows(&worker, "watched", 0).await.is_empty().then_some(())).await;
    ingest.put("orders", "o3", json!({"customer": "c2"})).await;
    said += &format!("\n{}\n", next(&mut client).await);
    expect![[r#"
        created "c1" [{"customer":"c1","n":1}]
        updated "c1" [{"customer":"c1","n":2}]
        updated "c1" [{"customer":"c1","n":1}]
        created "c2" [{"customer":"c2","n":1}]
    "#]]
    .assert_eq(&said);
}

#[tokio::test]
async fn a_message_that_repeats_a_payload_keeps_its_row() {
    let site = site("SELECT key FROM devices", "retention: {duration: 1h, cleanInterval: 100ms}");
    let worker = site.start().await;
    let ingest = worker.ingest();
    let mut client = subscribe(&worker).await;
    ingest.put("devices", "steady", json!({"ok": true})).await;
    assert_eq!(next(&mut client).await, r#"created "steady" [{"key":"steady"}]"#);
    ingest.put("orders", "old", json!({})).await;
    let evaluations = async || worker.status().await["joins"]["watched"]["evaluations"].clone();
    let before = evaluations().await;
    for minute in 1..=90 {
        site.set_clock(START + 60 * minute);
        ingest.put("devices", "steady", json!({"ok": true})).await;
    }
    expired(&worker, "orders", 1).await;
    let topics = worker.status().await["topics"].clone();
    assert_eq!(topics["devices"]["expired"], 0);
    assert_eq!(topics["devices"]["unchanged"], 90);
    assert_eq!(evaluations().await, before, "nothing is evaluated for a payload that is there");
    ingest.put("devices", "other", json!({})).await;
    assert_eq!(
        next(&mut client).await,
        r#"created "other" [{"key":"other"}]"#,
        "no event came of what was repeated"
    );
}

#[tokio::test]
async fn a_query_that_reads_the_timestamp_sees_when_a_payload_was_repeated() {
    let site = site("SELECT key, timestamp FROM devices", "");
    let worker = site.start().await;
    let ingest = worker.ingest();
    let mut client = subscribe(&worker).await;
    for second in 0..3 {
        site.set_clock(START + second);
        ingest.put("devices", "steady", json!({"ok": true})).await;
        let row = format!("[{{\"key\":\"steady\",\"timestamp\":{}}}]", START + second);
        assert!(next(&mut client).await.ends_with(&row));
    }
}

#[tokio::test]
async fn rows_that_an_api_calls_unchanged_stay() {
    let server = Server::start().await;
    server.behave(|request| match request.header("if-none-match") {
        Some("\"v1\"") => Reply::status(304),
        _ => Reply::json(&json!([{"id": "c1", "name": "Ada"}])).with_header("etag", "\"v1\""),
    });
    let api = format!(
        r#"{{name: people, topic: people, api: {{url: "{}", interval: 100ms, keyPath: id, watermark: {{strategy: etag}}}}}}"#,
        server.url("/people")
    );
    let manifest = manifest(
        "SELECT key, payload->>'name' AS name FROM people",
        "retention: {duration: 1h, cleanInterval: 100ms}",
    )
    .replace("  sources:\n", &format!("  sources:\n    - {api}\n"));
    let site = WorkerSite::with(&manifest);
    site.write("customers.csv", "id,name\nc1,Ada\n");
    site.set_clock(START);
    let worker = site.start().await;
    let ingest = worker.ingest();
    until("the record", async || (rows(&worker, "watched", 0).await.len() == 1).then_some(())).await;
    for hour in 1..=48 {
        let old = ingest.put("orders", &format!("o{hour}"), json!({})).await;
        rows(&worker, "keys", old).await;
        site.set_clock(START + 1_800 * hour);
        let polls = server.received().len();
        until("the API to be asked again", async || (server.received().len() > polls + 2).then_some(()))
            .await;
    }
    until("orders to expire", async || {
        let status = worker.status().await;
        (status["topics"]["orders"]["expired"].as_u64() >= Some(45)).then_some(())
    })
    .await;
    assert_eq!(rows(&worker, "watched", 0).await, [r#"{"key":"c1","name":"Ada"}"#]);
    assert_eq!(worker.status().await["topics"]["people"]["expired"], 0);
    // Once the API is away, nobody says that the row is there.
    server.behave(|_| Reply::status(500));
    site.set_clock(START + 1_800 * 48 + 3_700);
    expired(&worker, "people", 1).await;
}
