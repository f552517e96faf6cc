//! A replica that is emptied by somebody: the data here is whole, so the worker serves on, says so, and begins a new
//! replica once its owner consents.

use std::collections::BTreeSet;

use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::stores::Store;
use litejoin_tests::wait::until;
use litejoin_tests::worker::Worker;
use serde_json::json;

use super::{Replicated, assert_there, keys, names, put_all, ready, replication, stored};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_replica_is_emptied_serves_on() {
    let store = Store::file().await;
    let pipeline = stored(&store).await;
    let mut all = names("k", 3);
    let worker = pipeline.start().await;
    let incarnation = ready(&worker).await;
    empty(&store);
    serves_on(&worker, &incarnation, "while it runs", &mut all).await;
    worker.stop().await;
    empty(&store);
    let worker = pipeline.start().await;
    serves_on(&worker, &incarnation, "at the start", &mut all).await;
    worker.stop().await;

    // Consent to another one means nothing.
    consents(&pipeline, "incarnation-1-other");
    let worker = pipeline.start().await;
    serves_on(&worker, &incarnation, "without consent", &mut all).await;
    worker.stop().await;

    consents(&pipeline, &incarnation);
    let worker = pipeline.start().await;
    let next = ready(&worker).await;
    assert!(next.starts_with("incarnation-2-"), "an old one that comes back is not the newer: {next}");
    worker.stop().await;
    pipeline.lose_disk();
    let worker = pipeline.start().await;
    assert_there(&all, &keys(&worker).await, "after the disk was lost");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_comes_back_is_written_on() {
    let store = Store::file().await;
    let pipeline = stored(&store).await;
    let (replicas, away) = (store.files().join("replicas"), store.files().join("away"));
    std::fs::rename(&replicas, &away).expect("it can be moved");
    let worker = pipeline.start().await;
    let mut all = names("k", 3);
    let incarnation = replication(&worker).await["incarnation"].as_str().expect("it has a name").to_owned();
    serves_on(&worker, &incarnation, "at the start", &mut all).await;
    worker.stop().await;
    std::fs::remove_dir_all(&replicas).expect("what Litestream has put there");
    std::fs::rename(&away, &replicas).expect("it can be moved back");
    let worker = pipeline.start().await;
    assert_eq!(ready(&worker).await, incarnation);
    until("a message to be in the replica", async || {
        let safe = Ingest::new(worker.address("source safe"));
        let answer = safe.try_send(&[message("orders", "safe", json!({"n": 1}))]).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    worker.stop().await;
    pipeline.lose_disk();
    let worker = pipeline.start().await;
    assert_there(&all, &keys(&worker).await, "after the disk was lost");
    worker.stop().await;
}

/// Removes everything that was replicated.
fn empty(store: &Store) {
    std::fs::remove_dir_all(store.files().join("replicas")).expect("something was replicated");
}

fn consents(pipeline: &Replicated, incarnation: &str) {
    pipeline.change(|manifest| manifest["spec"]["replication"]["beginAnew"] = json!(incarnation));
}

/// Asserts that messages are taken, but for those that are to be in the replica, and that the remedy is told.
async fn serves_on(worker: &Worker, incarnation: &str, when: &str, all: &mut BTreeSet<String>) {
    let problem = until(&format!("the loss to be told {when}"), async || {
        let problem = replication(worker).await["lastError"].as_str()?.to_owned();
        problem.contains("nothing is there").then_some(problem)
    })
    .await;
    let remedy = format!("write spec.replication.beginAnew: {incarnation}");
    assert!(problem.ends_with(&remedy), "{when}: {problem}");
    let new = BTreeSet::from([format!("{when}{}", all.len())]);
    put_all(worker, &new).await;
    all.extend(new);
    assert_eq!(keys(worker).await, *all, "{when}");
    let safe = Ingest::new(worker.address("source safe"));
    let answer = safe.try_send(&[message("orders", "k0", json!({"n": 1}))]).await.expect("it is answered");
    let error = answer.body["error"].as_str().unwrap_or_default();
    assert!(answer.status == 503 && error.contains(&remedy), "{when}: {} {error}", answer.status);
}
