//! The database in memory on which the query of a window is run: a table with the name of its topic, and in it the rows of
//! one frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::functions::FunctionFlags;
use rusqlite::{CachedStatement, Connection, ErrorCode, Params, Row, params};

use super::grid::Grid;
use super::{CheckedWindow, Frame};
use crate::join::CheckedJoin;
use crate::join::budget::{Budget, STEPS_MAX};
use crate::join::check::frame_table_sql;
use crate::join::keyed::KeyedError;
use crate::join::lookup::{Cost, Raw, steps_of};
use crate::join::plan::window::{BOUNDS, PANE};
use crate::storage::sqlite::{SqliteError, open_memory, quoted};

/// Rows of one frame that are evaluated together at most.
const ROWS_MAX: u64 = 2_000_000;

/// Bytes of these rows at most.
const BYTES_MAX: usize = 256 << 20;

/// The tables of one window.
pub(super) struct FrameSpace {
    connection: Connection,
    budget: Budget,
    bounds: [Arc<AtomicI64>; 2],
    insert: String,
    clear: String,
    rows: u64,
    bytes: usize,
    pub(super) cost: Cost,
}

impl FrameSpace {
    pub(super) fn new(window: &CheckedWindow, grid: Option<&Grid>) -> rusqlite::Result<Self> {
        let mut connection = open_memory()?;
        connection.set_prepared_statement_cache_capacity(64);
        let budget = Budget::guard(&mut connection, STEPS_MAX, Arc::default())?;
        let bounds = install(&connection, grid)?;
        let table = quoted(&window.topic);
        connection.execute_batch(&frame_table_sql(&table))?;
        if let Some(view) = &window.view {
            connection.execute_batch(view)?;
        }
        if let Some(aggregates) = &window.aggregates {
            connection.execute_batch(&aggregates.plan.table_sql())?;
        }
        Ok(Self {
            connection,
            budget,
            bounds,
            insert: format!("INSERT OR REPLACE INTO {table} VALUES (?1, ?2, ?3, ?4, ?5, ?6)"),
            clear: format!("DELETE FROM {table}"),
            rows: 0,
            bytes: 0,
            cost: Cost::default(),
        })
    }

    /// Empties the table and sets the frame of the rows that follow.
    pub(super) fn begin(&mut self, frame: Frame) -> Result<(), KeyedError> {
        self.bounds[0].store(frame.start, Ordering::Relaxed);
        self.bounds[1].store(frame.end, Ordering::Relaxed);
        if self.connection.is_autocommit() {
            // Never committed: what is in memory has nothing to lose, and each commit would look at all of its pages.
            self.connection.execute_batch("BEGIN")?;
        }
        if self.rows > 0 {
            self.connection.prepare_cached(&self.clear)?.execute([])?;
        }
        (self.rows, self.bytes) = (0, 0);
        Ok(())
    }

    /// Adds a row that a reader has found: key, payload, timestamp, `_change`.
    pub(super) fn add(&mut self, row: &Row<'_>) -> Result<(), KeyedError> {
        let payload = row.get_ref(1)?;
        self.count(payload.as_str().map_or(0, str::len))?;
        let [start, end] = self.bounds.each_ref().map(|bound| bound.load(Ordering::Relaxed));
        let (key, timestamp, change) = (row.get_ref(0)?, row.get_ref(2)?, row.get_ref(3)?);
        self.connection.prepare_cached(&self.insert)?.execute(params![
            Raw(key),
            Raw(payload),
            Raw(timestamp),
            Raw(change),
            start,
            end
        ])?;
        Ok(())
    }

    /// Returns the number of rows in the table.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Runs a user's query on the tables, within its budget.
    pub(super) fn query(
        &mut self,
        sql: &str,
        mut each: impl FnMut(&Row<'_>) -> Result<(), KeyedError>,
    ) -> Result<(), KeyedError> {
        let failed = |source| query_failed(&self.budget, &source);
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
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

    /// Prepares a query for rows that are given to it one by one.
    pub(super) fn row_query(&mut self, sql: &str) -> Result<RowQuery<'_>, KeyedError> {
        let statement = self.connection.prepare_cached(sql)?;
        self.budget.open();
        Ok(RowQuery { statement, budget: &self.budget, cost: &mut self.cost })
    }

    /// Runs the window's query; `each` gets the JSON of a row's key column, and of the row.
    pub(super) fn evaluate(
        &mut self,
        join: &CheckedJoin,
        mut each: impl FnMut(&str, &str),
    ) -> Result<(), KeyedError> {
        let (mut key, mut object) = (String::new(), String::new());
        self.query(&join.sql, |row| {
            join.columns.write(row, &mut key, &mut object)?;
            each(&key, &object);
            Ok(())
        })
    }

    fn count(&mut self, bytes: usize) -> Result<(), KeyedError> {
        self.rows += 1;
        self.bytes += bytes;
        if self.rows > ROWS_MAX || self.bytes > BYTES_MAX { Err(KeyedError::TooLarge) } else { Ok(()) }
    }
}

/// A query over one row, whose key, payload and timestamp are its parameters.
pub(super) struct RowQuery<'s> {
    statement: CachedStatement<'s>,
    budget: &'s Budget,
    cost: &'s mut Cost,
}

impl RowQuery<'_> {
    /// Returns what `read` makes of the row that comes of a row of the topic; `None` if none does.
    pub(super) fn run<T>(
        &mut self,
        parameters: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, KeyedError>,
    ) -> Result<Option<T>, KeyedError> {
        let failed = |source| query_failed(self.budget, &source);
        let mut rows = self.statement.query(parameters).map_err(failed)?;
        rows.next().map_err(failed)?.map(read).transpose()
    }
}

impl Drop for RowQuery<'_> {
    fn drop(&mut self) {
        self.budget.close();
        self.cost.steps += steps_of(&self.statement);
    }
}

fn query_failed(budget: &Budget, source: &rusqlite::Error) -> KeyedError {
    match source.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => KeyedError::StepLimit { steps: budget.steps_max() },
        _ => KeyedError::Query { message: SqliteError::message_of(source) },
    }
}

/// Adds the functions that stand for the bounds of a frame, and the function of a pane if there is a grid.
pub(crate) fn install(connection: &Connection, grid: Option<&Grid>) -> rusqlite::Result<[Arc<AtomicI64>; 2]> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    let bounds = [Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0))];
    for (bound, (_, call)) in bounds.iter().zip(BOUNDS) {
        let bound = Arc::clone(bound);
        let name = call.trim_end_matches("()");
        connection.create_scalar_function(name, 0, flags, move |_| Ok(bound.load(Ordering::Relaxed)))?;
    }
    if let Some(grid) = grid.cloned() {
        let known: std::sync::Mutex<Option<Frame>> = std::sync::Mutex::default();
        let flags = flags | FunctionFlags::SQLITE_DETERMINISTIC;
        connection.create_scalar_function(PANE, 1, flags, move |context| {
            let Ok(time) = context.get_raw(0).as_i64() else { return Ok(None) };
            // Most rows are in the pane of the row before.
            let mut known = known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let pane = known.filter(|pane| pane.start <= time && time < pane.end);
            let pane = pane.unwrap_or_else(|| grid.pane(time));
            *known = Some(pane);
            Ok(Some(pane.start))
        })?;
    }
    Ok(bounds)
}
