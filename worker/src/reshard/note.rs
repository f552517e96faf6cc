//! The note beside a copy: of which data it is, and whether it was found to be whole.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::storage::layout::replace;
use crate::storage::sqlite;

const FILE: &str = "copy.json";

/// How far each join is in the shards, by its number; `None` where its results have to be evaluated anew.
pub(super) type JoinPlaces = BTreeMap<i64, Option<Vec<i64>>>;

/// A file of the data as it was last written; any write makes it another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FileState {
    bytes: u64,
    /// In nanoseconds since the epoch, as are all times here.
    modified: i128,
    wal_bytes: u64,
    wal_modified: i128,
}

/// A copy of the data in other shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CopyNote {
    /// The layout that the copy is to be.
    pub(super) layout_id: String,
    pub(super) from: usize,
    pub(super) to: usize,
    /// The layout and lineage of the data.
    pub(super) from_layout: String,
    pub(super) lineage: String,
    /// The shards of the data.
    pub(super) source: Vec<FileState>,
    /// How far joins were.
    pub(super) applied: JoinPlaces,
    /// By shard of the data, the entry of its change log after which the copy has all of them.
    pub(super) log_after: Vec<i64>,
    /// By shard of the data, the newest entry of its change log.
    pub(super) last_seqs: Vec<i64>,
    /// By shard of the copy, the same.
    pub(super) new_last_seqs: Vec<i64>,
    /// Rows of all topics.
    pub(super) rows: u64,
    /// When the copy was found to be whole, in seconds since the epoch.
    pub(super) verified_at: Option<i64>,
}

impl CopyNote {
    /// Reads the note of a folder; one that can't be read is none.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()
    }

    pub(super) fn write(&self, folder: &Path) -> std::io::Result<()> {
        replace(folder, FILE, &serde_json::to_vec_pretty(self).expect("plain values are always JSON"))
    }

    /// How far joins are in the shards of the copy, those that can go on there.
    pub(super) fn joins(&self) -> BTreeMap<i64, Vec<i64>> {
        let carried: i64 = self.new_last_seqs.iter().sum();
        let behind: i64 = self.last_seqs.iter().zip(&self.log_after).map(|(last, after)| last - after).sum();
        let place = |seqs: &Vec<i64>| {
            if *seqs == self.last_seqs {
                Some(self.new_last_seqs.clone())
            } else if *seqs == self.log_after && carried == behind {
                // The log of the copy begins where they are.
                Some(vec![0; self.to])
            } else {
                None
            }
        };
        self.applied.iter().filter_map(|(join, seqs)| Some((*join, place(seqs.as_ref()?)?))).collect()
    }
}

/// By shard, the entry of the change log after which some join still needs all of them.
pub(super) fn log_after(applied: &JoinPlaces, last_seqs: &[i64]) -> Vec<i64> {
    let usable = applied.values().flatten().filter(|seqs| {
        seqs.len() == last_seqs.len() && seqs.iter().zip(last_seqs).all(|(seq, last)| seq <= last)
    });
    usable.fold(last_seqs.to_vec(), |after, seqs| {
        after.into_iter().zip(seqs).map(|(after, seq)| after.min(*seq)).collect()
    })
}

/// The states of files; those of a file that is not there are zero.
pub(super) fn states(paths: &[PathBuf]) -> Vec<FileState> {
    let of = |path: &Path| {
        let metadata = std::fs::metadata(path).ok();
        metadata.map_or((0, 0), |metadata| {
            let seconds = i128::from(metadata.mtime()) * 1_000_000_000;
            (metadata.len(), seconds + i128::from(metadata.mtime_nsec()))
        })
    };
    let state = |path: &PathBuf| {
        let (bytes, modified) = of(path);
        let (wal_bytes, wal_modified) = match of(&sqlite::beside(path, "-wal")) {
            // Whoever reads makes one where there is none.
            (0, _) => (0, 0),
            wal => wal,
        };
        FileState { bytes, modified, wal_bytes, wal_modified }
    };
    paths.iter().map(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A copy of two shards, of which the log of the first was carried over from 3 to 5, in three shards.
    fn note(applied: &[(i64, Option<&[i64]>)]) -> CopyNote {
        let applied = applied.iter().map(|(join, seqs)| (*join, seqs.map(<[i64]>::to_vec))).collect();
        let last_seqs = vec![5, 7];
        CopyNote {
            layout_id: "new".to_owned(),
            from: 2,
            to: 3,
            from_layout: "old".to_owned(),
            lineage: "l".to_owned(),
            source: Vec::new(),
            log_after: log_after(&applied, &last_seqs),
            applied,
            last_seqs,
            new_last_seqs: vec![1, 0, 1],
            rows: 0,
            verified_at: None,
        }
    }

    #[test]
    fn joins_go_on_where_they_are_known_to_be() {
        let note = note(&[
            (1, Some(&[5, 7])),
            (2, Some(&[3, 7])),
            (3, Some(&[4, 7])),
            (4, None),
            (5, Some(&[9, 9])),
            (6, Some(&[5])),
        ]);
        assert_eq!(note.log_after, [3, 7]);
        let (current, behind) = (vec![1, 0, 1], vec![0, 0, 0]);
        assert_eq!(note.joins(), [(1, current), (2, behind)].into(), "the others are evaluated in full");
    }

    #[test]
    fn a_join_whose_log_was_trimmed_is_evaluated_in_full() {
        let all = note(&[(1, Some(&[5, 7])), (2, Some(&[3, 7]))]);
        let note = CopyNote { new_last_seqs: vec![1, 0, 0], ..all };
        assert_eq!(note.joins(), [(1, vec![1, 0, 0])].into());
    }
}
