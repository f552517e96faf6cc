//! Evaluation by rows that came and went: the rows below the aggregates before and after the changes of an epoch, the
//! stored aggregate states of their groups, and the results that follow from these states.
//!
//! ```text
//! deltas:        changes ─► affected driving values ─► their rows now, less their rows before ─► by group
//! apply_deltas:  by group: stored aggregate state (results.db) and deltas ─► new aggregate state
//!                ─► the join's rows of the group before and after ─► results less the former, and the latter
//! accumulation:  all rows of the topics, ordered by group ─► the aggregate state of each group
//! ```
//! Aggregate states and results are written in one transaction, so that the results always follow from the states. If
//! the two disagree, the join is evaluated in full and the states are rebuilt.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::{HashMap, HashSet};
use rusqlite::{OptionalExtension as _, Row, params, params_from_iter};
use serde_json::value::RawValue;

use super::CheckedJoin;
use super::aggregate_state::{AggregateError, AggregateState, Datum, group_text};
use super::changes::Changes;
use super::keyed::{AffectedKey, KeyedError, KeyedJoin};
use super::lookup::steps_of;
use super::plan::{Accumulated, Keyed};
use super::rows::same_rows;
use super::value::Value;
use super::workspace::{OldImages, View, Workspace};
use crate::results::event::{Emit, JoinId, Op, ResultChange};
use crate::storage::topics::TopicId;

/// A join whose groups have an aggregate state.
#[derive(Debug)]
pub(crate) struct AccumulatedJoin {
    pub(crate) join: CheckedJoin,
    pub(crate) id: JoinId,
    pub(crate) plan: Accumulated,
    pub(crate) rows: KeyedJoin,
    /// Which term of GROUP BY finds the rows of a group, and the join that looks them up by it; `None` if no term can.
    group: Option<(usize, KeyedJoin)>,
}

/// The values of the GROUP BY terms.
type Group = Vec<Datum>;

/// Rows that came by group; a negative number counts rows that went.
#[derive(Debug, Default)]
pub(crate) struct Deltas {
    groups: HashMap<Group, Delta>,
}

#[derive(Debug, Default)]
struct Delta {
    emit: Emit,
    /// How many rows came, by the arguments of aggregates.
    rows: HashMap<Vec<Datum>, i64>,
}

/// The new aggregate states and results of an epoch.
#[derive(Debug, Default)]
pub(crate) struct AggregateChange {
    pub(crate) changes: Vec<ResultChange<'static>>,
    /// New aggregate states by the text of their group; `None` for a group that is gone.
    pub(crate) states: Vec<(String, Option<String>)>,
}

impl AccumulatedJoin {
    /// Prepares the statements of the join. `topic_id` returns the number of a topic.
    pub(crate) fn new(
        join: CheckedJoin,
        id: JoinId,
        plan: Accumulated,
        topic_id: impl Fn(&str) -> TopicId,
    ) -> Self {
        let keyed = |plan: &Keyed| KeyedJoin::new(join.clone(), id, plan.clone(), &topic_id);
        let rows = keyed(&plan.rows);
        let group = plan.group.as_ref().map(|(term, plan)| (*term, keyed(plan)));
        Self { join, id, plan, rows, group }
    }

    /// Returns the joins by which rows below the aggregates are found.
    pub(crate) fn keyed(&self) -> impl Iterator<Item = &KeyedJoin> {
        std::iter::once(&self.rows).chain(self.group.as_ref().map(|(_, group)| group))
    }
}

impl Accumulated {
    /// Returns the group and the aggregate arguments of a row below the aggregates.
    pub(crate) fn read(&self, row: &Row<'_>) -> Result<(Group, Vec<Datum>), KeyedError> {
        let datum = |column| Datum::new(row.get_ref(column)?).ok_or(KeyedError::NotAccumulable);
        let group: Group = (1..=self.group_terms).map(datum).collect::<Result<_, _>>()?;
        if !group.iter().all(Datum::is_one_spelling) {
            return Err(KeyedError::NotAccumulable);
        }
        let arguments = (1 + self.group_terms..).take(self.arguments).map(datum);
        Ok((group, arguments.collect::<Result<_, _>>()?))
    }

