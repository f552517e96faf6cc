//! What is counted of a join, and how it is kept current.

use std::sync::{Mutex, PoisonError};

use super::audit::AuditStatus;
use super::counters::{Counter, CounterByLabel, Gauge, LastError};

/// What is counted of a join.
#[derive(Debug, Default)]
pub(crate) struct JoinStatus {
    class: Mutex<Option<ClassInForce>>,
    pub(crate) evaluations: Counter,
    /// Those that ran over everything.
    pub(crate) evaluations_full: Counter,
    pub(crate) evaluation_microseconds: Counter,
    pub(crate) results_changed: Counter,
    /// Steps of SQLite's virtual machine, and look-ups in shards, of evaluations by key.
    pub(crate) steps: Counter,
    pub(crate) probes: Counter,
    /// How often a slower class than planned had to do, by cause.
    pub(crate) fallbacks: CounterByLabel,
    pub(crate) epoch: Gauge,
    pub(crate) error: LastError,
    pub(crate) audit: AuditStatus,
}

/// How a join is kept current.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClassInForce {
    pub(crate) name: &'static str,
    /// Why no quicker class is in force.
    pub(crate) reason: Option<String>,
}

impl JoinStatus {
    /// Notes the class in force.
    pub(crate) fn set_class(&self, class: ClassInForce) {
        *self.class.lock().unwrap_or_else(PoisonError::into_inner) = Some(class);
    }

    pub(super) fn class(&self) -> Option<ClassInForce> {
        self.class.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
