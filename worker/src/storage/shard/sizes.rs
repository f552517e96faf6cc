//! How much is in each topic of a shard file: rows, and the bytes of their keys and payloads. The numbers are stored in the
//! transaction that changes the rows, so that no start has to count what is there.

use rusqlite::{Connection, params};

use super::{Pending, Shard};
use crate::status::topics::TopicSize;
use crate::storage::sqlite::{SqliteError, quoted};
use crate::storage::topics::TopicId;

/// `seq` is the newest entry of `_chg` that the numbers follow from; the greatest one is the newest of the file.
pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS _sizes (
        topic INTEGER PRIMARY KEY,
        rows INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        seq INTEGER NOT NULL
    ) WITHOUT ROWID;";

/// Notes that a topic has no rows yet.
pub(super) fn begin(connection: &Connection, topic: i64) -> rusqlite::Result<()> {
    connection.execute("INSERT OR IGNORE INTO _sizes VALUES (?1, 0, 0, 0)", [topic]).map(drop)
}

/// Counts all topics anew if some change did not go into their sizes: an earlier version or a re-shard wrote it.
pub(super) fn settle(connection: &Connection, last_seq: i64) -> rusqlite::Result<()> {
    let is_settled: bool = connection.query_row(
        "SELECT (SELECT ifnull(max(seq), 0) FROM _sizes) = ?1
            AND NOT EXISTS (SELECT 1 FROM _topics WHERE id NOT IN (SELECT topic FROM _sizes))",
        [last_seq],
        |row| row.get(0),
    )?;
    if is_settled {
        return Ok(());
    }
    let topics = super::transfer::topics(connection)?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let count = |(id, name): (i64, String)| {
        let sql = format!(
            "INSERT OR REPLACE INTO _sizes
             SELECT ?1, count(*), ifnull(sum(octet_length(key) + ifnull(octet_length(payload), 0)), 0), ?2 FROM {}",
            quoted(&name)
        );
        connection.execute(&sql, params![id, last_seq]).map(drop)
    };
    let counted = topics.into_iter().try_for_each(count).and_then(|()| connection.execute_batch("COMMIT"));
    if counted.is_err() && !connection.is_autocommit() {
        // The first error says more than one of the rollback, which the next open makes up for.
        let _ = connection.execute_batch("ROLLBACK");
    }
    counted
}

impl Shard {
    /// How much is in each topic.
    pub(crate) fn sizes(&self) -> Result<Vec<(TopicId, TopicSize)>, SqliteError> {
        let read = || -> rusqlite::Result<_> {
            let mut size = self.connection.prepare("SELECT rows, bytes FROM _sizes WHERE topic = ?1")?;
            let of_table = |(topic, table): (&TopicId, &super::TopicTable)| {
                let read = |row: &rusqlite::Row<'_>| Ok(TopicSize { rows: row.get(0)?, bytes: row.get(1)? });
                Ok((*topic, size.query_row([table.id], read)?))
            };
            self.tables.iter().map(of_table).collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|source| SqliteError::new(&self.path, "read the sizes of its topics", source))
    }

    /// Writes what the transaction makes of the sizes.
    pub(super) fn store_sizes(&self, pending: &Pending) -> rusqlite::Result<()> {
        for (topic, growth) in &pending.sizes {
            self.connection
                .prepare_cached(
                    "UPDATE _sizes SET rows = rows + ?2, bytes = bytes + ?3, seq = ?4 WHERE topic = ?1",
                )?
                .execute(params![self.tables[topic].id, growth.rows, growth.bytes, pending.last_seq])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
