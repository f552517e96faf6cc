//! Which files a source has to read when it starts, and under which it looks for rows that it has not read yet: a program
//! that writes logs renames its file and makes another one, or copies it and cuts it down to nothing.
//!
//! ```text
//! in.log.2  known, read to byte 512   ─► from byte 512     rotated, with rows that were not read
//! in.log.1  unknown, newer            ─► from its start    rotated while the worker was away
//! in.log    unknown                   ─► from its start    the file of the source, last
//! ```

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tracing::{info, warn};

use super::place::{Head, KnownFiles};

/// Ends of names of files that are not what was written, or not yet.
const OTHER_ENDINGS: [&str; 8] = [".gz", ".zst", ".xz", ".bz2", ".lz4", ".zip", ".tmp", ".swp"];

/// A file that is read, and from where.
#[derive(Debug, Clone)]
pub(super) struct FilePart {
    /// Where the file was found.
    pub(super) path: PathBuf,
    /// `None` is standard input.
    pub(super) file: Option<Arc<File>>,
    pub(super) start: u64,
}

/// What tells a file from another one while both are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A file beside that of the source.
struct Neighbor {
    path: PathBuf,
    file: File,
    modified: SystemTime,
    length: u64,
    head: Head,
}

/// The parts from which a source that does not follow its file reads: that file.
pub(super) fn single(path: &Path, known: &KnownFiles) -> io::Result<FilePart> {
    let file = File::open(path)?;
    let (head, length) = (Head::of(&file)?, file.metadata()?.len());
    let start = known.start(&head, length).unwrap_or_else(|| {
        warn!(source = known.source(), "the file is shorter than what was read of it before");
        0
    });
    Ok(FilePart { path: path.to_owned(), file: Some(Arc::new(file)), start })
}

/// The files that a source has to read in their order: those that were rotated and have rows that were not read yet, and
/// its own last.
pub(super) fn parts(path: &Path, known: &KnownFiles) -> io::Result<Vec<FilePart>> {
    let file = File::open(path)?;
    let (head, metadata) = (Head::of(&file)?, file.metadata()?);
    let own = known.newest(&head).filter(|(_, next)| is_end_of_row(&file, *next, metadata.len()));
    let start = own.map_or(0, |(_, next)| next);
    let own_part = FilePart { path: path.to_owned(), file: Some(Arc::new(file)), start };
    let Some(last) = known.last_generation() else { return Ok(vec![own_part]) };
    if own.is_some_and(|(generation, _)| generation == last) {
        return Ok(vec![own_part]);
    }
    let neighbors = neighbors(path, FileId::of(&metadata))?;
    let mut rests = rests(&neighbors, known);
    match rests.iter().find(|(generation, ..)| *generation == last) {
        Some((_, neighbor, _)) => {
            let mut later = later(&neighbors, path, neighbor.modified);
            later.retain(|other| known.newest(&other.head).is_none());
            rests.extend(later.into_iter().map(|other| (u32::MAX, other, 0)));
        }
        None => warn!(
            source = known.source(),
            byte = known.next_of(last),
            "the file that was read before is no longer in its folder, so rows that were written to it behind this byte may \
             be lost; let the rotation leave one file uncompressed beside the new one (delaycompress)"
        ),
    }
    let mut parts = Vec::new();
    for (_, neighbor, next) in rests.into_iter().filter(|(_, neighbor, next)| *next < neighbor.length) {
        info!(
            source = known.source(),
            file = %neighbor.path.display(),
            byte = next,
            "the file was rotated; reading what is left of it first"
        );
        let file = Some(Arc::new(neighbor.file.try_clone()?));
        parts.push(FilePart { path: neighbor.path.clone(), file, start: next });
    }
    parts.push(own_part);
    Ok(parts)
}

