//! Reading a shard's change log. It only grows until it is trimmed, and it is trimmed only below what every
//! join has applied, so a range of sequence numbers reads the same at any time: no snapshot is held.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::{CachedStatement, Connection};

use super::expiry::NeededRows;
use super::shard::{KIND_EXPIRY, KIND_REFRESH};
use super::sqlite::{self, SqliteError};
use super::topics::{TopicId, Topics};

/// The entries of the change logs that a reader beside the joins still needs. All of it is set before that reader fixes
/// what it sees: whatever may be trimmed by then is older.
#[derive(Debug, Clone)]
pub(crate) struct LogHold(Arc<[AtomicI64]>);

impl LogHold {
    /// One that holds nothing.
    pub(crate) fn new(shard_count: usize) -> Self {
        Self((0..shard_count).map(|_| AtomicI64::new(i64::MAX)).collect())
    }

    /// Keeps all entries of a shard after `seq`.
    pub(crate) fn keep_after(&self, shard_index: usize, seq: i64) {
        self.0[shard_index].store(seq, Ordering::SeqCst);
    }

    /// Keeps nothing any more.
    pub(crate) fn release(&self) {
        self.0.iter().for_each(|held| held.store(i64::MAX, Ordering::SeqCst));
    }

    /// The last entry of a shard that is not held.
    pub(crate) fn trimmable(&self, shard_index: usize) -> i64 {
        self.0[shard_index].load(Ordering::SeqCst)
    }
}

/// The reading side of one shard file.
pub(crate) struct ShardReader {
    path: PathBuf,
    connection: Connection,
    /// Topics by their number in this file.
    topics: HashMap<i64, TopicId>,
}

/// One entry of `_chg`: what stood in the topic before, and what stands there afterwards.
pub(crate) struct LoggedChange<'a> {
    pub(crate) topic: TopicId,
    pub(crate) key: &'a str,
    /// `None`: there was no row.
    pub(crate) old: Option<&'a str>,
    pub(crate) old_timestamp: i64,
    /// `None`: the row is gone.
    pub(crate) new: Option<&'a str>,
    pub(crate) timestamp: i64,
    pub(crate) change: Option<&'a str>,
    /// Whether retention removed the row and sinks are not told.
    pub(crate) expired: bool,
}

/// A row of a topic.
pub(crate) struct TopicRow<'a> {
    pub(crate) key: &'a str,
    pub(crate) payload: &'a str,
    pub(crate) timestamp: i64,
    pub(crate) change: Option<&'a str>,
}

impl ShardReader {
    pub(crate) fn open(path: &Path) -> Result<Self, SqliteError> {
        Ok(Self { path: path.to_owned(), connection: sqlite::open_reader(path)?, topics: HashMap::new() })
    }

    /// Opens a file to read from it alone, also where no worker runs.
    pub(crate) fn open_read_only(path: &Path) -> Result<Self, SqliteError> {
        Ok(Self { path: path.to_owned(), connection: sqlite::open_read_only(path)?, topics: HashMap::new() })
    }

    /// The newest number in the log: what the topics hold follows from all up to it.
    pub(crate) fn last_seq(&self) -> Result<i64, SqliteError> {
        self.doing("read changes", |connection| {
            connection.query_row("SELECT ifnull(max(seq), 0) FROM _chg", [], |row| row.get(0))
        })
    }

    /// Fixes what this reader sees, until [`Self::release`].
    pub(crate) fn hold(&self) -> Result<(), SqliteError> {
        self.doing("begin to read", sqlite::hold)
    }

    /// Sees the newest state again.
    pub(crate) fn release(&self) {
        sqlite::release(&self.connection);
    }

    /// Whether the log still holds every entry after `after`, up to `to`.
    pub(crate) fn has_all(&self, after: i64, to: i64) -> Result<bool, SqliteError> {
        if after == to {
            return Ok(true);
        }
        self.doing("read changes", |connection| {
            let range = "SELECT count(*) FROM _chg WHERE seq IN (?1 + 1, ?2)";
            let ends: i64 = connection.prepare_cached(range)?.query_row([after, to], |row| row.get(0))?;
            Ok(after < to && ends == if after + 1 == to { 1 } else { 2 })
        })
    }

