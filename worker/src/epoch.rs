//! The evaluator: a thread that cuts epochs, brings the joins up to date, and commits what has changed.
//!
//! ```text
//! cut ─► read _chg of each shard ─► Engine::absorb ─► Engine::compute, join by join ─► one transaction of
//! results.db: what Engine::compare finds, outbox, applied ─► sinks are told, shards may trim
//! ```
//! A join whose query fails keeps its results, is marked stale and tried again with the next epoch that
//! concerns it; the others go on. If results can't be stored, the epoch is tried again until they can.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::params;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::clock;
use crate::error::chain;
use crate::join::diff::StoredResults;
use crate::join::full::{Full, FullError, STEPS_MAX};
use crate::join::{CheckedJoin, Engine, TopicImage};
use crate::results::event::JoinId;
use crate::results::store::{Progress, Results};
use crate::results::{Position, Reader};
use crate::status::Status;
use crate::storage::gate::{Cut, EpochGate};
use crate::storage::log::ShardReader;
use crate::storage::sqlite::{self, SqliteError};
use crate::storage::topics::Topics;

/// How often a join that reads the clock is looked at when nothing is written; topics hold whole seconds.
const TICK: Duration = Duration::from_secs(1);

/// Wait before an epoch that failed is tried again; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What the evaluator works on.
pub(crate) struct Evaluator {
    pub(crate) gate: Arc<EpochGate>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) results: Arc<Results>,
    pub(crate) reader: Arc<Reader>,
    pub(crate) status: Arc<Status>,
    pub(crate) joins: Vec<CheckedJoin>,
    /// By join, as `results.db` has it.
    pub(crate) progress: Vec<Progress>,
    pub(crate) shard_paths: Vec<PathBuf>,
    pub(crate) scratch_path: PathBuf,
    /// By shard: what its writer may trim.
    pub(crate) trim_to: Vec<Arc<AtomicI64>>,
    /// Last epoch number that is reserved.
    pub(crate) reserved: u64,
    /// Tells sinks and readers where the outbox ends.
    pub(crate) applied: watch::Sender<Position>,
    /// Indexes of joins that took too long and are left alone until the next start.
    pub(crate) stopped: BTreeSet<usize>,
}

