//! Parses the values of one part of a document, and complains about each that is out of bounds at its place.

use std::time::Duration;

use super::complaints::Complaints;
use crate::complaint::Reason;
use crate::duration::{AgeText, DURATION_MAX, DurationText, duration_text};
use crate::plan::Place;
use crate::quantity::Bytes;

/// The shortest duration there is.
pub(crate) const DURATION_MIN: Duration = Duration::from_nanos(1);

/// The shortest age of a row: the rows of topics carry whole seconds.
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A part of a document, and where complaints about its fields go.
pub(crate) struct Scope<'a> {
    pub(crate) place: &'a Place,
    pub(crate) complaints: &'a mut Complaints,
}

impl Scope<'_> {
    pub(crate) fn error(&mut self, field: &str, reason: Reason, message: impl Into<String>) {
        self.complaints.error(self.place, field, reason, message);
    }

    /// Parses a duration from `min` to `max`; zero, with a complaint, if it is not within them.
    pub(crate) fn duration(
        &mut self,
        field: &str,
        text: &DurationText,
        min: Duration,
        max: Duration,
    ) -> Duration {
        let message = match text.parse() {
            Ok(duration) if duration >= min && duration <= max => return duration,
            Ok(duration) if duration.is_zero() => format!("got {:?}, allowed only more than zero", text.0),
            Ok(duration) if duration < min => {
                format!("got {:?}, allowed at least {:?}", text.0, duration_text(min))
            }
            Ok(_) => format!("got {:?}, allowed at most {:?}", text.0, duration_text(max)),
            Err(message) => message,
        };
        self.error(field, Reason::InvalidDuration, message);
        Duration::ZERO
    }

    /// Parses an age of at least `min`; `None` is for ever, and zero, with a complaint, an age that is out of bounds.
    pub(crate) fn age(&mut self, field: &str, text: &AgeText, min: Duration) -> Option<Duration> {
        text.duration().map(|duration| self.duration(field, &duration, min, DURATION_MAX))
    }

    /// Parses a positive duration.
    pub(crate) fn positive(&mut self, field: &str, text: &DurationText) -> Duration {
        self.duration(field, text, DURATION_MIN, DURATION_MAX)
    }

    /// Parses an amount of bytes of at least `min`; zero, with a complaint, if it is less.
    pub(crate) fn bytes(&mut self, field: &str, bytes: &Bytes, min: u64) -> u64 {
        match bytes.parse() {
            Ok(bytes) if bytes >= min => return bytes,
            Ok(bytes) => {
                self.error(field, Reason::OutOfRange, format!("got {bytes} bytes, allowed at least {min}"))
            }
            Err(message) => self.error(field, Reason::InvalidValue, message),
        }
        0
    }
}
