//! `dlq.db`: results that a sink did not take, and messages that a source could not read.
//!
//! ```text
//! letters(sink, join_name, key, …)    at most one for each sink and key: the newest result
//! rejected(id, source, position, …)   messages, with the place in their source and the reason; and, with a `result_key`,
//!                                     results that can't be evaluated: the join, the topics that it reads, the reason
//! ```
//! Dead letters are stored here and tried again by [`crate::delivery::dispatch`]; [`by_hand`] shows, retries and purges them
//! on request.

pub(crate) mod by_hand;
mod log;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::watch;
use tracing::warn;

use self::log::{DeadLetterLog, LetterKind};
use crate::results::event::{Event, JoinId, Op, PendingResult, Position};
use crate::storage::sqlite::{self, Journal, SqliteError};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS letters (
        sink TEXT NOT NULL,
        join_name TEXT NOT NULL,
        key TEXT NOT NULL,
        lineage TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        n INTEGER NOT NULL,
        op TEXT NOT NULL,
        rows TEXT NOT NULL,
        timestamp INTEGER NOT NULL,
        window TEXT,
        reason TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        stored_at INTEGER NOT NULL,
        retry_at INTEGER,
        PRIMARY KEY (sink, join_name, key)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS letters_due ON letters (sink, retry_at) WHERE retry_at IS NOT NULL;
    CREATE INDEX IF NOT EXISTS letters_age ON letters (stored_at);
    CREATE TABLE IF NOT EXISTS rejected (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        position TEXT NOT NULL,
        reason TEXT NOT NULL,
        body BLOB,
        stored_at INTEGER NOT NULL,
        result_key TEXT
    );
    CREATE TABLE IF NOT EXISTS retried (nonce TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS rejected_place ON rejected (source, position);
    CREATE INDEX IF NOT EXISTS rejected_age ON rejected (stored_at);";

/// Insertions after which the size is looked at.
const UNCHECKED_MAX: u32 = 500;

/// The size of an entry beside its content, in bytes; an estimate.
const ENTRY_OVERHEAD_BYTES: u64 = 200;

/// Entries that go before the size is looked at again.
const ENTRIES_PER_STEP: usize = 1_000;

/// Bytes of a rejected message that are kept.
const BODY_BYTES_KEPT: usize = 4_096;

/// The dead-letter queue of the pipeline.
pub(crate) struct DeadLetters {
    path: PathBuf,
    connection: Mutex<Connection>,
    /// Size above which the oldest go.
    bytes_max: AtomicU64,
    /// Insertions since the size was last looked at.
    unchecked: AtomicU32,
    /// Counts what was done to letters by hand.
    interventions: watch::Sender<u64>,
    log: DeadLetterLog,
}

/// A result that is in the queue, since a sink did not take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeadLetter {
    pub(crate) result: PendingResult,
    /// Deliveries that have failed.
    pub(crate) attempts: u32,
}

/// Why a result is put into the queue, and when it is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetryState {
    pub(crate) reason: String,
    /// Deliveries that have failed.
    pub(crate) attempts: u32,
    /// Seconds since the epoch; `None` waits for the user to ask for it.
    pub(crate) retry_at: Option<i64>,
}

