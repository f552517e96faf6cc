//! Evaluation in full in the background, on a thread of its own and at a cut of its own: of a new or changed query,
//! one that has failed, one of class full, or after a change that affects more results than fit an epoch. Other joins
//! stay current meanwhile.

mod by_key;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use rusqlite::params;
use tracing::debug;

use super::commit::Committer;
use super::{EpochError, microseconds};
use crate::clock::SteadyClock;
use crate::fault;
use crate::join::budget::STEPS_MAX;
use crate::join::changes::{BYTES_MAX, ChangedRow, Changes, ReadError, ShardChanges};
use crate::join::diff::StoredResults;
use crate::join::full::{Full, FullError};
use crate::join::plan::{Accumulated, Class, ClockUse};
use crate::join::{CheckedJoin, TopicImage};
use crate::results::Reader;
use crate::results::event::{Emit, JoinId};
use crate::results::store::EpochWriter;
use crate::storage::gate::{Cut, EpochGate};
use crate::storage::log::ShardReader;
use crate::storage::sqlite::{self, SqliteError};
use crate::storage::topics::Topics;

/// Results that are stored in one transaction at most; few in debug builds, so that tests reach the limit.
const STORED_AT_ONCE: u64 = if cfg!(debug_assertions) { 4 } else { 10_000 };

/// The connections and settings of evaluations in the background.
pub(super) struct BackgroundEvaluator {
    pub(super) gate: Arc<EpochGate>,
    pub(super) topics: Arc<Topics>,
    pub(super) reader: Arc<Reader>,
    pub(super) committer: Arc<Committer>,
    pub(super) clock: Arc<SteadyClock>,
    pub(super) joins: Vec<CheckedJoin>,
    pub(super) shard_paths: Vec<PathBuf>,
    pub(super) scratch_folder: PathBuf,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) done: mpsc::Sender<JobResult>,
}

/// A copy of a join's topics, as of one place in the logs.
pub(super) struct FullCopy {
    full: Full,
    at: Vec<i64>,
}

/// The result of an evaluation.
pub(super) struct JobResult {
    pub(super) index: usize,
    pub(super) microseconds: u64,
    pub(super) outcome: JobOutcome,
    /// Whether the join has values that can't be accumulated.
    pub(super) is_not_accumulable: bool,
    /// Whether the join was evaluated key by key, since its query fails for some rows.
    pub(super) is_by_key: bool,
    /// The copy of the topics, for joins that will need it again.
    pub(super) copy: Option<FullCopy>,
}

pub(super) enum JobOutcome {
    /// The stored results contain this cut.
    Applied { cut: Cut, clock: Option<i64> },
    /// The query failed on this cut; the stored results are unchanged.
    Failed { cut: Cut, clock: Option<i64>, error: FullError },
    /// The results could not be stored, or the evaluation was cancelled (without an error): try again.
    Again { error: Option<EpochError> },
}

/// An evaluation to start.
pub(super) struct Job {
    /// The index of the join.
    pub(super) index: usize,
    pub(super) id: JoinId,
    /// The cut that the stored results follow from, if known.
    pub(super) applied: Option<Vec<i64>>,
    /// The number of that cut, as stored.
    pub(super) epoch: u64,
    /// Whether a moment is stored that the results are as of.
    pub(super) has_moment: bool,
    /// Whether the join has aggregate states.
    pub(super) accumulates: bool,
    /// Whether the join can be kept current by key without aggregate states.
    pub(super) by_key: bool,
    /// Whether any of its result keys fails.
    pub(super) has_failing: bool,
}

/// One evaluation.
struct RunningJob {
    evaluator: Arc<BackgroundEvaluator>,
    job: Job,
    copy: Option<FullCopy>,
    is_not_accumulable: bool,
    is_by_key: bool,
    /// The moment of the evaluation, if the query reads the clock.
    moment: Option<i64>,
}

