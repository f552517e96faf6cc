//! The columns and inputs of a query, found out by SQLite itself: each query is prepared on empty tables under an
//! authorizer that lets it read topics and other joins, and nothing else.

mod authorizer;
mod literals;
mod outputs;
mod refusal;
mod swallowed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use litejoin_crds::plan::{Join, Place, Window};
use rusqlite::Connection;
use rusqlite::hooks::{AuthContext, Authorization};

use self::authorizer::{Seen, authorize};
use self::literals::wrong_literal;
use self::outputs::{Output, Outputs, circle};
use self::refusal::{near, refusal, short};
use self::swallowed::swallowed;
use super::checked::{CheckedJoin, mentions};
use super::node;
use super::now::{self, QueryClock};
use super::plan::{self, Class, ClockUse, Keyed, Reason, TimeBound};
use super::rows::Columns;
use crate::results::event::Shape;
use crate::storage::sqlite::{open_memory, quoted};
use crate::storage::topics::{fed_by, feed_of};

/// An error in a query, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueryError {
    pub(crate) place: Place,
    /// The wrong field below `place`.
    pub(crate) field: &'static str,
    /// Line within the query, from 0.
    pub(crate) line: usize,
    pub(crate) message: String,
}

/// The names that queries may read beside each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Catalog<'a> {
    pub(crate) topics: &'a [String],
    /// Whether a source accepts any topic, so that undeclared names may become topics later.
    pub(crate) open: bool,
}

/// Returns the statement for a topic's table as queries see it, without a rowid: rows of different shards have none in
/// common.
pub(crate) fn topic_table_sql(name: &str) -> String {
    gathered_table_sql(&quoted(name))
}

/// Returns the statement of [`topic_table_sql`] for a name that is quoted already.
pub(crate) fn gathered_table_sql(quoted_name: &str) -> String {
    format!(
        "CREATE TABLE {quoted_name} (key TEXT PRIMARY KEY, payload TEXT, timestamp INTEGER, _change TEXT) WITHOUT ROWID"
    )
}

/// Returns the statement for the topic's table as the query of a window sees it.
pub(crate) fn frame_table_sql(quoted_topic: &str) -> String {
    format!(
        "CREATE TABLE {quoted_topic} (key TEXT PRIMARY KEY, payload TEXT, timestamp INTEGER, _change TEXT,
                                      window_start INTEGER, window_end INTEGER) WITHOUT ROWID"
    )
}

/// Checks a window, given the join or window that is its topic, if one is.
pub(crate) type CheckWindow<'c> =
    &'c dyn Fn(&Window, Option<&CheckedJoin>) -> Result<CheckedJoin, Vec<QueryError>>;

/// For joins without windows beside them.
#[cfg(test)]
pub(crate) fn no_window(_: &Window, _: Option<&CheckedJoin>) -> Result<CheckedJoin, Vec<QueryError>> {
    unreachable!("there is no window")
}

