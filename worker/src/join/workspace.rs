//! A workspace evaluates keyed joins: it finds the keys that changes can affect, gathers the rows of some keys into
//! tables in memory, runs the user's query on them, and compares the rows of the query with the stored results.

use std::path::Path;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, Row, params};

use super::TopicImage;
use super::budget::Budget;
use super::changes::{Changes, ShardChanges};
use super::climb::Climb;
use super::keyed::{
    AffectedKey, AffectedKeys, Evaluated, FailingKeys, KeyedError, KeyedJoin, LinkStep, Step,
};
use super::lookup::{Cost, Raw, look_up, lookup_failed, steps_of, value_of};
use super::now::QueryClock;
use super::plan::{Link, Matching};
use super::rows::{same_rows, write_value};
use super::time_step::TimeStep;
use super::value::Value;
use crate::fault::{self, Sabotage};
use crate::results::event::{Emit, Op, ResultChange};
use crate::storage::hash::shard_index;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::{self, SqliteError, quoted};
use crate::storage::topics::TopicId;

/// Rows that one batch of keys gathers at most.
const GATHERED_ROWS_MAX: usize = 200_000;

/// Bytes of gathered rows at most.
const GATHERED_BYTES_MAX: usize = 32 << 20;

/// The connections of one evaluating thread: readers of all shards, which see one cut, and a database in memory.
pub(crate) struct Workspace {
    pub(super) memory: Connection,
    budget: Budget,
    pub(super) clock: QueryClock,
    pub(super) readers: Vec<ShardReader>,
    pub(super) results: Connection,
    pub(super) cost: Cost,
}