impl BackgroundEvaluator {
    /// Cancels all running evaluations.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Starts the evaluation of a join.
    pub(super) fn start(self: &Arc<Self>, job: Job, copy: Option<FullCopy>) {
        let id = job.id;
        let running = RunningJob {
            evaluator: Arc::clone(self),
            job,
            copy,
            is_not_accumulable: false,
            is_by_key: false,
            moment: None,
        };
        let run = move || {
            let started = Instant::now();
            let evaluator = Arc::clone(&running.evaluator);
            let result = running.run();
            // The evaluator may have stopped waiting.
            let _ = evaluator.done.send(JobResult { microseconds: microseconds(started), ..result });
            evaluator.gate.ring();
        };
        let name = format!("join-{}", id.0);
        std::thread::Builder::new().name(name).spawn(run).expect("a thread can be started");
    }
}

impl RunningJob {
    fn join(&self) -> &CheckedJoin {
        &self.evaluator.joins[self.job.index]
    }

    fn run(mut self) -> JobResult {
        let mut cut = None;
        let outcome = self.evaluate(&mut cut);
        let outcome = match outcome {
            Err(EpochError::Full(FullError::Query { .. })) if self.job.by_key => {
                let error = outcome;
                match self.evaluate_by_key(&mut cut) {
                    Ok(false) => error,
                    outcome => outcome.map(drop),
                }
            }
            outcome => outcome,
        };
        let outcome = match (outcome, cut) {
            _ if self.evaluator.cancelled.load(Ordering::Relaxed) => JobOutcome::Again { error: None },
            (Ok(()), Some(cut)) => JobOutcome::Applied { cut, clock: self.moment },
            (Err(EpochError::Full(error)), Some(cut)) if is_of_query(&error) => {
                self.copy = self.copy.take().filter(|copy| copy.at == cut.seqs);
                match self.fail(&cut) {
                    Ok(()) => JobOutcome::Failed { cut, clock: self.moment, error },
                    Err(error) => JobOutcome::Again { error: Some(error.into()) },
                }
            }
            (Err(error), _) => {
                // The copy may be half updated.
                self.copy = None;
                JobOutcome::Again { error: Some(error) }
            }
            (Ok(()), None) => unreachable!("nothing is evaluated without a cut"),
        };
        // A join that is kept current by key or by aggregate states needs no copy.
        let keep = !self.job.by_key && (!self.job.accumulates || self.is_not_accumulable);
        let copy = self.copy.take().filter(|_| keep);
        if copy.is_none() {
            // The next evaluation makes a new copy, so a file that stays does no harm.
            let _ = sqlite::remove(&self.scratch_path());
        }
        JobResult {
            index: self.job.index,
            microseconds: 0,
            outcome,
            is_not_accumulable: self.is_not_accumulable,
            is_by_key: self.is_by_key,
            copy,
        }
    }

    fn scratch_path(&self) -> PathBuf {
        self.evaluator.scratch_folder.join(format!("join-{}.db", self.job.id.0))
    }

