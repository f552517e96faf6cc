//! Keeping the results of a window current: the frames that changed rows are in, the user's query on the rows of each,
//! and the frames that the watermark closes.
//!
//! ```text
//! take_in:  changed rows, old and new image ─► group and time ─► frames ─► those that show are evaluated
//! advance:  watermark ─► frames that close ─► evaluated as final ─► frames that freeze are forgotten
//! ```
//! A frame that is forgotten is never evaluated again, so nothing changes its results.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use litejoin_crds::plan::TimeCut;
use litejoin_crds::window::WindowEmit;

use super::check::grid_of;
use super::grid::Grid;
use super::panes::Panes;
use super::session::{Session, clusters, islands};
use super::space::FrameSpace;
use super::{CheckedWindow, Frame, Grouping, watermark};
use crate::fault::{self, Sabotage};
use crate::join::changes::Changes;
use crate::join::keyed::KeyedError;
use crate::join::lookup::{Cost, lookup_failed, steps_of};
use crate::join::rows::{same_rows, write_value};
use crate::join::value::Value;
use crate::join::{CheckedJoin, TopicImage};
use crate::results::event::{Emit, JoinId, Op, ResultChange};
use crate::results::frames::StoredResult;
use crate::results::store::EpochWriter;
use crate::storage::arrivals::SureTimes;
use crate::storage::log::ShardReader;
use crate::storage::shard::{PAST, PartitionTime};
use crate::storage::sqlite::SqliteError;
use crate::storage::topics::TopicId;

/// Frames that one epoch evaluates at most; the rest waits for the next ones.
const FRAMES_MAX: usize = if cfg!(debug_assertions) { 64 } else { 16_384 };

/// Results of old frames that one epoch removes at most.
const REMOVED_MAX: usize = 1_000;

/// A window and what is known of its frames.
pub(crate) struct WindowEvaluation {
    pub(super) join: Arc<CheckedJoin>,
    pub(super) window: Arc<CheckedWindow>,
    pub(super) id: JoinId,
    pub(super) topic: TopicId,
    pub(super) cut: Cut,
    pub(super) space: FrameSpace,
    pub(super) statements: Statements,
    /// `None` if frames are evaluated from their rows.
    pub(super) panes: Option<Panes>,
    /// How far time has come, as far as rows are concerned.
    reached: Option<i64>,
    /// The end of the frame that closes next; unknown once frames were added.
    next_end: Option<Option<i64>>,
    /// The newest event time of each partition of a source, as of the last epoch.
    partitions: BTreeMap<String, PartitionTime>,
    /// By partition, the newest event time of messages that are stored with all before them, as stored.
    sure: BTreeMap<Arc<str>, i64>,
    /// Whether frames are due beside those of the changes.
    has_more: bool,
    /// The moment at which stored results have to be looked through for those that leave.
    next_expiry: Option<i64>,
    /// Whether `reached` is what is stored, or later.
    is_known: bool,
    /// Why a frame could not be evaluated.
    error: Option<String>,
    pub(super) results: u64,
}

/// How time is cut.
pub(super) enum Cut {
    Grid(Grid),
    /// By the longest gap within a session.
    Session(i64),
}

/// Statements on a shard, and on images of rows.
pub(super) struct Statements {
    /// Rows of a frame: key, payload, timestamp, `_change`.
    pub(super) rows: String,
    times: String,
    values_and_times: String,
    event_times: &'static str,
    /// Group and time of a row given as parameters.
    image: String,
    /// The name of its event clock; `arrival` if it follows the clock.
    clock: String,
}

/// A row that no frame takes.
pub(crate) struct RefusedRow<'a> {
    pub(crate) key: &'a str,
    pub(crate) payload: &'a str,
    pub(crate) reason: String,
}

/// The moments of an epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moments {
    /// Seconds since the Unix epoch.
    pub(crate) now: i64,
    /// What arrives from here on has no earlier timestamp.
    pub(crate) arrived: i64,
}

