//! Configs that are refused: the running one goes on, and the error says why.

use std::fs;
use std::net::TcpListener;

use expect_test::{Expect, expect};
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite, get};
use serde_json::json;

use super::{INGEST, LIVE, all, assert_applied, join, manifest, orders, store};

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

/// Asserts that manifests are refused that no worker takes.
async fn assert_invalid_is_refused(site: &WorkerSite, worker: &Worker, good: &str) {
    let two = manifest(
        INGEST,
        &format!("{}\n{}", join("a", "SELECT key FROM ordesr"), join("b", "SELECT key, FROM orders")),
        LIVE,
    );
    assert_refused(site, worker, &two, expect![[r#"
        pipeline.yaml:10: spec.joins[0].query: no source fills topic "ordesr", did you mean "orders"; topics and joins: orders, customers, b
        pipeline.yaml:11: spec.joins[1].query: near "FROM": syntax error
    "#]]).await;
    let unknown = good.replace("storage: {", "storage: {sharts: 1, ");
    assert_refused(site, worker, &unknown, expect![[r#"
        pipeline.yaml:5: spec.storage.sharts: unknown field "sharts"; allowed: acceptLoss, accessMode, batchSize, dataDir, ephemeral, flushInterval, maxBytes, onNodeLoss, readerPoolSize, reshard, retainOnDelete, shardCount, size, storageClassName, synchronous
    "#]]).await;
    assert_refused(
        site,
        worker,
        "{",
        expect![[r#"
        pipeline.yaml:2: is no YAML: while parsing a node, did not find expected node content
    "#]],
    )
    .await;
}

/// Asserts that manifests are refused that a worker takes at its start, and not while it runs.
async fn assert_unfit_is_refused(site: &WorkerSite, worker: &Worker, good: &str) {
    let fixed = good
        .replace("metadata: {name: p}", "metadata: {name: q}")
        .replace(
            "shardCount: 2, flushInterval: 2ms",
            "shardCount: 4, flushInterval: 3ms, synchronous: full, dataDir: elsewhere",
        )
        .replace("admin: {addr: \"127.0.0.1:0\"}", "admin: {addr: \"127.0.0.1:1\"}");
    assert_refused(site, worker, &fixed, expect![[r#"
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
    assert_refused(site, worker, &topic, expect![[r#"
        pipeline.yaml:11: spec.joins[1].name: the running worker has a topic "customers", and a join can't take its name; rename the join, or restart to apply
    "#]]).await;
    let no_file = format!(
        "{INGEST}\n    - {{name: rows, file: {{path: none.csv, format: csv, topic: orders, keyColumns: [id]}}}}"
    );
    assert_refused(
        site,
        worker,
        &manifest(&no_file, &all(), LIVE),
        expect![[r#"
        source rows: none.csv: there is no such file; file.path is relative to the folder of its manifest
    "#]],
    )
    .await;
    let stdin = format!(
        "{INGEST}\n    - {{name: rows, file: {{path: \"-\", format: csv, topic: orders, keyColumns: [id]}}}}"
    );
    assert_refused(site, worker, &manifest(&stdin, &all(), LIVE), expect![[r#"
        pipeline.yaml:9: spec.sources[1].file.path: standard input is read from the start or not at all; restart to apply
    "#]]).await;
}

#[tokio::test]
async fn a_wrong_config_changes_nothing_and_says_why() {
    let good = manifest(INGEST, &all(), LIVE);
    let site = WorkerSite::with(&good);
    let worker = site.start().await;
    store(&worker, &orders(0..1)).await;
    let mut client = Subscription::open(worker.address("sink live"), "replay=true", None).await;
    client.replayed().await;

    assert_invalid_is_refused(&site, &worker, &good).await;
    assert_unfit_is_refused(&site, &worker, &good).await;

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

    // The running config went on all the time.
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
