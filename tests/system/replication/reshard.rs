//! Data that goes to another number of shards where it is replicated: the replica begins anew, and until it is whole the one
//! of before counts.

use std::collections::BTreeSet;

use expect_test::expect;
use litejoin_tests::stores::Store;
use serde_json::json;

use super::refused::refused;
use super::{Replicated, incarnations, keys, names, put_all, ready, stored};
use crate::reshard::online::moved;

/// Has the data go from one number of shards to another, with consent.
fn reshard(pipeline: &Replicated, from: usize, to: usize) {
    pipeline.change(|manifest| {
        let storage = &mut manifest["spec"]["storage"];
        storage["shardCount"] = json!(to);
        storage["reshard"] = json!({ "fromShardCount": from, "toShardCount": to });
    });
}

/// Has the same done while the pipeline is served.
pub(super) fn reshard_online(pipeline: &Replicated, from: usize, to: usize) {
    reshard(pipeline, from, to);
    pipeline.change(|manifest| manifest["spec"]["storage"]["reshard"]["strategy"] = json!("Online"));
}

pub(super) fn shards(pipeline: &Replicated) -> BTreeSet<String> {
    let entries = std::fs::read_dir(pipeline.site.data_dir()).expect("readable");
    let names = entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("shard_") && name.ends_with(".db")).collect()
}

pub(super) fn shard_names(count: usize) -> BTreeSet<String> {
    (0..count).map(|index| format!("shard_{index}.db")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moved_data_has_a_replica_of_its_own() {
    let store = Store::s3().await;
    let pipeline = stored(&store).await;
    reshard(&pipeline, 3, 5);
    let worker = pipeline.start().await;
    let incarnation = ready(&worker).await;
    assert!(incarnation.starts_with("incarnation-2-"), "{incarnation}");
    assert_eq!(keys(&worker).await, names("k", 3));
    let more = names("more", 4);
    put_all(&worker, &more).await;
    worker.stop().await;
    assert_eq!(shards(&pipeline), shard_names(5));

    pipeline.lose_disk();
    let worker = pipeline.start().await;
    let all: BTreeSet<String> = names("k", 3).into_iter().chain(more).collect();
    assert_eq!(keys(&worker).await, all, "the replica has the new shards");
    worker.stop().await;
    assert_eq!(shards(&pipeline), shard_names(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_is_moved_beside_the_worker_has_a_replica_of_its_own() {
    let store = Store::s3().await;
    let pipeline = stored(&store).await;
    reshard_online(&pipeline, 3, 5);
    pipeline.lose_disk();
    let worker = pipeline.start().await;
    eprintln!("{}", moved(&worker, 5).await["message"]);
    let incarnation = ready(&worker).await;
    assert!(incarnation.starts_with("incarnation-3-"), "restored as it was, then moved: {incarnation}");
    assert_eq!(keys(&worker).await, names("k", 3));
    let more = names("more", 4);
    put_all(&worker, &more).await;
    worker.stop().await;
    assert_eq!(shards(&pipeline), shard_names(5));

    pipeline.lose_disk();
    let worker = pipeline.start().await;
    let all: BTreeSet<String> = names("k", 3).into_iter().chain(more).collect();
    assert_eq!(keys(&worker).await, all, "the replica has the new shards");
    worker.stop().await;
    assert_eq!(shards(&pipeline), shard_names(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_volume_is_restored_and_moved() {
    let store = Store::file().await;
    let pipeline = stored(&store).await;
    for (from, to) in [(3, 5), (5, 2)] {
        pipeline.lose_disk();
        reshard(&pipeline, from, to);
        let worker = pipeline.start().await;
        assert_eq!(keys(&worker).await, names("k", 3), "{from} to {to}");
        ready(&worker).await;
        worker.stop().await;
        assert_eq!(shards(&pipeline), shard_names(to));
    }
    assert_eq!(incarnations(&store, "p").len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_is_lost_before_the_new_replica_is_whole_comes_back_from_the_old_one() {
    for point in ["switch-settled", "incarnation-born", "incarnation-claimed", "incarnation-marked"] {
        let store = Store::file().await;
        let pipeline = stored(&store).await;
        reshard(&pipeline, 3, 5);
        let died = pipeline.run([]).with_variable("LITEJOIN_FAULT", point).end().await;
        assert_eq!(died.code, None, "{point}: {}", died.stderr);
        pipeline.lose_disk();
        let worker = pipeline.start().await;
        assert_eq!(keys(&worker).await, names("k", 3), "{point}");
        ready(&worker).await;
        worker.stop().await;
        assert_eq!(shards(&pipeline), shard_names(5), "{point}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_cut_off_goes_on_also_after_a_restore() {
    for point in ["restore-begun", "data-copied", "layout-switched", "incarnation-marked"] {
        let store = Store::file().await;
        let pipeline = stored(&store).await;
        pipeline.lose_disk();
        reshard(&pipeline, 3, 5);
        let died = pipeline.run([]).with_variable("LITEJOIN_FAULT", point).end().await;
        assert_eq!(died.code, None, "{point}: {}", died.stderr);
        let worker = pipeline.start().await;
        assert_eq!(keys(&worker).await, names("k", 3), "{point}");
        ready(&worker).await;
        worker.stop().await;
        assert_eq!(shards(&pipeline), shard_names(5), "{point}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_holds_up_moved_data_and_no_other() {
    let mut store = Store::s3().await;
    let pipeline = stored(&store).await;
    store.kill();
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, names("k", 3), "data that was not moved goes on in its own incarnation");
    worker.stop().await;
    reshard(&pipeline, 3, 5);
    let ended = pipeline.run([]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("could not look at the replica"), "{}", ended.stderr);
    store.restart().await;
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, names("k", 3));
    assert!(ready(&worker).await.starts_with("incarnation-2-"));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_number_without_consent_is_refused() {
    let store = Store::file().await;
    let pipeline = stored(&store).await;
    pipeline.change(|manifest| manifest["spec"]["storage"]["shardCount"] = json!(5));
    refused(&pipeline, &store, pipeline.run([]), expect![[r#"
        error: data: holds 3 shards, and the pipeline wants storage.shardCount 5; set it back to 3, or have the data moved: write storage.reshard: {fromShardCount: 3, toShardCount: 5}, or run litejoin reshard --data-dir data --to 5; or begin without this data, from the replica if there is one, by spec.storage.acceptLoss: <data>, which sets its files aside
    "#]]).await;
    pipeline.lose_disk();
    refused(&pipeline, &store, pipeline.run([]), expect![[r#"
        error: file://<store>/replicas/default/p/0: incarnation-1-<id> holds 3 shards, and the pipeline wants storage.shardCount 5; set it back to 3, or write storage.reshard: {fromShardCount: 3, toShardCount: 5} to restore and move it
    "#]]).await;
}
