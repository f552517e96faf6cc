//! An input of CSV that can go back to where the row began that is being read. A quote that is opened and never closed makes
//! one row of all that follows; such a row has to be given up, and what follows its first line read again.

use std::io::{self, Read};

/// Bytes that are read at once where a line is skipped.
const SKIPPED_AT_ONCE: usize = 8 << 10;

/// The end of the input that was read, kept to look back at.
pub(super) struct Lookback<R> {
    pub(super) input: R,
    /// The input that was read since the row began, and perhaps some before.
    kept: Vec<u8>,
    /// Offset of its first byte.
    kept_from: u64,
    /// Offset of the next byte that is handed out: the end of what is kept, or before it after a return.
    at: u64,
    /// Offset at which the row begins.
    row: u64,
    /// Bytes of a row after which no more are handed out.
    row_bytes_max: u64,
    is_overlong: bool,
    has_ended: bool,
}

impl<R: Read> Lookback<R> {
    /// `start` is the offset of what is read first.
    pub(super) fn new(input: R, start: u64, row_bytes_max: usize) -> Self {
        let row_bytes_max = row_bytes_max as u64;
        let (kept, kept_from, at, row) = (Vec::new(), start, start, start);
        Self { input, kept, kept_from, at, row, row_bytes_max, is_overlong: false, has_ended: false }
    }

    /// Hears that a row begins at this offset: all before it was read.
    pub(super) fn row_begins(&mut self, at: u64) {
        self.row = at;
    }

    /// Whether the row was broken off because it is too long.
    pub(super) fn is_overlong(&self) -> bool {
        self.is_overlong
    }

    /// Whether the row, which reaches to `next`, ended with the input while a quote was open.
    pub(super) fn ends_open(&self, next: u64) -> bool {
        self.has_ended && next == self.end() && is_open(self.row_text())
    }

    /// Whether the row, which reaches to `next`, has the end of the input for its end.
    pub(super) fn ends_cut(&self, next: u64) -> bool {
        next == self.end() && !self.row_text().ends_with(b"\n") && !self.row_text().ends_with(b"\r")
    }

    /// Lines that end from the row's beginning up to `next`.
    pub(super) fn lines_to(&self, next: u64) -> u64 {
        let text = &self.row_text()[..self.index(next) - self.index(self.row)];
        text.iter().filter(|byte| **byte == b'\n').count() as u64
    }

    /// Ends of lines before the row, which may be left of the row before.
    pub(super) fn blank_lines(&self) -> u64 {
        let blank = self.row_text().iter().take_while(|byte| matches!(**byte, b'\r' | b'\n'));
        blank.filter(|byte| **byte == b'\n').count() as u64
    }

    /// Goes back to the row, and behind its first line. Returns that line, or as much of it as may be in a row, and the
    /// offset behind it.
    pub(super) fn skip_line(&mut self) -> io::Result<(Vec<u8>, u64)> {
        let mut line = Vec::new();
        loop {
            let text = self.row_text();
            // The end of the line before may be left, and empty lines are no rows.
            let is_end = |byte: &&u8| line.is_empty() && matches!(**byte, b'\r' | b'\n');
            let skipped = text.iter().take_while(is_end).count();
            let end = text[skipped..].iter().position(|byte| *byte == b'\n').map(|end| skipped + end + 1);
            let taken = end.unwrap_or(text.len());
            let room = usize::try_from(self.row_bytes_max).unwrap_or(usize::MAX) - line.len();
            line.extend_from_slice(&text[skipped..taken.min(skipped + room)]);
            self.row += taken as u64;
            if end.is_some() || self.has_ended {
                break;
            }
            self.forget();
            let mut piece = [0; SKIPPED_AT_ONCE];
            let read = self.input.read(&mut piece)?;
            self.kept.extend_from_slice(&piece[..read]);
            self.has_ended = read == 0;
        }
        (self.at, self.is_overlong) = (self.row, false);
        Ok((line, self.row))
    }

