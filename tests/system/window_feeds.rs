//! Joins over windows across reloads: rows of a window are handed to a join that comes, also one that was there before,
//! and follow the columns of the window.

use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite, get};
use serde_json::{Value, json};

/// A window of clicks by page with this query, and these joins.
fn manifest(query: &str, joins: &[(&str, &str)]) -> String {
    let window = json!({
        "name": "counts", "type": "tumbling", "size": "10s", "topic": "clicks", "keyColumn": "page", "query": query,
        "eventTime": {"allowedLateness": "8760h"}, "sinks": ["live"],
    });
    let join = |(name, query): &(&str, &str)| json!({"name": name, "query": query, "sinks": ["live"]});
    json!({
        "apiVersion": "litejoin.io/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": "feeds"},
        "spec": {
            "storage": {"shardCount": 3, "flushInterval": "1ms"},
            "retention": {"duration": "17520h"},
            "admin": {"addr": "127.0.0.1:0"},
            "sources": [{"name": "ingest", "http": {"addr": "127.0.0.1:0"}}],
            "windows": if query.is_empty() { json!([]) } else { json!([window]) },
            "joins": joins.iter().map(join).collect::<Vec<_>>(),
            "sinks": [{"name": "live", "sse": {"addr": "127.0.0.1:0"}}],
        },
    })
    .to_string()
}

const COUNTS: &str =
    "SELECT payload->>'page' AS page, count(*) AS clicks, window_start AS start FROM clicks GROUP BY page";

const BUSY: (&str, &str) = ("busy", "SELECT page, clicks FROM counts WHERE clicks > 0");

fn click(key: &str, page: &str, second: i64) -> Value {
    let mut message = message("clicks", key, json!({"page": page}));
    message["timestamp"] = json!(litejoin_tests::golden::BEGINNING + second);
    message
}

/// Waits until the rows of a join are these, in any order.
async fn shows(worker: &Worker, join: &str, expected: Value) {
    let mut expected: Vec<String> =
        expected.as_array().expect("a list of rows").iter().map(Value::to_string).collect();
    expected.sort_unstable();
    until(&format!("{join} to show {expected:?}"), async || {
        let (status, text) = get(&worker.url("sink live", &format!("/snapshot?join={join}"))).await;
        assert_eq!(status, 200, "{text}");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let results = answer["results"].as_array().expect("a list of results").iter();
        let mut rows: Vec<String> = results
            .flat_map(|result| result["rows"].as_array().expect("a list of rows"))
            .map(Value::to_string)
            .collect();
        rows.sort_unstable();
        (rows == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_join_over_a_window_comes_goes_and_comes_back() {
    let site = WorkerSite::with(&manifest(COUNTS, &[]));
    site.set_clock(litejoin_tests::golden::BEGINNING + 20);
    let worker = site.start().await;
    let ingest = Ingest::new(worker.address("source ingest"));
    let reload = async |manifest: String| {
        site.write("pipeline.yaml", manifest);
        let config = worker.reload().await;
        config["lastReload"].clone()
    };
    ingest.send(&[click("1", "a", 1), click("2", "a", 2), click("3", "b", 3), click("4", "c", 15)]).await;
    let start = litejoin_tests::golden::BEGINNING;
    let (a, b) = (
        json!({"page": "a", "clicks": 2, "start": start}),
        json!({"page": "b", "clicks": 1, "start": start}),
    );
    shows(&worker, "counts", json!([a, b])).await;

    assert_ne!(reload(manifest(COUNTS, &[BUSY])).await["outcome"], "refused");
    shows(&worker, "busy", json!([{"page": "a", "clicks": 2}, {"page": "b", "clicks": 1}])).await;
    let refused = ingest.try_send(&[message("_of_counts", "x", json!({}))]).await.expect("an answer");
    assert_eq!(refused.status, 400, "{}", refused.body);
    let validated = site.command(["validate", "-f", "pipeline.yaml"]).end().await;
    assert!(validated.stdout.contains("1 sink\n"), "{}", validated.stdout);

    // Rows that go while nothing reads them are gone when a join comes back.
    assert_ne!(reload(manifest(COUNTS, &[])).await["outcome"], "refused");
    ingest.send(&[message("clicks", "2", Value::Null), message("clicks", "3", Value::Null)]).await;
    shows(&worker, "counts", json!([{"page": "a", "clicks": 1, "start": start}])).await;
    assert_ne!(reload(manifest(COUNTS, &[BUSY])).await["outcome"], "refused");
    shows(&worker, "busy", json!([{"page": "a", "clicks": 1}])).await;

    let visits = COUNTS.replace("AS clicks", "AS visits");
    let few = ("busy", "SELECT page, visits FROM counts");
    assert_ne!(reload(manifest(&visits, &[few])).await["outcome"], "refused");
    shows(&worker, "busy", json!([{"page": "a", "visits": 1}])).await;

    let two = [few, ("more", "SELECT b.page, c.visits FROM busy b JOIN counts c ON c.page = b.page")];
    assert_ne!(reload(manifest(&visits, &two)).await["outcome"], "refused");
    ingest.send(&[click("5", "a", 5), click("6", "d", 6)]).await;
    shows(&worker, "more", json!([{"page": "a", "visits": 2}, {"page": "d", "visits": 1}])).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_window_whose_rows_are_fed_is_wrong_to_remove() {
    let site = WorkerSite::with(
        &manifest(COUNTS, &[BUSY]).replace(r#""http":{"addr""#, r#""http":{"topics":["clicks"],"addr""#),
    );
    let worker = site.start().await;
    let without = manifest("", &[BUSY]).replace(r#""http":{"addr""#, r#""http":{"topics":["clicks"],"addr""#);
    site.write("pipeline.yaml", without);
    let config = worker.reload().await;
    assert_eq!(config["lastReload"]["outcome"], "refused", "{config}");
    let error = config["lastReload"]["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("no source fills topic \"counts\""), "{config}");
    worker.stop().await;
}

#[tokio::test]
async fn a_run_to_the_end_of_its_sources_tells_what_follows_from_results() {
    let site = WorkerSite::new();
    let lines = [click("1", "a", 1), click("2", "a", 2), click("3", "b", 3), click("4", "c", 45)];
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    site.write("clicks.ndjson", lines);
    let file = r#""file":{"path":"clicks.ndjson","format":"ndjson"}"#;
    let most = ("most", "SELECT max(clicks) AS clicks FROM busy");
    let manifest = manifest(COUNTS, &[BUSY, most])
        .replace(r#""http":{"addr":"127.0.0.1:0"}"#, file)
        .replace(r#""sse":{"addr":"127.0.0.1:0"}"#, r#""stdout":{}"#);
    site.write("pipeline.yaml", manifest);
    let ended = site.command(["run", "-f", "pipeline.yaml", "--once"]).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let told = |text: &str| ended.stdout.lines().filter(|line| line.contains(text)).count();
    assert_eq!(told(r#""query":"busy","key":"a","rows":[{"page":"a","clicks":2}]"#), 1, "{}", ended.stdout);
    assert_eq!(told(r#""query":"busy","key":"b""#), 1, "{}", ended.stdout);
    assert_eq!(told(r#""query":"most","key":2,"rows":[{"clicks":2}]"#), 1, "{}", ended.stdout);
}
