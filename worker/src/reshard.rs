//! Moving the data of a directory to another number of shards, while no worker writes it.
//!
//! ```text
//! plan ─► copy into reshard/ ─► verify ─► note ─► switch: layout.json, then the files ─► previous-layout/, kept for a while
//!         └ a crash up to here leaves the data as it was        └ from here on each start ends what was begun
//! ```

mod copy;
mod note;
mod online;
mod outlook;
mod pace;
mod switch;
mod verify;

use std::path::{Path, PathBuf};
use std::time::Duration;

use litejoin_crds::plan::Plan;
use tracing::{info, warn};

use self::copy::DataTally;
use self::note::{CopyNote, JoinPlaces};
pub(crate) use self::online::{FollowedCopy, OnlineMove};
pub(crate) use self::outlook::Outlook;
pub(crate) use self::switch::{remove_expired, settle, undo};
use crate::clock;
use crate::fault;
use crate::results::store;
use crate::status::reshard::{MoveProgress, MoveStep};
use crate::storage::layout::{
    Layout, LayoutError, LayoutState, LockedDir, RESULTS_FILE, SHARD_COUNT_MAX, io_error, random_id,
    remove_folder, shard_file_name,
};
use crate::storage::sqlite::SqliteError;

/// The folder of a data directory that takes the copy.
const COPY: &str = "reshard";

/// The folder of a data directory that takes the layout of before.
const PREVIOUS: &str = "previous-layout";

/// Why data could not be moved. Whatever it is, the data is as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReshardError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    File(SqliteError),
    #[error("the number of shards: got {got}, allowed: 1 to {SHARD_COUNT_MAX}")]
    Count { got: usize },
    #[error("{path}: has {count} shards already; nothing is to be done")]
    Same { path: String, count: usize },
    #[error("{path}: its shards were never all made; start the pipeline once, or begin in an empty folder")]
    Unfinished { path: String },
    #[error(
        "{path}: the copy takes {} beside the data, and {} are free; free some space, or give the volume more \
         (spec.storage.size)", mebibytes(*.needed), mebibytes(*.free)
    )]
    NoRoom { path: String, needed: u64, free: u64 },
    #[error("{path}: the copy is not what the data is: {what}; nothing was switched. Run it again")]
    Differs { path: String, what: String },
    #[error("{path}: there is no copy of the data as it is now; run it without --verify-only first")]
    NoCopy { path: String },
    #[error(
        "{path}: no layout of before is kept; go back by --to with the number of before, which moves the data again"
    )]
    NoPrevious { path: String },
    #[error("the move to another number of shards was called off")]
    CalledOff,
}

impl From<SqliteError> for ReshardError {
    fn from(error: SqliteError) -> Self {
        match error.is_disk_full() {
            // The same remedy, whichever file was the first to find no room.
            true => LayoutError::DiskFull { path: error.path().to_owned() }.into(),
            false => Self::File(error),
        }
    }
}

/// Bytes for people.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A copy of the data in another number of shards that is known to be whole.
#[derive(Debug)]
pub(crate) struct VerifiedCopy {
    note: CopyNote,
}

impl VerifiedCopy {
    /// Rows of all topics.
    pub(crate) fn rows(&self) -> u64 {
        self.note.rows
    }
}

/// The data of a directory, and the number of shards that it is to have.
pub(crate) struct Move<'a> {
    pub(crate) locked: &'a LockedDir,
    pub(crate) layout: Layout,
    pub(crate) to: usize,
}

impl<'a> Move<'a> {
    /// Ends a switch that was cut off, and looks at what is there.
    pub(crate) fn new(locked: &'a LockedDir, to: usize) -> Result<Self, ReshardError> {
        let path = || locked.path().display().to_string();
        if !(1..=SHARD_COUNT_MAX).contains(&to) {
            return Err(ReshardError::Count { got: to });
        }
        settle(locked)?;
        let layout = locked.layout()?.ok_or_else(|| LayoutError::NoData { path: path() })?;
        if layout.state != LayoutState::Ready {
            return Err(ReshardError::Unfinished { path: path() });
        }
        if layout.shard_count == to {
            return Err(ReshardError::Same { path: path(), count: to });
        }
        let missing =
            (0..layout.shard_count).map(shard_file_name).find(|name| !locked.path().join(name).exists());
        if let Some(missing) = missing {
            return Err(LayoutError::MissingShard { path: path(), missing }.into());
        }
        Ok(Self { locked, layout, to })
    }

    fn io(&self, doing: &'static str) -> impl Fn(std::io::Error) -> ReshardError + use<> {
        let path = self.locked.path().to_owned();
        move |source| io_error(&path, doing, source).into()
    }

    fn sources(&self) -> Vec<PathBuf> {
        (0..self.layout.shard_count).map(|index| self.locked.path().join(shard_file_name(index))).collect()
    }

    fn copy_folder(&self) -> PathBuf {
        self.locked.path().join(COPY)
    }

    fn targets(&self) -> Vec<PathBuf> {
        (0..self.to).map(|index| self.copy_folder().join(shard_file_name(index))).collect()
    }

    /// What the move takes; refused where there is no room for it.
    pub(crate) fn plan(&self) -> Result<Outlook, ReshardError> {
        outlook::look(self)
    }

    /// How far each join is in the shards.
    fn applied(&self) -> Result<JoinPlaces, ReshardError> {
        let path = self.locked.path().join(RESULTS_FILE);
        Ok(if path.exists() { store::applied(&path)? } else { JoinPlaces::default() })
    }