impl DeadLetters {
    pub(crate) fn open(
        path: &Path,
        journal: impl Into<Journal>,
        bytes_max: u64,
    ) -> Result<Self, SqliteError> {
        let connection = sqlite::open_writer(path, journal)?;
        let create = || -> rusqlite::Result<()> {
            connection.execute_batch(SCHEMA)?;
            // A file of an older version lacks the columns.
            for (table, column) in [("letters", "window"), ("rejected", "result_key")] {
                if !sqlite::has_column(&connection, table, column)? {
                    connection.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} TEXT"))?;
                }
            }
            connection.execute_batch(
                "CREATE INDEX IF NOT EXISTS rejected_result ON rejected (source, result_key)
                     WHERE result_key IS NOT NULL",
            )
        };
        create().map_err(|source| SqliteError::new(path, "make the tables", source))?;
        let unchecked = AtomicU32::new(0);
        let bytes_max = AtomicU64::new(bytes_max);
        Ok(Self {
            path: path.to_owned(),
            connection: Mutex::new(connection),
            bytes_max,
            unchecked,
            interventions: watch::channel(0).0,
            log: DeadLetterLog::default(),
        })
    }

    /// Where dispatchers hear of what was done to letters by hand.
    pub(crate) fn interventions(&self) -> watch::Receiver<u64> {
        self.interventions.subscribe()
    }

    /// Tells dispatchers that letters were changed by hand.
    fn intervened(&self) {
        self.interventions.send_modify(|count| *count += 1);
    }

    /// Sets the size above which the oldest go from now on.
    pub(crate) fn set_bytes_max(&self, bytes_max: u64) {
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// Puts a result in, or replaces the older letter of its key. Putting the same result in again changes nothing
    /// but its retry state, and not its age; an older result is ignored. Room is made before, so that the result that
    /// comes is never the one that goes.
    pub(crate) fn put(
        &self,
        sink: &str,
        result: &PendingResult,
        retry: &RetryState,
        now: i64,
    ) -> Result<(), SqliteError> {
        self.limit_size()?;
        self.doing("store a dead letter", |connection| {
            let event = &result.event;
            connection
                .prepare_cached(
                    "INSERT INTO letters (sink, join_name, key, lineage, epoch, n, op, rows, timestamp, reason, attempts,
                                          stored_at, retry_at, window)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
                     ON CONFLICT DO UPDATE SET lineage = excluded.lineage, epoch = excluded.epoch, n = excluded.n,
                         op = excluded.op, rows = excluded.rows, timestamp = excluded.timestamp, window = excluded.window,
                         reason = excluded.reason, attempts = excluded.attempts, retry_at = excluded.retry_at,
                         stored_at = CASE WHEN (lineage, epoch, n) = (excluded.lineage, excluded.epoch, excluded.n)
                                          THEN stored_at ELSE excluded.stored_at END
                     WHERE lineage <> excluded.lineage OR (epoch, n) <= (excluded.epoch, excluded.n)",
                )?
                .execute(params![
                    sink,
                    result.join_name,
                    event.key,
                    result.lineage,
                    event.position.epoch,
                    event.position.n,
                    event.op.as_str(),
                    event.rows,
                    event.timestamp,
                    retry.reason,
                    retry.attempts,
                    now,
                    retry.retry_at,
                    event.window
                ])?;
            Ok(())
        })?;
        match retry {
            RetryState { retry_at: None, .. } => self.log.tell(sink, LetterKind::Waiting, &retry.reason, now),
            RetryState { attempts: 1, .. } => self.log.tell(sink, LetterKind::Retried, &retry.reason, now),
            // The same dead letter as before, or one that was not tried.
            RetryState { .. } => {}
        }
        Ok(())
    }

    /// Forgets the letters of a join that a sink is about to get as it stands. Letters of deletions stay: either
    /// the deletion holds, or the present result takes the place of its letter.
    pub(crate) fn forget(&self, sink: &str, join_name: &str) -> Result<(), SqliteError> {
        self.doing("forget dead letters", |connection| {
            connection
                .prepare_cached("DELETE FROM letters WHERE sink = ?1 AND join_name = ?2 AND op <> 'deleted'")?
                .execute([sink, join_name])?;
            Ok(())
        })
    }

    /// Takes a letter out after it was delivered, unless a newer one has come in its place.
    pub(crate) fn remove(&self, sink: &str, letter: &DeadLetter) -> Result<(), SqliteError> {
        let PendingResult { join_name, lineage, event } = &letter.result;
        self.doing("remove a dead letter", |connection| {
            connection
                .prepare_cached(
                    "DELETE FROM letters WHERE sink = ?1 AND join_name = ?2 AND key = ?3 AND epoch = ?4 AND n = ?5
                         AND lineage = ?6",
                )?
                .execute(params![
                    sink,
                    join_name,
                    event.key,
                    event.position.epoch,
                    event.position.n,
                    lineage
                ])?;
            Ok(())
        })
    }

    /// Whether a letter holds back this key.
    pub(crate) fn holds(&self, sink: &str, join_name: &str, key: &str) -> Result<bool, SqliteError> {
        self.doing("look for a dead letter", |connection| {
            connection
                .prepare_cached("SELECT 1 FROM letters WHERE sink = ?1 AND join_name = ?2 AND key = ?3")?
                .query_row(params![sink, join_name, key], |_| Ok(()))
                .optional()
                .map(|found| found.is_some())
        })
    }

    /// Letters of a sink that are due at `now`, the longest due first, at most `limit`.
    pub(crate) fn due(&self, sink: &str, now: i64, limit: usize) -> Result<Vec<DeadLetter>, SqliteError> {
        self.doing("read dead letters", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT join_name, lineage, epoch, n, key, op, rows, timestamp, attempts, window FROM letters
                 WHERE sink = ?1 AND retry_at <= ?2 ORDER BY retry_at LIMIT ?3",
            )?;
            statement.query_map(params![sink, now, limit], read_letter)?.collect()
        })
    }

    /// When the next letter of a sink is due, in seconds since the epoch.
    pub(crate) fn next_due(&self, sink: &str) -> Result<Option<i64>, SqliteError> {
        self.doing("read dead letters", |connection| {
            connection
                .prepare_cached("SELECT min(retry_at) FROM letters WHERE sink = ?1 AND retry_at IS NOT NULL")?
                .query_row([sink], |row| row.get(0))
        })
    }

    /// Whether there is any letter of a sink.
    pub(crate) fn has_any(&self, sink: &str) -> Result<bool, SqliteError> {
        self.doing("look for dead letters", |connection| {
            connection
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM letters WHERE sink = ?1)")?
                .query_row([sink], |row| row.get(0))
        })
    }

    /// Number of letters of a sink.
    pub(crate) fn count(&self, sink: &str) -> Result<u64, SqliteError> {
        self.doing("count dead letters", |connection| {
            connection
                .prepare_cached("SELECT count(*) FROM letters WHERE sink = ?1")?
                .query_row([sink], |row| row.get(0))
        })
    }

    /// Does what [`Self::reject`] does, and says so in the log, now and then.
    pub(crate) fn reject_and_tell(
        &self,
        owner: &str,
        position: &str,
        reason: &str,
        body: &[u8],
        now: i64,
    ) -> Result<(), SqliteError> {
        if self.reject(owner, position, reason, body, now)? {
            self.log.tell(owner, LetterKind::Rejected, &format!("{position}: {reason}"), now);
        }
        Ok(())
    }

    /// Stores a message that a source could not read; the same one at the same place again changes nothing. There may
    /// be another one at that place, in a file or a partition that was made anew. Returns whether it is new.
    pub(crate) fn reject(
        &self,
        source: &str,
        position: &str,
        reason: &str,
        body: &[u8],
        now: i64,
    ) -> Result<bool, SqliteError> {
        self.limit_size()?;
        self.doing("store a rejected message", |connection| {
            let stored = connection
                .prepare_cached(
                    "INSERT OR IGNORE INTO rejected (source, position, reason, body, stored_at)
                     SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS
                         (SELECT 1 FROM rejected WHERE source = ?1 AND position = ?2 AND body = ?4)",
                )?
                .execute(params![source, position, reason, &body[..body.len().min(BODY_BYTES_KEPT)], now])?;
            Ok(stored > 0)
        })
    }

    /// Stores that results of a join over some topics can't be evaluated, each with its result key as JSON and the reason;
    /// and forgets that of others, the `mended`, which can be.
    pub(crate) fn note_failing(
        &self,
        join_name: &str,
        topics: &str,
        failing: &[(String, &str)],
        mended: &[String],
        now: i64,
    ) -> Result<(), SqliteError> {
        if failing.is_empty() && mended.is_empty() {
            return Ok(());
        }
        failing.iter().try_for_each(|_| self.limit_size())?;
        self.doing("store which results can't be evaluated", |connection| {
            let transaction = connection.transaction()?;
            for (key, reason) in failing {
                let known = "UPDATE rejected SET reason = ?3 WHERE source = ?1 AND result_key = ?2";
                if transaction.prepare_cached(known)?.execute([join_name, key, reason])? == 0 {
                    let put = "INSERT INTO rejected (source, result_key, reason, position, stored_at)
                               VALUES (?1, ?2, ?3, ?4, ?5)";
                    transaction.prepare_cached(put)?.execute(params![join_name, key, reason, topics, now])?;
                }
            }
            for key in mended {
                let remove = "DELETE FROM rejected WHERE source = ?1 AND result_key = ?2";
                transaction.prepare_cached(remove)?.execute([join_name, key])?;
            }
            transaction.commit()
        })
    }

    /// The result keys of a join, as JSON, of which is stored that they can't be evaluated.
    pub(crate) fn failing(&self, join_name: &str) -> Result<Vec<String>, SqliteError> {
        self.doing("read results that can't be evaluated", |connection| {
            connection
                .prepare_cached(
                    "SELECT result_key FROM rejected WHERE source = ?1 AND result_key IS NOT NULL",
                )?
                .query_map([join_name], |row| row.get(0))?
                .collect()
        })
    }

    /// Keeps the file within its size while it fills, not only when it is cleaned.
    fn limit_size(&self) -> Result<(), SqliteError> {
        if self.unchecked.fetch_add(1, Ordering::Relaxed) < UNCHECKED_MAX {
            return Ok(());
        }
        self.unchecked.store(0, Ordering::Relaxed);
        let dropped = self.clean(i64::MIN)?;
        if dropped > 0 {
            warn!(
                dropped,
                "the dead-letter queue is full, so its oldest entries went; raise delivery.dlq.maxSizeMb, or see what \
                 fills it (litejoin dlq list)"
            );
        }
        Ok(())
    }

    /// Drops what is older than `before`, then the oldest, be they letters or messages, until the file's content is
    /// within its size. Returns how many went.
    pub(crate) fn clean(&self, before: i64) -> Result<u64, SqliteError> {
        let bytes_max = self.bytes_max.load(Ordering::Relaxed);
        self.doing("clean the dead letters", |connection| {
            let transaction = connection.transaction()?;
            let mut dropped = 0;
            for table in ["letters", "rejected"] {
                dropped +=
                    transaction.execute(&format!("DELETE FROM {table} WHERE stored_at < ?1"), [before])?;
            }
            loop {
                let excess = sqlite::bytes_used(&transaction)?.saturating_sub(bytes_max);
                let went = if excess > 0 { drop_oldest(&transaction, excess)? } else { 0 };
                if went == 0 {
                    break;
                }
                dropped += went;
            }
            transaction.commit()?;
            Ok(dropped as u64)
        })
    }

    fn doing<T>(
        &self,
        what: &str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SqliteError> {
        work(&mut self.connection.lock().unwrap_or_else(PoisonError::into_inner))
            .map_err(|source| SqliteError::new(&self.path, what, source))
    }
}

