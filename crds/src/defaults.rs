//! The defaults of the API that are numbers, sizes, durations and texts, with unit, reason and source; the default of an
//! enum stands at the enum. The schemas, the worker, the charts and the reference draw on these. "The original" is LiteJoin as its public documentation describes it.
//!
//! Durations are texts, so that the schema shows them as a user would write them; a test parses each.

/// Pods that run a pipeline. One holds the shards; zero is a pipeline at rest.
pub const REPLICAS: u32 = 1;

/// Shards that topics are spread over; each has a file and a writer of its own. The original's default.
/// A user cannot simply edit the number, so the rule that guards it must use the same number for "absent".
pub const SHARD_COUNT: u32 = 8;
/// The most shards a pipeline may have. Each costs file handles, a thread and a share of the page cache.
pub const SHARD_COUNT_MAX: u32 = 64;
/// How long the layout of before a re-shard is kept: a working day and a night to see whether all is well. Our choice.
pub const KEEP_OLD_LAYOUT: &str = "24h";
/// Folder of the data, relative to the working directory. The original's default.
pub const DATA_DIR: &str = "./data";
/// Connections that read at once. The original's default.
pub const READER_POOL_SIZE: u32 = 4;
/// The most connections that may read at once: more than cores only adds page caches.
pub const READER_POOL_SIZE_MAX: u32 = 256;
/// Messages one shard commits together at most; more means fewer syncs and later results. The original's default.
pub const BATCH_SIZE: u32 = 1_000;
/// The largest batch: it is held in memory for every shard.
pub const BATCH_SIZE_MAX: u32 = 100_000;
/// How long a message waits for others before its batch is committed. The original's default.
pub const FLUSH_INTERVAL: &str = "10ms";
/// Size of a volume where the spec names none: room for some millions of rows. Our choice.
pub const VOLUME_SIZE: &str = "10Gi";
/// Whether deleting a Pipeline leaves its volume: data is lost only by a decision of its own.
pub const RETAIN_ON_DELETE: bool = true;
/// How a volume may be mounted: by one pod at a time, which fences a second writer.
pub const ACCESS_MODE: &str = "ReadWriteOncePod";

/// Age at which a row expires: never, since reference data that has left does not come back by itself. The original's
/// default is 24h.
pub const RETENTION_DURATION: &str = "forever";
/// Whether sinks are told of results that leave by expiry: they hold what a snapshot shows. Our choice.
pub const RETENTION_EMIT_EXPIRY: bool = true;
/// How often expired rows are looked for. The original's default.
pub const RETENTION_CLEAN_INTERVAL: &str = "1m";
/// How long a deleted key is remembered, so that an older write cannot revive it: as long as rows live.
pub const RETENTION_TOMBSTONE_DURATION: &str = "24h";

/// How long the outbox keeps results that every sink has had, for SSE clients that come back: a laptop's lid, a
/// roll-out.
pub const REPLAY_WINDOW: &str = "10m";
/// Size in bytes above which the results that a lagging sink has yet to get are compacted to the newest of each key.
pub const OUTBOX_BYTES_MAX: u64 = 1 << 30;
/// Failures in a row that open a sink's circuit.
pub const CIRCUIT_FAILURES: u32 = 5;

/// Wait before the first retry of a dead letter. The original's default.
pub const DLQ_RETRY_INTERVAL: &str = "30s";
/// Retries before a letter is given up; 0 is no limit. The original's default.
pub const DLQ_MAX_RETRIES: u32 = 0;
/// Factor by which the wait grows from retry to retry. The original's default.
pub const DLQ_BACKOFF_MULTIPLIER: f64 = 2.0;
/// The longest wait between retries. The original's default.
pub const DLQ_MAX_BACKOFF: &str = "5m";
/// Age at which a dead letter is dropped. The original's default.
pub const DLQ_TTL: &str = "72h";
/// Size in MB (of 2^20 bytes) above which the oldest dead letters are dropped. The original's default.
pub const DLQ_MAX_SIZE_MB: u32 = 500;
/// How often age and size of the dead letters are checked. The original's default.
pub const DLQ_CLEANUP_INTERVAL: &str = "1h";

