//! The state of a join: the progress of its results, its class in force, and the reason for a class slower than
//! planned.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use super::background::FullCopy;
use super::pool::{EvaluatorPool, KnownFailures};
use super::{LAG_ENTRIES_MAX, WHOLE_ENTRIES_MAX};
use crate::join::CheckedJoin;
use crate::join::aggregate::{AccumulatedJoin, AggregateChange};
use crate::join::changes::Changes;
use crate::join::due::{DUE_MAX, TimeBounds};
use crate::join::keyed::{AffectedKey, FailingKeys, KeyedError, KeyedJoin};
use crate::join::plan::{Class, Keyed};
use crate::join::time_step::{TimePassed, TimeStep};
use crate::join::value::Value;
use crate::join::workspace::Workspace;
use crate::results::event::{Emit, JoinId};
use crate::results::failing::FAILING_KEYS_MAX;
use crate::results::store::{EpochWriter, Progress};
use crate::status::join::{ClassInForce, ClassName};
use crate::storage::topics::Topics;
use crate::window::WindowEvaluation;

/// Failing keys that an epoch evaluates although no change has led to them.
const SUSPECTS_MAX: usize = 32;

/// A join and its progress.
pub(super) struct JoinState {
    pub(super) join: Arc<CheckedJoin>,
    pub(super) id: JoinId,
    /// `None` if the join can't be kept current by key.
    pub(super) keyed: Option<KeyedJoin>,
    /// `None` if the join has no aggregate state, or none at present.
    pub(super) accumulated: Option<AccumulatedJoin>,
    /// The join to resume once it has caught up, while it is too far behind to keep aggregate states.
    suspended: Option<AccumulatedJoin>,
    /// By shard, the last log entry that the results follow from; `None` while unknown.
    pub(super) applied: Option<Vec<i64>>,
    /// Whether results may be missing or older than `applied`: the query failed, or was stopped half way.
    pub(super) stale: bool,
    /// Whether the query was over its budget, so that it is not evaluated until the next start.
    pub(super) stopped: bool,
    /// Whether the join has to be evaluated in the background.
    pub(super) due: bool,
    /// While the join is evaluated in the background: the log place, by shard, behind which it needs all entries.
    pub(super) background: Option<Vec<i64>>,
    /// The number of the newest cut that the join has been evaluated at; a query that fails is evaluated, too.
    pub(super) epoch: u64,
    /// The number of the newest cut that its results follow from.
    pub(super) results_epoch: u64,
    /// The moment that the results are as of, in seconds since the Unix epoch; `None` while unknown, and for a query that
    /// doesn't read the clock.
    pub(super) clock: Option<i64>,
    /// Whether the clock has passed a row since.
    pub(super) is_time_due: bool,
    /// `None` for a join without time bounds.
    time: Option<TimeState>,
    /// The frames of a window; `None` for a join.
    pub(super) window: Option<Box<WindowEvaluation>>,
    /// Whether the frames of a window have to be found anew.
    pub(super) begins: bool,
    /// The copy of the join's topics from its last evaluation in full, if kept.
    pub(super) copy: Option<FullCopy>,
    /// Why the join is kept current by a slower class than planned; `None` if it isn't.
    fallback: Option<Fallback>,
    /// Result keys whose evaluation fails; their stored results stay as they were.
    pub(super) failing: FailingKeys,
    /// The last of the failing keys that were evaluated without a change of their rows.
    last_suspect: Option<Value>,
    /// The keys of which was last told that they fail.
    pub(super) told: FailingKeys,
    /// Whether `failing` may differ from that.
    pub(super) has_failing_news: bool,
    /// Whether the query failed as a whole, so that no result follows from the cuts since.
    pub(super) has_failed: bool,
}

/// The time bounds of a join, and what is known of them at the moment of its results.
struct TimeState {
    bounds: TimeBounds,
    /// The clock's side of each bound.
    values: Option<Vec<Value>>,
    /// By bound, the least value of a row that the clock has not passed; unknown once a topic has changed.
    next: Option<Vec<Option<Value>>>,
}

