//! Windows of a plan: how time is cut, and which time counts.

use serde::Serialize;

use super::Place;
use crate::window::{TimeUnit, WindowEmit};

/// A window and where it was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Window {
    /// The name, unique among topics, joins and windows.
    pub name: String,
    /// The place where it was written.
    pub place: Place,
    /// The topic whose rows it is made of.
    pub topic: String,
    /// The SELECT as written.
    pub query: String,
    /// How time is cut.
    pub cut: TimeCut,
    /// SQL expression over a row: rows of each value are cut by themselves.
    pub partition_by: Option<String>,
    /// Output column whose value is part of the result key.
    pub key_column: Option<String>,
    /// When results are sent.
    pub emit: WindowEmit,
    /// Frames without rows in which a key gets a result after one with rows.
    pub emit_empty: u32,
    /// The time of a row; `None` is the time of its arrival.
    pub event_time: Option<EventClock>,
    /// Names of the sinks that take the window, in the order of the sinks.
    pub sinks: Vec<String>,
}

/// How time is cut; all durations in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum TimeCut {
    /// Stretches of a length that begin at regular times.
    Grid {
        /// Length of a stretch.
        size: i64,
        /// Time from one start to the next; the size, for stretches one after another.
        slide: i64,
        /// Start of one of them, counted from midnight of 1 January 1970.
        offset: i64,
        /// IANA name of the place whose clock counts; `None` is UTC.
        timezone: Option<String>,
    },
    /// Until nothing comes for a while.
    Session {
        /// The longest time between neighbours of a session.
        gap: i64,
    },
}

/// Event time; all durations in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventClock {
    /// JSON path of the time in the payload; `None` is the row's timestamp.
    pub path: Option<String>,
    /// How the time in the payload is written.
    pub unit: TimeUnit,
    /// How far the watermark stays behind the newest time seen.
    pub watermark_delay: i64,
    /// Time without a message after which a partition holds the watermark back no more.
    pub idle_timeout: i64,
    /// How long a stretch takes rows after the watermark has passed its end.
    pub allowed_lateness: i64,
    /// Whether a message that is older than the one with its key changes nothing.
    pub ignores_stale: bool,
}

impl Window {
    /// Returns how long a row is needed after its time, in seconds, if the topic's clock is not behind; `None` for a
    /// session, which has no greatest length.
    pub fn rows_needed(&self) -> Option<i64> {
        let lateness = self.event_time.as_ref().map_or(0, |event_time| {
            event_time.watermark_delay + event_time.idle_timeout + event_time.allowed_lateness
        });
        match &self.cut {
            TimeCut::Grid { size, .. } => Some(size + lateness),
            TimeCut::Session { .. } => None,
        }
    }
}
