//! Results that a sink withholds, since others that it can't tell from them came first: a Kafka record has room for one of
//! the keys `1` and `"1"`. Which of two was first is stored, for results alone do not say it.

use rusqlite::params;

use super::event::JoinId;
use super::reader::Reader;
use super::store::Results;
use crate::storage::sqlite::SqliteError;

/// A result and its twin, the one that a sink can't tell from it, as they are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Twins {
    /// Whether the sink withholds the result.
    pub(crate) is_withheld: bool,
    /// Whether there is a twin now.
    pub(crate) twin_is_there: bool,
    /// Whether the sink withholds the twin.
    pub(crate) twin_is_withheld: bool,
}

impl Reader {
    /// Looks at a result and its twin.
    pub(crate) fn twins(
        &self,
        sink: &str,
        join: JoinId,
        key: &str,
        twin: &str,
    ) -> Result<Twins, SqliteError> {
        self.doing("look for the twin of a result", |connection| {
            connection
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM withheld WHERE sink = ?1 AND join_id = ?2 AND key = ?3),
                            EXISTS (SELECT 1 FROM results WHERE join_id = ?2 AND key = ?4),
                            EXISTS (SELECT 1 FROM withheld WHERE sink = ?1 AND join_id = ?2 AND key = ?4)",
                )?
                .query_row(params![sink, join.0, key, twin], |row| {
                    Ok(Twins {
                        is_withheld: row.get(0)?,
                        twin_is_there: row.get(1)?,
                        twin_is_withheld: row.get(2)?,
                    })
                })
        })
    }
}

impl Results {
    /// Notes that a sink withholds a result, or does no longer.
    pub(crate) fn withhold(
        &self,
        sink: &str,
        join: JoinId,
        key: &str,
        is_withheld: bool,
    ) -> Result<(), SqliteError> {
        let sql = match is_withheld {
            true => "INSERT OR IGNORE INTO withheld (sink, join_id, key) VALUES (?1, ?2, ?3)",
            false => "DELETE FROM withheld WHERE sink = ?1 AND join_id = ?2 AND key = ?3",
        };
        self.doing("note a withheld result", |connection| {
            connection.prepare_cached(sql)?.execute(params![sink, join.0, key]).map(drop)
        })
    }
}
