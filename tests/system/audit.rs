//! `litejoin audit`: stored results compared with what their queries yield over everything. The engine must leave no
//! difference, also amid a load; rows that another program has put into the file are found, put right, and sent.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use expect_test::{Expect, expect};
use litejoin_tests::ingest::message;
use litejoin_tests::repetition::chance;
use litejoin_tests::results::Event;
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Ended, Worker, WorkerSite, get};
use rand::RngExt;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

/// Joins of each kind, with these lines in `spec`.
fn manifest(spec: &str) -> String {
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 4, flushInterval: 2ms}}
  admin: {{addr: "127.0.0.1:0"}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [orders, customers]}}}}
  joins:
    - name: enriched
      query: SELECT o.key AS id, o.payload->>'n' AS n, c.payload->>'name' AS name FROM orders o LEFT JOIN customers c
        ON c.key = o.payload->>'customer'
      sinks: [live]
    - name: totals
      query: SELECT payload->>'customer' AS customer, sum(payload->>'price') AS price, count(*) AS orders FROM orders
        GROUP BY 1
      sinks: [live]
    - name: first
      query: SELECT id, name FROM enriched ORDER BY n DESC, id LIMIT 3
      sinks: [live]
    - name: changed
      query: SELECT key AS id, _change AS change FROM customers
      sinks: [live]
    - name: today
      query: SELECT key AS id, date('now') AS day FROM customers
      sinks: [live]
  sinks:
    - {{name: live, sse: {{addr: "127.0.0.1:0"}}}}
{spec}
"#
    )
}

/// No audits in the background, for tests that ask for audits themselves.
const ON_REQUEST: &str = "  audit: {enabled: false}";

/// Random messages: new and changed rows, and some that go.
fn load(seed: u64, count: usize) -> Vec<Value> {
    let mut chance = chance(seed);
    let mut random = |below: u64| chance.random_range(0..below);
    (0..count)
        .map(|_| {
            if random(4) == 0 {
                let payload =
                    if random(5) == 0 { Value::Null } else { json!({"name": format!("n{}", random(9))}) };
                return message("customers", &format!("c{}", random(12)), payload);
            }
            let (n, price) = (random(50), random(1_000) as f64 / 7.0);
            let order = json!({"n": n, "price": price, "customer": format!("c{}", random(15))});
            let payload = if random(6) == 0 { Value::Null } else { order };
            message("orders", &format!("o{}", random(300)), payload)
        })
        .collect()
}

/// A site with data, whose worker has stopped.
async fn loaded(spec: &str) -> WorkerSite {
    let site = WorkerSite::with(&manifest(spec));
    let worker = site.start().await;
    worker.ingest().send(&load(7, 2_000)).await;
    let order = json!({"n": 1, "price": 2.5, "customer": "c3"});
    let epoch = worker.ingest().put("orders", "o1", order).await;
    worker.snapshot("live", "enriched", epoch).await;
    worker.snapshot("live", "first", epoch).await;
    worker.stop().await;
    site
}

async fn audit(site: &WorkerSite, arguments: &[&str]) -> Ended {
    let fixed = ["audit", "--data-dir", "data"].into_iter();
    site.command(fixed.chain(arguments.iter().copied())).end().await
}

/// The lines of an audit, without numbers that differ from run to run.
async fn findings(site: &WorkerSite, arguments: &[&str]) -> Vec<Value> {
    let ended = audit(site, &[&["--output", "json"], arguments].concat()).await;
    let lines = ended.stdout.lines().map(|line| serde_json::from_str(line).expect("a line is JSON"));
    let findings: Vec<Value> = lines.collect();
    let is_wrong = |finding: &Value| finding["differences"] != 0 || finding.get("error").is_some();
    let expected = i32::from(findings.iter().any(is_wrong));
    assert_eq!(ended.code, Some(expected), "{}{}", ended.stdout, ended.stderr);
    findings
}

/// A line for each join: `join differences keys`, or why it was not audited.
fn shown(findings: &[Value]) -> String {
    let line = |finding: &Value| match finding["skipped"].as_str().or(finding["error"].as_str()) {
        Some(why) => format!("{}: {why}\n", finding["join"]),
        None => format!("{}: {} {}\n", finding["join"], finding["differences"], finding["keys"]),
    };
    findings.iter().map(line).collect()
}

