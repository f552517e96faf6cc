//! Reading a file row by row, in a thread of its own: standard input can't be read without blocking, and a file
//! that is followed waits for more at its end.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use litejoin_crds::plan::{FileFormat, FileSource};
use tokio::sync::{mpsc, watch};

use super::lookback::Lookback;
use super::rows::{RowError, csv_message, json_message};
use crate::source::http::body;
use crate::storage::message::{Message, PAYLOAD_BYTES_MAX};
use crate::storage::topics::Topics;

/// Rows that are handed on together at most, and their bytes.
const BLOCK_ROWS_MAX: usize = 512;
const BLOCK_BYTES_MAX: usize = 1 << 20;

/// Longest line, or row of CSV, in bytes; a longer one is refused.
const LINE_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 8_192;

/// How often a file that is followed is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// A row that was read, or why it can't be.
#[derive(Debug)]
pub(crate) struct FileRow {
    pub(crate) outcome: Result<Message, Rejected>,
    /// Offset of the byte behind it.
    pub(crate) next: u64,
}

/// A row that is no message.
#[derive(Debug)]
pub(crate) struct Rejected {
    /// Offset of its first byte.
    pub(crate) at: u64,
    pub(crate) reason: String,
    pub(crate) body: Vec<u8>,
}

/// A message of the reading thread.
pub(crate) enum FileBlock {
    Rows(Vec<FileRow>),
    /// The file can't be read any further.
    Failed(String),
}

/// The reading of one file: its spec, and where rows go.
pub(crate) struct RowReader {
    pub(crate) spec: FileSource,
    pub(crate) topics: Arc<Topics>,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) blocks: mpsc::Sender<FileBlock>,
}

impl RowReader {
    /// Reads `path` from byte `start` to its end, or until the worker stops.
    pub(crate) fn run(self, path: &Path, start: u64) {
        let outlet = Outlet { rows: Vec::new(), bytes: 0, blocks: self.blocks.clone() };
        let outcome = match self.spec.format {
            FileFormat::Csv => self.read_csv(path, start, outlet),
            FileFormat::Ndjson => self.read_lines(path, start, outlet),
        };
        if let Err(Stop::Failed(error)) = outcome {
            // The other end is gone once the worker has stopped.
            let _ = self.blocks.blocking_send(FileBlock::Failed(format!("{}: {error}", path.display())));
        }
    }

    fn read_lines(&self, path: &Path, start: u64, outlet: Outlet) -> Result<(), Stop> {
        let mut input = BufReader::with_capacity(256 << 10, self.open(path, start, outlet)?);
        let mut at = start;
        let mut line = Vec::new();
        let topic = self.spec.topic.as_deref().map(|topic| self.topics.declare(topic));
        loop {
            line.clear();
            let read = input.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)? as u64;
            if read == 0 {
                return input.get_mut().outlet.flush();
            }
            let mut next = at + read;
            let outcome = if line.len() > LINE_BYTES_MAX {
                next += skip_line(&mut input)?;
                Err(format!("the line is longer than {LINE_BYTES_MAX} bytes"))
            } else {
                let text = line.trim_ascii();
                if text.is_empty() {
                    at = next;
                    continue;
                }
                match topic {
                    Some(topic) => json_message(text, &self.spec.key_columns, topic, at)
                        .map_err(|error| error.to_string()),
                    None => self.ingest_message(text, at),
                }
            };
            let outcome = outcome.map_err(|reason| Rejected { at, reason, body: line.clone() });
            input.get_mut().outlet.push(FileRow { outcome, next }, line.len())?;
            at = next;
        }
    }

    fn ingest_message(&self, text: &[u8], at: u64) -> Result<Message, String> {
        let item = body::parse(text).map_err(|error| error.to_string())?;
        let topic = self.topics.find_or_add(item.topic()).map_err(|error| error.to_string())?;
        item.into_message(topic, at).map_err(|error| error.to_string())
    }

    fn read_csv(&self, path: &Path, start: u64, outlet: Outlet) -> Result<(), Stop> {
        let mut reader = csv_reader(Lookback::new(self.open(path, start, outlet)?, start, LINE_BYTES_MAX));
        let header = if start == 0 {
            let mut record = csv::StringRecord::new();
            reader.read_record(&mut record)?;
            record.iter().map(str::to_owned).collect()
        } else {
            csv_header(path)?
        };
        let key_columns = key_columns(&header, &self.spec.key_columns).map_err(Stop::Failed)?;
        let topic = self.topics.declare(self.spec.topic.as_deref().expect("a CSV file has a topic"));
        let mut record = csv::ByteRecord::new();
        // Where the reader began.
        let mut begin = start;
        loop {
            let at = begin + reader.position().byte();
            reader.get_mut().row_begins(at);
            let more = reader.read_byte_record(&mut record);
            let next = begin + reader.position().byte();
            let input = reader.get_mut();
            let endless = match more {
                Ok(false) => return input.input.outlet.flush(),
                Ok(true) => {
                    input.ends_open(next).then(|| "the row opens a quote and does not close it".to_owned())
                }
                Err(_) if input.is_overlong() => Some(format!(
                    "the row has no end within {LINE_BYTES_MAX} bytes; see whether it opens a quote and does not close it"
                )),
                Err(error) => return Err(error.into()),
            };
            if let Some(reason) = endless {
                let mut input = reader.into_inner();
                let (body, next) = input.skip_line()?;
                let bytes = body.len();
                let outcome = Err(Rejected { at, reason, body });
                input.input.outlet.push(FileRow { outcome, next }, bytes)?;
                // The record has grown with the row, and would be copied as large for each that follows.
                (reader, record, begin) = (csv_reader(input), csv::ByteRecord::new(), next);
                continue;
            }
            let parsed = || -> Result<Message, String> {
                if record.len() != header.len() {
                    return Err(format!("{} fields, and the header has {}", record.len(), header.len()));
                }
                let text = csv::StringRecord::from_byte_record(record.clone())
                    .map_err(|error| RowError::Utf8 { at: error.utf8_error().valid_up_to() }.to_string())?;
                csv_message(&header, text.iter(), &key_columns, &self.spec.null_values, topic, at)
                    .map_err(|error| error.to_string())
            };
            let outcome = parsed().map_err(|reason| {
                let body = record.iter().collect::<Vec<_>>().join(&b","[..]);
                Rejected { at, reason, body }
            });
            input.input.outlet.push(FileRow { outcome, next }, record.as_slice().len())?;
        }
    }

    fn open(&self, path: &Path, start: u64, outlet: Outlet) -> Result<Tail, Stop> {
        let input: Box<dyn Read> = if path == Path::new("-") {
            Box::new(std::io::stdin())
        } else {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(start))?;
            Box::new(file)
        };
        Ok(Tail { input, follow: self.spec.follow, stopping: self.stopping.clone(), outlet })
    }
}

