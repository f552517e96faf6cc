//! Memory of a process at its peak.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::Result;

use crate::process;

/// Pause between two looks. Linux remembers the peak of all memory, but not that of its anonymous part.
const INTERVAL: Duration = Duration::from_millis(20);

/// The most that a process has had at once, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) peak_bytes: u64,
    /// The most anonymous memory (on no disk) at any look.
    pub(crate) anonymous_bytes: u64,
}

/// A thread that looks at a process until this is dropped.
pub(crate) struct MemoryWatch {
    pid: u32,
    anonymous: Arc<AtomicU64>,
    /// Dropping this stops the thread.
    _stop: mpsc::Sender<()>,
}

impl MemoryWatch {
    /// Begins to look at a process.
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

    /// The peak so far.
    pub(crate) fn peak(&self) -> Result<Memory> {
        let now = process::memory_bytes(self.pid, "RssAnon")?;
        let anonymous_bytes = self.anonymous.fetch_max(now, Ordering::Relaxed).max(now);
        Ok(Memory { peak_bytes: process::memory_bytes(self.pid, "VmHWM")?, anonymous_bytes })
    }
}
