//! Comparing a copy with the data: all that is in the one is in the other, and in the shard of its key.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::copy::{DataTally, common, joined, readers};
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

/// What a shard holds.
type ReadShard = (RecordTally, ShardFacts);

/// Reads the copy, and the data where it is not known what that holds, and compares them.
pub(super) fn verify(
    data: &Move<'_>,
    note: &CopyNote,
    of_data: Option<DataTally>,
    progress: &MoveProgress,
) -> Result<(), ReshardError> {
    let sources = if of_data.is_some() { Vec::new() } else { data.sources() };
    let targets = data.targets();
    progress.begin(MoveStep::Verifying, if of_data.is_some() { note.rows } else { 2 * note.rows });
    let of_sources = sources.iter().zip(&note.log_after).map(|(path, after)| ComparedShard {
        path,
        log_after: *after,
        index: None,
    });
    let of_targets = targets.iter().enumerate().map(|(index, path)| ComparedShard {
        path,
        log_after: 0,
        index: Some(index),
    });
    let sides: Vec<ComparedShard<'_>> = of_sources.chain(of_targets).collect();
    let mut found = read(&sides, data, progress)?;
    let of_copy = found.split_off(sources.len());
    let of_data = of_data.unwrap_or_else(|| DataTally {
        records: whole(&found),
        common: common(&found.into_iter().map(|(_, facts)| facts).collect::<Vec<_>>()),
    });
    compare(data, &of_data.records, &whole(&of_copy))?;
    for (place, (_, facts)) in of_copy.into_iter().enumerate() {
        let facts = ShardFacts { last_seq: facts.last_seq - note.new_last_seqs[place], ..facts };
        if facts.in_order() != of_data.common {
            let what = format!("shard {place} has other offsets, indexes or times");
            return Err(differs(data, what));
        }
    }
    Ok(())
}

/// What some shards hold together.
fn whole(shards: &[ReadShard]) -> RecordTally {
    let mut whole = RecordTally::default();
    shards.iter().for_each(|(tally, _)| whole.merge(tally));
    whole
}

/// Reads shards, several at once.
fn read(
    sides: &[ComparedShard<'_>],
    data: &Move<'_>,
    progress: &MoveProgress,
) -> Result<Vec<ReadShard>, ReshardError> {
    let next = AtomicUsize::new(0);
    let read = || -> Result<Vec<(usize, ReadShard)>, ReshardError> {
        let mut all = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(side) = sides.get(place) else { return Ok(all) };
            let shard = ShardExport::open(side.path)?;
            all.push((place, (side.tally(&shard, data, progress)?, shard.facts()?)));
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
    found.sort_by_key(|(place, _)| *place);
    Ok(found.into_iter().map(|(_, shard)| shard).collect())
}

pub(super) fn compare(
    data: &Move<'_>,
    of_data: &RecordTally,
    of_copy: &RecordTally,
) -> Result<(), ReshardError> {
    for (name, _) in of_data.iter().chain(of_copy.iter()) {
        let (of_data, of_copy) = (of_data.get(name), of_copy.get(name));
        let (wanted, found) = (of_data.count, of_copy.count);
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
        if of_data.sum != of_copy.sum {
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
