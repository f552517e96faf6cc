//! The files of a data directory, opened and checked against each other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use litejoin_crds::plan::Plan;
use tracing::warn;

use super::StartError;
use crate::clock;
use crate::dead_letters::DeadLetters;
use crate::join::{self, CheckedJoin};
use crate::results::{Reader, Results};
use crate::storage::layout::{self, DataDir, LayoutState, LockedDir, RESULTS_FILE};
use crate::storage::shard::Shard;
use crate::storage::sqlite::{self, Journal, SqliteError};
use crate::storage::topics::Topics;

const SCRATCH: &str = "scratch";

/// The files and what goes with them, before any task runs.
pub(super) struct OpenFiles {
    pub(super) data_dir: DataDir,
    pub(super) topics: Arc<Topics>,
    pub(super) shards: Vec<Shard>,
    pub(super) results: Arc<Results>,
    pub(super) reader: Arc<Reader>,
    pub(super) letters: Arc<DeadLetters>,
    /// The number of the next epoch; this one and a block above it are reserved.
    pub(super) first_epoch: u64,
}

/// The topics that the plan fills or reads, as far as it names them.
pub(super) fn declared_topics<'a>(plan: &'a Plan, joins: &'a [CheckedJoin]) -> impl Iterator<Item = &'a str> {
    let filled = plan.sources.iter().flat_map(|source| source.kind.topics());
    filled.chain(joins.iter().flat_map(|join| &join.topics).map(String::as_str))
}

impl OpenFiles {
    pub(super) fn open(locked: LockedDir, plan: &Plan, joins: &[CheckedJoin]) -> Result<Self, StartError> {
        let storage = &plan.storage;
        let mut data_dir = DataDir::open(locked, storage.shard_count, &plan.identity)?;
        let journal = journal(plan);
        let names = plan.outputs().map(|output| output.name);
        let topics = Arc::new(Topics::new(declared_topics(plan, joins), names));
        let needs = join::needs(joins);
        let shards = (0..storage.shard_count)
            .map(|index| {
                let mut shard = Shard::open(&data_dir.shard_path(index), journal, &topics)?;
                shard.prepare(&needs, &topics, clock::epoch_seconds())?;
                Ok(shard)
            })
            .collect::<Result<Vec<_>, SqliteError>>()?;
        let results = Self::open_results(&mut data_dir, journal)?;
        let dlq_path = dlq_path(plan);
        let letters = Arc::new(DeadLetters::open(&dlq_path, journal, plan.delivery.dlq.bytes_max)?);
        data_dir.mark_ready()?;
        let first_epoch = results.reserve_epochs()?;
        data_dir.note_epochs(Results::last_reserved(first_epoch))?;
        let reader = Arc::new(Reader::open(results.path(), storage.reader_pool_size)?);
        make_empty_folder(&data_dir.path().join(SCRATCH))?;
        Ok(Self { data_dir, topics, shards, results: Arc::new(results), reader, letters, first_epoch })
    }

    /// Opens `results.db`. Where it is missing, an older copy, or belongs to another lineage, what was promised with it (epochs,
    /// ids, the outbox) is gone: a new lineage begins, and everything is evaluated anew.
    fn open_results(data_dir: &mut DataDir, journal: Journal) -> Result<Results, StartError> {
        let path = data_dir.path().join(RESULTS_FILE);
        if data_dir.layout().state == LayoutState::Ready && !path.exists() {
            warn!(path = %path.display(), "results.db is gone; evaluating everything anew under a new lineage");
            data_dir.renew_lineage()?;
            crate::fault::point("lineage-renewed");
        }
        let (results, same) = Results::open(&path, journal, &data_dir.layout().lineage)?;
        let is_older = same && results.epochs_reserved()? < data_dir.layout().epochs_reserved;
        if same && !is_older {
            return Ok(results);
        }
        let what = if is_older { "an older copy" } else { "of another lineage" };
        warn!(path = %path.display(), "results.db is {what}; evaluating everything anew under a new lineage");
        drop(results);
        data_dir.renew_lineage()?;
        sqlite::remove(&path)?;
        Ok(Results::open(&path, journal, &data_dir.layout().lineage)?.0)
    }

    /// Where evaluations keep what is worth nothing to the next start.
    pub(super) fn scratch_folder(&self) -> PathBuf {
        self.data_dir.path().join(SCRATCH)
    }

    pub(super) fn shard_paths(&self) -> Vec<PathBuf> {
        (0..self.shards.len()).map(|index| self.data_dir.shard_path(index)).collect()
    }
}

/// How the commits of the pipeline's files are kept.
pub(super) fn journal(plan: &Plan) -> Journal {
    match &plan.replication {
        Some(_) => Journal::replicated(plan.storage.synchronous),
        None => plan.storage.synchronous.into(),
    }
}

/// The file of the dead-letter queue.
pub(crate) fn dlq_path(plan: &Plan) -> PathBuf {
    layout::dead_letters_path(plan.delivery.dlq.path.as_deref(), &plan.storage.data_dir)
}

fn make_empty_folder(path: &Path) -> Result<(), SqliteError> {
    let make = || match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::create_dir(path),
    };
    make().map_err(|error| {
        SqliteError::new(path, "empty the folder", rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    })
}
