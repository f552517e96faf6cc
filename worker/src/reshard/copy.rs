//! Copying the shards of a directory into others: each record goes to the shard of its key, what has no key to all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::note::{self, CopyNote};
use super::{Move, ReshardError};
use crate::status::reshard::{MoveProgress, MoveStep};
use crate::storage::hash::shard_index;
use crate::storage::shard::{Floor, Record, RecordBatch, RecordTally, ShardExport, ShardFacts, ShardImport};
use crate::storage::sqlite::SqliteError;

/// Bytes on their way to all new shards together, at most, beside a record that is larger than its share.
pub(super) const ON_THE_WAY_BYTES: usize = 16 << 20;

/// Page caches of all new shards together.
const CACHES_KIB: i64 = 64 << 10;

/// Rows after which progress is told.
pub(super) const PROGRESS_ROWS: u64 = 1_000;

/// What the data holds.
pub(super) struct DataTally {
    pub(super) records: RecordTally,
    /// What goes into every shard of the copy.
    pub(super) common: ShardFacts,
}

/// All that goes into every new shard.
pub(super) fn common(shards: &[ShardFacts]) -> ShardFacts {
    let mut common = ShardFacts::default();
    for shard in shards {
        for topic in &shard.topics {
            if !common.topics.iter().any(|known| known.eq_ignore_ascii_case(topic)) {
                common.topics.push(topic.clone());
            }
        }
        let new = |index: &&_| !common.indexes.contains(index);
        let indexes: Vec<_> = shard.indexes.iter().filter(new).cloned().collect();
        common.indexes.extend(indexes);
        let new = |clock: &&_| !common.clocks.contains(clock);
        let clocks: Vec<_> = shard.clocks.iter().filter(new).cloned().collect();
        common.clocks.extend(clocks);
        for (name, time) in &shard.times {
            common.times.entry(name.clone()).and_modify(|known| known.merge(*time)).or_insert(*time);
        }
    }
    let mut floors: BTreeMap<(String, usize), Vec<u64>> = BTreeMap::new();
    let mut floor = |stream: &str, next: &[u64]| {
        let known = floors.entry((stream.to_owned(), next.len())).or_insert_with(|| vec![0; next.len()]);
        known.iter_mut().zip(next).for_each(|(known, next)| *known = *next.max(known));
    };
    for kept in shards.iter().flat_map(|shard| &shard.floors) {
        floor(&kept.stream, &kept.next);
    }
    let streams: Vec<&String> = shards.iter().flat_map(|shard| shard.offsets.keys()).collect();
    for stream in streams {
        let next: Vec<u64> =
            shards.iter().map(|shard| shard.offsets.get(stream).copied().unwrap_or_default()).collect();
        let least = next.iter().copied().min().unwrap_or_default();
        common.offsets.insert(stream.clone(), least);
        if next.iter().any(|next| *next > least) {
            floor(stream, &next);
        }
    }
    common.floors = floors.into_iter().map(|((stream, _), next)| Floor { stream, next }).collect();
    common.in_order()
}

/// Copies all there is, which is so many rows; returns what was read as well.
pub(super) fn copy(
    data: &Move<'_>,
    layout_id: String,
    rows: u64,
    progress: &MoveProgress,
) -> Result<(CopyNote, DataTally), ReshardError> {
    let sources = data.sources();
    let source_states = note::states(&sources);
    let shards = sources.iter().map(|path| ShardExport::open(path)).collect::<Result<Vec<_>, _>>()?;
    let facts = shards.iter().map(ShardExport::facts).collect::<Result<Vec<_>, _>>()?;
    drop(shards);
    progress.begin(MoveStep::Copying, rows);
    let applied = data.applied()?;
    let last_seqs: Vec<i64> = facts.iter().map(|facts| facts.last_seq).collect();
    let log_after = note::log_after(&applied, &last_seqs);
    let common = common(&facts);
    let (records, logged) = Copying {
        sources: &sources,
        log_after: &log_after,
        targets: data.targets(),
        common: &common,
        progress,
        next: AtomicUsize::new(0),
    }
    .run()?;
    let note = CopyNote {
        layout_id,
        from: data.layout.shard_count,
        to: data.to,
        from_layout: data.layout.layout_id.clone(),
        lineage: data.layout.lineage.clone(),
        source: source_states,
        applied,
        log_after,
        last_seqs,
        new_last_seqs: logged,
        rows,
        verified_at: None,
    };
    Ok((note, DataTally { records, common }))
}

