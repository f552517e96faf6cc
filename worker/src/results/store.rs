//! The writing side of `results.db`. The evaluator commits epochs, sinks move their cursors, and both go
//! through one connection.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use litejoin_crds::plan::Synchronous;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::Deserialize;

use super::event::{JoinId, Op, Position, ResultChange};
use super::tables::{self, DOUBTFUL, durably, meta, set, set_durably};
use crate::fault;
use crate::storage::checkpoint::{CheckpointWindow, checkpoint};
use crate::storage::sqlite::{self, Journal, SqliteError};

/// Epoch numbers that are reserved at a time. A restart skips what is left of them.
const EPOCHS_RESERVED: u64 = 10_000;

/// The entry of `accumulators` that is no group: by which plan the others are kept.
const ACCUMULATED_BY: &str = "plan";

/// The entry of `meta` that says how far joins are in the shards of another layout.
const LAYOUT: &str = "layout";

/// The value of `joins.stale` while only a part of the results is stored; 1 when the query failed, 0 when all is well.
pub(crate) const STALE_WHILE_STORING: i64 = 2;

/// The writing side of `results.db`.
pub(crate) struct Results {
    path: PathBuf,
    journal: Journal,
    connection: Mutex<Connection>,
    window: Mutex<CheckpointWindow>,
    lineage: String,
    /// The newest place that a result has got.
    last: Mutex<Position>,
}

/// How far a join had come when the file was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) id: JoinId,
    /// By shard, the last change that its results follow from; `None` if they have to be evaluated anew.
    pub(crate) applied: Option<Vec<i64>>,
    /// The moment that the results are as of, in seconds since the Unix epoch, if the query reads the clock.
    pub(crate) clock: Option<i64>,
    /// Whether its results are known not to follow from what was applied.
    pub(crate) stale: bool,
    /// The number of the newest cut that its results contain; 0 before the first.
    pub(crate) epoch: u64,
}

/// An epoch on its way into the file; dropped without [`Self::commit`] it leaves nothing.
pub(crate) struct EpochWriter<'a> {
    pub(super) path: &'a Path,
    pub(super) transaction: Transaction<'a>,
    /// The cut that the results follow from.
    cut_epoch: u64,
    /// That, or the epoch of what was stored last, if it is later.
    epoch: u64,
    now: i64,
    next_n: u64,
    outbox_bytes: u64,
    pub(super) writes: u64,
    /// Steps of SQLite's virtual machine that were not taken yet.
    pub(super) steps: Cell<u64>,
}

/// The events that a committed epoch has added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Committed {
    /// The last event of the epoch, or its start if there was none.
    pub(crate) position: Position,
    pub(crate) outbox_bytes: u64,
}

/// Puts a restored file under the lineage of its new directory. Its shards were restored beside it, each as of its own
/// moment, so every join is evaluated anew, and only true differences are sent. Until then its results are doubtful.
pub(crate) fn adopt(path: &Path, lineage: &str) -> Result<(), SqliteError> {
    let adopt = |connection: Connection| -> rusqlite::Result<()> {
        tables::create(&connection)?;
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('lineage', ?1)", [lineage])?;
        connection.execute("UPDATE joins SET applied = NULL", [])?;
        set(&connection, DOUBTFUL, 1)
    };
    adopt(sqlite::open_writer(path, Synchronous::Full)?)
        .map_err(|source| SqliteError::new(path, "take the results over", source))
}

/// How far each join of a file is, by its number; `None` where its results have to be evaluated anew. The file must not be
/// in use.
pub(crate) fn applied(path: &Path) -> Result<BTreeMap<i64, Option<Vec<i64>>>, SqliteError> {
    let connection = sqlite::open_read_only(path)?;
    let read = || -> rusqlite::Result<_> {
        connection
            .prepare("SELECT id, applied FROM joins WHERE NOT stale")?
            .query_map([], |row| {
                let seqs: Option<String> = row.get(1)?;
                Ok((row.get(0)?, seqs.and_then(|seqs| serde_json::from_str(&seqs).ok())))
            })?
            .collect()
    };
    read().map_err(|source| SqliteError::new(path, "read how far the joins are", source))
}

