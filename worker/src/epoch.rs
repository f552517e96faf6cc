//! The evaluator: a thread that cuts epochs, brings the joins up to date, and commits what has changed.
//!
//! ```text
//! cut ─► read _chg of each shard ─► affected keys, join by join ─► shares of keys over the cores
//!        ─► differences, as they are found, into one transaction of results.db, with outbox and applied
//!        ─► sinks are told, shards may trim
//! ```
//! Each join has its own progress. One that can't be kept current by key (a new query, one that failed, one of class
//! full, or more results than fit an epoch) is evaluated in full [`aside`], at a cut of its own, and holds up
//! no other. Nothing is remembered between epochs but progress: an epoch that could not be stored is simply begun
//! again.

mod aside;
mod commit;
mod keyed;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use litejoin_crds::error::chain;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use self::aside::{Aside, Ask, Done, FullCopy, Outcome};
use self::commit::Committer;
use self::keyed::Benches;
use crate::join::CheckedJoin;
use crate::join::accumulate::{AccumulatedJoin, Settled};
use crate::join::changes::{Changes, ReadError};
use crate::join::full::FullError;
use crate::join::keyed::{Difference, KeyedError, KeyedJoin};
use crate::join::plan::{Accumulated, Class, Keyed};
use crate::results::event::JoinId;
use crate::results::store::{EpochWriter, Progress, Results};
use crate::results::{Applied, Reader};
use crate::status::Status;
use crate::storage::gate::{Cut, EpochGate};
use crate::storage::ingest::{Checkpoints, Ingest};
use crate::storage::sqlite::{self, SqliteError};
use crate::storage::topics::Topics;

/// How often a join that reads the clock is looked at when nothing is written; topics hold whole seconds.
const TICK: Duration = Duration::from_secs(1);

/// Wait before an epoch that failed is tried again; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Entries of the log that are taken in at a time, over all shards.
const SLICE_ENTRIES: i64 = 65_536;

/// Entries that are taken in at once where groups are accumulated, since what was before follows from all of them.
const WHOLE_ENTRIES_MAX: i64 = 4 * SLICE_ENTRIES;

/// Entries of the log by which a join may lag and still be kept current by key; beyond, everything is read anyway.
const LAG_ENTRIES_MAX: i64 = 1_000_000;

/// Evaluations aside that run at a time.
const ASIDE_MAX: usize = 2;

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
    /// The way to the writers.
    pub(crate) ingest: Ingest,
    /// A folder for what is worth nothing to the next start.
    pub(crate) scratch_folder: PathBuf,
    /// By shard: what its writer may trim.
    pub(crate) trim_to: Vec<Arc<AtomicI64>>,
    /// Last epoch number that is reserved.
    pub(crate) reserved: u64,
    /// Tells sinks and readers where the outbox ends.
    pub(crate) applied: watch::Sender<Applied>,
    /// Indexes of joins that took too long and are left alone until the next start.
    pub(crate) stopped: BTreeSet<usize>,
    /// What somebody else found to be wrong.
    pub(crate) repairs: Arc<Repairs>,
}

/// Joins whose stored results are not to be trusted: they are evaluated in full, and what differs is stored and sent.
#[derive(Debug, Default)]
pub(crate) struct Repairs(Mutex<BTreeSet<String>>);

impl Repairs {
    /// Asks for a join; whoever waits at the gate has to be woken.
    pub(crate) fn ask(&self, join_name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(join_name.to_owned());
    }

    fn take(&self, join_name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(join_name)
    }
}

