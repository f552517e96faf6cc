//! Which rows are in which frame, and when frames close and freeze: loops over lists of rows, without any result.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde_json::{Value, json};

use super::definition::{Definition, FrameKind};

/// Stands for the key of a row that is about to be replaced.
const BEFORE: &str = "";

/// A message as it is sent.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowMessage {
    /// The source that brings it.
    pub source: &'static str,
    pub key: String,
    /// Unique, so that no payload comes twice; later messages have greater ones.
    pub version: u64,
    /// None deletes.
    pub payload: Option<Value>,
    pub timestamp: Option<i64>,
    /// The time that the payload says; none if it says none.
    pub at: Option<i64>,
}

/// A stretch of time of one partition, whose value is written as JSON.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    pub partition: String,
    pub start: i64,
    /// Exclusive.
    pub end: i64,
}

/// The last version of a key.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameRow {
    pub key: String,
    pub version: u64,
    pub payload: String,
    pub timestamp: i64,
    partition: String,
    time: i64,
    /// Start and end of each tumbling or sliding frame that holds the time.
    grid: Vec<(i64, i64)>,
}

/// Frames with their rows.
pub type FilledFrames = BTreeMap<Frame, Vec<Rc<FrameRow>>>;

/// How far a partition of the sources has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Progress {
    /// The greatest event time, of whatever became of the row.
    newest: Option<i64>,
    /// When its last message came.
    arrived: i64,
}

/// What has become of all messages to a window so far. Copies are cheap: they share what only grows.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameLog {
    definition: Rc<Definition>,
    /// What the clock shows: it stands still while it is a little behind.
    now: i64,
    watermark: Option<i64>,
    sources: BTreeMap<&'static str, Progress>,
    /// Rows by key that are in a frame which is not frozen.
    rows: BTreeMap<String, Rc<FrameRow>>,
    /// The last version of each key, whatever frame took it.
    last: Rc<BTreeMap<String, Rc<FrameRow>>>,
    /// Key and version of each row that came too late, or without a time.
    dead_letters: Rc<BTreeSet<(String, u64)>>,
    /// Frozen frames, with the versions of their rows.
    frozen: Rc<BTreeMap<Frame, Vec<u64>>>,
    /// Frames that are closed and not frozen.
    closed: BTreeSet<Frame>,
    /// How often each frame has become closed: more than once only if it was empty, or another session, in between.
    closings: Rc<BTreeMap<Frame, u32>>,
    /// Whether two sessions of the same start have been there, one of them frozen: one result key would stand for both.
    has_collided: bool,
}

impl FrameLog {
    pub fn new(definition: Definition, now: i64) -> Self {
        let mut log = Self {
            definition: Rc::new(definition),
            now,
            watermark: None,
            sources: BTreeMap::new(),
            rows: BTreeMap::new(),
            last: Rc::default(),
            dead_letters: Rc::default(),
            frozen: Rc::default(),
            closed: BTreeSet::new(),
            closings: Rc::default(),
            has_collided: false,
        };
        log.epoch(&[]);
        log
    }

    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Changes the window, but for its clock and partitions. If that makes other frames, it begins anew with the rows that are
    /// there. Returns the frames as [`Self::epoch`] does.
    pub fn redefine(&mut self, definition: &Definition) -> FilledFrames {
        let has_same_frames = self.definition.has_same_frames(definition);
        self.definition = Rc::new(definition.clone());
        if !has_same_frames {
            self.watermark = None;
            self.frozen = Rc::default();
            self.closed.clear();
            self.closings = Rc::default();
            let last = Rc::clone(&self.last);
            let placed = last.iter().map(|(key, row)| {
                let row = FrameRow { grid: self.grid(row.time), ..FrameRow::clone(row) };
                (key.clone(), Rc::new(row))
            });
            self.rows = placed.collect();
        }
        self.epoch(&[])
    }

    pub fn watermark(&self) -> Option<i64> {
        self.watermark
    }

    pub fn dead_letters(&self) -> &BTreeSet<(String, u64)> {
        &self.dead_letters
    }