    /// Copies the data and verifies the copy, unless there is one of the data as it is now. `outlook` is what was planned, if
    /// anything was.
    pub(crate) fn stage(
        &self,
        outlook: Option<Outlook>,
        progress: &MoveProgress,
    ) -> Result<VerifiedCopy, ReshardError> {
        if let Some(note) = self.present_copy()?.filter(|note| note.verified_at.is_some()) {
            progress.begin(MoveStep::Verified, note.rows);
            return Ok(VerifiedCopy { note });
        }
        let outlook = outlook.map_or_else(|| self.plan(), Ok)?;
        self.remove_copy()?;
        std::fs::create_dir(self.copy_folder()).map_err(self.io("make a folder for the copy"))?;
        let (note, of_data) = copy::copy(self, random_id(), outlook.rows, progress)?;
        note.write(&self.copy_folder()).map_err(self.io("note the copy"))?;
        fault::point("data-copied");
        self.verify_copy(note, Some(of_data), progress)
    }

    /// Verifies a copy that is there.
    pub(crate) fn verify(&self, progress: &MoveProgress) -> Result<VerifiedCopy, ReshardError> {
        let note = self.present_copy()?;
        let note =
            note.ok_or_else(|| ReshardError::NoCopy { path: self.copy_folder().display().to_string() })?;
        self.verify_copy(note, None, progress)
    }

    /// Compares the copy with what was read of the data for it, or with the data itself.
    fn verify_copy(
        &self,
        note: CopyNote,
        of_data: Option<DataTally>,
        progress: &MoveProgress,
    ) -> Result<VerifiedCopy, ReshardError> {
        // A disk and a processor at once.
        std::thread::scope(|scope| {
            let synced = scope.spawn(|| self.sync_copy());
            verify::verify(self, &note, of_data, progress)?;
            copy::joined(synced)
        })?;
        let now = clock::epoch_seconds();
        let note = CopyNote { verified_at: Some(now), ..note };
        let results = self.locked.path().join(RESULTS_FILE);
        if results.exists() {
            store::note_layout(&results, &note.layout_id, &note.joins())?;
        }
        fault::point("joins-noted");
        note.write(&self.copy_folder()).map_err(self.io("note that the copy is whole"))?;
        fault::point("copy-verified");
        progress.verified(now);
        progress.begin(MoveStep::Verified, note.rows);
        Ok(VerifiedCopy { note })
    }

    /// Has the disk hold the files of the copy.
    fn sync_copy(&self) -> Result<(), ReshardError> {
        let sync = |path: &PathBuf| std::fs::File::open(path)?.sync_all();
        self.targets().iter().try_for_each(sync).map_err(self.io("sync the copy"))
    }

    /// The copy that is there, if it is of the data as it is now.
    fn present_copy(&self) -> Result<Option<CopyNote>, ReshardError> {
        let Some(note) = CopyNote::read(&self.copy_folder()) else { return Ok(None) };
        let is_of_this = note.to == self.to
            && note.lineage == self.layout.lineage
            && note.from_layout == self.layout.layout_id
            && note.source == note::states(&self.sources())
            && note.applied == self.applied()?;
        let is_there = self.targets().iter().all(|target| target.exists());
        Ok(Some(note).filter(|_| is_of_this && is_there))
    }

    /// Removes the copy, or what there is of it.
    pub(crate) fn remove_copy(&self) -> Result<(), ReshardError> {
        remove_folder(&self.copy_folder()).map_err(self.io("remove an earlier copy"))
    }

    /// Puts the copy in the place of the data, in one step that a crash leaves made or not made. What was there is kept for a
    /// while.
    pub(crate) fn switch(&self, copy: VerifiedCopy, keep: Duration) -> Result<(), ReshardError> {
        switch::switch(self, &copy.note, keep)
    }
}

/// Sees at a start that the data has the number of shards that is wanted, as far as the plan consents to a move. Returns
/// whether the shards are others than before.
pub(crate) fn at_start(locked: &LockedDir, plan: &Plan) -> Result<bool, ReshardError> {
    let mut has_moved = settle(locked)?;
    remove_expired(locked.path(), clock::epoch_seconds());
    let Some(layout) = locked.layout()? else { return Ok(has_moved) };
    let has = layout.shard_count;
    let wanted = plan.storage.shard_count_for(Some(has));
    match &plan.storage.reshard {
        Some(consent) if plan.storage.reshard_from() == Some(has) && layout.identity == plan.identity => {
            let data = Move::new(locked, wanted)?;
            let progress = MoveProgress::default();
            info!(
                from = has,
                to = wanted,
                "moving the data to another number of shards, as storage.reshard asks"
            );
            let copy = data.stage(None, &progress)?;
            let rows = copy.rows();
            data.switch(copy, consent.keep_old_layout)?;
            info!(
                from = has,
                to = wanted,
                rows,
                "the data is in other shards now; the layout of before is kept for a while"
            );
            has_moved = true;
        }
        Some(consent) if consent.to == has => {
            info!(shards = has, "storage.reshard asks for what is done; it can be removed");
        }
        _ => {}
    }
    if has == wanted
        && let Err(error) = remove_copy(locked.path())
    {
        warn!(%error, "could not remove a copy of the data for another number of shards");
    }
    Ok(has_moved)
}

/// Removes the copy of a move that was called off.
pub(crate) fn remove_copy(data_dir: &Path) -> std::io::Result<()> {
    remove_folder(&data_dir.join(COPY))
}
