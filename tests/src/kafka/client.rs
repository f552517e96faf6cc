//! Clients of a cluster: an admin client, a producer and consumers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};

use super::config;
use crate::wait::{TIMEOUT, until};

/// A record as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<String>,
    pub value: Option<String>,
    pub headers: BTreeMap<String, String>,
}

/// Creates and changes topics.
pub(super) struct Admin {
    client: AdminClient<DefaultClientContext>,
}

impl Admin {
    pub(super) fn new(brokers: &str) -> Self {
        Self { client: config(brokers).create().expect("a client can be made") }
    }

    fn options() -> AdminOptions {
        AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT))
    }

    pub(super) async fn create_topic(
        &self,
        topic: &str,
        partitions: i32,
        copies: i32,
        settings: &[(&str, &str)],
    ) {
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(copies));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let done = self.client.create_topics([&new], &Self::options()).await;
        assert!(matches!(done.as_deref(), Ok([Ok(_)])), "{topic} could not be made: {done:?}");
    }

    pub(super) async fn grow_topic(&self, topic: &str, partitions: i32) {
        let count = usize::try_from(partitions).expect("not negative");
        let done = self.client.create_partitions([&NewPartitions::new(topic, count)], &Self::options()).await;
        assert!(matches!(done.as_deref(), Ok([Ok(_)])), "{topic} could not grow: {done:?}");
    }

    pub(super) async fn delete_topic(&self, topic: &str) {
        let done = self.client.delete_topics(&[topic], &Self::options()).await;
        assert!(matches!(done.as_deref(), Ok([Ok(_)])), "{topic} could not be removed: {done:?}");
    }

    pub(super) async fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(before)).expect("an offset");
        let done = self.client.delete_records(&offsets, &Self::options()).await;
        assert!(done.is_ok(), "records of {topic} could not be removed: {done:?}");
    }
}

/// Returns how many partitions of a topic can be written to.
pub(super) fn led_partitions(brokers: &str, topic: &str) -> i32 {
    let consumer: BaseConsumer = config(brokers).create().expect("a client can be made");
    let Ok(metadata) = consumer.fetch_metadata(Some(topic), Duration::from_secs(5)) else { return -1 };
    let topics = metadata.topics().iter().filter(|known| known.name() == topic && known.error().is_none());
    let led = topics.flat_map(|topic| topic.partitions()).filter(|partition| partition.leader() >= 0);
    i32::try_from(led.count()).expect("a few partitions")
}

/// Returns the offset that a group has committed.
pub(super) fn committed(brokers: &str, group: &str, topic: &str, partition: i32) -> Option<i64> {
    let consumer: BaseConsumer =
        config(brokers).set("group.id", group).create().expect("a client can be made");
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(topic, partition);
    let offsets = consumer.committed_offsets(wanted, Duration::from_secs(10)).ok()?;
    offsets.find_partition(topic, partition)?.offset().to_raw().filter(|offset| *offset >= 0)
}

/// A producer.
#[derive(Clone)]
pub struct Producer {
    producer: FutureProducer,
}

impl Producer {
    pub(super) fn new(brokers: &str) -> Self {
        let mut config = config(brokers);
        config.set("enable.idempotence", "true").set("linger.ms", "1").set("message.timeout.ms", "60000");
        config.set("partitioner", "murmur2_random").set("compression.type", "lz4");
        Self { producer: config.create().expect("a client can be made") }
    }

    /// Writes a record; returns its partition and offset once the brokers have acknowledged it.
    ///
    /// # Panics
    /// If the brokers refuse the record.
    pub async fn send(&self, topic: &str, key: &str, value: Option<&str>) -> (i32, i64) {
        self.send_with(topic, None, Some(key.as_bytes()), value.map(str::as_bytes), &[]).await
    }

    /// Writes a record with headers to a partition, or to the one of its key. A header without a value has none in
    /// Kafka too.
    pub async fn send_with(
        &self,
        topic: &str,
        partition: Option<i32>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> (i32, i64) {
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic);
        record.partition = partition;
        record.key = key;
        record.payload = value;
        if !headers.is_empty() {
            let all = headers
                .iter()
                .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: *value }));
            record = record.headers(all);
        }
        let delivery = self.producer.send(record, TIMEOUT).await;
        let delivery = delivery.unwrap_or_else(|(error, _)| panic!("{topic}: {error}"));
        (delivery.partition, delivery.offset)
    }

    /// Writes many records of one topic, in order.
    pub async fn send_all(&self, topic: &str, records: impl IntoIterator<Item = (String, Option<String>)>) {
        let mut deliveries = VecDeque::new();
        for (key, value) in records {
            loop {
                let mut record = FutureRecord::to(topic).key(&key);
                record.payload = value.as_ref();
                match self.producer.send_result(record) {
                    Ok(delivery) => break deliveries.push_back(delivery),
                    // The queue is full: wait for the oldest record in it.
                    Err(_) if !deliveries.is_empty() => {
                        delivered(deliveries.pop_front().expect("there is one")).await;
                    }
                    Err((error, _)) => panic!("{topic}: {error}"),
                }
            }
        }
        for delivery in deliveries {
            delivered(delivery).await;
        }
    }
}