    fn evaluate(&mut self, at: &mut Option<Cut>) -> Result<(), EpochError> {
        let evaluator = Arc::clone(&self.evaluator);
        let started = Instant::now();
        let mut readers = evaluator
            .shard_paths
            .iter()
            .map(|path| ShardReader::open(path))
            .collect::<Result<Vec<_>, _>>()?;
        let cut = evaluator.gate.cut(|| readers.iter().try_for_each(ShardReader::hold))?;
        *at = Some(cut.clone());
        self.moment = (self.join().clock != ClockUse::Unread).then(|| evaluator.clock.now());
        let changes = match &self.job.applied {
            Some(applied) => self.changes(&mut readers, applied, &cut.seqs)?,
            None => Some(Changes::default()),
        };
        let known = self.copy.take().filter(|copy| Some(&copy.at) == self.job.applied.as_ref());
        let (mut full, is_copied) = match (known, &changes) {
            (Some(copy), Some(_)) => (copy.full, false),
            _ => (self.copy_all(&readers)?, true),
        };
        readers.iter().for_each(ShardReader::release);
        drop(readers);
        if let Some(moment) = self.moment {
            full.set_clock(moment);
        }
        fault::point("copied");
        let changes = changes.unwrap_or_default();
        // Rows removed by retention stay in the copy at first, so that only the other changes emit events.
        let mut expired: Vec<(Arc<str>, String)> = Vec::new();
        full.in_batch::<FullError>(|full| {
            for topic in changes.topics() {
                let name = evaluator.topics.name(topic);
                for ChangedRow { key, old, new, expired: is_expired } in changes.rows(topic) {
                    if is_expired && old.is_some() {
                        expired.push((Arc::clone(&name), key.to_owned()));
                    } else if is_copied {
                        continue;
                    }
                    full.absorb(&name, key, if is_expired { old } else { new })?;
                }
            }
            Ok(())
        })?;
        let join = self.evaluator.joins[self.job.index].clone();
        let concerns =
            |(topic, _): &(Arc<str>, String)| join.topics.iter().any(|t| t.eq_ignore_ascii_case(topic));
        expired.retain(concerns);
        let emit = join.emit(Emit::Event);
        if !expired.is_empty() {
            self.compare_and_commit(&mut full, &cut, emit, false)?;
            full.in_batch::<FullError>(|full| {
                expired.iter().try_for_each(|(topic, key)| full.absorb(topic, key, None))
            })?;
        }
        let emit = if expired.is_empty() { emit } else { join.emit(Emit::UnlessGone) };
        let outcome = self.compare_and_commit(&mut full, &cut, emit, true);
        self.copy = Some(FullCopy { full, at: cut.seqs.clone() });
        debug!(join = join.name, milliseconds = started.elapsed().as_millis(), "evaluated in full");
        outcome
    }

    /// Returns the changes between `applied` and the cut; `None` if the logs don't reach back that far.
    fn changes(
        &self,
        readers: &mut [ShardReader],
        applied: &[i64],
        to: &[i64],
    ) -> Result<Option<Changes>, EpochError> {
        let bytes_max = BYTES_MAX / readers.len();
        let mut parts = Vec::with_capacity(readers.len());
        for ((reader, after), to) in readers.iter_mut().zip(applied).zip(to) {
            if !reader.has_all(*after, *to)? || to - after > super::SLICE_ENTRIES {
                return Ok(None);
            }
            match ShardChanges::read(reader, *after, *to, &self.evaluator.topics, bytes_max, |_| true) {
                Ok(part) => parts.push(part),
                Err(ReadError::TooMuch) => return Ok(None),
                Err(ReadError::File(error)) => return Err(error.into()),
            }
        }
        Ok(Some(Changes::new(parts)))
    }

    /// Copies the topics that the join reads.
    fn copy_all(&self, readers: &[ShardReader]) -> Result<Full, EpochError> {
        let evaluator = &self.evaluator;
        let scratch = sqlite::open_scratch(&self.scratch_path())?;
        let cancelled = Arc::clone(&evaluator.cancelled);
        let mut full = Full::new(scratch, self.join(), &evaluator.joins, STEPS_MAX, cancelled)?;
        full.in_batch::<EpochError>(|full| {
            for reader in readers {
                for topic in &self.join().topics {
                    reader.rows::<EpochError>(topic, |row| {
                        let image =
                            TopicImage { payload: row.payload, timestamp: row.timestamp, change: row.change };
                        if evaluator.cancelled.load(Ordering::Relaxed) {
                            return Err(FullError::Cancelled.into());
                        }
                        full.absorb(topic, row.key, Some(image))?;
                        Ok(())
                    })?;
                }
            }
            Ok(())
        })?;
        full.index(self.join())?;
        Ok(full)
    }

