//! The thread that writes one shard. It gathers messages until a batch is full or the oldest has waited for
//! `flushInterval`, commits them through the gate, and then tells each sender.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use litejoin_crds::error::chain;
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::expiry::Expiry;
use super::gate::EpochGate;
use super::shard::{CommittedChanges, Needs, Pending, Shard, ShardBatch};
use super::sqlite::SqliteError;
use super::topics::{TopicId, Topics};
use crate::clock;
use crate::fault;
use crate::status::Status;
use crate::status::storage::StorageExcess;

/// A request to a writer.
pub(crate) enum WriterCommand {
    Write {
        batch: ShardBatch,
        done: Acknowledgement,
    },
    Expire(Expiry),
    /// Gives some rows of a topic the present time, since their source still has them; says whether there may be more.
    Renew {
        topic: TopicId,
        done: mpsc::Sender<bool>,
    },
    /// Trims the change log, for which no write comes.
    Trim,
    /// Makes the tables and indexes that joins need, and drops indexes that none does.
    Prepare {
        needs: Arc<Needs>,
        done: mpsc::Sender<Result<(), SqliteError>>,
    },
    /// Moves the content of the WAL into the file, while no connection reads what was before.
    Checkpoint {
        done: mpsc::Sender<()>,
    },
    /// Writes nothing until `release` is dropped.
    Hold {
        held: mpsc::Sender<()>,
        release: Receiver<()>,
    },
}

/// Why a batch was not stored. None of it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("the disk is full; nothing of this was stored, send it again when there is space")]
    DiskFull,
    #[error("{0}; nothing of this was stored, send it again when there is room")]
    BytesMax(StorageExcess),
    #[error("the shard could not be written ({detail}); send it again")]
    Failed { detail: String },
    #[error("the worker is stopping; send it again")]
    Stopping,
}

impl WriteError {
    fn new(error: &SqliteError) -> Self {
        if error.is_disk_full() { Self::DiskFull } else { Self::Failed { detail: chain(error) } }
    }
}

/// The sender of the answer to a batch.
type Acknowledgement = oneshot::Sender<Result<u64, WriteError>>;

/// Refuses the batches that bring payloads, since the data takes too much, and returns the others: deletions make room.
fn refuse_payloads(
    batches: Vec<ShardBatch>,
    waiting: Vec<Acknowledgement>,
    excess: StorageExcess,
) -> (Vec<ShardBatch>, Vec<Acknowledgement>) {
    let mut taken = (Vec::new(), Vec::new());
    for (batch, done) in batches.into_iter().zip(waiting) {
        if batch.messages.iter().any(|message| message.payload.is_some()) {
            // The sender may have gone.
            let _ = done.send(Err(WriteError::BytesMax(excess)));
        } else {
            taken.0.push(batch);
            taken.1.push(done);
        }
    }
    taken
}

/// The writer of a shard, and all that it works with.
pub(crate) struct Writer {
    pub(crate) shard_index: usize,
    pub(crate) shard: Shard,
    pub(crate) topics: Arc<Topics>,
    pub(crate) gate: Arc<EpochGate>,
    pub(crate) status: Arc<Status>,
    pub(crate) batch_messages_max: usize,
    pub(crate) flush_interval: Duration,
    /// Newest `seq` that every join has applied.
    pub(crate) trim_to: Arc<AtomicI64>,
    /// Whether the last write found the disk full.
    pub(crate) was_full: bool,
}

