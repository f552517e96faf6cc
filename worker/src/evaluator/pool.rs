//! A pool of workspaces, over which the keys of an epoch are spread.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::EpochError;
use crate::fault;
use crate::join::aggregate::{AccumulatedJoin, AggregateChange, Deltas};
use crate::join::budget::STEPS_MAX;
use crate::join::changes::{BYTES_MAX, Changes, ReadError, ShardChanges};
use crate::join::keyed::{AffectedKey, DRIVING_MAX, Evaluated, FailingKeys, KEYS_MAX, KeyedError, KeyedJoin};
use crate::join::lookup::Cost;
use crate::join::time_step::TimeStep;
use crate::join::workspace::Workspace;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::{self, SqliteError};
use crate::storage::topics::{TopicId, Topics};

/// Threads that evaluate at most; each has a workspace with a reader of every shard.
const THREADS_MAX: usize = 4;

/// Keys that are evaluated together at most. Larger batches share more of the rows that they look up.
const SHARE_KEYS_MAX: usize = 2_048;

/// Keys up to which a second thread costs more than it saves.
const ALONE_KEYS: usize = 128;

/// Log entries up to which a second thread costs more than it saves.
const ALONE_ENTRIES: usize = 1_024;

/// The workspaces, one for each thread.
pub(super) struct EvaluatorPool {
    workspaces: Vec<Workspace>,
    /// Topics whose old images some join needs.
    looked_back: BTreeSet<TopicId>,
}

/// What is known to fail when keys are evaluated.
pub(super) struct KnownFailures<'f> {
    pub(super) keys: &'f FailingKeys,
    /// Those of the keys that are evaluated although no change has led to them.
    pub(super) suspects: Vec<AffectedKey>,
}

