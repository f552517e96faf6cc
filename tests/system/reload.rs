//! Another config while data flows: by SIGHUP and by `--watch`. Parts that differ are changed, the others are not
//! disturbed, and a config that is wrong changes nothing and says why.

mod joins;
mod parts;
mod refused;
mod watch;

use std::io::{BufRead, BufReader};

use litejoin_tests::ingest::message;
use litejoin_tests::results::{Event, Results};
use litejoin_tests::sse::Subscription;
use litejoin_tests::worker::{Worker, WorkerSite};
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

/// Sends messages and waits until every join has them.
async fn store(worker: &Worker, messages: &[Value]) -> u64 {
    let epoch = worker.ingest().send(messages).await;
    worker.snapshot("live", "all_orders", epoch).await;
    epoch
}

/// Events as `op key rows`, one a line.
fn shown<'e>(events: impl IntoIterator<Item = &'e Event>) -> String {
    let line = |event: &Event| {
        format!("{} {} {} {}\n", event.query, event.op, event.key, Value::from(event.rows.clone()))
    };
    events.into_iter().map(line).collect()
}

/// Asserts that the last reload was applied.
fn assert_applied(config: &Value) {
    assert_eq!(
        (&config["lastReload"]["ok"], &config["lastReload"]["outcome"]),
        (&json!(true), &json!("applied"))
    );
}

/// The next results, in the order of their keys: results of two shards may come in either order.
async fn next(client: &mut Subscription, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..count {
        events.push(client.expect_next().await.result());
    }
    events.sort_by_key(|event| (event.query.clone(), event.key.to_string()));
    events
}

#[tokio::test]
async fn settings_change_while_data_flows() {
    let with = |retention: &str| {
        let retention = format!("  retention: {{{retention}}}\n  sources:");
        manifest(INGEST, &all(), LIVE).replace("  sources:", &retention)
    };
    let site = WorkerSite::with(&with("duration: 24h"));
    let worker = site.start().await;
    let now = worker.status().await["config"]["appliedAt"].as_i64().expect("a time is a number");
    let old = json!({"topic": "orders", "key": "old", "payload": {"n": 1}, "timestamp": now - 7_200});
    store(&worker, &[old, message("orders", "new", json!({"n": 2}))]).await;
    let mut client = Subscription::open(worker.address("sink live"), "replay=true", None).await;
    assert_eq!(client.replayed().await.len(), 2);
    site.write("pipeline.yaml", with("duration: 1h, cleanInterval: 1s, emitExpiry: true"));
    assert_applied(&worker.reload().await);
    let event = client.expect_next().await.result();
    assert_eq!((event.op.as_str(), &event.key), ("deleted", &json!("old")));
    worker.stop().await;
}

#[tokio::test]
async fn readers_that_stand_still_do_not_hold_up_a_reload() {
    let wide = "SELECT key, payload->>'text' AS text FROM orders";
    let joins = join("all_orders", wide).replace("[live]", "[live, second, console]");
    let console = "    - {name: console, stdout: {}}";
    let second = LIVE.replace("name: live", "name: second");
    let before = manifest(INGEST, &joins, &format!("{LIVE}\n{second}\n{console}"));
    let site = WorkerSite::with(&before);
    let (read, stdout) = std::io::pipe().expect("a pipe can be made");
    let worker = site.run([]).with_stdout(stdout).start().await;
    // Neither this client nor the reader of standard output reads, and the results are more than fits into the pipes.
    let stalled = Subscription::open(worker.address("sink second"), "", None).await;
    let text = "x".repeat(100_000);
    let large = (0..80).map(|n| message("orders", &format!("o{n}"), json!({"text": text})));
    store(&worker, &large.collect::<Vec<_>>()).await;
    let joins = joins.replace("second, ", "");
    let after = manifest(INGEST, &joins, &format!("{LIVE}\n{console}"));
    site.write("pipeline.yaml", after.replace("  sources:", "  delivery: {replayWindow: 9m}\n  sources:"));
    assert_applied(&worker.reload().await);
    assert_eq!(worker.log().matches("it does not come to an end").count(), 2);
    drop(stalled);
    // Results that were on their way come once more, and none is missing or in another order.
    let last = worker.ingest().put("orders", "o0", json!({"text": "last"})).await;
    let lines = tokio::task::spawn_blocking(move || {
        let mut lines = Vec::new();
        for line in BufReader::new(read).lines() {
            let event = Event::read(&line.expect("lines are text"));
            let is_last = event.epoch >= last;
            lines.push(event);
            if is_last {
                break;
            }
        }
        lines
    });
    let events = lines.await.expect("lines can be read");
    let results = Results::folded(&events);
    assert_eq!(results.rows.len(), 80);
    assert!(results.rows[&("all_orders".to_owned(), "\"o0\"".to_owned())][0].contains("last"));
    worker.stop().await;
}

#[tokio::test]
async fn a_stop_amid_a_reload_hands_over_all_that_was_acknowledged() {
    let both = all().replace("[live]", "[console]");
    let sinks = "    - {name: console, stdout: {}}";
    let site = WorkerSite::with(&manifest(INGEST, &both, sinks));
    let worker = site.start().await;
    worker.ingest().send(&orders(0..2_000)).await;
    site.write("pipeline.yaml", manifest(INGEST, &both.replace("AS n", "AS m"), sinks));
    worker.signal("HUP");
    let before = worker.stop().await.stdout;
    let after = site.start().await.stop().await.stdout;
    let events: Vec<Event> = before.lines().chain(after.lines()).map(Event::read).collect();
    let results = Results::folded(&events);
    assert_eq!(results.rows.len(), 2_000);
    assert!(results.rows.values().all(|rows| rows[0].contains("\"m\"")), "the new query is in force");
}
