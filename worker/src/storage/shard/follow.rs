//! A shard file of a copy that follows the data which it is a copy of: rows are written as change logs have them, with
//! their entries in the indexes. Nothing is logged, and no worker reads the file yet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use litejoin_crds::plan::Synchronous;
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::index::{Entries, Index, IndexedRow};
use super::record::{FollowedChange, Record};
use super::topic_table_sql;
use super::transfer::{self, ShardFacts};
use crate::storage::change::PayloadDiff;
use crate::storage::checkpoint::checkpoint;
use crate::storage::sqlite::{self, SqliteError, quoted};

/// A file of a copy, open to be written.
pub(crate) struct ShardFollower {
    path: PathBuf,
    connection: Connection,
    /// By their names in lower case.
    topics: BTreeMap<String, FollowedTopic>,
}

/// A topic of the file, with its statements.
struct FollowedTopic {
    id: i64,
    select: String,
    insert: String,
    update: String,
    delete: String,
    indexes: Vec<Index>,
}

/// The prepared statements that write one topic.
struct FollowedRows<'c> {
    connection: &'c Connection,
    select: CachedStatement<'c>,
    insert: CachedStatement<'c>,
    update: CachedStatement<'c>,
    delete: CachedStatement<'c>,
    indexes: Vec<Entries<'c>>,
}

impl FollowedTopic {
    fn new(id: i64, name: &str) -> Self {
        let table = quoted(name);
        Self {
            id,
            select: format!("SELECT payload, timestamp, _row FROM {table} WHERE key = ?1"),
            insert: format!("INSERT INTO {table} (key, payload, timestamp, _change) VALUES (?1, ?2, ?3, ?4)"),
            update: format!("UPDATE {table} SET payload = ?2, timestamp = ?3, _change = ?4 WHERE _row = ?1"),
            delete: format!("DELETE FROM {table} WHERE _row = ?1"),
            indexes: Vec::new(),
        }
    }

    fn rows<'c>(&'c self, connection: &'c Connection) -> rusqlite::Result<FollowedRows<'c>> {
        Ok(FollowedRows {
            connection,
            select: connection.prepare_cached(&self.select)?,
            insert: connection.prepare_cached(&self.insert)?,
            update: connection.prepare_cached(&self.update)?,
            delete: connection.prepare_cached(&self.delete)?,
            indexes: self.indexes.iter().map(|index| index.entries(connection)).collect::<Result<_, _>>()?,
        })
    }
}

impl FollowedRows<'_> {
    /// Gives a key the payload, timestamp and `_change` that it has after a change; `None` removes its row.
    fn put(&mut self, key: &str, new: Option<(&str, i64, Option<&str>)>) -> rusqlite::Result<()> {
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let stored: Option<(String, i64, i64)> = self.select.query_row([key], read).optional()?;
        let old = stored.as_ref().map(|(payload, timestamp, number)| IndexedRow {
            number: *number,
            key,
            payload,
            timestamp: *timestamp,
        });
        match (old, new) {
            (None, None) => Ok(()),
            (Some(old), None) => {
                self.indexes.iter_mut().try_for_each(|index| index.take(old))?;
                self.delete.execute([old.number]).map(drop)
            }
            (None, Some((payload, timestamp, change))) => {
                self.insert.execute(params![key, payload, timestamp, change])?;
                let number = self.connection.last_insert_rowid();
                let row = IndexedRow { number, key, payload, timestamp };
                self.indexes.iter_mut().try_for_each(|index| index.put(row))
            }
            (Some(old), Some((payload, timestamp, change))) => {
                let diff = PayloadDiff::between(old.payload, payload);
                let row = IndexedRow { number: old.number, key, payload, timestamp };
                for index in self.indexes.iter_mut().filter(|index| !index.stays(&diff)) {
                    index.take(old)?;
                    index.put(row)?;
                }
                self.update.execute(params![old.number, payload, timestamp, change]).map(drop)
            }
        }
    }
}

impl ShardFollower {
    /// Opens a file that was copied. `cache_kib` bounds its memory.
    pub(crate) fn open(path: &Path, cache_kib: i64) -> Result<Self, SqliteError> {
        let connection = sqlite::open_writer(path, Synchronous::Normal)?;
        let read = || {
            connection.pragma_update(None, "cache_size", -cache_kib)?;
            let topics = transfer::topics(&connection)?.into_iter();
            let topics =
                topics.map(|(id, name)| (name.to_ascii_lowercase(), FollowedTopic::new(id, &name))).collect();
            Ok((topics, Index::present(&connection)?))
        };
        let (topics, indexes) = read().map_err(|source| SqliteError::new(path, "read the shard", source))?;
        let mut follower = Self { path: path.to_owned(), connection, topics };
        indexes.into_iter().filter_map(|(_, index)| index).for_each(|index| follower.index(index));
        Ok(follower)
    }

