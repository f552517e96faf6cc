//! The keys of an epoch, shared out over the cores.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::EpochError;
use crate::fault;
use crate::join::accumulate::{AccumulatedJoin, Deltas, Settled};
use crate::join::budget::STEPS_MAX;
use crate::join::changes::{BYTES_MAX, Changes, Part, ReadError};
use crate::join::keyed::{Bench, Cost, DRIVING_MAX, Difference, KEYS_MAX, KeyedError, KeyedJoin};
use crate::join::value::Value;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::{self, SqliteError};
use crate::storage::topics::{TopicId, Topics};

/// Threads that evaluate at most; each has a reader of every shard.
const BENCHES_MAX: usize = 4;

/// Keys that are evaluated together at most. The more, the more of them share their neighbours' rows.
const SHARE_KEYS_MAX: usize = 2_048;

/// Keys up to which a second thread is not worth its start.
const ALONE_KEYS: usize = 128;

/// The same for entries of the log.
const ALONE_ENTRIES: usize = 1_024;

/// One bench for each core.
pub(super) struct Benches {
    benches: Vec<Bench>,
    /// Topics of whose rows somebody asks what they were.
    looked_back: BTreeSet<TopicId>,
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
        let by_value = joins.flat_map(KeyedJoin::looked_back);
        let looked_back = by_value.chain(accumulated.flat_map(|join| join.rows.topics())).collect();
        Ok(Self { benches, looked_back })
    }

    /// Fixes what all readers of shards see, or what none does.
    pub(super) fn hold(&self) -> Result<(), SqliteError> {
        self.benches.iter().try_for_each(Bench::hold).inspect_err(|_| self.release())
    }

    /// Fixes what all readers of results see; see [`Bench::hold_results`].
    pub(super) fn hold_results(&self) -> Result<(), SqliteError> {
        self.benches.iter().try_for_each(Bench::hold_results)
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
    ) -> Result<Changes, ReadError> {
        let bytes_max = BYTES_MAX / to.len();
        let entries: i64 = after.iter().zip(to).map(|(after, to)| to - after).sum();
        let looked_back = self.looked_back.clone();
        let read = |bench: &mut Bench, shard: usize| {
            let reader = &mut bench.readers()[shard];
            let wants_old = |topic| looked_back.contains(&topic);
            Part::read(reader, after[shard], to[shard], topics, bytes_max, wants_old)
        };
        let mut parts: Vec<(usize, Part)> = Vec::with_capacity(to.len());
        self.spread(to.len(), entries <= ALONE_ENTRIES as i64, read, |shard, part| {
            parts.push((shard, part));
            Ok::<(), ReadError>(())
        })?;
        parts.sort_unstable_by_key(|(shard, _)| *shard);
        Ok(Changes::new(parts.into_iter().map(|(_, part)| part).collect()))
    }

    /// Evaluates what the changes concern and calls `store` for results that differ from what is stored, while
    /// others are still evaluated. Returns their number, `None` if nothing is concerned.
    pub(super) fn evaluate(
        &mut self,
        join: &KeyedJoin,
        changes: &Changes,
        known: Option<&Changes>,
        mut store: impl FnMut(&[Difference]) -> Result<(), SqliteError>,
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
            store(&found).map_err(KeyedError::from)
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
        let parts = changes.parts();
        let is_little = changes.len() <= ALONE_ENTRIES;
        let find = |bench: &mut Bench, shard: usize| {
            let found = bench.affected(join, &parts[shard], keys_max)?;
            let mut found: Vec<(Value, bool)> = found.into_iter().collect();
            found.sort_unstable();
            Ok::<_, KeyedError>(found)
        };
        let mut keys: Vec<(Value, bool)> = Vec::new();
        self.spread(parts.len(), is_little, find, |_, found| {
            keys.extend(found);
            if keys.len() > parts.len() * keys_max { Err(KeyedError::TooLarge) } else { Ok(()) }
        })?;
        // Stable, since that is quick for what is in order piece by piece.
        keys.sort();
        keys.dedup_by(|later, first| {
            let is_same = later.0 == first.0;
            first.1 |= is_same && later.1;
            is_same
        });
        if keys.len() > keys_max { Err(KeyedError::TooLarge) } else { Ok(keys) }
    }

    /// Has every bench evaluate some of the keys, until none is left, and calls `take` for what each share gives.
    fn share<T: Default + Send>(
        &mut self,
        keys: &[(Value, bool)],
        evaluate: impl Fn(&mut Bench, &[(Value, bool)], &mut T) -> Result<(), KeyedError> + Sync,
        mut take: impl FnMut(T) -> Result<(), KeyedError>,
    ) -> Result<(), KeyedError> {
        let shares: Vec<&[(Value, bool)]> = keys.chunks(SHARE_KEYS_MAX).collect();
        let evaluate = |bench: &mut Bench, index: usize| -> Result<T, KeyedError> {
            fault::point("share-taken");
            let mut found = T::default();
            evaluate(bench, shares[index], &mut found)?;
            Ok(found)
        };
        self.spread(shares.len(), keys.len() <= ALONE_KEYS, evaluate, |_, found| take(found))
    }

    /// Has the benches do `count` pieces of work, and calls `take` for each that is done, in no order. What is little is
    /// not worth the start of threads.
    fn spread<T: Send, E: Send>(
        &mut self,
        count: usize,
        is_little: bool,
        work: impl Fn(&mut Bench, usize) -> Result<T, E> + Sync,
        mut take: impl FnMut(usize, T) -> Result<(), E>,
    ) -> Result<(), E> {
        if is_little || count <= 1 {
            let bench = &mut self.benches[0];
            return (0..count).try_for_each(|index| take(index, work(bench, index)?));
        }
        let next = AtomicUsize::new(0);
        let (next, work) = (&next, &work);
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(self.benches.len());
            for bench in self.benches.iter_mut().take(count) {
                let sender = sender.clone();
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count || sender.send((index, work(bench, index))).is_err() {
                            // Nothing is left, or nobody needs the rest.
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
        let mut benches = Benches::new(&[first, second], &results, [].iter(), [].iter()).unwrap();

        // SQLite has no transaction in a transaction, so this one can't be begun again.
        benches.benches.last_mut().unwrap().readers()[1].hold().unwrap();
        assert!(benches.hold().is_err());

        benches.hold().unwrap();
        benches.release();
        benches.hold().unwrap();
    }
}
