//! How every SQLite file is opened: WAL, a busy timeout, bounded caches. No other room opens a connection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use litejoin_crds::plan::Synchronous;
use rusqlite::{Connection, ErrorCode, OpenFlags};

/// How long a connection waits for a lock of another one before it gives up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Page cache of one connection in KiB, as SQLite counts it (negative). Small, since there are two
/// connections a shard and the operating system caches the files anyway.
const CACHE_KIB: i64 = -2_048;

/// The same of a connection that reads: there are many, and they read in the order of the files.
const READER_CACHE_KIB: i64 = -512;

/// What went wrong with a file, and while doing what.
#[derive(Debug, thiserror::Error)]
#[error("{path}: could not {doing}")]
pub(crate) struct SqliteError {
    doing: String,
    path: String,
    #[source]
    source: rusqlite::Error,
}

impl SqliteError {
    /// Names the file and what we were doing to it.
    pub(crate) fn new(path: &Path, doing: impl Into<String>, source: rusqlite::Error) -> Self {
        Self { doing: doing.into(), path: path.display().to_string(), source }
    }

    /// The file.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Whether the disk is full: the user can do something about it, and then we go on.
    pub(crate) fn is_disk_full(&self) -> bool {
        is_disk_full(&self.source)
    }

    /// Whether the file holds something that SQLite can't read at all.
    pub(crate) fn is_no_database(&self) -> bool {
        self.source.sqlite_error_code() == Some(ErrorCode::NotADatabase)
    }
}

/// Whether SQLite says that the disk (or a quota) is full. A short write to the WAL index also counts:
/// on a full tmpfs the shared-memory file can't grow.
pub(crate) fn is_disk_full(error: &rusqlite::Error) -> bool {
    match error.sqlite_error() {
        Some(error) => {
            error.code == ErrorCode::DiskFull
                || [rusqlite::ffi::SQLITE_IOERR_WRITE, rusqlite::ffi::SQLITE_IOERR_SHMSIZE]
                    .contains(&error.extended_code)
        }
        None => false,
    }
}

/// Opens a file to write to it, creating it in WAL mode if it is new.
pub(crate) fn open_writer(path: &Path, synchronous: Synchronous) -> Result<Connection, SqliteError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<Connection> {
        let connection = connect(path, flags)?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        assert_eq!(mode, "wal", "SQLite is built with WAL and the file is not in memory");
        set_synchronous(&connection, synchronous)?;
        connection.pragma_update(None, "wal_autocheckpoint", WAL_AUTOCHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
        Ok(connection)
    };
    open().map_err(|source| SqliteError::new(path, "open the file", source))
}

/// Pages in the WAL at which a commit also moves them into the file. Above SQLite's 1,000, since a
/// checkpoint costs two syncs: 8,000 pages are 32 MiB. The evaluator asks for it at half of that, when it suits.
const WAL_AUTOCHECKPOINT_PAGES: i64 = 8_000;

/// What is kept of a WAL that has grown beyond it and starts over, in bytes: its size tells that it has.
const WAL_BYTES_KEPT: i64 = WAL_BYTES_HIGH.cast_signed();

/// Changes what a commit of this connection survives.
pub(crate) fn set_synchronous(connection: &Connection, synchronous: Synchronous) -> rusqlite::Result<()> {
    connection.pragma_update(
        None,
        "synchronous",
        match synchronous {
            Synchronous::Normal => "NORMAL",
            Synchronous::Full => "FULL",
        },
    )
}

/// Size of a WAL from which on it should be moved into the file, in bytes.
pub(crate) const WAL_BYTES_HIGH: u64 = 16 << 20;

/// The size of the WAL of a file.
pub(crate) fn wal_bytes(path: &Path) -> u64 {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    std::fs::metadata(wal).map_or(0, |wal| wal.len())
}

/// Opens an existing file to read from it.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, SqliteError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<Connection> {
        let connection = connect(path, flags)?;
        connection.pragma_update(None, "query_only", true)?;
        connection.pragma_update(None, "cache_size", READER_CACHE_KIB)?;
        Ok(connection)
    };
    open().map_err(|source| SqliteError::new(path, "open the file", source))
}

/// Opens an existing file of somebody else's to read from it; nothing in it is changed, not even by tidying up.
pub(crate) fn open_read_only(path: &Path) -> Result<Connection, SqliteError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    connect(path, flags).map_err(|source| SqliteError::new(path, "open the file", source))
}

/// Opens a file of ours that may be thrown away at any time: no journal on disk, no syncs, one owner.
/// Whatever stood there before is removed first.
pub(crate) fn open_scratch(path: &Path) -> Result<Connection, SqliteError> {
    remove(path)?;
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<Connection> {
        let connection = connect(path, flags)?;
        connection.pragma_update(None, "journal_mode", "MEMORY")?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "cache_size", SCRATCH_CACHE_KIB)?;
        // What a query sorts or materializes may be large: it spills to the folder for temporary files.
        connection.pragma_update(None, "temp_store", "FILE")?;
        Ok(connection)
    };
    open().map_err(|source| SqliteError::new(path, "open the scratch file", source))
}

/// Page cache of the scratch connection, in KiB as SQLite counts it: it is the one that queries run on.
const SCRATCH_CACHE_KIB: i64 = -16_384;

/// Opens a database in memory, for checks that need SQLite but no file.
pub(crate) fn open_memory() -> rusqlite::Result<Connection> {
    Connection::open_in_memory()
}

#[expect(clippy::disallowed_methods, reason = "this is the room where files are opened")]
fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", CACHE_KIB)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_prepared_statement_cache_capacity(512);
    Ok(connection)
}

/// Removes a database with its WAL and shared memory; what is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<(), SqliteError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(PathBuf::from(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let source = rusqlite::Error::ToSqlConversionFailure(Box::new(error));
                return Err(SqliteError::new(path, "remove the file", source));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Quotes a name for use in SQL text.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_is_compiled_as_the_settings_of_cargo_say() {
        let connection = open_memory().unwrap();
        let mut statement = connection.prepare("PRAGMA compile_options").unwrap();
        let options: Vec<String> =
            statement.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap();
        for wanted in ["DQS=0", "DEFAULT_MEMSTATUS=0"] {
            assert!(
                options.iter().any(|option| option == wanted),
                "{wanted} is missing; see .cargo/config.toml"
            );
        }
        for unwanted in ["ENABLE_FTS5", "ENABLE_RTREE"] {
            assert!(options.iter().all(|option| option != unwanted), "{unwanted}; see .cargo/config.toml");
        }
    }
}