/// Why a slower class than planned is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fallback {
    cause: Cause,
    message: String,
    /// Whether every evaluation is one in full until the join recovers.
    is_full: bool,
}

/// Causes for a slower class than planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    TooLarge,
    UnsupportedValue,
    StateMismatch,
    LostExtreme,
    NotAccumulable,
    FarBehind,
    Query,
    StepLimit,
}

/// The outcome of an evaluation of one join in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EvaluationOutcome {
    /// No result can have changed.
    Unaffected,
    Evaluated {
        /// The number of changed results.
        results: u64,
        aggregation: Aggregation,
    },
    /// The join has to be evaluated in the background.
    Due,
}

/// The effect of an epoch on a join's aggregate state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aggregation {
    /// The aggregate state is current, or the join has none.
    Kept,
    /// The aggregate state was dropped and is rebuilt once the join has caught up.
    Suspended,
    /// A value can't be accumulated.
    GivenUp,
    /// The query failed for some rows; the aggregate state is rebuilt once no result key fails.
    Failing,
}

impl Cause {
    /// Returns the cause's name in metrics and in `/status`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::UnsupportedValue => "unsupported_value",
            Self::StateMismatch => "state_mismatch",
            Self::LostExtreme => "lost_extreme",
            Self::NotAccumulable => "not_accumulable",
            Self::FarBehind => "far_behind",
            Self::Query => "query",
            Self::StepLimit => "step_limit",
        }
    }

    /// Returns the cause for an error; `None` for an error of a file or of the tables in memory, which is tried again.
    pub(super) fn of(error: &KeyedError) -> Option<Self> {
        match error {
            KeyedError::TooLarge => Some(Self::TooLarge),
            KeyedError::UnsupportedValue => Some(Self::UnsupportedValue),
            KeyedError::StateMismatch => Some(Self::StateMismatch),
            KeyedError::LostExtreme => Some(Self::LostExtreme),
            KeyedError::NotAccumulable => Some(Self::NotAccumulable),
            KeyedError::Query { .. } => Some(Self::Query),
            KeyedError::StepLimit { .. } => Some(Self::StepLimit),
            KeyedError::File(_) | KeyedError::Memory(_) => None,
        }
    }
}

impl JoinState {
    /// Makes the state of a join at start. `kept_by` is the fingerprint of its aggregate state in `results.db`.
    pub(super) fn new(
        join: &CheckedJoin,
        progress: &Progress,
        kept_by: Option<&str>,
        stopped: bool,
        topics: &Topics,
    ) -> rusqlite::Result<Self> {
        let mut applied = progress.applied.clone();
        let topic_id = |name: &str| topics.declare(name);
        let new_keyed = |plan: &Keyed| KeyedJoin::new(join.clone(), progress.id, plan.clone(), topic_id);
        let (mut accumulated, mut fallback) = (None, None);
        let window = join.window.as_ref().map(|window| {
            let evaluation =
                WindowEvaluation::new(Arc::new(join.clone()), progress.id, topic_id(&window.topic));
            evaluation.map(|mut evaluation| {
                let fingerprint =
                    window.aggregates.as_ref().map(|aggregates| aggregates.plan.given_up_fingerprint());
                if fingerprint.is_some() && kept_by == fingerprint.as_deref() {
                    evaluation.give_up_aggregates();
                }
                Box::new(evaluation)
            })
        });
        let window = window.transpose()?;
        let keyed = match &join.class {
            Class::Full(_) => None,
            Class::Keyed(plan) => Some(new_keyed(plan)),
            Class::Accumulated(plan) => {
                if applied.is_some() && kept_by == Some(plan.given_up_fingerprint().as_str()) {
                    let message = KeyedError::NotAccumulable.to_string();
                    fallback = Some(Fallback { cause: Cause::NotAccumulable, message, is_full: false });
                } else {
                    // A missing aggregate state, or one of another plan, is rebuilt by an evaluation in full.
                    applied = applied.filter(|_| kept_by == Some(plan.fingerprint().as_str()));
                    let plan = plan.as_ref().clone();
                    accumulated = Some(AccumulatedJoin::new(join.clone(), progress.id, plan, topic_id));
                }
                plan.otherwise.as_ref().ok().map(new_keyed)
            }
        };
        let time =
            TimeBounds::new(join.clock.bounds()).map(|bounds| TimeState { bounds, values: None, next: None });
        let begins = window.is_some() && (applied.is_none() || progress.stale);
        let is_due = progress.stale
            || applied.is_none()
            || join.clock.is_anywhere()
            || time.is_some() && progress.clock.is_none();
        Ok(Self {
            join: Arc::new(join.clone()),
            id: progress.id,
            keyed,
            accumulated,
            suspended: None,
            due: window.is_none() && is_due,
            applied,
            stale: progress.stale,
            stopped,
            background: None,
            epoch: progress.epoch,
            results_epoch: progress.epoch,
            clock: progress.clock,
            is_time_due: false,
            time,
            window,
            begins,
            copy: None,
            fallback,
            has_failing_news: true,
            has_failed: false,
            failing: FailingKeys::new(),
            told: FailingKeys::new(),
            last_suspect: None,
        })
    }

