//! The pace of work beside a worker that serves: it rests for as long as it has worked, so that others hardly feel it, or
//! hurries, or has the worker take messages more slowly. It ends when it is called off.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::ReshardError;
use crate::storage::ingest::{Held, Ingest};

/// How long work goes on without a rest.
const STRETCH: Duration = Duration::from_millis(10);

/// The longest rest: a step that could not be parted is not made up for in full.
const REST_MAX: Duration = Duration::from_millis(500);

/// Of so many stretches the writers rest for one, where messages come as fast as they can be followed.
const BRAKED_STRETCHES: u32 = 4;

/// How long writers may take to come to rest.
const HOLD_TIMEOUT: Duration = Duration::from_millis(100);

/// How hard the work is pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Haste {
    /// Half of the time is rest.
    Gentle,
    /// There is no rest.
    Hurried,
    /// There is no rest, and the writers of the data have some.
    Braking,
}

/// Work in one thread, at its pace.
pub(super) struct Pace {
    /// Closed when the work is called off.
    called_off: Receiver<()>,
    ingest: Ingest,
    haste: Haste,
    since: Instant,
    /// Stretches since the last one in which the writers rested.
    stretches: u32,
    /// Lets the writers rest while it is there.
    held: Option<Held>,
}

impl Pace {
    pub(super) fn new(called_off: Receiver<()>, ingest: Ingest) -> Self {
        Self { called_off, ingest, haste: Haste::Gentle, since: Instant::now(), stretches: 0, held: None }
    }

    pub(super) fn haste(&self) -> Haste {
        self.haste
    }

    pub(super) fn set(&mut self, haste: Haste) {
        self.haste = haste;
        self.held = None;
    }

    /// To be called often: rests when that is due.
    pub(super) fn step(&mut self) -> Result<(), ReshardError> {
        let worked = self.since.elapsed();
        if worked < STRETCH {
            return Ok(());
        }
        self.held = None;
        let rest = if self.haste == Haste::Gentle { worked.min(REST_MAX) } else { Duration::ZERO };
        self.rest(rest)?;
        if self.haste == Haste::Braking {
            self.stretches = (self.stretches + 1) % BRAKED_STRETCHES;
            if self.stretches == 0 {
                self.held = self.ingest.hold(HOLD_TIMEOUT);
            }
        }
        Ok(())
    }

    /// Rests for some time.
    pub(super) fn rest(&mut self, time: Duration) -> Result<(), ReshardError> {
        self.held = None;
        let outcome = self.called_off.recv_timeout(time);
        self.since = Instant::now();
        match outcome {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(ReshardError::CalledOff),
        }
    }
}
