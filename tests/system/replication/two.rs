//! Several workers that take themselves for the one: no prefix ever has two writers, and both can be restored.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use litejoin_tests::ingest::Ingest;
use litejoin_tests::stores::{Store, litestream};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Site, Worker};
use serde_json::json;

use super::loss::{Told, load};
use super::{Replicated, incarnations, keys, names, put_all, ready, replicated};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_and_its_successor() {
    let store = Store::s3().await;
    let zombie = Replicated::to(&store, &json!({}));
    let mut worker = zombie.start().await;
    let before = names("before", 20);
    put_all(&worker, &before).await;
    let first = ready(&worker).await;
    replicated(&worker).await;

    // Another node, on which a worker of the same pipeline starts, while the first one goes on under load.
    let (told, stopping) = (Told::default(), Arc::new(AtomicBool::new(false)));
    let safe = |worker: &Worker| Ingest::new(worker.address("source safe"));
    let of_zombie = load(safe(&worker), "zombie".to_owned(), Arc::clone(&told), Arc::clone(&stopping));
    let mut loads = vec![tokio::spawn(of_zombie)];
    until("the zombie to take messages", async || (told.lock().unwrap().len() > 5).then_some(())).await;
    let successor = Replicated::to(&store, &json!({}));
    let next = successor.start().await;
    let of_next = load(safe(&next), "next".to_owned(), Arc::clone(&told), Arc::clone(&stopping));
    loads.push(tokio::spawn(of_next));
    let second = ready(&next).await;
    assert_ne!(first, second);
    assert_eq!(worker.wait().await, Some(1), "it sees that it was overtaken");
    let ended = worker.ended().await;
    assert!(ended.stderr.contains("another worker has taken this pipeline over"), "{}", ended.stderr);
    let count = told.lock().unwrap().len();
    until("the successor to take more", async || (told.lock().unwrap().len() > count + 5).then_some(()))
        .await;
    stopping.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }

    // Whoever has acknowledged a message as replicated: the successor serves it.
    let all = &before | &told.lock().unwrap();
    assert!(all.iter().any(|key| key.starts_with("zombie")) && all.iter().any(|key| key.starts_with("next")));
    let found = keys(&next).await;
    let missing: Vec<_> = all.difference(&found).collect();
    assert!(missing.is_empty(), "{missing:?} were told to be replicated");
    replicated(&next).await;
    next.stop().await;
    for incarnation in [first, second] {
        for shard in 0..3 {
            restores_clean(&store, &incarnation, &format!("shard_{shard}.db"));
        }
    }

    // The zombie's disk knows nothing that counts: it is set aside.
    let worker = zombie.start().await;
    assert_eq!(keys(&worker).await, found);
    assert!(zombie.site.data_dir().join("set-aside").is_dir());
    worker.stop().await;
}

/// Whether a process still does anything; one that nobody has waited for has no program any more.
fn is_alive(pid: &str) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok()
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
        // Its S3 client fails on this one.
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
    let copy = Replicated { site: Site::new(), environment: original.environment.clone() };
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
    // One that dies is started again.
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
