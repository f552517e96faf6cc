//! Results in the tables of a SQLite file, one a join, for programs that read SQLite. A call is one transaction, so readers
//! see whole results, and whatever the sink has answered for is on the disk.
//!
//! ```text
//! <join>(<columns of the query>, _key)   the rows of each result; _key is its result key as JSON
//! _litejoin(join_name, incarnation)      which tables are ours, and what their rows are of
//! ```
//! A query whose columns change takes its table along: columns come, go and change their type, rows stay until the new
//! results replace them. Rows of a join that was another one (it was removed and came back, or the data directory is
//! new or restored) are removed, and all of its results are handed over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use litejoin_crds::error::chain;
use litejoin_crds::plan::Synchronous;
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OptionalExtension, Transaction, params, params_from_iter};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::routes::Routes;
use super::{Delivery, LostJoins, Outcome, Outcomes, Preparation, Sink};
use crate::blocking::blocking;
use crate::results::event::{JoinId, Shape};
use crate::storage::sqlite::{self, SqliteError, quoted};

/// The column that holds result keys.
pub(crate) const KEY: &str = "_key";

/// The table that says which tables are ours.
const TABLES: &str = "CREATE TABLE IF NOT EXISTS _litejoin (
    join_name TEXT PRIMARY KEY COLLATE NOCASE,
    incarnation TEXT NOT NULL
)";

/// The reason why a join has no table.
#[derive(Debug, thiserror::Error)]
enum TableError {
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error(
        "there is a table {name} already that is none of ours, and it stays untouched; rename the join, or write another \
         sqlite.path"
    )]
    Foreign { name: String },
}

/// Writes to one file.
pub(crate) struct SqliteSink {
    path: PathBuf,
    file: Arc<Mutex<TargetFile>>,
}

struct TargetFile {
    connection: Connection,
    tables: Vec<TargetTable>,
}

/// The table of a join.
#[derive(Debug, Clone, PartialEq)]
struct TargetTable {
    join: JoinId,
    name: String,
    /// The join's data: of which directory, and of which join of that name there.
    incarnation: String,
    shape: Arc<Shape>,
}

/// A result, as far as a table holds it.
#[derive(Debug, Deserialize)]
struct Written {
    query: String,
    rows: Vec<BTreeMap<String, Box<RawValue>>>,
}

impl SqliteSink {
    /// Opens the file, or makes it. It can't be one of the worker's own.
    pub(crate) fn open(path: &Path, data_dir: &Path) -> Result<Self, String> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let shown = path.display();
        match (folder.canonicalize(), data_dir.canonicalize()) {
            (Err(error), _) => {
                return Err(format!(
                    "sqlite.path: {shown}: its folder can't be opened ({error}); make it first"
                ));
            }
            (Ok(folder), Ok(data_dir)) if folder == data_dir => {
                return Err(format!(
                    "sqlite.path: {shown}: is in the data directory, whose files are the worker's own; write another folder"
                ));
            }
            _ => {}
        }
        let open = || -> Result<Connection, SqliteError> {
            let connection = sqlite::open_writer(path, Synchronous::Full)?;
            connection
                .execute_batch(TABLES)
                .map_err(|source| SqliteError::new(path, "make its table of tables", source))?;
            Ok(connection)
        };
        let connection = open().map_err(|error| format!("sqlite.path: {}", chain(&error)))?;
        let file = Arc::new(Mutex::new(TargetFile { connection, tables: Vec::new() }));
        Ok(Self { path: path.to_owned(), file })
    }

    async fn doing<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut TargetFile) -> Result<T, TableError> + Send + 'static,
    ) -> Result<T, String> {
        let file = Arc::clone(&self.file);
        let outcome = blocking(move || work(&mut file.lock().unwrap_or_else(PoisonError::into_inner))).await;
        outcome.map_err(|error| format!("{}: {error}", self.path.display()))
    }
}

impl Sink for SqliteSink {
    /// Joins without a table, or whose table has the rows of another history: that of before a restore, for one.
    fn lost<'a>(&'a mut self, routes: &'a Routes) -> LostJoins<'a> {
        let tables = tables_of(routes);
        Box::pin(self.doing(move |file| {
            let mut lost = Vec::new();
            for table in tables {
                let is_there = !columns_of(&file.connection, &table.name)?.is_empty();
                if !is_there || table.known(&file.connection)?.as_ref() != Some(&table.incarnation) {
                    lost.push(table.join);
                }
            }
            Ok(lost)
        }))
    }

