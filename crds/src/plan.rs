//! The plan that a worker runs: every value parsed and resolved, every default filled in. `validate` makes the plan out
//! of the documents; nothing here repeats a default.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::credentials::{Auth, ClientTls, Credential, KafkaSasl};
use crate::replication::{ReplicationMode, RestorePolicy};
use crate::serving::ServerTls;
use crate::sink::KafkaKeyFormat;
use crate::source::api::{ApiMethod, ApiPagination, ApiWatermark, ChangeDetection};
use crate::source::kafka::StartOffset;
use crate::source::{ColumnType, TypeInference};

mod retention;
mod storage;
mod window;

pub use retention::Retention;
pub use storage::{Reshard, Storage, Synchronous};
pub use window::{EventClock, TimeCut, Window};

/// One pipeline with all that refers to it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// `metadata.name` of the Pipeline.
    pub name: String,
    /// `metadata.namespace` of the Pipeline, `default` where absent.
    pub namespace: String,
    /// The identity of the data: `spec.replication.identity`, else `<namespace>/<name>`.
    pub identity: String,
    /// The volume claim that there is data on, by [`crate::kind::DATA_ANNOTATION`].
    pub data_on_claim: Option<String>,
    /// SHA-256, in hex, of the documents that this plan was made of; the same for the same documents in any order.
    pub config_hash: String,
    /// Where and how topics are stored.
    pub storage: Storage,
    /// How long rows are kept.
    pub retention: Retention,
    /// How results reach their sinks.
    pub delivery: Delivery,
    /// Copies at another place; `None`: there are none.
    pub replication: Option<Replication>,
    /// How stored results are compared with full evaluations.
    pub audit: Audit,
    /// Health, metrics and status.
    pub admin: Admin,
    /// The sources in the order of the documents.
    pub sources: Vec<Source>,
    /// The joins in the order of the documents.
    pub joins: Vec<Join>,
    /// The windows in the order of the documents.
    pub windows: Vec<Window>,
    /// The sinks in the order of the documents.
    pub sinks: Vec<Sink>,
}

/// A join or a window, as sinks and queries see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output<'a> {
    /// The name, unique among topics, joins and windows.
    pub name: &'a str,
    /// The place where it was written.
    pub place: &'a Place,
    /// Names of the sinks that take it, in the order of the sinks.
    pub sinks: &'a [String],
}

/// A part that listens.
pub struct Listening<'a> {
    /// Its kind and name, such as `source ingest`, or `admin`.
    pub what: String,
    /// `[host]:port`, as it is written.
    pub addr: &'a str,
    /// How it is served.
    pub serving: &'a Serving,
}

