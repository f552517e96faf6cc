//! Aggregates of a window by pane: the longest stretches of which all rows are in the same frames. A changed row costs its
//! pane; a frame is the sum of its panes, and frames that overlap share them.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::{HashMap, HashSet};
use rusqlite::{Row, params_from_iter};
use serde_json::value::RawValue;

use super::results::{append_row, key_prefix, window_json};
use super::{Frame, RefusedRow, TimeAxis, WindowEvaluation};
use crate::fault::{self, Sabotage};
use crate::join::aggregate_state::{AggregateState, Datum, group_text, parse_group};
use crate::join::changes::Changes;
use crate::join::keyed::KeyedError;
use crate::join::lookup::steps_of;
use crate::join::plan::window::{PANE, PaneAggregates};
use crate::join::rows::{same_rows, write_value};
use crate::join::value::Value;
use crate::results::event::Op;
use crate::results::store::EpochWriter;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::{SqliteError, quoted};

/// Rows whose aggregate arguments are read at a time.
const ROWS_AT_ONCE: u64 = 4_096;

/// States that are held at most while panes are rebuilt.
const STATES_MAX: usize = 50_000;

/// The aggregates of a window, and the frames that are known to be stored.
pub(super) struct Panes {
    aggregates: PaneAggregates,
    frames: HashSet<Frame>,
}

/// A group of a pane: the pane's start, and the values of the GROUP BY terms.
type PaneGroup = (i64, Vec<Datum>);

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

impl WindowEvaluation {
    fn panes(&self) -> &Panes {
        self.panes.as_ref().expect("aggregates are kept by pane")
    }

    fn pane_frames(&self, pane: i64) -> Vec<Frame> {
        match &self.cut {
            TimeAxis::Grid(grid) => grid.frames(pane),
            TimeAxis::Session(_) => Vec::new(),
        }
    }

    /// Returns the frames of a pane that are not frozen.
    fn live_frames(&self, pane: i64) -> Vec<Frame> {
        let mut frames = self.pane_frames(pane);
        frames.retain(|frame| !self.is_frozen(*frame));
        frames
    }

