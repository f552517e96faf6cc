//! What is counted of a sink.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::counters::{Counter, Gauge, LastError, Meter};
use super::source::Contact;

/// What is counted of a sink.
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
    /// Where it listens, once it does.
    pub(crate) at: Mutex<Option<String>>,
    pub(crate) contact: Contact,
}
