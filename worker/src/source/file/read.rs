//! Reading files row by row, in a thread of its own: standard input can't be read without blocking, and a file
//! that is followed waits for more at its end.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use litejoin_crds::plan::{FileFormat, FileSource};
use tokio::sync::{mpsc, watch};

use super::columns::CsvColumns;
use super::follow::{FOLLOW_INTERVAL, Follower, Successors};
use super::lookback::Lookback;
use super::place::FileInput;
use super::rotation::FilePart;
use super::rows::{RowError, is_part, json_message};
use crate::source::http::body::{self, ItemError};
use crate::source::state::States;
use crate::storage::message::{Message, PAYLOAD_BYTES_MAX};
use crate::storage::topics::Topics;

/// Rows that are handed on together at most, and their bytes.
const BLOCK_ROWS_MAX: usize = 512;
const BLOCK_BYTES_MAX: usize = 1 << 20;

/// Longest line, or row of CSV, in bytes; a longer one is refused.
pub(super) const LINE_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 8_192;

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
    /// Number of its line, from 1.
    pub(crate) line: u64,
    pub(crate) reason: String,
    pub(crate) body: Vec<u8>,
}

/// A message of the reading thread.
pub(crate) enum FileBlock {
    /// The rows that follow are of this file.
    Begins(FilePart),
    Rows(Vec<FileRow>),
    /// The file can't be read any further.
    Failed(String),
}

/// The reading of a source's files: its spec, and where rows go.
pub(crate) struct RowReader {
    /// Name of the source.
    pub(crate) source: String,
    pub(crate) spec: FileSource,
    pub(crate) topics: Arc<Topics>,
    /// Where the types of columns are stored that were found by their values.
    pub(crate) states: Arc<States>,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) blocks: mpsc::Sender<FileBlock>,
}

impl RowReader {
    /// Reads files to the end of the last one, which has the path of the source, or until the worker stops.
    pub(crate) fn run(self, parts: Vec<FilePart>) {
        let Some(own) = parts.last().map(|part| part.path.clone()) else { return };
        if let Err(Stop::Failed(error)) = self.read_all(&own, parts) {
            // The other end is gone once the worker has stopped.
            let _ = self.blocks.blocking_send(FileBlock::Failed(format!("{}: {error}", own.display())));
        }
    }

    fn read_all(&self, own: &Path, mut parts: Vec<FilePart>) -> Result<(), Stop> {
        if !self.spec.follow || parts.iter().any(|part| part.file.is_none()) {
            return parts.pop().map_or(Ok(()), |part| self.read_part(&part, None));
        }
        let mut successors = Successors::new(&self.source, own, parts)?;
        while let Some(part) = successors.next().filter(|_| !*self.stopping.borrow()) {
            self.read_part(&part, Some(&mut successors))?;
        }
        Ok(())
    }

    /// Reads one file, which is followed as long as none of its successors has bytes.
    fn read_part(&self, part: &FilePart, successors: Option<&mut Successors>) -> Result<(), Stop> {
        self.blocks.blocking_send(FileBlock::Begins(part.clone())).map_err(|_| Stop::Unwanted)?;
        let input = match &part.file {
            Some(_) if successors.is_some() => Input::Followed(Box::new(Follower::new(&self.source, part)?)),
            Some(file) => Input::Plain(Box::new(FileInput { file: Arc::clone(file), at: part.start })),
            None if self.spec.infer.is_some() => Input::Plain(self.sampled_stdin()?),
            None => Input::Plain(Box::new(io::stdin())),
        };
        let outlet = Outlet { rows: Vec::new(), bytes: 0, blocks: &self.blocks, successors };
        let tail = Tail { input, follow: self.spec.follow, stopping: self.stopping.clone(), outlet };
        match self.spec.format {
            FileFormat::Csv => self.read_csv(part, tail),
            FileFormat::Ndjson => self.read_lines(part, tail),
        }
    }

