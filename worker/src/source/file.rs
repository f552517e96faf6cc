//! Rows of a file, or of standard input, as messages of a topic. A file's place is stored with the data, so a
//! restart goes on where the shards have it; what standard input has sent can't be sent again.

mod lookback;
mod place;
mod read;
mod rows;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use litejoin_crds::error::chain;
use litejoin_crds::plan;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use self::place::{Head, KnownFiles};
use self::read::{FileBlock, FileRow, Rejected, RowReader};
use crate::clock;
use crate::dead_letters::DeadLetters;
use crate::source::lanes::Lanes;
use crate::status::source::SourceStatus;
use crate::storage::ingest::{Batch, Ingest};
use crate::storage::shard::Stream;

/// Blocks that wait between reading and writing.
const BLOCKS_MAX: usize = 8;

/// Shortest pause of a source with a rate: rows go out in groups, not one by one.
const PACE: Duration = Duration::from_millis(20);

/// How often every shard is told how far the file has been read.
const FRONTIER_INTERVAL: Duration = Duration::from_secs(1);

/// Refused rows that are logged one by one; all of them are in the dead-letter queue.
const REFUSALS_LOGGED: u64 = 5;

/// A file source, ready to run.
pub(crate) struct FileReader {
    pub(crate) name: String,
    pub(crate) spec: plan::FileSource,
    /// Where the file is; `-` is standard input.
    pub(crate) path: PathBuf,
    pub(crate) ingest: Ingest,
    pub(crate) letters: Arc<DeadLetters>,
    pub(crate) status: Arc<SourceStatus>,
    pub(crate) stopping: watch::Receiver<bool>,
    /// Rows of one transaction of a shard.
    pub(crate) batch_messages_max: usize,
    /// Streams of this source that the shards know, each with the least offset over all shards.
    pub(crate) stored: HashMap<String, u64>,
}

/// Checks before the start what can be checked: the file is there, and has the columns of the key.
pub(crate) fn check(path: &Path, spec: &plan::FileSource) -> Result<(), String> {
    if path == Path::new("-") {
        return Ok(());
    }
    let shown = path.display();
    let is_dir = std::fs::metadata(path)
        .map_err(|error| {
            format!("{shown}: {}; file.path is relative to the folder of its manifest", plain(&error))
        })?
        .is_dir();
    if is_dir {
        return Err(format!("{shown}: is a folder; file.path must name a file"));
    }
    if spec.format == plan::FileFormat::Csv {
        let header = read::csv_header(path).map_err(|error| format!("{shown}: {error}"))?;
        if !(header.is_empty() && spec.follow) {
            read::key_columns(&header, &spec.key_columns).map_err(|error| format!("{shown}: {error}"))?;
        }
    }
    Ok(())
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "this user may not read it".to_owned(),
        _ => error.to_string(),
    }
}

/// A file whose place is stored.
struct Opened {
    file: File,
    start: u64,
    /// `None` until there is a row to be stored: what is not there yet tells no file from others.
    stream: Option<Arc<str>>,
}

/// Rows that are about to be handed to the lanes.
struct Chunk {
    batch: Batch,
    bytes: usize,
    /// Offset behind the last row.
    next: u64,
}

impl FileReader {
    /// Reads to the end of the file, or until the worker stops.
    pub(crate) async fn run(self) {
        let opened = match self.open() {
            Ok(opened) => opened,
            Err(problem) => {
                error!(source = self.name, error = problem, "could not read the file");
                self.status.error.set(&problem);
                return;
            }
        };
        let start = opened.as_ref().map_or(0, |opened| opened.start);
        if start > 0 {
            info!(source = self.name, byte = start, "going on where the data stops");
        }
        let (sender, blocks) = mpsc::channel(BLOCKS_MAX);
        let reading = RowReader {
            spec: self.spec.clone(),
            topics: Arc::clone(&self.ingest.topics),
            stopping: self.stopping.clone(),
            blocks: sender,
        };
        let path = self.path.clone();
        let handle = tokio::runtime::Handle::current();
        // A thread of its own that is not waited for: a read of standard input can't be broken off.
        std::thread::Builder::new()
            .name(format!("file-{}", self.name))
            .spawn(move || {
                let _entered = handle.enter();
                reading.run(&path, start);
            })
            .expect("a thread can be started");
        self.write_all(blocks, opened, start).await;
    }

    /// The file, and the byte from which to read it; `None` for standard input.
    fn open(&self) -> Result<Option<Opened>, String> {
        if self.path == Path::new("-") {
            return Ok(None);
        }
        let io = |error: std::io::Error| format!("{}: {}", self.path.display(), plain(&error));
        let file = File::open(&self.path).map_err(io)?;
        let (head, length) = (Head::of(&file).map_err(io)?, file.metadata().map_err(io)?.len());
        let start = self.known().start(&head, length).unwrap_or_else(|| {
            warn!(source = self.name, "the file is shorter than what was read of it before");
            0
        });
        Ok(Some(Opened { file, start, stream: None }))
    }

