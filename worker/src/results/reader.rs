//! The reading side of `results.db`: a pool of connections for sinks, subscribers and snapshots.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::event::{Event, JoinId, Op, Position};
use super::failing::Standing;
use super::tables::meta;
use crate::storage::sqlite::{self, SqliteError};

/// A pool of reading connections; a caller waits for a free one.
pub(crate) struct Reader {
    path: PathBuf,
    free: Mutex<Vec<Connection>>,
    returned: Condvar,
}

/// A range of the outbox.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) events: Vec<Event>,
    /// Everything up to here has been looked at.
    pub(crate) up_to: Position,
    /// Whether the outbox holds more after `up_to`.
    pub(crate) more: bool,
}

/// How much of the outbox is read at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageLimit {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

impl Reader {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn open(path: &Path, connections: usize) -> Result<Self, SqliteError> {
        let free = (0..connections.max(1)).map(|_| sqlite::open_reader(path)).collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), free: Mutex::new(free), returned: Condvar::new() })
    }

    /// Everything at or before this place may be gone from the outbox.
    pub(crate) fn horizon(&self) -> Result<Position, SqliteError> {
        self.doing("read the outbox", read_horizon)
    }

    /// The newest place that a result has; what is written later comes after it.
    pub(crate) fn end(&self) -> Result<Position, SqliteError> {
        self.doing("read the outbox", read_end)
    }

    /// Reads events of `joins` after `after`, in order. `None` if the outbox no longer reaches back to it.
    pub(crate) fn after(
        &self,
        after: Position,
        joins: &[JoinId],
        limit: PageLimit,
    ) -> Result<Option<Page>, SqliteError> {
        self.doing("read the outbox", |connection| {
            let transaction = connection.unchecked_transaction()?;
            if after < read_horizon(&transaction)? {
                return Ok(None);
            }
            let mut page = Page { up_to: after, ..Page::default() };
            let mut bytes = 0;
            let mut statement = transaction.prepare_cached(
                "SELECT epoch, n, join_id, key, op, rows, timestamp, window FROM outbox
                 WHERE (epoch, n) > (?1, ?2) ORDER BY epoch, n",
            )?;
            let mut rows = statement.query(params![after.epoch, after.n])?;
            let mut looked_at = 0;
            while let Some(row) = rows.next()? {
                let join = JoinId(row.get(2)?);
                if page.events.len() >= limit.events || bytes >= limit.bytes || looked_at >= LOOKED_AT_MAX {
                    page.more = true;
                    break;
                }
                looked_at += 1;
                page.up_to = Position { epoch: row.get(0)?, n: row.get(1)? };
                if joins.contains(&join) {
                    let event = read_event(row)?;
                    bytes += event.rows.len();
                    page.events.push(event);
                }
            }
            Ok(Some(page))
        })
    }

    /// Calls `begin` with how a join stands, then `each` for every present result of it in the order of keys, all as of
    /// one moment. `key` keeps results whose key, as text, is that. `each` is told whether the result stays as it was
    /// although its rows have changed.
    pub(crate) fn snapshot<E: From<SqliteError>>(
        &self,
        join: JoinId,
        key: Option<&str>,
        begin: impl FnOnce(&Standing) -> Result<(), E>,
        mut each: impl FnMut(Event, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        let connection = self.take();
        let read = |connection: &Connection| -> Result<(), E> {
            let failed = |source| SqliteError::new(&self.path, "read a snapshot", source);
            let transaction = connection.unchecked_transaction().map_err(failed)?;
            let standing = Standing::read(&transaction, join).map_err(failed)?;
            begin(&standing)?;
            let sql =
                "SELECT epoch, n, join_id, key, op, rows, timestamp, window FROM results WHERE join_id = ?1";
            let (sql, keys) = match key {
                Some(key) => (format!("{sql} AND key IN (?2, ?3) ORDER BY key"), Some(key_spellings(key))),
                None => (format!("{sql} ORDER BY key"), None),
            };
            let mut statement = transaction.prepare_cached(&sql).map_err(failed)?;
            let mut rows = match &keys {
                Some((text, bare)) => statement.query(params![join.0, text, bare]),
                None => statement.query([join.0]),
            }
            .map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                let event = read_event(row).map_err(failed)?;
                let is_stale = standing.has_failed || standing.failing.contains_key(&event.key);
                each(event, is_stale)?;
            }
            Ok(())
        };
        let outcome = read(&connection);
        self.give_back(connection);
        outcome
    }

    /// Results of one join and the key after `after_key`, whose place is not after `up_to`, as many as fit in a page;
    /// for a sink that is handed the present state page by page. None at the end.
    pub(crate) fn present(
        &self,
        join: JoinId,
        after_key: Option<&str>,
        up_to: Position,
        limit: PageLimit,
    ) -> Result<Vec<Event>, SqliteError> {
        self.doing("read present results", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT epoch, n, join_id, key, op, rows, timestamp, window FROM results
                 WHERE join_id = ?1 AND key > ?2 AND (epoch, n) <= (?3, ?4) ORDER BY key",
            )?;
            let mut rows = statement.query(params![join.0, after_key.unwrap_or(""), up_to.epoch, up_to.n])?;
            let (mut events, mut bytes) = (Vec::new(), 0);
            while events.len() < limit.events
                && bytes < limit.bytes
                && let Some(row) = rows.next()?
            {
                let event = read_event(row)?;
                bytes += event.rows.len();
                events.push(event);
            }
            Ok(events)
        })
    }

    /// The number of rows of a present result; 0 if there is no such result.
    pub(crate) fn row_count(&self, join: JoinId, key: &str) -> Result<usize, SqliteError> {
        self.doing("count the rows of a result", |connection| {
            let sql = "SELECT json_array_length(rows) FROM results WHERE join_id = ?1 AND key = ?2";
            let count = connection.prepare_cached(sql)?.query_row(params![join.0, key], |row| row.get(0));
            Ok(count.optional()?.unwrap_or(0))
        })
    }

    /// How far a sink is; `None` before its first delivery.
    pub(crate) fn cursor(&self, sink: &str) -> Result<Option<Position>, SqliteError> {
        self.doing("read a cursor", |connection| {
            connection
                .prepare_cached("SELECT epoch, n FROM cursors WHERE sink = ?1")?
                .query_row([sink], |row| Ok(Position { epoch: row.get(0)?, n: row.get(1)? }))
                .optional()
        })
    }

    /// The least start of the frames of a window that are not frozen.
    pub(crate) fn first_frame(&self, window: &str) -> Result<Option<i64>, SqliteError> {
        self.doing("read frames", |connection| {
            let sql = "SELECT min(start) FROM frames WHERE join_id = (SELECT id FROM joins WHERE name = ?1)";
            connection.prepare_cached(sql)?.query_row([window], |row| row.get(0))
        })
    }

    /// Joins whose changes the sink is told, and whether it has been handed the whole of each.
    pub(crate) fn subscriptions(&self, sink: &str) -> Result<Vec<(JoinId, bool)>, SqliteError> {
        self.doing("read subscriptions", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT join_id, (sink, join_id) NOT IN (SELECT sink, join_id FROM hand_overs)
                 FROM subscriptions WHERE sink = ?1",
            )?;
            statement.query_map([sink], |row| Ok((JoinId(row.get(0)?), row.get(1)?)))?.collect()
        })
    }

    /// Runs `work` on a free connection.
    pub(crate) fn doing<T>(
        &self,
        what: &str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SqliteError> {
        let connection = self.take();
        let outcome = work(&connection);
        self.give_back(connection);
        outcome.map_err(|source| SqliteError::new(&self.path, what, source))
    }

    fn take(&self) -> Connection {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match free.pop() {
                Some(connection) => return connection,
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn give_back(&self, connection: Connection) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        self.returned.notify_one();
    }
}

/// Outbox entries, of whatever join, that one page looks at.
const LOOKED_AT_MAX: usize = 10_000;

/// The JSON of a key that a person writes as `text`: a string, or the bare number, `null`.
fn key_spellings(text: &str) -> (String, String) {
    (serde_json::to_string(text).expect("a string is always JSON"), text.to_owned())
}

fn read_horizon(connection: &Connection) -> rusqlite::Result<Position> {
    Ok(Position {
        epoch: meta(connection, "horizon_epoch")?.unwrap_or(0),
        n: meta(connection, "horizon_n")?.unwrap_or(0),
    })
}

fn read_end(connection: &Connection) -> rusqlite::Result<Position> {
    let last = connection
        .prepare_cached("SELECT epoch, n FROM outbox ORDER BY epoch DESC, n DESC LIMIT 1")?
        .query_row([], |row| Ok(Position { epoch: row.get(0)?, n: row.get(1)? }))
        .optional()?;
    // Results that were stored without an event have a place too.
    let applied = Position {
        epoch: meta(connection, "epoch_applied")?.unwrap_or(0),
        n: meta(connection, "n_applied")?.unwrap_or(0),
    };
    Ok(last.map_or(applied, |last| last.max(applied)))
}

fn read_event(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        position: Position { epoch: row.get(0)?, n: row.get(1)? },
        join: JoinId(row.get(2)?),
        key: row.get(3)?,
        op: Op::parse(row.get_ref(4)?.as_str()?).unwrap_or(Op::Updated),
        rows: row.get(5)?,
        timestamp: row.get(6)?,
        window: row.get(7)?,
    })
}