impl Plan {
    /// Returns the joins, then the windows.
    pub fn outputs(&self) -> impl Iterator<Item = Output<'_>> {
        let joins =
            self.joins.iter().map(|join| Output { name: &join.name, place: &join.place, sinks: &join.sinks });
        let windows = self.windows.iter().map(|window| Output {
            name: &window.name,
            place: &window.place,
            sinks: &window.sinks,
        });
        joins.chain(windows)
    }

    /// The parts that listen: http sources, sse sinks and the admin address.
    pub fn listening(&self) -> impl Iterator<Item = Listening<'_>> {
        let sources = self.sources.iter().filter_map(|source| match &source.kind {
            SourceKind::Http(spec) => {
                let (what, serving) = (format!("source {}", source.name), &*spec.serving);
                Some(Listening { what, addr: &spec.addr, serving })
            }
            _ => None,
        });
        let sinks = self.sinks.iter().filter_map(|sink| match &sink.kind {
            SinkKind::Sse(spec) => {
                let (what, serving) = (format!("sink {}", sink.name), &*spec.serving);
                Some(Listening { what, addr: &spec.addr, serving })
            }
            _ => None,
        });
        let Admin { addr, serving } = &self.admin;
        sources.chain(sinks).chain([Listening { what: "admin".to_owned(), addr, serving }])
    }

    /// Fields of a Pipeline that hold from start to end of a worker, with their values: a change takes a restart.
    pub fn fixed(&self) -> [(&'static str, String); 13] {
        let storage = &self.storage;
        // The identity that follows from the name changes only with the name, which is in the list already.
        let own_identity = self.identity != format!("{}/{}", self.namespace, self.name);
        let identity = if own_identity { format!("{:?}", self.identity) } else { "none".to_owned() };
        [
            ("metadata.name", format!("{:?}", self.name)),
            ("metadata.namespace", format!("{:?}", self.namespace)),
            ("spec.replication.identity", identity),
            (SHARD_COUNT, storage.shard_count.to_string()),
            ("spec.storage.dataDir", format!("{:?}", storage.data_dir)),
            ("spec.storage.readerPoolSize", storage.reader_pool_size.to_string()),
            ("spec.storage.batchSize", storage.batch_messages_max.to_string()),
            ("spec.storage.flushInterval", format!("{:?}", storage.flush_interval)),
            ("spec.storage.synchronous", format!("{:?}", storage.synchronous).to_lowercase()),
            ("spec.admin.addr", format!("{:?}", self.admin.addr)),
            ("spec.admin", serving(&self.admin.serving)),
            (
                "spec.delivery.dlq.path",
                self.delivery.dlq.path.as_ref().map_or_else(|| "none".to_owned(), |path| format!("{path:?}")),
            ),
            (REPLICATION, self.replication.as_ref().map_or_else(|| "none".to_owned(), Replication::fixed)),
        ]
    }
}

/// The number of shards among those settings that are fixed.
pub const SHARD_COUNT: &str = "spec.storage.shardCount";

/// The settings of replication among those that are fixed.
pub const REPLICATION: &str = "spec.replication";

/// How an address is served, in a few words.
fn serving(serving: &Serving) -> String {
    let Serving { bearer, tls, connections_max, client_timeout } = serving;
    format!(
        "auth {bearer:?}, tls {tls:?}, maxConnections {connections_max}, clientTimeout {client_timeout:?}"
    )
}

/// Where a value of the plan was written: the index of its document and the path of the object in it,
/// such as `(0, "spec.joins[1]")` for an inline join and `(2, "spec")` for a stand-alone one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// Index into the documents that were validated.
    pub document: usize,
    /// Path in that document, in the form `spec.joins[1]`.
    pub path: String,
}

/// `spec.delivery`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Delivery {
    /// How often a result is tried.
    pub guarantee: Guarantee,
    /// How long the outbox keeps results that every sink has had, for SSE clients that come back.
    pub replay_window: Duration,
    /// Size above which the outbox is compacted.
    pub outbox_bytes_max: u64,
    /// Failures in a row that open a sink's circuit.
    pub circuit_failures: u32,
    /// The dead-letter queue.
    pub dlq: Dlq,
}

/// `spec.delivery.guarantee`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Guarantee {
    /// Tried once.
    BestEffort,
    /// Tried until the sink has it, or the dead-letter queue lets go of it.
    AtLeastOnce,
}

/// `spec.delivery.dlq`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dlq {
    /// The file; `None` is `<data_dir>/dlq.db`.
    pub path: Option<PathBuf>,
    /// Wait before the first retry.
    pub retry_interval: Duration,
    /// Retries before a letter is given up; `None` never gives up before `ttl`.
    pub retries_max: Option<u32>,
    /// The factor by which the wait grows from retry to retry.
    pub backoff_multiplier: f64,
    /// The longest wait.
    pub backoff_max: Duration,
    /// Age at which a letter is dropped.
    pub ttl: Duration,
    /// Size above which the oldest letters are dropped.
    pub bytes_max: u64,
    /// How often `ttl` and `bytes_max` are enforced.
    pub cleanup_interval: Duration,
    /// A text that has all letters tried again, once for each new one.
    pub retry_nonce: Option<String>,
}

