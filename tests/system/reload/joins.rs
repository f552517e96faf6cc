//! Joins that come, change and go with a reload.

use expect_test::expect;
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{WorkerSite, get};
use serde_json::json;

use super::{INGEST, LIVE, all, assert_applied, join, manifest, next, orders, shown, store};

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
    .assert_eq(&shown(&events));
    worker.stop().await;
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
    .assert_eq(&shown(&came));
    assert_eq!(of_orders.expect_next().await.result().key, "o5", "and nothing before it");
    let (status, text) = get(&worker.url("sink live", "/snapshot?join=small")).await;
    assert_eq!(
        (status, text.as_str()),
        (404, r#"{"error":"this sink takes no join \"small\"; it has all_orders, big"}"#)
    );
    let joins = worker.status().await["joins"].clone();
    assert_eq!(joins.as_object().expect("joins by name").keys().collect::<Vec<_>>(), ["all_orders", "big"]);

    // A join that comes back under its old name is a new one.
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
