//! The schedule of an epoch: which joins are brought up to the cut by the changes, which are evaluated in full in the
//! background, and by which class each is kept current.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use tracing::warn;

use super::background::{BackgroundEvaluator, Job, JobOutcome, JobResult};
use super::commit::Committer;
use super::join_state::{Aggregation, Cause, EvaluationOutcome, JoinState};
use super::pool::EvaluatorPool;
use super::{BACKGROUND_MAX, EpochError, Repairs, SLICE_ENTRIES, WHOLE_ENTRIES_MAX, microseconds};
use crate::clock::SteadyClock;
use crate::dead_letters::DeadLetters;
use crate::join::CheckedJoin;
use crate::join::changes::{Changes, ReadError};
use crate::join::full::FullError;
use crate::join::keyed::KeyedError;
use crate::join::time_step::{TimePassed, TimeStep};
use crate::results::store::EpochWriter;
use crate::status::Status;
use crate::status::join::JoinStatus;
use crate::storage::arrivals::SureTimes;
use crate::storage::gate::{Cut, EpochGate};
use crate::storage::ingest::{Checkpoints, Ingest};
use crate::storage::log::LogHold;

/// The running evaluator: one epoch after the other.
pub(super) struct EpochLoop {
    pub(super) joins: Vec<JoinState>,
    pub(super) ingest: Ingest,
    pub(super) pool: EvaluatorPool,
    pub(super) committer: Arc<Committer>,
    pub(super) background: Arc<BackgroundEvaluator>,
    pub(super) clock: Arc<SteadyClock>,
    /// The moment at which due rows were last looked for.
    pub(super) looked_at: Option<i64>,
    pub(super) done: mpsc::Receiver<JobResult>,
    pub(super) trim_to: Vec<Arc<AtomicI64>>,
    pub(super) log_hold: LogHold,
    pub(super) repairs: Arc<Repairs>,
    /// Event times that count in the cut.
    pub(super) sure: SureTimes,
    /// Takes the messages that are too late for a window.
    pub(super) letters: Arc<DeadLetters>,
    /// Whether an epoch has published the joins that were current at the start.
    pub(super) begun: bool,
    /// Checkpoints that have to end before the next cut.
    pub(super) checkpoints: Option<Checkpoints>,
    /// An error of the background that has not been reported.
    pub(super) failing: Option<EpochError>,
    /// Whether a commit has failed since the last one that succeeded.
    pub(super) troubled: bool,
}

/// The effect of an epoch on a join.
pub(super) struct EpochChange {
    pub(super) index: usize,
    /// The number of changed results.
    pub(super) results: u64,
    /// The effect on the aggregate state.
    pub(super) aggregation: Aggregation,
}

/// The time that passes in an epoch.
struct TimeSteps {
    /// The moment of the epoch, in seconds since the Unix epoch.
    now: i64,
    /// Steps by the index of their join; they may end earlier.
    taken: BTreeMap<usize, TimeStep>,
}

impl EpochLoop {
    pub(super) fn is_any_in_background(&self) -> bool {
        self.joins.iter().any(|state| state.background.is_some())
    }

    /// Does the work that is due; returns `false` if there was none.
    pub(super) fn step(&mut self, gate: &EpochGate, stopping: bool) -> Result<bool, EpochError> {
        while let Ok(done) = self.done.try_recv() {
            self.finish_background(done);
        }
        let committed = gate.committed();
        let is_behind = |state: &JoinState| {
            state.background.is_none() && !state.due && state.applied.as_ref() != Some(&committed)
        };
        let mut worked = false;
        let begins = self.joins.iter().any(|state| state.begins && !state.stopped);
        let has_more = |state: &JoinState| state.window.as_ref().is_some_and(|window| window.has_more());
        let begins = begins || self.joins.iter().any(|state| !state.stopped && has_more(state));
        let is_behind = !self.begun || begins || self.joins.iter().any(is_behind) || self.joins.is_empty();
        if is_behind || !stopping && self.is_time_due(gate)? {
            worked = self.epoch(gate)?;
        }
        let now = self.clock.now();
        let mut running = self.joins.iter().filter(|state| state.background.is_some()).count();
        for (index, state) in self.joins.iter_mut().enumerate() {
            if state.background.is_some() || state.stopped {
                continue;
            }
            if !stopping && state.is_refresh_due(now) {
                state.due = true;
            }
            if self.repairs.take(&state.join.name) {
                state.due = state.window.is_none();
                state.begins = state.window.is_some();
                state.copy = None;
                worked |= state.begins;
            }
            if state.due && running < BACKGROUND_MAX {
                state.due = false;
                state.background = Some(state.applied.clone().unwrap_or_else(|| committed.clone()));
                let job = Job {
                    index,
                    id: state.id,
                    applied: state.applied.clone(),
                    epoch: state.epoch,
                    has_moment: state.clock.is_some(),
                    accumulates: state.accumulated.is_some(),
                    by_key: state.keyed.is_some(),
                    has_failing: !state.failing.is_empty(),
                };
                self.background.start(job, state.copy.take());
                running += 1;
                worked = true;
            }
        }
        Ok(worked)
    }

