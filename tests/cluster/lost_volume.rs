//! A replicated pipeline loses its pod and its volume under load, again and again, and recovers from an S3 store: all
//! messages that were acknowledged as replicated, and all results that consumers hold, come back. A restart on a
//! volume that survives uploads nothing again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use kube::api::Api;
use litejoin_crds::duration::timestamp_text;
use litejoin_tests::consumers::{Subscriber, kept};
use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::kafka;
use litejoin_tests::kubernetes::node::{self, NODE_ADDRESS};
use litejoin_tests::repetition::{chance, seeds};
use litejoin_tests::stores::{ACCESS_KEY, SECRET_KEY, Store, StoreKind, StoreProxy};
use litejoin_tests::wait::{TIMEOUT, pass, until};
use litejoin_tests::worker::try_get;
use rand::RngExt;
use serde_json::{Value, json};

use crate::install::{Cluster, NAMESPACE};
use crate::reshard;

const KAFKA_TOPIC: &str = "numbers";

/// Messages in one request of a client.
const BATCH: usize = 20;
/// A client sends a batch again if no answer comes within this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client waits before it tries again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// The longest load between a recovery and the next loss.
const LOAD_MAX: Duration = Duration::from_secs(6);

// The second thread serves the proxy while kubectl blocks the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_replicated_comes_back_after_the_volume_is_lost() {
    if !node::inside("lost_volume::what_was_replicated_comes_back_after_the_volume_is_lost") {
        return;
    }
    let cluster = Cluster::start().await;
    let store = Store::start(StoreKind::S3, NODE_ADDRESS).await;
    let proxy = StoreProxy::before(&store).await;
    let credentials = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
    let literals = credentials.map(|(name, value)| format!("--from-literal={name}={value}"));
    cluster.kubectl(&["create", "secret", "generic", "store", &literals[0], &literals[1]]);
    let kafka = kafka::KafkaCluster::start_at(NODE_ADDRESS, 1).await;
    kafka.create_topic(KAFKA_TOPIC, 2).await;
    cluster.apply(&manifest(&store, &proxy, &kafka));
    cluster.wait_ready("pipeline/orders").await;
    let site = Site::of(&cluster).await;

    let consumers = Consumers::start(&site, &kafka);
    let load = Load::start(&site);
    // A message that came back after one loss must come back after every later one.
    let mut required = BTreeSet::new();
    let mut since = i64::MIN;
    for seed in seeds(3, 20) {
        let mut chance = chance(seed);
        // Most rounds wait until the replica has new messages; in the others the first copy since the last loss may be
        // incomplete.
        if seed == 1 || chance.random_bool(0.75) {
            until("a message in the replica", async || {
                let now = site.required(&load, since).await;
                (!now.is_subset(&required)).then_some(())
            })
            .await;
        }
        // The loss comes at a random moment.
        pass(LOAD_MAX.mul_f64(chance.random())).await;
        required.extend(site.required(&load, since).await);
        let (lost_at, bytes) = (Instant::now(), site.destroy().await);
        // Results are sent only once they are in the replica, and the rows that they follow from with them.
        let held = consumers.held();
        let count = required.len();
        required.extend(held);
        cluster.wait_ready("pipeline/orders").await;
        let recovered = lost_at.elapsed();
        since = seconds();
        site.has_all(&required, &format!("seed {seed}")).await;
        eprintln!(
            "seed {seed}: {} messages required, {} more held by consumers; {bytes} bytes of data were back after {recovered:?}",
            count,
            required.len() - count
        );
    }
    assert!(!required.is_empty(), "no client was ever told that its message is in the replica");
    load.stop().await;
    consumers.hold_all(&site.results().await.expect("it serves")).await;
    drop(consumers);

    // A rolling restart on a volume that survives.
    site.replicated_up_to_now().await;
    let before = site.results().await.expect("it serves");
    for (key, number) in &before {
        assert_eq!(key.trim_start_matches(['c', 'r']), number.to_string());
    }
    let all: u64 = first_copies(&proxy);
    proxy.take();
    let pod = cluster.pod("orders-0").await;
    let nonce = r#"{"spec": {"restartNonce": "another"}}"#;
    cluster.kubectl(&["patch", "pipeline", "orders", "--type=merge", "-p", nonce]);
    until("another pod", async || (cluster.pod("orders-0").await.uid() != pod.uid()).then_some(())).await;
    cluster.wait_ready("pipeline/orders").await;
    site.replicated_up_to_now().await;
    let again = first_copies(&proxy);
    eprintln!("{again} bytes were uploaded for a restart, {all} before");
    assert!(again * 20 < all, "{:?}", proxy.uploads());
    let after =
        until("results", async || site.results().await.filter(|after| after.len() >= before.len())).await;
    assert_eq!(after, before);
    drill(&cluster);
    scheduled_drill(&cluster).await;
    back_in_time(&cluster, &site, &before).await;
    moved_while_it_serves(&cluster, &site, &before).await;
}

