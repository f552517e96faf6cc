//! The http sink against a server that takes, refuses, hangs, redirects and goes.

mod credentials;
mod failures;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use litejoin_tests::ingest::message;
use litejoin_tests::repetition::{chance, seeds};
use litejoin_tests::results::{Event, EventId, Results};
use litejoin_tests::server::{Received, Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use rand::RngExt as _;
use serde_json::{Value, json};

/// A pipeline with sinks, each a name and the fields of its `http`.
fn manifest(sinks: &[(&str, String)]) -> String {
    let sinks: String = sinks
        .iter()
        .map(|(name, http)| format!("    - {{name: {name}, joins: [all_orders], http: {{{http}}}}}\n"))
        .collect();
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 2}}
  admin: {{addr: "127.0.0.1:0"}}
  delivery: {{circuitFailures: 3, dlq: {{retryInterval: 10ms, maxBackoff: 20ms}}}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [orders]}}}}
  joins:
    - {{name: all_orders, query: "SELECT key, payload->>'n' AS n FROM orders"}}
  sinks:
{sinks}"#
    )
}

fn orders(count: u64) -> Vec<Value> {
    (0..count).map(|n| message("orders", &format!("o{n:03}"), json!({"n": n}))).collect()
}

fn event(request: &Received) -> Event {
    Event::read(request.text())
}

fn key(request: &Received) -> String {
    event(request).key.as_str().expect("keys of orders are texts").to_owned()
}

async fn sink_status(worker: &Worker, field: &str, expected: &Value) {
    let what = format!("{field} to be {expected}");
    until(&what, async || (worker.status().await["sinks"]["s"][field] == *expected).then_some(())).await;
}

#[tokio::test]
async fn each_result_is_posted_with_its_id_and_the_headers_that_are_asked_for() {
    let server = Server::start().await;
    let http = format!(
        r#"url: "{}", headers: {{X-Team: blue, X-From: "${{WHO}}"}}"#,
        server.url("/hook?v=1").replace("/hook", "/${WHERE}")
    );
    let site = WorkerSite::with(&manifest(&[("s", http)]));
    let worker = site.run([]).with_variable("WHERE", "hook").with_variable("WHO", "tests").start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    worker.ingest().put("orders", "o1", Value::Null).await;
    let received = server.wait_for(2).await;
    for (request, op) in received.iter().zip(["created", "deleted"]) {
        let event = event(request);
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/hook?v=1"));
        assert_eq!((event.op.as_str(), event.query.as_str()), (op, "all_orders"));
        assert_eq!(request.header("idempotency-key"), Some(event.id.as_str()));
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!((request.header("x-team"), request.header("x-from")), (Some("blue"), Some("tests")));
        assert_eq!(request.header("user-agent"), Some(concat!("litejoin/", env!("CARGO_PKG_VERSION"))));
        assert_eq!(request.header("litejoin-signature"), None);
    }
    sink_status(&worker, "delivered", &json!(2)).await;
    worker.stop().await;
}

