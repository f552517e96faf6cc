//! The thread that talks to the brokers: it finds partitions, reads records, and tells how far all that is.

mod discovery;
mod report;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use litejoin_crds::error::chain;
use litejoin_crds::plan;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info};

use self::discovery::{Discovery, DiscoveryError};
use super::committer::{OffsetCommitter, is_replicated};
use super::record::{self, Json, KafkaRecord, KeyPaths};
use super::{PartitionRun, RecordBlock};
use crate::clock;
use crate::credentials::Secrets;
use crate::dead_letters::DeadLetters;
use crate::kafka::{self, Events, KafkaProblem};
use crate::source::lanes::StreamProgress;
use crate::status::source::SourceStatus;
use crate::storage::replication_barrier::ReplicationBarrier;
use crate::storage::shard::Stream;
use crate::storage::topics::{TopicId, Topics};

/// Settings of the client: what it holds in memory is bounded, and it never decides by itself where to read.
const SETTINGS: [(&str, &str); 11] = [
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "error"),
    ("isolation.level", "read_committed"),
    ("queued.max.messages.kbytes", "8192"),
    // These count what is compressed.
    ("fetch.max.bytes", "2097152"),
    ("fetch.message.max.bytes", "524288"),
    ("fetch.wait.max.ms", "100"),
    ("fetch.queue.backoff.ms", "10"),
    ("fetch.error.backoff.ms", "100"),
    ("statistics.interval.ms", "1000"),
];

/// Records and bytes of one block at most.
const BLOCK_RECORDS_MAX: usize = 1_000;
const BLOCK_BYTES_MAX: usize = 1 << 20;

/// How long one look for records may take.
const POLL: Duration = Duration::from_millis(100);

/// How long a client is given to reach a broker before there is a new one, with credentials looked up again.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Wait between two clients.
const RECONNECT: Duration = Duration::from_secs(2);

/// How often partitions are looked for, lag is told, and the broker is told where we are.
const DISCOVER_INTERVAL: Duration = Duration::from_secs(5);
const TELL_INTERVAL: Duration = Duration::from_secs(1);
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);

/// How long a stop waits for the replica, so that the broker can be told of the last.
const LAST_SYNC_TIMEOUT: Duration = Duration::from_secs(2);

/// Wait before a refused record is tried to be kept again.
const LETTER_RETRY: Duration = Duration::from_secs(1);

pub(super) struct KafkaClient {
    pub(super) name: String,
    pub(super) spec: plan::KafkaSource,
    pub(super) secrets: Arc<Secrets>,
    pub(super) topics: Arc<Topics>,
    pub(super) letters: Arc<DeadLetters>,
    pub(super) status: Arc<SourceStatus>,
    /// Where the broker is told only what is in the replica.
    pub(super) replication_barrier: Option<ReplicationBarrier>,
    pub(super) stopping: watch::Receiver<bool>,
    /// The place of each stream: what the shards know, and where this client has left it.
    pub(super) stored: HashMap<String, u64>,
    pub(super) progress: Arc<StreamProgress>,
    pub(super) blocks: mpsc::Sender<RecordBlock>,
    /// Whether what is told as the last error is trouble of ours that can pass.
    pub(super) is_troubled: Cell<bool>,
}

/// A partition that is read.
struct Partition {
    topic: TopicId,
    stream: Arc<str>,
    /// Where this session began to read.
    begun: u64,
    /// The offset behind the last record that was taken.
    next: u64,
    /// The consumer's position: behind the last record too, or further, behind markers of transactions and records that
    /// compaction has removed, where no record is.
    position: u64,
    /// The offset that was committed last.
    committed: u64,
    /// Its run in the block that is being filled.
    run: Option<usize>,
}

/// The partitions that are read, by Kafka topic.
type Partitions = HashMap<String, BTreeMap<i32, Partition>>;

/// One connection to the cluster.
struct ClientSession {
    consumer: Arc<BaseConsumer<Events>>,
    committer: OffsetCommitter,
    cluster: String,
    partitions: Partitions,
    /// When partitions are looked for next.
    discover_at: Instant,
    /// Whether the broker has not what was asked of it, so that partitions may not be what they were.
    has_doubts: bool,
    told_at: Instant,
    committed_at: Instant,
    /// Since when the brokers refuse us.
    refused_since: Option<Instant>,
}