/// Restores beside the data in the running pod, and compares.
fn drill(cluster: &Cluster) {
    let verify = ["litejoin", "restore", "-f", "/etc/litejoin/config/pipeline.yaml", "--verify"];
    let said = cluster.kubectl(&[&["exec", "orders-0", "--container", "worker", "--"][..], &verify].concat());
    assert_eq!(said.matches(": sound, ").count(), 7, "{said}");
    // Results and dead letters may change during the comparison, so only shards must be equal.
    let same =
        |line: &&str| line.starts_with("shard_") && line.ends_with(" rows, all as in the data directory");
    assert_eq!(said.lines().filter(same).count(), 4, "{said}");
}

/// Runs the scheduled drill as a job, now instead of at night. The job has an empty volume and compares nothing.
async fn scheduled_drill(cluster: &Cluster) {
    cluster.kubectl(&["create", "job", "drill", "--from=cronjob/orders"]);
    let timeout = format!("--timeout={}s", TIMEOUT.as_secs());
    cluster.kubectl(&["wait", "job/drill", "--for=condition=complete", &timeout]);
    let said = cluster.kubectl(&["logs", "job/drill"]);
    assert_eq!(
        said.lines().filter(|line| line.contains(": sound, ") && line.ends_with(" rows")).count(),
        7,
        "{said}"
    );
    // The pod of the job has no labels of a worker.
    let selector = "--selector=app.kubernetes.io/name=litejoin,litejoin.io/pipeline=orders";
    assert_eq!(cluster.kubectl(&["get", "pods", selector, "-o", "name"]).trim(), "pod/orders-0");
    let of = |object: &str, path: &str| {
        cluster.kubectl(&["get", object, "orders", "-o", &format!("jsonpath={{{path}}}")]).trim().to_owned()
    };
    until("the status to tell of it", async || {
        let drilled = of("pipeline", ".status.replication.lastDrillTime");
        (!drilled.is_empty() && drilled == of("cronjob", ".status.lastSuccessfulTime")).then_some(())
    })
    .await;
}

/// Sets a restore time in the manifest; the pipeline goes back to it.
async fn back_in_time(cluster: &Cluster, site: &Site<'_>, before: &BTreeMap<String, i64>) {
    let last_cut = async || site.replication().await?["lastCut"].as_i64();
    let known = last_cut().await;
    let cut = until("another cut", async || last_cut().await.filter(|cut| Some(*cut) != known)).await;
    Ingest::new(site.address(8081)).send(&[order("later", 0)]).await;
    let keys: BTreeSet<String> = ["later0".to_owned()].into();
    site.has_all(&keys, "a message that is to be gone").await;

    let time = timestamp_text(cut);
    let pod = cluster.pod("orders-0").await;
    let patch = json!({"spec": {"replication": {"restore": {"timestamp": time}}}}).to_string();
    cluster.kubectl(&["patch", "pipeline", "orders", "--type=merge", "-p", &patch]);
    until("another pod", async || (cluster.pod("orders-0").await.uid() != pod.uid()).then_some(())).await;
    cluster.wait_ready("pipeline/orders").await;
    let after =
        until("results", async || site.results().await.filter(|after| after.len() >= before.len())).await;
    assert_eq!(after, *before);
    until("the status to say so", async || {
        let path = "jsonpath={.status.replication.restoredTimestamp}";
        (cluster.kubectl(&["get", "pipeline", "orders", "-o", path]).trim() == time).then_some(())
    })
    .await;
}

