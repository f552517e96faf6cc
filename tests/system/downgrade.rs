//! Data of a later version, whose format this one can't read: every command says so and which version to run, and
//! leaves the directory and the replica as they are.

use std::collections::BTreeMap;
use std::path::Path;

use expect_test::{Expect, expect};
use litejoin_tests::stores::{Store, litestream};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Launch, WorkerSite};
use serde_json::{Value, json};

/// A pipeline that is replicated to a folder of a store.
struct Downgrade {
    site: WorkerSite,
    store: Store,
}

impl Downgrade {
    /// A worker of this version has stored and replicated an order, and has stopped.
    async fn new() -> Self {
        let store = Store::file().await;
        let mut replication = store.settings("replicas");
        replication["mode"] = "embedded".into();
        let manifest = json!({
            "apiVersion": "litejoin.io/v1alpha1",
            "kind": "Pipeline",
            "metadata": {"name": "p"},
            "spec": {
                "storage": {"shardCount": 2},
                "admin": {"addr": "127.0.0.1:0"},
                "replication": replication,
                "sources": [{"name": "ingest", "http": {"addr": "127.0.0.1:0", "topics": ["orders"]}}],
                "joins": [{"name": "all_orders", "query": "SELECT key FROM orders", "sinks": ["console"]}],
                "sinks": [{"name": "console", "stdout": {}}],
            },
        });
        let downgrade = Self { site: WorkerSite::with(&manifest.to_string()), store };
        let worker = downgrade.command(["run", "-f", "pipeline.yaml", "--log-format", "json"]).start().await;
        worker.ingest().put("orders", "o1", json!({"n": 1})).await;
        until("the replica to be READY", async || {
            (worker.status().await["replication"]["ready"] == true).then_some(())
        })
        .await;
        worker.stop().await;
        downgrade
    }

    fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Launch {
        let launch = self.site.command(arguments.into_iter().chain(["--data-dir", "data"]));
        launch.with_variable("LITEJOIN_LITESTREAM", &litestream().display().to_string())
    }

    /// Every file of the data directory and of the store but the locks, which name the last processes that held them.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.site.data_dir(), "data", &mut files);
        collect(&self.store.files(), "store", &mut files);
        files.retain(|path, _| !["data/lock", "data/litestream.lock"].contains(&path.as_str()));
        files
    }

    /// Asserts that the command fails with this complaint, and changes no file.
    async fn refused(&self, arguments: &[&str], expected: &Expect) {
        let before = self.files();
        let ended = self.command(arguments.iter().copied()).end().await;
        assert_eq!(ended.code, Some(1), "{arguments:?}: {}", ended.stderr);
        let lines = ended.stderr.lines().filter(|line| line.starts_with("error: "));
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        let text = text.replace(&self.store.files().display().to_string(), "<store>");
        expected.assert_eq(&without_random_parts(&text));
        let after = self.files();
        let changed: Vec<_> =
            before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
        assert!(changed.is_empty(), "{arguments:?} has changed {changed:?}");
    }
}

fn collect(folder: &Path, at: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("a folder can be listed").path();
        let name = format!("{at}/{}", path.file_name().expect("a file has a name").to_string_lossy());
        if path.is_dir() {
            collect(&path, &name, files);
        } else {
            files.insert(name, std::fs::read(&path).expect("a file can be read"));
        }
    }
}

/// Replaces the random part of an incarnation's name.
fn without_random_parts(text: &str) -> String {
    let Some((before, rest)) = text.split_once("incarnation-1-") else { return text.to_owned() };
    let rest = rest.trim_start_matches(|letter: char| letter.is_ascii_alphanumeric());
    format!("{before}incarnation-1-<id>{rest}")
}

/// Writes a file as a version of another format would: with a higher number and a field that this one does not know.
fn of_later_format(path: &Path) {
    let text = std::fs::read_to_string(path).expect("it is there");
    let mut value: Value = serde_json::from_str(&text).expect("it is JSON");
    value["formatVersion"] = json!(99);
    value["whatComesLater"] = json!({"panes": 3});
    std::fs::write(path, value.to_string()).expect("it can be written");
}

#[tokio::test]
async fn data_of_a_later_format_is_left_alone() {
    let downgrade = Downgrade::new().await;
    of_later_format(&downgrade.site.data_dir().join("layout.json"));
    let expected = expect![[r#"
        error: data: written in format 99 (hash version 1), and this worker reads format 2 (hash version 1); run the version of litejoin that wrote it
    "#]];
    for arguments in [
        &["run", "-f", "pipeline.yaml"][..],
        &["audit", "-f", "pipeline.yaml"],
        &["restore", "-f", "pipeline.yaml"],
        &["replication", "prepare", "-f", "pipeline.yaml"],
        &["dlq", "list", "-f", "pipeline.yaml"],
        &["dlq", "retry", "--all", "-f", "pipeline.yaml"],
        &["dlq", "purge", "--all"],
    ] {
        downgrade.refused(arguments, &expected).await;
    }
}

#[tokio::test]
async fn a_replica_of_a_later_format_is_left_alone() {
    let downgrade = Downgrade::new().await;
    let folder = downgrade.store.files().join("replicas/default/p/0");
    let entries =
        std::fs::read_dir(&folder).expect("there is a replica").map(|entry| entry.expect("it is listed"));
    let births: Vec<_> =
        entries.map(|entry| entry.path().join("birth.json")).filter(|path| path.is_file()).collect();
    let [birth] = births.as_slice() else { panic!("one incarnation, not {births:?}") };
    of_later_format(birth);
    std::fs::remove_dir_all(downgrade.site.data_dir()).expect("the data can be removed");
    let expected = expect![[r#"
        error: file://<store>/replicas/default/p/0: incarnation-1-<id> was written in format 99, and this worker reads format 2; run the version of litejoin that wrote it
    "#]];
    for arguments in [
        &["run", "-f", "pipeline.yaml"][..],
        &["restore", "-f", "pipeline.yaml"],
        &["restore", "-f", "pipeline.yaml", "--verify"],
        &["restore", "-f", "pipeline.yaml", "--to", "elsewhere"],
        &["replication", "prepare", "-f", "pipeline.yaml"],
    ] {
        downgrade.refused(arguments, &expected).await;
    }
    assert!(!downgrade.site.path().join("elsewhere/shard_0.db").exists(), "nothing was restored");
}
