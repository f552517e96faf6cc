//! The counters of a source, and whether the server it connects to has ever answered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::counters::{Counter, LastError, Meter};
use super::kafka::KafkaStatus;

/// The counters of a source.
#[derive(Debug, Default)]
pub(crate) struct SourceStatus {
    pub(crate) accepted: Meter,
    pub(crate) refused: Counter,
    pub(crate) error: LastError,
    /// Where it listens or what it reads, once it does.
    pub(crate) at: Mutex<Option<String>>,
    pub(crate) finished: AtomicBool,
    pub(crate) contact: Contact,
    pub(crate) kafka: KafkaStatus,
}

impl SourceStatus {
    /// Notes that what it reads from has answered.
    pub(crate) fn reached(&self) {
        self.contact.made();
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
            "kafka": self.kafka.json(),
        })
    }
}

/// Whether something that we connect to has ever answered since it was started.
#[derive(Debug, Default)]
pub(crate) struct Contact {
    is_awaited: AtomicBool,
}

impl Contact {
    /// Says that an answer is awaited.
    pub(crate) fn awaited(&self) {
        self.is_awaited.store(true, Ordering::Relaxed);
    }

    pub(crate) fn made(&self) {
        self.is_awaited.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.is_awaited.load(Ordering::Relaxed)
    }
}