/// The state of the topics in which rows are gathered.
#[derive(Debug, Clone, Copy)]
pub(super) enum View<'a> {
    /// The state that the readers see; rows in the changes, if given, need no look-up.
    Now(Option<&'a Changes>),
    /// The state before the changes, with the [`OldImages`] of each occurrence.
    Before(&'a Changes, &'a [OldImages<'a>]),
}

/// Old images of changed rows, by the value by which an occurrence is gathered; empty if that is the key.
pub(crate) type OldImages<'a> = HashMap<Value, Vec<(&'a str, TopicImage<'a>)>>;

impl<'a> View<'a> {
    /// Returns the image of a row, or `None` if it has to be looked up.
    fn row(&self, topic: TopicId, key: &str) -> Option<Option<(&'a str, TopicImage<'a>)>> {
        let (changes, is_old) = match self {
            Self::Now(changes) => ((*changes)?, false),
            Self::Before(changes, _) => (*changes, true),
        };
        let row = changes.row(topic, key)?;
        let image = if is_old { row.old } else { row.new };
        Some(image.map(|image| (row.key, image)))
    }

    /// Returns changed rows of occurrence `index` with this value that the readers no longer see.
    fn old(&self, index: usize, value: &Value) -> &'a [(&'a str, TopicImage<'a>)] {
        match self {
            Self::Now(_) => &[],
            Self::Before(_, old) => old[index].get(value).map_or(&[], Vec::as_slice),
        }
    }

    /// Returns whether a reader sees another image of the row than this view.
    fn hides(&self, topic: TopicId, key: ValueRef<'_>) -> bool {
        match self {
            Self::Now(_) => false,
            Self::Before(changes, _) => key.as_str().is_ok_and(|key| changes.row(topic, key).is_some()),
        }
    }
}

impl Workspace {
    /// Creates in `memory`, an empty database, the tables of `joins` and those that the statements `tables` create.
    pub(crate) fn new<'a>(
        mut memory: Connection,
        readers: Vec<ShardReader>,
        results: Connection,
        tables: impl Iterator<Item = String>,
        joins: impl Iterator<Item = &'a KeyedJoin>,
        steps_max: u64,
    ) -> rusqlite::Result<Self> {
        let budget = Budget::guard(&mut memory, steps_max, Arc::default())?;
        let clock = QueryClock::install(&memory)?;
        for table in tables {
            memory.execute_batch(&table)?;
        }
        for join in joins {
            for occurrence in &join.plan.occurrences {
                let table = &occurrence.table;
                memory.execute_batch(&super::check::gathered_table_sql(table))?;
                // The user's query looks rows up by the same expressions as `gather`.
                let is_linked = occurrence.from.iter().any(|link| matches!(link, Link::Parent { .. }));
                if is_linked && !occurrence.by.is_key() {
                    let index = quoted(&format!("{table}_by"));
                    memory.execute_batch(&format!(
                        "CREATE INDEX {index} ON {table} ({})",
                        occurrence.by.sql()
                    ))?;
                }
            }
        }
        Ok(Self { memory, budget, clock, readers, results, cost: Cost::default() })
    }

    /// Pins the state that the readers of shards see until [`Self::release`].
    pub(crate) fn hold(&self) -> Result<(), SqliteError> {
        self.readers.iter().try_for_each(ShardReader::hold)
    }

    /// Opens one read transaction on results.db for the whole epoch instead of one per look-up. Call it only after the
    /// write transaction has begun: an earlier reader would keep Litestream from restarting the WAL.
    pub(crate) fn hold_results(&self) -> Result<(), SqliteError> {
        let path = Path::new(self.results.path().unwrap_or_default());
        sqlite::hold(&self.results).map_err(|source| SqliteError::new(path, "begin to read", source))
    }

    pub(crate) fn release(&self) {
        self.readers.iter().for_each(ShardReader::release);
        sqlite::release(&self.results);
    }

    pub(crate) fn readers(&mut self) -> &mut [ShardReader] {
        &mut self.readers
    }

    /// Returns the cost since the last call.
    pub(crate) fn take_cost(&mut self) -> Cost {
        std::mem::take(&mut self.cost)
    }

    /// Returns the keys of the results that `changes` of a shard can affect, and the rows of this shard that a step of
    /// time makes due: perhaps too many, never too few.
    pub(crate) fn affected(
        &mut self,
        join: &KeyedJoin,
        shard: usize,
        changes: &ShardChanges,
        time: Option<&TimeStep>,
        keys_max: usize,
    ) -> Result<AffectedKeys, KeyedError> {
        let mut cost = Cost::default();
        let mut climb = Climb {
            join,
            readers: &self.readers,
            seen: vec![HashMap::new(); join.steps.len()],
            keys: AffectedKeys::default(),
            keys_max,
            cost: &mut cost,
        };
        for (index, step) in join.steps.iter().enumerate() {
            if fault::sabotaged(Sabotage::DropKeyQuery) && index > 0 && index + 1 == join.steps.len() {
                continue;
            }
            let mut by = step.by.as_deref().map(|sql| self.memory.prepare_cached(sql)).transpose()?;
            for row in changes.rows(step.topic) {
                let emit = if row.expired { Emit::UnlessGone } else { Emit::Event };
                match &mut by {
                    None => climb.up(index, Value::Text(row.key.into()), emit)?,
                    Some(by) => {
                        let old = row.old.filter(|_| !fault::sabotaged(Sabotage::NoOldImages));
                        for image in old.into_iter().chain(row.new) {
                            climb.up(index, value_of(by, row.key, image)?, emit)?;
                        }
                    }
                }
            }
            if let Some(by) = &by {
                climb.cost.steps += steps_of(by);
            }
            let ranges = time.into_iter().flat_map(|time| &time.ranges);
            for (due, range) in step.due.iter().zip(ranges) {
                if let (Some(due), Some((least, greatest))) = (due, range) {
                    climb.due(index, shard, due, [least, greatest])?;
                }
            }
        }
        let keys = climb.keys;
        self.cost += cost;
        Ok(keys)
    }

    /// Evaluates the results of some keys as of the moment `now` and appends to `found` each that differs from the
    /// stored one. Rows in `known` need no look-up. A key whose evaluation fails is noted there, and holds up no other;
    /// those of `failing` are evaluated one by one.
    pub(crate) fn evaluate(
        &mut self,
        join: &KeyedJoin,
        now: i64,
        keys: &[AffectedKey],
        known: Option<&Changes>,
        failing: &FailingKeys,
        found: &mut Evaluated,
    ) -> Result<(), KeyedError> {
        if failing.is_empty() {
            return self.evaluate_apart(join, now, keys, known, found);
        }
        let (suspect, sound): (Vec<AffectedKey>, Vec<AffectedKey>) =
            keys.iter().cloned().partition(|key| failing.contains_key(&key.value));
        self.evaluate_apart(join, now, &sound, known, found)?;
        for key in suspect {
            let failed = found.failed.len();
            self.evaluate_apart(join, now, std::slice::from_ref(&key), known, found)?;
            if found.failed.len() == failed {
                found.mended.push(key.value);
            }
        }
        Ok(())
    }

    /// Evaluates keys together; where the query fails, one half after the other, down to the keys that fail by themselves.
    fn evaluate_apart(
        &mut self,
        join: &KeyedJoin,
        now: i64,
        keys: &[AffectedKey],
        known: Option<&Changes>,
        found: &mut Evaluated,
    ) -> Result<(), KeyedError> {
        match (self.evaluate_together(join, now, keys, known, &mut found.changes), keys) {
            (Err(KeyedError::Query { message }), [key]) => {
                found.failed.push((key.value.clone(), message));
                Ok(())
            }
            (Err(KeyedError::Query { .. }), [_, _, ..]) => {
                let (first, second) = keys.split_at(keys.len() / 2);
                self.evaluate_apart(join, now, first, known, found)?;
                self.evaluate_apart(join, now, second, known, found)
            }
            (outcome, _) => outcome,
        }
    }

    fn evaluate_together(
        &mut self,
        join: &KeyedJoin,
        now: i64,
        keys: &[AffectedKey],
        known: Option<&Changes>,
        found: &mut Vec<ResultChange<'static>>,
    ) -> Result<(), KeyedError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.clock.set(now);
        self.memory.execute_batch("BEGIN")?;
        let outcome = self.gather(join, keys, View::Now(known)).and_then(|()| self.run(join, keys));
        // A rollback empties the tables of gathered rows at the price of a few pages.
        self.memory.execute_batch("ROLLBACK")?;
        let fresh = outcome?;
        self.compare(join, keys, fresh, found)
    }

    /// Returns the old images of changed rows for each occurrence.
    pub(crate) fn old_images<'c>(
        &mut self,
        join: &KeyedJoin,
        changes: &'c Changes,
    ) -> Result<Vec<OldImages<'c>>, KeyedError> {
        let mut all = Vec::with_capacity(join.steps.len());
        for step in &join.steps {
            let mut images = OldImages::new();
            if let Some(by) = &step.by {
                let mut by = self.memory.prepare_cached(by)?;
                for row in changes.rows(step.topic) {
                    if let Some(old) = row.old {
                        images.entry(value_of(&mut by, row.key, old)?).or_default().push((row.key, old));
                    }
                }
                self.cost.steps += steps_of(&by);
            }
            all.push(images);
        }
        Ok(all)
    }

    /// Inserts the rows that belong to some keys into the tables of their occurrences.
    pub(super) fn gather(
        &mut self,
        join: &KeyedJoin,
        keys: &[AffectedKey],
        view: View<'_>,
    ) -> Result<(), KeyedError> {
        let Self { memory, readers, cost, .. } = self;
        let (mut rows, mut bytes) = (0, 0);
        for (index, step) in join.steps.iter().enumerate() {
            if fault::sabotaged(Sabotage::MissingOccurrence) && index > 0 && index + 1 == join.steps.len() {
                continue;
            }
            let mut insert = memory.prepare_cached(&step.insert)?;
            let mut put = |key: ValueRef<'_>, row: &Row<'_>| -> Result<(), KeyedError> {
                if view.hides(step.topic, key) {
                    return Ok(());
                }
                let payload = row.get_ref(1)?;
                rows += 1;
                bytes += key.as_str().map_or(0, str::len) + payload.as_str().map_or(0, str::len);
                if rows > GATHERED_ROWS_MAX || bytes > GATHERED_BYTES_MAX {
                    return Err(KeyedError::TooLarge);
                }
                insert.execute(params![
                    Raw(key),
                    Raw(payload),
                    Raw(row.get_ref(2)?),
                    Raw(row.get_ref(3)?)
                ])?;
                Ok(())
            };
            let linked = linked_values(memory, step, cost)?;
            let from_keys = step.links.iter().any(|link| matches!(link, LinkStep::Keys));
            let mut statements = readers
                .iter()
                .map(|reader| reader.prepare(&step.rows).map_err(|source| lookup_failed(reader, source)))
                .collect::<Result<Vec<_>, _>>()?;
            let own = from_keys.then_some(keys).into_iter().flatten().map(|key| &key.value);
            let mut known_rows: Vec<(&str, TopicImage<'_>)> = Vec::new();
            for value in own.chain(&linked) {
                if step.by.is_some() {
                    for (statement, reader) in statements.iter_mut().zip(readers.iter()) {
                        cost.probes += 1;
                        look_up(statement, reader, value, &mut put)?;
                    }
                    known_rows.extend(view.old(index, value));
                } else if let Value::Text(key) = value {
                    if let Some(row) = view.row(step.topic, key) {
                        known_rows.extend(row);
                        continue;
                    }
                    cost.probes += 1;
                    let shard = shard_index(key, readers.len());
                    look_up(&mut statements[shard], &readers[shard], value, &mut put)?;
                }
            }
            cost.steps += statements.iter().map(|statement| steps_of(statement)).sum::<u64>();
            for (key, image) in known_rows {
                rows += 1;
                bytes += key.len() + image.payload.len();
                if rows > GATHERED_ROWS_MAX || bytes > GATHERED_BYTES_MAX {
                    return Err(KeyedError::TooLarge);
                }
                insert.execute(params![key, image.payload, image.timestamp, image.change])?;
            }
            cost.steps += steps_of(&insert);
        }
        Ok(())
    }

    /// Runs the user's query on the gathered rows. Returns its rows by result key, as JSON.
    fn run(&mut self, join: &KeyedJoin, keys: &[AffectedKey]) -> Result<HashMap<String, String>, KeyedError> {
        let wanted: HashSet<&Value> = keys.iter().map(|key| &key.value).collect();
        let columns = &join.join.columns;
        let mut fresh: HashMap<String, String> = HashMap::new();
        let (mut key, mut object) = (String::new(), String::new());
        let mut bytes = 0;
        self.query(&join.plan.sql, |row| {
            let value = row.get_ref(columns.key_column())?;
            if !Value::new(value).is_some_and(|value| wanted.contains(&value)) {
                return Ok(());
            }
            columns.write(row, &mut key, &mut object)?;
            bytes += object.len();
            if bytes > GATHERED_BYTES_MAX {
                return Err(KeyedError::TooLarge);
            }
            match fresh.get_mut(&key) {
                Some(rows) => {
                    rows.push(',');
                    rows.push_str(&object);
                }
                None => {
                    let mut rows = String::with_capacity(object.len() + 2);
                    rows.push('[');
                    rows.push_str(&object);
                    fresh.insert(key.clone(), rows);
                }
            }
            Ok(())
        })?;
        fresh.values_mut().for_each(|rows| rows.push(']'));
        Ok(fresh)
    }

    /// Runs a user's query on the tables in memory, within its budget.
    pub(super) fn query(
        &mut self,
        sql: &str,
        mut each: impl FnMut(&Row<'_>) -> Result<(), KeyedError>,
    ) -> Result<(), KeyedError> {
        let steps = self.budget.steps_max();
        let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => KeyedError::StepLimit { steps },
            _ => KeyedError::Query { message: SqliteError::message_of(&source) },
        };
        let mut statement = self.memory.prepare_cached(sql).map_err(failed)?;
        self.budget.open();
        let mut work = || -> Result<(), KeyedError> {
            let mut rows = statement.query([]).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                each(row)?;
            }
            Ok(())
        };
        let outcome = work();
        self.budget.close();
        self.cost.steps += steps_of(&statement);
        outcome
    }

    fn compare(
        &mut self,
        join: &KeyedJoin,
        keys: &[AffectedKey],
        mut fresh: HashMap<String, String>,
        found: &mut Vec<ResultChange<'static>>,
    ) -> Result<(), KeyedError> {
        let mut statement =
            self.results.prepare_cached("SELECT rows FROM results WHERE join_id = ?1 AND key = ?2")?;
        let mut key = String::new();
        for AffectedKey { value, emit } in keys {
            for spelling in value.spellings() {
                key.clear();
                write_value(&mut key, spelling);
                let new = fresh.remove(&key);
                let mut stored = statement.query(params![join.id.0, key])?;
                let old = stored.next()?.map(|row| row.get_ref(0)).transpose()?;
                let old = old.map(|old| old.as_str()).transpose().map_err(rusqlite::Error::from)?;
                let (op, rows) = match (old, new) {
                    (None, None) => continue,
                    (Some(old), Some(new)) if same_rows(old, &new) => continue,
                    (Some(_), Some(new)) => (Op::Updated, new),
                    (None, Some(new)) => (Op::Created, new),
                    (Some(_), None) => (Op::Deleted, "[]".to_owned()),
                };
                let emit = join.join.emit(*emit);
                found.push(ResultChange {
                    op,
                    key: key.clone().into(),
                    rows: rows.into(),
                    emit,
                    window: None,
                });
            }
        }
        self.cost.steps += steps_of(&statement);
        Ok(())
    }
}

/// Returns the values by which the rows of an occurrence are looked up, from the gathered rows of its parents. The
/// values are sorted: neighbours in the files are found at less cost.
fn linked_values(memory: &Connection, step: &Step, cost: &mut Cost) -> Result<Vec<Value>, KeyedError> {
    let mut linked: Vec<Value> = Vec::new();
    for link in &step.links {
        let LinkStep::Parent { gathered, matching, .. } = link else { continue };
        let mut statement = memory.prepare_cached(gathered)?;
        let mut values = statement.query([])?;
        while let Some(row) = values.next()? {
            let value = Value::new(row.get_ref(0)?).ok_or(KeyedError::UnsupportedValue)?;
            if let (Matching::AsText, Value::Text(text)) = (matching, &value) {
                linked.extend(Value::as_number(text));
            }
            if value != Value::Null {
                linked.push(value);
            }
        }
        drop(values);
        cost.steps += steps_of(&statement);
    }
    linked.sort_unstable();
    linked.dedup();
    Ok(linked)
}