#[tokio::test]
async fn several_results_go_in_one_request_and_some_requests_at_once() {
    let server = Server::start().await;
    let url = server.url("/hook");
    let site =
        WorkerSite::with(&manifest(&[("s", format!(r#"url: "{url}", batchSize: 10, concurrency: 3"#))]));
    let worker = site.start().await;
    let held = server.hold().await;
    worker.ingest().send(&orders(200)).await;
    until("three requests at once", async || (server.under_way() == 3).then_some(())).await;
    drop(held);
    sink_status(&worker, "delivered", &json!(200)).await;
    assert_eq!(server.most_at_once(), 3);
    let received = server.take();
    let batches: Vec<Value> = received.iter().map(Received::json).collect();
    let sizes: Vec<usize> = batches.iter().map(|batch| batch.as_array().expect("an array").len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 200);
    assert!(sizes.iter().all(|size| *size <= 10) && sizes.contains(&10), "{sizes:?}");
    let keys: std::collections::BTreeSet<_> = received.iter().map(|r| r.header("idempotency-key")).collect();
    assert_eq!(keys.len(), received.len(), "each batch has a key of its own");

    // One bad result does not fail the others of its batch.
    server.behave(|request| Reply::status(if request.text().contains("\"o013\"") { 400 } else { 200 }));
    let changed: Vec<Value> =
        (0..20).map(|n| message("orders", &format!("o{n:03}"), json!({"n": -1 - n}))).collect();
    worker.ingest().send(&changed).await;
    sink_status(&worker, "delivered", &json!(219)).await;
    sink_status(&worker, "deadLetters", &json!(1)).await;
    worker.stop().await;
}

#[tokio::test]
async fn connections_are_used_again() {
    let server = Server::start().await;
    server.behave(|_| Reply::json(&json!({"taken": true})));
    let url = server.url("/hook");
    let site = WorkerSite::with(&manifest(&[("s", format!(r#"url: "{url}", concurrency: 2"#))]));
    let worker = site.start().await;
    worker.ingest().send(&orders(100)).await;
    sink_status(&worker, "delivered", &json!(100)).await;
    // A connection for each of the two requests under way, and for each that has just ended: a connection is back in
    // the client's pool only a moment after the answer was read.
    assert!(server.connections() <= 4, "{} connections for 100 results", server.connections());
    worker.stop().await;
}

#[tokio::test]
async fn order_is_kept_for_each_key_whatever_fails() {
    let server = Server::start().await;
    let requests = AtomicUsize::new(0);
    server.behave(move |_| {
        // Two of five fail, one of seven asks for time.
        let number = requests.fetch_add(1, Ordering::Relaxed);
        match (number % 5, number % 7) {
            (1 | 3, _) => Reply::status(500),
            (_, 6) => Reply::status(503).with_header("retry-after", "0"),
            _ => Reply::status(200).with_header("x-taken", "yes"),
        }
    });
    let taken = |number: usize| !matches!(number % 5, 1 | 3) && number % 7 != 6;
    let url = server.url("/hook");
    let site = WorkerSite::with(&manifest(&[("s", format!(r#"url: "{url}", concurrency: 8"#))]));
    let worker = site.start().await;
    for round in 0..20 {
        let messages: Vec<Value> =
            (0..12).map(|n| message("orders", &format!("k{n}"), json!({"n": round * 100 + n}))).collect();
        worker.ingest().send(&messages).await;
    }
    let last = |received: &[Received]| -> (Results, BTreeMap<String, Vec<(u64, u64)>>) {
        let mut positions: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
        let events: Vec<Event> =
            received.iter().enumerate().filter(|(number, _)| taken(*number)).map(|(_, r)| event(r)).collect();
        for event in &events {
            let id = EventId::parse(&event.id);
            positions.entry(event.key.to_string()).or_default().push(id.position());
        }
        (Results::folded(&events), positions)
    };
    let (results, positions) = until("the newest of each key", async || {
        let (results, positions) = last(&server.received());
        let newest = |n: u64| {
            let key = ("all_orders".to_owned(), format!("\"k{n}\""));
            results.rows.get(&key).is_some_and(|rows| rows[0].contains(&format!("\"n\":{}", 1_900 + n)))
        };
        (0..12).all(newest).then_some((results, positions))
    })
    .await;
    assert_eq!(results.rows.len(), 12);
    for (key, positions) in positions {
        assert!(positions.is_sorted(), "{key} came in the order {positions:?}");
    }
    sink_status(&worker, "deadLetters", &json!(0)).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_killed_worker_delivers_what_it_had_not() {
    for seed in seeds(3, 20) {
        let mut chance = chance(seed);
        let server = Server::start().await;
        let requests = AtomicUsize::new(0);
        let refused = |number: usize| number % 7 == 3;
        server.behave(move |_| {
            Reply::status(if refused(requests.fetch_add(1, Ordering::Relaxed)) { 500 } else { 200 })
        });
        let url = server.url("/hook");
        let http = format!(r#"url: "{url}", concurrency: {}"#, chance.random_range(1..=8));
        let site = WorkerSite::with(&manifest(&[("s", http)]).replace(
            "  sinks:\n",
            "  sinks:\n    - {name: live, joins: [all_orders], sse: {addr: \"127.0.0.1:0\"}}\n",
        ));
        let mut number = 0;
        for _ in 0..3 {
            let worker = site.start().await;
            let wanted = server.received().len() + chance.random_range(1..=60);
            while server.received().len() < wanted {
                let messages: Vec<Value> = (0..10)
                    .map(|_| {
                        number += 1;
                        let key = format!("k{}", chance.random_range(0..30));
                        let payload = if number % 9 == 0 { Value::Null } else { json!({"n": number}) };
                        message("orders", &key, payload)
                    })
                    .collect();
                worker.ingest().send(&messages).await;
                assert!(
                    number < 100_000,
                    "seed {seed}: results of {number} messages make no {wanted} requests"
                );
            }
            worker.kill().await;
        }
        let worker = site.start().await;
        let epoch = worker.ingest().put("orders", "last", json!({"n": 0})).await;
        let (_, expected) = worker.snapshot("live", "all_orders", epoch).await;
        until(&format!("all results, of seed {seed}"), async || {
            let received = server.received();
            let taken = received.iter().enumerate().filter(|(number, _)| !refused(*number));
            let events: Vec<Event> = taken.map(|(_, request)| event(request)).collect();
            (Results::folded(&events) == expected).then_some(())
        })
        .await;
        sink_status(&worker, "lagEpochs", &json!(0)).await;
        sink_status(&worker, "deadLetters", &json!(0)).await;
        worker.stop().await;
    }
}
