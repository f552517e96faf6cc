//! Starts that fail: each says why in one line that names the remedy, and leaves data and other workers alone.

use std::net::TcpListener;

use expect_test::{Expect, expect};
use litejoin_tests::ingest::message;
use litejoin_tests::worker::{Ended, Worker, WorkerSite};
use serde_json::{Value, json};

const MANIFEST: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {shardCount: 2}
  admin: {addr: "127.0.0.1:0"}
  sources:
    - name: ingest
      http: {addr: "127.0.0.1:0", topics: [orders]}
  joins:
    - {name: all_orders, query: "SELECT key, payload->>'n' AS n FROM orders", sinks: [live]}
  sinks:
    - name: live
      sse: {addr: "127.0.0.1:0"}
"#;

/// The lines of an ended worker beside its log, without the folder of the site.
fn complaint(site: &WorkerSite, ended: &Ended) -> String {
    let lines = ended.stderr.lines().filter(|line| !line.starts_with('{'));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    text.replace(&site.path().display().to_string(), "<site>")
}

/// Asserts that the worker ends with 1 and says this; returns the name of data that it could begin without.
async fn refused(site: &WorkerSite, data_dir: &str, expected: Expect) -> Option<String> {
    let arguments = ["run", "-f", "pipeline.yaml", "--data-dir", data_dir];
    let ended = site.command(arguments).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let said = complaint(site, &ended);
    let name = said.split_once("acceptLoss: ").and_then(|(_, rest)| Some(rest.split_once(',')?.0.to_owned()));
    expected.assert_eq(&name.iter().fold(said, |said, name| said.replace(name, "<data>")));
    name
}

/// The manifest with consent to begin without the data of this name.
fn with_consent(manifest: &str, data: &str) -> String {
    manifest.replace("storage: {", &format!("storage: {{acceptLoss: {data}, "))
}

