//! SIGKILL at random moments under load. Every acknowledged message is there, results are those of the query over the
//! final topics, and a subscriber that comes back with its Last-Event-ID misses nothing and sees each key in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::oracle::Oracle;
use litejoin_tests::repetition::{chance, seeds};
use litejoin_tests::results::{Event, EventId, Results};
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::WorkerSite;
use rand::RngExt;
use serde_json::{Value, json};
use tokio::sync::watch;

const MANIFEST: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {shardCount: 4, flushInterval: 2ms}
  admin: {addr: "127.0.0.1:0"}
  sources:
    - name: ingest
      http: {addr: "127.0.0.1:0", topics: [orders, customers, notes]}
  joins:
    - name: enriched
      query: |
        SELECT o.key AS id, o.payload->>'n' AS n, c.payload->>'n' AS customer, x.payload->>'n' AS note
        FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer'
        LEFT JOIN notes x ON x.key = o.key
      sinks: [live]
    - name: totals
      query: |
        SELECT payload->>'customer' AS customer, count(*) AS orders, sum(payload->>'n') AS total
        FROM orders GROUP BY payload->>'customer'
      sinks: [live]
  sinks:
    - name: live
      sse: {addr: "127.0.0.1:0"}
"#;

/// The joins of the manifest, for the oracle.
const JOINS: [(&str, &str); 2] = [
    (
        "enriched",
        "SELECT o.key AS id, o.payload->>'n' AS n, c.payload->>'n' AS customer, x.payload->>'n' AS note
         FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer'
         LEFT JOIN notes x ON x.key = o.key",
    ),
    (
        "totals",
        "SELECT payload->>'customer' AS customer, count(*) AS orders, sum(payload->>'n') AS total
         FROM orders GROUP BY payload->>'customer'",
    ),
];

const TOPICS: [&str; 3] = ["orders", "customers", "notes"];
const WRITERS: u64 = 3;
const KEYS_A_WRITER: u64 = 20;

/// The values that a key may have: the last acknowledged one, or any that was sent later and never answered.
#[derive(Debug, Clone, Default)]
struct Possible {
    acknowledged: Option<Value>,
    unanswered: Vec<Option<Value>>,
}

type WrittenRows = Arc<Mutex<BTreeMap<(String, String), Possible>>>;

/// The ingest address of the running worker; none while it is down.
type Whereabouts = watch::Receiver<Option<Ingest>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_loses_nothing_that_it_has_acknowledged() {
    for seed in seeds(3, 50) {
        eprintln!("seed {seed}");
        run(seed).await;
    }
}

