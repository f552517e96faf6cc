//! The keys that a topic has, page by page, to find those that are gone from an API.

use std::path::Path;

use rusqlite::OptionalExtension;

use crate::storage::sqlite::{self, SqliteError, quoted};

/// Keys that are looked at together.
const KEYS_MAX: usize = 1_000;

/// The next keys of a topic in a shard, in their order.
pub(super) fn keys_after(shard: &Path, topic: &str, after: &str) -> Result<Vec<Box<str>>, SqliteError> {
    let connection = sqlite::open_reader(shard)?;
    let read = || -> rusqlite::Result<Vec<Box<str>>> {
        let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
        if connection.query_row(sql, [topic], |_| Ok(())).optional()?.is_none() {
            return Ok(Vec::new());
        }
        let sql = format!("SELECT key FROM {} WHERE key > ?1 ORDER BY key LIMIT {KEYS_MAX}", quoted(topic));
        let mut statement = connection.prepare(&sql)?;
        statement.query_map([after], |row| Ok(row.get_ref(0)?.as_str()?.into()))?.collect()
    };
    read().map_err(|source| SqliteError::new(shard, "read the keys of a topic", source))
}
