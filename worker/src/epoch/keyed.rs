//! The keys of an epoch, shared out over the cores.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::EpochError;
use crate::fault;
use crate::join::accumulate::{AccumulatedJoin, Deltas, Settled};
use crate::join::budget::STEPS_MAX;
use crate::join::changes::Changes;
use crate::join::keyed::{Bench, Cost, DRIVING_MAX, Difference, KEYS_MAX, KeyedError, KeyedJoin};
use crate::join::value::Value;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::{self, SqliteError};
use crate::storage::topics::Topics;

/// Threads that evaluate at most; each has a reader of every shard.
const BENCHES_MAX: usize = 4;

/// Keys that are evaluated together at most. The more, the more of them share their neighbours' rows.
const SHARE_KEYS_MAX: usize = 2_048;

/// Keys below which a second thread is not worth its start.
const ALONE_KEYS: usize = 128;

/// One bench for each core.
pub(super) struct Benches {
    benches: Vec<Bench>,
}

impl Benches {
    pub(super) fn new<'a>(
        shard_paths: &[PathBuf],
        results_path: &Path,
        joins: impl Iterator<Item = &'a KeyedJoin> + Clone,
        accumulated: impl Iterator<Item = &'a AccumulatedJoin> + Clone,
    ) -> Result<Self, EpochError> {
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(BENCHES_MAX);
        let benches = (0..count)
            .map(|_| {
                let readers =
                    shard_paths.iter().map(|path| ShardReader::open(path)).collect::<Result<_, _>>()?;
                let results = sqlite::open_reader(results_path)?;
                let memory = sqlite::open_memory()?;
                Ok(Bench::new(memory, readers, results, joins.clone(), accumulated.clone(), STEPS_MAX)?)
            })
            .collect::<Result<_, EpochError>>()?;
        Ok(Self { benches })
    }

    /// Fixes what all readers see.
    pub(super) fn hold(&self) -> Result<(), SqliteError> {
        self.benches.iter().try_for_each(Bench::hold)
    }

    pub(super) fn release(&self) {
        self.benches.iter().for_each(Bench::release);
    }

    pub(super) fn take_cost(&mut self) -> Cost {
        let mut cost = Cost::default();
        self.benches.iter_mut().for_each(|bench| cost += bench.take_cost());
        cost
    }

    /// Reads what the logs hold in `after < seq <= to`, shard by shard.
    pub(super) fn changes(
        &mut self,
        after: &[i64],
        to: &[i64],
        topics: &Topics,
    ) -> Result<Changes, SqliteError> {
        let mut changes = Changes::default();
        for ((reader, after), to) in self.benches[0].readers().iter_mut().zip(after).zip(to) {
            reader.changes::<SqliteError>(*after, *to, topics, |change| {
                changes.add(&change);
                Ok(())
            })?;
        }
        Ok(changes)
    }

    /// Evaluates what the changes concern and calls `emit` for each result that differs from what is stored, while
    /// others are still evaluated. Returns their number, `None` if nothing is concerned.
    pub(super) fn evaluate(
        &mut self,
        join: &KeyedJoin,
        changes: &Changes,
        known: Option<&Changes>,
        mut emit: impl FnMut(&Difference) -> Result<(), SqliteError>,
    ) -> Result<Option<u64>, KeyedError> {
        let keys = self.affected(join, changes, KEYS_MAX)?;
        if keys.is_empty() {
            return Ok(None);
        }
        fault::point("keys-found");
        let mut differences = 0;
        let evaluate = |bench: &mut Bench, share: &[(Value, bool)], found: &mut Vec<Difference>| {
            bench.evaluate(join, share, known, found)
        };
        self.share(&keys, evaluate, |found| {
            differences += found.len() as u64;
            found.iter().try_for_each(&mut emit).map_err(KeyedError::from)
        })?;
        Ok(Some(differences))
    }

    /// Brings groups up to date with `changes`, which are all since they were last; `None` if no row can have come
    /// or gone.
    pub(super) fn accumulate(
        &mut self,
        join: &AccumulatedJoin,
        changes: &Changes,
    ) -> Result<Option<Settled>, KeyedError> {
        let keys = self.affected(&join.rows, changes, DRIVING_MAX)?;
        if keys.is_empty() {
            return Ok(None);
        }
        let old = self.benches[0].old_images(&join.rows, changes)?;
        let evaluate = |bench: &mut Bench, share: &[(Value, bool)], deltas: &mut Deltas| {
            bench.deltas(join, share, changes, &old, deltas)
        };
        let mut deltas = Deltas::default();
        self.share(&keys, evaluate, |found| {
            deltas.append(found);
            Ok(())
        })?;
        self.benches[0].settle(join, deltas, changes).map(Some)
    }

    /// The keys that the changes concern, in order: neighbours in the files are found for less.
    fn affected(
        &mut self,
        join: &KeyedJoin,
        changes: &Changes,
        keys_max: usize,
    ) -> Result<Vec<(Value, bool)>, KeyedError> {
        let mut keys: Vec<(Value, bool)> =
            self.benches[0].affected(join, changes, keys_max)?.into_iter().collect();
        keys.sort_unstable();
        Ok(keys)
    }

    /// Has every bench evaluate some of the keys, until none is left, and calls `take` for what each share gives.
    fn share<T: Default + Send>(
        &mut self,
        keys: &[(Value, bool)],
        evaluate: impl Fn(&mut Bench, &[(Value, bool)], &mut T) -> Result<(), KeyedError> + Sync,
        mut take: impl FnMut(T) -> Result<(), KeyedError>,
    ) -> Result<(), KeyedError> {
        let evaluate = |bench: &mut Bench, share: &[(Value, bool)]| -> Result<T, KeyedError> {
            let mut found = T::default();
            evaluate(bench, share, &mut found)?;
            Ok(found)
        };
        if keys.len() <= ALONE_KEYS {
            return take(evaluate(&mut self.benches[0], keys)?);
        }
        let shares: Vec<&[(Value, bool)]> = keys.chunks(SHARE_KEYS_MAX).collect();
        let next = AtomicUsize::new(0);
        let (shares, next, evaluate) = (&shares, &next, &evaluate);
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(self.benches.len());
            for bench in self.benches.iter_mut().take(shares.len()) {
                let sender = sender.clone();
                scope.spawn(move || {
                    while let Some(share) = shares.get(next.fetch_add(1, Ordering::Relaxed)) {
                        fault::point("share-taken");
                        if sender.send(evaluate(bench, share)).is_err() {
                            // Nobody needs the rest.
                            return;
                        }
                    }
                });
            }
            drop(sender);
            receiver.into_iter().try_for_each(|found| take(found?))
        })
    }
}
