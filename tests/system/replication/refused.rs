//! Starts that are refused, since they would be empty or write into another's replica: each says so in one line with
//! its remedy, and writes nothing.

use std::path::Path;

use expect_test::{Expect, expect};
use litejoin_crds::duration::timestamp_text;
use litejoin_tests::stores::{Store, StoreProxy, litestream};
use litejoin_tests::wait::{TIMEOUT, pass, until};
use litejoin_tests::worker::Launch;
use serde_json::json;

use super::by_hand::by_hand;
use super::cuts::next_cut;
use super::{
    PROGRAM, Replicated, file_names, incarnations, keys, names, put_all, ready, replication, stored,
};

/// Runs a command to its end, which must be 1, and compares its complaint; returns the name of data that the pipeline could
/// begin without.
pub(super) async fn refused(
    pipeline: &Replicated,
    store: &Store,
    launch: Launch,
    expected: Expect,
) -> Option<String> {
    let ended = launch.end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let lines = ended.stderr.lines().filter(|line| !line.starts_with('{'));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let text = text.replace(&pipeline.site.path().display().to_string(), "<site>");
    let text = text.replace(&store.files().display().to_string(), "<store>");
    let name = text.split_once("acceptLoss: ").and_then(|(_, rest)| Some(rest.split_once(',')?.0.to_owned()));
    let text = name.iter().fold(text, |text, name| text.replace(name, "<data>"));
    expected.assert_eq(&without_random_parts(&text));
    name
}

/// Replaces the random part of each incarnation's name by `<id>`.
fn without_random_parts(text: &str) -> String {
    const NAME: &str = "incarnation-";
    let mut parts = text.split(NAME);
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (number, rest) = part.split_once('-').expect("a number comes first");
        let rest = rest.trim_start_matches(|character: char| character.is_ascii_alphanumeric());
        plain.push_str(&format!("{NAME}{number}-<id>{rest}"));
    }
    plain
}