    fn known(&self) -> KnownFiles<'_> {
        KnownFiles { source: &self.name, stored: &self.stored }
    }

    /// The place behind what was read up to byte `next`, if there is such a place.
    fn place(&self, opened: Option<&mut Opened>, next: u64) -> Option<Stream> {
        let opened = opened.filter(|_| next > 0)?;
        if opened.stream.is_none() {
            let head = Head::of(&opened.file).inspect_err(|error| {
                warn!(source = self.name, %error, "could not read how the file begins; its place is not stored yet");
            });
            let stream = self.known().stream(&head.ok()?, opened.start, self.spec.follow);
            opened.stream = Some(stream.into());
        }
        Some(Stream { name: Arc::clone(opened.stream.as_ref()?), next })
    }

    async fn write_all(&self, mut blocks: mpsc::Receiver<FileBlock>, mut opened: Option<Opened>, start: u64) {
        let started = Instant::now();
        let mut frontier_sent = Instant::now();
        let (mut paced, mut refused) = (0_u64, 0_u64);
        let mut chunk = self.chunk(start);
        let mut stopping = self.stopping.clone();
        let lanes =
            Lanes::open(&self.name, &self.ingest, &self.status, &self.stopping, self.batch_messages_max);
        loop {
            let block = tokio::select! {
                block = blocks.recv() => block,
                _ = stopping.wait_for(|stopping| *stopping) => None,
            };
            let rows = match block {
                Some(FileBlock::Rows(rows)) => rows,
                Some(FileBlock::Failed(problem)) => {
                    error!(source = self.name, error = problem, "could not read on");
                    self.status.error.set(&problem);
                    continue;
                }
                None => break,
            };
            for row in rows {
                if *stopping.borrow() {
                    break;
                }
                if let Some(rate) = self.spec.rows_per_second_max {
                    let due = started + Duration::from_secs_f64(paced as f64 / f64::from(rate));
                    if due > Instant::now() {
                        chunk = self.hand_over(chunk, &lanes, opened.as_mut(), false).await;
                        let until = (due + PACE).into();
                        tokio::select! {
                            () = tokio::time::sleep_until(until) => {}
                            _ = stopping.wait_for(|stopping| *stopping) => break,
                        }
                    }
                    paced += 1;
                }
                self.take(row, &mut chunk, &mut refused);
            }
            let frontier = opened.is_some() && frontier_sent.elapsed() >= FRONTIER_INTERVAL;
            if frontier {
                frontier_sent = Instant::now();
            }
            chunk = self.hand_over(chunk, &lanes, opened.as_mut(), frontier).await;
        }
        let frontier = opened.is_some();
        let next = self.hand_over(chunk, &lanes, opened.as_mut(), frontier).await.next;
        lanes.finish().await;
        if !*stopping.borrow() {
            self.status.finished.store(true, Ordering::Relaxed);
            let rows = self.status.accepted.value();
            info!(source = self.name, rows, refused, byte = next, "read to the end of the file");
        }
    }

    fn chunk(&self, next: u64) -> Chunk {
        Chunk { batch: self.ingest.batch(), bytes: 0, next }
    }

    /// Adds a row to the chunk, or puts it into the dead-letter queue.
    fn take(&self, row: FileRow, chunk: &mut Chunk, refused: &mut u64) {
        chunk.next = row.next;
        match row.outcome {
            Ok(message) => {
                chunk.bytes +=
                    message.key.len() + message.payload.as_ref().map_or(0, |payload| payload.len());
                chunk.batch.push(message);
            }
            Err(Rejected { at, reason, body }) => {
                *refused += 1;
                self.status.refused.add(1);
                let position = format!("{}: byte {at}", self.path.display());
                self.status.error.set(&format!("{position}: {reason}"));
                if *refused <= REFUSALS_LOGGED {
                    warn!(
                        source = self.name,
                        position, reason, "refused a row; it is in the dead-letter queue"
                    );
                }
                let stored =
                    self.letters.reject(&self.name, &position, &reason, &body, clock::epoch_seconds());
                if let Err(error) = stored {
                    error!(
                        source = self.name,
                        position,
                        error = chain(&error),
                        "could not keep a refused row"
                    );
                }
            }
        }
    }

    /// Gives each lane its part of the chunk as soon as it has room, and returns an empty chunk. With `frontier`,
    /// shards without a part are told as well how far the file has been read.
    async fn hand_over(
        &self,
        chunk: Chunk,
        lanes: &Lanes,
        opened: Option<&mut Opened>,
        frontier: bool,
    ) -> Chunk {
        let next = chunk.next;
        if chunk.bytes == 0 && !frontier {
            return chunk;
        }
        let room = self.ingest.room(chunk.bytes).await;
        let place = self.place(opened, next);
        lanes.hand_over(chunk.batch, place.as_ref(), Some(room), frontier && place.is_some()).await;
        self.chunk(next)
    }
}
