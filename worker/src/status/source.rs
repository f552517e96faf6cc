//! The counters of a source.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::contact::{Contact, LostContact};
use super::counters::{Counter, LastError, Meter};
use super::kafka::KafkaStatus;

/// The counters of a source.
#[derive(Debug, Default)]
pub(crate) struct SourceStatus {
    pub(crate) accepted: Meter,
    pub(crate) refused: Counter,
    pub(crate) error: LastError,
    /// What the user should know though all goes on.
    pub(crate) warning: LastError,
    /// Where it listens or what it reads, once it does.
    pub(crate) at: Mutex<Option<String>>,
    pub(crate) finished: AtomicBool,
    pub(crate) contact: Contact,
    pub(crate) kafka: KafkaStatus,
}

impl SourceStatus {
    /// What it reads from, if that has been silent for too long.
    pub(super) fn silent(&self, now: i64) -> Option<(Option<String>, LostContact)> {
        let lost = self.contact.if_lost().filter(|lost| lost.is_lasting(now))?;
        Some((self.at.lock().unwrap_or_else(PoisonError::into_inner).clone(), lost))
    }

    /// An entry of the part `sources` of `/status`.
    pub(super) fn json(&self) -> Value {
        json!({
            "at": *self.at.lock().unwrap_or_else(PoisonError::into_inner),
            "accepted": self.accepted.value(),
            "acceptedPerSecond": self.accepted.per_second(),
            "refused": self.refused.value(),
            "finished": self.finished.load(Ordering::Relaxed),
            "lastError": self.error.text(),
            "lastWarning": self.warning.text(),
            "kafka": self.kafka.json(),
        })
    }
}
