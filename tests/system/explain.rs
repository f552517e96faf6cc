//! `litejoin explain`: how joins are kept current and what that costs, from the manifests alone, from the files, and
//! from a worker that runs.

use expect_test::{Expect, expect};
use litejoin_tests::worker::{Ended, WorkerSite, get};
use serde_json::{Value, json};

const MANIFEST: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {shardCount: 4, flushInterval: 2ms}
  admin: {addr: "127.0.0.1:0"}
  sources:
    - {name: ingest, http: {addr: "127.0.0.1:0", topics: [orders, customers]}}
  joins:
    - name: enriched
      query: SELECT o.key AS id, c.payload->>'name' AS name FROM orders o LEFT JOIN customers c
        ON c.key = o.payload->>'customer'
      sinks: [live]
    - name: first
      query: SELECT id, name FROM enriched ORDER BY name LIMIT 3
      sinks: [live]
    - name: by_customer
      query: SELECT payload->>'customer' AS customer, count(*) AS n FROM orders GROUP BY 1
      sinks: [live]
  sinks:
    - {name: live, sse: {addr: "127.0.0.1:0"}}
"#;

async fn explain(site: &WorkerSite, arguments: &[&str]) -> Ended {
    let fixed = ["explain", "-f", "pipeline.yaml"].into_iter();
    site.command(fixed.chain(arguments.iter().copied())).end().await
}

/// Asserts that `explain` prints this, and no complaint.
async fn explained(site: &WorkerSite, arguments: &[&str], expected: Expect) {
    let ended = explain(site, arguments).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    expected.assert_eq(&ended.stdout);
}

async fn json_of(site: &WorkerSite, arguments: &[&str]) -> Value {
    let ended = explain(site, &[&["--output", "json"], arguments].concat()).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    serde_json::from_str(&ended.stdout).expect("it is JSON")
}

