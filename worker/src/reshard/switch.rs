//! The switch from one layout to another, and back. The one step that decides is the manifest; the files follow it.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::note::{self, CopyNote, FileState};
use super::{COPY, Move, PREVIOUS, ReshardError};
use crate::clock;
use crate::fault;
use crate::results::store;
use crate::status::reshard::MoveProgress;
use crate::storage::layout::{
    Layout, LockedDir, RESULTS_FILE, Switching, io_error, remove_folder, replace, shard_file_name,
};

/// The layout of before, beside its shards.
const FILE: &str = "previous.json";

/// A layout that data was moved away from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Previous {
    layout: Layout,
    /// Until when it is kept, in seconds since the epoch.
    keep_until: i64,
    /// By its shards, the newest entry of the change log.
    last_seqs: Vec<i64>,
    /// By the shards that took over, the same at that moment.
    new_last_seqs: Vec<i64>,
    /// Those shards at that moment.
    new_shards: Vec<FileState>,
}

/// See [`Move::switch`].
pub(super) fn switch(data: &Move<'_>, note: &CopyNote, keep: Duration) -> Result<(), ReshardError> {
    let previous = data.locked.path().join(PREVIOUS);
    remove_folder(&previous).map_err(data.io("remove a layout of before"))?;
    std::fs::create_dir(&previous).map_err(data.io("make a folder for the layout of before"))?;
    let keep_until = clock::epoch_seconds().saturating_add_unsigned(keep.as_secs());
    let before = Previous {
        layout: data.layout.clone(),
        keep_until,
        last_seqs: note.last_seqs.clone(),
        new_last_seqs: note.new_last_seqs.clone(),
        new_shards: note::states(&data.targets()),
    };
    let bytes = serde_json::to_vec_pretty(&before).expect("plain values are always JSON");
    replace(&previous, FILE, &bytes).map_err(data.io("note the layout of before"))?;
    fault::point("switch-prepared");
    data.locked.write_layout(&Layout {
        layout_id: note.layout_id.clone(),
        shard_count: note.to,
        switching: Some(Switching {
            shard_count: note.from,
            from: COPY.to_owned(),
            aside: PREVIOUS.to_owned(),
            is_aside: false,
        }),
        ..data.layout.clone()
    })?;
    fault::point("layout-switched");
    settle(data.locked)?;
    Ok(())
}

/// Ends a switch that has been decided, whoever began it; returns whether there was one.
pub(crate) fn settle(locked: &LockedDir) -> Result<bool, ReshardError> {
    let Some(layout) = locked.layout()? else { return Ok(false) };
    let Some(switching) = layout.switching.clone() else { return Ok(false) };
    let layout = locked.exchange_shards(layout)?;
    let results = locked.path().join(RESULTS_FILE);
    if results.exists() {
        store::take_layout(&results, &layout.layout_id)?;
    }
    fault::point("joins-switched");
    let from = locked.path().join(&switching.from);
    remove_folder(&from)
        .map_err(|source| io_error(locked.path(), "remove the folder of the copy", source))?;
    locked.write_layout(&Layout { switching: None, ..layout })?;
    fault::point("switch-settled");
    remove_expired(locked.path(), clock::epoch_seconds());
    Ok(true)
}

/// Removes the layout of before once its time is over; what can't be removed stays.
pub(crate) fn remove_expired(data_dir: &Path, now: i64) {
    let folder = data_dir.join(PREVIOUS);
    let Some(previous) = read(&folder) else { return };
    if now < previous.keep_until {
        return;
    }
    match remove_folder(&folder) {
        Ok(()) => info!(folder = %folder.display(), "removed the layout of before, whose time is over"),
        Err(error) => warn!(folder = %folder.display(), %error, "could not remove the layout of before"),
    }
}

fn read(folder: &Path) -> Option<Previous> {
    serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()
}

/// Goes back to the layout of before: at once where nothing was written since, by moving the data again where something
/// was. Returns the number of shards.
pub(crate) fn undo(
    locked: &LockedDir,
    keep: Duration,
    progress: &MoveProgress,
) -> Result<usize, ReshardError> {
    settle(locked)?;
    let folder = locked.path().join(PREVIOUS);
    let none = || ReshardError::NoPrevious { path: locked.path().display().to_string() };
    let previous = read(&folder).ok_or_else(none)?;
    let count = previous.layout.shard_count;
    let data = Move::new(locked, count)?;
    let is_whole = (0..count).all(|index| folder.join(shard_file_name(index)).exists());
    let is_unwritten = previous.new_shards == note::states(&data.sources());
    if !(is_whole && is_unwritten && previous.layout.lineage == data.layout.lineage) {
        info!("messages have come since the switch; moving all of the data");
        let copy = data.stage(None, progress)?;
        data.switch(copy, keep)?;
        return Ok(count);
    }
    let results = locked.path().join(RESULTS_FILE);
    if results.exists() {
        let applied = store::applied(&results)?;
        let current = applied.into_iter().filter(|(_, seqs)| seqs.as_ref() == Some(&previous.new_last_seqs));
        let joins = current.map(|(join, _)| (join, previous.last_seqs.clone())).collect();
        store::note_layout(&results, &previous.layout.layout_id, &joins)?;
    }
    // The shards go to where the others come from: both change places.
    let copy = locked.path().join(COPY);
    remove_folder(&copy).map_err(data.io("remove an earlier copy"))?;
    let switching = Switching {
        shard_count: data.layout.shard_count,
        from: PREVIOUS.to_owned(),
        aside: COPY.to_owned(),
        is_aside: false,
    };
    let layout = Layout {
        switching: Some(switching),
        epochs_reserved: data.layout.epochs_reserved,
        ..previous.layout
    };
    locked.write_layout(&layout)?;
    fault::point("layout-switched");
    settle(locked)?;
    remove_folder(&copy).map_err(data.io("remove the layout that was undone"))?;
    Ok(count)
}
