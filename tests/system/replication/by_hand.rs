//! `litejoin restore`, `litejoin replication`, a Litestream of the user's own, and the removal of old incarnations.

use std::collections::BTreeSet;
use std::process::Command;

use litejoin_crds::duration::timestamp_text;
use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::stores::{Call, Store, StoreKind, StoreProxy, litestream};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Ended, program};
use serde_json::{Value, json};

use super::cuts::next_cut;
use super::{
    PROGRAM, Replicated, file_names, incarnations, keys, kill_both, names, put_all, ready, replicated,
    replication, stored,
};

/// The point at which an incarnation that was outlived has begun to be removed.
pub(super) const REMOVAL: &str = "removal-begun";

pub(super) async fn by_hand(pipeline: &Replicated, arguments: &[&str]) -> Ended {
    let common = ["-f", "pipeline.yaml", "--data-dir", "data"];
    let ended =
        pipeline.with_environment(pipeline.site.command(arguments.iter().copied().chain(common))).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn back_to_an_earlier_time() {
    let store = Store::s3().await;
    let pipeline = Replicated::to(&store, &json!({}));
    let worker = pipeline.start().await;
    let before = names("before", 10);
    put_all(&worker, &before).await;
    ready(&worker).await;
    replicated(&worker).await;
    // Messages up to this second are in the replica, and later ones have a later time.
    let then = replication(&worker).await["completeUntil"].as_i64().unwrap();
    until("the next second", async || {
        (replication(&worker).await["completeUntil"].as_i64().unwrap() > then + 1).then_some(())
    })
    .await;
    let after = names("after", 10);
    put_all(&worker, &after).await;
    replicated(&worker).await;
    worker.stop().await;

    let date = Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("@{}", then + 1)])
        .output()
        .unwrap();
    let time = String::from_utf8(date.stdout).unwrap();
    let ended = by_hand(&pipeline, &["restore", "--timestamp", time.trim()]).await;
    assert!(ended.stdout.starts_with("restored, "), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("; `litejoin run` goes on from here\n"), "{}", ended.stdout);
    assert!(pipeline.site.data_dir().join("set-aside").is_dir());
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, before);
    ready(&worker).await;
    worker.stop().await;

    let ended = by_hand(&pipeline, &["restore", "--to", "copy"]).await;
    assert_eq!(ended.stdout, "restored 6 files to copy, the newest of each file\n");
    assert!(pipeline.site.path().join("copy/shard_2.db").is_file());
    let ended = by_hand(&pipeline, &["restore", "--verify"]).await;
    assert_eq!(ended.stdout.matches(" rows, all as in the data directory\n").count(), 6, "{}", ended.stdout);
    let shard = rusqlite::Connection::open(pipeline.site.data_dir().join("shard_0.db")).unwrap();
    let changed =
        shard.execute("UPDATE orders SET payload = '{}' WHERE _row = (SELECT min(_row) FROM orders)", []);
    assert_eq!(changed.unwrap(), 1);
    drop(shard);
    let ended = by_hand(&pipeline, &["restore", "--verify"]).await;
    let differs = " rows, 1 of them not in the data directory, which has 1 others\n";
    assert_eq!(ended.stdout.matches(differs).count(), 1, "{}", ended.stdout);
    let ended = by_hand(&pipeline, &["replication", "status", "--output", "json"]).await;
    let status: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(status["incarnations"].as_array().unwrap().len(), 2, "{status}");
    assert_eq!(status["claim"]["incarnation"], status["incarnations"][1]["name"]);
    assert_eq!(status["incarnations"][1]["parent"], status["incarnations"][0]["name"]);
    let ended = by_hand(&pipeline, &["replication", "status"]).await;
    for part in [": READY, claimed, a restore takes it, born ", " exact cuts to go back to, from 20"] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_lie_elsewhere_go_back_too() {
    let store = Store::file().await;
    let pipeline = Replicated::to(&store, &json!({}));
    let elsewhere = pipeline.site.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    pipeline.change(|manifest| {
        manifest["spec"]["delivery"]["dlq"]["path"] = json!(elsewhere.join("dead_letters.db"));
    });
    let worker = pipeline.start().await;
    put_all(&worker, &names("before", 5)).await;
    let first = ready(&worker).await;
    let then = timestamp_text(next_cut(&worker).await);
    put_all(&worker, &names("after", 5)).await;
    replicated(&worker).await;
    worker.stop().await;
    // Litestream itself removes its oldest notes like this, a quarter of an hour later.
    let notes = elsewhere.join(".dead_letters.db-litestream/ltx/0");
    let oldest = file_names(&notes).pop_first().expect("the file was shipped");
    std::fs::remove_file(notes.join(oldest)).unwrap();

    by_hand(&pipeline, &["restore", "--timestamp", &then]).await;
    let set_aside = pipeline.site.data_dir().join("set-aside");
    let folder = file_names(&set_aside).pop_first().expect("there was data");
    assert!(folder.starts_with(&first), "{folder}");
    assert!(set_aside.join(folder).join("dlq.db").is_file());
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, names("before", 5));
    assert_ne!(ready(&worker).await, first);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_shows_how_far_a_restore_is() {
    let store = Store::file().await;
    let pipeline = stored(&store).await;
    let restore = format!("{} restore --to copy -f pipeline.yaml --data-dir data", program().display());
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &restore, "/dev/null"]);
    let ended = pipeline.with_environment(pipeline.site.launch(command)).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("restoring "), "{:?}", ended.stdout);
    assert!(ended.stdout.contains("1/6 files, "), "{:?}", ended.stdout);
    let last = ended.stdout.lines().last();
    assert!(
        last.is_some_and(|line| line.ends_with("restored 6 files to copy, the newest of each file")),
        "{last:?}"
    );

    // A restore to another folder goes on with none of these files.
    let ended = by_hand(&pipeline, &["restore", "--to", "copy2"]).await;
    assert_eq!(ended.stdout, "restored 6 files to copy2, the newest of each file\n");
    assert!(!ended.stderr.contains("files, "), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_litestream_that_has_the_worker_as_its_child() {
    let store = Store::file().await;
    let pipeline = Replicated::to(&store, &json!({"mode": "sidecar"}));
    let ended = pipeline.run([]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("run `litejoin replication prepare` before both are started"),
        "{}",
        ended.stderr
    );

    by_hand(&pipeline, &["replication", "prepare"]).await;
    let shown = Command::new(litestream())
        .args(["databases", "-no-expand-env", "-config", "data/litestream.yml"])
        .current_dir(pipeline.site.path())
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    for name in ["shard_0.db", "shard_1.db", "shard_2.db", "results.db", "dlq.db", "sources.db"] {
        let path = std::fs::canonicalize(pipeline.site.data_dir()).unwrap().join(name);
        let line = shown.lines().find(|line| line.starts_with(&path.display().to_string()));
        assert!(line.is_some_and(|line| line.ends_with("file")), "{name}: {shown}");
    }
    let all = names("k", 10);
    {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(litestream());
        let worker =
            format!("{} run -f pipeline.yaml --data-dir data --log-format json", program().display());
        command.args(["replicate", "-no-expand-env", "-config", "data/litestream.yml", "-exec", &worker]);
        let launch =
            pipeline.site.launch(command).with_variable(PROGRAM, &litestream().display().to_string());
        let worker = launch.start().await;
        put_all(&worker, &all).await;
        ready(&worker).await;
        put_all(&worker, &names("more", 5)).await;
        // Litestream hands the signal on, waits for the worker, and ships the last changes.
        worker.stop().await;
    }
    pipeline.lose_disk();
    by_hand(&pipeline, &["replication", "prepare"]).await;
    let embedded = pipeline;
    embedded.change(|manifest| manifest["spec"]["replication"]["mode"] = json!("embedded"));
    let worker = embedded.start().await;
    assert_eq!(keys(&worker).await, &all | &names("more", 5));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_incarnations_go_once_they_are_outlived() {
    for kind in [StoreKind::File, StoreKind::S3, StoreKind::Sftp] {
        let mut store = Store::start(kind, "127.0.0.1").await;
        let pipeline = Replicated::to(&store, &json!({}));
        let (first, second) = outlived(&store, &pipeline).await;
        let birth = store.files().join("replicas/default/p/0").join(second).join("birth.json");
        // A server may remember the size of the file.
        store.restart().await;
        let worker = pipeline.start().await;
        until("the first to go", async || {
            let left = store.files().join("replicas/default/p/0").join(&first);
            // A store may leave empty folders.
            (!left.join("birth.json").exists() && !left.join("shard_0.db/ltx/0").exists()).then_some(())
        })
        .await;
        assert!(birth.exists());
        assert_eq!(keys(&worker).await, names("k", 3));
        worker.stop().await;
    }
}

/// Makes two incarnations, the second of which is as if the disk had been lost four days ago.
async fn outlived(store: &Store, pipeline: &Replicated) -> (String, String) {
    let worker = pipeline.start().await;
    put_all(&worker, &names("k", 3)).await;
    let first = ready(&worker).await;
    worker.stop().await;
    pipeline.lose_disk();
    let worker = pipeline.start().await;
    let second = ready(&worker).await;
    worker.stop().await;
    assert_eq!(incarnations(store, "p").len(), 2);
    let birth = store.files().join("replicas/default/p/0").join(&second).join("birth.json");
    let mut content: Value = serde_json::from_slice(&std::fs::read(&birth).unwrap()).unwrap();
    content["bornAt"] = json!(content["bornAt"].as_i64().unwrap() - 4 * 24 * 3_600);
    std::fs::write(&birth, content.to_string()).unwrap();
    (first, second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_hangs_holds_up_nothing_and_is_taken_up_again() {
    for kind in [StoreKind::File, StoreKind::S3, StoreKind::Sftp] {
        let mut store = Store::start(kind, "127.0.0.1").await;
        let pipeline = Replicated::to(&store, &json!({}));
        let (first, _) = outlived(&store, &pipeline).await;
        store.restart().await;
        let folder = store.files().join("replicas/default/p/0").join(&first);
        let worker = pipeline.run([]).with_variable("LITEJOIN_STALL", REMOVAL).start().await;
        until("the removal to begin", async || (!folder.join("READY").exists()).then_some(())).await;
        put_all(&worker, &names("k", 5)).await;
        replicated(&worker).await;
        assert!(folder.join("birth.json").exists(), "whoever looks knows that it is there");
        kill_both(&pipeline, worker, true).await;
        let worker = pipeline.start().await;
        until("the first to go", async || {
            (!folder.join("birth.json").exists() && !folder.join("shard_0.db/ltx/0").exists()).then_some(())
        })
        .await;
        assert_eq!(keys(&worker).await, names("k", 5));
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_an_hour_off_loses_nothing() {
    let store = Store::file().await;
    // The retention is shorter than the clocks differ: history goes too early or too late, and the claimed incarnation
    // never does.
    let pipeline = Replicated::to(&store, &json!({"snapshotInterval": "1m", "retention": "10m"}));
    let mut all = BTreeSet::new();
    for (number, seconds) in [0, 3_600, 0, -3_600, 0, 3_600].into_iter().enumerate() {
        let worker = pipeline.run([]).with_clock_off_by(seconds).start().await;
        assert_eq!(keys(&worker).await, all, "start {number}, off by {seconds} s");
        let own = ready(&worker).await;
        let key = format!("k{number}");
        let safe = Ingest::new(worker.address("source safe"));
        let answer = safe.try_send(&[message("orders", &key, json!({"n": number}))]).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        all.insert(key);
        replicated(&worker).await;
        let status = replication(&worker).await;
        assert!(status["lagSeconds"].as_u64() < Some(60), "{status}");
        assert!(incarnations(&store, "p").contains(&own), "the one that counts is there");
        kill_both(&pipeline, worker, true).await;
        pipeline.lose_disk();
    }
    // The claimed incarnation and its parent stay, whatever the clock says.
    let left = incarnations(&store, "p");
    assert!(left.iter().any(|name| name.starts_with("incarnation-6-")), "{left:?}");
    assert!(left.iter().any(|name| name.starts_with("incarnation-5-")), "{left:?}");
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, all);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_survives_is_not_copied_again() {
    let store = Store::s3().await;
    let proxy = StoreProxy::before(&store).await;
    let pipeline = Replicated::to(&store, &json!({"endpoint": store.endpoint_at(&proxy.address())}));
    let worker = pipeline.start().await;
    let note = "x".repeat(2_000);
    let many: Vec<Value> = (0..2_000)
        .map(|number| message("orders", &format!("k{number}"), json!({"n": number, "note": note})))
        .collect();
    worker.ingest().send(&many).await;
    ready(&worker).await;
    worker.stop().await;
    let before = shipped(&proxy.take());

    let worker = pipeline.start().await;
    ready(&worker).await;
    replicated(&worker).await;
    worker.stop().await;
    let again = shipped(&proxy.take());
    assert!(before > 500_000 && again < before / 20, "first {before} bytes, then {again}");
}

/// Bytes that came from a disk: levels above the first are made of files in the store.
fn shipped(calls: &[Call]) -> usize {
    let of_disk = calls.iter().filter(|call| call.is_upload() && call.path.contains(".db/0000/"));
    of_disk.map(|call| call.bytes).sum()
}
