//! Aggregates of a window by pane: the longest stretches of which all rows are in the same frames. A changed row costs its
//! pane; a frame is the sum of its panes, and frames that overlap share them.

mod rebuild;

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::{HashMap, HashSet};
use rusqlite::{Row, params, params_from_iter};
use serde_json::value::RawValue;

use super::results::{append_row, key_prefix, window_json};
use super::{Frame, RefusedRow, TimeAxis, WindowEvaluation};
use crate::fault::{self, Sabotage};
use crate::join::TopicImage;
use crate::join::aggregate_state::{AggregateState, Datum, group_text, parse_group};
use crate::join::changes::Changes;
use crate::join::keyed::KeyedError;
use crate::join::lookup::{Raw, lookup_failed, steps_of};
use crate::join::plan::window::PaneAggregates;
use crate::join::rows::{same_rows, write_value};
use crate::join::value::Value;
use crate::results::event::Op;
use crate::results::store::EpochWriter;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::SqliteError;

/// States that are held at most while panes are rebuilt.
const STATES_MAX: usize = 50_000;

/// The aggregates of a window, and the frames that are known to be stored.
pub(super) struct Panes {
    aggregates: PaneAggregates,
    frames: HashSet<Frame>,
}

/// A group of a pane: the pane's start, and the values of the GROUP BY terms.
type PaneGroup = (i64, Vec<Datum>);

/// The aggregate arguments of rows, by the group that they are in.
type GroupRows = HashMap<PaneGroup, Vec<Vec<Datum>>>;

/// A row that came to a group of a pane, or left it.
struct PaneRow {
    pane: i64,
    /// The group as text.
    group: String,
    arguments: Vec<Datum>,
    /// 1 if it came, -1 if it went.
    times: i64,
}

/// What changed rows of the topic do to panes.
#[derive(Default)]
struct PaneRows<'c> {
    rows: Vec<PaneRow>,
    /// Images that went, with their keys, where an extreme may have gone with them.
    went: Vec<(&'c str, TopicImage<'c>)>,
    /// Images that came and are in no live pane, with their keys.
    outside: Vec<(&'c str, TopicImage<'c>)>,
}

/// The groups of panes that have changed, by the pane's start and the text of the group.
type ChangedPanes = BTreeMap<(i64, String), (Vec<Datum>, ChangedPane)>;

/// A group of a pane before and after.
struct ChangedPane {
    before: Option<AggregateState>,
    after: AggregateState,
}

impl Panes {
    pub(super) fn new(aggregates: PaneAggregates) -> Self {
        Self { aggregates, frames: HashSet::new() }
    }

    /// Forgets which frames are stored.
    pub(super) fn forget(&mut self) {
        self.frames.clear();
    }

    /// Returns the pane, the group and the aggregate arguments of a row; `None` for a row without a time.
    fn read(&self, row: &Row<'_>) -> Result<Option<(PaneGroup, Vec<Datum>)>, KeyedError> {
        let (mut group, arguments) = self.aggregates.plan.read(row)?;
        let Datum::Integer(pane) = group.remove(0) else { return Ok(None) };
        Ok(Some(((pane, group), arguments)))
    }

    fn new_state(&self) -> AggregateState {
        AggregateState::new(self.aggregates.plan.aggregates.len())
    }

    fn parse(&self, text: &str) -> Result<AggregateState, KeyedError> {
        AggregateState::parse(text, self.aggregates.plan.aggregates.len()).ok_or(KeyedError::StateMismatch)
    }
}

/// Returns whether a frame of a pane is not frozen.
fn is_live(cut: &TimeAxis, pane: i64, frozen: Option<i64>) -> bool {
    cut.frames(pane).iter().any(|frame| frozen.is_none_or(|frozen| frame.end > frozen))
}

impl WindowEvaluation {
    fn panes(&self) -> &Panes {
        self.panes.as_ref().expect("aggregates are kept by pane")
    }

