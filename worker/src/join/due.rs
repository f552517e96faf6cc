//! Rows whose comparison with the clock may have turned out differently since the results were last evaluated, found by
//! the indexes of time bounds.
//!
//! ```text
//! values:  the clock's side of each bound, at the moment of the results and now
//! next:    by bound, the least value of a row that the clock has not passed: one seek a shard, then remembered
//! step:    by bound, the range of the values that the clock has passed ─► the rows in it are due
//! ```
//! A step that would make too many rows due at once ends at an earlier moment, so that other joins stay current while
//! the rows of a long outage expire.

use std::cmp::Ordering;

use super::index;
use super::keyed::KeyedError;
use super::lookup::{lookup_failed, steps_of};
use super::plan::{Ends, TimeBound};
use super::time_step::{TimePassed, TimeStep};
use super::value::Value;
use super::workspace::Workspace;

/// Rows that one step of time makes due at most, as far as they don't all fall due in one second; few in debug builds,
/// so that tests reach the limit.
pub(crate) const DUE_MAX: u64 = if cfg!(debug_assertions) { 64 } else { 16_384 };

/// The statements for the time bounds of one join.
#[derive(Debug)]
pub(crate) struct TimeBounds {
    /// The query for the clock's side of all bounds.
    clock: String,
    bounds: Vec<BoundStatements>,
}

#[derive(Debug)]
struct BoundStatements {
    ends: Ends,
    /// The query for the number of rows in a range, up to a limit.
    count: String,
    /// The query for the least value of a row that the clock has not passed.
    next: String,
}

impl TimeBounds {
    /// Returns `None` for a join without time bounds.
    pub(crate) fn new(bounds: &[TimeBound]) -> Option<Self> {
        let clocks: Vec<&str> = bounds.iter().map(|bound| bound.clock.as_str()).collect();
        let statements = |bound: &TimeBound| {
            let index = index(&bound.topic, &bound.by);
            let (lower, upper) = bound.ends.comparisons();
            // A row with the very value of the clock has been passed where its comparison has already changed.
            let ahead = if bound.ends == Ends::Upper { ">" } else { ">=" };
            BoundStatements {
                ends: bound.ends,
                count: index.count_between(lower, upper),
                next: index.least(ahead),
            }
        };
        (!bounds.is_empty()).then(|| Self {
            clock: format!("SELECT {}", clocks.join(", ")),
            bounds: bounds.iter().map(statements).collect(),
        })
    }
}

impl Workspace {
    /// Returns the clock's side of each bound at a moment.
    pub(crate) fn clock_values(&mut self, bounds: &TimeBounds, at: i64) -> Result<Vec<Value>, KeyedError> {
        self.clock.set(at);
        let mut statement = self.memory.prepare_cached(&bounds.clock)?;
        let values = statement.query_row([], |row| {
            let value = |column| Ok(Value::new(row.get_ref(column)?));
            (0..bounds.bounds.len()).map(value).collect::<rusqlite::Result<Vec<_>>>()
        })?;
        self.cost.steps += steps_of(&statement);
        values.into_iter().map(|value| value.ok_or(KeyedError::UnsupportedValue)).collect()
    }

    /// Returns by bound the least value of a row that the clock has not passed.
    pub(crate) fn next_values(
        &mut self,
        bounds: &TimeBounds,
        values: &[Value],
    ) -> Result<Vec<Option<Value>>, KeyedError> {
        let mut all = Vec::with_capacity(values.len());
        for (bound, value) in bounds.bounds.iter().zip(values) {
            let mut least: Option<Value> = None;
            for reader in &self.readers {
                let failed = |source| lookup_failed(reader, source);
                let mut statement = reader.prepare(&bound.next).map_err(failed)?;
                let mut rows = statement.query([value]).map_err(failed)?;
                if let Some(row) = rows.next().map_err(failed)?
                    // The index holds NULL as a BLOB behind all other values.
                    && let Some(found) = Value::new(row.get_ref(0).map_err(failed)?)
                    && least.as_ref().is_none_or(|least| found.order(least) == Ordering::Less)
                {
                    least = Some(found);
                }
                drop(rows);
                self.cost.probes += 1;
                self.cost.steps += steps_of(&statement);
            }
            all.push(least.filter(|_| *value != Value::Null));
        }
        Ok(all)
    }

