//! A shard file as a whole, on its way into files of another layout: all that is read of it, and how such a file is
//! made. Rows, tombstones and entries of the change log go by their keys; what has none goes into every file.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::event_times::{self, EventTimes, PartitionTime};
use super::floors::{self, Floor};
use super::index::{self, Index};
use super::{SCHEMA, topic_table_sql};
use crate::storage::sqlite::{self, SqliteError, quoted};

/// Changes that one transaction of a new file takes at most.
const TRANSACTION_RECORDS: usize = 20_000;

/// A row of a topic, an entry of the change log or a tombstone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Record {
    Row {
        key: String,
        payload: Option<String>,
        timestamp: Option<i64>,
        change: Option<String>,
    },
    Tombstone {
        key: String,
        timestamp: i64,
    },
    Logged {
        key: String,
        old: Option<String>,
        new: Option<String>,
        old_timestamp: Option<i64>,
        timestamp: i64,
        change: Option<String>,
        kind: i64,
    },
}

impl Record {
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Row { key, .. } | Self::Tombstone { key, .. } | Self::Logged { key, .. } => key,
        }
    }

    /// The memory that it takes, about, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        size_of::<Self>()
            + self.key().len()
            + match self {
                Self::Row { payload, change, .. } => text(payload) + text(change),
                Self::Tombstone { .. } => 0,
                Self::Logged { old, new, change, .. } => text(old) + text(new) + text(change),
            }
    }

    /// Where it belongs in a [`RecordTally`].
    fn kind(&self) -> RecordKind {
        match self {
            Self::Row { .. } => RecordKind::Row,
            Self::Tombstone { .. } => RecordKind::Tombstone,
            Self::Logged { .. } => RecordKind::Logged,
        }
    }
}

/// The kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RecordKind {
    Row,
    Tombstone,
    Logged,
}

/// How many records there are of each kind and topic, with a checksum that doesn't depend on their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RecordTally {
    pub(crate) of: BTreeMap<(RecordKind, String), (u64, u64)>,
}

impl RecordTally {
    pub(crate) fn count(&mut self, topic: &str, record: &Record) {
        let mut hasher = DefaultHasher::new();
        record.hash(&mut hasher);
        let name = (record.kind(), topic.to_ascii_lowercase());
        let (count, sum) = self.of.entry(name).or_default();
        *count += 1;
        *sum = sum.wrapping_add(hasher.finish());
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (name, (count, sum)) in other.of {
            let (all, whole) = self.of.entry(name).or_default();
            *all += count;
            *whole = whole.wrapping_add(sum);
        }
    }
}

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
        self.doing("read its size", |connection| {
            let pragma = |name: &str| -> rusqlite::Result<u64> {
                connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
            };
            Ok((pragma("page_count")? - pragma("freelist_count")?) * pragma("page_size")?)
        })
    }

    /// The newest number in the change log.
    pub(crate) fn last_seq(&self) -> Result<i64, SqliteError> {
        self.doing("read changes", last_seq)
    }

    /// The row of a key.
    pub(crate) fn row(&self, topic: &str, key: &str) -> Result<Option<Record>, SqliteError> {
        self.doing("read a row", |connection| row(connection, topic, key))
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
        mut each: impl FnMut(&str, Record) -> Result<(), E>,
    ) -> Result<(), E> {
        self.rows(&mut each)?;
        self.tombstones(&mut each)?;
        self.logged(after, &mut each)
    }

    /// Calls `each` for every row, with the name of the topic.
    pub(crate) fn rows<E: From<SqliteError>>(
        &self,
        mut each: impl FnMut(&str, Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let names = self.doing("read the shard", topics)?;
        for name in names.values() {
            let sql = format!("SELECT key, payload, timestamp, _change FROM {}", quoted(name));
            self.each(
                &sql,
                [],
                |row| {
                    let record = Record::Row {
                        key: row.get(0)?,
                        payload: row.get(1)?,
                        timestamp: row.get(2)?,
                        change: row.get(3)?,
                    };
                    Ok((name.as_str(), record))
                },
                &mut each,
            )?;
        }
        Ok(())
    }

    /// Calls `each` for every tombstone, with the name of the topic.
    pub(crate) fn tombstones<E: From<SqliteError>>(
        &self,
        mut each: impl FnMut(&str, Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let names = self.doing("read the shard", topics)?;
        let name_of = |id: i64| names.get(&id).map(String::as_str).unwrap_or_default();
        self.each(
            "SELECT topic, key, timestamp FROM _tombstones",
            [],
            |row| Ok((name_of(row.get(0)?), Record::Tombstone { key: row.get(1)?, timestamp: row.get(2)? })),
            &mut each,
        )
    }

    /// Calls `each` for the entries of the change log after `after`, in their order, with the name of the topic.
    pub(crate) fn logged<E: From<SqliteError>>(
        &self,
        after: i64,
        mut each: impl FnMut(&str, Record) -> Result<(), E>,
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
                    key: row.get(1)?,
                    old: row.get(2)?,
                    new: row.get(3)?,
                    old_timestamp: row.get(4)?,
                    timestamp: row.get(5)?,
                    change: row.get(6)?,
                    kind: row.get(7)?,
                };
                Ok((name_of(row.get(0)?), record))
            },
            &mut each,
        )
    }

    fn each<'n, E: From<SqliteError>>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<(&'n str, Record)>,
        each: &mut impl FnMut(&str, Record) -> Result<(), E>,
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
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Record::Row {
            key: row.get(0)?,
            payload: row.get(1)?,
            timestamp: row.get(2)?,
            change: row.get(3)?,
        })
    };
    connection.prepare_cached(&sql)?.query_row([key], read).optional()
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
    /// Records of the open transaction.
    pending: usize,
}

