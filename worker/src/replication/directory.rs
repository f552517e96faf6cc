//! A data directory before it is opened: what it says of itself, and what is done so that it may write the prefix that
//! was decided on. Data that can be of use is set aside, and never removed; and not before all that takes its place is
//! here. The steps from there on can be cut off at any point, and are ended by the next start without the store.
//!
//! ```text
//! fetch into restoring/ ─► marker: restoring ─► set aside ─► marker: set aside ─► move to the places ─► lay out ─► marker
//!   a failure here leaves the data as it was   └ from here on each start goes on where the one before came to
//! ```

use std::path::{Path, PathBuf};

use litejoin_crds::plan::Plan;
use tracing::{info, warn};

use super::config::ReplicatedFile;
use super::fetch::{Restored, UnsoundResults, fetch, make_empty};
use super::incarnation::{Decision, FoundIncarnation, Local, Marker, Restoring, StartRefusal};
use super::litestream::Litestream;
use super::{PointInTime, ReplicationError, Site, files_of};
use crate::blocking::blocking;
use crate::clock;
use crate::fault;
use crate::reshard;
use crate::results::store;
use crate::storage::layout::{LockedDir, RESULTS_FILE, SET_ASIDE, SHARD_COUNT_MAX, remove_folder, replace};
use crate::storage::sqlite;

pub(super) const MARKER: &str = "replication.json";
pub(super) const CONFIG: &str = "litestream.yml";
const RESTORING: &str = "restoring";

/// Files that are set aside beside the replicated files, their WALs and Litestream's notes.
const SET_ASIDE_TOO: [&str; 3] = ["layout.json", CONFIG, "scratch"];

/// The choice of a start: how the directory comes to its data.
pub(super) struct Choice {
    pub(super) decision: Decision,
    /// Another pipeline's replica, if the data comes from there.
    pub(super) elsewhere: Option<Site>,
    /// As of when the data is restored; `None` is the newest.
    pub(super) point: Option<PointInTime>,
}

/// A data directory before it is opened.
pub(super) struct Directory<'a> {
    pub(super) locked: &'a LockedDir,
    pub(super) site: &'a Site,
    pub(super) litestream: &'a Litestream,
    pub(super) plan: &'a Plan,
    pub(super) path: PathBuf,
    pub(super) files: Vec<ReplicatedFile>,
}

/// Notes in the marker of a directory, if it has one, how many shards the incarnation has that it writes. A marker of an
/// earlier version does not say.
pub(crate) fn note_shard_count(data_dir: &Path, shard_count: usize) -> std::io::Result<()> {
    let Ok(bytes) = std::fs::read(data_dir.join(MARKER)) else { return Ok(()) };
    match serde_json::from_slice::<Marker>(&bytes) {
        Ok(marker) if marker.shard_count.is_none() => {
            let marker = Marker { shard_count: Some(shard_count), ..marker };
            replace(
                data_dir,
                MARKER,
                &serde_json::to_vec_pretty(&marker).expect("plain values are always JSON"),
            )
        }
        _ => Ok(()),
    }
}

/// The shards of a restore that a start before this one had begun to put in place.
pub(super) fn restoring(data_dir: &Path) -> Result<Option<usize>, ReplicationError> {
    let marker = marker_of(data_dir)?;
    Ok(marker.and_then(|marker| marker.restoring).map(|restoring| restoring.shard_count))
}