/// Changes `results.db` behind the worker's back.
#[expect(clippy::disallowed_methods, reason = "what the worker finds must not depend on how it opens files")]
fn tamper(site: &WorkerSite, sql: &str) {
    let path = site.data_dir().join("results.db");
    let connection =
        Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).expect("it is there");
    let changed = connection.execute(sql, []).expect("it may be written to");
    assert_eq!(changed, 1, "{sql}");
}

/// One row that is wrong, one too many, and one too few.
fn tamper_with_three(site: &WorkerSite) {
    let of = |join: &str| format!("join_id = (SELECT id FROM joins WHERE name = '{join}')");
    tamper(
        site,
        &format!(
            "UPDATE results SET rows = '[{{\"id\":\"o1\"}}]' WHERE {} AND key = '\"o1\"'",
            of("enriched")
        ),
    );
    tamper(site, &format!("UPDATE results SET key = '\"x\"' WHERE {} AND key = '\"c3\"'", of("totals")));
}

/// The next result that a client gets, as `join op key`.
async fn next(client: &mut Subscription) -> String {
    let Event { query, op, key, .. } = client.expect_next().await.result();
    format!("{query} {op} {key}")
}

/// How often the log says that something differs.
fn errors(worker: &Worker) -> usize {
    worker.log().matches("an audit found stored results that differ from what the query yields").count()
}

async fn metrics(worker: &Worker) -> String {
    get(&worker.url("admin", "/metrics")).await.1
}

