//! Going back in time: to exact cuts, at which all shards were as at one instant, and once for each time that a
//! manifest names; and a pipeline that begins with another's replica.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use litejoin_crds::duration::timestamp_text;
use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::repetition::{chance, seeds};
use litejoin_tests::stores::Store;
use litejoin_tests::wait::until;
use litejoin_tests::worker::Worker;
use rand::RngExt;
use serde_json::{Value, json};

use super::by_hand::by_hand;
use super::{Replicated, incarnations, keys, names, put_all, ready, replicated, replication};

/// When the last exact cut was, in milliseconds since the epoch.
async fn last_cut(worker: &Worker) -> Option<i64> {
    replication(worker).await["lastCut"].as_i64()
}

/// Waits for a cut that begins after now, and returns when it was.
pub(super) async fn next_cut(worker: &Worker) -> i64 {
    let before = last_cut(worker).await;
    until("the next cut", async || last_cut(worker).await.filter(|at| Some(*at) != before)).await
}

/// Puts `fields` into `spec.replication.restore`.
fn ask(pipeline: &Replicated, fields: &Value) {
    pipeline.change(|manifest| manifest["spec"]["replication"]["restore"] = fields.clone());
}

/// Shards of the pipeline whose cuts are looked into: many, so that a cut that is not of one instant shows.
const SHARDS: usize = 16;

/// Clients of that pipeline, each of which sends one message after another.
const CLIENTS: u64 = 6;

/// The numbers of the messages that the shards of a folder have of each client.
fn sent(folder: &Path) -> BTreeMap<u64, BTreeSet<u64>> {
    let mut found: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for shard in 0..SHARDS {
        let connection = rusqlite::Connection::open(folder.join(format!("shard_{shard}.db"))).unwrap();
        let mut statement = connection.prepare("SELECT key FROM orders").unwrap();
        for key in statement.query_map([], |row| row.get::<_, String>(0)).unwrap() {
            let key = key.unwrap();
            let (client, number) = key.split_once('-').unwrap();
            found.entry(client.parse().unwrap()).or_default().insert(number.parse().unwrap());
        }
    }
    found
}

