//! Joins that compare rows with the clock: what a change and a second cost, a long outage, and a clock that is set back.
//! The worker is shown the time, so nothing here waits for it.

use std::collections::BTreeMap;

use litejoin_tests::golden::BEGINNING;
use litejoin_tests::ingest::message;
use litejoin_tests::repetition::is_long;
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::{TIMEOUT, until, until_within};
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::{Value, json};

/// Joins with an hour's bound: by key, by groups, over everything, and of two topics.
const JOINS: [(&str, &str); 4] = [
    ("recent", "SELECT key AS id, timestamp AS at FROM orders WHERE timestamp > unixepoch() - 3600"),
    (
        "by_customer",
        "SELECT payload->>'customer' AS id, count(*) AS n, sum(payload->>'amount') AS total FROM orders
         WHERE timestamp > unixepoch() - 3600 GROUP BY 1",
    ),
    (
        "total",
        "SELECT 'all' AS id, sum(payload->>'amount') AS total FROM orders WHERE timestamp > unixepoch() - 3600",
    ),
    (
        "named",
        "SELECT c.key AS id, o.key AS number FROM customers c
         LEFT JOIN orders o ON o.payload->>'customer' = c.key AND o.timestamp > unixepoch() - 3600",
    ),
];

/// Steps that a second without due rows may cost a join.
const QUIET_STEPS_MAX: u64 = 50;

/// The cost with the most rows, as a multiple of the cost with the fewest, may not exceed this.
const GROWTH_MAX: f64 = 1.5;

/// Orders of a customer.
const FAN_OUT: u64 = 10;

fn manifest() -> String {
    let joins = JOINS.iter().map(|(name, query)| json!({"name": name, "query": query, "sinks": ["live"]}));
    let plain = json!({"name": "plain", "query": "SELECT key AS id FROM customers", "sinks": ["live"]});
    json!({
        "apiVersion": "litejoin.io/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": "p"},
        "spec": {
            "storage": {"shardCount": 8, "flushInterval": "1ms"},
            "retention": {"duration": "8760h"},
            "admin": {"addr": "127.0.0.1:0"},
            "sources": [{"name": "ingest", "http": {"addr": "127.0.0.1:0", "topics": ["orders", "customers"]}}],
            "joins": joins.chain([plain]).collect::<Vec<_>>(),
            "sinks": [{"name": "live", "sse": {"addr": "127.0.0.1:0"}}],
        },
    })
    .to_string()
}

fn order(number: u64, timestamp: i64) -> Value {
    let payload =
        json!({"customer": format!("c{}", number / FAN_OUT), "amount": number % 7, "sent": timestamp});
    let mut order = message("orders", &format!("o{number}"), payload);
    order["timestamp"] = json!(timestamp);
    order
}

async fn reach(site: &WorkerSite, worker: &Worker, moment: i64) {
    site.set_clock(moment);
    for (join, _) in JOINS {
        worker.reaches(join, moment).await;
    }
}

/// Steps by join.
async fn steps(worker: &Worker) -> BTreeMap<&'static str, u64> {
    let status = worker.status().await;
    JOINS.iter().map(|(join, _)| (*join, status["joins"][join]["steps"].as_u64().expect("a count"))).collect()
}

/// Runs `work` and returns the steps that it took, by join.
async fn cost(worker: &Worker, work: impl AsyncFnOnce()) -> BTreeMap<&'static str, u64> {
    let before = steps(worker).await;
    work().await;
    steps(worker).await.into_iter().map(|(join, after)| (join, after - before[join])).collect()
}

async fn send(worker: &Worker, messages: &[Value]) {
    let epoch = worker.ingest().send(messages).await;
    for (join, _) in JOINS {
        worker.snapshot("live", join, epoch).await;
    }
}

