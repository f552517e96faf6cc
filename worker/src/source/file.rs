//! Rows of a file, or of standard input, as messages of a topic. A file's place is stored with the data, so a
//! restart goes on where the shards have it; what standard input has sent can't be sent again.

mod column_types;
mod columns;
mod follow;
mod inference;
mod lookback;
mod place;
mod read;
mod rotation;
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

use self::columns::CsvColumns;
use self::place::{Head, KnownFiles};
use self::read::{FileBlock, FileRow, Rejected, RowReader};
use self::rotation::FilePart;
use crate::clock;
use crate::dead_letters::DeadLetters;
use crate::source::lanes::Lanes;
use crate::source::state::States;
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
    pub(crate) states: Arc<States>,
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
        let file = File::open(path).map_err(|error| format!("{shown}: {}", plain(&error)))?;
        let header = read::csv_header(&file).map_err(|error| format!("{shown}: {error}"))?;
        if !(header.is_empty() && spec.follow) {
            CsvColumns::new(&header, spec).map_err(|error| format!("{shown}: {error}"))?;
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

/// The file whose rows come at present.
struct Opened {
    part: FilePart,
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
        let known = KnownFiles::new(&self.name, self.stored.clone());
        let parts = match self.parts(&known) {
            Ok(parts) => parts,
            Err(problem) => {
                error!(source = self.name, error = problem, "could not read the file");
                self.status.error.set(&problem);
                return;
            }
        };
        let (sender, blocks) = mpsc::channel(BLOCKS_MAX);
        let reading = RowReader {
            source: self.name.clone(),
            spec: self.spec.clone(),
            topics: Arc::clone(&self.ingest.topics),
            states: Arc::clone(&self.states),
            stopping: self.stopping.clone(),
            blocks: sender,
        };
        let handle = tokio::runtime::Handle::current();
        // A thread of its own that is not waited for: a read of standard input can't be broken off.
        std::thread::Builder::new()
            .name(format!("file-{}", self.name))
            .spawn(move || {
                let _entered = handle.enter();
                reading.run(parts);
            })
            .expect("a thread can be started");
        self.write_all(blocks, known).await;
    }

    /// The files to read in their order; the last one has the path of the source.
    fn parts(&self, known: &KnownFiles) -> Result<Vec<FilePart>, String> {
        if self.path == Path::new("-") {
            return Ok(vec![FilePart { path: self.path.clone(), file: None, start: 0 }]);
        }
        let found = match self.spec.follow {
            true => rotation::parts(&self.path, known),
            false => rotation::single(&self.path, known).map(|part| vec![part]),
        };
        found.map_err(|error| format!("{}: {}", self.path.display(), plain(&error)))
    }

    async fn write_all(&self, mut blocks: mpsc::Receiver<FileBlock>, known: KnownFiles) {
        let started = Instant::now();
        let mut frontier_sent = Instant::now();
        let mut paced = 0_u64;
        let mut stopping = self.stopping.clone();
        let lanes =
            Lanes::open(&self.name, &self.ingest, &self.status, &self.stopping, self.batch_messages_max);
        let mut rows_on =
            RowsOn { reader: self, lanes, known, opened: None, chunk: self.chunk(0), refused: 0 };
        loop {
            let block = tokio::select! {
                block = blocks.recv() => block,
                _ = stopping.wait_for(|stopping| *stopping) => None,
            };
            let rows = match block {
                Some(FileBlock::Begins(part)) => {
                    tokio::select! {
                        () = rows_on.begin(part) => continue,
                        _ = stopping.wait_for(|stopping| *stopping) => break,
                    }
                }
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
                        rows_on.hand_over(false).await;
                        let until = (due + PACE).into();
                        tokio::select! {
                            () = tokio::time::sleep_until(until) => {}
                            _ = stopping.wait_for(|stopping| *stopping) => break,
                        }
                    }
                    paced += 1;
                }
                rows_on.take(row);
            }
            let frontier = frontier_sent.elapsed() >= FRONTIER_INTERVAL;
            if frontier {
                frontier_sent = Instant::now();
            }
            rows_on.hand_over(frontier).await;
        }
        rows_on.hand_over(true).await;
        let RowsOn { lanes, refused, chunk, .. } = rows_on;
        lanes.finish().await;
        if !*stopping.borrow() {
            self.status.finished.store(true, Ordering::Relaxed);
            let rows = self.status.accepted.value();
            info!(source = self.name, rows, refused, byte = chunk.next, "read to the end of the file");
        }
    }

    fn chunk(&self, next: u64) -> Chunk {
        Chunk { batch: self.ingest.batch(), bytes: 0, next }
    }
}

