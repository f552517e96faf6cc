//! The keys of an epoch, shared out over the cores.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::EpochError;
use crate::join::accumulate::{AccumulatedJoin, Deltas, Settled};
use crate::join::budget::STEPS_MAX;
use crate::join::changes::Changes;
use crate::join::keyed::{Bench, Cost, Difference, KeyedError, KeyedJoin};
use crate::join::value::Value;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::{self, SqliteError};
use crate::storage::topics::Topics;

/// Threads that evaluate at most; each has a reader of every shard.
const BENCHES_MAX: usize = 4;

/// Keys that are evaluated together at most. The more, the more of them share their neighbours' rows.
const SHARE_KEYS_MAX: usize = 4_096;

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
                let readers = shard_paths
                    .iter()
                    .map(|path| ShardReader::open_for_lookups(path))
                    .collect::<Result<_, _>>()?;
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

    /// Evaluates what the changes concern; `None` if that is nothing.
    pub(super) fn evaluate(
        &mut self,
        join: &KeyedJoin,
        changes: &Changes,
        known: Option<&Changes>,
    ) -> Result<Option<Vec<Difference>>, KeyedError> {
        let keys = self.affected(join, changes)?;
        if keys.is_empty() {
            return Ok(None);
        }
        let evaluate = |bench: &mut Bench, share: &[(Value, bool)], found: &mut Vec<Difference>| {
            bench.evaluate(join, share, known, found)
        };
        let shares = self.share(&keys, evaluate)?;
        let mut found = shares.concat();
        if shares.len() > 1 {
            found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        }
        Ok(Some(found))
    }

    /// Brings groups up to date with `changes`, which are all since they were last; `None` if no row can have come
    /// or gone.
    pub(super) fn accumulate(
        &mut self,
        join: &AccumulatedJoin,
        changes: &Changes,
    ) -> Result<Option<Settled>, KeyedError> {
        let keys = self.affected(&join.rows, changes)?;
        if keys.is_empty() {
            return Ok(None);
        }
        let old = self.benches[0].old_images(&join.rows, changes)?;
        let evaluate = |bench: &mut Bench, share: &[(Value, bool)], deltas: &mut Deltas| {
            bench.deltas(join, share, changes, &old, deltas)
        };
        let mut deltas = Deltas::default();
        self.share(&keys, evaluate)?.into_iter().for_each(|share| deltas.append(share));
        self.benches[0].settle(join, deltas, changes).map(Some)
    }

    /// The keys that the changes concern, in order: neighbours in the files are found for less.
    fn affected(&mut self, join: &KeyedJoin, changes: &Changes) -> Result<Vec<(Value, bool)>, KeyedError> {
        let mut keys: Vec<(Value, bool)> = self.benches[0].affected(join, changes)?.into_iter().collect();
        keys.sort_unstable();
        Ok(keys)
    }

    /// Has every bench evaluate some of the keys, until none is left; returns what each has found.
    fn share<T: Default + Send>(
        &mut self,
        keys: &[(Value, bool)],
        evaluate: impl Fn(&mut Bench, &[(Value, bool)], &mut T) -> Result<(), KeyedError> + Sync,
    ) -> Result<Vec<T>, KeyedError> {
        if keys.len() <= ALONE_KEYS {
            let mut found = T::default();
            evaluate(&mut self.benches[0], keys, &mut found)?;
            return Ok(vec![found]);
        }
        let share_keys = keys.len().div_ceil(self.benches.len()).min(SHARE_KEYS_MAX);
        let shares: Vec<&[(Value, bool)]> = keys.chunks(share_keys).collect();
        let next = AtomicUsize::new(0);
        let outcome: Mutex<Result<Vec<T>, KeyedError>> = Mutex::new(Ok(Vec::new()));
        std::thread::scope(|scope| {
            for bench in self.benches.iter_mut().take(shares.len()) {
                let (shares, next, outcome, evaluate) = (&shares, &next, &outcome, &evaluate);
                scope.spawn(move || {
                    let mut found = T::default();
                    while let Some(share) = shares.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = evaluate(bench, share, &mut found) {
                            // Nobody needs the rest.
                            next.store(shares.len(), Ordering::Relaxed);
                            *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
                            return;
                        }
                    }
                    if let Ok(all) = &mut *outcome.lock().unwrap_or_else(PoisonError::into_inner) {
                        all.push(found);
                    }
                });
            }
        });
        outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
