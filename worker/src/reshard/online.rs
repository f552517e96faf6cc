//! A move beside a worker that writes the data: the rows of each shard are copied from one cut of it, then the copy
//! follows its change log, round by round, until so little is left that the worker can rest for it.
//!
//! ```text
//! copy ─► catch up ─► verify, at a cut of all shards ─► keep up ─┐ the worker rests ┌─ the rest ─► note ─► switch
//!         └ a crash up to the switch leaves the data as it was   └──────────────────┘
//! ```

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use litejoin_crds::plan::Reshard;

use super::copy::{ON_THE_WAY_BYTES, PROGRESS_ROWS, cache_kib, common};
use super::note::{CopyNote, JoinPlaces};
use super::pace::Pace;
use super::{Move, ReshardError, VerifiedCopy, verify};
use crate::clock;
use crate::fault;
use crate::results::store;
use crate::status::reshard::{MoveProgress, MoveStep};
use crate::storage::hash::shard_index;
use crate::storage::ingest::Ingest;
use crate::storage::layout::{LockedDir, RESULTS_FILE, random_id};
use crate::storage::log::LogHold;
use crate::storage::shard::{
    FollowedChange, Record, RecordBatch, RecordKind, RecordTally, ShardExport, ShardFacts, ShardFollower,
    ShardImport,
};

/// Entries of the change logs that may be left when the worker is to rest: a fraction of a second.
const REST_ENTRIES: u64 = 10_000;

/// Entries that are written at once, over all new shards.
const ROUND_ENTRIES: usize = 4_000;

/// How often a copy that waits catches up.
const KEEP_UP_INTERVAL: Duration = Duration::from_millis(500);

/// A move that is to be made beside a worker.
pub(crate) struct OnlineMove {
    pub(crate) locked: LockedDir,
    pub(crate) consent: Reshard,
    pub(crate) log_hold: LogHold,
    /// The way of messages into the data.
    pub(crate) ingest: Ingest,
    pub(crate) progress: Arc<MoveProgress>,
    /// Closed when the move is called off.
    pub(crate) called_off: Receiver<()>,
}

/// A copy of the data as it was not long ago, which follows it.
pub(crate) struct FollowedCopy {
    locked: LockedDir,
    consent: Reshard,
    log_hold: LogHold,
    progress: Arc<MoveProgress>,
    pace: Pace,
    sources: Vec<PathBuf>,
    targets: Vec<PathBuf>,
    followers: Vec<ShardFollower>,
    /// By shard of the data, the entry of its change log up to which the copy has all.
    followed: Vec<i64>,
    rows: u64,
    verified_at: Option<i64>,
}

/// Whether rows are compared with the data after they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparing {
    No,
    Yes,
}

impl OnlineMove {
    /// Copies the data, catches up, and compares the copy with the data.
    pub(crate) fn stage(self) -> Result<FollowedCopy, ReshardError> {
        let Self { locked, consent, log_hold, ingest, progress, called_off } = self;
        let mut pace = Pace::new(called_off, ingest);
        let data = Move::new(&locked, consent.to)?;
        let outlook = data.plan()?;
        data.remove_copy()?;
        std::fs::create_dir(data.copy_folder()).map_err(data.io("make a folder for the copy"))?;
        let (sources, targets) = (data.sources(), data.targets());
        // Before anything is fixed that is read: what may be trimmed by now is older.
        (0..sources.len()).for_each(|shard| log_hold.keep_after(shard, 0));
        let (followed, rows) = copy(&sources, &targets, outlook.rows, &log_hold, &progress, &mut pace)?;
        data.sync_copy()?;
        fault::point("online-copied");
        let cache_kib = cache_kib(targets.len());
        let followers = targets.iter().map(|path| ShardFollower::open(path, cache_kib));
        let followers = followers.collect::<Result<Vec<_>, _>>()?;
        let mut copy = FollowedCopy {
            locked,
            consent,
            log_hold,
            progress,
            pace,
            sources,
            targets,
            followers,
            followed,
            rows,
            verified_at: None,
        };
        copy.catch_up()?;
        copy.verify()?;
        copy.catch_up()?;
        Ok(copy)
    }
}

