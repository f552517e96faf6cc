//! The http sink against a server that takes, refuses, hangs, redirects and goes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use expect_test::expect;
use hmac::{Hmac, Mac as _};
use litejoin_tests::certificates::Authority;
use litejoin_tests::ingest::message;
use litejoin_tests::repetition::{chance, seeds};
use litejoin_tests::results::{Event, EventId, Results};
use litejoin_tests::server::{Received, Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use rand::RngExt as _;
use serde_json::{Value, json};
use sha2::Sha256;

/// A pipeline with sinks, each a name and the fields of its `http`.
fn manifest(sinks: &[(&str, String)]) -> String {
    let sinks: String = sinks
        .iter()
        .map(|(name, http)| format!("    - {{name: {name}, joins: [all_orders], http: {{{http}}}}}\n"))
        .collect();
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 2}}
  admin: {{addr: "127.0.0.1:0"}}
  delivery: {{circuitFailures: 3, dlq: {{retryInterval: 10ms, maxBackoff: 20ms}}}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [orders]}}}}
  joins:
    - {{name: all_orders, query: "SELECT key, payload->>'n' AS n FROM orders"}}
  sinks:
{sinks}"#
    )
}

fn orders(count: u64) -> Vec<Value> {
    (0..count).map(|n| message("orders", &format!("o{n:03}"), json!({"n": n}))).collect()
}

fn event(request: &Received) -> Event {
    Event::read(request.text())
}

fn key(request: &Received) -> String {
    event(request).key.as_str().expect("keys of orders are texts").to_owned()
}

async fn sink_status(worker: &Worker, field: &str, expected: &Value) {
    let what = format!("{field} to be {expected}");
    until(&what, async || (worker.status().await["sinks"]["s"][field] == *expected).then_some(())).await;
}

#[tokio::test]
async fn each_result_is_posted_with_its_id_and_the_headers_that_are_asked_for() {
    let server = Server::start().await;
    let http = format!(
        r#"url: "{}", headers: {{X-Team: blue, X-From: "${{WHO}}"}}"#,
        server.url("/hook?v=1").replace("/hook", "/${WHERE}")
    );
    let site = WorkerSite::with(&manifest(&[("s", http)]));
    let worker = site.run([]).with_variable("WHERE", "hook").with_variable("WHO", "tests").start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    worker.ingest().put("orders", "o1", Value::Null).await;
    let received = server.wait_for(2).await;
    for (request, op) in received.iter().zip(["created", "deleted"]) {
        let event = event(request);
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/hook?v=1"));
        assert_eq!((event.op.as_str(), event.query.as_str()), (op, "all_orders"));
        assert_eq!(request.header("idempotency-key"), Some(event.id.as_str()));
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!((request.header("x-team"), request.header("x-from")), (Some("blue"), Some("tests")));
        assert_eq!(request.header("user-agent"), Some(concat!("litejoin/", env!("CARGO_PKG_VERSION"))));
        assert_eq!(request.header("litejoin-signature"), None);
    }
    sink_status(&worker, "delivered", &json!(2)).await;
    worker.stop().await;
}

