//! How much the files of the data take, and how much they may. Maintenance measures it, and writers go by it.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{info, warn};

/// Bytes in use, and the bound on them.
#[derive(Debug)]
pub(crate) struct StorageStatus {
    bytes: AtomicU64,
    /// [`UNBOUNDED`] where there is no bound.
    bytes_max: AtomicU64,
}

const UNBOUNDED: u64 = u64::MAX;

/// Data that takes more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "spec.storage.maxBytes: the data takes {bytes} bytes, allowed {bytes_max}; raise it, delete keys, or set a retention"
)]
pub(crate) struct StorageExcess {
    bytes: u64,
    bytes_max: u64,
}

impl Default for StorageStatus {
    fn default() -> Self {
        Self { bytes: AtomicU64::new(0), bytes_max: AtomicU64::new(UNBOUNDED) }
    }
}

impl StorageStatus {
    /// Notes how much the data takes.
    pub(crate) fn measured(&self, bytes: u64) {
        self.change(&self.bytes, bytes);
    }

    /// Notes how much the data may take; `None`: any amount.
    pub(crate) fn bound(&self, bytes_max: Option<u64>) {
        self.change(&self.bytes_max, bytes_max.unwrap_or(UNBOUNDED));
    }

    fn change(&self, number: &AtomicU64, value: u64) {
        let before = self.excess();
        number.store(value, Ordering::Relaxed);
        match (before, self.excess()) {
            (None, Some(excess)) => warn!("{excess}; only deletions are taken until there is room"),
            (Some(_), None) => {
                info!("the data takes no more than storage.maxBytes; messages are taken again")
            }
            _ => {}
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn bytes_max(&self) -> Option<u64> {
        Some(self.bytes_max.load(Ordering::Relaxed)).filter(|bytes_max| *bytes_max != UNBOUNDED)
    }

    /// By how much the data is beyond its bound, if it is.
    pub(crate) fn excess(&self) -> Option<StorageExcess> {
        let (bytes, bytes_max) = (self.bytes(), self.bytes_max()?);
        (bytes > bytes_max).then_some(StorageExcess { bytes, bytes_max })
    }
}
