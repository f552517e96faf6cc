//! What a window must show and tell: SQLite runs its query over the rows of each frame that [`FrameLog`] finds.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde_json::{Value, json};

use super::definition::{Definition, TOPIC};
use super::frames::{FilledFrames, Frame, FrameLog, FrameRow, WindowMessage};
use crate::oracle::Oracle;

/// The table that holds the rows of a frame. The topic is a view of it, with the columns of windows.
const FRAME_ROWS: &str = "frame_rows";

/// A result as a user sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownResult {
    /// Sorted, since their order has no meaning.
    pub rows: Vec<String>,
    /// Start, end, and whether the frame is closed.
    pub window: Value,
}

/// One window, as it should be.
pub struct Model {
    pub log: FrameLog,
    oracle: Oracle,
    /// Results by their keys as JSON.
    results: BTreeMap<String, ShownResult>,
    /// Those of frozen frames, which stay as they are.
    frozen: BTreeMap<String, ShownResult>,
    /// Keys of results that have been final.
    finals: BTreeSet<String>,
    /// What the query has found last in each frame, by the versions of their rows.
    found: BTreeMap<(Frame, Vec<u64>), RowsByKey>,
}

/// Rows of a frame by their result key.
type RowsByKey = BTreeMap<String, Vec<String>>;

impl Model {
    pub fn new(definition: Definition, now: i64) -> Self {
        let log = FrameLog::new(definition, now);
        let oracle = Oracle::new([FRAME_ROWS]);
        Self {
            log,
            oracle,
            results: BTreeMap::new(),
            frozen: BTreeMap::new(),
            finals: BTreeSet::new(),
            found: BTreeMap::new(),
        }
    }

    /// Sets what the clock shows.
    pub fn tick(&mut self, clock: i64) {
        let frames = self.log.tick(clock);
        self.evaluate(&frames);
    }

    /// Takes the messages of a round.
    pub fn take(&mut self, messages: &[WindowMessage]) {
        let frames = self.log.epoch(messages);
        self.evaluate(&frames);
    }

    /// Changes the window, but for its clock and partitions. Frozen results stay if the frames do.
    pub fn redefine(&mut self, definition: &Definition) {
        if !self.log.definition().has_same_frames(definition) {
            self.frozen.clear();
            self.finals.clear();
        }
        self.found.clear();
        let frames = self.log.redefine(definition);
        self.evaluate(&frames);
    }

    /// The results that are there now.
    pub fn results(&self) -> &BTreeMap<String, ShownResult> {
        &self.results
    }

    /// Keys of all results that have been final. Of each, one event was the first to say so.
    pub fn finals(&self) -> &BTreeSet<String> {
        &self.finals
    }

    /// Key and version of each dead letter.
    pub fn dead_letters(&self) -> &BTreeSet<(String, u64)> {
        self.log.dead_letters()
    }

    fn evaluate(&mut self, frames: &FilledFrames) {
        self.results = self.frozen.clone();
        let mut found_before = std::mem::take(&mut self.found);
        for (frame, rows) in frames {
            let is_final = self.log.is_closed(frame.end);
            if !is_final && !self.log.definition().emits_updates {
                continue;
            }
            let window = json!({"start": frame.start, "end": frame.end, "final": is_final});
            let content = (frame.clone(), rows.iter().map(|row| row.version).collect());
            let found = found_before.remove(&content).unwrap_or_else(|| self.query(frame, rows));
            for (key, rows) in found.clone() {
                let result = ShownResult { rows, window: window.clone() };
                if is_final {
                    self.finals.insert(key.clone());
                }
                if self.log.is_frozen(frame.end) {
                    self.frozen.insert(key.clone(), result.clone());
                }
                self.results.insert(key, result);
            }
            self.found.insert(content, found);
        }
    }

    /// The result keys of a frame with their rows, as the query finds them.
    fn query(&self, frame: &Frame, rows: &[Rc<FrameRow>]) -> RowsByKey {
        let definition = self.log.definition();
        for row in rows {
            self.oracle.set(FRAME_ROWS, &row.key, &row.payload, row.timestamp);
        }
        let Frame { start, end, .. } = frame;
        let topic = format!("SELECT *, {start} AS window_start, {end} AS window_end FROM {FRAME_ROWS}");
        self.oracle.define(TOPIC, &topic);
        let found = self.oracle.results(&definition.name, &definition.query, definition.key_column);
        self.oracle.undefine(TOPIC);
        for row in rows {
            self.oracle.apply(FRAME_ROWS, &row.key, None);
        }
        let mut key = vec![json!(utc(*start)).to_string()];
        key.extend(definition.is_partitioned.then(|| frame.partition.clone()));
        let mut results = RowsByKey::new();
        for ((_, value), rows) in found.rows {
            let value = definition.key_column.map(|_| value);
            let key: Vec<String> = key.iter().cloned().chain(value).collect();
            results.entry(format!("[{}]", key.join(","))).or_default().extend(rows);
        }
        results.values_mut().for_each(|rows| rows.sort_unstable());
        results
    }
}

/// An instant as RFC 3339 in UTC, in whole seconds.
pub fn utc(instant: i64) -> String {
    thread_local! {
        static CALENDAR: RefCell<Oracle> = RefCell::new(Oracle::new([]));
    }
    let query = format!("SELECT strftime('%Y-%m-%dT%H:%M:%SZ', {instant}, 'unixepoch')");
    let text = CALENDAR.with_borrow(|calendar| calendar.value(&query));
    text.as_str().expect("a moment has a text").to_owned()
}

#[cfg(test)]
mod tests;
