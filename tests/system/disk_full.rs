//! A disk that is full, and then is not: a small tmpfs in a mount namespace of the worker's own. No acknowledged
//! message is lost, senders get 507 or 503 meanwhile, and work goes on by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use futures::future::join_all;
use litejoin_tests::ingest::message;
use litejoin_tests::oracle::Oracle;
use litejoin_tests::repetition::seeds;
use litejoin_tests::results::Results;
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite, get, program};
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
    - name: sizes
      query: SELECT key, length(payload) AS size, payload->>'n' AS n FROM orders
      sinks: [live]
  sinks:
    - name: live
      sse: {addr: "127.0.0.1:0"}
"#;

const QUERY: &str = "SELECT key, length(payload) AS size, payload->>'n' AS n FROM orders";

/// Size of the disk. The worker's empty files take about a megabyte of it.
const DISK: &str = "24m";

/// Starts the worker with a tmpfs as its data directory, and returns the path by which the test reaches that.
async fn start_on_small_disk(site: &WorkerSite) -> (Worker, PathBuf) {
    std::fs::create_dir(site.data_dir()).expect("a folder can be made");
    let run = format!(
        "mount -t tmpfs -o size={DISK} tmpfs data && \
         exec \"$0\" run -f pipeline.yaml --data-dir data --log-format json"
    );
    let mut command = Command::new("unshare");
    // A test that is not run by root is root in a user namespace.
    command.args(["--mount", "--map-root-user", "sh", "-c", &run]).arg(program());
    let worker = site.launch(command).start().await;
    let root = Path::new("/proc").join(worker.pid().to_string()).join("root");
    let data_dir = site.data_dir();
    let inside = root.join(data_dir.strip_prefix("/").expect("an absolute path"));
    (worker, inside)
}

/// One sender: the last acknowledged value of each of its keys, and the refused ones.
struct Sender {
    keys: Vec<String>,
    n: u64,
    acknowledged: BTreeMap<String, u64>,
    refused: BTreeMap<String, Vec<u64>>,
}

