//! Auditing a window: its frames that are not frozen are evaluated anew from their rows, over a copy of what is stored of
//! them, and the results are compared. What is frozen follows from rows that may be gone.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{self, AtomicBool};

use litejoin_crds::plan::Synchronous;
use rusqlite::{Connection, OptionalExtension, Rows, params};

use super::equality::Tally;
use super::{ATTEMPTS, AuditError, Files, Finding, Skip, Stored};
use crate::join::CheckedJoin;
use crate::join::keyed::KeyedError;
use crate::results::event::{JoinId, Op};
use crate::results::frames::StoredResult;
use crate::results::store::Results;
use crate::storage::log::ShardReader;
use crate::storage::sqlite;
use crate::storage::topics::Topics;
use crate::window::{CheckedWindow, WindowEvaluation};

/// The lineage of the copy, whose results nobody is sent.
const LINEAGE: &str = "audit";

/// Compares the stored results of a window with those of its rows.
pub(super) fn compare(
    join: &CheckedJoin,
    window: &CheckedWindow,
    definition: &str,
    files: &Files,
    cancelled: &AtomicBool,
) -> Result<Finding, AuditError> {
    let stored = Stored::open(files)?;
    let readers: Vec<ShardReader> =
        files.shards.iter().map(|path| ShardReader::open_read_only(path)).collect::<Result<_, _>>()?;
    let mut attempts = 0;
    let id = loop {
        attempts += 1;
        match at_one_moment(join, definition, &stored, &readers) {
            Err(AuditError::Skipped(Skip::Busy)) if attempts < ATTEMPTS => {
                readers.iter().for_each(ShardReader::release);
                sqlite::release(&stored.connection);
            }
            outcome => break outcome?,
        }
    };
    let watermark: Option<Option<i64>> = stored.doing(|connection| {
        let sql = "SELECT watermark FROM watermarks WHERE join_id = ?1";
        connection.query_row(sql, [id.0], |row| row.get(0)).optional()
    })?;
    let frozen = watermark.flatten().map(|watermark| watermark.saturating_sub(window.allowed_lateness()));
    sqlite::remove(&files.scratch)?;
    let (copy, _) = Results::open(&files.scratch, Synchronous::Normal, LINEAGE)?;
    copy.copy_window(&stored.connection, id, frozen)?;
    evaluate(join, window, id, &readers, &copy, cancelled)?;
    drop(copy);
    let fresh = sqlite::open_read_only(&files.scratch)?;
    let finding = stored.doing(|connection| differences(join, id, frozen, connection, &fresh))?;
    drop(fresh);
    sqlite::remove(&files.scratch)?;
    Ok(finding)
}

/// Opens snapshots of the results and then of the shards, in which nothing is left to evaluate.
fn at_one_moment(
    join: &CheckedJoin,
    definition: &str,
    stored: &Stored,
    readers: &[ShardReader],
) -> Result<JoinId, AuditError> {
    let moment = stored.hold(join, definition, readers.len())?;
    let is_any_due: bool = stored.doing(|connection| {
        let sql = "SELECT EXISTS (SELECT 1 FROM frames WHERE join_id = ?1 AND is_due)";
        connection.query_row(sql, [moment.id], |row| row.get(0))
    })?;
    let mut is_current = !is_any_due;
    for (reader, applied) in readers.iter().zip(&moment.applied) {
        reader.hold()?;
        is_current &= reader.last_seq()? == *applied;
    }
    if is_current { Ok(JoinId(moment.id)) } else { Err(Skip::Busy.into()) }
}

/// Evaluates the frames that are not frozen from their rows.
fn evaluate(
    join: &CheckedJoin,
    window: &CheckedWindow,
    id: JoinId,
    readers: &[ShardReader],
    copy: &Results,
    cancelled: &AtomicBool,
) -> Result<(), AuditError> {
    let topics = Topics::new([window.topic.as_str()], []);
    let topic = topics.find(&window.topic).expect("it was declared");
    let mut evaluation =
        WindowEvaluation::new(Arc::new(join.clone()), id, topic).map_err(KeyedError::from)?;
    evaluation.give_up_aggregates();
    copy.with_epoch(1, 0, |writer| {
        evaluation.begin(readers, writer)?;
        while evaluation.has_more() {
            if cancelled.load(atomic::Ordering::Relaxed) {
                return Err(AuditError::Cancelled);
            }
            evaluation.evaluate_due(readers, writer)?;
        }
        Ok(())
    })?;
    match evaluation.take_error() {
        Some(_) => Err(Skip::Failed.into()),
        None => Ok(()),
    }
}

/// Compares the results of frames that end after `frozen`.
fn differences(
    join: &CheckedJoin,
    id: JoinId,
    frozen: Option<i64>,
    stored: &Connection,
    fresh: &Connection,
) -> rusqlite::Result<Finding> {
    let sql = "SELECT key, rows, window FROM results WHERE join_id = ?1 AND (?2 IS NULL OR window->>'end' > ?2) ORDER BY key";
    let (mut stored, mut fresh) = (stored.prepare(sql)?, fresh.prepare(sql)?);
    let mut stored = stored.query(params![id.0, frozen])?;
    let mut fresh = fresh.query(params![id.0, frozen])?;
    let mut finding = Finding { join: join.name.clone(), ..Finding::default() };
    let mut tally = Tally::default();
    let (mut left, mut right) = (next(&mut stored)?, next(&mut fresh)?);
    loop {
        let order = match (&left, &right) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => left.key.cmp(&right.key),
        };
        let old = if order.is_le() { std::mem::replace(&mut left, next(&mut stored)?) } else { None };
        let new = if order.is_ge() { std::mem::replace(&mut right, next(&mut fresh)?) } else { None };
        finding.results += u64::from(old.is_some());
        match (old, new) {
            (Some(old), Some(new)) if old.window != new.window => tally.note(Op::Updated, &old.key),
            (Some(old), Some(new)) => tally.add(Op::Updated, &old.key, &old.rows, &new.rows),
            (Some(old), None) => tally.add(Op::Deleted, &old.key, &old.rows, "[]"),
            (None, Some(new)) => tally.add(Op::Created, &new.key, "[]", &new.rows),
            (None, None) => {}
        }
    }
    tally.end();
    (finding.differences, finding.keys) = (tally.count, tally.keys);
    Ok(finding)
}

fn next(rows: &mut Rows<'_>) -> rusqlite::Result<Option<StoredResult>> {
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(StoredResult { key: row.get(0)?, rows: row.get(1)?, window: row.get(2)? }))
}

impl From<KeyedError> for AuditError {
    fn from(error: KeyedError) -> Self {
        match error {
            KeyedError::File(error) => Self::File(error),
            error => Self::Window(error),
        }
    }
}
