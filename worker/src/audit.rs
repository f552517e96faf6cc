//! Comparing the stored results of a join with the rows of its query over all messages. An audit only reads files,
//! beside a running worker or without one:
//!
//! ```text
//! results.db   the results and the cut that they follow from, in one snapshot
//! shards       the topics and the log, in later snapshots
//!              ─► a copy, in which later changes are undone by the old images of the log ─► query ─► compare
//! ```
//! So no writer waits for an audit. [`auditor`] decides when a worker audits; the command is `litejoin audit`.

mod auditor;
mod equality;
mod frames;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

pub(crate) use self::auditor::{Auditor, finding};
use self::equality::Tally;
use crate::join::budget::STEPS_MAX;
use crate::join::changes::{BYTES_MAX, Changes, ReadError, ShardChanges};
use crate::join::diff::StoredResults;
use crate::join::full::{Full, FullError};
use crate::join::keyed::KeyedError;
use crate::join::plan::ClockUse;
use crate::join::{CheckedJoin, TopicImage};
use crate::results::event::Emit;
use crate::results::store::STALE_WHILE_STORING;
use crate::results::tables;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::{self, SqliteError};
use crate::storage::topics::Topics;

/// How often snapshots are taken again because the worker has moved on between them.
const ATTEMPTS: usize = 100;

/// Later changes that an audit undoes at most; it holds them in memory.
const UNDONE_MAX: i64 = 65_536;

/// The files that an audit reads, and one scratch file that it overwrites.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) shards: Vec<PathBuf>,
    pub(crate) results: PathBuf,
    pub(crate) scratch: PathBuf,
}

/// The finding of an audit of one join.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Finding {
    pub(crate) join: String,
    /// Stored results that were compared.
    pub(crate) results: u64,
    /// Result keys whose rows differ.
    pub(crate) differences: u64,
    /// The first of these keys as JSON, each behind its correction: `updated "o1"`.
    pub(crate) keys: Vec<String>,
    pub(crate) seconds: f64,
    /// Why the join was not compared although nothing is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<String>,
    /// Why the comparison failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Whether the worker evaluates the join again because of differences.
    pub(crate) repairing: bool,
}

impl Finding {
    /// Returns whether a person should look at the finding.
    pub(crate) fn is_wrong(&self) -> bool {
        self.differences > 0 || self.error.is_some()
    }
}

/// Why the results can't be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Skip {
    #[error("it reads the clock in a form that can't be bound to a moment; write 'now' as a literal")]
    Clock,
    #[error("its results were not evaluated yet")]
    New,
    #[error("its query has changed since its results were stored")]
    Edited,
    #[error("its query fails, for all rows or for some, and results are as they were before; see /status")]
    Failed,
    #[error("its results are just being stored; try again later")]
    Storing,
    #[error("it lags behind by more changes than can be undone; try again when it has caught up")]
    Behind,
    #[error("it reads _change, which the log can't undo, and changes come without a pause; try again later")]
    Change,
    #[error("the worker moves on too fast for a look at one moment; try again later")]
    Busy,
}

