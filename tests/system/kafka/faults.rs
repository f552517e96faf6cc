//! SIGKILL under load, of the worker and of brokers. Afterwards every record's effect is in the topics, none was
//! overwritten by an older one, and the records of the sink are complete and in the order of each key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use litejoin_tests::ingest::message;
use litejoin_tests::kafka::{KafkaCluster, Producer, Record};
use litejoin_tests::oracle::Oracle;
use litejoin_tests::repetition::{chance, seeds};
use litejoin_tests::results::{Event, Results};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use rand::RngExt;
use serde_json::{Value, json};

use super::{caught_up, last_values, manifest};

const PARTITIONS: i32 = 3;
const KEYS: u64 = 40;

const QUERY: &str = "SELECT o.key AS id, o.payload->>'n' AS n, c.payload->>'n' AS customer FROM orders o LEFT JOIN \
                     customers c ON c.key = o.payload->>'customer'";

fn pipeline(brokers: &str, transactional: bool) -> String {
    manifest(
        &format!(
            r#"    - {{name: events, kafka: {{brokers: "{brokers}", topics: [orders, customers]}}}}
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [orders]}}}}"#
        ),
        &format!("    - {{name: enriched, query: \"{QUERY}\", sinks: [out, live]}}"),
        &format!(
            r#"    - {{name: out, kafka: {{brokers: "{brokers}", topic: enriched, transactional: {transactional}}}}}
    - {{name: live, sse: {{addr: "127.0.0.1:0"}}}}"#
        ),
    )
}

