//! Moves what long WALs hold into their files on a thread of its own, so that neither a writer nor the evaluator waits
//! for the disk. A WAL starts over only when all of it was moved, nobody reads and nobody writes. That moment is the
//! owner's to find: it moves what little has come meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use litejoin_crds::error::chain;
use rusqlite::Connection;
use tracing::debug;

use super::sqlite::{self, SqliteError};

/// Nothing is to be done, as far as is known.
const IDLE: u8 = 0;
/// The thread has been asked.
const ASKED: u8 = 1;
/// The thread is through, and the rest is the owner's.
const MOVED: u8 = 2;

/// The thread, and what is known of each file.
pub(crate) struct Checkpointer {
    files: Arc<[File]>,
    wal_bytes_high: u64,
    /// `None` only while it ends.
    asks: Option<Sender<usize>>,
    thread: Option<JoinHandle<()>>,
}

struct File {
    path: PathBuf,
    state: AtomicU8,
}

impl Checkpointer {
    /// For these files, spoken of by their indexes, whose WALs should not be longer than this.
    pub(crate) fn start(paths: impl IntoIterator<Item = PathBuf>, wal_bytes_high: u64) -> Self {
        let new_file = |path| File { path, state: AtomicU8::new(IDLE) };
        let files: Arc<[File]> = paths.into_iter().map(new_file).collect();
        let (asks, asked) = mpsc::channel();
        let shared = Arc::clone(&files);
        let run = move || run(&shared, &asked);
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(run)
            .expect("a thread can be started");
        Self { files, wal_bytes_high, asks: Some(asks), thread: Some(thread) }
    }

    /// Whether the WAL of a file is so long that its owner should make its writer wait for a checkpoint.
    pub(crate) fn is_pressing(&self, file: usize) -> bool {
        sqlite::wal_bytes(&self.files[file].path) > 2 * self.wal_bytes_high
    }

    /// Whether the owner of a file should checkpoint it now. Has the thread do the most of it before.
    pub(crate) fn is_due(&self, file: usize) -> bool {
        let File { path, state } = &self.files[file];
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

fn run(files: &[File], asked: &Receiver<usize>) {
    while let Ok(index) = asked.recv() {
        let File { path, state } = &files[index];
        if let Err(error) = sqlite::open_reader(path).and_then(|connection| checkpoint(&connection, path)) {
            // The owner meets with the same, and tells.
            debug!(error = chain(&error), "could not checkpoint");
        }
        state.store(MOVED, Ordering::Release);
    }
}

/// Moves what the WAL holds into the file, as far as nobody reads what was before, and waits for nobody.
pub(crate) fn checkpoint(connection: &Connection, path: &Path) -> Result<(), SqliteError> {
    connection
        .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        .map_err(|source| SqliteError::new(path, "checkpoint", source))
}