/// Why an epoch was not applied; it is tried again.
#[derive(Debug, thiserror::Error)]
enum EpochError {
    #[error(transparent)]
    File(#[from] SqliteError),
    #[error(transparent)]
    Full(#[from] FullError),
    /// Only time has passed, and nothing came of it: there is nothing to store.
    #[error("nothing has changed")]
    Unchanged,
}

impl EpochError {
    fn is_disk_full(&self) -> bool {
        match self {
            Self::File(error) => error.is_disk_full(),
            Self::Full(FullError::Copy { source, .. }) => sqlite::is_disk_full(source),
            Self::Full(_) | Self::Unchanged => false,
        }
    }
}

/// The engine with what it has taken in so far, and what still has to be evaluated.
struct Work {
    engine: Full,
    shards: Vec<ShardReader>,
    /// By shard, the last sequence number absorbed.
    absorbed: Vec<i64>,
    /// The last cut absorbed; what it brought may still wait to be stored.
    absorbed_epoch: u64,
    /// Indexes of joins to evaluate in the next epoch.
    due: BTreeSet<usize>,
    /// Whether results that leave in the next epoch leave without an event.
    quiet: bool,
    /// When the joins that read the clock were last looked at.
    ticked: Instant,
}

impl Evaluator {
    /// Runs until the gate is stopped and everything committed has been evaluated, or until it is halted: then what
    /// follows is for another evaluator with the same files.
    pub(crate) fn run(mut self) -> Self {
        let mut work: Option<Work> = None;
        let mut pending: Option<Cut> = None;
        let mut pause = RETRY_MIN;
        loop {
            let (stopped, halted) = (self.gate.is_stopped(), self.gate.is_halted());
            let outcome = self.step(&mut work, &mut pending);
            if outcome.is_ok() {
                pause = RETRY_MIN;
                if self.status.results_recovered() {
                    info!("results can be stored again");
                }
            }
            match outcome {
                _ if halted => return self,
                Ok(true) => {}
                Ok(false) if stopped => return self,
                Ok(false) => {
                    let ticks = self.joins.iter().any(|join| join.reads_clock);
                    self.gate.wait(if ticks { TICK } else { Duration::from_secs(3_600) });
                }
                Err(problem) => {
                    let disk_full = problem.is_disk_full();
                    if disk_full {
                        // The WAL can be written from its start again once the file has what it holds.
                        let _ = self.results.checkpoint();
                    }
                    let text = if disk_full { "the disk is full".to_owned() } else { chain(&problem) };
                    if self.status.results_failed(&text, disk_full) {
                        error!(error = chain(&problem), "could not store results; trying again");
                    }
                    if stopped {
                        warn!("stopping with changes that are not evaluated yet; they are at the next start");
                        return self;
                    }
                    if matches!(problem, EpochError::Full(_)) {
                        // The copy may be half updated: make it anew.
                        work = None;
                        pending = None;
                    }
                    self.gate.pause(pause);
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Applies one epoch; `false` if there is nothing to do.
    fn step(&mut self, work: &mut Option<Work>, pending: &mut Option<Cut>) -> Result<bool, EpochError> {
        self.results.extend_reservation(self.gate.next_epoch(), &mut self.reserved)?;
        let work = match work {
            Some(work) => work,
            None => {
                let (begun, next_epoch) = self.begin()?;
                if begun.due.is_empty() {
                    // Everything promised before is in the results that are stored.
                    let position = Position::start_of(next_epoch - 1);
                    self.status.epoch_applied.set(position.epoch);
                    self.applied.send_if_modified(|applied| {
                        let newer = position > *applied;
                        *applied = position.max(*applied);
                        newer
                    });
                }
                work.insert(begun)
            }
        };
        if pending.is_none() {
            *pending = self.gate.cut();
        }
        if let Some(cut) = pending.as_ref()
            && work.absorbed_epoch != cut.epoch
        {
            self.absorb(work, cut)?;
        }
        if work.ticked.elapsed() >= TICK && !work.quiet {
            work.ticked = Instant::now();
            work.due.extend(
                self.joins.iter().enumerate().filter_map(|(index, join)| join.reads_clock.then_some(index)),
            );
        }
        if pending.is_none() && work.due.is_empty() {
            return Ok(false);
        }
        self.apply(work, pending)?;
        Ok(true)
    }

    /// Makes a working copy of the topics as they are now, and finds the joins whose stored results don't follow
    /// from it. Also gives the number of the epoch that comes after what was copied.
    fn begin(&self) -> Result<(Work, u64), EpochError> {
        let started = Instant::now();
        let scratch = sqlite::open_scratch(&self.scratch_path)?;
        let mut engine = Full::new(scratch, &self.joins, STEPS_MAX)?;
        let mut shards =
            self.shard_paths.iter().map(|path| ShardReader::open(path)).collect::<Result<Vec<_>, _>>()?;
        let (absorbed, next_epoch) = self.gate.hold(|| shards.iter().try_for_each(ShardReader::hold))?;
        let read: BTreeSet<&String> = self.joins.iter().flat_map(|join| &join.topics).collect();
        let mut rows = 0_u64;
        engine.in_batch::<EpochError>(|engine| {
            for shard in &shards {
                for topic in &read {
                    shard.rows::<EpochError>(topic, |row| {
                        rows += 1;
                        let image =
                            TopicImage { payload: row.payload, timestamp: row.timestamp, change: row.change };
                        engine.absorb(topic, row.key, Some(image))?;
                        Ok(())
                    })?;
                }
            }
            Ok(())
        })?;
        shards.iter_mut().for_each(|shard| shard.release());
        let due = self
            .progress
            .iter()
            .enumerate()
            .filter(|(index, progress)| {
                let current =
                    progress.applied.iter().zip(&absorbed).all(|(applied, now)| *applied == Some(*now));
                progress.stale || !current || self.joins[*index].reads_clock
            })
            .map(|(index, _)| index)
            .collect();
        debug!(rows, milliseconds = started.elapsed().as_millis(), "the working copy is ready");
        let work = Work { engine, shards, absorbed, absorbed_epoch: 0, due, quiet: false, ticked: started };
        Ok((work, next_epoch))
    }

    /// Takes in what the cut has beyond what was taken in before.
    fn absorb(&self, work: &mut Work, cut: &Cut) -> Result<(), EpochError> {
        let mut touched = BTreeSet::new();
        // Without a join there is nobody to take anything in for.
        let is_read = !self.joins.is_empty();
        let Work { engine, shards, absorbed, .. } = work;
        engine.in_batch::<EpochError>(|engine| {
            for ((shard, after), to) in shards.iter_mut().zip(absorbed.iter()).zip(&cut.seqs) {
                if after >= to || !is_read {
                    continue;
                }
                shard.changes::<EpochError>(*after, *to, &self.topics, |change| {
                    let name = self.topics.name(change.topic);
                    let image = change.new.map(|payload| TopicImage {
                        payload,
                        timestamp: change.timestamp,
                        change: change.change,
                    });
                    engine.absorb(&name, change.key, image)?;
                    touched.insert(change.topic);
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        // A cut in which nothing is new was part of the copy from the start.
        let news = absorbed.iter().zip(&cut.seqs).any(|(after, to)| after < to);
        absorbed.iter_mut().zip(&cut.seqs).for_each(|(absorbed, to)| *absorbed = (*absorbed).max(*to));
        let names: Vec<Arc<str>> = touched.into_iter().map(|topic| self.topics.name(topic)).collect();
        let overdue = !work.due.is_empty();
        for (index, join) in self.joins.iter().enumerate() {
            if names.iter().any(|name| join.topics.iter().any(|topic| topic.eq_ignore_ascii_case(name))) {
                work.due.insert(index);
            }
        }
        work.quiet = cut.quiet && news && !overdue;
        work.absorbed_epoch = cut.epoch;
        Ok(())
    }

    /// Evaluates what is due and commits it as one epoch.
    fn apply(&mut self, work: &mut Work, pending: &mut Option<Cut>) -> Result<(), EpochError> {
        let (cut, news) = match pending.take() {
            Some(cut) => (cut, true),
            None => (self.gate.empty_cut(), false),
        };
        let outcome = match self.commit(work, &cut, news) {
            // The state at this epoch is the one that is stored, so the number counts as applied.
            Err(EpochError::Unchanged) => Ok(Position::start_of(cut.epoch)),
            outcome => outcome,
        };
        match outcome {
            Ok(position) => {
                work.due.clear();
                work.quiet = false;
                for (trim_to, seq) in self.trim_to.iter().zip(&work.absorbed) {
                    trim_to.store(*seq, Ordering::Relaxed);
                }
                self.status.epoch_applied.set(cut.epoch);
                self.applied.send_replace(position);
                Ok(())
            }
            Err(error) => {
                *pending = Some(cut);
                Err(error)
            }
        }
    }

    /// Computes what is due, and commits the differences as one epoch. The files of the results are not held up
    /// while queries run.
    fn commit(&mut self, work: &mut Work, cut: &Cut, news: bool) -> Result<Position, EpochError> {
        let (computed, failed) = self.compute(work)?;
        let seqs = &work.absorbed;
        // A join that has failed, or failed before and was not due now, is evaluated whatever its progress says.
        let is_stale = |index: usize, progress: &Progress| {
            failed.contains(&index) || (progress.stale && !work.due.contains(&index))
        };
        let (engine, quiet) = (&mut work.engine, work.quiet);
        let (changed, committed) =
            self.results.with_epoch::<_, EpochError>(cut.epoch, clock::epoch_seconds(), |writer| {
                let mut changed = vec![0_u64; self.joins.len()];
                for index in computed {
                    let (join, id) = (&self.joins[index], self.progress[index].id);
                    let sent = join.has_sinks && !quiet;
                    self.with_stored(id, |stored| {
                        engine.compare::<EpochError>(join, stored, &mut |change| {
                            changed[index] += 1;
                            Ok(writer.store(id, change, sent)?)
                        })
                    })?;
                }
                let nothing_changed = failed.is_empty() && changed.iter().all(|changed| *changed == 0);
                if !news && nothing_changed && !self.is_any_behind(seqs) {
                    return Err(EpochError::Unchanged);
                }
                for (index, progress) in self.progress.iter().enumerate() {
                    writer.applied(progress.id, seqs, is_stale(index, progress))?;
                }
                Ok(changed)
            })?;
        for (index, (progress, join)) in self.progress.iter_mut().zip(&self.joins).enumerate() {
            progress.stale = is_stale(index, progress);
            progress.applied = seqs.iter().copied().map(Some).collect();
            let status = self.status.join(&join.name);
            status.epoch.set(cut.epoch);
            status.results_changed.add(changed[index]);
        }
        self.status.outbox_bytes.add(i64::try_from(committed.outbox_bytes).unwrap_or(i64::MAX));
        Ok(committed.position)
    }

    /// Runs the queries of the joins that are due, and returns the indexes of those that have rows now and of
    /// those that have failed.
    fn compute(&mut self, work: &mut Work) -> Result<(Vec<usize>, BTreeSet<usize>), EpochError> {
        work.engine.clear()?;
        let (mut computed, mut failed) = (Vec::new(), BTreeSet::new());
        for index in work.due.iter().copied() {
            if self.stopped.contains(&index) {
                failed.insert(index);
                continue;
            }
            let join = &self.joins[index];
            let status = self.status.join(&join.name);
            let started = Instant::now();
            let outcome = work.engine.compute(join);
            status.evaluations.add(1);
            status
                .evaluation_microseconds
                .add(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
            match outcome {
                Ok(()) => {
                    status.error.clear();
                    computed.push(index);
                }
                Err(error @ (FullError::Query { .. } | FullError::Endless { .. })) => {
                    failed.insert(index);
                    if matches!(error, FullError::Endless { .. }) {
                        self.stopped.insert(index);
                    }
                    let error = error.to_string();
                    if status.error.set(&error) {
                        warn!(join = join.name, error, "a join fails; its results stay as they were");
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((computed, failed))
    }

    /// Whether some join's stored progress says less than what its results follow from.
    fn is_any_behind(&self, seqs: &[i64]) -> bool {
        self.progress.iter().any(|progress| {
            progress.stale || progress.applied.iter().zip(seqs).any(|(applied, seq)| *applied != Some(*seq))
        })
    }

    /// Runs `work` with the stored results of one join in the order of their keys. The evaluator alone changes
    /// results, so what another connection reads while an epoch is written is what was there before it.
    fn with_stored<T>(
        &self,
        join: JoinId,
        work: impl FnOnce(&mut dyn StoredResults) -> Result<T, EpochError>,
    ) -> Result<T, EpochError> {
        struct Rows<'s>(rusqlite::Rows<'s>);
        impl StoredResults for Rows<'_> {
            fn next(&mut self) -> rusqlite::Result<Option<(String, String)>> {
                self.0.next()?.map(|row| Ok((row.get(0)?, row.get(1)?))).transpose()
            }
        }
        self.reader.doing("read stored results", |connection| {
            let mut statement =
                connection.prepare_cached("SELECT key, rows FROM results WHERE join_id = ?1 ORDER BY key")?;
            let rows = statement.query(params![join.0])?;
            Ok(work(&mut Rows(rows)))
        })?
    }
}
