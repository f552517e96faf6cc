//! Servers that refuse, fail, hang or ask for time, and the results that wait meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use litejoin_tests::results::{Event, Results};
use litejoin_tests::server::{Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::WorkerSite;
use serde_json::json;

use super::{event, key, manifest, orders, sink_status};

#[tokio::test]
async fn temporary_failures_are_tried_again_and_lasting_ones_become_dead_letters() {
    let server = Server::start().await;
    let seen = std::sync::Mutex::new(BTreeMap::<String, usize>::new());
    server.behave(move |request| {
        let key = key(request);
        let status = key.trim_start_matches("status-").parse().unwrap_or(200);
        let mut seen = seen.lock().expect("nobody panics");
        let times = seen.entry(key).or_default();
        *times += 1;
        match (status, *times) {
            (1, 1) => Reply::BreakOff,
            (2.., 1..3) => Reply::status(status),
            _ => Reply::status(200),
        }
    });
    let url = server.url("/hook");
    let site = WorkerSite::with(&manifest(&[("s", format!(r#"url: "{url}""#))]));
    let worker = site.start().await;
    let (passing, lasting) =
        ([401, 403, 404, 405, 407, 408, 425, 429, 500, 502, 503, 504, 1], [400, 409, 410, 413, 422]);
    for status in passing.iter().chain(&lasting) {
        worker.ingest().put("orders", &format!("status-{status}"), json!({"n": 0})).await;
    }
    worker.ingest().put("orders", "end", json!({"n": 0})).await;
    sink_status(&worker, "delivered", &json!(passing.len() + 1)).await;
    sink_status(&worker, "deadLetters", &json!(lasting.len())).await;
    let received = server.received();
    let times = |status: u16| received.iter().filter(|r| key(r) == format!("status-{status}")).count();
    for status in passing {
        assert_eq!(times(status), if status == 1 { 2 } else { 3 }, "{status}");
    }
    for status in lasting {
        assert_eq!(times(status), 1, "{status}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_server_that_asks_for_time_gets_it() {
    let server = Server::start().await;
    let first = AtomicUsize::new(0);
    server.behave(move |_| match first.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::status(429).with_header("retry-after", "2").with_body("slow down"),
        _ => Reply::status(200),
    });
    let url = server.url("/hook");
    let site = WorkerSite::with(&manifest(&[("s", format!(r#"url: "{url}", concurrency: 1"#))]));
    let worker = site.start().await;
    worker.ingest().send(&orders(5)).await;
    until("the wait to be shown", async || {
        let sink = worker.status().await["sinks"]["s"].clone();
        (sink["circuit"] == "open" && sink["lastError"] == "answered 429 Too Many Requests: slow down")
            .then_some(())
    })
    .await;
    sink_status(&worker, "delivered", &json!(5)).await;
    let received = server.received();
    assert!(received[1].at - received[0].at >= Duration::from_secs(2), "nothing is sent before that time");
    assert_eq!(worker.status().await["sinks"]["s"]["deadLetters"], 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_server_that_asks_for_no_time_at_all_is_tried_on_our_schedule() {
    let server = Server::start().await;
    server.behave(|_| Reply::status(503).with_header("retry-after", "0"));
    let site = WorkerSite::with(
        &manifest(&[("s", format!(r#"url: "{}""#, server.url("/hook")))])
            .replace("10ms", "1h")
            .replace("20ms", "2h"),
    );
    let worker = site.start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    sink_status(&worker, "deadLetters", &json!(1)).await;
    worker.ingest().put("orders", "o2", json!({"n": 2})).await;
    sink_status(&worker, "deadLetters", &json!(2)).await;
    assert_eq!(server.received().len(), 2, "each once, and in an hour again");
    worker.stop().await;
}

#[tokio::test]
async fn best_effort_tries_once_and_goes_on() {
    let server = Server::start().await;
    server.behave(|request| Reply::status(if key(request) < "o005".to_owned() { 500 } else { 200 }));
    let url = server.url("/hook");
    let manifest = manifest(&[("s", format!(r#"url: "{url}", concurrency: 1"#))]);
    let site = WorkerSite::with(
        &manifest.replace("circuitFailures: 3", "guarantee: best_effort, circuitFailures: 100"),
    );
    let worker = site.start().await;
    worker.ingest().send(&orders(10)).await;
    sink_status(&worker, "delivered", &json!(5)).await;
    sink_status(&worker, "dropped", &json!(5)).await;
    let mut keys: Vec<String> = server.received().iter().map(key).collect();
    keys.sort();
    let expected: Vec<String> = (0..10).map(|n| format!("o{n:03}")).collect();
    assert_eq!(keys, expected, "each once");
    assert_eq!(worker.status().await["sinks"]["s"]["deadLetters"], 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_server_that_hangs_or_is_gone_is_tried_until_it_takes() {
    let server = Server::start().await;
    server.behave(|_| Reply::Hang);
    let url = server.url("/hook");
    let site = WorkerSite::with(&manifest(&[("s", format!(r#"url: "{url}", timeout: 1s"#))]));
    let worker = site.start().await;
    worker.ingest().send(&orders(20)).await;
    sink_status(&worker, "lastError", &json!("no answer within 1s (timeout)")).await;
    sink_status(&worker, "circuit", &json!("open")).await;
    let address = server.close().await;
    until("the refusal", async || {
        let status = worker.status().await["sinks"]["s"]["lastError"].to_string();
        status.contains("onnection refused").then_some(())
    })
    .await;
    let server = Server::start_at(address).await;
    sink_status(&worker, "delivered", &json!(20)).await;
    sink_status(&worker, "deadLetters", &json!(0)).await;
    let received: Vec<Event> = server.received().iter().map(event).collect();
    assert_eq!(Results::folded(&received).rows.len(), 20);
    worker.stop().await;
}

#[tokio::test]
async fn a_request_whose_connection_breaks_off_is_sent_again_at_once_under_its_key() {
    let server = Server::start().await;
    let o2_came = AtomicUsize::new(0);
    server.behave(move |request| match key(request).as_str() {
        "o2" if o2_came.fetch_add(1, Ordering::Relaxed) == 0 => Reply::BreakOff,
        "o3" => Reply::BreakOff,
        _ => Reply::status(200),
    });
    let site = WorkerSite::with(
        &manifest(&[("s", format!(r#"url: "{}""#, server.url("/hook")))])
            .replace("10ms", "1h")
            .replace("20ms", "2h"),
    );
    let worker = site.start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    sink_status(&worker, "delivered", &json!(1)).await;
    // The connection is kept, and breaks off under the second request.
    worker.ingest().put("orders", "o2", json!({"n": 2})).await;
    sink_status(&worker, "delivered", &json!(2)).await;
    let received = server.take();
    let keys: Vec<String> = received.iter().map(key).collect();
    assert_eq!(keys, ["o1", "o2", "o2"]);
    assert_eq!(received[1].header("idempotency-key"), received[2].header("idempotency-key"));
    assert_eq!(server.connections(), 2, "the second attempt has a connection of its own");
    // Once more and not for ever: then it is a failure like others.
    worker.ingest().put("orders", "o3", json!({"n": 3})).await;
    sink_status(&worker, "deadLetters", &json!(1)).await;
    assert_eq!(server.received().len(), 2);
    let error = worker.status().await["sinks"]["s"]["lastError"].clone();
    assert_eq!(
        error,
        "the connection broke off before an answer (client error (SendRequest): connection closed before message completed)"
    );
    worker.stop().await;
}

#[tokio::test]
async fn a_server_that_has_no_name_or_no_certificate_is_left_alone_and_told_once() {
    let server = Server::start().await;
    for url in ["http://nowhere.invalid/".to_owned(), server.url("/hook").replace("http:", "https:")] {
        let site = WorkerSite::with(&manifest(&[("s", format!(r#"url: "{url}", concurrency: 1"#))]));
        let worker = site.start().await;
        worker.ingest().send(&orders(10)).await;
        sink_status(&worker, "circuit", &json!("open")).await;
        // The circuit has opened after three failures; what comes behind them waits, and probes go on.
        let sink = until("probes", async || {
            let sink = worker.status().await["sinks"]["s"].clone();
            (sink["failed"].as_u64() > Some(6)).then_some(sink)
        })
        .await;
        assert!(sink["deadLetters"].as_u64() <= Some(3), "{url}: {sink}");
        assert_ne!(sink["lastError"], json!(null), "{url}: {sink}");
        let log = worker.log();
        let told =
            log.lines().filter(|line| line.contains("the sink keeps failing; leaving it alone for a while"));
        assert_eq!(told.count(), 1, "{url}: {log}");
        worker.stop().await;
    }
}