/// `spec.replication`, where it is enabled.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replication {
    /// Who runs Litestream.
    pub mode: ReplicationMode,
    /// Where the copies go: one of [`crate::replication::SCHEMES`], and what follows it.
    pub replica_url: String,
    /// How often new data is shipped.
    pub sync_interval: Duration,
    /// How often a whole snapshot is written.
    pub snapshot_interval: Duration,
    /// How long snapshots are kept.
    pub retention: Duration,
    /// Whether files that are missing at the start are restored.
    pub restore_on_boot: bool,
    /// Secret whose keys are environment variables with credentials.
    pub credentials_secret: Option<String>,
    /// Endpoint of an S3-compatible store, or of an emulator.
    pub endpoint: Option<String>,
    /// Region of the bucket.
    pub region: Option<String>,
    /// How S3 encrypts, if not as the bucket says.
    pub encryption: Option<Encryption>,
    /// The reaction to missing files.
    pub restore: RestorePolicy,
    /// The time to go back to, once (RFC 3339).
    pub restore_timestamp: Option<String>,
    /// The replica that a pipeline without one of its own begins with: a `replica_url` and an identity.
    pub restore_from_url: Option<String>,
    /// The incarnation that may be gone, and in whose place a new one begins.
    pub begin_anew: Option<String>,
    /// `delivery.after: replicated`: whether results leave only once they are in the replica.
    pub results_wait: bool,
}

/// A key by which S3 encrypts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Encryption {
    /// A key that S3 keeps.
    Kms {
        /// The identifier of the key in S3.
        key_id: String,
    },
    /// A key that its owner keeps, and sends with each request.
    CustomerKey,
}

impl Replication {
    /// The settings of replication as one text, for [`Plan::fixed`]. Absent settings are left out, so that a setting
    /// which is new to an operator restarts no pod that does without it.
    fn fixed(&self) -> String {
        let mut settings = serde_json::to_value(self).expect("plain values are always JSON");
        settings.as_object_mut().expect("a struct is an object").retain(|_, value| !value.is_null());
        settings.to_string()
    }
}

/// `spec.audit`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Audit {
    /// Whether audits run by themselves.
    pub enabled: bool,
    /// How long nothing must have been written before an audit begins.
    pub idle_after: Duration,
    /// Least time from one join to the next.
    pub interval: Duration,
    /// Whether results that differ are put right and sent.
    pub repair: bool,
}

/// `spec.admin`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Admin {
    /// Address to listen on, `host:port` or `:port`.
    pub addr: String,
    /// Credentials and TLS of the address.
    pub serving: Serving,
}

/// How an address of ours is served. Credentials are still references.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Serving {
    /// The token that clients must send.
    pub bearer: Option<Credential>,
    /// The certificate.
    pub tls: Option<ServerTls>,
    /// Connections at once.
    pub connections_max: usize,
    /// How long a client may take to send a request, or not take data that it is sent.
    pub client_timeout: Duration,
}

/// A source and where it was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Source {
    /// The name, unique among the sources.
    pub name: String,
    /// The place where it was written.
    pub place: Place,
    /// The kind of the source, with its settings.
    pub kind: SourceKind,
}

/// The kind of a source, with its settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum SourceKind {
    /// Requests to an address of ours.
    Http(HttpSource),
    /// Lines of a file.
    File(FileSource),
    /// Answers of somebody else's API.
    Api(Box<ApiSource>),
    /// Kafka topics.
    Kafka(Box<KafkaSource>),
}

impl SourceKind {
    /// The topics that the source is known to fill; it may fill others.
    pub fn topics(&self) -> Vec<&str> {
        match self {
            Self::Http(http) => http.topics.iter().map(String::as_str).collect(),
            Self::File(file) => file.topic.iter().map(String::as_str).collect(),
            Self::Api(api) => vec![&api.topic],
            Self::Kafka(kafka) => kafka.topics_filled(),
        }
    }
}

/// `http` of a source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HttpSource {
    /// Address to listen on, `host:port` or `:port`.
    pub addr: String,
    /// Topics that are taken; any if empty.
    pub topics: Vec<String>,
    /// Largest body of one request, in bytes.
    pub body_bytes_max: u64,
    /// Whether a message is acknowledged only once it is in the replica.
    pub waits_for_replica: bool,
    /// Credentials and TLS of the address.
    pub serving: Box<Serving>,
}

