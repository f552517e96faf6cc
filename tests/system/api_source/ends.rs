//! Where pages end: by a sign of the API, and rows are deleted behind no other end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use litejoin_tests::server::{Received, Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::{Value, json};

use super::{Records, items, manifest, polls, wait_for_error, wait_for_keys};

/// A number in a query parameter.
fn number(request: &Received, name: &str) -> Option<usize> {
    request.query(name).and_then(|text| text.parse().ok())
}

/// Waits for a text in `lastWarning` of the source.
async fn wait_for_warning(worker: &Worker, expected: &str) {
    let what = format!("the warning {expected:?}");
    until(&what, async || {
        (worker.status().await["sources"]["polled"]["lastWarning"] == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn pages_that_a_server_keeps_shorter_than_asked_are_all_read() {
    let all = ["1", "2", "3", "4", "5", "6", "7"];
    // The server sends at most two records a page, whatever it is asked for.
    for (kind, targets) in [
        ("page", ["/?per=5&at=0", "/?per=5&at=1", "/?per=5&at=2", "/?per=5&at=3", "/?per=5&at=4"]),
        ("offset", ["/?per=5&at=0", "/?per=5&at=2", "/?per=5&at=4", "/?per=5&at=6", "/?per=5&at=7"]),
    ] {
        let (server, records) = (Server::start().await, Records::of(7));
        let served = records.clone();
        server.behave(move |request| {
            let at = number(request, "at").expect("a place");
            let from = if kind == "page" { at * 2 } else { at };
            Reply::json(&Value::from_iter(served.all().into_iter().skip(from).take(2)))
        });
        let api =
            format!("detectDeletes: true, pagination: {{type: {kind}, param: at, sizeParam: per, size: 5}}");
        let site = WorkerSite::with(&manifest(&server.url("/"), &api));
        let worker = site.start().await;
        wait_for_keys(&worker, &all).await;
        let asked: Vec<String> =
            server.wait_for(5).await.into_iter().take(5).map(|request| request.target).collect();
        assert_eq!(asked, targets);
        records.remove(7);
        wait_for_keys(&worker, &all[..6]).await;
        worker.stop().await;
    }
}

#[tokio::test]
async fn the_page_behind_a_short_first_one_need_not_be_there() {
    for status in [200, 400, 404, 416, 422] {
        let (server, records) = (Server::start().await, Records::of(3));
        let served = records.clone();
        server.behave(move |request| match (number(request, "p"), status) {
            (Some(1), _) => Reply::json(&Value::from(served.all())),
            (_, 200) => Reply::json(&json!([])),
            (_, status) => Reply::status(status).with_body("Invalid page."),
        });
        let api = "detectDeletes: true, pagination: {type: page, param: p, start: 1, size: 5}";
        let site = WorkerSite::with(&manifest(&server.url("/"), api));
        let worker = site.start().await;
        wait_for_keys(&worker, &["1", "2", "3"]).await;
        records.remove(2);
        wait_for_keys(&worker, &["1", "3"]).await;
        assert_eq!(worker.status().await["sources"]["polled"]["lastError"], Value::Null, "{status}");
        worker.stop().await;
    }
}

/// The answers of an API that has two pages and says so in its own way.
fn two_pages(way: &str, base: &str, rows: &[Value], request: &Received) -> Reply {
    let is_second = request.query("p") == Some("2");
    let page = &rows[if is_second { 2.min(rows.len())..rows.len() } else { 0..2 }];
    let body = match way {
        "a repeated cursor" => json!({"rows": page, "next": "2"}),
        "morePath" => {
            json!({"rows": page, "next": if is_second { "3" } else { "2" }, "meta": {"more": !is_second}})
        }
        "totalPath" => json!({"rows": page, "next": if is_second { "3" } else { "2" }, "total": rows.len()}),
        _ => json!({"rows": page}),
    };
    let link = match (way, is_second) {
        ("results=false", false) => format!(
            r#"<{base}?p=0>; rel="previous"; results="false", <{base}?p=2>; rel="next"; results="true""#
        ),
        ("results=false", true) => format!(
            r#"<{base}?p=1>; rel="previous"; results="true", <{base}?p=3>; rel="next"; results="false""#
        ),
        ("a link to itself", _) => format!("<{base}?p=2>; rel=next"),
        _ => return Reply::json(&body),
    };
    Reply::json(&body).with_header("link", &link)
}

#[tokio::test]
async fn pages_end_where_the_api_says_so() {
    let cursor = "type: cursor, param: p, path: next";
    for (way, pagination) in [
        ("results=false", "type: link".to_owned()),
        ("a link to itself", "type: link".to_owned()),
        ("a repeated cursor", cursor.to_owned()),
        ("morePath", format!("{cursor}, morePath: meta.more")),
        ("totalPath", format!("{cursor}, totalPath: total")),
    ] {
        let (server, records) = (Server::start().await, Records::of(4));
        let (served, base) = (records.clone(), server.url("/"));
        server.behave(move |request| two_pages(way, &base, &served.all(), request));
        let api = format!("responsePath: rows, detectDeletes: true, pagination: {{{pagination}}}");
        let site = WorkerSite::with(&manifest(&server.url("/"), &api));
        let worker = site.start().await;
        wait_for_keys(&worker, &["1", "2", "3", "4"]).await;
        records.remove(4);
        wait_for_keys(&worker, &["1", "2", "3"]).await;
        let pages: Vec<Option<String>> =
            server.take().iter().map(|request| request.query("p").map(str::to_owned)).collect();
        let status = worker.status().await["sources"]["polled"].clone();
        worker.stop().await;
        for (at, page) in pages.iter().enumerate() {
            let expected = (at % 2 == 1).then_some("2");
            assert_eq!(page.as_deref(), expected, "{way}: {pages:?}");
        }
        assert_eq!((&status["lastError"], &status["lastWarning"]), (&Value::Null, &Value::Null), "{way}");
    }
}

#[tokio::test]
async fn an_end_that_the_api_contradicts_deletes_nothing() {
    for (end, pagination, warning) in [
        (
            json!({"more": true}),
            "type: cursor, param: p, path: next, morePath: more",
            "the pages end where pagination.morePath says that there are more, so nothing counts as gone; compare \
             pagination with what the API sends",
        ),
        (
            json!({"total": 4}),
            "type: page, param: p, start: 1, totalPath: total",
            "the pages end after 2 records where pagination.totalPath says 4, so nothing counts as gone; compare \
             pagination with what the API sends",
        ),
    ] {
        let (server, is_broken) = (Server::start().await, Arc::new(AtomicBool::new(false)));
        let breaks = Arc::clone(&is_broken);
        server.behave(move |request| {
            let page = number(request, "p").unwrap_or(1);
            let mut body = json!({"rows": [{"id": page * 2 - 1}, {"id": page * 2}], "total": 4, "more": page == 1, "next": 2});
            if breaks.load(Ordering::Relaxed) {
                body["next"] = Value::Null;
                if page == 2 {
                    body["rows"] = json!([]);
                }
                body.as_object_mut().expect("an object").extend(end.as_object().expect("an object").clone());
            }
            Reply::json(&body)
        });
        let api = format!("responsePath: rows, detectDeletes: true, pagination: {{{pagination}}}");
        let site = WorkerSite::with(&manifest(&server.url("/"), &api));
        let worker = site.start().await;
        wait_for_keys(&worker, &["1", "2", "3", "4"]).await;
        is_broken.store(true, Ordering::Relaxed);
        wait_for_warning(&worker, warning).await;
        polls(&server, 4).await;
        assert_eq!(items(&worker).await.len(), 4);
        is_broken.store(false, Ordering::Relaxed);
        until("no warning", async || {
            worker.status().await["sources"]["polled"]["lastWarning"].is_null().then_some(())
        })
        .await;
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_poll_that_is_cut_says_so_and_deletes_nothing() {
    let (server, records) = (Server::start().await, Records::of(4));
    let served = records.clone();
    server.behave(move |request| {
        let page = number(request, "p").expect("a page");
        Reply::json(&Value::from_iter(served.all().into_iter().skip(page * 2).take(2)))
    });
    let api = "detectDeletes: true, pagination: {type: page, param: p, size: 2, maxPages: 2}";
    let site = WorkerSite::with(&manifest(&server.url("/"), api));
    let worker = site.start().await;
    wait_for_warning(
        &worker,
        "a poll has more pages than pagination.maxPages (2); the rest is not read, and nothing counts as gone",
    )
    .await;
    (1..=3).for_each(|id| records.remove(id));
    wait_for_keys(&worker, &["4"]).await;
    worker.stop().await;
}

#[tokio::test]
async fn the_next_url_stands_in_the_answer() {
    for (path, field) in [("next", "next"), ("links.next", "links"), ("@odata.nextLink", "@odata.nextLink")] {
        for is_absolute in [true, false] {
            let (server, records) = (Server::start().await, Records::of(5));
            let (served, base) = (records.clone(), if is_absolute { server.url("") } else { String::new() });
            server.behave(move |request| {
                let from = number(request, "from").unwrap_or(0);
                let rows: Vec<Value> = served.all().into_iter().skip(from).take(2).collect();
                let next = (from + 2 < served.all().len())
                    .then(|| format!("{base}/v2/items?x=a%20b&from={}", from + 2));
                let next = if field == "links" { json!({"next": next}) } else { json!(next) };
                Reply::json(&json!({"rows": rows, field: next}))
            });
            let api = format!(
                "responsePath: rows, detectDeletes: true, pagination: {{type: nextUrl, path: {path:?}}}"
            );
            let site = WorkerSite::with(&manifest(&server.url("/items?x=1"), &api));
            let worker = site.start().await;
            wait_for_keys(&worker, &["1", "2", "3", "4", "5"]).await;
            let targets: Vec<String> =
                server.wait_for(3).await.into_iter().take(3).map(|request| request.target).collect();
            assert_eq!(targets, ["/items?x=1", "/v2/items?x=a%20b&from=2", "/v2/items?x=a%20b&from=4"]);
            records.remove(5);
            wait_for_keys(&worker, &["1", "2", "3", "4"]).await;
            worker.stop().await;
        }
    }
}

#[tokio::test]
async fn credentials_go_to_no_host_that_is_not_named() {
    let (server, other) = (Server::start().await, Server::start().await);
    let next = other.url("/more");
    server.behave(move |_| {
        Reply::json(&json!({"rows": [{"id": 1}], "next": next}))
            .with_header("link", &format!("<{next}>; rel=next"))
    });
    other.behave(|_| Reply::json(&json!({"rows": [{"id": 2}]})));
    let (own, others) = (server.url(""), other.url(""));
    let host = other.address().to_string();
    for (pagination, place) in
        [("type: link", "its Link header"), ("type: nextUrl, path: next", "pagination.path \"next\"")]
    {
        let api = |more: &str| {
            let auth = "auth: {bearer: {env: '${TOKEN}'}}";
            manifest(
                &server.url("/"),
                &format!("responsePath: rows, {auth}, pagination: {{{pagination}{more}}}"),
            )
        };
        let site = WorkerSite::with(&api(""));
        let worker = site.run([]).with_variable("TOKEN", "t0ken").start().await;
        let error = format!(
            "{place} leads to {others}, and requests with the source's headers and credentials go to {own} alone; add \
             {host:?} to pagination.hosts if they may go there too"
        );
        wait_for_error(&worker, &error).await;
        assert_eq!(other.take(), []);
        site.write("pipeline.yaml", api(&format!(", hosts: ['{host}']")));
        worker.reload().await;
        wait_for_keys(&worker, &["1", "2"]).await;
        assert_eq!(other.take()[0].header("authorization"), Some("Bearer t0ken"));
        worker.stop().await;
    }
}
