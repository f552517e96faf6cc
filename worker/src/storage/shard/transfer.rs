//! A shard file as a whole, on its way into files of another layout: all that is read of it, and how such a file is
//! made. Rows, tombstones and entries of the change log go by their keys; what has none goes into every file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::event_times::{self, EventTimes, PartitionTime};
use super::floors::{self, Floor};
use super::index::{self, Index};
use super::record::{FollowedChange, Record, RecordBatch};
use super::{KIND_REFRESH, SCHEMA, topic_table_sql};
use crate::storage::sqlite::{self, SqliteError, quoted};

/// All of a shard file that does not go by a key.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ShardFacts {
    pub(crate) topics: Vec<String>,
    /// The newest number in the change log.
    pub(crate) last_seq: i64,
    /// The next place of each stream.
    pub(crate) offsets: BTreeMap<String, u64>,
    pub(crate) floors: Vec<Floor>,
    pub(crate) indexes: Vec<Index>,
    pub(crate) clocks: Vec<EventTimes>,
    /// Event times by the names of clock and partition.
    pub(crate) times: BTreeMap<(String, String), PartitionTime>,
}

impl ShardFacts {
    /// The same in an order by which the facts of two shards can be compared.
    pub(crate) fn in_order(mut self) -> Self {
        self.topics.sort();
        self.indexes.sort();
        self.clocks.sort();
        self
    }
}

/// A shard file that is read as a whole.
pub(crate) struct ShardExport {
    path: PathBuf,
    connection: Connection,
}

impl ShardExport {
    /// Opens the file and fixes what is seen of it.
    pub(crate) fn open(path: &Path) -> Result<Self, SqliteError> {
        let export = Self { path: path.to_owned(), connection: sqlite::open_read_only(path)? };
        export.doing("begin to read", sqlite::hold)?;
        Ok(export)
    }

    /// Bytes of the pages that hold something.
    pub(crate) fn bytes_used(&self) -> Result<u64, SqliteError> {
        self.doing("read its size", sqlite::bytes_used)
    }

    /// The newest number in the change log.
    pub(crate) fn last_seq(&self) -> Result<i64, SqliteError> {
        self.doing("read changes", last_seq)
    }

    /// The number of rows of all topics.
    pub(crate) fn row_count(&self) -> Result<u64, SqliteError> {
        self.doing("count its rows", |connection| {
            let count = |topic: &String| -> rusqlite::Result<u64> {
                connection.query_row(&format!("SELECT count(*) FROM {}", quoted(topic)), [], |row| row.get(0))
            };
            topics(connection)?.values().map(count).sum()
        })
    }

    pub(crate) fn facts(&self) -> Result<ShardFacts, SqliteError> {
        self.doing("read the shard", |connection| {
            let offsets = connection
                .prepare("SELECT stream, next FROM _offsets")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let times = connection
                .prepare("SELECT clock, partition, newest, arrived FROM _event_times")?
                .query_map([], |row| {
                    let time = PartitionTime { newest: row.get(2)?, sure: None, arrived: row.get(3)? };
                    Ok(((row.get(0)?, row.get(1)?), time))
                })?
                .collect::<rusqlite::Result<_>>()?;
            Ok(ShardFacts {
                topics: topics(connection)?.into_values().collect(),
                last_seq: last_seq(connection)?,
                offsets,
                floors: floors::read(connection)?,
                indexes: Index::present(connection)?.into_iter().filter_map(|(_, index)| index).collect(),
                clocks: EventTimes::present(connection)?,
                times,
            })
        })
    }