impl EvaluatorPool {
    pub(super) fn new<'a>(
        shard_paths: &[PathBuf],
        results_path: &Path,
        joins: impl Iterator<Item = &'a KeyedJoin> + Clone,
        accumulated: impl Iterator<Item = &'a AccumulatedJoin> + Clone,
        windows: impl Iterator<Item = TopicId>,
    ) -> Result<Self, EpochError> {
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let workspaces = (0..count)
            .map(|_| {
                let readers =
                    shard_paths.iter().map(|path| ShardReader::open(path)).collect::<Result<_, _>>()?;
                let results = sqlite::open_reader(results_path)?;
                let memory = sqlite::open_memory()?;
                let tables = accumulated.clone().map(|join| join.plan.table_sql());
                let keyed = joins.clone().chain(accumulated.clone().flat_map(AccumulatedJoin::keyed));
                Ok(Workspace::new(memory, readers, results, tables, keyed, STEPS_MAX)?)
            })
            .collect::<Result<_, EpochError>>()?;
        let by_value = joins.flat_map(KeyedJoin::looked_back);
        let looked_back =
            by_value.chain(accumulated.flat_map(|join| join.rows.topics())).chain(windows).collect();
        Ok(Self { workspaces, looked_back })
    }

    /// Pins the state that all readers of shards see, or that of none.
    pub(super) fn hold(&self) -> Result<(), SqliteError> {
        self.workspaces.iter().try_for_each(Workspace::hold).inspect_err(|_| self.release())
    }

    /// Pins the state that all readers of results see; see [`Workspace::hold_results`].
    pub(super) fn hold_results(&self) -> Result<(), SqliteError> {
        self.workspaces.iter().try_for_each(Workspace::hold_results)
    }

    pub(super) fn release(&self) {
        self.workspaces.iter().for_each(Workspace::release);
    }

    pub(super) fn take_cost(&mut self) -> Cost {
        let mut cost = Cost::default();
        self.workspaces.iter_mut().for_each(|workspace| cost += workspace.take_cost());
        cost
    }

    /// Returns the workspace for work that one thread does.
    pub(super) fn workspace(&mut self) -> &mut Workspace {
        &mut self.workspaces[0]
    }

    /// Reads the log entries with `after < seq <= to`, shard by shard.
    pub(super) fn changes(
        &mut self,
        after: &[i64],
        to: &[i64],
        topics: &Topics,
    ) -> Result<Changes, ReadError> {
        let bytes_max = BYTES_MAX / to.len();
        let entries: i64 = after.iter().zip(to).map(|(after, to)| to - after).sum();
        let looked_back = self.looked_back.clone();
        let read = |workspace: &mut Workspace, shard: usize| {
            let reader = &mut workspace.readers()[shard];
            let wants_old = |topic| looked_back.contains(&topic);
            ShardChanges::read(reader, after[shard], to[shard], topics, bytes_max, wants_old)
        };
        let mut parts: Vec<(usize, ShardChanges)> = Vec::with_capacity(to.len());
        self.spread(to.len(), entries <= ALONE_ENTRIES as i64, read, |shard, part| {
            parts.push((shard, part));
            Ok::<(), ReadError>(())
        })?;
        parts.sort_unstable_by_key(|(shard, _)| *shard);
        Ok(Changes::new(parts.into_iter().map(|(_, part)| part).collect()))
    }

    /// Evaluates the results that the changes affect, and calls `store` with each batch of differences while other
    /// batches are still evaluated. Returns the number of differences; `None` if no result
    /// is evaluated.
    pub(super) fn evaluate(
        &mut self,
        join: &KeyedJoin,
        time: Option<&TimeStep>,
        changes: &Changes,
        known: Option<&Changes>,
        failing: KnownFailures<'_>,
        mut store: impl FnMut(Evaluated) -> Result<(), KeyedError>,
    ) -> Result<Option<u64>, KeyedError> {
        let mut keys = self.affected(join, time, changes, KEYS_MAX)?;
        let is_affected = |suspect: &AffectedKey| keys.iter().any(|key| key.value == suspect.value);
        let suspects: Vec<_> = failing.suspects.into_iter().filter(|suspect| !is_affected(suspect)).collect();
        keys.extend(suspects);
        if keys.is_empty() {
            return Ok(None);
        }
        fault::point("keys-found");
        let mut differences = 0;
        let [_, now] = moments(time);
        let evaluate = |workspace: &mut Workspace, share: &[AffectedKey], found: &mut Evaluated| {
            workspace.evaluate(join, now, share, known, failing.keys, found)
        };
        self.share(&keys, evaluate, |found| {
            differences += found.changes.len() as u64;
            store(found)
        })?;
        Ok(Some(differences))
    }

    /// Updates aggregate states by `changes`, which must be all since their last update. Returns `None` if no row can
    /// have come or gone.
    pub(super) fn accumulate(
        &mut self,
        join: &AccumulatedJoin,
        time: Option<&TimeStep>,
        changes: &Changes,
    ) -> Result<Option<AggregateChange>, KeyedError> {
        let keys = self.affected(&join.rows, time, changes, DRIVING_MAX)?;
        if keys.is_empty() {
            return Ok(None);
        }
        let old = self.workspaces[0].old_images(&join.rows, changes)?;
        let moments = moments(time);
        let evaluate = |workspace: &mut Workspace, share: &[AffectedKey], deltas: &mut Deltas| {
            workspace.deltas(join, moments, share, changes, &old, deltas)
        };
        let mut deltas = Deltas::default();
        self.share(&keys, evaluate, |found| {
            deltas.append(found);
            Ok(())
        })?;
        self.workspaces[0].apply_deltas(join, moments[1], deltas, changes).map(Some)
    }

    /// Returns the keys that the changes affect. The keys are sorted: neighbours in the files are found at less cost.
    fn affected(
        &mut self,
        join: &KeyedJoin,
        time: Option<&TimeStep>,
        changes: &Changes,
        keys_max: usize,
    ) -> Result<Vec<AffectedKey>, KeyedError> {
        let parts = changes.parts();
        let is_little = changes.len() <= ALONE_ENTRIES;
        let find = |workspace: &mut Workspace, shard: usize| {
            let found = workspace.affected(join, shard, &parts[shard], time, keys_max)?;
            let mut found: Vec<AffectedKey> =
                found.into_iter().map(|(value, emit)| AffectedKey { value, emit }).collect();
            found.sort_unstable();
            Ok::<_, KeyedError>(found)
        };
        let mut keys: Vec<AffectedKey> = Vec::new();
        self.spread(parts.len(), is_little, find, |_, found| {
            keys.extend(found);
            if keys.len() > parts.len() * keys_max { Err(KeyedError::TooLarge) } else { Ok(()) }
        })?;
        // A stable sort is fast for input that consists of sorted runs.
        keys.sort();
        keys.dedup_by(|later, first| {
            let is_same = later.value == first.value;
            if is_same {
                first.emit = first.emit.max(later.emit);
            }
            is_same
        });
        if keys.len() > keys_max { Err(KeyedError::TooLarge) } else { Ok(keys) }
    }

    /// Evaluates batches of keys on all workspaces until none is left, and calls `take` with the result of each batch.
    fn share<T: Default + Send>(
        &mut self,
        keys: &[AffectedKey],
        evaluate: impl Fn(&mut Workspace, &[AffectedKey], &mut T) -> Result<(), KeyedError> + Sync,
        mut take: impl FnMut(T) -> Result<(), KeyedError>,
    ) -> Result<(), KeyedError> {
        let shares: Vec<&[AffectedKey]> = keys.chunks(SHARE_KEYS_MAX).collect();
        let evaluate = |workspace: &mut Workspace, index: usize| -> Result<T, KeyedError> {
            fault::point("share-taken");
            let mut found = T::default();
            evaluate(workspace, shares[index], &mut found)?;
            Ok(found)
        };
        self.spread(shares.len(), keys.len() <= ALONE_KEYS, evaluate, |_, found| take(found))
    }

    /// Runs `count` tasks on the workspaces, and calls `take` with each result, in any order. `is_little`
    /// runs them without further threads.
    fn spread<T: Send, E: Send>(
        &mut self,
        count: usize,
        is_little: bool,
        work: impl Fn(&mut Workspace, usize) -> Result<T, E> + Sync,
        mut take: impl FnMut(usize, T) -> Result<(), E>,
    ) -> Result<(), E> {
        if is_little || count <= 1 {
            let workspace = &mut self.workspaces[0];
            return (0..count).try_for_each(|index| take(index, work(workspace, index)?));
        }
        let next = AtomicUsize::new(0);
        let (next, work) = (&next, &work);
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(self.workspaces.len());
            for workspace in self.workspaces.iter_mut().take(count) {
                let sender = sender.clone();
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count || sender.send((index, work(workspace, index))).is_err() {
                            // All tasks are taken, or a failure has made the rest useless.
                            return;
                        }
                    }
                });
            }
            drop(sender);
            receiver.into_iter().try_for_each(|(index, done)| take(index, done?))
        })
    }
}

/// Returns the moments of the stored and of the new results; any for a join that doesn't read the clock.
fn moments(time: Option<&TimeStep>) -> [i64; 2] {
    time.map_or([0, 0], |time| [time.from, time.to])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_can_not_be_held_leaves_none_held() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["shard-0.db", "shard-1.db", "results.db"].map(|name| folder.path().join(name));
        for file in &files {
            sqlite::open_writer(file, litejoin_crds::plan::Synchronous::Normal).unwrap();
        }
        let [first, second, results] = files;
        let mut workspaces =
            EvaluatorPool::new(&[first, second], &results, [].iter(), [].iter(), [].into_iter()).unwrap();

        // SQLite has no nested transactions, so this reader can't begin another one.
        workspaces.workspaces.last_mut().unwrap().readers()[1].hold().unwrap();
        assert!(workspaces.hold().is_err());

        workspaces.hold().unwrap();
        workspaces.release();
        workspaces.hold().unwrap();
    }
}