    /// Takes in changed rows of the topic.
    pub(super) fn take_in_panes(
        &mut self,
        changes: &Changes,
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
        refuse: &mut dyn FnMut(&RefusedRow<'_>) -> Result<(), SqliteError>,
    ) -> Result<(), KeyedError> {
        let mut deltas: HashMap<PaneGroup, HashMap<Vec<Datum>, i64>> = HashMap::new();
        let mut left: BTreeSet<(Value, i64)> = BTreeSet::new();
        let unbound = Frame { start: 0, end: 0 };
        self.space.begin(unbound)?;
        for row in changes.rows(self.topic) {
            if let Some(old) = row.old.filter(|_| !fault::sabotaged(Sabotage::NoRetraction)) {
                self.space.add_image(row.key, old)?;
            }
        }
        self.count_rows(-1, &mut deltas)?;
        let loses_extremes =
            self.panes().aggregates.plan.group.is_some() || self.panes().aggregates.plan.loses_extremes();
        if loses_extremes && self.space.rows() > 0 {
            left = self.groups_and_panes()?;
        }
        self.space.begin(unbound)?;
        for row in changes.rows(self.topic) {
            if let Some(new) = row.new {
                self.space.add_image(row.key, new)?;
            }
        }
        self.count_rows(1, &mut deltas)?;
        self.refuse_late(changes, refuse)?;

        let mut changed: BTreeMap<(i64, String), (Vec<Datum>, ChangedPane)> = BTreeMap::new();
        let mut lost: BTreeSet<i64> = BTreeSet::new();
        for ((pane, group), mut arguments) in deltas {
            arguments.retain(|_, times| *times != 0);
            if arguments.is_empty() || self.live_frames(pane).is_empty() {
                continue;
            }
            let text = group_text(&group);
            let before = self.pane_state(pane, &text, writer)?;
            let mut after = before.clone().unwrap_or_else(|| self.panes().new_state());
            let aggregates = &self.panes().aggregates.plan.aggregates;
            // Rows that came are added first: an extreme that is there again was never lost.
            for comes in [true, false] {
                for (arguments, times) in arguments.iter().filter(|(_, times)| (**times > 0) == comes) {
                    after.add(aggregates, arguments, *times)?;
                }
            }
            if after.is_lost(aggregates) {
                lost.insert(pane);
            }
            changed.insert((pane, text), (group, ChangedPane { before, after }));
        }
        for pane in lost {
            self.find_extremes(pane, &left, readers, &mut changed)?;
        }
        for ((pane, text), (_, ChangedPane { after, .. })) in &changed {
            let state = (!after.is_empty()).then(|| after.text());
            writer.set_pane_state(self.id, *pane, text, state.as_deref())?;
        }
        let panes: BTreeSet<i64> = changed.keys().map(|(pane, _)| *pane).collect();
        for pane in panes {
            self.note_frames(pane, false, writer)?;
        }
        self.tell_groups(&changed, writer)
    }

    /// Counts the rows in the table by pane, group and arguments.
    fn count_rows(
        &mut self,
        times: i64,
        deltas: &mut HashMap<PaneGroup, HashMap<Vec<Datum>, i64>>,
    ) -> Result<(), KeyedError> {
        if self.space.rows() == 0 {
            return Ok(());
        }
        let panes = self.panes.as_ref().expect("aggregates are kept by pane");
        self.space.query(&panes.aggregates.rows_sql, |row| {
            if let Some((group, arguments)) = panes.read(row)? {
                *deltas.entry(group).or_default().entry(arguments).or_default() += times;
            }
            Ok(())
        })
    }

    /// Returns the groups and panes of the rows in the table.
    fn groups_and_panes(&mut self) -> Result<BTreeSet<(Value, i64)>, KeyedError> {
        let sql = format!(
            "SELECT DISTINCT {}, {PANE}({}) FROM {}",
            self.window.group.sql(),
            self.window.time.sql(),
            quoted(&self.window.topic)
        );
        let mut found = BTreeSet::new();
        self.space.query(&sql, |row| {
            let group = Value::new(row.get_ref(0)?).ok_or(KeyedError::UnsupportedValue)?;
            if let Some(pane) = row.get::<_, Option<i64>>(1)? {
                found.insert((group, pane));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Refuses the rows in the table that have no time, or whose frames are all frozen.
    fn refuse_late(
        &mut self,
        changes: &Changes,
        refuse: &mut dyn FnMut(&RefusedRow<'_>) -> Result<(), SqliteError>,
    ) -> Result<(), KeyedError> {
        if self.space.rows() == 0 {
            return Ok(());
        }
        let (time, topic) = (self.window.time.sql(), quoted(&self.window.topic));
        let mut panes: Vec<Option<i64>> = Vec::new();
        self.space.query(&format!("SELECT DISTINCT {PANE}({time}) FROM {topic}"), |row| {
            panes.push(row.get(0)?);
            Ok(())
        })?;
        for pane in panes {
            let late = match pane {
                None => None,
                Some(pane) if self.live_frames(pane).is_empty() => self.pane_frames(pane).pop(),
                Some(_) => continue,
            };
            let mut keys: Vec<String> = Vec::new();
            let pane = pane.map_or_else(|| "NULL".to_owned(), |pane| pane.to_string());
            self.space.query(&format!("SELECT key FROM {topic} WHERE {PANE}({time}) IS {pane}"), |row| {
                keys.push(row.get(0)?);
                Ok(())
            })?;
            for key in keys {
                let Some(row) = changes.row(self.topic, &key).and_then(|row| Some((row.key, row.new?)))
                else {
                    continue;
                };
                let (key, image) = row;
                let refused = match late {
                    None => self.without_time(key, image.payload),
                    Some(frame) => self.too_late(key, image.payload, frame),
                };
                refuse(&refused)?;
            }
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
        left: &BTreeSet<(Value, i64)>,
        readers: &[ShardReader],
        changed: &mut BTreeMap<(i64, String), (Vec<Datum>, ChangedPane)>,
    ) -> Result<(), KeyedError> {
        let TimeAxis::Grid(grid) = &self.cut else { return Ok(()) };
        let frame = grid.pane(pane);
        self.space.begin(frame)?;
        for (group, _) in left.iter().filter(|(_, of)| *of == pane) {
            self.gather(group, frame, readers)?;
        }
        let mut found: HashMap<PaneGroup, HashMap<Vec<Datum>, i64>> = HashMap::new();
        self.count_rows(1, &mut found)?;
        let plan = &self.panes.as_ref().expect("aggregates are kept by pane").aggregates.plan;
        for ((of, _), (group, change)) in changed.iter_mut() {
            if *of != pane || !change.after.is_lost(&plan.aggregates) {
                continue;
            }
            let mut state = AggregateState::new(plan.aggregates.len());
            for (arguments, times) in found.get(&(pane, group.clone())).into_iter().flatten() {
                state.add(&plan.aggregates, arguments, *times)?;
            }
            // Rows that don't add up to the stored state reveal a corrupt state.
            if state.rows() != change.after.rows() {
                return Err(KeyedError::StateMismatch);
            }
            change.after = state;
        }
        Ok(())
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
        changed: &BTreeMap<(i64, String), (Vec<Datum>, ChangedPane)>,
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
        changed: &BTreeMap<(i64, String), (Vec<Datum>, ChangedPane)>,
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
        self.results += changes.len() as u64;
        writer.store(self.id, &changes)?;
        Ok(())
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
        let mut groups = Vec::with_capacity(merged.len());
        for (text, state) in merged {
            groups.push((parse_group(&text).ok_or(KeyedError::StateMismatch)?, state));
        }
        let states: Vec<(usize, &[Datum], AggregateState)> = groups
            .iter()
            .enumerate()
            .map(|(index, (group, state))| (index, group.as_slice(), state.clone()))
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

    /// Computes the states of all panes from the rows of the topic, but for panes whose frames are frozen.
    pub(super) fn rebuild_panes(
        &mut self,
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        writer.forget_panes(self.id, i64::MAX)?;
        self.panes.as_mut().expect("aggregates are kept by pane").forget();
        let mut states: BTreeMap<(i64, String), AggregateState> = BTreeMap::new();
        let sql = format!("SELECT key, payload, timestamp, _change FROM {}", quoted(&self.window.topic));
        let unbound = Frame { start: 0, end: 0 };
        for reader in readers {
            let failed = |source| crate::join::lookup::lookup_failed(reader, source);
            let mut statement = reader.prepare(&sql).map_err(failed)?;
            let mut rows = statement.query([]).map_err(failed)?;
            self.space.begin(unbound)?;
            loop {
                let row = rows.next().map_err(failed)?;
                let is_end = row.is_none();
                if let Some(row) = row {
                    self.space.add(row)?;
                }
                if is_end || self.space.rows() >= ROWS_AT_ONCE {
                    self.add_to_states(&mut states)?;
                    self.space.begin(unbound)?;
                }
                if states.len() > STATES_MAX {
                    self.store_states(&mut states, writer)?;
                }
                if is_end {
                    break;
                }
            }
        }
        self.store_states(&mut states, writer)
    }

    fn add_to_states(
        &mut self,
        states: &mut BTreeMap<(i64, String), AggregateState>,
    ) -> Result<(), KeyedError> {
        let mut found: HashMap<PaneGroup, HashMap<Vec<Datum>, i64>> = HashMap::new();
        self.count_rows(1, &mut found)?;
        for ((pane, group), rows) in found {
            if self.live_frames(pane).is_empty() {
                continue;
            }
            let panes = self.panes();
            let state = states.entry((pane, group_text(&group))).or_insert_with(|| panes.new_state());
            for (arguments, times) in rows {
                state.add(&panes.aggregates.plan.aggregates, &arguments, times)?;
            }
        }
        Ok(())
    }

    fn store_states(
        &mut self,
        states: &mut BTreeMap<(i64, String), AggregateState>,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        let mut panes = BTreeSet::new();
        for ((pane, group), mut state) in std::mem::take(states) {
            if let Some(known) = self.pane_state(pane, &group, writer)? {
                state.merge(&self.panes().aggregates.plan.aggregates, &known)?;
            }
            writer.set_pane_state(self.id, pane, &group, Some(&state.text()))?;
            panes.insert(pane);
        }
        for pane in panes {
            self.note_frames(pane, true, writer)?;
        }
        Ok(())
    }
}