/// Notes how far each join is in the shards of another layout, for [`take_layout`]. The file must not be in use.
pub(crate) fn note_layout(
    path: &Path,
    layout_id: &str,
    applied: &BTreeMap<i64, Vec<i64>>,
) -> Result<(), SqliteError> {
    let note = serde_json::json!({ "layoutId": layout_id, "applied": applied }).to_string();
    let connection = sqlite::open_writer(path, Synchronous::Full)?;
    set(&connection, LAYOUT, note).map_err(|source| SqliteError::new(path, "note another layout", source))
}

/// Says that the shards are those of this layout now: joins go on from where they are in them, and those of which that
/// is not known are evaluated anew. The file must not be in use; may be done twice.
pub(crate) fn take_layout(path: &Path, layout_id: &str) -> Result<(), SqliteError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct LayoutNote {
        layout_id: String,
        applied: BTreeMap<i64, Vec<i64>>,
    }
    let mut connection = sqlite::open_writer(path, Synchronous::Full)?;
    let mut take = || -> rusqlite::Result<()> {
        let transaction = connection.transaction()?;
        let note: Option<String> = meta(&transaction, LAYOUT)?;
        let note = note.and_then(|note| serde_json::from_str::<LayoutNote>(&note).ok());
        let Some(note) = note.filter(|note| note.layout_id == layout_id) else { return Ok(()) };
        transaction.execute("UPDATE joins SET applied = NULL", [])?;
        for (join, seqs) in note.applied {
            let seqs = serde_json::to_string(&seqs).expect("numbers are always JSON");
            transaction.execute("UPDATE joins SET applied = ?2 WHERE id = ?1", params![join, seqs])?;
        }
        transaction.execute("DELETE FROM meta WHERE name = ?1", [LAYOUT])?;
        transaction.commit()
    };
    take().map_err(|source| SqliteError::new(path, "take another layout over", source))
}