/// Why a session ends.
enum End {
    Stopping,
    /// The session does not work any more; the next one may.
    Broken(KafkaProblem),
}

impl KafkaClient {
    /// Reads until the worker stops; then waits until all is stored, and tells the broker.
    pub(super) fn run(mut self, all_stored: oneshot::Receiver<()>) {
        let mut discovery = Discovery::new(&self.spec);
        loop {
            let problem = match self.connect() {
                Err(End::Stopping) => return,
                Err(End::Broken(problem)) => problem,
                Ok(mut session) => match self.read(&mut session, &mut discovery) {
                    End::Stopping => {
                        // The other end says so by going, too.
                        drop(self.blocks);
                        let _ = all_stored.blocking_recv();
                        let runtime = tokio::runtime::Handle::current();
                        if let Some(offsets) = session.uncommitted(&self.progress)
                            && is_replicated(&runtime, self.replication_barrier.as_ref(), LAST_SYNC_TIMEOUT)
                        {
                            // The commit is for show; the next start knows better.
                            let _ = session.consumer.commit(&offsets, CommitMode::Sync);
                        }
                        return;
                    }
                    End::Broken(problem) => {
                        self.leave(session.partitions);
                        problem
                    }
                },
            };
            self.tell(&problem);
            self.pause(RECONNECT);
        }
    }

    /// Makes a client and waits until it has reached a broker.
    fn connect(&self) -> Result<ClientSession, End> {
        let broken = |text: String| End::Broken(KafkaProblem { text, is_refusal: true });
        let mut config =
            kafka::settings(&self.spec.connection, &self.secrets).map_err(|error| broken(chain(&error)))?;
        config.set("group.id", &self.spec.group_id);
        for (setting, value) in SETTINGS {
            config.set(setting, value);
        }
        let consumer: BaseConsumer<Events> = config
            .create_with_context(Events::of(&self.spec.connection))
            .map_err(|error| broken(chain(&kafka::ClientError::from(error))))?;
        let started = Instant::now();
        loop {
            if self.is_stopping() {
                return Err(End::Stopping);
            }
            let cluster = consumer.client().fetch_cluster_id(POLL);
            if let Some(cluster) = cluster {
                info!(source = self.name, cluster, "reached Kafka");
                let now = Instant::now();
                let consumer = Arc::new(consumer);
                return Ok(ClientSession {
                    committer: OffsetCommitter::start(
                        &self.name,
                        &consumer,
                        self.replication_barrier.clone(),
                    ),
                    consumer,
                    cluster,
                    partitions: HashMap::new(),
                    discover_at: now,
                    has_doubts: false,
                    told_at: now,
                    committed_at: now,
                    refused_since: None,
                });
            }
            // Nothing is assigned yet, so this only hears what the client has to tell. It has to take its time: lines of
            // a log come before errors, and a poll that waits for nothing ends with the first of them.
            consumer.poll(POLL);
            let problem = consumer.context().problem();
            if let Some(problem) = &problem {
                self.tell(problem);
            }
            if started.elapsed() >= CONNECT_MAX {
                let silence = || KafkaProblem {
                    text: format!(
                        "Kafka at {} does not answer; check kafka.brokers and the network",
                        self.spec.connection.brokers.join(",")
                    ),
                    is_refusal: false,
                };
                return Err(End::Broken(problem.unwrap_or_else(silence)));
            }
        }
    }

    /// Reads records for as long as the session works.
    fn read(&mut self, session: &mut ClientSession, discovery: &mut Discovery) -> End {
        loop {
            if self.is_stopping() {
                return End::Stopping;
            }
            if session.discover_at <= Instant::now() {
                session.discover_at = Instant::now() + DISCOVER_INTERVAL;
                match self.discover(session, discovery) {
                    Ok(()) => {}
                    Err(DiscoveryError::Unwanted) => return End::Stopping,
                    Err(DiscoveryError::Failed(problem)) => self.tell(&problem),
                }
            }
            match self.gather(session) {
                Ok(runs) if runs.is_empty() => {}
                Ok(runs) => {
                    if self.blocks.blocking_send(RecordBlock::Records(runs)).is_err() {
                        return End::Stopping;
                    }
                }
                Err(End::Broken(problem)) => return End::Broken(problem),
                Err(End::Stopping) => return End::Stopping,
            }
            if session.told_at.elapsed() >= TELL_INTERVAL {
                session.told_at = Instant::now();
                if let Some(problem) = self.show(session) {
                    return End::Broken(problem);
                }
            }
            if session.committed_at.elapsed() >= COMMIT_INTERVAL {
                session.committed_at = Instant::now();
                if let Some(offsets) = session.uncommitted(&self.progress)
                    && !session.committer.commit(offsets)
                {
                    session.doubt_commits();
                }
            }
        }
    }

