//! How often the api source asks: by its interval and its rate limit, and less often while the server fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use litejoin_tests::server::{Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::WorkerSite;
use serde_json::json;

use super::{items, manifest, wait_for_error, wait_for_keys};

#[tokio::test]
async fn no_more_requests_are_sent_than_are_allowed() {
    let server = Server::start().await;
    server.behave(|_| Reply::json(&json!([{"id": 1}])));
    let site =
        WorkerSite::with(&manifest(&server.url("/"), "interval: 1ms, rateLimit: {requests: 3, per: 2s}"));
    let worker = site.start().await;
    let received = server.wait_for(5).await;
    // Requests set out two seconds apart, and may arrive with a little less between them.
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
        8 => Reply::status(301).with_header("location", "/v2/items?token=x"),
        9 => Reply::status(304),
        10 => Reply::status(200).with_header("content-encoding", "deflate").with_body([0x78, 0x9c]),
        11 => Reply::status(204),
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
        (
            8,
            "answered 301 Moved Permanently, a redirect to /v2/items that is not followed; write the URL that it leads to",
        ),
        (
            9,
            "answered 304 Not Modified, though no ETag of the worker's was sent; remove If-None-Match and \
             If-Modified-Since from headers if they are there",
        ),
        (
            10,
            "the answer is compressed by \\\"deflate\\\" though gzip was offered, and only gzip is read; add the header \
             Accept-Encoding: identity",
        ),
    ] {
        mood.store(number, Ordering::Relaxed);
        let error_now = async || worker.status().await["sources"]["polled"]["lastError"].to_string();
        until(error, async || error_now().await.contains(error).then_some(())).await;
    }
    mood.store(11, Ordering::Relaxed);
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
async fn a_used_up_rate_limit_is_waited_for() {
    for status in [403, 429] {
        let server = Server::start().await;
        server.behave(move |_| {
            let reply = Reply::status(status).with_header("x-ratelimit-remaining", "0");
            reply.with_header("x-ratelimit-reset", "3600").with_body("wait")
        });
        let site = WorkerSite::with(&manifest(&server.url("/"), "interval: 10ms"));
        let worker = site.start().await;
        server.wait_for(1).await;
        let error = until("the error", async || {
            worker.status().await["sources"]["polled"]["lastError"].as_str().map(str::to_owned)
        })
        .await;
        assert!(error.starts_with(&format!("answered {status}")), "{error}");
        let ended = worker.stop().await;
        assert!(ended.stderr.contains(r#""wait":"3600s""#), "{}", ended.stderr);
        assert_eq!(server.received().len(), 1);
    }
}
