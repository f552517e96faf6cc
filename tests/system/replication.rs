//! Replication by the real Litestream to real stores: the data that comes back after a disk is lost, which worker may
//! write where, and that no worker starts empty in silence.

mod by_hand;
mod consumers;
mod cuts;
mod gone;
mod load;
mod loss;
mod mirror;
pub(crate) mod points;
mod refused;
mod reshard;
mod streams;
mod table;
pub(crate) mod takeover;
mod two;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use litejoin_tests::stores::{Call, Store, StoreKind, StoreProxy, litestream};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Ended, Launch, Worker, WorkerSite};
use serde_json::{Value, json};

use self::consumers::SinkConsumers;

/// The variable that names the program Litestream.
const PROGRAM: &str = "LITEJOIN_LITESTREAM";

/// A pipeline that is replicated, with a folder for its data.
struct Replicated {
    site: WorkerSite,
    environment: Vec<(&'static str, String)>,
}

impl Replicated {
    /// A pipeline that replicates to a folder of the store; `more` are further fields of `spec.replication`.
    fn to(store: &Store, more: &Value) -> Self {
        Self::named(store, "p", more)
    }

    /// Adds these consumers, and lets results leave after `after`.
    fn delivering(self, after: &str, consumers: &SinkConsumers) -> Self {
        self.change(|manifest| {
            let spec = &mut manifest["spec"];
            spec["delivery"] = json!({"after": after, "dlq": {"retryInterval": "100ms", "maxBackoff": "1s"}});
            spec["sinks"].as_array_mut().expect("a list").extend(consumers.sinks());
        });
        self
    }

    fn manifest(&self) -> Value {
        let path = self.site.path().join("pipeline.yaml");
        serde_json::from_slice(&std::fs::read(path).expect("it was written")).expect("it is JSON")
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut manifest = self.manifest();
        change(&mut manifest);
        self.site.write("pipeline.yaml", manifest.to_string());
    }

    fn named(store: &Store, name: &str, more: &Value) -> Self {
        let mut replication = store.settings("replicas");
        replication["mode"] = "embedded".into();
        for (field, value) in more.as_object().into_iter().flatten() {
            replication[field] = value.clone();
        }
        let manifest = json!({
            "apiVersion": "litejoin.io/v1alpha1",
            "kind": "Pipeline",
            "metadata": {"name": name},
            "spec": {
                "storage": {"shardCount": 3, "flushInterval": "2ms"},
                "admin": {"addr": "127.0.0.1:0"},
                "replication": replication,
                "sources": [
                    {"name": "ingest", "http": {"addr": "127.0.0.1:0", "topics": ["orders"]}},
                    {"name": "safe", "ack": "replicated", "http": {"addr": "127.0.0.1:0", "topics": ["orders"]}},
                ],
                "joins": [{"name": JOIN, "query": QUERY, "sinks": ["live"]}],
                "sinks": [{"name": "live", "sse": {"addr": "127.0.0.1:0"}}],
            },
        });
        Self { site: WorkerSite::with(&manifest.to_string()), environment: store.environment() }
    }

    fn with_environment(&self, mut launch: Launch) -> Launch {
        for (name, value) in &self.environment {
            launch = launch.with_variable(name, value);
        }
        launch.with_variable(PROGRAM, &litestream().display().to_string())
    }

    /// `litejoin run`, with everything that it needs.
    fn run<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Launch {
        self.with_environment(self.site.run(arguments))
    }

    async fn start(&self) -> Worker {
        self.run([]).start().await
    }