fn csv_reader<R: Read>(input: R) -> csv::Reader<R> {
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).buffer_capacity(256 << 10).from_reader(input)
}

/// The columns of a CSV file, by its first line.
pub(crate) fn csv_header(path: &Path) -> Result<Vec<String>, csv::Error> {
    let mut reader = csv_reader(Lookback::new(File::open(path)?, 0, LINE_BYTES_MAX));
    let mut record = csv::StringRecord::new();
    reader.read_record(&mut record)?;
    Ok(record.iter().map(str::to_owned).collect())
}

/// Indexes of the key columns; the error names the one that is missing.
pub(crate) fn key_columns(header: &[String], wanted: &[String]) -> Result<Vec<usize>, String> {
    if header.is_empty() {
        return Err("the file is empty, and its first line must name the columns".to_owned());
    }
    wanted
        .iter()
        .map(|name| {
            header.iter().position(|column| column == name).ok_or_else(|| {
                format!("no column {name:?} for the key; its columns are {}", header.join(", "))
            })
        })
        .collect()
}

/// Skips the rest of a line and returns how many bytes it had.
fn skip_line(input: &mut impl BufRead) -> std::io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(skipped);
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(buffer.len(), |end| end + 1);
        input.consume(taken);
        skipped += taken as u64;
        if end.is_some() {
            return Ok(skipped);
        }
    }
}

/// Why reading ends.
enum Stop {
    Failed(String),
    /// The source takes no more rows.
    Unwanted,
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<csv::Error> for Stop {
    fn from(error: csv::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Gathers rows into blocks.
struct Outlet {
    rows: Vec<FileRow>,
    bytes: usize,
    blocks: mpsc::Sender<FileBlock>,
}

impl Outlet {
    fn push(&mut self, row: FileRow, bytes: usize) -> Result<(), Stop> {
        self.rows.push(row);
        self.bytes += bytes;
        if self.rows.len() >= BLOCK_ROWS_MAX || self.bytes >= BLOCK_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        self.bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        self.blocks.blocking_send(FileBlock::Rows(rows)).map_err(|_| Stop::Unwanted)
    }
}

/// An input that hands on what was read before it blocks, and that waits for more at the end of a file that is
/// followed.
struct Tail {
    input: Box<dyn Read>,
    follow: bool,
    stopping: watch::Receiver<bool>,
    outlet: Outlet,
}

impl Read for Tail {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let _ = self.outlet.flush();
        loop {
            let read = self.input.read(buffer)?;
            if read > 0 || !self.follow || *self.stopping.borrow() {
                return Ok(read);
            }
            // Only the stop wakes this early.
            let stopping = &mut self.stopping;
            let pause = async { tokio::time::timeout(FOLLOW_INTERVAL, stopping.changed()).await };
            let _ = tokio::runtime::Handle::current().block_on(pause);
        }
    }
}