    fn index(&mut self, index: Index) {
        if let Some(topic) = self.topics.get_mut(&index.topic.to_ascii_lowercase()) {
            topic.indexes.push(index);
        }
    }

    fn ensure_topic(&mut self, name: &str) -> rusqlite::Result<()> {
        let lower = name.to_ascii_lowercase();
        if !self.topics.contains_key(&lower) {
            self.connection.execute_batch(&topic_table_sql(name))?;
            self.connection.execute("INSERT INTO _topics (name) VALUES (?1)", [name])?;
            self.topics.insert(lower, FollowedTopic::new(self.connection.last_insert_rowid(), name));
        }
        Ok(())
    }

    /// Makes the topics and indexes that the data has by now, and drops the indexes that it has no more.
    pub(crate) fn keep(&mut self, facts: &ShardFacts) -> Result<(), SqliteError> {
        self.in_transaction("keep the indexes", |file| {
            facts.topics.iter().try_for_each(|name| file.ensure_topic(name))?;
            let connection = &file.connection;
            for topic in file.topics.values_mut() {
                for index in topic.indexes.extract_if(.., |index| !facts.indexes.contains(index)) {
                    Index::remove(connection, &index.name())?;
                }
            }
            for index in &facts.indexes {
                let topic = file.topics.get(&index.topic.to_ascii_lowercase());
                if topic.is_some_and(|topic| !topic.indexes.contains(index)) {
                    index.build(&file.connection)?;
                    file.index(index.clone());
                }
            }
            Ok(())
        })
    }

    /// Writes what changes leave of their rows.
    pub(crate) fn apply(&mut self, changes: &[FollowedChange]) -> Result<(), SqliteError> {
        self.in_transaction("follow changes", |file| {
            for run in changes.chunk_by(|a, b| a.topic == b.topic) {
                file.ensure_topic(&run[0].topic)?;
                let mut rows = file.topics[&run[0].topic.to_ascii_lowercase()].rows(&file.connection)?;
                for change in run {
                    let new = match &change.row {
                        Some(Record::Row {
                            payload: Some(payload),
                            timestamp: Some(timestamp),
                            change,
                            ..
                        }) => Some((payload.as_str(), *timestamp, change.as_deref())),
                        _ => None,
                    };
                    rows.put(&change.key, new)?;
                }
            }
            Ok(())
        })
    }

    /// The row of a key.
    pub(crate) fn row(&self, topic: &str, key: &str) -> Result<Option<Record>, SqliteError> {
        transfer::row(&self.connection, topic, key)
            .map_err(|source| SqliteError::new(&self.path, "read a row", source))
    }

    /// Has the disk hold all that was written so far.
    pub(crate) fn checkpoint(&self) -> Result<(), SqliteError> {
        checkpoint(&self.connection, &self.path)
    }

    /// Adds tombstones, each with the name of its topic.
    pub(crate) fn bury(&mut self, tombstones: &[(String, Record)]) -> Result<(), SqliteError> {
        self.in_transaction("write tombstones", |file| {
            let sql = "INSERT INTO _tombstones (topic, key, timestamp) VALUES (?1, ?2, ?3)";
            let mut bury = file.connection.prepare_cached(sql)?;
            for (topic, record) in tombstones {
                if let (Record::Tombstone { key, timestamp }, Some(topic)) =
                    (record, file.topics.get(&topic.to_ascii_lowercase()))
                {
                    bury.execute(params![topic.id, key, timestamp])?;
                }
            }
            Ok(())
        })
    }

    /// Adds all else that has no row; the disk has the whole file afterwards.
    pub(crate) fn finish(mut self, facts: &ShardFacts) -> Result<(), SqliteError> {
        let set = |source| SqliteError::new(&self.path, "finish the shard", source);
        sqlite::set_synchronous(&self.connection, Synchronous::Full).map_err(set)?;
        self.in_transaction("finish the shard", |file| transfer::add_facts(&file.connection, facts))
    }

    fn in_transaction(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Self) -> rusqlite::Result<()>,
    ) -> Result<(), SqliteError> {
        let outcome = self.connection.execute_batch("BEGIN IMMEDIATE").and_then(|()| work(self));
        // A copy that has failed is thrown away, and its transaction with it.
        outcome
            .and_then(|()| self.connection.execute_batch("COMMIT"))
            .map_err(|source| SqliteError::new(&self.path, doing, source))
    }
}
