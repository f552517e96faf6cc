//! A disk that is full, and then is not: a small tmpfs in a mount namespace of the worker's own. Nothing that was
//! acknowledged is lost, senders are told 507 or 503 meanwhile, and all goes on by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use litejoin_tests::ingest::message;
use litejoin_tests::oracle::Oracle;
use litejoin_tests::results::Results;
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Site, Worker, get, program};
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

/// Starts the worker with a tmpfs as its data directory, and returns where the test finds that.
async fn start_on_small_disk(site: &Site) -> (Worker, PathBuf) {
    std::fs::create_dir(site.data_dir()).expect("a folder can be made");
    let run = format!(
        "mount -t tmpfs -o size={DISK} tmpfs data && \
         exec \"$0\" run -f pipeline.yaml --data-dir data --log-format json"
    );
    let mut command = Command::new("unshare");
    // As root in a namespace of users where the test is not run by root.
    command.args(["--mount", "--map-root-user", "sh", "-c", &run]).arg(program());
    let worker = site.launch(command).start().await;
    let root = Path::new("/proc").join(worker.pid().to_string()).join("root");
    let data_dir = site.data_dir();
    let inside = root.join(data_dir.strip_prefix("/").expect("an absolute path"));
    (worker, inside)
}

/// What was acknowledged last for each key, and what was refused after it.
#[derive(Default)]
struct Sent {
    acknowledged: BTreeMap<String, Value>,
    refused: BTreeMap<String, Vec<Value>>,
}

impl Sent {
    /// Sends one batch of large orders, and returns the status of the answer.
    async fn send(&mut self, worker: &Worker, keys: std::ops::Range<u64>, n: u64) -> u16 {
        let key = |key: u64| format!("o{key}");
        let payload = json!({"n": n, "text": "x".repeat(4_000)});
        let messages: Vec<Value> =
            keys.clone().map(|number| message("orders", &key(number), payload.clone())).collect();
        let answer = worker.ingest().try_send(&messages).await.expect("an answer");
        let refused: Vec<u64> = match &answer.body["refused"] {
            Value::Array(refused) => {
                refused.iter().map(|one| one["item"].as_u64().expect("an item")).collect()
            }
            _ => Vec::new(),
        };
        assert_eq!(answer.body["accepted"], messages.len() - refused.len(), "{}", answer.body);
        assert_eq!(answer.status == 200, refused.is_empty(), "{} {}", answer.status, answer.body);
        for (item, number) in keys.enumerate() {
            if refused.contains(&(item as u64)) {
                self.refused.entry(key(number)).or_default().push(json!(n));
            } else {
                self.acknowledged.insert(key(number), json!(n));
            }
        }
        answer.status
    }

    /// The worker has every key as it was acknowledged last, and nothing of what was refused.
    fn assert_stored(&self, oracle: &Oracle) {
        for (key, n) in &self.acknowledged {
            let stored =
                oracle.value(&format!("SELECT (SELECT payload->>'n' FROM orders WHERE key = '{key}') AS n"));
            assert_eq!(stored, *n, "{key}; refused were {:?}", self.refused.get(key));
        }
        let count = oracle.value("SELECT count(*) AS n FROM orders");
        assert_eq!(count, self.acknowledged.len(), "nothing that was refused is there");
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_work_goes_on_when_there_is_space_again() {
    let site = Site::with(MANIFEST);
    let (worker, data_dir) = start_on_small_disk(&site).await;
    let mut client = Subscription::open(worker.address("sink live"), "join=*&replay=true", None).await;
    client.replayed().await;
    let filler = data_dir.join("filler");
    let mut sent = Sent::default();
    assert_eq!(sent.send(&worker, 0..50, 0).await, 200);

    for round in 1..=3 {
        // Somebody else takes what is left, to the last byte.
        fill(&filler);
        let mut n = round * 1_000;
        let status = until("the disk to be full for ingest", async || {
            n += 1;
            Some(sent.send(&worker, 0..50, n).await).filter(|status| *status != 200)
        })
        .await;
        assert!([503, 507].contains(&status), "{status}");
        let status = worker.status().await;
        assert!(status["storageError"].as_str().is_some_and(|error| error.contains("full")), "{status}");
        assert_eq!(
            get(&worker.url("admin", "/healthz")).await.0,
            200,
            "a full disk is no reason to be restarted"
        );
        sent.assert_stored(&oracle(&data_dir));

        std::fs::remove_file(&filler).expect("the filler can be removed");
        until("ingest to go on", async || {
            n += 1;
            (sent.send(&worker, 0..50, n).await == 200).then_some(())
        })
        .await;
        let epoch = worker.ingest().put("orders", "last", json!({"n": n})).await;
        sent.acknowledged.insert("last".to_owned(), json!(n));
        let (_, results) = worker.snapshot("live", "sizes", epoch).await;
        let oracle = oracle(&data_dir);
        sent.assert_stored(&oracle);
        results.assert_same(&oracle.results("sizes", QUERY, None), "results after the disk was full");
        assert_eq!(worker.status().await["storageError"], Value::Null, "all is well again");
    }

    let expected = oracle(&data_dir).results("sizes", QUERY, None);
    worker.stop().await;
    let events: Vec<_> = client.rest().await.iter().map(litejoin_tests::sse::SseEvent::result).collect();
    Results::folded(&events).assert_same(&expected, "what the subscriber was told");
}

#[tokio::test]
async fn a_disk_that_is_full_from_the_start_is_named() {
    let site = Site::with(MANIFEST);
    std::fs::create_dir(site.data_dir()).expect("a folder can be made");
    let run = "mount -t tmpfs -o size=64k tmpfs data && \
               exec \"$0\" run -f pipeline.yaml --data-dir data --log-format json";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", run]).arg(program());
    let ended = site.launch(command).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    expect_test::expect![[r#"
        error: data/shard_0.db: could not read the shard: database or disk is full: Error code 13: database or disk is full
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
