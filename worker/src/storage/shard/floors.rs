//! Floors of streams: below which place the messages of a stream were stored by each shard of an earlier layout. Where
//! those shards were not equally far when their data was moved, the place of a stream alone would bring back values of
//! keys whose shard was further.

use rusqlite::{Connection, params};

use crate::storage::hash::shard_index;

/// The table is made only where there are floors.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS _floors (
        stream TEXT NOT NULL,
        shard_count INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        next INTEGER NOT NULL,
        PRIMARY KEY (stream, shard_count, shard)
    ) WITHOUT ROWID;";

/// How far a stream was in each shard of an earlier layout.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Floor {
    pub(crate) stream: String,
    /// The next place in the stream, by shard of that layout.
    pub(crate) next: Vec<u64>,
}

impl Floor {
    /// Whether the message with this key and place was stored before the data was moved.
    pub(super) fn has(&self, key: &str, place: u64) -> bool {
        place < self.next[shard_index(key, self.next.len())]
    }

    /// The place from which on it says nothing.
    pub(super) fn end(&self) -> u64 {
        self.next.iter().copied().max().unwrap_or_default()
    }
}

pub(super) fn read(connection: &Connection) -> rusqlite::Result<Vec<Floor>> {
    let is_there = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = '_floors')";
    if !connection.query_row(is_there, [], |row| row.get(0))? {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare(
        "SELECT stream, shard_count, shard, next FROM _floors ORDER BY stream, shard_count, shard",
    )?;
    let mut rows = statement.query([])?;
    let mut floors: Vec<Floor> = Vec::new();
    while let Some(row) = rows.next()? {
        let (stream, shard_count, shard): (String, usize, usize) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if !floors.last().is_some_and(|last| last.stream == stream && last.next.len() == shard_count) {
            floors.push(Floor { stream, next: vec![0; shard_count] });
        }
        if let Some(next) = floors.last_mut().and_then(|floor| floor.next.get_mut(shard)) {
            *next = row.get(3)?;
        }
    }
    Ok(floors)
}

pub(super) fn write(connection: &Connection, floors: &[Floor]) -> rusqlite::Result<()> {
    if floors.is_empty() {
        return Ok(());
    }
    connection.execute_batch(SCHEMA)?;
    let mut insert = connection.prepare(
        "INSERT INTO _floors VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET next = max(next, excluded.next)",
    )?;
    for floor in floors {
        for (shard, next) in floor.next.iter().enumerate() {
            insert.execute(params![floor.stream, floor.next.len(), shard, next])?;
        }
    }
    Ok(())
}
