//! The evaluator: a thread that cuts epochs, brings the joins up to date, and commits the changed results.
//! [`schedule`] decides the work of an epoch, [`pool`] spreads it over the cores, and [`commit`] stores its results.
//!
//! ```text
//! cut ─► read _chg of each shard ─► affected keys, join by join ─► batches of keys over the cores
//!        ─► differences, as they are found, into one transaction of results.db, with outbox and applied
//!        ─► sinks are woken, shards may trim
//! ```
//! Each join has its own progress. A join that can't be kept current by key (a new query, one that failed, one of
//! class full, or more results than fit an epoch) is evaluated in full in the [`background`], at a cut of its own, and
//! holds up no other join. The evaluator keeps only progress between epochs: an epoch that could not be stored is
//! started again.

mod background;
mod commit;
mod failing;
mod join_state;
mod pool;
mod schedule;
mod windows;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use litejoin_crds::error::chain;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use self::background::BackgroundEvaluator;
use self::commit::Committer;
use self::join_state::JoinState;
use self::pool::EvaluatorPool;
use self::schedule::EpochLoop;
use crate::clock::SteadyClock;
use crate::dead_letters::DeadLetters;
use crate::join::CheckedJoin;
use crate::join::full::FullError;
use crate::join::plan::ClockUse;
use crate::join::value::Value;
use crate::results::store::{Progress, Results};
use crate::results::{Applied, Reader};
use crate::status::Status;
use crate::storage::arrivals::SureTimes;
use crate::storage::gate::{EpochGate, Wake};
use crate::storage::ingest::Ingest;
use crate::storage::log::LogHold;
use crate::storage::sqlite::{self, SqliteError};
use crate::storage::topics::Topics;

/// How often a stopping evaluator looks for the end of evaluations in the background.
const STOPPING_LOOK: Duration = Duration::from_secs(1);

/// Entries of the log that are evaluated at a time, over all shards; few in debug builds, so that tests reach the
/// limit.
const SLICE_ENTRIES: i64 = if cfg!(debug_assertions) { 1_024 } else { 65_536 };

/// Entries that are evaluated in one slice for joins with aggregate states, which need all old images together.
const WHOLE_ENTRIES_MAX: i64 = 4 * SLICE_ENTRIES;

/// Entries of the log that a join may lag behind and still be kept current by key; above, a full evaluation costs
/// less.
const LAG_ENTRIES_MAX: i64 = 1_000_000;

/// Evaluations in the background that run at a time.
const BACKGROUND_MAX: usize = 2;

/// Wait before a failed epoch is tried again; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// The inputs of the evaluator, and the progress of its joins.
pub(crate) struct Evaluator {
    pub(crate) gate: Arc<EpochGate>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) results: Arc<Results>,
    pub(crate) reader: Arc<Reader>,
    pub(crate) status: Arc<Status>,
    pub(crate) joins: Vec<CheckedJoin>,
    /// By join, as stored in `results.db`.
    pub(crate) progress: Vec<Progress>,
    /// The clock of all results; it stands still over a reload as it does before one.
    pub(crate) clock: Arc<SteadyClock>,
    pub(crate) shard_paths: Vec<PathBuf>,
    /// Sends requests to the writers of shards.
    pub(crate) ingest: Ingest,
    /// A folder for files that the next start does not need.
    pub(crate) scratch_folder: PathBuf,
    /// By shard: the last log entry that its writer may trim.
    pub(crate) trim_to: Vec<Arc<AtomicI64>>,
    /// Log entries that another reader needs.
    pub(crate) log_hold: LogHold,
    /// The last epoch number that is reserved.
    pub(crate) reserved: u64,
    /// Publishes the end of the outbox to sinks and readers.
    pub(crate) applied: watch::Sender<Applied>,
    /// Indexes of joins that were over their budget and are not evaluated until the next start.
    pub(crate) stopped: BTreeSet<usize>,
    /// Joins to evaluate again because an audit found differences.
    pub(crate) repairs: Arc<Repairs>,
    /// Takes the messages that are too late for a window.
    pub(crate) letters: Arc<DeadLetters>,
}

/// Joins whose stored results may be wrong: each is evaluated in full, and differences are stored and sent.
#[derive(Debug, Default)]
pub(crate) struct Repairs(Mutex<BTreeSet<String>>);

impl Repairs {
    /// Requests an evaluation in full. The caller has to wake an evaluator that waits at the gate.
    pub(crate) fn ask(&self, join_name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(join_name.to_owned());
    }

    fn take(&self, join_name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(join_name)
    }
}

