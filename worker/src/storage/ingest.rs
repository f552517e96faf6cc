//! The way in: messages go to the writers of their shards, and the sender learns in which epoch they are seen.
//! Messages on their way are bounded in bytes; a sender that finds no room waits or is told to come back.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::arrivals::Arrivals;
use super::hash::shard_index;
use super::rate_limit::IngestLimit;
use super::shard::{Needs, ShardBatch};
use super::sqlite::SqliteError;
use super::topics::{TopicId, Topics};
use super::writer::{WriteError, WriterCommand};
use crate::storage::message::Message;

/// Bytes of messages that may be on their way to the writers, over all sources.
pub(crate) const INFLIGHT_BYTES_MAX: usize = 64 << 20;

/// Bytes of bodies that may have come in so far, over all http sources. They are no part of [`INFLIGHT_BYTES_MAX`]: how long
/// they take is up to clients, and no other client should have to wait for that.
const ARRIVING_BYTES_MAX: usize = 64 << 20;

/// Messages grouped by shard, in their order.
#[derive(Debug)]
pub(crate) struct Batch {
    shards: Vec<Vec<Message>>,
}

impl Batch {
    pub(crate) fn new(shard_count: usize) -> Self {
        Self { shards: (0..shard_count).map(|_| Vec::new()).collect() }
    }

    /// Adds a message and returns the shard it goes to.
    pub(crate) fn push(&mut self, message: Message) -> usize {
        let index = shard_index(&message.key, self.shards.len());
        self.shards[index].push(message);
        index
    }

    /// The messages for each shard.
    pub(crate) fn into_shards(self) -> Vec<Vec<Message>> {
        self.shards
    }
}

/// The outcome of a batch, shard by shard; `None` where it had nothing for the shard.
#[derive(Debug)]
pub(crate) struct BatchOutcome {
    pub(crate) shards: Vec<Option<Result<u64, WriteError>>>,
}

impl BatchOutcome {
    /// The epoch in which everything that was stored is seen; `None` if nothing was.
    pub(crate) fn epoch(&self) -> Option<u64> {
        self.shards.iter().flatten().filter_map(|outcome| outcome.as_ref().ok()).max().copied()
    }
}

/// The way in, shared by all sources.
#[derive(Clone)]
pub(crate) struct Ingest {
    pub(crate) topics: Arc<Topics>,
    /// `None` once the worker stops taking messages.
    writers: Arc<Mutex<Option<Vec<Sender<WriterCommand>>>>>,
    shard_count: usize,
    room: Arc<Semaphore>,
    arriving: Arc<Semaphore>,
    arrivals: Arc<Arrivals>,
    rate_limit: Arc<IngestLimit>,
    /// Gone with the last writer.
    alive: Weak<()>,
}

/// Room for a body that is coming in, which takes as much as has come.
pub(crate) struct Arrival {
    arriving: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
}

impl Arrival {
    /// Takes room for `bytes` more, or says at once that there is none. One that has all there is needs no more.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let has = self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(bytes.min(ARRIVING_BYTES_MAX - has)).expect("64 MiB fits");
        let Ok(more) = Arc::clone(&self.arriving).try_acquire_many_owned(more) else { return false };
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        true
    }
}

/// All writers at rest between two commits, until this is dropped.
#[must_use]
pub(crate) struct Held {
    _releases: Vec<Sender<()>>,
}

/// Checkpoints that writers were asked for.
#[must_use]
pub(crate) struct Checkpoints {
    finished: std::sync::mpsc::Receiver<()>,
}

impl Checkpoints {
    /// Waits for all of them.
    pub(crate) fn wait(self) {
        while self.finished.recv().is_ok() {}
    }
}

impl Ingest {
    /// The way in to these writers, each of which holds on to `alive` for as long as it writes.
    pub(crate) fn new(
        topics: Arc<Topics>,
        writers: Vec<Sender<WriterCommand>>,
        arrivals: Arc<Arrivals>,
        alive: &Arc<()>,
    ) -> Self {
        let shard_count = writers.len();
        let room = Arc::new(Semaphore::new(INFLIGHT_BYTES_MAX));
        let arriving = Arc::new(Semaphore::new(ARRIVING_BYTES_MAX));
        let alive = Arc::downgrade(alive);
        Self {
            topics,
            writers: Arc::new(Mutex::new(Some(writers))),
            shard_count,
            room,
            arriving,
            arrivals,
            rate_limit: Arc::default(),
            alive,
        }
    }

    /// The batches on their way.
    pub(crate) fn arrivals(&self) -> &Arc<Arrivals> {
        &self.arrivals
    }

    pub(crate) fn batch(&self) -> Batch {
        Batch::new(self.shard_count)
    }

