//! The evaluator's thread, and how another evaluator takes over when the joins change. Commits go on meanwhile, and
//! nothing of the change log is trimmed: only the evaluator moves what may be.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::warn;

use super::{join, thread};
use crate::blocking::blocking;
use crate::evaluator::Evaluator;
use crate::fault;
use crate::join::CheckedJoin;
use crate::results::Applied;
use crate::results::event::JoinId;
use crate::results::store::{Progress, Results};
use crate::storage::gate::EpochGate;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::SqliteError;

/// The thread that evaluates.
pub(super) struct Evaluation {
    gate: Arc<EpochGate>,
    /// `None` only while an evaluator takes over.
    thread: Option<JoinHandle<Evaluator>>,
}

impl Evaluation {
    pub(super) fn start(evaluator: Evaluator) -> Self {
        let mut evaluation = Self { gate: Arc::clone(&evaluator.gate), thread: None };
        evaluation.resume(evaluator);
        evaluation
    }

    /// Ends the evaluator after the epoch that it is at, and gives it back.
    pub(super) async fn halt(&mut self) -> Evaluator {
        self.gate.halt();
        let thread = self.thread.take().expect("it is halted once before it is resumed");
        blocking(move || join(thread)).await
    }

    /// Lets an evaluator take over where the one before was halted.
    pub(super) fn resume(&mut self, evaluator: Evaluator) {
        self.gate.resume();
        self.thread = Some(thread("evaluator", move || evaluator.run()));
    }

    /// Returns whether everything that is committed by now is in the results, as far as they are applied.
    pub(super) fn is_current(&self, applied: Applied) -> bool {
        !self.gate.is_uncut() && applied.epoch + 1 >= self.gate.next_epoch()
    }

    /// Waits until everything that was committed is evaluated, or gives that up after `limit`; nothing may be committed any
    /// more.
    pub(super) async fn finish(mut self, limit: Duration) {
        self.gate.stop();
        if let Some(thread) = self.thread.take() {
            let mut ended = pin!(blocking(move || join(thread)));
            if tokio::time::timeout(limit, &mut ended).await.is_err() {
                self.gate.halt();
                ended.await;
            }
        }
    }
}

/// Registers the joins with `results.db`: those that are gone are forgotten with their results, those that have
/// changed keep theirs, so that only differences are sent.
pub(super) fn register(
    results: &Results,
    joins: &[CheckedJoin],
    shard_count: usize,
) -> Result<Vec<Progress>, SqliteError> {
    let definitions: Vec<(&str, String)> =
        joins.iter().map(|join| (join.name.as_str(), join.definition(joins))).collect();
    results.register(&definitions, shard_count)
}

/// Has joins evaluated anew whose results don't follow from the change logs: a crash of the machine took commits away,
/// or a file was put back. This is noted before anything is written, since numbers that were lost are used again.
pub(super) fn reset_stale_progress(
    results: &Results,
    joins: &[CheckedJoin],
    progress: &mut [Progress],
    shard_paths: &[PathBuf],
) -> Result<(), SqliteError> {
    let logs = shard_paths.iter().map(|path| ShardReader::open(path)).collect::<Result<Vec<_>, _>>()?;
    let ends = logs.iter().map(ShardReader::last_seq).collect::<Result<Vec<_>, _>>()?;
    let mut lost: Vec<JoinId> = Vec::new();
    for (join, progress) in joins.iter().zip(progress) {
        let Some(applied) = &progress.applied else { continue };
        let mut follows = true;
        for ((log, after), to) in logs.iter().zip(applied).zip(&ends) {
            follows &= log.has_all(*after, *to)?;
        }
        if !follows {
            warn!(join = join.name, "its results don't follow from the change log; evaluating it anew");
            lost.push(progress.id);
            progress.applied = None;
        }
    }
    if !lost.is_empty() {
        fault::point("loss-noticed");
        results.forget_applied(&lost)?;
        fault::point("loss-noted");
    }
    Ok(())
}

/// The newest cut that the results of every join contain that has ever been evaluated; one may have come further than
/// another when the process died.
pub(super) fn epoch(progress: &[Progress]) -> Option<u64> {
    progress.iter().map(|progress| progress.epoch).filter(|epoch| *epoch > 0).min()
}

/// The numbers of the joins by their names.
pub(super) fn ids(joins: &[CheckedJoin], progress: &[Progress]) -> HashMap<String, JoinId> {
    joins.iter().zip(progress).map(|(join, progress)| (join.name.clone(), progress.id)).collect()
}

/// The evaluator that takes over from `halted` with other joins. A join that took too long and is still the same
/// is left alone as before.
pub(super) fn successor(halted: Evaluator, joins: Vec<CheckedJoin>, progress: Vec<Progress>) -> Evaluator {
    let is_stopped = |join: &CheckedJoin| halted.stopped.iter().any(|index| halted.joins[*index] == *join);
    let stopped =
        joins.iter().enumerate().filter(|(_, join)| is_stopped(join)).map(|(index, _)| index).collect();
    Evaluator { joins, progress, stopped, ..halted }
}