    fn end(&self) -> u64 {
        self.kept_from + self.kept.len() as u64
    }

    fn row_text(&self) -> &[u8] {
        &self.kept[self.index(self.row)..]
    }

    /// Where the byte of an offset is in what is kept.
    fn index(&self, at: u64) -> usize {
        usize::try_from(at - self.kept_from).expect("it is within what is kept")
    }

    /// Keeps nothing from before the row.
    fn forget(&mut self) {
        let before = self.index(self.row);
        self.kept.drain(..before);
        self.kept_from = self.row;
    }
}

impl<R: Read> Read for Lookback<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.end() {
            if self.end() - self.row > self.row_bytes_max {
                self.is_overlong = true;
                return Err(io::Error::other(format!("a row is longer than {} bytes", self.row_bytes_max)));
            }
            self.forget();
            let read = self.input.read(buffer)?;
            self.kept.extend_from_slice(&buffer[..read]);
            self.has_ended = read == 0;
            self.at = self.end();
            return Ok(read);
        }
        let read = self.kept[self.index(self.at)..].as_ref().read(buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Whether a row would go on behind this text, since a quote is open.
fn is_open(text: &[u8]) -> bool {
    let more = text.chain(&b"\n.\n"[..]);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(more);
    let ended = reader.read_byte_record(&mut csv::ByteRecord::new());
    ended.is_ok() && reader.position().byte() > text.len() as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_an_end_is_given_up_and_what_follows_is_read_again() {
        let rows = "2,y\n".repeat(1_000);
        let text = format!("1,\"x\n{rows}");
        let mut input = Lookback::new(text.as_bytes(), 7, 100);
        let mut buffer = [0; 64];
        let mut kept = 0;
        let broken = loop {
            match input.read(&mut buffer) {
                Ok(read) => assert!(read > 0, "it has no end"),
                Err(error) => break error,
            }
            kept = kept.max(input.kept.len());
        };
        assert_eq!(broken.to_string(), "a row is longer than 100 bytes");
        assert!(input.is_overlong() && kept <= 100 + 64, "{kept} bytes are kept");
        assert_eq!(input.skip_line().unwrap(), (b"1,\"x\n".to_vec(), 12));
        let mut again = String::new();
        for n in 1..=1_000 {
            let mut row = [0; 4];
            input.read_exact(&mut row).unwrap();
            again.push_str(std::str::from_utf8(&row).unwrap());
            input.row_begins(12 + 4 * n);
        }
        assert_eq!(again, rows);
        assert_eq!(input.read(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_to_its_end() {
        let text = format!("{}\nnext\n", "x".repeat(300_000));
        let mut input = Lookback::new(text.as_bytes(), 0, 100);
        while input.read(&mut [0; 64]).is_ok() {}
        let (line, next) = input.skip_line().unwrap();
        assert_eq!((line.len(), next), (100, 300_001));
        let mut rest = String::new();
        input.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "next\n");
    }

    #[test]
    fn ends_of_lines_before_the_row_are_no_line() {
        for (before, next) in [("\n", 6), ("\n\r\n", 8)] {
            let text = format!("{before}1,\"x\n2,y\n");
            let mut input = Lookback::new(text.as_bytes(), 0, 100);
            assert!(input.read(&mut [0; 64]).unwrap() > 0);
            assert_eq!(input.skip_line().unwrap(), (b"1,\"x\n".to_vec(), next));
        }
    }

    #[test]
    fn a_row_is_open_while_a_quote_is() {
        for text in ["1,\"x\n2,y\n", "1,\"x", "1,\"x\"\"", "\"", "1,\"x\n"] {
            assert!(is_open(text.as_bytes()), "{text:?}");
        }
        for text in ["1,x", "1,x\n", "1,\"x\"", "1,\"x\ny\"\n", "1,x\"y", "1,\"x\"\r\n", "1,x\r"] {
            assert!(!is_open(text.as_bytes()), "{text:?}");
        }
    }
}
