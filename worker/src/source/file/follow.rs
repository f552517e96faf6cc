//! A file that is followed while programs rotate it. At its end the follower waits for more, until another file has the path
//! and has bytes: then the program that writes has gone over to that one. A file that is cut down to nothing is told by its
//! length, or by the bytes before the place that are no longer there.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::place::{FileInput, Head};
use super::rotation::{self, FileId, FilePart};

/// How often a file that is followed is looked at.
pub(super) const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// Bytes before the place that must still be there when more is read.
const LAST_BYTES_MAX: usize = 1_024;

/// The files that are to be read, among them those that come to have the path of the source, one after another. Each is opened
/// as soon as it is seen, so that no later rotation takes it away.
pub(super) struct Successors {
    source: String,
    path: PathBuf,
    /// The file that had the path at the last look.
    newest: Arc<File>,
    newest_id: FileId,
    waiting: VecDeque<FilePart>,
    looked: Instant,
}

impl Successors {
    /// Begins with files that are known already; the last of them has the path.
    pub(super) fn new(source: &str, path: &Path, parts: Vec<FilePart>) -> io::Result<Self> {
        let own = parts.last().and_then(|part| part.file.as_ref());
        let newest = Arc::clone(own.expect("standard input is not followed"));
        let newest_id = FileId::of(&newest.metadata()?);
        let (source, path, looked) = (source.to_owned(), path.to_owned(), Instant::now());
        Ok(Self { source, path, newest, newest_id, waiting: parts.into(), looked })
    }

    /// Looks which file has the path, unless that was just done.
    pub(super) fn look(&mut self) {
        if self.looked.elapsed() < FOLLOW_INTERVAL {
            return;
        }
        self.looked = Instant::now();
        // Between two files there is none.
        let is_other = std::fs::metadata(&self.path)
            .is_ok_and(|metadata| metadata.is_file() && FileId::of(&metadata) != self.newest_id);
        if is_other && let Err(error) = self.open() {
            warn!(source = self.source, %error, "could not open the new file yet");
        }
    }

    fn open(&mut self) -> io::Result<()> {
        let file = File::open(&self.path)?;
        let id = FileId::of(&file.metadata()?);
        if id == self.newest_id {
            return Ok(());
        }
        // The look may be late, after several rotations.
        let missed = rotation::between(&self.path, self.newest.metadata()?.modified()?, id)?;
        for part in &missed {
            let file = part.path.display();
            info!(source = self.source, %file, "the file was rotated again before it was seen; reading it too");
        }
        self.waiting.extend(missed);
        (self.newest, self.newest_id) = (Arc::new(file), id);
        let (path, file) = (self.path.clone(), Some(Arc::clone(&self.newest)));
        self.waiting.push_back(FilePart { path, file, start: 0 });
        Ok(())
    }

    /// Whether a program has written to a later file.
    fn have_bytes(&self) -> bool {
        let has_bytes = |file: &Arc<File>| file.metadata().is_ok_and(|metadata| metadata.len() > 0);
        self.waiting.iter().filter_map(|part| part.file.as_ref()).any(has_bytes)
    }

    /// The next file.
    pub(super) fn next(&mut self) -> Option<FilePart> {
        self.waiting.pop_front()
    }
}

/// What the bytes that were just read mean.
enum FollowStep {
    /// They are the next ones.
    More,
    /// There are none yet.
    Wait,
    /// There may be some by now.
    Again,
    /// There will be none.
    Ended,
    /// They are to be read elsewhere.
    Elsewhere(FilePart),
}

/// One file that is followed.
pub(super) struct Follower {
    source: String,
    part: FilePart,
    file: Arc<File>,
    head: Head,
    /// Offset of the byte that is read next, and bytes before it.
    at: u64,
    last: Vec<u8>,
    input: FileInput<Arc<File>>,
    /// The program that writes has gone over to another file.
    is_left: bool,
    /// The file was cut down to nothing.
    is_truncated: bool,
    /// What had been written behind the place is nowhere.
    is_cut: bool,
}

impl Follower {
    pub(super) fn new(source: &str, part: &FilePart) -> io::Result<Self> {
        let file = Arc::clone(part.file.as_ref().expect("standard input is not followed"));
        let (head, at) = (Head::of(&file)?, part.start);
        let begin = at.saturating_sub(LAST_BYTES_MAX as u64);
        let mut last = Vec::new();
        FileInput { file: &*file, at: begin }.take(at - begin).read_to_end(&mut last)?;
        Ok(Self {
            source: source.to_owned(),
            part: part.clone(),
            input: FileInput { file: Arc::clone(&file), at },
            file,
            head,
            at,
            last,
            is_left: false,
            is_truncated: false,
            is_cut: false,
        })
    }

    /// Reads what there is; `None` if the file may still grow.
    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        successors: &mut Successors,
    ) -> io::Result<Option<usize>> {
        successors.look();
        loop {
            let read = self.input.read(buffer)?;
            match self.judge(&buffer[..read], successors)? {
                FollowStep::More => return Ok(Some(read)),
                FollowStep::Wait => return Ok(None),
                FollowStep::Again => {}
                FollowStep::Ended => return Ok(Some(0)),
                FollowStep::Elsewhere(part) => {
                    let file = part.file.expect("a copy is a file");
                    self.input = FileInput { file, at: part.start };
                }
            }
        }
    }

    /// Judges bytes by what is before them after they were read, so that nothing else can have been read.
    fn judge(&mut self, bytes: &[u8], successors: &mut Successors) -> io::Result<FollowStep> {
        if self.is_truncated {
            return Ok(if bytes.is_empty() { FollowStep::Ended } else { FollowStep::More });
        }
        let length = self.file.metadata()?.len();
        if length < self.at || !rotation::ends_with(&self.file, self.at, &self.last) {
            return Ok(self.truncated(successors));
        }
        if !bytes.is_empty() {
            self.is_left = false;
            self.at += bytes.len() as u64;
            self.last.extend_from_slice(&bytes[bytes.len().saturating_sub(LAST_BYTES_MAX)..]);
            self.last.drain(..self.last.len().saturating_sub(LAST_BYTES_MAX));
            return Ok(FollowStep::More);
        }
        if !self.head.is_whole() {
            self.head = Head::of(&self.file)?;
        }
        if self.is_left {
            info!(
                source = self.source,
                file = %self.part.path.display(),
                byte = self.at,
                "the file was rotated and is read to its end; going on with the one after it"
            );
            return Ok(FollowStep::Ended);
        }
        self.is_left = successors.have_bytes();
        // The program may have written more before it went over to another file.
        Ok(if self.is_left { FollowStep::Again } else { FollowStep::Wait })
    }

    fn truncated(&mut self, successors: &mut Successors) -> FollowStep {
        self.is_truncated = true;
        successors.waiting.push_front(FilePart { start: 0, ..self.part.clone() });
        let id = self.file.metadata().map(|metadata| FileId::of(&metadata));
        let copy =
            id.ok().and_then(|id| rotation::copy(&self.part.path, id, &self.head, &self.last, self.at));
        let byte = self.at;
        match copy {
            Some(copy) => {
                let file = copy.path.display().to_string();
                info!(
                    source = self.source,
                    file, byte, "the file was truncated; reading what is left in its copy first"
                );
                FollowStep::Elsewhere(copy)
            }
            None => {
                self.is_cut = true;
                warn!(
                    source = self.source,
                    byte,
                    "the file was truncated, so rows that were written behind this byte before that may be lost; let the \
                     rotation rename the file, or leave a copy beside it"
                );
                FollowStep::Ended
            }
        }
    }

    /// Whether the last row has lost its end.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }
}