#[tokio::test]
async fn credentials_come_from_secrets_and_variables_and_stay_there() {
    let server = Server::start().await;
    let url = |path: &str| format!(r#"url: "{}""#, server.url(path));
    let site = WorkerSite::with(&manifest(&[
        ("s", format!("{}, auth: {{bearer: {{env: '${{TOKEN}}'}}}}", url("/bearer"))),
        (
            "basic",
            format!(
                "{}, auth: {{basic: {{username: {{secretKeyRef: {{name: api, key: user}}}}, password: {{env: '${{TOKEN}}'}}}}}}",
                url("/basic")
            ),
        ),
        (
            "header",
            format!(
                "{}, auth: {{header: {{name: X-Api-Key, value: {{secretKeyRef: {{name: api, key: token}}}}}}}}",
                url("/header")
            ),
        ),
        ("signed", format!("{}, signingKey: {{env: '${{TOKEN}}'}}", url("/signed"))),
        ("filled", format!(r#"{}, headers: {{X-Key: "v1 ${{KEY}}"}}"#, url("/filled?key=${KEY}"))),
    ]));
    std::fs::create_dir_all(site.path().join("secrets/api")).expect("a folder can be made");
    site.write("secrets/api/user", "ada\n");
    site.write("secrets/api/token", "file-s3cret\n");
    let run = ["--secrets-dir", "secrets"];
    let worker =
        site.run(run).with_variable("TOKEN", "env-s3cret").with_variable("KEY", "key s3cret/1").start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    let by_path = |received: Vec<Received>| -> BTreeMap<String, Received> {
        received.into_iter().map(|request| (request.target.clone(), request)).collect()
    };
    let received = by_path(server.wait_for(5).await);
    let authorization = |path: &str| received[path].header("authorization");
    assert_eq!(authorization("/bearer"), Some("Bearer env-s3cret"));
    let pair = base64::engine::general_purpose::STANDARD.encode("ada:env-s3cret");
    assert_eq!(authorization("/basic"), Some(format!("Basic {pair}").as_str()));
    assert_eq!(received["/header"].header("x-api-key"), Some("file-s3cret"));
    assert_eq!(authorization("/header"), None);
    let mut mac = Hmac::<Sha256>::new_from_slice(b"env-s3cret").expect("any key will do");
    mac.update(&received["/signed"].body);
    let signature: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        received["/signed"].header("litejoin-signature"),
        Some(format!("sha256={signature}").as_str())
    );

    assert_eq!(received["/filled?key=key%20s3cret/1"].header("x-key"), Some("v1 key s3cret/1"));

    // A Secret that is rotated is used at once; a server that repeats what it got does not spread it, wherever what is
    // shown of its answer ends.
    site.write("secrets/api/token", "n3w-s3cret");
    server.take();
    server.behave(|request| {
        let got: String = request.headers.values().map(|value| format!("{value} ")).collect();
        Reply::status(422).with_body(format!("got {} {got}", request.target))
    });
    worker.ingest().put("orders", "o1", json!({"n": 2})).await;
    let received = by_path(server.wait_for(5).await);
    assert_eq!(received["/header"].header("x-api-key"), Some("n3w-s3cret"));
    let all_say = async |text: &str| {
        until("all to be refused", async || {
            let sinks = worker.status().await["sinks"].clone();
            sinks
                .as_object()?
                .values()
                .all(|sink| sink["lastError"].as_str().is_some_and(|error| error.contains(text)))
                .then_some(())
        })
        .await;
        worker.status().await.to_string()
    };
    let mut told = all_say("answered 422 Unprocessable Entity: got ").await;
    for n in 0..2 {
        server.behave(move |request| {
            let names = ["authorization", "x-api-key", "x-key"];
            let value = names.iter().find_map(|name| request.header(name)).unwrap_or_default();
            let credential = value.split_once(' ').map_or(value, |(_, credential)| credential);
            // What is before it takes up all that is shown but the first half of it.
            let before = format!("try {n} {}", "-".repeat(294 - credential.len() / 2));
            Reply::status(422).with_body(before + credential)
        });
        worker.ingest().put("orders", "o1", json!({"n": 3 + n})).await;
        told += &all_say(&format!("answered 422 Unprocessable Entity: try {n} ---")).await;
    }
    let log = worker.stop().await.stderr;
    for text in [&told, &log] {
        for secret in ["s3cret", "env-s", "n3w", "key s", &pair[..8]] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
}

#[tokio::test]
async fn a_start_without_a_variable_or_credential_says_which() {
    let sink = |http: &str| {
        WorkerSite::with(&manifest(&[("s", format!(r#"url: "http://127.0.0.1:1/${{PART}}", {http}"#))]))
    };
    let mut said = String::new();
    for (http, variable) in [
        ("", "UNSET"),
        ("auth: {bearer: {env: '${TOKEN}'}}", "PART"),
        ("auth: {bearer: {secretKeyRef: {name: api, key: token}}}", "PART"),
        ("tls: {ca: {path: absent.pem}}", "PART"),
        ("signingKey: {env: '${SIGNER}'}", "PART"),
    ] {
        let ended = sink(http).run([]).with_variable(variable, "x").end().await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        said += &ended.stderr;
    }
    expect![[r#"
        error: sink s: url: the environment variable PART is not set; set it where the worker is started
        error: sink s: auth.bearer: the environment variable TOKEN is not set; set it where the worker is started
        error: sink s: auth.bearer: Secret api cannot be looked up: the worker was started without --secrets-dir; give it the folder that holds api/token, or write env in place of secretKeyRef
        error: sink s: tls.ca: could not read absent.pem: No such file or directory (os error 2)
        error: sink s: signingKey: the environment variable SIGNER is not set; set it where the worker is started
    "#]]
    .assert_eq(&said);
}

#[tokio::test]
async fn several_results_go_in_one_request_and_some_requests_at_once() {
    let server = Server::start().await;
    let url = server.url("/hook");
    let site =
        WorkerSite::with(&manifest(&[("s", format!(r#"url: "{url}", batchSize: 10, concurrency: 3"#))]));
    let worker = site.start().await;
    let held = server.hold().await;
    worker.ingest().send(&orders(200)).await;
    until("three requests at once", async || (server.under_way() == 3).then_some(())).await;
    drop(held);
    sink_status(&worker, "delivered", &json!(200)).await;
    assert_eq!(server.most_at_once(), 3);
    let received = server.take();
    let batches: Vec<Value> = received.iter().map(Received::json).collect();
    let sizes: Vec<usize> = batches.iter().map(|batch| batch.as_array().expect("an array").len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 200);
    assert!(sizes.iter().all(|size| *size <= 10) && sizes.contains(&10), "{sizes:?}");
    let keys: std::collections::BTreeSet<_> = received.iter().map(|r| r.header("idempotency-key")).collect();
    assert_eq!(keys.len(), received.len(), "each batch has a key of its own");

    // One bad result takes nobody along.
    server.behave(|request| Reply::status(if request.text().contains("\"o013\"") { 400 } else { 200 }));
    let changed: Vec<Value> =
        (0..20).map(|n| message("orders", &format!("o{n:03}"), json!({"n": -1 - n}))).collect();
    worker.ingest().send(&changed).await;
    sink_status(&worker, "delivered", &json!(219)).await;
    sink_status(&worker, "deadLetters", &json!(1)).await;
    worker.stop().await;
}

#[tokio::test]
async fn connections_are_used_again() {
    let server = Server::start().await;
    server.behave(|_| Reply::json(&json!({"taken": true})));
    let url = server.url("/hook");
    let site = WorkerSite::with(&manifest(&[("s", format!(r#"url: "{url}", concurrency: 2"#))]));
    let worker = site.start().await;
    worker.ingest().send(&orders(100)).await;
    sink_status(&worker, "delivered", &json!(100)).await;
    // One for each of the two requests under way, and one for each that has just ended: the client's
    // pool has a connection back only a moment after the answer was read.
    assert!(server.connections() <= 4, "{} connections for 100 results", server.connections());
    worker.stop().await;
}

#[tokio::test]
async fn order_is_kept_for_each_key_whatever_fails() {
    let server = Server::start().await;
    let requests = AtomicUsize::new(0);
    server.behave(move |_| {
        // Two of five fail, one of seven asks for time.
        let number = requests.fetch_add(1, Ordering::Relaxed);
        match (number % 5, number % 7) {
            (1 | 3, _) => Reply::status(500),
            (_, 6) => Reply::status(503).with_header("retry-after", "0"),
            _ => Reply::status(200).with_header("x-taken", "yes"),
        }
    });
    let taken = |number: usize| !matches!(number % 5, 1 | 3) && number % 7 != 6;
    let url = server.url("/hook");
    let site = WorkerSite::with(&manifest(&[("s", format!(r#"url: "{url}", concurrency: 8"#))]));
    let worker = site.start().await;
    for round in 0..20 {
        let messages: Vec<Value> =
            (0..12).map(|n| message("orders", &format!("k{n}"), json!({"n": round * 100 + n}))).collect();
        worker.ingest().send(&messages).await;
    }
    let last = |received: &[Received]| -> (Results, BTreeMap<String, Vec<(u64, u64)>>) {
        let mut positions: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
        let events: Vec<Event> =
            received.iter().enumerate().filter(|(number, _)| taken(*number)).map(|(_, r)| event(r)).collect();
        for event in &events {
            let id = EventId::parse(&event.id);
            positions.entry(event.key.to_string()).or_default().push(id.position());
        }
        (Results::folded(&events), positions)
    };
    let (results, positions) = until("the newest of each key", async || {
        let (results, positions) = last(&server.received());
        let newest = |n: u64| {
            let key = ("all_orders".to_owned(), format!("\"k{n}\""));
            results.rows.get(&key).is_some_and(|rows| rows[0].contains(&format!("\"n\":{}", 1_900 + n)))
        };
        (0..12).all(newest).then_some((results, positions))
    })
    .await;
    assert_eq!(results.rows.len(), 12);
    for (key, positions) in positions {
        assert!(positions.is_sorted(), "{key} came in the order {positions:?}");
    }
    sink_status(&worker, "deadLetters", &json!(0)).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_killed_worker_delivers_what_it_had_not() {
    for seed in seeds(3, 20) {
        let mut chance = chance(seed);
        let server = Server::start().await;
        let requests = AtomicUsize::new(0);
        let refused = |number: usize| number % 7 == 3;
        server.behave(move |_| {
            Reply::status(if refused(requests.fetch_add(1, Ordering::Relaxed)) { 500 } else { 200 })
        });
        let url = server.url("/hook");
        let http = format!(r#"url: "{url}", concurrency: {}"#, chance.random_range(1..=8));
        let site = WorkerSite::with(&manifest(&[("s", http)]).replace(
            "  sinks:\n",
            "  sinks:\n    - {name: live, joins: [all_orders], sse: {addr: \"127.0.0.1:0\"}}\n",
        ));
        let mut number = 0;
        for _ in 0..3 {
            let worker = site.start().await;
            let wanted = server.received().len() + chance.random_range(1..=60);
            while server.received().len() < wanted {
                let messages: Vec<Value> = (0..10)
                    .map(|_| {
                        number += 1;
                        let key = format!("k{}", chance.random_range(0..30));
                        let payload = if number % 9 == 0 { Value::Null } else { json!({"n": number}) };
                        message("orders", &key, payload)
                    })
                    .collect();
                worker.ingest().send(&messages).await;
                assert!(
                    number < 100_000,
                    "seed {seed}: results of {number} messages make no {wanted} requests"
                );
            }
            worker.kill().await;
        }
        let worker = site.start().await;
        let epoch = worker.ingest().put("orders", "last", json!({"n": 0})).await;
        let (_, expected) = worker.snapshot("live", "all_orders", epoch).await;
        until(&format!("all results, of seed {seed}"), async || {
            let received = server.received();
            let taken = received.iter().enumerate().filter(|(number, _)| !refused(*number));
            let events: Vec<Event> = taken.map(|(_, request)| event(request)).collect();
            (Results::folded(&events) == expected).then_some(())
        })
        .await;
        sink_status(&worker, "lagEpochs", &json!(0)).await;
        sink_status(&worker, "deadLetters", &json!(0)).await;
        worker.stop().await;
    }
}

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
        ([408, 425, 429, 500, 502, 503, 504, 1], [400, 401, 403, 404, 409, 410, 413, 422]);
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
async fn results_go_to_no_other_server() {
    let (server, other) = (Server::start().await, Server::start().await);
    let elsewhere = other.url("/stolen");
    server.behave(move |request| match (request.path(), request.method.as_str()) {
        ("/moved", _) => Reply::status(307).with_header("location", "/here"),
        ("/seen", "POST") => Reply::status(303).with_header("location", "/here"),
        ("/elsewhere", _) => Reply::status(308).with_header("location", &elsewhere),
        _ => Reply::status(200),
    });
    let url = |path: &str| format!(r#"url: "{}""#, server.url(path));
    let site = WorkerSite::with(&manifest(&[
        ("s", url("/moved")),
        ("seen", url("/seen")),
        ("elsewhere", url("/elsewhere")),
    ]));
    let worker = site.start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    sink_status(&worker, "delivered", &json!(1)).await;
    let status = until("both others to fail", async || {
        let sinks = worker.status().await["sinks"].clone();
        let fails = |name: &str| sinks[name]["lastError"].is_string();
        (fails("seen") && fails("elsewhere")).then_some(sinks)
    })
    .await;
    expect![
        "answered 308 Permanent Redirect, a redirect that is not followed; write the URL that it leads to"
    ]
    .assert_eq(status["elsewhere"]["lastError"].as_str().expect("a text"));
    assert_eq!((&status["seen"]["delivered"], &status["elsewhere"]["delivered"]), (&json!(0), &json!(0)));
    assert_eq!(other.received(), []);
    let here: Vec<Received> = server.take().into_iter().filter(|r| r.path() == "/here").collect();
    assert_eq!(here.iter().map(|r| r.method.as_str()).collect::<Vec<_>>(), ["POST"]);
    worker.kill().await;
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
async fn servers_are_verified_and_get_our_certificate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let site = WorkerSite::new();
    site.write("ca.pem", authority.pem());
    site.write("stranger.pem", stranger.pem());
    stranger.sign(&["worker"]).write(site.path(), "worker");
    let plain = Server::start_tls(authority.server(&authority.sign(&["127.0.0.1"]), None)).await;
    let named = Server::start_tls(authority.server(&authority.sign(&["hooks.example"]), None)).await;
    let mutual = authority.server(&authority.sign(&["127.0.0.1"]), Some(&stranger));
    let mutual = Server::start_tls(mutual).await;
    let ours = "cert: {path: worker.crt}, key: {secretKeyRef: {name: tls, key: worker.key}}";
    std::fs::create_dir_all(site.path().join("secrets/tls")).expect("a folder can be made");
    let key = std::fs::read(site.path().join("worker.key")).expect("the key is there");
    site.write("secrets/tls/worker.key", key);
    let ca = "ca: {path: ca.pem}";
    let sinks = [
        ("trusted", &plain, ca.to_owned(), true),
        ("untrusted", &plain, "ca: {path: stranger.pem}".to_owned(), false),
        ("system", &plain, "serverName: 127.0.0.1".to_owned(), false),
        ("unchecked", &plain, "insecureSkipVerify: true".to_owned(), true),
        ("misnamed", &named, ca.to_owned(), false),
        ("renamed", &named, format!("{ca}, serverName: hooks.example"), true),
        ("nobody", &mutual, ca.to_owned(), false),
        ("known", &mutual, format!("{ca}, {ours}"), true),
    ];
    let written: Vec<(&str, String)> = sinks
        .iter()
        .map(|(name, server, tls, _)| (*name, format!(r#"url: "{}", tls: {{{tls}}}"#, server.url("/hook"))))
        .collect();
    site.write("pipeline.yaml", manifest(&written));
    let worker = site.run(["--secrets-dir", "secrets"]).start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    for (name, _, _, takes) in sinks {
        let field = if takes { "delivered" } else { "failed" };
        until(&format!("{name} to count as {field}"), async || {
            let sink = worker.status().await["sinks"][name].clone();
            (sink[field] != 0).then_some(())
        })
        .await;
        let sink = worker.status().await["sinks"][name].clone();
        assert_eq!(sink["delivered"] == 1, takes, "{name}: {sink}");
    }
    // Certificates that change are taken up: those that we trust, and our own.
    let ours = authority.sign(&["worker"]);
    ours.write(site.path(), "worker");
    site.write("secrets/tls/worker.key", &ours.key);
    site.write("stranger.pem", authority.pem());
    until("the new authority to be trusted", async || {
        (worker.status().await["sinks"]["untrusted"]["delivered"] == 1).then_some(())
    })
    .await;
    worker.ingest().put("orders", "o2", json!({"n": 2})).await;
    until("our new certificate to be refused", async || {
        worker.status().await["sinks"]["known"]["lastError"].is_string().then_some(())
    })
    .await;
    worker.kill().await;
}

#[tokio::test]
async fn requests_go_through_the_proxy_of_the_sink_or_of_the_environment() {
    let (written, inherited) = (Server::start().await, Server::start().await);
    let url = r#"url: "http://hooks.example/in""#;
    let site = WorkerSite::with(&manifest(&[
        ("s", format!(r#"{url}, proxy: "http://${{PROXY}}""#)),
        ("inherits", url.to_owned()),
    ]));
    let worker = site
        .run([])
        .with_variable("PROXY", &written.address().to_string())
        .with_variable("HTTP_PROXY", &inherited.url(""))
        .start()
        .await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    for proxy in [&written, &inherited] {
        let received = proxy.wait_for(1).await;
        assert_eq!(received[0].target, "http://hooks.example/in");
    }
    worker.stop().await;
}
