//! The oracle of results: SQLite runs the query over all rows of all shards in one plain database.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use regex::Regex;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::{Value as Owned, ValueRef};
use rusqlite::{Connection, Error, OpenFlags};
use serde_json::{Map, Value, json};

use crate::results::{ResultKey, Results};

/// Payload and timestamp by key, by topic in lower case. Keys are sorted, since results that SQLite leaves open (which
/// of 5 and 5.0 a group shows) follow from the order of rows.
type Rows = BTreeMap<String, BTreeMap<String, [Owned; 2]>>;

/// A database whose functions are SQLite's own.
#[expect(clippy::disallowed_methods, reason = "the oracle must not depend on how the worker opens files")]
static PLAIN: LazyLock<Mutex<Connection>> = LazyLock::new(|| {
    let plain = Connection::open_with_flags(":memory:", OpenFlags::default());
    Mutex::new(plain.expect("SQLite opens a database in memory"))
});

/// Functions of SQLite that read the clock.
const FUNCTIONS_OF_TIME: [&str; 10] = [
    "date",
    "time",
    "datetime",
    "julianday",
    "unixepoch",
    "strftime",
    "timediff",
    "current_date",
    "current_time",
    "current_timestamp",
];

/// The topics of a data directory in one database in memory.
pub struct Oracle {
    connection: Connection,
}