/// The data goes to another number of shards in the pod that serves it, beside a Litestream that is not the worker's. The
/// worker replicates it from there on, and the next pod has its Litestream again.
async fn moved_while_it_serves(cluster: &Cluster, site: &Site<'_>, before: &BTreeMap<String, i64>) {
    let pod = cluster.pod("orders-0").await;
    let consent = json!({ "fromShardCount": 4, "toShardCount": 6, "strategy": "Online" });
    let patch = json!({ "spec": { "storage": { "shardCount": 6, "reshard": consent } } }).to_string();
    cluster.kubectl(&["patch", "pipeline", "orders", "--type=merge", "-p", &patch]);
    reshard::done(cluster, "orders", 6).await;
    cluster.wait_ready("pipeline/orders").await;
    assert_eq!(cluster.pod("orders-0").await.uid(), pod.uid(), "the pod stays");
    let results = async |what: &str| {
        let after =
            until(what, async || site.results().await.filter(|after| after.len() >= before.len())).await;
        assert_eq!(after, *before, "{what}");
    };
    results("results of moved data").await;
    site.replicated_up_to_now().await;
    let has = async |name: &str| site.volume().await.join(name).exists();
    assert!(has("litestream-taken-over.yml").await && has("shard_5.db").await);
    site.destroy().await;
    cluster.wait_ready("pipeline/orders").await;
    results("results after the volume of moved data was lost").await;
    assert!(!has("litestream-taken-over.yml").await && has("shard_5.db").await);
    site.replicated_up_to_now().await;
}

/// Returns the bytes of Litestream's first uploads, without later compactions.
fn first_copies(proxy: &StoreProxy) -> u64 {
    let uploads = proxy.uploads();
    let first = uploads.iter().filter(|call| call.path.contains("/0000/"));
    first.map(|call| call.bytes as u64).sum()
}

fn manifest(store: &Store, proxy: &StoreProxy, kafka: &kafka::KafkaCluster) -> String {
    let mut replication = store.settings("replicas");
    replication["endpoint"] = store.endpoint_at(&proxy.address()).into();
    replication["credentialsSecretRef"] = json!({ "name": "store" });
    replication["drill"] = json!({ "schedule": "0 4 * * *" });
    json!({
        "apiVersion": "litejoin.io/v1alpha1",
        "kind": "Pipeline",
        "metadata": { "name": "orders" },
        "spec": {
            "storage": { "shardCount": 4, "size": "1Gi" },
            "replication": replication,
            "delivery": { "after": "replicated" },
            "sources": [
                { "name": "ingest", "http": { "addr": ":8080", "topics": ["orders"] } },
                { "name": "safe", "ack": "replicated", "http": { "addr": ":8081", "topics": ["orders"] } },
            ],
            "joins": [{
                "name": "numbers",
                "query": "SELECT key AS id, payload->>'n' AS n FROM orders",
                "keyColumn": "id",
                "sinks": ["live", "out"],
            }],
            "sinks": [
                { "name": "live", "sse": { "addr": ":9100" } },
                { "name": "out", "kafka": { "brokers": kafka.brokers(), "topic": KAFKA_TOPIC } },
            ],
        },
    })
    .to_string()
}

/// The addresses of the pipeline for its clients.
struct Site<'a> {
    cluster: &'a Cluster,
    /// The address of the Service.
    ip: String,
}

/// An acknowledged batch of messages.
#[derive(Debug, Clone)]
struct Taken {
    keys: Vec<String>,
    /// Seconds since the epoch; clients and worker share one clock.
    at: i64,
    /// Whether the source acknowledges only replicated messages.
    is_replicated: bool,
}

