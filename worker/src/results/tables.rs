//! The tables of `results.db`, and the steps that both of its users take in their transactions: the store, which commits
//! epochs, and the outbox, which removes events.

use litejoin_crds::plan::Synchronous;
use rusqlite::{Connection, OptionalExtension, params};

use super::event::JoinId;
use crate::storage::sqlite;

/// The entry of `meta` that is there while results may not follow from what is in the topics.
pub(super) const DOUBTFUL: &str = "doubtful";

/// The size of an event beside its key and rows, in bytes; an estimate.
const EVENT_OVERHEAD_BYTES: u64 = 64;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS joins (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        definition TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        stale INTEGER NOT NULL,
        applied TEXT,
        clock INTEGER
    );
    CREATE TABLE IF NOT EXISTS results (
        join_id INTEGER NOT NULL,
        key TEXT NOT NULL,
        rows TEXT NOT NULL,
        op TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        n INTEGER NOT NULL,
        timestamp INTEGER NOT NULL,
        window TEXT,
        PRIMARY KEY (join_id, key)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS failing (
        join_id INTEGER NOT NULL,
        key TEXT NOT NULL,
        error TEXT NOT NULL,
        PRIMARY KEY (join_id, key)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS accumulators (
        join_id INTEGER NOT NULL,
        grp TEXT NOT NULL,
        state TEXT NOT NULL,
        PRIMARY KEY (join_id, grp)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS watermarks (
        join_id INTEGER PRIMARY KEY,
        basis TEXT NOT NULL,
        watermark INTEGER
    );
    CREATE TABLE IF NOT EXISTS sure_times (
        join_id INTEGER NOT NULL,
        clock TEXT NOT NULL,
        partition TEXT NOT NULL,
        newest INTEGER NOT NULL,
        PRIMARY KEY (join_id, clock, partition)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS frames (
        join_id INTEGER NOT NULL,
        grp NOT NULL,
        start INTEGER NOT NULL,
        end INTEGER NOT NULL,
        is_closed INTEGER NOT NULL,
        is_due INTEGER NOT NULL,
        PRIMARY KEY (join_id, grp, start)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS frames_open ON frames (join_id, end) WHERE NOT is_closed;
    CREATE INDEX IF NOT EXISTS frames_closed ON frames (join_id, end) WHERE is_closed;
    CREATE INDEX IF NOT EXISTS frames_due ON frames (join_id) WHERE is_due;
    CREATE TABLE IF NOT EXISTS panes (
        join_id INTEGER NOT NULL,
        start INTEGER NOT NULL,
        grp TEXT NOT NULL,
        state TEXT NOT NULL,
        PRIMARY KEY (join_id, start, grp)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS outbox (
        epoch INTEGER NOT NULL,
        n INTEGER NOT NULL,
        join_id INTEGER NOT NULL,
        key TEXT NOT NULL,
        op TEXT NOT NULL,
        rows TEXT NOT NULL,
        timestamp INTEGER NOT NULL,
        window TEXT,
        PRIMARY KEY (epoch, n)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS cursors (sink TEXT PRIMARY KEY, epoch INTEGER NOT NULL, n INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS subscriptions (
        sink TEXT NOT NULL,
        join_id INTEGER NOT NULL,
        PRIMARY KEY (sink, join_id)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS hand_overs (
        sink TEXT NOT NULL,
        join_id INTEGER NOT NULL,
        PRIMARY KEY (sink, join_id)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS withheld (
        sink TEXT NOT NULL,
        join_id INTEGER NOT NULL,
        key TEXT NOT NULL,
        PRIMARY KEY (sink, join_id, key)
    ) WITHOUT ROWID;";

/// Makes the tables that are missing, and the columns that a file of an older version lacks.
pub(super) fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(SCHEMA)?;
    for (table, column, kind) in
        [("joins", "clock", "INTEGER"), ("results", "window", "TEXT"), ("outbox", "window", "TEXT")]
    {
        if !sqlite::has_column(connection, table, column)? {
            connection.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} {kind}"))?;
        }
    }
    Ok(())
}

/// Returns whether the file notes the moment that results are as of.
pub(crate) fn has_clock(connection: &Connection) -> rusqlite::Result<bool> {
    sqlite::has_column(connection, "joins", "clock")
}

/// Returns whether the file notes which results can't be evaluated.
pub(crate) fn has_failing(connection: &Connection) -> rusqlite::Result<bool> {
    sqlite::has_column(connection, "failing", "join_id")
}

/// Reads a value of `meta`.
pub(super) fn meta<T: rusqlite::types::FromSql>(
    connection: &Connection,
    name: &str,
) -> rusqlite::Result<Option<T>> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()
}

/// Writes a value of `meta`.
pub(super) fn set(connection: &Connection, name: &str, value: impl rusqlite::ToSql) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value")?
        .execute(params![name, value])?;
    Ok(())
}

/// Writes a value so that it survives a crash of the machine, whatever `storage.synchronous` says.
pub(super) fn set_durably(connection: &Connection, name: &str, value: u64) -> rusqlite::Result<()> {
    durably(connection, |connection| set(connection, name, value))
}

pub(super) fn durably(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let before: i64 = connection.query_row("PRAGMA synchronous", [], |row| row.get(0))?;
    sqlite::set_synchronous(connection, Synchronous::Full)?;
    let outcome = work(connection);
    connection.pragma_update(None, "synchronous", before)?;
    outcome
}

/// Bytes that an event counts for.
pub(super) fn event_bytes(key_bytes: usize, rows_bytes: usize) -> u64 {
    EVENT_OVERHEAD_BYTES + (key_bytes + rows_bytes) as u64
}

/// Removes the events of a join that is no more.
pub(super) fn forget_events(connection: &Connection, join: JoinId) -> rusqlite::Result<()> {
    let sql = "DELETE FROM outbox WHERE join_id = ?1
               RETURNING length(CAST(key AS BLOB)), length(CAST(rows AS BLOB))";
    remove_events(connection, sql, [join.0]).map(|_| ())
}

/// Runs a DELETE that returns the bytes of keys and rows; gives the number of events and the new size.
pub(super) fn remove_events(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> rusqlite::Result<(u64, u64)> {
    let (mut count, mut removed) = (0, 0);
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    while let Some(row) = rows.next()? {
        count += 1;
        removed += event_bytes(row.get(0)?, row.get(1)?);
    }
    let bytes = meta::<u64>(connection, "outbox_bytes")?.unwrap_or(0).saturating_sub(removed);
    set(connection, "outbox_bytes", bytes)?;
    Ok((count, bytes))
}
