//! Consumers of replicated results, and the keys of the results that each of them holds.

use std::collections::BTreeSet;
use std::sync::Arc;

use litejoin_tests::consumers::{Subscriber, kept, note};
use litejoin_tests::kafka::{self, TopicReader};
use litejoin_tests::results::Event;
use litejoin_tests::server::Server;
use litejoin_tests::wait::until;
use litejoin_tests::worker::Worker;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::load::SharedKeys;
use super::{JOIN, LAST};

/// Consumers of the results: a subscriber, a server that gets them by HTTP, and a reader of a Kafka topic.
pub(super) struct SinkConsumers {
    subscriber: Arc<Subscriber>,
    server: Server,
    /// Keys that the server holds.
    posted: SharedKeys,
    kafka_topic: String,
    reader: TopicReader,
    brokers: String,
}

impl SinkConsumers {
    pub(super) async fn start() -> Self {
        let cluster = kafka::shared().await;
        let kafka_topic = format!("results-{:08x}", rand::random::<u32>());
        cluster.create_topic(&kafka_topic, 2).await;
        let (reader, brokers) = (cluster.follow(&kafka_topic), cluster.brokers());
        let (server, posted) = (Server::start().await, SharedKeys::default());
        Self { subscriber: Arc::default(), server, posted, kafka_topic, reader, brokers }
    }

    /// The sinks that deliver to the server and to the Kafka topic.
    pub(super) fn sinks(&self) -> [Value; 2] {
        [
            json!({"name": "hook", "joins": [JOIN], "http": {"url": self.server.url("/")}}),
            json!({"name": "out", "joins": [JOIN], "kafka": {"brokers": self.brokers, "topic": self.kafka_topic}}),
        ]
    }

    /// Lets the subscriber connect to this worker, from the last id that it has seen on; it stays until the worker ends.
    pub(super) fn subscribe(&self, worker: &Worker) -> JoinHandle<()> {
        let (subscriber, address) = (Arc::clone(&self.subscriber), worker.address("sink live"));
        tokio::spawn(async move {
            subscriber.follow(address, JOIN).await.expect("the worker takes subscriptions");
        })
    }

    /// How many `reset` events the subscriber has got.
    pub(super) fn resets(&self) -> usize {
        self.subscriber.resets()
    }

    /// The keys that each consumer holds.
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

    /// Waits until every consumer holds all of `keys`.
    pub(super) async fn hold_all(&self, keys: &BTreeSet<String>) {
        for (index, consumer) in ["sse", "http", "kafka"].iter().enumerate() {
            let what = format!("the {consumer} consumer to hold all results");
            until(&what, async || keys.is_subset(&self.held()[index].1).then_some(())).await;
        }
    }

    /// Waits until every consumer holds `keys` and nothing else.
    pub(super) async fn hold_just(&self, keys: &BTreeSet<String>, when: &str) {
        for (index, consumer) in ["sse", "http", "kafka"].iter().enumerate() {
            let what = format!("the {consumer} consumer to hold just what is there ({when})");
            until(&what, async || (self.held()[index].1 == *keys).then_some(())).await;
        }
    }
}

/// Fails where a consumer holds a key that is not in `found`.
pub(super) fn assert_known(held: [(&str, BTreeSet<String>); 3], found: &BTreeSet<String>, when: &str) {
    for (consumer, held) in held {
        let gone: Vec<_> = held.difference(found).collect();
        assert!(gone.is_empty(), "{when}: the {consumer} consumer held {gone:?}, which are not there");
    }
}
