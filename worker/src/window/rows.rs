//! The rows of a window: which frames they are in, and which frames a change touches.
//!
//! ```text
//! take_in:  changed rows, old and new image ─► group and time ─► frames ─► those that show are evaluated
//! begin:    all rows ─► group and time ─► frames, all of which are due
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::evaluation::{FRAMES_MAX, REMOVED_MAX};
use super::results::{frame_of, group_of_key, time_text};
use super::session::{Session, clusters, islands};
use super::{Frame, RefusedRow, TimeAxis, WindowEvaluation};
use crate::fault::{self, Sabotage};
use crate::join::TopicImage;
use crate::join::changes::Changes;
use crate::join::keyed::KeyedError;
use crate::join::lookup::{Raw, lookup_failed, steps_of};
use crate::join::value::Value;
use crate::results::frames::StoredResult;
use crate::results::store::EpochWriter;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::{SqliteError, bind_row};

type Refuse<'r> = &'r mut dyn FnMut(&RefusedRow<'_>) -> Result<(), SqliteError>;

/// A row that came.
struct ComingRow<'a> {
    key: &'a str,
    payload: &'a str,
    time: i64,
}

impl WindowEvaluation {
    /// Begins anew: the frames of all rows, as far as they are not frozen, are due.
    pub(crate) fn begin(
        &mut self,
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        self.forget();
        if !writer.stands_on(self.id, &self.statements.basis)? {
            self.abandon(writer)?;
        }
        self.know(writer)?;
        let frozen = self.frozen_to();
        match &self.cut {
            TimeAxis::Grid(_) => self.renew_frames(writer)?,
            // Where the first session begins that is not frozen is known from the frames alone.
            TimeAxis::Session(_) => writer.all_due(self.id, frozen.unwrap_or(i64::MIN))?,
        }
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
                insert.execute([Raw(value), Raw(time)])?;
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

    /// Begins a window whose frames were made in another way: their results mean nothing any more.
    fn abandon(&mut self, writer: &mut EpochWriter<'_>) -> Result<(), KeyedError> {
        writer.remove_frames(self.id)?;
        writer.forget_panes(self.id, i64::MAX)?;
        writer.forget_other_clocks(self.id, &self.statements.clock)?;
        writer.set_watermark(self.id, &self.statements.basis, None)?;
        loop {
            let stored = writer.first_results(self.id, REMOVED_MAX)?;
            let is_last = stored.len() < REMOVED_MAX;
            let gone = stored.into_iter().map(|(old, _)| self.gone(old)).collect::<Vec<_>>();
            self.store(&gone, writer)?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Makes the frames of stored results due, as far as they are not frozen. Frames of before may have other groups.
    fn renew_frames(&mut self, writer: &mut EpochWriter<'_>) -> Result<(), KeyedError> {
        let mut frames: BTreeSet<(Value, Frame)> = BTreeSet::new();
        let mut foreign = Vec::new();
        writer.each_result(self.id, |key, window| {
            let frame = window.and_then(frame_of).filter(|frame| !self.is_frozen(*frame));
            match frame.map(|frame| (frame, group_of_key(&self.window, key))) {
                Some((frame, Some(group))) => drop(frames.insert((group, frame))),
                Some((_, None)) => foreign.push((key.to_owned(), window.map(str::to_owned))),
                None => {}
            }
        })?;
        writer.remove_frames(self.id)?;
        for (group, frame) in frames {
            self.add_frame(&group, frame, true, writer)?;
        }
        let gone = foreign
            .into_iter()
            .map(|(key, window)| self.gone(StoredResult { key, rows: String::new(), window }))
            .collect::<Vec<_>>();
        self.store(&gone, writer)
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
                TimeAxis::Grid(_) => self.touched_on_grid(&came, &went, refuse)?,
                TimeAxis::Session(_) => {
                    self.touched_sessions(&group, &came, &went, readers, writer, refuse)?
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

    /// Returns the frames that times of one group make, in ascending order, but for rows that can't be in a frame any more.
    fn frames_of_times(
        &self,
        group: &Value,
        times: &[i64],
        writer: &EpochWriter<'_>,
    ) -> Result<Vec<Frame>, KeyedError> {
        let gap = match &self.cut {
            TimeAxis::Grid(grid) => {
                let frames: BTreeSet<Frame> = times.iter().flat_map(|time| grid.frames(*time)).collect();
                return Ok(frames.into_iter().collect());
            }
            TimeAxis::Session(gap) => *gap,
        };
        let mut times = times.to_vec();
        if let Some(frozen) = self.frozen_to() {
            let first = writer.first_start(self.id, group, frozen)?;
            times.retain(|time| *time > frozen - gap || first.is_some_and(|first| *time >= first));
        }
        Ok(islands(times, gap).into_iter().map(|session| session.frame(gap)).collect())
    }

    /// Returns the group and the time of an image of a row.
    pub(super) fn place(
        &mut self,
        key: &str,
        image: TopicImage<'_>,
    ) -> Result<(Value, Option<i64>), KeyedError> {
        let mut statement = self.space.connection().prepare_cached(&self.statements.image)?;
        bind_row(&mut statement, key, image.payload, image.timestamp, None)?;
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
        let mut touched: BTreeSet<Frame> = went.iter().flat_map(|time| self.live_frames(*time)).collect();
        for row in came {
            let live = self.live_frames(row.time);
            if live.is_empty() {
                let last = self.cut.frames(row.time).pop().expect("each time is in a frame");
                refuse(&self.too_late(row.key, row.payload, last))?;
            }
            touched.extend(live);
        }
        Ok(touched)
    }

    /// Finds the sessions that rows of a group change, and removes those that are gone.
    fn touched_sessions(
        &mut self,
        group: &Value,
        came: &[ComingRow<'_>],
        went: &[i64],
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
        refuse: Refuse<'_>,
    ) -> Result<BTreeSet<Frame>, KeyedError> {
        let TimeAxis::Session(gap) = self.cut else { return Ok(BTreeSet::new()) };
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