/// Why an epoch was not applied. The evaluator tries again.
#[derive(Debug, thiserror::Error)]
enum EpochError {
    #[error(transparent)]
    File(#[from] SqliteError),
    #[error(transparent)]
    Full(#[from] FullError),
    #[error("could not use the tables in memory")]
    Memory(#[from] rusqlite::Error),
    /// A join that had stored some of its results has to be evaluated in the background; the other joins start over.
    #[error("a join could not be evaluated to its end")]
    Begun,
}

impl EpochError {
    fn is_disk_full(&self) -> bool {
        match self {
            Self::File(error) => error.is_disk_full(),
            Self::Full(FullError::Copy { source, .. } | FullError::Stored(source)) => {
                sqlite::is_disk_full(source)
            }
            Self::Full(_) | Self::Memory(_) | Self::Begun => false,
        }
    }
}

impl Evaluator {
    /// Runs until the gate is stopped and everything committed has been evaluated, or until the gate is halted, so
    /// that another evaluator can take over the same files.
    pub(crate) fn run(mut self) -> Self {
        let mut pause = RETRY_MIN;
        let mut epochs = loop {
            match self.begin() {
                Ok(epochs) => break epochs,
                Err(problem) => self.report(&problem),
            }
            self.gate.pause(pause);
            pause = (pause * 2).min(RETRY_MAX);
            if self.gate.is_stopped() || self.gate.is_halted() {
                return self;
            }
        };
        pause = RETRY_MIN;
        loop {
            let (stopped, halted) = (self.gate.is_stopped(), self.gate.is_halted());
            let outcome = if halted { Ok(false) } else { epochs.step(&self.gate, stopped) };
            let outcome = match epochs.failing.take() {
                Some(problem) => Err(problem),
                None => outcome,
            };
            match outcome {
                _ if halted => break,
                Ok(true) => {
                    if !epochs.troubled {
                        pause = RETRY_MIN;
                        self.recovered();
                    }
                }
                Ok(false) if stopped && !epochs.is_any_in_background() => break,
                Ok(false) => {
                    if !epochs.troubled {
                        self.recovered();
                    }
                    self.wait(&mut epochs, stopped);
                }
                Err(problem) => {
                    self.report(&problem);
                    if stopped {
                        warn!("stopping with changes that are not evaluated yet; they are at the next start");
                        break;
                    }
                    self.gate.pause(pause);
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
        epochs.background.cancel();
        while epochs.is_any_in_background() {
            match epochs.done.recv() {
                Ok(result) => epochs.finish_background(result),
                Err(_) => break,
            }
        }
        if let Err(problem) = epochs.store_watermarks() {
            self.report(&problem.into());
        }
        self.reserved = epochs.committer.reserved();
        for (index, (state, progress)) in epochs.joins.into_iter().zip(&mut self.progress).enumerate() {
            progress.applied = state.applied;
            progress.stale = state.stale;
            progress.epoch = state.epoch;
            progress.clock = state.clock;
            if state.stopped {
                self.stopped.insert(index);
            }
        }
        self
    }

    /// Waits until there may be something to do.
    fn wait(&self, epochs: &mut EpochLoop, stopped: bool) {
        let has_windows = epochs.joins.iter().any(|state| state.window.is_some());
        let reads_clock = epochs.joins.iter().any(|state| state.join.clock != ClockUse::Unread);
        let limit = match stopped {
            true => STOPPING_LOOK,
            false if has_windows || reads_clock => epochs.clock.until_next(),
            false => Duration::from_secs(3_600),
        };
        if self.gate.wait(limit) == Wake::Dirty && has_windows {
            // Event times may have come without any changed row.
            epochs.looked_at = None;
        }
    }

    fn recovered(&self) {
        if self.status.results_recovered() {
            info!("results can be stored again");
        }
    }

    fn report(&self, problem: &EpochError) {
        let disk_full = problem.is_disk_full();
        if disk_full {
            // After a checkpoint, writers reuse the WAL from its start.
            let _ = self.results.checkpoint();
        }
        let text = if disk_full { "the disk is full".to_owned() } else { chain(problem) };
        if self.status.results_failed(&text, disk_full) {
            error!(error = chain(problem), "could not store results; trying again");
        }
    }

    /// Opens the files and workspaces.
    fn begin(&self) -> Result<EpochLoop, EpochError> {
        let (sender, done) = mpsc::channel();
        let committer = Arc::new(Committer::new(
            Arc::clone(&self.gate),
            Arc::clone(&self.results),
            Arc::clone(&self.status),
            self.applied.clone(),
            &self.shard_paths,
            self.reserved,
        ));
        let began = Instant::now();
        let mut joins = Vec::with_capacity(self.joins.len());
        for (index, (join, progress)) in self.joins.iter().zip(&self.progress).enumerate() {
            let kept_by = self.results.accumulated_by(progress.id)?;
            let is_stopped = self.stopped.contains(&index);
            let mut state = JoinState::new(join, progress, kept_by.as_deref(), is_stopped, &self.topics)?;
            state.failing = committer.failing(progress.id)?;
            let told = self.letters.failing(&join.name)?;
            state.told =
                told.iter().filter_map(|key| Some((Value::from_json(key)?, String::new()))).collect();
            self.status.join(&join.name).set_class(state.class());
            joins.push(state);
        }
        let clock = Arc::clone(&self.clock);
        let background = BackgroundEvaluator {
            gate: Arc::clone(&self.gate),
            topics: Arc::clone(&self.topics),
            reader: Arc::clone(&self.reader),
            committer: Arc::clone(&committer),
            clock: Arc::clone(&clock),
            joins: self.joins.clone(),
            shard_paths: self.shard_paths.clone(),
            scratch_folder: self.scratch_folder.clone(),
            cancelled: Arc::new(AtomicBool::new(false)),
            done: sender,
        };
        let pool = EvaluatorPool::new(
            &self.shard_paths,
            self.results.path(),
            joins.iter().filter_map(|j| j.keyed.as_ref()),
            joins.iter().filter_map(|j| j.accumulated.as_ref()),
            joins.iter().filter_map(|j| j.window.as_ref()).map(|window| window.topic()),
        )?;
        debug!(milliseconds = began.elapsed().as_millis(), "the evaluator is ready");
        Ok(EpochLoop {
            joins,
            ingest: self.ingest.clone(),
            pool,
            committer,
            background: Arc::new(background),
            clock,
            looked_at: None,
            done,
            trim_to: self.trim_to.clone(),
            log_hold: self.log_hold.clone(),
            repairs: Arc::clone(&self.repairs),
            sure: SureTimes::new(),
            letters: Arc::clone(&self.letters),
            begun: false,
            checkpoints: None,
            failing: None,
            troubled: false,
        })
    }
}

fn microseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
