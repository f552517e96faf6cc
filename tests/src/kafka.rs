//! Apache Kafka itself: one broker that tests share, or a cluster for one test whose brokers can be killed; and
//! clients that write and read records. Brokers listen on an address of this machine, keep their data in a scratch
//! folder, and end with the tests.

mod broker;
mod client;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use self::broker::Broker;
pub use self::broker::{Listener, PASSWORD, USER};
pub use self::client::{Member, Producer, Record, TopicReader};
use crate::ports::PortBlock;
use crate::wait::until;

/// The brokers of one cluster.
pub struct KafkaCluster {
    nodes: Vec<Broker>,
    folder: TempDir,
    admin: client::Admin,
}

/// Returns the broker that tests share; each test has Kafka topics of its own.
pub async fn shared() -> &'static KafkaCluster {
    static SHARED: OnceCell<(KafkaCluster, Janitor)> = OnceCell::const_new();
    let shared = SHARED.get_or_init(async || {
        let cluster = KafkaCluster::start(1).await;
        let janitor = Janitor::of(cluster.folder.path());
        (cluster, janitor)
    });
    &shared.await.0
}

/// Removes the folder of the shared cluster when this process ends: statics are never dropped.
struct Janitor {
    _child: Child,
}

impl Janitor {
    fn of(folder: &Path) -> Self {
        // The shell's input ends with this process.
        let mut command = Command::new("sh");
        command.args(["-c", "cat; rm -rf \"$0\""]).arg(folder).stdin(Stdio::piped());
        Self { _child: command.spawn().expect("sh is there") }
    }
}

impl KafkaCluster {
    /// Starts brokers, and waits until all of them serve.
    pub async fn start(brokers: usize) -> Self {
        Self::start_at("127.0.0.1", brokers).await
    }

    /// Starts brokers on another address of this machine.
    pub async fn start_at(host: &str, brokers: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let ports: Vec<PortBlock> = (0..brokers).map(|_| PortBlock::free()).collect();
        broker::write_certificates(folder.path(), host);
        let nodes: Vec<Broker> =
            (0..brokers).map(|index| Broker::start(folder.path(), host, index, &ports)).collect();
        let plain: Vec<String> = nodes.iter().map(|node| node.address(Listener::Plain)).collect();
        let cluster = Self { admin: client::Admin::new(&plain.join(",")), nodes, folder };
        cluster.wait_until_it_serves().await;
        cluster
    }

    /// Waits until every broker has joined the cluster.
    pub async fn wait_until_it_serves(&self) {
        let brokers = self.brokers();
        let count = self.nodes.len();
        until("the brokers to serve", async || {
            for node in &self.nodes {
                node.assert_alive();
            }
            let brokers = brokers.clone();
            let seen = blocking(move || {
                let consumer: BaseConsumer = config(&brokers).create().expect("a client can be made");
                let metadata = consumer.fetch_metadata(None, Duration::from_secs(1));
                metadata.map_or(0, |metadata| metadata.brokers().len())
            });
            (seen.await == count).then_some(())
        })
        .await;
    }

    /// Returns the addresses of all brokers, without encryption or credentials.
    pub fn brokers(&self) -> String {
        self.addresses(Listener::Plain)
    }

    /// Returns the addresses of all brokers at one of their listeners.
    pub fn addresses(&self, listener: Listener) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(|node| node.address(listener)).collect();
        addresses.join(",")
    }

    /// Returns the path of a file with certificates or keys: `ca.pem`, `client.pem`, `client-key.pem`.
    pub fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Kills a broker.
    pub fn kill(&mut self, broker: usize) {
        self.nodes[broker].kill();
    }

    /// Restarts a killed broker, and waits until it serves.
    pub async fn restart(&mut self, broker: usize) {
        self.nodes[broker].restart();
        self.wait_until_it_serves().await;
    }

    /// Creates a Kafka topic with replicas of each partition on all brokers, and waits until it can be written to.
    pub async fn create_topic(&self, topic: &str, partitions: i32) {
        self.create_topic_with(topic, partitions, &[]).await;
    }

    /// Creates a Kafka topic with these settings.
    pub async fn create_topic_with(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let copies = i32::try_from(self.nodes.len()).expect("a few brokers");
        self.admin.create_topic(topic, partitions, copies, settings).await;
        self.wait_for_partitions(topic, partitions).await;
    }

    /// Adds partitions to a Kafka topic.
    pub async fn grow_topic(&self, topic: &str, partitions: i32) {
        self.admin.grow_topic(topic, partitions).await;
        self.wait_for_partitions(topic, partitions).await;
    }

    /// Deletes a Kafka topic, and waits until it is gone.
    pub async fn delete_topic(&self, topic: &str) {
        self.admin.delete_topic(topic).await;
        self.wait_for_partitions(topic, 0).await;
    }

    /// Deletes the records below an offset, as retention does.
    pub async fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        self.admin.delete_records(topic, partition, before).await;
    }

    async fn wait_for_partitions(&self, topic: &str, partitions: i32) {
        let what = format!("{partitions} partitions of {topic}");
        until(&what, async || {
            let (brokers, topic) = (self.brokers(), topic.to_owned());
            let led = blocking(move || client::led_partitions(&brokers, &topic)).await;
            (led == partitions).then_some(())
        })
        .await;
    }

    /// Returns the offset that a consumer group has committed for a partition.
    pub async fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        let (brokers, group, topic) = (self.brokers(), group.to_owned(), topic.to_owned());
        blocking(move || client::committed(&brokers, &group, &topic, partition)).await
    }

    /// Starts a consumer that is a member of a group, as another program would be.
    pub fn join_group(&self, group: &str, topic: &str) -> Member {
        Member::join(&self.brokers(), group, topic)
    }

    /// Returns a producer that waits until all brokers have a record.
    pub fn producer(&self) -> Producer {
        Producer::new(&self.brokers())
    }

    /// Returns all committed records of a Kafka topic, partition by partition.
    pub async fn read(&self, topic: &str) -> Vec<Record> {
        let (brokers, topic) = (self.brokers(), topic.to_owned());
        blocking(move || client::read(&brokers, &topic)).await
    }

    /// Follows a Kafka topic from its start.
    pub fn follow(&self, topic: &str) -> TopicReader {
        TopicReader::open(&self.brokers(), topic)
    }
}

/// Returns the settings of every client of the tests.
fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("allow.auto.create.topics", "false");
    config
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