impl Sender {
    fn new(number: usize) -> Self {
        let keys = (0..40).map(|key| format!("s{number}_{key}")).collect();
        Self { keys, n: 0, acknowledged: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// Sends one batch of large orders, and returns the status of the answer.
    async fn send(&mut self, worker: &Worker) -> u16 {
        self.n += 1;
        let payload = json!({"n": self.n, "text": "x".repeat(4_000)});
        let messages: Vec<Value> =
            self.keys.iter().map(|key| message("orders", key, payload.clone())).collect();
        let answer = worker.ingest().try_send(&messages).await.expect("an answer");
        let refused: Vec<u64> = match &answer.body["refused"] {
            Value::Array(refused) => {
                refused.iter().map(|one| one["item"].as_u64().expect("an item")).collect()
            }
            _ => Vec::new(),
        };
        assert_eq!(answer.body["accepted"], messages.len() - refused.len(), "{}", answer.body);
        assert_eq!(answer.status == 200, refused.is_empty(), "{} {}", answer.status, answer.body);
        assert!([200, 503, 507].contains(&answer.status), "{} {}", answer.status, answer.body);
        for (item, key) in self.keys.iter().enumerate() {
            if refused.contains(&(item as u64)) {
                self.refused.entry(key.clone()).or_default().push(self.n);
            } else {
                self.acknowledged.insert(key.clone(), self.n);
            }
        }
        answer.status
    }

    /// Sends until a batch is taken, or until one is refused.
    async fn send_until(&mut self, worker: &Worker, is_taken: bool) {
        let what = if is_taken { "ingest to go on" } else { "the disk to be full for ingest" };
        until(what, async || ((self.send(worker).await == 200) == is_taken).then_some(())).await;
    }
}

/// Asserts that the worker has the last acknowledged value of every key, and no refused one.
fn assert_stored(senders: &[Sender], oracle: &Oracle) {
    for sender in senders {
        for (key, n) in &sender.acknowledged {
            let sql = format!("SELECT (SELECT payload->>'n' FROM orders WHERE key = '{key}') AS n");
            assert_eq!(oracle.value(&sql), *n, "{key}; refused were {:?}", sender.refused.get(key));
        }
    }
    let count: usize = senders.iter().map(|sender| sender.acknowledged.len()).sum();
    assert_eq!(oracle.value("SELECT count(*) AS n FROM orders"), count, "nothing that was refused is there");
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_work_goes_on_when_there_is_space_again() {
    for _again in seeds(1, 20) {
        fill_and_free(10).await;
    }
}

async fn fill_and_free(rounds: usize) {
    let site = WorkerSite::with(MANIFEST);
    let (worker, data_dir) = start_on_small_disk(&site).await;
    let mut client = Subscription::open(worker.address("sink live"), "join=*&replay=true", None).await;
    client.replayed().await;
    let filler = data_dir.join("filler");
    let mut senders: Vec<Sender> = (0..3).map(Sender::new).collect();

    for _round in 0..rounds {
        // All clients send while another program fills the disk to the last byte.
        let full = senders.iter_mut().map(|sender| sender.send_until(&worker, false));
        let path = filler.clone();
        let (_, filled) = tokio::join!(join_all(full), tokio::task::spawn_blocking(move || fill(&path)));
        filled.expect("the disk can be filled");
        let status = worker.status().await;
        assert!(status["storageError"].as_str().is_some_and(|error| error.contains("full")), "{status}");
        let healthy = get(&worker.url("admin", "/healthz")).await.0;
        assert_eq!(healthy, 200, "a full disk is no reason to be restarted");
        assert_stored(&senders, &oracle(&data_dir));

        std::fs::remove_file(&filler).expect("the filler can be removed");
        join_all(senders.iter_mut().map(|sender| sender.send_until(&worker, true))).await;
        let last = message("orders", &senders[0].keys[0], Value::Null);
        let epoch = worker.ingest().send(&[last]).await;
        let first = senders[0].keys[0].clone();
        senders[0].acknowledged.remove(&first);
        let (_, results) = worker.snapshot("live", "sizes", epoch).await;
        let oracle = oracle(&data_dir);
        assert_stored(&senders, &oracle);
        results.assert_same(&oracle.results("sizes", QUERY, None), "results after the disk was full");
        assert_eq!(worker.status().await["storageError"], Value::Null, "all is well again");
    }

    let expected = oracle(&data_dir).results("sizes", QUERY, None);
    worker.stop().await;
    let events: Vec<_> = client.rest().await.iter().map(litejoin_tests::sse::SseEvent::result).collect();
    Results::folded(&events).assert_same(&expected, "the events of the subscriber");
}

#[tokio::test]
async fn a_disk_that_is_full_from_the_start_is_named() {
    let site = WorkerSite::with(MANIFEST);
    std::fs::create_dir(site.data_dir()).expect("a folder can be made");
    let run = "mount -t tmpfs -o size=64k tmpfs data && \
               exec \"$0\" run -f pipeline.yaml --data-dir data --log-format json";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", run]).arg(program());
    let ended = site.launch(command).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    expect_test::expect![[r#"
        error: data/shard_0.db: the disk is full; free some space, or point storage.dataDir (or --data-dir) elsewhere
    "#]].assert_eq(&ended.stderr);
}

/// Reads the topics of a worker that is not being written to. SQLite would resolve the link into the namespace and
/// look outside of it, so it is given copies.
fn oracle(data_dir: &Path) -> Oracle {
    let copies = tempfile::tempdir().expect("a folder can be made");
    for shard in ["shard_0.db", "shard_1.db"] {
        for name in [shard.to_owned(), format!("{shard}-wal")] {
            std::fs::copy(data_dir.join(&name), copies.path().join(&name)).expect("a file can be copied");
        }
    }
    Oracle::read(copies.path(), ["orders"])
}

/// Writes zeros until no byte is free.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("a file can be made");
    for size in [1 << 20, 4 << 10] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}