/// `file` of a source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileSource {
    /// The path as written: `-` is standard input, a relative path is relative to the manifest's folder.
    pub path: String,
    /// How lines are read.
    pub format: FileFormat,
    /// Topic of every row; `None`: each line is `{topic, key, payload}` (NDJSON only).
    pub topic: Option<String>,
    /// Columns (CSV) or top-level fields (NDJSON) whose values, joined by `|`, are the key; set when `topic` is.
    pub key_columns: Vec<String>,
    /// CSV fields that stand for null.
    pub null_values: Vec<String>,
    /// Types of CSV columns.
    pub types: BTreeMap<String, ColumnType>,
    /// How the other CSV columns get a type; `None`: they are text.
    pub infer: Option<TypeInference>,
    /// Rows a second at most.
    pub rows_per_second_max: Option<u32>,
    /// Whether to wait for more at the end of the file.
    pub follow: bool,
}

/// `api` of a source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ApiSource {
    /// The server that is polled, and how requests are sent.
    pub connection: HttpConnection,
    /// Topic of every record.
    pub topic: String,
    /// Method of the requests.
    pub method: ApiMethod,
    /// Body of a POST or PUT.
    pub body: Option<String>,
    /// The time from the start of one poll to that of the next.
    pub interval: Duration,
    /// Where the key is in a record.
    pub key_path: String,
    /// Where the records are in an answer; `None`: they are the answer.
    pub response_path: Option<String>,
    /// How a change is noticed.
    pub change_detection: ChangeDetection,
    /// Whether rows are deleted that a poll does not have.
    pub detect_deletes: bool,
    /// Whether the first poll's records are taken.
    pub initial_snapshot: bool,
    /// Failed polls in a row before the waits grow.
    pub failures_max: u32,
    /// The longest wait between polls that fail.
    pub backoff_max: Duration,
    /// How a poll asks only for new records.
    pub watermark: Option<ApiWatermark>,
    /// How far ahead of the clock a timestamp may lie that becomes the mark.
    pub skew_max: Duration,
    /// How the pages of an answer are asked for.
    pub pagination: Option<ApiPagination>,
    /// Requests at most, and in which time.
    pub rate_limit: Option<(u32, Duration)>,
}

/// `file.format` of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum FileFormat {
    /// Comma-separated values with a header line.
    Csv,
    /// One JSON document a line.
    Ndjson,
}

/// A join and where it was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Join {
    /// The name, unique among topics, joins and windows.
    pub name: String,
    /// The place where it was written.
    pub place: Place,
    /// The SELECT as written.
    pub query: String,
    /// Output column that is the result key; `None` is the first.
    pub key_column: Option<String>,
    /// Second name of the field `key` in results.
    pub result_key: Option<String>,
    /// How often the query is run if it reads the clock where no row says when its result changes.
    pub refresh: Duration,
    /// Names of the sinks that take the join, whether it names the sink or the sink names it, in the order of the
    /// sinks.
    pub sinks: Vec<String>,
}

/// A sink and where it was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sink {
    /// The name, unique among the sinks.
    pub name: String,
    /// The place where it was written.
    pub place: Place,
    /// The kind of the sink, with its settings.
    pub kind: SinkKind,
    /// Names of the joins that the sink takes, in the order of the joins.
    pub joins: Vec<String>,
}

/// The kind of a sink, with its settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum SinkKind {
    /// Server-Sent Events from an address of ours.
    Sse(SseSink),
    /// One JSON line a result on standard output.
    Stdout,
    /// Requests to somebody else's address.
    Http(Box<HttpSink>),
    /// Records in a Kafka topic.
    Kafka(Box<KafkaSink>),
    /// Tables of a SQLite file.
    Sqlite(SqliteSink),
    /// A topic of ours, for the joins and windows that read the results. No manifest has such a sink.
    Topic,
}