    /// Looks, once a second, for joins with rows that the clock has passed.
    fn is_time_due(&mut self, gate: &EpochGate) -> Result<bool, EpochError> {
        let now = self.clock.now();
        if self.looked_at == Some(now) {
            // An epoch that failed is cut again.
            let is_followed = |state: &JoinState| state.window.is_some() || state.is_followed_by_rows();
            return Ok(self.joins.iter().any(|state| state.is_time_due && is_followed(state)));
        }
        let mut is_any = false;
        let mut arrived = now;
        if self.joins.iter().any(|state| state.window.is_some()) {
            // What is sure before the cut is in it.
            self.sure = self.ingest.arrivals().sure();
            let cut = gate.cut(|| self.pool.hold())?;
            arrived = cut.arrived;
            let outcome = self.look_at_windows(&cut, now);
            self.pool.release();
            is_any = outcome?;
        }
        for state in self.joins.iter_mut().filter(|state| state.is_followed_by_rows()) {
            let outcome = state.is_any_row_due(self.pool.workspace(), now);
            let status = self.committer.status().join(&state.join.name);
            count_cost(&mut self.pool, &status);
            state.is_time_due = match outcome {
                Ok(is_due) => is_due,
                Err(KeyedError::File(error)) => return Err(error.into()),
                Err(KeyedError::Memory(error)) => return Err(error.into()),
                Err(_) => {
                    state.due = true;
                    false
                }
            };
            is_any |= state.is_time_due;
            if !state.is_time_due && !state.due {
                status.set_as_of(now);
            }
        }
        // While a writer is at work, windows stand at the time of its messages, and are looked at again.
        self.looked_at = (arrived >= now).then_some(now);
        Ok(is_any)
    }

    /// Brings the joins that lag up to a new cut, in one commit. Returns whether any of them has moved.
    fn epoch(&mut self, gate: &EpochGate) -> Result<bool, EpochError> {
        self.committer.reserve()?;
        self.committer.open_window()?;
        self.sure = self.ingest.arrivals().sure();
        let cut = gate.cut(|| self.pool.hold())?;
        crate::fault::point("cut");
        let mut steps = TimeSteps { now: self.clock.now(), taken: BTreeMap::new() };
        let outcome = self.evaluate(&cut, gate, &mut steps);
        self.pool.release();
        self.tell_failing(outcome.is_ok())?;
        if outcome.is_err() {
            self.joins
                .iter_mut()
                .filter_map(|state| state.window.as_mut())
                .for_each(|window| window.forget());
        }
        if let Some(checkpoints) = self.checkpoints.take() {
            checkpoints.wait();
            gate.suspend_backpressure(false);
        }
        if cut.arrived < steps.now {
            self.looked_at = None;
        }
        let evaluated = match outcome {
            Err(EpochError::Begun) => return Ok(true),
            outcome => outcome?,
        };
        let news = !steps.taken.is_empty()
            || evaluated.iter().any(|index| self.joins[*index].applied.as_ref() != Some(&cut.seqs));
        for index in evaluated {
            let state = &mut self.joins[index];
            if let Some(step) = steps.taken.remove(&index) {
                if step.to != steps.now {
                    // More rows are due than one step may take in.
                    self.looked_at = None;
                }
                state.reach(step.to, Some(step.values));
                let status = self.committer.status().join(&state.join.name);
                status.set_as_of(step.to);
            }
            state.applied = Some(cut.seqs.clone());
            state.epoch = cut.epoch;
            state.resume_aggregation();
            self.window_reached(index, steps.now);
        }
        if self.joins.is_empty() {
            self.committer.passed(cut.epoch);
        }
        self.begun = true;
        self.publish_progress(&cut);
        Ok(news)
    }

