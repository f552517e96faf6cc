//! Worker, Litestream and disk are lost at once, under load, again and again. Messages that were
//! acknowledged as replicated come back.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::repetition::{chance, seeds};
use litejoin_tests::stores::{Store, StoreKind};
use litejoin_tests::wait::{pass, until};
use litejoin_tests::worker::{Worker, program};
use rand::RngExt;
use serde_json::json;

use super::load::ClientLoad;
use super::{Replicated, assert_there, keys, kill_both, names, put_all, ready, replication, stored};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_acknowledged_as_replicated_survive_the_disk() {
    for seed in seeds(3, 20) {
        eprintln!("seed {seed}");
        let kinds = [StoreKind::File, StoreKind::Sftp, StoreKind::Azure, StoreKind::S3];
        let kind = kinds[usize::try_from(seed).expect("it is small") % kinds.len()];
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
        assert_there(&expected, &found, &format!("seed {seed}, round {round}"));
        // Messages without an answer may be there too; from now on they are there for good, once they are replicated.
        expected = found;
        let mut load = ClientLoad::on(&worker, &round.to_string());
        ready(&worker).await;
        load.safe.exceeds(4).await;
        // No message may be missing that was acknowledged before `completeUntil`.
        let before = load.plain.keys();
        let reached = complete_until(&worker).await + 2;
        until("the replica to go on", async || (complete_until(&worker).await >= reached).then_some(()))
            .await;
        load.safe.exceeds(load.safe.count() + chance.random_range(0..12)).await;
        kill_both(&pipeline, worker, chance.random()).await;
        load.stop().await;
        pipeline.lose_disk();
        expected.extend(before);
        expected.extend(load.safe.keys());
    }
    let worker = pipeline.start().await;
    assert_there(&expected, &keys(&worker).await, &format!("seed {seed}"));
    worker.stop().await;
}

async fn complete_until(worker: &Worker) -> i64 {
    replication(worker).await["completeUntil"].as_i64().expect("a time")
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
    let killed = seconds();
    pass(Duration::from_secs(2)).await;

    let worker = pipeline.start().await;
    let status = replication(&worker).await;
    assert!(status["completeUntil"].as_i64() <= Some(killed), "a start ships nothing: {status}, {killed}");
    assert!(status["lagSeconds"].as_i64() >= Some(2), "{status}");
    let note = "x".repeat(20_000);
    let mut acknowledged = before;
    for batch in 0..100 {
        let batch: Vec<_> = (0..100).map(|number| format!("k{}", (batch * 100 + number) % 1_000)).collect();
        let messages: Vec<_> = batch
            .iter()
            .map(|key| message("orders", key, json!({"n": acknowledged.len(), "note": note})))
            .collect();
        worker.ingest().send(&messages).await;
        acknowledged.extend(batch);
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
    assert_eq!(keys(&worker).await, acknowledged);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_acknowledged_as_replicated_are_on_the_disk_too() {
    let store = Store::file().await;
    let pipeline = Replicated::to(&store, &json!({}));
    let trace = pipeline.site.path().join("trace");
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o"]).arg(&trace);
    command.arg(program()).args(["run", "-f", "pipeline.yaml", "--data-dir", "data", "--log-format", "json"]);
    let worker = pipeline.with_environment(pipeline.site.launch(command)).start().await;
    ready(&worker).await;
    let synced = |shard: usize| {
        let trace = std::fs::read_to_string(&trace).expect("it is written");
        trace.matches(&format!("/shard_{shard}.db-wal>")).count()
    };
    let safe = Ingest::new(worker.address("source safe"));
    for round in 0..3 {
        let before: Vec<_> = (0..3).map(synced).collect();
        let messages: Vec<_> =
            (0..20).map(|number| message("orders", &format!("k{number}"), json!({"n": round}))).collect();
        let answer = safe.try_send(&messages).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        for (shard, before) in before.into_iter().enumerate() {
            assert!(synced(shard) > before, "shard {shard}, round {round}");
        }
    }
    worker.stop().await;
}

#[expect(
    clippy::disallowed_methods,
    reason = "what the worker says is compared with the clock of its machine"
)]
fn seconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
    i64::try_from(now.as_secs()).expect("it is not that late")
}

/// Leaves orphaned pages in a file: no table refers to them, and they are not free.
fn orphan_pages(file: &Path) {
    let connection = rusqlite::Connection::open(file).expect("it is a file of SQLite");
    let lose = "CREATE TABLE lost (x);
                INSERT INTO lost VALUES (zeroblob(100000));
                PRAGMA writable_schema = ON;
                DELETE FROM sqlite_schema WHERE name = 'lost';";
    connection.execute_batch(lose).expect("nobody else has it open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_come_back_unsound_are_made_anew() {
    let store = Store::file().await;
    let pipeline = stored(&store).await;
    orphan_pages(&pipeline.site.data_dir().join("results.db"));
    let worker = pipeline.start().await;
    put_all(&worker, &names("more", 5)).await;
    let all = &names("k", 3) | &names("more", 5);
    ready(&worker).await;
    worker.stop().await;

    // `restore --verify` says that the replica is unsound.
    let arguments = ["restore", "--verify", "-f", "pipeline.yaml", "--data-dir", "data"];
    let ended = pipeline.with_environment(pipeline.site.command(arguments)).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("results.db: came back unsound: "), "{}", ended.stderr);
    // `restore --to` gives the sound files.
    let arguments = ["restore", "--to", "copy", "-f", "pipeline.yaml", "--data-dir", "data"];
    let ended = pipeline.with_environment(pipeline.site.command(arguments)).end().await;
    assert_eq!(ended.stdout, "restored 5 files to copy, the newest of each file\n", "{}", ended.stderr);
    assert!(ended.stderr.contains("results.db came back unsound and is left out"), "{}", ended.stderr);
    assert!(!pipeline.site.path().join("copy/results.db").exists());

    pipeline.lose_disk();
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, all);
    let healed = ready(&worker).await;
    let ended = worker.stop().await;
    assert!(ended.stderr.contains("results.db came back unsound and is left out"), "{}", ended.stderr);
    // The replica is sound now.
    pipeline.lose_disk();
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, all);
    assert_ne!(ready(&worker).await, healed);
    let ended = worker.stop().await;
    assert!(!ended.stderr.contains("unsound"), "{}", ended.stderr);
}