fn marker_of(path: &Path) -> Result<Option<Marker>, ReplicationError> {
    match std::fs::read(path.join(MARKER)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| ReplicationError::Unreadable {
            place: path.display().to_string(),
            name: MARKER.to_owned(),
            detail: error.to_string(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => {
            let path = path.display().to_string();
            Err(ReplicationError::Io { path, doing: "read replication.json", source })
        }
    }
}

impl Directory<'_> {
    fn io(&self, doing: &'static str) -> impl Fn(std::io::Error) -> ReplicationError + use<> {
        let path = self.path.display().to_string();
        move |source| ReplicationError::Io { path: path.clone(), doing, source }
    }

    fn marker(&self) -> Result<Option<Marker>, ReplicationError> {
        marker_of(&self.path)
    }

    pub(super) fn look(&self) -> Result<Local, ReplicationError> {
        let Some(marker) = self.marker()? else {
            return Ok(if self.locked.has_data()? { Local::Unmarked } else { Local::Nothing });
        };
        let has_data = self.locked.has_data()?;
        if marker.restoring.is_some() || !(has_data || marker.is_fresh) {
            return Ok(Local::Nothing);
        }
        let is_missing = |file: &&ReplicatedFile| !marker.is_fresh && !file.path.exists();
        let missing = self.files.iter().filter(is_missing).map(|file| file.name.clone()).collect();
        let is_copy = marker.lock_inode != self.locked.inode()?;
        Ok(Local::Marked { missing, marker: Box::new(marker), is_copy })
    }

    pub(super) fn write_marker(&self, marker: &Marker) -> Result<(), ReplicationError> {
        let bytes = serde_json::to_vec_pretty(marker).expect("plain values are always JSON");
        replace(&self.path, MARKER, &bytes).map_err(self.io("write replication.json"))
    }

    /// Ends a restore of which a start before this one had fetched everything, and removes what was fetched by one that
    /// did not come so far.
    pub(super) fn resume(&self) -> Result<(), ReplicationError> {
        if let Some(marker) = self.marker()?
            && let Some(Restoring { shard_count: found, .. }) = marker.restoring
        {
            let storage = &self.plan.storage;
            if !storage.may_have(found) {
                let Marker { base, incarnation, .. } = marker;
                let wanted = storage.shard_count;
                return Err(StartRefusal::ShardCount { base, incarnation, found, wanted }.into());
            }
            info!(incarnation = %marker.incarnation, "going on with a restore");
            let marker = self.put_in_place(marker, found)?;
            self.write_marker(&marker)?;
        }
        remove_folder(&self.path.join(RESTORING)).map_err(self.io("remove the folder of a restore"))
    }

    /// Moves the data to the number of shards that is wanted, if the plan consents.
    pub(super) async fn reshard(&self) -> Result<(), ReplicationError> {
        if let Some(layout) = self.locked.layout()? {
            let has = layout.switching.map_or(layout.shard_count, |switching| switching.shard_count);
            note_shard_count(&self.path, has).map_err(self.io("write replication.json"))?;
        }
        let (locked, plan) = (self.locked.share()?, self.plan.clone());
        if blocking(move || reshard::at_start(&locked, &plan)).await? {
            self.forget_litestream()?;
        }
        Ok(())
    }

    /// Does what was decided, so that the directory may write the marker's incarnation.
    pub(super) async fn carry_out(
        &self,
        choice: &Choice,
        local: &Local,
        marker: &Marker,
    ) -> Result<Option<Restored>, ReplicationError> {
        let point = choice.point.as_ref();
        let (from, files, set_aside) = match &choice.decision {
            Decision::Empty { why } => {
                warn!(base = %self.site.base, why, "starting empty: nothing is restored");
                self.set_aside(&set_aside_name(local))?;
                self.forget_litestream()?;
                return Ok(None);
            }
            Decision::GoOn(_) => {
                self.forget_litestream()?;
                return Ok(None);
            }
            Decision::Keep { why, .. } => {
                info!(base = %self.site.base, why, "the data of this directory counts; copying all of it");
                // Litestream's notes are about its old place.
                self.forget_litestream()?;
                return Ok(None);
            }
            Decision::Restore { from } => {
                // A file that lies elsewhere is not lost with the directory, and stays unless a time is gone back to.
                let is_wanted = |file: &&ReplicatedFile| {
                    let is_replaced = self.is_inside(file) || point.is_some() || !file.path.exists();
                    from.birth.files.contains(&file.name) && is_replaced
                };
                let files = self.files_of(from.birth.shard_count).into_iter().filter(|file| is_wanted(&file));
                (from, files.collect::<Vec<_>>(), Some(set_aside_name(local)))
            }
            Decision::Complete { from, missing } => {
                let is_missing = |file: &&ReplicatedFile| missing.contains(&file.name);
                (from, self.files.iter().filter(is_missing).cloned().collect(), None)
            }
        };
        let source = choice.elsewhere.as_ref().unwrap_or(self.site);
        let restored = self.fetch(source, from, &files, point).await?;
        let shard_count = from.birth.shard_count;
        let marker = Marker { restoring: Some(Restoring { shard_count, set_aside }), ..marker.clone() };
        self.write_marker(&marker)?;
        fault::point("restore-begun");
        self.put_in_place(marker, shard_count)?;
        Ok(Some(restored))
    }

    /// Fetches files of an incarnation into a folder beside the data, all of them sound.
    async fn fetch(
        &self,
        source: &Site,
        from: &FoundIncarnation,
        files: &[ReplicatedFile],
        point: Option<&PointInTime>,
    ) -> Result<Restored, ReplicationError> {
        let folder = self.path.join(RESTORING);
        make_empty(&folder)?;
        info!(incarnation = %from.incarnation, files = files.len(), base = %source.base, "restoring");
        let restored =
            fetch(source, self.litestream, from, files, point, UnsoundResults::LeaveOut, &folder).await?;
        std::fs::File::open(&folder)
            .and_then(|folder| folder.sync_all())
            .map_err(self.io("sync the folder of the restore"))?;
        fault::point("files-fetched");
        Ok(restored)
    }

    /// Puts what was fetched in the place of what is here; every step may be done twice. Returns the marker of a directory
    /// that is whole.
    fn put_in_place(&self, mut marker: Marker, shard_count: usize) -> Result<Marker, ReplicationError> {
        if let Some(restoring) = &mut marker.restoring
            && let Some(folder) = restoring.set_aside.take()
        {
            self.set_aside(&folder)?;
            fault::point("data-set-aside");
            self.write_marker(&marker)?;
        }
        let folder = self.path.join(RESTORING);
        for file in self.files_of(shard_count) {
            let fetched = folder.join(&file.name);
            if !fetched.exists() {
                continue;
            }
            for suffix in ["-wal", "-shm"] {
                remove_file(&sqlite::beside(&file.path, suffix))
                    .map_err(self.io("remove what stood there"))?;
            }
            move_file(&fetched, &file.path).map_err(self.io("move a restored file"))?;
            fault::point("file-moved");
        }
        self.forget_litestream()?;
        let lineage = self.locked.lay_out(shard_count, &self.plan.identity)?;
        store::adopt(&self.path.join(RESULTS_FILE), &lineage)?;
        fault::point("results-adopted");
        remove_folder(&folder).map_err(self.io("remove the folder of the restore"))?;
        Ok(Marker { restoring: None, ..marker })
    }

    /// Moves what is in the directory out of the way, and what lies elsewhere if it is to be replaced; nothing of it is
    /// lost.
    fn set_aside(&self, name: &str) -> Result<(), ReplicationError> {
        let folder = self.path.join(SET_ASIDE).join(name);
        let mut moves = SET_ASIDE_TOO.map(|name| (self.path.join(name), name.to_owned())).to_vec();
        for file in &self.files_of(SHARD_COUNT_MAX) {
            let name = &file.name;
            if self.is_inside(file) || self.path.join(RESTORING).join(name).exists() {
                moves.extend(
                    ["", "-wal", "-shm"]
                        .map(|suffix| (sqlite::beside(&file.path, suffix), format!("{name}{suffix}"))),
                );
            }
            if self.is_inside(file) {
                moves.extend(notes(file).map(|notes| (notes, format!(".{name}-litestream"))));
            }
        }
        moves.retain(|(path, _)| path.exists());
        if moves.is_empty() {
            return Ok(());
        }
        std::fs::create_dir_all(&folder).map_err(self.io("make a folder for what is set aside"))?;
        for (path, name) in moves {
            move_file(&path, &folder.join(name)).map_err(self.io("set data aside"))?;
        }
        warn!(folder = %folder.display(), "what was in the data directory is set aside");
        Ok(())
    }

    /// The replicated files of a directory with so many shards.
    fn files_of(&self, shard_count: usize) -> Vec<ReplicatedFile> {
        files_of(self.plan, &self.path, shard_count)
    }

    /// Whether a file lies in the data directory; a dead-letter queue may lie elsewhere.
    fn is_inside(&self, file: &ReplicatedFile) -> bool {
        file.path.parent() == Some(&self.path)
    }

    /// Removes Litestream's notes: another prefix begins with a copy of everything.
    pub(super) fn forget_litestream(&self) -> Result<(), ReplicationError> {
        for notes in self.files_of(SHARD_COUNT_MAX).iter().filter_map(notes) {
            remove_folder(&notes).map_err(self.io("remove Litestream's notes"))?;
        }
        Ok(())
    }
}

/// The folder in which Litestream keeps its notes of a file.
fn notes(file: &ReplicatedFile) -> Option<PathBuf> {
    let name = file.path.file_name()?.to_string_lossy();
    Some(file.path.with_file_name(format!(".{name}-litestream")))
}

/// The name of the folder that takes the present contents of a directory.
fn set_aside_name(local: &Local) -> String {
    let was = match local {
        Local::Marked { marker, .. } => marker.incarnation.to_string(),
        Local::Unmarked | Local::Nothing => "unfinished".to_owned(),
    };
    format!("{was}-{}", clock::epoch_seconds())
}

/// Removes what was set aside before a time; what can't be removed stays.
pub(super) fn remove_set_aside(data_dir: &Path, before: i64) {
    let Ok(entries) = std::fs::read_dir(data_dir.join(SET_ASIDE)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let since = name.to_str().and_then(|name| name.rsplit_once('-')?.1.parse::<i64>().ok());
        if since.is_some_and(|since| since < before) && std::fs::remove_dir_all(entry.path()).is_ok() {
            info!(folder = %entry.path().display(), "removed what was set aside long ago");
        }
    }
}

fn remove_file(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Moves a file, to another file system if need be.
fn move_file(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
            std::fs::copy(from, to)?;
            std::fs::File::open(to)?.sync_all()?;
            std::fs::remove_file(from)
        }
        outcome => outcome,
    }
}
