//! The ways of one source's messages into the shards: a lane each, which writes one batch after another, so that no shard
//! can store a place behind messages that it could not store; and since each shard has its own, none waits for another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tracing::warn;

use crate::status::source::SourceStatus;
use crate::storage::arrivals::{Arrivals, BatchArrival};
use crate::storage::ingest::{Batch, Ingest};
use crate::storage::message::Message;
use crate::storage::shard::{ShardBatch, Stream};

/// Parts that wait for a shard, some 4,000 messages of a file: a checkpoint of one shard takes as long as several of its
/// transactions, and the others should not have to wait for it.
const LANE_PARTS_MAX: usize = 64;

/// Waits between attempts to store what could not be stored.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// The part of a batch for one shard.
struct LanePart {
    messages: Vec<Message>,
    /// The place behind the last message of the batch.
    stream: Option<Stream>,
    /// The batch that it is a part of.
    arrival: Arc<BatchArrival>,
    /// Held until every part of the batch is stored.
    _room: Option<Arc<OwnedSemaphorePermit>>,
}

/// The ends of all lanes of a source.
pub(crate) struct Lanes {
    senders: Vec<mpsc::Sender<LanePart>>,
    tasks: JoinSet<()>,
    progress: Arc<StreamProgress>,
    source: Arc<str>,
    arrivals: Arc<Arrivals>,
}

/// How far each shard has stored each stream since the source was started.
#[derive(Debug)]
pub(crate) struct StreamProgress {
    shards: Vec<Mutex<HashMap<Arc<str>, u64>>>,
    moved: Notify,
}

impl StreamProgress {
    /// The place below which all shards have all of a stream; `None` until each has told.
    pub(crate) fn stored(&self, stream: &str) -> Option<u64> {
        let of_shard = |shard: &Mutex<HashMap<Arc<str>, u64>>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).get(stream).copied()
        };
        self.shards.iter().map(of_shard).try_fold(u64::MAX, |least, next| Some(least.min(next?)))
    }

    fn note(&self, shard_index: usize, stream: Option<Stream>) {
        if let Some(stream) = stream {
            let mut shard = self.shards[shard_index].lock().unwrap_or_else(PoisonError::into_inner);
            shard.insert(stream.name, stream.next);
            drop(shard);
            self.moved.notify_waiters();
        }
    }

    /// Waits until all shards have all of a stream below its place.
    pub(crate) async fn reaches(&self, stream: &Stream) {
        loop {
            let moved = self.moved.notified();
            if self.stored(&stream.name).is_some_and(|next| next >= stream.next) {
                return;
            }
            moved.await;
        }
    }
}

impl Lanes {
    /// Starts a lane for each shard; a transaction has `messages_max` of its messages at most.
    pub(crate) fn open(
        source: &str,
        ingest: &Ingest,
        status: &Arc<SourceStatus>,
        stopping: &watch::Receiver<bool>,
        messages_max: usize,
    ) -> Self {
        let shard_count = ingest.shard_count();
        let shards = (0..shard_count).map(|_| Mutex::default()).collect();
        let progress = Arc::new(StreamProgress { shards, moved: Notify::new() });
        let mut tasks = JoinSet::new();
        let senders = (0..shard_count)
            .map(|shard_index| {
                let (sender, parts) = mpsc::channel(LANE_PARTS_MAX);
                let lane = Lane {
                    shard_index,
                    source: source.to_owned(),
                    ingest: ingest.clone(),
                    status: Arc::clone(status),
                    stopping: stopping.clone(),
                    messages_max,
                    progress: Arc::clone(&progress),
                };
                tasks.spawn(lane.run(parts));
                sender
            })
            .collect();
        let arrivals = Arc::clone(ingest.arrivals());
        Self { senders, tasks, progress, source: source.into(), arrivals }
    }

    pub(crate) fn progress(&self) -> &Arc<StreamProgress> {
        &self.progress
    }

