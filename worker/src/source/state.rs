//! `sources.db`: what sources remember besides their places.
//!
//! ```text
//! marks(stream, number, watermark)   of the last polls; one counts if every shard is beyond its number
//! noted(stream, key, digest)         records of a first poll that was not to be taken, until they change
//! page_tags(stream, page, …)         ETags of pages, of the poll whose records each stands for
//! column_types(source, name, type)   what columns of CSV were found to be, before a row of them is stored
//! ```

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;

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
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS page_tags (
        stream TEXT NOT NULL,
        page INTEGER NOT NULL,
        number INTEGER NOT NULL,
        tag TEXT NOT NULL,
        records INTEGER NOT NULL,
        next TEXT,
        more INTEGER,
        total INTEGER,
        PRIMARY KEY (stream, page)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS column_types (
        source TEXT NOT NULL,
        name TEXT NOT NULL,
        type TEXT NOT NULL,
        PRIMARY KEY (source, name)
    ) WITHOUT ROWID;";

/// The file, opened by the first source that needs it.
pub(crate) struct States {
    path: PathBuf,
    journal: Journal,
    connection: Mutex<Option<Connection>>,
}

impl States {
    pub(crate) fn new(data_dir: &Path, journal: impl Into<Journal>) -> Self {
        Self { path: data_dir.join(SOURCES_FILE), journal: journal.into(), connection: Mutex::new(None) }
    }

    /// Makes the file before any source needs it.
    pub(crate) fn make(&self) -> Result<(), SqliteError> {
        self.doing("make the file", |_| Ok(()))
    }

    /// Does some work on the file, whose errors say `what` it is.
    pub(super) fn doing<T>(
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
