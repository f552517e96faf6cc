//! One shard file: its tables, and what a batch of messages does to them in one transaction.
//!
//! ```text
//! "orders"(_row, key, payload, timestamp, _change)  one table a topic, last value of a key wins
//! _by_orders_…(value, _row), _indexes             by which joins look rows up
//! _topics(id, name)                               numbers of topics within this file
//! _chg(seq, topic, key, old, new, …)              old and new image of every change, until the joins have it
//! _event_clocks, _event_times(clock, partition, …) the newest event time of each source, for windows
//! _offsets(stream, next)                          how far each source's stream is in this shard
//! _floors(stream, shard_count, shard, next)       how far a stream was in the shards of an earlier layout
//! _tombstones(topic, key, timestamp)              deleted keys, so that an older message can't revive them
//! _sizes(topic, rows, bytes, seq)                 how much is in each topic, as of an entry of _chg
//! ```

mod coalesce;
mod event_times;
mod floors;
mod follow;
mod index;
mod pending;
mod record;
mod renew;
mod sizes;
mod table;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use hashbrown::HashMap;
use rusqlite::{Connection, OptionalExtension, params};
use tracing::info;

pub(crate) use self::event_times::{EventTimes, PAST, PartitionTime};
pub(crate) use self::floors::Floor;
pub(crate) use self::follow::ShardFollower;
use self::index::IndexedRow;
pub(crate) use self::index::{Index, IndexedTime};
pub(crate) use self::pending::{CommittedChanges, Pending};
pub(crate) use self::record::{FollowedChange, Record, RecordBatch, RecordKind, RecordTally};
use self::table::TopicTable;
pub(crate) use self::table::{KIND_EXPIRY, KIND_REFRESH, KIND_WRITE};
pub(crate) use self::transfer::{ShardExport, ShardFacts, ShardImport};
use super::arrivals::BatchArrival;
use super::checkpoint::{CheckpointWindow, checkpoint};
use super::expiry::{Expired, Expiry};
use super::sqlite::{self, Journal, SqliteError, quoted};
use super::topics::{TopicId, Topics};
use crate::fault;
use crate::status::topics::Counts;
use crate::storage::message::Message;

/// Entries of `_chg` that one transaction trims at most, so that no commit waits for a long delete.
const TRIM_ENTRIES_MAX: i64 = 4_000;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS _topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE);
    CREATE TABLE IF NOT EXISTS _chg (
        seq INTEGER PRIMARY KEY,
        topic INTEGER NOT NULL,
        key TEXT NOT NULL,
        old TEXT,
        new TEXT,
        old_timestamp INTEGER,
        timestamp INTEGER NOT NULL,
        change TEXT,
        kind INTEGER NOT NULL
    );
    CREATE TABLE IF NOT EXISTS _offsets (stream TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS _tombstones (
        topic INTEGER NOT NULL,
        key TEXT NOT NULL,
        timestamp INTEGER NOT NULL,
        PRIMARY KEY (topic, key)
    ) WITHOUT ROWID;";

/// Creates a topic's table; `name` is a plain identifier.
pub(crate) fn topic_table_sql(name: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (
            _row INTEGER PRIMARY KEY,
            key TEXT NOT NULL UNIQUE,
            payload TEXT,
            timestamp INTEGER,
            _change TEXT
        )",
        quoted(name)
    )
}

/// The writing side of one shard file.
pub(crate) struct Shard {
    path: PathBuf,
    connection: Connection,
    window: CheckpointWindow,
    tables: HashMap<TopicId, TopicTable>,
    offsets: HashMap<Arc<str>, u64>,
    /// Floors of streams that are not beyond them yet.
    floors: Vec<Floor>,
    /// Event times that windows need, by topic.
    clocks: HashMap<TopicId, Vec<EventTimes>>,
    /// Whether `_tombstones` may hold anything; while it can't, inserts need not look.
    has_tombstones: bool,
    /// Newest `seq` of `_chg` that was committed.
    last_seq: i64,
    /// Oldest `seq` that may still be in `_chg`.
    first_seq: i64,
}