#[tokio::test]
async fn the_manifests_alone_show_the_plan() {
    let site = WorkerSite::with(MANIFEST);
    explained(&site, &[], expect![[r#"
        pipeline p: 3 joins, 4 shards

        enriched  keyed: only the results that a change concerns are evaluated
          topics    customers, orders
          sinks     live
          gathers   1  orders     by key  from the result keys
                    2  customers  by key  from CAST(payload ->> 'customer' AS TEXT) of 1
          indexes   orders (CAST(payload ->> 'customer' AS TEXT)): built when the worker starts
          a change  of customers: 5 probes
                    of orders: 1 probe

        first  full: everything is evaluated at each change
          topics    customers, orders; reads enriched
          sinks     live
          warning:  each change of customers, orders costs an evaluation over all rows: LIMIT picks among all rows; number them with row_number() OVER (PARTITION BY …) and take the first ones of each key

        by_customer  accumulated: groups follow the rows that come and go, whatever their size
          topics    orders
          sinks     live
          gathers   1  orders  by key  from the result keys
          indexes   orders (payload ->> 'customer'): built when the worker starts
          a change  of orders: 0 probes

        1 warning. A probe is a search in one shard; estimates take each to find one row. By key it goes to one shard,
        by anything else to all 4.
    "#]]).await;
    explained(&site, &["ENRICHED"], expect![[r#"
        pipeline p: 1 join, 4 shards

        enriched  keyed: only the results that a change concerns are evaluated
          topics    customers, orders
          sinks     live
          gathers   1  orders     by key  from the result keys
                    2  customers  by key  from CAST(payload ->> 'customer' AS TEXT) of 1
          indexes   orders (CAST(payload ->> 'customer' AS TEXT)): built when the worker starts
          a change  of customers: 5 probes
                    of orders: 1 probe

        no warnings. A probe is a search in one shard; estimates take each to find one row. By key it goes to one shard,
        by anything else to all 4.
    "#]]).await;
    assert!(!site.data_dir().exists(), "nothing was begun");
}

#[tokio::test]
async fn warnings_can_be_denied() {
    let site = WorkerSite::with(MANIFEST);
    assert_eq!(explain(&site, &["--deny-warnings"]).await.code, Some(1));
    assert_eq!(explain(&site, &["--deny-warnings", "enriched"]).await.code, Some(0));
    let ended = explain(&site, &["enrichd"]).await;
    assert_eq!(ended.code, Some(2));
    expect![[r#"
        error: there is no join "enrichd"; did you mean "enriched"?
    "#]]
    .assert_eq(&ended.stderr);
    site.write("pipeline.yaml", MANIFEST.replace("FROM orders o", "FROM order o"));
    assert_eq!(explain(&site, &["--deny-warnings"]).await.code, Some(2));
}

#[tokio::test]
async fn files_and_a_worker_show_what_it_costs() {
    let site = WorkerSite::with(MANIFEST);
    let ended = explain(&site, &["--data-dir", "data"]).await;
    assert_eq!(ended.code, Some(1));
    expect![[r#"
        error: data: holds no data yet; start the pipeline there, or give the --data-dir of one that ran
    "#]]
    .assert_eq(&ended.stderr);
    let worker = site.start().await;
    let mut epoch = 0;
    for n in 0..20 {
        epoch =
            worker.ingest().put("orders", &format!("o{n}"), json!({"customer": format!("c{}", n % 3)})).await;
    }
    worker.snapshot("live", "enriched", epoch).await;
    epoch = worker.ingest().put("customers", "c1", json!({"name": "Ada"})).await;
    worker.snapshot("live", "enriched", epoch).await;
    worker.snapshot("live", "first", epoch).await;

    let status = worker.status().await["joins"].clone();
    assert_eq!(
        (&status["enriched"]["class"], &status["enriched"]["reason"]),
        (&json!("keyed"), &json!(null))
    );
    assert_eq!(status["first"]["class"], "full");
    assert!(status["first"]["reason"].as_str().is_some_and(|reason| reason.starts_with("LIMIT")), "{status}");
    let metrics = get(&worker.url("admin", "/metrics")).await.1;
    for name in [
        "litejoin_join_vm_steps_total{join=",
        "litejoin_join_probes_total{join=",
        "litejoin_join_class{join=",
    ] {
        assert!(metrics.contains(&format!("{name}\"enriched\"")), "no {name} in {metrics}");
    }

    let admin = worker.url("admin", "");
    for arguments in [&["--data-dir", "data"][..], &["--admin", &admin]] {
        let costs = json_of(&site, arguments).await;
        let measured = &costs["joins"][0]["measured"];
        assert_eq!(measured["changes"], 21, "{costs:#}");
        assert_eq!(measured["probes"], status["enriched"]["probes"], "{costs:#}");
        // Each order looks for its customer, the customer for orders in 4 shards and then for each of the 7 it found;
        // messages that are evaluated together share some.
        let probes = measured["probes"].as_u64().expect("a number");
        assert!((4 + 7..=20 + 4 + 7).contains(&probes), "{costs:#}");
    }
    let built = |costs: &Value| {
        let index = &costs["joins"][0]["indexes"][0];
        assert!(index["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{index}");
        (index["builtIn"].clone(), index["entries"].clone())
    };
    assert_eq!(built(&json_of(&site, &["--data-dir", "data"]).await), (json!(4), json!(20)));
    worker.stop().await;
    let costs = json_of(&site, &["--data-dir", "data"]).await;
    assert_eq!(built(&costs), (json!(4), json!(20)));
    assert_eq!(costs["joins"][0]["measured"], Value::Null);
}

#[tokio::test]
async fn the_clock_is_followed_row_by_row_or_read_again() {
    let site = WorkerSite::with(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {shardCount: 4}
  admin: {addr: "127.0.0.1:0"}
  sources:
    - {name: ingest, http: {addr: "127.0.0.1:0", topics: [orders]}}
  joins:
    - {name: recent, query: "SELECT key AS id FROM orders WHERE timestamp > unixepoch() - 3600", sinks: [live]}
    - {name: aging, query: "SELECT key AS id, unixepoch() - timestamp AS age FROM orders", refresh: 1m, sinks: [live]}
  sinks:
    - {name: live, sse: {addr: "127.0.0.1:0"}}
"#,
    );
    explained(&site, &[], expect![[r#"
        pipeline p: 2 joins, 4 shards

        recent  keyed: only the results that a change concerns are evaluated
          topics    orders
          sinks     live
          gathers   1  orders  by key  from the result keys
          indexes   orders (timestamp): built when the worker starts
          a change  of orders: 0 probes
          in time   "timestamp" > unixepoch('now') - 3600: rows of orders are found by timestamp when the clock passes them

        aging  full: everything is evaluated at each change
          topics    orders
          sinks     live
          in time   run again every 60 s (refresh)
          warning:  each change of orders costs an evaluation over all rows: unixepoch('now') reads the clock where no row says when the result changes; compare the value of a row with the clock (timestamp > unixepoch() - 3600)

        1 warning. A probe is a search in one shard; estimates take each to find one row. By key it goes to one shard,
        by anything else to all 4.
    "#]]).await;
}