/// Why an epoch was not applied; it is tried again.
#[derive(Debug, thiserror::Error)]
enum EpochError {
    #[error(transparent)]
    File(#[from] SqliteError),
    #[error(transparent)]
    Full(#[from] FullError),
    #[error("could not use the tables in memory")]
    Memory(#[from] rusqlite::Error),
    /// A join that had stored some of its results has to be evaluated aside; the others start over.
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

/// A join and how far it has come.
struct Joined {
    join: Arc<CheckedJoin>,
    id: JoinId,
    /// None if it can't be kept current by key.
    keyed: Option<KeyedJoin>,
    /// None if its groups are not accumulated, or its values turned out not to fit.
    accumulated: Option<AccumulatedJoin>,
    /// By shard, what its results follow from; `None` while that is not known.
    applied: Option<Vec<i64>>,
    /// Whether its query failed, so that its results stay as they were.
    stale: bool,
    /// Whether it took too long and is left alone until the next start.
    stopped: bool,
    /// Whether it has to be evaluated aside.
    due: bool,
    /// While it is evaluated aside: what the log must still hold for it.
    aside: Option<Vec<i64>>,
    /// The newest cut that its results contain, as it is stored.
    epoch: u64,
    /// When it was last looked at for the passing of time.
    ticked: Instant,
    /// A copy of its topics, if it has one.
    copy: Option<FullCopy>,
}

/// What an epoch has changed of a join.
struct Changed {
    index: usize,
    /// How many results.
    differences: u64,
    /// Whether its groups are not accumulated any more.
    is_unfit: bool,
}

impl Joined {
    /// Whether it can take in that many entries of the log without looking at everything.
    fn keeps_up(&self, lag: i64) -> bool {
        let is_whole = self.accumulated.is_some() && lag <= WHOLE_ENTRIES_MAX;
        is_whole || self.keyed.is_some() && lag <= LAG_ENTRIES_MAX
    }

    /// Stores what the changes make of it. Returns how many results differ, and whether its groups are not accumulated
    /// any more; `None` if the changes don't concern it.
    fn evaluate(
        &self,
        benches: &mut Benches,
        changes: &Changes,
        known: Option<&Changes>,
        writer: &mut EpochWriter<'_>,
    ) -> Result<Option<(u64, bool)>, KeyedError> {
        let mut is_unfit = false;
        if let Some(accumulated) = &self.accumulated {
            let outcome = match known {
                Some(changes) => benches.accumulate(accumulated, changes),
                // Whoever is as far behind is rather quick than cheap: by key, and accumulated again from the next
                // start on.
                None => {
                    writer.forget_accumulators(self.id)?;
                    Err(KeyedError::Unfit)
                }
            };
            match outcome {
                Ok(None) => return Ok(None),
                Ok(Some(Settled { differences, states })) => {
                    writer.store(self.id, differences.iter().map(Difference::change))?;
                    for (group, state) in &states {
                        writer.accumulate(self.id, group, state.as_deref())?;
                    }
                    return Ok(Some((differences.len() as u64, false)));
                }
                Err(KeyedError::Unfit) => is_unfit = true,
                Err(error) => return Err(error),
            }
            if known.is_some() {
                writer.forget_accumulators(self.id)?;
                writer.accumulate_by(self.id, Some(&unfit(&accumulated.plan)))?;
            }
        }
        // In full it is found out again that values don't fit.
        let keyed = self.keyed.as_ref().ok_or(KeyedError::Unfit)?;
        let differences = benches.evaluate(keyed, changes, known, |found| {
            writer.store(self.id, found.iter().map(Difference::change))
        })?;
        Ok(if is_unfit { Some((differences.unwrap_or(0), true)) } else { differences.map(|n| (n, false)) })
    }
}

/// What is noted of a plan by which groups can't be kept.
fn unfit(plan: &Accumulated) -> String {
    format!("unfit {}", plan.fingerprint())
}

/// The evaluator at work.
struct Lane {
    joins: Vec<Joined>,
    ingest: Ingest,
    benches: Benches,
    committer: Arc<Committer>,
    aside: Arc<Aside>,
    done: mpsc::Receiver<Done>,
    trim_to: Vec<Arc<AtomicI64>>,
    repairs: Arc<Repairs>,
    /// Whether the joins that need nothing have been said to be current.
    begun: bool,
    /// Checkpoints that the next cut waits for.
    relief: Option<Checkpoints>,
    /// What went wrong in an evaluation aside and has not been reported.
    failing: Option<EpochError>,
    /// Whether something could not be stored since something last could.
    troubled: bool,
}

impl Evaluator {
    /// Runs until the gate is stopped and everything committed has been evaluated, or until it is halted: then what
    /// follows is for another evaluator with the same files.
    pub(crate) fn run(mut self) -> Self {
        let mut pause = RETRY_MIN;
        let mut lane = loop {
            match self.begin() {
                Ok(lane) => break lane,
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
            let outcome = if halted { Ok(false) } else { lane.step(&self.gate, stopped) };
            let outcome = match lane.failing.take() {
                Some(problem) => Err(problem),
                None => outcome,
            };
            match outcome {
                _ if halted => break,
                Ok(true) => {
                    if !lane.troubled {
                        pause = RETRY_MIN;
                        self.recovered();
                    }
                }
                Ok(false) if stopped && !lane.is_any_aside() => break,
                Ok(false) => {
                    if !lane.troubled {
                        self.recovered();
                    }
                    let ticks = !stopped && lane.joins.iter().any(|joined| joined.join.reads_clock);
                    let limit = if ticks || stopped { TICK } else { Duration::from_secs(3_600) };
                    self.gate.wait(limit);
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
        lane.aside.cancel();
        while lane.is_any_aside() {
            match lane.done.recv() {
                Ok(done) => lane.take_in(done),
                Err(_) => break,
            }
        }
        self.reserved = lane.committer.reserved();
        for (index, (joined, progress)) in lane.joins.into_iter().zip(&mut self.progress).enumerate() {
            progress.applied = joined.applied;
            progress.stale = joined.stale;
            progress.epoch = joined.epoch;
            if joined.stopped {
                self.stopped.insert(index);
            }
        }
        self
    }

    fn recovered(&self) {
        if self.status.results_recovered() {
            info!("results can be stored again");
        }
    }

    fn report(&self, problem: &EpochError) {
        let disk_full = problem.is_disk_full();
        if disk_full {
            // The WAL can be written from its start again once the file has what it holds.
            let _ = self.results.checkpoint();
        }
        let text = if disk_full { "the disk is full".to_owned() } else { chain(problem) };
        if self.status.results_failed(&text, disk_full) {
            error!(error = chain(problem), "could not store results; trying again");
        }
    }

    /// Opens what the work needs.
    fn begin(&self) -> Result<Lane, EpochError> {
        let (sender, done) = mpsc::channel();
        let committer = Arc::new(Committer::new(
            Arc::clone(&self.gate),
            Arc::clone(&self.results),
            Arc::clone(&self.status),
            self.applied.clone(),
            &self.shard_paths,
            self.reserved,
        ));
        let now = Instant::now();
        let mut joins = Vec::with_capacity(self.joins.len());
        for (index, (join, progress)) in self.joins.iter().zip(&self.progress).enumerate() {
            let mut applied = progress.applied.clone();
            let topic_id = |name: &str| self.topics.declare(name);
            let new_keyed = |plan: &Keyed| KeyedJoin::new(join.clone(), progress.id, plan.clone(), topic_id);
            let mut accumulated = None;
            let keyed = match &join.class {
                Class::Full(_) => None,
                Class::Keyed(plan) => Some(new_keyed(plan)),
                Class::Accumulated(plan) => {
                    match self.results.accumulated_by(progress.id)? {
                        Some(by) if by == unfit(plan) && applied.is_some() => {}
                        by => {
                            // What is kept by another plan, or by none, is made anew.
                            applied = applied.filter(|_| by == Some(plan.fingerprint()));
                            let plan = plan.as_ref().clone();
                            accumulated =
                                Some(AccumulatedJoin::new(join.clone(), progress.id, plan, topic_id));
                        }
                    }
                    plan.otherwise.as_ref().ok().map(new_keyed)
                }
            };
            joins.push(Joined {
                join: Arc::new(join.clone()),
                id: progress.id,
                keyed,
                accumulated,
                due: progress.stale || applied.is_none() || join.reads_clock,
                applied,
                stale: progress.stale,
                stopped: self.stopped.contains(&index),
                aside: None,
                epoch: progress.epoch,
                ticked: now,
                copy: None,
            });
        }
        let aside = Aside {
            gate: Arc::clone(&self.gate),
            topics: Arc::clone(&self.topics),
            reader: Arc::clone(&self.reader),
            committer: Arc::clone(&committer),
            joins: self.joins.clone(),
            shard_paths: self.shard_paths.clone(),
            scratch_folder: self.scratch_folder.clone(),
            cancelled: Arc::new(AtomicBool::new(false)),
            done: sender,
        };
        let benches = Benches::new(
            &self.shard_paths,
            self.results.path(),
            joins.iter().filter_map(|j| j.keyed.as_ref()),
            joins.iter().filter_map(|j| j.accumulated.as_ref()),
        )?;
        debug!(milliseconds = now.elapsed().as_millis(), "the evaluator is ready");
        Ok(Lane {
            joins,
            ingest: self.ingest.clone(),
            benches,
            committer,
            aside: Arc::new(aside),
            done,
            trim_to: self.trim_to.clone(),
            repairs: Arc::clone(&self.repairs),
            begun: false,
            relief: None,
            failing: None,
            troubled: false,
        })
    }
}

impl Lane {
    fn is_any_aside(&self) -> bool {
        self.joins.iter().any(|joined| joined.aside.is_some())
    }

    /// Does what there is to do; `false` if that was nothing.
    fn step(&mut self, gate: &EpochGate, stopping: bool) -> Result<bool, EpochError> {
        while let Ok(done) = self.done.try_recv() {
            self.take_in(done);
        }
        let committed = gate.committed();
        let is_behind = |joined: &Joined| {
            joined.aside.is_none() && !joined.due && joined.applied.as_ref() != Some(&committed)
        };
        let mut worked = false;
        if !self.begun || self.joins.iter().any(is_behind) || self.joins.is_empty() {
            worked = self.epoch(gate)?;
        }
        let mut running = self.joins.iter().filter(|joined| joined.aside.is_some()).count();
        for (index, joined) in self.joins.iter_mut().enumerate() {
            if joined.aside.is_some() || joined.stopped {
                continue;
            }
            if joined.join.reads_clock && !stopping && joined.ticked.elapsed() >= TICK {
                joined.due = true;
            }
            if self.repairs.take(&joined.join.name) {
                joined.due = true;
                joined.copy = None;
            }
            if joined.due && running < ASIDE_MAX {
                joined.due = false;
                joined.ticked = Instant::now();
                joined.aside = Some(joined.applied.clone().unwrap_or_else(|| committed.clone()));
                let ask = Ask {
                    index,
                    id: joined.id,
                    applied: joined.applied.clone(),
                    epoch: joined.epoch,
                    accumulates: joined.accumulated.is_some(),
                    by_key: joined.keyed.is_some(),
                };
                self.aside.start(ask, joined.copy.take());
                running += 1;
                worked = true;
            }
        }
        Ok(worked)
    }

    /// Brings the joins that lag up to a new cut, and commits that as one epoch.
    fn epoch(&mut self, gate: &EpochGate) -> Result<bool, EpochError> {
        self.committer.reserve()?;
        self.committer.give_turn()?;
        let cut = gate.cut(|| self.benches.hold())?;
        crate::fault::point("cut");
        let outcome = self.evaluate(&cut, gate);
        self.benches.release();
        if let Some(relief) = self.relief.take() {
            relief.wait();
            gate.let_pass(false);
        }
        let evaluated = match outcome {
            Err(EpochError::Begun) => return Ok(true),
            outcome => outcome?,
        };
        let news = evaluated.iter().any(|index| self.joins[*index].applied.as_ref() != Some(&cut.seqs));
        for index in evaluated {
            let joined = &mut self.joins[index];
            joined.applied = Some(cut.seqs.clone());
            joined.epoch = cut.epoch;
        }
        if self.joins.is_empty() {
            self.committer.passed(cut.epoch);
        }
        self.begun = true;
        self.tell(&cut);
        Ok(news)
    }

    /// Lets go of the shards, and has those checkpoint whose WALs are long: they start over only when nobody reads.
    fn relieve(&mut self, gate: &EpochGate) {
        self.benches.release();
        let due = self.committer.due_shards();
        if due.is_empty() {
            return;
        }
        // Where little comes in, most moments are without readers, and nothing that comes need wait.
        let waits = gate.is_pressed() || due.iter().any(|shard| self.committer.is_pressing(*shard));
        if waits {
            // A writer that waits for the cut would keep us waiting.
            gate.let_pass(true);
        }
        self.relief = Some(self.ingest.checkpoint(&due)).filter(|_| waits);
    }

    /// Evaluates and commits; returns the joins that have come to the cut.
    fn evaluate(&mut self, cut: &Cut, gate: &EpochGate) -> Result<Vec<usize>, EpochError> {
        let mut groups: BTreeMap<Vec<i64>, Vec<usize>> = BTreeMap::new();
        for (index, joined) in self.joins.iter().enumerate() {
            if let (None, false, Some(applied)) = (&joined.aside, joined.due, &joined.applied) {
                groups.entry(applied.clone()).or_default().push(index);
            }
        }
        let mut there = groups.remove(&cut.seqs).unwrap_or_default();
        // What is said to be applied is stored before: a restart must not take it back.
        if groups.is_empty() && there.iter().all(|index| self.joins[*index].epoch == cut.epoch) {
            return Ok(there);
        }
        let mut changed: Vec<Changed> = Vec::new();
        let committer = Arc::clone(&self.committer);
        committer.commit(cut.epoch, |writer| {
            self.benches.hold_results()?;
            for (applied, members) in groups {
                there.extend(self.bring_on(&applied, members, cut, writer, &mut changed)?);
            }
            crate::fault::point("evaluated");
            for index in &there {
                let joined = &self.joins[*index];
                writer.applied(joined.id, &cut.seqs, joined.stale)?;
            }
            // The shards have this moment without readers while the results are synced.
            self.relieve(gate);
            Ok::<(), EpochError>(())
        })?;
        self.troubled = false;
        for Changed { index, differences, is_unfit } in changed {
            let joined = &mut self.joins[index];
            joined.accumulated = joined.accumulated.take().filter(|_| !is_unfit);
            committer.status().join(&joined.join.name).results_changed.add(differences);
        }
        Ok(there)
    }

    /// Evaluates joins that have all come equally far; returns those that come to the cut.
    fn bring_on(
        &mut self,
        applied: &[i64],
        mut members: Vec<usize>,
        cut: &Cut,
        writer: &mut EpochWriter<'_>,
        changed: &mut Vec<Changed>,
    ) -> Result<Vec<usize>, EpochError> {
        let lag: i64 = applied.iter().zip(&cut.seqs).map(|(from, to)| to - from).sum();
        let mut from = applied.to_vec();
        let is_whole =
            lag <= WHOLE_ENTRIES_MAX && members.iter().any(|index| self.joins[*index].accumulated.is_some());
        let slices = if is_whole { 1 } else { (lag + SLICE_ENTRIES - 1) / SLICE_ENTRIES };
        for slice in 1..=slices {
            // The last slice ends at the cut; the others share the way evenly.
            let to: Vec<i64> = applied
                .iter()
                .zip(&cut.seqs)
                .map(|(start, end)| start + (end - start) * slice / slices)
                .collect();
            let changes = match self.benches.changes(&from, &to, &self.aside.topics) {
                Ok(changes) => changes,
                Err(ReadError::TooMuch) => {
                    members.iter().for_each(|index| self.joins[*index].due = true);
                    return Ok(Vec::new());
                }
                Err(ReadError::File(error)) => return Err(error.into()),
            };
            crate::fault::point("log-read");
            let touched: BTreeSet<String> = changes
                .topics()
                .into_iter()
                .map(|topic| self.aside.topics.name(topic).to_ascii_lowercase())
                .collect();
            members.retain(|index| {
                let joined = &mut self.joins[*index];
                let is_touched =
                    joined.join.topics.iter().any(|topic| touched.contains(&topic.to_ascii_lowercase()));
                if is_touched && !joined.stopped && (joined.stale || !joined.keeps_up(lag)) {
                    joined.due = true;
                }
                !joined.due
            });
            // Only what is read whole says what stands in the topics at the cut.
            let known = (slices == 1).then_some(&changes);
            for index in members.clone() {
                if !self.joins[index].stopped && !self.joins[index].stale {
                    self.by_key(index, &changes, known, writer, changed)?;
                }
            }
            members.retain(|index| !self.joins[*index].due);
            from = to;
        }
        Ok(members)
    }

    /// Evaluates one join by key, or marks it as due for an evaluation aside.
    fn by_key(
        &mut self,
        index: usize,
        changes: &Changes,
        known: Option<&Changes>,
        writer: &mut EpochWriter<'_>,
        changed: &mut Vec<Changed>,
    ) -> Result<(), EpochError> {
        let joined = &mut self.joins[index];
        let started = Instant::now();
        let benches = &mut self.benches;
        let writes = writer.writes();
        let outcome = joined.evaluate(benches, changes, known, writer);
        let status = self.committer.status().join(&joined.join.name);
        let cost = self.benches.take_cost();
        status.steps.add(cost.steps);
        status.probes.add(cost.probes);
        match outcome {
            Ok(None) => {}
            Ok(Some((differences, is_unfit))) => {
                status.evaluations.add(1);
                status.evaluation_microseconds.add(microseconds(started));
                status.error.clear();
                changed.push(Changed { index, differences, is_unfit });
            }
            Err(
                KeyedError::TooLarge
                | KeyedError::Unfit
                | KeyedError::Query { .. }
                | KeyedError::Endless { .. },
            ) => {
                // In full it may well go, or else it is told why not.
                joined.due = true;
                if writer.writes() > writes {
                    return Err(EpochError::Begun);
                }
            }
            Err(KeyedError::File(error)) => return Err(error.into()),
            Err(KeyedError::Memory(error)) => return Err(error.into()),
        }
        Ok(())
    }

    /// Notes how an evaluation aside has ended.
    fn take_in(&mut self, done: Done) {
        let joined = &mut self.joins[done.index];
        let before = joined.aside.take();
        joined.copy = done.copy;
        joined.accumulated = joined.accumulated.take().filter(|_| !done.unfit);
        let status = self.committer.status().join(&joined.join.name);
        status.evaluations.add(1);
        status.evaluations_full.add(1);
        status.evaluation_microseconds.add(done.microseconds);
        match done.outcome {
            Outcome::Applied { cut } => {
                joined.applied = Some(cut.seqs.clone());
                joined.epoch = joined.epoch.max(cut.epoch);
                joined.stale = false;
                self.troubled = false;
                status.error.clear();
                self.tell(&cut);
            }
            Outcome::Failed { cut, error } => {
                joined.stopped = matches!(error, FullError::Endless { .. } | FullError::Rows { .. });
                joined.stale = true;
                joined.applied = Some(cut.seqs.clone());
                joined.epoch = joined.epoch.max(cut.epoch);
                let error = error.to_string();
                if status.error.set(&error) {
                    warn!(join = joined.join.name, error, "a join fails; its results stay as they were");
                }
                self.tell(&cut);
            }
            Outcome::Again { error } => {
                joined.applied = joined.applied.take().and(before);
                // Part of the results may be stored.
                joined.stale = true;
                joined.due = true;
                self.troubled |= error.is_some();
                self.failing = error.or(self.failing.take());
            }
        }
    }

    /// Tells the shards what they may trim and everybody else what is applied.
    fn tell(&self, cut: &Cut) {
        for (shard, trim_to) in self.trim_to.iter().enumerate() {
            let needed = self.joins.iter().filter_map(|joined| {
                let seqs = joined.aside.as_ref().or(joined.applied.as_ref());
                seqs.filter(|_| !joined.stopped).map(|seqs| seqs[shard])
            });
            trim_to.store(needed.min().unwrap_or(cut.seqs[shard]).min(cut.seqs[shard]), Ordering::Relaxed);
        }
        for joined in &self.joins {
            self.committer.status().join(&joined.join.name).epoch.set(joined.epoch);
        }
        if let Some(epoch) = self.joins.iter().map(|joined| joined.epoch).min()
            && epoch > 0
        {
            self.committer.passed(epoch);
        }
    }
}

fn microseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