    /// Releases the readers of shards and requests checkpoints of long WALs, which restart only while no reader is
    /// active.
    fn request_checkpoints(&mut self, gate: &EpochGate) {
        self.pool.release();
        let due = self.committer.due_shards();
        if due.is_empty() {
            return;
        }
        // Under light load the WAL has moments without readers anyway, so no writer has to wait for the checkpoint.
        let waits = gate.backpressure_near() || due.iter().any(|shard| self.committer.wal_over_limit(*shard));
        if waits {
            // A writer that waits for the cut would never checkpoint.
            gate.suspend_backpressure(true);
        }
        self.checkpoints = Some(self.ingest.checkpoint(&due)).filter(|_| waits);
    }

    /// Evaluates and commits; returns the joins that have reached the cut, and notes in `steps` how far their time has come.
    fn evaluate(
        &mut self,
        cut: &Cut,
        gate: &EpochGate,
        steps: &mut TimeSteps,
    ) -> Result<Vec<usize>, EpochError> {
        let mut groups: BTreeMap<Vec<i64>, Vec<usize>> = BTreeMap::new();
        for (index, state) in self.joins.iter().enumerate() {
            if state.begins {
                continue;
            }
            if let (None, false, Some(applied)) = (&state.background, state.due, &state.applied) {
                groups.entry(applied.clone()).or_default().push(index);
            }
        }
        let is_due = |index: &usize| self.joins[*index].is_time_due;
        let (due, mut there): (Vec<usize>, Vec<usize>) =
            groups.remove(&cut.seqs).unwrap_or_default().into_iter().partition(is_due);
        if !due.is_empty() {
            groups.insert(cut.seqs.clone(), due);
        }
        // Progress is stored before it is reported, so a restart cannot report less.
        let begins: Vec<usize> = (0..self.joins.len())
            .filter(|index| self.joins[*index].begins && !self.joins[*index].stopped)
            .collect();
        let is_there = begins.is_empty() && groups.is_empty();
        if is_there && there.iter().all(|index| self.joins[*index].epoch == cut.epoch) {
            return Ok(there);
        }
        let mut changed: Vec<EpochChange> = Vec::new();
        let committer = Arc::clone(&self.committer);
        committer.commit(cut.epoch, |writer| {
            self.pool.hold_results()?;
            for index in begins {
                if self.begin_window(index, writer)? {
                    there.push(index);
                }
            }
            for (applied, members) in groups {
                there.extend(self.catch_up(&applied, members, cut, writer, &mut changed, steps)?);
            }
            there = self.advance_windows(std::mem::take(&mut there), cut, steps.now, writer, &mut changed)?;
            crate::fault::point("evaluated");
            for index in &there {
                let state = &self.joins[*index];
                let moment = steps.taken.get(index).map(|step| step.to).or(state.clock);
                writer.applied(state.id, &cut.seqs, moment, state.stale && state.window.is_none())?;
            }
            // The shards have no readers while the results are synced.
            self.request_checkpoints(gate);
            Ok::<(), EpochError>(())
        })?;
        self.troubled = false;
        for EpochChange { index, results, aggregation } in changed {
            let state = &mut self.joins[index];
            match aggregation {
                // Each slice reports the suspension; only the first report counts.
                Aggregation::Suspended if state.accumulated.is_none() => {}
                Aggregation::Kept => {}
                Aggregation::Suspended => {
                    let is_news = state.suspend_aggregation();
                    publish_fallback(committer.status(), state, is_news);
                }
                Aggregation::Failing => {
                    let is_news = state.set_aggregation_aside();
                    publish_fallback(committer.status(), state, is_news);
                }
                Aggregation::GivenUp => {
                    let is_news = state.give_up_aggregation();
                    publish_fallback(committer.status(), state, is_news);
                }
            }
            committer.status().join(&state.join.name).results_changed.add(results);
        }
        Ok(there)
    }

