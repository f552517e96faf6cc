//! A Window of its own, from its first version to its last: it waits for its Pipeline, runs, is edited, is wrong in
//! several ways, and goes.

use litejoin_crds::kind::Kind;
use litejoin_tests::ingest::message;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, get};
use serde_json::{Value, json};

use crate::settled::orders;
use crate::site::{ControllerSite, Ports, condition_of};

/// Visits that end an hour after their last order, which is longer than the test.
const VISITS: &str = r"
apiVersion: litejoin.io/v1alpha1
kind: Window
metadata: {name: visits}
spec:
  pipelineRef: {name: orders}
  type: session
  gap: 1h
  topic: orders
  partitionBy: payload->>'customer_id'
  query: SELECT payload->>'customer_id' AS customer, count(*) AS n FROM orders
  emit: update
  sinks: [live]
";

#[tokio::test]
async fn a_window_waits_runs_changes_and_goes() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    site.apply(VISITS).await;
    for condition in ["Accepted", "ResolvedRefs", "Programmed", "Ready"] {
        site.wait_for(Kind::Window, "visits", condition, "False", "PipelineNotFound").await;
    }
    site.apply(&orders(&Ports::free())).await;
    let worker = site.run_pod("orders").await;
    for (condition, reason) in [
        ("Accepted", "Accepted"),
        ("ResolvedRefs", "ResolvedRefs"),
        ("Programmed", "Programmed"),
        ("Ready", "Ready"),
    ] {
        site.wait_for(Kind::Window, "visits", condition, "True", reason).await;
    }
    let window = site.ours(Kind::Window).get("visits").await.expect("it is there");
    assert_eq!(window.data["status"]["type"], "session");
    let order = |key: &str, customer: &str, amount: u32| {
        message("orders", key, json!({ "customer_id": customer, "amount": amount }))
    };
    worker.ingest().send(&[order("o1", "c1", 5), order("o2", "c2", 7), order("o3", "c1", 9)]).await;
    has_rows(&worker, json!([{"customer": "c1", "n": 2}, {"customer": "c2", "n": 1}])).await;

    // An edit is taken up by the same pod.
    let edited = VISITS.replace("count(*) AS n", "sum(payload->>'amount') AS n");
    site.apply(&edited).await;
    mounted(&site, "Ready", "True", "Ready").await;
    has_rows(&worker, json!([{"customer": "c1", "n": 14}, {"customer": "c2", "n": 7}])).await;

    // The worker or the operator finds what is wrong; the rest goes on.
    for (right, wrong, condition, reason, message) in WRONG {
        site.apply(&edited.replace(right, wrong)).await;
        mounted(&site, condition, "False", reason).await;
        site.wait_for(Kind::Window, "visits", "Programmed", "False", "EarlierVersion").await;
        let window = site.ours(Kind::Window).get("visits").await.expect("it is there");
        assert_eq!(condition_of(&window, condition).expect("it is told")["message"], message, "{wrong}");
        site.wait_for(Kind::Pipeline, "orders", "Degraded", "True", "EarlierVersion").await;
        site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    }
    // Put right, the window is made anew of the rows that are there; these visits are over.
    site.apply(&edited.replace("gap: 1h", "gap: 1s")).await;
    mounted(&site, "Ready", "True", "Ready").await;
    until("the last result of a visit", async || {
        let (_, text) = get(&worker.url("sink live", "/snapshot?join=visits")).await;
        text.contains(r#""final":true"#).then_some(())
    })
    .await;

    let windows = site.ours(Kind::Window);
    windows.delete("visits", &Default::default()).await.expect("it can be deleted");
    until("the window to be gone", async || {
        site.mount("orders").await;
        (get(&worker.url("sink live", "/snapshot?join=visits")).await.0 == 404).then_some(())
    })
    .await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    operator.stop().await;
    worker.stop().await;
}

/// Mistakes: the text that is replaced, by what, and the condition that tells it with reason and message.
const WRONG: [(&str, &str, &str, &str, &str); 5] = [
    ("SELECT", "SELEC", "Accepted", "InvalidQuery", r#"spec.query: near "SELEC": syntax error"#),
    (
        "FROM orders",
        "FROM customers",
        "Accepted",
        "InvalidQuery",
        "spec.query: a window reads the messages of its own topic alone, which is \"orders\"; write FROM orders, and read the \
         rest in a join over the window",
    ),
    (
        "payload->>'customer_id'\n",
        "random()\n",
        "Accepted",
        "InvalidQuery",
        "spec.partitionBy: got \"random()\", allowed an expression over one message that an index can hold: a column, a field \
         of the payload (payload->>'user'), or a simple function of these",
    ),
    (
        "topic: orders",
        "topic: order",
        "ResolvedRefs",
        "RefNotFound",
        r#"spec.topic: no source fills the topic "order"; did you mean "orders"?"#,
    ),
    (
        "gap: 1h",
        "gap: 1500ms",
        "Accepted",
        "InvalidDuration",
        "spec.gap: got \"1500ms\", allowed whole seconds; topics carry no finer time",
    ),
];

/// Waits until the window's condition has this status and reason for its present generation. Meanwhile the worker gets
/// each new config.
async fn mounted(site: &ControllerSite, condition: &str, status: &str, reason: &str) {
    until(&format!("the window with {condition} {status} {reason}"), async || {
        site.mount("orders").await;
        let window = site.ours(Kind::Window).get("visits").await.ok()?;
        let observed = &window.data["status"]["observedGeneration"];
        let is_current = *observed == json!(window.metadata.generation);
        let found = condition_of(&window, condition)?;
        (is_current && found["status"] == status && found["reason"] == reason).then_some(())
    })
    .await;
}

/// Waits until the results of the window have these rows.
async fn has_rows(worker: &Worker, rows: Value) {
    let url = worker.url("sink live", "/snapshot?join=visits");
    until(&format!("the rows {rows}"), async || {
        let (_, text) = get(&url).await;
        let snapshot: Value = serde_json::from_str(&text).ok()?;
        let results = snapshot["results"].as_array()?.iter();
        let mut found: Vec<Value> =
            results.flat_map(|result| result["rows"].as_array().cloned()).flatten().collect();
        found.sort_by_key(Value::to_string);
        (Value::from(found) == rows).then_some(())
    })
    .await;
}