    /// Returns the class in force, and why it is not a faster one.
    pub(super) fn class(&self) -> ClassInForce {
        if let Some(window) = &self.window {
            let name = if window.accumulates() { ClassName::Accumulated } else { ClassName::Keyed };
            return ClassInForce {
                name,
                reason: self.fallback.as_ref().map(|fallback| fallback.message.clone()),
            };
        }
        let planned = || self.join.class.reason().map(ToString::to_string);
        let Some(Fallback { message, is_full, .. }) = &self.fallback else {
            return ClassInForce { name: self.join.class.name(), reason: planned() };
        };
        match &self.join.class {
            Class::Accumulated(plan) if !is_full => match &plan.otherwise {
                Ok(_) => ClassInForce { name: ClassName::Keyed, reason: Some(message.clone()) },
                Err(reason) => ClassInForce {
                    name: ClassName::Full,
                    reason: Some(format!("{message}; and by key: {reason}")),
                },
            },
            _ => ClassInForce { name: ClassName::Full, reason: Some(message.clone()) },
        }
    }

    /// Returns why a slower class than planned is in force.
    pub(super) fn cause(&self) -> Option<Cause> {
        self.fallback.as_ref().map(|fallback| fallback.cause)
    }

    /// Sets a slower class; returns `true` if its cause is new.
    pub(super) fn fall_back(&mut self, cause: Cause, message: String, is_full: bool) -> bool {
        let fallback = Some(Fallback { cause, message, is_full });
        let is_news = self.fallback.as_ref().map(|known| known.cause) != Some(cause);
        self.fallback = fallback;
        is_news
    }

    /// Returns to the planned class after an evaluation in full, except for a join whose aggregate state was given up.
    pub(super) fn recover(&mut self) {
        let is_given_up = matches!(self.join.class, Class::Accumulated(_)) && self.accumulated.is_none();
        self.fallback = self.fallback.take().filter(|_| is_given_up);
        if let Some(fallback) = &mut self.fallback {
            fallback.is_full = false;
        }
    }

    /// Drops the aggregate state for good: a value can't be accumulated.
    pub(super) fn give_up_aggregation(&mut self) -> bool {
        self.accumulated = None;
        self.suspended = None;
        self.fall_back(Cause::NotAccumulable, KeyedError::NotAccumulable.to_string(), false)
    }

    /// Drops the aggregate state until the join has caught up.
    pub(super) fn suspend_aggregation(&mut self) -> bool {
        self.suspended = self.accumulated.take().or(self.suspended.take());
        let message = format!(
            "it lagged by more than {WHOLE_ENTRIES_MAX} changes; its groups are accumulated again once it has caught up"
        );
        self.fall_back(Cause::FarBehind, message, false)
    }