/// The topics and indexes that joins need in every shard.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) topics: Vec<String>,
    pub(crate) indexes: Vec<Index>,
    pub(crate) clocks: Vec<EventTimes>,
    /// Event times of topics of which a message that is older than the one with its key changes nothing.
    pub(crate) ordered_by: Vec<EventTimes>,
    /// Topics of which a query reads the timestamp: a later message with the same payload moves the row to its own time.
    pub(crate) moved_by_time: Vec<String>,
}

/// Messages of one source that belong to this shard, with the stream they come from.
#[derive(Debug, Clone)]
pub(crate) struct ShardBatch {
    pub(crate) messages: Arc<Vec<Message>>,
    /// The partition of a source that they come from: event times advance in each by themselves.
    pub(crate) partition: Arc<str>,
    /// The batches of the source that they are parts of, the latest last.
    pub(crate) arrivals: Vec<Arc<BatchArrival>>,
    /// `None` for sources that can't go back.
    pub(crate) stream: Option<Stream>,
}

/// A place in a source's stream: everything below `next` has been handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) name: Arc<str>,
    pub(crate) next: u64,
}

impl Shard {
    /// Opens the file for writing, making its tables if they are not there, and declares the topics it holds.
    pub(crate) fn open(
        path: &Path,
        journal: impl Into<Journal>,
        topics: &Topics,
    ) -> Result<Self, SqliteError> {
        let journal = journal.into();
        let connection = sqlite::open_writer(path, journal)?;
        let load = || -> rusqlite::Result<_> {
            connection.execute_batch(SCHEMA)?;
            connection.execute_batch(index::SCHEMA)?;
            connection.execute_batch(event_times::SCHEMA)?;
            connection.execute_batch(sizes::SCHEMA)?;
            let names = connection
                .prepare("SELECT id, name FROM _topics")?
                .query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?
                .collect::<rusqlite::Result<Vec<(i64, String)>>>()?;
            let offsets = connection
                .prepare("SELECT stream, next FROM _offsets")?
                .query_map([], |row| Ok((Arc::from(row.get::<_, String>(0)?), row.get(1)?)))?
                .collect::<rusqlite::Result<HashMap<Arc<str>, u64>>>()?;
            let floors = floors::read(&connection)?;
            let has_tombstones =
                connection.query_row("SELECT EXISTS (SELECT 1 FROM _tombstones)", [], |row| row.get(0))?;
            let (first_seq, last_seq) = connection.query_row(
                "SELECT ifnull((SELECT min(seq) FROM _chg), 1), ifnull((SELECT max(seq) FROM _chg), 0)",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            sizes::settle(&connection, last_seq)?;
            let indexes = Index::present(&connection)?.into_iter().filter_map(|(_, index)| index).collect();
            let clocks = EventTimes::present(&connection)?;
            Ok((names, offsets, floors, has_tombstones, last_seq, first_seq, indexes, clocks))
        };
        let (names, offsets, mut floors, has_tombstones, last_seq, first_seq, indexes, clocks) =
            load().map_err(|source| SqliteError::new(path, "read the shard", source))?;
        let tables =
            names.into_iter().map(|(id, name)| (topics.declare(&name), TopicTable::new(id, &name))).collect();
        floors.retain(|floor| offsets.get(floor.stream.as_str()).copied().unwrap_or_default() < floor.end());
        let path = path.to_owned();
        let window = CheckpointWindow::new(journal);
        let mut shard = Self {
            path,
            connection,
            window,
            tables,
            offsets,
            floors,
            clocks: HashMap::new(),
            has_tombstones,
            last_seq,
            first_seq,
        };
        shard.keep(Needs { indexes, clocks, ..Needs::default() }, topics);
        Ok(shard)
    }

    /// Keeps these indexes and event times from now on, and no others.
    fn keep(&mut self, needs: Needs, topics: &Topics) {
        self.clocks.clear();
        for clock in needs.clocks {
            self.clocks.entry(topics.declare(&clock.topic)).or_default().push(clock);
        }
        for table in self.tables.values_mut() {
            table.indexes.clear();
            table.is_moved_by_time = false;
            table.ordered_by.clear();
        }
        for time in needs.ordered_by {
            if let Some(table) = self.tables.get_mut(&topics.declare(&time.topic)) {
                table.ordered_by.push(time);
            }
        }
        for topic in needs.moved_by_time {
            if let Some(table) = self.tables.get_mut(&topics.declare(&topic)) {
                table.is_moved_by_time = true;
            }
        }
        for index in needs.indexes {
            if let Some(table) = self.tables.get_mut(&topics.declare(&index.topic)) {
                table.indexes.push(index);
            }
        }
    }

    /// Newest `seq` of `_chg` that was committed.
    pub(crate) fn last_seq(&self) -> i64 {
        self.last_seq
    }

    /// How far each stream is in this shard.
    #[cfg(test)]
    pub(crate) fn offsets(&self) -> &HashMap<Arc<str>, u64> {
        &self.offsets
    }

    /// Opens a transaction and applies `batches` in order. On an error it is rolled back.
    pub(crate) fn write(
        &mut self,
        batches: &[ShardBatch],
        topics: &Topics,
        now: i64,
        trim_to: i64,
    ) -> Result<Pending, SqliteError> {
        self.in_transaction("write a batch", |shard, pending| {
            let messages = shard.coalesce(batches, pending);
            shard.ensure_tables(messages.iter().map(|message| message.topic), topics, pending)?;
            for run in messages.chunk_by(|a, b| a.topic == b.topic) {
                shard.apply(run, (now, topics.refresh_after(run[0].topic)), pending)?;
            }
            pending.times = event_times::note(&shard.connection, &shard.clocks, batches, now)?;
            for batch in batches {
                if let Some(stream) = &batch.stream {
                    shard.advance(stream, pending)?;
                }
            }
            shard.store_sizes(pending)?;
            shard.trim(trim_to, pending)
        })
    }

    /// Trims the change log, which each write does too, as far as one transaction goes; returns whether there was anything.
    pub(crate) fn trim_log(&mut self, trim_to: i64) -> Result<bool, SqliteError> {
        let pending =
            self.in_transaction("trim the change log", |shard, pending| shard.trim(trim_to, pending))?;
        let is_trimmed = pending.trimmed_to.is_some();
        self.commit(pending).map(|_| is_trimmed)
    }

    /// Opens a transaction and removes the rows and tombstones that an expiry names.
    pub(crate) fn expire(&mut self, expiry: &Expiry, now: i64) -> Result<Pending, SqliteError> {
        let Expiry { candidates, tombstones_before, quiet, .. } = expiry;
        let kind = if *quiet { KIND_EXPIRY } else { KIND_WRITE };
        self.in_transaction("remove expired rows", |shard, pending| {
            for Expired { topic, before, keys } in candidates {
                let Some(table) = shard.tables.get(topic) else { continue };
                let mut counts = Counts::default();
                let mut select = shard.connection.prepare_cached(&table.select)?;
                let mut writer = table.writer(&shard.connection)?;
                for key in keys {
                    let old: Option<(String, i64, i64)> = select
                        .query_row([key], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                        .optional()?;
                    if let Some((payload, timestamp, number)) = old
                        && timestamp < *before
                    {
                        let row = IndexedRow { number, key, payload: &payload, timestamp };
                        writer.expire(row, now, kind)?;
                        pending.log(*topic, key, Some(&payload), None);
                        counts.expired += 1;
                    }
                }
                if counts.expired > 0 {
                    pending.last_seq = shard.connection.last_insert_rowid();
                }
                pending.counts.push((*topic, counts));
            }
            shard.store_sizes(pending)?;
            fault::point("rows-expired");
            if shard.has_tombstones {
                shard
                    .connection
                    .prepare_cached("DELETE FROM _tombstones WHERE timestamp < ?1")?
                    .execute([tombstones_before])?;
            }
            Ok(())
        })
    }

    /// Makes the tables, indexes and event clocks that joins and windows need, and drops those that none needs. Writing waits
    /// meanwhile; returns at once if all is as it should be.
    pub(crate) fn prepare(&mut self, needs: &Needs, topics: &Topics, now: i64) -> Result<(), SqliteError> {
        let started = Instant::now();
        let ids: Vec<TopicId> = needs.topics.iter().map(|topic| topics.declare(topic)).collect();
        let mut built = 0;
        let outcome = self.in_transaction("make tables and indexes", |shard, pending| {
            shard.ensure_tables(ids.iter().copied(), topics, pending)?;
            let connection = &shard.connection;
            let present = Index::present(connection)?;
            let is_needed =
                |index: &Option<Index>| index.as_ref().is_some_and(|index| needs.indexes.contains(index));
            for (name, _) in present.iter().filter(|(_, index)| !is_needed(index)) {
                Index::remove(connection, name)?;
            }
            for index in &needs.indexes {
                if !present.iter().any(|(_, present)| present.as_ref() == Some(index)) {
                    index.build(connection)?;
                    fault::point("index-built");
                    built += 1;
                }
            }
            let present = EventTimes::present(connection)?;
            for clock in present.iter().filter(|clock| !needs.clocks.contains(clock)) {
                clock.remove(connection)?;
            }
            for clock in needs.clocks.iter().filter(|clock| !present.contains(clock)) {
                clock.start(connection, now)?;
            }
            Ok(())
        });
        let pending = outcome?;
        self.commit(pending)?;
        self.keep(needs.clone(), topics);
        fault::point("shard-prepared");
        if built > 0 {
            let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(shard = %self.path.display(), indexes = built, milliseconds, "built indexes; writing waited for them");
        }
        Ok(())
    }

    /// Makes the open transaction durable, as durable as `storage.synchronous` asks.
    pub(crate) fn commit(&mut self, pending: Pending) -> Result<CommittedChanges, SqliteError> {
        if let Err(source) = self.connection.execute_batch("COMMIT") {
            self.roll_back(&pending);
            return Err(SqliteError::new(&self.path, "commit a batch", source));
        }
        self.last_seq = pending.last_seq;
        self.has_tombstones |= pending.tombstones;
        if let Some(trimmed_to) = pending.trimmed_to {
            self.first_seq = trimmed_to + 1;
        }
        for stream in pending.offsets {
            let next = self.offsets.entry(stream.name).or_default();
            *next = stream.next.max(*next);
        }
        Ok(CommittedChanges { counts: pending.counts, sizes: pending.sizes })
    }

    /// See [`CheckpointWindow::open`].
    pub(crate) fn open_window(&mut self) -> Result<(), SqliteError> {
        self.window.open(&self.connection, &self.path)
    }

    /// See [`checkpoint`].
    pub(crate) fn checkpoint(&self) -> Result<(), SqliteError> {
        checkpoint(&self.connection, &self.path)
    }

    fn in_transaction(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Self, &mut Pending) -> rusqlite::Result<()>,
    ) -> Result<Pending, SqliteError> {
        let mut pending = Pending { last_seq: self.last_seq, ..Pending::default() };
        let outcome =
            self.connection.execute_batch("BEGIN IMMEDIATE").and_then(|()| work(self, &mut pending));
        match outcome {
            Ok(()) => Ok(pending),
            Err(source) => {
                self.roll_back(&pending);
                Err(SqliteError::new(&self.path, doing, source))
            }
        }
    }

    fn roll_back(&mut self, pending: &Pending) {
        if !self.connection.is_autocommit() {
            // A transaction that can't be rolled back now is rolled back when the file is next opened.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        for topic in &pending.new_tables {
            self.tables.remove(topic);
        }
    }

    fn ensure_tables(
        &mut self,
        used: impl Iterator<Item = TopicId>,
        topics: &Topics,
        pending: &mut Pending,
    ) -> rusqlite::Result<()> {
        for topic in used {
            if self.tables.contains_key(&topic) {
                continue;
            }
            let name = topics.name(topic);
            self.connection.execute_batch(&topic_table_sql(&name))?;
            self.connection.execute("INSERT OR IGNORE INTO _topics (name) VALUES (?1)", [&*name])?;
            let id =
                self.connection
                    .query_row("SELECT id FROM _topics WHERE name = ?1", [&*name], |row| row.get(0))?;
            sizes::begin(&self.connection, id)?;
            self.tables.insert(topic, TopicTable::new(id, &name));
            pending.new_tables.push(topic);
        }
        Ok(())
    }

    /// Applies messages of one topic. A message that repeats the payload of a row whose timestamp no query reads gives the
    /// row its own later one, or that of its arrival once that is `refresh_after` seconds later.
    fn apply(
        &self,
        messages: &[&Message],
        (now, refresh_after): (i64, i64),
        pending: &mut Pending,
    ) -> rusqlite::Result<()> {
        let topic = messages[0].topic;
        let table = &self.tables[&topic];
        let mut select = self.connection.prepare_cached(&table.select)?;
        let mut writer = table.writer(&self.connection)?;
        let mut counts = Counts::default();
        let bytes_before = pending.bytes;
        for message in messages {
            let key = &*message.key;
            let timestamp = message.timestamp.unwrap_or(now);
            let mut rows = select.query([key])?;
            let stored = rows.next()?.map(|row| table::selected(key, row)).transpose()?;
            let tombstones = self.has_tombstones || pending.tombstones;
            let buried_at = match &stored {
                None if tombstones && message.timestamp.is_some() => writer.buried_at(key)?,
                _ => None,
            };
            if self.is_stale(table, stored, buried_at, message, timestamp)? {
                counts.stale += 1;
                continue;
            }
            // A row is read to its end, `rows` dropped, before it is written.
            match (stored, message.payload.as_deref()) {
                (None, None) => {
                    writer.bury(key, timestamp)?;
                    pending.tombstones = true;
                    counts.unchanged += 1;
                }
                (Some(old), None) => {
                    writer.log_deletion(old, timestamp)?;
                    pending.log(topic, key, Some(old.payload), None);
                    drop(rows);
                    writer.delete(key)?;
                    writer.bury(key, timestamp)?;
                    pending.tombstones = true;
                    counts.deleted += 1;
                }
                (Some(old), Some(new)) if old.payload == new && !table.moves(old, timestamp) => {
                    counts.unchanged += 1;
                    let (number, age) = (old.number, timestamp - old.timestamp);
                    drop(rows);
                    let due = if message.timestamp.is_some() { 1 } else { refresh_after };
                    if age >= due {
                        writer.refresh(number, key, timestamp)?;
                        pending.log(topic, key, None, None);
                    }
                }
                (Some(old), Some(new)) => {
                    let number = old.number;
                    let change = writer.log_update(old, new, timestamp, message.headers.as_deref())?;
                    pending.log(topic, key, Some(old.payload), Some(new));
                    drop(rows);
                    writer.update(number, new, timestamp, &change)?;
                    counts.updated += 1;
                }
                (None, Some(new)) => {
                    drop(rows);
                    writer.insert(key, new, timestamp, message.headers.as_deref())?;
                    pending.log(topic, key, None, Some(new));
                    if tombstones {
                        writer.unbury(key)?;
                    }
                    counts.created += 1;
                }
            }
        }
        if pending.bytes > bytes_before {
            pending.last_seq = self.connection.last_insert_rowid();
        }
        *pending.count(topic) += counts;
        Ok(())
    }

    /// Returns whether a message is older than the row that it would replace, or than the deletion of its key: by a time of
    /// its own, or by an event time that tells their order.
    fn is_stale(
        &self,
        table: &TopicTable,
        stored: Option<IndexedRow<'_>>,
        buried_at: Option<i64>,
        message: &Message,
        timestamp: i64,
    ) -> rusqlite::Result<bool> {
        let newest = stored.as_ref().map(|stored| stored.timestamp).or(buried_at);
        if message.timestamp.is_some() && newest.is_some_and(|newest| newest > timestamp) {
            return Ok(true);
        }
        match (stored, message.payload.as_deref()) {
            (Some(stored), Some(payload)) => {
                event_times::is_older(&self.connection, &table.ordered_by, stored, payload, timestamp)
            }
            _ => Ok(false),
        }
    }

    fn advance(&self, stream: &Stream, pending: &mut Pending) -> rusqlite::Result<()> {
        if self.offsets.get(&stream.name).is_some_and(|&seen| seen >= stream.next) {
            return Ok(());
        }
        self.connection
            .prepare_cached(
                "INSERT INTO _offsets (stream, next) VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET next = max(next, excluded.next)",
            )?
            .execute(params![&*stream.name, stream.next])?;
        pending.offsets.push(stream.clone());
        Ok(())
    }

    /// Removes entries of `_chg` that every join has applied, a few thousand at most. The newest one stays: numbers
    /// go on from it.
    fn trim(&self, trim_to: i64, pending: &mut Pending) -> rusqlite::Result<()> {
        let to = trim_to.min(self.first_seq + TRIM_ENTRIES_MAX).min(pending.last_seq - 1);
        if to >= self.first_seq {
            self.connection.prepare_cached("DELETE FROM _chg WHERE seq <= ?1")?.execute([to])?;
            fault::point("log-trimmed");
            pending.trimmed_to = Some(to);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