impl Results {
    /// Opens the file, making it if it is not there. `lineage` is the directory's; `false` comes back if the
    /// file belongs to another one (then nothing was touched).
    pub(crate) fn open(
        path: &Path,
        journal: impl Into<Journal>,
        lineage: &str,
    ) -> Result<(Self, bool), SqliteError> {
        let journal = journal.into();
        let connection = sqlite::open_writer(path, journal)?;
        let check = || -> rusqlite::Result<(bool, Position)> {
            tables::create(&connection)?;
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('lineage', ?1)", [lineage])?;
            let stored: String =
                connection
                    .query_row("SELECT value FROM meta WHERE name = 'lineage'", [], |row| row.get(0))?;
            let last = Position {
                epoch: meta(&connection, "epoch_applied")?.unwrap_or(0),
                n: meta(&connection, "n_applied")?.unwrap_or(0),
            };
            Ok((stored == lineage, last))
        };
        let (same, last) = check().map_err(|source| SqliteError::new(path, "read the results", source))?;
        Ok((
            Self {
                path: path.to_owned(),
                journal,
                connection: Mutex::new(connection),
                window: Mutex::new(CheckpointWindow::new(journal)),
                lineage: lineage.to_owned(),
                last: Mutex::new(last),
            },
            same,
        ))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How its commits are kept, and those of the shards.
    pub(crate) fn journal(&self) -> Journal {
        self.journal
    }

    pub(crate) fn lineage(&self) -> &str {
        &self.lineage
    }

    /// Reserves epoch numbers durably and returns the first of them: above every number promised before.
    pub(crate) fn reserve_epochs(&self) -> Result<u64, SqliteError> {
        self.doing("reserve epoch numbers", |connection| {
            let reserved: u64 = meta(connection, "epoch_reserved")?.unwrap_or(0);
            set_durably(connection, "epoch_reserved", reserved + EPOCHS_RESERVED)?;
            Ok(reserved + 1)
        })
    }

    /// The last number that is reserved.
    pub(crate) fn epochs_reserved(&self) -> Result<u64, SqliteError> {
        self.doing("read epoch numbers", |connection| Ok(meta(connection, "epoch_reserved")?.unwrap_or(0)))
    }

    /// Extends the reservation if fewer than half a block is left above `next_epoch`.
    pub(crate) fn extend_reservation(&self, next_epoch: u64, reserved: &mut u64) -> Result<(), SqliteError> {
        if next_epoch + EPOCHS_RESERVED / 2 > *reserved {
            let wanted = next_epoch + EPOCHS_RESERVED;
            self.doing("reserve epoch numbers", |connection| {
                set_durably(connection, "epoch_reserved", wanted)
            })?;
            *reserved = wanted;
        }
        Ok(())
    }

    /// The last number that [`Self::reserve_epochs`] has reserved when it returned `first`.
    pub(crate) fn last_reserved(first: u64) -> u64 {
        first + EPOCHS_RESERVED - 1
    }

    /// Registers the joins of the pipeline by name and definition, forgets those that are gone, and says how far
    /// each has come. A join whose definition changed keeps its results, so that only differences are sent.
    pub(crate) fn register(
        &self,
        joins: &[(&str, String)],
        shard_count: usize,
    ) -> Result<Vec<Progress>, SqliteError> {
        self.doing("register the joins", |connection| {
            let transaction = connection.transaction()?;
            let names = serde_json::to_string(&joins.iter().map(|(name, _)| name).collect::<Vec<_>>())
                .expect("names are always JSON");
            let gone: Vec<i64> = transaction
                .prepare("SELECT id FROM joins WHERE name NOT IN (SELECT value FROM json_each(?1))")?
                .query_map([names], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for id in gone {
                for table in [
                    "results",
                    "failing",
                    "accumulators",
                    "watermarks",
                    "sure_times",
                    "frames",
                    "panes",
                    "subscriptions",
                    "hand_overs",
                    "withheld",
                ] {
                    transaction.execute(&format!("DELETE FROM {table} WHERE join_id = ?1"), [id])?;
                }
                tables::forget_events(&transaction, JoinId(id))?;
                transaction.execute("DELETE FROM joins WHERE id = ?1", [id])?;
            }
            let mut progress = Vec::with_capacity(joins.len());
            for (name, definition) in joins {
                type Stored = (i64, String, i64, Option<String>, u64, Option<i64>);
                let stored: Option<Stored> = transaction
                    .query_row(
                        "SELECT id, definition, stale, applied, epoch, clock FROM joins WHERE name = ?1",
                        [name],
                        |row| {
                            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
                        },
                    )
                    .optional()?;
                let (mut applied, mut clock) = (None, None);
                let (id, stale, epoch) = match stored {
                    Some((id, stored, stale, seqs, epoch, moment)) if stored == *definition => {
                        clock = moment;
                        let seqs = seqs.and_then(|seqs| serde_json::from_str::<Vec<i64>>(&seqs).ok());
                        applied = seqs.filter(|seqs| seqs.len() == shard_count);
                        (id, stale != 0, epoch)
                    }
                    Some((id, .., epoch, _)) => {
                        transaction.execute(
                            "UPDATE joins SET definition = ?2, stale = 1, applied = NULL WHERE id = ?1",
                            params![id, definition],
                        )?;
                        for table in ["accumulators", "failing"] {
                            transaction.execute(&format!("DELETE FROM {table} WHERE join_id = ?1"), [id])?;
                        }
                        (id, true, epoch)
                    }
                    None => {
                        transaction.execute(
                            "INSERT INTO joins (name, definition, epoch, stale) VALUES (?1, ?2, 0, 1)",
                            params![name, definition],
                        )?;
                        (transaction.last_insert_rowid(), true, 0)
                    }
                };
                progress.push(Progress { id: JoinId(id), applied, clock, stale, epoch });
            }
            transaction.commit()?;
            Ok(progress)
        })
    }

    /// Forgets what the results of joins follow from, so that a crash of the machine does not bring it back: they are
    /// evaluated anew. Until then what is stored is doubtful.
    pub(crate) fn forget_applied(&self, joins: &[JoinId]) -> Result<(), SqliteError> {
        let ids: Vec<i64> = joins.iter().map(|join| join.0).collect();
        let ids = serde_json::to_string(&ids).expect("numbers are always JSON");
        self.doing("forget what was applied", |connection| {
            durably(connection, |connection| {
                let sql = "UPDATE joins SET applied = NULL WHERE id IN (SELECT value FROM json_each(?1))";
                connection.execute(sql, [ids])?;
                set(connection, DOUBTFUL, 1)
            })
        })
    }

    /// The plan that [`EpochWriter::accumulate_by`] has noted of a join.
    pub(crate) fn accumulated_by(&self, join: JoinId) -> Result<Option<String>, SqliteError> {
        self.doing("read accumulators", |connection| {
            connection
                .prepare_cached("SELECT state FROM accumulators WHERE join_id = ?1 AND grp = ?2")?
                .query_row(params![join.0, ACCUMULATED_BY], |row| row.get(0))
                .optional()
        })
    }

    /// Writes results that follow from the cut with this number at the time `now`, and keeps everybody else from writing
    /// until they are committed. If others of a later epoch have come before them, they are counted to that one: places
    /// never go back.
    pub(crate) fn with_epoch<T, E: From<SqliteError>>(
        &self,
        cut_epoch: u64,
        now: i64,
        work: impl FnOnce(&mut EpochWriter<'_>) -> Result<T, E>,
    ) -> Result<(T, Committed), E> {
        let mut connection = self.lock();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (epoch, next_n) = if cut_epoch > last.epoch { (cut_epoch, 1) } else { (last.epoch, last.n + 1) };
        let transaction = connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(|source| SqliteError::new(&self.path, "begin an epoch", source))?;
        let mut writer = EpochWriter {
            path: &self.path,
            transaction,
            cut_epoch,
            epoch,
            now,
            next_n,
            outbox_bytes: 0,
            writes: 0,
            steps: Cell::new(0),
        };
        let value = work(&mut writer)?;
        let committed = Committed {
            position: Position { epoch, n: writer.next_n - 1 },
            outbox_bytes: writer.outbox_bytes,
        };
        fault::point("results-written");
        let finish = |writer: EpochWriter<'_>| -> rusqlite::Result<()> {
            set(&writer.transaction, "epoch_applied", epoch)?;
            set(&writer.transaction, "n_applied", committed.position.n)?;
            if writer.outbox_bytes > 0 {
                let before: u64 = meta(&writer.transaction, "outbox_bytes")?.unwrap_or(0);
                set(&writer.transaction, "outbox_bytes", before + writer.outbox_bytes)?;
            }
            writer.transaction.commit()
        };
        finish(writer).map_err(|source| SqliteError::new(&self.path, "commit an epoch", source))?;
        *last = committed.position;
        fault::point("results-committed");
        Ok((value, committed))
    }

    /// See [`CheckpointWindow::open`].
    pub(crate) fn open_window(&self) -> Result<(), SqliteError> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).open(&self.lock(), &self.path)
    }