async fn run(seed: u64) {
    let mut chance = chance(seed);
    let site = WorkerSite::with(MANIFEST);
    let written = WrittenRows::default();
    let acknowledged = Arc::new(AtomicU64::new(0));
    let stopping = Arc::new(AtomicBool::new(false));
    let (tell_writers, whereabouts) = watch::channel(None);
    let (tell_subscriber, subscriber_whereabouts) = watch::channel(None);
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let load = RowWriter {
                number,
                seed,
                whereabouts: whereabouts.clone(),
                written: Arc::clone(&written),
                acknowledged: Arc::clone(&acknowledged),
                stopping: Arc::clone(&stopping),
            };
            tokio::spawn(load.run())
        })
        .collect();
    let mut lineages = BTreeSet::new();
    let mut epoch = 0;
    let subscriber = tokio::spawn(subscribe(subscriber_whereabouts));

    let kills = chance.random_range(2..=4);
    for _ in 0..kills {
        if chance.random_ratio(1, 3) {
            // A start can be killed too.
            let starting = site.run([]).spawn();
            starting.wait_for_log(chance.random_range(0..=4)).await;
            starting.kill().await;
        }
        let worker = site.start().await;
        lineages.insert(worker.status().await["lineage"].to_string());
        tell_subscriber.send_replace(Some(worker.address("sink live")));
        tell_writers.send_replace(Some(worker.ingest()));
        let goal = acknowledged.load(Ordering::Relaxed) + chance.random_range(1..=400);
        until("messages to be acknowledged", async || {
            (acknowledged.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .await;
        epoch = not_below(epoch, &worker.status().await, seed);
        tell_writers.send_replace(None);
        tell_subscriber.send_replace(None);
        worker.kill().await;
    }

    // The last worker is asked to stop, once the load has ended.
    let worker = site.start().await;
    lineages.insert(worker.status().await["lineage"].to_string());
    tell_subscriber.send_replace(Some(worker.address("sink live")));
    stopping.store(true, Ordering::Relaxed);
    tell_writers.send_replace(Some(worker.ingest()));
    for writer in writers {
        writer.await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    let end = worker.ingest().put("notes", "end", json!({"n": -1})).await;
    not_below(epoch, &worker.status().await, seed);
    let mut results = Results::default();
    for (join, _) in JOINS {
        results.extend(worker.snapshot("live", join, end).await.1);
    }
    tell_subscriber.send_replace(None);
    worker.stop().await;
    drop(tell_subscriber);
    let events = subscriber.await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));

    assert_eq!(lineages.len(), 1, "seed {seed}: a kill is no reason for a new lineage");
    let oracle = Oracle::read(&site.data_dir(), TOPICS);
    assert_acknowledged(&oracle, &written, seed);
    let mut expected = Results::default();
    for (join, query) in JOINS {
        expected.extend(oracle.results(join, query, None));
    }
    results.assert_same(&expected, &format!("seed {seed}: the snapshot"));
    assert_in_order(&events, seed);
    Results::folded(&events).assert_same(&expected, &format!("seed {seed}: what the subscriber got"));
}

/// A join that is evaluated in the background may lag when the process dies; the next process must not promise an
/// epoch that only other joins hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_promises_no_epoch_that_some_join_does_not_hold() {
    let last = "SELECT key AS id FROM orders ORDER BY payload->>'n' DESC LIMIT 1";
    let join = format!("    - {{name: last, query: \"{last}\", sinks: [live]}}\n  sinks:\n");
    let site =
        WorkerSite::with(&MANIFEST.replace("  sinks:\n    - name: live", &format!("{join}    - name: live")));
    let worker = site.start().await;
    let first = worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    worker.snapshot("live", "last", first).await;
    let before = not_below(first, &worker.status().await, 0);
    worker.kill().await;

    let worker = site.run([]).with_variable("LITEJOIN_STALL", "evaluated-in-background").start().await;
    let second = worker.ingest().put("orders", "o2", json!({"n": 2})).await;
    until("the join by key to be current", async || {
        let status = worker.status().await;
        (status["joins"]["enriched"]["epoch"].as_u64() == Some(second)).then_some(())
    })
    .await;
    worker.kill().await;

    let worker = site.run([]).with_variable("LITEJOIN_STALL", "copied").start().await;
    let now = not_below(before, &worker.status().await, 0);
    assert!(now < second, "epoch {now} is promised, and the join \"last\" does not hold {second} yet");
    worker.kill().await;

    let worker = site.start().await;
    let results = worker.snapshot("live", "last", second).await.1;
    worker.stop().await;
    let expected = Oracle::read(&site.data_dir(), TOPICS).results("last", last, None);
    results.assert_same(&expected, "the join that is evaluated in the background");
}

fn not_below(epoch: u64, status: &Value, seed: u64) -> u64 {
    let now = status["epoch"].as_u64().expect("an epoch is a number");
    assert!(now >= epoch, "seed {seed}: the epoch went from {epoch} back to {now}");
    now
}

/// One writer with keys of its own.
struct RowWriter {
    number: u64,
    seed: u64,
    whereabouts: Whereabouts,
    written: WrittenRows,
    acknowledged: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
}

