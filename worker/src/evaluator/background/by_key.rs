//! Evaluation key by key in the background, of a join whose query fails over all rows: the keys of the rows that fail are
//! found, their stored results stay as they were, and all other results are brought up to the cut.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rusqlite::params;

use super::{EpochError, RunningJob};
use crate::join::budget::STEPS_MAX;
use crate::join::changes::ShardChanges;
use crate::join::full::FullError;
use crate::join::keyed::{AffectedKey, Evaluated, FailingKeys, KEYS_MAX, KeyedError, KeyedJoin};
use crate::join::plan::{Class, ClockUse};
use crate::join::value::Value;
use crate::join::workspace::Workspace;
use crate::results::event::Emit;
use crate::results::failing::FAILING_KEYS_MAX;
use crate::storage::gate::Cut;
use crate::storage::log::{LoggedChange, ShardReader};
use crate::storage::sqlite::{self, SqliteError};
use crate::storage::topics::TopicId;

/// Rows, and stored results, whose keys are evaluated together.
const ROWS_AT_ONCE: usize = 1_024;

/// Keys that fail, while none does not, after which the query is taken to fail for all.
const ALL_FAIL_AFTER: usize = 1_000;

/// Why the evaluation ends before all keys are.
enum PassEnd {
    Failed(EpochError),
    /// The join can't be evaluated key by key.
    GiveUp,
}

impl<E: Into<EpochError>> From<E> for PassEnd {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The evaluation, as far as it has come.
struct KeyPass<'j> {
    job: &'j RunningJob,
    join: &'j KeyedJoin,
    cut: Cut,
    workspace: Workspace,
    /// Keys that were evaluated.
    seen: HashSet<Value>,
    failed: usize,
    has_stored: bool,
}

impl RunningJob {
    /// Evaluates the join key by key at a cut of its own. Returns `false` if it can't be, so that all of it fails.
    pub(super) fn evaluate_by_key(&mut self, at: &mut Option<Cut>) -> Result<bool, EpochError> {
        let evaluator = Arc::clone(&self.evaluator);
        let plan = match &self.join().class {
            Class::Keyed(plan) => plan.clone(),
            Class::Accumulated(plan) => match &plan.otherwise {
                Ok(plan) => plan.clone(),
                Err(_) => return Ok(false),
            },
            Class::Full(_) => return Ok(false),
        };
        let topic_id = |name: &str| evaluator.topics.declare(name);
        let join = KeyedJoin::new(self.join().clone(), self.job.id, plan, topic_id);
        let open = || -> Result<Vec<ShardReader>, SqliteError> {
            evaluator.shard_paths.iter().map(|path| ShardReader::open(path)).collect()
        };
        let scanners = open()?;
        let results = sqlite::open_reader(evaluator.reader.path())?;
        let memory = sqlite::open_memory()?;
        let joins = std::iter::once(&join);
        let workspace = Workspace::new(memory, open()?, results, std::iter::empty(), joins, STEPS_MAX)?;
        let cut = evaluator.gate.cut(|| {
            scanners.iter().try_for_each(ShardReader::hold)?;
            workspace.hold()
        })?;
        *at = Some(cut.clone());
        self.moment = (self.join().clock != ClockUse::Unread).then(|| evaluator.clock.now());
        let (seen, has_stored) = (HashSet::new(), false);
        let mut pass = KeyPass { job: self, join: &join, cut, workspace, seen, failed: 0, has_stored };
        match pass.run(&scanners) {
            Ok(()) => {
                self.is_by_key = true;
                Ok(true)
            }
            Err(PassEnd::GiveUp) => Ok(false),
            Err(PassEnd::Failed(error)) => Err(error),
        }
    }
}