/// Checks all joins and returns them so that each join comes after the joins that it reads, then all windows. Each is
/// checked after those that it reads. Reports all errors at once.
pub(crate) fn check(
    joins: &[Join],
    windows: &[Window],
    catalog: Catalog<'_>,
    check_window: CheckWindow<'_>,
) -> Result<Vec<CheckedJoin>, Vec<QueryError>> {
    let outputs = Outputs { joins, windows };
    let mut checker = Checker::new(catalog);
    let (mut checked, mut errors) = (Vec::new(), Vec::new());
    let mut waiting: Vec<Output<'_>> = outputs.all().collect();
    loop {
        let mut postponed = Vec::new();
        let before = waiting.len();
        for output in waiting {
            match checker.check_output(output, outputs, &checked, check_window) {
                Ok(found) => checked.push(found),
                Err(CheckProblem::NeedsOutput) => postponed.push(output),
                Err(CheckProblem::Wrong(found)) => {
                    errors.extend(found);
                    checker.broken.insert(output.name().to_ascii_lowercase());
                }
                Err(CheckProblem::NeedsBroken) => {
                    checker.broken.insert(output.name().to_ascii_lowercase());
                }
            }
        }
        if postponed.is_empty() {
            break;
        }
        if postponed.len() == before {
            errors.extend(circle(&postponed));
            break;
        }
        waiting = postponed;
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    checked.sort_by_key(|output| output.window.is_some());
    let queries: BTreeMap<String, String> = checked
        .iter()
        .map(|output| {
            let sql = if output.window.is_some() { node::select(output) } else { output.sql.clone() };
            (output.name.to_ascii_lowercase(), sql)
        })
        .collect();
    for join in checked.iter_mut().filter(|output| output.window.is_none()) {
        let (class, clock) = plan::plan(join, &queries);
        (join.class, join.clock) = match unfit(&clock) {
            None => (checker.confirmed(class), clock),
            Some(term) => (Class::Full(Reason::Clock { term }), ClockUse::Anywhere),
        };
    }
    Ok(checked)
}

/// Checks the query of a window, which reads one topic with the bounds of a frame, and nothing else. `node` is the join
/// or window that is its topic, if one is.
pub(crate) fn check_window(window: &Window, node: Option<&CheckedJoin>) -> Result<CheckedJoin, QueryError> {
    let join = Join {
        name: window.name.clone(),
        place: window.place.clone(),
        query: window.query.clone(),
        key_column: window.key_column.clone(),
        result_key: None,
        refresh: Duration::ZERO,
        sinks: window.sinks.clone(),
    };
    let mut checker = Checker::new(Catalog { topics: &[], open: false });
    let topic = node.map_or_else(|| window.topic.clone(), |node| feed_of(&node.name));
    checker.add_table(&frame_table_sql(&quoted(&topic)));
    if let Some(node) = node {
        checker.add_view(node, &node::select_in_frame(node));
    }
    let wrong = |message: String| QueryError { place: join.place.clone(), field: "query", line: 0, message };
    let checked = match checker.check(&join, Outputs { joins: &[], windows: &[] }) {
        Ok(checked) => checked,
        Err(CheckProblem::Wrong(errors)) => {
            let mut error = errors.into_iter().next().expect("there is an error");
            if error.message.starts_with("no source fills topic") {
                let topic = &window.topic;
                error.message = format!(
                    "a window reads the messages of its own topic alone, which is {topic:?}; write FROM {topic}, and read \
                     the rest in a join over the window"
                );
            }
            return Err(error);
        }
        Err(CheckProblem::NeedsOutput | CheckProblem::NeedsBroken) => {
            return Err(wrong(
                "reads another query; a window reads the messages of its own topic alone".to_owned(),
            ));
        }
    };
    if checked.clock != ClockUse::Unread {
        return Err(wrong(
            "reads the clock; the results of a window follow from its messages, so compare with window_end"
                .to_owned(),
        ));
    }
    Ok(CheckedJoin { topics: [topic].into(), ..checked })
}

enum CheckProblem {
    /// It reads a join or window that is not checked yet.
    NeedsOutput,
    NeedsBroken,
    Wrong(Vec<QueryError>),
}

struct Checker<'a> {
    connection: Connection,
    catalog: Catalog<'a>,
    seen: Arc<Mutex<Seen>>,
    /// Joins that passed the check, by lower-case name, with the topics that they read.
    topics_of: BTreeMap<String, (BTreeSet<String>, ClockUse)>,
    broken: BTreeSet<String>,
    /// Joins and windows that are read by their feeds.
    fed: Vec<String>,
}

/// The schema of topics during the check: a name that no user writes, so that schema-qualified names never match.
const SCHEMA: &str = "lj_7f3c9b1e";

/// Functions whose value depends on more than the topics.
const UNREPEATABLE: [&str; 7] = [
    "random",
    "randomblob",
    "changes",
    "total_changes",
    "last_insert_rowid",
    "load_extension",
    "sqlite_offset",
];

/// Table functions that a query may read.
const TABLE_FUNCTIONS: [&str; 2] = ["json_each", "json_tree"];

impl<'a> Checker<'a> {
    fn new(catalog: Catalog<'a>) -> Self {
        let connection = open_memory().expect("SQLite opens a database in memory");
        connection
            .execute_batch(&format!("ATTACH ':memory:' AS {SCHEMA}"))
            .expect("SQLite attaches a database in memory");
        QueryClock::install(&connection).expect("SQLite takes a function");
        let checker = Self {
            connection,
            catalog,
            seen: Arc::default(),
            topics_of: BTreeMap::new(),
            broken: BTreeSet::new(),
            fed: Vec::new(),
        };
        for topic in catalog.topics {
            checker.add_topic(topic);
        }
        checker
    }