    pub fn has_collided(&self) -> bool {
        self.has_collided
    }

    /// How many frames are frozen.
    pub fn frozen_count(&self) -> usize {
        self.frozen.len()
    }

    pub fn is_closed(&self, end: i64) -> bool {
        self.watermark.is_some_and(|watermark| watermark >= end)
    }

    pub fn is_frozen(&self, end: i64) -> bool {
        let lateness = self.definition.event_clock.map_or(0, |clock| clock.lateness);
        self.is_closed(end + lateness)
    }

    /// Sets what the clock shows, and returns the frames as [`Self::epoch`] does.
    pub fn tick(&mut self, clock: i64) -> FilledFrames {
        self.now = self.now.max(clock);
        self.epoch(&[])
    }

    /// Takes messages that are evaluated together, and returns the frames that were not frozen before.
    pub fn epoch(&mut self, messages: &[WindowMessage]) -> FilledFrames {
        for message in messages {
            self.note_progress(message);
        }
        self.judge_all(messages.iter().collect());
        self.advance()
    }

    /// The same if rows that are overwritten in the same epoch are never looked at.
    pub fn epoch_of_last_versions(&mut self, messages: &[WindowMessage]) -> FilledFrames {
        for message in messages {
            self.note_progress(message);
        }
        let is_last = |index: usize, message: &WindowMessage| {
            !messages[index + 1..].iter().any(|later| later.key == message.key)
        };
        let last = messages.iter().enumerate().filter(|(index, message)| is_last(*index, message));
        self.judge_all(last.map(|(_, message)| message).collect());
        self.advance()
    }

    fn note_progress(&mut self, message: &WindowMessage) {
        let time = self.time(message);
        let progress = self.sources.entry(message.source).or_default();
        progress.arrived = self.now;
        if message.payload.is_some() {
            progress.newest = progress.newest.max(time);
        }
    }

    /// The time of a row by the clock of the window.
    fn time(&self, message: &WindowMessage) -> Option<i64> {
        match self.definition.event_clock {
            Some(clock) if clock.unit.is_some() => message.at,
            _ => Some(message.timestamp.unwrap_or(self.now)),
        }
    }

    fn grid(&self, time: i64) -> Vec<(i64, i64)> {
        match self.definition.kind {
            FrameKind::Session { .. } => Vec::new(),
            _ => self.definition.frames_at(time),
        }
    }

    fn judge_all(&mut self, messages: Vec<&WindowMessage>) {
        for message in messages {
            if !self.judge(message) {
                Rc::make_mut(&mut self.dead_letters).insert((message.key.clone(), message.version));
            }
        }
    }

    fn partition(&self, payload: &Value) -> String {
        if self.definition.is_partitioned { payload["r"].to_string() } else { json!(null).to_string() }
    }

    /// Puts a row in place of the one of its key, unless it comes too late for every frame. The sessions that it meets are
    /// those with the row of before. Returns whether it was taken.
    fn judge(&mut self, message: &WindowMessage) -> bool {
        let before = self.rows.remove(&message.key);
        Rc::make_mut(&mut self.last).remove(&message.key);
        let Some(payload) = &message.payload else { return true };
        if let Some(time) = self.time(message) {
            let row = Rc::new(FrameRow {
                key: message.key.clone(),
                version: message.version,
                payload: payload.to_string(),
                timestamp: message.timestamp.unwrap_or(self.now),
                partition: self.partition(payload),
                time,
                grid: self.grid(time),
            });
            Rc::make_mut(&mut self.last).insert(row.key.clone(), Rc::clone(&row));
            if let Some(before) = before {
                self.rows.insert(BEFORE.to_owned(), before);
            }
            let is_taken = self.takes(&row);
            self.rows.remove(BEFORE);
            self.rows.insert(row.key.clone(), row);
            if is_taken {
                return true;
            }
            self.rows.remove(&message.key);
        }
        false
    }

