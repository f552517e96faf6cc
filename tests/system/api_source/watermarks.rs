//! Watermarks: a poll asks for what is new since the last one, also after a crash.

use expect_test::expect;
use litejoin_tests::server::{Received, Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::WorkerSite;
use serde_json::{Value, json};

use super::{Records, items, manifest, polls, wait_for_keys};

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
        // A request that differs has a watermark of its own.
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
    // The shard is now as in an older copy.
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
