//! The data directory: its lock, and the layout manifest that says what lies in it and whose it is.
//!
//! ```text
//! data/layout.json   shard count, hash version, identity, lineage     data/lock      held while a worker runs
//! data/shard_N.db    topics                                           data/results.db, data/dlq.db
//! ```
//! A manifest in state `creating` means that files may be missing; in state `ready` a missing shard is an
//! error, never an empty start.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::Hasher;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fnv::FnvHasher;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::hash::HASH_VERSION;
use crate::fault;

/// Version of the files in a data directory; raised when an older worker could no longer read them.
pub(crate) const FORMAT_VERSION: u32 = 2;

/// The most shards that a data directory has.
pub(crate) const SHARD_COUNT_MAX: usize = litejoin_crds::defaults::SHARD_COUNT_MAX as usize;

/// The file that describes a data directory.
const LAYOUT_FILE: &str = "layout.json";

/// The folder of a data directory that takes data which is in the way.
pub(crate) const SET_ASIDE: &str = "set-aside";

/// What stays in a data directory when its data is set aside.
const STAY: [&str; 3] = ["lock", SET_ASIDE, IN_FORCE_FILE];

/// The file of the documents in force.
pub(crate) const IN_FORCE_FILE: &str = "in-force.json";

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
    /// The exchange of the shards that is under way, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) switching: Option<Switching>,
}

/// The shards of a layout come from a folder and those of the layout before go to another, file by file. The manifest
/// is about the layout that comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Switching {
    /// Shards of the layout that goes.
    pub(crate) shard_count: usize,
    /// The folder of the data directory that the shards come from.
    pub(crate) from: String,
    /// The folder that the shards of before go to.
    pub(crate) aside: String,
    /// Whether they are all there, so that the others may come.
    pub(crate) is_aside: bool,
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
            switching: None,
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
    #[error("{path}: not a layout manifest ({detail}); put the right one back")]
    Unreadable { path: String, detail: String },
    #[error(
        "{path}: holds {found} shards, and the pipeline wants storage.shardCount {wanted}; set it back to {found}, \
         or have the data moved: write storage.reshard: {{fromShardCount: {found}, toShardCount: {wanted}}}, or run \
         litejoin reshard --data-dir {path} --to {wanted}"
    )]
    ShardCount { path: String, found: usize, wanted: usize },
    #[error(
        "{path}: holds the data of pipeline {found:?}, and this is {wanted:?}; give this pipeline its own --data-dir, or \
         write spec.replication.identity: {found} to go on with that data"
    )]
    Identity { path: String, found: String, wanted: String },
    #[error(
        "{path}: written in format {found} (hash version {found_hash}), and this worker reads format {FORMAT_VERSION} \
         (hash version {HASH_VERSION}); run the version of litejoin that wrote it"
    )]
    Format { path: String, found: u32, found_hash: u32 },
    #[error("{path}: shard files without a layout manifest beside them; put layout.json back")]
    NoManifest { path: String },
    #[error("{path}: holds no data yet; start the pipeline there, or give the --data-dir of one that ran")]
    NoData { path: String },
    #[error(
        "{path}: the switch to another layout was cut off; start the pipeline, which ends it, or run litejoin reshard"
    )]
    Switching { path: String },
    #[error("{path}: shard file {missing} is missing; put it back")]
    MissingShard { path: String, missing: String },
}

impl LayoutError {
    /// Whether it is the data itself that is wrong, so that a start could do without it.
    pub(crate) fn is_about_data(&self) -> bool {
        match self {
            Self::Unreadable { .. }
            | Self::ShardCount { .. }
            | Self::Identity { .. }
            | Self::NoManifest { .. }
            | Self::MissingShard { .. } => true,
            Self::Io { .. }
            | Self::DiskFull { .. }
            | Self::InUse { .. }
            | Self::Format { .. }
            | Self::Switching { .. }
            | Self::NoData { .. } => false,
        }
    }
}

/// Data with which no start is possible, and the way to start without it.
#[derive(Debug, thiserror::Error)]
#[error(
    "{problem}; or begin without this data, from the replica if there is one, by spec.storage.acceptLoss: {data}, which \
     sets its files aside"
)]
pub(crate) struct UnusableData {
    problem: String,
    /// See [`name_of_data`].
    data: String,
}

impl UnusableData {
    /// Adds the way on to a problem with the data in `path`; `None` where there is no data.
    pub(crate) fn new(problem: &dyn Display, path: &Path) -> Option<Self> {
        let data = name_of_data(path).ok()??;
        Some(Self { problem: problem.to_string(), data })
    }
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

