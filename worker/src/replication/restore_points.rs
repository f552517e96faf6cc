//! Restore points: how far each file was at one instant, at which no writer wrote. Restored to a restore point, all
//! shards are as they were together; without one each comes back as of a moment of its own. A restore point is taken
//! while the writers rest, and noted in the store once all of it is there: `<incarnation>/cuts.json` has those of the
//! last quarter of an hour.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::FINE_GRAIN_KEPT;

/// How often one is taken.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);

/// How long before a wanted time a restore point may lie. Further back each file's own last moment comes closer.
const GAP_MAX: Duration = Duration::from_secs(60);

/// The restore points of one incarnation, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestorePoints {
    /// Names of the replicated files, in the order of the numbers of each restore point.
    pub(crate) files: Vec<String>,
    #[serde(rename = "cuts")]
    pub(crate) points: VecDeque<RestorePoint>,
}

/// How far all files were at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestorePoint {
    /// Milliseconds since the epoch.
    pub(crate) at: i64,
    /// The last transaction of each file, as Litestream counts them.
    pub(crate) txids: Vec<u64>,
}

impl RestorePoints {
    /// Adds a restore point, and drops those whose transactions can't be told from others any more: Litestream puts
    /// transactions together some time after they were shipped.
    pub(super) fn add(&mut self, point: RestorePoint) {
        let oldest = point.at - milliseconds(FINE_GRAIN_KEPT);
        self.points.retain(|point| point.at >= oldest);
        self.points.push_back(point);
    }

    /// The restore point that a restore to `wanted` takes, in milliseconds since the epoch: the newest that is not
    /// later, if it is near enough.
    pub(super) fn nearest(&self, wanted: i64) -> Option<&RestorePoint> {
        let best = self.points.iter().filter(|point| point.at <= wanted).max_by_key(|point| point.at)?;
        (wanted - best.at <= milliseconds(GAP_MAX)).then_some(best)
    }

    /// The last transaction of a file at one of these restore points.
    pub(super) fn txid(&self, point: &RestorePoint, file: &str) -> Option<u64> {
        let index = self.files.iter().position(|name| name == file)?;
        point.txids.get(index).copied()
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn restore_points(instants: &[i64]) -> RestorePoints {
        let mut points = RestorePoints {
            files: vec!["shard_0.db".to_owned(), "results.db".to_owned()],
            ..RestorePoints::default()
        };
        for at in instants {
            points.add(RestorePoint { at: *at, txids: vec![1, 2] });
        }
        points
    }

    #[test]
    fn the_newest_that_is_not_later_is_taken() {
        let points = restore_points(&[30 * MINUTE, 30 * MINUTE + 10_000, 31 * MINUTE]);
        for (wanted, expected) in [
            (30 * MINUTE - 1, None),
            (30 * MINUTE, Some(0)),
            (30 * MINUTE + 20_000, Some(1)),
            (32 * MINUTE, Some(2)),
            (32 * MINUTE + 1, None),
        ] {
            assert_eq!(
                points.nearest(wanted),
                expected.map(|index: usize| &points.points[index]),
                "{wanted}"
            );
        }
    }

    #[test]
    fn what_was_put_together_with_others_is_forgotten() {
        let points = restore_points(&[MINUTE, 16 * MINUTE, 17 * MINUTE]);
        let left: Vec<i64> = points.points.iter().map(|point| point.at).collect();
        assert_eq!(left, [16 * MINUTE, 17 * MINUTE]);
    }

    #[test]
    fn a_restore_point_knows_its_files() {
        let points = restore_points(&[MINUTE]);
        let txid = |file| points.txid(&points.points[0], file);
        assert_eq!((txid("results.db"), txid("shard_7.db")), (Some(2), None));
    }
}
