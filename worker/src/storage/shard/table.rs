//! One topic in a shard file: its statements, and what a message or an expiry does to its table, to the indexes of the
//! table, to the change log and to the tombstones. The caller decides which of it is done, and opens the transaction.

use std::borrow::Cow;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::event_times::EventTimes;
use super::index::{Entries, Index, IndexedRow};
use crate::storage::change::{self, PayloadDiff};
use crate::storage::sqlite::quoted;

/// The origin of a `_chg` entry: a message.
pub(crate) const KIND_WRITE: i64 = 0;
/// See [`KIND_WRITE`]: a row that retention removed, of which sinks are not told.
pub(crate) const KIND_EXPIRY: i64 = 1;

/// See [`KIND_WRITE`]: a message brought the payload that was there, and the row has another timestamp, which no query
/// reads. The entry has no images.
pub(crate) const KIND_REFRESH: i64 = 2;

pub(super) const LOG: &str = "INSERT INTO _chg (topic, key, old, new, old_timestamp, timestamp, change, kind)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

/// A topic in this file, with the statements of the hot path spelled out once.
pub(super) struct TopicTable {
    /// Its number in `_topics`.
    pub(super) id: i64,
    /// Reads payload, timestamp and row number of a key.
    pub(super) select: String,
    insert: String,
    update: String,
    refresh: String,
    delete: String,
    pub(super) indexes: Vec<Index>,
    /// Event times by which a message that is older than the row changes nothing.
    pub(super) ordered_by: Vec<EventTimes>,
    /// Whether a message with the payload that is there moves the row to its own time.
    pub(super) is_moved_by_time: bool,
}

/// Reads a row that [`TopicTable::select`] has found under a key.
pub(super) fn selected<'r>(key: &'r str, row: &'r rusqlite::Row<'_>) -> rusqlite::Result<IndexedRow<'r>> {
    Ok(IndexedRow { key, payload: row.get_ref(0)?.as_str()?, timestamp: row.get(1)?, number: row.get(2)? })
}

/// The prepared statements that write one topic.
pub(super) struct TableWriter<'c> {
    id: i64,
    connection: &'c Connection,
    insert: CachedStatement<'c>,
    update: CachedStatement<'c>,
    refresh: CachedStatement<'c>,
    delete: CachedStatement<'c>,
    log: CachedStatement<'c>,
    bury: CachedStatement<'c>,
    unbury: CachedStatement<'c>,
    buried_at: CachedStatement<'c>,
    indexes: Vec<Entries<'c>>,
}

impl TopicTable {
    pub(super) fn new(id: i64, name: &str) -> Self {
        let table = quoted(name);
        Self {
            id,
            select: format!("SELECT payload, timestamp, _row FROM {table} WHERE key = ?1"),
            insert: format!("INSERT INTO {table} (key, payload, timestamp, _change) VALUES (?1, ?2, ?3, ?4)"),
            update: format!("UPDATE {table} SET payload = ?2, timestamp = ?3, _change = ?4 WHERE _row = ?1"),
            refresh: format!("UPDATE {table} SET timestamp = ?2 WHERE _row = ?1"),
            delete: format!("DELETE FROM {table} WHERE key = ?1"),
            indexes: Vec::new(),
            ordered_by: Vec::new(),
            is_moved_by_time: false,
        }
    }

    /// Returns whether a message that repeats the payload of a row changes the row: a query reads its time.
    pub(super) fn moves(&self, row: IndexedRow<'_>, timestamp: i64) -> bool {
        self.is_moved_by_time && row.timestamp != timestamp
    }

    pub(super) fn writer<'c>(&'c self, connection: &'c Connection) -> rusqlite::Result<TableWriter<'c>> {
        Ok(TableWriter {
            id: self.id,
            connection,
            insert: connection.prepare_cached(&self.insert)?,
            update: connection.prepare_cached(&self.update)?,
            refresh: connection.prepare_cached(&self.refresh)?,
            delete: connection.prepare_cached(&self.delete)?,
            log: connection.prepare_cached(LOG)?,
            bury: connection.prepare_cached(
                "INSERT INTO _tombstones (topic, key, timestamp) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET timestamp = max(timestamp, excluded.timestamp)",
            )?,
            unbury: connection.prepare_cached("DELETE FROM _tombstones WHERE topic = ?1 AND key = ?2")?,
            buried_at: connection
                .prepare_cached("SELECT timestamp FROM _tombstones WHERE topic = ?1 AND key = ?2")?,
            indexes: self.indexes.iter().map(|index| index.entries(connection)).collect::<Result<_, _>>()?,
        })
    }
}

