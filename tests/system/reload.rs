//! Another config while data flows: by SIGHUP and by `--watch`. What differs is changed, what is the same is not
//! disturbed, and a config that is wrong changes nothing and says why.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;

use expect_test::{Expect, expect};
use litejoin_tests::ingest::message;
use litejoin_tests::results::{Event, Results};
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Site, Worker, get};
use serde_json::{Value, json};

/// A pipeline whose lists of sources, joins and sinks are these.
fn manifest(sources: &str, joins: &str, sinks: &str) -> String {
    format!(
        "apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 2, flushInterval: 2ms}}
  admin: {{addr: \"127.0.0.1:0\"}}
  sources:
{sources}
  joins:
{joins}
  sinks:
{sinks}
"
    )
}

const INGEST: &str = r#"    - {name: ingest, http: {addr: "127.0.0.1:0", topics: [orders, customers]}}"#;
const LIVE: &str = r#"    - {name: live, sse: {addr: "127.0.0.1:0", heartbeatInterval: 1s}}"#;

/// A join of orders, delivered by `live`.
fn join(name: &str, query: &str) -> String {
    format!("    - {{name: {name}, sinks: [live], query: \"{query}\"}}")
}

/// Every order by its key.
fn all() -> String {
    join("all_orders", "SELECT key, payload->>'n' AS n FROM orders")
}

fn orders(numbers: impl IntoIterator<Item = u64>) -> Vec<Value> {
    numbers.into_iter().map(|n| message("orders", &format!("o{n}"), json!({"n": n}))).collect()
}

/// Events as `op key rows`, one a line.
fn told<'e>(events: impl IntoIterator<Item = &'e Event>) -> String {
    let line = |event: &Event| {
        format!("{} {} {} {}\n", event.query, event.op, event.key, Value::from(event.rows.clone()))
    };
    events.into_iter().map(line).collect()
}

/// Asserts what the last reload came to.
fn assert_applied(config: &Value) {
    assert_eq!(
        (&config["lastReload"]["ok"], &config["lastReload"]["outcome"]),
        (&json!(true), &json!("applied"))
    );
}

/// Asserts that a manifest is refused with this error, in `/status`, in the log and in metrics, and that what runs
/// goes on as it was.
async fn assert_refused(site: &Site, worker: &Worker, manifest: &str, expected: Expect) {
    let before = worker.status().await["config"].clone();
    site.write("pipeline.yaml", manifest);
    let after = worker.reload().await;
    assert_eq!(after["lastReload"]["ok"], false);
    assert_eq!((&after["hash"], &after["appliedAt"]), (&before["hash"], &before["appliedAt"]));
    let error = after["lastReload"]["error"].as_str().expect("a refusal has its reason");
    expected.assert_eq(&format!("{error}\n"));
    for line in error.lines() {
        assert!(worker.log().contains(&json!(line).to_string()), "no {line} in the log");
    }
    let metrics = get(&worker.url("admin", "/metrics")).await.1;
    assert!(metrics.contains("litejoin_config_last_reload_successful{} 0"), "{metrics}");
}

#[tokio::test]
async fn a_changed_query_sends_just_its_differences() {
    let site = Site::with(&manifest(INGEST, &all(), LIVE));
    let worker = site.start().await;
    let hash = worker.status().await["config"]["hash"].clone();
    worker.ingest().send(&orders(0..5)).await;
    let mut client = Subscription::open(worker.address("sink live"), "replay=true", None).await;
    assert_eq!(client.replayed().await.len(), 5);
    let doubled = join(
        "all_orders",
        "SELECT key, CASE WHEN key > 'o2' THEN 10 ELSE 1 END * (payload->>'n') AS n FROM orders WHERE key <> 'o0'",
    );
    site.write("pipeline.yaml", manifest(INGEST, &doubled, LIVE));
    let config = worker.reload().await;
    assert_applied(&config);
    assert_ne!(config["hash"], hash);
    let mut events = Vec::new();
    for _ in 0..3 {
        events.push(client.expect_next().await.result());
    }
    worker.ingest().put("orders", "o9", json!({"n": 9})).await;
    events.push(client.expect_next().await.result());
    expect![[r#"
        all_orders deleted "o0" []
        all_orders updated "o3" [{"key":"o3","n":30}]
        all_orders updated "o4" [{"key":"o4","n":40}]
        all_orders created "o9" [{"key":"o9","n":90}]
    "#]]
    .assert_eq(&told(&events));
    worker.stop().await;
}
