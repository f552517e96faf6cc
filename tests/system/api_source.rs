//! The api source against a REST server with the habits of real ones: pages of every kind, marks of every kind, moods.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use expect_test::expect;
use litejoin_tests::certificates::Authority;
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
        // What was seen is known after a restart.
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
        // A poll that does not get to its end says nothing about what is gone.
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
        // Also what went while nobody looked.
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
    // What was noted stays so over a restart, and what is back where it was has changed all the same.
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
async fn every_kind_of_pages_is_read_to_its_end() {
    let records = Records::of(7);
    let of = |request: &Received, name: &str| request.query(name).and_then(|text| text.parse::<usize>().ok());
    let rows = |all: &[Value], from: usize, count: usize| -> Vec<Value> {
        all.iter().skip(from).take(count).cloned().collect()
    };
    for (kind, api, count) in [
        (
            "page",
            "responsePath: rows, pagination: {type: page, param: p, start: 1, sizeParam: per, size: 2}",
            4,
        ),
        ("unsized", "responsePath: rows, pagination: {type: page, param: p, start: 1}", 4),
        ("sized", "responsePath: rows, pagination: {type: page, param: p, start: 1, size: 3}", 3),
        ("offset", "responsePath: rows, pagination: {type: offset, param: skip, sizeParam: per, size: 3}", 3),
        ("cursor", "responsePath: rows, pagination: {type: cursor, param: after, path: meta.next}", 3),
        ("link", "responsePath: rows, pagination: {type: link}", 3),
        ("cut", "responsePath: rows, pagination: {type: page, param: p, start: 1, maxPages: 2}", 2),
        ("none", "responsePath: rows", 1),
    ] {
        let server = Server::start().await;
        let (all, base) = (records.all(), server.url("/"));
        server.behave(move |request| {
            let per = of(request, "per").unwrap_or(3);
            let from = match kind {
                "page" | "unsized" | "sized" | "cut" => (of(request, "p").expect("a page") - 1) * per,
                "offset" => of(request, "skip").expect("an offset"),
                "cursor" => of(request, "after").unwrap_or(0),
                _ => of(request, "from").unwrap_or(0),
            };
            let next = from + per;
            let more = next < all.len();
            let meta = if more { json!({"next": next}) } else { json!({"next": null}) };
            let reply = Reply::json(&json!({"rows": rows(&all, from, per), "meta": meta}));
            match more && kind == "link" {
                true => reply.with_header(
                    "link",
                    &format!("<{base}?from=0>; rel=\"first\", <{base}?from={next}>; rel=\"next\""),
                ),
                false => reply,
            }
        });
        let site = WorkerSite::with(&manifest(&server.url("/"), &format!("interval: 1h, {api}")));
        let worker = site.start().await;
        let keys: &[&str] = match kind {
            "cut" => &["1", "2", "3", "4", "5", "6"],
            "none" => &["1", "2", "3"],
            _ => &["1", "2", "3", "4", "5", "6", "7"],
        };
        wait_for_keys(&worker, keys).await;
        let received =
            until("the pages", async || Some(server.received()).filter(|all| all.len() >= count)).await;
        worker.stop().await;
        assert_eq!(server.received().len(), count, "{kind}: {received:?}");
    }
}

#[tokio::test]
async fn a_page_without_records_ends_no_poll_that_leads_on() {
    for kind in ["cursor", "link"] {
        let (server, records) = (Server::start().await, Records::of(6));
        let (served, base) = (records.clone(), server.url("/"));
        server.behave(move |request| {
            let from: u64 = request.query("from").and_then(|from| from.parse().ok()).unwrap_or(0);
            // Pages are of two ids each, whether or not there are such records.
            let ids = from + 1..=from + 2;
            let rows: Vec<Value> = served
                .all()
                .into_iter()
                .filter(|record| ids.contains(&record["id"].as_u64().expect("a number")))
                .collect();
            let next = Some(from + 2).filter(|next| *next < 6);
            let reply = Reply::json(&json!({"rows": rows, "next": next}));
            match next.filter(|_| kind == "link") {
                Some(next) => reply.with_header("link", &format!("<{base}?from={next}>; rel=next")),
                None => reply,
            }
        });
        let way = if kind == "link" { "" } else { ", param: from, path: next" };
        let api = format!(
            "responsePath: rows, detectDeletes: true, pagination: {{type: {kind}, size: 2, sizeParam: per{way}}}"
        );
        let site = WorkerSite::with(&manifest(&server.url("/"), &api));
        let worker = site.start().await;
        wait_for_keys(&worker, &["1", "2", "3", "4", "5", "6"]).await;
        for gone in [2, 3, 4] {
            records.remove(gone);
        }
        wait_for_keys(&worker, &["1", "5", "6"]).await;
        polls(&server, 6).await;
        assert_eq!(worker.status().await["topics"]["items"]["deleted"], 3, "{kind}");
        records.put(6, json!({"id": 6, "n": 1}));
        until("the change", async || (items(&worker).await["6"]["n"] == 1).then_some(())).await;
        worker.stop().await;
    }
}

