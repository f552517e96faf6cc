//! Another config while data flows: by SIGHUP and by `--watch`. What differs is changed, what is the same is not
//! disturbed, and a config that is wrong changes nothing and says why.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::symlink;

use expect_test::{Expect, expect};
use litejoin_tests::ingest::message;
use litejoin_tests::results::{Event, Results};
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite, get};
use serde_json::{Value, json};

/// A pipeline whose lists of sources, joins and sinks are these.
fn manifest(sources: &str, joins: &str, sinks: &str) -> String {
    format!(
        "apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 2, flushInterval: 2ms}}
  admin: {{addr: \"127.0.0.1:0\"}}
  sources:
{sources}
  joins:
{joins}
  sinks:
{sinks}
"
    )
}

const INGEST: &str = r#"    - {name: ingest, http: {addr: "127.0.0.1:0", topics: [orders, customers]}}"#;
const LIVE: &str = r#"    - {name: live, sse: {addr: "127.0.0.1:0", heartbeatInterval: 1s}}"#;

/// A join of orders, delivered by `live`.
fn join(name: &str, query: &str) -> String {
    format!("    - {{name: {name}, sinks: [live], query: \"{query}\"}}")
}

/// Every order by its key.
fn all() -> String {
    join("all_orders", "SELECT key, payload->>'n' AS n FROM orders")
}

fn orders(numbers: impl IntoIterator<Item = u64>) -> Vec<Value> {
    numbers.into_iter().map(|n| message("orders", &format!("o{n}"), json!({"n": n}))).collect()
}

/// Sends messages and waits until every join has them.
async fn store(worker: &Worker, messages: &[Value]) -> u64 {
    let epoch = worker.ingest().send(messages).await;
    worker.snapshot("live", "all_orders", epoch).await;
    epoch
}

/// Events as `op key rows`, one a line.
fn told<'e>(events: impl IntoIterator<Item = &'e Event>) -> String {
    let line = |event: &Event| {
        format!("{} {} {} {}\n", event.query, event.op, event.key, Value::from(event.rows.clone()))
    };
    events.into_iter().map(line).collect()
}

/// Asserts what the last reload came to.
fn assert_applied(config: &Value) {
    assert_eq!(
        (&config["lastReload"]["ok"], &config["lastReload"]["outcome"]),
        (&json!(true), &json!("applied"))
    );
}

/// Asserts that a manifest is refused with this error, in `/status`, in the log and in metrics, and that what runs
/// goes on as it was.
async fn assert_refused(site: &WorkerSite, worker: &Worker, manifest: &str, expected: Expect) {
    let before = worker.status().await["config"].clone();
    site.write("pipeline.yaml", manifest);
    let after = worker.reload().await;
    assert_eq!(after["lastReload"]["ok"], false);
    assert_ne!(after["lastReload"]["hash"], after["hash"], "it is not about the one in force");
    assert_eq!((&after["hash"], &after["appliedAt"]), (&before["hash"], &before["appliedAt"]));
    let error = after["lastReload"]["error"].as_str().expect("a refusal has its reason");
    expected.assert_eq(&format!("{error}\n"));
    for line in error.lines() {
        let logged = || worker.log().contains(&json!(line).to_string());
        until(&format!("{line} in the log"), async || logged().then_some(())).await;
    }
    let metrics = get(&worker.url("admin", "/metrics")).await.1;
    assert!(metrics.contains("litejoin_config_last_reload_successful{} 0"), "{metrics}");
}

#[tokio::test]
async fn a_changed_query_sends_just_its_differences() {
    let site = WorkerSite::with(&manifest(INGEST, &all(), LIVE));
    let worker = site.start().await;
    let hash = worker.status().await["config"]["hash"].clone();
    store(&worker, &orders(0..5)).await;
    let mut client = Subscription::open(worker.address("sink live"), "replay=true", None).await;
    assert_eq!(client.replayed().await.len(), 5);
    let doubled = join(
        "all_orders",
        "SELECT key, CASE WHEN key > 'o2' THEN 10 ELSE 1 END * (payload->>'n') AS n FROM orders WHERE key <> 'o0'",
    );
    site.write("pipeline.yaml", manifest(INGEST, &doubled, LIVE));
    let config = worker.reload().await;
    assert_applied(&config);
    assert_ne!(config["hash"], hash);
    let mut events = next(&mut client, 3).await;
    worker.ingest().put("orders", "o9", json!({"n": 9})).await;
    events.push(client.expect_next().await.result());
    expect![[r#"
        all_orders deleted "o0" []
        all_orders updated "o3" [{"key":"o3","n":30}]
        all_orders updated "o4" [{"key":"o4","n":40}]
        all_orders created "o9" [{"key":"o9","n":90}]
    "#]]
    .assert_eq(&told(&events));
    worker.stop().await;
}

/// The next results, in the order of their keys: what goes to two shards may come in either order.
async fn next(client: &mut Subscription, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..count {
        events.push(client.expect_next().await.result());
    }
    events.sort_by_key(|event| (event.query.clone(), event.key.to_string()));
    events
}

#[tokio::test]
async fn joins_come_and_go_and_the_others_are_not_disturbed() {
    let small = join("small", "SELECT key, 1 AS one FROM orders WHERE payload->>'n' < 3");
    let big = join("big", "SELECT key, 1 AS one FROM orders WHERE payload->>'n' >= 3");
    let site = WorkerSite::with(&manifest(INGEST, &format!("{}\n{small}", all()), LIVE));
    let worker = site.start().await;
    store(&worker, &orders(0..5)).await;
    let live = worker.address("sink live");
    let mut of_all = Subscription::open(live, "join=*", None).await;
    let mut of_orders = Subscription::open(live, "join=all_orders", None).await;
    let mut of_small = Subscription::open(live, "join=small", None).await;

    site.write("pipeline.yaml", manifest(INGEST, &format!("{}\n{big}", all()), LIVE));
    assert_applied(&worker.reload().await);
    assert_eq!(of_small.next().await, None, "the stream of a join that is gone ends");
    worker.ingest().send(&orders(5..6)).await;
    let came = next(&mut of_all, 4).await;
    expect![[r#"
        all_orders created "o5" [{"key":"o5","n":5}]
        big created "o3" [{"key":"o3","one":1}]
        big created "o4" [{"key":"o4","one":1}]
        big created "o5" [{"key":"o5","one":1}]
    "#]]
    .assert_eq(&told(&came));
    assert_eq!(of_orders.expect_next().await.result().key, "o5", "and nothing before it");
    let (status, text) = get(&worker.url("sink live", "/snapshot?join=small")).await;
    assert_eq!(
        (status, text.as_str()),
        (404, r#"{"error":"this sink takes no join \"small\"; it has all_orders, big"}"#)
    );
    let joins = worker.status().await["joins"].clone();
    assert_eq!(joins.as_object().expect("joins by name").keys().collect::<Vec<_>>(), ["all_orders", "big"]);

    // Under the old name it is a new join.
    site.write("pipeline.yaml", manifest(INGEST, &format!("{small}\n{}", all()), LIVE));
    assert_applied(&worker.reload().await);
    let came = next(&mut of_all, 3).await;
    assert_eq!(came.iter().map(|event| event.op.as_str()).collect::<Vec<_>>(), ["created"; 3]);
    let last = worker.ingest().send(&orders(0..7)).await;
    assert_eq!(worker.snapshot("live", "small", last).await.1.rows.len(), 3);
    worker.stop().await;
}

#[tokio::test]
async fn a_join_follows_when_one_that_it_reads_through_another_changes() {
    let chain = |limit: u32| {
        let inner = join(
            "inner_one",
            &format!("SELECT key, payload->>'n' AS n FROM orders WHERE payload->>'n' < {limit}"),
        );
        let middle = join("middle_one", "SELECT key, n FROM inner_one");
        format!("{inner}\n{middle}\n{}", join("outer_one", "SELECT key, n FROM middle_one"))
    };
    let site = WorkerSite::with(&manifest(INGEST, &chain(3), LIVE));
    let worker = site.start().await;
    worker.ingest().send(&orders(0..5)).await;
    site.write("pipeline.yaml", manifest(INGEST, &chain(4), LIVE));
    assert_applied(&worker.reload().await);
    let rows = async || worker.snapshot("live", "outer_one", 0).await.1.rows.len();
    until("the outer join to follow", async || (rows().await == 4).then_some(())).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_sink_that_takes_another_join_is_handed_what_is_there() {
    // The second join has no sink at first, so its results change without an event.
    let untaken = "    - {name: untaken, query: \"SELECT key, payload->>'n' AS n FROM orders WHERE payload->>'n' > 0\"}";
    let taken = untaken.replace("name: untaken,", "name: untaken, sinks: [live, console],");
    let only = all().replace("[live]", "[live, console]");
    let console = format!("{LIVE}\n    - {{name: console, stdout: {{}}}}");
    let site = WorkerSite::with(&manifest(INGEST, &format!("{only}\n{untaken}"), &console));
    let worker = site.start().await;
    store(&worker, &orders(0..3)).await;
    let mut client = Subscription::open(worker.address("sink live"), "replay=true", None).await;
    assert_eq!(client.replayed().await.len(), 3);
    let epoch = worker.ingest().send(&[message("orders", "o1", json!({"n": 7}))]).await;
    worker.wait_for_stdout(4).await;

    site.write("pipeline.yaml", manifest(INGEST, &format!("{only}\n{taken}"), &console));
    assert_applied(&worker.reload().await);
    let lines = worker.wait_for_stdout(6).await;
    let events: Vec<Event> = lines[4..].iter().map(|line| Event::read(line)).collect();
    expect![[r#"
        untaken updated "o1" [{"key":"o1","n":7}]
        untaken created "o2" [{"key":"o2","n":2}]
    "#]]
    .assert_eq(&told(&events));
    assert!(events.iter().all(|event| event.epoch <= epoch), "they are what was there");
    let came = next(&mut client, 3).await;
    expect![[r#"
        all_orders updated "o1" [{"key":"o1","n":7}]
        untaken updated "o1" [{"key":"o1","n":7}]
        untaken created "o2" [{"key":"o2","n":2}]
    "#]]
    .assert_eq(&told(&came));

    // Later changes come once.
    worker.ingest().put("orders", "o2", json!({"n": 8})).await;
    assert_eq!(worker.wait_for_stdout(8).await.len(), 8);
    let came = next(&mut client, 2).await;
    assert_eq!(came.iter().map(|event| event.query.as_str()).collect::<Vec<_>>(), ["all_orders", "untaken"]);
    client.expect_comment().await;
    worker.stop().await;
}

#[tokio::test]
async fn sinks_come_and_go_and_a_new_one_gets_the_whole() {
    let both = all().replace("[live]", "[live, console]");
    let console = "    - {name: console, stdout: {}}";
    let second = LIVE.replace("name: live", "name: second");
    let site = WorkerSite::with(&manifest(INGEST, &all(), LIVE));
    let worker = site.start().await;
    store(&worker, &orders(0..3)).await;
    let mut client = Subscription::open(worker.address("sink live"), "replay=true", None).await;
    assert_eq!(client.replayed().await.len(), 3);

    site.write(
        "pipeline.yaml",
        manifest(
            INGEST,
            &both.replace("console]", "console, second]"),
            &format!("{LIVE}\n{console}\n{second}"),
        ),
    );
    assert_applied(&worker.reload().await);
    assert_eq!(worker.wait_for_stdout(3).await.len(), 3);
    assert_eq!(worker.snapshot("second", "all_orders", 0).await.1.rows.len(), 3);
    let mut of_second = Subscription::open(worker.address("sink second"), "", None).await;

    site.write("pipeline.yaml", manifest(INGEST, &both, &format!("{LIVE}\n{console}")));
    assert_applied(&worker.reload().await);
    assert_eq!(of_second.next().await, None, "its sink is gone");
    assert!(
        Subscription::try_open(worker.address("sink second"), "", None).await.is_err(),
        "its port is closed"
    );
    worker.ingest().send(&orders(3..4)).await;
    assert_eq!(worker.wait_for_stdout(4).await.len(), 4);
    assert_eq!(client.expect_next().await.result().key, "o3", "and nothing before it");

    // A sink that was away is a new one.
    site.write("pipeline.yaml", manifest(INGEST, &all(), LIVE));
    assert_applied(&worker.reload().await);
    site.write("pipeline.yaml", manifest(INGEST, &both, &format!("{LIVE}\n{console}")));
    assert_applied(&worker.reload().await);
    let lines = worker.wait_for_stdout(8).await;
    let keys: Vec<Value> = lines[4..].iter().map(|line| Event::read(line).key).collect();
    assert_eq!(keys, ["o0", "o1", "o2", "o3"]);
    client.expect_comment().await;
    worker.stop().await;
}

/// An address that nobody listens on.
fn free_address() -> String {
    let taken = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    taken.local_addr().expect("a listener has an address").to_string()
}

#[tokio::test]
async fn an_address_goes_from_one_part_to_another() {
    let (one, two) = (free_address(), free_address());
    let source = |addr: &str, topics: &str| {
        format!("    - {{name: ingest, http: {{addr: \"{addr}\", topics: [{topics}]}}}}")
    };
    let sink = |addr: &str| format!("    - {{name: live, sse: {{addr: \"{addr}\"}}}}");
    let site = WorkerSite::with(&manifest(&source(&one, "orders"), &all(), &sink(&two)));
    let worker = site.start().await;
    worker.ingest().send(&orders(0..1)).await;
    // Same address, other topics: the socket stays open.
    site.write("pipeline.yaml", manifest(&source(&one, "orders, notes"), &all(), &sink(&two)));
    assert_applied(&worker.reload().await);
    worker.ingest().put("notes", "x", json!({"n": 1})).await;
    // And the two change places.
    site.write("pipeline.yaml", manifest(&source(&two, "orders"), &all(), &sink(&one)));
    assert_applied(&worker.reload().await);
    assert_eq!(worker.address("source ingest").to_string(), two);
    let epoch = worker.ingest().send(&orders(1..2)).await;
    assert_eq!(worker.address("sink live").to_string(), one);
    assert_eq!(worker.snapshot("live", "all_orders", epoch).await.1.rows.len(), 2);

    // The same port on every interface is in the way of itself.
    let port = one.rsplit_once(':').expect("an address has a port").1;
    let wide = manifest(&source(&two, "orders"), &all(), &sink(&format!(":{port}")));
    site.write("pipeline.yaml", wide);
    let config = worker.reload().await;
    let error = config["lastReload"]["error"].as_str().expect("it is refused");
    expect!["sink live: :<port>: sink live of the running config still has the port, as 127.0.0.1:<port>; write that, take another port, or restart to apply"].assert_eq(&error.replace(port, "<port>"));
    worker.stop().await;
}

#[tokio::test]
async fn sources_come_and_go_and_a_file_goes_on_where_it_was() {
    let rows = |numbers: std::ops::Range<u64>| -> String {
        numbers.map(|n| format!("{{\"id\": \"o{n}\", \"n\": {n}}}\n")).collect()
    };
    let file = "    - {name: rows, file: {path: rows.ndjson, format: ndjson, topic: orders, keyColumns: [id], follow: true}}";
    let other = INGEST.replace("name: ingest", "name: other").replace("[orders, customers]", "[customers]");
    let site = WorkerSite::with(&manifest(INGEST, &all(), LIVE));
    let worker = site.start().await;
    let mut client = Subscription::open(worker.address("sink live"), "", None).await;
    site.write("rows.ndjson", rows(0..3));
    site.write("pipeline.yaml", manifest(&format!("{INGEST}\n{file}\n{other}"), &all(), LIVE));
    assert_applied(&worker.reload().await);
    next(&mut client, 3).await;
    let address = worker.address("source other");
    litejoin_tests::ingest::Ingest::new(address).put("customers", "c", json!({})).await;

    site.write("pipeline.yaml", manifest(INGEST, &all(), LIVE));
    assert_applied(&worker.reload().await);
    assert!(
        litejoin_tests::ingest::Ingest::new(address).try_send(&orders(0..1)).await.is_err(),
        "its port is closed"
    );
    let sources = worker.status().await["sources"].clone();
    assert_eq!(sources.as_object().expect("sources by name").keys().collect::<Vec<_>>(), ["ingest"]);
    site.write("rows.ndjson", rows(0..5));
    worker.ingest().put("orders", "o0", json!({"n": "newer"})).await;
    next(&mut client, 1).await;

    site.write("pipeline.yaml", manifest(&format!("{INGEST}\n{file}"), &all(), LIVE));
    assert_applied(&worker.reload().await);
    let came = next(&mut client, 2).await;
    assert_eq!(came.iter().map(|event| &event.key).collect::<Vec<_>>(), ["o3", "o4"]);
    // What was read before is not read again.
    client.expect_comment().await;
    worker.stop().await;
}

#[tokio::test]
async fn a_wrong_config_changes_nothing_and_says_why() {
    let good = manifest(INGEST, &all(), LIVE);
    let site = WorkerSite::with(&good);
    let worker = site.start().await;
    store(&worker, &orders(0..1)).await;
    let mut client = Subscription::open(worker.address("sink live"), "replay=true", None).await;
    client.replayed().await;

    let two = manifest(
        INGEST,
        &format!("{}\n{}", join("a", "SELECT key FROM ordesr"), join("b", "SELECT key, FROM orders")),
        LIVE,
    );
    assert_refused(&site, &worker, &two, expect![[r#"
        pipeline.yaml:10: spec.joins[0].query: no source fills topic "ordesr", did you mean "orders"; topics and joins: orders, customers, b
        pipeline.yaml:11: spec.joins[1].query: near "FROM": syntax error
    "#]]).await;
    let unknown = good.replace("storage: {", "storage: {sharts: 1, ");
    assert_refused(&site, &worker, &unknown, expect![[r#"
        pipeline.yaml:5: spec.storage.sharts: unknown field "sharts"; allowed: accessMode, batchSize, dataDir, ephemeral, flushInterval, onNodeLoss, readerPoolSize, reshard, retainOnDelete, shardCount, size, storageClassName, synchronous
    "#]]).await;
    assert_refused(
        &site,
        &worker,
        "{",
        expect![[r#"
        pipeline.yaml:2: is no YAML: while parsing a node, did not find expected node content
    "#]],
    )
    .await;
    let fixed = good
        .replace("metadata: {name: p}", "metadata: {name: q}")
        .replace(
            "shardCount: 2, flushInterval: 2ms",
            "shardCount: 4, flushInterval: 3ms, synchronous: full, dataDir: elsewhere",
        )
        .replace("admin: {addr: \"127.0.0.1:0\"}", "admin: {addr: \"127.0.0.1:1\"}");
    assert_refused(&site, &worker, &fixed, expect![[r#"
        pipeline.yaml:3: metadata.name: got "q", and the worker runs with "p"; put that back, or restart to apply
        pipeline.yaml:5: spec.storage.shardCount: got 4, and the worker runs with 2; put that back, or restart to apply
        pipeline.yaml:5: spec.storage.flushInterval: got 3ms, and the worker runs with 2ms; put that back, or restart to apply
        pipeline.yaml:5: spec.storage.synchronous: got full, and the worker runs with normal; put that back, or restart to apply
        pipeline.yaml:6: spec.admin.addr: got "127.0.0.1:1", and the worker runs with "127.0.0.1:0"; put that back, or restart to apply
    "#]]).await;
    let topic = manifest(
        &INGEST.replace(", customers", ""),
        &format!("{}\n{}", all(), join("customers", "SELECT key FROM orders")),
        LIVE,
    );
    assert_refused(&site, &worker, &topic, expect![[r#"
        pipeline.yaml:11: spec.joins[1].name: the running worker has a topic "customers", and a join can't take its name; rename the join, or restart to apply
    "#]]).await;
    let no_file = format!(
        "{INGEST}\n    - {{name: rows, file: {{path: none.csv, format: csv, topic: orders, keyColumns: [id]}}}}"
    );
    assert_refused(
        &site,
        &worker,
        &manifest(&no_file, &all(), LIVE),
        expect![[r#"
        source rows: none.csv: there is no such file; file.path is relative to the folder of its manifest
    "#]],
    )
    .await;
    let stdin = format!(
        "{INGEST}\n    - {{name: rows, file: {{path: \"-\", format: csv, topic: orders, keyColumns: [id]}}}}"
    );
    assert_refused(&site, &worker, &manifest(&stdin, &all(), LIVE), expect![[r#"
        pipeline.yaml:9: spec.sources[1].file.path: standard input is read from the start or not at all; restart to apply
    "#]]).await;

    // A port in use, beside changes that could be made.
    let taken = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let addr = taken.local_addr().expect("a listener has an address").to_string();
    let second = format!("{LIVE}\n    - {{name: second, sse: {{addr: \"{addr}\"}}}}");
    let in_use = manifest(
        INGEST,
        &join("other", "SELECT key FROM orders").replace("[live]", "[live, second]"),
        &second,
    );
    site.write("pipeline.yaml", &in_use);
    let config = worker.reload().await;
    let error = config["lastReload"]["error"].as_str().expect("it is refused");
    expect!["sink second: 127.0.0.1:<taken>: the port is in use; stop the program that has it, or write another addr"].assert_eq(&error.replace(&addr, "127.0.0.1:<taken>"));

    // All that time it went on.
    worker.ingest().send(&orders(1..2)).await;
    assert_eq!(client.expect_next().await.result().key, "o1", "and nothing before it");
    site.write("pipeline.yaml", &good);
    let config = worker.reload().await;
    assert_eq!(config["lastReload"]["outcome"], "unchanged");
    let metrics = get(&worker.url("admin", "/metrics")).await.1;
    for line in [
        "litejoin_config_last_reload_successful{} 1",
        "litejoin_config_reloads_total{outcome=\"applied\"} 0",
        "litejoin_config_reloads_total{outcome=\"refused\"} 8",
        "litejoin_config_reloads_total{outcome=\"unchanged\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found.replace(".0", "") == line), "no line {line} in\n{metrics}");
    }
    drop(taken);
    site.write("pipeline.yaml", &in_use);
    assert_applied(&worker.reload().await);
    worker.stop().await;
}

#[tokio::test]
async fn settings_change_while_data_flows() {
    let with = |retention: &str| {
        let retention = format!("  retention: {{{retention}}}\n  sources:");
        manifest(INGEST, &all(), LIVE).replace("  sources:", &retention)
    };
    let site = WorkerSite::with(&with("duration: 24h"));
    let worker = site.start().await;
    let now = worker.status().await["config"]["appliedAt"].as_i64().expect("a time is a number");
    let old = json!({"topic": "orders", "key": "old", "payload": {"n": 1}, "timestamp": now - 7_200});
    store(&worker, &[old, message("orders", "new", json!({"n": 2}))]).await;
    let mut client = Subscription::open(worker.address("sink live"), "replay=true", None).await;
    assert_eq!(client.replayed().await.len(), 2);
    site.write("pipeline.yaml", with("duration: 1h, cleanInterval: 1s, emitExpiry: true"));
    assert_applied(&worker.reload().await);
    let event = client.expect_next().await.result();
    assert_eq!((event.op.as_str(), &event.key), ("deleted", &json!("old")));
    worker.stop().await;
}

#[tokio::test]
async fn readers_that_stand_still_do_not_hold_up_a_reload() {
    let wide = "SELECT key, payload->>'text' AS text FROM orders";
    let joins = join("all_orders", wide).replace("[live]", "[live, second, console]");
    let console = "    - {name: console, stdout: {}}";
    let second = LIVE.replace("name: live", "name: second");
    let before = manifest(INGEST, &joins, &format!("{LIVE}\n{second}\n{console}"));
    let site = WorkerSite::with(&before);
    let (read, stdout) = std::io::pipe().expect("a pipe can be made");
    let worker = site.run([]).with_stdout(stdout).start().await;
    // Neither this client nor the reader of standard output reads, and what is sent is more than fits on the way.
    let stalled = Subscription::open(worker.address("sink second"), "", None).await;
    let text = "x".repeat(100_000);
    let large = (0..80).map(|n| message("orders", &format!("o{n}"), json!({"text": text})));
    store(&worker, &large.collect::<Vec<_>>()).await;
    let joins = joins.replace("second, ", "");
    let after = manifest(INGEST, &joins, &format!("{LIVE}\n{console}"));
    site.write("pipeline.yaml", after.replace("  sources:", "  delivery: {replayWindow: 9m}\n  sources:"));
    assert_applied(&worker.reload().await);
    assert_eq!(worker.log().matches("it does not come to an end").count(), 2);
    drop(stalled);
    // What was on its way comes once more, and nothing is missing or in another order.
    let last = worker.ingest().put("orders", "o0", json!({"text": "last"})).await;
    let lines = tokio::task::spawn_blocking(move || {
        let mut lines = Vec::new();
        for line in BufReader::new(read).lines() {
            let event = Event::read(&line.expect("lines are text"));
            let is_last = event.epoch >= last;
            lines.push(event);
            if is_last {
                break;
            }
        }
        lines
    });
    let events = lines.await.expect("lines can be read");
    let results = Results::folded(&events);
    assert_eq!(results.rows.len(), 80);
    assert!(results.rows[&("all_orders".to_owned(), "\"o0\"".to_owned())][0].contains("last"));
    worker.stop().await;
}

#[tokio::test]
async fn a_stop_amid_a_reload_hands_over_all_that_was_acknowledged() {
    let both = all().replace("[live]", "[console]");
    let sinks = "    - {name: console, stdout: {}}";
    let site = WorkerSite::with(&manifest(INGEST, &both, sinks));
    let worker = site.start().await;
    worker.ingest().send(&orders(0..2_000)).await;
    site.write("pipeline.yaml", manifest(INGEST, &both.replace("AS n", "AS m"), sinks));
    worker.signal("HUP");
    let before = worker.stop().await.stdout;
    let after = site.start().await.stop().await.stdout;
    let events: Vec<Event> = before.lines().chain(after.lines()).map(Event::read).collect();
    let results = Results::folded(&events);
    assert_eq!(results.rows.len(), 2_000);
    assert!(results.rows.values().all(|rows| rows[0].contains("\"m\"")), "the new query is in force");
}

#[tokio::test]
async fn a_watched_file_that_is_replaced_is_applied() {
    let site = WorkerSite::with(&manifest(INGEST, &all(), LIVE));
    let worker = site.run(["--watch"]).start().await;
    site.write("next.yaml", manifest(INGEST, &join("other", "SELECT key FROM orders"), LIVE));
    fs::rename(site.path().join("next.yaml"), site.path().join("pipeline.yaml"))
        .expect("a file can be renamed");
    assert_applied(&worker.reloaded(1).await);
    assert!(worker.status().await["joins"]["other"].is_object());
    // A wrong one is told once, not with every look; the next one shows that a few have passed.
    site.write("pipeline.yaml", "{");
    assert_eq!(worker.reloaded(2).await["lastReload"]["ok"], false);
    site.write("pipeline.yaml", manifest(INGEST, &all(), LIVE));
    assert_applied(&worker.reloaded(3).await);
    assert_eq!(worker.reloads().await, 3);
    worker.stop().await;
}

#[tokio::test]
async fn a_watched_folder_whose_link_is_swapped_is_applied() {
    // As a ConfigMap is mounted: the file is a link to ..data/pipeline.yaml, and ..data a link that is replaced.
    let site = WorkerSite::new();
    let config = site.path().join("config");
    let write = |version: &str, joins: &str| {
        let folder = config.join(format!("..{version}"));
        fs::create_dir_all(&folder).expect("a folder can be made");
        fs::write(folder.join("pipeline.yaml"), manifest(INGEST, joins, LIVE))
            .expect("a file can be written");
        symlink(format!("..{version}"), config.join("..data_tmp")).expect("a link can be made");
        fs::rename(config.join("..data_tmp"), config.join("..data")).expect("a link can be replaced");
    };
    write("2026_05_01", &all());
    symlink("..data/pipeline.yaml", config.join("pipeline.yaml")).expect("a link can be made");
    let arguments = ["run", "-f", "config", "--watch", "--data-dir", "data", "--log-format", "json"];
    let worker = site.command(arguments).start().await;
    write("2026_05_02", &join("other", "SELECT key FROM orders"));
    fs::remove_dir_all(config.join("..2026_05_01")).expect("a folder can be removed");
    assert_applied(&worker.reloaded(1).await);
    assert!(worker.status().await["joins"]["other"].is_object());
    worker.stop().await;
}

#[tokio::test]
async fn manifests_that_can_not_be_read_again() {
    let site = WorkerSite::with(&manifest(INGEST, &all(), LIVE));
    let watched = site.command(["run", "-f", "-", "--watch"]).end().await;
    assert_eq!(watched.code, Some(2));
    expect![[r#"
        error: --watch needs manifests that can be read again, and standard input can't; write them to a file
    "#]]
    .assert_eq(&watched.stderr);
    let once = site.run(["--watch", "--once"]).end().await;
    assert_eq!(once.code, Some(2));
    assert!(once.stderr.contains("cannot be used with"), "{}", once.stderr);

    let manifest = fs::File::open(site.path().join("pipeline.yaml")).expect("the manifest is there");
    let arguments = ["run", "-f", "-", "--data-dir", "data", "--log-format", "json"];
    let worker = site.command(arguments).with_stdin_from(manifest).start().await;
    let config = worker.reload().await;
    expect!["<stdin>: the manifests came by standard input, which can't be read again; restart to apply"]
        .assert_eq(config["lastReload"]["error"].as_str().expect("it is refused"));
    worker.stop().await;
}
