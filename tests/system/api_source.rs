//! The api source against a REST server: which requests it sends, and what it makes of the records.

mod connection;
mod ends;
mod pace;
mod pages;
mod watermarks;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use expect_test::expect;
use litejoin_tests::server::{Received, Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::{Value, json};

/// A pipeline with one api source of these fields that fills `items`.
fn manifest(url: &str, api: &str) -> String {
    let api = if api.contains("interval") { api.to_owned() } else { format!("interval: 50ms, {api}") };
    let api = if api.contains("keyPath") { api } else { format!("keyPath: id, {api}") };
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 2}}
  admin: {{addr: "127.0.0.1:0"}}
  sources:
    - {{name: polled, topic: items, api: {{url: "{url}", {api}}}}}
  joins:
    - {{name: all_items, query: "SELECT key, payload, _change AS change FROM items", sinks: [live]}}
  sinks:
    - {{name: live, sse: {{addr: "127.0.0.1:0"}}}}
"#
    )
}

/// The records of a server, by their ids.
#[derive(Clone, Default)]
struct Records(Arc<Mutex<BTreeMap<u64, Value>>>);

impl Records {
    fn of(count: u64) -> Self {
        let records = Self::default();
        (1..=count).for_each(|id| records.put(id, json!({"id": id, "n": 0})));
        records
    }

    fn put(&self, id: u64, record: Value) {
        self.0.lock().expect("nobody panics").insert(id, record);
    }

    fn remove(&self, id: u64) {
        self.0.lock().expect("nobody panics").remove(&id);
    }

    fn all(&self) -> Vec<Value> {
        self.0.lock().expect("nobody panics").values().cloned().collect()
    }
}

/// The payload of each key that the join has.
async fn items(worker: &Worker) -> BTreeMap<String, Value> {
    rows(worker).await.into_iter().map(|(key, (payload, _))| (key, payload)).collect()
}

/// Payload and `_change` of each key.
async fn rows(worker: &Worker) -> BTreeMap<String, (Value, Value)> {
    let (_, results) = worker.snapshot("live", "all_items", 0).await;
    let parse = |text: &str| -> Value { serde_json::from_str(text).expect("JSON") };
    let rows = results.rows.into_values().map(|rows| {
        let row = parse(&rows[0]);
        let text = |field: &str| parse(row[field].as_str().expect("a text"));
        (row["key"].as_str().expect("a text").to_owned(), (text("payload"), text("change")))
    });
    rows.collect()
}

async fn wait_for_keys(worker: &Worker, expected: &[&str]) {
    let what = format!("the keys {expected:?}");
    until(&what, async || items(worker).await.into_keys().eq(expected.iter().copied()).then_some(())).await;
}

async fn wait_for_error(worker: &Worker, expected: &str) {
    let error = async || worker.status().await["sources"]["polled"]["lastError"].as_str().map(str::to_owned);
    let what = format!("the error {expected:?}");
    until(&what, async || error().await.filter(|error| error == expected)).await;
}

/// Waits for so many whole polls from now on.
async fn polls(server: &Server, count: usize) -> Vec<Received> {
    server.take();
    server.wait_for(count + 1).await
}