/// The rows of a source on their way to the shards.
struct RowsOn<'r> {
    reader: &'r FileReader,
    lanes: Lanes,
    known: KnownFiles,
    /// `None` before the first file.
    opened: Option<Opened>,
    chunk: Chunk,
    /// Rows that were refused.
    refused: u64,
}

impl RowsOn<'_> {
    /// Goes over to another file, once all shards have all of the one before: a key's last row is the one of the last file.
    async fn begin(&mut self, part: FilePart) {
        if let Some(stream) = self.hand_over(true).await {
            self.lanes.progress().reaches(&stream).await;
            self.known.note(&stream.name, stream.next);
        }
        let start = part.start;
        if start > 0 {
            info!(source = self.reader.name, byte = start, "going on where the data stops");
        }
        self.chunk = self.reader.chunk(start);
        self.opened = Some(Opened { part, stream: None });
        // The beginning may be gone when the next row comes.
        self.place(start);
    }

    /// Adds a row to the chunk, or puts it into the dead-letter queue.
    fn take(&mut self, row: FileRow) {
        self.chunk.next = row.next;
        match row.outcome {
            Ok(message) => {
                self.chunk.bytes +=
                    message.key.len() + message.payload.as_ref().map_or(0, |payload| payload.len());
                self.chunk.batch.push(message);
            }
            Err(rejected) => self.reject(&rejected),
        }
    }

    fn reject(&mut self, rejected: &Rejected) {
        let Rejected { line, reason, body } = rejected;
        let FileReader { name, path, status, letters, .. } = self.reader;
        let path = self.opened.as_ref().map_or(path, |opened| &opened.part.path);
        self.refused += 1;
        status.refused.add(1);
        let position = format!("{}: line {line}", path.display());
        status.error.set(&format!("{position}: {reason}"));
        if self.refused <= REFUSALS_LOGGED {
            warn!(source = name, position, reason, "refused a row; it is in the dead-letter queue");
        }
        if let Err(error) = letters.reject(name, &position, reason, body, clock::epoch_seconds()) {
            error!(source = name, position, error = chain(&error), "could not keep a refused row");
        }
    }

    /// Gives each lane its part of the chunk as soon as it has room, and begins another chunk. With `frontier`, shards
    /// without a part are told as well how far the file has been read. Returns the place that was told.
    async fn hand_over(&mut self, frontier: bool) -> Option<Stream> {
        let next = self.chunk.next;
        if self.chunk.bytes == 0 && !frontier {
            return None;
        }
        let chunk = std::mem::replace(&mut self.chunk, self.reader.chunk(next));
        let room = self.reader.ingest.room(chunk.bytes).await;
        let place = self.place(next);
        self.lanes.hand_over(chunk.batch, place.as_ref(), Some(room), frontier && place.is_some()).await;
        place
    }

    /// The place behind what was read up to byte `next`, if there is such a place.
    fn place(&mut self, next: u64) -> Option<Stream> {
        let opened = self.opened.as_mut()?;
        let file = opened.part.file.as_ref().filter(|_| next > 0)?;
        if opened.stream.is_none() {
            let head = Head::of(file).inspect_err(|error| {
                warn!(
                    source = self.reader.name, %error,
                    "could not read how the file begins; its place is not stored yet"
                );
            });
            let stream = self.known.stream(&head.ok()?, opened.part.start, self.reader.spec.follow);
            opened.stream = Some(stream.into());
        }
        Some(Stream { name: Arc::clone(opened.stream.as_ref()?), next })
    }
}
