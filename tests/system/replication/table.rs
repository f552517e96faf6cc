//! The table of failures in worker/src/replication/README.md, row by row, with results that leave once they are committed,
//! and once they are replicated. Each pipeline has a source of either kind of acknowledgement, and consumers of each kind.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::repetition::{chance, is_long, seeds};
use litejoin_tests::stores::Store;
use litejoin_tests::wait::{TIMEOUT, pass, until, until_within};
use litejoin_tests::worker::Worker;
use rand::RngExt;
use serde_json::json;

use super::consumers::{SinkConsumers, assert_known};
use super::load::ClientLoad;
use super::{Replicated, assert_there, keys, kill_both, ready, replicated, replication};

/// The key of a message that is stored, and not acknowledged.
const UNSURE: &str = "unsure";

const AFTER: [&str; 2] = ["committed", "replicated"];

/// A pipeline under load, with consumers that hold some of its results.
struct Scene {
    store: Store,
    consumers: SinkConsumers,
    pipeline: Replicated,
    worker: Worker,
    load: ClientLoad,
}

impl Scene {
    async fn start(after: &str) -> Self {
        let store = Store::s3().await;
        let consumers = SinkConsumers::start().await;
        let pipeline = Replicated::to(&store, &json!({})).delivering(after, &consumers);
        let worker = pipeline.start().await;
        ready(&worker).await;
        consumers.subscribe(&worker);
        let load = ClientLoad::on(&worker, "k");
        load.safe.exceeds(4).await;
        until("all consumers to hold something", async || {
            consumers.held().iter().all(|(_, held)| held.len() > 4).then_some(())
        })
        .await;
        Self { store, consumers, pipeline, worker, load }
    }
}

