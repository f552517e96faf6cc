//! Which file it is, by how it begins, and from where to read it. Pure, but for reading that beginning.
//!
//! A stream is called `<source>:<digest>+<bytes>`, after the bytes of the file's beginning that the digest is of: a file that
//! grows keeps them, however few they were. `#<generation>` follows for each file of a source but the first, so that the
//! last one has the highest; a file that is read from its start again counts as another one.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, BufRead, Read};

/// Lines that tell a file from others. A header alone would fit any other file of its kind.
const HEAD_LINES: usize = 2;

/// The most of them that is looked at.
const HEAD_BYTES_MAX: u64 = 4_096;

/// How a file begins.
pub(super) struct Head(Vec<u8>);

impl Head {
    /// Reads it, wherever `file` is read at present.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let mut head = Vec::new();
        let mut reader = io::BufReader::new(FileInput { file, at: 0 }.take(HEAD_BYTES_MAX));
        for _ in 0..HEAD_LINES {
            reader.read_until(b'\n', &mut head)?;
        }
        Ok(Self(head))
    }

    /// Whether the file can't get another beginning by growing.
    pub(super) fn is_whole(&self) -> bool {
        self.whole_lines().iter().filter(|byte| **byte == b'\n').count() == HEAD_LINES
            || self.0.len() as u64 == HEAD_BYTES_MAX
    }

    /// Whether another file begins like this one.
    pub(super) fn begins(&self, other: &Self) -> bool {
        other.0.starts_with(self.whole_lines())
    }

    fn whole_lines(&self) -> &[u8] {
        let end = self.0.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        &self.0[..end]
    }

    /// Whether this is a later look at a file whose stream has this name (without source and generation).
    fn is_of(&self, name: &str) -> bool {
        // Names without a number of bytes are of earlier versions, and of all that was there.
        let (digest, bytes) = match name.split_once('+') {
            Some((digest, bytes)) => (digest, bytes.parse().unwrap_or(usize::MAX)),
            None => (name, self.0.len()),
        };
        let Some(begin) = self.0.get(..bytes) else { return false };
        // A line that had no end may by now be another one.
        let is_whole = begin.ends_with(b"\n") || bytes == self.0.len();
        is_whole && digest == digest_of(begin)
    }

    /// The name of a stream that begins like this. A file that `grows` may go on with a line that has no end yet.
    fn name(&self, grows: bool) -> String {
        let whole = self.whole_lines().len();
        let bytes = if grows && whole > 0 { whole } else { self.0.len() };
        format!("{}+{bytes}", digest_of(&self.0[..bytes]))
    }
}

fn digest_of(begin: &[u8]) -> String {
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(begin);
    format!("{:016x}", hasher.finish())
}

/// A file from byte `at`, whatever else is read of it meanwhile.
pub(super) struct FileInput<F> {
    pub(super) file: F,
    pub(super) at: u64,
}