/// Clients that send until [`Load::stop`].
struct Load {
    taken: Arc<Mutex<Vec<Taken>>>,
    stopping: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl<'a> Site<'a> {
    async fn of(cluster: &'a Cluster) -> Self {
        Self { cluster, ip: cluster.service().await }
    }

    fn address(&self, port: u16) -> SocketAddr {
        format!("{}:{port}", self.ip).parse().expect("an address")
    }

    /// Returns the worker's status of its replica, or `None` if no worker answers.
    async fn replication(&self) -> Option<Value> {
        let pod = self.cluster.pod("orders-0").await;
        let ip = pod.status?.pod_ip?;
        let answer = answer_of(&format!("http://{ip}:9090/status")).await?;
        let status: Value = serde_json::from_str(&answer.1).ok()?;
        status.get("replication").cloned()
    }

    /// Returns the keys that must come back after a loss now: messages acknowledged since the last recovery and in the
    /// replica, and all messages that were acknowledged as replicated.
    async fn required(&self, load: &Load, since: i64) -> BTreeSet<String> {
        let taken = load.taken();
        let replica = self.replication().await.unwrap_or_default();
        // Until the first copy is complete, a restore uses the previous replica.
        let until =
            replica["completeUntil"].as_i64().filter(|_| replica["ready"] == true).unwrap_or(i64::MIN);
        let counts = |taken: &&Taken| taken.is_replicated || (taken.at < until && taken.at > since);
        taken.iter().filter(counts).flat_map(|taken| taken.keys.clone()).collect()
    }

    /// Waits until a complete replica has all messages committed before the call.
    async fn replicated_up_to_now(&self) {
        let now = seconds();
        until("the replica to have everything", async || {
            let replica = self.replication().await?;
            (replica["ready"] == true && replica["completeUntil"].as_i64()? > now).then_some(())
        })
        .await;
    }

    /// The folder of the volume, as the node has it.
    async fn volume(&self) -> PathBuf {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.cluster.node.client.clone(), NAMESPACE);
        let claim = claims.get("data-orders-0").await.expect("the claim is there");
        let volume = claim.spec.and_then(|spec| spec.volume_name).expect("it has a volume");
        self.cluster.node.folder().join("volumes").join(volume)
    }

    /// Kills all processes in the pod at once and removes its volume; returns the volume's size in bytes.
    async fn destroy(&self) -> u64 {
        let folder = self.volume().await;
        let bytes = bytes(&folder);
        let before = self.cluster.pod("orders-0").await.uid();
        // The test's PID namespace contains these processes.
        let _ = Command::new("pkill").args(["-KILL", "-x", "litejoin|litestream"]).status();
        fs::remove_dir_all(&folder).expect("the folder is ours");
        self.cluster.kubectl(&["delete", "pvc", "data-orders-0", "--wait=false"]);
        self.cluster.kubectl(&["delete", "pod", "orders-0", "--force", "--grace-period=0"]);
        until("another pod", async || (self.cluster.pod("orders-0").await.uid() != before).then_some(()))
            .await;
        bytes
    }

    /// Returns all results by their keys.
    async fn results(&self) -> Option<BTreeMap<String, i64>> {
        let url = format!("http://{}/snapshot?join=numbers", self.address(9100));
        let answer = answer_of(&url).await?;
        let snapshot: Value = serde_json::from_str(&answer.1).ok()?;
        let results = snapshot["results"].as_array()?.iter();
        results
            .map(|result| Some((result["key"].as_str()?.to_owned(), result["rows"][0]["n"].as_i64()?)))
            .collect()
    }

