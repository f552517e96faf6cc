//! The retention cleaner: readers find rows that are too old, writers remove them. The change log says of such an
//! entry that it expired, so results that leave with it can do so without an event.
//!
//! A pass takes a few hundred rows a shard, so no writer is held up for long.

use std::path::PathBuf;
use std::time::Duration;

use litejoin_crds::error::chain;
use litejoin_crds::plan::Retention;
use tracing::warn;

use super::expiry::{Expired, Expiry, NeededRows};
use super::ingest::Ingest;
use super::log::ShardReader;
use super::sqlite::SqliteError;
use super::topics::TopicId;
use super::writer::WriterCommand;

/// Rows that one pass removes from a topic of one shard at most.
const ROWS_PER_PASS_MAX: usize = 500;

/// Returns the rows that are needed at present.
pub(crate) type Needed = Box<dyn Fn() -> Result<Vec<NeededRows>, SqliteError> + Send>;

/// Looks for expired rows and has them removed.
pub(crate) struct Cleaner {
    retention: Retention,
    needed: Needed,
    shard_paths: Vec<PathBuf>,
    ingest: Ingest,
    /// By shard: topics in which nothing is due before the time beside them, so that they need not be read.
    oldest: Vec<Vec<(TopicId, i64)>>,
}

impl Cleaner {
    pub(crate) fn new(
        retention: Retention,
        needed: Needed,
        shard_paths: Vec<PathBuf>,
        ingest: Ingest,
    ) -> Self {
        let oldest = vec![Vec::new(); shard_paths.len()];
        Self { retention, needed, shard_paths, ingest, oldest }
    }

    /// Removes everything that is due at `now`, pass by pass, until nothing is or `stopping` says so.
    pub(crate) fn clean(&mut self, now: i64, stopping: impl Fn() -> bool) {
        while !stopping() {
            match self.pass(now) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    warn!(error = chain(&error), "could not look for expired rows; trying again later");
                    return;
                }
            }
        }
    }

    /// Returns whether there may be more to do.
    fn pass(&mut self, now: i64) -> Result<bool, SqliteError> {
        let tombstones_before = now - seconds(self.retention.tombstone_duration);
        let needed = (self.needed)()?;
        let mut due = false;
        let mut more = false;
        let mut found = Vec::with_capacity(self.shard_paths.len());
        for (shard_path, oldest) in self.shard_paths.iter().zip(&mut self.oldest) {
            let reader = ShardReader::open(shard_path)?;
            due |= reader.has_tombstones_before(tombstones_before)?;
            let mut candidates = Vec::new();
            for (topic, name) in self.ingest.topics.all() {
                let Some(age) = self.retention.of(&name) else { continue };
                let before = now - seconds(age);
                if oldest.iter().any(|(known, oldest)| *known == topic && *oldest >= before) {
                    continue;
                }
                let (keys, oldest_kept) = reader.expired(&name, before, &needed, ROWS_PER_PASS_MAX)?;
                oldest.retain(|(known, _)| *known != topic);
                if keys.is_empty() {
                    // Rows that arrive later are no older than now, unless they carry a time of their own.
                    oldest.push((topic, oldest_kept.unwrap_or(now).min(before + RECHECK_SECONDS)));
                } else {
                    more |= keys.len() == ROWS_PER_PASS_MAX;
                    due = true;
                    candidates.push(Expired { topic, before, keys });
                }
            }
            found.push(candidates);
        }
        if !due {
            return Ok(false);
        }
        let (done, finished) = std::sync::mpsc::channel();
        let quiet = !self.retention.emit_expiry;
        let commands = found
            .into_iter()
            .map(|candidates| {
                let done = done.clone();
                WriterCommand::Expire(Expiry { candidates, tombstones_before, quiet, done })
            })
            .collect();
        drop(done);
        if !self.ingest.command_all(commands) {
            return Ok(false);
        }
        // Until every writer has let go of its end.
        while finished.recv().is_ok() {}
        Ok(more)
    }
}

/// A topic is read again after this many seconds at the latest, for messages that brought an old time along.
const RECHECK_SECONDS: i64 = 600;

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
