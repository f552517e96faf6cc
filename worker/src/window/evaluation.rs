//! The time of a window: the watermark goes on, frames close and freeze, and results leave.
//!
//! ```text
//! advance:  watermark ─► frames that close ─► evaluated as final ─► frames that freeze are forgotten
//! ```
//! A frame that is forgotten is never evaluated again, so nothing changes its results.

use std::collections::BTreeMap;
use std::sync::Arc;

use litejoin_crds::window::WindowEmit;

use super::results::window_end;
use super::{Frame, Moments, WindowEvaluation, watermark};
use crate::fault::{self, Sabotage};
use crate::join::keyed::KeyedError;
use crate::join::lookup::Cost;
use crate::join::value::Value;
use crate::results::event::{Emit, ResultChange};
use crate::results::store::EpochWriter;
use crate::storage::arrivals::SureTimes;
use crate::storage::log::ShardReader;
use crate::storage::shard::{PAST, PartitionTime};
use crate::storage::sqlite::SqliteError;
use crate::storage::topics::TopicId;

/// Frames that one epoch evaluates at most; the rest waits for the next ones.
pub(super) const FRAMES_MAX: usize = if cfg!(debug_assertions) { 64 } else { 16_384 };

/// Results of old frames that one epoch removes at most, and that are held in memory to be removed.
pub(super) const REMOVED_MAX: usize = 1_000;

impl WindowEvaluation {
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
        // By event time, a watermark that has been seen never goes back, so it is stored. By arrival it follows the clock.
        let is_stored = self.window.event_time.is_none() || watermark == self.reached;
        if closes || expires || is_news || !is_stored || self.has_more || !self.is_known {
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
            Some(reached) => writer.set_watermark(self.id, &self.statements.basis, Some(reached)),
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
    pub(super) fn know(&mut self, writer: &EpochWriter<'_>) -> Result<(), KeyedError> {
        if !self.is_known {
            self.reached = writer.watermark(self.id, &self.statements.basis)?;
            self.sure = writer.sure_times(self.id, &self.statements.clock)?;
            self.is_known = true;
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
                writer.set_sure_time(self.id, &self.statements.clock, partition, *time)?;
                self.sure.insert(Arc::clone(partition), *time);
            }
        }
        self.read_event_times(readers, sure)?;
        let watermark = self.watermark_at(moments);
        if let Some(watermark) = watermark {
            writer.close_frames(self.id, watermark)?;
            writer.set_watermark(self.id, &self.statements.basis, Some(watermark))?;
        }
        self.reached = watermark;
        self.evaluate_due(readers, writer)?;
        if let Some(frozen) = self.frozen_to() {
            writer.forget_frames(self.id, frozen)?;
            // A pane that ends in a frame which is not frozen begins no earlier than that frame.
            let first = self.cut.frames(frozen).into_iter().next();
            if let Some(first) = first.filter(|_| self.panes.is_some() && !self.has_more) {
                writer.forget_panes(self.id, first.start)?;
            }
        }
        self.expire(moments.now, writer)?;
        self.next_end = Some(writer.next_end(self.id)?);
        Ok(())
    }

    /// Evaluates frames that are due, as many as one epoch may.
    pub(crate) fn evaluate_due(
        &mut self,
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
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
                    // No group is a BLOB but the empty one that stands for NULL.
                    let group = Value::new((&stored.group).into()).unwrap_or(Value::Null);
                    self.evaluate_frame(&group, stored.frame, readers, writer)?;
                }
            }
        }
        self.has_more = left == 0;
        Ok(())
    }

    /// Removes results of frozen frames that were stored long ago, as retention removes rows.
    fn expire(&mut self, now: i64, writer: &mut EpochWriter<'_>) -> Result<(), KeyedError> {
        let kept = self.window.results_kept;
        let emit = if self.window.emit_expiry { Emit::Event } else { Emit::UnlessGone };
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
            changes.push(ResultChange { emit: self.join.emit(emit), ..self.gone(old) });
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

    /// Returns the frames of a time, or of the pane that begins then, that are not frozen.
    pub(super) fn live_frames(&self, time: i64) -> Vec<Frame> {
        let mut frames = self.cut.frames(time);
        frames.retain(|frame| !self.is_frozen(*frame));
        frames
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

    fn watermark_at(&self, moments: Moments) -> Option<i64> {
        let reached = self.reached.filter(|_| !fault::sabotaged(Sabotage::WatermarkBack));
        match &self.window.event_time {
            None => Some(moments.arrived).max(reached),
            Some(clock) => watermark::by_event_time(
                clock,
                self.partitions.values().copied(),
                moments.now,
                reached,
                &self.cut,
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
}
