//! The counters of a join, and how it is kept current.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};

use super::audit::AuditStatus;
use super::counters::{Counter, CounterByLabel, Gauge, LastError};

/// The counters of a join.
#[derive(Debug, Default)]
pub(crate) struct JoinStatus {
    class: Mutex<Option<ClassInForce>>,
    pub(crate) evaluations: Counter,
    /// Evaluations that ran over everything.
    pub(crate) evaluations_full: Counter,
    pub(crate) evaluation_microseconds: Counter,
    pub(crate) results_changed: Counter,
    /// Messages that no frame of a window takes.
    pub(crate) refused: Counter,
    /// Steps of SQLite's virtual machine, and look-ups in shards, of evaluations by key.
    pub(crate) steps: Counter,
    pub(crate) probes: Counter,
    /// How often a slower class than planned had to do, by cause.
    pub(crate) fallbacks: CounterByLabel,
    pub(crate) epoch: Gauge,
    as_of: Mutex<Option<i64>>,
    window: Mutex<Option<WindowTime>>,
    failing: Mutex<Failing>,
    pub(crate) error: LastError,
    pub(crate) audit: AuditStatus,
}

/// Result keys whose evaluation fails.
#[derive(Debug, Default)]
struct Failing {
    count: usize,
    /// The first of them as JSON, each with the reason.
    shown: Vec<(String, String)>,
}

impl Failing {
    fn json(&self) -> Value {
        let shown = self.shown.iter().map(|(key, error)| {
            let key: Value = serde_json::from_str(key).unwrap_or(Value::Null);
            json!({"key": key, "error": error})
        });
        json!({"count": self.count, "keys": shown.collect::<Vec<_>>()})
    }
}

/// How far the time of a window has come, in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WindowTime {
    /// `None` before the first event time was seen.
    pub(crate) watermark: Option<i64>,
    /// The end of the frame that closes next; `None` if no frame with rows is open.
    pub(crate) next_end: Option<i64>,
    /// Whether no frame waits to be evaluated, and the event times of all messages that are evaluated count.
    pub(crate) is_current: bool,
    /// Messages that no frame has taken.
    pub(crate) refused: u64,
}

/// The ways to keep a join current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClassName {
    /// Only the results that a change can concern are evaluated.
    Keyed,
    /// Groups are brought up to date by the rows that have come and gone.
    Accumulated,
    /// Everything is evaluated whenever something changes.
    Full,
}

impl ClassName {
    /// The name in metrics and in `/status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Keyed => "keyed",
            Self::Accumulated => "accumulated",
            Self::Full => "full",
        }
    }
}

/// How a join is kept current.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClassInForce {
    pub(crate) name: ClassName,
    /// Why no quicker class is in force.
    pub(crate) reason: Option<String>,
}

impl JoinStatus {
    /// Notes the class in force.
    pub(crate) fn set_class(&self, class: ClassInForce) {
        *self.class.lock().unwrap_or_else(PoisonError::into_inner) = Some(class);
    }

    /// Notes the moment that the results are as of, in seconds since the Unix epoch; for a query that reads the clock.
    pub(crate) fn set_as_of(&self, moment: i64) {
        *self.as_of.lock().unwrap_or_else(PoisonError::into_inner) = Some(moment);
    }

    /// Notes how many result keys fail, and the first of them as JSON, each with the reason.
    pub(crate) fn set_failing(&self, count: usize, shown: Vec<(String, String)>) {
        *self.failing.lock().unwrap_or_else(PoisonError::into_inner) = Failing { count, shown };
    }

    /// The number of result keys that fail.
    pub(super) fn failing_count(&self) -> u64 {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).count as u64
    }

    /// Notes how far the time of a window has come.
    pub(crate) fn set_window(&self, watermark: Option<i64>, next_end: Option<i64>, is_current: bool) {
        let time = WindowTime { watermark, next_end, is_current, refused: self.refused.value() };
        *self.window.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
    }

    /// An entry of the part `joins` of `/status`.
    pub(super) fn json(&self) -> Value {
        let class = self.class();
        json!({
            "class": class.as_ref().map(|class| class.name),
            "reason": class.and_then(|class| class.reason),
            "epoch": self.epoch.value(),
            "asOf": *self.as_of.lock().unwrap_or_else(PoisonError::into_inner),
            "evaluations": self.evaluations.value(),
            "evaluationsFull": self.evaluations_full.value(),
            "evaluationSeconds": self.evaluation_microseconds.value() as f64 / 1e6,
            "steps": self.steps.value(),
            "probes": self.probes.value(),
            "resultsChanged": self.results_changed.value(),
            "window": *self.window.lock().unwrap_or_else(PoisonError::into_inner),
            "fallbacks": self.fallbacks.values(),
            "failing": self.failing.lock().unwrap_or_else(PoisonError::into_inner).json(),
            "lastError": self.error.text(),
            "audit": self.audit.json(),
        })
    }

    pub(super) fn class(&self) -> Option<ClassInForce> {
        self.class.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
