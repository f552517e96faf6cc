//! Messages keep coming by Kafka and HTTP while the data goes to other numbers of shards, by workers that stop, workers that
//! are killed, and a worker that serves meanwhile.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use litejoin_tests::client::client;
use litejoin_tests::kafka::{self, Producer};
use litejoin_tests::oracle::Oracle;
use litejoin_tests::repetition::is_long;
use litejoin_tests::results::{EventId, ResultKey, Results};
use litejoin_tests::sse::{SseEvent, Subscription};
use litejoin_tests::wait::{until, until_moment, until_within};
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::{Value, json};

use super::online::moved;
use crate::kafka::unique;

const QUERY: &str = "SELECT r.key AS id, r.payload->>'n' AS n, o.payload->>'n' AS o
                     FROM readings r LEFT JOIN orders o ON o.key = r.payload->>'order'";

/// Numbers of shards, one after the other.
const SHARD_COUNTS: [usize; 4] = [8, 16, 3, 8];

/// Keys that get new values while the data is moved.
const BUSY: usize = 2_000;

/// How long all of the rows may take to be there.
const LOADED: Duration = Duration::from_secs(600);

fn manifest(brokers: &str, topic: &str, storage: &str) -> String {
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{{storage}}}
  admin: {{addr: "127.0.0.1:0"}}
  delivery: {{replayWindow: 1h}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [orders]}}}}
    - {{name: events, topic: readings, kafka: {{brokers: "{brokers}", topics: ["{topic}"]}}}}
  joins:
    - name: read
      query: |
        {QUERY}
      sinks: [live]
  sinks:
    - {{name: live, sse: {{addr: "127.0.0.1:0"}}}}
"#
    )
}

/// All that a subscriber has got, over all of its connections.
#[derive(Default)]
struct Heard {
    results: Results,
    positions: BTreeMap<ResultKey, (u64, u64)>,
    /// The newest value of each key.
    values: BTreeMap<ResultKey, i64>,
    last_id: Option<String>,
}

impl Heard {
    /// Follows the results until the worker ends.
    async fn follow(&mut self, mut client: Subscription) {
        while let Some(event) = client.next().await {
            self.take(&event);
        }
        self.last_id = client.last_event_id.take().or(self.last_id.take());
    }

    /// Follows the results until all busy keys have the values that are said at last.
    async fn follow_up_to(&mut self, mut client: Subscription, last: &OnceLock<(i64, i64)>) {
        while !last.get().is_some_and(|last| self.has(*last)) {
            // No more may come once it is said which values are the last ones.
            if let Ok(event) = tokio::time::timeout(Duration::from_secs(1), client.next()).await {
                self.take(&event.expect("the worker runs"));
            }
        }
    }

    fn has(&self, (last_order, last_reading): (i64, i64)) -> bool {
        let last = format!("\"n\":{last_reading},\"o\":{last_order}}}");
        (0..BUSY).all(|number| {
            let key = ("read".to_owned(), format!("\"r{number}\""));
            self.results.rows.get(&key).is_some_and(|rows| rows[0].contains(&last))
        })
    }

    fn take(&mut self, event: &SseEvent) {
        match event.event.as_str() {
            "join_result" => {
                let event = event.result();
                let key = event.result_key();
                let position = EventId::parse(&event.id).position();
                let before = self.positions.insert(key.clone(), position);
                // Who breaks off in a replay starts over.
                let comes_again = event.is_replay && before == Some(position);
                assert!(
                    comes_again || before.is_none_or(|before| before < position),
                    "{event:?} after {before:?}"
                );
                if let Some(n) = event.rows.first().and_then(|row| row["n"].as_i64()) {
                    let before = self.values.insert(key, n);
                    assert!(before.is_none_or(|before| before <= n), "{event:?} after the value {before:?}");
                }
                self.results.fold([&event]);
            }
            "replayed" => {}
            other => panic!("the subscriber gets {other}: {}", event.data),
        }
    }
}

/// Sends orders with rising values over HTTP for as long as it is asked to, each until it is acknowledged.
struct Pusher {
    address: Arc<Mutex<Option<SocketAddr>>>,
    stopped: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<i64>,
}

impl Pusher {
    fn start() -> Self {
        let (address, stopped) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let sent = Arc::new(AtomicU64::new(0));
        let (to, is_stopped, count) = (Arc::clone(&address), Arc::clone(&stopped), Arc::clone(&sent));
        let task = tokio::spawn(async move {
            let mut n = 1;
            while !is_stopped.load(Ordering::Relaxed) {
                let batch: Vec<Value> = (0..20).map(|k| order((n as usize * 20 + k) % BUSY, n)).collect();
                while !taken(&to, &batch).await {
                    let next = Instant::now() + Duration::from_millis(10);
                    tokio::task::spawn_blocking(move || until_moment(next)).await.expect("it ends");
                }
                count.fetch_add(1, Ordering::Relaxed);
                n += 1;
            }
            n - 1
        });
        Self { address, stopped, sent, task }
    }