    fn prepare<'a>(&'a mut self, routes: &'a Routes) -> Preparation<'a> {
        let tables = tables_of(routes);
        Box::pin(self.doing(move |file| {
            let transaction = file.connection.transaction()?;
            for table in &tables {
                table.prepare(&transaction)?;
            }
            transaction.commit()?;
            file.tables = tables;
            Ok(())
        }))
    }

    fn deliver<'a>(&'a mut self, results: &'a [Delivery]) -> Outcomes<'a> {
        let (count, results) = (results.len(), results.to_vec());
        Box::pin(async move {
            let written = self.doing(move |file| {
                let TargetFile { connection, tables } = file;
                let transaction = connection.transaction()?;
                let outcomes: Result<Vec<Outcome>, TableError> =
                    results.iter().map(|result| write(&transaction, tables, result)).collect();
                let outcomes = outcomes?;
                transaction.commit()?;
                Ok(outcomes)
            });
            written.await.unwrap_or_else(|problem| vec![Outcome::Failed(problem); count])
        })
    }
}

fn tables_of(routes: &Routes) -> Vec<TargetTable> {
    let envelopes = routes.joins().iter().filter_map(|join| Some((*join, routes.envelope(*join)?)));
    envelopes
        .map(|(join, envelope)| TargetTable {
            join,
            name: envelope.join_name.clone(),
            incarnation: format!("{}/{}", envelope.lineage, join.0),
            shape: Arc::clone(&envelope.shape),
        })
        .collect()
}

/// Replaces the rows of one result.
fn write(
    transaction: &Transaction<'_>,
    tables: &[TargetTable],
    result: &Delivery,
) -> Result<Outcome, TableError> {
    let written: Written = match serde_json::from_str(&result.json) {
        Ok(written) => written,
        Err(error) => return Ok(Outcome::Refused(format!("its rows can't be read: {error}"))),
    };
    let table = tables.iter().find(|table| table.name == written.query);
    let table = table.expect("a sink is prepared for the joins whose results it gets");
    let name = quoted(&table.name);
    transaction.prepare_cached(&format!("DELETE FROM {name} WHERE {KEY} = ?1"))?.execute([&result.key])?;
    let columns: String =
        table.shape.columns.iter().map(|(column, _)| format!("{}, ", quoted(column))).collect();
    let marks = "?, ".repeat(table.shape.columns.len());
    let sql = format!("INSERT INTO {name} ({columns}{KEY}) VALUES ({marks}?)");
    let mut insert = transaction.prepare_cached(&sql)?;
    for row in &written.rows {
        let values =
            table.shape.columns.iter().map(|(column, _)| sql_value(row.get(column).map(|raw| raw.get())));
        let key = SqlValue::Text(result.key.clone());
        insert.execute(params_from_iter(values.chain([key])))?;
    }
    Ok(Outcome::Delivered)
}

/// A value of a row, from JSON to what SQLite had. An infinite real is `9e999` in JSON, which serde_json's numbers can't be.
/// A BLOB has become text on its way.
fn sql_value(json: Option<&str>) -> SqlValue {
    let Some(json) = json else { return SqlValue::Null };
    match json.as_bytes().first() {
        Some(b'n') => SqlValue::Null,
        Some(b't') => SqlValue::Integer(1),
        Some(b'f') => SqlValue::Integer(0),
        Some(b'-' | b'0'..=b'9') => match (json.parse::<i64>(), json.parse::<f64>()) {
            (Ok(integer), _) => SqlValue::Integer(integer),
            (Err(_), Ok(real)) => SqlValue::Real(real),
            (Err(_), Err(_)) => SqlValue::Text(json.to_owned()),
        },
        Some(b'"') => {
            let text = serde_json::from_str(json);
            SqlValue::Text(text.unwrap_or_else(|_| json.to_owned()))
        }
        _ => SqlValue::Text(json.to_owned()),
    }
}

