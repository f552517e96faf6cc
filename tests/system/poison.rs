//! Rows for which a query fails: their results stay as they were, and all others go on.

use expect_test::expect;
use litejoin_tests::ingest::message;
use litejoin_tests::results::Results;
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Ended, Worker, WorkerSite, get};
use serde_json::{Value, json};

/// The amount stands in a text that should hold JSON.
const EACH: &str = "SELECT key, json_extract(payload->>'body', '$.amount') AS amount FROM bills";
const TOTALS: &str = "SELECT payload->>'customer' AS customer, \
                      sum(json_extract(payload->>'body', '$.amount')) AS total FROM bills GROUP BY 1";
const NAMED: &str = "SELECT b.key, e.amount, c.payload->>'name' AS name FROM bills b JOIN each e ON e.key = b.key \
                     LEFT JOIN customers c ON c.key = b.payload->>'customer'";

fn manifest(joins: &[(&str, &str)]) -> String {
    let joins: String = joins
        .iter()
        .map(|(name, query)| format!("    - {{name: {name}, query: \"{query}\", sinks: [live]}}\n"))
        .collect();
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 2}}
  admin: {{addr: "127.0.0.1:0"}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [bills, customers]}}}}
  joins:
{joins}  sinks:
    - {{name: live, sse: {{addr: "127.0.0.1:0"}}}}
"#
    )
}

fn bill(key: &str, customer: &str, body: &str) -> Value {
    message("bills", key, json!({"customer": customer, "body": body}))
}

/// The rows of a join, as JSON, as of an epoch.
async fn rows(worker: &Worker, join: &str, epoch: u64) -> Vec<String> {
    worker.snapshot("live", join, epoch).await.1.rows.into_values().flatten().collect()
}

async fn failing(worker: &Worker, join: &str) -> Value {
    worker.status().await["joins"][join]["failing"].clone()
}