/// Why an audit failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    #[error(transparent)]
    Skipped(#[from] Skip),
    #[error("it was cancelled")]
    Cancelled,
    #[error(transparent)]
    File(#[from] SqliteError),
    #[error(transparent)]
    Full(FullError),
    #[error(transparent)]
    Window(KeyedError),
}

impl From<FullError> for AuditError {
    fn from(error: FullError) -> Self {
        match error {
            FullError::Cancelled => Self::Cancelled,
            error => Self::Full(error),
        }
    }
}

/// Compares the stored results of `join`, one of `joins`.
pub(crate) fn compare(
    join: &CheckedJoin,
    joins: &[CheckedJoin],
    files: &Files,
    cancelled: &Arc<AtomicBool>,
) -> Result<Finding, AuditError> {
    if join.clock == ClockUse::System {
        return Err(Skip::Clock.into());
    }
    let definition = join.definition(joins);
    if let Some(window) = &join.window {
        return frames::compare(join, window, &definition, files, cancelled);
    }
    let stored = Stored::open(files)?;
    let mut readers: Vec<ShardReader> =
        files.shards.iter().map(|path| ShardReader::open_read_only(path)).collect::<Result<_, _>>()?;
    let topics = Topics::new([], []);
    let mut attempts = 0;
    let (moment, later) = loop {
        attempts += 1;
        match at_one_moment(join, &definition, &stored, &mut readers, &topics) {
            Err(AuditError::Skipped(Skip::Busy | Skip::Change)) if attempts < ATTEMPTS => {
                readers.iter().for_each(ShardReader::release);
                sqlite::release(&stored.connection);
            }
            outcome => break outcome?,
        }
    };
    let scratch = sqlite::open_scratch(&files.scratch)?;
    let mut full = Full::new(scratch, join, joins, STEPS_MAX, Arc::clone(cancelled))?;
    full.in_batch::<AuditError>(|full| {
        for reader in &readers {
            for topic in &join.topics {
                reader.rows::<AuditError>(topic, |row| {
                    if cancelled.load(Ordering::Relaxed) {
                        return Err(AuditError::Cancelled);
                    }
                    let image =
                        TopicImage { payload: row.payload, timestamp: row.timestamp, change: row.change };
                    Ok(full.absorb(topic, row.key, Some(image))?)
                })?;
            }
        }
        for topic in later.topics() {
            let name = topics.name(topic);
            for row in later.rows(topic) {
                full.absorb(&name, row.key, row.old)?;
            }
        }
        Ok(())
    })?;
    readers.clear();
    full.index(join)?;
    if let Some(clock) = moment.clock {
        full.set_clock(clock);
    }
    let finding = stored.compare(join, moment.id, &mut full);
    drop(full);
    sqlite::remove(&files.scratch)?;
    finding
}

/// Opens snapshots of the results and then of the shards. Returns what the results follow from, and the changes of the
/// join's topics that its results don't contain.
fn at_one_moment(
    join: &CheckedJoin,
    definition: &str,
    stored: &Stored,
    readers: &mut [ShardReader],
    topics: &Topics,
) -> Result<(ResultsMoment, Changes), AuditError> {
    let moment = stored.hold(join, definition, readers.len())?;
    let bytes_max = BYTES_MAX / readers.len();
    let mut later = Vec::with_capacity(readers.len());
    for (reader, applied) in readers.iter_mut().zip(&moment.applied) {
        reader.hold()?;
        let last = reader.last_seq()?;
        if last - applied > UNDONE_MAX {
            return Err(Skip::Behind.into());
        }
        // The entries were trimmed in between, or lost: the worker evaluates the join again.
        if !reader.has_all(*applied, last)? {
            return Err(Skip::Busy.into());
        }
        let part = ShardChanges::read(reader, *applied, last, topics, bytes_max, |_| true).map_err(|error| {
            match error {
                ReadError::TooMuch => Skip::Behind.into(),
                ReadError::File(error) => AuditError::from(error),
            }
        });
        later.push(part?);
    }
    let later = Changes::new(later);
    let is_read = |name: &str| join.topics.iter().any(|topic| topic.eq_ignore_ascii_case(name));
    let is_moving = later.topics().into_iter().any(|topic| is_read(&topics.name(topic)));
    if is_moving && definition.to_ascii_lowercase().contains("_change") {
        return Err(Skip::Change.into());
    }
    Ok((moment, later))
}

/// What the stored results of a join follow from.
struct ResultsMoment {
    /// The id of the join.
    id: i64,
    /// The cut.
    applied: Vec<i64>,
    /// The moment that the query saw as now, in seconds since the Unix epoch.
    clock: Option<i64>,
}

/// A read-only connection to `results.db`.
struct Stored {
    files: Files,
    connection: Connection,
}

impl Stored {
    fn open(files: &Files) -> Result<Self, SqliteError> {
        Ok(Self { files: files.clone(), connection: sqlite::open_read_only(&files.results)? })
    }

    /// Opens a snapshot. Returns what the results of the join follow from.
    fn hold(
        &self,
        join: &CheckedJoin,
        definition: &str,
        shard_count: usize,
    ) -> Result<ResultsMoment, AuditError> {
        type Known = (i64, String, i64, Option<String>, Option<i64>);
        let known: Option<Known> = self.doing(|connection| {
            connection.execute_batch("BEGIN")?;
            let clock = if tables::has_clock(connection)? { "clock" } else { "NULL" };
            let failing = if tables::has_failing(connection)? {
                "failing"
            } else {
                "(SELECT 0 AS join_id WHERE FALSE)"
            };
            let stale = format!("iif(EXISTS (SELECT 1 FROM {failing} WHERE join_id = id), 1, stale)");
            let sql = format!("SELECT id, definition, {stale}, applied, {clock} FROM joins WHERE name = ?1");
            let row = |row: &rusqlite::Row<'_>| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
            };
            connection.query_row(&sql, [&join.name], row).optional()
        })?;
        let (id, stored, stale, applied, clock) = known.ok_or(Skip::New)?;
        if stored != definition {
            return Err(Skip::Edited.into());
        }
        let applied = applied.and_then(|applied| serde_json::from_str::<Vec<i64>>(&applied).ok());
        match applied.filter(|applied| applied.len() == shard_count) {
            Some(_) if stale == STALE_WHILE_STORING => Err(Skip::Storing.into()),
            Some(_) if stale != 0 => Err(Skip::Failed.into()),
            Some(_) if join.clock != ClockUse::Unread && clock.is_none() => Err(Skip::New.into()),
            Some(applied) => Ok(ResultsMoment { id, applied, clock }),
            None => Err(Skip::New.into()),
        }
    }

    /// Runs the query over the copy and compares its rows with the stored ones.
    fn compare(&self, join: &CheckedJoin, id: i64, full: &mut Full) -> Result<Finding, AuditError> {
        let mut finding = Finding { join: join.name.clone(), ..Finding::default() };
        let found = self.doing(|connection| {
            let mut statement =
                connection.prepare("SELECT key, rows FROM results WHERE join_id = ?1 ORDER BY key")?;
            let mut rows = CountedRows { rows: statement.query([id])?, seen: 0 };
            let outcome = full.evaluate(join, &mut rows);
            finding.results = rows.seen;
            Ok(outcome)
        })??;
        let mut stored = self.doing(|connection| {
            connection.prepare("SELECT rows FROM results WHERE join_id = ?1 AND key = ?2")
        })?;
        let mut differences = Tally::default();
        full.differences::<AuditError>(0..found, Emit::Silent, &mut |change| {
            let old: Option<String> = stored
                .query_row(params![id, change.key], |row| row.get(0))
                .optional()
                .map_err(|source| self.failed(source))?;
            differences.add(change.op, &change.key, old.as_deref().unwrap_or("[]"), &change.rows);
            Ok(())
        })?;
        differences.end();
        finding.differences = differences.count;
        finding.keys = differences.keys;
        Ok(finding)
    }

    fn doing<'c, T>(
        &'c self,
        work: impl FnOnce(&'c Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SqliteError> {
        work(&self.connection).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: rusqlite::Error) -> SqliteError {
        SqliteError::new(&self.files.results, "read stored results", source)
    }
}

/// Stored results and a count of those that were read.
struct CountedRows<'s> {
    rows: rusqlite::Rows<'s>,
    seen: u64,
}

impl StoredResults for CountedRows<'_> {
    fn next(&mut self) -> rusqlite::Result<Option<(String, String)>> {
        let Some(row) = self.rows.next()? else { return Ok(None) };
        self.seen += 1;
        Ok(Some((row.get(0)?, row.get(1)?)))
    }
}
