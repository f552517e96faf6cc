//! What was told to somebody: keys that were acknowledged to clients, and keys of results that consumers hold. Each message
//! has a key of its own, so that whatever was told and is not there later is missing by its name.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use litejoin_tests::consumers::{Subscriber, kept, note};
use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::kafka::{self, Reader};
use litejoin_tests::results::Event;
use litejoin_tests::server::Server;
use litejoin_tests::wait::{pass, until};
use litejoin_tests::worker::Worker;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{JOIN, LAST};

/// Keys that somebody was told of.
#[derive(Clone, Default)]
pub(super) struct Told(Arc<Mutex<BTreeSet<String>>>);

impl Told {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keys(&self) -> BTreeSet<String> {
        self.lock().clone()
    }

    /// Others were told of these.
    pub(super) fn add(&self, keys: BTreeSet<String>) {
        self.lock().extend(keys);
    }

    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Waits until more than `count` keys were told.
    pub(super) async fn exceeds(&self, count: usize) {
        let what = format!("more than {count} acknowledged messages");
        until(&what, async || (self.count() > count).then_some(())).await;
    }
}

#[derive(Default)]
struct Pace {
    is_calm: AtomicBool,
    stopping: AtomicBool,
}

/// Between two messages of a client that takes its time.
const CALM: Duration = Duration::from_millis(200);

/// Clients that send one message after another, each with a new key.
pub(super) struct Load {
    /// What a source has acknowledged once it was committed, and once it was replicated.
    pub(super) plain: Told,
    pub(super) safe: Told,
    pace: Arc<Pace>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Loads both sources of a worker; keys begin with `prefix`.
    pub(super) fn on(worker: &Worker, prefix: &str) -> Self {
        let mut load =
            Self { plain: Told::default(), safe: Told::default(), pace: Arc::default(), clients: Vec::new() };
        for number in 0..2 {
            for (source, name, told) in [("ingest", "plain", &load.plain), ("safe", "safe", &load.safe)] {
                let ingest = Ingest::new(worker.address(&format!("source {source}")));
                let prefix = format!("{prefix}-{name}-{number}-");
                let client = send(ingest, prefix, told.clone(), Arc::clone(&load.pace));
                load.clients.push(tokio::spawn(client));
            }
        }
        load
    }

    /// Lets the clients take their time from now on, for a load that lasts.
    pub(super) fn calm_down(&self) {
        self.pace.is_calm.store(true, Ordering::Relaxed);
    }

    /// Lets the clients end with what they are about.
    pub(super) async fn stop(&mut self) {
        self.pace.stopping.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.await.expect("a client ends well");
        }
    }
}

/// Sends messages until it is told to stop, or nobody answers any more.
async fn send(ingest: Ingest, prefix: String, told: Told, pace: Arc<Pace>) {
    for number in 0.. {
        if pace.stopping.load(Ordering::Relaxed) {
            return;
        }
        if pace.is_calm.load(Ordering::Relaxed) {
            pass(CALM).await;
        }
        let key = format!("{prefix}{number}");
        match ingest.try_send(&[message("orders", &key, json!({"n": number}))]).await {
            Ok(answer) if answer.status == 200 => {
                told.lock().insert(key);
            }
            // It stops, and what it has not stored or shipped it does not acknowledge.
            Ok(answer) if answer.status == 503 => {}
            Ok(answer) => panic!("{}: {}", answer.status, answer.body),
            Err(_) => return,
        }
    }
}

/// Consumers of the results: a subscriber, a server that gets them by HTTP, and a reader of a Kafka topic.
pub(super) struct Consumers {
    subscriber: Arc<Subscriber>,
    server: Server,
    posted: Told,
    kafka_topic: String,
    reader: Reader,
    brokers: String,
}

impl Consumers {
    pub(super) async fn start() -> Self {
        let cluster = kafka::shared().await;
        let kafka_topic = format!("results-{:08x}", rand::random::<u32>());
        cluster.create_topic(&kafka_topic, 2).await;
        let (reader, brokers) = (cluster.follow(&kafka_topic), cluster.brokers());
        let (server, posted) = (Server::start().await, Told::default());
        Self { subscriber: Arc::default(), server, posted, kafka_topic, reader, brokers }
    }

    /// Sinks that deliver to those who don't ask.
    pub(super) fn sinks(&self) -> [Value; 2] {
        [
            json!({"name": "hook", "joins": [JOIN], "http": {"url": self.server.url("/")}}),
            json!({"name": "out", "joins": [JOIN], "kafka": {"brokers": self.brokers, "topic": self.kafka_topic}}),
        ]
    }

    /// Lets the subscriber come to this worker, with the last id that it has seen; it stays until the worker goes.
    pub(super) fn subscribe(&self, worker: &Worker) -> JoinHandle<()> {
        let (subscriber, address) = (Arc::clone(&self.subscriber), worker.address("sink live"));
        tokio::spawn(async move {
            subscriber.follow(address, JOIN).await.expect("the worker takes subscriptions");
        })
    }

    /// How often the subscriber was told to forget what it holds.
    pub(super) fn resets(&self) -> usize {
        self.subscriber.resets()
    }

    /// What each of them holds.
    pub(super) fn held(&self) -> [(&'static str, BTreeSet<String>); 3] {
        for request in self.server.take() {
            note(&mut self.posted.lock(), &Event::read(request.text()));
        }
        let mut all = [
            ("sse", self.subscriber.held()),
            ("http", self.posted.keys()),
            ("kafka", kept(self.reader.records())),
        ];
        for (_, held) in &mut all {
            held.remove(LAST);
        }
        all
    }

    /// Waits until all of them hold all of this.
    pub(super) async fn hold_all(&self, keys: &BTreeSet<String>) {
        for (index, consumer) in ["sse", "http", "kafka"].iter().enumerate() {
            let what = format!("the {consumer} consumer to hold all results");
            until(&what, async || keys.is_subset(&self.held()[index].1).then_some(())).await;
        }
    }

    /// Waits until all of them hold this and nothing else.
    pub(super) async fn hold_just(&self, keys: &BTreeSet<String>, when: &str) {
        for (index, consumer) in ["sse", "http", "kafka"].iter().enumerate() {
            let what = format!("the {consumer} consumer to hold just what is there ({when})");
            until(&what, async || (self.held()[index].1 == *keys).then_some(())).await;
        }
    }
}

/// Fails where a consumer holds what is not there.
pub(super) fn assert_known(held: [(&str, BTreeSet<String>); 3], found: &BTreeSet<String>, when: &str) {
    for (consumer, held) in held {
        let gone: Vec<_> = held.difference(found).collect();
        assert!(gone.is_empty(), "{when}: the {consumer} consumer held {gone:?}, which are not there");
    }
}