type Refuse<'r> = &'r mut dyn FnMut(&RefusedRow<'_>) -> Result<(), SqliteError>;

impl WindowEvaluation {
    /// Prepares the tables and statements of a window.
    pub(crate) fn new(join: Arc<CheckedJoin>, id: JoinId, topic: TopicId) -> rusqlite::Result<Self> {
        let window = Arc::clone(join.window.as_ref().expect("it is a window"));
        let cut = match (&window.cut, grid_of(&window.cut)) {
            (TimeCut::Session { gap }, _) => Cut::Session(*gap),
            (TimeCut::Grid { .. }, Some(grid)) => Cut::Grid(grid),
            (TimeCut::Grid { .. }, None) => unreachable!("the name of the place was checked"),
        };
        let grid = match &cut {
            Cut::Grid(grid) => Some(grid),
            Cut::Session(_) => None,
        };
        let space = FrameSpace::new(&window, grid)?;
        let index = window.index();
        let statements = Statements {
            rows: index.select_frame("key, payload, timestamp, _change"),
            times: index.times(),
            values_and_times: index.values_and_times(),
            event_times: "SELECT partition, newest, arrived FROM _event_times WHERE clock = ?1",
            image: format!("SELECT {}, {}", window.group.parameters(), window.time.parameters()),
            clock: window.event_times().map_or_else(|| "arrival".to_owned(), |times| times.name()),
        };
        let panes = window.aggregates.clone().map(Panes::new);
        Ok(Self {
            join,
            window,
            id,
            topic,
            cut,
            space,
            statements,
            panes,
            reached: None,
            next_end: None,
            partitions: BTreeMap::new(),
            sure: BTreeMap::new(),
            has_more: true,
            next_expiry: None,
            is_known: false,
            error: None,
            results: 0,
        })
    }

    /// Returns the topic whose old images it needs.
    pub(crate) fn topic(&self) -> TopicId {
        self.topic
    }

    /// Returns whether aggregates are kept by pane.
    pub(crate) fn accumulates(&self) -> bool {
        self.panes.is_some()
    }

    /// Evaluates frames from their rows from now on.
    pub(crate) fn give_up_aggregates(&mut self) {
        self.panes = None;
    }

    /// Returns how far time has come.
    pub(crate) fn watermark(&self) -> Option<i64> {
        self.reached
    }

    /// Returns the end of the frame that closes next, if it is known.
    pub(crate) fn next_end(&self) -> Option<i64> {
        self.next_end.flatten()
    }

    /// Returns the cost since the last call.
    pub(crate) fn take_cost(&mut self) -> Cost {
        std::mem::take(&mut self.space.cost)
    }

    /// Returns the number of changed results since the last call.
    pub(crate) fn take_results(&mut self) -> u64 {
        std::mem::take(&mut self.results)
    }

    /// Forgets what it knows of the stored frames, since an epoch was not stored.
    pub(crate) fn forget(&mut self) {
        self.next_end = None;
        self.has_more = true;
        self.is_known = false;
        self.next_expiry = None;
        if let Some(panes) = &mut self.panes {
            panes.forget();
        }
    }

    /// Moves time on without an epoch. Returns whether an epoch has something to do.
    pub(crate) fn tick(&mut self, moments: Moments) -> bool {
        let watermark = self.watermark_at(moments);
        let closes = match self.next_end {
            None => true,
            Some(next) => next.is_some_and(|end| watermark.is_some_and(|watermark| watermark >= end)),
        };
        let expires = self.next_expiry.is_none_or(|next| moments.now >= next);
        let is_sure = |(partition, time): (&String, &PartitionTime)| {
            partition == PAST || time.sure == self.sure.get(partition.as_str()).copied()
        };
        let is_news = !self.partitions.iter().all(is_sure);
        if closes || expires || is_news || self.has_more || !self.is_known {
            return true;
        }
        self.reached = watermark;
        false
    }

    /// Returns whether the event times of all messages that are evaluated count.
    pub(crate) fn is_current(&self) -> bool {
        self.partitions.values().all(|time| time.sure == time.newest)
    }

    /// Stores how far time has come.
    pub(crate) fn store_watermark(&self, writer: &mut EpochWriter<'_>) -> Result<(), SqliteError> {
        match self.reached.filter(|_| self.is_known) {
            Some(reached) => writer.set_watermark(self.id, &self.statements.clock, reached),
            None => Ok(()),
        }
    }

    /// Returns whether frames are due that the last epoch had no room for.
    pub(crate) fn has_more(&self) -> bool {
        self.has_more
    }

    /// Returns why a frame could not be evaluated since the last call.
    pub(crate) fn take_error(&mut self) -> Option<String> {
        self.error.take()
    }

    /// Reads how far time has come, unless it is known.
    fn know(&mut self, writer: &EpochWriter<'_>) -> Result<(), KeyedError> {
        if !self.is_known {
            self.reached = writer.watermark(self.id, &self.statements.clock)?;
            self.sure = writer.sure_times(self.id)?;
            self.is_known = true;
        }
        Ok(())
    }

    /// Begins anew: the frames of all rows, as far as they are not frozen, are due.
    pub(crate) fn begin(
        &mut self,
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        self.forget();
        self.know(writer)?;
        let frozen = self.frozen_to();
        writer.all_due(self.id, frozen.unwrap_or(i64::MIN))?;
        if self.panes.is_some() {
            return self.rebuild_panes(readers, writer);
        }
        self.space.connection().execute_batch(
            "CREATE TEMP TABLE IF NOT EXISTS _found (value NOT NULL, time INTEGER NOT NULL, PRIMARY KEY (value, time))
             WITHOUT ROWID;
             DELETE FROM temp._found",
        )?;
        for reader in readers {
            let failed = |source| lookup_failed(reader, source);
            let mut statement = reader.prepare(&self.statements.values_and_times).map_err(failed)?;
            let mut insert = self
                .space
                .connection()
                .prepare_cached("INSERT OR IGNORE INTO temp._found VALUES (?1, ?2)")?;
            let mut rows = statement.query([]).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                let (value, time) = (row.get_ref(0).map_err(failed)?, row.get_ref(1).map_err(failed)?);
                insert.execute([crate::join::lookup::Raw(value), crate::join::lookup::Raw(time)])?;
            }
        }
        let mut found: Vec<(Value, Frame)> = Vec::new();
        {
            let mut statement = self
                .space
                .connection()
                .prepare("SELECT value, time FROM temp._found ORDER BY value, time")?;
            let mut rows = statement.query([])?;
            let mut current: Option<(Value, Vec<i64>)> = None;
            loop {
                let next = rows.next()?.map(|row| -> rusqlite::Result<_> {
                    Ok((Value::new(row.get_ref(0)?).unwrap_or(Value::Null), row.get::<_, i64>(1)?))
                });
                let next = next.transpose()?;
                match (&mut current, next) {
                    (Some((value, times)), Some((next, time))) if *value == next => times.push(time),
                    (before, next) => {
                        if let Some((value, times)) = before.take() {
                            let frames = self.frames_of_times(&value, &times, writer)?;
                            found.extend(frames.into_iter().map(|frame| (value.clone(), frame)));
                        }
                        match next {
                            Some((value, time)) => current = Some((value, vec![time])),
                            None => break,
                        }
                    }
                }
            }
        }
        self.space.connection().execute_batch("DELETE FROM temp._found")?;
        for (group, frame) in found {
            if frozen.is_none_or(|frozen| frame.end > frozen) {
                self.add_frame(&group, frame, true, writer)?;
            }
        }
        self.has_more = true;
        Ok(())
    }

    /// Takes in changed rows of the topic.
    pub(crate) fn take_in(
        &mut self,
        changes: &Changes,
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
        refuse: Refuse<'_>,
    ) -> Result<(), KeyedError> {
        self.know(writer)?;
        if self.panes.is_some() {
            return self.take_in_panes(changes, readers, writer, refuse);
        }
        let mut groups: BTreeMap<Value, (Vec<ComingRow<'_>>, Vec<i64>)> = BTreeMap::new();
        for row in changes.rows(self.topic) {
            if let Some(old) = row.old.filter(|_| !fault::sabotaged(Sabotage::NoRetraction)) {
                let (group, time) = self.place(row.key, old)?;
                if let Some(time) = time {
                    groups.entry(group).or_default().1.push(time);
                }
            }
            if let Some(new) = row.new {
                let (group, time) = self.place(row.key, new)?;
                match time {
                    Some(time) => {
                        groups.entry(group).or_default().0.push(ComingRow {
                            key: row.key,
                            payload: new.payload,
                            time,
                        });
                    }
                    None => refuse(&self.without_time(row.key, new.payload))?,
                }
            }
        }
        let mut touched: BTreeSet<(Value, Frame)> = BTreeSet::new();
        for (group, (came, went)) in groups {
            let frames = match &self.cut {
                Cut::Grid(_) => self.touched_on_grid(&came, &went, refuse)?,
                Cut::Session(gap) => {
                    let gap = *gap;
                    self.touched_sessions(&group, gap, &came, &went, readers, writer, refuse)?
                }
            };
            touched.extend(frames.into_iter().map(|frame| (group.clone(), frame)));
        }
        let mut left = FRAMES_MAX;
        for (group, frame) in touched {
            let shows = self.shows(frame);
            let is_now = shows && left > 0;
            self.add_frame(&group, frame, shows && !is_now, writer)?;
            if is_now {
                left -= 1;
                self.evaluate_frame(&group, frame, readers, writer)?;
            }
        }
        Ok(())
    }

    /// Moves time on, closes frames, and evaluates those that are due.
    pub(crate) fn advance(
        &mut self,
        moments: Moments,
        sure: &SureTimes,
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        self.know(writer)?;
        for (partition, time) in sure.get(&*self.statements.clock).into_iter().flatten() {
            if self.sure.get(partition).is_none_or(|known| known < time) {
                writer.set_sure_time(self.id, partition, *time)?;
                self.sure.insert(Arc::clone(partition), *time);
            }
        }
        self.read_event_times(readers, sure)?;
        let watermark = self.watermark_at(moments);
        if let Some(watermark) = watermark {
            writer.close_frames(self.id, watermark)?;
            writer.set_watermark(self.id, &self.statements.clock, watermark)?;
        }
        self.reached = watermark;
        let mut left = FRAMES_MAX;
        loop {
            // A frame that closes may make the next one due.
            let due = writer.due_frames(self.id, left)?;
            left -= due.len();
            if due.is_empty() {
                break;
            }
            for stored in due {
                writer.frame_done(self.id, &stored.group, stored.frame.start)?;
                if stored.is_closed || self.window.emit == WindowEmit::Update {
                    self.evaluate_frame(&stored.group, stored.frame, readers, writer)?;
                }
            }
        }
        self.has_more = left == 0;
        if let Some(frozen) = self.frozen_to() {
            writer.forget_frames(self.id, frozen)?;
            if let (Some(_), false, Cut::Grid(grid)) = (&self.panes, self.has_more, &self.cut) {
                // A pane that ends in a frame which is not frozen begins no earlier than that frame.
                if let Some(first) = grid.frames(frozen).first() {
                    writer.forget_panes(self.id, first.start)?;
                }
            }
        }
        self.expire(moments.now, writer)?;
        self.next_end = Some(writer.next_end(self.id)?);
        Ok(())
    }

    /// Removes results of frozen frames that were stored long ago, as retention removes rows.
    fn expire(&mut self, now: i64, writer: &mut EpochWriter<'_>) -> Result<(), KeyedError> {
        let kept = self.window.results_kept;
        let emit = if self.window.emit_expiry { Emit::Event } else { Emit::Silent };
        if self.next_expiry.is_some_and(|next| now < next) {
            return Ok(());
        }
        // A result that is stored from here on leaves no earlier.
        self.next_expiry = Some(now.saturating_add(kept));
        let mut changes = Vec::new();
        for (old, stored_at) in writer.first_results(self.id, REMOVED_MAX)? {
            let is_frozen = old
                .window
                .as_deref()
                .and_then(window_end)
                .is_none_or(|end| self.is_frozen(Frame { start: end, end }));
            let expires = stored_at.saturating_add(kept);
            if now < expires || !is_frozen {
                self.next_expiry = Some(expires.max(now + 1));
                break;
            }
            changes.push(ResultChange {
                op: Op::Deleted,
                key: old.key.into(),
                rows: "[]".into(),
                emit: self.join.emit(emit),
                window: old.window.map(Into::into),
            });
        }
        self.has_more |= changes.len() == REMOVED_MAX;
        Ok(writer.store(self.id, &changes)?)
    }

    /// Returns the end up to which frames are frozen.
    pub(super) fn frozen_to(&self) -> Option<i64> {
        Some(self.reached?.saturating_sub(self.window.allowed_lateness()))
    }

    pub(super) fn is_frozen(&self, frame: Frame) -> bool {
        self.frozen_to().is_some_and(|frozen| frame.end <= frozen)
    }

    pub(super) fn is_closed(&self, frame: Frame) -> bool {
        self.reached.is_some_and(|reached| frame.end <= reached)
    }

    /// Returns whether the results of a frame are told now.
    pub(super) fn shows(&self, frame: Frame) -> bool {
        self.window.emit == WindowEmit::Update || self.is_closed(frame)
    }

    pub(super) fn add_frame(
        &mut self,
        group: &Value,
        frame: Frame,
        is_due: bool,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        writer.add_frame(self.id, group, frame, self.is_closed(frame), is_due)?;
        self.next_end = None;
        Ok(())
    }

    /// Returns the frames that times of one group make, in ascending order, but for rows that can't be in a frame any more.
    fn frames_of_times(
        &self,
        group: &Value,
        times: &[i64],
        writer: &EpochWriter<'_>,
    ) -> Result<Vec<Frame>, KeyedError> {
        let gap = match &self.cut {
            Cut::Grid(grid) => {
                let frames: BTreeSet<Frame> = times.iter().flat_map(|time| grid.frames(*time)).collect();
                return Ok(frames.into_iter().collect());
            }
            Cut::Session(gap) => *gap,
        };
        let mut times = times.to_vec();
        if let Some(frozen) = self.frozen_to() {
            let first = writer.first_start(self.id, group, frozen)?;
            times.retain(|time| *time > frozen - gap || first.is_some_and(|first| *time >= first));
        }
        Ok(islands(times, gap).into_iter().map(|session| session.frame(gap)).collect())
    }

    fn watermark_at(&self, moments: Moments) -> Option<i64> {
        let reached = self.reached.filter(|_| !fault::sabotaged(Sabotage::WatermarkBack));
        let last_end = |time: i64| match &self.cut {
            Cut::Grid(grid) => grid.last_end(time),
            Cut::Session(gap) => time.saturating_add(*gap),
        };
        match &self.window.event_time {
            None => Some(moments.arrived).max(reached),
            Some(clock) => watermark::by_event_time(
                clock,
                self.partitions.values().copied(),
                moments.now,
                reached,
                last_end,
            ),
        }
    }

    /// Reads the newest event time of each partition of a source, as the readers see it.
    pub(crate) fn read_event_times(
        &mut self,
        readers: &[ShardReader],
        sure: &SureTimes,
    ) -> Result<(), SqliteError> {
        if self.window.event_time.is_none() {
            return Ok(());
        }
        let mut partitions: BTreeMap<String, PartitionTime> = BTreeMap::new();
        for reader in readers {
            let failed = |source| SqliteError::new(reader.path(), "read event times", source);
            let mut statement = reader.prepare(self.statements.event_times).map_err(failed)?;
            let mut rows = statement.query([&self.statements.clock]).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                let read = || -> rusqlite::Result<_> {
                    Ok((row.get(0)?, PartitionTime { newest: row.get(1)?, sure: None, arrived: row.get(2)? }))
                };
                let (partition, time) = read().map_err(failed)?;
                partitions.entry(partition).and_modify(|known| known.merge(time)).or_insert(time);
            }
        }
        let sure = sure.get(&*self.statements.clock);
        for (partition, time) in &mut partitions {
            let stored = self.sure.get(partition.as_str()).copied();
            let told = sure.and_then(|sure| sure.get(partition.as_str()).copied());
            time.sure = if partition == PAST { time.newest } else { stored.max(told) };
        }
        self.partitions = partitions;
        Ok(())
    }

    /// Returns the group and the time of an image of a row.
    fn place(&mut self, key: &str, image: TopicImage<'_>) -> Result<(Value, Option<i64>), KeyedError> {
        let mut statement = self.space.connection().prepare_cached(&self.statements.image)?;
        for index in 1..=statement.parameter_count() {
            match index {
                1 => statement.raw_bind_parameter(index, key)?,
                2 => statement.raw_bind_parameter(index, image.payload)?,
                _ => statement.raw_bind_parameter(index, image.timestamp)?,
            }
        }
        let mut rows = statement.raw_query();
        let row = rows.next()?.expect("a SELECT without FROM has one row");
        let group = Value::new(row.get_ref(0)?).ok_or(KeyedError::UnsupportedValue)?;
        Ok((group, row.get(1)?))
    }

    fn touched_on_grid(
        &self,
        came: &[ComingRow<'_>],
        went: &[i64],
        refuse: Refuse<'_>,
    ) -> Result<BTreeSet<Frame>, KeyedError> {
        let Cut::Grid(grid) = &self.cut else { return Ok(BTreeSet::new()) };
        let live = |time: i64| grid.frames(time).into_iter().filter(|frame| !self.is_frozen(*frame));
        let mut touched: BTreeSet<Frame> = went.iter().flat_map(|time| live(*time)).collect();
        for row in came {
            let frames: Vec<Frame> = live(row.time).collect();
            if frames.is_empty() {
                let last = grid.frames(row.time).pop().expect("each time is in a frame");
                refuse(&self.too_late(row.key, row.payload, last))?;
            }
            touched.extend(frames);
        }
        Ok(touched)
    }

    /// Finds the sessions that rows of a group change, and removes those that are gone.
    fn touched_sessions(
        &mut self,
        group: &Value,
        gap: i64,
        came: &[ComingRow<'_>],
        went: &[i64],
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
        refuse: Refuse<'_>,
    ) -> Result<BTreeSet<Frame>, KeyedError> {
        let mut near: BTreeSet<Session> = BTreeSet::new();
        let mut times: Vec<i64> = Vec::new();
        for (time, row) in
            came.iter().map(|row| (row.time, Some(row))).chain(went.iter().map(|time| (*time, None)))
        {
            let frames = writer.frames_near(self.id, group, time, time.saturating_add(gap))?;
            let live = frames.into_iter().map(|stored| stored.frame).filter(|frame| !self.is_frozen(*frame));
            let live: Vec<Session> = live.map(|frame| Session::of(frame, gap)).collect();
            if let Some(row) = row {
                // A row within an open session is in it however late it is. None that is late begins one, or moves a start:
                // so all that is frozen lies before all that is open.
                let alone = Session { first: time, last: time }.frame(gap);
                if self.is_frozen(alone) && !live.iter().any(|session| session.has(time)) {
                    refuse(&self.too_late(row.key, row.payload, alone))?;
                } else {
                    times.push(time);
                }
            }
            near.extend(live);
        }
        let near: Vec<Session> = near.into_iter().collect();
        let mut touched = BTreeSet::new();
        for cluster in clusters(&near, &times, went, gap) {
            let frame = cluster.span.frame(gap);
            let sessions = if cluster.is_thinned {
                islands(self.times_in(group, frame, readers)?, gap)
            } else {
                vec![cluster.span]
            };
            for gone in &cluster.sessions {
                let stays = sessions.iter().find(|session| session.first == gone.first);
                let was_told = self.shows(gone.frame(gap));
                // A closed session that is open again is told when it closes.
                if was_told && stays.is_none_or(|session| !self.shows(session.frame(gap))) {
                    self.remove_results(group, gone.frame(gap), writer)?;
                }
                if stays.is_none() {
                    writer.remove_frame(self.id, group, gone.first)?;
                }
            }
            touched.extend(sessions.into_iter().map(|session| session.frame(gap)));
        }
        Ok(touched)
    }

    /// Returns the times of the rows of a group within a frame, in ascending order.
    fn times_in(
        &mut self,
        group: &Value,
        frame: Frame,
        readers: &[ShardReader],
    ) -> Result<Vec<i64>, KeyedError> {
        let mut times = Vec::new();
        for reader in readers {
            let failed = |source| lookup_failed(reader, source);
            let mut statement = reader.prepare(&self.statements.times).map_err(failed)?;
            let mut rows =
                statement.query(rusqlite::params![group, frame.start, frame.end]).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                times.push(row.get(0).map_err(failed)?);
            }
            drop(rows);
            self.space.cost.probes += 1;
            self.space.cost.steps += steps_of(&statement);
        }
        times.sort_unstable();
        Ok(times)
    }

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
    fn evaluate_frame(
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
        let Cut::Grid(grid) = &self.cut else { return Ok(()) };
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
        self.results += changes.len() as u64;
        writer.store(self.id, &changes)?;
        Ok(())
    }

    pub(super) fn change(&self, op: Op, key: String, rows: String, window: &str) -> ResultChange<'static> {
        let (key, rows, window) = (key.into(), rows.into(), Some(window.to_owned().into()));
        ResultChange { op, key, rows, emit: self.join.emit(Emit::Event), window }
    }

    /// Removes the results of a frame that is no more.
    fn remove_results(
        &mut self,
        group: &Value,
        frame: Frame,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        let stored = self.stored(group, frame, writer)?;
        self.store_differences(frame, stored, BTreeMap::new(), writer)
    }

    pub(super) fn without_time<'a>(&self, key: &'a str, payload: &'a str) -> RefusedRow<'a> {
        let reason = match self
            .window
            .event_time
            .as_ref()
            .and_then(|clock| clock.path.as_ref().map(|path| (clock, path)))
        {
            Some((clock, path)) => format!(
                "the message has no time at {path}, in {}; it is in no window",
                match clock.unit.per_second() {
                    None => "RFC 3339".to_owned(),
                    Some(_) => format!("{:?} since 1970", clock.unit).to_lowercase(),
                }
            ),
            None => "the message has no timestamp; it is in no window".to_owned(),
        };
        RefusedRow { key, payload, reason }
    }

    pub(super) fn too_late<'a>(&self, key: &'a str, payload: &'a str, frame: Frame) -> RefusedRow<'a> {
        let reached = self.reached.map(time_text).unwrap_or_default();
        let reason = format!(
            "the message is late: its window from {} to {} is closed, since the watermark is at {reached} and \
             allowedLateness is {}s",
            time_text(frame.start),
            time_text(frame.end),
            self.window.allowed_lateness()
        );
        RefusedRow { key, payload, reason }
    }
}

/// A row that came.
struct ComingRow<'a> {
    key: &'a str,
    payload: &'a str,
    time: i64,
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
fn window_end(json: &str) -> Option<i64> {
    let (_, behind) = json.split_once("\"end\":")?;
    behind.split(',').next()?.parse().ok()
}

/// Returns the key of the result of the same partition and key column in another frame.
fn key_in(frame: Frame, key: &str) -> Option<String> {
    let (_, rest) = key.strip_prefix("[\"")?.split_once('"')?;
    Some(format!("[\"{}\"{rest}", time_text(frame.start)))
}

/// Writes a time so that texts are sorted as times are.
fn time_text(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.to_string(),
        Err(_) => seconds.to_string(),
    }
}