    /// Evaluates joins with the same progress; returns those that have reached the cut.
    fn catch_up(
        &mut self,
        applied: &[i64],
        mut members: Vec<usize>,
        cut: &Cut,
        writer: &mut EpochWriter<'_>,
        changed: &mut Vec<EpochChange>,
        steps: &mut TimeSteps,
    ) -> Result<Vec<usize>, EpochError> {
        let lag: i64 = applied.iter().zip(&cut.seqs).map(|(from, to)| to - from).sum();
        let mut from = applied.to_vec();
        let is_whole =
            lag <= WHOLE_ENTRIES_MAX && members.iter().any(|index| self.joins[*index].accumulated.is_some());
        let slices = if is_whole { 1 } else { ((lag + SLICE_ENTRIES - 1) / SLICE_ENTRIES).max(1) };
        for slice in 1..=slices {
            // The last slice ends at the cut; all slices cover the same share of each shard's log.
            let to: Vec<i64> = applied
                .iter()
                .zip(&cut.seqs)
                .map(|(start, end)| start + (end - start) * slice / slices)
                .collect();
            let changes = match self.pool.changes(&from, &to, &self.background.topics) {
                Ok(changes) => changes,
                Err(ReadError::TooMuch) => {
                    for index in &members {
                        let state = &mut self.joins[*index];
                        (state.due, state.begins) = (state.window.is_none(), state.window.is_some());
                    }
                    return Ok(Vec::new());
                }
                Err(ReadError::File(error)) => return Err(error.into()),
            };
            crate::fault::point("log-read");
            let touched: BTreeSet<String> = changes
                .topics()
                .into_iter()
                .map(|topic| self.background.topics.name(topic).to_ascii_lowercase())
                .collect();
            let is_touched = |join: &CheckedJoin| {
                join.topics.iter().any(|topic| touched.contains(&topic.to_ascii_lowercase()))
            };
            members.retain(|index| {
                let state = &mut self.joins[*index];
                let is_join = state.window.is_none();
                if is_join
                    && is_touched(&state.join)
                    && !state.stopped
                    && (state.stale || !state.keeps_up(lag))
                {
                    state.due = true;
                }
                !state.due
            });
            // Only changes in one slice hold the rows that the readers see at the cut.
            let known = (slices == 1).then_some(&changes);
            for index in members.clone() {
                let state = &self.joins[index];
                let is_concerned = is_touched(&state.join) || state.is_time_due;
                if state.window.is_some() {
                    if is_touched(&state.join) && !state.stopped {
                        self.take_in(index, &changes, writer)?;
                    }
                } else if is_concerned && !state.stopped && !state.stale {
                    self.evaluate_keyed(index, &changes, known, writer, changed, steps)?;
                }
            }
            members.retain(|index| !self.joins[*index].due && !self.joins[*index].begins);
            from = to;
        }
        Ok(members)
    }

    /// Evaluates one join by key, or marks it as due for an evaluation in the background.
    fn evaluate_keyed(
        &mut self,
        index: usize,
        changes: &Changes,
        known: Option<&Changes>,
        writer: &mut EpochWriter<'_>,
        changed: &mut Vec<EpochChange>,
        steps: &mut TimeSteps,
    ) -> Result<(), EpochError> {
        let state = &mut self.joins[index];
        let started = Instant::now();
        let pool = &mut self.pool;
        let writes = writer.writes();
        let outcome = match steps.taken.get(&index) {
            Some(step) => Ok(Some(TimePassed::Step(step.taken()))),
            None => state.time_step(pool.workspace(), steps.now),
        };
        let outcome = outcome.and_then(|passed| match passed {
            Some(TimePassed::Everything) => Ok(EvaluationOutcome::Due),
            Some(TimePassed::Step(step)) => {
                let outcome = state.evaluate(pool, Some(&step), changes, known, writer)?;
                if outcome != EvaluationOutcome::Due {
                    steps.taken.entry(index).or_insert(step);
                }
                Ok(outcome)
            }
            None => state.evaluate(pool, None, changes, known, writer),
        });
        let status = self.committer.status().join(&state.join.name);
        count_cost(&mut self.pool, &status);
        match outcome {
            Ok(EvaluationOutcome::Due) => state.due = true,
            Ok(EvaluationOutcome::Unaffected) => {}
            Ok(EvaluationOutcome::Evaluated { results, aggregation }) => {
                status.evaluations.add(1);
                status.evaluation_microseconds.add(microseconds(started));
                if state.failing.is_empty() {
                    status.error.clear();
                }
                changed.push(EpochChange { index, results, aggregation });
            }
            Err(KeyedError::File(error)) => return Err(error.into()),
            Err(KeyedError::Memory(error)) => return Err(error.into()),
            Err(error) => {
                // Fall back to full evaluation; if that fails too, it reports why.
                let cause = Cause::of(&error).expect("the others are errors of files");
                let is_news = state.fall_back(cause, error.to_string(), true);
                publish_fallback(self.committer.status(), state, is_news);
                state.due = true;
                if writer.writes() > writes {
                    return Err(EpochError::Begun);
                }
            }
        }
        Ok(())
    }