    fn add_topic(&self, name: &str) {
        self.add_table(&topic_table_sql(name));
    }

    /// Adds a table by the statement that creates it.
    fn add_table(&self, sql: &str) {
        let sql = sql.replacen("CREATE TABLE ", &format!("CREATE TABLE {SCHEMA}."), 1);
        self.connection.execute_batch(&sql).expect("names of topics are plain, and none is there twice");
    }

    /// Adds a view of an output that is read by its feed.
    fn add_view(&mut self, output: &CheckedJoin, select: &str) {
        self.connection
            .execute_batch(&format!("CREATE VIEW {SCHEMA}.{} AS {select}", quoted(&output.name)))
            .expect("each name can be quoted, and none is there twice");
        let topics = [feed_of(&output.name)].into();
        self.topics_of.insert(output.name.to_ascii_lowercase(), (topics, ClockUse::Unread));
        self.fed.push(output.name.clone());
    }

    /// Checks a join or a window; `checked` are those that passed before.
    fn check_output(
        &mut self,
        output: Output<'_>,
        outputs: Outputs<'_>,
        checked: &[CheckedJoin],
        check_window: CheckWindow<'_>,
    ) -> Result<CheckedJoin, CheckProblem> {
        let window = match output {
            Output::Join(join) => return self.check(join, outputs),
            Output::Window(window) => window,
        };
        let is_topic = |name: &str| name.eq_ignore_ascii_case(&window.topic);
        let node = checked.iter().find(|node| is_topic(&node.name));
        if self.broken.contains(&window.topic.to_ascii_lowercase()) {
            return Err(CheckProblem::NeedsBroken);
        }
        if node.is_none() && outputs.names().any(is_topic) {
            return Err(CheckProblem::NeedsOutput);
        }
        let found = check_window(window, node).map_err(CheckProblem::Wrong)?;
        self.add_topic(&feed_of(&found.name));
        self.add_view(&found, &node::select(&found));
        Ok(found)
    }

    fn check(&mut self, join: &Join, outputs: Outputs<'_>) -> Result<CheckedJoin, CheckProblem> {
        let query = join.query.trim().trim_end_matches(|c: char| c == ';' || c.is_whitespace()).to_owned();
        let columns = loop {
            *self.seen() = Seen::default();
            match self.prepare(&query) {
                Ok(columns) => break columns,
                Err(error) => self.explain(join, outputs, &query, error)?,
            }
        };
        let wrong = |field, message| {
            CheckProblem::Wrong(vec![QueryError { place: join.place.clone(), field, line: 0, message }])
        };
        let (functions, tables, named, timed) = {
            let seen = self.seen();
            (seen.functions.clone(), seen.tables.clone(), seen.named.clone(), seen.timed_in(&query))
        };
        if let Some(function) = UNREPEATABLE.iter().find(|function| functions.contains(**function)) {
            return Err(wrong(
                "query",
                format!("{function}() gives another value each time; results must follow from the topics"),
            ));
        }
        let columns = columns.map_err(|message| wrong("query", message))?;
        if let Some(literal) = wrong_literal(&query, &self.connection) {
            return Err(refusal(join, &query, literal.offset, literal.message));
        }
        // SQLite does not say of each read whether it comes by way of a view.
        if let Some(name) = self.fed.iter().find(|name| mentions(&query, &feed_of(name))) {
            return Err(wrong("query", format!("{} may not be read; read {name}", feed_of(name))));
        }
        let bound = now::bind(&query).filter(|bound| self.connection.prepare(bound).is_ok());
        let sql = bound.unwrap_or_else(|| query.clone());
        if let Some((first, second, name)) = twin(&columns) {
            return Err(wrong(
                "query",
                format!(
                    "columns {first} and {second} are both called {name:?}; give one another name with AS"
                ),
            ));
        }
        let key_column = key_column_of(join, &columns).map_err(|message| wrong("keyColumn", message))?;

        let is_read = |name: &&str| named.contains(&name.to_ascii_lowercase());
        let reads = outputs.names().filter(is_read).map(str::to_owned).collect();
        let calls_time = functions.iter().any(|function| now::may_read_clock(function));
        let own_clock = match sql != query {
            _ if calls_time && says_now(&sql) => ClockUse::System,
            true => ClockUse::Anywhere,
            false => ClockUse::Unread,
        };
        let (topics, clock) = self.inputs(&tables, own_clock);
        let warning = swallowed(&query, |longer| self.connection.prepare(longer).is_ok());
        let join = CheckedJoin {
            name: join.name.clone(),
            query,
            sql,
            columns: Columns::new(&columns, key_column),
            shape: Arc::new(Shape::new(&columns, &[])),
            topics,
            timed,
            reads,
            clock,
            refresh: join.refresh,
            result_key: join.result_key.clone(),
            has_sinks: !join.sinks.is_empty(),
            class: Class::Full(Reason::Syntax),
            window: None,
            warning,
        };
        self.connection
            .execute_batch(&join.view_sql(&format!("{SCHEMA}.{}", quoted(&join.name))))
            .map_err(|error| wrong("query", format!("other joins could not read it: {}", short(&error).0)))?;
        self.topics_of.insert(join.name.to_ascii_lowercase(), (join.topics.clone(), join.clock.clone()));
        let shape = Shape::new(&columns, &self.column_types(&join.name).unwrap_or_default());
        Ok(CheckedJoin { shape: Arc::new(shape), ..join })
    }