    fn new_state(&self) -> AggregateState {
        AggregateState::new(self.aggregates.len())
    }
}

impl From<AggregateError> for KeyedError {
    fn from(trouble: AggregateError) -> Self {
        match trouble {
            AggregateError::NotAccumulable => Self::NotAccumulable,
            AggregateError::Wrong => Self::StateMismatch,
        }
    }
}

impl Deltas {
    pub(crate) fn append(&mut self, other: Self) {
        for (group, delta) in other.groups {
            let own = self.groups.entry(group).or_default();
            own.emit = own.emit.max(delta.emit);
            for (arguments, times) in delta.rows {
                *own.rows.entry(arguments).or_default() += times;
            }
        }
    }
}

impl Workspace {
    /// Returns the rows that came and went among those with some driving values, between the moments of `time`.
    /// `changes` holds every change between the stored aggregate states and what the readers see; `old` comes from
    /// [`Self::old_images`].
    pub(crate) fn deltas(
        &mut self,
        join: &AccumulatedJoin,
        time: [i64; 2],
        keys: &[AffectedKey],
        changes: &Changes,
        old: &[OldImages<'_>],
        deltas: &mut Deltas,
    ) -> Result<(), KeyedError> {
        let emits: HashMap<&Value, Emit> = keys.iter().map(|key| (&key.value, key.emit)).collect();
        let [before, now] = time;
        for (view, at, times) in
            [(View::Now(Some(changes)), now, 1), (View::Before(changes, old), before, -1)]
        {
            self.clock.set(at);
            self.memory.execute_batch("BEGIN")?;
            let outcome = self.gather(&join.rows, keys, view).and_then(|()| {
                self.query(&join.plan.rows.sql, |row| {
                    let driving = Value::new(row.get_ref(0)?);
                    let Some(emit) = driving.and_then(|driving| emits.get(&driving)) else { return Ok(()) };
                    let (group, arguments) = join.plan.read(row)?;
                    let delta = deltas.groups.entry(group).or_default();
                    delta.emit = delta.emit.max(*emit);
                    *delta.rows.entry(arguments).or_default() += times;
                    Ok(())
                })
            });
            self.memory.execute_batch("ROLLBACK")?;
            outcome?;
        }
        Ok(())
    }

    /// Applies deltas to the aggregate states of their groups, which are then as of the moment `now`.
    pub(crate) fn apply_deltas(
        &mut self,
        join: &AccumulatedJoin,
        now: i64,
        deltas: Deltas,
        changes: &Changes,
    ) -> Result<AggregateChange, KeyedError> {
        let plan = &join.plan;
        self.clock.set(now);
        let mut changed = Vec::new();
        let mut lost = HashSet::new();
        for (group, mut delta) in deltas.groups {
            delta.rows.retain(|_, times| *times != 0);
            if delta.rows.is_empty() {
                continue;
            }
            let before = self.stored_state(join, &group)?;
            let mut after = before.clone().unwrap_or_else(|| plan.new_state());
            // Rows that came are added first: an extreme that is there again was never lost.
            for comes in [true, false] {
                for (arguments, times) in delta.rows.iter().filter(|(_, times)| (**times > 0) == comes) {
                    after.add(&plan.aggregates, arguments, *times)?;
                }
            }
            if after.is_lost(&plan.aggregates) {
                lost.insert(group.clone());
            }
            changed.push(Changed { group, emit: delta.emit, before, after });
        }
        if !lost.is_empty() {
            let found = self.groups_anew(join, &lost, changes)?;
            for changed in changed.iter_mut().filter(|changed| lost.contains(&changed.group)) {
                // Rows that don't add up to the stored aggregate state reveal a corrupt state.
                let state = found.get(&changed.group).filter(|state| state.rows() == changed.after.rows());
                changed.after = state.cloned().ok_or(KeyedError::StateMismatch)?;
            }
        }
        changed.retain(|changed| changed.before.as_ref() != Some(&changed.after));
        let result_changes = self.result_changes(join, &changed)?;
        let kept = |state: &AggregateState| (plan.is_global || !state.is_empty()).then(|| state.text());
        let states = changed.iter().map(|changed| (group_text(&changed.group), kept(&changed.after)));
        Ok(AggregateChange { changes: result_changes, states: states.collect() })
    }

    fn stored_state(
        &mut self,
        join: &AccumulatedJoin,
        group: &[Datum],
    ) -> Result<Option<AggregateState>, KeyedError> {
        let mut statement =
            self.results.prepare_cached("SELECT state FROM accumulators WHERE join_id = ?1 AND grp = ?2")?;
        let text: Option<String> =
            statement.query_row(params![join.id.0, group_text(group)], |row| row.get(0)).optional()?;
        self.cost.steps += steps_of(&statement);
        match text {
            Some(text) => {
                let state = AggregateState::parse(&text, join.plan.aggregates.len());
                Ok(Some(state.ok_or(KeyedError::StateMismatch)?))
            }
            None if join.plan.is_global => Err(KeyedError::StateMismatch),
            None => Ok(None),
        }
    }

    /// Computes aggregate states from all rows of some groups.
    fn groups_anew(
        &mut self,
        join: &AccumulatedJoin,
        groups: &HashSet<Group>,
        changes: &Changes,
    ) -> Result<HashMap<Group, AggregateState>, KeyedError> {
        let (term, keyed) = join.group.as_ref().ok_or(KeyedError::LostExtreme)?;
        let values: Option<BTreeSet<Value>> =
            groups.iter().map(|group| Value::new(group[*term].as_value_ref())).collect();
        let values = values.ok_or(KeyedError::UnsupportedValue)?;
        let keys: Vec<AffectedKey> =
            values.into_iter().map(|value| AffectedKey { value, emit: Emit::Silent }).collect();
        let mut found: HashMap<Group, AggregateState> = HashMap::new();
        self.memory.execute_batch("BEGIN")?;
        let outcome = self.gather(keyed, &keys, View::Now(Some(changes))).and_then(|()| {
            self.query(&keyed.plan.sql, |row| {
                let (group, arguments) = join.plan.read(row)?;
                if groups.contains(&group) {
                    let state = found.entry(group).or_insert_with(|| join.plan.new_state());
                    state.add(&join.plan.aggregates, &arguments, 1)?;
                }
                Ok(())
            })
        });
        self.memory.execute_batch("ROLLBACK")?;
        outcome?;
        Ok(found)
    }

    /// Returns the results that change with the groups.
    fn result_changes(
        &mut self,
        join: &AccumulatedJoin,
        changed: &[Changed],
    ) -> Result<Vec<ResultChange<'static>>, KeyedError> {
        #[derive(Default)]
        struct Replaced {
            emit: Emit,
            old: Vec<String>,
            new: Vec<String>,
        }
        let plan = &join.plan;
        self.memory.execute_batch("BEGIN")?;
        let mut keys: BTreeMap<String, Replaced> = BTreeMap::new();
        let (mut key, mut object) = (String::new(), String::new());
        let outcome = self.fill(join, changed).and_then(|()| {
            self.query(&plan.results_sql, |row| {
                join.join.columns.write(row, &mut key, &mut object)?;
                let number: usize = row.get(join.join.columns.count())?;
                let replaced = keys.entry(key.clone()).or_default();
                replaced.emit = replaced.emit.max(changed[number / 2].emit);
                let rows = if number.is_multiple_of(2) { &mut replaced.old } else { &mut replaced.new };
                rows.push(object.clone());
                Ok(())
            })
        });
        self.memory.execute_batch("ROLLBACK")?;
        outcome?;

        let mut changes = Vec::new();
        let mut statement =
            self.results.prepare_cached("SELECT rows FROM results WHERE join_id = ?1 AND key = ?2")?;
        for (key, Replaced { emit, old, new }) in keys {
            let stored: Option<String> =
                statement.query_row(params![join.id.0, key], |row| row.get(0)).optional()?;
            let rows: Option<Vec<&RawValue>> =
                stored.as_deref().map_or(Some(Vec::new()), |stored| serde_json::from_str(stored).ok());
            let mut rows: Vec<&str> =
                rows.ok_or(KeyedError::StateMismatch)?.into_iter().map(RawValue::get).collect();
            for gone in &old {
                let position = rows.iter().position(|row| row == gone);
                // If a stored result doesn't follow from the aggregate state, full evaluation rebuilds both.
                rows.swap_remove(position.ok_or(KeyedError::StateMismatch)?);
            }
            rows.extend(new.iter().map(String::as_str));
            let rows = format!("[{}]", rows.join(","));
            let op = match &stored {
                Some(stored) if same_rows(stored, &rows) => continue,
                Some(_) if rows == "[]" => Op::Deleted,
                Some(_) => Op::Updated,
                None if rows == "[]" => continue,
                None => Op::Created,
            };
            let emit = join.join.emit(emit);
            changes.push(ResultChange { op, key: key.into(), rows: rows.into(), emit, window: None });
        }
        self.cost.steps += steps_of(&statement);
        Ok(changes)
    }

