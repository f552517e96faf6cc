//! Death at every step by which a directory comes to its data and its prefix. The next start goes on from there.

use futures::StreamExt;
use litejoin_crds::duration::timestamp_text;
use litejoin_tests::stores::Store;
use serde_json::json;

use super::by_hand::REMOVAL;
use super::cuts::next_cut;
use super::{Replicated, keys, names, put_all, ready, replicated};

/// The data that is there when the worker starts that dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Neither data nor a replica.
    Nothing,
    /// A replica, and an empty disk.
    Replica,
    /// A replica, and the disk that it is of without one of its shards.
    Part,
    /// A replica, and the disk that it is of.
    Disk,
}

/// Points in the order in which a start passes them, and which time it dies there.
const POINTS: [(&str, Before); 21] = [
    ("incarnation-born", Before::Nothing),
    ("incarnation-claimed", Before::Nothing),
    ("incarnation-marked", Before::Nothing),
    ("ready-written", Before::Nothing),
    ("incarnation-born", Before::Replica),
    ("incarnation-claimed", Before::Replica),
    ("files-fetched", Before::Replica),
    ("restore-begun", Before::Replica),
    ("data-set-aside", Before::Replica),
    ("file-moved:1", Before::Replica),
    ("file-moved:4", Before::Replica),
    ("file-moved:6", Before::Replica),
    ("results-adopted", Before::Replica),
    ("incarnation-marked", Before::Replica),
    ("ready-written", Before::Replica),
    ("incarnation-claimed", Before::Part),
    ("files-fetched", Before::Part),
    ("restore-begun", Before::Part),
    ("claim-announced", Before::Disk),
    ("claim-renewed", Before::Disk),
    ("cut-noted", Before::Disk),
];

/// The names of the points.
pub(crate) fn points() -> impl Iterator<Item = &'static str> {
    POINTS.into_iter().map(|(point, _)| point.split(':').next().unwrap_or(point)).chain([REMOVAL])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_may_die_at_every_step() {
    let deaths = POINTS.map(|(point, before)| die(point, before));
    // Each start mostly waits for Litestream.
    futures::stream::iter(deaths).for_each_concurrent(4, |death| death).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_starts_in_a_row_may_die_while_they_claim() {
    for is_away in [false, true] {
        let mut store = Store::s3().await;
        let pipeline = Replicated::to(&store, &json!({}));
        let worker = pipeline.start().await;
        let mut all = names("k", 5);
        put_all(&worker, &all).await;
        let first = ready(&worker).await;
        worker.stop().await;
        // The first start gets into the claim and dies before it notes that; the second dies before the claim names it.
        pipeline.run([]).with_variable("LITEJOIN_FAULT", "claim-renewed").end().await;
        if is_away {
            store.kill();
        } else {
            pipeline.run([]).with_variable("LITEJOIN_FAULT", "claim-announced").end().await;
        }

        let worker = pipeline.start().await;
        let more = names("more", 5);
        put_all(&worker, &more).await;
        all.extend(more);
        if is_away {
            store.restart().await;
        }
        replicated(&worker).await;
        assert_eq!(ready(&worker).await, first, "away: {is_away}: the disk goes on in its own incarnation");
        assert_eq!(keys(&worker).await, all, "away: {is_away}");
        worker.stop().await;
        let worker = pipeline.start().await;
        assert_eq!(keys(&worker).await, all, "away: {is_away}");
        assert_eq!(ready(&worker).await, first, "away: {is_away}");
        worker.stop().await;
        assert!(!pipeline.site.data_dir().join("set-aside").exists(), "away: {is_away}");
    }
}

/// Points of a restore that goes back in time, and whether everything has come from the store by then.
const POINTS_BACK: [(&str, bool); 6] = [
    ("files-fetched", false),
    ("restore-begun", true),
    ("data-set-aside", true),
    ("file-moved:2", true),
    ("file-moved:6", true),
    ("results-adopted", true),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn going_back_in_time_may_die_at_every_step() {
    let store = Store::file().await;
    for (point, is_fetched) in POINTS_BACK {
        let pipeline = Replicated::named(&store, &point.replace(':', "-"), &json!({}));
        let worker = pipeline.start().await;
        let before = names("before", 5);
        put_all(&worker, &before).await;
        ready(&worker).await;
        let then = timestamp_text(next_cut(&worker).await);
        let all = &before | &names("after", 5);
        put_all(&worker, &all).await;
        replicated(&worker).await;
        worker.stop().await;
        let arguments = ["restore", "--timestamp", &then, "-f", "pipeline.yaml", "--data-dir", "data"];
        let restore = pipeline.with_environment(pipeline.site.command(arguments));
        let ended = restore.with_variable("LITEJOIN_FAULT", point).end().await;
        assert_eq!(ended.code, None, "{point} was not reached: {}", ended.stderr);

        // A start that restores nothing finds the data as it was, or as it is to be.
        pipeline.change(|manifest| manifest["spec"]["replication"]["restoreOnBoot"] = false.into());
        let worker = pipeline.start().await;
        assert_eq!(keys(&worker).await, if is_fetched { before } else { all }, "{point}");
        ready(&worker).await;
        worker.stop().await;
        assert!(!pipeline.site.data_dir().join("restoring").exists(), "{point}");
    }
}

async fn die(point: &str, before: Before) {
    eprintln!("LITEJOIN_FAULT={point} ({before:?})");
    let store = Store::file().await;
    let pipeline = Replicated::to(&store, &json!({}));
    let mut all = names("k", 0);
    if before != Before::Nothing {
        let worker = pipeline.start().await;
        all = names("k", 10);
        put_all(&worker, &all).await;
        ready(&worker).await;
        worker.stop().await;
    }
    match before {
        Before::Nothing | Before::Disk => {}
        Before::Replica => pipeline.lose_disk(),
        Before::Part => {
            std::fs::remove_file(pipeline.site.data_dir().join("shard_1.db")).expect("it is there")
        }
    }
    let ended = pipeline.run([]).with_variable("LITEJOIN_FAULT", point).end().await;
    assert_eq!(ended.code, None, "{point} was not reached: {}", ended.stderr);

    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, all, "{point} ({before:?})");
    let more = names("more", 3);
    put_all(&worker, &more).await;
    ready(&worker).await;
    replicated(&worker).await;
    worker.stop().await;
    pipeline.lose_disk();
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, &all | &more, "{point} ({before:?})");
    worker.stop().await;
}