    /// Returns the topics behind the tables that a query reads, and how it reads the clock through other joins.
    fn inputs(&self, tables: &BTreeSet<String>, mut clock: ClockUse) -> (BTreeSet<String>, ClockUse) {
        let mut topics = BTreeSet::new();
        for table in tables {
            if let Some((inner, of_inner)) = self.topics_of.get(table) {
                topics.extend(inner.iter().cloned());
                if clock != ClockUse::System && *of_inner != ClockUse::Unread {
                    clock = of_inner.clone();
                }
            } else if let Some(topic) =
                self.catalog.topics.iter().find(|topic| topic.eq_ignore_ascii_case(table))
            {
                topics.insert(topic.clone());
            } else if let Some(output) = fed_by(table) {
                let name = self.fed.iter().find(|name| name.eq_ignore_ascii_case(output));
                topics.extend(name.map(|name| feed_of(name)));
            } else if !TABLE_FUNCTIONS.contains(&table.as_str()) {
                topics.insert(table.clone());
            }
        }
        (topics, clock)
    }

    /// Returns the types of a view's columns: those of the columns and casts that they come from.
    fn column_types(&self, view: &str) -> rusqlite::Result<Vec<String>> {
        let mut statement =
            self.connection.prepare("SELECT type FROM pragma_table_info(?1, ?2) ORDER BY cid")?;
        statement.query_map([view, SCHEMA], |row| row.get(0))?.collect()
    }

