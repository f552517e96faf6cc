//! The newest event time that each partition of a source has brought, by clock: an expression over the rows of one
//! topic. Windows derive their watermarks from it. It is written in the transaction of the messages, so a message and
//! its time are there together or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Statement, params};
use serde::{Deserialize, Serialize};

use super::ShardBatch;
use super::index::IndexedRow;
use crate::storage::arrivals::BatchArrival;
use crate::storage::sqlite::{bind_row, quoted};
use crate::storage::topics::TopicId;

pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS _event_clocks (name TEXT PRIMARY KEY, definition TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS _event_times (
        clock TEXT NOT NULL,
        partition TEXT NOT NULL,
        newest INTEGER,
        arrived INTEGER NOT NULL,
        PRIMARY KEY (clock, partition)
    ) WITHOUT ROWID;";

/// The partition to which rows count that were there before the clock was.
pub(crate) const PAST: &str = "";

/// The event time of the messages of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct EventTimes {
    pub(crate) topic: String,
    /// SQL over the columns of the topic: seconds since the Unix epoch, or NULL.
    pub(crate) expression: String,
    /// The expression over parameters: 1 is the key, 2 the payload, 3 the timestamp.
    pub(crate) parameters: String,
}

/// The newest event time of one partition of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartitionTime {
    /// The greatest event time, in seconds since the Unix epoch; `None` before the first.
    pub(crate) newest: Option<i64>,
    /// The greatest event time of messages that are stored with all before them.
    pub(crate) sure: Option<i64>,
    /// The second of the clock at which the last message arrived.
    pub(crate) arrived: i64,
}

impl PartitionTime {
    /// Takes in what another shard knows of the partition.
    pub(crate) fn merge(&mut self, other: Self) {
        self.newest = self.newest.max(other.newest);
        self.arrived = self.arrived.max(other.arrived);
    }
}

impl EventTimes {
    /// Returns the name of the clock in the file, the same for the same expression.
    pub(crate) fn name(&self) -> String {
        format!("{}\n{}", self.topic.to_ascii_lowercase(), self.expression)
    }

    /// Returns the clocks of a file.
    pub(super) fn present(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        let read = |row: &rusqlite::Row<'_>| Ok(serde_json::from_str(row.get_ref(0)?.as_str()?).ok());
        let clocks: rusqlite::Result<Vec<Option<Self>>> =
            connection.prepare("SELECT definition FROM _event_clocks")?.query_map([], read)?.collect();
        Ok(clocks?.into_iter().flatten().collect())
    }

    /// Starts the clock with the rows that are there, as of `now`.
    pub(super) fn start(&self, connection: &Connection, now: i64) -> rusqlite::Result<()> {
        self.define(connection)?;
        let sql = format!("SELECT max({}) FROM {}", self.expression, quoted(&self.topic));
        let newest: Option<i64> = connection.query_row(&sql, [], |row| row.get(0)).optional()?.flatten();
        if newest.is_some() {
            put(connection, &self.name(), PAST, PartitionTime { newest, sure: None, arrived: now })?;
        }
        Ok(())
    }

    /// Notes that the file keeps the clock.
    pub(super) fn define(&self, connection: &Connection) -> rusqlite::Result<()> {
        let definition = serde_json::to_string(self).expect("a clock is always JSON");
        let sql = "INSERT INTO _event_clocks VALUES (?1, ?2)";
        connection.execute(sql, params![self.name(), definition]).map(drop)
    }

    /// Prepares the query for the time of a row.
    fn statement<'c>(&self, connection: &'c Connection) -> rusqlite::Result<CachedStatement<'c>> {
        connection.prepare_cached(&format!("SELECT {}", self.parameters))
    }

    /// Forgets the clock.
    pub(super) fn remove(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.execute("DELETE FROM _event_clocks WHERE name = ?1", [self.name()])?;
        connection.execute("DELETE FROM _event_times WHERE clock = ?1", [self.name()])?;
        Ok(())
    }
}

/// The newest event time that a batch brings, by the name of its clock.
pub(crate) type NotedTime = (Arc<BatchArrival>, Arc<str>, i64);

/// Notes the event times of batches that arrive at `now`; returns the newest of each by batch and clock.
pub(super) fn note(
    connection: &Connection,
    clocks: &HashMap<TopicId, Vec<EventTimes>>,
    batches: &[ShardBatch],
    now: i64,
) -> rusqlite::Result<Vec<NotedTime>> {
    let mut noted = Vec::new();
    if clocks.is_empty() {
        return Ok(noted);
    }
    let mut seen: BTreeMap<(Arc<str>, &str), PartitionTime> = BTreeMap::new();
    for batch in batches {
        for (topic, clock) in
            clocks.iter().flat_map(|(topic, clocks)| clocks.iter().map(move |c| (*topic, c)))
        {
            let mut messages = batch.messages.iter().filter(|message| message.topic == topic).peekable();
            if messages.peek().is_none() {
                continue;
            }
            let mut statement = clock.statement(connection)?;
            let mut newest = None;
            for message in messages {
                if let Some(payload) = &message.payload {
                    let timestamp = message.timestamp.unwrap_or(now);
                    newest = newest.max(time_of(&mut statement, &message.key, payload, timestamp)?);
                }
            }
            let name: Arc<str> = clock.name().into();
            if let (Some(newest), Some(arrival)) = (newest, batch.arrivals.last()) {
                noted.push((Arc::clone(arrival), Arc::clone(&name), newest));
            }
            let time = PartitionTime { newest, sure: None, arrived: now };
            seen.entry((name, &*batch.partition)).and_modify(|known| known.merge(time)).or_insert(time);
        }
    }
    for ((clock, partition), time) in seen {
        put(connection, &clock, partition, time)?;
    }
    Ok(noted)
}

/// Returns whether a message is older than the row that it would replace, by any of these times.
pub(super) fn is_older(
    connection: &Connection,
    times: &[EventTimes],
    row: IndexedRow<'_>,
    payload: &str,
    timestamp: i64,
) -> rusqlite::Result<bool> {
    for time in times {
        let mut statement = time.statement(connection)?;
        let stored = time_of(&mut statement, row.key, row.payload, row.timestamp)?;
        let new = time_of(&mut statement, row.key, payload, timestamp)?;
        if stored.zip(new).is_some_and(|(stored, new)| new < stored) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn time_of(
    statement: &mut Statement<'_>,
    key: &str,
    payload: &str,
    timestamp: i64,
) -> rusqlite::Result<Option<i64>> {
    bind_row(statement, key, payload, timestamp, None)?;
    let mut rows = statement.raw_query();
    rows.next()?.map_or(Ok(None), |row| row.get(0))
}

pub(super) fn put(
    connection: &Connection,
    clock: &str,
    partition: &str,
    time: PartitionTime,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO _event_times (clock, partition, newest, arrived) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET newest = max(ifnull(newest, excluded.newest), ifnull(excluded.newest, newest)),
                                       arrived = max(arrived, excluded.arrived)",
        )?
        .execute(params![clock, partition, time.newest, time.arrived])
        .map(drop)
}
