//! Consumes Kafka topics. Every partition is ours: the places are stored with the data, in each shard for each partition,
//! and what the broker is told of them is for monitoring alone. So no rebalance ever takes a partition away, and no other
//! member of the group can.
//!
//! ```text
//! client thread: find partitions ─► begin each ─► records ─► messages ─┬─► block ─► lanes ─► shards
//!                     ▲ every few seconds                              └─► dead-letter queue
//! ```
//! The thread waits where the lanes do; the client then fetches no more than a few MiB ahead.

mod client;
mod committer;
mod place;
mod record;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use litejoin_crds::plan;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::info;

use self::client::KafkaClient;
use crate::credentials::Secrets;
use crate::dead_letters::DeadLetters;
use crate::source::lanes::Lanes;
use crate::status::source::SourceStatus;
use crate::storage::ingest::Ingest;
use crate::storage::message::Message;
use crate::storage::replication_barrier::ReplicationBarrier;
use crate::storage::shard::Stream;

/// Blocks that wait between reading and writing.
const BLOCKS_MAX: usize = 4;

/// How often every shard is told how far each partition has been read.
const FRONTIER_INTERVAL: Duration = Duration::from_secs(1);

/// How long a stop waits for the broker to be told where we are.
const GOODBYE_MAX: Duration = Duration::from_secs(3);

/// A Kafka source, ready to run.
pub(crate) struct KafkaReader {
    pub(crate) name: String,
    pub(crate) spec: plan::KafkaSource,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) ingest: Ingest,
    pub(crate) letters: Arc<DeadLetters>,
    pub(crate) status: Arc<SourceStatus>,
    /// The barrier at which commits wait, where the broker is told only of replicated records.
    pub(crate) replication_barrier: Option<ReplicationBarrier>,
    pub(crate) stopping: watch::Receiver<bool>,
    /// Messages of one transaction of a shard.
    pub(crate) batch_messages_max: usize,
    /// Streams of this source that the shards know, each with the least offset over all shards.
    pub(crate) stored: HashMap<String, u64>,
}

/// A message of the client thread.
enum RecordBlock {
    /// Partitions that the shards do not know yet: each has to store where they begin before anything of them comes.
    Begin(Vec<Stream>),
    /// Messages of partitions, in the order of each.
    Records(Vec<PartitionRun>),
}

/// Messages of one partition.
struct PartitionRun {
    /// The place behind the last record, message or not.
    stream: Stream,
    messages: Vec<Message>,
    bytes: usize,
}

impl KafkaReader {
    /// Reads until the worker stops.
    pub(crate) async fn run(self) {
        let lanes =
            Lanes::open(&self.name, &self.ingest, &self.status, &self.stopping, self.batch_messages_max);
        let (sender, blocks) = mpsc::channel(BLOCKS_MAX);
        let (stored, all_stored) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let (ingest, stopping) = (self.ingest.clone(), self.stopping.clone());
        let client = KafkaClient {
            name: self.name.clone(),
            spec: self.spec,
            secrets: self.secrets,
            topics: Arc::clone(&self.ingest.topics),
            letters: self.letters,
            status: self.status,
            replication_barrier: self.replication_barrier,
            stopping: self.stopping,
            stored: self.stored,
            progress: Arc::clone(lanes.progress()),
            blocks: sender,
            is_troubled: Cell::default(),
        };
        let handle = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name(format!("kafka-{}", self.name))
            .spawn(move || {
                let _entered = handle.enter();
                client.run(all_stored);
                // The other end may have given up waiting.
                let _ = ended.send(());
            })
            .expect("a thread can be started");
        write_all(&ingest, blocks, lanes, stopping).await;
        let _ = stored.send(());
        // A client that hangs in a call is left to itself.
        let _ = tokio::time::timeout(GOODBYE_MAX, end).await;
        info!(source = self.name, "stopped reading");
    }
}

/// Hands blocks to the lanes until the worker stops, and then waits until all shards know how far that was.
async fn write_all(
    ingest: &Ingest,
    mut blocks: mpsc::Receiver<RecordBlock>,
    lanes: Lanes,
    mut stopping: watch::Receiver<bool>,
) {
    // How far each partition was read, and what of that every shard has been told.
    let mut places: HashMap<Arc<str>, (u64, u64)> = HashMap::new();
    let mut frontier_sent = Instant::now();
    loop {
        let until_frontier = FRONTIER_INTERVAL.saturating_sub(frontier_sent.elapsed());
        let block = tokio::select! {
            block = blocks.recv() => block,
            _ = stopping.wait_for(|stopping| *stopping) => None,
            () = tokio::time::sleep(until_frontier) => Some(RecordBlock::Records(Vec::new())),
        };
        match block {
            None => break,
            Some(RecordBlock::Begin(streams)) => {
                for stream in &streams {
                    lanes.hand_over(ingest.batch(), Some(stream), None, true).await;
                }
                let begun = join_all(streams.iter().map(|stream| lanes.progress().reaches(stream)));
                tokio::select! {
                    _ = begun => {}
                    _ = stopping.wait_for(|stopping| *stopping) => break,
                }
                places.extend(streams.into_iter().map(|stream| (stream.name, (stream.next, stream.next))));
            }
            Some(RecordBlock::Records(runs)) => {
                for PartitionRun { stream, messages, bytes } in runs {
                    places.entry(Arc::clone(&stream.name)).or_default().0 = stream.next;
                    if messages.is_empty() {
                        continue;
                    }
                    let mut batch = ingest.batch();
                    messages.into_iter().for_each(|message| {
                        batch.push(message);
                    });
                    let room = ingest.room(bytes).await;
                    lanes.hand_over(batch, Some(&stream), Some(room), false).await;
                }
            }
        }
        if frontier_sent.elapsed() >= FRONTIER_INTERVAL {
            frontier_sent = Instant::now();
            send_frontier(ingest, &lanes, &mut places).await;
        }
    }
    // The client hears by this that its other end is gone.
    drop(blocks);
    send_frontier(ingest, &lanes, &mut places).await;
    lanes.finish().await;
}

/// Tells every shard the places that have moved since they were told last.
async fn send_frontier(ingest: &Ingest, lanes: &Lanes, places: &mut HashMap<Arc<str>, (u64, u64)>) {
    for (name, (next, sent)) in places {
        if next > sent {
            let stream = Stream { name: Arc::clone(name), next: *next };
            lanes.hand_over(ingest.batch(), Some(&stream), None, true).await;
            *sent = *next;
        }
    }
}