/// How often Litestream ships new data. The original's default.
pub const REPLICATION_SYNC_INTERVAL: &str = "1s";
/// Whether missing files are restored at the start. The original's default.
pub const REPLICATION_RESTORE_ON_BOOT: bool = true;
/// How often Litestream writes a whole snapshot. The original's default.
pub const REPLICATION_SNAPSHOT_INTERVAL: &str = "1h";
/// How long snapshots, and the changes from one to the next, are kept. The original's default.
pub const REPLICATION_RETENTION: &str = "72h";

/// How long Litestream tries to ship the last of one file when it ends, in seconds; it takes one file after another.
/// Its own default of 30 s would keep a pod whose store is away for minutes.
pub const REPLICATION_LAST_SYNC_SECONDS: u32 = 3;

/// How often a join is evaluated that reads the clock where no row says when its result changes: topics hold whole
/// seconds.
pub const JOIN_REFRESH: &str = "1s";

/// Quiet after which stored results are compared with full evaluations: long enough that no other work waits for the
/// disk.
pub const AUDIT_IDLE_AFTER: &str = "1m";
/// Least time between two such comparisons, each of one join: one reads all rows of the join's topics.
pub const AUDIT_INTERVAL: &str = "10m";

/// Address of health, metrics and status; beside the 9091 of Litestream's metrics.
pub const ADMIN_ADDR: &str = ":9090";

/// Connections at once to one address of ours: twice the clients of an SSE sink.
pub const SERVED_CONNECTIONS_MAX: u32 = 2_000;
/// How long a client of ours may take to send a request, or not take data that it is sent: some retransmissions of TCP.
pub const SERVED_CLIENT_TIMEOUT: &str = "1m";

/// Largest body of one ingest request, in bytes: some tens of thousands of messages.
pub const HTTP_SOURCE_BODY_BYTES_MAX: u64 = 16 << 20;
/// The most topics that the sources of a pipeline may fill: each is a table in every shard.
pub const TOPICS_MAX: usize = 100;
/// The CSV field that stands for null when nothing else is said: an empty one.
pub const FILE_SOURCE_NULL_VALUE: &str = "";

/// Time for one request of an `api` source. The original's default.
pub const API_SOURCE_TIMEOUT: &str = "30s";
/// Whether the first poll's records count as changes. The original's default.
pub const API_SOURCE_INITIAL_SNAPSHOT: bool = true;
/// Failed polls in a row before an `api` source backs off. The original's default.
pub const API_SOURCE_MAX_CONSECUTIVE_FAILURES: u32 = 5;
/// The longest wait of an `api` source that backs off.
pub const API_SOURCE_MAX_BACKOFF: &str = "5m";
/// Pages of one poll at most, so that an API that always names a next page cannot hold a poll for ever.
pub const API_SOURCE_MAX_PAGES: u32 = 1_000;
/// How far ahead of the clock a timestamp watermark may lie: more than clocks and unnamed time zones differ, and not so
/// much that records are missed for long.
pub const API_SOURCE_MAX_SKEW: &str = "24h";

/// Origins that browsers may come from. Any: the stream carries no cookies.
pub const SSE_CORS_ORIGIN: &str = "*";
/// Time between heartbeat comments: below the 30 s and 60 s after which proxies close an idle connection.
pub const SSE_HEARTBEAT_INTERVAL: &str = "15s";
/// SSE clients at once.
pub const SSE_CLIENTS_MAX: u32 = 1_000;

/// Time for one request of an `http` sink. The original's default.
pub const HTTP_SINK_TIMEOUT: &str = "30s";
/// Results in one request of an `http` sink: one, as in the original.
pub const HTTP_SINK_BATCH_SIZE: u32 = 1;
/// Requests of an `http` sink under way at once, never two for one result key.
pub const HTTP_SINK_CONCURRENCY: u32 = 4;

/// How far event time stays behind the newest message of a window's topic.
pub const WINDOW_WATERMARK_DELAY: &str = "0s";
/// Time without a message after which a partition of a source no longer holds the watermark back.
pub const WINDOW_IDLE_TIMEOUT: &str = "1m";
/// How long a window takes messages after the watermark has passed its end.
pub const WINDOW_ALLOWED_LATENESS: &str = "0s";