#[tokio::test]
async fn a_load_leaves_no_difference() {
    let site = WorkerSite::with(&manifest(ON_REQUEST));
    let worker = site.start().await;
    let socket = fs::metadata(site.data_dir().join("control.sock")).expect("it is there");
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600, "nobody else may talk to it");
    let (ingest, is_done) = (worker.ingest(), AtomicBool::new(false));
    let loading = async {
        for seed in 0..60 {
            ingest.send(&load(seed, 200)).await;
        }
        is_done.store(true, Ordering::Relaxed);
    };
    let auditing = async {
        let mut compared = 0;
        while !is_done.load(Ordering::Relaxed) {
            for finding in findings(&site, &[]).await {
                assert_eq!((&finding["differences"], finding.get("error")), (&json!(0), None), "{finding}");
                compared += u64::from(finding.get("skipped").is_none());
            }
        }
        compared
    };
    let ((), compared) = tokio::join!(loading, auditing);
    assert!(compared > 0, "no audit has found a moment to compare");
    let findings = findings(&site, &[]).await;
    expect![[r#"
        "enriched": 0 []
        "totals": 0 []
        "first": 0 []
        "changed": 0 []
        "today": 0 []
    "#]]
    .assert_eq(&shown(&findings));
    let audit = &worker.status().await["joins"]["enriched"]["audit"];
    assert_eq!((&audit["differences"], &audit["results"]), (&json!(0), &findings[0]["results"]));
    assert!(audit["lastSuccessAt"].is_u64(), "{audit}");
    let metrics = metrics(&worker).await;
    assert!(metrics.contains("litejoin_audit_differences{join=\"totals\"} 0.0"), "{metrics}");
    assert!(
        metrics.contains("litejoin_audit_last_success_timestamp_seconds{join=\"totals\"} 1"),
        "{metrics}"
    );
    worker.stop().await;
    assert!(!site.data_dir().join("control.sock").exists());
}

#[tokio::test]
async fn results_that_were_tampered_with_are_found_put_right_and_sent() {
    let site = loaded(ON_REQUEST).await;
    let of_files = ["-f", "pipeline.yaml"];
    tamper_with_three(&site);
    let three = shown(&findings(&site, &of_files).await);
    expect![[r#"
        "enriched": 1 ["updated \"o1\""]
        "totals": 2 ["created \"c3\"","deleted \"x\""]
        "first": 0 []
        "changed": 0 []
        "today": 0 []
    "#]]
    .assert_eq(&three);
    assert_eq!(shown(&findings(&site, &of_files).await), three, "without a worker nothing is changed");

    let worker = site.start().await;
    let mut client = Subscription::open(worker.address("sink live"), "join=*", None).await;
    assert_eq!(shown(&findings(&site, &[]).await), three);
    let mut sent = [next(&mut client).await, next(&mut client).await, next(&mut client).await];
    sent.sort();
    assert_eq!(sent, [r#"enriched updated "o1""#, r#"totals created "c3""#, r#"totals deleted "x""#]);
    until("two errors in the log", async || (errors(&worker) == 2).then_some(())).await;
    until("the repair", async || shown(&findings(&site, &["totals"]).await).contains(": 0 []").then_some(()))
        .await;
    assert!(metrics(&worker).await.contains("litejoin_audit_differences{join=\"enriched\"} 1.0"));
    let ended = audit(&site, &["enriched"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    assert!(metrics(&worker).await.contains("litejoin_audit_differences{join=\"enriched\"} 0.0"));
    worker.stop().await;
}

#[tokio::test]
async fn an_idle_worker_finds_it_by_itself() {
    let quick = "  audit: {idleAfter: 100ms, interval: 100ms}";
    let site = loaded(quick).await;
    tamper_with_three(&site);
    let worker = site.start().await;
    let wrong = async |join: &str| worker.status().await["joins"][join]["audit"]["lastSuccessAt"].is_null();
    for join in ["enriched", "totals", "first", "changed", "today"] {
        until(join, async || (!wrong(join).await).then_some(())).await;
    }
    until("two errors in the log", async || (errors(&worker) >= 2).then_some(())).await;
    let count = async || worker.status().await["joins"]["first"]["audit"]["count"].clone();
    let before = count().await;
    worker.ingest().put("customers", "c1", json!({"name": "new"})).await;
    until("another audit", async || (count().await != before).then_some(())).await;
    worker.stop().await;
}

/// Windows whose frames outlast the test, and one of event time, some of whose frames are frozen.
const WINDOWS: &str = "  audit: {enabled: false}
  retention: {duration: 2000h}
  windows:
    - {name: spent, type: tumbling, size: 1000h, keyColumn: customer, topic: orders, emit: update, sinks: [live],
       query: \"SELECT payload->>'customer' AS customer, sum(payload->>'n') AS n FROM orders GROUP BY 1\"}
    - {name: kinds, type: sliding, size: 1000h, slide: 500h, topic: orders, emit: update, sinks: [live],
       query: \"SELECT count(DISTINCT payload->>'n') AS kinds FROM orders\"}
    - {name: visits, type: session, gap: 1000h, partitionBy: payload->>'customer', topic: orders, emit: update,
       sinks: [live], query: SELECT count(*) AS orders FROM orders}
    - {name: minutes, type: tumbling, size: 10s, topic: orders, sinks: [live],
       eventTime: {path: $.n, unit: seconds, allowedLateness: 20s}, query: SELECT count(*) AS orders FROM orders}";

#[tokio::test]
async fn windows_are_compared_as_far_as_they_are_not_frozen() {
    let site = loaded(WINDOWS).await;
    let windows = ["spent", "kinds", "visits", "minutes"];
    let worker = site.start().await;
    let none = "\"spent\": 0 []\n\"kinds\": 0 []\n\"visits\": 0 []\n\"minutes\": 0 []\n";
    let found = findings(&site, &windows).await;
    assert_eq!(shown(&found), none);
    let compared: Vec<u64> =
        found.iter().map(|finding| finding["results"].as_u64().expect("a count")).collect();
    assert!(compared.iter().all(|results| *results > 0), "{compared:?}");
    worker.stop().await;
    let of_files: Vec<&str> = ["-f", "pipeline.yaml"].into_iter().chain(windows).collect();
    assert_eq!(shown(&findings(&site, &of_files).await), none);

    let of = |window: &str| format!("join_id = (SELECT id FROM joins WHERE name = '{window}')");
    let rows = r#"'[{"customer":"c3","n":-1}]'"#;
    tamper(&site, &format!("UPDATE results SET rows = {rows} WHERE {} AND key LIKE '%\"c3\"]'", of("spent")));
    tamper(
        &site,
        &format!(
            "UPDATE results SET window = replace(window, 'false', 'true') WHERE {} AND key LIKE '%\"c4\"]'",
            of("visits")
        ),
    );
    tamper(
        &site,
        &format!(
            "DELETE FROM results WHERE {} AND key = (SELECT max(key) FROM results WHERE {0})",
            of("minutes")
        ),
    );
    let wrong = findings(&site, &of_files).await;
    let counts: Vec<&Value> = wrong.iter().map(|finding| &finding["differences"]).collect();
    assert_eq!(counts, [1, 0, 1, 1], "{}", shown(&wrong));

    let worker = site.start().await;
    let mut client = Subscription::open(worker.address("sink live"), "join=*", None).await;
    assert_eq!(findings(&site, &windows).await.len(), windows.len());
    let mut sent = [next(&mut client).await, next(&mut client).await, next(&mut client).await];
    sent.sort();
    let told = sent.map(|told| told.split(' ').take(2).collect::<Vec<_>>().join(" "));
    assert_eq!(told, ["minutes created", "spent updated", "visits updated"]);
    until("the repair", async || (shown(&findings(&site, &windows).await) == none).then_some(())).await;
    worker.stop().await;
}

#[tokio::test]
async fn repairs_can_be_left_to_people() {
    let site = loaded("  audit: {enabled: false, repair: false}").await;
    tamper_with_three(&site);
    let worker = site.start().await;
    for _ in 0..2 {
        let ended = audit(&site, &["enriched"]).await;
        assert_eq!(ended.code, Some(1));
        let end = "stored results differ from what their queries yield; a running worker puts them right (spec.audit.repair)\n";
        assert!(ended.stdout.ends_with(end), "{}", ended.stdout);
    }
    worker.stop().await;
}

#[tokio::test]
async fn wrong_arguments_are_explained() {
    let site = WorkerSite::with(&manifest(ON_REQUEST));
    let explained = async |arguments: &[&str], code, expected: Expect| {
        let ended = audit(&site, arguments).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{}", ended.stderr);
        expected.assert_eq(&ended.stderr);
    };
    explained(
        &["-f", "pipeline.yaml"],
        1,
        expect![[r#"
        error: data: holds no data yet; start the pipeline there, or give the --data-dir of one that ran
    "#]],
    )
    .await;
    let worker = site.start().await;
    explained(
        &["enrichd"],
        2,
        expect![[r#"
        error: there is no join "enrichd"; did you mean "enriched"?
    "#]],
    )
    .await;
    worker.kill().await;
    explained(&[], 1, expect![[r#"
        error: data: no worker runs on it that could be asked; start it (litejoin run -f … --data-dir data), or give the manifests with -f to compare the files as they are
    "#]]).await;
    explained(
        &["-f", "pipeline.yaml", "nothing"],
        2,
        expect![[r#"
        error: there is no join "nothing"; allowed: enriched, totals, first, changed, today
    "#]],
    )
    .await;
    let changed = manifest(ON_REQUEST).replace("n DESC", "n");
    site.write("pipeline.yaml", changed);
    let findings = findings(&site, &["-f", "pipeline.yaml", "first"]).await;
    assert_eq!(findings[0]["skipped"], "its query has changed since its results were stored");
}

#[tokio::test]
async fn a_fault_of_the_engine_is_found_put_right_and_sent() {
    let site = WorkerSite::with(&manifest(ON_REQUEST));
    let worker = site.run([]).with_variable("LITEJOIN_SABOTAGE", "no-old-images").start().await;
    let mut client = Subscription::open(worker.address("sink live"), "join=totals", None).await;
    for customer in ["c1", "c2"] {
        let order = json!({"n": 1, "price": 1.5, "customer": customer});
        let epoch = worker.ingest().put("orders", "o1", order).await;
        worker.snapshot("live", "totals", epoch).await;
    }
    let came_so_far = [next(&mut client).await, next(&mut client).await];
    assert_eq!(came_so_far, [r#"totals created "c1""#, r#"totals created "c2""#], "c1 has lost its order");
    assert_eq!(shown(&findings(&site, &["totals"]).await), "\"totals\": 1 [\"deleted \\\"c1\\\"\"]\n");
    assert_eq!(next(&mut client).await, r#"totals deleted "c1""#);
    assert_eq!(shown(&findings(&site, &["totals"]).await), "\"totals\": 0 []\n");
    worker.stop().await;
}
