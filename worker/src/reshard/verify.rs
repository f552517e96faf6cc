//! Comparing a copy with the data: all that is in the one is in the other, and in the shard of its key.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::copy::{common, joined, readers};
use super::note::CopyNote;
use super::{Move, ReshardError};
use crate::status::reshard::{MoveProgress, MoveStep};
use crate::storage::hash::shard_index;
use crate::storage::shard::{Record, RecordKind, RecordTally, ShardExport, ShardFacts};
use crate::storage::sqlite::SqliteError;

/// A shard on either side.
struct ComparedShard<'a> {
    path: &'a Path,
    log_after: i64,
    /// The place among the shards of the copy; `None` for the data.
    index: Option<usize>,
}

/// Reads both sides anew and compares them.
pub(super) fn verify(data: &Move<'_>, note: &CopyNote, progress: &MoveProgress) -> Result<(), ReshardError> {
    progress.begin(MoveStep::Verifying, 2 * note.rows);
    let (sources, targets) = (data.sources(), data.targets());
    let of_data = sources.iter().zip(&note.log_after).map(|(path, after)| ComparedShard {
        path,
        log_after: *after,
        index: None,
    });
    let of_copy = targets.iter().enumerate().map(|(index, path)| ComparedShard {
        path,
        log_after: 0,
        index: Some(index),
    });
    let sides: Vec<ComparedShard<'_>> = of_data.chain(of_copy).collect();
    let next = AtomicUsize::new(0);
    let read = || -> Result<Vec<(usize, RecordTally, ShardFacts)>, ReshardError> {
        let mut all = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(side) = sides.get(place) else { return Ok(all) };
            let shard = ShardExport::open(side.path)?;
            all.push((place, side.tally(&shard, data, progress)?, shard.facts()?));
        }
    };
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..readers(sides.len())).map(|_| scope.spawn(read)).collect();
        threads.into_iter().map(joined).collect()
    });
    let mut found = Vec::new();
    for outcome in outcomes {
        found.extend(outcome?);
    }
    found.sort_by_key(|(place, ..)| *place);
    let of_copy = found.split_off(sources.len());
    let tally = |side: &[(usize, RecordTally, ShardFacts)]| {
        side.iter().fold(RecordTally::default(), |mut all, (_, tally, _)| {
            all.merge(tally.clone());
            all
        })
    };
    compare(data, &tally(&found), &tally(&of_copy))?;
    let wanted = common(&found.into_iter().map(|(.., facts)| facts).collect::<Vec<_>>());
    for (place, _, facts) in of_copy {
        let last_seq = note.new_last_seqs[place - sources.len()];
        let mut facts = ShardFacts { last_seq: facts.last_seq - last_seq, ..facts };
        facts.topics.sort();
        facts.indexes.sort();
        facts.clocks.sort();
        if facts != wanted {
            let what = format!("shard {} has other offsets, indexes or times", place - sources.len());
            return Err(differs(data, what));
        }
    }
    Ok(())
}

pub(super) fn compare(
    data: &Move<'_>,
    of_data: &RecordTally,
    of_copy: &RecordTally,
) -> Result<(), ReshardError> {
    let names = of_data.of.keys().chain(of_copy.of.keys());
    for name in names {
        let count = |side: &RecordTally| side.of.get(name).copied().unwrap_or_default();
        let ((wanted, sum), (found, found_sum)) = (count(of_data), count(of_copy));
        let (kind, topic) = name;
        let kind = match kind {
            RecordKind::Row => "rows",
            RecordKind::Tombstone => "tombstones",
            RecordKind::Logged => "entries of the change log",
        };
        if wanted != found {
            return Err(differs(
                data,
                format!("topic {topic} has {found} {kind}, and the data has {wanted}"),
            ));
        }
        if sum != found_sum {
            return Err(differs(data, format!("topic {topic} has other {kind} than the data")));
        }
    }
    Ok(())
}

pub(super) fn differs(data: &Move<'_>, what: String) -> ReshardError {
    ReshardError::Differs { path: data.copy_folder().display().to_string(), what }
}

impl ComparedShard<'_> {
    fn tally(
        &self,
        shard: &ShardExport,
        data: &Move<'_>,
        progress: &MoveProgress,
    ) -> Result<RecordTally, ReshardError> {
        let (mut tally, mut rows, mut astray) = (RecordTally::default(), 0, None);
        shard.records::<SqliteError>(self.log_after, |topic, record| {
            if matches!(record, Record::Row { .. }) {
                rows += 1;
                if rows % 1_000 == 0 {
                    progress.add(1_000);
                }
            }
            if self.index.is_some_and(|index| shard_index(record.key(), data.to) != index) {
                astray.get_or_insert_with(|| record.key().to_owned());
            }
            tally.count(topic, &record);
            Ok(())
        })?;
        progress.add(rows % 1_000);
        match (astray, self.index) {
            (Some(key), Some(index)) => {
                Err(differs(data, format!("shard {index} has the key {key:?} of another one")))
            }
            _ => Ok(tally),
        }
    }
}