    /// Waits until there is a result for each of these keys.
    async fn has_all(&self, required: &BTreeSet<String>, when: &str) {
        let mut missing = Vec::new();
        let complete = async || {
            let results = self.results().await?;
            missing = required.iter().filter(|key| !results.contains_key(*key)).cloned().collect();
            missing.is_empty().then_some(())
        };
        let found = tokio::time::timeout(TIMEOUT / 2, until("all results", complete)).await;
        assert!(found.is_ok(), "{when}: {} of {} are missing: {missing:?}", missing.len(), required.len());
    }
}

/// A subscriber and a reader of the Kafka topic.
struct Consumers {
    subscriber: Arc<Subscriber>,
    following: tokio::task::JoinHandle<()>,
    reader: kafka::TopicReader,
}

impl Consumers {
    fn start(site: &Site<'_>, kafka: &kafka::KafkaCluster) -> Self {
        let (subscriber, address) = (Arc::<Subscriber>::default(), site.address(9100));
        let following = tokio::spawn({
            let subscriber = Arc::clone(&subscriber);
            async move {
                loop {
                    let _ = subscriber.follow(address, "numbers").await;
                    // No worker answers, or its pod is gone.
                    pass(RETRY_INTERVAL).await;
                }
            }
        });
        Self { subscriber, following, reader: kafka.follow(KAFKA_TOPIC) }
    }

    /// Returns the keys of results that the subscriber or the reader holds.
    fn held(&self) -> BTreeSet<String> {
        &self.subscriber.held() | &kept(self.reader.records())
    }

    /// Waits until the subscriber and the reader hold all of these results.
    async fn hold_all(&self, results: &BTreeMap<String, i64>) {
        let has_all = |held: &BTreeSet<String>| results.keys().all(|key| held.contains(key));
        until("the subscriber to hold all", async || has_all(&self.subscriber.held()).then_some(())).await;
        until("the Kafka topic to hold all", async || has_all(&kept(self.reader.records())).then_some(()))
            .await;
    }
}

impl Drop for Consumers {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Load {
    fn start(site: &Site<'_>) -> Self {
        let taken = Arc::<Mutex<Vec<Taken>>>::default();
        let stopping = Arc::<AtomicBool>::default();
        let clients = [("c", 8080, false), ("r", 8081, true)].map(|(prefix, port, is_replicated)| {
            let (ingest, taken, stopping) =
                (Ingest::new(site.address(port)), Arc::clone(&taken), Arc::clone(&stopping));
            tokio::spawn(async move {
                let mut next = 0;
                while !stopping.load(Ordering::Relaxed) {
                    let numbers = next..next + BATCH;
                    let batch: Vec<Value> = numbers.clone().map(|n| order(prefix, n)).collect();
                    let answer = tokio::time::timeout(ANSWER_TIMEOUT, ingest.try_send(&batch)).await;
                    if !matches!(answer, Ok(Ok(answer)) if answer.status == 200) {
                        // No worker answers, or it refuses the batch.
                        pass(RETRY_INTERVAL).await;
                        continue;
                    }
                    let keys = numbers.map(|n| format!("{prefix}{n}")).collect();
                    let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
                    taken.push(Taken { keys, at: seconds(), is_replicated });
                    next += BATCH;
                }
            })
        });
        Self { taken, stopping, clients: clients.into() }
    }

    /// Returns the batches that were acknowledged so far.
    fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the clients.
    async fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("a client ends well");
        }
    }
}

/// Returns status and body of a URL; `None` while the Service has no pod.
async fn answer_of(url: &str) -> Option<(u16, String)> {
    tokio::time::timeout(ANSWER_TIMEOUT, try_get(url)).await.ok()?.ok()
}

/// Returns a message of about 400 bytes.
fn order(prefix: &str, number: usize) -> Value {
    message("orders", &format!("{prefix}{number}"), json!({ "n": number, "note": "x".repeat(400) }))
}

fn bytes(folder: &std::path::Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(|metadata| metadata.is_file())
        .map(|m| m.len())
        .sum()
}

#[expect(
    clippy::disallowed_methods,
    reason = "what the worker says is compared with the clock of its machine"
)]
fn seconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
    i64::try_from(now.as_secs()).expect("it is not that late")
}