/// Asserts that consent to begin without other data than this changes nothing, and that consent to begin without this one
/// sets it aside, once.
async fn begins_by_consent(site: &WorkerSite, manifest: &str, data: Option<String>) {
    let data = data.expect("the data is named");
    let with_consent =
        |name: &str| manifest.replace("storage: {", &format!("storage: {{acceptLoss: {name}, "));
    site.write("pipeline.yaml", with_consent("other"));
    assert_eq!(site.run([]).end().await.code, Some(1), "that is other data");
    site.write("pipeline.yaml", with_consent(&data));
    let worker = site.start().await;
    let epoch = worker.ingest().put("orders", "o2", json!({"n": 2})).await;
    let keys = async |worker: &Worker| {
        let (_, results) = worker.snapshot("live", "all_orders", epoch).await;
        results.rows.into_keys().map(|(_, key)| key).collect::<Vec<_>>()
    };
    assert_eq!(keys(&worker).await, [r#""o2""#], "it has begun empty");
    worker.stop().await;
    let worker = site.start().await;
    assert_eq!(keys(&worker).await, [r#""o2""#], "what came since stays");
    worker.stop().await;
    let aside = std::fs::read_dir(site.data_dir().join("set-aside")).expect("data was set aside");
    assert_eq!(aside.count(), 1, "and was so once");
}

/// A site whose data holds an order, and whose worker has stopped.
async fn stored() -> WorkerSite {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    worker.stop().await;
    site
}

/// Asserts that the stored order is there, and that another can be stored.
async fn assert_goes_on(worker: &Worker) {
    let epoch = worker.ingest().send(&[message("orders", "o2", json!({"n": 2}))]).await;
    let (_, results) = worker.snapshot("live", "all_orders", epoch).await;
    let keys: Vec<&str> = results.rows.keys().map(|(_, key)| key.as_str()).collect();
    assert_eq!(keys, [r#""o1""#, r#""o2""#]);
}

#[tokio::test]
async fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let addr = taken.local_addr().expect("a listener has an address").to_string();
    for (field, expected) in [
        (
            "topics: [orders]",
            expect![[r#"
            error: source ingest: 127.0.0.1:<taken>: the port is in use; stop the program that has it, or write another addr
        "#]],
        ),
        (
            "admin:",
            expect![[r#"
            error: admin: 127.0.0.1:<taken>: the port is in use; stop the program that has it, or write another addr
        "#]],
        ),
        (
            "sse:",
            expect![[r#"
            error: sink live: 127.0.0.1:<taken>: the port is in use; stop the program that has it, or write another addr
        "#]],
        ),
    ] {
        let lines = MANIFEST.lines().map(|line| match line.contains(field) {
            true => line.replace("127.0.0.1:0", &addr),
            false => line.to_owned(),
        });
        let site = WorkerSite::with(&lines.collect::<Vec<_>>().join("\n"));
        let ended = site.run([]).end().await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        expected.assert_eq(&complaint(&site, &ended).replace(&addr, "127.0.0.1:<taken>"));
        assert!(!site.data_dir().exists(), "nothing was begun");
    }
}

#[tokio::test]
async fn a_data_directory_that_can_not_be_made() {
    let site = WorkerSite::with(MANIFEST);
    site.write("data", "a file");
    refused(&site, "data", expect![[r#"
        error: data: could not create the data directory; storage.dataDir (or --data-dir) must be a folder that this user may write to: File exists (os error 17)
    "#]]).await;
    refused(&site, "/proc/litejoin", expect![[r#"
        error: /proc/litejoin: could not create the data directory; storage.dataDir (or --data-dir) must be a folder that this user may write to: No such file or directory (os error 2)
    "#]]).await;
}

#[tokio::test]
async fn a_data_directory_of_another_layout() {
    let site = stored().await;
    site.write("pipeline.yaml", MANIFEST.replace("shardCount: 2", "shardCount: 4"));
    refused(&site, "data", expect![[r#"
        error: data: holds 2 shards, and the pipeline wants storage.shardCount 4; set it back to 2, or have the data moved: write storage.reshard: {fromShardCount: 2, toShardCount: 4}, or run litejoin reshard --data-dir data --to 4; or begin without this data, from the replica if there is one, by spec.storage.acceptLoss: <data>, which sets its files aside
    "#]]).await;
    site.write("pipeline.yaml", MANIFEST.replace("{name: p}", "{name: other}"));
    let data = refused(&site, "data", expect![[r#"
        error: data: holds the data of pipeline "default/p", and this is "default/other"; give this pipeline its own --data-dir, or write spec.replication.identity: default/p to go on with that data; or begin without this data, from the replica if there is one, by spec.storage.acceptLoss: <data>, which sets its files aside
    "#]]).await;
    site.write("pipeline.yaml", MANIFEST);
    let worker = site.start().await;
    assert_goes_on(&worker).await;
    worker.stop().await;
    begins_by_consent(&site, &MANIFEST.replace("{name: p}", "{name: other}"), data).await;
}

#[tokio::test]
async fn a_data_directory_in_use() {
    let site = stored().await;
    let worker = site.start().await;
    let second = site.run([]).end().await;
    assert_eq!(second.code, Some(1));
    expect![[r#"
        error: data: the data directory is in use by process <pid>; stop that one, or give this one its own --data-dir
    "#]].assert_eq(&complaint(&site, &second).replace(&worker.pid().to_string(), "<pid>"));
    assert_goes_on(&worker).await;
}

#[tokio::test]
async fn two_copies_started_at_once_are_one_too_many() {
    let site = WorkerSite::with(MANIFEST);
    let (mut first, mut second) = (site.run([]).spawn(), site.run([]).spawn());
    let both = async {
        tokio::select! {
            code = first.wait() => (code, true),
            code = second.wait() => (code, false),
        }
    };
    let (code, first_lost) = both.await;
    let (loser, mut winner) = if first_lost { (first, second) } else { (second, first) };
    let lost = loser.ended().await;
    assert_eq!(code, Some(1), "{}", lost.stderr);
    assert!(lost.stderr.contains("the data directory is in use by process"), "{}", lost.stderr);
    winner.wait_until_it_runs().await;
    winner.ingest().put("orders", "o1", json!({"n": 1})).await;
    assert_goes_on(&winner).await;
}

#[tokio::test]
async fn a_missing_shard_is_never_an_empty_start() {
    let site = stored().await;
    let (shard, moved) = (site.data_dir().join("shard_1.db"), site.path().join("moved.db"));
    std::fs::rename(&shard, &moved).expect("a file can be moved");
    let data = refused(
        &site,
        "data",
        expect![[r#"
            error: data: shard file shard_1.db is missing; put it back; or begin without this data, from the replica if there is one, by spec.storage.acceptLoss: <data>, which sets its files aside
        "#]],
    )
    .await;
    assert!(!shard.exists(), "no empty shard was made");
    std::fs::rename(&moved, &shard).expect("a file can be moved");
    let worker = site.start().await;
    assert_goes_on(&worker).await;
    worker.stop().await;
    std::fs::remove_file(&shard).expect("a file can be removed");
    begins_by_consent(&site, MANIFEST, data).await;
}

#[tokio::test]
async fn a_layout_manifest_that_is_gone_or_broken() {
    let site = stored().await;
    let layout = site.data_dir().join("layout.json");
    let whole = std::fs::read_to_string(&layout).expect("the layout is text");
    std::fs::remove_file(&layout).expect("a file can be removed");
    let unnamed = refused(&site, "data", expect![[r#"
        error: data: shard files without a layout manifest beside them; put layout.json back; or begin without this data, from the replica if there is one, by spec.storage.acceptLoss: <data>, which sets its files aside
    "#]]).await;
    std::fs::write(&layout, &whole[..whole.len() / 2]).expect("a file can be written");
    let broken = refused(&site, "data", expect![[r#"
        error: data/layout.json: not a layout manifest (EOF while parsing a string at line 6 column 5); put the right one back; or begin without this data, from the replica if there is one, by spec.storage.acceptLoss: <data>, which sets its files aside
    "#]]).await;
    let future = whole.replace("\"formatVersion\": 2", "\"formatVersion\": 99");
    std::fs::write(&layout, future).expect("a file can be written");
    refused(&site, "data", expect![[r#"
        error: data: written in format 99 (hash version 1), and this worker reads format 2 (hash version 1); run the version of litejoin that wrote it
    "#]]).await;
    std::fs::write(&layout, &whole).expect("a file can be written");
    let worker = site.start().await;
    assert_goes_on(&worker).await;
    worker.stop().await;
    std::fs::remove_file(&layout).expect("a file can be removed");
    begins_by_consent(&site, MANIFEST, unnamed).await;
    let site = stored().await;
    std::fs::write(site.data_dir().join("layout.json"), &whole[..whole.len() / 2])
        .expect("a file can be written");
    begins_by_consent(&site, MANIFEST, broken).await;
}

#[tokio::test]
async fn a_file_that_is_no_database() {
    let site = stored().await;
    let shard = site.data_dir().join("shard_0.db");
    let whole = std::fs::read(&shard).expect("a file can be read");
    std::fs::write(&shard, b"this is no database, and it is long enough to be looked at as one of them")
        .expect("a file can be written");
    let data = refused(
        &site,
        "data",
        expect![[r#"
            error: data/shard_0.db: is no database; put the right file back; or begin without this data, from the replica if there is one, by spec.storage.acceptLoss: <data>, which sets its files aside
        "#]],
    )
    .await;
    std::fs::write(&shard, whole).expect("a file can be written");
    let worker = site.start().await;
    assert_goes_on(&worker).await;
    worker.stop().await;
    std::fs::write(&shard, b"this is no database, and it is long enough to be looked at as one of them")
        .expect("a file can be written");
    begins_by_consent(&site, MANIFEST, data).await;
}

/// Where a worker can die while it sets data aside.
const MOVED: &str = "data-moved-aside";

pub(crate) fn points() -> impl Iterator<Item = &'static str> {
    [MOVED].into_iter()
}

#[tokio::test]
async fn data_is_set_aside_whole_whenever_a_start_is_cut_off() {
    for n in 1.. {
        let site = stored().await;
        let layout = std::fs::read(site.data_dir().join("layout.json")).expect("a file can be read");
        let layout: Value = serde_json::from_slice(&layout).expect("the layout is JSON");
        let data = layout["lineage"].as_str().expect("data has a lineage");
        site.write("pipeline.yaml", with_consent(MANIFEST, data));
        let fault = format!("{MOVED}:{n}");
        let mut worker = site.run([]).with_variable("LITEJOIN_FAULT", &fault).spawn();
        let was_cut_off = !worker.comes_to_run().await;
        if was_cut_off {
            worker = site.start().await;
        }
        let epoch = worker.ingest().put("orders", "o2", json!({"n": 2})).await;
        let (_, results) = worker.snapshot("live", "all_orders", epoch).await;
        let keys: Vec<&str> = results.rows.keys().map(|(_, key)| key.as_str()).collect();
        assert_eq!(keys, [r#""o2""#], "cut off at file {n}");
        worker.stop().await;
        if !was_cut_off {
            assert!(n > 5, "shards, results, dead letters and the layout are moved one by one: {n}");
            break;
        }
    }
}