/// Stores so many orders, half of them within the hour, and returns what changes and seconds cost.
async fn measure(count: u64) -> Vec<(&'static str, BTreeMap<&'static str, u64>)> {
    let site = WorkerSite::with(&manifest());
    site.set_clock(BEGINNING);
    let worker = site.start().await;
    let customers: Vec<Value> =
        (0..count / FAN_OUT).map(|number| message("customers", &format!("c{number}"), json!({}))).collect();
    // No order is due in the first minutes: the hour's end lies between 3,000 s and 5,000 s ago.
    let age = |number: u64| if number.is_multiple_of(2) { 5_000 } else { 3_000 };
    let orders: Vec<Value> = (0..count)
        .map(|number| order(number, BEGINNING - age(number) + i64::try_from(number % 100).expect("small")))
        .collect();
    let mut last = 0;
    for batch in customers.chunks(5_000).chain(orders.chunks(5_000)) {
        last = worker.ingest().send(batch).await;
    }
    // A million rows are stored sooner than a debug build evaluates them.
    until_within(TIMEOUT * 10, "all rows to be evaluated", async || {
        (worker.status().await["epoch"].as_u64()? >= last).then_some(())
    })
    .await;
    // An even order is outside the hour.
    let middle = count / 2;
    let mut costs = Vec::new();
    send(&worker, &[order(middle, BEGINNING - 3_590)]).await;
    reach(&site, &worker, BEGINNING + 1).await;
    costs.push(("a quiet second", cost(&worker, async || reach(&site, &worker, BEGINNING + 2).await).await));
    costs.push((
        "a row enters",
        cost(&worker, async || send(&worker, &[order(middle + 2, BEGINNING)]).await).await,
    ));
    let mut gone = order(middle + 2, BEGINNING + 1);
    gone["payload"] = Value::Null;
    costs.push(("a row is deleted", cost(&worker, async || send(&worker, &[gone]).await).await));
    costs.push(("a row is due", cost(&worker, async || reach(&site, &worker, BEGINNING + 10).await).await));
    let (_, recent) = worker.snapshot("live", "recent", 0).await;
    assert_eq!(recent.rows.len() as u64, count / 2, "one came and went, one was sent again and was due");
    worker.stop().await;
    costs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hours_bound_costs_the_same_however_many_rows_there_are() {
    let few = measure(1_000).await;
    let many = measure(if is_long() { 1_000_000 } else { 50_000 }).await;
    for ((what, few), (_, many)) in few.iter().zip(&many) {
        for (join, few) in few {
            let many = many[join];
            eprintln!("{join}, {what}: {few} steps, then {many}");
            assert!(many as f64 <= *few as f64 * GROWTH_MAX, "{join}, {what}: {few} steps, then {many}");
            assert!(
                *what != "a quiet second" || many <= QUIET_STEPS_MAX,
                "{join}, {what}: {many} steps, allowed {QUIET_STEPS_MAX}"
            );
        }
    }
}

#[tokio::test]
async fn what_fell_due_in_a_long_outage_expires_in_slices_and_others_stay_current() {
    let site = WorkerSite::with(&manifest());
    site.set_clock(BEGINNING);
    let worker = site.start().await;
    let count = 2_000;
    let orders: Vec<Value> =
        (0..count).map(|n| order(n, BEGINNING - i64::try_from(n).expect("small"))).collect();
    send(&worker, &orders).await;
    let mut client = Subscription::open(worker.address("sink live"), "join=recent&replay=true", None).await;
    assert_eq!(client.replayed().await.len() as u64, count);
    worker.kill().await;
    client.rest().await;

    site.set_clock(BEGINNING + 7 * 24 * 3_600);
    let worker = site.start().await;
    let epoch = worker.ingest().put("customers", "c1", json!({})).await;
    let (_, plain) = worker.snapshot("live", "plain", epoch).await;
    assert_eq!(plain.rows.len(), 1);
    // Half way, a crash.
    until("some slices", async || {
        let evaluations = worker.status().await["joins"]["recent"]["evaluations"].as_u64();
        (evaluations >= Some(3)).then_some(())
    })
    .await;
    worker.kill().await;
    let id = client.last_event_id.clone();
    let worker = site.start().await;
    let mut client = Subscription::open(worker.address("sink live"), "join=recent", id.as_deref()).await;
    let mut deleted = BTreeMap::<String, u64>::new();
    while deleted.len() < usize::try_from(count).expect("small") {
        let event = client.expect_next().await.result();
        assert_eq!(event.op, "deleted", "{event:?}");
        *deleted.entry(event.key.to_string()).or_default() += 1;
    }
    assert!(deleted.values().all(|times| *times == 1), "each is sent once");
    reach(&site, &worker, BEGINNING + 7 * 24 * 3_600).await;
    let (_, total) = worker.snapshot("live", "total", 0).await;
    assert_eq!(total.rows.values().flatten().collect::<Vec<_>>(), [r#"{"id":"all","total":null}"#]);
    let status = worker.status().await;
    for (join, _) in JOINS {
        assert_eq!(status["joins"][join]["evaluationsFull"], 0, "{join}: {status:#}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_clock_that_is_set_back_a_little_stands_still_and_else_is_followed() {
    let site = WorkerSite::with(&manifest());
    site.set_clock(BEGINNING);
    let worker = site.start().await;
    send(&worker, &[order(1, BEGINNING - 3_590), order(2, BEGINNING)]).await;
    let keys = async || worker.snapshot("live", "recent", 0).await.1.rows.len();
    assert_eq!(keys().await, 2);
    reach(&site, &worker, BEGINNING + 10).await;
    assert_eq!(keys().await, 1);

    site.set_clock(BEGINNING - 40);
    let mut late = order(3, BEGINNING + 5);
    late["key"] = json!("late");
    send(&worker, &[late]).await;
    assert_eq!(worker.status().await["joins"]["recent"]["asOf"], BEGINNING + 10);
    assert_eq!(keys().await, 2, "the row that has left stays away");

    reach(&site, &worker, BEGINNING - 3_000).await;
    assert_eq!(keys().await, 3, "it is back");
    worker.stop().await;
}