/// `sse` of a sink.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SseSink {
    /// Address to listen on, `host:port` or `:port`.
    pub addr: String,
    /// Origins that browsers may come from; `*` alone is any.
    pub cors_origins: Vec<String>,
    /// Time between heartbeat comments.
    pub heartbeat_interval: Duration,
    /// Clients at once.
    pub clients_max: u32,
    /// Credentials and TLS of the address.
    pub serving: Box<Serving>,
}

/// `http` of a sink.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HttpSink {
    /// Where results are posted to, and how.
    pub connection: HttpConnection,
    /// Results in one request: 1 posts an object, more an array.
    pub batch_results_max: usize,
    /// Requests under way at once.
    pub concurrency: usize,
    /// Key of the signature of each body.
    pub signing_key: Option<Credential>,
}

/// How requests are sent to a server. Credentials are still references, to be looked up when a connection is made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HttpConnection {
    /// The URL, with `${NAME}` for environment variables.
    pub url: String,
    /// The time for one request, its answer included.
    pub timeout: Duration,
    /// Headers of each request, with `${NAME}` for environment variables.
    pub headers: BTreeMap<String, String>,
    /// How the worker authenticates.
    pub auth: Option<Auth>,
    /// How the server is checked.
    pub tls: Option<ClientTls>,
    /// URL of a proxy; `None` is the environment's.
    pub proxy: Option<String>,
}

/// `sqlite` of a sink.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SqliteSink {
    /// The path, relative to the working directory.
    pub path: PathBuf,
}

/// `kafka` of a source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KafkaSource {
    /// The cluster.
    pub connection: KafkaConnection,
    /// Kafka topics; one that begins with `^` is a pattern.
    pub kafka_topics: Vec<String>,
    /// Topic of every record; `None`: each Kafka topic fills the topic of its name, or the one in `topic_names`.
    pub topic: Option<String>,
    /// Topics by Kafka topics.
    pub topic_names: BTreeMap<String, String>,
    /// The consumer group under which offsets are committed.
    pub group_id: String,
    /// Where to start when nothing is stored.
    pub start_offset: StartOffset,
    /// Path of the key in the payload; `None` is the record's own key.
    pub key_path: Option<String>,
    /// Path of the key in the record's own key, which is JSON then; `None` is all of it.
    pub record_key_path: Option<String>,
    /// Whether the offset of a record is committed only once the record is in the replica.
    pub waits_for_replica: bool,
}

impl KafkaSource {
    /// The topic that records of a Kafka topic fill.
    pub fn topic_of<'s>(&'s self, kafka_topic: &'s str) -> &'s str {
        let named = || self.topic_names.get(kafka_topic).map(String::as_str);
        self.topic.as_deref().or_else(named).unwrap_or(kafka_topic)
    }

    /// Whether a pattern may find Kafka topics that fill topics of any name.
    pub fn takes_any_topic(&self) -> bool {
        self.topic.is_none() && self.kafka_topics.iter().any(|topic| topic.starts_with('^'))
    }

    /// The topics that are known to be filled; patterns may find more.
    pub fn topics_filled(&self) -> Vec<&str> {
        if let Some(topic) = &self.topic {
            return vec![topic];
        }
        let named = self.kafka_topics.iter().filter(|topic| !topic.starts_with('^'));
        named.map(|topic| self.topic_of(topic)).chain(self.topic_names.values().map(String::as_str)).collect()
    }
}

/// `kafka` of a sink.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KafkaSink {
    /// The cluster.
    pub connection: KafkaConnection,
    /// The Kafka topic that records go to.
    pub kafka_topic: String,
    /// Whether records are written in transactions.
    pub transactional: bool,
    /// How a result key becomes the key of its record.
    pub key_format: KafkaKeyFormat,
}

/// How to reach a Kafka cluster. Credentials are still references, to be looked up when a connection is made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KafkaConnection {
    /// The addresses of brokers, each `host:port`.
    pub brokers: Vec<String>,
    /// How the worker authenticates.
    pub sasl: Option<KafkaSasl>,
    /// How the brokers are checked; `None` is a connection without TLS.
    pub tls: Option<ClientTls>,
}