    /// Calls `each` for every row and every tombstone, and for the entries of the change log after `after`, in their order,
    /// with the name of the topic.
    pub(crate) fn records<E: From<SqliteError>>(
        &self,
        after: i64,
        mut each: impl FnMut(&str, Record<&str>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.rows(&mut each)?;
        self.tombstones(&mut each)?;
        self.logged(after, &mut each)
    }

    /// Calls `each` for every row, with the name of the topic.
    pub(crate) fn rows<E: From<SqliteError>>(
        &self,
        mut each: impl FnMut(&str, Record<&str>) -> Result<(), E>,
    ) -> Result<(), E> {
        let names = self.doing("read the shard", topics)?;
        for name in names.values() {
            let sql = format!("SELECT key, payload, timestamp, _change FROM {}", quoted(name));
            self.each(&sql, [], |row| Ok((name.as_str(), row_at(row)?)), &mut each)?;
        }
        Ok(())
    }

    /// Calls `each` for every tombstone, with the name of the topic.
    pub(crate) fn tombstones<E: From<SqliteError>>(
        &self,
        mut each: impl FnMut(&str, Record<&str>) -> Result<(), E>,
    ) -> Result<(), E> {
        let names = self.doing("read the shard", topics)?;
        let name_of = |id: i64| names.get(&id).map(String::as_str).unwrap_or_default();
        self.each(
            "SELECT topic, key, timestamp FROM _tombstones",
            [],
            |row| {
                let record = Record::Tombstone { key: text(row, 1)?, timestamp: row.get(2)? };
                Ok((name_of(row.get(0)?), record))
            },
            &mut each,
        )
    }

    /// Calls `each` for the entries of the change log after `after`, in their order, with the name of the topic.
    pub(crate) fn logged<E: From<SqliteError>>(
        &self,
        after: i64,
        mut each: impl FnMut(&str, Record<&str>) -> Result<(), E>,
    ) -> Result<(), E> {
        let names = self.doing("read the shard", topics)?;
        let name_of = |id: i64| names.get(&id).map(String::as_str).unwrap_or_default();
        let log = "SELECT topic, key, old, new, old_timestamp, timestamp, change, kind FROM _chg
                   WHERE seq > ?1 ORDER BY seq";
        self.each(
            log,
            [after],
            |row| {
                let record = Record::Logged {
                    key: text(row, 1)?,
                    old: some_text(row, 2)?,
                    new: some_text(row, 3)?,
                    old_timestamp: row.get(4)?,
                    timestamp: row.get(5)?,
                    change: some_text(row, 6)?,
                    kind: row.get(7)?,
                };
                Ok((name_of(row.get(0)?), record))
            },
            &mut each,
        )
    }

    /// Calls `each` for what each entry of the change log after `after` leaves of its row, in their order.
    pub(crate) fn changed<E: From<SqliteError>>(
        &self,
        after: i64,
        mut each: impl FnMut(FollowedChange) -> Result<(), E>,
    ) -> Result<(), E> {
        let names = self.doing("read the shard", topics)?;
        let names: BTreeMap<i64, Arc<str>> = names.into_iter().map(|(id, name)| (id, name.into())).collect();
        let failed = |source| E::from(SqliteError::new(&self.path, "read the shard", source));
        let log = "SELECT key, new, timestamp, change, topic, kind FROM _chg WHERE seq > ?1 ORDER BY seq";
        let mut statement = self.connection.prepare(log).map_err(failed)?;
        let mut rows = statement.query([after]).map_err(failed)?;
        let read = |row: &rusqlite::Row<'_>| -> rusqlite::Result<FollowedChange> {
            let topic = names.get(&row.get(4)?).cloned().unwrap_or_default();
            let key = text(row, 0)?;
            let row_after = match some_text(row, 1)? {
                Some(_) => Some(row_at(row)?.to_owned()),
                // The entry has no image: the row is as it is now, or as a later entry has it.
                None if row.get::<_, i64>(5)? == KIND_REFRESH => self::row(&self.connection, &topic, key)?,
                None => None,
            };
            Ok(FollowedChange { topic, key: key.to_owned(), row: row_after })
        };
        while let Some(row) = rows.next().map_err(failed)? {
            each(read(row).map_err(failed)?)?;
        }
        Ok(())
    }

    fn each<'n, E: From<SqliteError>>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl for<'r> Fn(&'r rusqlite::Row<'_>) -> rusqlite::Result<(&'n str, Record<&'r str>)>,
        each: &mut impl FnMut(&str, Record<&str>) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |source| E::from(SqliteError::new(&self.path, "read the shard", source));
        let mut statement = self.connection.prepare(sql).map_err(failed)?;
        let mut rows = statement.query(parameters).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let (topic, record) = read(row).map_err(failed)?;
            each(topic, record)?;
        }
        Ok(())
    }

    fn doing<T>(
        &self,
        what: &str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SqliteError> {
        work(&self.connection).map_err(|source| SqliteError::new(&self.path, what, source))
    }
}

fn last_seq(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT ifnull(max(seq), 0) FROM _chg", [], |row| row.get(0))
}

/// The row of a key in a topic, which need not be there.
pub(super) fn row(connection: &Connection, topic: &str, key: &str) -> rusqlite::Result<Option<Record>> {
    let is_there = "SELECT EXISTS (SELECT 1 FROM _topics WHERE name = ?1)";
    if !connection.prepare_cached(is_there)?.query_row([topic], |row| row.get(0))? {
        return Ok(None);
    }
    let sql = format!("SELECT key, payload, timestamp, _change FROM {} WHERE key = ?1", quoted(topic));
    connection.prepare_cached(&sql)?.query_row([key], |row| Ok(row_at(row)?.to_owned())).optional()
}

/// A row of a topic, read as key, payload, timestamp and `_change`.
fn row_at<'r>(row: &'r rusqlite::Row<'_>) -> rusqlite::Result<Record<&'r str>> {
    Ok(Record::Row {
        key: text(row, 0)?,
        payload: some_text(row, 1)?,
        timestamp: row.get(2)?,
        change: some_text(row, 3)?,
    })
}

fn text<'r>(row: &'r rusqlite::Row<'_>, column: usize) -> rusqlite::Result<&'r str> {
    Ok(row.get_ref(column)?.as_str()?)
}

fn some_text<'r>(row: &'r rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<&'r str>> {
    Ok(row.get_ref(column)?.as_str_or_null()?)
}

