//! Evaluation in full: a copy of the topics that a join reads, kept current row by row, and the query run over all of
//! it. Full evaluation is the oracle, the backfill and the repair of every faster way.
//!
//! The copy is in key order in any number of shards. So an order that SQLite leaves open, such as that of aggregated
//! rows, is the same in one shard and in eight.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rusqlite::{Connection, ErrorCode, params};

use super::TopicImage;
use super::aggregate::Accumulation;
use super::budget::{Budget, ROWS_MAX};
use super::check;
use super::checked::CheckedJoin;
use super::diff::{self, StoredResults};
use super::now::QueryClock;
use super::plan::{Accumulated, Class, Keyed};
use crate::results::event::{Emit, Op, ResultChange};
use crate::storage::sqlite::{SqliteError, is_disk_full, quoted};

/// Why an evaluation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FullError {
    /// The query itself failed; no other join is affected.
    #[error("the query failed: {message}")]
    Query { message: String },
    /// The query was over its limit of steps; a second try would cost as much.
    #[error(
        "the query took more than {steps} steps of SQLite's virtual machine and was stopped; make it cheaper (a join \
         condition is missing, or a recursion has no end) and reload"
    )]
    StepLimit { steps: u64 },
    #[error("the query yields more than {rows} rows; narrow it down and reload")]
    Rows { rows: u64 },
    /// The worker stops, or this evaluation is no longer needed.
    #[error("the evaluation was cancelled")]
    Cancelled,
    #[error("could not {doing} the working copy of the topics")]
    Copy { doing: &'static str, source: rusqlite::Error },
    #[error("could not read stored results")]
    Stored(#[source] rusqlite::Error),
}

/// The copy and the statements that keep it current.
pub(crate) struct Full {
    connection: Connection,
    budget: Budget,
    clock: QueryClock,
    /// Upsert and delete, by lower-case topic.
    statements: HashMap<String, (String, String)>,
    /// The query to run once the copy has the indexes that the query was planned with.
    indexed: Option<String>,
}

impl Full {
    /// Makes empty tables for the topics that `join` reads, and a view for each of `others` that the query may read.
    /// `connection` is an empty scratch database; an evaluation may take `steps_max` steps.
    pub(crate) fn new(
        mut connection: Connection,
        join: &CheckedJoin,
        others: &[CheckedJoin],
        steps_max: u64,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Self, FullError> {
        let budget = Budget::guard(&mut connection, steps_max, cancelled).map_err(copy("guard"))?;
        let clock = QueryClock::install(&connection).map_err(copy("guard"))?;
        let mut statements = HashMap::new();
        let make = |sql: &str| connection.execute_batch(sql).map_err(copy("make"));
        for topic in &join.topics {
            make(&check::topic_table_sql(topic))?;
            let table = quoted(topic);
            statements.insert(
                topic.to_ascii_lowercase(),
                (
                    format!("INSERT OR REPLACE INTO {table} (key, payload, timestamp, _change) VALUES (?1, ?2, ?3, ?4)"),
                    format!("DELETE FROM {table} WHERE key = ?1"),
                ),
            );
        }
        for other in others.iter().filter(|other| other.name != join.name) {
            make(&other.view_sql(&quoted(&other.name)))?;
        }
        make(
            "CREATE TABLE _fresh (key TEXT NOT NULL, n INTEGER NOT NULL, row TEXT NOT NULL, PRIMARY KEY (key, n))
             WITHOUT ROWID;
             CREATE TABLE _accumulators (grp TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
             CREATE TABLE _differences (n INTEGER PRIMARY KEY, op TEXT NOT NULL, key TEXT NOT NULL, rows TEXT NOT NULL);",
        )?;
        Ok(Self { connection, budget, clock, statements, indexed: None })
    }

    /// Sets the moment, in seconds since the Unix epoch, that queries see as now.
    pub(crate) fn set_clock(&self, now: i64) {
        self.clock.set(now);
    }

    /// Runs `work` with all its calls of [`Self::absorb`] in one transaction.
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

    /// Writes the new image of a topic's row into the copy (`None`: the row is gone).
    pub(crate) fn absorb(
        &mut self,
        topic: &str,
        key: &str,
        row: Option<TopicImage<'_>>,
    ) -> Result<(), FullError> {
        let Some((upsert, delete)) = self.statements.get(&topic.to_ascii_lowercase()) else { return Ok(()) };
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

    /// Adds to the copy the indexes by which a keyed join looks rows up: without them a join on a field of the payload
    /// compares each row with each.
    pub(crate) fn index(&mut self, join: &CheckedJoin) -> Result<(), FullError> {
        let lookups: BTreeSet<_> = join.class.plans().into_iter().flat_map(Keyed::lookups).collect();
        for (number, (topic, expr)) in lookups.iter().enumerate() {
            let sql = format!("CREATE INDEX _by_{number} ON {} ({})", quoted(topic), expr.sql());
            self.connection.execute_batch(&sql).map_err(copy("index"))?;
        }
        self.indexed = match &join.class {
            Class::Keyed(keyed) => Some(keyed.sql_full.clone()),
            Class::Accumulated(plan) => plan.otherwise.as_ref().ok().map(|keyed| keyed.sql_full.clone()),
            Class::Full(_) => None,
        };
        Ok(())
    }

    /// Runs the query over the copy, compares its rows with the `stored` ones, and keeps the differences for
    /// [`Self::differences`]. Returns the number of differences.
    pub(crate) fn evaluate(
        &mut self,
        join: &CheckedJoin,
        stored: &mut dyn StoredResults,
    ) -> Result<u64, FullError> {
        let clear = "BEGIN; DELETE FROM _fresh; DELETE FROM _differences;";
        self.connection.execute_batch(clear).map_err(copy("clear"))?;
        let outcome = self.run(join).and_then(|()| self.compare(stored));
        self.budget.close();
        let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
        self.connection.execute_batch(end).map_err(copy("fill"))?;
        // The next evaluation may be far away.
        self.connection.execute_batch("PRAGMA shrink_memory").map_err(copy("tidy"))?;
        outcome
    }

    /// Computes the aggregate states of all groups, for [`Self::accumulators`]. Returns `false` if a value can't be
    /// accumulated.
    pub(crate) fn accumulate(&mut self, plan: &Accumulated) -> Result<bool, FullError> {
        self.connection.execute_batch("BEGIN; DELETE FROM _accumulators;").map_err(copy("clear"))?;
        self.budget.open();
        let outcome = self.fold(plan);
        self.budget.close();
        let end = if matches!(outcome, Ok(true)) { "COMMIT" } else { "ROLLBACK" };
        self.connection.execute_batch(end).map_err(copy("fill"))?;
        outcome
    }

    fn fold(&self, plan: &Accumulated) -> Result<bool, FullError> {
        let failed = |source| self.failed(source);
        let mut insert = self
            .connection
            .prepare_cached("INSERT INTO _accumulators (grp, state) VALUES (?1, ?2)")
            .map_err(copy("fill"))?;
        let mut accumulation = Accumulation::new(plan);
        let mut statement = self.connection.prepare_cached(&plan.all_sql).map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            match accumulation.add(row) {
                Ok(Some(group)) => drop(insert.execute(group).map_err(copy("fill"))?),
                Ok(None) => {}
                Err(_) => return Ok(false),
            }
        }
        if let Some(group) = accumulation.end() {
            insert.execute(group).map_err(copy("fill"))?;
        }
        Ok(true)
    }

    /// Calls `emit` with each group and state that [`Self::accumulate`] has computed.
    pub(crate) fn accumulators<E: From<FullError>>(
        &self,
        emit: &mut dyn FnMut(&str, &str) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = copy("read");
        let mut statement = self
            .connection
            .prepare_cached("SELECT grp, state FROM _accumulators ORDER BY grp")
            .map_err(&failed)?;
        let mut rows = statement.query([]).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            let text = |index| row.get_ref(index).and_then(|value| Ok(value.as_str()?)).map_err(&failed);
            emit(text(0)?, text(1)?)?;
        }
        Ok(())
    }

    /// Calls `each` for differences of the last evaluation, in the order of result keys: those whose index among the
    /// differences is in `places`, from 0.
    pub(crate) fn differences<E: From<FullError>>(
        &self,
        places: Range<u64>,
        emit: Emit,
        each: &mut dyn FnMut(&ResultChange<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = copy("read");
        let mut statement = self
            .connection
            .prepare_cached("SELECT op, key, rows FROM _differences WHERE n > ?1 AND n <= ?2 ORDER BY n")
            .map_err(&failed)?;
        let mut rows = statement.query([places.start, places.end]).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            let text = |index| row.get_ref(index).and_then(|value| Ok(value.as_str()?)).map_err(&failed);
            let op = Op::parse(text(0)?).expect("we wrote it ourselves");
            each(&ResultChange { op, key: text(1)?.into(), rows: text(2)?.into(), emit, window: None })?;
        }
        Ok(())
    }

    /// Runs the query and writes its rows by key into `_fresh`.
    fn run(&self, join: &CheckedJoin) -> Result<(), FullError> {
        self.budget.open();
        let failed = |source| self.failed(source);
        // The query needs no authorizer here: it was checked under one, on the same tables.
        let sql = self.indexed.as_ref().unwrap_or(&join.sql);
        let mut query = self.connection.prepare_cached(sql).map_err(failed)?;
        let mut insert = self
            .connection
            .prepare_cached("INSERT INTO _fresh (key, n, row) VALUES (?1, ?2, ?3)")
            .map_err(copy("fill"))?;
        let (mut key, mut object) = (String::new(), String::new());
        let mut rows = query.query([]).map_err(failed)?;
        let mut n = 0_u64;
        while let Some(row) = rows.next().map_err(failed)? {
            if n == ROWS_MAX {
                return Err(FullError::Rows { rows: ROWS_MAX });
            }
            join.columns.write(row, &mut key, &mut object).map_err(failed)?;
            insert.execute(params![key, n.cast_signed(), object]).map_err(copy("fill"))?;
            n += 1;
        }
        self.budget.close();
        Ok(())
    }

    /// Classifies an error of the query: its own failure, its limits, a cancellation, or SQLite's failure.
    fn failed(&self, source: rusqlite::Error) -> FullError {
        match source.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) if self.budget.is_cancelled() => FullError::Cancelled,
            Some(ErrorCode::OperationInterrupted) => FullError::StepLimit { steps: self.budget.steps_max() },
            _ if is_disk_full(&source) => FullError::Copy { doing: "query", source },
            _ => FullError::Query { message: SqliteError::message_of(&source) },
        }
    }

    /// Walks `_fresh` and the stored results side by side.
    fn compare(&self, stored: &mut dyn StoredResults) -> Result<u64, FullError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT key, row FROM _fresh ORDER BY key, n")
            .map_err(copy("read"))?;
        let mut insert = self
            .connection
            .prepare_cached("INSERT INTO _differences (op, key, rows) VALUES (?1, ?2, ?3)")
            .map_err(copy("fill"))?;
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
        let mut differences = 0;
        let outcome = diff::diff::<CompareError>(fresh, stored, &mut |op, key, rows| {
            differences += 1;
            insert.execute(params![op.as_str(), key, rows]).map_err(CompareError::Keep)?;
            Ok(())
        });
        match outcome {
            Ok(()) => Ok(differences),
            Err(CompareError::Read(source)) => Err(FullError::Stored(source)),
            Err(CompareError::Keep(source)) => Err(copy("fill")(source)),
        }
    }
}

