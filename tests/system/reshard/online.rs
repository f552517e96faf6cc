//! The data of a pipeline goes to another number of shards while it is served.

use litejoin_tests::wait::{TIMEOUT, until, until_within};
use litejoin_tests::worker::{Worker, WorkerSite, try_get};
use serde_json::{Value, json};

use super::{assert_whole, manifest, order, stored};

/// `storage` with consent to a move beside the pipeline.
pub(super) fn online(from: usize, to: usize) -> String {
    let consent = format!("{{fromShardCount: {from}, toShardCount: {to}, strategy: Online}}");
    manifest(&format!("shardCount: {to}, reshard: {consent}"))
}

/// Waits until `/status` says of a move what is wanted; in a pause it waits for the worker.
async fn told(worker: &Worker, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    until_within(2 * TIMEOUT, what, async || {
        let (_, body) = try_get(&worker.url("admin", "/status")).await.ok()?;
        let status: Value = serde_json::from_str(&body).ok()?;
        assert!(is_it(&json!({ "phase": "Failed" })) || status["reshard"]["phase"] != "Failed", "{status}");
        is_it(&status["reshard"]).then(|| status["reshard"].clone())
    })
    .await
}

/// Waits until the data has been moved, and returns what `/status` says of it.
pub(crate) async fn moved(worker: &Worker, to: usize) -> Value {
    told(worker, "the move", |told| told["phase"] == "Done" && told["toShardCount"] == to).await
}

/// Sends messages until they are acknowledged: a connection that is taken as a pause begins is closed again.
async fn send(worker: &Worker, messages: &[Value]) {
    until("messages to be taken", async || {
        worker.ingest().try_send(messages).await.is_ok_and(|answer| answer.status == 200).then_some(())
    })
    .await;
}

pub(super) fn shard_count(site: &WorkerSite) -> usize {
    let layout = std::fs::read(site.data_dir().join("layout.json")).expect("readable");
    let layout: Value = serde_json::from_slice(&layout).expect("JSON");
    layout["shardCount"].as_u64().expect("a number") as usize
}

#[tokio::test]
async fn the_data_is_moved_beside_the_worker_and_stays_where_it_is() {
    let (site, last_id) = stored().await;
    site.write("pipeline.yaml", online(2, 5));
    let worker = site.start().await;
    moved(&worker, 5).await;
    let lineage = assert_whole(&site, &worker, 90).await;
    assert!(last_id.starts_with(&lineage), "ids go on");
    assert_eq!(shard_count(&site), 5);
    assert!(site.data_dir().join("previous-layout").exists(), "the layout of before is kept");
    worker.stop().await;
    // The block may stay, and the other way round it leads back.
    for (from, to) in [(2, 5), (5, 2), (5, 2)] {
        site.write("pipeline.yaml", online(from, to));
        let worker = site.start().await;
        if shard_count(&site) == from {
            moved(&worker, to).await;
        }
        assert_whole(&site, &worker, 90).await;
        worker.stop().await;
        assert_eq!(shard_count(&site), to);
    }
    site.write("pipeline.yaml", online(2, 5).replace("shardCount: 5,", "shardCount: 2,"));
    let ended = site.run([]).end().await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("write the same number in both"), "{}", ended.stderr);
    assert_eq!(shard_count(&site), 2);
}

#[tokio::test]
async fn messages_and_deletions_that_come_meanwhile_are_in_the_copy() {
    let (site, _) = stored().await;
    site.write("pipeline.yaml", manifest("shardCount: 2"));
    let worker = site.start().await;
    site.write("pipeline.yaml", online(2, 5));
    worker.signal("HUP");
    for number in 90..300 {
        let deletion = json!({ "topic": "orders", "key": format!("o{}", number - 60), "payload": null });
        send(&worker, &[order(number), order(number - 80), deletion]).await;
    }
    moved(&worker, 5).await;
    worker.ingest().send(&[order(300)]).await;
    worker.stop().await;
    let worker = site.start().await;
    assert_whole(&site, &worker, 271).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_revert_calls_the_move_off() {
    let (site, _) = stored().await;
    site.write("pipeline.yaml", online(2, 5));
    let worker = site.run([]).with_variable("LITEJOIN_STALL", "online-copied").start().await;
    told(&worker, "the copy", |told| told["phase"] == "Copying" && told["rows"] == 97).await;
    worker.ingest().send(&[order(100)]).await;
    site.write("pipeline.yaml", manifest("shardCount: 2"));
    worker.reload().await;
    told(&worker, "the end of the move", Value::is_null).await;
    assert!(!site.data_dir().join("reshard").exists(), "the copy is gone");
    assert_whole(&site, &worker, 91).await;
    worker.stop().await;
    assert_eq!(shard_count(&site), 2);
}

#[tokio::test]
async fn a_stop_ends_the_move_and_the_next_start_begins_anew() {
    let (site, _) = stored().await;
    site.write("pipeline.yaml", online(2, 5));
    let worker = site.run([]).with_variable("LITEJOIN_STALL", "online-verified").start().await;
    told(&worker, "the comparison", |told| told["phase"] == "Verifying" && told["verifiedAt"].is_i64()).await;
    worker.stop().await;
    assert_eq!(shard_count(&site), 2);
    let worker = site.start().await;
    moved(&worker, 5).await;
    assert_whole(&site, &worker, 90).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_move_that_fails_is_told_and_the_pipeline_goes_on() {
    let (site, _) = stored().await;
    // A file where the folder of the copy is to be.
    site.write("data/reshard", "");
    site.write("pipeline.yaml", online(2, 5));
    let worker = site.start().await;
    let failed = told(&worker, "the failure", |told| told["phase"] == "Failed").await;
    let message = failed["message"].as_str().expect("it says why");
    assert!(message.contains("the pipeline goes on with 2 shards"), "{message}");
    assert_whole(&site, &worker, 90).await;
    worker.stop().await;
}
