//! Exact cuts: how far each file was at one instant, at which nobody wrote. Restored as of a cut, all shards are as they
//! were together; without one each comes back as of a moment of its own. A cut is taken while the writers rest,
//! and noted in the store once all of it is there: `<incarnation>/cuts.json` has the last quarter of an hour.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::FINE_GRAIN_KEPT;

/// How often one is taken.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);

/// How long before a wanted time a cut may lie. Further back each file's own last moment comes closer.
const GAP_MAX: Duration = Duration::from_secs(60);

/// The cuts of one incarnation, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cuts {
    /// Names of the replicated files, in the order of the numbers of each cut.
    pub(crate) files: Vec<String>,
    pub(crate) cuts: VecDeque<Cut>,
}

/// One instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cut {
    /// Milliseconds since the epoch.
    pub(crate) at: i64,
    /// The last transaction of each file, as Litestream counts them.
    pub(crate) txids: Vec<u64>,
}

impl Cuts {
    /// Adds one, and drops those whose transactions can't be told from others any more: Litestream puts them together
    /// some time after they were shipped.
    pub(super) fn add(&mut self, cut: Cut) {
        let oldest = cut.at - milliseconds(FINE_GRAIN_KEPT);
        self.cuts.retain(|cut| cut.at >= oldest);
        self.cuts.push_back(cut);
    }

    /// The one that a restore to `wanted` takes, in milliseconds since the epoch: the newest that is not later, if it is
    /// near enough.
    pub(super) fn nearest(&self, wanted: i64) -> Option<&Cut> {
        let best = self.cuts.iter().filter(|cut| cut.at <= wanted).max_by_key(|cut| cut.at)?;
        (wanted - best.at <= milliseconds(GAP_MAX)).then_some(best)
    }

    /// The last transaction of a file in one of these cuts.
    pub(super) fn txid(&self, cut: &Cut, file: &str) -> Option<u64> {
        let index = self.files.iter().position(|name| name == file)?;
        cut.txids.get(index).copied()
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn cuts(instants: &[i64]) -> Cuts {
        let mut cuts =
            Cuts { files: vec!["shard_0.db".to_owned(), "results.db".to_owned()], ..Cuts::default() };
        for at in instants {
            cuts.add(Cut { at: *at, txids: vec![1, 2] });
        }
        cuts
    }

    #[test]
    fn the_newest_that_is_not_later_is_taken() {
        let cuts = cuts(&[30 * MINUTE, 30 * MINUTE + 10_000, 31 * MINUTE]);
        for (wanted, expected) in [
            (30 * MINUTE - 1, None),
            (30 * MINUTE, Some(0)),
            (30 * MINUTE + 20_000, Some(1)),
            (32 * MINUTE, Some(2)),
            (32 * MINUTE + 1, None),
        ] {
            assert_eq!(cuts.nearest(wanted), expected.map(|index: usize| &cuts.cuts[index]), "{wanted}");
        }
    }

    #[test]
    fn what_was_put_together_with_others_is_forgotten() {
        let cuts = cuts(&[MINUTE, 16 * MINUTE, 17 * MINUTE]);
        let left: Vec<i64> = cuts.cuts.iter().map(|cut| cut.at).collect();
        assert_eq!(left, [16 * MINUTE, 17 * MINUTE]);
    }

    #[test]
    fn a_cut_knows_its_files() {
        let cuts = cuts(&[MINUTE]);
        let txid = |file| cuts.txid(&cuts.cuts[0], file);
        assert_eq!((txid("results.db"), txid("shard_7.db")), (Some(2), None));
    }
}
