//! What stands between an SSE sink and a page: proxies that buffer, polyfills that can't set headers, JavaScript's numbers.

use litejoin_tests::client::client;
use litejoin_tests::ingest::message;
use litejoin_tests::worker::{WorkerSite, get};
use serde_json::{Value, json};

use super::{MANIFEST, order, subscribe};

#[tokio::test]
async fn proxies_pass_events_on_at_once_and_clients_know_when_to_come_back() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let response = client().get(worker.url("sink live", "/subscribe")).send().await;
    let mut response = response.expect("an answer");
    let headers = response.headers();
    assert_eq!(
        headers.get("x-accel-buffering").map(|value| value.as_bytes()),
        Some(&b"no"[..]),
        "{headers:?}"
    );
    assert_eq!(headers["cache-control"], "no-cache");
    let mut said = Vec::new();
    while said.len() < b"retry: 1000\n\n".len() {
        said.extend(response.chunk().await.expect("a stream").expect("it goes on"));
    }
    let said = String::from_utf8(said).expect("events are text");
    assert!(said.starts_with("retry: 1000\n\n"), "{said}");
}

#[tokio::test]
async fn a_client_that_sets_no_header_goes_on_from_the_id_in_its_url() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let mut client = subscribe(&worker, "join=enriched", None).await;
    let mut ids = Vec::new();
    for key in ["o1", "o2", "o3"] {
        worker.ingest().send(&[order(key, "c1")]).await;
        ids.push(client.expect_next().await.result().id);
    }
    let by_url = format!("join=enriched&lastEventId={}", ids[0]);
    let mut client = subscribe(&worker, &by_url, None).await;
    assert_eq!(client.expect_next().await.result().id, ids[1]);
    // The header is of the last event before the connection broke; the URL is as old as the page.
    let mut client = subscribe(&worker, &by_url, Some(&ids[1])).await;
    assert_eq!(client.expect_next().await.result().id, ids[2]);
    let mut client = subscribe(&worker, "join=enriched&lastEventId=nonsense", None).await;
    assert_eq!(client.expect_next().await.event, "reset");
    let mut client = subscribe(&worker, "join=enriched&replay=true&lastEventId=", None).await;
    assert_eq!(client.replayed().await.len(), 3);
}

#[tokio::test]
async fn integers_that_javascript_can_not_hold_come_as_text_if_asked() {
    const LARGE: u64 = 9_007_199_254_740_993;
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let mut plain = subscribe(&worker, "join=by_customer", None).await;
    let mut text = subscribe(&worker, "join=by_customer&numbers=text", None).await;
    let order = message("orders", "o1", json!({"customer": LARGE}));
    let epoch = worker.ingest().send(&[order]).await;
    let seen = |event: Value| [event["key"].clone(), event["rows"][0]["customer"].clone()];
    assert_eq!(seen(plain.expect_next().await.json()), [json!(LARGE), json!(LARGE)]);
    let as_text = [json!(LARGE.to_string()), json!(LARGE.to_string())];
    assert_eq!(seen(text.expect_next().await.json()), as_text);
    let mut replayed = subscribe(&worker, "join=by_customer&numbers=text&replay=true", None).await;
    let replayed = replayed.replayed().await;
    assert_eq!(seen(replayed[0].whole.clone()), as_text);
    let path = format!("/snapshot?join=by_customer&numbers=text&minEpoch={epoch}");
    let snapshot: Value = serde_json::from_str(&get(&worker.url("sink live", &path)).await.1).expect("JSON");
    assert_eq!(seen(snapshot["results"][0].clone()), as_text);
    assert_eq!(snapshot["results"][0]["rows"][0]["orders"], 1);
}