    /// Takes records as they come, until a block is full or there are none for the moment.
    fn gather(&self, session: &mut ClientSession) -> Result<Vec<PartitionRun>, End> {
        let ClientSession { consumer, partitions, discover_at, has_doubts, .. } = session;
        let (mut runs, mut count, mut bytes) = (Vec::new(), 0, 0);
        let mut timeout = POLL;
        while count < BLOCK_RECORDS_MAX && bytes < BLOCK_BYTES_MAX {
            match consumer.poll(timeout) {
                None => break,
                Some(Ok(record)) => {
                    let known = partitions.get_mut(record.topic());
                    let Some(partition) = known.and_then(|known| known.get_mut(&record.partition())) else {
                        continue;
                    };
                    let taken = self.take(&record, partition, &mut runs)?;
                    count += 1;
                    bytes += taken;
                }
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    let problem =
                        kafka::problem(consumer.context(), &KafkaError::MessageConsumptionFatal(code));
                    // Records that were taken are not read again: the next session goes on behind them.
                    let handed =
                        runs.is_empty() || self.blocks.blocking_send(RecordBlock::Records(runs)).is_ok();
                    return Err(if handed { End::Broken(problem) } else { End::Stopping });
                }
                Some(Err(error)) => {
                    use RDKafkaErrorCode as Code;
                    if let Some(
                        Code::AutoOffsetReset
                        | Code::OffsetOutOfRange
                        | Code::UnknownTopicOrPartition
                        | Code::UnknownPartition
                        | Code::UnknownTopic
                        | Code::TopicAuthorizationFailed,
                    ) = error.rdkafka_error_code()
                    {
                        // A look at the partitions tells what it is.
                        *discover_at = Instant::now();
                        *has_doubts = true;
                        break;
                    }
                }
            }
            timeout = Duration::ZERO;
        }
        partitions.values_mut().flat_map(BTreeMap::values_mut).for_each(|partition| partition.run = None);
        Ok(runs)
    }

    /// Adds a record to the run of its partition, or puts it into the dead-letter queue; returns its bytes.
    fn take(
        &self,
        record: &BorrowedMessage<'_>,
        partition: &mut Partition,
        runs: &mut Vec<PartitionRun>,
    ) -> Result<usize, End> {
        let offset = u64::try_from(record.offset()).unwrap_or(0);
        let headers = match record.headers() {
            None => Ok(None),
            Some(headers) => record::headers(headers.iter().map(|header| (header.key, header.value))),
        };
        let read = headers.and_then(|headers| {
            let record = KafkaRecord { key: record.key(), value: record.payload() };
            let key_paths = KeyPaths {
                payload: self.spec.key_path.as_deref(),
                record_key: self.spec.record_key_path.as_deref(),
            };
            record::message(record, headers, &Json, key_paths, partition.topic, offset)
        });
        let index = *partition.run.get_or_insert_with(|| {
            let stream = Stream { name: Arc::clone(&partition.stream), next: offset };
            runs.push(PartitionRun { stream, messages: Vec::new(), bytes: 0 });
            runs.len() - 1
        });
        match read {
            Ok(message) => {
                let length = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
                let bytes = message.key.len() + length(&message.payload) + length(&message.headers);
                runs[index].messages.push(message);
                runs[index].bytes += bytes;
            }
            Err(error) => self.reject(record, &error.to_string())?,
        }
        // Only now, so that a record that could not be kept is read again.
        partition.next = offset + 1;
        runs[index].stream.next = offset + 1;
        Ok(record.key_len() + record.payload_len())
    }

    /// Puts a record into the dead-letter queue; nothing behind it is read before it is there.
    fn reject(&self, record: &BorrowedMessage<'_>, reason: &str) -> Result<(), End> {
        let position = format!("{}[{}] offset {}", record.topic(), record.partition(), record.offset());
        self.status.refused.add(1);
        self.status.error.set(&format!("{position}: {reason}"));
        let body = record.payload().unwrap_or_default();
        while let Err(error) =
            self.letters.reject_and_tell(&self.name, &position, reason, body, clock::epoch_seconds())
        {
            if self.status.error.set(&chain(&error)) {
                error!(
                    source = self.name,
                    position,
                    error = chain(&error),
                    "could not keep a refused record"
                );
            }
            self.pause(LETTER_RETRY);
            if self.is_stopping() {
                return Err(End::Stopping);
            }
        }
        Ok(())
    }

    /// Remembers where a session has left its partitions.
    fn leave(&mut self, partitions: Partitions) {
        for partition in partitions.into_values().flat_map(BTreeMap::into_values) {
            self.stored.insert(partition.stream.to_string(), partition.next);
        }
    }

    fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Waits, unless the worker stops.
    fn pause(&self, pause: Duration) {
        let mut stopping = self.stopping.clone();
        let waiting =
            async { tokio::time::timeout(pause, stopping.wait_for(|stopping| *stopping)).await.is_ok() };
        tokio::runtime::Handle::current().block_on(waiting);
    }
}