    /// Another holder of the same lock, for work on a thread of its own.
    pub(crate) fn share(&self) -> Result<Self, LayoutError> {
        let lock = self.lock.try_clone().map_err(|source| io_error(&self.path, "share the lock", source))?;
        Ok(Self { path: self.path.clone(), lock })
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

    /// Moves all data out of the way if `accepted` names it. A start that is cut off goes on at the next one: the file by
    /// which the data is named is moved last.
    pub(crate) fn set_aside(&self, accepted: Option<&str>, now: i64) -> Result<(), LayoutError> {
        let Some(accepted) = name_of_data(&self.path)?.filter(|name| Some(name.as_str()) == accepted) else {
            return Ok(());
        };
        let io = |doing| move |source| io_error(&self.path, doing, source);
        let folder = self.path.join(SET_ASIDE).join(format!("{accepted}-{now}"));
        std::fs::create_dir_all(&folder).map_err(io("make a folder for what is set aside"))?;
        let names: Result<Vec<_>, _> = std::fs::read_dir(&self.path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
            .map_err(io("read the data directory"));
        let last = [shard_file_name(0), LAYOUT_FILE.to_owned()];
        let is_first = |name: &OsString| !last.iter().any(|last| name == last.as_str());
        let is_data = |name: &OsString| !STAY.iter().any(|stays| name == stays);
        let first = names?.into_iter().filter(|name| is_first(name) && is_data(name));
        for name in first.chain(last.iter().map(OsString::from)) {
            let from = self.path.join(&name);
            if from.exists() {
                std::fs::rename(from, folder.join(&name)).map_err(io("set data aside"))?;
                fault::point("data-moved-aside");
            }
        }
        warn!(folder = %folder.display(), "the data is set aside, as spec.storage.acceptLoss asks; remove it at will");
        Ok(())
    }

    /// What the manifest says; `None` where there is no data.
    pub(crate) fn layout(&self) -> Result<Option<Layout>, LayoutError> {
        read(&self.path)
    }

    /// Replaces the manifest in one step, durably.
    pub(crate) fn write_layout(&self, layout: &Layout) -> Result<(), LayoutError> {
        write(&self.path, layout)
    }

    /// Ends an exchange of shards as far as the files go: those of before are moved aside, then the others come to their
    /// places. Each step may be done twice. Returns the layout, whose exchange is still to be called done.
    pub(crate) fn exchange_shards(&self, mut layout: Layout) -> Result<Layout, LayoutError> {
        let io = |doing| move |source| io_error(&self.path, doing, source);
        let shard_count = layout.shard_count;
        let Some(switching) = &mut layout.switching else { return Ok(layout) };
        let move_all = |from: &Path, to: &Path, count: usize| -> std::io::Result<()> {
            for name in (0..count).map(shard_file_name) {
                for suffix in ["-wal", "-shm", ""] {
                    let from = super::sqlite::beside(&from.join(&name), suffix);
                    if from.exists() {
                        std::fs::rename(&from, super::sqlite::beside(&to.join(&name), suffix))?;
                    }
                }
                fault::point("shard-moved");
            }
            File::open(from)?.sync_all()?;
            File::open(to)?.sync_all()
        };
        if !switching.is_aside {
            let aside = self.path.join(&switching.aside);
            std::fs::create_dir_all(&aside).map_err(io("make a folder for the layout of before"))?;
            move_all(&self.path, &aside, switching.shard_count)
                .map_err(io("move a shard of the layout of before"))?;
            switching.is_aside = true;
            write(&self.path, &layout)?;
            fault::point("layout-aside");
            return self.exchange_shards(layout);
        }
        let from = self.path.join(&switching.from);
        if from.exists() {
            move_all(&from, &self.path, shard_count).map_err(io("move a shard to its place"))?;
        }
        Ok(layout)
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
    lock: File,
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
        Ok(Self { path: path.to_owned(), layout, lock })
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

    /// Another holder of the same lock, for work beside what is open.
    pub(crate) fn share(&self) -> Result<LockedDir, LayoutError> {
        let lock = self.lock.try_clone().map_err(|source| io_error(&self.path, "share the lock", source))?;
        Ok(LockedDir { path: self.path.clone(), lock })
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

/// The number of shards of a directory that another process may hold; `None` where there is no data.
pub(crate) fn shard_count(path: &Path) -> Result<Option<usize>, LayoutError> {
    Ok(read(path)?.map(|layout| layout.shard_count))
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
    let file = path.join(LAYOUT_FILE);
    match std::fs::read(&file) {
        Ok(bytes) => parse(path, &bytes).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error(path, "read the layout manifest", source)),
    }
}

/// Reads a manifest. One of another format may have fields that are unknown here, so its format is looked at first.
fn parse(path: &Path, bytes: &[u8]) -> Result<Layout, LayoutError> {
    let unreadable = |error: serde_json::Error| LayoutError::Unreadable {
        path: path.join(LAYOUT_FILE).display().to_string(),
        detail: error.to_string(),
    };
    let format: Format = serde_json::from_slice(bytes).map_err(unreadable)?;
    format.check(path)?;
    serde_json::from_slice(bytes).map_err(unreadable)
}

/// The name by which `spec.storage.acceptLoss` speaks of the data in a directory: its lineage, or, where no manifest can be
/// read, what the files themselves say. `None` where there is no data.
fn name_of_data(path: &Path) -> Result<Option<String>, LayoutError> {
    match std::fs::read(path.join(LAYOUT_FILE)) {
        Ok(bytes) => Ok(Some(match serde_json::from_slice::<Layout>(&bytes) {
            Ok(layout) => layout.lineage,
            Err(_) => {
                let mut hasher = FnvHasher::default();
                hasher.write(&bytes);
                format!("unreadable-{:016x}", hasher.finish())
            }
        })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let first = std::fs::metadata(path.join(shard_file_name(0)));
            Ok(first.ok().map(|first| format!("unknown-{}", first.ino())))
        }
        Err(source) => Err(io_error(path, "read the layout manifest", source)),
    }
}

fn write(path: &Path, layout: &Layout) -> Result<(), LayoutError> {
    let bytes = serde_json::to_vec_pretty(layout).expect("a layout has only plain fields");
    replace(path, LAYOUT_FILE, &bytes).map_err(|source| io_error(path, "write the layout manifest", source))
}

/// Removes a folder with all that is in it; one that is not there is no error.
pub(crate) fn remove_folder(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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
    if layout.switching.is_some() {
        return Err(LayoutError::Switching { path: shown });
    }
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

/// Says what could not be done at a path, and what to do where the disk is full.
pub(crate) fn io_error(path: &Path, doing: &'static str, source: std::io::Error) -> LayoutError {
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
