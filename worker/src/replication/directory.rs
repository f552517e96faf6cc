//! A data directory before it is opened: what it says of itself, and what is done so that it may write the prefix that
//! was decided on. What can be of use to somebody is set aside, and never removed.

use std::path::{Path, PathBuf};

use litejoin_crds::plan::Plan;
use tracing::{info, warn};

use super::config::File;
use super::fetch::{Restored, fetch, make_empty};
use super::incarnation::{Decision, Found, Local, Marker};
use super::litestream::{Litestream, LitestreamError};
use super::{PointInTime, ReplicationError, Site};
use crate::clock;
use crate::fault;
use crate::results::store::{self, RESULTS_FILE};
use crate::storage::layout::{LockedDir, replace};

pub(super) const MARKER: &str = "replication.json";
pub(super) const CONFIG: &str = "litestream.yml";
const RESTORING: &str = "restoring";
const SET_ASIDE: &str = "set-aside";

/// What is set aside beside the replicated files, their WALs and Litestream's notes.
const SET_ASIDE_TOO: [&str; 5] = ["layout.json", MARKER, CONFIG, RESTORING, "scratch"];

/// What is to be done.
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
    pub(super) path: PathBuf,
    pub(super) files: Vec<File>,
}

impl Directory<'_> {
    fn io(&self, doing: &'static str) -> impl Fn(std::io::Error) -> ReplicationError + use<> {
        let path = self.path.display().to_string();
        move |source| ReplicationError::Io { path: path.clone(), doing, source }
    }

    pub(super) fn look(&self) -> Result<Local, ReplicationError> {
        let marker = match std::fs::read(self.path.join(MARKER)) {
            Ok(bytes) => Some(serde_json::from_slice::<Marker>(&bytes).map_err(|error| {
                ReplicationError::Unreadable {
                    place: self.path.display().to_string(),
                    name: MARKER.to_owned(),
                    detail: error.to_string(),
                }
            })?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(self.io("read replication.json")(error)),
        };
        let Some(marker) = marker else {
            return Ok(if self.locked.has_data()? { Local::Unmarked } else { Local::Nothing });
        };
        let has_data = self.locked.has_data()?;
        if marker.is_restoring || !(has_data || marker.is_fresh) {
            return Ok(Local::Nothing);
        }
        let is_missing = |file: &&File| !marker.is_fresh && !file.path.exists();
        let missing = self.files.iter().filter(is_missing).map(|file| file.name.clone()).collect();
        let is_copy = marker.lock_inode != self.locked.inode()?;
        Ok(Local::Marked { missing, marker, is_copy })
    }

    pub(super) fn write_marker(&self, marker: &Marker) -> Result<(), ReplicationError> {
        let bytes = serde_json::to_vec_pretty(marker).expect("plain values are always JSON");
        replace(&self.path, MARKER, &bytes).map_err(self.io("write replication.json"))
    }

    /// Does what was decided, so that the directory may write the marker's incarnation.
    pub(super) async fn settle(
        &self,
        plan: &Plan,
        choice: &Choice,
        local: &Local,
        marker: &Marker,
    ) -> Result<Option<Restored>, ReplicationError> {
        let source = choice.elsewhere.as_ref().unwrap_or(self.site);
        let mut restored = None;
        match &choice.decision {
            Decision::Empty { why } => {
                warn!(base = %self.site.base, why, "starting empty: nothing is restored");
                self.set_aside(local)?;
            }
            Decision::GoOn(_) => self.forget_litestream()?,
            Decision::Keep { why, .. } => {
                info!(base = %self.site.base, why, "the data of this directory counts; copying all of it");
                // What Litestream knew of its old place.
                self.forget_litestream()?;
            }
            Decision::Restore { from } => {
                self.set_aside(local)?;
                self.write_marker(&Marker { is_restoring: true, ..marker.clone() })?;
                fault::point("restore-begun");
                // One that lies elsewhere is not set aside, and so stays.
                let is_wanted = |file: &&File| from.birth.files.contains(&file.name) && !file.path.exists();
                let all: Vec<File> = self.files.iter().filter(is_wanted).cloned().collect();
                restored = Some(self.restore(source, from, &all, choice.point.as_ref()).await?);
                let lineage = self.locked.lay_out(plan.storage.shard_count, &plan.identity)?;
                store::adopt(&self.path.join(RESULTS_FILE), &lineage)?;
                fault::point("results-adopted");
            }
            Decision::Complete { from, missing } => {
                let files: Vec<File> =
                    self.files.iter().filter(|file| missing.contains(&file.name)).cloned().collect();
                restored = Some(self.restore(source, from, &files, None).await?);
                self.forget_litestream()?;
                let lineage = self.locked.lay_out(plan.storage.shard_count, &plan.identity)?;
                store::adopt(&self.path.join(RESULTS_FILE), &lineage)?;
            }
        }
        Ok(restored)
    }

    /// Fetches files of an incarnation, and moves them to their places when all are there and sound. Results that are
    /// not are left out: they follow from what is in the shards.
    async fn restore(
        &self,
        source: &Site,
        from: &Found,
        files: &[File],
        point: Option<&PointInTime>,
    ) -> Result<Restored, ReplicationError> {
        let folder = self.path.join(RESTORING);
        let fetch = async |files: &[File]| {
            make_empty(&folder).map_err(self.io("make a folder for the restore"))?;
            info!(incarnation = %from.incarnation, files = files.len(), base = %source.base, "restoring");
            fetch(source, self.litestream, from, files, point, &folder).await
        };
        let mut files = files.to_vec();
        let restored = match fetch(&files).await {
            Err(ReplicationError::Litestream(LitestreamError::Unsound { file, said }))
                if Path::new(&file) == self.path.join(RESULTS_FILE) =>
            {
                warn!(
                    said,
                    "results.db came back unsound and is left out: all results are made anew and sent again, and what \
                     was yet to be sent of results that are gone is not"
                );
                files.retain(|file| file.name != RESULTS_FILE);
                fetch(&files).await?
            }
            outcome => outcome?,
        };
        fault::point("files-fetched");
        for file in &files {
            for suffix in ["-wal", "-shm"] {
                let mut beside = file.path.clone().into_os_string();
                beside.push(suffix);
                remove_file(Path::new(&beside)).map_err(self.io("remove what stood there"))?;
            }
            move_file(&folder.join(&file.name), &file.path).map_err(self.io("move a restored file"))?;
            fault::point("file-moved");
        }
        std::fs::remove_dir_all(&folder).map_err(self.io("remove the folder of the restore"))?;
        Ok(restored)
    }

    /// Moves what is in the directory out of the way; nothing of it is lost.
    fn set_aside(&self, local: &Local) -> Result<(), ReplicationError> {
        let was = match local {
            Local::Marked { marker, .. } => marker.incarnation.to_string(),
            Local::Unmarked | Local::Nothing => "unfinished".to_owned(),
        };
        let folder = self.path.join(SET_ASIDE).join(format!("{was}-{}", clock::epoch_seconds()));
        let of_files =
            self.files.iter().filter(|file| file.path.parent() == Some(&self.path)).flat_map(|file| {
                let name = &file.name;
                [name.clone(), format!("{name}-wal"), format!("{name}-shm"), format!(".{name}-litestream")]
            });
        let mut moved = false;
        for name in of_files.chain(SET_ASIDE_TOO.map(str::to_owned)) {
            let path = self.path.join(&name);
            if !path.exists() {
                continue;
            }
            std::fs::create_dir_all(&folder).map_err(self.io("make a folder for what is set aside"))?;
            std::fs::rename(path, folder.join(&name)).map_err(self.io("set data aside"))?;
            moved = true;
        }
        if moved {
            warn!(folder = %folder.display(), "what was in the data directory is set aside");
        }
        Ok(())
    }

    /// Removes Litestream's notes: another prefix begins with a copy of everything.
    fn forget_litestream(&self) -> Result<(), ReplicationError> {
        for file in &self.files {
            let (Some(folder), Some(name)) = (file.path.parent(), file.path.file_name()) else { continue };
            let notes = folder.join(format!(".{}-litestream", name.to_string_lossy()));
            match std::fs::remove_dir_all(&notes) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(self.io("remove Litestream's notes")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
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
