//! The data directory: its lock, and the layout manifest that says what lies in it and whose it is.
//!
//! ```text
//! data/layout.json   shard count, hash version, identity, lineage     data/lock      held while a worker runs
//! data/shard_N.db    topics                                           data/results.db, data/dlq.db
//! ```
//! A manifest in state `creating` means that files may be missing; in state `ready` a missing shard is an
//! error, never an empty start.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::hash::HASH_VERSION;

/// Version of the files in a data directory; raised when an older worker could no longer read them.
pub(crate) const FORMAT_VERSION: u32 = 2;

/// The file of results in a data directory.
pub(crate) const RESULTS_FILE: &str = "results.db";

/// The file of the dead-letter queue, in a data directory and in a replica wherever it lies.
pub(crate) const DEAD_LETTERS_FILE: &str = "dlq.db";

/// The file of what sources remember.
pub(crate) const SOURCES_FILE: &str = "sources.db";

/// Where the dead-letter queue is: in the data directory, if the manifests don't say otherwise.
pub(crate) fn dead_letters_path(configured: Option<&Path>, data_dir: &Path) -> PathBuf {
    configured.map_or_else(|| data_dir.join(DEAD_LETTERS_FILE), Path::to_owned)
}

/// The description of a data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Layout {
    pub(crate) format_version: u32,
    /// Random, once for each directory that was laid out.
    pub(crate) layout_id: String,
    pub(crate) shard_count: usize,
    pub(crate) hash_version: u32,
    /// Whose data it is.
    pub(crate) identity: String,
    /// Random, new for each new or restored directory. Epochs and result ids only grow within one.
    pub(crate) lineage: String,
    /// The last epoch number that was reserved at the last start: a `results.db` that knows of fewer is an older copy.
    #[serde(default)]
    pub(crate) epochs_reserved: u64,
    pub(crate) state: LayoutState,
}

impl Layout {
    fn new(shard_count: usize, identity: &str) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            layout_id: random_id(),
            shard_count,
            hash_version: HASH_VERSION,
            identity: identity.to_owned(),
            lineage: random_id(),
            epochs_reserved: 0,
            state: LayoutState::Creating,
        }
    }
}

/// The fields of a manifest that say whether this worker can read the rest, and the files.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Format {
    format_version: u32,
    hash_version: u32,
}

impl Format {
    fn check(&self, path: &Path) -> Result<(), LayoutError> {
        if self.format_version == FORMAT_VERSION && self.hash_version == HASH_VERSION {
            return Ok(());
        }
        let (found, found_hash) = (self.format_version, self.hash_version);
        Err(LayoutError::Format { path: path.display().to_string(), found, found_hash })
    }
}

/// How far the making of a directory has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum LayoutState {
    Creating,
    Ready,
}

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayoutError {
    #[error(
        "{path}: could not {doing}; storage.dataDir (or --data-dir) must be a folder that this user may write to"
    )]
    Io { path: String, doing: &'static str, source: std::io::Error },
    #[error("{path}: the disk is full; free some space, or point storage.dataDir (or --data-dir) elsewhere")]
    DiskFull { path: String },
    #[error(
        "{path}: the data directory is in use by process {holder}; stop that one, or give this one its own --data-dir"
    )]
    InUse { path: String, holder: String },
    #[error(
        "{path}: not a layout manifest ({detail}); restore the file, or move the directory away to start empty"
    )]
    Unreadable { path: String, detail: String },
    #[error(
        "{path}: holds {found} shards, and the pipeline wants storage.shardCount {wanted}; set it back to {found}, or \
         move the directory away to start empty"
    )]
    ShardCount { path: String, found: usize, wanted: usize },
    #[error(
        "{path}: holds the data of pipeline {found:?}, and this is {wanted:?}; give this pipeline its own --data-dir"
    )]
    Identity { path: String, found: String, wanted: String },
    #[error(
        "{path}: written in format {found} (hash version {found_hash}), and this worker reads format {FORMAT_VERSION} \
         (hash version {HASH_VERSION}); run the version of litejoin that wrote it"
    )]
    Format { path: String, found: u32, found_hash: u32 },
    #[error(
        "{path}: shard files without a layout manifest beside them; restore layout.json, or move the directory away \
         to start empty"
    )]
    NoManifest { path: String },
    #[error("{path}: holds no data yet; start the pipeline there, or give the --data-dir of one that ran")]
    NoData { path: String },
    #[error("{path}: shard file {missing} is missing; restore it, or move the directory away to start empty")]
    MissingShard { path: String, missing: String },
}