#[tokio::test]
async fn a_replica_that_is_gone_is_no_source_of_a_restore() {
    let store = Store::file().await;
    let pipeline = stored(&store).await;
    std::fs::remove_dir_all(store.files().join("replicas")).unwrap();
    let restore = ["restore", "-f", "pipeline.yaml", "--data-dir", "data"];
    let restore = pipeline.with_environment(pipeline.site.command(restore));
    refused(&pipeline, &store, restore, expect![[r#"
        error: file://<store>/replicas/default/p/0: nothing is there, and this data was replicated there as incarnation-1-<id>; look at replicaUrl, endpoint and credentials. To begin a new replica with the data that is here, write spec.replication.beginAnew: incarnation-1-<id>
    "#]]).await;
    assert!(!store.files().join("replicas").exists(), "nothing is written");
}

#[tokio::test]
async fn a_replica_that_is_expected_and_missing() {
    let store = Store::file().await;
    let pipeline = Replicated::to(&store, &json!({}));
    refused(&pipeline, &store, pipeline.run(["--expect-replica"]), expect![[r#"
        error: file://<store>/replicas/default/p/0: there is no replica, and one is asked for (restore.fromUrl, restore.policy: Required, or --expect-replica); look at the URL, endpoint and credentials, or ask for none to start empty
    "#]]).await;
    let required = Replicated::to(&store, &json!({"restore": {"policy": "Required"}}));
    refused(&required, &store, required.run([]), expect![[r#"
        error: file://<store>/replicas/default/p/0: there is no replica, and one is asked for (restore.fromUrl, restore.policy: Required, or --expect-replica); look at the URL, endpoint and credentials, or ask for none to start empty
    "#]]).await;
    assert!(!store.files().join("replicas").exists(), "nothing is written");
}

#[tokio::test]
async fn a_replica_of_another_pipeline() {
    let store = Store::file().await;
    let pipeline = stored(&store).await;
    let base = store.files().join("replicas/default");
    std::fs::rename(base.join("p"), base.join("q")).unwrap();
    let other = Replicated::named(&store, "q", &json!({}));
    refused(&other, &store, other.run([]), expect![[r#"
        error: file://<store>/replicas/default/q/0: holds the replica of pipeline "default/p", and this is "default/q"; write another replicaUrl, or that identity (spec.replication.identity)
    "#]]).await;
    drop(pipeline);
}

#[tokio::test]
async fn data_that_the_replica_does_not_know() {
    let store = Store::file().await;
    let pipeline = stored(&store).await;
    std::fs::remove_file(pipeline.site.data_dir().join("replication.json")).unwrap();
    let before = file_names(&store.files().join("replicas/default/p/0"));
    let refused_data = refused(&pipeline, &store, pipeline.run([]), expect![[r#"
        error: file://<store>/replicas/default/p/0: holds a replica (incarnation-1-<id>) that this data directory knows nothing of; write another replicaUrl or identity for this one; or begin without this data, from the replica if there is one, by spec.storage.acceptLoss: <data>, which sets its files aside
    "#]]).await;
    assert_eq!(file_names(&store.files().join("replicas/default/p/0")), before, "nothing is written");

    let data = refused_data.expect("the data is named");
    pipeline.change(|manifest| manifest["spec"]["storage"]["acceptLoss"] = json!(data));
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, names("k", 3), "the replica's data is back");
    worker.stop().await;
}

/// Overwrites the files of a shard.
fn damage(incarnation: &Path, shard: &str) {
    let levels = incarnation.join(shard).join("ltx");
    for name in file_names(&levels.join("0")) {
        std::fs::write(levels.join("0").join(name), "no transactions").unwrap();
    }
    for level in ["1", "2", "3", "9"] {
        let _ = std::fs::remove_dir_all(levels.join(level));
    }
}

#[tokio::test]
async fn a_time_that_can_not_be_gone_back_to() {
    let store = Store::file().await;
    let pipeline = Replicated::to(&store, &json!({}));
    let worker = pipeline.start().await;
    put_all(&worker, &names("k", 3)).await;
    let incarnation = ready(&worker).await;
    let then = timestamp_text(next_cut(&worker).await);
    put_all(&worker, &names("later", 3)).await;
    worker.stop().await;
    damage(&store.files().join("replicas/default/p/0").join(incarnation), "shard_1.db");
    let arguments = ["restore", "--timestamp", &then, "-f", "pipeline.yaml", "--data-dir", "data"];
    let ended = pipeline.with_environment(pipeline.site.command(arguments)).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("shard_1.db: could not be restored"), "{}", ended.stderr);

    // The restore that failed has left the data as it was.
    pipeline.change(|manifest| manifest["spec"]["replication"]["restoreOnBoot"] = false.into());
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, &names("k", 3) | &names("later", 3));
    ready(&worker).await;
    worker.stop().await;
    assert!(!pipeline.site.data_dir().join("set-aside").exists());
}

#[tokio::test]
async fn a_time_comes_from_the_incarnation_before_where_the_next_is_damaged() {
    let store = Store::file().await;
    let pipeline = stored(&store).await;
    pipeline.lose_disk();
    let worker = pipeline.start().await;
    let second = ready(&worker).await;
    let then = timestamp_text(next_cut(&worker).await);
    worker.stop().await;
    let base = store.files().join("replicas/default/p/0");
    damage(&base.join(&second), "shard_2.db");
    let first = incarnations(&store, "p").pop_first().unwrap();
    std::fs::remove_file(base.join(first).join("cuts.json")).unwrap();
    let ended = by_hand(&pipeline, &["restore", "--timestamp", &then, "--to", "copy"]).await;
    assert!(ended.stdout.starts_with("restored 6 files to copy, "), "{}", ended.stdout);
    assert!(ended.stderr.contains("shard_2.db: could not be restored"), "{}", ended.stderr);
    assert!(pipeline.site.path().join("copy/shard_2.db").is_file());
}

#[tokio::test]
async fn a_damaged_replica() {
    let store = Store::file().await;
    let pipeline = stored(&store).await;
    pipeline.lose_disk();
    let base = store.files().join("replicas/default/p/0");
    let incarnation = incarnations(&store, "p").pop_first().unwrap();
    damage(&base.join(&incarnation), "shard_1.db");
    // Several tries leave no more files than one.
    pipeline.run([]).end().await;
    let ended = pipeline.run([]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("shard_1.db: could not be restored: Litestream said: "),
        "{}",
        ended.stderr
    );
    assert!(
        !pipeline.site.data_dir().join("layout.json").exists(),
        "there is nothing that a start could take for data"
    );
    assert!(!pipeline.site.data_dir().join("set-aside").exists(), "there was nothing to keep");
    // The whole incarnation is gone.
    std::fs::remove_dir_all(base.join(&incarnation)).unwrap();
    for name in incarnations(&store, "p") {
        std::fs::remove_dir_all(base.join(name)).unwrap();
    }
    let ended = pipeline.run([]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("the claim names incarnation-3-"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_store_that_can_not_be_asked() {
    let mut store = Store::s3().await;
    let pipeline = stored(&store).await;
    pipeline.lose_disk();
    let ended = pipeline.run([]).with_variable("AWS_SECRET_ACCESS_KEY", "wr0ng").end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("error: could not look at the replica; nothing was changed: s3://lite/replicas/default/p/0: could not read claim.json: "),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("wr0ng"), "{}", ended.stderr);

    store.pause();
    let ended = pipeline.run([]).end().await;
    store.resume();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("could not read claim.json"), "{}", ended.stderr);

    store.kill();
    let ended = pipeline.run([]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("could not read claim.json"), "{}", ended.stderr);

    let elsewhere = Replicated {
        environment: pipeline.environment.clone(),
        ..Replicated::to(&store, &json!({"replicaUrl": "s3://none/x"}))
    };
    store.restart().await;
    let ended = elsewhere.run([]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("s3://none/x/default/p/0"), "{}", ended.stderr);
}

#[tokio::test]
async fn no_litestream() {
    let store = Store::file().await;
    let pipeline = Replicated::to(&store, &json!({}));
    let absent = pipeline.run([]).with_variable(PROGRAM, "/nowhere/litestream");
    refused(&pipeline, &store, absent, expect![[r#"
        error: /nowhere/litestream: could not be run; replication needs Litestream 0.5.17: install it and put it on the PATH, or name it by --litestream (LITEJOIN_LITESTREAM): No such file or directory (os error 2)
    "#]]).await;
    pipeline.site.write("litestream", "#!/bin/sh\necho v0.5.11\n");
    let old = pipeline.site.path().join("litestream");
    std::fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let old = pipeline.run([]).with_variable(PROGRAM, &old.display().to_string());
    refused(&pipeline, &store, old, expect![[r#"
        error: <site>/litestream: is version v0.5.11, and replication needs Litestream 0.5.17 or a later 0.5; older ones lose data. Install that one, or name it by --litestream (LITEJOIN_LITESTREAM)
    "#]]).await;
    assert!(litestream().is_file());
}

const CLOCKS: &str = "s3://lite/replicas/default/p/0: could not read claim.json: the clocks of the store and of this machine \
                      differ by too much; set the one that is wrong";

#[tokio::test]
async fn a_clock_that_is_an_hour_off() {
    let store = Store::s3().await;
    let pipeline = stored(&store).await;
    let before = file_names(&store.files().join("replicas/default/p/0"));
    // The disk is there, so the data is served; a worker that the store refuses says that nothing is replicated.
    let worker = pipeline.run([]).with_clock_off_by(-3_600).start().await;
    assert_eq!(keys(&worker).await, names("k", 3));
    until("the refusal", async || {
        let status = replication(&worker).await;
        status["lastError"].as_str()?.contains(CLOCKS).then_some(())
    })
    .await;
    worker.stop().await;
    pipeline.lose_disk();
    for seconds in [3_600, -3_600] {
        let ended = pipeline.run([]).with_clock_off_by(seconds).end().await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let expected = format!("error: could not look at the replica; nothing was changed: {CLOCKS}: ");
        assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
    }
    assert_eq!(file_names(&store.files().join("replicas/default/p/0")), before, "nothing is written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_in_the_middle_of_a_restore() {
    let store = Store::s3().await;
    let proxy = StoreProxy::before(&store).await;
    let pipeline = Replicated::to(&store, &json!({"endpoint": store.endpoint_at(&proxy.address())}));
    let worker = pipeline.start().await;
    put_all(&worker, &names("k", 3)).await;
    ready(&worker).await;
    worker.stop().await;
    pipeline.lose_disk();
    proxy.take();
    let worker = pipeline.run([]).spawn();
    until("the restore to begin", async || {
        proxy.calls().iter().any(|call| call.path.contains(".db/")).then_some(())
    })
    .await;
    proxy.cut();
    // The restore is given up after a minute without progress, and no wait of the harness is longer.
    pass(TIMEOUT / 2).await;
    let ended = worker.ended().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains(": nothing more was restored for 60 s; see whether the store is up"),
        "{}",
        ended.stderr
    );
    proxy.mend();
    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, names("k", 3));
    worker.stop().await;
}
