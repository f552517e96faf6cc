//! Committing epochs: each commit, of an epoch or from the background, gets the next position in the outbox.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::clock;
use crate::join::keyed::FailingKeys;
use crate::join::value::Value;
use crate::results::event::JoinId;
use crate::results::store::{EpochWriter, Results};
use crate::results::{Applied, Position};
use crate::status::Status;
use crate::storage::checkpoint::Checkpointer;
use crate::storage::gate::EpochGate;
use crate::storage::sqlite::SqliteError;

/// The only writer of results of joins in `results.db`.
pub(super) struct Committer {
    gate: Arc<EpochGate>,
    results: Arc<Results>,
    status: Arc<Status>,
    applied: watch::Sender<Applied>,
    /// Checkpoints of the shards by index, and of `results.db` at the index behind them.
    checkpointer: Checkpointer,
    shard_count: usize,
    /// The last epoch number that is reserved.
    reserved: Mutex<u64>,
    /// The number of threads that wait to commit.
    waiting: AtomicUsize,
}

impl Committer {
    pub(super) fn new(
        gate: Arc<EpochGate>,
        results: Arc<Results>,
        status: Arc<Status>,
        applied: watch::Sender<Applied>,
        shard_paths: &[PathBuf],
        reserved: u64,
    ) -> Self {
        let paths = shard_paths.iter().cloned().chain([results.path().to_owned()]);
        Self {
            gate,
            checkpointer: Checkpointer::start(paths, results.journal().wal_bytes_high),
            shard_count: shard_paths.len(),
            results,
            status,
            applied,
            reserved: Mutex::new(reserved),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Returns the result keys of a join that fail, each with the reason.
    pub(super) fn failing(&self, join: JoinId) -> Result<FailingKeys, SqliteError> {
        let failing = self.results.failing(join)?;
        Ok(failing.into_iter().filter_map(|(key, error)| Some((Value::from_json(&key)?, error))).collect())
    }

    pub(super) fn status(&self) -> &Status {
        &self.status
    }

    pub(super) fn reserved(&self) -> u64 {
        *self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves epoch numbers for the next cuts and commits.
    pub(super) fn reserve(&self) -> Result<(), SqliteError> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        self.results.extend_reservation(self.gate.next_epoch(), &mut reserved)
    }

    /// Opens a window for checkpoints; see [`Results::open_window`].
    pub(super) fn open_window(&self) -> Result<(), SqliteError> {
        self.results.open_window()
    }

    /// Writes results that follow from the cut with number `cut_epoch`, and wakes sinks.
    pub(super) fn commit<E: From<SqliteError>>(
        &self,
        cut_epoch: u64,
        work: impl FnOnce(&mut EpochWriter<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.reserve()?;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut is_waiting = true;
        let outcome = self.results.with_epoch(cut_epoch, clock::epoch_seconds(), |writer| {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            is_waiting = false;
            work(writer)
        });
        if is_waiting {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        let ((), committed) = outcome?;
        self.status.outbox_bytes.add(i64::try_from(committed.outbox_bytes).unwrap_or(i64::MAX));
        self.applied.send_if_modified(|applied| {
            let newer = committed.position > applied.end;
            applied.end = applied.end.max(committed.position);
            newer
        });
        if self.checkpointer.is_due(self.shard_count) {
            // Sinks are woken first: they need not wait for the disk. A failed checkpoint is tried again after the
            // next commit.
            let _ = self.results.checkpoint();
        }
        Ok(())
    }

    /// Returns the shards that should checkpoint at the next moment without readers.
    pub(super) fn due_shards(&self) -> Vec<usize> {
        (0..self.shard_count).filter(|shard| self.checkpointer.is_due(*shard)).collect()
    }

    /// Returns whether the WAL of a shard is so long that its writer should wait for the checkpoint.
    pub(super) fn wal_over_limit(&self, shard: usize) -> bool {
        self.checkpointer.wal_over_limit(shard)
    }

    /// Waits until all waiting threads have committed: the lock alone could admit its last owner again.
    pub(super) fn give_way(&self) {
        while self.waiting.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
    }

    /// Publishes that the results of every join contain the cut with this number.
    pub(super) fn passed(&self, cut_epoch: u64) {
        self.applied.send_if_modified(|applied| {
            let newer = cut_epoch > applied.epoch;
            if newer {
                applied.epoch = cut_epoch;
                applied.end = applied.end.max(Position::start_of(cut_epoch));
                self.status.epoch_applied.set(cut_epoch);
            }
            newer
        });
    }
}