impl<F: Borrow<File>> Read for FileInput<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = std::os::unix::fs::FileExt::read_at(self.file.borrow(), buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The files of a source that the shards know: its streams, each with the least offset over all shards.
#[derive(Debug, Clone)]
pub(super) struct KnownFiles {
    source: String,
    stored: HashMap<String, u64>,
}

impl KnownFiles {
    pub(super) fn new(source: &str, stored: HashMap<String, u64>) -> Self {
        Self { source: source.to_owned(), stored }
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Adds a stream that all shards have up to a byte.
    pub(super) fn note(&mut self, stream: &str, next: u64) {
        self.stored.insert(stream.to_owned(), next);
    }

    /// The newest generation of a file that begins like this, and how far all shards have it.
    pub(super) fn newest(&self, head: &Head) -> Option<(u32, u64)> {
        self.streams()
            .filter(|(name, ..)| head.is_of(name))
            .map(|(_, generation, next)| (generation, next))
            .max()
    }

    /// The generation of the file that was read last. Earlier versions counted generations for each beginning.
    pub(super) fn last_generation(&self) -> Option<u32> {
        self.streams().map(|(_, generation, _)| generation).max()
    }

    /// How far the file of a generation was read.
    pub(super) fn next_of(&self, generation: u32) -> u64 {
        self.streams().filter(|(_, other, _)| *other == generation).map(|(.., next)| next).max().unwrap_or(0)
    }

    /// Name (without source and generation), generation and place of each stream.
    fn streams(&self) -> impl Iterator<Item = (&str, u32, u64)> {
        self.stored.iter().filter_map(|(stream, next)| {
            let name = stream.strip_prefix(&self.source)?.strip_prefix(':')?;
            let (name, generation) = name.split_once('#').unwrap_or((name, "0"));
            Some((name, generation.parse().ok()?, *next))
        })
    }

    /// The byte from which to read a file of `length` bytes. `None` if it has become shorter than what was read of it:
    /// then from its start.
    pub(super) fn start(&self, head: &Head, length: u64) -> Option<u64> {
        Some(self.newest(head).map_or(0, |(_, next)| next)).filter(|next| *next <= length)
    }

    /// The stream of a file that is read from byte `start`. Another file than before, or one that is read from its start
    /// again, is the next generation: the shards would drop what they think they have seen.
    pub(super) fn stream(&self, head: &Head, start: u64, grows: bool) -> String {
        let generation = match self.newest(head) {
            Some((generation, next)) if next == start => generation,
            _ => self.last_generation().map_or(0, |last| last + 1),
        };
        let stream = format!("{}:{}", self.source, head.name(grows));
        if generation == 0 { stream } else { format!("{stream}#{generation}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a source that knows `stored` starts a file, and the stream of the file when it has become `grown`.
    fn opened(stored: &[(&str, u64)], file: &str, grown: &str) -> (Option<u64>, String) {
        let stored = stored.iter().map(|(stream, next)| ((*stream).to_owned(), *next)).collect();
        let known = KnownFiles::new("f", stored);
        let start = known.start(&Head(head(file)), file.len() as u64);
        (start, known.stream(&Head(head(grown)), start.unwrap_or(0), true))
    }

    fn head(file: &str) -> Vec<u8> {
        file.split_inclusive('\n').take(HEAD_LINES).collect::<String>().into_bytes()
    }

    #[test]
    fn a_file_is_known_again_after_it_has_grown() {
        for begin in ["id\n1\n", "1\n", "id\n1\n2", "1\n2", "1\n2\n3\n"] {
            let (_, stream) = opened(&[], "", begin);
            let grown = format!("{begin}9\n7\n");
            assert_eq!(opened(&[(&stream, 2)], &grown, &grown).0, Some(2), "{begin:?}");
            assert_eq!(opened(&[(&stream, 2)], "2\n1\n", "2\n1\n").0, Some(0), "{begin:?}: another file");
        }
    }

    #[test]
    fn a_name_is_made_of_more_lines_as_soon_as_there_are_more() {
        let (_, short) = opened(&[], "1\n", "1\n");
        let (start, long) = opened(&[(&short, 2)], "1\n2\n3\n", "1\n2\n3\n");
        assert_eq!(start, Some(2));
        assert_ne!(short, long);
        // Some shard has yet to hear of the new name; and all have.
        assert_eq!(opened(&[(&short, 2), (&long, 0)], "1\n2\n3\n", "1\n2\n3\n"), (Some(2), long.clone()));
        assert_eq!(opened(&[(&short, 2), (&long, 6)], "1\n2\n3\n", "1\n2\n3\n"), (Some(6), long));
    }

    #[test]
    fn a_line_that_had_no_end_may_be_another_one_by_now() {
        let known = KnownFiles::new("f", HashMap::new());
        let stream = known.stream(&Head(head("id\n4,4")), 0, false);
        assert_eq!(opened(&[(&stream, 6)], "id\n4,4", "id\n4,4").0, Some(6));
        assert_eq!(opened(&[(&stream, 6)], "id\n4,45\n", "id\n4,45\n").0, Some(0));
    }

    #[test]
    fn a_file_that_became_shorter_is_read_again_under_another_name() {
        let (_, first) = opened(&[], "1\n2\n", "1\n2\n");
        let (start, second) = opened(&[(&first, 9)], "1\n2\n", "1\n2\n");
        assert_eq!((start, second.as_str()), (None, format!("{first}#1").as_str()));
        assert_eq!(opened(&[(&first, 9), (&second, 4)], "1\n2\n", "1\n2\n"), (Some(4), second.clone()));
        assert_eq!(opened(&[(&first, 9), (&second, 6)], "1\n2\n", "1\n2\n").1, format!("{first}#2"));
        // The file may be empty for a moment.
        assert_eq!(opened(&[(&first, 9)], "", "1\n2\n"), (Some(0), second));
    }

    #[test]
    fn streams_of_earlier_versions_are_found() {
        let old = format!("f:{}", digest_of(b"id\n1\n"));
        let (start, stream) = opened(&[(&old, 5)], "id\n1\n2\n", "id\n1\n2\n");
        assert_eq!((start, stream), (Some(5), format!("{old}+5")));
        let again = format!("{old}#1");
        let (start, stream) = opened(&[(&old, 50), (&again, 5)], "id\n1\n2\n", "id\n1\n2\n");
        assert_eq!((start, stream), (Some(5), format!("{old}+5#1")));
    }
}