    fn read_lines(&self, part: &FilePart, tail: Tail<'_>) -> Result<(), Stop> {
        let mut input = BufReader::with_capacity(256 << 10, tail);
        let mut at = part.start;
        let mut lines = LineCounter::new(part);
        let mut line = Vec::new();
        let topic = self.spec.topic.as_deref().map(|topic| self.topics.declare(topic));
        loop {
            line.clear();
            let read = input.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)? as u64;
            if read == 0 || (input.get_ref().is_cut() && !line.ends_with(b"\n")) {
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
                    lines.passed += 1;
                    continue;
                }
                match topic {
                    Some(topic) => json_message(text, &self.spec.key_columns, topic, at)
                        .map_err(|error| error.to_string()),
                    None => self.ingest_message(text, at),
                }
            };
            let outcome =
                outcome.map_err(|reason| Rejected { line: lines.number(), reason, body: line.clone() });
            input.get_mut().outlet.push(FileRow { outcome, next }, line.len())?;
            at = next;
            lines.passed += 1;
        }
    }

    fn ingest_message(&self, text: &[u8], at: u64) -> Result<Message, String> {
        let item = body::parse(text).map_err(|error| match error {
            ItemError::Json(_) if is_part(&String::from_utf8_lossy(text)) => RowError::Part.to_string(),
            error => error.to_string(),
        })?;
        let topic = self.topics.find_or_add(item.topic()).map_err(|error| error.to_string())?;
        item.into_message(topic, at).map_err(|error| error.to_string())
    }

    fn read_csv(&self, part: &FilePart, tail: Tail<'_>) -> Result<(), Stop> {
        let start = part.start;
        let mut reader = csv_reader(Lookback::new(tail, start, LINE_BYTES_MAX));
        let mut lines = LineCounter::new(part);
        let header: Vec<String> = match &part.file {
            Some(file) if start > 0 => csv_header(file)?,
            _ => {
                let mut record = csv::StringRecord::new();
                reader.read_record(&mut record)?;
                let (input, end) = (reader.get_ref(), reader.position().byte());
                if self.spec.follow && (record.is_empty() || input.input.is_cut() && input.ends_cut(end)) {
                    return Ok(());
                }
                lines.passed += input.lines_to(end);
                record.iter().map(str::to_owned).collect()
            }
        };
        let mut columns = CsvColumns::new(&header, &self.spec).map_err(Stop::Failed)?;
        let mut has_types = self.spec.infer.is_none();
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
            let is_cut = input.input.is_cut() && input.ends_cut(next);
            let endless = match more {
                Ok(more) if !more || is_cut => {
                    return input.input.outlet.flush();
                }
                Ok(_) => {
                    input.ends_open(next).then(|| "the row opens a quote and does not close it".to_owned())
                }
                Err(_) if input.is_overlong() => Some(format!(
                    "the row has no end within {LINE_BYTES_MAX} bytes; see whether it opens a quote and does not close it"
                )),
                Err(error) => return Err(error.into()),
            };
            let blank_lines = input.blank_lines();
            if let Some(reason) = endless {
                let mut input = reader.into_inner();
                let (body, next) = input.skip_line()?;
                let bytes = body.len();
                let outcome = Err(Rejected { line: lines.number() + blank_lines, reason, body });
                input.input.outlet.push(FileRow { outcome, next }, bytes)?;
                lines.passed += blank_lines + 1;
                // The record has grown with the row, and would be copied as large for each that follows.
                (reader, record, begin) = (csv_reader(input), csv::ByteRecord::new(), next);
                continue;
            }
            let row = columns.row(&record);
            if let Some(row) = row.as_ref().ok().filter(|_| !has_types) {
                self.infer(&mut columns, part, row)?;
                has_types = true;
            }
            let outcome = row.and_then(|row| columns.message(&row, topic, at));
            for odd in columns.odd_values() {
                self.tell_odd(part, lines.number() + blank_lines, &odd);
            }
            let outcome = outcome.map_err(|error| {
                let reason = error.to_string();
                let body = record.iter().collect::<Vec<_>>().join(&b","[..]);
                Rejected { line: lines.number() + blank_lines, reason, body }
            });
            lines.passed += input.lines_to(next);
            input.input.outlet.push(FileRow { outcome, next }, record.as_slice().len())?;
        }
    }
}

/// Counts the lines of a file that is read from somewhere.
struct LineCounter<'p> {
    part: &'p FilePart,
    /// Lines that were read.
    passed: u64,
    /// Lines before these, once they were asked for.
    before: std::cell::OnceCell<u64>,
}