/// Copies the rows of all shards, `total` about, each from a cut of its own; returns where those cuts are in the change logs, and the
/// number of rows.
fn copy(
    sources: &[PathBuf],
    targets: &[PathBuf],
    total: u64,
    log_hold: &LogHold,
    progress: &MoveProgress,
    pace: &mut Pace,
) -> Result<(Vec<i64>, u64), ReshardError> {
    let mut facts = Vec::new();
    for path in sources {
        facts.push(ShardExport::open(path)?.facts()?);
        pace.step()?;
    }
    progress.begin(MoveStep::Copying, total);
    let ShardFacts { mut topics, indexes, .. } = common(&facts);
    let cache_kib = cache_kib(targets.len());
    let shards = targets.iter().map(|path| ShardImport::create(path, &topics, cache_kib));
    let shards = shards.collect::<Result<Vec<_>, _>>()?;
    let mut batches: Vec<RecordBatch> = targets.iter().map(|_| RecordBatch::default()).collect();
    let batch_bytes = ON_THE_WAY_BYTES / targets.len();
    let (mut cuts, mut rows) = (Vec::new(), 0);
    for (source, path) in sources.iter().enumerate() {
        let export = ShardExport::open(path)?;
        let cut = export.last_seq()?;
        log_hold.keep_after(source, cut);
        cuts.push(cut);
        export.rows(|name, record| {
            rows += 1;
            if rows % PROGRESS_ROWS == 0 {
                progress.add(PROGRESS_ROWS);
            }
            pace.step()?;
            let known = topics.iter().position(|known| known.eq_ignore_ascii_case(name));
            let topic = known.unwrap_or(topics.len());
            if known.is_none() {
                topics.push(name.to_owned());
                shards.iter().try_for_each(|shard| shard.add_topic(topic, name))?;
            }
            let target = shard_index(record.key(), targets.len());
            let batch = &mut batches[target];
            batch.push(topic, &record);
            if batch.bytes() >= batch_bytes {
                shards[target].write(&topics, &std::mem::take(batch))?;
            }
            Ok::<_, ReshardError>(())
        })?;
    }
    progress.add(rows % PROGRESS_ROWS);
    let facts = ShardFacts { topics: topics.clone(), indexes, ..ShardFacts::default() };
    for (shard, batch) in shards.into_iter().zip(batches) {
        shard.write(&topics, &batch)?;
        pace.step()?;
        shard.finish(&facts)?;
        pace.step()?;
    }
    Ok((cuts, rows))
}

