//! Manifests: the files that say what to run, read into documents that remember where each field was written.
//!
//! This room reads files and knows their lines; what a document means is for `litejoin_crds::validate`. A place
//! in a complaint (a document and the path of a field) becomes a file and a line here.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use litejoin_crds::complaint::list;
use litejoin_crds::kind::{API_VERSION, Kind};
use litejoin_crds::{Complaint, Document, Place, Severity};

mod ownership;
mod scalar;
pub(crate) mod watch;
mod yaml;

use ownership::Owner;
use yaml::{Positions, YamlDocument};

/// The largest manifest, in bytes. A pipeline of thousands of joins is below 1 MiB.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Documents and where they were written.
#[derive(Debug)]
pub(crate) struct Manifest {
    /// As `litejoin_crds::validate` takes them.
    pub(crate) documents: Vec<Document>,
    /// For each document: its file and its fields' positions.
    origins: Vec<Origin>,
    /// Documents of other programs: where each is, and what.
    passed_over: Vec<String>,
}

#[derive(Debug)]
struct Origin {
    /// As the user named it; `<stdin>` for standard input.
    file: String,
    /// The folder that the file lies in.
    folder: PathBuf,
    positions: Positions,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TextLocation {
    /// As the user named it; `<stdin>` for standard input.
    pub(crate) file: String,
    /// Counted from 1.
    pub(crate) line: usize,
    /// In characters, counted from 1.
    pub(crate) column: usize,
}

impl fmt::Display for TextLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Why a manifest could not be read. Its `Display` is the whole line for the user, `file:line: message`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct ManifestError {
    /// As the user named it; `<stdin>` for standard input.
    pub(crate) file: String,
    /// Counted from 1, where the trouble is in a line.
    pub(crate) line: Option<usize>,
    /// The fault, and the remedy.
    pub(crate) message: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

/// Reads files, folders (every .yaml, .yml and .json in one, by name, not those of folders in it) and standard
/// input (`-`), each with any number of documents, of which those of other programs are passed over; or says what is wrong with every one that cannot be read.
pub(crate) fn load(paths: &[PathBuf]) -> Result<Manifest, Vec<ManifestError>> {
    let mut manifest = Manifest { documents: Vec::new(), origins: Vec::new(), passed_over: Vec::new() };
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for path in paths {
        match files(path) {
            Ok(files) => {
                for file in files {
                    // A file named twice, or by its folder too, is read once.
                    if seen.insert(file.canonicalize().unwrap_or_else(|_| file.clone()))
                        && let Err(error) = manifest.read(&file)
                    {
                        errors.push(error);
                    }
                }
            }
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() && manifest.documents.is_empty() {
        let file = paths.first().map_or_else(|| "-f".to_owned(), |path| shown(path));
        let message = match manifest.passed_over.as_slice() {
            [] => "holds no document; write for example examples/orders/pipeline.yaml".to_owned(),
            others => format!(
                "no document is of LiteJoin, which begins with apiVersion: {API_VERSION} and kind: {} …; got {}",
                Kind::NAMES[0],
                listed(others)
            ),
        };
        errors.push(ManifestError { file, line: None, message });
    }
    if errors.is_empty() { Ok(manifest) } else { Err(errors) }
}

/// The files that a path stands for.
fn files(path: &Path) -> Result<Vec<PathBuf>, ManifestError> {
    let error = |message: String| ManifestError { file: shown(path), line: None, message };
    if is_stdin(path) {
        return Ok(vec![path.to_owned()]);
    }
    let metadata = fs::metadata(path).map_err(|cause| error(cannot_read(&cause)))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|cause| error(cannot_read(&cause)))? {
        let file = entry.map_err(|cause| error(cannot_read(&cause)))?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("yaml" | "yml" | "json")) && !file.is_dir() {
            files.push(file);
        }
    }
    if files.is_empty() {
        let message = "the folder holds no manifest (*.yaml, *.yml, *.json; folders in it are not searched)";
        return Err(error(message.to_owned()));
    }
    files.sort();
    Ok(files)
}

impl Manifest {
    /// Reads the documents of a file.
    fn read(&mut self, path: &Path) -> Result<(), ManifestError> {
        let file = shown(path);
        let error =
            |line: Option<usize>, message: String| ManifestError { file: file.clone(), line, message };
        let bytes = bytes(path).map_err(|cause| error(None, cannot_read(&cause)))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            let message = format!("is larger than {} MiB, which no manifest is", FILE_BYTES_MAX >> 20);
            return Err(error(None, message));
        }
        let text = std::str::from_utf8(&bytes).map_err(|cause| {
            let good = &bytes[..cause.valid_up_to()];
            let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
            let byte = bytes.get(cause.valid_up_to()).copied().unwrap_or_default();
            error(Some(line), format!("is not UTF-8 (byte 0x{byte:02x}); save it as UTF-8"))
        })?;
        let documents = yaml::parse(text).map_err(|fault| error(Some(fault.line), fault.message))?;
        let folder = match path.parent() {
            Some(folder) if !is_stdin(path) && folder != Path::new("") => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        for YamlDocument { mut value, positions, fault } in documents {
            let items = ownership::items(&mut value).map(|items| {
                items.into_iter().map(|(at, item)| (item, positions.below(&at))).collect::<Vec<_>>()
            });
            for (value, positions) in items.unwrap_or_else(|| vec![(value, positions)]) {
                if let Owner::Other(what) = ownership::owner(&value) {
                    let line = positions.nearest("").line;
                    self.passed_over.push(format!("{file}:{line} ({what})"));
                    continue;
                }
                if let Some(fault) = fault {
                    return Err(error(Some(fault.line), fault.message));
                }
                self.documents.push(Document { value });
                self.origins.push(Origin { file: file.clone(), folder: folder.clone(), positions });
            }
        }
        Ok(())
    }

