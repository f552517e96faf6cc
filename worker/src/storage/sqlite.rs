//! How every SQLite file is opened: WAL, a busy timeout, bounded caches, the function that SQLite lacks. No
//! other room opens a connection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use litejoin_crds::plan::Synchronous;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Statement};

use super::regexp;

/// How long a connection waits for a lock of another one before it gives up. Litestream keeps writers out while it moves a
/// WAL into the file: 1 to 4 seconds were seen under load, and more of WALs of hundreds of MiB.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// Page cache of one connection in KiB, as SQLite counts it (negative). Small, since there are two
/// connections a shard and the operating system caches the files anyway.
const CACHE_KIB: i64 = -1_024;

/// The size of the page cache of a connection that reads: there are many, and they read in the order of the files.
const READER_CACHE_KIB: i64 = -256;

/// A fault of a file, and the step in which it showed.
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

    /// What SQLite itself says of an error of a query.
    pub(crate) fn message_of(error: &rusqlite::Error) -> String {
        match error {
            rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
            rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
            other => other.to_string(),
        }
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

/// How the commits of a file are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Journal {
    /// The failures that a commit survives.
    pub(crate) synchronous: Synchronous,
    /// Size of a WAL from which on it should be moved into the file, in bytes.
    pub(crate) wal_bytes_high: u64,
    /// Size of a WAL from which on its writer waits for Litestream to move it and to start it over, in bytes; `None` if
    /// Litestream has no part in the file.
    pub(crate) wal_bytes_rest: Option<u64>,
}

impl Journal {
    /// Of a file that Litestream replicates. It moves the WAL into the file by itself, every few MiB, and what we move
    /// before it has read it makes it copy the whole file anew. Where it has never reached the store it does nothing,
    /// and the WAL must not grow for ever.
    pub(crate) fn replicated(synchronous: Synchronous) -> Self {
        Self {
            synchronous,
            wal_bytes_high: REPLICATED_WAL_BYTES_HIGH,
            wal_bytes_rest: Some(REPLICATED_WAL_BYTES_REST),
        }
    }
}

impl From<Synchronous> for Journal {
    fn from(synchronous: Synchronous) -> Self {
        Self { synchronous, wal_bytes_high: WAL_BYTES_HIGH, wal_bytes_rest: None }
    }
}

/// See [`Journal::wal_bytes_high`].
const WAL_BYTES_HIGH: u64 = 16 << 20;
const REPLICATED_WAL_BYTES_HIGH: u64 = 64 << 20;
/// See [`Journal::wal_bytes_rest`].
const REPLICATED_WAL_BYTES_REST: u64 = 48 << 20;

/// Opens a file to write to it, creating it in WAL mode if it is new.
pub(crate) fn open_writer(path: &Path, journal: impl Into<Journal>) -> Result<Connection, SqliteError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let journal = journal.into();
    let open = || -> rusqlite::Result<Connection> {
        let connection = connect(path, flags)?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        assert_eq!(mode, "wal", "SQLite is built with WAL and the file is not in memory");
        set_synchronous(&connection, journal.synchronous)?;
        // A commit also moves the WAL into the file when it is twice as long as it should ever be. Above SQLite's 1,000
        // pages, since a checkpoint costs two syncs; the evaluator asks for it before that, when it suits.
        let pages = i64::try_from(2 * journal.wal_bytes_high / PAGE_BYTES).unwrap_or(i64::MAX);
        connection.pragma_update(None, "wal_autocheckpoint", pages)?;
        // The size to which a WAL that has grown beyond it is cut when it starts over.
        let kept = i64::try_from(journal.wal_bytes_high).unwrap_or(i64::MAX);
        connection.pragma_update(None, "journal_size_limit", kept)?;
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, journal.wal_bytes_rest.is_some())?;
        Ok(connection)
    };
    open().map_err(|source| SqliteError::new(path, "open the file", source))
}

/// SQLite's own size of a page.
const PAGE_BYTES: u64 = 4_096;

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

