//! Looking rows up by a value: the parameters of statements, the rows found, and the cost.

use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Row, StatementStatus};

use super::TopicImage;
use super::keyed::KeyedError;
use super::value::Value;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::{SqliteError, bind_row};

/// The cost of an evaluation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Steps of SQLite's virtual machine.
    pub(crate) steps: u64,
    /// Look-ups in shards.
    pub(crate) probes: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.probes += other.probes;
    }
}

/// Calls `put` for the rows of one shard that have the value.
pub(super) fn look_up(
    statement: &mut CachedStatement<'_>,
    reader: &ShardReader,
    value: &Value,
    put: &mut impl FnMut(ValueRef<'_>, &Row<'_>) -> Result<(), KeyedError>,
) -> Result<(), KeyedError> {
    let failed = |source| lookup_failed(reader, source);
    let mut rows = statement.query([value]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        put(row.get_ref(0).map_err(failed)?, row)?;
    }
    Ok(())
}

pub(crate) fn lookup_failed(reader: &ShardReader, source: rusqlite::Error) -> KeyedError {
    SqliteError::new(reader.path(), "look rows up", source).into()
}

/// Returns the value of an expression for a row that is not in a table.
pub(super) fn value_of(
    by: &mut CachedStatement<'_>,
    key: &str,
    image: TopicImage<'_>,
) -> Result<Value, KeyedError> {
    bind_row(by, key, image.payload, image.timestamp, image.change)?;
    let mut rows = by.raw_query();
    let row = rows.next()?.expect("a SELECT without FROM has one row");
    Value::new(row.get_ref(0)?).ok_or(KeyedError::UnsupportedValue)
}

/// Returns the steps that the statement took since the last call.
pub(crate) fn steps_of(statement: &rusqlite::Statement<'_>) -> u64 {
    u64::try_from(statement.reset_status(StatementStatus::VmStep)).unwrap_or(0)
}

/// A value on its way from one statement to another.
pub(crate) struct Raw<'a>(pub(crate) ValueRef<'a>);

impl rusqlite::ToSql for Raw<'_> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(rusqlite::types::ToSqlOutput::Borrowed(self.0))
    }
}