    /// Says which documents were passed over, in a line; an empty text if none was.
    pub(crate) fn note(&self) -> String {
        match self.passed_over.as_slice() {
            [] => String::new(),
            [other] => format!("note: passed over a document that is not LiteJoin's: {other}\n"),
            others => {
                let count = others.len();
                format!("note: passed over {count} documents that are not LiteJoin's: {}\n", listed(others))
            }
        }
    }

    /// Returns where a field was written: the line of its name. A field that was not written is where the
    /// object is that it belongs to. `None` if there is no such document.
    pub(crate) fn locate(&self, place: &Place) -> Option<TextLocation> {
        let origin = self.origins.get(place.document)?;
        let position = origin.positions.nearest(&place.path);
        Some(TextLocation { file: origin.file.clone(), line: position.line, column: position.column })
    }

    /// Returns where a line of a text was written, `line_offset` lines below its first: exactly for a block
    /// (`|` or `>`); a text in one line, or in quotes, is where it starts. The column is that of the text's own
    /// first column.
    pub(crate) fn locate_within(&self, place: &Place, line_offset: usize) -> Option<TextLocation> {
        let origin = self.origins.get(place.document)?;
        let (position, exact) = origin.positions.text(&place.path);
        let line = position.line + if exact { line_offset } else { 0 };
        Some(TextLocation { file: origin.file.clone(), line, column: position.column })
    }

    /// Returns the folder that a document's file lies in, which paths in it are relative to; `.` for standard
    /// input.
    pub(crate) fn folder(&self, document: usize) -> &Path {
        self.origins.get(document).map_or(Path::new("."), |origin| &origin.folder)
    }

    /// Returns the complaints as lines for a user, `file:line: path: message`, by file (in the order they were
    /// given) and line.
    pub(crate) fn render(&self, complaints: &[Complaint]) -> String {
        let mut lines: Vec<_> = complaints
            .iter()
            .map(|complaint| {
                let location = self.locate(&complaint.place);
                // The documents of a file stand in it one after another.
                let order = (complaint.place.document, location.as_ref().map_or(0, |location| location.line));
                (order, line(complaint, location))
            })
            .collect();
        lines.sort_by_key(|(order, _)| *order);
        lines.into_iter().map(|(_, line)| line).collect()
    }
}

fn listed(documents: &[String]) -> String {
    list(&documents.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A complaint as a line.
fn line(complaint: &Complaint, location: Option<TextLocation>) -> String {
    let location = location.map(|location| format!("{location}: ")).unwrap_or_default();
    let severity = match complaint.severity {
        Severity::Error => "",
        Severity::Warning => "warning: ",
    };
    let path = match complaint.place.path.as_str() {
        "" => String::new(),
        path => format!("{path}: "),
    };
    format!("{location}{severity}{path}{}\n", complaint.message)
}

/// A file's bytes, at most one more than is allowed.
fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if is_stdin(path) {
        io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    } else {
        File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// A path as the user named it.
fn shown(path: &Path) -> String {
    if is_stdin(path) { "<stdin>".to_owned() } else { path.display().to_string() }
}

fn cannot_read(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::NotFound => "no such file or folder; check the path given to -f".to_owned(),
        io::ErrorKind::PermissionDenied => "may not be read; give this user leave to read it".to_owned(),
        _ => format!("could not be read: {cause}"),
    }
}

#[cfg(test)]
mod tests;
