//! The results of a frame: the user's query on its rows, and what differs from the stored results.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{CheckedWindow, Frame, Grouping, TimeAxis, WindowEvaluation};
use crate::fault::{self, Sabotage};
use crate::join::keyed::KeyedError;
use crate::join::lookup::{lookup_failed, steps_of};
use crate::join::rows::{same_rows, write_value};
use crate::join::value::Value;
use crate::results::event::{Emit, Op, ResultChange};
use crate::results::frames::StoredResult;
use crate::results::store::EpochWriter;
use crate::storage::log::ShardReader;

impl WindowEvaluation {
    /// Fills the table with the rows of a group in a frame.
    pub(super) fn gather(
        &mut self,
        group: &Value,
        frame: Frame,
        readers: &[ShardReader],
    ) -> Result<(), KeyedError> {
        for reader in readers {
            let failed = |source| lookup_failed(reader, source);
            let mut statement = reader.prepare(&self.statements.rows).map_err(failed)?;
            let mut rows =
                statement.query(rusqlite::params![group, frame.start, frame.end]).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                self.space.add(row)?;
            }
            drop(rows);
            self.space.cost.probes += 1;
            self.space.cost.steps += steps_of(&statement);
        }
        Ok(())
    }

    /// Evaluates the results of a frame and stores those that have changed. A frame that can't be evaluated keeps its results,
    /// and holds up no other frame.
    pub(super) fn evaluate_frame(
        &mut self,
        group: &Value,
        frame: Frame,
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        match self.try_evaluate_frame(group, frame, readers, writer) {
            Err(error @ (KeyedError::Query { .. } | KeyedError::StepLimit { .. } | KeyedError::TooLarge)) => {
                let (start, end) = (time_text(frame.start), time_text(frame.end));
                self.error = Some(format!("the window from {start} to {end}: {error}"));
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn try_evaluate_frame(
        &mut self,
        group: &Value,
        frame: Frame,
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        let mut fresh: BTreeMap<String, String> = BTreeMap::new();
        if self.panes.is_some() {
            fresh = self.results_of_panes(frame, writer)?;
        } else {
            self.space.begin(frame)?;
            self.gather(group, frame, readers)?;
            if self.space.rows() == 0 {
                writer.remove_frame(self.id, group, frame.start)?;
            } else {
                let prefix = key_prefix(&self.window, frame, Some(group));
                let has_key = self.window.has_key;
                let join = Arc::clone(&self.join);
                self.space.evaluate(&join, |key, row| {
                    let key = if has_key { format!("{prefix},{key}]") } else { format!("{prefix}]") };
                    append_row(&mut fresh, key, row);
                })?;
            }
        }
        fresh.values_mut().for_each(|rows| rows.push(']'));
        if self.window.emit_empty > 0 && self.is_closed(frame) {
            self.add_empty(group, frame, &mut fresh, writer)?;
        }
        let stored = self.stored(group, frame, writer)?;
        self.store_differences(frame, stored, fresh, writer)
    }

    /// Adds a result without rows for each key that had rows in one of the frames before, as many as `emitEmpty` says, and
    /// has the next frame closed, too, if it may have such results.
    fn add_empty(
        &mut self,
        group: &Value,
        frame: Frame,
        fresh: &mut BTreeMap<String, String>,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        let TimeAxis::Grid(grid) = &self.cut else { return Ok(()) };
        let next = grid.next(frame);
        let mut is_followed = !fresh.is_empty();
        let mut before = frame;
        for number in 1..=self.window.emit_empty {
            before = grid.previous(before);
            let stored = self.stored(group, before, writer)?;
            for old in stored.into_iter().filter(|old| old.rows != "[]") {
                is_followed |= number < self.window.emit_empty;
                if let Some(key) = key_in(frame, &old.key) {
                    fresh.entry(key).or_insert_with(|| "[]".to_owned());
                }
            }
        }
        if is_followed {
            self.add_frame(group, next, self.is_closed(next), writer)?;
        }
        Ok(())
    }

    /// Returns the stored results of a frame.
    fn stored(
        &self,
        group: &Value,
        frame: Frame,
        writer: &EpochWriter<'_>,
    ) -> Result<Vec<StoredResult>, KeyedError> {
        if self.panes.is_some() {
            return Ok(writer.results_of(self.id, &key_prefix(&self.window, frame, None))?);
        }
        let prefix = key_prefix(&self.window, frame, Some(group));
        if self.window.grouping != Grouping::Key {
            return Ok(writer.results_of(self.id, &prefix)?);
        }
        let mut found = Vec::new();
        for spelling in group.spellings() {
            let mut key = format!("{prefix},");
            write_value(&mut key, spelling);
            key.push(']');
            found.extend(writer.result(self.id, &key)?);
        }
        Ok(found)
    }

    /// Stores what differs between stored and fresh results of a frame.
    fn store_differences(
        &mut self,
        frame: Frame,
        stored: Vec<StoredResult>,
        mut fresh: BTreeMap<String, String>,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        let window = window_json(frame, self.is_closed(frame));
        let mut changes = Vec::new();
        for old in stored {
            match fresh.remove(&old.key) {
                Some(rows) => {
                    let is_same = old.window.as_deref() == Some(&window) && same_rows(&old.rows, &rows);
                    if !is_same || self.is_closed(frame) && fault::sabotaged(Sabotage::CloseTwice) {
                        changes.push(self.change(Op::Updated, old.key, rows, &window));
                    }
                }
                None => changes.push(self.change(Op::Deleted, old.key, "[]".to_owned(), &window)),
            }
        }
        for (key, rows) in fresh {
            changes.push(self.change(Op::Created, key, rows, &window));
        }
        self.store(&changes, writer)
    }

    /// Stores changed results, and counts them.
    pub(super) fn store(
        &mut self,
        changes: &[ResultChange<'_>],
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        self.results += changes.len() as u64;
        Ok(writer.store(self.id, changes)?)
    }

    pub(super) fn change(&self, op: Op, key: String, rows: String, window: &str) -> ResultChange<'static> {
        let (key, rows, window) = (key.into(), rows.into(), Some(window.to_owned().into()));
        ResultChange { op, key, rows, emit: self.join.emit(Emit::Event), window }
    }

    /// Returns the event that a result is gone.
    pub(super) fn gone(&self, result: StoredResult) -> ResultChange<'static> {
        ResultChange {
            op: Op::Deleted,
            key: result.key.into(),
            rows: "[]".into(),
            emit: self.join.emit(Emit::Event),
            window: result.window.map(Into::into),
        }
    }

    /// Removes the results of a frame that is no more.
    pub(super) fn remove_results(
        &mut self,
        group: &Value,
        frame: Frame,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        let stored = self.stored(group, frame, writer)?;
        self.store_differences(frame, stored, BTreeMap::new(), writer)
    }
}

/// Returns the beginning of the result keys of a frame, with its partition if there is one: `["2026-01-01T00:00:00Z"`.
pub(super) fn key_prefix(window: &CheckedWindow, frame: Frame, group: Option<&Value>) -> String {
    let mut prefix = format!("[\"{}\"", time_text(frame.start));
    if let (Grouping::Partition, Some(group)) = (window.grouping, group) {
        prefix.push(',');
        let first = group.spellings().next().expect("each value has a spelling");
        write_value(&mut prefix, first);
    }
    prefix
}

/// Appends a row to the rows of a result, whose array is closed later.
pub(super) fn append_row(results: &mut BTreeMap<String, String>, key: String, row: &str) {
    let rows = results.entry(key).or_default();
    rows.push(if rows.is_empty() { '[' } else { ',' });
    rows.push_str(row);
}

pub(super) fn window_json(frame: Frame, is_final: bool) -> String {
    format!("{{\"start\":{},\"end\":{},\"final\":{is_final}}}", frame.start, frame.end)
}

/// Returns the end of a frame from its JSON.
pub(super) fn window_end(json: &str) -> Option<i64> {
    let (_, behind) = json.split_once("\"end\":")?;
    behind.split(',').next()?.parse().ok()
}

/// Returns the frame from its JSON.
pub(super) fn frame_of(json: &str) -> Option<Frame> {
    let (_, behind) = json.split_once("\"start\":")?;
    let start = behind.split(',').next()?.parse().ok()?;
    Some(Frame { start, end: window_end(json)? })
}

/// Returns the group of the rows behind a result key; `None` if this window has no such keys.
pub(super) fn group_of_key(window: &CheckedWindow, key: &str) -> Option<Value> {
    let items: Vec<&RawValue> = serde_json::from_str(key).ok()?;
    let length = 1 + usize::from(window.grouping == Grouping::Partition) + usize::from(window.has_key);
    if items.len() != length {
        return None;
    }
    match window.grouping {
        Grouping::Whole => Some(Value::Integer(0)),
        Grouping::Partition | Grouping::Key => Value::from_json(items.get(1)?.get()),
    }
}

/// Returns the key of the result of the same partition and key column in another frame.
fn key_in(frame: Frame, key: &str) -> Option<String> {
    let (_, rest) = key.strip_prefix("[\"")?.split_once('"')?;
    Some(format!("[\"{}\"{rest}", time_text(frame.start)))
}

/// Writes a time so that texts are sorted as times are.
pub(super) fn time_text(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.to_string(),
        Err(_) => seconds.to_string(),
    }
}
