//! Evaluation in full: a copy of the topics that joins read, kept current row by row, and every query run over
//! all of it. The oracle, the backfill and the repair of every quicker way.
//!
//! The copy is in key order whatever the number of shards, so what SQLite leaves open (the order in which rows
//! are aggregated) comes out the same in one shard and in eight.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, params};

use super::check::{self, CheckedJoin};
use super::diff::{self, StoredResults};
use super::{Engine, TopicImage};
use crate::results::store::Change;
use crate::storage::sqlite::{is_disk_full, quoted};

/// Why an evaluation came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FullError {
    /// The query itself failed; no other join is affected.
    #[error("the query failed: {message}")]
    Query { message: String },
    /// The query would have gone on for too long; trying again would cost as much.
    #[error(
        "the query took more than {steps} steps of SQLite's virtual machine and was stopped; make it cheaper (a join \
         condition is missing, or a recursion has no end), then restart"
    )]
    Endless { steps: u64 },
    #[error("could not {doing} the working copy of the topics")]
    Copy { doing: &'static str, source: rusqlite::Error },
    #[error("could not read stored results")]
    Stored(#[source] rusqlite::Error),
}

/// Steps of SQLite's virtual machine that one evaluation may take: minutes of one core. Counted, not timed, so a
/// query that passes on one machine passes on any.
pub(crate) const STEPS_MAX: u64 = 20_000_000_000;

/// Steps between two looks at the budget.
const STEPS_A_LOOK: u64 = 1_000_000;

/// Longest text or BLOB that a query may make, in bytes.
const VALUE_BYTES_MAX: i32 = 64 << 20;

/// The copy and the statements that keep it.
pub(crate) struct Full {
    connection: Connection,
    /// Looks at the budget that the running query has left; endless while none of a user's runs.
    looks_left: Arc<AtomicI64>,
    steps_max: u64,
    /// Upsert and delete, by topic.
    statements: HashMap<String, (String, String)>,
}

impl Full {
    /// Makes empty tables for the topics that `joins` read, and a view for each join so that others can read it.
    /// `connection` is an empty scratch database; an evaluation may take `steps_max` steps.
    pub(crate) fn new(
        mut connection: Connection,
        joins: &[CheckedJoin],
        steps_max: u64,
    ) -> Result<Self, FullError> {
        let looks_left = Arc::new(AtomicI64::new(i64::MAX));
        let budget = Arc::clone(&looks_left);
        let is_spent = move || budget.fetch_sub(1, Ordering::Relaxed) <= 0;
        let guard = |connection: &mut Connection| -> rusqlite::Result<()> {
            connection.progress_handler(STEPS_A_LOOK as i32, Some(is_spent))?;
            connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)?;
            Ok(())
        };
        guard(&mut connection).map_err(copy("guard"))?;
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
            "CREATE TABLE _fresh (
                join_name TEXT NOT NULL,
                key TEXT NOT NULL,
                n INTEGER NOT NULL,
                row TEXT NOT NULL,
                PRIMARY KEY (join_name, key, n)
            ) WITHOUT ROWID",
        )?;
        Ok(Self { connection, looks_left, steps_max, statements })
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
        self.looks_left.store((self.steps_max / STEPS_A_LOOK).cast_signed(), Ordering::Relaxed);
        let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => FullError::Endless { steps: self.steps_max },
            _ if is_disk_full(&source) => FullError::Copy { doing: "query", source },
            _ => FullError::Query { message: message_of(&source) },
        };
        // No authorizer here: the very text was checked under one, on the same tables.
        let mut query = self.connection.prepare_cached(&join.query).map_err(failed)?;
        let mut insert = self
            .connection
            .prepare_cached("INSERT INTO _fresh (join_name, key, n, row) VALUES (?1, ?2, ?3, ?4)")
            .map_err(copy("fill"))?;
        let (mut key, mut object) = (String::new(), String::new());
        let mut rows = query.query([]).map_err(failed)?;
        let mut n = 0_i64;
        while let Some(row) = rows.next().map_err(failed)? {
            join.columns.write(row, &mut key, &mut object).map_err(failed)?;
            insert.execute(params![join.name, key, n, object]).map_err(copy("fill"))?;
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

    fn clear(&mut self) -> Result<(), FullError> {
        self.connection.execute_batch("DELETE FROM _fresh").map_err(copy("clear"))
    }

    fn compute(&mut self, join: &CheckedJoin) -> Result<(), FullError> {
        self.connection.execute_batch("BEGIN").map_err(copy("fill"))?;
        let outcome = self.run(join);
        let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
        // What follows is ours, and takes as long as it takes.
        self.looks_left.store(i64::MAX, Ordering::Relaxed);
        self.connection.execute_batch(end).map_err(copy("fill"))?;
        outcome
    }

    fn compare<E: From<FullError>>(
        &mut self,
        join: &CheckedJoin,
        stored: &mut dyn StoredResults,
        emit: &mut dyn FnMut(Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT key, row FROM _fresh WHERE join_name = ?1 ORDER BY key, n")
            .map_err(copy("read"))?;
        let mut rows = statement.query([&join.name]).map_err(copy("read"))?;
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

#[cfg(test)]
mod tests {
    use litejoin_crds::plan;

    use super::*;
    use crate::storage::sqlite::open_memory;

    struct Nothing;

    impl StoredResults for Nothing {
        fn next(&mut self) -> rusqlite::Result<Option<(String, String)>> {
            Ok(None)
        }
    }

    fn results(query: &str, steps_max: u64) -> Result<Vec<String>, FullError> {
        let join = plan::Join {
            name: "j".to_owned(),
            place: plan::Place { document: 0, path: String::new() },
            query: query.to_owned(),
            key_column: None,
            result_key: None,
            sinks: Vec::new(),
        };
        let joins = check::check(&[join], check::Catalog { topics: &["t".to_owned()], open: false })
            .expect("a query");
        let mut full = Full::new(open_memory().unwrap(), &joins, steps_max)?;
        full.in_batch::<FullError>(|full| {
            for key in ["b", "a", "c"] {
                let row = TopicImage { payload: r#"{"n":1}"#, timestamp: 1, change: None };
                full.absorb("t", key, Some(row))?;
            }
            full.absorb("t", "c", None)
        })?;
        let mut found = Vec::new();
        full.compute(&joins[0])?;
        full.compare::<FullError>(&joins[0], &mut Nothing, &mut |change| {
            found.push(format!("{} {}", change.key, change.rows));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn rows_come_grouped_by_key_and_in_key_order() {
        let query = "SELECT payload->>'n' AS n, key FROM t UNION ALL SELECT 0, 'x'";
        let expected = [r#"0 [{"n":0,"key":"x"}]"#, r#"1 [{"n":1,"key":"a"},{"n":1,"key":"b"}]"#];
        assert_eq!(results(query, STEPS_MAX).unwrap(), expected);
    }

    #[test]
    fn a_query_without_end_is_stopped() {
        let query =
            "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) AS n FROM r";
        let error = results(query, 10_000_000).expect_err("it never ends");
        assert!(matches!(error, FullError::Endless { steps: 10_000_000 }), "{error}");
    }

    #[test]
    fn a_value_beyond_all_measure_is_an_error_of_the_query() {
        let error = results("SELECT zeroblob(1000000000) AS z", STEPS_MAX).expect_err("it is too big");
        assert!(
            matches!(&error, FullError::Query { message } if message == "string or blob too big"),
            "{error}"
        );
    }
}
