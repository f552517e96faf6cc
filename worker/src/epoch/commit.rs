//! Committing epochs: whoever has results ready gets a number above all before it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::clock;
use crate::results::Position;
use crate::results::store::{EpochWriter, Results};
use crate::status::Status;
use crate::storage::gate::EpochGate;
use crate::storage::sqlite::SqliteError;

/// The one way to `results.db` for evaluations.
pub(super) struct Committer {
    gate: Arc<EpochGate>,
    results: Arc<Results>,
    status: Arc<Status>,
    applied: watch::Sender<Position>,
    /// Last epoch number that is reserved.
    reserved: Mutex<u64>,
    /// The newest cut that all results contain.
    passed: AtomicU64,
}

impl Committer {
    pub(super) fn new(
        gate: Arc<EpochGate>,
        results: Arc<Results>,
        status: Arc<Status>,
        applied: watch::Sender<Position>,
        reserved: u64,
    ) -> Self {
        Self { gate, results, status, applied, reserved: Mutex::new(reserved), passed: AtomicU64::new(0) }
    }

    pub(super) fn status(&self) -> &Status {
        &self.status
    }

    pub(super) fn reserved(&self) -> u64 {
        *self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps enough epoch numbers reserved for cuts and commits to come.
    pub(super) fn reserve(&self) -> Result<(), SqliteError> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        self.results.extend_reservation(self.gate.next_epoch(), &mut reserved)
    }

    /// Writes results that follow from the cut with number `cut_epoch`, and tells sinks. They get that number, or a
    /// fresh one if others have come before them.
    pub(super) fn commit<E: From<SqliteError>>(
        &self,
        cut_epoch: u64,
        work: impl FnOnce(&mut EpochWriter<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.reserve()?;
        let number = |last| if cut_epoch > last { cut_epoch } else { self.gate.fresh_epoch() };
        let ((), committed) = self.results.with_epoch(number, clock::epoch_seconds(), work)?;
        self.status.outbox_bytes.add(i64::try_from(committed.outbox_bytes).unwrap_or(i64::MAX));
        self.reach(committed.position);
        Ok(())
    }

    /// Notes that all results contain the cut with this number.
    pub(super) fn passed(&self, cut_epoch: u64) {
        if self.passed.fetch_max(cut_epoch, Ordering::Relaxed) < cut_epoch {
            self.status.epoch_applied.set(cut_epoch);
            self.reach(Position::start_of(cut_epoch));
        }
    }

    fn reach(&self, position: Position) {
        self.applied.send_if_modified(|applied| {
            let newer = position > *applied;
            *applied = position.max(*applied);
            newer
        });
    }
}
