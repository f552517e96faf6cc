//! Keeping the outbox small. It holds what a sink still has to get, and what an SSE client that comes back may
//! ask for; above its size limit it keeps only the newest event of each key for sinks that lag.

use rusqlite::params;

use super::event::{JoinId, Position};
use super::store::Results;
use super::tables::{DOUBTFUL, meta, remove_events, set};
use crate::fault;
use crate::storage::sqlite::SqliteError;

/// Events that one transaction removes or looks at, so that epochs need not wait long.
const EVENTS_PER_STEP: usize = 10_000;

/// The events that stay in the outbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// Events stored at or after this time (seconds since the epoch) stay, unless the outbox is too large.
    pub(crate) since: i64,
    /// The cursor of the slowest sink that must get everything; `None` if no sink must.
    pub(crate) slowest: Option<Position>,
    pub(crate) bytes_max: u64,
}

/// The effects of a pass over the outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tidied {
    /// Events that every sink has had.
    pub(crate) trimmed: u64,
    /// Events that were superseded before a lagging sink had them.
    pub(crate) compacted: u64,
    /// The size of the events that are left, in bytes.
    pub(crate) bytes: u64,
}

impl Results {
    /// Moves a sink's cursor forward.
    pub(crate) fn move_cursor(&self, sink: &str, position: Position) -> Result<(), SqliteError> {
        fault::point("delivered");
        self.doing("move a cursor", |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO cursors (sink, epoch, n) VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET epoch = excluded.epoch, n = excluded.n",
                )?
                .execute(params![sink, position.epoch, position.n])?;
            fault::point("cursor-moved");
            Ok(())
        })
    }

    /// The cursor of the sink that is furthest behind; the very beginning if no sink has one yet.
    pub(crate) fn slowest_cursor(&self) -> Result<Position, SqliteError> {
        self.doing("read the cursors", |connection| {
            connection
                .prepare_cached("SELECT epoch, n FROM cursors ORDER BY epoch, n LIMIT 1")?
                .query_map([], |row| Ok(Position { epoch: row.get(0)?, n: row.get(1)? }))?
                .next()
                .transpose()
                .map(Option::unwrap_or_default)
        })
    }

    /// Notes that a sink is about to be handed the present state of a join. From here on it is told every change.
    pub(crate) fn subscribe(&self, sink: &str, join: JoinId) -> Result<(), SqliteError> {
        self.doing("store a subscription", |connection| {
            let transaction = connection.transaction()?;
            for table in ["subscriptions", "hand_overs"] {
                let sql = format!("INSERT OR IGNORE INTO {table} VALUES (?1, ?2)");
                transaction.execute(&sql, params![sink, join.0])?;
            }
            transaction.commit()
        })
    }

    /// Notes that a sink has been handed the whole of it.
    pub(crate) fn handed_over(&self, sink: &str, join: JoinId) -> Result<(), SqliteError> {
        self.doing("store the end of a hand-over", |connection| {
            connection
                .execute("DELETE FROM hand_overs WHERE sink = ?1 AND join_id = ?2", params![sink, join.0])?;
            Ok(())
        })
    }

    /// Forgets that a sink was handed any other join than `joins`: should it take one again, it gets the whole.
    pub(crate) fn unsubscribe_others(&self, sink: &str, joins: &[JoinId]) -> Result<(), SqliteError> {
        self.doing("forget subscriptions", |connection| {
            let ids: Vec<i64> = joins.iter().map(|join| join.0).collect();
            let ids = serde_json::to_string(&ids).expect("numbers are always JSON");
            for table in ["subscriptions", "hand_overs", "withheld"] {
                let sql = format!(
                    "DELETE FROM {table} WHERE sink = ?1 AND join_id NOT IN (SELECT value FROM json_each(?2))"
                );
                connection.execute(&sql, params![sink, ids])?;
            }
            Ok(())
        })
    }

    /// Forgets the cursors and subscriptions of sinks that are not among `sinks`.
    pub(crate) fn forget_other_sinks(&self, sinks: &[&str]) -> Result<(), SqliteError> {
        self.doing("forget old sinks", |connection| {
            let names = serde_json::to_string(sinks).expect("names are always JSON");
            for table in ["cursors", "subscriptions", "hand_overs", "withheld"] {
                let sql = format!("DELETE FROM {table} WHERE sink NOT IN (SELECT value FROM json_each(?1))");
                connection.execute(&sql, [&names])?;
            }
            Ok(())
        })
    }

    /// Removes what may go, in steps that let epochs through in between.
    pub(crate) fn tidy_outbox(&self, keep: Keep) -> Result<Tidied, SqliteError> {
        let mut tidied = Tidied { bytes: self.outbox_bytes()?, ..Tidied::default() };
        while let Some((count, bytes)) = self.trim_step(keep, tidied.bytes > keep.bytes_max)? {
            tidied.trimmed += count;
            tidied.bytes = bytes;
        }
        let mut after = Position::default();
        while tidied.bytes > keep.bytes_max {
            let Some((up_to, count, bytes)) = self.compact_step(after)? else { break };
            after = up_to;
            tidied.compacted += count;
            tidied.bytes = bytes;
        }
        Ok(tidied)
    }

    /// Whether results may be stored that don't follow from what is in the topics.
    pub(crate) fn is_doubtful(&self) -> Result<bool, SqliteError> {
        self.doing("read whether results are doubtful", |connection| {
            Ok(meta::<i64>(connection, DOUBTFUL)?.is_some())
        })
    }

    /// Removes events that no sink should get any more, now that every join was evaluated: results that followed from
    /// lost messages, and that have been taken back.
    pub(crate) fn end_recovery(&self) -> Result<(), SqliteError> {
        let mut after = Position::default();
        while let Some((up_to, ..)) = self.compact_step(after)? {
            after = up_to;
        }
        fault::point("outbox-settled");
        self.doing("note that the results are settled", |connection| {
            connection.execute("DELETE FROM meta WHERE name = ?1", [DOUBTFUL])?;
            Ok(())
        })
    }

    /// Size of the outbox in bytes.
    pub(crate) fn outbox_bytes(&self) -> Result<u64, SqliteError> {
        self.doing("read the outbox", |connection| Ok(meta(connection, "outbox_bytes")?.unwrap_or(0)))
    }

    /// Removes old events that every sink has had; all that every sink has had if the outbox is `too_large`.
    fn trim_step(&self, keep: Keep, too_large: bool) -> Result<Option<(u64, u64)>, SqliteError> {
        self.doing("trim the outbox", |connection| {
            let transaction = connection.transaction()?;
            let mut last = None;
            {
                let mut statement = transaction
                    .prepare_cached("SELECT epoch, n, timestamp FROM outbox ORDER BY epoch, n LIMIT ?1")?;
                let mut rows = statement.query([EVENTS_PER_STEP])?;
                while let Some(row) = rows.next()? {
                    let position = Position { epoch: row.get(0)?, n: row.get(1)? };
                    let wanted_by_sink = keep.slowest.is_some_and(|slowest| position > slowest);
                    let wanted_by_window = !too_large && row.get::<_, i64>(2)? >= keep.since;
                    if wanted_by_sink || wanted_by_window {
                        break;
                    }
                    last = Some(position);
                }
            }
            let Some(last) = last else { return Ok(None) };
            let (count, bytes) = remove_events(
                &transaction,
                "DELETE FROM outbox WHERE (epoch, n) <= (?1, ?2) RETURNING length(CAST(key AS BLOB)), \
                 length(CAST(rows AS BLOB))",
                params![last.epoch, last.n],
            )?;
            set(&transaction, "horizon_epoch", last.epoch)?;
            set(&transaction, "horizon_n", last.n)?;
            fault::point("outbox-trimmed");
            transaction.commit()?;
            Ok(Some((count, bytes)))
        })
    }

    /// Removes superseded events among the next few thousand after `after`. An event is superseded when the
    /// stored result is newer, or when the result is gone and the event is not the one that says so.
    fn compact_step(&self, after: Position) -> Result<Option<(Position, u64, u64)>, SqliteError> {
        self.doing("compact the outbox", |connection| {
            let transaction = connection.transaction()?;
            let up_to: Option<Position> = transaction
                .prepare_cached(
                    "SELECT epoch, n FROM (SELECT epoch, n FROM outbox WHERE (epoch, n) > (?1, ?2)
                                           ORDER BY epoch, n LIMIT ?3)
                     ORDER BY epoch DESC, n DESC LIMIT 1",
                )?
                .query_map(params![after.epoch, after.n, EVENTS_PER_STEP], |row| {
                    Ok(Position { epoch: row.get(0)?, n: row.get(1)? })
                })?
                .next()
                .transpose()?;
            let Some(up_to) = up_to else { return Ok(None) };
            let (count, bytes) = remove_events(
                &transaction,
                "DELETE FROM outbox WHERE (epoch, n) > (?1, ?2) AND (epoch, n) <= (?3, ?4) AND (
                     EXISTS (SELECT 1 FROM results AS r WHERE r.join_id = outbox.join_id AND r.key = outbox.key
                             AND (r.epoch, r.n) > (outbox.epoch, outbox.n))
                     OR op <> 'deleted' AND NOT EXISTS (SELECT 1 FROM results AS r
                             WHERE r.join_id = outbox.join_id AND r.key = outbox.key))
                 RETURNING length(CAST(key AS BLOB)), length(CAST(rows AS BLOB))",
                params![after.epoch, after.n, up_to.epoch, up_to.n],
            )?;
            transaction.commit()?;
            Ok(Some((up_to, count, bytes)))
        })
    }
}