impl ShardImport {
    /// Makes the file; its topics get their numbers in the order of their names here. `cache_kib` bounds its memory.
    pub(crate) fn create(path: &Path, topics: &[String], cache_kib: i64) -> Result<Self, SqliteError> {
        let connection = sqlite::open_scratch(path)?;
        let make = || -> rusqlite::Result<()> {
            connection.pragma_update(None, "cache_size", -cache_kib)?;
            for schema in [SCHEMA, index::SCHEMA, event_times::SCHEMA] {
                connection.execute_batch(schema)?;
            }
            for (id, name) in (1_i64..).zip(topics) {
                add_topic(&connection, id, name)?;
            }
            connection.execute_batch("BEGIN")
        };
        make().map_err(|source| SqliteError::new(path, "make the shard", source))?;
        Ok(Self { path: path.to_owned(), connection, pending: 0 })
    }

    /// Makes another topic, whose index among all is `index`.
    pub(crate) fn add_topic(&self, index: usize, name: &str) -> Result<(), SqliteError> {
        let id = i64::try_from(index).expect("a few topics") + 1;
        self.doing("make a topic", |connection| add_topic(connection, id, name))
    }

    /// Takes records, each with the index of its topic.
    pub(crate) fn write(
        &mut self,
        topics: &[String],
        records: &[(usize, Record)],
    ) -> Result<(), SqliteError> {
        let write = || -> rusqlite::Result<()> {
            let mut rows: Vec<Option<CachedStatement<'_>>> = topics.iter().map(|_| None).collect();
            for (topic, record) in records {
                let id = i64::try_from(*topic).expect("a few topics") + 1;
                match record {
                    Record::Row { key, payload, timestamp, change } => {
                        if rows[*topic].is_none() {
                            let table = quoted(&topics[*topic]);
                            let sql = format!(
                                "INSERT INTO {table} (key, payload, timestamp, _change) VALUES (?1, ?2, ?3, ?4)"
                            );
                            rows[*topic] = Some(self.connection.prepare_cached(&sql)?);
                        }
                        let insert = rows[*topic].as_mut().expect("it was prepared");
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
        write().map_err(|source| SqliteError::new(&self.path, "write a row", source))?;
        self.pending += records.len();
        if self.pending >= TRANSACTION_RECORDS {
            self.pending = 0;
            self.doing("commit rows", |connection| connection.execute_batch("COMMIT; BEGIN"))?;
        }
        Ok(())
    }

    /// Adds what has no key, builds the indexes, and leaves a whole file that the disk has.
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
        let sync = || std::fs::File::open(&path)?.sync_all();
        sync().map_err(|error| {
            SqliteError::new(&path, "sync the file", rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
        })
    }

    fn doing<T>(
        &self,
        what: &str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SqliteError> {
        work(&self.connection).map_err(|source| SqliteError::new(&self.path, what, source))
    }
}