    /// See [`checkpoint`].
    pub(crate) fn checkpoint(&self) -> Result<(), SqliteError> {
        checkpoint(&self.lock(), &self.path)
    }

    /// Runs `work` on the one writing connection, as a step named `what` in errors.
    pub(super) fn doing<T>(
        &self,
        what: &str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SqliteError> {
        work(&mut self.lock()).map_err(|source| SqliteError::new(&self.path, what, source))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EpochWriter<'_> {
    /// How often anything was stored: tells whether it was since this was last asked.
    pub(crate) fn writes(&self) -> u64 {
        self.writes
    }

    /// Stores changed results, and puts each into the outbox with which that is said.
    pub(crate) fn store<'c>(
        &mut self,
        join: JoinId,
        changes: impl IntoIterator<Item = &'c ResultChange<'c>>,
    ) -> Result<(), SqliteError> {
        let path = self.path;
        self.try_store(join, changes).map_err(|source| SqliteError::new(path, "store a result", source))
    }

    fn try_store<'c>(
        &mut self,
        join: JoinId,
        changes: impl IntoIterator<Item = &'c ResultChange<'c>>,
    ) -> rusqlite::Result<()> {
        let (transaction, epoch, now) = (&self.transaction, self.epoch, self.now);
        let mut delete = transaction.prepare_cached("DELETE FROM results WHERE join_id = ?1 AND key = ?2")?;
        let mut replace = transaction.prepare_cached(
            "INSERT OR REPLACE INTO results (join_id, key, rows, op, epoch, n, timestamp, window)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        let mut tell = transaction.prepare_cached(
            "INSERT INTO outbox (join_id, key, rows, op, epoch, n, timestamp, window)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        for ResultChange { op, key, rows, emit, window } in changes {
            self.writes += 1;
            if *op == Op::Deleted {
                delete.execute(params![join.0, key])?;
            } else {
                replace.execute(params![join.0, key, rows, op.as_str(), epoch, self.next_n, now, window])?;
            }
            if emit.tells(*op) {
                tell.execute(params![join.0, key, rows, op.as_str(), epoch, self.next_n, now, window])?;
                self.outbox_bytes += tables::event_bytes(key.len(), rows.len());
            }
            fault::point("result-stored");
            self.next_n += 1;
        }
        Ok(())
    }