/// The records that were written: the last value by topic and key, and where each partition ends.
#[derive(Default)]
struct WrittenRecords {
    values: BTreeMap<(&'static str, String), Value>,
    ends: BTreeMap<String, u64>,
}

/// Writes records one after the other until `stopping` is set, but none of the keys that HTTP owns by now.
struct RecordWriter {
    seed: u64,
    producer: Producer,
    written: Arc<Mutex<WrittenRecords>>,
    sent: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    /// Keys below this number belong to HTTP.
    taken: Arc<AtomicU64>,
}

impl RecordWriter {
    async fn run(self) {
        let mut chance = chance(self.seed);
        let mut n = 0_u64;
        while !self.stopping.load(Ordering::Relaxed) {
            n += 1;
            let topic = if chance.random_ratio(1, 4) { "customers" } else { "orders" };
            let number = chance.random_range(0..KEYS);
            if topic == "orders" && number < self.taken.load(Ordering::Relaxed) {
                continue;
            }
            let value = if chance.random_ratio(1, 6) {
                Value::Null
            } else {
                json!({"n": n, "customer": format!("k{}", chance.random_range(0..KEYS))})
            };
            let text = (!value.is_null()).then(|| value.to_string());
            let key = format!("k{number}");
            let (partition, offset) = self.producer.send(topic, &key, text.as_deref()).await;
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.values.insert((topic, key), value);
            let end = u64::try_from(offset).expect("not negative") + 1;
            let known = written.ends.entry(format!("{topic}/{partition}")).or_default();
            *known = (*known).max(end);
            self.sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Lets HTTP write a key as soon as the last record of the key is stored, while shards may not know yet how far others
/// are.
async fn take_over(run: &KafkaFaultRun, cluster: &KafkaCluster, worker: &Worker, number: u64) {
    let key = format!("k{number}");
    let (partition, offset) = cluster.producer().send("orders", &key, Some(r#"{"n":"last"}"#)).await;
    let sql = format!("SELECT (SELECT payload->>'n' FROM orders WHERE key = '{key}') AS n");
    until("the last record of a key", async || {
        (Oracle::read(&run.site.data_dir(), ["orders"]).value(&sql) == "last").then_some(())
    })
    .await;
    let value = json!({"n": -1, "customer": "k1"});
    worker.ingest().send(&[message("orders", &key, value.clone())]).await;
    let mut written = run.written.lock().unwrap_or_else(PoisonError::into_inner);
    let end = written.ends.entry(format!("orders/{partition}")).or_default();
    *end = (*end).max(u64::try_from(offset).expect("not negative") + 1);
    written.values.insert(("orders", key), value);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_neither_loses_a_record_nor_goes_back_to_an_older_one() {
    let cluster = KafkaCluster::start(1).await;
    for seed in seeds(3, 20) {
        eprintln!("seed {seed}");
        let run = KafkaFaultRun::begin(&cluster, seed).await;
        let mut chance = chance(seed);
        for kill in 0..3 {
            let worker = run.site.start().await;
            let goal = run.sent.load(Ordering::Relaxed) + chance.random_range(50..=300);
            until("records to be sent", async || (run.sent.load(Ordering::Relaxed) >= goal).then_some(()))
                .await;
            run.taken.store(kill + 1, Ordering::Relaxed);
            // A record of the key may still be on its way.
            let goal = run.sent.load(Ordering::Relaxed) + 2;
            until("the last record of the key", async || {
                (run.sent.load(Ordering::Relaxed) >= goal).then_some(())
            })
            .await;
            take_over(&run, &cluster, &worker, kill).await;
            worker.kill().await;
        }
        run.end(&cluster, &format!("seed {seed}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_of_three_is_not_noticed_in_the_results() {
    let mut cluster = KafkaCluster::start(3).await;
    for seed in seeds(1, 7) {
        eprintln!("seed {seed}");
        let run = KafkaFaultRun::begin(&cluster, seed).await;
        let worker = run.site.start().await;
        // Each broker is killed once: leaders of partitions, coordinators of groups and transactions, the controller.
        for broker in 0..3 {
            let goal = run.sent.load(Ordering::Relaxed) + 50;
            until("records to be sent", async || (run.sent.load(Ordering::Relaxed) >= goal).then_some(()))
                .await;
            cluster.kill(broker);
            let goal = run.sent.load(Ordering::Relaxed) + 50;
            until("records to be sent without the broker", async || {
                (run.sent.load(Ordering::Relaxed) >= goal).then_some(())
            })
            .await;
            cluster.restart(broker).await;
        }
        worker.stop().await;
        run.end(&cluster, &format!("seed {seed}")).await;
    }
}

/// A pipeline with its load.
struct KafkaFaultRun {
    site: WorkerSite,
    transactional: bool,
    written: Arc<Mutex<WrittenRecords>>,
    sent: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    taken: Arc<AtomicU64>,
    load: tokio::task::JoinHandle<()>,
}

impl KafkaFaultRun {
    async fn begin(cluster: &KafkaCluster, seed: u64) -> Self {
        for topic in ["orders", "customers", "enriched"] {
            cluster.create_topic(topic, PARTITIONS).await;
        }
        let transactional = seed % 2 == 1;
        let site = WorkerSite::with(&pipeline(&cluster.brokers(), transactional));
        let (written, sent) = <(Arc<Mutex<WrittenRecords>>, Arc<AtomicU64>)>::default();
        let (stopping, taken) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let load = RecordWriter {
            seed,
            producer: cluster.producer(),
            written: Arc::clone(&written),
            sent: Arc::clone(&sent),
            stopping: Arc::clone(&stopping),
            taken: Arc::clone(&taken),
        };
        let load = tokio::spawn(load.run());
        Self { site, transactional, written, sent, stopping, taken, load }
    }

    /// Stops the load, lets a worker come to the end of it, and looks at everything.
    async fn end(self, cluster: &KafkaCluster, what: &str) {
        self.stopping.store(true, Ordering::Relaxed);
        self.load.await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let worker = self.site.start().await;
        let (ends, values) = {
            let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            (written.ends.clone(), written.values.clone())
        };
        caught_up(&worker, &ends).await;
        let epoch = worker.ingest().put("orders", "end", json!({"n": 0})).await;
        let (_, snapshot) = worker.snapshot("live", "enriched", epoch).await;
        let oracle = Oracle::read(&self.site.data_dir(), ["orders", "customers"]);
        for ((topic, key), value) in &values {
            let sql = format!("SELECT (SELECT payload FROM {topic} WHERE key = '{key}') AS payload");
            let stored = oracle.value(&sql);
            let stored =
                stored.as_str().map_or(Value::Null, |text| serde_json::from_str(text).expect("JSON"));
            assert_eq!(&stored, value, "{what}: {topic} {key}");
        }
        let expected = oracle.results("enriched", QUERY, None);
        snapshot.assert_same(&expected, &format!("{what}: the snapshot"));
        let in_kafka = async || {
            let last = last_values(&cluster.read("enriched").await).into_values().flatten();
            Results::folded(&last.map(|value| Event::read(&value.to_string())).collect::<Vec<_>>())
        };
        until(&format!("{what}: all results in Kafka"), async || {
            expected.changes(&in_kafka().await).is_empty().then_some(())
        })
        .await;
        worker.stop().await;
        in_kafka().await.assert_same(&expected, &format!("{what}: what Kafka has"));
        assert_ordered(&cluster.read("enriched").await, self.transactional, what);
        for topic in ["orders", "customers", "enriched"] {
            cluster.delete_topic(topic).await;
        }
    }
}

/// Results of each key come in their order. In transactions each comes once; without them some may come again after a
/// crash, in their order too, and a new one is newer than all before it.
fn assert_ordered(records: &[Record], transactional: bool, what: &str) {
    let mut seen: BTreeMap<&str, BTreeSet<(u64, u64)>> = BTreeMap::new();
    for record in records {
        let id = &record.headers["id"];
        let mut parts = id.split('.').skip(1).map(|part| part.parse::<u64>().expect("a number"));
        let position = (parts.next().expect("an epoch"), parts.next().expect("a number"));
        let of_key = seen.entry(record.key.as_deref().expect("a key")).or_default();
        let is_newest = of_key.last().is_none_or(|last| *last < position);
        assert!(
            is_newest || (!transactional && of_key.contains(&position)),
            "{what}: {id} after {:?}",
            of_key.last()
        );
        of_key.insert(position);
    }
    assert!(!seen.is_empty(), "{what}: something was written");
}