    /// Drops the aggregate state until no result key fails: that of a group can't take in rows for which the query fails.
    pub(super) fn set_aggregation_aside(&mut self) -> bool {
        self.suspended = self.accumulated.take().or(self.suspended.take());
        let message =
            "the query fails for some rows; its groups are accumulated again once it fails for none";
        self.fall_back(Cause::Query, message.to_owned(), false)
    }

    /// Requests an evaluation in full that rebuilds a suspended aggregate state, now that the join has caught up.
    pub(super) fn resume_aggregation(&mut self) {
        if self.failing.is_empty()
            && let Some(accumulated) = self.suspended.take()
        {
            self.accumulated = Some(accumulated);
            self.due = true;
        }
    }

    /// Returns whether the join can take in this many log entries without an evaluation in full.
    pub(super) fn keeps_up(&self, lag: i64) -> bool {
        let is_whole = self.accumulated.is_some() && lag <= WHOLE_ENTRIES_MAX;
        is_whole || self.keyed.is_some() && lag <= LAG_ENTRIES_MAX
    }

    /// Returns whether rows say when the results change, and epochs bring these up to date at present.
    pub(super) fn is_followed_by_rows(&self) -> bool {
        let is_known = self.time.is_some() && self.clock.is_some();
        is_known && self.background.is_none() && !self.due && !self.stopped && !self.stale
    }

    /// Returns whether the query has to be run again because it reads the clock where no row says when.
    pub(super) fn is_refresh_due(&self, now: i64) -> bool {
        let refresh = i64::try_from(self.join.refresh.as_secs()).unwrap_or(i64::MAX);
        let is_over = |moment: i64| now < moment || now >= moment.saturating_add(refresh);
        self.join.clock.is_anywhere() && self.clock.is_none_or(is_over)
    }

    /// Returns whether the clock has passed a row since the moment of the results.
    pub(super) fn is_any_row_due(&mut self, workspace: &mut Workspace, now: i64) -> Result<bool, KeyedError> {
        let (Some(time), Some(clock)) = (&mut self.time, self.clock) else { return Ok(false) };
        if clock == now {
            return Ok(false);
        }
        let values = match time.values.take() {
            Some(values) => values,
            None => workspace.clock_values(&time.bounds, clock)?,
        };
        let values = time.values.insert(values);
        let next = match time.next.take() {
            Some(next) => next,
            None => workspace.next_values(&time.bounds, values)?,
        };
        let next = time.next.insert(next);
        let reached = workspace.clock_values(&time.bounds, now)?;
        workspace.has_passed(&time.bounds, values, &reached, next)
    }

    /// Returns the step from the moment of the results towards `now`; `None` for a join without time bounds.
    pub(super) fn time_step(
        &self,
        workspace: &mut Workspace,
        now: i64,
    ) -> Result<Option<TimePassed>, KeyedError> {
        let Some(time) = &self.time else { return Ok(None) };
        let Some(clock) = self.clock else { return Ok(Some(TimePassed::Everything)) };
        workspace.time_step(&time.bounds, time.values.as_deref(), clock, now, DUE_MAX).map(Some)
    }

    /// Notes that the results contain a step, or all that was there at a moment if `values` are unknown.
    pub(super) fn reach(&mut self, moment: i64, values: Option<Vec<Value>>) {
        self.clock = Some(moment);
        self.is_time_due = false;
        if let Some(time) = &mut self.time {
            (time.values, time.next) = (values, None);
        }
    }