/// The side of a comparison that failed.
enum CompareError {
    Read(rusqlite::Error),
    Keep(rusqlite::Error),
}

impl From<rusqlite::Error> for CompareError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Read(error)
    }
}

fn copy(doing: &'static str) -> impl Fn(rusqlite::Error) -> FullError + Copy {
    move |source| FullError::Copy { doing, source }
}

#[cfg(test)]
mod tests {
    use litejoin_crds::plan;

    use super::*;
    use crate::join::budget::STEPS_MAX;
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
            refresh: std::time::Duration::from_secs(1),
            sinks: Vec::new(),
        };
        let joins = check::check(
            &[join],
            &[],
            check::Catalog { topics: &["t".to_owned()], open: false },
            &check::no_window,
        )
        .expect("a query");
        let mut full = Full::new(open_memory().unwrap(), &joins[0], &joins, steps_max, Arc::default())?;
        full.in_batch::<FullError>(|full| {
            for key in ["b", "a", "c"] {
                let row = TopicImage { payload: r#"{"n":1}"#, timestamp: 1, change: None };
                full.absorb("t", key, Some(row))?;
            }
            full.absorb("t", "c", None)
        })?;
        let mut found = Vec::new();
        let differences = full.evaluate(&joins[0], &mut Nothing)?;
        full.differences::<FullError>(0..differences, Emit::Silent, &mut |change| {
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
        assert!(matches!(error, FullError::StepLimit { steps: 10_000_000 }), "{error}");
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
