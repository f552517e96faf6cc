//! `sources.db`: what api sources remember from poll to poll.
//!
//! ```text
//! marks(stream, number, watermark)   of the last polls; one counts if every shard is beyond its number
//! noted(stream, key, digest)         records of a first poll that was not to be taken, until they change
//! ```
//! The state is worth nothing without the shards: where they have lost the end of a poll, its mark does not count, and where
//! the file is lost the next poll is a first one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};

use crate::storage::layout::SOURCES_FILE;
use crate::storage::sqlite::{self, Journal, SqliteError};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS marks (
        stream TEXT NOT NULL,
        number INTEGER NOT NULL,
        watermark TEXT,
        PRIMARY KEY (stream, number)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS noted (
        stream TEXT NOT NULL,
        key TEXT NOT NULL,
        digest INTEGER NOT NULL,
        PRIMARY KEY (stream, key)
    ) WITHOUT ROWID;";

/// Marks of one stream that are kept: shards lose a few polls at most.
const MARKS_KEPT: u64 = 100;

/// The file, opened by the first source that needs it.
pub(crate) struct States {
    path: PathBuf,
    journal: Journal,
    connection: Mutex<Option<Connection>>,
}

/// The state that a poll leaves to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Polls have rising numbers; 0 is before the first.
    pub(super) number: u64,
    pub(super) watermark: Option<String>,
    /// Digests of records that were only noted, by their keys.
    pub(super) noted: Arc<HashMap<Box<str>, u64>>,
}

impl Mark {
    /// Whether no poll came before.
    pub(super) fn is_first(&self) -> bool {
        self.number == 0
    }
}

impl States {
    pub(crate) fn new(data_dir: &Path, journal: impl Into<Journal>) -> Self {
        Self { path: data_dir.join(SOURCES_FILE), journal: journal.into(), connection: Mutex::new(None) }
    }

    /// Makes the file before any source needs it.
    pub(crate) fn make(&self) -> Result<(), SqliteError> {
        self.doing("make the file", |_| Ok(()))
    }

    /// The mark of the last poll that every shard has stored; `stored` is the least of their places.
    pub(super) fn recall(&self, stream: &str, stored: u64) -> Result<Mark, SqliteError> {
        self.doing("read what sources remember", |connection| {
            let found = connection
                .query_row(
                    "SELECT number, watermark FROM marks WHERE stream = ?1 AND number < ?2
                     ORDER BY number DESC LIMIT 1",
                    params![stream, stored],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .optional()?;
            let Some((number, watermark)) = found else { return Ok(Mark::default()) };
            let mut statement = connection.prepare("SELECT key, digest FROM noted WHERE stream = ?1")?;
            let rows = statement.query_map([stream], |row| {
                Ok((Box::from(row.get_ref(0)?.as_str()?), row.get::<_, i64>(1)?.cast_unsigned()))
            })?;
            Ok(Mark { number, watermark, noted: Arc::new(rows.collect::<rusqlite::Result<_>>()?) })
        })
    }

    /// Stores a mark, with records that are noted and others that are no longer; returns the mark with these.
    pub(super) fn remember(
        &self,
        stream: &str,
        mut mark: Mark,
        noted: Vec<(Box<str>, u64)>,
        forgotten: Vec<Box<str>>,
    ) -> Result<Mark, SqliteError> {
        self.doing("store what sources remember", |connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "INSERT OR REPLACE INTO marks (stream, number, watermark) VALUES (?1, ?2, ?3)",
                params![stream, mark.number, mark.watermark],
            )?;
            transaction.execute(
                "DELETE FROM marks WHERE stream = ?1 AND number <=
                     (SELECT number FROM marks WHERE stream = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
                params![stream, MARKS_KEPT],
            )?;
            {
                let mut insert = transaction.prepare_cached(
                    "INSERT OR REPLACE INTO noted (stream, key, digest) VALUES (?1, ?2, ?3)",
                )?;
                for (key, digest) in noted {
                    insert.execute(params![stream, key, digest.cast_signed()])?;
                    Arc::make_mut(&mut mark.noted).insert(key, digest);
                }
                let mut delete =
                    transaction.prepare_cached("DELETE FROM noted WHERE stream = ?1 AND key = ?2")?;
                for key in forgotten {
                    delete.execute(params![stream, key])?;
                    Arc::make_mut(&mut mark.noted).remove(&key);
                }
            }
            transaction.commit()?;
            Ok(mark)
        })
    }

    /// Notes no longer what some records were like.
    pub(super) fn forget(&self, stream: &str, keys: &[Box<str>]) -> Result<(), SqliteError> {
        self.doing("store what sources remember", |connection| {
            let transaction = connection.transaction()?;
            for key in keys {
                transaction
                    .prepare_cached("DELETE FROM noted WHERE stream = ?1 AND key = ?2")?
                    .execute(params![stream, key])?;
            }
            transaction.commit()
        })
    }

    fn doing<T>(
        &self,
        what: &str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SqliteError> {
        let mut opened = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.is_none() {
            let connection = sqlite::open_writer(&self.path, self.journal)?;
            connection
                .execute_batch(SCHEMA)
                .map_err(|source| SqliteError::new(&self.path, "make the tables", source))?;
            *opened = Some(connection);
        }
        let connection = opened.as_mut().expect("it was opened above");
        work(connection).map_err(|source| SqliteError::new(&self.path, what, source))
    }
}
