//! Moves what long WALs hold into their files on a thread of its own, so that neither a writer nor the evaluator waits
//! for the disk. A WAL starts over only when all of it was moved and no connection reads or writes. That moment is the
//! owner's to find: it moves what little has come meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use litejoin_crds::error::chain;
use rusqlite::Connection;
use tracing::debug;

use super::sqlite::{self, Journal, SqliteError};

/// Nothing is to be done, as far as is known.
const IDLE: u8 = 0;
/// The thread has been asked.
const ASKED: u8 = 1;
/// The thread is through, and the rest is the owner's.
const MOVED: u8 = 2;

/// The thread, and what is known of each file.
pub(crate) struct Checkpointer {
    files: Arc<[CheckpointedFile]>,
    wal_bytes_high: u64,
    /// `None` only while it ends.
    asks: Option<Sender<usize>>,
    thread: Option<JoinHandle<()>>,
}

struct CheckpointedFile {
    path: PathBuf,
    state: AtomicU8,
}

impl Checkpointer {
    /// For these files, spoken of by their indexes, whose WALs should not be longer than this.
    pub(crate) fn start(paths: impl IntoIterator<Item = PathBuf>, wal_bytes_high: u64) -> Self {
        let new_file = |path| CheckpointedFile { path, state: AtomicU8::new(IDLE) };
        let files: Arc<[CheckpointedFile]> = paths.into_iter().map(new_file).collect();
        let (asks, asked) = mpsc::channel();
        let shared = Arc::clone(&files);
        let run = move || run(&shared, wal_bytes_high, &asked);
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(run)
            .expect("a thread can be started");
        Self { files, wal_bytes_high, asks: Some(asks), thread: Some(thread) }
    }

    /// Whether the WAL of a file is so long that its owner should make its writer wait for a checkpoint.
    pub(crate) fn wal_over_limit(&self, file: usize) -> bool {
        sqlite::wal_bytes(&self.files[file].path) > 2 * self.wal_bytes_high
    }

