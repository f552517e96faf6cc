//! Worker, Litestream and disk are lost at once, under load. What was told to be in the replica comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::repetition::{chance, seeds};
use litejoin_tests::sse::Subscription;
use litejoin_tests::stores::{Kind, Store};
use litejoin_tests::wait::until;
use rand::RngExt;
use serde_json::{Value, json};

use super::{Replicated, keys, names, put_all, ready, replication};

/// Keys that were acknowledged.
pub(super) type Told = Arc<Mutex<BTreeSet<String>>>;

/// Sends one message after another until it is told to stop, or nobody answers any more.
pub(super) async fn load(ingest: Ingest, prefix: String, told: Told, stopping: Arc<AtomicBool>) {
    for number in 0.. {
        if stopping.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("{prefix}{number}");
        match ingest.try_send(&[message("orders", &key, json!({"n": number}))]).await {
            Ok(answer) if answer.status == 200 => {
                told.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
            }
            // It stops, and what it has not stored or shipped it does not acknowledge.
            Ok(answer) if answer.status == 503 => {}
            Ok(answer) => panic!("{}: {}", answer.status, answer.body),
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_told_to_be_replicated_survives_the_disk() {
    for seed in seeds(3, 20) {
        eprintln!("seed {seed}");
        let kind = if seed % 3 == 0 { Kind::File } else { Kind::S3 };
        run(seed, &Store::start(kind, "127.0.0.1").await).await;
    }
}

async fn run(seed: u64, store: &Store) {
    let mut chance = chance(seed);
    let pipeline = Replicated::to(store, &json!({}));
    let mut expected = BTreeSet::new();
    for round in 0..3 {
        let worker = pipeline.start().await;
        let found = keys(&worker).await;
        let missing: Vec<_> = expected.difference(&found).collect();
        assert!(missing.is_empty(), "seed {seed}, round {round}: {missing:?} were told to be replicated");
        // What was sent and never told may be there too; from now on it is there for good, once it is replicated.
        expected = found;
        let (safe, plain) = (Told::default(), Told::default());
        let stopping = Arc::new(AtomicBool::new(false));
        let mut loads = Vec::new();
        for number in 0..2 {
            let of = |name: &str| format!("{name}-{round}-{number}-");
            let safe_ingest = Ingest::new(worker.address("source safe"));
            loads.push(tokio::spawn(load(safe_ingest, of("safe"), Arc::clone(&safe), Arc::clone(&stopping))));
            loads.push(tokio::spawn(load(
                worker.ingest(),
                of("plain"),
                Arc::clone(&plain),
                Arc::clone(&stopping),
            )));
        }
        ready(&worker).await;
        until("acknowledged messages", async || (safe.lock().unwrap().len() > 4).then_some(())).await;
        // Of all that was acknowledged before a second that the replica is said to have, nothing may be missing.
        let before = plain.lock().unwrap().clone();
        let reached = complete_until(&worker).await + 2;
        until("the replica to go on", async || (complete_until(&worker).await >= reached).then_some(()))
            .await;
        let count = safe.lock().unwrap().len() + chance.random_range(0..12);
        until("the moment of the loss", async || (safe.lock().unwrap().len() > count).then_some(())).await;
        let pid = std::fs::read_to_string(pipeline.site.data_dir().join("litestream.lock")).unwrap();
        // One after the other, in either order.
        if chance.random() {
            let _ = Command::new("kill").args(["-9", &pid]).status();
            worker.kill().await;
        } else {
            worker.kill().await;
            let _ = Command::new("kill").args(["-9", &pid]).status();
        }
        stopping.store(true, Ordering::Relaxed);
        for load in loads {
            load.await.unwrap();
        }
        until("the end of Litestream", async || {
            (std::fs::read_link(format!("/proc/{pid}/exe")).is_err()).then_some(())
        })
        .await;
        pipeline.lose_disk();
        expected.extend(before);
        expected.extend(safe.lock().unwrap().iter().cloned());
    }
    let worker = pipeline.start().await;
    let found = keys(&worker).await;
    let missing: Vec<_> = expected.difference(&found).collect();
    assert!(missing.is_empty(), "seed {seed}: {missing:?} were told to be replicated");
    worker.stop().await;
}

async fn complete_until(worker: &litejoin_tests::worker::Worker) -> i64 {
    replication(worker).await["completeUntil"].as_i64().expect("a time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_goes_away_costs_nothing() {
    let mut store = Store::s3().await;
    let pipeline = Replicated::to(&store, &json!({}));
    let worker = pipeline.start().await;
    ready(&worker).await;
    let (told, stopping) = (Told::default(), Arc::new(AtomicBool::new(false)));
    let loading =
        tokio::spawn(load(worker.ingest(), "k".to_owned(), Arc::clone(&told), Arc::clone(&stopping)));
    store.kill();
    let away = replication(&worker).await;
    until("the worker to notice", async || replication(&worker).await["lastError"].is_string().then_some(()))
        .await;
    let count = told.lock().unwrap().len();
    until("messages to be taken meanwhile", async || {
        (told.lock().unwrap().len() > count + 200).then_some(())
    })
    .await;
    // The safe source says that it can't, and takes the message all the same.
    let safe = Ingest::new(worker.address("source safe"));
    let answer = safe.try_send(&[message("orders", "unsure", json!({"n": 1}))]).await.unwrap();
    assert_eq!(
        (answer.status, answer.body["error"].as_str()),
        (503, Some("stored, and not in the replica after 20 s; send it again, which does no harm"))
    );
    store.restart().await;
    until("the replica to catch up", async || {
        let now = replication(&worker).await;
        (now["lastError"].is_null()
            && now["completeUntil"].as_i64() > away["completeUntil"].as_i64().map(|at| at + 2))
        .then_some(())
    })
    .await;
    stopping.store(true, Ordering::Relaxed);
    loading.await.unwrap();
    let mut expected = told.lock().unwrap().clone();
    expected.insert("unsure".to_owned());
    worker.stop().await;
    pipeline.lose_disk();
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, expected);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_from_the_start() {
    let mut store = Store::s3().await;
    let pipeline = Replicated::to(&store, &json!({}));
    let worker = pipeline.start().await;
    let before = names("before", 5);
    put_all(&worker, &before).await;
    let incarnation = ready(&worker).await;
    worker.stop().await;
    store.kill();

    let worker = pipeline.start().await;
    let note = "x".repeat(20_000);
    let mut told = before;
    for batch in 0..100 {
        let batch: Vec<_> = (0..100).map(|number| format!("k{}", (batch * 100 + number) % 1_000)).collect();
        let messages: Vec<_> =
            batch.iter().map(|key| message("orders", key, json!({"n": told.len(), "note": note}))).collect();
        worker.ingest().send(&messages).await;
        told.extend(batch);
    }
    let wal_bytes = |file: &str| {
        std::fs::metadata(pipeline.site.data_dir().join(format!("{file}-wal"))).map_or(0, |wal| wal.len())
    };
    for file in ["shard_0.db", "shard_1.db", "shard_2.db", "results.db"] {
        assert!(wal_bytes(file) < 160 << 20, "{file}: {}", wal_bytes(file));
    }
    store.restart().await;
    until("the replica to catch up", async || {
        let now = replication(&worker).await;
        (now["lastError"].is_null() && now["files"]["results.db"]["replicatedTxid"].as_u64() > Some(1))
            .then_some(())
    })
    .await;
    assert_eq!(ready(&worker).await, incarnation);
    worker.stop().await;
    pipeline.lose_disk();
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, told);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_holds_a_result_that_a_lost_disk_has_taken_back() {
    for seed in seeds(3, 20) {
        eprintln!("seed {seed}");
        let mut chance = chance(seed);
        let store = Store::s3().await;
        let pipeline = Replicated::patient(&store);
        let worker = pipeline.start().await;
        ready(&worker).await;
        let mut subscription = Subscription::open(worker.address("sink live"), "join=all_orders", None).await;
        let ingest = worker.ingest();
        let loading = tokio::spawn(async move {
            // Values of a key only grow, so what somebody has seen is at most what the end state has.
            for number in 0.. {
                let key = format!("k{}", number % 20);
                if ingest.try_send(&[message("orders", &key, json!({"n": number}))]).await.is_err() {
                    return;
                }
            }
        });
        let mut seen = BTreeMap::new();
        for _ in 0..chance.random_range(20..200) {
            let event = subscription.expect_next().await.result();
            seen.insert(event.key.clone().to_string(), event.rows[0]["n"].as_i64().expect("a number"));
        }
        let pid = std::fs::read_to_string(pipeline.site.data_dir().join("litestream.lock")).unwrap();
        let _ = Command::new("kill").args(["-9", &pid]).status();
        worker.kill().await;
        for event in subscription.rest().await {
            let event = event.result();
            seen.insert(event.key.to_string(), event.rows[0]["n"].as_i64().expect("a number"));
        }
        loading.await.unwrap();
        pipeline.lose_disk();

        let worker = pipeline.start().await;
        let epoch = worker.ingest().put("orders", "the last", json!({"n": 0})).await;
        let (_, results) = worker.snapshot("live", "all_orders", epoch).await;
        for (key, n) in seen {
            let (_, rows) = results
                .rows
                .iter()
                .find(|((_, found), _)| *found == key)
                .unwrap_or_else(|| panic!("seed {seed}: {key} was told and is not there"));
            let row: Value = serde_json::from_str(&rows[0]).expect("rows are JSON");
            let found = row["n"].as_i64().expect("a number");
            assert!(found >= n, "seed {seed}: {key} was told with {n}, and now it is {found}");
        }
        worker.stop().await;
    }
}
