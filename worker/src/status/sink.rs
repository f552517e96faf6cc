//! The counters of a sink.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::contact::{Contact, LostContact};
use super::counters::{Counter, Gauge, LastError, Meter};

/// The counters of a sink.
#[derive(Debug, Default)]
pub(crate) struct SinkStatus {
    pub(crate) delivered: Meter,
    pub(crate) failed: Counter,
    pub(crate) dropped: Counter,
    pub(crate) dead_letters: Gauge,
    /// Epochs between the last one applied and the sink's cursor.
    pub(crate) lag_epochs: Gauge,
    pub(crate) clients: Gauge,
    pub(crate) circuit_open: AtomicBool,
    pub(crate) error: LastError,
    /// Where it listens or what it writes to, once it does.
    pub(crate) at: Mutex<Option<String>>,
    pub(crate) contact: Contact,
}

impl SinkStatus {
    /// What it writes to, if all deliveries fail: for too long, or so often that it is left alone for a while.
    pub(super) fn failing(&self, now: i64) -> Option<(Option<String>, LostContact)> {
        let is_open = self.circuit_open.load(Ordering::Relaxed);
        let lost = self.contact.if_lost().filter(|lost| is_open || lost.is_lasting(now))?;
        Some((self.at.lock().unwrap_or_else(PoisonError::into_inner).clone(), lost))
    }

    /// An entry of the part `sinks` of `/status`.
    pub(super) fn json(&self) -> Value {
        json!({
            "at": *self.at.lock().unwrap_or_else(PoisonError::into_inner),
            "delivered": self.delivered.value(),
            "deliveredPerSecond": self.delivered.per_second(),
            "failed": self.failed.value(),
            "dropped": self.dropped.value(),
            "deadLetters": self.dead_letters.value(),
            "lagEpochs": self.lag_epochs.value(),
            "clients": self.clients.value(),
            "circuit": if self.circuit_open.load(Ordering::Relaxed) { "open" } else { "closed" },
            "lastError": self.error.text(),
        })
    }
}