impl KeyPass<'_> {
    fn run(&mut self, scanners: &[ShardReader]) -> Result<(), PassEnd> {
        let evaluator = Arc::clone(&self.job.evaluator);
        for (shard, scanner) in scanners.iter().enumerate() {
            for topic in self.join.key_topics() {
                self.scan(shard, scanner, topic)?;
            }
        }
        let mut after = String::new();
        loop {
            let stored: Vec<String> = evaluator.reader.doing("read stored results", |connection| {
                connection
                    .prepare_cached(
                        "SELECT key FROM results WHERE join_id = ?1 AND key > ?2 ORDER BY key LIMIT ?3",
                    )?
                    .query_map(params![self.job.job.id.0, after, ROWS_AT_ONCE], |row| row.get(0))?
                    .collect()
            })?;
            let Some(last) = stored.last() else { break };
            after.clone_from(last);
            self.evaluate(stored.iter().filter_map(|key| Value::from_json(key)))?;
        }
        self.end()
    }

    /// Evaluates the results that the rows of a topic in a shard belong to.
    fn scan(&mut self, shard: usize, scanner: &ShardReader, topic: TopicId) -> Result<(), PassEnd> {
        let name = self.job.evaluator.topics.name(topic);
        let mut part = ShardChanges::default();
        scanner.rows::<PassEnd>(&name, |row| {
            part.add(&LoggedChange {
                topic,
                key: row.key,
                old: None,
                old_timestamp: 0,
                new: Some(row.payload),
                timestamp: row.timestamp,
                change: row.change,
                expired: false,
            });
            if part.len() < ROWS_AT_ONCE {
                return Ok(());
            }
            self.take_rows(shard, &std::mem::take(&mut part))
        })?;
        self.take_rows(shard, &part)
    }

    fn take_rows(&mut self, shard: usize, rows: &ShardChanges) -> Result<(), PassEnd> {
        let keys = self.workspace.affected(self.join, shard, rows, None, KEYS_MAX).map_err(ended_by)?;
        self.evaluate(keys.into_keys())
    }

    /// Evaluates those of the keys that were not, and stores what differs.
    fn evaluate(&mut self, keys: impl Iterator<Item = Value>) -> Result<(), PassEnd> {
        let seen = &mut self.seen;
        let mut keys: Vec<AffectedKey> = keys
            .filter(|value| seen.insert(value.clone()))
            .map(|value| AffectedKey { value, emit: Emit::Event })
            .collect();
        keys.sort_unstable();
        let mut found = Evaluated::default();
        for share in keys.chunks(ROWS_AT_ONCE) {
            let now = self.job.moment.unwrap_or_default();
            self.workspace
                .evaluate(self.join, now, share, None, &FailingKeys::new(), &mut found)
                .map_err(ended_by)?;
        }
        self.failed += found.failed.len();
        let all_fail = self.failed >= ALL_FAIL_AFTER && self.failed == self.seen.len();
        if self.failed > FAILING_KEYS_MAX || all_fail {
            return Err(PassEnd::GiveUp);
        }
        if self.job.evaluator.cancelled.load(Ordering::Relaxed) {
            return Err(FullError::Cancelled.into());
        }
        if found.changes.is_empty() && found.failed.is_empty() {
            return Ok(());
        }
        self.store(&found)
    }

    fn store(&mut self, found: &Evaluated) -> Result<(), PassEnd> {
        let (committer, id) = (&self.job.evaluator.committer, self.job.job.id);
        let is_first = !std::mem::replace(&mut self.has_stored, true);
        committer.commit::<EpochError>(self.cut.epoch, |writer| {
            self.job.begin(writer)?;
            if is_first {
                writer.mend_all(id)?;
            }
            writer.store(id, &found.changes)?;
            for (value, error) in &found.failed {
                for key in value.json_spellings() {
                    writer.fail(id, &key, error)?;
                }
            }
            Ok(())
        })?;
        committer.status().join(&self.join.join.name).results_changed.add(found.changes.len() as u64);
        committer.give_way();
        Ok(())
    }

    /// Stores that the results contain the cut.
    fn end(&self) -> Result<(), PassEnd> {
        let id = self.job.job.id;
        self.job.evaluator.committer.commit::<EpochError>(self.cut.epoch, |writer| {
            if !self.has_stored {
                writer.mend_all(id)?;
            }
            if self.job.job.accumulates {
                writer.forget_accumulators(id)?;
            }
            Ok(writer.applied(id, &self.cut.seqs, self.job.moment, false)?)
        })?;
        Ok(())
    }
}

/// Errors of files are tried again; all others are of the query or its data.
fn ended_by(error: KeyedError) -> PassEnd {
    match error {
        KeyedError::File(error) => error.into(),
        KeyedError::Memory(error) => error.into(),
        _ => PassEnd::GiveUp,
    }
}
