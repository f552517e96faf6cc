//! The dead-letter queue: its settings, what `litejoin dlq` shows and does on a running and on a stopped worker, and
//! the cost of a sink that is away.

use expect_test::expect;
use litejoin_tests::ingest::message;
use litejoin_tests::results::{Event, Results};
use litejoin_tests::server::{Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Ended, Worker, WorkerSite};
use serde_json::{Value, json};

/// A pipeline with the sink `hook`, and these settings of `delivery`.
fn manifest(server: &Server, delivery: &str) -> String {
    let url = server.url("/hook");
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 2}}
  admin: {{addr: "127.0.0.1:0"}}
  delivery: {{{delivery}}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [orders]}}}}
    - {{name: rows, file: {{path: rows.ndjson, topic: lines, keyColumns: [id], follow: true}}}}
  joins:
    - {{name: all_orders, query: "SELECT key, payload->>'n' AS n, payload->>'text' AS text FROM orders", sinks: [hook, live]}}
    - {{name: counts, query: "SELECT 'all' AS what, count(*) AS orders FROM orders", sinks: [counts]}}
  sinks:
    - {{name: hook, http: {{url: "{url}"}}}}
    - {{name: counts, http: {{url: "{url}"}}}}
    - {{name: live, sse: {{addr: "127.0.0.1:0"}}}}
"#
    )
}

fn site(server: &Server, delivery: &str) -> WorkerSite {
    let site = WorkerSite::with(&manifest(server, delivery));
    site.write("rows.ndjson", "{\"id\":1}\nnonsense\n{\"no\":\"id\"}\n");
    site
}

async fn dlq(site: &WorkerSite, arguments: &str) -> Ended {
    let arguments = arguments.split(' ').chain(["--data-dir", "data"]);
    site.command(["dlq"].into_iter().chain(arguments)).end().await
}

/// The lines that `dlq` prints, as JSON; it must end well.
async fn entries(site: &WorkerSite, arguments: &str) -> Vec<Value> {
    let ended = dlq(site, arguments).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines = ended.stdout.lines();
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

async fn list(site: &WorkerSite, filter: &str) -> Vec<Value> {
    entries(site, format!("list --output json {filter}").trim_end()).await
}

async fn wait_for(worker: &Worker, sink: &str, field: &str, expected: &Value) {
    let what = format!("{field} of {sink} to be {expected}");
    until(&what, async || (worker.status().await["sinks"][sink][field] == *expected).then_some(())).await;
}

fn keys(entries: &[Value]) -> Vec<&str> {
    entries.iter().filter_map(|entry| entry["key"].as_str()).collect()
}

/// Asserts what `dlq` shows of the dead letters of three orders and of two bad lines.
async fn assert_shown(site: &WorkerSite) {
    let all = list(site, "").await;
    assert_eq!((all.len(), all[0]["kind"].as_str()), (6, Some("result")), "{all:?}");
    assert!(all.iter().all(|entry| entry.get("rows").is_none() && entry.get("body").is_none()));
    assert_eq!(keys(&list(site, "--sink hook").await), ["o1", "o2", "o3"]);
    assert_eq!(keys(&list(site, "--sink hook --limit 2").await), ["o1", "o2"]);
    assert_eq!(keys(&list(site, "--join counts").await), ["all"]);
    assert_eq!(keys(&list(site, "--key o2").await), ["o2"]);
    assert_eq!(keys(&list(site, "--sink hook --given-up").await), ["o1", "o3"]);
    assert_eq!(keys(&list(site, "--reason 503").await), ["o2"]);
    assert_eq!(list(site, "--older-than 1h").await, Vec::<Value>::new());
    let waiting = list(site, "--key o2").await.remove(0);
    let id = waiting["id"].as_str().expect("an id").to_owned();
    assert_eq!(keys(&list(site, &format!("--id {id}")).await), ["o2"]);
    let wait = waiting["retryAt"].as_i64().expect("a time") - waiting["storedAt"].as_i64().expect("a time");
    assert!((3_600..=3_960).contains(&wait), "an hour and up to a tenth: {wait}");

    let shown: Value = serde_json::from_str(&dlq(site, &format!("show {id}")).await.stdout).expect("JSON");
    assert_eq!(shown["rows"], json!([{"key": "o2", "n": 2, "text": null}]));
    assert_eq!(shown["reason"], "answered 503 Service Unavailable: not now");
    let exported = entries(site, "export --source rows").await;
    let bodies: Vec<&Value> = exported.iter().map(|entry| &entry["body"]).collect();
    assert_eq!(bodies, [&json!("nonsense\n"), &json!("{\"no\":\"id\"}\n")]);
    assert!(exported[0]["position"].as_str().expect("a place").ends_with("rows.ndjson: line 2"));

    let table = dlq(site, "list --sink hook --given-up").await.stdout;
    let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().skip(1).collect()).collect();
    assert_eq!(
        words[1],
        [
            "hook/all_orders",
            "o1",
            "1",
            "never",
            "answered",
            "422",
            "Unprocessable",
            "Entity:",
            "no",
            "such",
            "order"
        ]
    );
    assert_eq!(table.lines().last(), Some("2 dead letters"));
}

