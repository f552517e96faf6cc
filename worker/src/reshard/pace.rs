//! The pace of work beside a worker that serves: it rests for as long as it has worked, so that others hardly feel it, or
//! hurries, or has the worker take messages more slowly. It ends when it is called off.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::ReshardError;
use crate::storage::ingest::Ingest;

/// How long work goes on without a rest.
const STRETCH: Duration = Duration::from_millis(10);

/// The longest rest: a step that could not be parted is not made up for in full.
const REST_MAX: Duration = Duration::from_millis(500);

/// What is left to messages of their pace at first, where the work can't keep pace with them, and each further time.
const BRAKED_SHARE: f64 = 0.75;

/// What is left to them at least.
const BRAKED_SHARE_MIN: f64 = 0.2;

/// Work in one thread, at its pace.
pub(super) struct Pace {
    /// Closed when the work is called off.
    called_off: Receiver<()>,
    ingest: Ingest,
    haste: Haste,
    since: Instant,
    /// When the messages were counted last, and how many there were.
    counted: (Instant, u64),
}

/// How hard the work is pressed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Haste {
    /// Half of the time is rest.
    Gentle,
    /// There is no rest.
    Hurried,
    /// There is no rest, and messages come at this share of their pace, which was so many a second.
    Braking { share: f64, per_second: f64 },
}

impl Pace {
    pub(super) fn new(called_off: Receiver<()>, ingest: Ingest) -> Self {
        let counted = (Instant::now(), ingest.rate_limit().messages());
        Self { called_off, ingest, haste: Haste::Gentle, since: Instant::now(), counted }
    }

    /// Rests from now on for as long as it works.
    pub(super) fn be_gentle(&mut self) {
        self.set(Haste::Gentle);
    }

    /// Does not rest from now on.
    pub(super) fn hurry(&mut self) {
        self.set(Haste::Hurried);
    }

    /// Presses harder where that is needed, by what has come since the last time.
    pub(super) fn press(&mut self, is_needed: bool) {
        let (now, messages) = (Instant::now(), self.ingest.rate_limit().messages());
        let (before, messages_before) = std::mem::replace(&mut self.counted, (now, messages));
        if !is_needed {
            return;
        }
        self.set(match self.haste {
            Haste::Gentle => Haste::Hurried,
            Haste::Hurried => {
                let seconds = (now - before).as_secs_f64().max(f64::EPSILON);
                let per_second = ((messages - messages_before) as f64 / seconds).max(1.0);
                Haste::Braking { share: BRAKED_SHARE, per_second }
            }
            Haste::Braking { share, per_second } => {
                Haste::Braking { share: (share * BRAKED_SHARE).max(BRAKED_SHARE_MIN), per_second }
            }
        });
    }

    fn set(&mut self, haste: Haste) {
        self.haste = haste;
        let limit = match haste {
            Haste::Braking { share, per_second } => Some(share * per_second),
            _ => None,
        };
        self.ingest.rate_limit().set(limit);
    }

    /// To be called often: rests when that is due.
    pub(super) fn step(&mut self) -> Result<(), ReshardError> {
        let worked = self.since.elapsed();
        if worked < STRETCH {
            return Ok(());
        }
        let rest = if self.haste == Haste::Gentle { worked.min(REST_MAX) } else { Duration::ZERO };
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

impl Drop for Pace {
    fn drop(&mut self) {
        self.ingest.rate_limit().set(None);
    }
}