    /// Removes the data directory.
    fn lose_disk(&self) {
        std::fs::remove_dir_all(self.site.data_dir()).expect("the data can be removed");
    }
}

/// The join of all, which the SSE sink takes.
const JOIN: &str = "all_orders";
const QUERY: &str = "SELECT key, payload->>'n' AS n FROM orders";

/// `replication` of `/status`.
async fn replication(worker: &Worker) -> Value {
    worker.status().await["replication"].clone()
}

/// Waits until the incarnation is READY and returns its name.
async fn ready(worker: &Worker) -> String {
    until("the replica to be READY", async || {
        let status = replication(worker).await;
        (status["ready"] == true).then(|| status["incarnation"].as_str().expect("it has a name").to_owned())
    })
    .await
}

/// Waits until all that is stored now is in the replica.
async fn replicated(worker: &Worker) {
    let status = replication(worker).await;
    // The time is that of the worker's clock, which a test may have set.
    let started =
        status["completeUntil"].as_i64().expect("a time") + status["lagSeconds"].as_i64().expect("a time");
    // Two seconds more: a sync round that is under way may have begun before, and times are whole seconds.
    until("the replica to catch up", async || {
        let status = replication(worker).await;
        (status["completeUntil"].as_i64() >= Some(started + 2) && status["lastError"].is_null()).then_some(())
    })
    .await;
}

/// The key of a last message, whose epoch says that all messages before it are evaluated.
const LAST: &str = "the last";

/// The keys that the pipeline has in its results once it is current.
async fn keys(worker: &Worker) -> BTreeSet<String> {
    let epoch = worker.ingest().put("orders", LAST, json!({"n": 0})).await;
    let (_, results) = worker.snapshot("live", JOIN, epoch).await;
    let quoted = results.rows.keys().map(|(_, key)| key.trim_matches('"').to_owned());
    quoted.filter(|key| key != LAST).collect()
}

/// Fails where an acknowledged key is not there.
fn assert_there(acknowledged: &BTreeSet<String>, found: &BTreeSet<String>, when: &str) {
    let missing: Vec<_> = acknowledged.difference(found).collect();
    assert!(missing.is_empty(), "{when}: {missing:?} were acknowledged and are not there");
}

/// Kills a worker and its Litestream, the worker first if `worker_first`, and waits until neither is left.
async fn kill_both(pipeline: &Replicated, worker: Worker, worker_first: bool) -> Ended {
    let pid = std::fs::read_to_string(pipeline.site.data_dir().join("litestream.lock")).expect("it is noted");
    let kill_litestream = || Command::new("kill").args(["-9", &pid]).stderr(Stdio::null()).status();
    if !worker_first {
        let _ = kill_litestream();
    }
    let ended = worker.kill().await;
    let _ = kill_litestream();
    until("the end of Litestream", async || (!is_alive(&pid)).then_some(())).await;
    ended
}

/// Whether a process still runs; a zombie has no program any more.
fn is_alive(pid: &str) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

fn names(prefix: &str, count: usize) -> BTreeSet<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

async fn put_all(worker: &Worker, names: &BTreeSet<String>) {
    for name in names {
        worker.ingest().put("orders", name, json!({"n": 1})).await;
    }
}

/// A pipeline of which a replica is there.
async fn stored(store: &Store) -> Replicated {
    let pipeline = Replicated::to(store, &json!({}));
    let worker = pipeline.start().await;
    put_all(&worker, &names("k", 3)).await;
    ready(&worker).await;
    worker.stop().await;
    pipeline
}

/// Names of the incarnations that lie in a store.
fn incarnations(store: &Store, pipeline: &str) -> BTreeSet<String> {
    let folder = store.files().join(format!("replicas/default/{pipeline}/0"));
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeSet::new() };
    let all = entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned());
    all.filter(|name| name.starts_with("incarnation-")).collect()
}

fn file_names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).expect("readable");
    entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_comes_back_from_a_folder() {
    comes_back(StoreKind::File).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_comes_back_from_s3() {
    comes_back(StoreKind::S3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_comes_back_from_sftp() {
    comes_back(StoreKind::Sftp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_comes_back_from_azure() {
    comes_back(StoreKind::Azure).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_comes_back_from_google() {
    let store = Store::start(StoreKind::Google, "127.0.0.1").await;
    let proxy = StoreProxy::before(&store).await;
    let environment = store.environment_at(&proxy.address());
    let pipeline = Replicated { environment, ..Replicated::to(&store, &json!({})) };
    comes_back_to(&pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_comes_back_from_s3_that_encrypts_with_our_key() {
    let store = Store::s3().await;
    let proxy = StoreProxy::before(&store).await;
    let mut pipeline = Replicated::to(
        &store,
        &json!({
            "endpoint": store.endpoint_at(&proxy.address()),
            "serverSideEncryption": {"algorithm": "sse-c"},
        }),
    );
    // S3 would refuse to read again without the key; the store here would not, since it keeps bytes as they come.
    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const KEY_MD5: &str = "hRasmdxgYDKV3nvbahU1MA==";
    pipeline.site.write("sse.key", format!("{KEY}\n"));
    let path = pipeline.site.path().join("sse.key").display().to_string();
    pipeline.environment.push(("LITEJOIN_SSE_CUSTOMER_KEY_PATH", path));
    comes_back_to(&pipeline).await;
    let calls = proxy.take();
    let of_objects: Vec<_> = calls
        .iter()
        .filter(|call| call.path.trim_matches('/').contains('/') && call.method != "DELETE")
        .collect();
    let without: Vec<_> =
        of_objects.iter().filter(|call| call.customer_key.as_deref() != Some(KEY_MD5)).collect();
    assert!(without.is_empty(), "{without:?}");
    for method in ["GET", "PUT"] {
        for place in ["claim.json", ".db/"] {
            let is_it = |call: &&&Call| call.method == method && call.path.contains(place);
            assert!(of_objects.iter().any(|call| is_it(&call)), "no {method} of {place}");
        }
    }
}

async fn comes_back(kind: StoreKind) {
    let store = Store::start(kind, "127.0.0.1").await;
    comes_back_to(&Replicated::to(&store, &json!({}))).await;
}

async fn comes_back_to(pipeline: &Replicated) {
    let worker = pipeline.start().await;
    let all = names("k", 20);
    put_all(&worker, &all).await;
    let first = ready(&worker).await;
    let lineage = worker.status().await["lineage"].clone();
    // A planned stop ships everything.
    let ended = worker.stop().await;
    assert!(ended.stderr.contains("everything is in the replica"), "{}", ended.stderr);
    pipeline.lose_disk();

    let worker = pipeline.start().await;
    assert_eq!(keys(&worker).await, all);
    let second = ready(&worker).await;
    assert_ne!(first, second, "a restored directory has a prefix of its own");
    assert_ne!(worker.status().await["lineage"], lineage, "ids of the lost directory hold no more");
    worker.stop().await;

    // A worker whose disk survives goes on in its incarnation.
    let worker = pipeline.start().await;
    assert_eq!(ready(&worker).await, second);
    assert_eq!(keys(&worker).await, all);
    worker.stop().await;
}