#[tokio::test]
async fn pages_on_another_server_and_pages_that_go_round_are_not_followed() {
    let (server, other) = (Server::start().await, Server::start().await);
    let elsewhere = format!("<{}>; rel=next", other.url("/"));
    server.behave(move |request| {
        let reply = Reply::json(&json!({"rows": [{"id": 1}], "next": "same"}));
        if request.path() == "/link" { reply.with_header("link", &elsewhere) } else { reply }
    });
    for (path, pagination, error) in [
        ("/link", "{type: link}", "its Link header leads to another server; that is not followed"),
        (
            "/cursor",
            "{type: cursor, param: after, path: next}",
            "pagination.path: the answer has the same cursor as the one before (\"same\"), so there is no way on",
        ),
    ] {
        let site = WorkerSite::with(&manifest(
            &server.url(path),
            &format!("responsePath: rows, pagination: {pagination}"),
        ));
        let worker = site.start().await;
        wait_for_error(&worker, error).await;
        worker.stop().await;
    }
    assert_eq!(other.received(), []);
}

#[tokio::test]
async fn a_poll_asks_only_for_what_is_new_also_after_a_crash() {
    for strategy in ["timestamp", "cursor"] {
        let (server, records) = (Server::start().await, Records::default());
        (1..=3).for_each(|id| records.put(id, json!({"id": id, "at": id * 10})));
        let served = records.clone();
        server.behave(move |request| {
            let since: u64 = request.query("since").and_then(|since| since.parse().ok()).unwrap_or(0);
            let new: Vec<Value> =
                served.all().into_iter().filter(|record| record["at"].as_u64() > Some(since)).collect();
            let cursor = new.iter().filter_map(|record| record["at"].as_u64()).max();
            Reply::json(&json!({"rows": new, "cursor": cursor}))
        });
        let path = if strategy == "timestamp" { "at" } else { "cursor" };
        let api = format!(
            "responsePath: rows, watermark: {{strategy: {strategy}, path: {path}, param: since, initial: \"10\"}}"
        );
        let site = WorkerSite::with(&manifest(&server.url("/"), &api));
        let worker = site.start().await;
        wait_for_keys(&worker, &["2", "3"]).await;
        let asked = |received: &[Received]| -> Vec<String> {
            received.iter().map(|request| request.query("since").unwrap_or_default().to_owned()).collect()
        };
        assert_eq!(asked(&server.received())[0], "10");
        until("the mark to move", async || {
            asked(&server.received()).contains(&"30".to_owned()).then_some(())
        })
        .await;
        records.put(4, json!({"id": 4, "at": 40}));
        wait_for_keys(&worker, &["2", "3", "4"]).await;
        until("the mark to move on", async || {
            asked(&server.received()).contains(&"40".to_owned()).then_some(())
        })
        .await;
        worker.kill().await;
        server.take();
        let worker = site.start().await;
        assert_eq!(asked(&server.wait_for(1).await)[0], "40", "{strategy}");
        // Another question has another mark.
        let other = manifest(&server.url("/?all=1"), &api);
        site.write("pipeline.yaml", other);
        server.take();
        worker.reload().await;
        until("the other question", async || {
            let received = server.received();
            received.iter().find(|request| request.query("all").is_some()).cloned()
        })
        .await;
        let first =
            server.received().into_iter().find(|request| request.query("all").is_some()).expect("it came");
        assert_eq!(first.query("since"), Some("10"));
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_lost_shard_takes_the_mark_back() {
    let server = Server::start().await;
    server.behave(|request| match request.query("after") {
        None => Reply::json(
            &json!({"rows": (1..=20).map(|id| json!({"id": id})).collect::<Vec<_>>(), "next": "end"}),
        ),
        Some(_) => Reply::json(&json!({"rows": []})),
    });
    let site = WorkerSite::with(&manifest(
        &server.url("/"),
        "responsePath: rows, watermark: {strategy: cursor, path: next, param: after}",
    ));
    let worker = site.start().await;
    until("the mark", async || {
        server.received().iter().any(|r| r.query("after") == Some("end")).then_some(())
    })
    .await;
    worker.stop().await;
    // As an older copy of the shards would have it.
    #[expect(clippy::disallowed_methods, reason = "the worker does not run")]
    let shard =
        rusqlite::Connection::open(site.data_dir().join("shard_0.db")).expect("the shard can be opened");
    shard.execute_batch("DELETE FROM _offsets; DELETE FROM items").expect("rows can be removed");
    drop(shard);
    server.take();
    let worker = site.start().await;
    assert_eq!(server.wait_for(1).await[0].query("after"), None, "the mark does not count any more");
    until("all records", async || (items(&worker).await.len() == 20).then_some(())).await;
    worker.stop().await;
}

#[tokio::test]
async fn an_etag_spares_what_has_not_changed() {
    let (server, records) = (Server::start().await, Records::of(2));
    let served = records.clone();
    server.behave(move |request| {
        let all = served.all();
        let tag = format!("\"v{}\"", all.len());
        match request.header("if-none-match") {
            Some(known) if known == tag => Reply::status(304),
            _ => Reply::json(&Value::from(all)).with_header("etag", &tag),
        }
    });
    let site =
        WorkerSite::with(&manifest(&server.url("/"), "watermark: {strategy: etag}, detectDeletes: true"));
    let worker = site.start().await;
    wait_for_keys(&worker, &["1", "2"]).await;
    let known = |request: &Received| request.header("if-none-match").map(str::to_owned);
    assert_eq!(known(&server.received()[0]), None);
    let polled = polls(&server, 3).await;
    assert_eq!(known(&polled[2]).as_deref(), Some("\"v2\""));
    let accepted = worker.status().await["sources"]["polled"]["accepted"].clone();
    assert_eq!(accepted, 2, "and 304 deletes nothing");
    records.remove(1);
    wait_for_keys(&worker, &["2"]).await;
    until("the mark", async || known(server.received().last()?).filter(|tag| tag == "\"v1\"")).await;
    worker.kill().await;
    server.take();
    let worker = site.start().await;
    assert_eq!(known(&server.wait_for(1).await[0]).as_deref(), Some("\"v1\""), "it survives a restart");
    worker.stop().await;
}

#[tokio::test]
async fn no_more_requests_are_sent_than_are_allowed() {
    let server = Server::start().await;
    server.behave(|_| Reply::json(&json!([{"id": 1}])));
    let site =
        WorkerSite::with(&manifest(&server.url("/"), "interval: 1ms, rateLimit: {requests: 3, per: 2s}"));
    let worker = site.start().await;
    let received = server.wait_for(5).await;
    // They set out two seconds apart, and may come in a little less.
    for pair in received.windows(4) {
        assert!(pair[3].at - pair[0].at > Duration::from_secs(1), "{:?}", pair[3].at - pair[0].at);
    }
    worker.stop().await;
}

#[tokio::test]
async fn polls_come_as_often_as_they_are_wanted() {
    let server = Server::start().await;
    server.behave(|_| Reply::json(&json!([{"id": 1}])));
    let site = WorkerSite::with(&manifest(&server.url("/"), "interval: 1500ms"));
    let worker = site.start().await;
    let received = server.wait_for(2).await;
    assert!(received[1].at - received[0].at > Duration::from_millis(750));
    worker.stop().await;
}

#[tokio::test]
async fn a_server_in_a_bad_mood_is_given_time() {
    let (server, mood) = (Server::start().await, Arc::new(AtomicUsize::new(0)));
    let present = Arc::clone(&mood);
    server.behave(move |_| match present.load(Ordering::Relaxed) {
        0 => Reply::json(&json!([{"id": 1}])),
        1 => Reply::status(429).with_header("retry-after", "2").with_body("too many"),
        2 => Reply::Hang,
        3 => Reply::BreakOff,
        4 => Reply::status(200).with_body("<html>Bad Gateway</html>"),
        5 => Reply::status(200).with_body([0xff, 0xfe]),
        6 => Reply::status(302).with_header("location", "http://elsewhere.example/"),
        8 => Reply::status(204),
        _ => Reply::status(500),
    });
    let api = "timeout: 1s, interval: 20ms, maxConsecutiveFailures: 1000000, detectDeletes: true";
    let site = WorkerSite::with(&manifest(&server.url("/"), api));
    let worker = site.start().await;
    wait_for_keys(&worker, &["1"]).await;
    mood.store(1, Ordering::Relaxed);
    wait_for_error(&worker, "answered 429 Too Many Requests: too many").await;
    server.take();
    mood.store(2, Ordering::Relaxed);
    wait_for_error(&worker, "no answer within 1s (timeout)").await;
    let received = server.received();
    assert!(
        received.len() <= 12,
        "it was left alone for two seconds, and not asked a hundred times: {}",
        received.len()
    );
    for (number, error) in [
        (3, "connection closed before message completed"),
        (4, "the answer is no JSON: expected value at line 1 column 1"),
        (5, "the answer is no text in UTF-8"),
        (6, "answered 302 Found, a redirect that is not followed; write the URL that it leads to"),
        (7, "answered 500 Internal Server Error"),
    ] {
        mood.store(number, Ordering::Relaxed);
        let error_now = async || worker.status().await["sources"]["polled"]["lastError"].to_string();
        until(error, async || error_now().await.contains(error).then_some(())).await;
    }
    mood.store(8, Ordering::Relaxed);
    until("nothing to be taken for well", async || {
        worker.status().await["sources"]["polled"]["lastError"].is_null().then_some(())
    })
    .await;
    assert_eq!(items(&worker).await.len(), 1, "and for no delete");
    worker.stop().await;
}

#[tokio::test]
async fn a_server_that_keeps_failing_is_asked_less_and_less() {
    // After as many failures as are allowed the wait is twice the interval, then four times …
    for (failures, waits) in [(3, [400, 400, 800, 1_600]), (1, [800, 1_600, 3_200, 6_400])] {
        let server = Server::start().await;
        server.behave(|_| Reply::status(500));
        let api = format!("interval: 400ms, maxConsecutiveFailures: {failures}, maxBackoff: 10s");
        let site = WorkerSite::with(&manifest(&server.url("/"), &api));
        let worker = site.start().await;
        let received = server.wait_for(5).await;
        for (pair, wait) in received.windows(2).zip(waits) {
            let passed = pair[1].at - pair[0].at;
            assert!(
                passed > Duration::from_millis(wait * 3 / 4),
                "{failures}: {passed:?}, at least some {wait} ms"
            );
        }
        worker.stop().await;
    }
    // … and never more than maxBackoff: doubled each time, the waits of so many polls would be hours.
    let server = Server::start().await;
    server.behave(|_| Reply::status(500));
    let api = "interval: 50ms, maxConsecutiveFailures: 1, maxBackoff: 100ms";
    let site = WorkerSite::with(&manifest(&server.url("/"), api));
    let worker = site.start().await;
    server.wait_for(24).await;
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
async fn the_server_is_verified_and_gets_our_credentials() {
    let (authority, site) = (Authority::new(), WorkerSite::new());
    site.write("ca.pem", authority.pem());
    authority.sign(&["worker"]).write(site.path(), "worker");
    let secure = authority.server(&authority.sign(&["api.example"]), Some(&authority));
    let secure = Server::start_tls(secure).await;
    let tls = "tls: {ca: {path: ca.pem}, cert: {path: worker.crt}, key: {path: worker.key}, serverName: api.example}";
    let pair = base64::engine::general_purpose::STANDARD.encode("ada:t0ken");
    for (auth, header, value) in [
        ("bearer: {env: '${TOKEN}'}", "authorization", "Bearer t0ken".to_owned()),
        (
            "basic: {username: {env: '${WHO}'}, password: {env: '${TOKEN}'}}",
            "authorization",
            format!("Basic {pair}"),
        ),
        (
            "header: {name: X-Key, value: {secretKeyRef: {name: api, key: key}}}",
            "x-key",
            "from-file".to_owned(),
        ),
    ] {
        secure.take();
        secure.behave(|_| Reply::json(&json!([{"id": 1}])));
        site.write("pipeline.yaml", manifest(&secure.url("/"), &format!("{tls}, auth: {{{auth}}}")));
        std::fs::create_dir_all(site.path().join("secrets/api")).expect("a folder can be made");
        site.write("secrets/api/key", "from-file");
        let run = site.run(["--secrets-dir", "secrets"]);
        let worker = run.with_variable("TOKEN", "t0ken").with_variable("WHO", "ada").start().await;
        let request = secure.wait_for(1).await.remove(0);
        assert_eq!(request.header(header), Some(value.as_str()));
        worker.stop().await;
    }
    // A server that is not checked may be anybody; it checks us all the same.
    secure.take();
    let unchecked = "tls: {insecureSkipVerify: true, cert: {path: worker.crt}, key: {path: worker.key}}";
    site.write("pipeline.yaml", manifest(&secure.url("/"), unchecked));
    let worker = site.start().await;
    secure.wait_for(1).await;
    worker.stop().await;
    // Without any of it there is no way in.
    site.write("pipeline.yaml", manifest(&secure.url("/"), ""));
    let worker = site.start().await;
    let error = until("the refusal", async || {
        worker.status().await["sources"]["polled"]["lastError"].as_str().map(str::to_owned)
    })
    .await;
    assert!(error.contains("certificate"), "{error}");
    worker.stop().await;
}

#[tokio::test]
async fn requests_go_through_the_proxy() {
    let proxy = Server::start().await;
    proxy.behave(|_| Reply::json(&json!([{"id": 1}])));
    let site = WorkerSite::with(&manifest("http://api.example/items", r#"proxy: "http://${PROXY}""#));
    let worker = site.run([]).with_variable("PROXY", &proxy.address().to_string()).start().await;
    wait_for_keys(&worker, &["1"]).await;
    assert_eq!(proxy.received()[0].target, "http://api.example/items");
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