    /// Prepares the query under the authorizer. Returns its columns, or an error for a query that SQLite accepts and
    /// LiteJoin doesn't.
    fn prepare(&mut self, query: &str) -> Result<Result<Vec<String>, String>, rusqlite::Error> {
        let seen = Arc::clone(&self.seen);
        let authorize = move |context: AuthContext<'_>| {
            authorize(&mut seen.lock().unwrap_or_else(PoisonError::into_inner), &context)
        };
        self.connection.authorizer(Some(authorize))?;
        let outcome = self.connection.prepare(query).map(|statement| {
            if statement.is_explain() != 0 {
                return Err("starts with EXPLAIN; leave that out".to_owned());
            }
            if statement.column_count() == 0 || !statement.readonly() {
                return Err("is no SELECT; a join is one SELECT".to_owned());
            }
            if statement.parameter_count() > 0 {
                return Err("has parameters (?), and nothing to fill them with; write the values".to_owned());
            }
            Ok(statement.column_names().map(str::to_owned).collect())
        });
        self.connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
        outcome
    }

    /// Returns the class if SQLite accepts its queries and every expression by which rows are looked up.
    fn confirmed(&self, class: Class) -> Class {
        let try_keyed = |keyed: &Keyed| -> rusqlite::Result<()> {
            let memory = open_memory()?;
            QueryClock::install(&memory)?;
            for occurrence in &keyed.occurrences {
                memory.execute_batch(&gathered_table_sql(&occurrence.table))?;
                let values = format!("INSERT INTO {} VALUES ('k', '{{}}', 0, NULL)", occurrence.table);
                memory.execute_batch(&values)?;
            }
            for (position, (topic, expr)) in keyed.lookups().iter().enumerate() {
                let table = keyed.occurrences.iter().find(|occurrence| occurrence.topic == *topic);
                let table = &table.expect("it is looked up in one of them").table;
                memory.execute_batch(&format!("CREATE INDEX try_{position} ON {table} ({})", expr.sql()))?;
                memory.prepare(&format!("SELECT {}", expr.parameters()))?;
            }
            memory.prepare(&keyed.sql)?;
            Ok(())
        };
        if let Class::Accumulated(plan) = &class {
            let try_results = || -> rusqlite::Result<()> {
                let memory = open_memory()?;
                QueryClock::install(&memory)?;
                memory.execute_batch(&plan.table_sql())?;
                memory.prepare(&plan.results_sql)?;
                self.connection.prepare(&plan.all_sql)?;
                Ok(())
            };
            let parts = [Some(&plan.rows), plan.group.as_ref().map(|(_, keyed)| keyed)];
            if parts.into_iter().flatten().try_for_each(try_keyed).and_then(|()| try_results()).is_err() {
                return self.confirmed(class.unaccumulated());
            }
        }
        let keyed = match &class {
            Class::Full(_) => return class,
            Class::Keyed(keyed) => Ok(keyed),
            Class::Accumulated(plan) => plan.otherwise.as_ref(),
        };
        let Some(Err(error)) = keyed.ok().map(try_keyed) else { return class };
        let reason = Reason::Rewritten { message: short(&error).0 };
        match class {
            Class::Accumulated(mut plan) => {
                plan.otherwise = Err(reason);
                Class::Accumulated(plan)
            }
            _ => Class::Full(reason),
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the first time bound whose statements SQLite refuses, as it was written.
fn unfit(clock: &ClockUse) -> Option<String> {
    let try_bound = |bound: &TimeBound| -> rusqlite::Result<()> {
        let memory = open_memory()?;
        QueryClock::install(&memory)?;
        memory.execute_batch(&topic_table_sql(&bound.topic))?;
        memory.prepare(&format!("SELECT {} FROM {}", bound.by.sql(), quoted(&bound.topic)))?;
        memory.prepare(&format!("SELECT {}, {}", bound.by.parameters(), bound.clock))?;
        Ok(())
    };
    clock.bounds().iter().find(|bound| try_bound(bound).is_err()).map(|bound| bound.written.clone())
}

/// Returns the index of the result key's column, or an error about its name.
fn key_column_of(join: &Join, columns: &[String]) -> Result<usize, String> {
    let Some(name) = &join.key_column else { return Ok(0) };
    columns.iter().position(|column| column.eq_ignore_ascii_case(name)).ok_or_else(|| {
        let hint = near(name, columns.iter().map(String::as_str));
        format!("the query yields no column {name:?}{hint}; its columns are {}", columns.join(", "))
    })
}

/// Returns two columns with the same name, counted from 1.
fn twin(columns: &[String]) -> Option<(usize, usize, &str)> {
    columns.iter().enumerate().find_map(|(second, name)| {
        let first = columns[..second].iter().position(|other| other.eq_ignore_ascii_case(name))?;
        Some((first + 1, second + 1, name.as_str()))
    })
}

/// Returns whether a query that calls a date function asks for the current time.
fn says_now(query: &str) -> bool {
    let lower = query.to_ascii_lowercase();
    let dense: String = lower.chars().filter(|c| !c.is_whitespace()).collect();
    lower.contains("'now'")
        || lower.contains("current_")
        || ["date()", "time()", "datetime()", "julianday()", "unixepoch()"]
            .iter()
            .any(|call| dense.contains(call))
}

#[cfg(test)]
mod tests;