impl<'p> LineCounter<'p> {
    fn new(part: &'p FilePart) -> Self {
        Self { part, passed: 0, before: std::cell::OnceCell::new() }
    }

    /// The number of the line that is read next, from 1.
    fn number(&self) -> u64 {
        let before = self.before.get_or_init(|| match &self.part.file {
            Some(file) if self.part.start > 0 => {
                count_lines(FileInput { file: &**file, at: 0 }.take(self.part.start))
            }
            _ => 0,
        });
        before + self.passed + 1
    }
}

/// Counts the ends of lines, up to where the input can be read.
fn count_lines(input: impl Read) -> u64 {
    let mut input = BufReader::with_capacity(256 << 10, input);
    let mut count = 0;
    while let Ok(buffer) = input.fill_buf()
        && !buffer.is_empty()
    {
        count += buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
        let read = buffer.len();
        input.consume(read);
    }
    count
}

pub(super) fn csv_reader<R: Read>(input: R) -> csv::Reader<R> {
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).buffer_capacity(256 << 10).from_reader(input)
}

/// The columns of a CSV file, by its first line.
pub(crate) fn csv_header(file: &File) -> Result<Vec<String>, csv::Error> {
    read_header(&mut csv_reader(Lookback::new(FileInput { file, at: 0 }, 0, LINE_BYTES_MAX)))
}

/// Reads the first line of CSV, which names the columns.
pub(super) fn read_header<R: Read>(reader: &mut csv::Reader<R>) -> Result<Vec<String>, csv::Error> {
    let mut record = csv::StringRecord::new();
    reader.read_record(&mut record)?;
    Ok(record.iter().map(str::to_owned).collect())
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
pub(super) enum Stop {
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
struct Outlet<'s> {
    rows: Vec<FileRow>,
    bytes: usize,
    blocks: &'s mpsc::Sender<FileBlock>,
    /// The files that are read after this one, of a source that follows its file.
    successors: Option<&'s mut Successors>,
}

impl Outlet<'_> {
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
        let Some(successors) = &mut self.successors else {
            return self.blocks.blocking_send(FileBlock::Rows(rows)).map_err(|_| Stop::Unwanted);
        };
        let blocks = self.blocks;
        let wait = async || tokio::time::timeout(FOLLOW_INTERVAL, blocks.reserve()).await;
        loop {
            // Rows may wait for long, and files be rotated meanwhile.
            if let Ok(room) = tokio::runtime::Handle::current().block_on(wait()) {
                room.map_err(|_| Stop::Unwanted)?.send(FileBlock::Rows(rows));
                return Ok(());
            }
            successors.look();
        }
    }
}

/// Where the bytes of one file come from.
enum Input {
    Plain(Box<dyn Read>),
    Followed(Box<Follower>),
}

/// An input that hands on what was read before it blocks, and that waits for more at the end of a file that is
/// followed.
struct Tail<'s> {
    input: Input,
    follow: bool,
    stopping: watch::Receiver<bool>,
    outlet: Outlet<'s>,
}

impl Tail<'_> {
    /// Whether the last row has lost its end.
    fn is_cut(&self) -> bool {
        matches!(&self.input, Input::Followed(follower) if follower.is_cut())
    }
}

impl Read for Tail<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let _ = self.outlet.flush();
        loop {
            let read = match (&mut self.input, &mut self.outlet.successors) {
                (Input::Followed(follower), Some(successors)) => follower.read(buffer, successors)?,
                (Input::Plain(input), _) => {
                    Some(input.read(buffer)?).filter(|read| *read > 0 || !self.follow)
                }
                (Input::Followed(_), None) => unreachable!("a file is followed with those after it"),
            };
            if read.is_some() || *self.stopping.borrow() {
                return Ok(read.unwrap_or(0));
            }
            // Only the stop wakes this early.
            let stopping = &mut self.stopping;
            let pause = async { tokio::time::timeout(FOLLOW_INTERVAL, stopping.changed()).await };
            let _ = tokio::runtime::Handle::current().block_on(pause);
        }
    }
}