impl TargetTable {
    /// What the rows of the table are of, if it is one of ours.
    fn known(&self, connection: &Connection) -> rusqlite::Result<Option<String>> {
        let sql = "SELECT incarnation FROM _litejoin WHERE join_name = ?1";
        connection.query_row(sql, [&self.name], |row| row.get(0)).optional()
    }

    /// Brings the table in line with the join.
    fn prepare(&self, transaction: &Transaction<'_>) -> Result<(), TableError> {
        let known = self.known(transaction)?;
        let present = columns_of(transaction, &self.name)?;
        if known.is_none() && !present.is_empty() {
            return Err(TableError::Foreign { name: self.name.clone() });
        }
        if present.is_empty() {
            transaction.execute_batch(&self.create(&self.name))?;
        } else if present != self.columns() {
            self.migrate(transaction, &present)?;
        }
        if known.as_ref().is_some_and(|known| *known != self.incarnation) {
            transaction.execute_batch(&format!("DELETE FROM {}", quoted(&self.name)))?;
        }
        let index = quoted(&format!("_{}{KEY}", self.name));
        transaction.execute_batch(&format!(
            "CREATE INDEX IF NOT EXISTS {index} ON {} ({KEY})",
            quoted(&self.name)
        ))?;
        transaction.execute(
            "INSERT INTO _litejoin (join_name, incarnation) VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET incarnation = excluded.incarnation",
            params![self.name, self.incarnation],
        )?;
        Ok(())
    }

    /// Makes the table anew with what it has of the columns that stay. In a transaction, so readers see one or the other.
    fn migrate(&self, transaction: &Transaction<'_>, present: &[(String, String)]) -> Result<(), TableError> {
        let old = quoted(&self.name);
        // No join's name begins with an underscore.
        let new = "_litejoin_next";
        let stay: Vec<String> = self
            .columns()
            .iter()
            .filter(|(name, _)| present.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)))
            .map(|(name, _)| quoted(name))
            .collect();
        let stay = stay.join(", ");
        transaction.execute_batch(&format!("DROP TABLE IF EXISTS {}", quoted(new)))?;
        transaction.execute_batch(&self.create(new))?;
        let new = quoted(new);
        transaction.execute_batch(&format!(
            "INSERT INTO {new} ({stay}) SELECT {stay} FROM {old}; DROP TABLE {old}; ALTER TABLE {new} RENAME TO {old}"
        ))?;
        Ok(())
    }

    fn create(&self, name: &str) -> String {
        let columns: Vec<String> =
            self.columns().iter().map(|(name, kind)| format!("{} {kind}", quoted(name))).collect();
        format!("CREATE TABLE {} ({})", quoted(name), columns.join(", "))
    }

    /// Names and types of its columns.
    fn columns(&self) -> Vec<(String, String)> {
        let columns = self.shape.columns.iter();
        let columns = columns.map(|(name, kind)| (name.clone(), kind.unwrap_or_default().to_owned()));
        columns.chain([(KEY.to_owned(), "TEXT".to_owned())]).collect()
    }
}

/// Names and types of a table's columns; none if there is no such table.
fn columns_of(connection: &Connection, table: &str) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = connection.prepare("SELECT name, type FROM pragma_table_info(?1) ORDER BY cid")?;
    statement.query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_sqlite_had_them() {
        for (json, value) in [
            (None, SqlValue::Null),
            (Some("null"), SqlValue::Null),
            (Some("1"), SqlValue::Integer(1)),
            (Some("-9223372036854775808"), SqlValue::Integer(i64::MIN)),
            (Some("1.0"), SqlValue::Real(1.0)),
            (Some("1e300"), SqlValue::Real(1e300)),
            (Some("9e999"), SqlValue::Real(f64::INFINITY)),
            (Some("-9e999"), SqlValue::Real(f64::NEG_INFINITY)),
            (Some("\"9e999\""), SqlValue::Text("9e999".to_owned())),
            (Some("\"a\\nb\""), SqlValue::Text("a\nb".to_owned())),
            (Some("[1]"), SqlValue::Text("[1]".to_owned())),
        ] {
            assert_eq!(sql_value(json), value, "{json:?}");
        }
    }
}