/// Drops the oldest letters and messages, about so many bytes of them. Returns how many went.
fn drop_oldest(connection: &Connection, bytes: u64) -> rusqlite::Result<usize> {
    let mut oldest = connection.prepare_cached(
        "SELECT stored_at, ifnull(octet_length(body), 0), id, NULL, NULL, NULL FROM rejected
         UNION ALL SELECT stored_at, octet_length(rows), NULL, sink, join_name, key FROM letters
         ORDER BY stored_at LIMIT ?1",
    )?;
    let mut remove_message = connection.prepare_cached("DELETE FROM rejected WHERE id = ?1")?;
    let mut remove_letter =
        connection.prepare_cached("DELETE FROM letters WHERE (sink, join_name, key) = (?1, ?2, ?3)")?;
    let entry = |row: &Row<'_>| -> rusqlite::Result<(u64, Option<i64>, [Option<String>; 3])> {
        Ok((row.get(1)?, row.get(2)?, [row.get(3)?, row.get(4)?, row.get(5)?]))
    };
    let entries = oldest.query_map([ENTRIES_PER_STEP], entry)?.collect::<Result<Vec<_>, _>>()?;
    let (mut freed, mut dropped) = (0, 0);
    for (content, message, letter) in entries {
        if freed >= bytes {
            break;
        }
        dropped += match message {
            Some(id) => remove_message.execute([id])?,
            None => remove_letter.execute(letter)?,
        };
        freed += content + ENTRY_OVERHEAD_BYTES;
    }
    Ok(dropped)
}

