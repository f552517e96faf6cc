//! How far the data is on its way to another number of shards.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use litejoin_crds::worker_status::ReshardReport;

/// How far a re-shard is; read by others while it runs.
#[derive(Debug, Default)]
pub(crate) struct MoveProgress {
    step: AtomicU8,
    rows: AtomicU64,
    total: AtomicU64,
    verified_at: AtomicU64,
    /// Since when the step is under way.
    began: Mutex<Option<Instant>>,
    message: Mutex<Option<String>>,
}

/// The steps of a re-shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MoveStep {
    Copying,
    CatchingUp,
    Verifying,
    Verified,
    Switching,
    Done,
    Failed,
}

/// The steps by their numbers.
const STEPS: [MoveStep; 7] = [
    MoveStep::Copying,
    MoveStep::CatchingUp,
    MoveStep::Verifying,
    MoveStep::Verified,
    MoveStep::Switching,
    MoveStep::Done,
    MoveStep::Failed,
];

/// A re-shard beside a pipeline that runs.
#[derive(Debug, Clone)]
pub(crate) struct MoveStatus {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) progress: Arc<MoveProgress>,
}

impl MoveStatus {
    pub(crate) fn report(&self) -> ReshardReport {
        self.progress.report(self.from, self.to)
    }
}

impl MoveProgress {
    /// Begins a step of so many rows.
    pub(crate) fn begin(&self, step: MoveStep, total: u64) {
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.rows.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.step.store(step as u8, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// Notes that the copy was found to be whole at this second.
    pub(crate) fn verified(&self, now: i64) {
        self.verified_at.store(u64::try_from(now).unwrap_or_default(), Ordering::Relaxed);
    }

    /// Says more than the step does.
    pub(crate) fn say(&self, message: Option<String>) {
        *self.message.lock().unwrap_or_else(PoisonError::into_inner) = message;
    }

    /// The step that is under way, its rows that are through, and all of them.
    pub(crate) fn now(&self) -> (MoveStep, u64, u64) {
        let step = STEPS[usize::from(self.step.load(Ordering::Relaxed))];
        (step, self.rows.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// The same for `/status`.
    pub(crate) fn report(&self, from: usize, to: usize) -> ReshardReport {
        let (step, rows, rows_total) = self.now();
        let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
        let running = began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        let left = rows_total.saturating_sub(rows) as f64;
        let remaining = (rows > 0).then(|| (running * left / rows as f64).ceil());
        let verified_at = i64::try_from(self.verified_at.load(Ordering::Relaxed)).unwrap_or_default();
        let count = |shards: usize| u32::try_from(shards).expect("a few shards");
        ReshardReport {
            phase: format!("{step:?}"),
            from_shard_count: count(from),
            to_shard_count: count(to),
            rows,
            rows_total,
            remaining_seconds: remaining.map(|seconds| seconds as u64),
            verified_at: (verified_at > 0).then_some(verified_at),
            message: self.message.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
