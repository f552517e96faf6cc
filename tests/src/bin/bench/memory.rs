//! The peak memory of a process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::Result;

use crate::process;

/// Pause between two polls. Linux records the peak of all memory, but not that of its anonymous part.
const INTERVAL: Duration = Duration::from_millis(20);

/// The peak memory of a process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) peak_bytes: u64,
    /// The greatest anonymous memory (not backed by a file) of any poll.
    pub(crate) anonymous_bytes: u64,
}

/// A thread that polls a process until drop.
pub(crate) struct MemoryWatch {
    pid: u32,
    anonymous: Arc<AtomicU64>,
    /// The thread stops when this sender is dropped.
    _stop: mpsc::Sender<()>,
}

impl MemoryWatch {
    /// Starts to poll a process.
    pub(crate) fn start(pid: u32) -> Self {
        let (stop, stopped) = mpsc::channel();
        let anonymous = Arc::new(AtomicU64::new(0));
        let peak = Arc::clone(&anonymous);
        std::thread::spawn(move || {
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                // The process may have ended.
                let Ok(bytes) = process::memory_bytes(pid, "RssAnon") else { return };
                peak.fetch_max(bytes, Ordering::Relaxed);
            }
        });
        Self { pid, anonymous, _stop: stop }
    }

    /// Returns the peak so far.
    pub(crate) fn peak(&self) -> Result<Memory> {
        let now = process::memory_bytes(self.pid, "RssAnon")?;
        let anonymous_bytes = self.anonymous.fetch_max(now, Ordering::Relaxed).max(now);
        Ok(Memory { peak_bytes: process::memory_bytes(self.pid, "VmHWM")?, anonymous_bytes })
    }
}