    /// Records the result of an evaluation in the background.
    pub(super) fn finish_background(&mut self, result: JobResult) {
        // The join was passed over by a look at the clock meanwhile.
        self.looked_at = None;
        let state = &mut self.joins[result.index];
        let before = state.background.take();
        state.copy = result.copy;
        if result.is_not_accumulable {
            let is_news = state.give_up_aggregation();
            publish_fallback(self.committer.status(), state, is_news);
        }
        let status = self.committer.status().join(&state.join.name);
        status.evaluations.add(1);
        status.evaluations_full.add(1);
        status.evaluation_microseconds.add(result.microseconds);
        match result.outcome {
            JobOutcome::Applied { cut, clock } => {
                if let Some(moment) = clock {
                    state.reach(moment, None);
                    status.set_as_of(moment);
                }
                state.applied = Some(cut.seqs.clone());
                state.epoch = state.epoch.max(cut.epoch);
                (state.stale, state.has_failed) = (false, false);
                state.recover();
                self.troubled = false;
                status.error.clear();
                status.set_class(state.class());
                state.has_failing_news = true;
                if result.is_by_key && state.accumulated.is_some() {
                    let is_news = state.set_aggregation_aside();
                    publish_fallback(self.committer.status(), state, is_news);
                }
                if let Err(error) = self.tell_failing(false) {
                    self.failing = Some(error.into());
                }
                self.publish_progress(&cut);
            }
            JobOutcome::Failed { cut, clock, error } => {
                if let Some(moment) = clock {
                    state.reach(moment, None);
                }
                state.stopped = matches!(error, FullError::StepLimit { .. } | FullError::Rows { .. });
                (state.stale, state.has_failed) = (true, true);
                state.applied = Some(cut.seqs.clone());
                state.epoch = state.epoch.max(cut.epoch);
                let error = error.to_string();
                if status.error.set(&error) {
                    warn!(join = state.join.name, error, "a join fails; its results stay as they were");
                }
                self.publish_progress(&cut);
            }
            JobOutcome::Again { error } => {
                state.applied = state.applied.take().and(before);
                // Some of the new results may already be stored.
                state.stale = true;
                state.due = true;
                self.troubled |= error.is_some();
                self.failing = error.or(self.failing.take());
            }
        }
    }

    /// Publishes the log entries that the shards may trim, and the cut that all results contain.
    fn publish_progress(&mut self, cut: &Cut) {
        for (shard, trim_to) in self.trim_to.iter().enumerate() {
            let needed = self.joins.iter().filter_map(|state| {
                let seqs = state.background.as_ref().or(state.applied.as_ref());
                seqs.filter(|_| !state.stopped).map(|seqs| seqs[shard])
            });
            let needed = needed.min().unwrap_or(cut.seqs[shard]).min(self.log_hold.trimmable(shard));
            trim_to.store(needed.min(cut.seqs[shard]), Ordering::Relaxed);
        }
        for state in &mut self.joins {
            if !state.has_failed {
                state.results_epoch = state.epoch;
            }
            self.committer.status().join(&state.join.name).epoch.set(state.results_epoch);
        }
        if let Some(epoch) = self.joins.iter().map(|state| state.epoch).min()
            && epoch > 0
        {
            self.committer.passed(epoch);
        }
    }
}

/// Adds the cost since the last call to the counters of a join.
fn count_cost(pool: &mut EvaluatorPool, status: &JoinStatus) {
    let cost = pool.take_cost();
    status.steps.add(cost.steps);
    status.probes.add(cost.probes);
}

/// Publishes the class in force to the status, counts its cause, and logs it if it is new.
pub(super) fn publish_fallback(status: &Status, state: &JoinState, is_news: bool) {
    let (class, status) = (state.class(), status.join(&state.join.name));
    if let Some(cause) = state.cause() {
        status.fallbacks.add(cause.as_str());
    }
    if is_news {
        let (join, reason) = (&state.join.name, class.reason.as_deref().unwrap_or_default());
        warn!(
            join,
            class = class.name.as_str(),
            reason,
            "a join is kept current by a slower class than planned"
        );
    }
    status.set_class(class);
}