impl TableWriter<'_> {
    /// When a key was deleted, if its tombstone is there.
    pub(super) fn buried_at(&mut self, key: &str) -> rusqlite::Result<Option<i64>> {
        self.buried_at.query_row(params![self.id, key], |row| row.get(0)).optional()
    }

    /// Notes that a key was deleted, so that an older message can't revive it.
    pub(super) fn bury(&mut self, key: &str, timestamp: i64) -> rusqlite::Result<()> {
        self.bury.execute(params![self.id, key, timestamp]).map(drop)
    }

    pub(super) fn unbury(&mut self, key: &str) -> rusqlite::Result<()> {
        self.unbury.execute(params![self.id, key]).map(drop)
    }

    /// Inserts a row, with its entries in the indexes and in the change log.
    pub(super) fn insert(
        &mut self,
        key: &str,
        payload: &str,
        timestamp: i64,
        headers: Option<&str>,
    ) -> rusqlite::Result<()> {
        let change = change::with_headers(change::CREATED.into(), headers);
        self.insert.execute(params![key, payload, timestamp, change])?;
        let row = IndexedRow { number: self.connection.last_insert_rowid(), key, payload, timestamp };
        self.indexes.iter_mut().try_for_each(|index| index.put(row))?;
        let (old, old_timestamp) = (None::<&str>, None::<i64>);
        self.log
            .execute(params![self.id, key, old, payload, old_timestamp, timestamp, change, KIND_WRITE])
            .map(drop)
    }

    /// Logs that a row gets another payload, and moves its entries in the indexes. Returns `_change` for
    /// [`Self::update`], which is to follow.
    pub(super) fn log_update<'h>(
        &mut self,
        old: IndexedRow<'_>,
        payload: &str,
        timestamp: i64,
        headers: Option<&'h str>,
    ) -> rusqlite::Result<Cow<'h, str>> {
        let IndexedRow { number, key, .. } = old;
        let diff = PayloadDiff::between(old.payload, payload);
        let change = change::with_headers(diff.change().into(), headers);
        self.log.execute(params![
            self.id,
            key,
            old.payload,
            payload,
            old.timestamp,
            timestamp,
            change,
            KIND_WRITE
        ])?;
        for index in self.indexes.iter_mut().filter(|index| !index.stays(&diff)) {
            index.take(old)?;
            index.put(IndexedRow { number, key, payload, timestamp })?;
        }
        Ok(change)
    }

    /// Writes the payload of a row that is there.
    pub(super) fn update(
        &mut self,
        number: i64,
        payload: &str,
        timestamp: i64,
        change: &str,
    ) -> rusqlite::Result<()> {
        self.update.execute(params![number, payload, timestamp, change]).map(drop)
    }

    /// Gives a row that keeps its payload a later timestamp, which no index holds.
    pub(super) fn refresh(&mut self, number: i64, key: &str, timestamp: i64) -> rusqlite::Result<()> {
        self.refresh.execute(params![number, timestamp])?;
        let (image, change, old_timestamp) = (None::<&str>, None::<&str>, None::<i64>);
        self.log
            .execute(params![self.id, key, image, image, old_timestamp, timestamp, change, KIND_REFRESH])
            .map(drop)
    }

    /// Logs that a message deletes a row, and takes it out of the indexes; [`Self::delete`] is to follow.
    pub(super) fn log_deletion(&mut self, old: IndexedRow<'_>, timestamp: i64) -> rusqlite::Result<()> {
        self.log_end(old, timestamp, KIND_WRITE)?;
        self.indexes.iter_mut().try_for_each(|index| index.take(old))
    }

    pub(super) fn delete(&mut self, key: &str) -> rusqlite::Result<()> {
        self.delete.execute([key]).map(drop)
    }

    /// Removes a row that has expired, with its entries in the indexes, and logs that.
    pub(super) fn expire(&mut self, row: IndexedRow<'_>, now: i64, kind: i64) -> rusqlite::Result<()> {
        self.delete(row.key)?;
        self.indexes.iter_mut().try_for_each(|index| index.take(row))?;
        self.log_end(row, now, kind)
    }

    fn log_end(&mut self, old: IndexedRow<'_>, timestamp: i64, kind: i64) -> rusqlite::Result<()> {
        let IndexedRow { key, payload, timestamp: old_timestamp, .. } = old;
        let (new, change) = (None::<&str>, None::<&str>);
        self.log
            .execute(params![self.id, key, payload, new, old_timestamp, timestamp, change, kind])
            .map(drop)
    }
}
