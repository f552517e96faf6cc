//! The status of audits: comparisons of a join's stored results with what its query yields.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

/// The last audits of one join.
#[derive(Debug, Default)]
pub(crate) struct AuditStatus(Mutex<AuditState>);

#[derive(Debug, Default, Clone)]
struct AuditState {
    /// How often results were compared.
    count: u64,
    /// When it was last tried, in seconds since the epoch.
    tried_at: Option<i64>,
    /// Why the last try compared nothing.
    problem: Option<String>,
    last: Option<Compared>,
    clean: Option<Clean>,
}

/// The last time that results were compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compared {
    pub(crate) results: u64,
    pub(crate) differences: u64,
    pub(crate) seconds: f64,
}

/// The last time that nothing differed.
#[derive(Debug, Clone, Copy)]
struct Clean {
    at: i64,
    /// Changes that the topics had seen before.
    changes: u64,
}

impl AuditStatus {
    /// Results were compared after the topics had seen `changes`.
    pub(crate) fn compared(&self, compared: Compared, changes: u64, now: i64) {
        let mut inner = self.lock();
        inner.tried_at = Some(now);
        inner.problem = None;
        inner.count += 1;
        inner.last = Some(compared);
        if compared.differences == 0 {
            inner.clean = Some(Clean { at: now, changes });
        }
    }

    /// Nothing could be compared.
    pub(crate) fn failed(&self, problem: String, now: i64) {
        let mut inner = self.lock();
        inner.tried_at = Some(now);
        inner.problem = Some(problem);
    }

    /// When it was last tried, if it was, unless nothing differed then and the topics have seen no more `changes`.
    pub(crate) fn is_due(&self, changes: u64) -> Option<Option<i64>> {
        let inner = self.lock();
        let differed = inner.last.is_some_and(|last| last.differences > 0);
        let is_known = !differed && inner.clean.is_some_and(|clean| clean.changes == changes);
        (!is_known).then_some(inner.tried_at)
    }

    /// How often results were compared.
    pub(crate) fn count(&self) -> u64 {
        self.lock().count
    }

    /// Differences that the last comparison found.
    pub(crate) fn differences(&self) -> Option<u64> {
        self.lock().last.map(|last| last.differences)
    }

    /// When nothing differed last.
    pub(crate) fn clean_at(&self) -> Option<i64> {
        self.lock().clean.map(|clean| clean.at)
    }

    pub(super) fn json(&self) -> Value {
        let inner = self.lock();
        match inner.tried_at {
            None => Value::Null,
            Some(at) => json!({
                "at": at,
                "count": inner.count,
                "results": inner.last.map(|last| last.results),
                "differences": inner.last.map(|last| last.differences),
                "seconds": inner.last.map(|last| last.seconds),
                "lastSuccessAt": inner.clean.map(|clean| clean.at),
                "problem": inner.problem,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, AuditState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