    /// Evaluates the query over the copy and stores the differences; with `is_last`, also stores that the results
    /// contain the cut.
    fn compare_and_commit(
        &mut self,
        full: &mut Full,
        cut: &Cut,
        emit: Emit,
        is_last: bool,
    ) -> Result<(), EpochError> {
        let join = self.join();
        let differences = self.with_stored(|stored| full.evaluate(join, stored))??;
        let plan = self.accumulated();
        let is_fit = match &plan {
            Some(plan) if is_last => full.accumulate(plan)?,
            _ => false,
        };
        let is_stored = self.job.applied.as_ref() == Some(&cut.seqs) && self.job.epoch == cut.epoch;
        let is_stored = is_stored && (self.moment.is_none() || self.job.has_moment);
        let is_stored = is_stored && !self.job.has_failing;
        if plan.is_none() && differences == 0 && (!is_last || is_stored) {
            return Ok(());
        }
        fault::point("evaluated-in-background");
        let store = |writer: &mut EpochWriter<'_>, places: Range<u64>| {
            full.differences::<EpochError>(places, emit, &mut |change| {
                Ok(writer.store(self.job.id, [change])?)
            })
        };
        // Commit slice by slice, so that other transactions can write in between.
        let mut stored = 0;
        while differences - stored > STORED_AT_ONCE {
            self.evaluator.committer.commit::<EpochError>(cut.epoch, |writer| {
                self.begin(writer)?;
                store(writer, stored..stored + STORED_AT_ONCE)
            })?;
            stored += STORED_AT_ONCE;
            fault::point("slice-stored");
            self.evaluator.committer.give_way();
            if self.evaluator.cancelled.load(Ordering::Relaxed) {
                return Err(FullError::Cancelled.into());
            }
        }
        let outcome = self.evaluator.committer.commit::<EpochError>(cut.epoch, |writer| {
            store(writer, stored..differences)?;
            match &plan {
                Some(plan) if is_last => {
                    writer.forget_accumulators(self.job.id)?;
                    if is_fit {
                        full.accumulators::<EpochError>(&mut |group, state| {
                            Ok(writer.accumulate(self.job.id, group, Some(state))?)
                        })?;
                    }
                    let by = if is_fit { plan.fingerprint() } else { plan.given_up_fingerprint() };
                    writer.accumulate_by(self.job.id, Some(&by))?;
                }
                _ if !is_last => self.begin(writer)?,
                _ => {}
            }
            if is_last {
                writer.mend_all(self.job.id)?;
                writer.applied(self.job.id, &cut.seqs, self.moment, false)?;
            }
            Ok(())
        });
        self.evaluator.committer.status().join(&join.name).results_changed.add(differences);
        self.is_not_accumulable = outcome.is_ok() && is_last && plan.is_some() && !is_fit;
        outcome
    }

    /// Marks the results as incomplete until all of them are stored.
    fn begin(&self, writer: &mut EpochWriter<'_>) -> Result<(), SqliteError> {
        if self.job.accumulates {
            writer.accumulate_by(self.job.id, None)?;
        }
        writer.stale(self.job.id)
    }

    /// Returns the plan of the aggregate states, if the join has any.
    fn accumulated(&self) -> Option<Accumulated> {
        match &self.join().class {
            Class::Accumulated(plan) if self.job.accumulates => Some(plan.as_ref().clone()),
            _ => None,
        }
    }

    /// Stores that the query failed at this cut, so that a restart does not repeat it.
    fn fail(&self, cut: &Cut) -> Result<(), SqliteError> {
        self.evaluator.committer.commit(cut.epoch, |writer| {
            writer.accumulate_by(self.job.id, None)?;
            writer.applied(self.job.id, &cut.seqs, self.moment, true)
        })
    }

    /// Runs `work` with the stored results of the join in the order of their keys. No other thread changes these
    /// results meanwhile.
    fn with_stored<T>(&self, work: impl FnOnce(&mut dyn StoredResults) -> T) -> Result<T, SqliteError> {
        struct StoredRows<'s>(rusqlite::Rows<'s>);
        impl StoredResults for StoredRows<'_> {
            fn next(&mut self) -> rusqlite::Result<Option<(String, String)>> {
                self.0.next()?.map(|row| Ok((row.get(0)?, row.get(1)?))).transpose()
            }
        }
        self.evaluator.reader.doing("read stored results", |connection| {
            let mut statement =
                connection.prepare_cached("SELECT key, rows FROM results WHERE join_id = ?1 ORDER BY key")?;
            let rows = statement.query(params![self.job.id.0])?;
            Ok(work(&mut StoredRows(rows)))
        })
    }
}

/// Returns whether the query itself failed, so that another try would fail too.
fn is_of_query(error: &FullError) -> bool {
    matches!(error, FullError::Query { .. } | FullError::StepLimit { .. } | FullError::Rows { .. })
}