    /// Takes in changed rows of the topic.
    pub(super) fn take_in_panes(
        &mut self,
        changes: &Changes,
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
        refuse: &mut dyn FnMut(&RefusedRow<'_>) -> Result<(), SqliteError>,
    ) -> Result<(), KeyedError> {
        let PaneRows { mut rows, went, outside } = self.read_pane_rows(changes)?;
        for (key, image) in outside {
            self.refuse_late(key, image, refuse)?;
        }
        // In the order in which panes are stored. Rows that came are added first: an extreme that is there again was never
        // lost.
        rows.sort_unstable_by(|a, b| (a.pane, &a.group, b.times).cmp(&(b.pane, &b.group, a.times)));
        let mut panes: BTreeMap<i64, bool> = BTreeMap::new();
        let mut changed = ChangedPanes::new();
        let mut lost: BTreeSet<i64> = BTreeSet::new();
        for rows in rows.chunk_by(|a, b| (a.pane, &a.group) == (b.pane, &b.group)) {
            let PaneRow { pane, group, .. } = &rows[0];
            let shows = *panes
                .entry(*pane)
                .or_insert_with(|| self.live_frames(*pane).into_iter().any(|frame| self.shows(frame)));
            let before = self.pane_state(*pane, group, writer)?;
            let mut after = before.clone().unwrap_or_else(|| self.panes().new_state());
            let aggregates = &self.panes().aggregates.plan.aggregates;
            for row in rows {
                after.add(aggregates, &row.arguments, row.times)?;
            }
            let is_lost = after.is_lost(aggregates);
            if is_lost {
                lost.insert(*pane);
            } else if before.as_ref() != Some(&after) {
                self.store_pane(*pane, group, &after, writer)?;
            }
            if shows || is_lost {
                let terms = parse_group(group).ok_or(KeyedError::StateMismatch)?;
                changed.insert((*pane, group.clone()), (terms, ChangedPane { before, after }));
            }
        }
        drop(rows);
        for (pane, groups) in self.groups_that_lost(&lost, went)? {
            self.find_extremes(pane, &groups, readers, &mut changed, writer)?;
        }
        for pane in panes.into_keys() {
            self.note_frames(pane, false, writer)?;
        }
        self.tell_groups(&changed, writer)
    }

    /// Reads in which groups of live panes changed rows were, and in which they are.
    fn read_pane_rows<'c>(&mut self, changes: &'c Changes) -> Result<PaneRows<'c>, KeyedError> {
        let mut found = PaneRows::default();
        let panes = self.panes.as_ref().expect("aggregates are kept by pane");
        let frozen = self.frozen_to();
        let mut live: HashMap<i64, bool> = HashMap::new();
        let mut query = self.space.row_query(&panes.aggregates.row_sql)?;
        for row in changes.rows(self.topic) {
            let mut read = |image: TopicImage<'_>, times| -> Result<Option<PaneRow>, KeyedError> {
                let parameters = params![row.key, image.payload, image.timestamp];
                let found = query.run(parameters, |row| panes.read(row))?.flatten();
                let Some(((pane, group), arguments)) = found else { return Ok(None) };
                let is_live = *live.entry(pane).or_insert_with(|| is_live(&self.cut, pane, frozen));
                Ok(is_live.then(|| PaneRow { pane, group: group_text(&group), arguments, times }))
            };
            if let Some(old) = row.old.filter(|_| !fault::sabotaged(Sabotage::NoRetraction))
                && let Some(went) = read(old, -1)?
            {
                found.rows.push(went);
                if panes.aggregates.plan.loses_extremes() {
                    found.went.push((row.key, old));
                }
            }
            if let Some(new) = row.new {
                match read(new, 1)? {
                    Some(came) => found.rows.push(came),
                    None => found.outside.push((row.key, new)),
                }
            }
        }
        Ok(found)
    }

    /// Returns the groups of the index that images have left, by the panes among `lost`.
    fn groups_that_lost(
        &mut self,
        lost: &BTreeSet<i64>,
        went: Vec<(&str, TopicImage<'_>)>,
    ) -> Result<BTreeMap<i64, BTreeSet<Value>>, KeyedError> {
        let mut left: BTreeMap<i64, BTreeSet<Value>> = BTreeMap::new();
        for (key, image) in went.into_iter().filter(|_| !lost.is_empty()) {
            let (group, time) = self.place(key, image)?;
            let pane = time.and_then(|time| self.cut.pane(time)).filter(|pane| lost.contains(&pane.start));
            if let Some(pane) = pane {
                left.entry(pane.start).or_default().insert(group);
            }
        }
        Ok(left)
    }

    /// Refuses a row that is in no live pane if it has no time, or all of its frames are frozen.
    fn refuse_late(
        &mut self,
        key: &str,
        image: TopicImage<'_>,
        refuse: &mut dyn FnMut(&RefusedRow<'_>) -> Result<(), SqliteError>,
    ) -> Result<(), KeyedError> {
        let (_, time) = self.place(key, image)?;
        let Some(time) = time else { return Ok(refuse(&self.without_time(key, image.payload))?) };
        if self.live_frames(time).is_empty()
            && let Some(last) = self.cut.frames(time).pop()
        {
            refuse(&self.too_late(key, image.payload, last))?;
        }
        Ok(())
    }

    fn pane_state(
        &self,
        pane: i64,
        group: &str,
        writer: &EpochWriter<'_>,
    ) -> Result<Option<AggregateState>, KeyedError> {
        let text = writer.pane_state(self.id, pane, group)?;
        text.map(|text| self.panes().parse(&text)).transpose()
    }

    /// Reads the rows of a pane again whose groups have lost an extreme.
    fn find_extremes(
        &mut self,
        pane: i64,
        groups: &BTreeSet<Value>,
        readers: &[ShardReader],
        changed: &mut ChangedPanes,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        let Some(frame) = self.cut.pane(pane) else { return Ok(()) };
        let mut found = GroupRows::new();
        for reader in readers {
            let failed = |source| lookup_failed(reader, source);
            let mut statement = reader.prepare(&self.statements.rows).map_err(failed)?;
            for group in groups {
                let mut rows = statement.query(params![group, frame.start, frame.end]).map_err(failed)?;
                self.count_rows(&mut rows, reader, u64::MAX, &mut found)?;
            }
            self.space.cost.probes += groups.len() as u64;
            self.space.cost.steps += steps_of(&statement);
        }
        for ((of, text), (group, change)) in changed.iter_mut() {
            let plan = &self.panes().aggregates.plan;
            if *of != pane || !change.after.is_lost(&plan.aggregates) {
                continue;
            }
            let mut state = self.panes().new_state();
            for arguments in found.get(&(pane, group.clone())).into_iter().flatten() {
                state.add(&plan.aggregates, arguments, 1)?;
            }
            // Rows that don't add up to the stored state reveal a corrupt state.
            if state.rows() != change.after.rows() {
                return Err(KeyedError::StateMismatch);
            }
            change.after = state;
            self.store_pane(pane, text, &change.after, writer)?;
        }
        Ok(())
    }

    fn store_pane(
        &self,
        pane: i64,
        group: &str,
        state: &AggregateState,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        let state = (!state.is_empty()).then(|| state.text());
        Ok(writer.set_pane_state(self.id, pane, group, state.as_deref())?)
    }

    /// Notes the frames of a pane.
    fn note_frames(
        &mut self,
        pane: i64,
        is_due: bool,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        for frame in self.live_frames(pane) {
            let panes = self.panes.as_mut().expect("aggregates are kept by pane");
            if panes.frames.len() > STATES_MAX {
                panes.frames.clear();
            }
            if panes.frames.insert(frame) || is_due {
                self.add_frame(&Value::Integer(0), frame, is_due, writer)?;
            }
        }
        Ok(())
    }

    /// Stores the results of the frames that show, as far as changed groups are concerned.
    fn tell_groups(
        &mut self,
        changed: &ChangedPanes,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        let mut frames: BTreeMap<Frame, BTreeMap<&str, &[Datum]>> = BTreeMap::new();
        for ((pane, text), (group, _)) in changed {
            for frame in self.live_frames(*pane).into_iter().filter(|frame| self.shows(*frame)) {
                frames.entry(frame).or_default().insert(text, group);
            }
        }
        for (frame, groups) in frames {
            let mut rows: Vec<(usize, &[Datum], AggregateState)> = Vec::new();
            for (index, (text, group)) in groups.iter().enumerate() {
                let (before, after) = self.merged(frame, text, changed, writer)?;
                for (number, state) in [(2 * index, before), (2 * index + 1, after)] {
                    if !state.is_empty() {
                        rows.push((number, group, state));
                    }
                }
            }
            self.replace_rows(frame, &rows, writer)?;
            if self.window.emit_empty > 0 && self.is_closed(frame) {
                // Results without rows follow from all groups.
                self.add_frame(&Value::Integer(0), frame, true, writer)?;
            }
        }
        Ok(())
    }

    /// Returns the state of a group in a frame before and after the changes.
    fn merged(
        &self,
        frame: Frame,
        group: &str,
        changed: &ChangedPanes,
        writer: &EpochWriter<'_>,
    ) -> Result<(AggregateState, AggregateState), KeyedError> {
        let panes = self.panes();
        let aggregates = &panes.aggregates.plan.aggregates;
        let (mut before, mut after) = (panes.new_state(), panes.new_state());
        let TimeAxis::Grid(grid) = &self.cut else { return Ok((before, after)) };
        let mut start = frame.start;
        while start < frame.end {
            let pane = grid.pane(start);
            match changed.get(&(pane.start, group.to_owned())) {
                Some((_, change)) => {
                    if let Some(state) = &change.before {
                        before.merge(aggregates, state)?;
                    }
                    after.merge(aggregates, &change.after)?;
                }
                None => {
                    if let Some(state) = self.pane_state(pane.start, group, writer)? {
                        before.merge(aggregates, &state)?;
                        after.merge(aggregates, &state)?;
                    }
                }
            }
            start = pane.end;
        }
        Ok((before, after))
    }

    /// Replaces in the stored results of a frame the rows of groups before (even numbers) by those after (odd numbers).
    fn replace_rows(
        &mut self,
        frame: Frame,
        states: &[(usize, &[Datum], AggregateState)],
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        let mut replaced: BTreeMap<String, [Vec<String>; 2]> = BTreeMap::new();
        self.rows_of_states(frame, states, |number, key, row| {
            replaced.entry(key).or_default()[number % 2].push(row.to_owned());
        })?;
        let window = window_json(frame, self.is_closed(frame));
        let mut changes = Vec::new();
        for (key, [old, new]) in replaced {
            let stored = writer.result(self.id, &key)?;
            let rows: Option<Vec<&RawValue>> =
                stored.as_ref().map_or(Some(Vec::new()), |stored| serde_json::from_str(&stored.rows).ok());
            let mut rows: Vec<&str> =
                rows.ok_or(KeyedError::StateMismatch)?.into_iter().map(RawValue::get).collect();
            for gone in &old {
                let position = rows.iter().position(|row| row == gone);
                rows.swap_remove(position.ok_or(KeyedError::StateMismatch)?);
            }
            rows.extend(new.iter().map(String::as_str));
            let rows = format!("[{}]", rows.join(","));
            let op = match &stored {
                Some(stored)
                    if same_rows(&stored.rows, &rows) && stored.window.as_deref() == Some(&window) =>
                {
                    continue;
                }
                Some(_) if rows == "[]" => Op::Deleted,
                Some(_) => Op::Updated,
                None if rows == "[]" => continue,
                None => Op::Created,
            };
            changes.push(self.change(op, key, rows, &window));
        }
        self.store(&changes, writer)
    }

    /// Returns the results of a frame from its panes, each without the bracket that closes it.
    pub(super) fn results_of_panes(
        &mut self,
        frame: Frame,
        writer: &EpochWriter<'_>,
    ) -> Result<BTreeMap<String, String>, KeyedError> {
        let panes = self.panes();
        let mut merged: BTreeMap<String, AggregateState> = BTreeMap::new();
        writer.panes_of::<KeyedError>(self.id, frame, |group, state| {
            let state = panes.parse(state)?;
            match merged.get_mut(group) {
                Some(known) => known.merge(&panes.aggregates.plan.aggregates, &state)?,
                None => drop(merged.insert(group.to_owned(), state)),
            }
            Ok(())
        })?;
        let groups: Option<Vec<Vec<Datum>>> = merged.keys().map(|text| parse_group(text)).collect();
        let groups = groups.ok_or(KeyedError::StateMismatch)?;
        let states: Vec<(usize, &[Datum], AggregateState)> = groups
            .iter()
            .zip(merged.into_values())
            .enumerate()
            .map(|(index, (group, state))| (index, group.as_slice(), state))
            .collect();
        let mut results = BTreeMap::new();
        self.rows_of_states(frame, &states, |_, key, row| append_row(&mut results, key, row))?;
        Ok(results)
    }

    /// Calls `each` with the number, the result key and the row for all rows that the query makes of groups.
    fn rows_of_states(
        &mut self,
        frame: Frame,
        states: &[(usize, &[Datum], AggregateState)],
        mut each: impl FnMut(usize, String, &str),
    ) -> Result<(), KeyedError> {
        self.space.begin(frame)?;
        let panes = self.panes.as_ref().expect("aggregates are kept by pane");
        let plan = &panes.aggregates.plan;
        let connection = self.space.connection();
        connection.prepare_cached(&format!("DELETE FROM {}", plan.table))?.execute([])?;
        let marks = ", ?".repeat(plan.group_terms + plan.aggregates.len());
        let mut insert =
            connection.prepare_cached(&format!("INSERT INTO {} VALUES (?{marks})", plan.table))?;
        let start = Datum::Integer(frame.start);
        for (number, group, state) in states {
            let number = Datum::Integer(i64::try_from(*number).map_err(|_| KeyedError::TooLarge)?);
            let results = state.results(&plan.aggregates);
            insert.execute(params_from_iter([&number, &start].into_iter().chain(*group).chain(&results)))?;
        }
        let cost = steps_of(&insert);
        drop(insert);
        self.space.cost.steps += cost;
        let join = std::sync::Arc::clone(&self.join);
        let window = std::sync::Arc::clone(&self.window);
        let is_partitioned = window.grouping == super::Grouping::Partition;
        let frame_prefix = key_prefix(&window, frame, None);
        let partitions: HashMap<usize, &Datum> = if is_partitioned {
            states.iter().map(|(number, group, _)| (*number, &group[0])).collect()
        } else {
            HashMap::new()
        };
        let (mut key, mut object) = (String::new(), String::new());
        let sql = plan.results_sql.clone();
        self.space.query(&sql, |row| {
            join.columns.write(row, &mut key, &mut object)?;
            let number: usize = row.get(join.columns.count())?;
            let mut result_key = frame_prefix.clone();
            if let Some(partition) = partitions.get(&number) {
                result_key.push(',');
                write_value(&mut result_key, partition.as_value_ref());
            }
            if window.has_key {
                result_key.push(',');
                result_key.push_str(&key);
            }
            result_key.push(']');
            each(number, result_key, &object);
            Ok(())
        })
    }

    /// Counts rows of a reader (key, payload, timestamp), so many at most. Returns whether there are no more.
    fn count_rows(
        &mut self,
        rows: &mut rusqlite::Rows<'_>,
        reader: &ShardReader,
        limit: u64,
        found: &mut GroupRows,
    ) -> Result<bool, KeyedError> {
        let failed = |source| lookup_failed(reader, source);
        let panes = self.panes.as_ref().expect("aggregates are kept by pane");
        let mut query = self.space.row_query(&panes.aggregates.row_sql)?;
        for _ in 0..limit {
            let Some(row) = rows.next().map_err(failed)? else { return Ok(true) };
            let value = |index| row.get_ref(index).map(Raw).map_err(failed);
            let parameters = params![value(0)?, value(1)?, value(2)?];
            if let Some((group, arguments)) = query.run(parameters, |row| panes.read(row))?.flatten() {
                found.entry(group).or_default().push(arguments);
            }
        }
        Ok(false)
    }
}