impl Oracle {
    /// Creates a database with these topics, all empty.
    #[expect(clippy::disallowed_methods, reason = "the oracle must not depend on how the worker opens files")]
    pub fn new<'t>(topics: impl IntoIterator<Item = &'t str>) -> Self {
        let connection = Connection::open_with_flags(":memory:", OpenFlags::default())
            .expect("SQLite opens a database in memory");
        let oracle = Self { connection };
        oracle.add_regexp();
        for topic in topics {
            oracle.add_topic(topic);
        }
        oracle
    }

    /// Adds the function behind REGEXP, which SQLite leaves to the program.
    fn add_regexp(&self) {
        let matches = |context: &Context<'_>| {
            let (pattern, text): (Owned, Owned) = (context.get(0)?, context.get(1)?);
            let plain = PLAIN.lock().unwrap_or_else(PoisonError::into_inner);
            let mut statement = plain.prepare_cached("SELECT CAST(?1 AS TEXT), CAST(?2 AS TEXT)")?;
            let texts: (Option<String>, Option<String>) =
                statement.query_row([pattern, text], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let (Some(pattern), Some(text)) = texts else { return Ok(None) };
            let pattern = Regex::new(&pattern).map_err(|error| Error::UserFunctionError(error.into()))?;
            Ok(Some(pattern.is_match(&text)))
        };
        let made = self.connection.create_scalar_function("regexp", 2, FunctionFlags::SQLITE_UTF8, matches);
        made.expect("SQLite takes a function");
    }

    /// Reads every shard of a data directory, beside a running worker or without one, and changes no file in it.
    /// `topics` exist even without messages.
    pub fn read<'t>(data_dir: &Path, topics: impl IntoIterator<Item = &'t str>) -> Self {
        let oracle = Self::new(topics);
        let entries =
            fs::read_dir(data_dir).unwrap_or_else(|error| panic!("{}: {error}", data_dir.display()));
        let mut shards = 0;
        let mut rows = Rows::new();
        for entry in entries {
            let path = entry.expect("a folder can be listed").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("shard_") && name.ends_with(".db") {
                oracle.gather(&path, &mut rows);
                shards += 1;
            }
        }
        assert!(shards > 0, "{} has no shards", data_dir.display());
        for (topic, rows) in rows {
            for (key, [payload, timestamp]) in rows {
                oracle.insert(&topic, [Owned::Text(key), payload, timestamp]);
            }
        }
        oracle
    }

    /// Reads the rows of one shard.
    #[expect(clippy::disallowed_methods, reason = "the oracle must not depend on how the worker opens files")]
    fn gather(&self, path: &Path, found: &mut Rows) {
        let shard = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        shard.busy_timeout(crate::wait::TIMEOUT).expect("SQLite takes a busy timeout");
        let mut work = || -> rusqlite::Result<()> {
            let names: Vec<String> = shard
                .prepare("SELECT name FROM _topics")?
                .query_map([], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            for name in names {
                self.add_topic(&name);
                let of_topic = found.entry(name.to_ascii_lowercase()).or_default();
                let sql = format!("SELECT key, payload, timestamp FROM {}", quoted(&name));
                let mut rows = shard.prepare(&sql)?;
                let mut rows = rows.query([])?;
                while let Some(row) = rows.next()? {
                    let key: String = row.get(0)?;
                    let earlier = of_topic.insert(key.clone(), [row.get(1)?, row.get(2)?]);
                    assert!(earlier.is_none(), "{name}: key {key:?} is in two shards");
                }
            }
            Ok(())
        };
        work().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    fn insert(&self, topic: &str, row: [Owned; 3]) {
        let insert =
            self.connection.prepare_cached(&format!("INSERT INTO {} VALUES (?1, ?2, ?3)", quoted(topic)));
        insert.and_then(|mut insert| insert.execute(row)).unwrap_or_else(|error| panic!("{topic}: {error}"));
    }

    fn add_topic(&self, name: &str) {
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS {} (key TEXT PRIMARY KEY, payload TEXT, timestamp INTEGER)",
            quoted(name)
        );
        self.connection.execute_batch(&sql).expect("a topic has a plain name");
    }

    /// Sets or deletes a row of a topic.
    pub fn apply(&self, topic: &str, key: &str, payload: Option<&str>) {
        let table = quoted(topic);
        let cached = |sql: &str| self.connection.prepare_cached(sql);
        let done = match payload {
            Some(payload) => cached(&format!("INSERT OR REPLACE INTO {table} VALUES (?1, ?2, unixepoch())"))
                .and_then(|mut statement| statement.execute([key, payload])),
            None => cached(&format!("DELETE FROM {table} WHERE key = ?1"))
                .and_then(|mut statement| statement.execute([key])),
        };
        done.unwrap_or_else(|error| panic!("{topic} {key}: {error}"));
    }

    /// Sets a row of a topic with this timestamp.
    pub fn set(&self, topic: &str, key: &str, payload: &str, timestamp: i64) {
        let sql = format!("INSERT OR REPLACE INTO {} VALUES (?1, ?2, ?3)", quoted(topic));
        let done = self.connection.prepare_cached(&sql);
        done.and_then(|mut insert| insert.execute((key, payload, timestamp)))
            .unwrap_or_else(|error| panic!("{topic} {key}: {error}"));
    }

    /// Sets the moment, in seconds since the Unix epoch, that queries see as now: SQLite's functions of time are replaced
    /// by ones that know another now, and ask SQLite for the rest.
    pub fn set_now(&self, now: i64) {
        let moment: String = PLAIN
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .query_row("SELECT datetime(?1, 'unixepoch')", [now], |row| row.get(0))
            .expect("a moment has a text");
        for name in FUNCTIONS_OF_TIME {
            let moment = moment.clone();
            let function = name.strip_prefix("current_").map_or(name, |of| match of {
                "timestamp" => "datetime",
                other => other,
            });
            let made = self.connection.create_scalar_function(
                name,
                -1,
                FunctionFlags::SQLITE_UTF8,
                move |context| {
                    let mut arguments: Vec<Owned> =
                        (0..context.len()).map(|index| context.get(index)).collect::<Result<_, _>>()?;
                    let formats = usize::from(function == "strftime");
                    if arguments.len() == formats {
                        arguments.push(Owned::Text("now".to_owned()));
                    }
                    for argument in &mut arguments[formats..] {
                        if matches!(argument, Owned::Text(text) if text.eq_ignore_ascii_case("now")) {
                            *argument = Owned::Text(moment.clone());
                        }
                    }
                    let marks = vec!["?"; arguments.len()].join(", ");
                    let sql = format!("SELECT {function}({marks})");
                    let plain = PLAIN.lock().unwrap_or_else(PoisonError::into_inner);
                    let mut statement = plain.prepare_cached(&sql)?;
                    statement.query_row(rusqlite::params_from_iter(arguments), |row| row.get::<_, Owned>(0))
                },
            );
            made.expect("SQLite takes a function");
        }
    }

    /// Has a function that yields what `json_extract` does, and NULL for a text that is no JSON.
    pub fn add_tolerant(&self, name: &str) {
        let made = self.connection.create_scalar_function(name, 2, FunctionFlags::SQLITE_UTF8, |context| {
            let arguments: [Owned; 2] = [context.get(0)?, context.get(1)?];
            let plain = PLAIN.lock().unwrap_or_else(PoisonError::into_inner);
            let sql = "SELECT CASE WHEN json_valid(?1) THEN json_extract(?1, ?2) END";
            plain.prepare_cached(sql)?.query_row(arguments, |row| row.get::<_, Owned>(0))
        });
        made.expect("SQLite takes a function");
    }

    /// Reverses the order of rows wherever a query leaves it open.
    pub fn reverse(&self) {
        let done = self.connection.pragma_update(None, "reverse_unordered_selects", true);
        done.expect("SQLite takes the pragma");
    }

    /// Has queries join tables without an index made for them, which would order the rows by all that it holds.
    pub fn scan(&self) {
        self.connection.pragma_update(None, "automatic_index", false).expect("SQLite takes the pragma");
    }

    /// Removes a join that was [defined](Self::define).
    pub fn undefine(&self, join: &str) {
        let sql = format!("DROP VIEW {}", quoted(join));
        self.connection.execute_batch(&sql).unwrap_or_else(|error| panic!("{join}: {error}"));
    }

    /// Defines a join for later queries that read it by name.
    pub fn define(&self, join: &str, query: &str) {
        let sql = format!("CREATE VIEW {} AS {query}", quoted(join));
        self.connection.execute_batch(&sql).unwrap_or_else(|error| panic!("{join}: {error}"));
    }

    /// Returns the results of a join, grouped by `key_column` or else the first column.
    pub fn results(&self, join: &str, query: &str, key_column: Option<&str>) -> Results {
        let rows = self.rows(query);
        let mut groups: BTreeMap<ResultKey, Vec<Value>> = BTreeMap::new();
        for (columns, row) in rows {
            let key = key_column.map_or_else(|| columns[0].clone(), str::to_owned);
            let key = row.get(&key).unwrap_or_else(|| panic!("{join} yields no column {key}"));
            groups.entry((join.to_owned(), key.to_string())).or_default().push(Value::Object(row.clone()));
        }
        let mut results = Results::default();
        for (key, rows) in groups {
            results.set(key, &rows);
        }
        results
    }

    /// Returns the single value that a query yields.
    pub fn value(&self, query: &str) -> Value {
        let rows = self.rows(query);
        let [(_, row)] = rows.as_slice() else { panic!("{query} yields {} rows", rows.len()) };
        row.values().next().expect("a row has a column").clone()
    }

    fn rows(&self, query: &str) -> Vec<(Vec<String>, Map<String, Value>)> {
        let work = || -> rusqlite::Result<_> {
            let mut statement = self.connection.prepare(query.trim().trim_end_matches(';'))?;
            let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
            let mut rows = statement.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let values = (0..columns.len()).map(|index| Ok(value(row.get_ref(index)?)));
                let values = values.collect::<rusqlite::Result<Vec<_>>>()?;
                found.push((columns.clone(), columns.iter().cloned().zip(values).collect()));
            }
            Ok(found)
        };
        work().unwrap_or_else(|error| panic!("{query}: {error}"))
    }
}

fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => json!(integer),
        ValueRef::Real(real) => read_back(real),
        ValueRef::Text(text) => json!(String::from_utf8_lossy(text)),
        ValueRef::Blob(_) => panic!("the oracle does not know how a BLOB is written"),
    }
}

/// Returns a real as serde_json reads it: serde_json may be off in the last bit, so both sides go through it.
fn read_back(real: f64) -> Value {
    serde_json::from_str(&json!(real).to_string()).expect("a number is JSON")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