#[tokio::test]
async fn dead_letters_are_shown_retried_exported_and_purged_with_a_worker_and_without() {
    let server = Server::start().await;
    server.behave(|request| match request.text() {
        text if text.contains("\"o2\"") => Reply::status(503).with_body("not now"),
        _ => Reply::status(422).with_body("no such order"),
    });
    let site = site(&server, "dlq: {retryInterval: 1h, maxBackoff: 2h}");
    let mut worker = site.start().await;
    for number in 1..=3 {
        worker.ingest().put("orders", &format!("o{number}"), json!({"n": number})).await;
    }
    wait_for(&worker, "hook", "deadLetters", &json!(3)).await;
    wait_for(&worker, "counts", "deadLetters", &json!(1)).await;
    until("the bad lines", async || (list(&site, "--source rows").await.len() == 2).then_some(())).await;

    for running in [true, false] {
        if !running {
            worker.stop().await;
            worker = WorkerSite::new().command(["--version"]).spawn();
        }
        assert_shown(&site).await;
    }

    // Dead letters that were retried while no worker ran are tried at the start; one that was purged is not.
    assert_eq!(dlq(&site, "purge --key o3").await.stdout, "1 thrown away\n");
    assert_eq!(dlq(&site, "retry --sink hook").await.stdout, "2 to be tried again\n");
    server.take();
    server.behave(|request| Reply::status(if request.text().contains("\"o1\"") { 200 } else { 503 }));
    let worker = site.start().await;
    wait_for(&worker, "hook", "deadLetters", &json!(1)).await;
    let sent: Vec<Event> = server.received().iter().map(|request| Event::read(request.text())).collect();
    assert!(sent.iter().all(|event| event.key != "o3"));
    // Dead letters are retried and purged while the worker runs, too.
    server.behave(|_| Reply::status(200));
    assert_eq!(dlq(&site, "retry --all").await.stdout, "2 to be tried again\n");
    wait_for(&worker, "hook", "deadLetters", &json!(0)).await;
    wait_for(&worker, "counts", "deadLetters", &json!(0)).await;
    assert_eq!(dlq(&site, "purge --source rows").await.stdout, "2 thrown away\n");
    assert_eq!(dlq(&site, "list").await.stdout, "no dead letters\n");
    worker.stop().await;
}