/// The size of the WAL of a file on the disk. Where Litestream starts it over it stays as large as it ever was: see
/// [`wal_bytes_used`].
pub(crate) fn wal_bytes(path: &Path) -> u64 {
    std::fs::metadata(beside(path, "-wal")).map_or(0, |wal| wal.len())
}

/// How much of the WAL has been written since it last started over.
pub(crate) fn wal_bytes_used(connection: &Connection) -> rusqlite::Result<u64> {
    let pages: i64 =
        connection.prepare_cached("PRAGMA wal_checkpoint(NOOP)")?.query_row([], |row| row.get(1))?;
    Ok(u64::try_from(pages).unwrap_or(0) * PAGE_BYTES)
}

/// Bytes of the pages of a file that hold something, with those that are still in the WAL.
pub(crate) fn bytes_used(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT (page_count - freelist_count) * page_size
               FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
    connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
}

/// Has the disk hold what is in the WAL of a file, which `synchronous: normal` leaves to the system.
pub(crate) fn sync_wal(path: &Path) -> std::io::Result<()> {
    match std::fs::File::open(beside(path, "-wal")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        opened => opened?.sync_data(),
    }
}

/// The file that SQLite keeps beside a database: its name with `-wal` or `-shm` behind it.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
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

/// Binds a row of a topic to a statement: its parameters are the key, the payload, the timestamp and `_change`, as far as
/// it has so many.
pub(crate) fn bind_row(
    statement: &mut Statement<'_>,
    key: &str,
    payload: &str,
    timestamp: i64,
    change: Option<&str>,
) -> rusqlite::Result<()> {
    for index in 1..=statement.parameter_count() {
        match index {
            1 => statement.raw_bind_parameter(index, key)?,
            2 => statement.raw_bind_parameter(index, payload)?,
            3 => statement.raw_bind_parameter(index, timestamp)?,
            _ => statement.raw_bind_parameter(index, change)?,
        }
    }
    Ok(())
}

/// Fixes what a reader sees, until [`release`]. BEGIN alone fixes nothing in SQLite, the first read does.
pub(crate) fn hold(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1;")
}

/// Has a reader see the newest state again.
pub(crate) fn release(connection: &Connection) {
    if !connection.is_autocommit() {
        // A read transaction has nothing to lose.
        let _ = connection.execute_batch("COMMIT");
    }
}

/// Opens an existing file of another program to read from it; nothing in it is changed, not even by tidying up.
pub(crate) fn open_read_only(path: &Path) -> Result<Connection, SqliteError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    connect(path, flags).map_err(|source| SqliteError::new(path, "open the file", source))
}

/// Opens a file of ours that may be thrown away at any time: no journal on disk, no syncs, one owner.
/// A file that stood there before is removed first.
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
        // Rows that a query sorts or materializes may be many: they spill to the folder for temporary files.
        connection.pragma_update(None, "temp_store", "FILE")?;
        Ok(connection)
    };
    open().map_err(|source| SqliteError::new(path, "open the scratch file", source))
}

/// Page cache of the scratch connection, in KiB as SQLite counts it: it is the one that queries run on.
const SCRATCH_CACHE_KIB: i64 = -16_384;

/// Opens a database in memory, for checks that need SQLite but no file.
pub(crate) fn open_memory() -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    regexp::install(&connection)?;
    Ok(connection)
}

#[expect(clippy::disallowed_methods, reason = "this is the room where files are opened")]
fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", CACHE_KIB)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_prepared_statement_cache_capacity(512);
    regexp::install(&connection)?;
    Ok(connection)
}

/// Removes a database with its WAL and shared memory; what is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<(), SqliteError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        match std::fs::remove_file(beside(path, suffix)) {
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

/// Returns whether a table has a column.
pub(crate) fn has_column(connection: &Connection, table: &str, column: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM pragma_table_info(?1) WHERE name = ?2)";
    connection.query_row(sql, [table, column], |row| row.get(0))
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
        for wanted in
            ["DQS=0", "DEFAULT_MEMSTATUS=0", "ENABLE_MATH_FUNCTIONS", "ENABLE_PERCENTILE", "OMIT_LOCALTIME"]
        {
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