/// The known files among neighbors, each with its generation and how far it was read, in the order of generations. Of
/// several copies it is the longest.
fn rests<'n>(neighbors: &'n [Neighbor], known: &KnownFiles) -> Vec<(u32, &'n Neighbor, u64)> {
    let mut rests: Vec<(u32, &Neighbor, u64)> = Vec::new();
    for neighbor in neighbors {
        let Some((generation, next)) = known.newest(&neighbor.head) else { continue };
        if !is_end_of_row(&neighbor.file, next, neighbor.length) {
            continue;
        }
        match rests.iter_mut().find(|(other, ..)| *other == generation) {
            Some((_, longest, _)) if longest.length >= neighbor.length => {}
            Some(other) => *other = (generation, neighbor, next),
            None => rests.push((generation, neighbor, next)),
        }
    }
    rests.sort_by_key(|(generation, ..)| *generation);
    rests
}

/// The files that had this path after a file that was written to at `since` last, and before the file `own`.
pub(super) fn between(path: &Path, since: SystemTime, own: FileId) -> io::Result<Vec<FilePart>> {
    let neighbors = neighbors(path, own)?;
    let part = |other: &Neighbor| {
        let file = Some(Arc::new(other.file.try_clone()?));
        Ok(FilePart { path: other.path.clone(), file, start: 0 })
    };
    later(&neighbors, path, since).into_iter().map(part).collect()
}

/// Neighbors with names of rotated files that were written to after this time, in the order of their times.
fn later<'n>(neighbors: &'n [Neighbor], path: &Path, since: SystemTime) -> Vec<&'n Neighbor> {
    let is_later = |other: &&Neighbor| other.modified > since && is_rotated_name(&other.path, path);
    let mut later: Vec<_> = neighbors.iter().filter(is_later).collect();
    later.sort_by_key(|other| other.modified);
    later
}

/// Looks in the folder of `path` for a file that begins with `head` and has `last` before byte `at`: a copy of a file that
/// was cut down to nothing.
pub(super) fn copy(path: &Path, id: FileId, head: &Head, last: &[u8], at: u64) -> Option<FilePart> {
    let neighbors = neighbors(path, id).ok()?;
    let found = neighbors
        .into_iter()
        .find(|other| other.length >= at && head.begins(&other.head) && ends_with(&other.file, at, last))?;
    Some(FilePart { path: found.path, file: Some(Arc::new(found.file)), start: at })
}

/// Whether `last` are the bytes of a file before byte `at`.
pub(super) fn ends_with(file: &File, at: u64, last: &[u8]) -> bool {
    let mut found = vec![0; last.len()];
    file.read_exact_at(&mut found, at - last.len() as u64).is_ok() && found == last
}

/// Whether a row can have ended before byte `at` of a file of `length` bytes. If not, it is another file.
fn is_end_of_row(file: &File, at: u64, length: u64) -> bool {
    at <= length && (at == 0 || at == length || ends_with(file, at, b"\n") || ends_with(file, at, b"\r"))
}

/// Whether rotation gives such a name to a file that was at `path`: `in.log.1`, `in.log-20260131`.
fn is_rotated_name(name: &Path, path: &Path) -> bool {
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    let own = path.file_name().unwrap_or_default().to_string_lossy();
    let more = name.strip_prefix(&*own);
    more.is_some_and(|more| more.starts_with(['.', '-', '_']))
        && !OTHER_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// The files in the folder of `path`, without the file `own`, and without those that can't be read.
fn neighbors(path: &Path, own: FileId) -> io::Result<Vec<Neighbor>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        // Named pipes would block when they are opened.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        if !metadata.is_file() || FileId::of(&metadata) == own {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        let Ok(head) = Head::of(&file) else { continue };
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        found.push(Neighbor { path, file, modified, length: metadata.len(), head });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_rotation_gives() {
        let is = |name: &str| is_rotated_name(Path::new(name), Path::new("logs/in.log"));
        for name in ["in.log.1", "x/in.log-20260131", "in.log.old"] {
            assert!(is(name), "{name}");
        }
        for name in ["in.log", "in.log.1.gz", "in.logs", "other.log.1", ".in.log.swp"] {
            assert!(!is(name), "{name}");
        }
    }
}
