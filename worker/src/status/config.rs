//! The status of the config: which one is in force, and how the last reload went.

use std::sync::{Mutex, MutexGuard, PoisonError};

use litejoin_crds::worker_status::{ConfigReport, LastReload, LeftOut};
use serde_json::Value;

use super::counters::Counter;

/// The outcome of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReloadOutcome {
    /// The new config is in force.
    Applied,
    /// The new config is wrong, or can't be run; the one before stays in force.
    Refused,
    /// The new config says what runs already.
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
    inner: Mutex<ConfigState>,
    /// By outcome, in the order of [`ReloadOutcome::ALL`].
    reloads: [Counter; 3],
}

#[derive(Debug)]
struct ConfigState {
    /// Hash of the documents that are in force.
    hash: String,
    /// Seconds since the epoch.
    applied_at: i64,
    last_reload: Option<LastReload>,
    /// Parts of those documents that are not in force as they are written.
    left_out: Vec<LeftOut>,
}

impl ConfigStatus {
    /// `hash` is that of the documents with which the worker starts.
    pub(crate) fn new(hash: String, now: i64) -> Self {
        let inner = ConfigState { hash, applied_at: now, last_reload: None, left_out: Vec::new() };
        Self { inner: Mutex::new(inner), reloads: Default::default() }
    }

    /// These parts are wrong, and the rest is in force without them or with their versions of before.
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
        let ok = outcome != ReloadOutcome::Refused;
        self.lock().last_reload =
            Some(LastReload { hash, at, ok, outcome: outcome.as_str().to_owned(), error });
        // A reader that waits for the count finds the rest written.
        self.reloads[outcome as usize].add(1);
    }

    /// Reloads that ended so.
    pub(crate) fn reloads(&self, outcome: ReloadOutcome) -> u64 {
        self.reloads[outcome as usize].value()
    }

    /// Whether what was asked for last is what runs.
    pub(crate) fn is_up_to_date(&self) -> bool {
        self.lock().last_reload.as_ref().is_none_or(|last| last.ok)
    }

    /// The part `config` of `/status`.
    pub(crate) fn json(&self) -> Value {
        serde_json::to_value(self.report()).expect("a report is plain data")
    }

    /// What is told to the operator.
    pub(crate) fn report(&self) -> ConfigReport {
        let inner = self.lock();
        let reloads = ReloadOutcome::ALL
            .into_iter()
            .map(|outcome| (outcome.as_str().to_owned(), self.reloads(outcome)));
        ConfigReport {
            hash: inner.hash.clone(),
            applied_at: inner.applied_at,
            left_out: inner.left_out.clone(),
            last_reload: inner.last_reload.clone(),
            reloads: reloads.collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ConfigState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use litejoin_crds::worker_status::PartComplaint;
    use serde_json::json;

    #[test]
    fn the_operator_reads_what_is_written() {
        let status = ConfigStatus::new("a".to_owned(), 1_700_000_000);
        let left_out = LeftOut {
            kind: "Join".to_owned(),
            name: "live".to_owned(),
            message: "spec.query: no such column: x".to_owned(),
            complaints: vec![PartComplaint {
                field: "query".to_owned(),
                message: "no such column: x".to_owned(),
            }],
            runs_on: true,
        };
        status.leaves_out(vec![left_out]);
        let before = json!({
            "hash": "a",
            "appliedAt": 1_700_000_000,
            "leftOut": [{
                "kind": "Join", "name": "live", "message": "spec.query: no such column: x",
                "complaints": [{ "field": "query", "message": "no such column: x" }], "runsOn": true,
            }],
            "lastReload": null,
            "reloads": { "applied": 0, "refused": 0, "unchanged": 0 },
        });
        assert_eq!(status.json(), before);

        status.refused(None, "not YAML".to_owned(), 1_700_000_007);
        let refused = json!({
            "hash": null, "at": 1_700_000_007, "ok": false, "outcome": "refused", "error": "not YAML",
        });
        assert_eq!(status.json()["lastReload"], refused);
        assert!(!status.is_up_to_date());

        status.applied("b".to_owned(), 1_700_000_009);
        let report: ConfigReport = serde_json::from_value(status.json()).unwrap();
        assert_eq!((report.hash.as_str(), report.applied_at), ("b", 1_700_000_009));
        assert_eq!(report.left_out[0].name, "live");
        let last_reload = LastReload {
            hash: Some("b".to_owned()),
            at: 1_700_000_009,
            ok: true,
            outcome: "applied".to_owned(),
            error: None,
        };
        assert_eq!(report.last_reload, Some(last_reload));
        assert_eq!(report.reloads.into_values().collect::<Vec<_>>(), [1, 1, 0]);
    }
}
