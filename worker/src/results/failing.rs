//! Result keys whose evaluation fails, such as one whose row holds malformed JSON inside a text. The stored result of such
//! a key stays as it was, until a change of its rows mends it; the other results of the join go on.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::event::JoinId;
use super::store::{EpochWriter, Results};
use crate::storage::sqlite::SqliteError;

/// Result keys of one join that may fail at once; above that all of the join fails.
pub(crate) const FAILING_KEYS_MAX: usize = 65_536;

/// How a join stands: what its stored results follow from, and which of them don't.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The newest cut that the results follow from.
    pub(crate) epoch: u64,
    /// Whether the query has failed as a whole since, or was not evaluated yet.
    pub(crate) has_failed: bool,
    /// Result keys that fail, as JSON, each with the reason.
    pub(crate) failing: BTreeMap<String, String>,
}

impl Standing {
    pub(super) fn read(connection: &Connection, join: JoinId) -> rusqlite::Result<Self> {
        let (epoch, has_failed) = connection
            .prepare_cached("SELECT epoch, stale = 1 FROM joins WHERE id = ?1")?
            .query_row([join.0], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?
            .unwrap_or_default();
        Ok(Self { epoch, has_failed, failing: failing(connection, join)? })
    }
}

fn failing(connection: &Connection, join: JoinId) -> rusqlite::Result<BTreeMap<String, String>> {
    connection
        .prepare_cached("SELECT key, error FROM failing WHERE join_id = ?1")?
        .query_map([join.0], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

impl Results {
    /// The result keys of a join that fail, as JSON, each with the reason.
    pub(crate) fn failing(&self, join: JoinId) -> Result<BTreeMap<String, String>, SqliteError> {
        self.doing("read the failing keys", |connection| failing(connection, join))
    }
}

impl EpochWriter<'_> {
    /// Notes that a result key of a join fails.
    pub(crate) fn fail(&mut self, join: JoinId, key: &str, error: &str) -> Result<(), SqliteError> {
        self.writes += 1;
        self.noting_failure(
            "INSERT OR REPLACE INTO failing (join_id, key, error) VALUES (?1, ?2, ?3)",
            params![join.0, key, error],
        )
    }

    /// Notes that a result key of a join fails no more.
    pub(crate) fn mend(&mut self, join: JoinId, key: &str) -> Result<(), SqliteError> {
        self.writes += 1;
        self.noting_failure("DELETE FROM failing WHERE join_id = ?1 AND key = ?2", params![join.0, key])
    }

    /// Notes that no result key of a join fails.
    pub(crate) fn mend_all(&mut self, join: JoinId) -> Result<(), SqliteError> {
        self.noting_failure("DELETE FROM failing WHERE join_id = ?1", [join.0])
    }

    fn noting_failure(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<(), SqliteError> {
        let write = || self.transaction.prepare_cached(sql)?.execute(parameters).map(drop);
        write().map_err(|source| SqliteError::new(self.path, "note a failing key", source))
    }
}
