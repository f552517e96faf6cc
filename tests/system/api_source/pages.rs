//! Answers in pages: each kind is read to its end, and nowhere else.

use litejoin_tests::server::{Received, Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::WorkerSite;
use serde_json::{Value, json};

use super::{Records, items, manifest, polls, wait_for_keys};

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
async fn a_comma_in_the_title_of_a_link_does_not_end_the_pages() {
    let (server, records) = (Server::start().await, Records::of(3));
    let (served, base) = (records.clone(), server.url("/"));
    server.behave(move |request| {
        let page: usize = request.query("page").and_then(|page| page.parse().ok()).unwrap_or(1);
        let reply = Reply::json(&Value::from_iter(served.all().get(page - 1).cloned()));
        let next = page + 1;
        match page < served.all().len() {
            true => reply.with_header(
                "link",
                &format!("<{base}?page={next}>; title=\"Page {next}, of 3\"; rel=\"next\""),
            ),
            false => reply,
        }
    });
    let api = "detectDeletes: true, pagination: {type: link}";
    let site = WorkerSite::with(&manifest(&server.url("/"), api));
    let worker = site.start().await;
    wait_for_keys(&worker, &["1", "2", "3"]).await;
    worker.stop().await;
}

#[tokio::test]
async fn the_values_of_an_object_may_be_the_records() {
    let server = Server::start().await;
    // "é", as ISO-8859-1 has it.
    server.behave(|_| {
        let body = b"{\"data\":{\"a\":{\"id\":1},\"b\":{\"id\":\"\xe9\"}}}";
        let reply = Reply::status(200).with_header("content-type", "application/json; charset=ISO-8859-1");
        reply.with_body(*body)
    });
    let site = WorkerSite::with(&manifest(&server.url("/"), "responsePath: data.@values"));
    let worker = site.start().await;
    wait_for_keys(&worker, &["1", "é"]).await;
    worker.stop().await;
}
