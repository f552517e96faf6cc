//! How much the files of the data take. Their connections stay open, since they are asked each second.

use std::path::PathBuf;

use rusqlite::Connection;

use super::sqlite::{self, SqliteError};

/// The files of the data, open to be measured.
pub(crate) struct DataSize {
    files: Vec<(PathBuf, Connection)>,
}

impl DataSize {
    pub(crate) fn open(paths: impl IntoIterator<Item = PathBuf>) -> Result<Self, SqliteError> {
        let open = |path: PathBuf| sqlite::open_reader(&path).map(|connection| (path, connection));
        Ok(Self { files: paths.into_iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Bytes of all pages that hold something.
    pub(crate) fn bytes(&self) -> Result<u64, SqliteError> {
        let bytes = |(path, connection): &(PathBuf, Connection)| {
            sqlite::bytes_used(connection).map_err(|source| SqliteError::new(path, "read its size", source))
        };
        self.files.iter().map(bytes).sum()
    }
}