    /// Whether the owner of a file should checkpoint it now. Has the thread do the most of it before.
    pub(crate) fn is_due(&self, file: usize) -> bool {
        let CheckpointedFile { path, state } = &self.files[file];
        match state.load(Ordering::Acquire) {
            IDLE if sqlite::wal_bytes(path) > self.wal_bytes_high => {
                state.store(ASKED, Ordering::Release);
                let asks = self.asks.as_ref().expect("it has not ended");
                asks.send(file).expect("the thread runs until the sender is gone");
                false
            }
            MOVED => {
                state.store(IDLE, Ordering::Release);
                true
            }
            _ => false,
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

fn run(files: &[CheckpointedFile], wal_bytes_high: u64, asked: &Receiver<usize>) {
    while let Ok(index) = asked.recv() {
        let CheckpointedFile { path, state } = &files[index];
        let moved = relieve(path, wal_bytes_high).unwrap_or_else(|error| {
            // The owner meets with the same, and tells.
            debug!(error = chain(&error), "could not checkpoint");
            true
        });
        state.store(if moved { MOVED } else { IDLE }, Ordering::Release);
    }
}

/// Checkpoints a file; `false` if only its size said that the WAL is long.
fn relieve(path: &Path, wal_bytes_high: u64) -> Result<bool, SqliteError> {
    let connection = sqlite::open_reader(path)?;
    let is_long = wal_bytes_used(&connection, path)? > wal_bytes_high;
    if is_long {
        checkpoint(&connection, path)?;
    }
    Ok(is_long)
}

/// A window between two transactions in which Litestream can start the WAL over. Only Litestream starts over the WAL of
/// a file that it replicates, and only while no connection writes and none reads the WAL. Under load that moment may
/// never come by itself, and the longer the WAL, the longer Litestream keeps writers out. So a writer rests; readers have
/// nothing to read soon after.
#[derive(Debug)]
pub(crate) struct CheckpointWindow {
    /// Size of a WAL from which on its writer rests, in bytes; `None` if Litestream has no part in the file.
    wal_bytes_rest: Option<u64>,
    /// The same of the next rest: more, after one that was in vain.
    next: u64,
}

/// For how long a writer rests at most. Litestream looks at a WAL every second at the latest, and a connection that reads for
/// long, or a Litestream that is away, must not stop writers for ever.
const REST_MAX: Duration = Duration::from_secs(2);

/// How often a writer that rests looks whether its WAL has been started over.
const REST_LOOK_INTERVAL: Duration = Duration::from_millis(5);

impl CheckpointWindow {
    pub(crate) fn new(journal: Journal) -> Self {
        Self { wal_bytes_rest: journal.wal_bytes_rest, next: 0 }
    }

    /// Rests if the WAL of the file is long, until Litestream has started it over, for [`REST_MAX`] at most and then not
    /// again before it has grown by as much. The connection is in no transaction.
    #[expect(
        clippy::disallowed_methods,
        reason = "it is another process that starts a WAL over, and it tells nobody"
    )]
    pub(crate) fn open(&mut self, connection: &Connection, path: &Path) -> Result<(), SqliteError> {
        let Some(wal_bytes_rest) = self.wal_bytes_rest else { return Ok(()) };
        if sqlite::wal_bytes(path) < wal_bytes_rest {
            return Ok(());
        }
        let mut used = wal_bytes_used(connection, path)?;
        if used < wal_bytes_rest {
            self.next = wal_bytes_rest;
        }
        if used < self.next {
            return Ok(());
        }
        let began = Instant::now();
        while used >= wal_bytes_rest && began.elapsed() < REST_MAX {
            std::thread::sleep(REST_LOOK_INTERVAL);
            used = wal_bytes_used(connection, path)?;
        }
        self.next = used + wal_bytes_rest;
        debug!(path = %path.display(), used, milliseconds = began.elapsed().as_millis(), "rested for Litestream");
        Ok(())
    }
}

fn wal_bytes_used(connection: &Connection, path: &Path) -> Result<u64, SqliteError> {
    sqlite::wal_bytes_used(connection).map_err(|source| SqliteError::new(path, "look at the WAL", source))
}

/// Moves the content of the WAL into the file, as far as no connection reads what was before, and waits for none.
pub(crate) fn checkpoint(connection: &Connection, path: &Path) -> Result<(), SqliteError> {
    connection
        .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        .map_err(|source| SqliteError::new(path, "checkpoint", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::mpsc::RecvTimeoutError;

    use litejoin_crds::plan::Synchronous;
    use tempfile::TempDir;

    const REST: u64 = 64 << 10;

    /// A file in a folder, with a WAL from which on its writer rests.
    fn long_file(folder: &TempDir) -> (PathBuf, Connection) {
        let path = folder.path().join("a.db");
        let connection = sqlite::open_writer(&path, replicated()).unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        lengthen(&connection);
        (path, connection)
    }

    fn replicated() -> Journal {
        Journal { wal_bytes_rest: Some(REST), ..Journal::replicated(Synchronous::Normal) }
    }

    fn lengthen(connection: &Connection) {
        let before = used(connection);
        while used(connection) < before + REST {
            connection.execute("INSERT INTO t VALUES (zeroblob(10000))", []).unwrap();
        }
    }

    fn used(connection: &Connection) -> u64 {
        sqlite::wal_bytes_used(connection).unwrap()
    }

    #[test]
    fn a_writer_rests_until_litestream_has_started_the_wal_over() {
        let folder = TempDir::new().unwrap();
        let (path, connection) = long_file(&folder);
        let litestream = sqlite::open_writer(&path, replicated()).unwrap();
        let (done, rested) = mpsc::channel();
        let writer = std::thread::spawn({
            let path = path.clone();
            move || {
                let mut window = CheckpointWindow::new(replicated());
                window.open(&connection, &path).unwrap();
                done.send(used(&connection)).unwrap();
            }
        });
        checkpoint(&litestream, &path).unwrap();
        assert_eq!(rested.recv_timeout(5 * REST_LOOK_INTERVAL), Err(RecvTimeoutError::Timeout));
        litestream.execute("INSERT INTO t VALUES (1)", []).unwrap();
        assert!(rested.recv().unwrap() < REST, "it went on because the WAL was started over");
        assert!(sqlite::wal_bytes(&path) >= REST, "and its file says nothing of that");
        writer.join().unwrap();
    }

    #[test]
    fn a_rest_in_vain_is_not_repeated_at_once() {
        let folder = TempDir::new().unwrap();
        let (path, connection) = long_file(&folder);
        let mut window = CheckpointWindow::new(replicated());
        window.open(&connection, &path).unwrap();
        let next = window.next;
        assert!(next >= used(&connection) + REST, "nobody has started the WAL over");
        window.open(&connection, &path).unwrap();
        assert_eq!(window.next, next, "it has not rested again");
        lengthen(&connection);
        window.open(&connection, &path).unwrap();
        assert!(window.next > next, "now it has");
    }

    #[test]
    fn without_litestream_nobody_rests() {
        let folder = TempDir::new().unwrap();
        let (path, connection) = long_file(&folder);
        let mut window = CheckpointWindow::new(Synchronous::Normal.into());
        window.open(&connection, &path).unwrap();
        assert_eq!(window.next, 0);
    }
}