impl Writer {
    /// Runs until every sender is gone.
    pub(crate) fn run(mut self, commands: &Receiver<WriterCommand>) {
        while let Ok(first) = commands.recv() {
            let mut batches = Vec::new();
            let mut waiting = Vec::new();
            let mut other = None;
            let mut messages = 0;
            let deadline = Instant::now() + self.flush_interval;
            let mut next = Ok(first);
            loop {
                match next {
                    Ok(WriterCommand::Write { batch, done }) => {
                        messages += batch.messages.len();
                        batches.push(batch);
                        waiting.push(done);
                    }
                    Ok(command) => {
                        other = Some(command);
                        break;
                    }
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
                if messages >= self.batch_messages_max {
                    break;
                }
                next = commands.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            }
            if let Some(excess) = self.status.storage.excess() {
                (batches, waiting) = refuse_payloads(batches, waiting, excess);
            }
            if !batches.is_empty() {
                let outcome = self.write(&batches);
                for done in waiting {
                    // A sender that has gone away has lost interest in the answer, not in the data.
                    let _ = done.send(outcome.clone());
                }
            }
            match other {
                None | Some(WriterCommand::Write { .. }) => {}
                Some(WriterCommand::Expire(expiry)) => self.expire(&expiry),
                Some(WriterCommand::Renew { topic, done }) => {
                    // The source may have gone.
                    let _ = done.send(self.renew(topic));
                }
                Some(WriterCommand::Trim) => self.trim(),
                Some(WriterCommand::Prepare { needs, done }) => {
                    // The caller may have gone.
                    let _ = done.send(self.shard.prepare(&needs, &self.topics, clock::epoch_seconds()));
                }
                Some(WriterCommand::Checkpoint { done }) => {
                    // A checkpoint that fails now is tried again at a commit, which reports it.
                    let _ = self.shard.checkpoint();
                    let _ = done.send(());
                }
                Some(WriterCommand::Hold { held, release }) => {
                    // The caller may have given up, and then has dropped the other end.
                    let _ = held.send(());
                    let _ = release.recv();
                }
            }
        }
        if let Err(error) = self.shard.checkpoint() {
            warn!(
                shard = self.shard_index,
                error = chain(&error),
                "could not checkpoint; the WAL stays beside the file"
            );
        }
    }

    fn write(&mut self, batches: &[ShardBatch]) -> Result<u64, WriteError> {
        // Messages that are stored now can't be trimmed before the joins have them: they would take the space that the
        // joins wait for.
        if let Some((detail, disk_full)) = self.status.results_problem() {
            let detail = format!("results can't be stored: {detail}");
            return Err(if disk_full { WriteError::DiskFull } else { WriteError::Failed { detail } });
        }
        if self.was_full {
            // First of all let the file have what the WAL holds, while there is space: then the WAL is written
            // from its start again and needs no more.
            let _ = self.shard.checkpoint();
        }
        let now = self.gate.stamp(self.shard_index);
        let trim_to = self.trim_to.load(Ordering::Relaxed);
        let outcome = self
            .shard
            .open_window()
            .and_then(|()| self.shard.write(batches, &self.topics, now, trim_to))
            .and_then(|pending| self.commit(pending));
        self.gate.stamped(self.shard_index);
        self.report(outcome)
    }

    fn expire(&mut self, expiry: &Expiry) {
        let now = clock::epoch_seconds();
        let outcome = self.shard.expire(expiry, now).and_then(|pending| self.commit(pending));
        // Rows that could not be removed now are found again by the next pass.
        let _ = self.report(outcome);
        // The cleaner may have gone.
        let _ = expiry.done.send(());
    }

    /// Returns whether there may be more rows to renew. A failure is reported; the source asks again.
    fn renew(&mut self, topic: TopicId) -> bool {
        let now = self.gate.stamp(self.shard_index);
        let renewed = self.shard.renew(topic, &self.topics, now);
        let outcome = renewed.and_then(|(pending, more)| Ok((self.commit(pending)?, more)));
        self.gate.stamped(self.shard_index);
        let more = outcome.as_ref().is_ok_and(|(_, more)| *more);
        let _ = self.report(outcome.map(|(epoch, _)| epoch));
        more
    }

    fn trim(&mut self) {
        let trim_to = self.trim_to.load(Ordering::Relaxed);
        let mut trimmed = Ok(true);
        while let Ok(true) = trimmed {
            trimmed = self.shard.trim_log(trim_to);
        }
        if let Err(error) = trimmed {
            // What is left goes with the next write, which tells of an error too.
            warn!(shard = self.shard_index, error = chain(&error), "could not trim the change log");
        }
    }

    fn commit(&mut self, mut pending: Pending) -> Result<u64, SqliteError> {
        let mut committed = CommittedChanges::default();
        let shard = &mut self.shard;
        fault::point("batch-written");
        let times = std::mem::take(&mut pending.times);
        let epoch = self.gate.pass(self.shard_index, pending.last_seq, pending.bytes, || {
            committed = shard.commit(pending)?;
            Ok::<(), SqliteError>(())
        })?;
        fault::point("batch-committed");
        for (arrival, clock, time) in times {
            arrival.note(&clock, time);
        }
        for (topic, counts) in committed.counts {
            self.status.topic(&self.topics.name(topic)).add(counts);
        }
        for (topic, growth) in committed.sizes {
            self.status.topic(&self.topics.name(topic)).grow(growth);
        }
        Ok(epoch)
    }

    fn report(&mut self, outcome: Result<u64, SqliteError>) -> Result<u64, WriteError> {
        match outcome {
            Ok(epoch) => {
                self.was_full = false;
                self.status.storage_recovered(self.shard_index);
                Ok(epoch)
            }
            Err(error) => {
                let write_error = WriteError::new(&error);
                self.was_full = write_error == WriteError::DiskFull;
                if self.status.storage_failed(self.shard_index, &write_error.to_string()) {
                    error!(shard = self.shard_index, error = chain(&error), "could not commit a batch");
                }
                Err(write_error)
            }
        }
    }
}