#[tokio::test]
async fn a_row_with_malformed_text_stops_its_own_result_alone() {
    let site = WorkerSite::with(&manifest(&[("each", EACH), ("named", NAMED)]));
    let worker = site.start().await;
    let ingest = worker.ingest();
    ingest.send(&[bill("a", "c1", r#"{"amount":1}"#), bill("bad", "c1", r#"{"amount":2}"#)]).await;
    let epoch = ingest.send(&[bill("bad", "c1", "not json")]).await;
    let later = ["c0", "c1", "c2"].map(|key| bill(key, "c1", r#"{"amount":3}"#));
    ingest.send(&later).await;
    ingest.put("bills", "a", Value::Null).await;
    let epoch = ingest.put("customers", "c1", json!({"name": "Ada"})).await.max(epoch);
    expect![[r#"
        [
            "{\"amount\":2,\"key\":\"bad\"}",
            "{\"amount\":3,\"key\":\"c0\"}",
            "{\"amount\":3,\"key\":\"c1\"}",
            "{\"amount\":3,\"key\":\"c2\"}",
        ]
    "#]]
    .assert_debug_eq(&rows(&worker, "each", epoch).await);
    assert_eq!(rows(&worker, "named", epoch).await.len(), 4, "a join over it goes on, too");
    let told = json!({"count": 1, "keys": [{"key": "bad", "error": "malformed JSON"}]});
    assert_eq!(failing(&worker, "each").await, told);

    // The log and a dead letter name it, and the snapshot says which result is old.
    let log = worker.log();
    assert!(log.contains("a result can't be evaluated") && log.contains(r#""key":"\"bad\"""#), "{log}");
    let Ended { stdout, .. } = site
        .command(["dlq", "list", "--output", "json", "-f", "pipeline.yaml", "--data-dir", "data"])
        .end()
        .await;
    let letters: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let letter = letters.iter().find(|letter| letter["join"] == "each").expect("there is one for the join");
    assert_eq!(
        (&letter["kind"], &letter["key"], &letter["topics"]),
        (&json!("evaluation"), &json!("bad"), &json!("bills"))
    );
    let (_, text) = get(&worker.url("sink live", "/snapshot?join=each")).await;
    let snapshot: Value = serde_json::from_str(&text).expect("a snapshot is JSON");
    let stale = |key: &str| {
        let results = snapshot["results"].as_array().expect("there are results");
        results.iter().find(|result| result["key"] == key).map(|result| result["stale"].clone())
    };
    assert_eq!((stale("bad"), stale("c0")), (Some(json!(true)), Some(Value::Null)), "{text}");

    // A later write mends it, and the letter is gone.
    let epoch = ingest.send(&[bill("bad", "c1", r#"{"amount":4}"#)]).await;
    assert!(rows(&worker, "each", epoch).await.contains(&r#"{"amount":4,"key":"bad"}"#.to_owned()));
    assert_eq!(failing(&worker, "each").await["count"], 0);
    assert_eq!(worker.status().await["joins"]["each"]["lastError"], Value::Null);
    let Ended { stdout, .. } = site
        .command(["dlq", "list", "--output", "json", "-f", "pipeline.yaml", "--data-dir", "data"])
        .end()
        .await;
    assert_eq!(stdout, "");
}

#[tokio::test]
async fn a_new_join_over_rows_with_malformed_text_has_all_other_results() {
    let site = WorkerSite::with(&manifest(&[("keys", "SELECT key FROM bills")]));
    let worker = site.start().await;
    let ingest = worker.ingest();
    let bills: Vec<Value> = (0..3_000)
        .map(|n| {
            bill(
                &format!("b{n}"),
                &format!("c{}", n % 40),
                if n % 20 == 7 { "no" } else { r#"{"amount":1}"# },
            )
        })
        .collect();
    let epoch = ingest.send(&bills).await;
    site.write(
        "pipeline.yaml",
        manifest(&[("keys", "SELECT key FROM bills"), ("each", EACH), ("totals", TOTALS)]),
    );
    worker.reload().await;
    until("both joins to be there", async || {
        let status = worker.status().await;
        let count = |join: &str| status["joins"][join]["failing"]["count"].clone();
        (count("each") == 150 && count("totals") == 2).then_some(())
    })
    .await;
    assert_eq!(rows(&worker, "each", epoch).await.len(), 2_850);
    assert_eq!(rows(&worker, "totals", epoch).await.len(), 38);

    // The same after a crash, and once the data is as it should be.
    worker.kill().await;
    let worker = site.start().await;
    let ingest = worker.ingest();
    let epoch =
        ingest.send(&[bill("b7", "c7", r#"{"amount":1}"#), bill("b3000", "c8", r#"{"amount":5}"#)]).await;
    assert_eq!(rows(&worker, "each", epoch).await.len(), 2_852);
    assert_eq!(failing(&worker, "each").await["count"], 149);
    assert!(rows(&worker, "totals", epoch).await.contains(&r#"{"customer":"c8","total":80}"#.to_owned()));
    let mended: Vec<Value> = (0..3_000)
        .filter(|n| n % 20 == 7)
        .map(|n| bill(&format!("b{n}"), &format!("c{}", n % 40), r#"{"amount":1}"#))
        .collect();
    let epoch = ingest.send(&mended).await;
    assert_eq!(rows(&worker, "totals", epoch).await.len(), 40);
    until("groups to be accumulated again", async || {
        (worker.status().await["joins"]["totals"]["class"] == "accumulated").then_some(())
    })
    .await;
    assert_eq!(failing(&worker, "totals").await["count"], 0);
}

#[tokio::test]
async fn a_snapshot_claims_no_epoch_that_its_join_has_not_reached() {
    // The sum of all rows is one result, and fails as a whole.
    let all = "SELECT 1 AS id, sum(json_extract(payload->>'body', '$.amount')) AS total FROM bills";
    let site = WorkerSite::with(&manifest(&[("all", all), ("keys", "SELECT key FROM bills")]));
    let worker = site.start().await;
    let ingest = worker.ingest();
    let good = ingest.send(&[bill("a", "c1", r#"{"amount":1}"#)]).await;
    assert_eq!(rows(&worker, "all", good).await, [r#"{"id":1,"total":1}"#]);
    let bad = ingest.send(&[bill("b", "c1", "no")]).await;
    assert_eq!(rows(&worker, "keys", bad).await.len(), 2, "another join goes on");
    until("the join to fail", async || {
        worker.status().await["joins"]["all"]["lastError"].is_string().then_some(())
    })
    .await;
    let (code, text) = get(&worker.url("sink live", &format!("/snapshot?join=all&minEpoch={bad}"))).await;
    assert_eq!(code, 503, "{text}");
    assert!(text.contains("join all fails, and its results follow from epoch"), "{text}");
    let (code, text) = get(&worker.url("sink live", "/snapshot?join=all")).await;
    let snapshot: Value = serde_json::from_str(&text).expect("a snapshot is JSON");
    assert_eq!(code, 200);
    assert!(snapshot["epoch"].as_u64().expect("a number") < bad, "{text}");
    assert_eq!(snapshot["results"][0]["stale"], true, "{text}");
}

#[tokio::test]
async fn sinks_hear_of_a_result_again_once_it_is_mended() {
    let site = WorkerSite::with(&manifest(&[("each", EACH)]));
    let worker = site.start().await;
    let ingest = worker.ingest();
    let mut client = Subscription::open(worker.address("sink live"), "join=each&replay=true", None).await;
    client.replayed().await;
    let mut events = Vec::new();
    for body in [r#"{"amount":1}"#, "no", r#"{"amount":2}"#] {
        ingest.send(&[bill("b", "c1", body)]).await;
    }
    for _ in 0..2 {
        events.push(client.expect_next().await.result());
    }
    let told: Vec<String> =
        events.iter().map(|event| format!("{} {}", event.op, event.rows[0]["amount"])).collect();
    assert_eq!(told, ["created 1", "updated 2"]);
    let (_, present) = worker.snapshot("live", "each", 0).await;
    present.assert_same(&Results::folded(&events), "what was told");
}