async fn delivered(delivery: rdkafka::producer::DeliveryFuture) {
    let outcome = delivery.await.expect("the client lives");
    outcome.unwrap_or_else(|(error, _)| panic!("a record was not taken: {error}"));
}

/// Follows a topic from its start on a thread.
pub struct TopicReader {
    topic: String,
    records: Arc<Mutex<Vec<Record>>>,
    stopping: Arc<AtomicBool>,
}

impl TopicReader {
    pub(super) fn open(brokers: &str, topic: &str) -> Self {
        let consumer = consumer(brokers, topic);
        let (records, stopping) = <(Arc<Mutex<Vec<Record>>>, Arc<AtomicBool>)>::default();
        let (filled, asked) = (Arc::clone(&records), Arc::clone(&stopping));
        std::thread::spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                    filled.lock().unwrap_or_else(PoisonError::into_inner).push(record(&message));
                }
            }
        });
        Self { topic: topic.to_owned(), records, stopping }
    }

    /// Returns the records that have arrived so far.
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `count` records have arrived, and returns all of them.
    pub async fn wait_for(&self, count: usize) -> Vec<Record> {
        let what = format!("{count} records in {}", self.topic);
        until(&what, async || Some(self.records()).filter(|records| records.len() >= count)).await
    }
}

impl Drop for TopicReader {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// A consumer in a group, which leaves the group when dropped.
pub struct Member {
    consumer: Arc<BaseConsumer>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Member {
    pub(super) fn join(brokers: &str, group: &str, topic: &str) -> Self {
        let mut config = config(brokers);
        config.set("group.id", group).set("enable.auto.commit", "false").set("session.timeout.ms", "6000");
        let consumer: Arc<BaseConsumer> = Arc::new(config.create().expect("a client can be made"));
        consumer.subscribe(&[topic]).expect("a topic can be subscribed to");
        let stopping = Arc::<AtomicBool>::default();
        let (polled, asked) = (Arc::clone(&consumer), Arc::clone(&stopping));
        let thread = std::thread::spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                polled.poll(Duration::from_millis(50));
            }
        });
        Self { consumer, stopping, thread: Some(thread) }
    }

    /// Waits until the group has assigned partitions to the member.
    pub async fn wait_until_it_has_partitions(&self) {
        until("the member to get partitions", async || {
            self.consumer.assignment().is_ok_and(|given| given.count() > 0).then_some(())
        })
        .await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.consumer.unsubscribe();
    }
}

/// Reads all partitions of a topic to the end.
pub(super) fn read(brokers: &str, topic: &str) -> Vec<Record> {
    let consumer = consumer(brokers, topic);
    let mut open = consumer.assignment().expect("partitions are assigned").count();
    let mut records = Vec::new();
    let started = std::time::Instant::now();
    while open > 0 {
        assert!(started.elapsed() < TIMEOUT, "waited in vain for the end of {topic}");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => records.push(record(&message)),
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            // The client retries by itself.
            Some(Err(_)) | None => {}
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

/// Returns a client that reads all partitions of a topic from the start.
fn consumer(brokers: &str, topic: &str) -> BaseConsumer {
    let mut config = config(brokers);
    config.set("group.id", "tests").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
    config.set("isolation.level", "read_committed").set("fetch.wait.max.ms", "50");
    let consumer: BaseConsumer = config.create().expect("a client can be made");
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).expect("the brokers answer");
    let mut all = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        all.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("an offset");
    }
    consumer.assign(&all).expect("partitions can be assigned");
    consumer
}

fn record(message: &impl Message) -> Record {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = message.headers().map(|headers| {
        let pairs =
            headers.iter().map(|header| (header.key.to_owned(), text(header.value.unwrap_or_default())));
        pairs.collect()
    });
    Record {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(text),
        value: message.payload().map(text),
        headers: headers.unwrap_or_default(),
    }
}