    /// Whether there is room for `bytes` at present.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.room.available_permits() >= bytes.clamp(1, INFLIGHT_BYTES_MAX)
    }

    /// No room yet, for a body that is about to come in.
    pub(crate) fn arrival(&self) -> Arrival {
        Arrival { arriving: Arc::clone(&self.arriving), taken: None }
    }

    /// Takes room for `bytes`, or says at once that there is none.
    pub(crate) fn try_room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes.clamp(1, INFLIGHT_BYTES_MAX)).expect("64 MiB fits");
        Arc::clone(&self.room).try_acquire_many_owned(bytes).ok()
    }

    /// Waits for room for `bytes`.
    pub(crate) async fn room(&self, bytes: usize) -> OwnedSemaphorePermit {
        let bytes = u32::try_from(bytes.clamp(1, INFLIGHT_BYTES_MAX)).expect("64 MiB fits");
        Arc::clone(&self.room).acquire_many_owned(bytes).await.expect("the semaphore is never closed")
    }

    /// Bytes that are on their way now.
    pub(crate) fn inflight_bytes(&self) -> usize {
        INFLIGHT_BYTES_MAX - self.room.available_permits()
    }

    pub(crate) fn shard_count(&self) -> usize {
        self.shard_count
    }

    /// Hands a batch of a source's partition to the writers and waits until every shard has committed or refused its part.
    pub(crate) async fn write(&self, batch: Batch, partition: &Arc<str>) -> BatchOutcome {
        self.rate_limit.pass(batch.shards.iter().map(Vec::len).sum()).await;
        let arrival = self.arrivals.begin(partition);
        let waiting: Vec<_> = batch
            .shards
            .into_iter()
            .enumerate()
            .map(|(index, messages)| {
                let partition = Arc::clone(partition);
                let arrivals = vec![Arc::clone(&arrival)];
                let batch = ShardBatch { messages: Arc::new(messages), partition, arrivals, stream: None };
                (!batch.messages.is_empty()).then(|| self.send(index, batch))
            })
            .collect();
        let mut shards = Vec::with_capacity(waiting.len());
        for answer in waiting {
            shards.push(match answer {
                Some(answer) => Some(answer.await.unwrap_or(Err(WriteError::Stopping))),
                None => None,
            });
        }
        BatchOutcome { shards }
    }

    /// Hands a batch to the writer of one shard and waits until it is committed or refused. An empty one stores
    /// just its place in the stream.
    pub(crate) async fn write_shard(&self, shard_index: usize, batch: ShardBatch) -> Result<u64, WriteError> {
        self.rate_limit.pass(batch.messages.len()).await;
        self.send(shard_index, batch).await.unwrap_or(Err(WriteError::Stopping))
    }

    /// How fast messages may come.
    pub(crate) fn rate_limit(&self) -> &IngestLimit {
        &self.rate_limit
    }

    /// Hands a batch to a writer. One that is gone drops it, and with it the sender of the answer.
    fn send(&self, shard_index: usize, batch: ShardBatch) -> oneshot::Receiver<Result<u64, WriteError>> {
        let (done, answer) = oneshot::channel();
        let writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writers) = writers.as_ref() {
            let _ = writers[shard_index].send(WriterCommand::Write { batch, done });
        }
        answer
    }

    /// Sends a command of its own to each writer; `false` once the worker stops.
    pub(crate) fn command_all(&self, commands: Vec<WriterCommand>) -> bool {
        let writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(writers) = writers.as_ref() else { return false };
        for (writer, command) in writers.iter().zip(commands) {
            writer.send(command).expect("a writer runs until its sender is gone");
        }
        true
    }

    /// Gives all rows of a topic that are due for it the present time, since their source still has them. Blocks.
    pub(crate) fn renew(&self, topic: TopicId) {
        loop {
            let (done, finished) = std::sync::mpsc::channel();
            let commands =
                (0..self.shard_count).map(|_| WriterCommand::Renew { topic, done: done.clone() }).collect();
            drop(done);
            if !self.command_all(commands) || !finished.iter().fold(false, |any, more| any | more) {
                return;
            }
        }
    }

    /// Has the writers of some shards checkpoint. Readers that hold a snapshot all the time keep a WAL from ever starting
    /// over; this is for the moment when they don't.
    pub(crate) fn checkpoint(&self, shards: &[usize]) -> Checkpoints {
        let (done, finished) = std::sync::mpsc::channel();
        let writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writers) = writers.as_ref() {
            for shard in shards {
                let command = WriterCommand::Checkpoint { done: done.clone() };
                writers[*shard].send(command).expect("a writer runs until its sender is gone");
            }
        }
        Checkpoints { finished }
    }

    /// Brings all writers to rest, so that the shards are as they were at one instant. `None` if that takes longer than
    /// `timeout`, and then they go on at once. Blocks.
    pub(crate) fn hold(&self, timeout: Duration) -> Option<Held> {
        let deadline = Instant::now() + timeout;
        let (held, at_rest) = channel();
        let (releases, commands) = (0..self.shard_count)
            .map(|_| {
                let (release, released) = channel();
                (release, WriterCommand::Hold { held: held.clone(), release: released })
            })
            .unzip();
        if !self.command_all(commands) {
            // The writers end by themselves.
            return (self.alive.strong_count() == 0).then_some(Held { _releases: releases });
        }
        for _ in 0..self.shard_count {
            at_rest.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        }
        Some(Held { _releases: releases })
    }

    /// Makes the tables and indexes that joins need, one shard after another, so that the others can be written to.
    pub(crate) fn prepare(&self, needs: Needs) -> Result<(), SqliteError> {
        let needs = Arc::new(needs);
        let mut shard_index = 0;
        loop {
            let (done, finished) = std::sync::mpsc::channel();
            {
                let writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(writer) = writers.as_ref().and_then(|writers| writers.get(shard_index)) else {
                    return Ok(());
                };
                let command = WriterCommand::Prepare { needs: Arc::clone(&needs), done };
                writer.send(command).expect("a writer runs until its sender is gone");
            }
            if let Ok(outcome) = finished.recv() {
                outcome?;
            }
            shard_index += 1;
        }
    }

    /// Takes no more messages; the writers end when they have committed what they have.
    pub(crate) fn close(&self) {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
