//! Growth: the sizes of topics that `/status` tells, and the bound on all data.

use litejoin_tests::ingest::message;
use litejoin_tests::oracle::Oracle;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite, get};
use serde_json::{Value, json};

const START: i64 = 1_700_000_000;
const DAY: i64 = 86_400;

fn manifest(storage: &str, sources: &str) -> String {
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{{storage}}}
  admin: {{addr: "127.0.0.1:0"}}
  retention: {{cleanInterval: 100ms}}
  topics: [{{name: orders, retention: 36h}}]
  delivery: {{replayWindow: 1s}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [orders, customers, unread]}}}}
    {sources}
  joins:
    - {{name: sizes, query: "SELECT key, length(payload) AS size FROM orders", sinks: [live]}}
  sinks:
    - {{name: live, sse: {{addr: "127.0.0.1:0"}}}}
"#
    )
}

/// Asserts that the sizes in the status are those of the rows in the files, and returns how many rows there are.
async fn assert_sizes(site: &WorkerSite, worker: &Worker) -> i64 {
    let oracle = Oracle::read(&site.data_dir(), ["orders", "customers", "unread"]);
    let status = worker.status().await;
    let metrics = get(&worker.url("admin", "/metrics")).await.1;
    let mut rows = 0;
    for topic in ["orders", "customers", "unread"] {
        let told = &status["topics"][topic];
        let counted = |what: &str| oracle.value(&format!("SELECT {what} AS n FROM {topic}"));
        assert_eq!(told["rows"], counted("count(*)"), "{topic}: {told}");
        let bytes = counted("ifnull(sum(octet_length(key) + octet_length(payload)), 0)");
        assert_eq!(told["bytes"], bytes, "{topic}: {told}");
        for (metric, value) in [("rows", &told["rows"]), ("bytes", &told["bytes"])] {
            let series = format!("litejoin_topic_{metric}{{topic=\"{topic}\"}} {value}.0");
            assert!(metrics.lines().any(|line| line == series), "{series}: {metrics}");
        }
        rows += told["rows"].as_i64().expect("a number");
    }
    rows
}

fn orders(numbers: std::ops::Range<usize>, payload: impl Fn(usize) -> Value) -> Vec<Value> {
    numbers.map(|number| message("orders", &format!("ö{number}"), payload(number))).collect()
}

#[tokio::test]
async fn the_status_tells_the_size_of_each_topic_through_everything_that_changes_it() {
    let site = WorkerSite::with(&manifest("shardCount: 2", ""));
    site.set_clock(START);
    let worker = site.start().await;
    let ingest = worker.ingest();
    assert_eq!(assert_sizes(&site, &worker).await, 0);
    let told = worker.status().await["topics"].clone();
    assert_eq!(
        (&told["orders"]["source"], &told["orders"]["retention"]),
        (&json!(["ingest"]), &json!("36h"))
    );
    assert_eq!(told["unread"]["retention"], "forever");

    ingest.send(&orders(0..50, |number| json!({"n": number}))).await;
    ingest.put("customers", "c1", json!({"name": "Åsa"})).await;
    assert_eq!(assert_sizes(&site, &worker).await, 51);
    ingest.send(&orders(0..20, |number| json!({"n": number, "text": "ä".repeat(number)}))).await;
    ingest.send(&orders(10..15, |_| Value::Null)).await;
    assert_eq!(assert_sizes(&site, &worker).await, 46);

    site.set_clock(START + DAY);
    ingest.send(&orders(15..18, |number| json!({"later": number}))).await;
    site.set_clock(START + 2 * DAY);
    until("rows to expire", async || {
        (worker.status().await["topics"]["orders"]["expired"] == 42).then_some(())
    })
    .await;
    assert_eq!(assert_sizes(&site, &worker).await, 4);

    let load = tokio::spawn(async move {
        let batch = |n: usize| orders(n..n + 40, |number| json!({"n": number, "of": n}));
        for n in 0.. {
            if ingest.try_send(&batch(n)).await.is_err() {
                return;
            }
        }
    });
    until("some load", async || {
        (worker.status().await["topics"]["orders"]["rows"].as_u64() > Some(200)).then_some(())
    })
    .await;
    worker.kill().await;
    load.await.expect("it ends with the worker");
    let worker = site.start().await;
    let rows = assert_sizes(&site, &worker).await;
    assert!(rows > 200, "{rows}");
    worker.stop().await;

    let moved = site.command(["reshard", "--data-dir", "data", "--to", "3"]).end().await;
    assert_eq!(moved.code, Some(0), "{}", moved.stderr);
    site.write("pipeline.yaml", manifest("shardCount: 3", ""));
    let worker = site.start().await;
    assert_eq!(assert_sizes(&site, &worker).await, rows);
    worker.ingest().put("unread", "u", json!(1)).await;
    assert_eq!(assert_sizes(&site, &worker).await, rows + 1);
}

