//! Frames and panes of windows in `results.db`, written in the transaction of the results that follow from them.
//!
//! ```text
//! watermarks(join_id, basis, watermark)                how far the time of a window has come, and how its time is cut
//! sure_times(join_id, clock, partition, newest)        event times of sources that are stored with all before them
//! frames(join_id, grp, start, end, is_closed, is_due)  frames that hold rows and are not frozen yet
//! panes(join_id, start, grp, state)                    aggregate states of the groups of a pane
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::types::Value;
use rusqlite::{
    Connection, OptionalExtension, Row, Statement, StatementStatus, ToSql, params, params_from_iter,
};

use super::event::JoinId;
use super::store::{EpochWriter, Results};
use crate::storage::sqlite::SqliteError;

/// A stretch of time, in seconds since the Unix epoch; the end is not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Frame {
    pub(crate) start: i64,
    pub(crate) end: i64,
}

/// A frame that is not frozen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredFrame {
    /// The value that its rows have in common; an empty BLOB stands for NULL.
    pub(crate) group: Value,
    pub(crate) frame: Frame,
    pub(crate) is_closed: bool,
}

/// A stored result of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredResult {
    /// The result key as JSON.
    pub(crate) key: String,
    pub(crate) rows: String,
    /// The frame as JSON.
    pub(crate) window: Option<String>,
}

impl Results {
    /// Copies from another file what is known of the frames of a window, and its results up to the end `frozen`.
    pub(crate) fn copy_window(
        &self,
        from: &Connection,
        join: JoinId,
        frozen: Option<i64>,
    ) -> Result<(), SqliteError> {
        self.doing("copy a window", |connection| {
            let transaction = connection.transaction()?;
            for (table, filter) in [
                ("watermarks", "?2 IS ?2"),
                ("sure_times", "?2 IS ?2"),
                ("frames", "?2 IS ?2"),
                ("results", "window->>'end' <= ?2"),
            ] {
                let sql = format!("SELECT * FROM {table} WHERE join_id = ?1 AND {filter}");
                let mut statement = from.prepare(&sql)?;
                let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
                let values = vec!["?"; columns.len()].join(", ");
                let sql = format!("INSERT INTO {table} ({}) VALUES ({values})", columns.join(", "));
                let mut insert = transaction.prepare(&sql)?;
                let mut rows = statement.query(params![join.0, frozen])?;
                while let Some(row) = rows.next()? {
                    let values = (0..columns.len()).map(|index| row.get::<_, Value>(index));
                    insert.execute(params_from_iter(values.collect::<rusqlite::Result<Vec<_>>>()?))?;
                }
            }
            transaction.commit()
        })
    }
}