#[tokio::test]
async fn records_are_asked_for_as_the_manifest_says() {
    let server = Server::start().await;
    server
        .behave(|_| Reply::json(&json!({"data": {"rows": [{"meta": {"key": "a"}}, {"meta": {"key": 7}}]}})));
    let url = server.url("/${WHERE}?x=1");
    let api = r#"method: POST, body: '{"query": "{ rows }"}', keyPath: meta.key, responsePath: data.rows,
        headers: {X-Team: "${TEAM}", Accept: application/json}"#;
    let site = WorkerSite::with(&manifest(&url, &api.replace('\n', " ")));
    let worker = site.run([]).with_variable("WHERE", "graph").with_variable("TEAM", "blue").start().await;
    wait_for_keys(&worker, &["7", "a"]).await;
    let request = server.wait_for(1).await.remove(0);
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/graph?x=1"));
    assert_eq!(request.text(), r#"{"query": "{ rows }"}"#);
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(
        (request.header("x-team"), request.header("accept")),
        (Some("blue"), Some("application/json"))
    );
    worker.stop().await;

    let site = WorkerSite::with(&manifest(
        &server.url("/put"),
        "method: PUT, body: text, headers: {Content-Type: text/plain}, responsePath: data.rows.0, keyPath: meta.key",
    ));
    server.take();
    let worker = site.start().await;
    wait_for_keys(&worker, &["a"]).await;
    let request = server.wait_for(1).await.remove(0);
    assert_eq!((request.method.as_str(), request.header("content-type")), ("PUT", Some("text/plain")));
    worker.stop().await;
}

#[tokio::test]
async fn a_change_is_one_of_fields_or_of_the_text() {
    for (detection, noticed) in [("diff", false), ("hash", true)] {
        let (server, order) = (Server::start().await, Arc::new(AtomicUsize::new(0)));
        let swapped = Arc::clone(&order);
        server.behave(move |_| {
            let body =
                [r#"[{"id":1,"a":1,"b":2}]"#, r#"[ {"b":2, "a":1, "id":1} ]"#, r#"[{"id":1,"a":1,"b":3}]"#];
            Reply::status(200).with_body(body[swapped.load(Ordering::Relaxed)])
        });
        let site = WorkerSite::with(&manifest(&server.url("/"), &format!("changeDetection: {detection}")));
        let worker = site.start().await;
        wait_for_keys(&worker, &["1"]).await;
        polls(&server, 2).await;
        let counts = async |worker: &Worker| worker.status().await["topics"]["items"].clone();
        assert_eq!(counts(&worker).await["updated"], 0, "nothing has changed so far");
        order.store(1, Ordering::Relaxed);
        polls(&server, 3).await;
        assert_eq!(counts(&worker).await["updated"], u64::from(noticed), "{detection}");
        order.store(2, Ordering::Relaxed);
        until("the change", async || (rows(&worker).await["1"].0["b"] == 3).then_some(())).await;
        assert_eq!(rows(&worker).await["1"].1, json!({"op": "updated", "fields": ["b"]}));
        // Records that were seen are known after a restart.
        worker.kill().await;
        let worker = site.start().await;
        polls(&server, 2).await;
        let counts = counts(&worker).await;
        assert_eq!((&counts["created"], &counts["updated"]), (&json!(0), &json!(0)), "{detection}: {counts}");
        worker.stop().await;
    }
}

#[tokio::test]
async fn records_that_are_gone_are_deleted_where_that_is_wanted() {
    for detects in [true, false] {
        let (server, records, broken) =
            (Server::start().await, Records::of(5), Arc::new(AtomicUsize::new(0)));
        let (served, mood) = (records.clone(), Arc::clone(&broken));
        server.behave(move |request| {
            let all = served.all();
            let page: usize = request.query("page").and_then(|page| page.parse().ok()).expect("a page");
            match (mood.load(Ordering::Relaxed), page) {
                (1, 1) => Reply::status(500),
                (2, 0) => Reply::json(&json!({"error": "try later"})),
                (4, 0) => Reply::json(&json!({"rows": null, "errors": [{"message": "try later"}]})),
                (3, 0) => Reply::json(&json!({"rows": [{"id": 1, "n": 0}, {"no": "id"}]})),
                _ => Reply::json(&json!({"rows": all.chunks(2).nth(page).unwrap_or_default()})),
            }
        });
        let api = format!(
            "responsePath: rows, detectDeletes: {detects}, pagination: {{type: page, param: page, size: 2}}"
        );
        let site = WorkerSite::with(&manifest(&server.url("/"), &api));
        let worker = site.start().await;
        wait_for_keys(&worker, &["1", "2", "3", "4", "5"]).await;
        // A poll that does not get to its end deletes no record.
        for mood in 1..=4 {
            broken.store(mood, Ordering::Relaxed);
            polls(&server, 4).await;
        }
        let error = worker.status().await["sources"]["polled"]["lastError"].clone();
        let unclear = "responsePath \"rows\" finds null, which may stand for an error as well as for no records, so \
                       nothing is deleted; detectDeletes needs an API that sends an empty list where there are none";
        assert_eq!(error, if detects { json!(unclear) } else { Value::Null });
        records.remove(2);
        records.remove(5);
        records.put(6, json!({"id": 6}));
        broken.store(0, Ordering::Relaxed);
        let left: &[&str] = if detects { &["1", "3", "4", "6"] } else { &["1", "2", "3", "4", "5", "6"] };
        wait_for_keys(&worker, left).await;
        let deleted = worker.status().await["topics"]["items"]["deleted"].clone();
        assert_eq!(deleted, if detects { 2 } else { 0 });
        // A record that goes while no worker runs is deleted too.
        worker.kill().await;
        records.remove(6);
        let worker = site.start().await;
        polls(&server, 8).await;
        let left: &[&str] = if detects { &["1", "3", "4"] } else { &["1", "2", "3", "4", "5", "6"] };
        wait_for_keys(&worker, left).await;
        worker.stop().await;
    }
}

#[tokio::test]
async fn the_first_poll_may_be_only_noted() {
    let (server, records) = (Server::start().await, Records::of(3));
    let served = records.clone();
    server.behave(move |_| Reply::json(&Value::from(served.all())));
    let site = WorkerSite::with(&manifest(&server.url("/"), "initialSnapshot: false, detectDeletes: true"));
    let worker = site.start().await;
    polls(&server, 3).await;
    assert_eq!(items(&worker).await.len(), 0);
    records.put(2, json!({"id": 2, "n": 1}));
    records.put(4, json!({"id": 4}));
    wait_for_keys(&worker, &["2", "4"]).await;
    // Noted records stay noted over a restart, and a record that is back at its old value counts as changed.
    worker.kill().await;
    records.put(2, json!({"id": 2, "n": 0}));
    let worker = site.start().await;
    until("the change back", async || {
        items(&worker).await.get("2").filter(|item| item["n"] == 0).map(|_| ())
    })
    .await;
    records.remove(1);
    polls(&server, 2).await;
    records.put(1, json!({"id": 1, "n": 0}));
    wait_for_keys(&worker, &["1", "2", "4"]).await;
    worker.stop().await;
}

#[tokio::test]
async fn records_that_cannot_be_read_are_kept_once() {
    let server = Server::start().await;
    server.behave(|_| Reply::status(200).with_body(r#"[{"id":1},{"id":null},7,{"id":{"x":1}}]"#));
    let site = WorkerSite::with(&manifest(&server.url("/"), ""));
    let worker = site.start().await;
    wait_for_keys(&worker, &["1"]).await;
    polls(&server, 3).await;
    let list = ["dlq", "export", "--source", "polled", "--data-dir", "data"];
    let ended = site.command(list).end().await;
    let mut lines: Vec<String> = ended
        .stdout
        .lines()
        .map(|line| {
            let dead_letter: Value = serde_json::from_str(line).expect("JSON");
            format!(
                "{} {}",
                dead_letter["body"].as_str().expect("a body"),
                dead_letter["reason"].as_str().expect("a reason")
            )
        })
        .collect();
    lines.sort();
    expect![[r#"
        7 keyPath "id" finds nothing
        {"id":null} keyPath "id" finds null, and a key is a text, a number or a boolean
        {"id":{"x":1}} keyPath "id" finds an object, and a key is a text, a number or a boolean"#]]
    .assert_eq(&lines.join("\n"));
    worker.stop().await;
}

#[tokio::test]
async fn fields_that_cannot_go_together_are_refused() {
    let mut said = String::new();
    for (api, also) in [
        ("detectDeletes: true, watermark: {strategy: cursor, path: next, param: after}", ""),
        ("detectDeletes: true", "    - {name: ingest, http: {addr: \":0\", topics: [Items]}}\n"),
        ("method: GET, body: x", ""),
    ] {
        let manifest =
            manifest("http://api.example/", api).replace("  joins:\n", &format!("{also}  joins:\n"));
        let ended = WorkerSite::with(&manifest).command(["validate", "-f", "pipeline.yaml"]).end().await;
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        said += &ended.stderr;
    }
    expect![[r#"
        pipeline.yaml:9: spec.sources[0].api.detectDeletes: a poll that asks only for what is new does not show what is gone; remove it or the watermark
        pipeline.yaml:10: spec.sources[1].http.topics[0]: two topics are called "items" and "Items", which is one name to SQL; topics, joins and windows are tables of one database, rename one
        pipeline.yaml:10: spec.sources[1]: detectDeletes of "polled" removes every row of "items" that its API does not have, also those of "ingest"; give them topics of their own
        pipeline.yaml:9: spec.sources[0].api.body: a GET has no body; remove it or write method: POST
    "#]]
    .assert_eq(&said);
}