    /// Stores what is kept of a group, or nothing.
    pub(crate) fn accumulate(
        &mut self,
        join: JoinId,
        group: &str,
        state: Option<&str>,
    ) -> Result<(), SqliteError> {
        self.writes += 1;
        let write = || match state {
            Some(state) => self
                .transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO accumulators (join_id, grp, state) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![join.0, group, state]),
            None => self
                .transaction
                .prepare_cached("DELETE FROM accumulators WHERE join_id = ?1 AND grp = ?2")?
                .execute(params![join.0, group]),
        };
        write().map(drop).map_err(|source| SqliteError::new(self.path, "store an accumulator", source))
    }

    /// Notes by which plan the groups of a join are kept, or that what is kept can't be relied on.
    pub(crate) fn accumulate_by(&mut self, join: JoinId, plan: Option<&str>) -> Result<(), SqliteError> {
        self.writes += 1;
        self.accumulate(join, ACCUMULATED_BY, plan)
    }

    /// Removes what is kept of the groups of a join.
    pub(crate) fn forget_accumulators(&mut self, join: JoinId) -> Result<(), SqliteError> {
        self.writes += 1;
        let write =
            || self.transaction.execute("DELETE FROM accumulators WHERE join_id = ?1", [join.0]).map(drop);
        write().map_err(|source| SqliteError::new(self.path, "forget accumulators", source))
    }

    /// Notes that the results of a join don't follow from what is applied, until [`Self::applied`] says that they do.
    pub(crate) fn stale(&mut self, join: JoinId) -> Result<(), SqliteError> {
        let write = || {
            let mut update = self.transaction.prepare_cached("UPDATE joins SET stale = ?2 WHERE id = ?1")?;
            update.execute(params![join.0, STALE_WHILE_STORING])
        };
        write().map(drop).map_err(|source| SqliteError::new(self.path, "note what is not applied", source))
    }

    /// Says that a join's results follow from the cut, which is everything up to `seqs`, at the moment `clock` if the query
    /// reads the clock; or, if `stale`, that they don't.
    pub(crate) fn applied(
        &mut self,
        join: JoinId,
        seqs: &[i64],
        clock: Option<i64>,
        stale: bool,
    ) -> Result<(), SqliteError> {
        let seqs = serde_json::to_string(seqs).expect("numbers are always JSON");
        let write = || -> rusqlite::Result<()> {
            self.transaction
                .prepare_cached(
                    "UPDATE joins SET epoch = iif(?3, epoch, ?2), stale = ?3, applied = ?4, clock = ?5 WHERE id = ?1",
                )?
                .execute(params![join.0, self.cut_epoch, stale, seqs, clock])?;
            Ok(())
        };
        write().map_err(|source| SqliteError::new(self.path, "store what was applied", source))
    }
}