    fn send_to(&self, worker: &Worker) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker.address("source ingest"));
    }

    /// Waits until some more batches were acknowledged.
    async fn go_on(&self, batches: u64) {
        let before = self.sent.load(Ordering::Relaxed);
        until("batches to be acknowledged", async || {
            (self.sent.load(Ordering::Relaxed) >= before + batches).then_some(())
        })
        .await;
    }

    /// Returns the last value.
    async fn stop(self) -> i64 {
        self.stopped.store(true, Ordering::Relaxed);
        self.task.await.expect("it ends")
    }
}

/// Whether a batch is acknowledged by the worker of now.
async fn taken(to: &Mutex<Option<SocketAddr>>, batch: &[Value]) -> bool {
    let to = *to.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(to) = to else { return false };
    let answer = client().post(format!("http://{to}/ingest")).json(batch).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

fn order(number: usize, n: i64) -> Value {
    json!({ "topic": "orders", "key": format!("o{number}"), "payload": { "n": n } })
}

fn reading(number: usize, n: i64) -> (String, Option<String>) {
    (format!("r{number}"), Some(json!({ "n": n, "order": format!("o{number}") }).to_string()))
}

/// Sends readings with rising values for as long as it is not stopped; returns the last value.
async fn send_readings(producer: Producer, topic: String, is_stopped: Arc<AtomicBool>) -> i64 {
    let mut n = 1;
    while !is_stopped.load(Ordering::Relaxed) {
        let next = Instant::now() + Duration::from_millis(20);
        let busy = |k: usize| (n as usize * 50 + k) % BUSY;
        producer.send_all(&topic, (0..50).map(|k| reading(busy(k), n))).await;
        tokio::task::spawn_blocking(move || until_moment(next)).await.expect("it ends");
        n += 1;
    }
    n - 1
}

/// A pipeline to which messages keep coming by Kafka and HTTP.
struct MovedLoad {
    site: WorkerSite,
    rows: usize,
    brokers: String,
    topic: String,
    producer: Producer,
    pusher: Pusher,
    stopped: Arc<AtomicBool>,
    readings: tokio::task::JoinHandle<i64>,
}

/// What is left of it when no more messages come.
struct EndedLoad {
    site: WorkerSite,
    rows: usize,
    /// The values of the last order and the last reading.
    last: (i64, i64),
    snapshot: Results,
}

impl MovedLoad {
    /// Starts a worker, and returns once all rows are there.
    async fn start() -> (Self, Worker) {
        let rows = if is_long() { 1_000_000 } else { 100_000 };
        let cluster = kafka::shared().await;
        let topic = unique("readings");
        cluster.create_topic(&topic, 4).await;
        let brokers = cluster.brokers();
        let storage = format!("shardCount: {}", SHARD_COUNTS[0]);
        let site = WorkerSite::with(&manifest(&brokers, &topic, &storage));
        let producer = cluster.producer();
        producer.send_all(&topic, (0..rows / 2).map(|number| reading(number, 0))).await;
        let (pusher, stopped) = (Pusher::start(), Arc::new(AtomicBool::new(false)));
        let readings = tokio::spawn(send_readings(cluster.producer(), topic.clone(), Arc::clone(&stopped)));
        let worker = site.start().await;
        for chunk in (0..rows / 2).collect::<Vec<_>>().chunks(1_000) {
            worker.ingest().send(&chunk.iter().map(|number| order(*number, 0)).collect::<Vec<_>>()).await;
        }
        until_within(LOADED, "all rows to be there", async || {
            let topics = worker.status().await["topics"].clone();
            let created = |topic: &str| topics[topic]["created"].as_u64().unwrap_or_default();
            (created("orders") + created("readings") >= rows as u64).then_some(())
        })
        .await;
        (Self { site, rows, brokers, topic, producer, pusher, stopped, readings }, worker)
    }

    fn configure(&self, storage: &str) {
        self.site.write("pipeline.yaml", manifest(&self.brokers, &self.topic, storage));
    }

    /// Has all messages stop, and waits for the results of the last.
    async fn end(self, worker: &Worker) -> EndedLoad {
        self.pusher.go_on(5).await;
        let last_order = self.pusher.stop().await;
        self.stopped.store(true, Ordering::Relaxed);
        let last_reading = self.readings.await.expect("it ends");
        let readings = (0..BUSY).map(|number| reading(number, last_reading + 1));
        self.producer.send_all(&self.topic, readings).await;
        let end: Vec<Value> = (0..BUSY).map(|number| order(number, last_order + 1)).collect();
        let epoch = worker.ingest().send(&end).await;
        until("the last readings", async || {
            let (_, results) = worker.snapshot("live", "read", epoch).await;
            let last = format!("\"n\":{}", last_reading + 1);
            (0..BUSY)
                .all(|number| {
                    let key = ("read".to_owned(), format!("\"r{number}\""));
                    results.rows.get(&key).is_some_and(|rows| rows[0].contains(&last))
                })
                .then_some(())
        })
        .await;
        let (_, snapshot) = worker.snapshot("live", "read", epoch).await;
        EndedLoad { site: self.site, rows: self.rows, last: (last_order + 1, last_reading + 1), snapshot }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_on_the_way() {
    let (load, mut worker) = MovedLoad::start().await;
    let mut heard = Heard::default();
    for (index, pair) in SHARD_COUNTS.windows(2).enumerate() {
        let (from, to) = (pair[0], pair[1]);
        load.pusher.send_to(&worker);
        let query = "join=read&replay=true";
        let client = Subscription::open(worker.address("sink live"), query, heard.last_id.as_deref()).await;
        let following = async { heard.follow(client).await };
        let ending = async {
            load.pusher.go_on(20).await;
            let is_killed = index == 1;
            worker.signal(if is_killed { "KILL" } else { "TERM" });
        };
        tokio::join!(following, ending);
        worker.ended().await;
        load.configure(&format!("shardCount: {to}, reshard: {{fromShardCount: {from}, toShardCount: {to}}}"));
        if index == 0 {
            let arguments = ["reshard", "-f", "pipeline.yaml", "--data-dir", "data"];
            let ended = load.site.command(arguments).end().await;
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        }
        worker = load.site.start().await;
    }
    load.pusher.send_to(&worker);
    let query = "join=read&replay=true";
    let client = Subscription::open(worker.address("sink live"), query, heard.last_id.as_deref()).await;
    let last = OnceLock::new();
    let ending = async {
        let ended = load.end(&worker).await;
        last.set(ended.last).expect("it is said once");
        ended
    };
    let (ended, ()) = tokio::join!(ending, heard.follow_up_to(client, &last));
    worker.stop().await;
    ended.assert_as_sent(&heard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_beside_a_worker_that_serves() {
    let (load, worker) = MovedLoad::start().await;
    load.pusher.send_to(&worker);
    let (address, is_over) = (worker.address("sink live"), Arc::new(AtomicBool::new(false)));
    let listening = tokio::spawn({
        let is_over = Arc::clone(&is_over);
        async move {
            let mut heard = Heard::default();
            while !is_over.load(Ordering::Relaxed) {
                let query = "join=read&replay=true";
                // A connection that is taken as the pause begins is closed again.
                if let Ok(client) = Subscription::try_open(address, query, heard.last_id.as_deref()).await {
                    heard.follow(client).await;
                }
            }
            heard
        }
    });
    for pair in SHARD_COUNTS.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        load.pusher.go_on(20).await;
        let consent = format!("{{fromShardCount: {from}, toShardCount: {to}, strategy: Online}}");
        load.configure(&format!("shardCount: {to}, reshard: {consent}"));
        worker.signal("HUP");
        let done = moved(&worker, to).await;
        eprintln!("{from} to {to}: {}", done["message"]);
    }
    let ended = load.end(&worker).await;
    is_over.store(true, Ordering::Relaxed);
    worker.signal("TERM");
    let heard = listening.await.expect("it ends");
    let log = worker.ended().await;
    assert_eq!(log.code, Some(0), "{}", log.stderr);
    ended.assert_as_sent(&heard);
}

impl EndedLoad {
    /// Holds topics, snapshot and subscriber to what was sent: rows in all, and the last values of busy keys.
    fn assert_as_sent(&self, heard: &Heard) {
        let Self { site, rows, last: (last_order, last_reading), snapshot } = self;
        let oracle = Oracle::read(&site.data_dir(), ["orders", "readings"]);
        let expected = oracle.results("read", QUERY, None);
        assert_eq!(expected.rows.len(), rows / 2);
        snapshot.assert_same(&expected, "the snapshot");
        heard.results.assert_same(&expected, "the subscriber");
        for (topic, last) in [("orders", last_order), ("readings", last_reading)] {
            let wrong = format!(
                "SELECT count(*) FROM {topic} WHERE payload->>'n' <> CASE WHEN CAST(substr(key, 2) AS INT) < {BUSY}
                 THEN {last} ELSE 0 END"
            );
            assert_eq!(oracle.value(&wrong), 0, "{topic}: values that no message has left");
            assert_eq!(oracle.value(&format!("SELECT count(*) FROM {topic}")), rows / 2, "{topic}");
        }
    }
}