struct Copying<'a> {
    sources: &'a [PathBuf],
    log_after: &'a [i64],
    targets: Vec<PathBuf>,
    common: &'a ShardFacts,
    progress: &'a MoveProgress,
    /// The source that is read next.
    next: AtomicUsize,
}

/// Why a reader has ended early.
enum ReaderEnd {
    File(SqliteError),
    /// A writer has ended, and says why.
    Closed,
}

impl From<SqliteError> for ReaderEnd {
    fn from(error: SqliteError) -> Self {
        Self::File(error)
    }
}

impl Copying<'_> {
    /// Runs a writer for each target and a few readers; returns what was read, and how many entries the change log of each
    /// target has.
    fn run(&self) -> Result<(RecordTally, Vec<i64>), ReshardError> {
        let readers = readers(self.sources.len());
        let batch_bytes = ON_THE_WAY_BYTES / (self.targets.len() * (readers + 2));
        thread::scope(|scope| {
            let (mut senders, mut writers) = (Vec::new(), Vec::new());
            for target in &self.targets {
                let (sender, receiver) = sync_channel(1);
                senders.push(sender);
                writers.push(scope.spawn(move || self.write(target, &receiver)));
            }
            let readers: Vec<_> = (0..readers)
                .map(|_| {
                    let senders = senders.clone();
                    scope.spawn(move || self.read(&senders, batch_bytes))
                })
                .collect();
            drop(senders);
            let (mut failure, mut tally) = (None, RecordTally::default());
            for reader in readers {
                match joined(reader) {
                    Ok(read) => tally.merge(&read),
                    Err(ReaderEnd::File(error)) => failure = Some(error),
                    Err(ReaderEnd::Closed) => {}
                }
            }
            let written: Vec<Result<i64, SqliteError>> = writers.into_iter().map(joined).collect();
            match failure {
                Some(error) => Err(error.into()),
                None => Ok((tally, written.into_iter().collect::<Result<_, _>>()?)),
            }
        })
    }

    /// Reads sources until there are no more; returns what was read.
    fn read(
        &self,
        senders: &[SyncSender<RecordBatch>],
        batch_bytes: usize,
    ) -> Result<RecordTally, ReaderEnd> {
        let mut tally = RecordTally::default();
        let mut batches: Vec<RecordBatch> = senders.iter().map(|_| RecordBatch::default()).collect();
        let send = |index: usize, batch: &mut RecordBatch| {
            senders[index].send(std::mem::take(batch)).map_err(|_| ReaderEnd::Closed)
        };
        loop {
            let source = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = self.sources.get(source) else { break };
            let mut rows = 0;
            ShardExport::open(path)?.records(self.log_after[source], |topic, record| {
                if matches!(record, Record::Row { .. }) {
                    rows += 1;
                    if rows % PROGRESS_ROWS == 0 {
                        self.progress.add(PROGRESS_ROWS);
                    }
                }
                tally.count(topic, &record);
                let index = shard_index(record.key(), senders.len());
                let batch = &mut batches[index];
                batch.push(self.topic(topic), &record);
                if batch.bytes() >= batch_bytes { send(index, batch) } else { Ok(()) }
            })?;
            self.progress.add(rows % PROGRESS_ROWS);
        }
        batches.iter_mut().enumerate().try_for_each(|(index, batch)| send(index, batch))?;
        Ok(tally)
    }

    /// The index of a topic among all.
    fn topic(&self, name: &str) -> usize {
        let known = self.common.topics.iter().position(|known| known.eq_ignore_ascii_case(name));
        known.expect("the topics of all shards are known")
    }

    fn write(&self, target: &Path, batches: &Receiver<RecordBatch>) -> Result<i64, SqliteError> {
        let cache_kib = cache_kib(self.targets.len());
        let mut logged = 0;
        let topics = &self.common.topics;
        let shard = ShardImport::create(target, topics, cache_kib)?;
        for batch in batches {
            let of_log = batch.iter().filter(|(_, record)| matches!(record, Record::Logged { .. }));
            logged += i64::try_from(of_log.count()).expect("a batch is in memory");
            shard.write(topics, &batch)?;
        }
        shard.finish(self.common)?;
        crate::fault::point("shard-copied");
        Ok(logged)
    }
}

/// The page cache of each of so many new shards.
pub(super) fn cache_kib(shards: usize) -> i64 {
    (CACHES_KIB / i64::try_from(shards).unwrap_or(1)).max(1 << 10)
}

/// Threads that read at once.
pub(super) fn readers(files: usize) -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(files).max(1)
}

pub(super) fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