    /// Returns whether the clock has passed any row between its sides `from` and `to`, where `next` follows from `from`.
    pub(crate) fn has_passed(
        &mut self,
        bounds: &TimeBounds,
        from: &[Value],
        to: &[Value],
        next: &[Option<Value>],
    ) -> Result<bool, KeyedError> {
        for (index, bound) in bounds.bounds.iter().enumerate() {
            let (from, to) = (&from[index], &to[index]);
            if from == to {
                continue;
            }
            let is_due = match (from, to, &next[index]) {
                (Value::Null, ..) | (_, Value::Null, _) => true,
                _ if to.order(from) == Ordering::Less => self.count(bound, to, from, 1)? > 0,
                (.., None) => false,
                (_, to, Some(next)) => match next.order(to) {
                    Ordering::Less => true,
                    Ordering::Equal => bound.ends != Ends::Lower,
                    Ordering::Greater => false,
                },
            };
            if is_due {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the step from a moment, with the clock's side of each bound if known, to another moment; to an earlier one if
    /// more than `due_max` rows were due.
    pub(crate) fn time_step(
        &mut self,
        bounds: &TimeBounds,
        values: Option<&[Value]>,
        from: i64,
        to: i64,
        due_max: u64,
    ) -> Result<TimePassed, KeyedError> {
        let before = values.map_or_else(|| self.clock_values(bounds, from), |values| Ok(values.to_vec()))?;
        if from == to {
            let ranges = vec![None; before.len()];
            return Ok(TimePassed::Step(TimeStep { from, to, values: before, ranges }));
        }
        let Some((step, due)) = self.step(bounds, &before, from, to, due_max)? else {
            return Ok(TimePassed::Everything);
        };
        if due <= due_max {
            return Ok(TimePassed::Step(step));
        }
        // The first second is taken whole. `few` is a moment up to which few rows are due, `many` one with too many.
        let direction = (to - from).signum();
        let (mut few, mut many) = (1, (to - from).abs());
        let mut best = None;
        while few + 1 < many {
            let middle = few + (many - few) / 2;
            match self.step(bounds, &before, from, from + direction * middle, due_max)? {
                Some((step, due)) if due <= due_max => {
                    few = middle;
                    best = Some(step);
                }
                Some(_) => many = middle,
                None => return Ok(TimePassed::Everything),
            }
        }
        match best {
            Some(step) => Ok(TimePassed::Step(step)),
            None => {
                let first = self.step(bounds, &before, from, from + direction, due_max)?;
                Ok(first.map_or(TimePassed::Everything, |(step, _)| TimePassed::Step(step)))
            }
        }
    }

    /// Returns a step and the number of its due rows, up to one more than `due_max`; `None` if it concerns every row.
    fn step(
        &mut self,
        bounds: &TimeBounds,
        before: &[Value],
        from: i64,
        to: i64,
        due_max: u64,
    ) -> Result<Option<(TimeStep, u64)>, KeyedError> {
        let values = self.clock_values(bounds, to)?;
        let mut ranges = Vec::with_capacity(values.len());
        let mut due = 0;
        for (bound, (before, value)) in bounds.bounds.iter().zip(before.iter().zip(&values)) {
            if before == value {
                ranges.push(None);
                continue;
            }
            if *before == Value::Null || *value == Value::Null {
                return Ok(None);
            }
            let is_back = value.order(before) == Ordering::Less;
            let (least, greatest) = if is_back { (value, before) } else { (before, value) };
            let found = self.count(bound, least, greatest, due_max + 1)?;
            due += found;
            ranges.push((found > 0).then(|| (least.clone(), greatest.clone())));
        }
        Ok(Some((TimeStep { from, to, values, ranges }, due)))
    }

    /// Counts the rows of a range, up to `max`.
    fn count(
        &mut self,
        bound: &BoundStatements,
        least: &Value,
        greatest: &Value,
        max: u64,
    ) -> Result<u64, KeyedError> {
        let mut count = 0;
        for reader in &self.readers {
            let failed = |source| lookup_failed(reader, source);
            let mut statement = reader.prepare(&bound.count).map_err(failed)?;
            let limit = (max - count).cast_signed();
            count += statement
                .query_row(rusqlite::params![least, greatest, limit], |row| row.get::<_, u64>(0))
                .map_err(failed)?;
            self.cost.probes += 1;
            self.cost.steps += steps_of(&statement);
            if count >= max {
                break;
            }
        }
        Ok(count)
    }
}