impl EpochWriter<'_> {
    /// Returns whether the frames of a window are stored on this basis.
    pub(crate) fn stands_on(&self, join: JoinId, basis: &str) -> Result<bool, SqliteError> {
        self.doing("read a watermark", || {
            let sql = "SELECT 1 FROM watermarks WHERE join_id = ?1 AND basis = ?2";
            self.transaction.prepare_cached(sql)?.exists(params![join.0, basis])
        })
    }

    /// Returns how far a window has come on this basis.
    pub(crate) fn watermark(&self, join: JoinId, basis: &str) -> Result<Option<i64>, SqliteError> {
        self.doing("read a watermark", || {
            let sql = "SELECT watermark FROM watermarks WHERE join_id = ?1 AND basis = ?2";
            let read = |row: &Row<'_>| row.get(0);
            Ok(self.query_row(sql, params![join.0, basis], read).optional()?.flatten())
        })
    }

    /// Notes how far a window has come on this basis; `None` before its first time.
    pub(crate) fn set_watermark(
        &mut self,
        join: JoinId,
        basis: &str,
        watermark: Option<i64>,
    ) -> Result<(), SqliteError> {
        let sql = "INSERT OR REPLACE INTO watermarks (join_id, basis, watermark) VALUES (?1, ?2, ?3)";
        self.execute("store a watermark", sql, params![join.0, basis, watermark])
    }

    /// Returns the newest sure event time of each partition of a source, by this clock.
    pub(crate) fn sure_times(
        &self,
        join: JoinId,
        clock: &str,
    ) -> Result<BTreeMap<Arc<str>, i64>, SqliteError> {
        self.doing("read event times", || {
            let sql = "SELECT partition, newest FROM sure_times WHERE join_id = ?1 AND clock = ?2";
            let read = |row: &Row<'_>| Ok((Arc::from(row.get_ref(0)?.as_str()?), row.get(1)?));
            Ok(self.query_map(sql, params![join.0, clock], read)?.into_iter().collect())
        })
    }

    /// Stores the newest sure event time of a partition.
    pub(crate) fn set_sure_time(
        &mut self,
        join: JoinId,
        clock: &str,
        partition: &str,
        newest: i64,
    ) -> Result<(), SqliteError> {
        let sql =
            "INSERT OR REPLACE INTO sure_times (join_id, clock, partition, newest) VALUES (?1, ?2, ?3, ?4)";
        self.execute("store an event time", sql, params![join.0, clock, partition, newest])
    }

    /// Forgets the event times of a window by other clocks.
    pub(crate) fn forget_other_clocks(&mut self, join: JoinId, clock: &str) -> Result<(), SqliteError> {
        let sql = "DELETE FROM sure_times WHERE join_id = ?1 AND clock <> ?2";
        self.execute("forget event times", sql, params![join.0, clock])
    }

    /// Forgets all frames of a window.
    pub(crate) fn remove_frames(&mut self, join: JoinId) -> Result<(), SqliteError> {
        self.execute("remove frames", "DELETE FROM frames WHERE join_id = ?1", [join.0])
    }

    /// Notes a frame that holds rows; one that is there becomes due if `is_due`.
    pub(crate) fn add_frame(
        &mut self,
        join: JoinId,
        group: &dyn ToSql,
        frame: Frame,
        is_closed: bool,
        is_due: bool,
    ) -> Result<(), SqliteError> {
        let sql =
            "INSERT INTO frames (join_id, grp, start, end, is_closed, is_due) VALUES (?1, ifnull(?2, x''), ?3, ?4, ?5, ?6)
                   ON CONFLICT DO UPDATE SET end = excluded.end, is_closed = excluded.is_closed,
                                             is_due = max(is_due, excluded.is_due)";
        let Frame { start, end } = frame;
        self.execute("store a frame", sql, params![join.0, group, start, end, is_closed, is_due])
    }

    /// Forgets a frame.
    pub(crate) fn remove_frame(
        &mut self,
        join: JoinId,
        group: &dyn ToSql,
        start: i64,
    ) -> Result<(), SqliteError> {
        let sql = "DELETE FROM frames WHERE join_id = ?1 AND grp = ifnull(?2, x'') AND start = ?3";
        self.execute("remove a frame", sql, params![join.0, group, start])
    }

    /// Returns the frames of a group that begin at or before `to` and end at or after `from`, where no two overlap.
    pub(crate) fn frames_near(
        &self,
        join: JoinId,
        group: &dyn ToSql,
        from: i64,
        to: i64,
    ) -> Result<Vec<StoredFrame>, SqliteError> {
        self.doing("read frames", || {
            let sql = "SELECT grp, start, end, is_closed FROM frames WHERE join_id = ?1 AND grp = ifnull(?2, x'') AND start <= ?3
                       ORDER BY start DESC";
            let mut statement = self.transaction.prepare_cached(sql)?;
            let mut rows = statement.query(params![join.0, group, to])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let frame = read_frame(row)?;
                if frame.frame.end < from {
                    break;
                }
                found.push(frame);
            }
            drop(rows);
            self.count(&statement);
            found.reverse();
            Ok(found)
        })
    }

    /// Returns the start of the first frame of a group that ends after a moment.
    pub(crate) fn first_start(
        &self,
        join: JoinId,
        group: &dyn ToSql,
        moment: i64,
    ) -> Result<Option<i64>, SqliteError> {
        self.doing("read frames", || {
            let sql =
                "SELECT start FROM frames WHERE join_id = ?1 AND grp = ifnull(?2, x'') AND end > ?3 ORDER BY start LIMIT 1";
            self.query_row(sql, params![join.0, group, moment], |row| row.get(0)).optional()
        })
    }

    /// Closes the frames whose end the watermark has reached, which makes them due.
    pub(crate) fn close_frames(&mut self, join: JoinId, watermark: i64) -> Result<(), SqliteError> {
        let sql =
            "UPDATE frames SET is_closed = 1, is_due = 1 WHERE join_id = ?1 AND end <= ?2 AND NOT is_closed";
        self.execute("close frames", sql, params![join.0, watermark])
    }

    /// Makes the frames of a window due that end after a moment.
    pub(crate) fn all_due(&mut self, join: JoinId, after: i64) -> Result<(), SqliteError> {
        let sql = "UPDATE frames SET is_due = 1 WHERE join_id = ?1 AND end > ?2";
        self.execute("note due frames", sql, params![join.0, after])
    }

    /// Returns some of the frames that have to be evaluated.
    pub(crate) fn due_frames(&self, join: JoinId, limit: usize) -> Result<Vec<StoredFrame>, SqliteError> {
        self.doing("read due frames", || {
            // By itself, SQLite would look through all frames of the window by the primary key.
            let sql = "SELECT grp, start, end, is_closed FROM frames INDEXED BY frames_due
                       WHERE join_id = ?1 AND is_due LIMIT ?2";
            self.query_map(sql, params![join.0, limit], read_frame)
        })
    }

    /// Notes that a frame is evaluated.
    pub(crate) fn frame_done(
        &mut self,
        join: JoinId,
        group: &dyn ToSql,
        start: i64,
    ) -> Result<(), SqliteError> {
        let sql = "UPDATE frames SET is_due = 0 WHERE join_id = ?1 AND grp = ifnull(?2, x'') AND start = ?3";
        self.execute("store a frame", sql, params![join.0, group, start])
    }

    /// Forgets closed frames that end at or before a moment and are not due.
    pub(crate) fn forget_frames(&mut self, join: JoinId, end: i64) -> Result<(), SqliteError> {
        let sql = "DELETE FROM frames WHERE join_id = ?1 AND end <= ?2 AND is_closed AND NOT is_due";
        self.execute("forget frames", sql, params![join.0, end])
    }

    /// Returns the end of the frame that closes next.
    pub(crate) fn next_end(&self, join: JoinId) -> Result<Option<i64>, SqliteError> {
        self.doing("read frames", || {
            let sql = "SELECT min(end) FROM frames WHERE join_id = ?1 AND NOT is_closed";
            self.query_row(sql, [join.0], |row| row.get(0))
        })
    }

    /// Returns the stored result with this key.
    pub(crate) fn result(&self, join: JoinId, key: &str) -> Result<Option<StoredResult>, SqliteError> {
        self.doing("read a stored result", || {
            let sql = "SELECT key, rows, window FROM results WHERE join_id = ?1 AND key = ?2";
            self.query_row(sql, params![join.0, key], read_result).optional()
        })
    }

    /// Returns the stored results whose key is the JSON array that begins with the items of `prefix`: `["2026-…"`.
    pub(crate) fn results_of(&self, join: JoinId, prefix: &str) -> Result<Vec<StoredResult>, SqliteError> {
        self.doing("read stored results", || {
            // A dash follows the comma in ASCII. With OR, SQLite would look through all results of the window.
            let sql = "SELECT key, rows, window FROM results WHERE join_id = ?1 AND key = ?2 || ']'
                       UNION ALL
                       SELECT key, rows, window FROM results
                       WHERE join_id = ?1 AND key > ?2 || ',' AND key < ?2 || '-'";
            self.query_map(sql, params![join.0, prefix], read_result)
        })
    }

    /// Returns the first stored results in the order of their keys, each with the second at which it was stored.
    pub(crate) fn first_results(
        &self,
        join: JoinId,
        limit: usize,
    ) -> Result<Vec<(StoredResult, i64)>, SqliteError> {
        self.doing("read stored results", || {
            let sql =
                "SELECT key, rows, window, timestamp FROM results WHERE join_id = ?1 ORDER BY key LIMIT ?2";
            self.query_map(sql, params![join.0, limit], |row| Ok((read_result(row)?, row.get(3)?)))
        })
    }

    /// Calls `each` with the key and the frame, as JSON, of all stored results.
    pub(crate) fn each_result(
        &self,
        join: JoinId,
        mut each: impl FnMut(&str, Option<&str>),
    ) -> Result<(), SqliteError> {
        self.doing("read stored results", || {
            let sql = "SELECT key, window FROM results WHERE join_id = ?1";
            let mut statement = self.transaction.prepare_cached(sql)?;
            let mut rows = statement.query([join.0])?;
            while let Some(row) = rows.next()? {
                each(row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str_or_null()?);
            }
            Ok(())
        })
    }

    /// Returns the aggregate state of a group in a pane, as text.
    pub(crate) fn pane_state(
        &self,
        join: JoinId,
        pane: i64,
        group: &str,
    ) -> Result<Option<String>, SqliteError> {
        self.doing("read a pane", || {
            let sql = "SELECT state FROM panes WHERE join_id = ?1 AND start = ?2 AND grp = ?3";
            self.query_row(sql, params![join.0, pane, group], |row| row.get(0)).optional()
        })
    }

    /// Stores the aggregate state of a group in a pane, or removes it.
    pub(crate) fn set_pane_state(
        &mut self,
        join: JoinId,
        pane: i64,
        group: &str,
        state: Option<&str>,
    ) -> Result<(), SqliteError> {
        match state {
            Some(state) => {
                let sql = "INSERT OR REPLACE INTO panes (join_id, start, grp, state) VALUES (?1, ?2, ?3, ?4)";
                self.execute("store a pane", sql, params![join.0, pane, group, state])
            }
            None => {
                let sql = "DELETE FROM panes WHERE join_id = ?1 AND start = ?2 AND grp = ?3";
                self.execute("store a pane", sql, params![join.0, pane, group])
            }
        }
    }

    /// Calls `each` with the group and the state of all panes that begin in a frame.
    pub(crate) fn panes_of<E: From<SqliteError>>(
        &self,
        join: JoinId,
        frame: Frame,
        mut each: impl FnMut(&str, &str) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |source| self.failed("read panes", source);
        let sql = "SELECT grp, state FROM panes WHERE join_id = ?1 AND start >= ?2 AND start < ?3";
        let mut statement = self.transaction.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query(params![join.0, frame.start, frame.end]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let text = |index| row.get_ref(index).and_then(|value| Ok(value.as_str()?)).map_err(failed);
            each(text(0)?, text(1)?)?;
        }
        drop(rows);
        self.count(&statement);
        Ok(())
    }

    /// Forgets the panes that begin before a moment.
    pub(crate) fn forget_panes(&mut self, join: JoinId, before: i64) -> Result<(), SqliteError> {
        self.execute(
            "forget panes",
            "DELETE FROM panes WHERE join_id = ?1 AND start < ?2",
            params![join.0, before],
        )
    }

    fn execute(
        &mut self,
        what: &str,
        sql: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<(), SqliteError> {
        self.writes += 1;
        self.doing(what, || {
            let mut statement = self.transaction.prepare_cached(sql)?;
            statement.execute(parameters)?;
            self.count(&statement);
            Ok(())
        })
    }

    /// Returns the steps of SQLite's virtual machine that frames, panes and stored results took since the last call.
    pub(crate) fn take_steps(&self) -> u64 {
        self.steps.take()
    }

    fn count(&self, statement: &Statement<'_>) {
        let steps = statement.reset_status(StatementStatus::VmStep);
        self.steps.set(self.steps.get() + u64::try_from(steps).unwrap_or(0));
    }

    fn query_row<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mut statement = self.transaction.prepare_cached(sql)?;
        let found = statement.query_row(parameters, read);
        self.count(&statement);
        found
    }

    fn query_map<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        let mut statement = self.transaction.prepare_cached(sql)?;
        let found = statement.query_map(parameters, read)?.collect();
        self.count(&statement);
        found
    }

    fn doing<T>(&self, what: &str, work: impl FnOnce() -> rusqlite::Result<T>) -> Result<T, SqliteError> {
        work().map_err(|source| self.failed(what, source))
    }

    fn failed(&self, what: &str, source: rusqlite::Error) -> SqliteError {
        SqliteError::new(self.path, what, source)
    }
}

fn read_frame(row: &Row<'_>) -> rusqlite::Result<StoredFrame> {
    Ok(StoredFrame {
        group: row.get(0)?,
        frame: Frame { start: row.get(1)?, end: row.get(2)? },
        is_closed: row.get(3)?,
    })
}

fn read_result(row: &Row<'_>) -> rusqlite::Result<StoredResult> {
    Ok(StoredResult { key: row.get(0)?, rows: row.get(1)?, window: row.get(2)? })
}