/// The names of the topics of a file by their numbers.
pub(super) fn topics(connection: &Connection) -> rusqlite::Result<BTreeMap<i64, String>> {
    connection
        .prepare("SELECT id, name FROM _topics")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

fn add_topic(connection: &Connection, id: i64, name: &str) -> rusqlite::Result<()> {
    connection.execute("INSERT INTO _topics (id, name) VALUES (?1, ?2)", params![id, name])?;
    connection.execute_batch(&topic_table_sql(name))
}

/// Adds all that does not go by a key, but for topics and indexes, to a file that has none of it.
pub(super) fn add_facts(connection: &Connection, facts: &ShardFacts) -> rusqlite::Result<()> {
    for (stream, next) in &facts.offsets {
        connection.execute("INSERT INTO _offsets VALUES (?1, ?2)", params![stream, next])?;
    }
    floors::write(connection, &facts.floors)?;
    for clock in &facts.clocks {
        clock.define(connection)?;
    }
    for ((clock, partition), time) in &facts.times {
        event_times::put(connection, clock, partition, *time)?;
    }
    Ok(())
}

/// A shard file that is made of what others hold. Until [`Self::finish`] a crash leaves nothing of use.
pub(crate) struct ShardImport {
    path: PathBuf,
    connection: Connection,
}

impl ShardImport {
    /// Makes the file; its topics get their numbers in the order of their names here. `cache_kib` bounds its memory.
    pub(crate) fn create(path: &Path, topics: &[String], cache_kib: i64) -> Result<Self, SqliteError> {
        let connection = sqlite::open_scratch(path)?;
        let make = || -> rusqlite::Result<()> {
            connection.pragma_update(None, "cache_size", -cache_kib)?;
            // All of it is one transaction, which is not rolled back: a file that was not finished is thrown away.
            connection.pragma_update(None, "journal_mode", "OFF")?;
            for schema in [SCHEMA, index::SCHEMA, event_times::SCHEMA] {
                connection.execute_batch(schema)?;
            }
            for (id, name) in (1_i64..).zip(topics) {
                add_topic(&connection, id, name)?;
            }
            connection.execute_batch("BEGIN")
        };
        make().map_err(|source| SqliteError::new(path, "make the shard", source))?;
        Ok(Self { path: path.to_owned(), connection })
    }

    /// Makes another topic, whose index among all is `index`.
    pub(crate) fn add_topic(&self, index: usize, name: &str) -> Result<(), SqliteError> {
        let id = i64::try_from(index).expect("a few topics") + 1;
        self.doing("make a topic", |connection| add_topic(connection, id, name))
    }

    /// Takes records.
    pub(crate) fn write(&self, topics: &[String], records: &RecordBatch) -> Result<(), SqliteError> {
        let write = || -> rusqlite::Result<()> {
            let mut rows: Vec<Option<CachedStatement<'_>>> = topics.iter().map(|_| None).collect();
            for (topic, record) in records.iter() {
                let id = i64::try_from(topic).expect("a few topics") + 1;
                match record {
                    Record::Row { key, payload, timestamp, change } => {
                        if rows[topic].is_none() {
                            let table = quoted(&topics[topic]);
                            let sql = format!(
                                "INSERT INTO {table} (key, payload, timestamp, _change) VALUES (?1, ?2, ?3, ?4)"
                            );
                            rows[topic] = Some(self.connection.prepare_cached(&sql)?);
                        }
                        let insert = rows[topic].as_mut().expect("it was prepared");
                        insert.execute(params![key, payload, timestamp, change])?;
                    }
                    Record::Tombstone { key, timestamp } => {
                        self.connection
                            .prepare_cached(
                                "INSERT INTO _tombstones (topic, key, timestamp) VALUES (?1, ?2, ?3)",
                            )?
                            .execute(params![id, key, timestamp])?;
                    }
                    Record::Logged { key, old, new, old_timestamp, timestamp, change, kind } => {
                        self.connection.prepare_cached(super::table::LOG)?.execute(params![
                            id,
                            key,
                            old,
                            new,
                            old_timestamp,
                            timestamp,
                            change,
                            kind
                        ])?;
                    }
                }
            }
            Ok(())
        };
        write().map_err(|source| SqliteError::new(&self.path, "write a row", source))
    }

    /// Adds what has no key, builds the indexes, and leaves a whole file, which the disk need not have yet.
    pub(crate) fn finish(self, facts: &ShardFacts) -> Result<(), SqliteError> {
        self.doing("write the rest", |connection| {
            add_facts(connection, facts)?;
            connection.execute_batch("COMMIT")
        })?;
        for index in &facts.indexes {
            self.doing("build an index", |connection| index.build(connection))?;
        }
        let Self { path, connection, .. } = self;
        drop(connection);
        // As every shard is kept from its first open on.
        drop(sqlite::open_writer(&path, litejoin_crds::plan::Synchronous::Full)?);
        Ok(())
    }

    fn doing<T>(
        &self,
        what: &str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SqliteError> {
        work(&self.connection).map_err(|source| SqliteError::new(&self.path, what, source))
    }
}
