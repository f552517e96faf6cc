//! The class by which a join is kept current: what is planned, what is in force once a value doesn't fit, and that the
//! worker says so.

use litejoin_tests::ingest::message;
use litejoin_tests::oracle::Oracle;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite, get};
use serde_json::{Value, json};

const MANIFEST: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {shardCount: 1, flushInterval: 2ms, batchSize: 10000}
  admin: {addr: "127.0.0.1:0"}
  sources:
    - {name: ingest, http: {addr: "127.0.0.1:0", topics: [orders]}}
  joins:
    - name: by_customer
      query: SELECT payload->>'customer' AS id, count(*) AS n, sum(payload->>'amount') AS total FROM orders GROUP BY 1
      sinks: [live]
    - name: all
      query: SELECT 'all' AS id, sum(payload->>'amount') AS total FROM orders
      sinks: [live]
  sinks:
    - {name: live, sse: {addr: "127.0.0.1:0"}}
"#;

/// More changes than a join of this build may lag behind while its groups are accumulated.
const FAR_BEHIND: usize = 6_000;

async fn join(worker: &Worker, name: &str) -> Value {
    worker.status().await["joins"][name].clone()
}

fn lines_with(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

/// Holds what is stored to SQLite over the same files.
async fn assert_right(site: &WorkerSite, worker: &Worker, epoch: u64) {
    let oracle = Oracle::read(&site.data_dir(), ["orders"]);
    for (name, query) in [
        (
            "by_customer",
            "SELECT payload->>'customer' AS id, count(*) AS n, sum(payload->>'amount') AS total FROM orders GROUP BY 1",
        ),
        ("all", "SELECT 'all' AS id, sum(payload->>'amount') AS total FROM orders"),
    ] {
        let (_, stored) = worker.snapshot("live", name, epoch).await;
        stored.assert_same(&oracle.results(name, query, None), name);
    }
}

#[tokio::test]
async fn a_value_that_can_not_be_accumulated_is_told_once() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let ingest = worker.ingest();
    let epoch = ingest.put("orders", "o1", json!({"customer": "c1", "amount": 3})).await;
    assert_right(&site, &worker, epoch).await;
    for name in ["by_customer", "all"] {
        let told = join(&worker, name).await;
        assert_eq!((&told["class"], &told["reason"]), (&json!("accumulated"), &json!(null)), "{told:#}");
        assert_eq!(told["fallbacks"], json!({}), "{told:#}");
    }

    // A real among what is summed: its sum depends on the order of rows.
    for n in 0..3 {
        let epoch = ingest.put("orders", &format!("r{n}"), json!({"customer": "c1", "amount": 0.5})).await;
        assert_right(&site, &worker, epoch).await;
    }
    let why = "a value can't be accumulated: a real among what is summed, or equal values that are written differently";
    let told = join(&worker, "by_customer").await;
    assert_eq!((&told["class"], &told["reason"]), (&json!("keyed"), &json!(why)), "{told:#}");
    assert_eq!(told["fallbacks"], json!({"not_accumulable": 1}), "{told:#}");
    let told = until("the join of one group to be evaluated in full", async || {
        let told = join(&worker, "all").await;
        (told["class"] == "full").then_some(told)
    })
    .await;
    assert!(told["reason"].as_str().is_some_and(|reason| reason.starts_with(why)), "{told:#}");
    let metrics = get(&worker.url("admin", "/metrics")).await.1;
    for line in [
        "litejoin_join_class{join=\"by_customer\",class=\"keyed\"} 1",
        "litejoin_join_fallbacks_total{join=\"by_customer\",cause=\"not_accumulable\"} 1",
    ] {
        assert!(metrics.contains(line), "no {line} in {metrics}");
    }
    let log = worker.stop().await.stderr;
    assert_eq!(lines_with(&log, "kept current by a slower class"), 2, "{log}");

    // The next start knows it from the file.
    let worker = site.start().await;
    until("the class in force", async || {
        let told = join(&worker, "by_customer").await;
        (told["class"] == "keyed" && told["reason"] == why).then_some(())
    })
    .await;
    worker.stop().await;
}

#[tokio::test]
async fn a_join_that_fell_far_behind_is_accumulated_again() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let orders: Vec<Value> = (0..FAR_BEHIND)
        .map(|n| {
            message("orders", &format!("o{n}"), json!({"customer": format!("c{}", n % 7), "amount": n % 100}))
        })
        .collect();
    let epoch = worker.ingest().send(&orders).await;
    assert_right(&site, &worker, epoch).await;
    let told = until("the groups to be accumulated again", async || {
        let told = join(&worker, "by_customer").await;
        (told["class"] == "accumulated" && told["fallbacks"]["far_behind"] == 1).then_some(told)
    })
    .await;
    assert_eq!(told["reason"], json!(null), "{told:#}");
    let before = join(&worker, "by_customer").await["evaluationsFull"].clone();
    let epoch = worker.ingest().put("orders", "o1", json!({"customer": "c1", "amount": 1_000})).await;
    assert_right(&site, &worker, epoch).await;
    let told = join(&worker, "by_customer").await;
    assert_eq!((&told["class"], &told["evaluationsFull"]), (&json!("accumulated"), &before), "{told:#}");
    worker.stop().await;
}

#[tokio::test]
async fn a_join_of_class_full_is_left_alone_by_other_topics() {
    let site = WorkerSite::with(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {shardCount: 1, flushInterval: 2ms}
  admin: {addr: "127.0.0.1:0"}
  sources:
    - {name: ingest, http: {addr: "127.0.0.1:0", topics: [orders, customers]}}
  joins:
    - name: keys
      query: SELECT 'all' AS id, group_concat(key) AS keys FROM orders
      sinks: [live]
    - name: names
      query: SELECT key AS id, payload->>'name' AS name FROM customers
      sinks: [live]
  sinks:
    - {name: live, sse: {addr: "127.0.0.1:0"}}
"#,
    );
    let worker = site.start().await;
    let ingest = worker.ingest();
    let epoch = ingest.put("orders", "o1", json!({})).await;
    worker.snapshot("live", "keys", epoch).await;
    let before = join(&worker, "keys").await;
    assert_eq!(before["class"], "full", "{before:#}");

    for n in 0..3 {
        let epoch = ingest.put("customers", &format!("c{n}"), json!({"name": "Ada"})).await;
        worker.snapshot("live", "keys", epoch).await;
        worker.snapshot("live", "names", epoch).await;
    }
    let after = join(&worker, "keys").await;
    for count in ["evaluations", "evaluationsFull", "fallbacks"] {
        assert_eq!(after[count], before[count], "{count} of {after:#}");
    }
    worker.stop().await;
}