#[tokio::test]
async fn commands_that_cannot_be_done_are_explained() {
    let site = WorkerSite::new();
    let mut said = String::new();
    for arguments in ["list", "purge", "retry", "show nothing"] {
        let ended = dlq(&site, arguments).await;
        said += &format!("{} {}", ended.code.expect("a code"), ended.stderr);
    }
    expect![[r#"
        1 error: data/dlq.db: there is no dead-letter queue, and no worker runs on data; give the data directory of the pipeline with --data-dir, or its manifests with -f
        2 error: say which ones, or --all
        2 error: say which ones, or --all
        1 error: data/dlq.db: there is no dead-letter queue, and no worker runs on data; give the data directory of the pipeline with --data-dir, or its manifests with -f
    "#]].assert_eq(&said);
}

#[tokio::test]
async fn the_queue_lies_where_it_is_wanted() {
    let server = Server::start().await;
    server.behave(|_| Reply::status(400));
    let site = site(&server, "dlq: {path: elsewhere.db}");
    let worker = site.start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    wait_for(&worker, "hook", "deadLetters", &json!(1)).await;
    worker.stop().await;
    assert!(site.path().join("elsewhere.db").is_file() && !site.data_dir().join("dlq.db").exists());
    let arguments = ["dlq", "list", "--sink", "hook", "-f", "pipeline.yaml", "--data-dir", "data"];
    let ended = site.command(arguments).end().await;
    assert_eq!(ended.stdout.lines().last(), Some("1 dead letter"), "{}", ended.stderr);
}

#[tokio::test]
async fn waits_grow_up_to_their_limit_and_retries_come_to_an_end() {
    let server = Server::start().await;
    server.behave(|_| Reply::status(500));
    for (dlq, attempts, wait) in [
        // The second wait is a hundred times the first, and counted from a second after the dead letter was stored.
        ("retryInterval: 1s, backoffMultiplier: 100, maxBackoff: 1h", 2, Some(101..175)),
        ("retryInterval: 1s, backoffMultiplier: 100, maxBackoff: 20s", 2, Some(21..85)),
        ("retryInterval: 1s, backoffMultiplier: 1, maxRetries: 2", 3, None),
    ] {
        let site = site(&server, &format!("circuitFailures: 100, dlq: {{{dlq}}}"));
        let worker = site.start().await;
        worker.ingest().put("orders", "o1", json!({"n": 1})).await;
        let dead_letter = until("the last attempt", async || {
            list(&site, "--sink hook")
                .await
                .into_iter()
                .find(|dead_letter| dead_letter["attempts"] == attempts)
        })
        .await;
        let waits =
            dead_letter["retryAt"].as_i64().map(|at| at - dead_letter["storedAt"].as_i64().expect("a time"));
        match wait {
            None => assert_eq!(waits, None, "{dlq}"),
            Some(range) => assert!(waits.is_some_and(|waits| range.contains(&waits)), "{dlq}: {waits:?}"),
        }
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_sink_is_left_alone_after_so_many_failures() {
    for failures in [1, 4] {
        let server = Server::start().await;
        server.behave(|_| Reply::status(500));
        let delivery = format!("circuitFailures: {failures}, dlq: {{retryInterval: 1h, maxBackoff: 2h}}");
        let site =
            WorkerSite::with(&manifest(&server, &delivery).replace("/hook\"", "/hook\", concurrency: 1"));
        site.write("rows.ndjson", "{\"id\":1}\n");
        let worker = site.start().await;
        let messages: Vec<Value> =
            (0..20).map(|n| message("orders", &format!("o{n}"), json!({"n": n}))).collect();
        worker.ingest().send(&messages).await;
        wait_for(&worker, "hook", "circuit", &json!("open")).await;
        assert_eq!(worker.status().await["sinks"]["hook"]["failed"], failures);
        assert_eq!(list(&site, "--sink hook").await.len(), failures);
        // A retry by hand does not wait for the hour to pass.
        server.behave(|_| Reply::status(200));
        assert_eq!(dlq(&site, "retry --sink hook").await.stdout, format!("{failures} to be tried again\n"));
        wait_for(&worker, "hook", "delivered", &json!(20)).await;
        wait_for(&worker, "hook", "deadLetters", &json!(0)).await;
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_new_nonce_has_dead_letters_tried_again_once() {
    let server = Server::start().await;
    server.behave(|_| Reply::status(400));
    let delivery = |nonce: &str| format!("dlq: {{retryInterval: 1h, maxBackoff: 2h, retryNonce: {nonce}}}");
    let site = site(&server, &delivery("first"));
    let worker = site.run(["--watch"]).start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    wait_for(&worker, "hook", "deadLetters", &json!(1)).await;
    wait_for(&worker, "counts", "deadLetters", &json!(1)).await;
    // The same nonce does nothing more, also at a start.
    worker.stop().await;
    let worker = site.run(["--watch"]).start().await;
    server.behave(|_| Reply::status(200));
    server.take();
    site.write("pipeline.yaml", manifest(&server, &delivery("second")));
    wait_for(&worker, "hook", "deadLetters", &json!(0)).await;
    wait_for(&worker, "counts", "deadLetters", &json!(0)).await;
    assert_eq!(server.received().len(), 2, "each was tried once");
    worker.stop().await;
}

#[tokio::test]
async fn old_dead_letters_go_and_so_do_those_above_the_size_limit() {
    let server = Server::start().await;
    server.behave(|_| Reply::status(400));
    let aging = site(&server, "dlq: {ttl: 1s, cleanupInterval: 100ms}");
    let worker = aging.start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    until("the refusal", async || (worker.status().await["sinks"]["hook"]["failed"] == 1).then_some(()))
        .await;
    until("the dead letter to be too old", async || list(&aging, "").await.is_empty().then_some(())).await;
    worker.stop().await;

    let full = site(&server, "dlq: {maxSizeMb: 1, cleanupInterval: 100ms}");
    let worker = full.start().await;
    let text = "x".repeat(4_000);
    let messages: Vec<Value> =
        (0..1_000).map(|n| message("orders", &format!("o{n:04}"), json!({"n": n, "text": text}))).collect();
    for messages in messages.chunks(100) {
        worker.ingest().send(messages).await;
    }
    until("all to be refused", async || {
        (worker.status().await["sinks"]["hook"]["failed"] == 1_000).then_some(())
    })
    .await;
    let left = until("the queue to be cut", async || {
        Some(list(&full, "--sink hook").await.len()).filter(|left| *left < 260)
    })
    .await;
    assert!(left > 0, "the newest are kept");
    worker.stop().await;
}

/// Resident memory of a process, in bytes.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the status has the memory");
    let kilobytes: u64 =
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    kilobytes << 10
}

#[tokio::test]
async fn a_sink_that_is_away_costs_disk_within_its_limit_and_its_neighbours_nothing() {
    let server = Server::start().await;
    server.behave(|_| Reply::Hang);
    let manifest = manifest(&server, "outboxMaxBytes: 2Mi, replayWindow: 1s, circuitFailures: 2, dlq: {retryInterval: 100ms, maxBackoff: 200ms}")
        .replace("/hook\"", "/hook\", timeout: 1s");
    let site = WorkerSite::with(&manifest);
    site.write("rows.ndjson", "{\"id\":1}\n");
    let worker = site.start().await;
    let text = "x".repeat(4_000);
    let round = |round: u64| -> Vec<Value> {
        (0..200)
            .map(|n| message("orders", &format!("o{n:03}"), json!({"n": round * 1_000 + n, "text": text})))
            .collect()
    };
    let send = async |rounds: std::ops::Range<u64>| {
        let mut epoch = 0;
        for number in rounds {
            epoch = worker.ingest().send(&round(number)).await;
            // A subscriber of the same results gets them all along.
            let (_, results) = worker.snapshot("live", "all_orders", epoch).await;
            assert_eq!(results.rows.len(), 200);
        }
        epoch
    };
    send(0..10).await;
    wait_for(&worker, "hook", "circuit", &json!("open")).await;
    let before = resident_bytes(worker.pid());
    let epoch = send(10..50).await;
    let status = until("the outbox to be compacted", async || {
        Some(worker.status().await).filter(|status| {
            status["outboxBytes"].as_u64() <= Some(2 << 20) && status["outboxCompacted"] != 0
        })
    })
    .await;
    let grown = resident_bytes(worker.pid()).saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more after 30 MB of results that nobody took");
    assert!(status["sinks"]["hook"]["deadLetters"].as_u64() <= Some(200), "{status}");

    server.take();
    server.behave(|_| Reply::status(200));
    wait_for(&worker, "hook", "deadLetters", &json!(0)).await;
    wait_for(&worker, "hook", "lagEpochs", &json!(0)).await;
    let (_, expected) = worker.snapshot("live", "all_orders", epoch).await;
    let sent = until("the newest of each key", async || {
        let events: Vec<Event> =
            server.received().iter().map(|request| Event::read(request.text())).collect();
        let sent: Vec<Event> = events.into_iter().filter(|event| event.query == "all_orders").collect();
        (Results::folded(&sent) == expected).then_some(sent)
    })
    .await;
    let mut newest = std::collections::BTreeMap::new();
    for event in sent {
        let n = event.rows[0]["n"].as_u64().expect("a number");
        let before = newest.insert(event.key.to_string(), n);
        assert!(before.is_none_or(|before| before <= n), "{}: {n} after {before:?}", event.key);
    }
    worker.stop().await;
}

#[tokio::test]
async fn dead_letters_are_told_in_the_log_and_many_of_a_kind_in_few_lines() {
    let server = Server::start().await;
    server.behave(|_| Reply::status(422).with_body("no such order"));
    let site = site(&server, "dlq: {retryInterval: 1h, maxBackoff: 2h}");
    let worker = site.start().await;
    for n in 0..12 {
        worker.ingest().put("orders", &format!("o{n}"), json!({"n": n})).await;
    }
    wait_for(&worker, "hook", "deadLetters", &json!(12)).await;
    let told = until("the second line", async || {
        let log = worker.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let told: Vec<Value> = lines
            .filter(|line| line["sink"] == "hook" && line["level"] == "WARN")
            .map(|line| json!([line["count"], line["message"], line["reason"]]))
            .collect();
        (told.len() > 1).then_some(told)
    })
    .await;
    let line = |count| {
        let message = "results were refused; as dead letters they wait for `litejoin dlq retry`";
        json!([count, message, "answered 422 Unprocessable Entity: no such order"])
    };
    assert_eq!(told, [line(1), line(10)]);
    worker.stop().await;
}

#[tokio::test]
async fn a_run_to_the_end_of_its_sources_fails_if_rows_were_refused() {
    let site = WorkerSite::with(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {shardCount: 2}
  sources:
    - {name: rows, file: {path: rows.ndjson, topic: lines, keyColumns: [id]}}
  joins:
    - {name: all_lines, query: "SELECT key FROM lines", sinks: [console]}
  sinks:
    - {name: console, stdout: {}}
"#,
    );
    site.write("rows.ndjson", "{\"id\":1}\nnonsense\n{\"no\":\"id\"}\n{\"id\":2}\n");
    let ended = site.run(["--once"]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(ended.stdout.lines().count(), 2, "the other rows are through: {}", ended.stdout);
    expect![[r#"error: 2 messages were refused (rows: 2) and are in the dead-letter queue, the rest is through; see them with `litejoin dlq list --data-dir data`"#]]
        .assert_eq(ended.stderr.lines().last().unwrap_or_default());
    // Nothing is read again, so nothing is refused in this run.
    let ended = site.run(["--once"]).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}
