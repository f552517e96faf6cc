//! What is told about the config: which one is in force, and how the last reload went.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};

use super::Counter;
use crate::runtime::LeftOut;

/// What became of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReloadOutcome {
    /// What it says is what runs.
    Applied,
    /// It is wrong, or can't be run; the one before stays in force.
    Refused,
    /// It says what runs already.
    Unchanged,
}

impl ReloadOutcome {
    pub(crate) const ALL: [Self; 3] = [Self::Applied, Self::Refused, Self::Unchanged];

    /// Its name in metrics and in `/status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::Unchanged => "unchanged",
        }
    }
}

#[derive(Debug)]
pub(crate) struct ConfigStatus {
    inner: Mutex<Inner>,
    /// By outcome, in the order of [`ReloadOutcome::ALL`].
    reloads: [Counter; 3],
}

#[derive(Debug)]
struct Inner {
    /// Hash of the documents that are in force.
    hash: String,
    /// Seconds since the epoch.
    applied_at: i64,
    last_reload: Option<LastReload>,
    /// Documents of that hash that are not in force, as they are wrong.
    left_out: Vec<LeftOut>,
}

#[derive(Debug)]
struct LastReload {
    /// Hash of the documents that it was about; `None` if they can't be read.
    hash: Option<String>,
    /// Seconds since the epoch.
    at: i64,
    outcome: ReloadOutcome,
    error: Option<String>,
}

impl ConfigStatus {
    /// `hash` is that of the documents with which the worker starts.
    pub(crate) fn new(hash: String, now: i64) -> Self {
        let inner = Inner { hash, applied_at: now, last_reload: None, left_out: Vec::new() };
        Self { inner: Mutex::new(inner), reloads: Default::default() }
    }

    /// These of the documents are wrong, and the rest is in force without them.
    pub(crate) fn leaves_out(&self, left_out: Vec<LeftOut>) {
        self.lock().left_out = left_out;
    }

    /// The documents with this hash are in force.
    pub(crate) fn applied(&self, hash: String, now: i64) {
        let mut inner = self.lock();
        inner.hash.clone_from(&hash);
        inner.applied_at = now;
        drop(inner);
        self.reloaded(ReloadOutcome::Applied, Some(hash), None, now);
    }

    /// The documents say nothing new.
    pub(crate) fn unchanged(&self, now: i64) {
        let hash = self.lock().hash.clone();
        self.reloaded(ReloadOutcome::Unchanged, Some(hash), None, now);
    }

    /// The documents with this hash, if they can be read, were refused for this reason.
    pub(crate) fn refused(&self, hash: Option<String>, error: String, now: i64) {
        self.reloaded(ReloadOutcome::Refused, hash, Some(error), now);
    }

    fn reloaded(&self, outcome: ReloadOutcome, hash: Option<String>, error: Option<String>, at: i64) {
        self.lock().last_reload = Some(LastReload { hash, at, outcome, error });
        // Whoever waits for the count finds the rest told.
        self.reloads[outcome as usize].add(1);
    }

    /// Reloads that ended so.
    pub(crate) fn reloads(&self, outcome: ReloadOutcome) -> u64 {
        self.reloads[outcome as usize].value()
    }

    /// Whether what was asked for last is what runs.
    pub(crate) fn is_up_to_date(&self) -> bool {
        self.lock().last_reload.as_ref().is_none_or(|last| last.outcome != ReloadOutcome::Refused)
    }

    pub(crate) fn json(&self) -> Value {
        let inner = self.lock();
        let last_reload = inner.last_reload.as_ref().map(|last| {
            json!({
                "hash": last.hash,
                "at": last.at,
                "ok": last.outcome != ReloadOutcome::Refused,
                "outcome": last.outcome.as_str(),
                "error": last.error,
            })
        });
        let reloads: Map<String, Value> = ReloadOutcome::ALL
            .into_iter()
            .map(|outcome| (outcome.as_str().to_owned(), self.reloads(outcome).into()))
            .collect();
        json!({
            "hash": inner.hash,
            "appliedAt": inner.applied_at,
            "leftOut": inner.left_out,
            "lastReload": last_reload,
            "reloads": reloads,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