/// A folder for data that is locked by this process until it is dropped; what lies in it is not known yet.
#[derive(Debug)]
pub(crate) struct LockedDir {
    path: PathBuf,
    lock: File,
}

impl LockedDir {
    /// Locks `path`, creating it if need be.
    pub(crate) fn lock(path: &Path) -> Result<Self, LayoutError> {
        let io = |doing| move |source| io_error(path, doing, source);
        std::fs::create_dir_all(path).map_err(io("create the data directory"))?;
        Ok(Self { path: path.to_owned(), lock: lock(path)? })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The inode of the lock file, which a copy of the directory does not share.
    pub(crate) fn inode(&self) -> Result<u64, LayoutError> {
        let metadata = self.lock.metadata();
        metadata
            .map(|metadata| metadata.ino())
            .map_err(|source| io_error(&self.path, "look at the lock", source))
    }

    /// Whether there is data in it, or the beginning of some.
    pub(crate) fn has_data(&self) -> Result<bool, LayoutError> {
        Ok(read(&self.path)?.is_some() || self.path.join(shard_file_name(0)).exists())
    }

    /// Writes the manifest of files that were put here from elsewhere: the same data under a new lineage, which is
    /// returned.
    pub(crate) fn lay_out(&self, shard_count: usize, identity: &str) -> Result<String, LayoutError> {
        let layout = Layout { state: LayoutState::Ready, ..Layout::new(shard_count, identity) };
        write(&self.path, &layout)?;
        Ok(layout.lineage)
    }
}

/// A data directory that is locked by this process until it is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    layout: Layout,
    _lock: File,
}

impl DataDir {
    /// Checks or writes the manifest of a folder.
    pub(crate) fn open(locked: LockedDir, shard_count: usize, identity: &str) -> Result<Self, LayoutError> {
        let LockedDir { path, lock } = locked;
        let path = path.as_path();
        let layout = match read(path)? {
            Some(layout) => {
                check(path, &layout, shard_count, identity)?;
                layout
            }
            None if path.join(shard_file_name(0)).exists() => {
                return Err(LayoutError::NoManifest { path: path.display().to_string() });
            }
            None => {
                let layout = Layout::new(shard_count, identity);
                write(path, &layout)?;
                layout
            }
        };
        Ok(Self { path: path.to_owned(), layout, _lock: lock })
    }

    /// Says that every file has been made.
    pub(crate) fn mark_ready(&mut self) -> Result<(), LayoutError> {
        if self.layout.state == LayoutState::Creating {
            self.layout.state = LayoutState::Ready;
            write(&self.path, &self.layout)?;
        }
        Ok(())
    }

    /// Begins a new lineage: what was promised in the old one (epochs, ids) holds no longer.
    pub(crate) fn renew_lineage(&mut self) -> Result<(), LayoutError> {
        self.layout.lineage = random_id();
        self.layout.epochs_reserved = 0;
        write(&self.path, &self.layout)
    }