    /// A statement on this file, kept for its next use.
    pub(crate) fn prepare(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.connection.prepare_cached(sql)
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `each` for every entry in `after < seq <= to` that queries can see, in order.
    pub(crate) fn changes<E: From<SqliteError>>(
        &mut self,
        after: i64,
        to: i64,
        topics: &Topics,
        mut each: impl FnMut(LoggedChange<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |source| SqliteError::new(&self.path, "read changes", source);
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT topic, key, new, timestamp, change, old, old_timestamp, kind FROM _chg
                 WHERE seq > ?1 AND seq <= ?2 AND kind <> ?3 ORDER BY seq",
            )
            .map_err(failed)?;
        let mut rows = statement.query([after, to, KIND_REFRESH]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let id: i64 = row.get(0).map_err(failed)?;
            let topic = match self.topics.get(&id) {
                Some(topic) => *topic,
                None => {
                    let topic = topic_of(&self.connection, id, topics).map_err(failed)?;
                    self.topics.insert(id, topic);
                    topic
                }
            };
            let text =
                |index| row.get_ref(index).and_then(|value| Ok(value.as_str_or_null()?)).map_err(failed);
            each(LoggedChange {
                topic,
                key: text(1)?.unwrap_or_default(),
                new: text(2)?,
                timestamp: row.get(3).map_err(failed)?,
                change: text(4)?,
                old: text(5)?,
                old_timestamp: row.get::<_, Option<i64>>(6).map_err(failed)?.unwrap_or_default(),
                expired: row.get::<_, i64>(7).map_err(failed)? == KIND_EXPIRY,
            })?;
        }
        Ok(())
    }

    /// Calls `each` for every row of a topic, in no order.
    pub(crate) fn rows<E: From<SqliteError>>(
        &self,
        topic_name: &str,
        mut each: impl FnMut(TopicRow<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |source| SqliteError::new(&self.path, "read a topic", source);
        let known: bool = self
            .connection
            .query_row("SELECT EXISTS (SELECT 1 FROM _topics WHERE name = ?1)", [topic_name], |row| {
                row.get(0)
            })
            .map_err(failed)?;
        if !known {
            return Ok(());
        }
        let sql = format!("SELECT key, payload, timestamp, _change FROM {}", sqlite::quoted(topic_name));
        let mut statement = self.connection.prepare(&sql).map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let text =
                |index| row.get_ref(index).and_then(|value| Ok(value.as_str_or_null()?)).map_err(failed);
            each(TopicRow {
                key: text(0)?.unwrap_or_default(),
                payload: text(1)?.unwrap_or_default(),
                timestamp: row.get(2).map_err(failed)?,
                change: text(3)?,
            })?;
        }
        Ok(())
    }

    /// Keys of rows older than `before`, at most `limit`, and the oldest timestamp that stays if all of them go
    /// (`None` where nothing stays, or more than `limit` are due).
    pub(crate) fn expired(
        &self,
        topic_name: &str,
        before: i64,
        needed: &[NeededRows],
        limit: usize,
    ) -> Result<(Vec<String>, Option<i64>), SqliteError> {
        let mut keys = Vec::new();
        let mut oldest_kept: Option<i64> = None;
        self.doing("look for expired rows", |connection| {
            let known: bool = connection.query_row(
                "SELECT EXISTS (SELECT 1 FROM _topics WHERE name = ?1)",
                [topic_name],
                |row| row.get(0),
            )?;
            if !known {
                return Ok(());
            }
            let mut sql = format!("SELECT key, timestamp FROM {} WHERE TRUE", sqlite::quoted(topic_name));
            for NeededRows { time, since, .. } in needed.iter().filter(|needed| needed.is_of(topic_name)) {
                sql.push_str(&format!(" AND ifnull({time} < {since}, TRUE)"));
            }
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let timestamp: i64 = row.get(1)?;
                if timestamp >= before {
                    oldest_kept = Some(oldest_kept.map_or(timestamp, |oldest| oldest.min(timestamp)));
                } else {
                    keys.push(row.get(0)?);
                    if keys.len() == limit {
                        oldest_kept = None;
                        break;
                    }
                }
            }
            Ok(())
        })?;
        Ok((keys, oldest_kept))
    }

    /// Whether any tombstone is older than `before`.
    pub(crate) fn has_tombstones_before(&self, before: i64) -> Result<bool, SqliteError> {
        self.doing("look for old tombstones", |connection| {
            connection.query_row(
                "SELECT EXISTS (SELECT 1 FROM _tombstones WHERE timestamp < ?1)",
                [before],
                |row| row.get(0),
            )
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

fn topic_of(connection: &Connection, id: i64, topics: &Topics) -> rusqlite::Result<TopicId> {
    let name: Arc<str> = connection.query_row("SELECT name FROM _topics WHERE id = ?1", [id], |row| {
        Ok(row.get_ref(0)?.as_str()?.into())
    })?;
    Ok(topics.declare(&name))
}
