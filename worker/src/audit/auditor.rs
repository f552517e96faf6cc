//! When a worker compares its stored results: one join at a time, on request, and in the background while no message
//! arrives. Differences are logged as an error, and the join is evaluated again unless repair is switched off.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use litejoin_crds::error::chain;
use litejoin_crds::plan;
use tokio::sync::watch;
use tracing::{debug, error, warn};

use super::{AuditError, Files, Finding, compare};
use crate::blocking::blocking;
use crate::clock;
use crate::evaluator::Repairs;
use crate::join::CheckedJoin;
use crate::join::plan::ClockUse;
use crate::status::Status;
use crate::status::audit::Compared;
use crate::storage::gate::EpochGate;

/// How often the background audit checks whether a message has arrived.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Compares stored results of the running joins.
pub(crate) struct Auditor {
    files: Files,
    gate: Arc<EpochGate>,
    status: Arc<Status>,
    repairs: Arc<Repairs>,
    joins: RwLock<Arc<[CheckedJoin]>>,
    policy: Mutex<plan::Audit>,
    /// Held during an audit.
    turn: tokio::sync::Mutex<()>,
}

/// Sets the flag when dropped.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Auditor {
    pub(crate) fn new(
        files: Files,
        gate: Arc<EpochGate>,
        status: Arc<Status>,
        repairs: Arc<Repairs>,
        joins: &[CheckedJoin],
        policy: plan::Audit,
    ) -> Self {
        Self {
            files,
            gate,
            status,
            repairs,
            joins: RwLock::new(joins.into()),
            policy: Mutex::new(policy),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Replaces the joins after a reload.
    pub(crate) fn follow(&self, joins: &[CheckedJoin], policy: plan::Audit) {
        *self.joins.write().unwrap_or_else(PoisonError::into_inner) = joins.into();
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// Returns the running joins.
    pub(crate) fn joins(&self) -> Arc<[CheckedJoin]> {
        Arc::clone(&self.joins.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Compares the results of one join; dropping the future cancels the audit. Returns `None` if the join no longer
    /// runs.
    pub(crate) async fn audit(&self, name: &str) -> Option<Finding> {
        let _turn = self.turn.lock().await;
        let joins = self.joins();
        let index = joins.iter().position(|join| join.name == name)?;
        let changes = self.status.changes_of(&joins[index].topics);
        let cancel = Cancel(Arc::default());
        let (files, cancelled) = (self.files.clone(), Arc::clone(&cancel.0));
        let started = Instant::now();
        let outcome = blocking(move || compare(&joins[index], &joins, &files, &cancelled)).await;
        let mut finding = finding(name, outcome, started);
        if finding.differences > 0 {
            finding.repairing = self.policy.lock().unwrap_or_else(PoisonError::into_inner).repair;
            error!(
                join = name,
                differences = finding.differences,
                results = finding.results,
                keys = finding.keys.join(", "),
                repairing = finding.repairing,
                "an audit found stored results that differ from what the query yields"
            );
        } else if let Some(error) = &finding.error {
            warn!(join = name, error, "could not audit a join");
        } else {
            debug!(join = name, results = finding.results, skipped = finding.skipped, "audited a join");
        }
        self.note(&finding, changes);
        if finding.repairing {
            self.repairs.ask(name);
            self.gate.ring();
        }
        Some(finding)
    }

    /// Audits joins one by one while no message arrives, until `stopping`. A join without differences is skipped until
    /// one of its topics changes.
    pub(crate) async fn watch(&self, policy: plan::Audit, mut stopping: watch::Receiver<bool>) {
        let mut committed = self.gate.committed();
        let (mut quiet_since, mut last) = (Instant::now(), None::<Instant>);
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                _ = stopping.wait_for(|stopping| *stopping) => return,
            }
            let now = self.gate.committed();
            if now != committed || self.is_behind() {
                (committed, quiet_since) = (now, Instant::now());
                continue;
            }
            let is_early = last.is_some_and(|last| last.elapsed() < policy.interval);
            if is_early || quiet_since.elapsed() < policy.idle_after {
                continue;
            }
            let Some(name) = self.next() else { continue };
            tokio::select! {
                _ = self.audit(&name) => last = Some(Instant::now()),
                () = self.written(&committed) => debug!(join = name, "there is work again; the audit waits"),
                _ = stopping.wait_for(|stopping| *stopping) => return,
            }
        }
    }

    /// Returns whether any join has changes left to evaluate.
    fn is_behind(&self) -> bool {
        let applied = u64::try_from(self.status.epoch_applied.value()).unwrap_or_default();
        applied + 1 < self.gate.next_epoch()
    }

    /// Returns the join with the oldest audit among those that may have changed since.
    fn next(&self) -> Option<String> {
        let joins = self.joins();
        let due = joins.iter().filter(|join| join.clock != ClockUse::System).filter_map(|join| {
            let status = self.status.find_join(&join.name)?;
            let tried_at = status.audit.is_due(self.status.changes_of(&join.topics))?;
            Some((tried_at, &join.name))
        });
        due.min().map(|(_, name)| name.clone())
    }

    fn note(&self, finding: &Finding, changes: u64) {
        let Some(status) = self.status.find_join(&finding.join) else { return };
        let now = clock::epoch_seconds();
        match finding.skipped.as_ref().or(finding.error.as_ref()) {
            Some(problem) => status.audit.failed(problem.clone(), now),
            None => {
                let Finding { results, differences, seconds, .. } = *finding;
                status.audit.compared(Compared { results, differences, seconds }, changes, now);
            }
        }
    }

    /// Waits until a message is committed.
    async fn written(&self, committed: &[i64]) {
        while self.gate.committed() == committed {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

impl Files {
    /// Returns the files of a running worker.
    pub(crate) fn new(shards: Vec<PathBuf>, results: PathBuf, scratch_folder: PathBuf) -> Self {
        Self { shards, results, scratch: scratch_folder.join("audit.db") }
    }
}

/// Returns the finding of an audit that began at `started`.
pub(crate) fn finding(name: &str, outcome: Result<Finding, AuditError>, started: Instant) -> Finding {
    let seconds = started.elapsed().as_secs_f64();
    let (mut skipped, mut error) = (None, None);
    let found = match outcome {
        Ok(finding) => return Finding { seconds, ..finding },
        Err(AuditError::Skipped(why)) => {
            skipped = Some(why.to_string());
            Finding::default()
        }
        Err(failed) => {
            error = Some(chain(&failed));
            Finding::default()
        }
    };
    Finding { join: name.to_owned(), seconds, skipped, error, ..found }
}