/// The files below a folder, with their lengths.
fn tree(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(tree(&path)),
            false => drop(files.insert(path.clone(), path.metadata().unwrap().len())),
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_shards_are_as_they_were_at_one_instant() {
    for seed in seeds(2, 20) {
        eprintln!("seed {seed}");
        let mut chance = chance(seed);
        let store = Store::s3().await;
        let pipeline = Replicated::to(&store, &json!({}));
        pipeline.change(|manifest| manifest["spec"]["storage"]["shardCount"] = SHARDS.into());
        let worker = pipeline.start().await;
        ready(&worker).await;
        // Each client sends one message at a time: at each instant all its messages up to some number are there.
        let send = async |ingest: Ingest, client: u64| {
            for number in 0u64.. {
                let message = message("orders", &format!("{client}-{number}"), json!({"n": number}));
                if ingest.try_send(&[message]).await.is_err() {
                    return;
                }
            }
        };
        let sending: Vec<_> =
            (0..CLIENTS).map(|client| tokio::spawn(send(worker.ingest(), client))).collect();
        let mut cuts = Vec::new();
        for _ in 0..2 {
            cuts.push(next_cut(&worker).await);
        }
        assert!(replication(&worker).await["lastCutHeldSeconds"].as_f64() > Some(0.0));
        match chance.random() {
            true => drop(worker.stop().await),
            false => drop(worker.kill().await),
        }
        for client in sending {
            client.await.unwrap();
        }

        let mut counts = Vec::new();
        for (index, at) in cuts.into_iter().enumerate() {
            let (time, folder) = (timestamp_text(at), format!("copy{index}"));
            let ended = by_hand(&pipeline, &["restore", "--timestamp", &time, "--to", &folder]).await;
            // Litestream rarely keeps an unsound file. Results are left out then, and a worker makes them anew.
            let count = if ended.stderr.contains("results.db came back unsound") { 18 } else { 19 };
            let said = format!("restored {count} files to {folder}, all files as of one instant, {time}\n");
            assert_eq!(ended.stdout, said, "{}", ended.stderr);
            let found = sent(&pipeline.site.path().join(&folder));
            for (client, numbers) in &found {
                let all: BTreeSet<u64> = (0..numbers.len() as u64).collect();
                let lone: Vec<_> = numbers.difference(&all).collect();
                assert!(
                    lone.is_empty(),
                    "seed {seed}: at {time} client {client} has {lone:?}, and none before it"
                );
            }
            counts.push(found.values().map(BTreeSet::len).sum::<usize>());
        }
        assert!(counts[0] < counts[1], "{counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_goes_back_once_for_each_time() {
    let store = Store::file().await;
    let pipeline = Replicated::to(&store, &json!({}));
    let worker = pipeline.start().await;
    let before = names("before", 10);
    put_all(&worker, &before).await;
    ready(&worker).await;
    let time = timestamp_text(next_cut(&worker).await);
    let after = names("after", 10);
    put_all(&worker, &after).await;
    replicated(&worker).await;
    worker.stop().await;

    ask(&pipeline, &json!({"timestamp": time}));
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, before);
    assert_eq!(replication(&worker).await["restoredTimestamp"], time);
    let since = names("since", 3);
    put_all(&worker, &since).await;
    let own = ready(&worker).await;
    worker.stop().await;
    // The same time again has no effect: not on this disk, not after it was lost, and not after a restore by hand.
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, &before | &since);
    assert_eq!(ready(&worker).await, own);
    worker.stop().await;
    pipeline.lose_disk();
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, &before | &since);
    assert_ne!(ready(&worker).await, own);
    let later = timestamp_text(next_cut(&worker).await);
    put_all(&worker, &after).await;
    replicated(&worker).await;
    worker.stop().await;
    by_hand(&pipeline, &["restore", "--timestamp", &later]).await;
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, &before | &since);
    ready(&worker).await;
    worker.stop().await;

    // A time of which nothing is left changes nothing.
    ask(&pipeline, &json!({"timestamp": "2020-01-01T00:00:00Z"}));
    let ended = pipeline.run([]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("nothing was replicated at that time yet"), "{}", ended.stderr);
    ask(&pipeline, &json!({}));
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, &before | &since);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_begins_with_the_replica_of_another() {
    let mut store = Store::s3().await;
    let original = Replicated::to(&store, &json!({}));
    let worker = original.start().await;
    let all = names("k", 10);
    put_all(&worker, &all).await;
    ready(&worker).await;
    let time = timestamp_text(next_cut(&worker).await);
    let later = names("later", 5);
    put_all(&worker, &later).await;
    replicated(&worker).await;
    worker.stop().await;
    let untouched = tree(&store.files().join("replicas/default/p"));

    let url =
        format!("{}/default/p", original.manifest()["spec"]["replication"]["replicaUrl"].as_str().unwrap());
    let copy = Replicated::named(&store, "copy", &json!({"restore": {"fromUrl": url}}));
    let began = copy.start().await;
    assert_eq!(keys(&began).await, &all | &later);
    ready(&began).await;
    put_all(&began, &names("own", 3)).await;
    replicated(&began).await;
    began.stop().await;
    // The copy has a replica of its own now.
    copy.lose_disk();
    let began = copy.start().await;
    assert_eq!(keys(&began).await, &(&all | &later) | &names("own", 3));
    ready(&began).await;
    began.stop().await;
    assert_eq!(incarnations(&store, "copy").len(), 2);
    // A copy that loses its own replica does not begin with the other's data again.
    copy.lose_disk();
    std::fs::remove_dir_all(store.files().join("replicas/default/copy")).unwrap();
    // A server may remember the removed files.
    store.restart().await;
    let ended = copy.run([]).with_variable("LITEJOIN_EXPECT_REPLICA", "true").end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("there is no replica, and one is asked for"), "{}", ended.stderr);
    assert!(!store.files().join("replicas/default/copy").exists(), "nothing is written");

    // Another pipeline begins with an earlier state of the original.
    let earlier =
        Replicated::named(&store, "earlier", &json!({"restore": {"fromUrl": url, "timestamp": time}}));
    let began = earlier.start().await;
    assert_eq!(keys(&began).await, all);
    began.stop().await;

    // No worker has written below the prefix of the original, which goes on.
    assert_eq!(tree(&store.files().join("replicas/default/p")), untouched);
    let worker = original.start().await;
    assert_eq!(keys(&worker).await, &all | &later);
    worker.stop().await;

    // A URL without a replica.
    let nothing = Replicated::named(&store, "nothing", &json!({"restore": {"fromUrl": format!("{url}x")}}));
    let ended = nothing.run([]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("there is no replica, and one is asked for"), "{}", ended.stderr);
}