impl Partition {
    /// How far all shards are, where they have told since the start; the position where every record before it is stored.
    fn stored(&self, progress: &StreamProgress) -> Option<u64> {
        progress.stored(&self.stream).map(|stored| self.or_position(stored))
    }

    /// How far reading has come, for show.
    fn reached(&self, progress: &StreamProgress) -> u64 {
        self.stored(progress).unwrap_or_else(|| self.or_position(self.begun))
    }

    fn or_position(&self, stored: u64) -> u64 {
        if stored >= self.next { stored.max(self.position) } else { stored }
    }
}

impl ClientSession {
    /// How far all shards are, where the broker does not know it yet.
    fn uncommitted(&mut self, progress: &StreamProgress) -> Option<TopicPartitionList> {
        let mut offsets = TopicPartitionList::new();
        for (kafka_topic, partitions) in &mut self.partitions {
            for (number, partition) in partitions {
                let Some(next) = partition.stored(progress) else { continue };
                if next != partition.committed {
                    let offset = Offset::Offset(i64::try_from(next).ok()?);
                    offsets.add_partition_offset(kafka_topic, *number, offset).ok()?;
                    partition.committed = next;
                }
            }
        }
        (offsets.count() > 0).then_some(offsets)
    }

    /// Forgets what the broker was told, so that it is told again.
    fn doubt_commits(&mut self) {
        let all = self.partitions.values_mut().flat_map(BTreeMap::values_mut);
        all.for_each(|partition| partition.committed = 0);
    }

    fn list(kafka_topic: &str, number: i32, offset: Offset) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(kafka_topic, number, offset)?;
        Ok(list)
    }

    fn assign(&self, kafka_topic: &str, number: i32, next: u64) -> Result<(), DiscoveryError> {
        let offset = Offset::Offset(i64::try_from(next).unwrap_or(i64::MAX));
        Self::list(kafka_topic, number, offset)
            .and_then(|list| self.consumer.incremental_assign(&list))
            .map_err(|error| DiscoveryError::Failed(kafka::problem(self.consumer.context(), &error)))
    }

    /// Stops reading a partition, and remembers where.
    fn leave(
        &mut self,
        kafka_topic: &str,
        number: i32,
        stored: &mut HashMap<String, u64>,
    ) -> Result<(), DiscoveryError> {
        let known = self.partitions.get_mut(kafka_topic);
        let Some(partition) = known.and_then(|known| known.remove(&number)) else { return Ok(()) };
        stored.insert(partition.stream.to_string(), partition.next);
        Self::list(kafka_topic, number, Offset::Invalid)
            .and_then(|list| self.consumer.incremental_unassign(&list))
            .map_err(|error| DiscoveryError::Failed(kafka::problem(self.consumer.context(), &error)))
    }
}