impl RowWriter {
    /// Sends batches, one after the other, until `stopping` is set; waits while the worker is down.
    async fn run(mut self) {
        let mut chance = chance(self.seed * 1_000 + self.number);
        let mut epoch = 0;
        let mut n = 0_u64;
        loop {
            let here = self.whereabouts.wait_for(Option::is_some).await.expect("the test goes on").clone();
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            let mut batch = BTreeMap::new();
            for _ in 0..chance.random_range(1..=8) {
                let topic = TOPICS[chance.random_range(0..TOPICS.len())];
                let key = format!("k{}_{}", self.number, chance.random_range(0..KEYS_A_WRITER));
                let customer =
                    format!("k{}_{}", chance.random_range(0..WRITERS), chance.random_range(0..KEYS_A_WRITER));
                n += 1;
                let payload = if chance.random_ratio(1, 5) {
                    Value::Null
                } else {
                    json!({"n": n, "customer": customer})
                };
                batch.insert((topic.to_owned(), key), payload);
            }
            let messages: Vec<Value> =
                batch.iter().map(|((topic, key), payload)| message(topic, key, payload.clone())).collect();
            let answer = here.expect("there is a worker").try_send(&messages).await;
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            match answer {
                Ok(answer) if answer.status == 200 => {
                    let promised = answer.body["epoch"].as_u64().expect("an epoch is a number");
                    assert!(promised >= epoch, "seed {}: promised epoch {promised} after {epoch}", self.seed);
                    epoch = promised;
                    for (key, payload) in batch {
                        let acknowledged = Some(payload).filter(|payload| !payload.is_null());
                        written.insert(key, Possible { acknowledged, unanswered: Vec::new() });
                    }
                    self.acknowledged.fetch_add(messages.len() as u64, Ordering::Relaxed);
                }
                // After a kill each message of the batch may be stored or not.
                _ => {
                    for (key, payload) in batch {
                        let payload = Some(payload).filter(|payload| !payload.is_null());
                        written.entry(key).or_default().unanswered.push(payload);
                    }
                }
            }
        }
    }
}

/// Follows the worker from start to start, and returns all events in the order in which they came.
async fn subscribe(mut whereabouts: watch::Receiver<Option<std::net::SocketAddr>>) -> Vec<Event> {
    let mut events = Vec::new();
    let mut last_event_id: Option<String> = None;
    while let Ok(address) = whereabouts.wait_for(Option::is_some).await.map(|address| *address) {
        let address = address.expect("there is a worker");
        let query = "join=*&replay=true";
        if let Ok(mut client) = Subscription::try_open(address, query, last_event_id.as_deref()).await {
            while let Some(event) = client.next().await {
                match event.event.as_str() {
                    "join_result" => events.push(event.result()),
                    "replayed" => {}
                    other => panic!("a client that comes back gets {other}: {}", event.data),
                }
            }
            last_event_id = client.last_event_id;
        }
        // A stream that ends means that the worker is gone.
        if whereabouts.wait_for(|now| *now != Some(address)).await.is_err() {
            break;
        }
    }
    events
}

/// Asserts that every key has its last acknowledged value, or one that was sent later.
fn assert_acknowledged(oracle: &Oracle, written: &WrittenRows, seed: u64) {
    let written = written.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(!written.is_empty(), "seed {seed}: something was written");
    let mut wrong = Vec::new();
    for ((topic, key), possible) in written.iter() {
        let sql = format!("SELECT (SELECT payload FROM {topic} WHERE key = '{key}') AS payload");
        let stored: Option<Value> =
            oracle.value(&sql).as_str().map(|text| serde_json::from_str(text).expect("a payload is JSON"));
        if stored != possible.acknowledged && !possible.unanswered.contains(&stored) {
            wrong.push(format!("{topic} {key}: stored {stored:?}, expected {possible:?}"));
        }
    }
    assert!(wrong.is_empty(), "seed {seed}: of {} keys\n{}", written.len(), wrong.join("\n"));
}

/// Ids of each key only grow, and so do ids over all keys as far as events are not of the present state.
fn assert_in_order(events: &[Event], seed: u64) {
    assert!(!events.is_empty(), "seed {seed}: the subscriber got something");
    let mut of_key = BTreeMap::new();
    let mut last = (0, 0);
    for event in events {
        let position = EventId::parse(&event.id).position();
        assert_eq!(position.0, event.epoch, "seed {seed}: {event:?}");
        let before = of_key.insert(event.result_key(), position);
        assert!(before.is_none_or(|before| before < position), "seed {seed}: {event:?} after {before:?}");
        if !event.is_replay {
            assert!(last < position, "seed {seed}: {event:?} after {last:?}");
            last = position;
        }
    }
}