/// The bound, in bytes: 2 MiB.
const BYTES_MAX: u64 = 2 << 20;

fn bounded(sources: &str) -> String {
    manifest("shardCount: 2, maxBytes: 2Mi", sources)
}

/// Sends large orders until one is refused; returns how many there are, and what the client was told.
async fn fill(worker: &Worker) -> (usize, String) {
    let mut stored = 0;
    let refused = until("the data to reach its bound", async || {
        let order = orders(stored..stored + 1, |_| json!({"text": "x".repeat(20_000)}));
        let answer = worker.ingest().try_send(&order).await.expect("an answer");
        if answer.status == 200 {
            stored += 1;
            return None;
        }
        assert_eq!(answer.status, 507, "{}", answer.body);
        Some(answer.body["error"].as_str().expect("a reason").to_owned())
    })
    .await;
    (stored, refused)
}

/// The text with the number of bytes that were in use taken out.
fn without_bytes(text: &str) -> String {
    let (before, after) = text.split_once("takes ").expect("the bytes in use");
    let (bytes, after) = after.split_once(" bytes").expect("the bytes in use");
    assert!(bytes.parse::<u64>().expect("a number") > BYTES_MAX, "{text}");
    format!("{before}takes … bytes{after}")
}

/// Deletes the orders, and waits until the worker takes payloads again.
async fn make_room(worker: &Worker, stored: usize) {
    worker.ingest().send(&orders(0..stored, |_| Value::Null)).await;
    until("room", async || worker.status().await["storageError"].is_null().then_some(())).await;
}

#[tokio::test]
async fn data_that_reaches_its_bound_takes_deletions_until_there_is_room() {
    let site = WorkerSite::with(&bounded(""));
    let worker = site.start().await;
    let (stored, refused) = fill(&worker).await;
    assert_eq!(
        without_bytes(&refused),
        "spec.storage.maxBytes: the data takes … bytes, allowed 2097152; raise it, delete keys, or set a retention; \
         nothing of this was stored, send it again when there is room"
    );
    let status = worker.status().await;
    assert_eq!(
        without_bytes(status["storageError"].as_str().expect("an error")),
        "spec.storage.maxBytes: the data takes … bytes, allowed 2097152; raise it, delete keys, or set a retention"
    );
    assert_eq!(status["storageBytesMax"], BYTES_MAX);
    assert_eq!(get(&worker.url("admin", "/readyz")).await.0, 200, "deletions and readers are served");
    let metrics = get(&worker.url("admin", "/metrics")).await.1;
    for series in ["litejoin_storage_bytes_max{} 2097152.0", "litejoin_storage_failing{} 1.0"] {
        assert!(metrics.lines().any(|line| line == series), "{series}: {metrics}");
    }
    assert_eq!(
        assert_sizes(&site, &worker).await,
        i64::try_from(stored).expect("few"),
        "nothing that was refused"
    );

    // A start knows the bound before it takes the first message.
    worker.stop().await;
    let mut worker = site.start().await;
    let answer = worker.ingest().try_send(&orders(0..1, |_| json!(1))).await.expect("an answer");
    assert_eq!(answer.status, 507, "{}", answer.body);

    make_room(&worker, stored).await;
    worker.ingest().put("orders", "small", json!(1)).await;
    assert_eq!(assert_sizes(&site, &worker).await, 1);

    fill(&worker).await;
    site.write("pipeline.yaml", manifest("shardCount: 2, maxBytes: 1Gi", ""));
    worker.reload().await;
    worker.ingest().put("orders", "raised", json!(1)).await;
    assert_eq!(worker.status().await["storageError"], Value::Null);
    assert!(worker.is_running());
}

#[tokio::test]
async fn a_file_waits_while_the_data_is_at_its_bound_and_loses_no_row() {
    let site = WorkerSite::with(&bounded(""));
    let worker = site.start().await;
    let (stored, _) = fill(&worker).await;
    let lines: Vec<String> = (0..300).map(|number| format!("c{number},{}\n", "y".repeat(100))).collect();
    site.write("customers.csv", format!("id,name\n{}", lines.concat()));
    let file = "- {name: customers, file: {path: customers.csv, topic: customers, keyColumns: [id]}}";
    site.write("pipeline.yaml", bounded(file));
    worker.reload().await;
    until("the file to wait", async || {
        let status = worker.status().await;
        let error = status["sources"]["customers"]["lastError"].as_str()?.to_owned();
        error.starts_with("spec.storage.maxBytes: ").then_some(())
    })
    .await;
    assert_eq!(worker.status().await["topics"]["customers"]["rows"], 0);

    make_room(&worker, stored).await;
    until("all rows of the file", async || {
        (worker.status().await["topics"]["customers"]["rows"] == 300).then_some(())
    })
    .await;
    let sources = worker.status().await["topics"]["customers"]["source"].clone();
    assert_eq!(sources, json!(["ingest", "customers"]));
    assert_eq!(assert_sizes(&site, &worker).await, 300);
}