    /// Writes the groups before (even numbers) and after (odd numbers) into the table of aggregate states.
    fn fill(&mut self, join: &AccumulatedJoin, changed: &[Changed]) -> Result<(), KeyedError> {
        let plan = &join.plan;
        let marks = ", ?".repeat(plan.group_terms + plan.aggregates.len());
        let mut insert =
            self.memory.prepare_cached(&format!("INSERT INTO {} VALUES (?{marks})", plan.table))?;
        for (index, Changed { group, before, after, .. }) in changed.iter().enumerate() {
            for (number, state) in [(2 * index, before.as_ref()), (2 * index + 1, Some(after))] {
                let Some(state) = state.filter(|state| plan.is_global || !state.is_empty()) else { continue };
                let number = Datum::Integer(i64::try_from(number).map_err(|_| KeyedError::TooLarge)?);
                let results = state.results(&plan.aggregates);
                insert.execute(params_from_iter(std::iter::once(&number).chain(group).chain(&results)))?;
            }
        }
        self.cost.steps += steps_of(&insert);
        Ok(())
    }
}

/// A group that has changed.
struct Changed {
    group: Group,
    emit: Emit,
    before: Option<AggregateState>,
    after: AggregateState,
}

/// Computes the aggregate states of all groups from rows that come ordered by group.
pub(super) struct Accumulation<'a> {
    plan: &'a Accumulated,
    current: Option<(Group, AggregateState)>,
}

impl<'a> Accumulation<'a> {
    pub(super) fn new(plan: &'a Accumulated) -> Self {
        let current = plan.is_global.then(|| (Group::new(), plan.new_state()));
        Self { plan, current }
    }

    /// Adds a row. Returns the previous group and its aggregate state as texts if this row begins a new group.
    pub(super) fn add(&mut self, row: &Row<'_>) -> Result<Option<(String, String)>, KeyedError> {
        let (group, arguments) = self.plan.read(row)?;
        let complete = match &self.current {
            Some((current, _)) if *current == group => None,
            _ => self.end(),
        };
        let (_, state) = self.current.get_or_insert_with(|| (group, self.plan.new_state()));
        state.add(&self.plan.aggregates, &arguments, 1)?;
        Ok(complete)
    }

    /// Returns the last group and its aggregate state as texts.
    pub(super) fn end(&mut self) -> Option<(String, String)> {
        self.current.take().map(|(group, state)| (group_text(&group), state.text()))
    }
}