    /// Whether some frame takes a row. A session takes one that it covers, however late.
    fn takes(&self, row: &FrameRow) -> bool {
        let FrameKind::Session { gap } = self.definition.kind else {
            return row.grid.iter().any(|(_, end)| !self.is_frozen(*end));
        };
        let covers = |frame: &Frame| {
            let is_near = frame.start <= row.time && row.time + gap <= frame.end;
            is_near && frame.partition == row.partition && !self.is_frozen(frame.end)
        };
        !self.is_frozen(row.time + gap) || self.frames().keys().any(covers)
    }

    /// The frames of all rows, without those that are frozen already.
    fn frames(&self) -> FilledFrames {
        let mut frames = FilledFrames::new();
        if let FrameKind::Session { gap } = self.definition.kind {
            let mut rows: Vec<&Rc<FrameRow>> = self.rows.values().collect();
            rows.sort_by_key(|row| (&row.partition, row.time));
            let mut session = Vec::new();
            for (index, row) in rows.iter().enumerate() {
                session.push(Rc::clone(row));
                let next = rows.get(index + 1);
                if next.is_none_or(|next| next.partition != row.partition || next.time > row.time + gap) {
                    let partition = row.partition.clone();
                    let frame = Frame { partition, start: session[0].time, end: row.time + gap };
                    frames.insert(frame, std::mem::take(&mut session));
                }
            }
            return frames;
        }
        for row in self.rows.values() {
            for &(start, end) in &row.grid {
                if !self.is_frozen(end) {
                    let frame = Frame { partition: row.partition.clone(), start, end };
                    frames.entry(frame).or_default().push(Rc::clone(row));
                }
            }
        }
        frames
    }

    /// Moves the watermark on, and then closes and freezes frames.
    fn advance(&mut self) -> FilledFrames {
        let frames = self.frames();
        self.watermark = self.watermark.max(self.candidate());
        let closed: BTreeSet<Frame> =
            frames.keys().filter(|frame| self.is_closed(frame.end)).cloned().collect();
        for frame in closed.difference(&self.closed) {
            *Rc::make_mut(&mut self.closings).entry(frame.clone()).or_default() += 1;
        }
        self.closed = closed;
        let is_session = matches!(self.definition.kind, FrameKind::Session { .. });
        let mut live = BTreeSet::new();
        for (frame, rows) in &frames {
            let is_same = |other: &Frame| other.start == frame.start && other.partition == frame.partition;
            self.has_collided |= is_session && self.frozen.keys().any(is_same);
            if self.is_frozen(frame.end) {
                self.closed.remove(frame);
                let versions = rows.iter().map(|row| row.version).collect();
                Rc::make_mut(&mut self.frozen).insert(frame.clone(), versions);
            } else {
                live.extend(rows.iter().map(|row| &row.key));
            }
        }
        self.rows.retain(|key, _| live.contains(key));
        frames
    }

    /// What the watermark would be if it could go back.
    fn candidate(&self) -> Option<i64> {
        let Some(clock) = self.definition.event_clock else { return Some(self.now) };
        let times = |is_wanted: &dyn Fn(&Progress) -> bool| -> Vec<i64> {
            let wanted = self.sources.values().filter(|progress| is_wanted(progress));
            wanted.filter_map(|progress| progress.newest).collect()
        };
        let active = times(&|progress| self.now - progress.arrived < clock.idle_timeout);
        if let Some(least) = active.into_iter().min() {
            return Some(least - clock.delay);
        }
        let newest = times(&|_| true).into_iter().max()?;
        let arrived = self.sources.values().map(|progress| progress.arrived).max()?;
        let last_end = match self.definition.kind {
            FrameKind::Session { gap } => newest + gap,
            _ => self.grid(newest).into_iter().map(|(_, end)| end).max()?,
        };
        let by_clock = newest - clock.delay + (self.now - arrived - clock.idle_timeout);
        let base = newest - clock.delay;
        if by_clock >= last_end {
            return Some(last_end.max(base));
        }
        // It goes from one frame to the next; before the last session is over it stands.
        let start =
            self.grid(by_clock).into_iter().map(|(start, _)| start).filter(|start| *start <= by_clock).max();
        Some(start.map_or(base, |start| start.max(base)))
    }
}