/// Starts the pipeline again: acknowledged keys are there, and all consumers come to hold just the keys that are.
async fn comes_back(
    pipeline: &Replicated,
    consumers: &SinkConsumers,
    acknowledged: &BTreeSet<String>,
    when: &str,
) {
    let worker = pipeline.start().await;
    consumers.subscribe(&worker);
    let found = keys(&worker).await;
    assert_there(acknowledged, &found, when);
    consumers.hold_just(&found, when).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_the_disk_is_kept() {
    for after in AFTER {
        let Scene { store: _store, consumers, pipeline, worker, mut load } = Scene::start(after).await;
        kill_both(&pipeline, worker, true).await;
        load.stop().await;
        let acknowledged = &load.plain.keys() | &load.safe.keys();
        comes_back(&pipeline, &consumers, &acknowledged, after).await;
        assert_eq!(consumers.resets(), 0, "{after}: nothing was taken back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_the_disk_is_lost() {
    for seed in seeds(3, 20) {
        eprintln!("seed {seed}");
        let mut chance = chance(seed);
        for after in AFTER {
            let Scene { store: _store, consumers, pipeline, worker, mut load } = Scene::start(after).await;
            load.plain.exceeds(load.plain.count() + chance.random_range(0..200)).await;
            kill_both(&pipeline, worker, chance.random()).await;
            load.stop().await;
            pipeline.lose_disk();
            let held = consumers.held();
            let when = format!("seed {seed}, {after}");
            let worker = pipeline.start().await;
            consumers.subscribe(&worker);
            let found = keys(&worker).await;
            assert_there(&load.safe.keys(), &found, &when);
            if after == "replicated" {
                assert_known(held, &found, &when);
                consumers.hold_just(&found, &when).await;
            } else {
                consumers.hold_all(&found).await;
            }
            assert_eq!(consumers.resets(), 1, "{when}: a subscriber gets reset");
            worker.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_and_the_disk_is_lost() {
    for after in AFTER {
        let Scene { store: _store, consumers, pipeline, worker, mut load } = Scene::start(after).await;
        worker.stop().await;
        load.stop().await;
        pipeline.lose_disk();
        let acknowledged = &load.plain.keys() | &load.safe.keys();
        comes_back(&pipeline, &consumers, &acknowledged, after).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_is_away() {
    for after in AFTER {
        let mut scene = Scene::start(after).await;
        scene.store.kill();
        let away = Away::notices(&scene.worker, scene.load).await;
        away.passes(after, &scene.worker, &scene.consumers).await;
        comes_again(scene.store, scene.pipeline, scene.worker, scene.consumers, away.load, after).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_is_away_from_the_start() {
    for after in AFTER {
        let Scene { mut store, consumers, pipeline, worker, mut load } = Scene::start(after).await;
        worker.stop().await;
        load.stop().await;
        let before = &load.plain.keys() | &load.safe.keys();
        store.kill();
        let worker = pipeline.start().await;
        consumers.subscribe(&worker);
        let load = ClientLoad::on(&worker, "again");
        load.plain.add(before);
        let away = Away::notices(&worker, load).await;
        away.passes(after, &worker, &consumers).await;
        comes_again(store, pipeline, worker, consumers, away.load, after).await;
    }
}

/// A time in which nothing can be replicated.
struct Away {
    load: ClientLoad,
    /// Keys that were acknowledged before the store went away.
    plain: BTreeSet<String>,
    safe: usize,
    since: Instant,
}

impl Away {
    /// Waits until the worker sees that the store is gone.
    async fn notices(worker: &Worker, load: ClientLoad) -> Self {
        until("the worker to notice", async || {
            replication(worker).await["lastError"].is_string().then_some(())
        })
        .await;
        Self { plain: load.plain.keys(), safe: load.safe.count(), since: Instant::now(), load }
    }

    /// Messages are taken meanwhile, and results leave if they may.
    async fn passes(&self, after: &str, worker: &Worker, consumers: &SinkConsumers) {
        let time = Duration::from_secs(if is_long() { 600 } else { 30 });
        // The source `safe` answers 503, and stores the message all the same.
        let safe = Ingest::new(worker.address("source safe"));
        let unsure = [message("orders", UNSURE, json!({"n": 1}))];
        let (answer, ()) = tokio::join!(safe.try_send(&unsure), async {
            self.load.plain.exceeds(self.plain.len() + 200).await;
            self.load.calm_down();
            pass(time.saturating_sub(self.since.elapsed())).await;
        });
        let later = safe.try_send(&unsure).await;
        for (answer, expected) in [
            (answer, "stored, and not in the replica"),
            (later, "stored, and not in the replica, which can't be"),
        ] {
            let answer = answer.expect("it is answered");
            let error = answer.body["error"].as_str().unwrap_or_default();
            assert!(answer.status == 503 && error.starts_with(expected), "{}: {error}", answer.status);
            assert!(error.ends_with("; send it again, which does no harm"), "{error}");
        }
        let meanwhile = &self.load.plain.keys() - &self.plain;
        match after {
            "committed" => consumers.hold_all(&meanwhile).await,
            _ => {
                for (consumer, held) in consumers.held() {
                    assert!(held.is_disjoint(&meanwhile), "{consumer} holds what is on this disk only");
                }
            }
        }
        assert_eq!(self.load.safe.count(), self.safe, "no message is acknowledged as replicated");
    }
}

/// The store is back: messages that were taken meanwhile are there, and would be without this disk.
async fn comes_again(
    mut store: Store,
    pipeline: Replicated,
    worker: Worker,
    consumers: SinkConsumers,
    mut load: ClientLoad,
    after: &str,
) {
    store.restart().await;
    // Litestream may be between two tries, some minutes apart after a long outage.
    let back = Instant::now();
    until_within(TIMEOUT * 5, "Litestream to try again", async || {
        replication(&worker).await["lastError"].is_null().then_some(())
    })
    .await;
    eprintln!("{after}: caught up {:?} after the store was back", back.elapsed());
    replicated(&worker).await;
    load.stop().await;
    let mut acknowledged = &load.plain.keys() | &load.safe.keys();
    acknowledged.insert(UNSURE.to_owned());
    consumers.hold_all(&acknowledged).await;
    worker.stop().await;
    pipeline.lose_disk();
    comes_back(&pipeline, &consumers, &acknowledged, after).await;
}