impl FollowedCopy {
    fn data(&self) -> Result<Move<'_>, ReshardError> {
        Move::new(&self.locked, self.consent.to)
    }

    /// How far the move is.
    pub(crate) fn progress(&self) -> &MoveProgress {
        &self.progress
    }

    /// Follows the data in rounds until little is left.
    fn catch_up(&mut self) -> Result<(), ReshardError> {
        let comparing = if self.verified_at.is_some() { Comparing::Yes } else { Comparing::No };
        let mut before = u64::MAX;
        loop {
            let left = self.left()?;
            self.progress.begin(MoveStep::CatchingUp, left);
            // Messages come about as fast as they are followed, or faster.
            self.pace.press(left > before / 4 * 3);
            before = left;
            self.round(comparing)?;
            if left <= REST_ENTRIES {
                self.pace.be_gentle();
                return Ok(());
            }
        }
    }

    /// Follows the data for some time, while the worker can't rest.
    pub(crate) fn keep_up(mut self, time: Duration) -> Result<Self, ReshardError> {
        let began = Instant::now();
        while began.elapsed() < time {
            self.pace.rest(KEEP_UP_INTERVAL)?;
            self.round(Comparing::Yes)?;
        }
        self.catch_up()?;
        Ok(self)
    }

    /// Entries of the change logs that are not followed.
    fn left(&self) -> Result<u64, ReshardError> {
        let mut left = 0;
        for (path, followed) in self.sources.iter().zip(&self.followed) {
            left += ShardExport::open(path)?.last_seq()? - followed;
        }
        Ok(u64::try_from(left).unwrap_or_default())
    }

    /// Follows each shard up to where it is now.
    fn round(&mut self, comparing: Comparing) -> Result<(), ReshardError> {
        let mut facts = Vec::new();
        for source in 0..self.sources.len() {
            let export = ShardExport::open(&self.sources[source])?;
            self.follow(source, &export, comparing)?;
            facts.push(export.facts()?);
        }
        self.keep(&common(&facts))
    }

    /// Keeps topics and indexes that the data has now, and has the disk hold the most of what was written.
    fn keep(&mut self, facts: &ShardFacts) -> Result<(), ReshardError> {
        for follower in &mut self.followers {
            follower.keep(facts)?;
            follower.checkpoint()?;
            self.pace.step()?;
        }
        Ok(())
    }

    /// Follows a shard up to where it is seen.
    fn follow(
        &mut self,
        source: usize,
        export: &ShardExport,
        comparing: Comparing,
    ) -> Result<(), ReshardError> {
        let (after, last) = (self.followed[source], export.last_seq()?);
        let mut batches: Vec<Vec<FollowedChange>> = self.targets.iter().map(|_| Vec::new()).collect();
        let (mut waiting, mut bytes, mut entries) = (0, 0, 0);
        let Self { followers, pace, progress, targets, .. } = self;
        let mut other = None;
        let mut write = |batches: &mut Vec<Vec<FollowedChange>>| -> Result<(), ReshardError> {
            for (follower, batch) in followers.iter_mut().zip(batches) {
                let batch = newest(std::mem::take(batch));
                if batch.is_empty() {
                    continue;
                }
                follower.apply(&batch)?;
                if comparing == Comparing::Yes {
                    other = other.take().or(differing(follower, &batch)?);
                }
                pace.step()?;
            }
            Ok(())
        };
        export.changed(after, |change| {
            (waiting, bytes, entries) = (waiting + 1, bytes + change.bytes(), entries + 1);
            batches[shard_index(change.key(), targets.len())].push(change);
            if waiting >= ROUND_ENTRIES || bytes >= ON_THE_WAY_BYTES {
                progress.add(waiting as u64);
                (waiting, bytes) = (0, 0);
                write(&mut batches)?;
            }
            Ok::<_, ReshardError>(())
        })?;
        progress.add(waiting as u64);
        write(&mut batches)?;
        if entries != last - after {
            let what = format!(
                "the change log of shard {source} has {entries} of {} entries after {after}",
                last - after
            );
            return Err(verify::differs(&self.data()?, what));
        }
        if let Some(row) = other {
            let what = format!("the row {row}, of shard {source}, is another one");
            return Err(verify::differs(&self.data()?, what));
        }
        self.followed[source] = last;
        self.log_hold.keep_after(source, last);
        Ok(())
    }

    /// Compares all rows with those of the data, at one cut of it that is followed exactly.
    fn verify(&mut self) -> Result<(), ReshardError> {
        let exports = self.sources.iter().map(|path| ShardExport::open(path));
        let exports = exports.collect::<Result<Vec<_>, _>>()?;
        for (source, export) in exports.iter().enumerate() {
            self.follow(source, export, Comparing::No)?;
        }
        self.progress.begin(MoveStep::Verifying, 2 * self.rows);
        let mut of_data = RecordTally::default();
        for export in exports {
            self.tally(&export, &mut of_data, None)?;
        }
        let mut of_copy = RecordTally::default();
        for index in 0..self.targets.len() {
            let shard = ShardExport::open(&self.targets[index])?;
            self.tally(&shard, &mut of_copy, Some(index))?;
        }
        verify::compare(&self.data()?, &of_data, &of_copy)?;
        self.rows = of_copy.count_of(RecordKind::Row);
        let now = clock::epoch_seconds();
        self.verified_at = Some(now);
        self.progress.verified(now);
        fault::point("online-verified");
        Ok(())
    }

    /// Counts the rows of a shard; those of the copy belong into the shard of this index.
    fn tally(
        &mut self,
        shard: &ShardExport,
        tally: &mut RecordTally,
        index: Option<usize>,
    ) -> Result<(), ReshardError> {
        let (mut rows, mut astray) = (0, None);
        shard.rows(|topic, record| {
            rows += 1;
            if rows % PROGRESS_ROWS == 0 {
                self.progress.add(PROGRESS_ROWS);
            }
            self.pace.step()?;
            if index.is_some_and(|index| shard_index(record.key(), self.targets.len()) != index) {
                astray.get_or_insert_with(|| record.key().to_owned());
            }
            tally.count(topic, &record);
            Ok::<_, ReshardError>(())
        })?;
        self.progress.add(rows % PROGRESS_ROWS);
        match (astray, index) {
            (Some(key), Some(index)) => {
                let what = format!("shard {index} has the key {key:?} of another one");
                Err(verify::differs(&self.data()?, what))
            }
            _ => Ok(()),
        }
    }

    /// Adds the rest of the data, which no worker writes any more, and puts the copy in its place.
    pub(crate) fn switch(mut self) -> Result<(), ReshardError> {
        self.progress.begin(MoveStep::Switching, self.rows);
        self.pace.hurry();
        let (mut facts, mut exports) = (Vec::new(), Vec::new());
        for source in 0..self.sources.len() {
            let export = ShardExport::open(&self.sources[source])?;
            self.follow(source, &export, Comparing::Yes)?;
            facts.push(export.facts()?);
            exports.push(export);
        }
        let wanted = common(&facts);
        for follower in &mut self.followers {
            follower.keep(&wanted)?;
        }
        self.bury(&exports)?;
        drop(exports);
        fault::point("rest-followed");
        let followers = std::mem::take(&mut self.followers);
        std::thread::scope(|scope| -> Result<(), ReshardError> {
            // Each waits for the disk more than it works.
            let wanted = &wanted;
            let finish = |follower: ShardFollower| scope.spawn(move || follower.finish(wanted));
            let threads: Vec<_> = followers.into_iter().map(finish).collect();
            Ok(threads.into_iter().try_for_each(super::copy::joined)?)
        })?;
        self.compare_facts(&wanted)?;
        let note = self.note(&facts)?;
        let data = self.data()?;
        let results = self.locked.path().join(RESULTS_FILE);
        if results.exists() {
            store::note_layout(&results, &note.layout_id, &note.joins())?;
        }
        fault::point("rest-verified");
        data.switch(VerifiedCopy { note }, self.consent.keep_old_layout)
    }

    /// Copies all tombstones, and counts them.
    fn bury(&mut self, exports: &[ShardExport]) -> Result<(), ReshardError> {
        let mut batches: Vec<Vec<(String, Record)>> = self.targets.iter().map(|_| Vec::new()).collect();
        let (mut waiting, mut of_data) = (0, RecordTally::default());
        for export in exports {
            export.tombstones(|topic, record| {
                of_data.count(topic, &record);
                batches[shard_index(record.key(), self.targets.len())]
                    .push((topic.to_owned(), record.to_owned()));
                waiting += 1;
                if waiting < ROUND_ENTRIES {
                    return Ok(());
                }
                waiting = 0;
                self.followers
                    .iter_mut()
                    .zip(&mut batches)
                    .try_for_each(|(follower, batch)| follower.bury(&std::mem::take(batch)))
            })?;
        }
        let mut of_copy = RecordTally::default();
        for ((follower, batch), target) in self.followers.iter_mut().zip(&batches).zip(&self.targets) {
            follower.bury(batch)?;
            ShardExport::open(target)?.tombstones(|topic, record| {
                of_copy.count(topic, &record);
                Ok::<_, ReshardError>(())
            })?;
        }
        verify::compare(&self.data()?, &of_data, &of_copy)
    }

    /// Compares all that has no key, as it lies on the disk.
    fn compare_facts(&self, wanted: &ShardFacts) -> Result<(), ReshardError> {
        for (index, target) in self.targets.iter().enumerate() {
            if ShardExport::open(target)?.facts()?.in_order() != *wanted {
                let what = format!("shard {index} has other offsets, indexes or times");
                return Err(verify::differs(&self.data()?, what));
            }
        }
        Ok(())
    }

    /// The note of a copy whose change logs are empty: joins that have applied all of the data go on with it.
    fn note(&self, facts: &[ShardFacts]) -> Result<CopyNote, ReshardError> {
        let data = self.data()?;
        let last_seqs: Vec<i64> = facts.iter().map(|facts| facts.last_seq).collect();
        let applied: JoinPlaces = data.applied()?;
        Ok(CopyNote {
            layout_id: random_id(),
            from: self.consent.from,
            to: self.consent.to,
            from_layout: data.layout.layout_id.clone(),
            lineage: data.layout.lineage.clone(),
            source: Vec::new(),
            applied,
            log_after: last_seqs.clone(),
            last_seqs,
            new_last_seqs: vec![0; self.consent.to],
            rows: self.rows,
            verified_at: self.verified_at,
        })
    }
}

/// The last change of each row, in the order of the changes.
fn newest(mut changes: Vec<FollowedChange>) -> Vec<FollowedChange> {
    let mut is_newest = {
        let mut seen = HashSet::with_capacity(changes.len());
        let newest = changes.iter().rev().map(|change| seen.insert((change.topic(), change.key())));
        newest.collect::<Vec<_>>()
    };
    changes.retain(|_| is_newest.pop().expect("there is one for each"));
    changes
}

/// Names a row that is not as the last change of it says.
fn differing(follower: &ShardFollower, changes: &[FollowedChange]) -> Result<Option<String>, ReshardError> {
    for change in changes {
        if follower.row(change.topic(), change.key())? != change.row {
            return Ok(Some(format!("{:?} of topic {}", change.key(), change.topic())));
        }
    }
    Ok(None)
}
