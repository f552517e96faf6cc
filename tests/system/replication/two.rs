//! Several workers of one pipeline at once: no prefix ever has two writers, and both can be restored.

use std::process::Command;
use std::time::Duration;

use litejoin_tests::repetition::is_long;
use litejoin_tests::stores::{Store, StoreProxy, litestream};
use litejoin_tests::wait::{pass, until};
use litejoin_tests::worker::WorkerSite;
use serde_json::json;

use super::consumers::SinkConsumers;
use super::load::ClientLoad;
use super::{Replicated, assert_there, incarnations, is_alive, keys, names, put_all, ready, replicated};

/// The part of the store that a zombie sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    All,
    /// Nothing, from before its successor starts until the successor has run for a while.
    NothingForAWhile,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_and_its_successor() {
    overtaken(Sight::All, "committed").await;
    overtaken(Sight::All, "replicated").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_that_is_cut_off_from_the_store() {
    overtaken(Sight::NothingForAWhile, "committed").await;
    overtaken(Sight::NothingForAWhile, "replicated").await;
}

async fn overtaken(sight: Sight, after: &str) {
    let when = format!("{sight:?}, {after}");
    let store = Store::s3().await;
    let (proxy, consumers) = (StoreProxy::before(&store).await, SinkConsumers::start().await);
    let endpoint = store.endpoint_at(&proxy.address());
    let zombie = Replicated::to(&store, &json!({"endpoint": endpoint})).delivering(after, &consumers);
    let mut worker = zombie.start().await;
    let before = names("before", 20);
    put_all(&worker, &before).await;
    let first = ready(&worker).await;
    replicated(&worker).await;
    consumers.subscribe(&worker);

    // Another node, on which a worker of the same pipeline starts, while the first one goes on under load.
    let mut of_zombie = ClientLoad::on(&worker, "zombie");
    of_zombie.safe.exceeds(5).await;
    if sight == Sight::NothingForAWhile {
        proxy.cut();
    }
    let successor = Replicated::to(&store, &json!({})).delivering(after, &consumers);
    let next = successor.start().await;
    let mut of_next = ClientLoad::on(&next, "next");
    let second = ready(&next).await;
    assert_ne!(first, second);
    of_next.safe.exceeds(5).await;
    if sight == Sight::NothingForAWhile {
        of_zombie.plain.exceeds(of_zombie.plain.count() + 50).await;
        pass(Duration::from_secs(if is_long() { 20 } else { 0 })).await;
        assert!(worker.is_running(), "{when}: it can't know that it was overtaken");
        proxy.mend();
    }
    assert_eq!(worker.wait().await, Some(1), "{when}: it sees that it was overtaken");
    let ended = worker.ended().await;
    assert!(ended.stderr.contains("another worker has taken this pipeline over"), "{}", ended.stderr);
    of_next.safe.exceeds(of_next.safe.count() + 5).await;
    of_zombie.stop().await;
    of_next.stop().await;

    // The successor serves each message that either worker has acknowledged as replicated.
    let acknowledged = &of_zombie.safe.keys() | &(&of_next.safe.keys() | &of_next.plain.keys());
    let found = keys(&next).await;
    assert_there(&(&before | &acknowledged), &found, &when);
    consumers.subscribe(&next);
    match after {
        "replicated" => consumers.hold_just(&found, &when).await,
        _ => consumers.hold_all(&found).await,
    }
    replicated(&next).await;
    next.stop().await;
    for incarnation in [first, second] {
        for shard in 0..3 {
            restores_clean(&store, &incarnation, &format!("shard_{shard}.db"));
        }
    }

    // The zombie's data does not count any more, so it is set aside.
    let worker = zombie.start().await;
    assert_eq!(keys(&worker).await, found);
    assert!(zombie.site.data_dir().join("set-aside").is_dir());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_whose_litestream_hangs() {
    let store = Store::s3().await;
    let zombie = Replicated::to(&store, &json!({}));
    let mut worker = zombie.start().await;
    put_all(&worker, &names("k", 5)).await;
    ready(&worker).await;
    replicated(&worker).await;
    let litestream = std::fs::read_to_string(zombie.site.data_dir().join("litestream.lock")).unwrap();
    let signal = |name: &str| Command::new("kill").args([name, &litestream]).status().unwrap();
    signal("-STOP");
    let successor = Replicated::to(&store, &json!({}));
    let next = successor.start().await;
    let overtaken = "another worker has taken this pipeline over";
    until("the zombie to see its successor", async || worker.log().contains(overtaken).then_some(())).await;
    signal("-CONT");
    assert_eq!(worker.wait().await, Some(1));
    assert_eq!(keys(&next).await, names("k", 5));
    next.stop().await;
}

fn restores_clean(store: &Store, incarnation: &str, file: &str) {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("x.db");
    let replica = store.replica(&format!("replicas/default/p/0/{incarnation}/{file}"));
    let config = folder.path().join("litestream.yml");
    std::fs::write(&config, json!({"dbs": [{"path": database, "replica": replica}]}).to_string()).unwrap();
    let done = Command::new(litestream())
        .args(["restore", "-integrity-check", "full", "-config"])
        .arg(&config)
        .arg(&database)
        // Its S3 client fails on this variable.
        .env_remove("AWS_CA_BUNDLE")
        .output()
        .unwrap();
    assert!(done.status.success(), "{incarnation} {file}: {}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_directory_writes_elsewhere() {
    let store = Store::file().await;
    let original = Replicated::to(&store, &json!({}));
    let worker = original.start().await;
    let all = names("k", 5);
    put_all(&worker, &all).await;
    let first = ready(&worker).await;
    worker.stop().await;
    let copy = Replicated { site: WorkerSite::new(), environment: original.environment.clone() };
    let done =
        Command::new("cp").arg("-a").arg(original.site.path().join(".")).arg(copy.site.path()).status();
    assert!(done.unwrap().success());

    let worker = copy.start().await;
    assert_eq!(keys(&worker).await, all);
    assert_ne!(ready(&worker).await, first);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_litestream_of_a_killed_worker_is_ended_first() {
    let store = Store::file().await;
    let pipeline = Replicated::to(&store, &json!({}));
    let worker = pipeline.start().await;
    put_all(&worker, &names("k", 5)).await;
    let first = ready(&worker).await;
    worker.kill().await;
    let lock = pipeline.site.data_dir().join("litestream.lock");
    let orphan = std::fs::read_to_string(&lock).unwrap();

    let worker = pipeline.start().await;
    assert_eq!(ready(&worker).await, first, "the disk goes on in its own incarnation");
    assert_eq!(incarnations(&store, "p").len(), 1);
    let now = until("another Litestream", async || {
        std::fs::read_to_string(&lock).ok().filter(|pid| *pid != orphan)
    })
    .await;
    assert_ne!(now, orphan);
    assert!(!is_alive(&orphan), "it has ended");
    // A Litestream that dies is started again.
    assert!(Command::new("kill").args(["-9", &now]).status().unwrap().success());
    until("a third one", async || std::fs::read_to_string(&lock).ok().filter(|pid| *pid != now)).await;
    put_all(&worker, &names("more", 5)).await;
    replicated(&worker).await;
    worker.stop().await;
    pipeline.lose_disk();
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, &names("k", 5) | &names("more", 5));
    worker.stop().await;
}
