//! Bringing files of an incarnation back: the newest of each, or all as of one instant where one was noted near the
//! wanted time.

use std::path::Path;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use indicatif::{HumanBytes, ProgressBar, ProgressFinish, ProgressStyle};
use litejoin_crds::error::chain;
use tracing::{info, warn};

use super::config::ReplicatedFile;
use super::incarnation::FoundIncarnation;
use super::litestream::{self, Litestream, LitestreamError, WantedState};
use super::restore_points::RestorePoint;
use super::{PointInTime, ReplicationError, Site};
use crate::storage::layout::RESULTS_FILE;
use crate::storage::layout::replace;

const CONFIG: &str = "litestream-restore.yml";

/// Restores that run at once.
const RESTORES: usize = 2;

/// How often a long restore says how far it is.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// How often the bar of a restore is drawn on a terminal.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

/// The state in which files were restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restored {
    /// The newest of each file.
    Newest,
    /// All files as they were at this instant, in milliseconds since the epoch.
    Together { at: i64 },
    /// Each file as it was at its own last moment before the wanted time.
    Apart,
}

/// The treatment of a `results.db` that comes back unsound: all of it follows from the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnsoundResults {
    Refuse,
    LeaveOut,
}

/// Fetches files of an incarnation into an empty folder, under their names in the replica: all as of one instant, if one
/// was noted near the wanted time.
pub(crate) async fn fetch(
    site: &Site,
    litestream: &Litestream,
    from: &FoundIncarnation,
    files: &[ReplicatedFile],
    point: Option<&PointInTime>,
    unsound: UnsoundResults,
    folder: &Path,
) -> Result<Restored, ReplicationError> {
    let fetch = async |state: &dyn Fn(&ReplicatedFile) -> WantedState| match fetch_as(
        site, litestream, from, files, state, folder,
    )
    .await
    {
        Err(ReplicationError::Litestream(LitestreamError::Unsound { file, said }))
            if unsound == UnsoundResults::LeaveOut && Path::new(&file).ends_with(RESULTS_FILE) =>
        {
            warn!(
                said,
                "results.db came back unsound and is left out: all results are made anew and sent again, and what \
                     was yet to be sent of results that are gone is not"
            );
            make_empty(folder)?;
            let is_other = |file: &&ReplicatedFile| file.name != RESULTS_FILE;
            let others: Vec<ReplicatedFile> = files.iter().filter(is_other).cloned().collect();
            fetch_as(site, litestream, from, &others, state, folder).await
        }
        outcome => outcome,
    };
    let Some(point) = point else {
        fetch(&|_| WantedState::Newest).await?;
        return Ok(Restored::Newest);
    };
    let points = site.restore_points(&from.incarnation).await?;
    let has_all = |restore_point: &&RestorePoint| {
        files.iter().all(|file| points.txid(restore_point, &file.name).is_some())
    };
    if let Some(restore_point) = points.nearest(point.milliseconds).filter(has_all) {
        match fetch(&|file| WantedState::After(points.txid(restore_point, &file.name).unwrap_or_default()))
            .await
        {
            Ok(()) => return Ok(Restored::Together { at: restore_point.at }),
            Err(ReplicationError::Litestream(problem)) if problem.is_of_one_state() => warn!(
                error = chain(&problem),
                "the exact cut before that time can't be restored any more; taking each file as of its own last moment"
            ),
            // After any other error the restore point may be there at the next try.
            Err(problem) => return Err(problem),
        }
        make_empty(folder)?;
    }
    fetch(&|_| WantedState::At(point.milliseconds)).await?;
    Ok(Restored::Apart)
}

/// Fetches each file in the state that is wanted of it.
async fn fetch_as(
    site: &Site,
    litestream: &Litestream,
    from: &FoundIncarnation,
    files: &[ReplicatedFile],
    state: &dyn Fn(&ReplicatedFile) -> WantedState,
    folder: &Path,
) -> Result<(), ReplicationError> {
    let config = folder.join(CONFIG);
    let text = site.litestream_config(&from.incarnation, files, None);
    replace(folder, CONFIG, &text).map_err(|source| ReplicationError::Io {
        path: config.display().to_string(),
        doing: "write the file",
        source,
    })?;
    let restores = futures::stream::iter(files.iter().map(|file| {
        let (config, target, state) = (&config, folder.join(&file.name), state(file));
        async move { litestream.restore(config, &file.path, &target, state).await }
    }));
    let mut restores = restores.buffer_unordered(RESTORES);
    let progress = RestoreProgress::of(files.len());
    let mut tell = tokio::time::interval(progress.interval());
    tell.tick().await;
    loop {
        tokio::select! {
            restored = restores.try_next() => match restored? {
                Some(()) => progress.bar.inc(1),
                None => return Ok(()),
            },
            _ = tell.tick() => progress.tell(litestream::folder_bytes(folder)),
        }
    }
}

/// Says how far a restore is: a bar on a terminal, elsewhere a line in the log now and then. How much is still to come
/// of a file is known to Litestream alone.
struct RestoreProgress {
    bar: ProgressBar,
}

impl RestoreProgress {
    fn of(files: usize) -> Self {
        let style = ProgressStyle::with_template("restoring {wide_bar} {pos}/{len} files, {msg}, {elapsed}");
        // The bar hides itself where standard error is no terminal, and is wiped off when this ends, in whichever way.
        let bar = ProgressBar::new(files as u64)
            .with_style(style.expect("it is written as a template above"))
            .with_message(HumanBytes(0).to_string())
            .with_finish(ProgressFinish::AndClear);
        Self { bar }
    }

    fn interval(&self) -> Duration {
        if self.bar.is_hidden() { TELL_INTERVAL } else { DRAW_INTERVAL }
    }

    fn tell(&self, bytes: u64) {
        match self.bar.is_hidden() {
            true => {
                let (files, of) = (self.bar.position(), self.bar.length());
                info!(files, of, mebibytes = bytes >> 20, "still restoring");
            }
            false => self.bar.set_message(HumanBytes(bytes).to_string()),
        }
    }
}

/// Makes a folder, or empties one that is there, and may be where a volume is mounted.
pub(crate) fn make_empty(folder: &Path) -> Result<(), ReplicationError> {
    let make = || {
        match std::fs::create_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            outcome => return outcome,
        }
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(entry.path())?,
                false => std::fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    };
    make().map_err(|source| ReplicationError::Io {
        path: folder.display().to_string(),
        doing: "make an empty folder of it",
        source,
    })
}