fn read_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    let result = PendingResult {
        join_name: row.get(0)?,
        lineage: row.get(1)?,
        event: Event {
            position: Position { epoch: row.get(2)?, n: row.get(3)? },
            // Letters outlive the numbers of joins, so they go by name.
            join: JoinId(0),
            key: row.get(4)?,
            op: Op::parse(row.get_ref(5)?.as_str()?).unwrap_or(Op::Updated),
            rows: row.get(6)?,
            timestamp: row.get(7)?,
            window: row.get(9)?,
        },
    };
    Ok(DeadLetter { result, attempts: row.get(8)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    use litejoin_crds::plan::Synchronous;

    #[test]
    fn the_file_stays_within_its_size_and_the_oldest_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(&folder.path().join("dlq.db"), Synchronous::Normal, 1 << 20).unwrap();
        for number in 0..3_000 {
            letters.reject("s", &format!("byte {number}"), "bad", &[b'x'; 2_000], number).unwrap();
        }
        letters.reject("s", "byte 2999", "again", &[b'x'; 2_000], 9).unwrap();
        let (count, oldest): (u64, i64) = letters
            .doing("look", |connection| {
                connection.query_row("SELECT count(*), min(stored_at) FROM rejected", [], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
            })
            .unwrap();
        assert!((100..2_000).contains(&count), "{count} of 3,000 messages of 2 kB are left in 1 MiB");
        assert_eq!(oldest, 3_000 - i64::try_from(count).unwrap(), "the newest are left, each once");
        assert_eq!(letters.clean(2_999).unwrap(), count - 1, "what is too old goes too");
    }

    fn result(key: &str, bytes: usize) -> PendingResult {
        let event = Event {
            position: Position { epoch: 1, n: 1 },
            join: JoinId(1),
            key: key.to_owned(),
            op: Op::Created,
            rows: "x".repeat(bytes),
            timestamp: 0,
            window: None,
        };
        PendingResult { join_name: "j".to_owned(), lineage: "l".to_owned(), event }
    }

    fn put(letters: &DeadLetters, result: &PendingResult, now: i64) {
        let retry = RetryState { reason: "no".to_owned(), attempts: 1, retry_at: None };
        letters.put("s", result, &retry, now).unwrap();
    }

    #[test]
    fn fresh_results_stay_while_older_messages_go() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(&folder.path().join("dlq.db"), Synchronous::Normal, 1 << 20).unwrap();
        let reject = |number: i64| {
            letters.reject("k", &format!("offset {number}"), "bad", &[b'x'; 2_000], number).unwrap();
        };
        (0..3_000).for_each(reject);
        for number in 0..5 {
            put(&letters, &result(&format!("\"{number}\""), 100), 10_000);
        }
        (3_000..3_600).for_each(reject);
        assert_eq!(letters.count("s").unwrap(), 5);
    }

    #[test]
    fn no_more_than_has_to_goes_and_never_what_was_just_put_in() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(&folder.path().join("dlq.db"), Synchronous::Normal, 1 << 20).unwrap();
        for number in 0..60 {
            put(&letters, &result(&format!("\"{number}\""), 20_000), number);
        }
        let dropped = letters.clean(i64::MIN).unwrap();
        assert!((1..20).contains(&dropped), "{dropped} of 60 letters of 20 kB went for 1 MiB");
        assert!(!letters.holds("s", "j", "\"0\"").unwrap() && letters.holds("s", "j", "\"59\"").unwrap());
        letters.unchecked.store(UNCHECKED_MAX, Ordering::Relaxed);
        put(&letters, &result("\"large\"", 3 << 20), -1);
        assert!(letters.holds("s", "j", "\"large\"").unwrap(), "whatever its age and size");
    }

    #[test]
    fn a_nonce_has_letters_tried_again_once() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(&folder.path().join("dlq.db"), Synchronous::Normal, 1 << 20).unwrap();
        assert_eq!(letters.retry_once("first", 1).unwrap(), 0);
        put(&letters, &result("\"a\"", 10), 1);
        assert_eq!(letters.retry_once("first", 2).unwrap(), 0);
        assert_eq!(letters.retry_once("second", 3).unwrap(), 1);
        assert_eq!(letters.retry_once("second", 4).unwrap(), 0);
    }

    #[test]
    fn another_message_at_the_same_place_is_kept_too() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(&folder.path().join("dlq.db"), Synchronous::Normal, 1 << 20).unwrap();
        for body in ["old", "old", "new"] {
            letters.reject("s", "rows.ndjson: byte 0", "bad", body.as_bytes(), 1).unwrap();
        }
        assert_eq!(letters.purge(&by_hand::Filter::default()).unwrap(), 2, "the file was made anew");
    }
}
