//! The windows in an epoch: their time goes on, their frames take in changes, and what is late is refused.

use std::time::Instant;

use tracing::warn;

use super::join_state::{Aggregation, Cause};
use super::schedule::{EpochChange, EpochLoop, publish_fallback};
use super::{EpochError, microseconds};
use crate::clock;
use crate::join::changes::Changes;
use crate::join::keyed::KeyedError;
use crate::results::store::EpochWriter;
use crate::status::Status;
use crate::storage::gate::Cut;
use crate::storage::sqlite::SqliteError;
use crate::storage::topics::fed_by;
use crate::window::{Moments, RefusedRow, WindowEvaluation};

impl EpochLoop {
    /// Notes that a join, if it is a window, has reached the cut at the moment `now`.
    pub(super) fn window_reached(&mut self, index: usize, now: i64) {
        let state = &mut self.joins[index];
        let Some(window) = &state.window else { return };
        (state.begins, state.stale, state.is_time_due) = (false, false, window.has_more());
        if window.has_more() {
            let status = self.committer.status().join(&state.join.name);
            status.set_window(window.watermark(), window.next_end(), false);
        } else {
            publish_time(self.committer.status(), &state.join.name, window, now);
        }
    }

    /// Moves the time of windows on; returns whether any has something to do. The readers see the cut.
    pub(super) fn look_at_windows(&mut self, cut: &Cut, now: i64) -> Result<bool, SqliteError> {
        let Self { joins, pool, committer, sure, .. } = self;
        let mut is_any = false;
        for state in joins {
            let Some(window) = &mut state.window else { continue };
            // Event times count once the rows are evaluated that brought them.
            if state.applied.as_ref() == Some(&cut.seqs) {
                window.read_event_times(pool.workspace().readers(), sure)?;
            }
            state.is_time_due = !state.stopped && window.tick(Moments { now, arrived: cut.arrived });
            is_any |= state.is_time_due;
            if !state.is_time_due {
                publish_time(committer.status(), &state.join.name, window, now);
            }
        }
        Ok(is_any)
    }

    /// Finds the frames of a window anew; returns `false` if that has to be tried again.
    pub(super) fn begin_window(
        &mut self,
        index: usize,
        writer: &mut EpochWriter<'_>,
    ) -> Result<bool, EpochError> {
        let Self { joins, pool, .. } = self;
        let state = &mut joins[index];
        let window = state.window.as_mut().expect("only windows begin anew");
        let outcome = window.begin(pool.workspace().readers(), writer);
        self.windowed(index, outcome, writer)
    }

    /// Takes the changes of its topic into a window.
    pub(super) fn take_in(
        &mut self,
        index: usize,
        changes: &Changes,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), EpochError> {
        let started = Instant::now();
        let Self { joins, pool, letters, committer, background, .. } = self;
        let state = &mut joins[index];
        let window = state.window.as_mut().expect("it is a window");
        let status = committer.status().join(&state.join.name);
        let (name, topic) = (&state.join.name, background.topics.name(window.topic()));
        let mut refuse = |row: &RefusedRow<'_>| {
            status.refused.add(1);
            let position = format!("{}/{}", fed_by(&topic).unwrap_or(&topic), row.key);
            letters.reject_and_tell(
                name,
                &position,
                &row.reason,
                row.payload.as_bytes(),
                clock::epoch_seconds(),
            )
        };
        let outcome = window.take_in(changes, pool.workspace().readers(), writer, &mut refuse);
        status.evaluations.add(1);
        status.evaluation_microseconds.add(microseconds(started));
        self.windowed(index, outcome, writer).map(drop)
    }

    /// Moves the time of the windows on that have reached the cut; returns the joins that are still there.
    pub(super) fn advance_windows(
        &mut self,
        there: Vec<usize>,
        cut: &Cut,
        now: i64,
        writer: &mut EpochWriter<'_>,
        changed: &mut Vec<EpochChange>,
    ) -> Result<Vec<usize>, EpochError> {
        let moments = Moments { now, arrived: cut.arrived };
        let mut still = Vec::with_capacity(there.len());
        for index in there {
            let Self { joins, pool, sure, .. } = self;
            let state = &mut joins[index];
            let Some(window) = state.window.as_mut().filter(|_| !state.stopped) else {
                still.push(index);
                continue;
            };
            let outcome = window.advance(moments, sure, pool.workspace().readers(), writer);
            let results = window.take_results();
            if self.windowed(index, outcome, writer)? {
                still.push(index);
            }
            changed.push(EpochChange { index, results, aggregation: Aggregation::Kept });
        }
        Ok(still)
    }

    /// Stores how far the time of windows has come since their last epoch, for the evaluator that follows.
    pub(super) fn store_watermarks(&mut self) -> Result<(), SqliteError> {
        if self.joins.iter().all(|state| state.window.is_none()) {
            return Ok(());
        }
        let joins = &self.joins;
        self.committer.commit(0, |writer| {
            joins
                .iter()
                .filter_map(|state| state.window.as_ref())
                .try_for_each(|window| window.store_watermark(writer))
        })
    }

    /// Counts the cost of an evaluation of a window. Returns `false` if its frames have to be found anew.
    fn windowed(
        &mut self,
        index: usize,
        outcome: Result<(), KeyedError>,
        writer: &mut EpochWriter<'_>,
    ) -> Result<bool, EpochError> {
        let state = &mut self.joins[index];
        let window = state.window.as_mut().expect("it is a window");
        let status = self.committer.status().join(&state.join.name);
        let cost = window.take_cost();
        status.steps.add(cost.steps + writer.take_steps());
        status.probes.add(cost.probes);
        let error = match outcome {
            Ok(()) => {
                match window.take_error() {
                    Some(error) => {
                        if status.error.set(&error) {
                            warn!(
                                window = state.join.name,
                                error, "a window fails; its results stay as they were"
                            );
                        }
                    }
                    None => drop(status.error.clear()),
                }
                return Ok(true);
            }
            Err(KeyedError::File(error)) => return Err(error.into()),
            Err(KeyedError::Memory(error)) => return Err(error.into()),
            Err(error) => error,
        };
        let cause = Cause::of(&error).expect("the others are errors of files");
        let aggregates = state.join.window.as_ref().and_then(|window| window.aggregates.as_ref());
        if let (Cause::NotAccumulable, Some(aggregates)) = (cause, aggregates) {
            window.give_up_aggregates();
            writer.accumulate_by(state.id, Some(&aggregates.plan.given_up_fingerprint()))?;
        }
        window.forget();
        (state.begins, state.stale) = (true, true);
        writer.stale(state.id)?;
        let is_news = state.fall_back(cause, error.to_string(), false);
        publish_fallback(self.committer.status(), state, is_news);
        Ok(false)
    }
}

/// Publishes how far the time of a window has come at the moment `now`.
fn publish_time(status: &Status, name: &str, window: &WindowEvaluation, now: i64) {
    let status = status.join(name);
    status.set_window(window.watermark(), window.next_end(), window.is_current());
    status.set_as_of(now);
}