    /// Evaluates the changes, and the due rows of a step of time, and stores the new results.
    pub(super) fn evaluate(
        &mut self,
        pool: &mut EvaluatorPool,
        time: Option<&TimeStep>,
        changes: &Changes,
        known: Option<&Changes>,
        writer: &mut EpochWriter<'_>,
    ) -> Result<EvaluationOutcome, KeyedError> {
        if self.keyed.is_none() && self.accumulated.is_none() {
            let is_due = time.is_some_and(TimeStep::is_any_due);
            return Ok(if is_due { EvaluationOutcome::Due } else { EvaluationOutcome::Unaffected });
        }
        let mut aggregation = Aggregation::Kept;
        match (&self.accumulated, known) {
            (None, _) => {}
            // A join this far behind is evaluated by key, which is faster.
            (Some(_), None) => {
                writer.forget_accumulators(self.id)?;
                aggregation = Aggregation::Suspended;
            }
            (Some(accumulated), Some(whole)) => match pool.accumulate(accumulated, time, whole) {
                Ok(None) => return Ok(EvaluationOutcome::Unaffected),
                Ok(Some(AggregateChange { changes, states })) => {
                    writer.store(self.id, &changes)?;
                    for (group, state) in &states {
                        writer.accumulate(self.id, group, state.as_deref())?;
                    }
                    return Ok(EvaluationOutcome::Evaluated { results: changes.len() as u64, aggregation });
                }
                Err(KeyedError::NotAccumulable) => {
                    writer.forget_accumulators(self.id)?;
                    writer.accumulate_by(self.id, Some(&accumulated.plan.given_up_fingerprint()))?;
                    aggregation = Aggregation::GivenUp;
                }
                Err(KeyedError::Query { .. }) if self.keyed.is_some() => {
                    writer.forget_accumulators(self.id)?;
                    aggregation = Aggregation::Failing;
                }
                Err(error) => return Err(error),
            },
        }
        // A join without a key plan is evaluated in full, which gives up its aggregate state in turn.
        let (mut failed, mut mended) = (Vec::new(), Vec::new());
        let suspects = self.next_suspects();
        let keyed = self.keyed.as_ref().ok_or(KeyedError::NotAccumulable)?;
        let failing = KnownFailures { keys: &self.failing, suspects };
        let results = pool.evaluate(keyed, time, changes, known, failing, |found| {
            failed.extend(found.failed);
            mended.extend(found.mended);
            Ok(writer.store(self.id, &found.changes)?)
        })?;
        self.note_failing(failed, mended, writer)?;
        Ok(match (aggregation, results) {
            (Aggregation::Kept, None) => EvaluationOutcome::Unaffected,
            (_, results) => EvaluationOutcome::Evaluated { results: results.unwrap_or(0), aggregation },
        })
    }

    /// Returns some of the keys that fail, others each time. Look-ups may yield a few rows more than belong to a key; where
    /// one of these fails, no change of the key's own rows would lead to it.
    fn next_suspects(&mut self) -> Vec<AffectedKey> {
        let after = self.last_suspect.take();
        let later = (after.as_ref().map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let rest = self.failing.range::<Value, _>(later).map(|(value, _)| value);
        let first = self.failing.keys().take(if after.is_some() { SUSPECTS_MAX } else { 0 });
        let suspects: BTreeSet<&Value> = rest.take(SUSPECTS_MAX).chain(first).take(SUSPECTS_MAX).collect();
        let suspects: Vec<AffectedKey> = suspects
            .into_iter()
            .map(|value| AffectedKey { value: value.clone(), emit: Emit::Event })
            .collect();
        self.last_suspect = suspects.last().map(|key| key.value.clone());
        suspects
    }

    /// Stores which keys fail, and which fail no more.
    fn note_failing(
        &mut self,
        failed: Vec<(Value, String)>,
        mended: Vec<Value>,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        for value in mended {
            for key in value.json_spellings() {
                writer.mend(self.id, &key)?;
            }
            self.has_failing_news |= self.failing.remove(&value).is_some();
        }
        for (value, error) in failed {
            if self.failing.get(&value) == Some(&error) {
                continue;
            }
            if self.failing.len() >= FAILING_KEYS_MAX {
                return Err(KeyedError::Query { message: error });
            }
            for key in value.json_spellings() {
                writer.fail(self.id, &key, &error)?;
            }
            self.failing.insert(value, error);
            self.has_failing_news = true;
        }
        Ok(())
    }
}
