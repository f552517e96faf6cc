//! Watermarks: a poll asks for what is new since the last one, also after a crash.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use litejoin_tests::server::{Received, Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::WorkerSite;
use serde_json::{Value, json};

use super::{Records, items, manifest, polls, wait_for_keys};

/// The time of the worker in tests that need one, in seconds since 1970.
const CLOCK: i64 = 1_800_000_000;

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

#[tokio::test]
async fn pages_behind_an_unchanged_one_are_asked_for_with_their_own_tags() {
    for (kind, pagination) in [
        ("page", "type: page, param: at, size: 2"),
        ("offset", "type: offset, param: at, size: 2"),
        ("cursor", "type: cursor, param: at, path: next"),
        ("link", "type: link"),
    ] {
        let (server, records) = (Server::start().await, Records::of(5));
        let (served, base) = (records.clone(), server.url("/"));
        server.behave(move |request| {
            let at: usize = request.query("at").and_then(|at| at.parse().ok()).unwrap_or(0);
            let from = if kind == "page" { at * 2 } else { at };
            let all = served.all();
            let rows: Vec<Value> = all.iter().skip(from).take(2).cloned().collect();
            let next = Some(from + 2).filter(|next| *next < all.len());
            let body = json!({"rows": rows, "next": next});
            let tag = format!("\"{}\"", body.to_string().replace('"', ""));
            if request.header("if-none-match") == Some(&tag) {
                return Reply::status(304);
            }
            let reply = Reply::json(&body).with_header("etag", &tag);
            match next.filter(|_| kind == "link") {
                Some(next) => reply.with_header("link", &format!("<{base}?at={next}>; rel=next")),
                None => reply,
            }
        });
        let api = format!(
            "responsePath: rows, detectDeletes: true, watermark: {{strategy: etag}}, pagination: {{{pagination}}}"
        );
        let site = WorkerSite::with(&manifest(&server.url("/"), &api));
        let worker = site.start().await;
        wait_for_keys(&worker, &["1", "2", "3", "4", "5"]).await;
        // Unchanged pages bring no record.
        let accepted = async || worker.status().await["sources"]["polled"]["accepted"].clone();
        polls(&server, 4).await;
        assert_eq!(accepted().await, 5, "{kind}");
        records.put(4, json!({"id": 4, "n": 1}));
        until("the change on page 2", async || (items(&worker).await["4"]["n"] == 1).then_some(())).await;
        // The deletes need all keys: the unchanged pages are asked for once more, without their tags.
        records.remove(5);
        wait_for_keys(&worker, &["1", "2", "3", "4"]).await;
        records.put(6, json!({"id": 6}));
        wait_for_keys(&worker, &["1", "2", "3", "4", "6"]).await;
        polls(&server, 6).await;
        // The tags survive a restart.
        worker.kill().await;
        server.take();
        let worker = site.start().await;
        let asked = server.wait_for(3).await;
        assert!(asked.iter().all(|request| request.header("if-none-match").is_some()), "{kind}: {asked:?}");
        records.put(6, json!({"id": 6, "n": 1}));
        until("the change on page 3", async || (items(&worker).await["6"]["n"] == 1).then_some(())).await;
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_page_that_goes_back_to_what_it_was_is_read_again_after_a_poll_that_failed() {
    let (server, records, is_broken) =
        (Server::start().await, Records::of(2), Arc::new(AtomicBool::new(false)));
    let (served, breaks) = (records.clone(), Arc::clone(&is_broken));
    server.behave(move |request| {
        let at: usize = request.query("at").and_then(|at| at.parse().ok()).unwrap_or(0);
        if at == 1 && breaks.load(Ordering::Relaxed) {
            return Reply::status(500);
        }
        let row = served.all().get(at).cloned();
        let tag = format!("\"{}\"", row.as_ref().map_or(0, |row| row["n"].as_u64().expect("a number")));
        match request.header("if-none-match") == Some(&tag) {
            true => Reply::status(304),
            false => Reply::json(&Value::from_iter(row)).with_header("etag", &tag),
        }
    });
    let api = "watermark: {strategy: etag}, pagination: {type: offset, param: at, size: 1}";
    let site = WorkerSite::with(&manifest(&server.url("/"), api));
    let worker = site.start().await;
    wait_for_keys(&worker, &["1", "2"]).await;
    until("the tags", async || {
        server.received().last().and_then(|last| last.header("if-none-match").map(|_| ()))
    })
    .await;
    is_broken.store(true, Ordering::Relaxed);
    records.put(1, json!({"id": 1, "n": 7}));
    until("the change", async || (items(&worker).await["1"]["n"] == 7).then_some(())).await;
    worker.kill().await;
    records.put(1, json!({"id": 1, "n": 0}));
    let worker = site.start().await;
    until("the change back", async || (items(&worker).await["1"]["n"] == 0).then_some(())).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_timestamp_that_is_none_moves_no_mark() {
    let (hour, day) = (3_600, 24 * 3_600_i64);
    for (max_skew, wrong, says) in [
        (
            "",
            json!("9999-12-31T23:59:59Z"),
            "watermark.path \"at\" finds \"9999-12-31T23:59:59Z\", a time more than 86400 seconds ahead of the clock: the \
             record is stored, and the mark stays where it is; correct it where it comes from, or raise \
             watermark.maxSkew",
        ),
        (
            ", maxSkew: 2h",
            json!(CLOCK + 3 * hour),
            "watermark.path \"at\" finds \"1800010800\", a time more than 7200 seconds ahead of the clock: the \
             record is stored, and the mark stays where it is; correct it where it comes from, or raise \
             watermark.maxSkew",
        ),
        (
            ", maxSkew: 48h",
            json!("zzz"),
            "watermark.path \"at\" finds \"zzz\", which is no time: the record is stored, and the mark stays where it \
             is; correct it where it comes from to a time of RFC 3339 or to seconds or milliseconds since 1970",
        ),
    ] {
        let (server, records) = (Server::start().await, Records::default());
        records.put(1, json!({"id": 1, "at": CLOCK - day}));
        records.put(2, json!({"id": 2, "at": wrong}));
        let served = records.clone();
        server.behave(move |_| Reply::json(&Value::from(served.all())));
        let api = format!("watermark: {{strategy: timestamp, path: at, param: since{max_skew}}}");
        let site = WorkerSite::with(&manifest(&server.url("/"), &api));
        site.set_clock(CLOCK);
        let worker = site.start().await;
        wait_for_keys(&worker, &["1", "2"]).await;
        let asks_since = |since: i64| {
            let since = since.to_string();
            server.received().last().is_some_and(|last| last.query("since") == Some(&since))
        };
        until("the mark", async || asks_since(CLOCK - day).then_some(())).await;
        assert_eq!(worker.status().await["sources"]["polled"]["lastWarning"], says);
        // A time that is only a little ahead is one.
        records.put(3, json!({"id": 3, "at": CLOCK + hour}));
        until("the mark to move", async || asks_since(CLOCK + hour).then_some(())).await;
        records.remove(2);
        until("no warning", async || {
            worker.status().await["sources"]["polled"]["lastWarning"].is_null().then_some(())
        })
        .await;
        let ended = worker.stop().await;
        assert_eq!(ended.stderr.matches("a poll has ended with a warning").count(), 1, "{}", ended.stderr);
    }
}