    /// Notes which epoch numbers are reserved.
    pub(crate) fn note_epochs(&mut self, reserved: u64) -> Result<(), LayoutError> {
        self.layout.epochs_reserved = reserved;
        write(&self.path, &self.layout)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn shard_path(&self, shard_index: usize) -> PathBuf {
        self.path.join(shard_file_name(shard_index))
    }
}

/// The shard files of a pipeline in a directory that another process may hold; changes nothing.
pub(crate) fn shard_paths(
    path: &Path,
    shard_count: usize,
    identity: &str,
) -> Result<Vec<PathBuf>, LayoutError> {
    let layout = read(path)?.filter(|layout| layout.state == LayoutState::Ready);
    let layout = layout.ok_or_else(|| LayoutError::NoData { path: path.display().to_string() })?;
    check(path, &layout, shard_count, identity)?;
    Ok((0..shard_count).map(|index| path.join(shard_file_name(index))).collect())
}

/// Checks that this worker can read a directory, if there is data in it; changes nothing.
pub(crate) fn check_format(path: &Path) -> Result<(), LayoutError> {
    read(path).map(|_| ())
}

pub(crate) fn shard_file_name(shard_index: usize) -> String {
    format!("shard_{shard_index}.db")
}

fn lock(path: &Path) -> Result<File, LayoutError> {
    let file = path.join("lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&file)
        .map_err(|source| io_error(path, "open the lock file", source))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            let holder =
                if holder.trim().is_empty() { "unknown".to_owned() } else { holder.trim().to_owned() };
            return Err(LayoutError::InUse { path: path.display().to_string(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(io_error(path, "lock the data directory", source)),
    }
    let note = |lock: &mut File| -> std::io::Result<()> {
        lock.set_len(0)?;
        lock.rewind()?;
        lock.write_all(std::process::id().to_string().as_bytes())
    };
    // The number only helps the process that is refused; a full disk must not keep us from starting.
    let _ = note(&mut lock);
    Ok(lock)
}

fn read(path: &Path) -> Result<Option<Layout>, LayoutError> {
    let file = path.join("layout.json");
    match std::fs::read(&file) {
        Ok(bytes) => parse(path, &bytes).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error(path, "read the layout manifest", source)),
    }
}

/// Reads a manifest. One of another format may have fields that are unknown here, so its format is looked at first.
fn parse(path: &Path, bytes: &[u8]) -> Result<Layout, LayoutError> {
    let unreadable = |error: serde_json::Error| LayoutError::Unreadable {
        path: path.join("layout.json").display().to_string(),
        detail: error.to_string(),
    };
    let format: Format = serde_json::from_slice(bytes).map_err(unreadable)?;
    format.check(path)?;
    serde_json::from_slice(bytes).map_err(unreadable)
}

fn write(path: &Path, layout: &Layout) -> Result<(), LayoutError> {
    let bytes = serde_json::to_vec_pretty(layout).expect("a layout has only plain fields");
    replace(path, "layout.json", &bytes).map_err(|source| io_error(path, "write the layout manifest", source))
}

/// Replaces a file of a folder in one step, durably: a crash leaves the old one or the new one.
pub(crate) fn replace(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let next = folder.join(format!("{name}.next"));
    let mut file = File::create(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&next, folder.join(name))?;
    File::open(folder)?.sync_all()
}

fn check(path: &Path, layout: &Layout, shard_count: usize, identity: &str) -> Result<(), LayoutError> {
    let shown = path.display().to_string();
    if layout.identity != identity {
        let (found, wanted) = (layout.identity.clone(), identity.to_owned());
        return Err(LayoutError::Identity { path: shown, found, wanted });
    }
    if layout.shard_count != shard_count {
        return Err(LayoutError::ShardCount { path: shown, found: layout.shard_count, wanted: shard_count });
    }
    if layout.state == LayoutState::Ready
        && let Some(missing) = (0..shard_count).map(shard_file_name).find(|name| !path.join(name).exists())
    {
        return Err(LayoutError::MissingShard { path: shown, missing });
    }
    Ok(())
}

fn io_error(path: &Path, doing: &'static str, source: std::io::Error) -> LayoutError {
    let path = path.display().to_string();
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => LayoutError::DiskFull { path },
        _ => LayoutError::Io { path, doing, source },
    }
}

/// 64 random bits as 13 letters and digits that sort and double-click well.
pub(crate) fn random_id() -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut bits: u64 = rand::random();
    let mut id = String::with_capacity(13);
    for _ in 0..13 {
        id.push(char::from(ALPHABET[(bits & 31) as usize]));
        bits >>= 5;
    }
    id
}