    /// Gives each lane its part of the batch as soon as it can take it. With `everywhere`, shards without a part are told
    /// the place as well.
    pub(crate) async fn hand_over(
        &self,
        batch: Batch,
        stream: Option<&Stream>,
        room: Option<OwnedSemaphorePermit>,
        everywhere: bool,
    ) {
        let room = room.map(Arc::new);
        let partition = stream.map_or_else(|| Arc::clone(&self.source), |stream| Arc::clone(&stream.name));
        let arrival = self.arrivals.begin(&partition);
        for (lane, messages) in self.senders.iter().zip(batch.into_shards()) {
            if !messages.is_empty() || everywhere {
                // A lane ends before its sender is gone only when the worker stops.
                let (stream, arrival, _room) = (stream.cloned(), Arc::clone(&arrival), room.clone());
                let _ = lane.send(LanePart { messages, stream, arrival, _room }).await;
            }
        }
    }

    /// Waits until everything is stored, or the worker stops while something can't be.
    pub(crate) async fn finish(mut self) {
        self.senders.clear();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The way into one shard.
struct Lane {
    shard_index: usize,
    source: String,
    ingest: Ingest,
    status: Arc<SourceStatus>,
    stopping: watch::Receiver<bool>,
    messages_max: usize,
    progress: Arc<StreamProgress>,
}

/// What has come in of one stream while the shard was busy.
struct StreamBatch {
    /// How far the stream is read with these messages.
    stream: Option<Stream>,
    messages: Vec<Message>,
    arrivals: Vec<Arc<BatchArrival>>,
}

impl Lane {
    /// Writes parts until there are no more, or the worker stops while one can't be stored.
    async fn run(mut self, mut parts: mpsc::Receiver<LanePart>) {
        while let Some(first) = parts.recv().await {
            // Parts that have come in while the shard was busy go into one transaction.
            let mut rooms = Vec::new();
            let mut batches: Vec<StreamBatch> = Vec::new();
            let mut count = 0;
            let mut next = Some(first);
            while let Some(part) = next {
                count += part.messages.len();
                rooms.extend(part._room);
                let name = part.stream.as_ref().map(|stream| &stream.name);
                match batches.iter_mut().find(|batch| batch.stream.as_ref().map(|s| &s.name) == name) {
                    Some(batch) => {
                        batch.stream = part.stream;
                        batch.messages.extend(part.messages);
                        batch.arrivals.push(part.arrival);
                    }
                    None => batches.push(StreamBatch {
                        stream: part.stream,
                        messages: part.messages,
                        arrivals: vec![part.arrival],
                    }),
                }
                next = if count < self.messages_max { parts.try_recv().ok() } else { None };
            }
            let batches = batches
                .into_iter()
                .map(|StreamBatch { stream, messages, arrivals }| {
                    let partition =
                        stream.as_ref().map_or_else(|| self.source.as_str().into(), |s| Arc::clone(&s.name));
                    ShardBatch { messages: Arc::new(messages), partition, arrivals, stream }
                })
                .collect();
            if !self.write(batches).await {
                return;
            }
            self.status.accepted.add(count as u64);
        }
    }

    /// Writes batches, each of another stream, again and again until the shard has them; `false` if the worker stops
    /// first.
    async fn write(&mut self, mut batches: Vec<ShardBatch>) -> bool {
        let mut pause = RETRY_MIN;
        loop {
            let writes = batches.iter().map(|batch| self.ingest.write_shard(self.shard_index, batch.clone()));
            let outcomes = join_all(writes).await;
            let mut problem = None;
            let mut left = Vec::new();
            for (batch, outcome) in batches.into_iter().zip(outcomes) {
                match outcome {
                    Ok(_) => self.progress.note(self.shard_index, batch.stream),
                    Err(error) => {
                        problem = Some(error);
                        left.push(batch);
                    }
                }
            }
            let Some(problem) = problem else {
                if pause > RETRY_MIN {
                    self.status.error.clear();
                }
                return true;
            };
            batches = left;
            if self.status.error.set(&problem.to_string()) {
                warn!(source = self.source, error = %problem, "waiting to store messages");
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.stopping.wait_for(|stopping| *stopping) => return false,
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }
}
