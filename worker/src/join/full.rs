//! Evaluation in full: a copy of the topics that joins read, kept current row by row, and every query run over
//! all of it. The oracle, the backfill and the repair of every quicker way.
//!
//! The copy is in key order whatever the number of shards, so what SQLite leaves open (the order in which rows
//! are aggregated) comes out the same in one shard and in eight.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use super::check::{self, CheckedJoin};
use super::diff::{self, StoredResults};
use super::{Engine, TopicImage};
use crate::results::store::Change;
use crate::storage::sqlite::quoted;

/// Why an evaluation came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FullError {
    /// The query itself failed; no other join is affected.
    #[error("the query failed: {message}")]
    Query { message: String },
    #[error("could not {doing} the working copy of the topics")]
    Copy { doing: &'static str, source: rusqlite::Error },
    #[error("could not read stored results")]
    Stored(#[source] rusqlite::Error),
}

/// The copy and the statements that keep it.
pub(crate) struct Full {
    connection: Connection,
    /// Upsert and delete, by topic.
    statements: HashMap<String, (String, String)>,
}

impl Full {
    /// Makes empty tables for the topics that `joins` read, and a view for each join so that others can read it.
    /// `connection` is an empty scratch database.
    pub(crate) fn new(connection: Connection, joins: &[CheckedJoin]) -> Result<Self, FullError> {
        let mut statements = HashMap::new();
        let make = |sql: &str| connection.execute_batch(sql).map_err(copy("make"));
        for topic in joins.iter().flat_map(|join| &join.topics) {
            if statements.contains_key(topic) {
                continue;
            }
            make(&check::topic_table_sql(topic))?;
            let table = quoted(topic);
            statements.insert(
                topic.clone(),
                (
                    format!("INSERT OR REPLACE INTO {table} (key, payload, timestamp, _change) VALUES (?1, ?2, ?3, ?4)"),
                    format!("DELETE FROM {table} WHERE key = ?1"),
                ),
            );
        }
        for join in joins {
            make(&format!("CREATE VIEW {} AS {}\n", quoted(&join.name), join.query))?;
        }
        make(
            "CREATE TABLE _fresh (key TEXT NOT NULL, n INTEGER NOT NULL, row TEXT NOT NULL, PRIMARY KEY (key, n)) WITHOUT ROWID",
        )?;
        Ok(Self { connection, statements })
    }

    /// Runs `work` with everything that it absorbs in one transaction.
    pub(crate) fn in_batch<E: From<FullError>>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.connection.execute_batch("BEGIN").map_err(copy("update"))?;
        let outcome = work(self);
        let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
        self.connection.execute_batch(end).map_err(copy("update"))?;
        outcome
    }

    /// Runs the query and puts its rows, by key, into `_fresh`.
    fn run(&self, join: &CheckedJoin) -> Result<(), FullError> {
        let failed = |error: rusqlite::Error| FullError::Query { message: message_of(&error) };
        self.connection.execute_batch("DELETE FROM _fresh").map_err(copy("clear"))?;
        // No authorizer here: the very text was checked under one, on the same tables.
        let mut query = self.connection.prepare_cached(&join.query).map_err(failed)?;
        let mut insert = self
            .connection
            .prepare_cached("INSERT INTO _fresh (key, n, row) VALUES (?1, ?2, ?3)")
            .map_err(copy("fill"))?;
        let (mut key, mut object) = (String::new(), String::new());
        let mut rows = query.query([]).map_err(failed)?;
        let mut n = 0_i64;
        while let Some(row) = rows.next().map_err(failed)? {
            join.columns.write(row, &mut key, &mut object).map_err(failed)?;
            insert.execute(params![key, n, object]).map_err(copy("fill"))?;
            n += 1;
        }
        Ok(())
    }
}

impl Engine for Full {
    type Error = FullError;

    fn absorb(&mut self, topic: &str, key: &str, row: Option<TopicImage<'_>>) -> Result<(), FullError> {
        let Some((upsert, delete)) = self.statements.get(topic) else { return Ok(()) };
        let absorb = || -> rusqlite::Result<()> {
            match row {
                Some(row) => self.connection.prepare_cached(upsert)?.execute(params![
                    key,
                    row.payload,
                    row.timestamp,
                    row.change
                ])?,
                None => self.connection.prepare_cached(delete)?.execute([key])?,
            };
            Ok(())
        };
        absorb().map_err(copy("update"))
    }

    fn evaluate<E: From<FullError>>(
        &mut self,
        join: &CheckedJoin,
        stored: &mut dyn StoredResults,
        emit: &mut dyn FnMut(Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.connection.execute_batch("BEGIN").map_err(copy("fill"))?;
        let outcome = self.run(join);
        self.connection
            .execute_batch(if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" })
            .map_err(copy("fill"))?;
        outcome?;
        let mut statement = self
            .connection
            .prepare_cached("SELECT key, row FROM _fresh ORDER BY key, n")
            .map_err(copy("read"))?;
        let mut rows = statement.query([]).map_err(copy("read"))?;
        let mut ahead: Option<(String, String)> = None;
        let fresh = || -> rusqlite::Result<Option<(String, String)>> {
            let mut current: Option<(String, String)> = ahead.take();
            if let Some((_, rows)) = &mut current {
                rows.insert(0, '[');
            }
            loop {
                match (rows.next()?, &mut current) {
                    (None, _) => break,
                    (Some(row), None) => {
                        current = Some((row.get(0)?, format!("[{}", row.get_ref(1)?.as_str()?)))
                    }
                    (Some(row), Some((key, rows))) if row.get_ref(0)?.as_str()? == key.as_str() => {
                        rows.push(',');
                        rows.push_str(row.get_ref(1)?.as_str()?);
                    }
                    (Some(row), Some(_)) => {
                        ahead = Some((row.get(0)?, row.get(1)?));
                        break;
                    }
                }
            }
            if let Some((_, rows)) = &mut current {
                rows.push(']');
            }
            Ok(current)
        };
        diff::diff::<Step<E>>(fresh, stored, &mut |change| emit(change).map_err(Step::Emit)).map_err(|step| {
            match step {
                Step::Read(error) => FullError::Stored(error).into(),
                Step::Emit(error) => error,
            }
        })
    }
}

/// Which side of a comparison failed.
enum Step<E> {
    Read(rusqlite::Error),
    Emit(E),
}

impl<E> From<rusqlite::Error> for Step<E> {
    fn from(error: rusqlite::Error) -> Self {
        Self::Read(error)
    }
}

fn copy(doing: &'static str) -> impl Fn(rusqlite::Error) -> FullError {
    move |source| FullError::Copy { doing, source }
}

fn message_of(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        other => other.to_string(),
    }
}
