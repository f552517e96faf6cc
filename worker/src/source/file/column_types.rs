//! Where the types of CSV columns are kept that are found by their values, where the manifest asks for it. The first rows of
//! a file decide once; what they say of a column is stored under the name of the source before a row is handed on, so that
//! neither a restart, nor a rotation, nor a row that comes later changes it.

use std::io::{self, Cursor, Read};
use std::time::Duration;

use litejoin_crds::error::chain;
use litejoin_crds::source::ColumnType;
use rusqlite::params;
use tracing::{info, warn};

use super::columns::{CsvColumns, OddValue};
use super::inference::{INFERRED, SAMPLE_ROWS_MAX, Sample, TypesByName, told, type_name};
use super::lookback::Lookback;
use super::place::FileInput;
use super::read::{LINE_BYTES_MAX, RowReader, Stop, csv_reader, read_header};
use super::rotation::FilePart;
use crate::source::state::States;
use crate::storage::sqlite::SqliteError;

/// How long a source waits before it tries again to store what it has found.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

impl RowReader {
    /// Gives columns the types that were found before, and finds those of the others by the first rows of their file. A
    /// file that was cut down to nothing since `row` was read has none but that one.
    pub(super) fn infer(
        &self,
        columns: &mut CsvColumns<'_>,
        part: &FilePart,
        row: &csv::StringRecord,
    ) -> Result<(), Stop> {
        let mut types = self.until_done(|| self.states.column_types(&self.source))?;
        if columns.lack(&types) {
            let names = columns.names();
            let mut sample = Sample::new(&names, &self.spec.null_values);
            if let Some(file) = &part.file {
                let input = FileInput { file: &**file, at: 0 };
                let mut reader = csv_reader(Lookback::new(input, 0, LINE_BYTES_MAX));
                if read_header(&mut reader)? == names {
                    sample.take_first(&mut reader, self.spec.follow);
                }
            }
            if sample.rows == 0 {
                sample.take(row);
            }
            types = self.keep_types(types, sample.types())?;
        }
        columns.infer(&types);
        Ok(())
    }

    /// Returns standard input after the types of its columns were found by its first rows, unless they are known.
    pub(super) fn sampled_stdin(&self) -> Result<Box<dyn Read>, Stop> {
        let mut recorded = Recorded { input: io::stdin(), bytes: Vec::new() };
        let mut reader = csv_reader(Lookback::new(&mut recorded, 0, LINE_BYTES_MAX));
        let header = read_header(&mut reader)?;
        let types = self.until_done(|| self.states.column_types(&self.source))?;
        // A bad header is told where the rows are read to be stored.
        if CsvColumns::new(&header, &self.spec).is_ok_and(|columns| columns.lack(&types)) {
            info!(
                source = self.source,
                "holding the first rows back until {SAMPLE_ROWS_MAX} are there or the input ends: they decide the types of \
                 columns"
            );
            let mut sample = Sample::new(&header, &self.spec.null_values);
            sample.take_first(&mut reader, false);
            if sample.rows > 0 {
                self.keep_types(types, sample.types())?;
            }
        }
        drop(reader);
        Ok(Box::new(Cursor::new(recorded.bytes).chain(recorded.input)))
    }

    /// Tells of a value that was kept as text.
    pub(super) fn tell_odd(&self, part: &FilePart, line: u64, odd: &OddValue) {
        let position = format!("{}: line {line}", part.path.display());
        let OddValue { column, read_as, got } = odd;
        warn!(
            source = self.source,
            position,
            column,
            read_as,
            got,
            "kept a value as text, since its column was inferred to be of another type; told once for each column; give the \
             column a type in types"
        );
    }

    /// Stores and tells the types of columns that are not known yet; returns all.
    fn keep_types(&self, mut known: TypesByName, mut found: TypesByName) -> Result<TypesByName, Stop> {
        found.retain(|name, _| !known.contains_key(name) && !self.spec.types.contains_key(name));
        self.until_done(|| self.states.keep_column_types(&self.source, &found))?;
        info!(source = self.source, "read as: {}", told(&found));
        known.append(&mut found);
        Ok(known)
    }

    /// Tries until it works, or until the worker stops.
    fn until_done<T>(&self, work: impl Fn() -> Result<T, SqliteError>) -> Result<T, Stop> {
        let mut stopping = self.stopping.clone();
        loop {
            match work() {
                Ok(done) => return Ok(done),
                Err(error) => {
                    let error = chain(&error);
                    warn!(
                        source = self.source,
                        error, "the types of columns have to be stored first; trying again"
                    );
                }
            }
            let stop =
                async { tokio::time::timeout(RETRY_INTERVAL, stopping.wait_for(|stop| *stop)).await.is_ok() };
            if tokio::runtime::Handle::current().block_on(stop) {
                return Err(Stop::Unwanted);
            }
        }
    }
}

impl States {
    /// The types that the columns of a source were found to have.
    fn column_types(&self, source: &str) -> Result<TypesByName, SqliteError> {
        self.doing("read the types of columns", |connection| {
            let mut statement =
                connection.prepare("SELECT name, type FROM column_types WHERE source = ?1")?;
            let rows = statement.query_map([source], |row| {
                let name: String = row.get(1)?;
                let found = INFERRED.iter().find(|(_, other)| *other == name);
                Ok((row.get(0)?, found.map_or(ColumnType::Text, |(column_type, _)| *column_type)))
            })?;
            rows.collect()
        })
    }

    fn keep_column_types(&self, source: &str, types: &TypesByName) -> Result<(), SqliteError> {
        self.doing("store the types of columns", |connection| {
            let transaction = connection.transaction()?;
            for (name, column_type) in types {
                transaction.execute(
                    "INSERT OR REPLACE INTO column_types (source, name, type) VALUES (?1, ?2, ?3)",
                    params![source, name, type_name(*column_type)],
                )?;
            }
            transaction.commit()
        })
    }
}

/// An input that keeps all that was read of it.
struct Recorded<R> {
    input: R,
    bytes: Vec<u8>,
}

impl<R: Read> Read for Recorded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.bytes.extend_from_slice(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_were_found_are_stored_for_each_source() {
        let folder = tempfile::tempdir().unwrap();
        let states = || States::new(folder.path(), litejoin_crds::plan::Synchronous::Normal);
        let types: TypesByName =
            INFERRED.into_iter().map(|(column_type, name)| (format!("a {name}"), column_type)).collect();
        states().keep_column_types("one", &types).unwrap();
        assert_eq!(states().column_types("one").unwrap(), types);
        assert_eq!(states().column_types("other").unwrap(), TypesByName::new());
    }
}
