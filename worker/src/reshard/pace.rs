//! The pace of work that others must not feel: it rests for as long as it has worked, and ends when it is called off.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::ReshardError;

/// How long work goes on without a rest.
const STRETCH: Duration = Duration::from_millis(10);

/// The longest rest: a step that could not be parted is not made up for in full.
const REST_MAX: Duration = Duration::from_millis(500);

/// Work with rests, in one thread.
pub(super) struct Pace {
    /// Closed when the work is called off.
    called_off: Receiver<()>,
    since: Instant,
    /// Whether to rest.
    is_gentle: bool,
}

impl Pace {
    pub(super) fn new(called_off: Receiver<()>) -> Self {
        Self { called_off, since: Instant::now(), is_gentle: true }
    }

    /// Rests from now on, or hurries.
    pub(super) fn be_gentle(&mut self, is_gentle: bool) {
        self.is_gentle = is_gentle;
    }

    /// To be called often: rests when that is due.
    pub(super) fn step(&mut self) -> Result<(), ReshardError> {
        let worked = self.since.elapsed();
        if worked < STRETCH {
            return Ok(());
        }
        let rest = if self.is_gentle { worked.min(REST_MAX) } else { Duration::ZERO };
        self.rest(rest)
    }

    /// Rests for some time.
    pub(super) fn rest(&mut self, time: Duration) -> Result<(), ReshardError> {
        let outcome = self.called_off.recv_timeout(time);
        self.since = Instant::now();
        match outcome {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(ReshardError::CalledOff),
        }
    }
}
